package sandbox

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aliyun/alibaba-cloud-sdk-go/sdk"
	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/auth/credentials"
	ecsapi "github.com/aliyun/alibaba-cloud-sdk-go/services/ecs"
	stsapi "github.com/aliyun/alibaba-cloud-sdk-go/services/sts"
)

// jwt is a token of an identity provider that expires at t.
func jwt(t time.Time) string {
	enc := base64.RawURLEncoding.EncodeToString
	return enc([]byte(`{"alg":"RS256"}`)) + "." + enc(fmt.Appendf(nil, `{"sub":"system:serviceaccount:a:b","exp":%d}`, t.Unix())) + ".c2ln"
}

func TestAssumeRoleWithOIDC(t *testing.T) {
	wall := NewClock(time.Now())
	c := newCloud(t, func(o *Options) { o.Clock = wall.Now })
	get := func(change map[string]string) (int, map[string]any) {
		p := map[string]string{"Version": stsVersion, "Action": "AssumeRoleWithOIDC", "Signature": "", "AccessKeyId": "",
			"RoleArn": "acs:ram::1:role/job", "OIDCProviderArn": "acs:ram::1:oidc-provider/ack", "RoleSessionName": "s",
			"DurationSeconds": "900", "OIDCToken": jwt(time.Now().Add(time.Hour))}
		for k, v := range change {
			p[k] = v
		}
		return raw{params: p}.send(t, c.STSEndpoint())
	}
	for _, tt := range []struct {
		name, param, value string
		status             int
		code               string
	}{
		{"no token", "OIDCToken", "", 400, "MissingParameter"},
		{"no JWT", "OIDCToken", "abcd", 401, "AuthenticationFail.OIDCToken.Invalid"},
		{"JWT of nothing", "OIDCToken", "a.!.b", 401, "AuthenticationFail.OIDCToken.Invalid"},
		{"expired", "OIDCToken", jwt(time.Now().Add(-time.Second)), 401, "AuthenticationFail.OIDCToken.Expired"},
		{"provider", "OIDCProviderArn", "ack", 401, "AuthenticationFail.NoPermission"},
		{"role", "RoleArn", "acs:ram::1:user/x", 400, "InvalidParameter.RoleArn"},
		{"too short", "DurationSeconds", "899", 400, "InvalidParameter.DurationSeconds"},
		{"no session", "RoleSessionName", "", 400, "MissingParameter"},
	} {
		if status, doc := get(map[string]string{tt.param: tt.value}); status != tt.status || doc["Code"] != tt.code {
			t.Errorf("%s: HTTP %d %v", tt.name, status, doc)
		}
	}
	status, doc := get(nil)
	if status != 200 {
		t.Fatalf("HTTP %d %v", status, doc)
	}
	keys := doc["Credentials"].(map[string]any)
	a := Account{AccessKeyID: keys["AccessKeyId"].(string), Secret: keys["AccessKeySecret"].(string), SecurityToken: keys["SecurityToken"].(string)}
	cli := c.client(a)
	if _, err := cli.DescribeRegions(ecsapi.CreateDescribeRegionsRequest()); err != nil {
		t.Errorf("with the new keys: %v", err)
	}
	a.SecurityToken = ""
	_, err := c.client(a).DescribeRegions(ecsapi.CreateDescribeRegionsRequest())
	refused(t, err, 400, "MissingSecurityToken")
	wall.Advance(890 * time.Second) // the request's own time is still good enough
	if _, err := cli.DescribeRegions(ecsapi.CreateDescribeRegionsRequest()); err != nil {
		t.Errorf("before they expire: %v", err)
	}
	wall.Advance(10 * time.Second)
	_, err = cli.DescribeRegions(ecsapi.CreateDescribeRegionsRequest())
	refused(t, err, 400, "InvalidSecurityToken.Expired")
}

