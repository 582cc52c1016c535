package sandbox

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

// headerCRC64 bears the CRC-64/XZ of an object or a part, in decimal.
const headerCRC64 = "X-Oss-Hash-Crc64ecma"

// ossOptions are what the OSS half of a sandbox is made of. The nil ones are made.
type ossOptions struct {
	Options
	ids    *ids
	faults *faults
	audit  *audit
}

// oss is the object storage service. It is an http.Handler for every region at once: a
// request is for the region of its bucket, and is refused when its host names another or
// its signature is for another. Its methods may be called by many goroutines at once.
//
// A bucket is named by the first label of the host ("b.oss-cn-hangzhou.example",
// "b.localhost") or else by the first part of the path.
type oss struct {
	opt   ossOptions
	store store

	mu      sync.Mutex
	buckets map[string]*bucket
}

// newOSS makes a service without buckets.
func newOSS(o ossOptions) *oss {
	o.Options = o.Options.withDefaults()
	if o.ids == nil {
		o.ids = &ids{}
	}
	if o.faults == nil {
		o.faults = &faults{}
	}
	if o.audit == nil {
		o.audit = &audit{}
	}
	return &oss{opt: o, store: store{dir: o.Dir}, buckets: map[string]*bucket{}}
}

// Close removes what is on disk. The service is of no use then.
func (s *oss) Close() error { return s.store.close() }

// call is one request.
type call struct {
	w   http.ResponseWriter
	r   *http.Request
	id  string
	now time.Time

	bucket, key  string
	query        url.Values
	hostRegion   string // of the endpoint, "" if its host names none
	signedRegion string // of a signature of version 4
	anonymous    bool
}

// operation is what a request asks for.
type operation struct {
	name string
	do   func(*oss, *call) error // its refusals are *ossError
}

func (s *oss) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := &call{w: w, id: s.opt.ids.hex(24), now: s.opt.Clock()}
	h := w.Header()
	h.Set("Server", "AliyunOSS")
	h.Set("X-Oss-Request-Id", c.id)
	h.Set("Date", c.now.UTC().Format(http.TimeFormat))
	body := &countedBody{ReadCloser: r.Body}
	c.r = r.WithContext(r.Context()) // a copy: the request is not ours to change
	c.r.Body = body
	op, err := s.admit(c)
	if err != nil {
		s.opt.audit.request("Refused")
		s.refuse(c, err)
		return
	}
	s.opt.audit.request(op.name)
	switch op.name {
	case "PutObject", "UploadPart", "AppendObject":
		defer func() { s.opt.audit.bytes(body.n, 0, 0) }() // also if a fault breaks off
	}
	part, _ := strconv.Atoi(c.query.Get("partNumber"))
	do := func(w http.ResponseWriter, r *http.Request) {
		inner := *c
		inner.w, inner.r = w, r
		if err := op.do(s, &inner); err != nil {
			s.refuse(&inner, err)
		}
	}
	s.opt.faults.serve(w, c.r, target{op.name, c.key, part}, do, func(w http.ResponseWriter, status int, code, msg string) {
		c.drain()
		if code == "" {
			code, msg = "InternalError", "We encountered an internal error. Please try again."
			if status == http.StatusServiceUnavailable {
				code, msg = "ServiceUnavailable", "Please reduce your request rate."
			}
		}
		refusal(status, code, msg).write(w, c.r, c.id)
	})
}

// countedBody counts what is read of a body.
type countedBody struct {
	io.ReadCloser
	n int64
}

func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.n += int64(n)
	return n, err
}

// maxDrain is how much of an unwanted body is read, in bytes: more than any part of a test.
const maxDrain = 128 << 20

// drain reads what is left of the body before a refusal, or else the client might see a
// broken connection at one time and the refusal at another.
func (c *call) drain() {
	_, _ = io.CopyN(io.Discard, c.r.Body, maxDrain) // the client may have gone
}

