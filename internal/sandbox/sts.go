package sandbox

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// STSOptions are how temporary keys are given out. The zero value is useful.
type STSOptions struct {
	// Life is how long the keys of the metadata service are good for; 0 is 6 h. Those
	// of STS are for as long as it is asked.
	Life time.Duration
	// InstanceRole is the role of the instance that asks the metadata service, and
	// "remaster" if empty.
	InstanceRole string
	// TokenOnly has the metadata service answer only who brings a token (IMDSv2).
	TokenOnly bool
}

// sessions are the temporary accounts that were given out. Its methods may be called by
// many goroutines at once; a nil one is empty.
type sessions struct {
	mu   sync.Mutex
	list []Account
}

func (s *sessions) add(a Account) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.list = append(s.list, a)
}

func (s *sessions) find(id string) (Account, bool) {
	if s == nil {
		return Account{}, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.list, func(a Account) bool { return a.AccessKeyID == id })
	if i < 0 {
		return Account{}, false
	}
	return s.list[i], true
}

// stsVersion is the version of the API of STS.
const stsVersion = "2015-04-01"

// accountID is the account that everything belongs to.
const accountID = "1234567890123456"

// sts is the Security Token Service and the metadata service of an instance.
//
// STS is an RPC service: "/?Version=2015-04-01&Action=…" with the actions
//   - AssumeRoleWithOIDC, which is not signed: RoleArn, OIDCProviderArn, OIDCToken (a JWT,
//     of which only "exp" is looked at), RoleSessionName, DurationSeconds;
//   - AssumeRole, signed: RoleArn, RoleSessionName, DurationSeconds;
//   - GetCallerIdentity, signed.
//
// The metadata service, at 100.100.100.200 in the cloud, has
//   - PUT /latest/api/token with X-aliyun-ecs-metadata-token-ttl-seconds: a token, to be
//     sent as X-aliyun-ecs-metadata-token;
//   - GET /latest/meta-data/ram/security-credentials/: the role's name;
//   - GET /latest/meta-data/ram/security-credentials/ROLE: its keys as JSON;
//   - GET /latest/meta-data/region-id.
//
// Faults match it by those actions and by the op "Metadata".
type sts struct {
	opt    Options
	ids    *ids
	faults *faults
	audit  *audit

	mu       sync.Mutex
	nonces   nonces
	tokens   map[string]time.Time // of the metadata service, and until when
	instance Account              // the keys that the metadata service shows
}

func newSTS(o Options, ids *ids, faults *faults, audit *audit) *sts {
	if o.STS.Life == 0 {
		o.STS.Life = 6 * time.Hour
	}
	if o.STS.InstanceRole == "" {
		o.STS.InstanceRole = "remaster"
	}
	return &sts{opt: o, ids: ids, faults: faults, audit: audit, tokens: map[string]time.Time{}}
}

func isSTS(r *http.Request) bool { return r.URL.Query().Get("Version") == stsVersion }

func isMetadata(r *http.Request) bool { return strings.HasPrefix(r.URL.Path, "/latest/") }

// issue makes new temporary keys.
func (s *sts) issue(life time.Duration) Account {
	a := Account{AccessKeyID: "STS.Sandbox" + s.ids.hex(16), Secret: strings.ToLower(s.ids.hex(30)),
		SecurityToken: "CAIS" + s.ids.hex(64), Expires: s.opt.Clock().Add(life).UTC().Truncate(time.Second)}
	s.opt.sessions.add(a)
	return a
}

func (s *sts) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	serveRPC(w, r, rpcService{
		opt: s.opt, ids: s.ids, faults: s.faults, audit: s.audit, mu: &s.mu, nonces: &s.nonces,
		host: "sts.aliyuncs.com", version: stsVersion, open: []string{"AssumeRoleWithOIDC"},
		do: func(q *rpcRequest) (reply, *rpcError) {
			switch q.params["Action"] {
			case "AssumeRoleWithOIDC":
				if err := s.checkOIDC(q); err != nil {
					return nil, err
				}
				return s.assumeRole(q)
			case "AssumeRole":
				return s.assumeRole(q)
			case "GetCallerIdentity":
				return reply{"AccountId": accountID, "UserId": accountID, "PrincipalId": accountID,
					"IdentityType": "Account", "Arn": "acs:ram::" + accountID + ":root"}, nil
			default:
				return nil, unknownAction()
			}
		},
	})
}