func TestSTSThroughTheSDK(t *testing.T) {
	c := newCloud(t)
	cli, err := stsapi.NewClientWithOptions(atHome, sdk.NewConfig().WithScheme("HTTP"), credentials.NewStaticAKCredentialsProvider("AKID", "SECRET"))
	if err != nil {
		t.Fatal(err)
	}
	cli.Domain = strings.TrimPrefix(c.STSEndpoint(), "http://")
	who, err := cli.GetCallerIdentity(stsapi.CreateGetCallerIdentityRequest())
	if err != nil || who.AccountId != accountID {
		t.Errorf("caller %+v, %v", who, err)
	}
	r := stsapi.CreateAssumeRoleRequest()
	r.RoleArn, r.RoleSessionName = "acs:ram::1:role/job", "s"
	resp, err := cli.AssumeRole(r)
	if err != nil {
		t.Fatal(err)
	}
	k := resp.Credentials
	if _, err := c.client(Account{AccessKeyID: k.AccessKeyId, Secret: k.AccessKeySecret, SecurityToken: k.SecurityToken}).DescribeRegions(ecsapi.CreateDescribeRegionsRequest()); err != nil {
		t.Error(err)
	}
	if at, err := time.Parse(time.RFC3339, k.Expiration); err != nil || time.Until(at) > time.Hour || time.Until(at) < 59*time.Minute {
		t.Errorf("expires %s", k.Expiration)
	}
}

func TestMetadataService(t *testing.T) {
	wall := NewClock(time.Now())
	c := newCloud(t, func(o *Options) { o.Clock, o.STS = wall.Now, STSOptions{TokenOnly: true, Life: time.Hour} })
	do := func(method, path string, header ...string) (int, string) {
		req, err := http.NewRequest(method, c.MetadataEndpoint()+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(b)
	}
	const roles = "/latest/meta-data/ram/security-credentials/"
	if status, _ := do(http.MethodGet, roles); status != 403 {
		t.Errorf("without a token: HTTP %d", status)
	}
	if status, _ := do(http.MethodPut, "/latest/api/token", "X-aliyun-ecs-metadata-token-ttl-seconds", "21601"); status != 400 {
		t.Errorf("token of too long a life: HTTP %d", status)
	}
	_, token := do(http.MethodPut, "/latest/api/token", "X-aliyun-ecs-metadata-token-ttl-seconds", "21600")
	get := func(path string) (int, string) { return do(http.MethodGet, path, "X-aliyun-ecs-metadata-token", token) }
	status, role := get(roles)
	if status != 200 || role != "remaster" {
		t.Fatalf("role: HTTP %d %q", status, role)
	}
	if status, _ := get(roles + "other"); status != 404 {
		t.Errorf("another role: HTTP %d", status)
	}
	if _, region := get("/latest/meta-data/region-id"); region != atHome {
		t.Errorf("region %q", region)
	}
	keys := func() (a Account, expires time.Time) {
		_, body := get(roles + role)
		var doc struct {
			AccessKeyID                                      string `json:"AccessKeyId"`
			Code, AccessKeySecret, SecurityToken, Expiration string
		}
		if err := json.Unmarshal([]byte(body), &doc); err != nil || doc.Code != "Success" {
			t.Fatalf("%q: %v", body, err)
		}
		at, err := time.Parse(time.RFC3339, doc.Expiration)
		if err != nil {
			t.Fatal(err)
		}
		return Account{AccessKeyID: doc.AccessKeyID, Secret: doc.AccessKeySecret, SecurityToken: doc.SecurityToken}, at
	}
	first, expires := keys()
	if again, _ := keys(); again != first || expires.Sub(wall.Now()) > time.Hour {
		t.Errorf("the keys change, or live until %v", expires)
	}
	if _, err := c.client(first).DescribeRegions(ecsapi.CreateDescribeRegionsRequest()); err != nil {
		t.Error(err)
	}
	wall.Advance(50 * time.Minute)
	if later, _ := keys(); later == first {
		t.Error("the keys are not renewed in time")
	}
	wall.Advance(6 * time.Hour)
	if status, _ := get(roles); status != 403 {
		t.Errorf("with an old token: HTTP %d", status)
	}
	c.Inject(Fault{Op: "Metadata", Kind: Refuse, Status: 503})
	if status, _ := get(roles); status != 503 {
		t.Errorf("scripted: HTTP %d", status)
	}
}