// admit finds out what is asked for, and whether whoever asks may.
func (s *oss) admit(c *call) (operation, error) {
	if err := s.address(c); err != nil {
		return operation{}, err
	}
	if err := s.authenticate(c); err != nil {
		return operation{}, err
	}
	op, err := route(c)
	if err != nil {
		return operation{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.buckets[c.bucket]
	if op.name == "PutBucket" { // one that is elsewhere takes the name
		b = nil
	}
	switch {
	case c.anonymous && (b == nil || !b.public || op.name != "GetObject" && op.name != "HeadObject" && op.name != "GetObjectMeta"):
		return operation{}, errAnonymous
	case c.hostRegion != "" && b != nil && b.region != c.hostRegion:
		return operation{}, refusal(403, "AccessDenied",
			"The bucket you are attempting to access must be addressed using the specified endpoint. Please send all future requests to this endpoint.").
			with("Bucket", b.name).with("Endpoint", "oss-"+b.region+".aliyuncs.com")
	case c.signedRegion != "" && (b != nil && b.region != c.signedRegion || !slices.Contains(s.opt.Regions, c.signedRegion)):
		return operation{}, badAuth("signing region")
	}
	return op, nil
}

// refuse replies with an error.
func (s *oss) refuse(c *call, err error) {
	var e *ossError
	switch {
	case errors.As(err, &e):
	case errors.Is(err, errTooLarge):
		e = errTooBig
	case errors.Is(err, io.ErrUnexpectedEOF):
		e = errIncomplete
	default:
		e = refusal(500, "InternalError", err.Error())
	}
	c.drain()
	e.write(c.w, c.r, c.id)
}

// address reads the bucket, the key and the parameters from a request.
func (s *oss) address(c *call) error {
	host := c.r.Host
	if i := strings.LastIndexByte(host, ':'); i >= 0 && !strings.HasSuffix(host, "]") {
		host = host[:i]
	}
	s.virtualHost(c, host)
	path := strings.TrimPrefix(c.r.URL.EscapedPath(), "/")
	if c.bucket == "" {
		c.bucket, path, _ = strings.Cut(path, "/")
	}
	var err error
	if c.key, err = url.PathUnescape(path); err != nil {
		return refusal(400, "InvalidURI", "Couldn't parse the specified URI.")
	}
	if c.bucket, err = url.PathUnescape(c.bucket); err != nil || c.bucket != "" && !validBucket(c.bucket) {
		return refusal(400, "InvalidBucketName", "The specified bucket is not valid.").with("BucketName", c.bucket)
	}
	if c.key != "" && !validKey(c.key) {
		return refusal(400, "InvalidObjectName", "The specified object is not valid.").with("ObjectName", c.key)
	}
	if c.query, err = url.ParseQuery(c.r.URL.RawQuery); err != nil {
		return refusal(400, "InvalidURI", "Couldn't parse the specified URI.")
	}
	for name, values := range c.query {
		if len(values) > 1 { // a signature covers one
			return argument(name, values[1], "A parameter is given twice.")
		}
	}
	return nil
}

// virtualHost reads the bucket and the region from the host of a request, if it names
// them: [bucket.]oss-REGION[-internal].DOMAIN, [bucket.][REGION.]oss.DOMAIN, bucket.localhost.
func (s *oss) virtualHost(c *call, host string) {
	labels := strings.Split(host, ".")
	for i, l := range labels {
		region, regional := strings.CutPrefix(l, "oss-")
		switch {
		case regional:
			region = strings.TrimSuffix(region, "-internal")
			if slices.Contains(s.opt.Regions, region) { // and not oss-accelerate
				c.hostRegion = region
			}
		case l == "oss":
			if i > 0 && slices.Contains(s.opt.Regions, labels[i-1]) {
				i--
				c.hostRegion = labels[i]
			}
		case l == "localhost" && i == len(labels)-1:
		default:
			continue
		}
		if i > 0 {
			c.bucket = labels[0]
		}
		return
	}
}

func validBucket(name string) bool {
	if len(name) < 3 || len(name) > 63 || name[0] == '-' || name[len(name)-1] == '-' {
		return false
	}
	return strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

func validKey(key string) bool {
	return len(key) <= 1023 && utf8.ValidString(key) && key[0] != '/' && key[0] != '\\'
}

// xml replies with a document.
func (c *call) xml(doc any) error {
	body, err := xml.MarshalIndent(doc, "", "  ")
	if err != nil {
		return fmt.Errorf("marshal a reply: %w", err)
	}
	h := c.w.Header()
	h.Set("Content-Type", "application/xml")
	h.Set("Content-Length", strconv.Itoa(len(xml.Header)+len(body)))
	c.w.WriteHeader(http.StatusOK)
	if c.r.Method != http.MethodHead {
		_, _ = c.w.Write(append([]byte(xml.Header), body...)) // the client may have gone
	}
	return nil
}

// empty replies without a body.
func (c *call) empty(status int) error {
	if status != http.StatusNoContent {
		c.w.Header().Set("Content-Length", "0")
	}
	c.w.WriteHeader(status)
	return nil
}

// maxXML is the longest document that a request may bring: 10,000 parts, generously.
const maxXML = 4 << 20

// decode reads the document of a request into v.
func (c *call) decode(v any) error {
	body, err := io.ReadAll(io.LimitReader(c.r.Body, maxXML+1))
	if err != nil {
		return fmt.Errorf("read body: %w", err)
	}
	if err := c.checkMD5(md5Sum(body)); err != nil {
		return err
	}
	if len(body) > maxXML || unmarshalXML(body, v) != nil {
		return errXML
	}
	return nil
}

// isoTime is the time format of OSS's documents.
func isoTime(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }
