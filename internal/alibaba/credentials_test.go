package alibaba

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"remaster/internal/hint"
)

const cliFile = ".aliyun/config.json"

// cliProfiles is a configuration of the CLI with a profile of each kind.
const cliProfiles = `{"current":"default","profiles":[
 {"name":"default","mode":"AK","access_key_id":"id-default","access_key_secret":"secret-default","region_id":"cn-shanghai"},
 {"name":"sts","mode":"StsToken","access_key_id":"id-sts","access_key_secret":"secret-sts","sts_token":"token-sts"},
 {"name":"loop","mode":"ChainableRamRoleArn","source_profile":"loop2","ram_role_arn":"acs:ram::1:role/r"},
 {"name":"loop2","mode":"ChainableRamRoleArn","source_profile":"loop","ram_role_arn":"acs:ram::1:role/r"},
 {"name":"orphan","mode":"ChainableRamRoleArn","source_profile":"nobody","ram_role_arn":"acs:ram::1:role/r"},
 {"name":"sso","mode":"CloudSSO"},
 {"name":"empty","mode":"AK"},
 {"name":"ecs","mode":"EcsRamRole","ram_role_name":"node"}]}`

func TestCredentialsOrder(t *testing.T) {
	all := []string{
		"ALIBABA_CLOUD_ACCESS_KEY_ID=id-alibaba", "ALIBABA_CLOUD_ACCESS_KEY_SECRET=secret-alibaba", "ALIBABA_CLOUD_SECURITY_TOKEN=token-alibaba",
		"ALICLOUD_ACCESS_KEY=id-alicloud", "ALICLOUD_SECRET_KEY=secret-alicloud", "SECURITY_TOKEN=token-alicloud",
		"OSS_ACCESS_KEY_ID=id-oss", "OSS_ACCESS_KEY_SECRET=secret-oss", "OSS_SESSION_TOKEN=token-oss",
	}
	for _, tc := range []struct {
		name     string
		cfg      Config
		env      []string
		noFile   bool
		oss, ecs string // "id/token"
		source   string
	}{
		{"flags", Config{AccessKeyID: "id-flag", AccessKeySecret: "secret-flag", SecurityToken: "token-flag", Profile: "sts"}, all, false,
			"id-flag/token-flag", "id-flag/token-flag", "the command line"},
		{"profile by flag", Config{Profile: "sts"}, all, false, "id-sts/token-sts", "id-sts/token-sts", "profile sts (StsToken)"},
		{"ALIBABA_CLOUD", Config{}, all, false, "id-alibaba/token-alibaba", "id-alibaba/token-alibaba", "the environment (ALIBABA_CLOUD_*)"},
		{"ALICLOUD", Config{}, all[3:], false, "id-alicloud/token-alicloud", "id-alicloud/token-alicloud", "the environment (ALICLOUD_*)"},
		{"OSS and profile", Config{}, all[6:], false, "id-oss/token-oss", "id-default/", "the environment (OSS_*) for OSS, profile default (AK) for ECS"},
		{"profile by environment", Config{}, []string{"ALIBABA_CLOUD_PROFILE=sts"}, false, "id-sts/token-sts", "id-sts/token-sts", "profile sts (StsToken)"},
		{"current profile", Config{}, nil, false, "id-default/", "id-default/", "profile default (AK)"},
		{"profile off", Config{NoMetadata: true}, []string{"ALIBABA_CLOUD_CLI_PROFILE_DISABLED=true"}, false, "", "", "nowhere"},
		{"nothing", Config{NoMetadata: true}, nil, true, "", "", "nowhere"},
		{"nothing by environment", Config{}, []string{"ALIBABA_CLOUD_ECS_METADATA_DISABLED=true"}, true, "", "", "nowhere"},
		{"offline", Config{Offline: true}, nil, true, "", "", "nowhere"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := tc.cfg
			cfg.Env = env(tc.env...)
			if !tc.noFile {
				cfg.Home = home(t, map[string]string{cliFile: cliProfiles})
			}
			c := newClients(t, cfg)
			if c.Source() != tc.source {
				t.Errorf("source %q, want %q", c.Source(), tc.source)
			}
			for _, s := range []struct {
				what string
				*source
				want string
			}{{"OSS", c.oss, tc.oss}, {"ECS", c.ecs, tc.ecs}} {
				k, err := s.get(t.Context())
				if s.want == "" {
					if err == nil || len(hint.Of(err)) == 0 {
						t.Errorf("%s: keys %s, error %v without a remedy", s.what, k.id, err)
					}
					continue
				}
				if got := k.id + "/" + k.token; err != nil || got != s.want {
					t.Errorf("%s: %s, %v; want %s", s.what, got, err, s.want)
				}
			}
		})
	}
}