// checkOIDC looks at the identity that an external provider vouches for.
func (s *sts) checkOIDC(q *rpcRequest) *rpcError {
	if err := q.need("OIDCProviderArn", "OIDCToken"); err != nil {
		return err
	}
	if !strings.HasPrefix(q.params["OIDCProviderArn"], "acs:ram::") {
		return rpcRefusal(http.StatusUnauthorized, "AuthenticationFail.NoPermission", "No such OIDC Provider registered.")
	}
	invalid := rpcRefusal(http.StatusUnauthorized, "AuthenticationFail.OIDCToken.Invalid", "The Jwt content is invalid.")
	parts := strings.Split(q.params["OIDCToken"], ".")
	if len(parts) != 3 {
		return invalid
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return invalid
	}
	var claims struct {
		Exp int64 `json:"exp"`
	}
	if json.Unmarshal(payload, &claims) != nil {
		return invalid
	}
	if claims.Exp != 0 && s.opt.Clock().Unix() >= claims.Exp {
		return rpcRefusal(http.StatusUnauthorized, "AuthenticationFail.OIDCToken.Expired", "This JsonWebToken is expired.")
	}
	return nil
}

func (s *sts) assumeRole(q *rpcRequest) (reply, *rpcError) {
	if err := q.need("RoleArn", "RoleSessionName"); err != nil {
		return nil, err
	}
	_, role, ok := strings.Cut(q.params["RoleArn"], ":role/")
	if !ok || role == "" || !strings.HasPrefix(q.params["RoleArn"], "acs:ram::") {
		return nil, rpcRefusal(http.StatusBadRequest, "InvalidParameter.RoleArn", "The parameter RoleArn is wrongly formed.")
	}
	seconds := 3600
	if v := q.params["DurationSeconds"]; v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 900 || n > 43200 {
			return nil, rpcRefusal(http.StatusBadRequest, "InvalidParameter.DurationSeconds", "The Min/Max value of DurationSeconds is 15min/12hr.")
		}
		seconds = n
	}
	a := s.issue(time.Duration(seconds) * time.Second)
	return reply{
		"Credentials": reply{"AccessKeyId": a.AccessKeyID, "AccessKeySecret": a.Secret,
			"SecurityToken": a.SecurityToken, "Expiration": apiTime(a.Expires)},
		"AssumedRoleUser": reply{"AssumedRoleId": "3" + accountID + ":" + q.params["RoleSessionName"],
			"Arn": "acs:ram::" + accountID + ":role/" + role + "/" + q.params["RoleSessionName"]},
	}, nil
}

func (s *sts) serveMetadata(w http.ResponseWriter, r *http.Request) {
	s.audit.request("Metadata")
	s.faults.serve(w, r, target{op: "Metadata", key: r.URL.Path}, s.metadata, func(w http.ResponseWriter, status int, _, message string) {
		http.Error(w, message, status)
	})
}

func (s *sts) metadata(w http.ResponseWriter, r *http.Request) {
	const credentials = "/latest/meta-data/ram/security-credentials/"
	now := s.opt.Clock()
	if r.URL.Path == "/latest/api/token" && r.Method == http.MethodPut {
		n, err := strconv.Atoi(r.Header.Get("X-aliyun-ecs-metadata-token-ttl-seconds"))
		if err != nil || n < 1 || n > 21600 {
			http.Error(w, "the time to live is not valid", http.StatusBadRequest)
			return
		}
		token := s.ids.hex(32)
		s.mu.Lock()
		s.tokens[token] = now.Add(time.Duration(n) * time.Second)
		s.mu.Unlock()
		fmt.Fprint(w, token)
		return
	}
	if !s.admitted(r, now) {
		http.Error(w, "a valid token is needed", http.StatusForbidden)
		return
	}
	switch {
	case r.Method != http.MethodGet:
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
	case r.URL.Path == "/latest/meta-data/region-id":
		fmt.Fprint(w, s.opt.Region)
	case r.URL.Path == credentials:
		fmt.Fprint(w, s.opt.STS.InstanceRole)
	case r.URL.Path == credentials+s.opt.STS.InstanceRole:
		a := s.instanceKeys(now)
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(reply{ // the client may have gone
			"Code": "Success", "AccessKeyId": a.AccessKeyID, "AccessKeySecret": a.Secret, "SecurityToken": a.SecurityToken,
			"LastUpdated": apiTime(a.Expires.Add(-s.opt.STS.Life)), "Expiration": apiTime(a.Expires),
		})
	default:
		http.NotFound(w, r)
	}
}

// admitted reports whether a request brings a token that is good, or none if it needs
// none.
func (s *sts) admitted(r *http.Request, now time.Time) bool {
	token := r.Header.Get("X-aliyun-ecs-metadata-token")
	if token == "" {
		return !s.opt.STS.TokenOnly
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return now.Before(s.tokens[token])
}

// instanceKeys returns the keys of the instance's role, which are renewed when three
// quarters of their life are over.
func (s *sts) instanceKeys(now time.Time) Account {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.instance.Expires.Sub(now) <= s.opt.STS.Life/4 {
		s.instance = s.issue(s.opt.STS.Life)
	}
	return s.instance
}
