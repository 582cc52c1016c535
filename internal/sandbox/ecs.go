package sandbox

import (
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// ecsVersion is the version of the API that the sandbox speaks.
const ecsVersion = "2014-05-26"

// What MissingRole may be: the service spells it in two ways.
const (
	NoRoleAcount  = "NoSetRoletoECSServiceAcount"
	NoRoleAccount = "NoSetRoletoECSServiceAccount"
)

// ECSOptions are how the ECS half of a sandbox behaves. The zero value is a service in
// which everything works and takes its time.
type ECSOptions struct {
	// Clock tells the time by which imports and copies go on; nil is the clock of the
	// sandbox. Clients sign by real time, so that a test that jumps ahead scripts this
	// clock only.
	Clock func() time.Time
	// Durations are those of jobs; what is zero takes its default.
	Durations Durations
	// Speed is how many times faster than their durations jobs are; 0 is 1.
	Speed float64
	// ImageQuota is how many images of its own the account may have in a region; 0 is 100.
	ImageQuota int
	// MissingRole is the error code with which an import is refused for the want of a
	// role that lets ECS read OSS: NoRoleAcount or NoRoleAccount. Empty: it is there.
	MissingRole string
	// AnyContent lets an import succeed whatever the object holds. Otherwise it must be
	// a sound qcow2 or VHD container, or raw with a boot sector.
	AnyContent bool
	// JobFaults are the imports and copies that fail.
	JobFaults []JobFault
	// CheckItems are what the image check finds in any image; nil is a few without risk.
	CheckItems []CheckItem
}

// Durations are how long jobs take, by the clock of jobs.
type Durations struct {
	Queue  time.Duration // until an import begins; 30 s
	Import time.Duration // until the import's task is finished; 10 min
	Settle time.Duration // until its image is available after that; 30 s
	Check  time.Duration // until the image check is finished after that; 2 min
	Copy   time.Duration // of an image to another region, once it is its turn; 15 min
}

func (d Durations) withDefaults(speed float64) Durations {
	if speed <= 0 {
		speed = 1
	}
	for _, f := range []struct {
		v   *time.Duration
		def time.Duration
	}{
		{&d.Queue, 30 * time.Second}, {&d.Import, 10 * time.Minute}, {&d.Settle, 30 * time.Second},
		{&d.Check, 2 * time.Minute}, {&d.Copy, 15 * time.Minute},
	} {
		if *f.v == 0 {
			*f.v = f.def
		}
		*f.v = time.Duration(float64(*f.v) / speed)
	}
	return d
}

// JobStage is when a job fails.
type JobStage int

// The stages at which a job can fail.
const (
	WhileImporting JobStage = iota // the task fails at 37 %, and the image with it
	AfterImporting                 // the task finishes, but its image does not become available
	WhileCopying                   // the image that is to be the copy fails
)

// JobFault is a failure of the jobs that it matches.
type JobFault struct {
	Image         string // name of the image that is to be; "" is any
	Stage         JobStage
	Status        string // of the image that remains: CreateFailed if empty, or UnAvailable
	Code, Message string // what DescribeTaskAttribute tells; ImportImageFailed if empty
	Times         int    // how many are hit; 0 is all
}

// CheckItem is a finding of the image check.
type CheckItem struct{ Name, Value, RiskLevel, RiskCode string }

// ecs is the image part of the Elastic Compute Service, for all regions at once. It is
// an http.Handler.
//
// Codes of errors are those of the service's API reference (ImportImage, CopyImage,
// DeleteImage, DeleteSnapshot, CancelTask, CancelCopyImage and the common ones) where
// it has one for the case. For what it only describes, the closest of its codes is used;
// a client should not tell those apart: a page out of range, accounts or resources over
// the limit of one call, a copy within a region, InvalidParameter*.
type ecs struct {
	opt    Options
	oss    *oss
	ids    *ids
	faults *faults
	audit  *audit

	mu        sync.Mutex
	cfg       ECSOptions // opt.ECS with defaults
	nonces    nonces
	tokens    map[string]tokenUse
	serial    int                  // of images, tasks and snapshots
	images    []*image             // in the order of creation, as the following
	tasks     []*task              //
	snapshots []*snapshot          //
	freed     map[string]time.Time // when a region last could begin another copy
}

func newECS(o Options, store *oss, ids *ids, faults *faults, audit *audit) *ecs {
	e := &ecs{opt: o, oss: store, ids: ids, faults: faults, audit: audit,
		tokens: map[string]tokenUse{}, freed: map[string]time.Time{}}
	e.configure(func(c *ECSOptions) { *c = o.ECS })
	for _, region := range o.Regions {
		e.images = append(e.images, publicImage(region))
	}
	return e
}

// configure changes the options, for jobs that begin from now on.
func (e *ecs) configure(change func(*ECSOptions)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	change(&e.cfg)
	if e.cfg.Clock == nil {
		e.cfg.Clock = e.opt.Clock
	}
	if e.cfg.ImageQuota == 0 {
		e.cfg.ImageQuota = 100
	}
	if e.cfg.CheckItems == nil {
		e.cfg.CheckItems = []CheckItem{
			{Name: "GuestOS.CloudInit", Value: "Supported", RiskLevel: "None"},
			{Name: "GuestOS.Virtio", Value: "Supported", RiskLevel: "None"},
			{Name: "GuestOS.Fstab", Value: "Valid", RiskLevel: "None"},
		}
	}
	e.cfg.JobFaults = slices.Clone(e.cfg.JobFaults)
}

// reply is the body of a reply without its RequestId.
type reply map[string]any

// action is an operation of the API. It is called with the lock held and all jobs up to
// date.
type action func(e *ecs, q *rpcRequest) (reply, *rpcError)

// actions are the operations; those that a ClientToken makes idempotent are done once.
var actions = map[string]action{
	"DescribeRegions":              (*ecs).describeRegions,
	"ImportImage":                  once((*ecs).importImage),
	"DescribeTasks":                (*ecs).describeTasks,
	"DescribeTaskAttribute":        (*ecs).describeTaskAttribute,
	"CancelTask":                   (*ecs).cancelTask,
	"DescribeImages":               (*ecs).describeImages,
	"CopyImage":                    once((*ecs).copyImage),
	"CancelCopyImage":              (*ecs).cancelCopyImage,
	"ModifyImageAttribute":         (*ecs).modifyImageAttribute,
	"DeleteImage":                  (*ecs).deleteImage,
	"ModifyImageSharePermission":   (*ecs).modifyImageSharePermission,
	"DescribeImageSharePermission": (*ecs).describeImageSharePermission,
	"DescribeSnapshots":            (*ecs).describeSnapshots,
	"DeleteSnapshot":               (*ecs).deleteSnapshot,
	"TagResources":                 (*ecs).tagResources,
	"UntagResources":               (*ecs).untagResources,
	"ListTagResources":             (*ecs).listTagResources,
}

func (e *ecs) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	serveRPC(w, r, rpcService{
		opt: e.opt, ids: e.ids, faults: e.faults, audit: e.audit, mu: &e.mu, nonces: &e.nonces,
		host: "ecs.aliyuncs.com", version: ecsVersion,
		do: func(q *rpcRequest) (reply, *rpcError) {
			do, ok := actions[q.params["Action"]]
			if !ok {
				return nil, unknownAction()
			}
			e.mu.Lock()
			defer e.mu.Unlock()
			q.now = e.cfg.Clock()
			e.step(q.now)
			if err := e.checkRegion(q, "RegionId"); err != nil {
				return nil, err
			}
			return do(e, q)
		},
	})
}