func TestRegionOrder(t *testing.T) {
	h := home(t, map[string]string{cliFile: cliProfiles})
	ak := []string{"ALIBABA_CLOUD_ACCESS_KEY_ID=id", "ALIBABA_CLOUD_ACCESS_KEY_SECRET=secret"}
	for _, tc := range []struct {
		flag string
		env  []string
		want string
	}{
		{"eu-central-1", []string{"ALIBABA_CLOUD_REGION_ID=a-1"}, "eu-central-1"},
		{"", []string{"ALIBABA_CLOUD_REGION_ID=a-1", "ALIBABA_CLOUD_REGION=a-2", "ALICLOUD_REGION=a-3"}, "a-1"},
		{"", []string{"ALIBABA_CLOUD_REGION=a-2", "ALICLOUD_REGION=a-3"}, "a-2"},
		{"", []string{"ALICLOUD_REGION=a-3"}, "a-3"},
		{"", nil, "cn-shanghai"},
		{"", ak, "cn-shanghai"}, // the keys come from elsewhere, the region does not
		{"", append(ak, "ALIBABA_CLOUD_CLI_PROFILE_DISABLED=true"), ""},
	} {
		c := newClients(t, Config{Region: tc.flag, Env: env(tc.env...), Home: h, NoMetadata: true})
		if c.Region() != tc.want {
			t.Errorf("%+v: region %q", tc, c.Region())
		}
	}
}

func TestConfigRefused(t *testing.T) {
	const leak = "l3ak3dS3cret"
	for _, tc := range []struct {
		name, want string
		cfg        Config
		env        []string
		files      map[string]string
	}{
		{name: "half of the flags", want: "one of them is missing", cfg: Config{AccessKeyID: "id"}},
		{name: "half of an environment", want: "ALICLOUD_*) has one of", env: []string{"ALICLOUD_SECRET_KEY=" + leak}},
		{name: "accelerate and internal", want: "acceleration", cfg: Config{Accelerate: true, Internal: true}},
		{name: "region", want: "no region", cfg: Config{Region: "evil.example/"}},
		{name: "endpoint with a path", want: "more than", cfg: Config{OSSEndpoint: "https://host/bucket"}},
		{name: "endpoint with a password", want: "more than", cfg: Config{ECSEndpoint: "https://u:" + leak + "@host"}},
		{name: "endpoint of another scheme", want: "not a host", cfg: Config{STSEndpoint: "ftp://host"}},
		{name: "endpoint that is no URL", want: "not a host", cfg: Config{STSEndpoint: "https://u:" + leak + "@[host"}},
		{name: "proxy", want: "HTTPS_PROXY is not a URL", env: []string{"HTTPS_PROXY=http://u:" + leak + "@[x"}},
		{name: "CA missing", want: "certificate authorities", cfg: Config{CAFile: "/nonexistent"}},
		{name: "SDK's own debugging", want: "DEBUG=sdk", env: []string{"DEBUG=x,sdk"}},
		{name: "profile without a file", want: "profile p", cfg: Config{Profile: "p"}},
		{name: "profile missing", want: "has no profile", cfg: Config{Profile: "p"}, files: map[string]string{cliFile: cliProfiles}},
		{name: "profile goes round", want: "goes round", cfg: Config{Profile: "loop"}, files: map[string]string{cliFile: cliProfiles}},
		{name: "profile without its source", want: "source_profile", cfg: Config{Profile: "orphan"}, files: map[string]string{cliFile: cliProfiles}},
		{name: "profile of another mode", want: "CloudSSO", cfg: Config{Profile: "sso"}, files: map[string]string{cliFile: cliProfiles}},
		{name: "profile without keys", want: "is empty", cfg: Config{Profile: "empty"}, files: map[string]string{cliFile: cliProfiles}},
		{name: "profile of an instance, offline", want: "turned off", cfg: Config{Profile: "ecs", Offline: true}, files: map[string]string{cliFile: cliProfiles}},
		{name: "file that is not JSON", want: "at byte", files: map[string]string{cliFile: `{"profiles":[{"access_key_secret":"` + leak + `",}]}`}},
		{name: "file of other types", want: "not the JSON", files: map[string]string{cliFile: `{"profiles":["` + leak + `"]}`}},
		{name: "INI without the section", want: "no section", files: map[string]string{".alibabacloud/credentials": "[x]\naccess_key_secret=" + leak}},
		{name: "INI of another type", want: "type", files: map[string]string{".alibabacloud/credentials": "[default]\ntype=rsa_key_pair\nkey=" + leak}},
		{name: "INI that was named", want: "credentials file", env: []string{"ALIBABA_CLOUD_CREDENTIALS_FILE=/nonexistent"}},
		{name: "role without an ARN", want: "ARN", files: map[string]string{".alibabacloud/credentials": "[default]\ntype=ram_role_arn\naccess_key_id=i\naccess_key_secret=" + leak}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := tc.cfg
			cfg.Env, cfg.Home = env(tc.env...), home(t, tc.files)
			_, err := New(cfg)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("error %v, want %q", err, tc.want)
			}
			noSecret(t, "error", err.Error(), leak)
		})
	}
}

