package sandbox

import (
	"bytes"
	"context"
	"hash/crc64"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"
)

// The accounts of the tests: one for ever, one with a token.
var (
	testAccount = Account{AccessKeyID: "LTAItest", Secret: "a secret"}
	testSession = Account{AccessKeyID: "STS.test", Secret: "another secret", SecurityToken: "CAIS+/token=="}
)

// testOSS is a service that listens, with a bucket b at home and one far away.
type testOSS struct {
	*oss
	url    string
	client *http.Client // whose connections go to the service, whatever the host is
}

func newTestOSS(t *testing.T, opts ...func(o *ossOptions)) *testOSS {
	t.Helper()
	o := ossOptions{Options: Options{Accounts: []Account{testAccount, testSession}}}
	for _, f := range opts {
		f(&o)
	}
	s := newOSS(o)
	srv := httptest.NewServer(s)
	t.Cleanup(func() {
		srv.Close()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	for name, region := range map[string]string{"b-home": "", "b-far": "eu-central-1"} {
		if err := s.CreateBucket(name, region); err != nil {
			t.Fatal(err)
		}
	}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", srv.Listener.Addr().String())
	}
	return &testOSS{s, srv.URL, &http.Client{Transport: &http.Transport{DialContext: dial}}}
}

// onDisk keeps objects in files, withClock stops the time.
func onDisk(t *testing.T) func(*ossOptions) {
	return func(o *ossOptions) { o.Dir = t.TempDir() }
}

func withClock(c *Clock) func(*ossOptions) { return func(o *ossOptions) { o.Clock = c.Now } }

// answer is what the service replied.
type answer struct {
	*http.Response
	body string
}

// code is the code of an error.
func (r answer) code() string {
	_, s, _ := strings.Cut(r.body, "<Code>")
	s, _, _ = strings.Cut(s, "</Code>")
	return s
}

// do sends a request in path style, signed by version 4. Headers are name, value, ….
func (s *testOSS) do(t *testing.T, method, path string, body []byte, headers ...string) answer {
	t.Helper()
	r, err := s.try(method, path, body, headers...)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	return r
}

func (s *testOSS) try(method, path string, body []byte, headers ...string) (answer, error) {
	req, err := http.NewRequest(method, s.url+path, bytes.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	s.sign(req, testAccount)
	return s.send(req)
}

func (s *testOSS) send(req *http.Request) (answer, error) {
	resp, err := s.client.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return answer{resp, string(b)}, err
}

// sign signs with the service's own formula, which the SDKs prove in other tests.
func (s *testOSS) sign(req *http.Request, a Account) {
	c := &call{r: req}
	_ = s.address(c)
	now := s.opt.Clock().UTC()
	sig := signature{version: 4, keyID: a.AccessKeyID, date: now.Format(v4Time), day: now.Format(v4Day), region: s.opt.Region}
	req.Header.Set(headerDate, sig.date)
	req.Header.Set(headerContent, unsignedBody)
	if a.SecurityToken != "" {
		req.Header.Set(headerToken, a.SecurityToken)
	}
	_, value := signV4(c, sig, a.Secret)
	req.Header.Set("Authorization", v4Algorithm+" Credential="+a.AccessKeyID+"/"+sig.day+"/"+sig.region+"/oss/"+v4Terminator+",Signature="+value)
}

// mustPut puts an object and returns its ETag, with quotes.
func (s *testOSS) mustPut(t *testing.T, path string, body []byte, headers ...string) string {
	t.Helper()
	r := s.do(t, http.MethodPut, path, body, headers...)
	if r.StatusCode != http.StatusOK {
		t.Fatalf("PUT %s: %s %s", path, r.Status, r.body)
	}
	return r.Header.Get("ETag")
}

// want fails unless the reply has a status and an error code ("" for none).
func (r answer) want(t *testing.T, status int, code string) answer {
	t.Helper()
	if r.StatusCode != status || r.code() != code {
		t.Fatalf("%s %s: %s %q, want %d %q\n%s", r.Request.Method, r.Request.URL, r.Status, r.code(), status, code, r.body)
	}
	return r
}

// element is the text of the first element of a name in the reply.
func (r answer) element(name string) string {
	_, s, _ := strings.Cut(r.body, "<"+name+">")
	s, _, _ = strings.Cut(s, "</"+name+">")
	return strings.ReplaceAll(s, "&#34;", `"`)
}

// initiate begins an upload and returns its id.
func (s *testOSS) initiate(t *testing.T, path string, headers ...string) string {
	t.Helper()
	return s.do(t, http.MethodPost, path+"?uploads", nil, headers...).want(t, 200, "").element("UploadId")
}

func partPath(path, id, num string) string { return path + "?partNumber=" + num + "&uploadId=" + id }

// completion is the document that completes an upload of parts 1, 2, ….
func completion(etags ...string) []byte {
	var b strings.Builder
	b.WriteString("<CompleteMultipartUpload>")
	for i, e := range etags {
		b.WriteString("<Part><PartNumber>" + string(rune('1'+i)) + "</PartNumber><ETag>" + e + "</ETag></Part>")
	}
	return []byte(b.String() + "</CompleteMultipartUpload>")
}

// noise returns bytes that look random and are the same for the same seed.
func noise(seed uint64, n int) []byte {
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	b := make([]byte, n)
	_, _ = r.Read(b)
	return b
}

func TestContentSliceAndJoinMatchBytes(t *testing.T) {
	for _, dir := range []string{"", t.TempDir()} {
		st := &store{dir: dir}
		rnd := rand.New(rand.NewPCG(1, 2))
		raw := noise(1, 3*pieceSize+1234)
		clear(raw[pieceSize : 2*pieceSize]) // a hole
		whole, _, err := st.write(bytes.NewReader(raw), maxUpload)
		if err != nil {
			t.Fatal(err)
		}
		for range 60 {
			var cs []content
			var want []byte
			for range rnd.IntN(4) {
				off := rnd.IntN(len(raw) + 1)
				n := rnd.IntN(len(raw) - off + 1)
				c, err := whole.slice(int64(off), int64(n))
				if err != nil {
					t.Fatal(err)
				}
				cs, want = append(cs, c), append(want, raw[off:off+n]...)
			}
			joined := join(cs)
			if joined.size != int64(len(want)) || joined.crc != crc64.Checksum(want, crcTable) {
				t.Fatalf("joined: %d bytes, CRC %x; want %d, %x", joined.size, joined.crc, len(want), crc64.Checksum(want, crcTable))
			}
			off := rnd.IntN(len(want) + 1)
			n := rnd.IntN(len(want) - off + 1)
			var got bytes.Buffer
			if m, err := joined.copyTo(&got, int64(off), int64(n)); err != nil || m != int64(n) || !bytes.Equal(got.Bytes(), want[off:off+n]) {
				t.Fatalf("bytes [%d, %d) differ (%d, %v)", off, off+n, m, err)
			}
			sub, err := joined.slice(int64(off), int64(n))
			if err != nil || sub.crc != crc64.Checksum(want[off:off+n], crcTable) {
				t.Fatalf("CRC of [%d, %d): %x, %v", off, off+n, sub.crc, err)
			}
		}
		if err := st.close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCRCShiftMatchesZeros(t *testing.T) {
	for _, n := range []int{0, 1, 7, 8, 255, 4096, 100_001} {
		a := noise(9, 1000)
		z := make([]byte, n)
		want := crc64.Checksum(append(a[:len(a):len(a)], z...), crcTable)
		if got := crcCombine(crc64.Checksum(a, crcTable), crc64.Checksum(z, crcTable), int64(n)); got != want {
			t.Errorf("%d zeros: %x, want %x", n, got, want)
		}
	}
}

func TestAddressStyles(t *testing.T) {
	s := newTestOSS(t)
	for _, tc := range []struct{ host, path, bucket, key, region string }{
		{"127.0.0.1:80", "/b-home/a%2Fb%20c%25", "b-home", "a/b c%", ""},
		{"localhost", "/b-home/k", "b-home", "k", ""},
		{"b-home.localhost:9000", "/k", "b-home", "k", ""},
		{"[::1]:80", "/b-home/", "b-home", "", ""},
		{"127.0.0.1", "/", "", "", ""},
		{"oss-cn-hangzhou.aliyuncs.com", "/", "", "", "cn-hangzhou"},
		{"oss-cn-hangzhou.aliyuncs.com", "/b-home/k", "b-home", "k", "cn-hangzhou"},
		{"b-home.oss-cn-hangzhou-internal.aliyuncs.com", "/a/b", "b-home", "a/b", "cn-hangzhou"},
		{"b-home.cn-hangzhou.oss.aliyuncs.com", "/k", "b-home", "k", "cn-hangzhou"},
		{"cn-hangzhou.oss.aliyuncs.com", "/b-home/k", "b-home", "k", "cn-hangzhou"},
		{"b-home.oss-accelerate.aliyuncs.com", "/k", "b-home", "k", ""},
		{"private-cloud.example", "/b-home/k+k", "b-home", "k+k", ""},
	} {
		r := httptest.NewRequest(http.MethodGet, tc.path, nil)
		r.Host = tc.host
		c := &call{r: r}
		if err := s.address(c); err != nil || c.bucket != tc.bucket || c.key != tc.key || c.hostRegion != tc.region {
			t.Errorf("%s%s: %q %q in %q (%v), want %q %q in %q", tc.host, tc.path, c.bucket, c.key, c.hostRegion, err, tc.bucket, tc.key, tc.region)
		}
	}
}

func TestRangesFollowBothRules(t *testing.T) {
	for _, tc := range []struct {
		v             string
		size          int64
		standard      bool
		off, n        int64
		partial, fail bool
	}{
		{"bytes=0-499", 1000, false, 0, 500, true, false},
		{"bytes=0-0", 1000, false, 0, 1, true, false},
		{"bytes=500-", 1000, false, 500, 500, true, false},
		{"bytes=-500", 1000, false, 500, 500, true, false},
		{"bytes=500-2000", 1000, false, 0, 1000, false, false},
		{"bytes=500-2000", 1000, true, 500, 500, true, false},
		{"bytes=1000-2000", 1000, false, 0, 1000, false, false},
		{"bytes=1000-2000", 1000, true, 0, 0, false, true},
		{"bytes=1000-", 1000, true, 0, 0, false, true},
		{"bytes=-2000", 1000, false, 0, 1000, false, false},
		{"bytes=-2000", 1000, true, 0, 1000, true, false},
		{"bytes=-0", 1000, true, 0, 0, false, true},
		{"bytes=0-1,5-6", 1000, false, 0, 2, true, false},
		{"byte=0-1", 1000, false, 0, 1000, false, false},
		{"byte=0-1", 1000, true, 0, 1000, false, false},
		{"bytes=5-4", 1000, true, 0, 1000, false, false},
		{"bytes=+1-4", 1000, true, 0, 1000, false, false},
		{"bytes=-", 1000, true, 0, 1000, false, false},
		{"bytes=--5", 1000, true, 0, 1000, false, false},
		{"bytes=0-99999999999999999999", 1000, true, 0, 1000, false, false},
		{"bytes=0-9223372036854775807", 1000, true, 0, 1000, true, false},
		{"bytes=0-0", 0, false, 0, 0, false, false},
		{"bytes=0-0", 0, true, 0, 0, false, true},
	} {
		off, n, partial, err := selectRange(tc.v, tc.size, tc.standard)
		if off != tc.off || n != tc.n || partial != tc.partial || (err != nil) != tc.fail {
			t.Errorf("%s of %d (standard %v): %d+%d partial %v, %v; want %d+%d %v", tc.v, tc.size, tc.standard, off, n, partial, err, tc.off, tc.n, tc.partial)
		}
	}
}

func TestAuthenticationRefusals(t *testing.T) {
	clock := NewClock(time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC))
	s := newTestOSS(t, withClock(clock), func(o *ossOptions) {
		old := testSession
		old.AccessKeyID, old.Expires = "STS.old", clock.Now().Add(-time.Second)
		o.Accounts = append(o.Accounts, old)
	})
	s.mustPut(t, "/b-home/k", []byte("x"))
	old := testSession
	old.AccessKeyID = "STS.old"
	wrong := testAccount
	wrong.Secret = "no secret"
	unknown := testAccount
	unknown.AccessKeyID = "LTAIother"
	noToken := testSession
	noToken.SecurityToken = ""
	for _, tc := range []struct {
		name   string
		a      Account
		spoil  func(r *http.Request)
		status int
		code   string
	}{
		{name: "right", a: testAccount, status: 200},
		{name: "token", a: testSession, status: 200},
		{name: "wrong secret", a: wrong, status: 403, code: "SignatureDoesNotMatch"},
		{name: "unknown key", a: unknown, status: 403, code: "InvalidAccessKeyId"},
		{name: "no token", a: noToken, status: 403, code: "InvalidSecurityToken"},
		{name: "old token", a: old, status: 403, code: "SecurityTokenExpired"},
		{name: "anonymous", a: testAccount, spoil: func(r *http.Request) { r.Header.Del("Authorization") }, status: 403, code: "AccessDenied"},
		{name: "other header", a: testAccount, spoil: func(r *http.Request) { r.Header.Set("X-Oss-Meta-A", "1") }, status: 403, code: "SignatureDoesNotMatch"},
		{name: "other parameter", a: testAccount, spoil: func(r *http.Request) { r.URL.RawQuery = "versionId=null" }, status: 403, code: "SignatureDoesNotMatch"},
		{name: "other key", a: testAccount, spoil: func(r *http.Request) { r.URL.Path += "2" }, status: 403, code: "SignatureDoesNotMatch"},
		{name: "other method", a: testAccount, spoil: func(r *http.Request) { r.Method = http.MethodDelete }, status: 403, code: "SignatureDoesNotMatch"},
		{name: "no date", a: testAccount, spoil: func(r *http.Request) { r.Header.Del(headerDate) }, status: 403, code: "AccessDenied"},
		{name: "hashed body", a: testAccount, spoil: func(r *http.Request) { r.Header.Set(headerContent, "00") }, status: 400, code: "InvalidArgument"},
		{name: "version 2", a: testAccount, spoil: func(r *http.Request) { r.Header.Set("Authorization", "OSS2 AccessKeyId:x,Signature:y") }, status: 400, code: "InvalidArgument"},
	} {
		req, err := http.NewRequest(http.MethodGet, s.url+"/b-home/k", nil)
		if err != nil {
			t.Fatal(err)
		}
		s.sign(req, tc.a)
		if tc.spoil != nil {
			tc.spoil(req)
		}
		r, err := s.send(req)
		if err != nil {
			t.Fatal(err)
		}
		if r.StatusCode != tc.status || r.code() != tc.code {
			t.Errorf("%s: %s %q, want %d %q", tc.name, r.Status, r.code(), tc.status, tc.code)
		}
	}
	if n := s.opt.audit.counters().Requests["Refused"]; n == 0 {
		t.Error("refused requests are not counted")
	}
}

func TestClockSkewIsRefused(t *testing.T) {
	clock := NewClock(time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC))
	s := newTestOSS(t, withClock(clock))
	s.mustPut(t, "/b-home/k", []byte("x"))
	for _, tc := range []struct {
		skew time.Duration
		code string
	}{{14 * time.Minute, ""}, {16 * time.Minute, "RequestTimeTooSkewed"}, {-14 * time.Minute, ""}, {-16 * time.Minute, "RequestTimeTooSkewed"}} {
		req, err := http.NewRequest(http.MethodGet, s.url+"/b-home/k", nil)
		if err != nil {
			t.Fatal(err)
		}
		s.sign(req, testAccount)
		clock.Advance(tc.skew)
		r, err := s.send(req)
		clock.Advance(-tc.skew)
		if err != nil || r.code() != tc.code {
			t.Errorf("skew %v: %s %q, want %q", tc.skew, r.Status, r.code(), tc.code)
		}
	}
}

func TestPresignedURLsEnd(t *testing.T) {
	clock := NewClock(time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC))
	s := newTestOSS(t, withClock(clock))
	s.mustPut(t, "/b-home/k", []byte("x"))
	v1 := url.Values{"OSSAccessKeyId": {testAccount.AccessKeyID}, "Expires": {strconv.FormatInt(clock.Now().Add(time.Minute).Unix(), 10)}}
	v4 := url.Values{"x-oss-signature-version": {v4Algorithm}, "x-oss-date": {clock.Now().Format(v4Time)}, "x-oss-expires": {"60"},
		"x-oss-credential": {testAccount.AccessKeyID + "/20261122/" + DefaultRegion + "/oss/" + v4Terminator}}
	for name, q := range map[string]url.Values{"Signature": v1, "x-oss-signature": v4} {
		req, err := http.NewRequest(http.MethodGet, s.url+"/b-home/k?"+q.Encode(), nil)
		if err != nil {
			t.Fatal(err)
		}
		c := &call{r: req, bucket: "b-home", key: "k", query: q}
		sig := signature{date: v1.Get("Expires")}
		_, value := signV1(c, sig, testAccount.Secret)
		if name != "Signature" {
			_, value = signV4(c, signature{date: v4.Get("x-oss-date"), day: "20261122", region: DefaultRegion}, testAccount.Secret)
		}
		q.Set(name, value)
		req.URL.RawQuery = q.Encode()
		for _, code := range []string{"", "AccessDenied"} {
			r, err := s.send(req)
			if err != nil || r.code() != code {
				t.Errorf("%s: %s %q, %v; want %q", name, r.Status, r.code(), err, code)
			}
			clock.Advance(61 * time.Second)
		}
		clock.Advance(-122 * time.Second)
	}
}

func TestRegionsAreKeptApart(t *testing.T) {
	s := newTestOSS(t)
	// Signed for another region than the bucket's.
	s.do(t, http.MethodGet, "/b-far/k", nil).want(t, 400, "InvalidArgument")
	// Addressed at another region than the bucket's.
	req, err := http.NewRequest(http.MethodGet, "http://b-far.oss-cn-hangzhou.example/k", nil)
	if err != nil {
		t.Fatal(err)
	}
	s.sign(req, testAccount)
	r, err := s.send(req)
	if err != nil {
		t.Fatal(err)
	}
	r.want(t, 403, "AccessDenied")
	if got := r.element("Endpoint"); got != "oss-eu-central-1.aliyuncs.com" {
		t.Errorf("Endpoint %q", got)
	}
}

func TestErrorsOfHeadAreInAHeader(t *testing.T) {
	s := newTestOSS(t)
	r := s.do(t, http.MethodHead, "/b-home/missing", nil)
	if r.StatusCode != http.StatusNotFound || r.body != "" || r.Header.Get("X-Oss-Err") == "" || r.Header.Get("X-Oss-Ec") != "0026-00000001" || r.Header.Get("X-Oss-Request-Id") == "" {
		t.Errorf("%s %v", r.Status, r.Header)
	}
	if r := s.do(t, http.MethodGet, "/b-home/missing", nil).want(t, 404, "NoSuchKey"); r.element("RequestId") != r.Header.Get("X-Oss-Request-Id") {
		t.Error("the error has another request id than the reply")
	}
}

func TestRequestsRepeatTheirIDs(t *testing.T) {
	run := func() []string {
		s := newTestOSS(t)
		var out []string
		for range 3 {
			out = append(out, s.do(t, http.MethodGet, "/b-home/k", nil).Header.Get("X-Oss-Request-Id"))
		}
		return append(out, s.initiate(t, "/b-home/k"))
	}
	a, b := run(), run()
	if strings.Join(a, " ") != strings.Join(b, " ") || a[0] == a[1] {
		t.Errorf("%v, %v", a, b)
	}
}

func FuzzRequest(f *testing.F) {
	f.Add("GET", "127.0.0.1", "/b-home/k", "versionId=null", "OSS a:b", "bytes=0-1", []byte(nil))
	f.Add("PUT", "b-home.localhost", "/k%2Fl", "uploadId=x&partNumber=1", "OSS4-HMAC-SHA256 Credential=LTAItest/20261122/cn-hangzhou/oss/aliyun_v4_request,Signature=x", "", []byte("x"))
	f.Add("POST", "b-home.oss-cn-hangzhou.x", "/", "delete", "", "", []byte("<Delete><Object><Key>k</Key></Object></Delete>"))
	f.Add("GET", "oss.x", "/", "x-oss-signature-version=OSS4-HMAC-SHA256&x-oss-credential=a/b/c/oss/aliyun_v4_request&x-oss-expires=9", "", "", []byte(nil))
	f.Add("GET", "[::1", "/b-home/k", "OSSAccessKeyId=a&Signature=b&Expires=1", "", "bytes=-9", []byte(nil))
	s := newOSS(ossOptions{Options: Options{Accounts: []Account{testAccount}}})
	if err := s.CreateBucket("b-home", "", Public()); err != nil {
		f.Fatal(err)
	}
	if err := s.CreateObject("b-home", "k", strings.NewReader("bytes")); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(_ *testing.T, method, host, path, query, auth, rng string, body []byte) {
		r := &http.Request{Method: method, Host: host, URL: &url.URL{RawPath: path, RawQuery: query}, Header: http.Header{}, Body: io.NopCloser(bytes.NewReader(body)), ContentLength: int64(len(body))}
		if p, err := url.PathUnescape(path); err == nil {
			r.URL.Path = p
		}
		r.Header.Set("Authorization", auth)
		r.Header.Set("Range", rng)
		r.Header.Set("X-Oss-Date", "20261122T100000Z")
		r.Header.Set(headerContent, unsignedBody)
		s.ServeHTTP(httptest.NewRecorder(), r)
		// And what comes behind the signature.
		c := &call{w: httptest.NewRecorder(), r: r, now: time.Unix(1e9, 0)}
		if s.address(c) == nil {
			if op, err := route(c); err == nil {
				if err := op.do(s, c); err != nil {
					s.refuse(c, err)
				}
			}
		}
	})
}

func FuzzXML(f *testing.F) {
	f.Add(completion("e", "f"))
	f.Add([]byte("<Delete><Quiet>true</Quiet><Object><Key>k</Key></Object></Delete>"))
	f.Add([]byte("<Tagging><TagSet><Tag><Key>a</Key><Value>b</Value></Tag></TagSet></Tagging>"))
	f.Add([]byte("<RestoreRequest><Days>2</Days></RestoreRequest>x"))
	f.Add([]byte(`<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x "y">]><a>&x;</a>`))
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, v := range []any{&completeXML{}, &deleteXML{}, &taggingXML{}, &restoreXML{}, &createBucket{}, &versioningXML{}, &encryptionRule{}, &lifecycleXML{}} {
			_ = unmarshalXML(body, v)
		}
		if tags, err := parseTags(string(body)); err == nil && len(tags) > maxTags {
			t.Errorf("%d tags", len(tags))
		}
		if b, k, _, err := parseCopySource(string(body)); err == nil && (!validBucket(b) || !validKey(k)) {
			t.Errorf("source %q %q", b, k)
		}
	})
}