func unknownAction() *rpcError {
	return rpcRefusal(http.StatusNotFound, "InvalidAction.NotFound", "Specified api is not found, please check your url and method.")
}

// checkRegion checks that a parameter names a region.
func (e *ecs) checkRegion(q *rpcRequest, name string) *rpcError {
	region := q.params[name]
	if region == "" {
		return missing(name)
	}
	if !slices.Contains(e.opt.Regions, region) {
		return rpcRefusal(http.StatusBadRequest, "InvalidRegionId.NotFound", "The specified %s %q does not exist.", name, region)
	}
	return nil
}

func (e *ecs) describeRegions(*rpcRequest) (reply, *rpcError) {
	var list []reply
	for _, r := range e.opt.Regions {
		list = append(list, reply{"RegionId": r, "LocalName": r, "RegionEndpoint": "ecs." + r + ".aliyuncs.com", "Status": "available"})
	}
	return reply{"Regions": reply{"Region": list}}, nil
}

// rpcService is a service of the RPC style.
type rpcService struct {
	opt           Options
	ids           *ids
	faults        *faults
	audit         *audit
	mu            *sync.Mutex // of nonces
	nonces        *nonces
	host, version string
	open          []string // actions that need no signature
	do            func(q *rpcRequest) (reply, *rpcError)
}