func TestINIFile(t *testing.T) {
	h := home(t, map[string]string{".alibabacloud/credentials": "\ufeff# mine\n[other]\ntype = access_key\naccess_key_id = id-other\naccess_key_secret = so\n" +
		"; x\n[default]\r\ntype=access_key\r\naccess_key_id=\"id-ini\"\r\naccess_key_secret=secret=ini\r\n"})
	for name, want := range map[string]string{"": "id-ini", "other": "id-other"} {
		c := newClients(t, Config{Home: h, Env: env("ALIBABA_CLOUD_PROFILE=" + name), NoMetadata: true})
		k, err := c.ecs.get(t.Context())
		if err != nil || k.id != want {
			t.Errorf("section %q: %s, %v", name, k.id, err)
		}
	}
}

// stsReply is a reply with temporary keys.
func stsReply(n int64, expires time.Time) string {
	return fmt.Sprintf(`{"RequestId":"R","Credentials":{"AccessKeyId":"STS.%d","AccessKeySecret":"temp-secret-%d","SecurityToken":"temp-token-%d","Expiration":%q}}`,
		n, n, n, expires.UTC().Format("2006-01-02T15:04:05Z"))
}

func TestTemporaryKeysAreRenewedOnceBeforeTheyExpire(t *testing.T) {
	now := &clock{now: time.Now()}
	var calls atomic.Int64
	var down atomic.Bool
	sts := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if down.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprint(w, `{"Code":"ServiceUnavailable","Message":"not now","RequestId":"R"}`)
			return
		}
		time.Sleep(20 * time.Millisecond) // so that others ask meanwhile
		fmt.Fprint(w, stsReply(calls.Add(1), now.Now().Add(time.Hour)))
	})
	cfg := staticConfig(sts)
	cfg.AccessKeyID, cfg.AccessKeySecret, cfg.SecurityToken = "", "", ""
	cfg.Now = now.Now
	cfg.Home = home(t, map[string]string{cliFile: `{"current":"a","profiles":[{"name":"a","mode":"RamRoleArn","access_key_id":"` + testID +
		`","access_key_secret":"` + testSecret + `","ram_role_arn":"acs:ram::1:role/r","ram_session_name":"me","expired_seconds":3600,"policy":"{}","external_id":"x"}]}`})
	c := newClients(t, cfg)
	together := func() string {
		var wg sync.WaitGroup
		got := make([]string, 16)
		for i := range got {
			src := c.oss
			if i%2 == 1 {
				src = c.ecs
			}
			wg.Go(func() {
				k, err := src.get(t.Context())
				if err != nil {
					t.Error(err)
				}
				got[i] = k.id
			})
		}
		wg.Wait()
		for _, id := range got {
			if id != got[0] {
				t.Errorf("keys %v", got)
			}
		}
		return got[0]
	}
	step := func(d time.Duration, want string, wantCalls int64) {
		t.Helper()
		now.add(d)
		if id := together(); id != want || calls.Load() != wantCalls {
			t.Errorf("after %v more: %s in %d calls; want %s in %d", d, id, calls.Load(), want, wantCalls)
		}
	}
	step(0, "STS.1", 1)
	step(54*time.Minute, "STS.1", 1)
	step(2*time.Minute, "STS.2", 2) // four minutes before the end
	down.Store(true)
	step(57*time.Minute, "STS.2", 2) // what is left is used
	down.Store(false)
	step(time.Second, "STS.2", 2) // no attempt at every request
	step(10*time.Second, "STS.3", 3)
	down.Store(true)
	now.add(2 * time.Hour)
	if _, err := c.oss.get(t.Context()); err == nil || !strings.Contains(err.Error(), "not now") {
		t.Errorf("keys that expired: %v", err)
	}

	q := sts.last(t).URL.Query()
	for name, want := range map[string]string{"Action": "AssumeRole", "Version": stsVersion, "RoleArn": "acs:ram::1:role/r",
		"RoleSessionName": "me", "DurationSeconds": "3600", "Policy": "{}", "ExternalId": "x", "AccessKeyId": testID} {
		if q.Get(name) != want {
			t.Errorf("%s is %q, want %q", name, q.Get(name), want)
		}
	}
}

