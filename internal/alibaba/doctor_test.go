package alibaba

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"remaster/internal/hint"
	"remaster/pkg/importer"
)

func results(list []Finding) string {
	var s []string
	for _, f := range list {
		s = append(s, f.ID+":"+string(f.Status))
	}
	return strings.Join(s, " ")
}

func remedyFor(list []Finding, id string) string {
	for _, f := range list {
		if f.ID == id {
			return f.Remedy
		}
	}
	return ""
}

func TestDoctor(t *testing.T) {
	const good = "credentials:ok region:ok endpoint:ok endpoint:ok ecs:ok bucket:ok write:ok import:ok images:ok clock:ok"
	replace := func(from, to string) string { return strings.Replace(good, from, to, 1) }
	for _, tc := range []struct {
		name, want string
		dryRun     string
		bucket     string // the reply to GetBucketInfo
		noWrite    bool
		skew       time.Duration
		remedy     [2]string // of a finding: a part of it
	}{
		{name: "all well", want: good},
		{name: "no such object", want: good, dryRun: "InvalidOSSObject.NotFound"},
		{name: "no role", want: replace("import:ok", "import:failed"), dryRun: "NoSetRoletoECSServiceAccount", remedy: [2]string{"import", "sts:AssumeRole"}},
		{name: "no role, other spelling", want: replace("import:ok", "import:failed"), dryRun: "NoSetRoletoECSServiceAcount", remedy: [2]string{"import", "sts:AssumeRole"}},
		{name: "quota", want: replace("import:ok", "import:failed"), dryRun: "QuotaExceed.Image", remedy: [2]string{"import", "quota raised"}},
		{name: "clock", want: replace("clock:ok", "clock:failed"), skew: 20 * time.Minute, remedy: [2]string{"clock", "NTP"}},
		{name: "clock, a little", want: replace("clock:ok", "clock:warning"), skew: -5 * time.Minute, remedy: [2]string{"clock", "NTP"}},
		{name: "other region", want: replace("bucket:ok write:ok", "bucket:failed"), bucket: "oss-cn-shanghai", remedy: [2]string{"bucket", "cn-shanghai"}},
		{name: "no right", want: replace("write:ok", "write:failed"), noWrite: true, remedy: [2]string{"write", "remaster policy"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var begun, ended int
			s := serve(t, func(w http.ResponseWriter, r *http.Request) {
				q := r.URL.Query()
				w.Header().Set("Date", time.Now().Add(tc.skew).UTC().Format(http.TimeFormat))
				switch {
				case q.Get("Action") == "DescribeRegions":
					io.WriteString(w, `{"Regions":{"Region":[{"RegionId":"cn-beijing"}]}}`)
				case q.Get("Action") == "DescribeImages":
					io.WriteString(w, `{"Images":{"Image":[{"ImageId":"m"}]}}`)
				case q.Get("Action") == "ImportImage":
					code := tc.dryRun
					if code == "" {
						code = "DryRunOperation"
					}
					if q.Get("DryRun") != "true" {
						t.Error("that would have been an import")
					}
					w.WriteHeader(http.StatusForbidden)
					fmt.Fprintf(w, `{"Code":%q,"Message":"m","RequestId":"R"}`, code)
				case q.Has("bucketInfo"):
					location := tc.bucket
					if location == "" {
						location = "oss-cn-beijing"
					}
					io.WriteString(w, `<BucketInfo><Bucket><Location>`+location+`</Location><StorageClass>Standard</StorageClass></Bucket></BucketInfo>`)
				case q.Has("uploads") && tc.noWrite:
					w.WriteHeader(http.StatusForbidden)
					io.WriteString(w, `<Error><Code>AccessDenied</Code><Message>no</Message></Error>`)
				case q.Has("uploads"):
					begun++
					if !strings.HasSuffix(r.URL.Path, "/images/.remaster-doctor") {
						t.Error(r.URL.Path)
					}
					io.WriteString(w, `<InitiateMultipartUploadResult><UploadId>U</UploadId></InitiateMultipartUploadResult>`)
				case r.Method == http.MethodDelete:
					ended++
					w.WriteHeader(http.StatusNoContent)
				default:
					t.Errorf("%s %s", r.Method, r.URL)
				}
			})
			list := newClients(t, staticConfig(s)).Doctor(t.Context(), Probe{Bucket: "bucket", Prefix: "images/"})
			if got := results(list); got != tc.want {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
			if begun != ended {
				t.Errorf("%d uploads begun, %d ended", begun, ended)
			}
			if got := remedyFor(list, tc.remedy[0]); tc.remedy[0] != "" && !strings.Contains(got, tc.remedy[1]) {
				t.Errorf("remedy %q", got)
			}
			noSecret(t, "finding", fmt.Sprint(list))
		})
	}
	list := newClients(t, Config{NoMetadata: true}).Doctor(t.Context(), Probe{})
	if results(list) != "credentials:failed" || list[0].Remedy == "" {
		t.Errorf("without credentials: %+v", list)
	}
}

func TestPolicyGolden(t *testing.T) {
	least := Policy{Bucket: "images", Prefix: "remaster/"}
	all := Policy{Bucket: "images", Prefix: "remaster/", Base: "bases/alinux3/*", Copy: true, Share: true, Delete: true}
	for name, f := range map[string]func() ([]byte, error){
		"caller-least.json": least.Caller, "caller-all.json": all.Caller, "role.json": least.Role,
		"trust.json": func() ([]byte, error) { return least.Trust(), nil },
	} {
		got, err := f()
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join("testdata", name)
		if os.Getenv("UPDATE_GOLDEN") != "" {
			if err := os.WriteFile(path, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s (%v):\n%s", name, err, got)
		}
	}
	for _, p := range []Policy{{}, {Bucket: "*"}, {Bucket: "b/c"}, {Bucket: "b", Prefix: "a*"}, {Bucket: "b", Base: "x"}, {Bucket: "b", Base: "*/x"}} {
		if _, err := p.Caller(); err == nil {
			t.Errorf("%+v was taken", p)
		}
	}
}

// TestSecretsAreNeverShown has services that quote everything they were sent, and looks
// for the secrets in the log and in the errors with all that they wrap.
func TestSecretsAreNeverShown(t *testing.T) {
	const temp = "temp-secret-1"
	var stage atomic.Int64 // what the services do wrong
	var shown atomic.Value // a secret that they know
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		all := fmt.Sprint(testSecret, " ", shown.Load(), " ", r.RequestURI, r.Header, string(body))
		if r.URL.Query().Get("Action") == "AssumeRole" {
			io.WriteString(w, stsReply(1, time.Now().Add(time.Hour)))
			return
		}
		w.Header().Set("X-Oss-Request-Id", "R "+r.Header.Get("X-Oss-Security-Token"))
		switch stage.Load() {
		case 0, 1:
			w.WriteHeader(http.StatusForbidden)
			if r.URL.Query().Has("Action") {
				fmt.Fprintf(w, `{"Code":"SignatureDoesNotMatch","Message":%q,"RequestId":"R"}`, all+" server string to sign is:POST&%2F&"+all)
			} else {
				fmt.Fprintf(w, `<Error><Code>SignatureDoesNotMatch</Code><Message><![CDATA[%s]]></Message></Error>`, all)
			}
		case 2:
			w.WriteHeader(http.StatusBadGateway)
			io.WriteString(w, all)
		case 3:
			io.WriteString(w, all)
		case 4:
			panic(http.ErrAbortHandler)
		}
	})
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	for _, temporary := range []bool{false, true} {
		for n := range int64(5) {
			stage.Store(n)
			var log bytes.Buffer
			cfg := staticConfig(s)
			cfg.Debug = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
			if shown.Store(""); temporary {
				shown.Store(temp)
				cfg.Home = home(t, map[string]string{cliFile: `{"current":"a","profiles":[{"name":"a","mode":"RamRoleArn","access_key_id":"` + testID +
					`","access_key_secret":"` + testSecret + `","ram_role_arn":"acs:ram::1:role/r"}]}`})
				cfg.AccessKeyID, cfg.AccessKeySecret, cfg.SecurityToken = "", "", ""
			}
			c := newClients(t, cfg)
			st, _ := c.Store("")
			u := importer.Upload{Object: obj, ID: "U"}
			var errs []error
			add := func(err error) {
				if err == nil {
					t.Errorf("stage %d: no error", n)
					return
				}
				errs = append(errs, err)
			}
			_, err := st.Head(t.Context(), obj)
			if n != 3 { // there the body is not looked at
				add(err)
			}
			_, err = st.Read(t.Context(), obj, "", 0, 3)
			add(err)
			_, err = st.List(t.Context(), "bucket", "")
			add(err)
			_, err = st.UploadPart(t.Context(), u, 1, strings.NewReader("abc"), 3)
			add(err)
			_, err = st.Complete(t.Context(), u, nil, false)
			add(err)
			_, err = c.ECS().Regions(t.Context())
			add(err)
			_, err = c.ECS().ImportImage(t.Context(), importer.ImportRequest{Name: "n"})
			add(err)
			found := c.Doctor(t.Context(), Probe{Bucket: "bucket"})
			for _, err := range errs {
				noSecret(t, "error", fmt.Sprintf("%v %+v %#v %q", err, err, err, hint.Of(err)), temp, "temp-token-1")
				for e := err; e != nil; {
					noSecret(t, "wrapped error", e.Error(), temp, "temp-token-1")
					u, ok := e.(interface{ Unwrap() error })
					if !ok {
						break
					}
					e = u.Unwrap()
				}
			}
			noSecret(t, "log", log.String(), temp, "temp-token-1")
			noSecret(t, "finding", fmt.Sprintf("%+v", found), temp, "temp-token-1")
			noSecret(t, "source", c.Source(), temp)
			if !strings.Contains(log.String(), "method=") {
				t.Error("nothing was logged")
			}
			if strings.Contains(log.String(), "Signature=") {
				t.Error("a signature was logged")
			}
		}
	}
}