// serveRPC answers a request of a service: authenticates it, lets the script spoil it,
// and does it.
func serveRPC(w http.ResponseWriter, r *http.Request, s rpcService) {
	id := s.ids.uuid()
	refuse := func(w http.ResponseWriter, status int, code, message string) {
		if code == "" {
			code = defaultCode(status)
		}
		if message == "" {
			message = "The request has failed by the script of the sandbox."
		}
		writeJSON(w, id, status, reply{"HostId": s.host, "Code": code, "Message": message,
			"Recommend": "https://api.aliyun.com/troubleshoot?q=" + code})
	}
	q, err := parseRPC(w, r)
	if err == nil {
		err = s.admit(q)
	}
	if err != nil {
		s.audit.request("Refused")
		refuse(w, err.status, err.code, err.message)
		return
	}
	op := q.params["Action"]
	s.audit.request(op)
	s.faults.serve(w, r, target{op: op, key: q.params["DiskDeviceMapping.1.OSSObject"]}, func(w http.ResponseWriter, _ *http.Request) {
		body, err := s.do(q)
		if err != nil {
			refuse(w, err.status, err.code, err.message)
			return
		}
		writeJSON(w, id, http.StatusOK, body)
	}, refuse)
}

// admit checks what all requests have in common.
func (s rpcService) admit(q *rpcRequest) *rpcError {
	if err := q.need("Action", "Version"); err != nil {
		return err
	}
	if q.params["Version"] != s.version {
		return rpcRefusal(http.StatusBadRequest, "InvalidVersion", "Specified parameter Version is not valid.")
	}
	if slices.Contains(s.open, q.params["Action"]) {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return q.verify(s.opt, s.nonces)
}

// defaultCode is the error code of a scripted refusal.
func defaultCode(status int) string {
	switch {
	case status == http.StatusServiceUnavailable:
		return "ServiceUnavailable"
	case status >= 500:
		return "InternalError"
	default:
		return "Throttling.User"
	}
}

func writeJSON(w http.ResponseWriter, id string, status int, body reply) {
	out := reply{"RequestId": id}
	for k, v := range body {
		out[k] = v
	}
	b, err := json.Marshal(out)
	if err != nil { // of strings, numbers and maps: can't be
		panic(errors.Join(http.ErrAbortHandler, err))
	}
	w.Header().Set("Content-Type", "application/json;charset=utf-8")
	w.Header().Set("X-Acs-Request-Id", id)
	w.WriteHeader(status)
	_, _ = w.Write(b) // the client may have gone
}

// tokenLife is how long a ClientToken is remembered.
const tokenLife = 24 * time.Hour

// tokenUse is a request that bore a ClientToken.
type tokenUse struct {
	at     time.Time
	params string // what was asked
	reply  reply  // what it got
}

// perRequest are the parameters that differ between a request and its repetition.
var perRequest = []string{"Signature", "SignatureNonce", "SignatureType", "Timestamp", "AccessKeyId", "SecurityToken"}

// once makes do idempotent: a request with a ClientToken that succeeded is not done
// again but gets the same reply, even if what it made has failed or is gone by now. A
// dry run has no effect that could be repeated, and looks anew.
func once(do action) action {
	return func(e *ecs, q *rpcRequest) (reply, *rpcError) {
		token := q.params["ClientToken"]
		if token == "" || strings.EqualFold(q.params["DryRun"], "true") {
			return do(e, q)
		}
		if len(token) > 64 || slices.ContainsFunc([]byte(token), func(c byte) bool { return c <= ' ' || c > '~' }) {
			return nil, rpcRefusal(http.StatusBadRequest, "InvalidParameter.Malformed", "The specified ClientToken is not valid: up to 64 ASCII characters.")
		}
		asked := rpcRequest{params: map[string]string{}}
		for k, v := range q.params {
			if !slices.Contains(perRequest, k) {
				asked.params[k] = v
			}
		}
		key, params := q.params["Action"]+" "+token, asked.stringToSign()
		if u, ok := e.tokens[key]; ok && q.now.Sub(u.at) < tokenLife {
			if u.params != params {
				return nil, rpcRefusal(http.StatusBadRequest, "IdempotentParameterMismatch",
					"The request uses the same client token as a previous, but non-identical request.")
			}
			return u.reply, nil
		}
		r, err := do(e, q)
		if err == nil {
			e.tokens[key] = tokenUse{q.now, params, r}
		}
		return r, err
	}
}