func TestWaitingForKeysEndsWithTheContext(t *testing.T) {
	release := make(chan struct{})
	c := newClients(t, Config{NoMetadata: true})
	s := c.newSource("slow", func(ctx context.Context) (keys, error) {
		select {
		case <-release:
			return keys{id: "a", secret: "b"}, nil
		case <-ctx.Done():
			return keys{}, ctx.Err()
		}
	})
	first := make(chan error, 1)
	go func() { _, err := s.get(context.Background()); first <- err }()
	ctx, stop := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer stop()
	if _, err := s.get(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("who waits: %v", err)
	}
	close(release)
	if err := <-first; err != nil {
		t.Error(err)
	}
}

func TestKeysThatExpiredOnArrivalBlameTheClock(t *testing.T) {
	c := newClients(t, Config{NoMetadata: true})
	s := c.newSource("x", static(keys{id: "a", secret: "b", expires: time.Now().Add(-time.Minute)}))
	if _, err := s.get(t.Context()); err == nil || len(hint.Of(err)) == 0 {
		t.Errorf("error %v", err)
	}
}

func TestPodRole(t *testing.T) {
	var form string
	sts := serve(t, func(w http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm()
		form = r.PostForm.Encode()
		if r.PostForm.Get("OIDCToken") == "second.web.token" {
			w.WriteHeader(http.StatusUnauthorized)
			fmt.Fprint(w, `{"Code":"AuthenticationFail.OIDCToken.Invalid","Message":"bad token second.web.token","RequestId":"R9"}`)
			return
		}
		fmt.Fprint(w, stsReply(7, time.Now().Add(time.Hour)))
	})
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("first.web.token\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	now := &clock{now: time.Now()}
	c := newClients(t, Config{STSEndpoint: sts.URL, Now: now.Now, Env: env("ALIBABA_CLOUD_ROLE_ARN=acs:ram::1:role/pod",
		"ALIBABA_CLOUD_OIDC_PROVIDER_ARN=acs:ram::1:oidc-provider/ack", "ALIBABA_CLOUD_OIDC_TOKEN_FILE="+file)})
	k, err := c.ecs.get(t.Context())
	if err != nil || k.id != "STS.7" || k.token != "temp-token-7" {
		t.Fatalf("%s, %v", k.id, err)
	}
	want := "DurationSeconds=3600&OIDCProviderArn=acs%3Aram%3A%3A1%3Aoidc-provider%2Fack&OIDCToken=first.web.token&RoleArn=acs%3Aram%3A%3A1%3Arole%2Fpod&RoleSessionName=remaster"
	if form != want {
		t.Errorf("form %s", form)
	}
	if q := sts.last(t).URL.Query(); q.Get("Action") != "AssumeRoleWithOIDC" || q.Has("Signature") || q.Has("AccessKeyId") {
		t.Errorf("query %v", q)
	}
	// The file is read anew each time: Kubernetes renews it.
	if err := os.WriteFile(file, []byte("second.web.token"), 0o600); err != nil {
		t.Fatal(err)
	}
	now.add(2 * time.Hour)
	_, err = c.ecs.get(t.Context())
	if !isCode(err, "AuthenticationFail.OIDCToken.Invalid") {
		t.Errorf("error %v", err)
	}
	noSecret(t, "error", err.Error(), "second.web.token")
}

func TestInstanceRole(t *testing.T) {
	const path = "/latest/meta-data/ram/security-credentials/"
	for _, tc := range []struct {
		name     string
		tokens   int // the status of a request for a token
		env      string
		role     string
		want     string
		requests []string
	}{
		{"hardened", 200, "", "", "", []string{"PUT /latest/api/token", "GET " + path + " T", "GET " + path + "node T"}},
		{"named", 200, "ALIBABA_CLOUD_ECS_METADATA=node", "", "", []string{"PUT /latest/api/token", "GET " + path + "node T"}},
		{"old", 404, "", "", "", []string{"PUT /latest/api/token", "GET " + path, "GET " + path + "node"}},
		{"old and not allowed", 404, "ALIBABA_CLOUD_IMDSV1_DISABLED=true", "", "404", []string{"PUT /latest/api/token"}},
		{"no role", 200, "", "none", "no role", []string{"PUT /latest/api/token", "GET " + path + " T"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var asked []string
			md := serve(t, func(w http.ResponseWriter, r *http.Request) {
				line := r.Method + " " + r.URL.Path
				if r.Header.Get("X-aliyun-ecs-metadata-token") == "md-token" {
					line += " T"
				}
				asked = append(asked, line)
				switch r.URL.Path {
				case "/latest/api/token":
					w.WriteHeader(tc.tokens)
					fmt.Fprint(w, "md-token")
				case path:
					if tc.role != "none" {
						fmt.Fprint(w, "node\n")
					}
				case path + "node":
					fmt.Fprintf(w, `{"Code":"Success","AccessKeyId":"STS.i","AccessKeySecret":"secret-i","SecurityToken":"token-i","Expiration":%q}`,
						time.Now().Add(time.Hour).UTC().Format(time.RFC3339))
				}
			})
			c := newClients(t, Config{Env: env(tc.env, "HTTP_PROXY=http://proxy.example:3128"),
				Dial: loopbackDial(t, map[string]string{metadataHost + ":80": md.addr()})})
			k, err := c.oss.get(t.Context())
			if tc.want == "" && (err != nil || k.id != "STS.i") || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("%s, %v", k.id, err)
			}
			if strings.Join(asked, ";") != strings.Join(tc.requests, ";") {
				t.Errorf("asked %q", asked)
			}
		})
	}
}

