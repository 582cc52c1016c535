package sandbox

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
)

// raw is a request that is made by hand: parameters that a "" removes, signed unless
// they have a Signature.
type raw struct {
	method, path, secret string
	params               map[string]string
	form                 bool // the parameters are in the body
}

// send returns the status and the body of a reply.
func (r raw) send(t *testing.T, endpoint string) (int, map[string]any) {
	t.Helper()
	p := map[string]string{"Version": ecsVersion, "Action": "DescribeRegions", "Format": "JSON", "RegionId": atHome,
		"AccessKeyId": "AKID", "SignatureMethod": "HMAC-SHA1", "SignatureVersion": "1.0",
		"SignatureNonce": fmt.Sprint(time.Now().UnixNano()), "Timestamp": apiTime(time.Now())}
	for k, v := range r.params {
		if p[k] = v; v == "" {
			delete(p, k)
		}
	}
	q := rpcRequest{method: r.method, params: p}
	if q.method == "" {
		q.method = http.MethodPost
	}
	if r.secret == "" {
		r.secret = ecsUser.Secret
	}
	if _, given := r.params["Signature"]; !given {
		p["Signature"] = rpcSignature(r.secret, q.stringToSign())
	}
	v := url.Values{}
	for name := range maps.Keys(p) {
		v.Set(name, p[name])
	}
	target, body := endpoint+"/"+r.path+"?"+v.Encode(), ""
	if r.form {
		target, body = endpoint+"/"+r.path, v.Encode()
	}
	req, err := http.NewRequest(q.method, target, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var doc map[string]any
	if err := json.Unmarshal(b, &doc); err != nil {
		t.Fatalf("reply %q: %v", b, err)
	}
	return resp.StatusCode, doc
}

func TestRPCSignature(t *testing.T) {
	c := newCloud(t, func(o *Options) {
		o.Accounts = append(o.Accounts,
			Account{AccessKeyID: "STS.1", Secret: "SECRET", SecurityToken: "TOKEN", Expires: time.Now().Add(time.Hour)},
			Account{AccessKeyID: "STS.0", Secret: "SECRET", SecurityToken: "TOKEN", Expires: time.Now().Add(-time.Second)})
	})
	set := func(kv ...string) map[string]string {
		m := map[string]string{}
		for i := 0; i < len(kv); i += 2 {
			m[kv[i]] = kv[i+1]
		}
		return m
	}
	for _, tt := range []struct {
		name   string
		r      raw
		status int
		code   string
	}{
		{"good", raw{}, 200, ""},
		{"by GET", raw{method: http.MethodGet}, 200, ""},
		{"in the body", raw{form: true}, 200, ""},
		{"of all characters", raw{params: set("Extra", "a b+c*d~e%f&g=h/日本\n")}, 200, ""},
		{"wrong secret", raw{secret: "OTHER"}, 400, "SignatureDoesNotMatch"},
		{"wrong signature", raw{params: set("Signature", "AAAA")}, 400, "SignatureDoesNotMatch"},
		{"unsigned", raw{params: set("Signature", "")}, 400, "MissingParameter"},
		{"unknown key", raw{params: set("AccessKeyId", "NOBODY")}, 404, "InvalidAccessKeyId.NotFound"},
		{"no key", raw{params: set("AccessKeyId", "")}, 400, "MissingParameter"},
		{"no nonce", raw{params: set("SignatureNonce", "")}, 400, "MissingParameter"},
		{"other method", raw{params: set("SignatureMethod", "HMAC-SHA256")}, 400, "InvalidSignatureMethod"},
		{"clock slow", raw{params: set("Timestamp", apiTime(time.Now().Add(-16*time.Minute)))}, 400, "InvalidTimeStamp.Expired"},
		{"clock fast", raw{params: set("Timestamp", apiTime(time.Now().Add(16*time.Minute)))}, 400, "InvalidTimeStamp.Expired"},
		{"clock a little off", raw{params: set("Timestamp", apiTime(time.Now().Add(14*time.Minute)))}, 200, ""},
		{"local time", raw{params: set("Timestamp", "2026-11-22 12:00:00")}, 400, "InvalidTimeStamp.Format"},
		{"token", raw{params: set("AccessKeyId", "STS.1", "SecurityToken", "TOKEN")}, 200, ""},
		{"token missing", raw{params: set("AccessKeyId", "STS.1")}, 400, "MissingSecurityToken"},
		{"token wrong", raw{params: set("AccessKeyId", "STS.1", "SecurityToken", "OTHER")}, 400, "InvalidSecurityToken.Malformed"},
		{"token of another", raw{params: set("SecurityToken", "TOKEN")}, 400, "InvalidSecurityToken.MismatchWithAccessKey"},
		{"token expired", raw{params: set("AccessKeyId", "STS.0", "SecurityToken", "TOKEN")}, 400, "InvalidSecurityToken.Expired"},
		{"no version", raw{params: set("Version", "")}, 400, "MissingParameter"},
		{"other version", raw{params: set("Version", "2014-05-27")}, 400, "InvalidVersion"},
		{"no action", raw{params: set("Action", "")}, 400, "MissingParameter"},
		{"other action", raw{params: set("Action", "RunInstances")}, 404, "InvalidAction.NotFound"},
		{"other path", raw{path: "ecs"}, 404, "InvalidAction.NotFound"},
		{"other HTTP method", raw{method: http.MethodPut}, 404, "InvalidAction.NotFound"},
		{"no region", raw{params: set("RegionId", "")}, 400, "MissingParameter"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			status, doc := tt.r.send(t, c.ECSEndpoint())
			if code, _ := doc["Code"].(string); status != tt.status || code != tt.code {
				t.Errorf("HTTP %d %v, want %d %s", status, doc, tt.status, tt.code)
			}
		})
	}
}

// TestRPCSignatureOfTheReference checks the formula with the example of the service's
// API reference (DescribeRegions with key testid, secret testsecret).
func TestRPCSignatureOfTheReference(t *testing.T) {
	q := rpcRequest{method: http.MethodGet, params: map[string]string{
		"Timestamp": "2016-02-23T12:46:24Z", "Format": "XML", "AccessKeyId": "testid", "Action": "DescribeRegions",
		"SignatureMethod": "HMAC-SHA1", "SignatureNonce": "3ee8c1b8-83d3-44af-a94f-4e0ad82fd6cf", "Version": "2014-05-26", "SignatureVersion": "1.0"}}
	if got, want := rpcSignature("testsecret", q.stringToSign()), "OLeaidS1JvxuMvnyHOwuJ+uX5qY="; got != want {
		t.Errorf("signature %s, want %s", got, want)
	}
}

func TestNonceIsGoodForOneRequest(t *testing.T) {
	c := newCloud(t)
	r := raw{params: map[string]string{"SignatureNonce": "n-1"}}
	if status, doc := r.send(t, c.ECSEndpoint()); status != 200 {
		t.Fatal(doc)
	}
	if status, doc := r.send(t, c.ECSEndpoint()); status != 400 || doc["Code"] != "SignatureNonceUsed" {
		t.Errorf("HTTP %d %v", status, doc)
	}
	// One that was refused is not used up.
	bad := raw{params: map[string]string{"SignatureNonce": "n-2"}, secret: "OTHER"}
	bad.send(t, c.ECSEndpoint())
	bad.secret = ""
	if status, doc := bad.send(t, c.ECSEndpoint()); status != 200 {
		t.Error(doc)
	}
}

func TestRefusedRequestsAreCountedApart(t *testing.T) {
	c := newCloud(t)
	raw{secret: "OTHER"}.send(t, c.ECSEndpoint())
	raw{}.send(t, c.ECSEndpoint())
	if got := c.Counters().Requests; got["Refused"] != 1 || got["DescribeRegions"] != 1 {
		t.Errorf("counted %v", got)
	}
	c.ResetCounters()
	if n := c.Counters().Total(); n != 0 {
		t.Errorf("%d after reset", n)
	}
}