func TestChainedRolesAndURI(t *testing.T) {
	var ids []string
	var n int64
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/keys" {
			fmt.Fprintf(w, `{"AccessKeyId":"STS.uri","AccessKeySecret":"su","SecurityToken":"tu","Expiration":%q}`, time.Now().Add(time.Hour).UTC().Format(time.RFC3339))
			return
		}
		q := r.URL.Query()
		ids = append(ids, q.Get("AccessKeyId")+" "+q.Get("SecurityToken")+" "+q.Get("RoleArn"))
		n++
		fmt.Fprint(w, stsReply(n, time.Now().Add(time.Hour)))
	})
	cfg := staticConfig(s)
	cfg.AccessKeyID, cfg.AccessKeySecret, cfg.SecurityToken = "", "", ""
	cfg.Home = home(t, map[string]string{cliFile: `{"current":"top","profiles":[
		{"name":"top","mode":"ChainableRamRoleArn","source_profile":"mid","ram_role_arn":"acs:ram::1:role/top"},
		{"name":"mid","mode":"ChainableRamRoleArn","source_profile":"low","ram_role_arn":"acs:ram::1:role/mid"},
		{"name":"low","mode":"CredentialsURI","credentials_uri":"` + s.URL + `/keys"}]}`})
	c := newClients(t, cfg)
	k, err := c.ecs.get(t.Context())
	if err != nil || k.id != "STS.2" {
		t.Fatalf("%s, %v", k.id, err)
	}
	if got := strings.Join(ids, ";"); got != "STS.uri tu acs:ram::1:role/mid;STS.1 temp-token-1 acs:ram::1:role/top" {
		t.Errorf("asked %s", got)
	}
}

func TestNothingIsDialledToFindOut(t *testing.T) {
	c := newClients(t, Config{Region: "cn-hangzhou", Dial: func(context.Context, string, string) (net.Conn, error) {
		t.Error("dialled")
		return nil, errors.New("no")
	}})
	if _, err := c.Store(""); err != nil {
		t.Error(err)
	}
	if c.Source() != "the instance's role" {
		t.Error(c.Source())
	}
}

func TestOfflineConnectsToNothing(t *testing.T) {
	s := serve(t, func(http.ResponseWriter, *http.Request) {})
	cfg := staticConfig(s)
	cfg.Offline = true
	c := newClients(t, cfg)
	if _, err := c.ECS().Regions(t.Context()); err == nil || !strings.Contains(err.Error(), "offline") {
		t.Errorf("ECS: %v", err)
	}
	st, _ := c.Store("")
	if _, err := st.List(t.Context(), "bucket", ""); err == nil || !strings.Contains(err.Error(), "offline") {
		t.Errorf("OSS: %v", err)
	}
	if s.count() != 0 {
		t.Error("a request came through")
	}
}

func FuzzINISection(f *testing.F) {
	f.Add("[default]\ntype=access_key\n", "default")
	f.Add("=\n[\n[]\n=x", "")
	f.Fuzz(func(t *testing.T, text, name string) {
		for k, v := range iniSection(text, name) {
			if len(k)+len(v) > len(text) {
				t.Error("longer than the file")
			}
		}
	})
}
