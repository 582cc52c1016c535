package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"remaster/internal/sandbox"
	"remaster/internal/testimage"
)

const testSecret = "a-secret-that-must-not-be-seen"

// rehearse starts a sandbox with a bucket "images" and points the commands at it.
func rehearse(t *testing.T) *sandbox.Sandbox {
	t.Helper()
	s := sandbox.New(sandbox.Options{
		Accounts: []sandbox.Account{{AccessKeyID: "AK", Secret: testSecret}},
		ECS:      sandbox.ECSOptions{Speed: 3000},
	})
	if err := s.OSS.CreateBucket("images", ""); err != nil {
		t.Fatal(err)
	}
	if err := s.Start("127.0.0.1:0", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	for k, v := range map[string]string{
		"REMASTER_OSS_ENDPOINT": s.OSSEndpoint(), "REMASTER_ECS_ENDPOINT": s.ECSEndpoint(), "REMASTER_STS_ENDPOINT": s.STSEndpoint(),
		"ALIBABA_CLOUD_ACCESS_KEY_ID": "AK", "ALIBABA_CLOUD_ACCESS_KEY_SECRET": testSecret,
		"ALIBABA_CLOUD_REGION_ID": sandbox.DefaultRegion, "HOME": t.TempDir(), "XDG_CACHE_HOME": t.TempDir(),
	} {
		t.Setenv(k, v)
	}
	return s
}

// command runs a command line, which must end with the code, and returns what it
// printed.
func command(t *testing.T, code int, args ...string) (stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	got := run(context.Background(), args, &out, &errs)
	if got != code {
		t.Fatalf("remaster %s: exit %d, want %d\n%s%s", strings.Join(args, " "), got, code, out.String(), errs.String())
	}
	if all := out.String() + errs.String(); strings.Contains(all, testSecret) {
		t.Fatalf("remaster %s shows the secret:\n%s", strings.Join(args, " "), all)
	}
	return out.String(), errs.String()
}

// publishJSON publishes and returns what was done.
func publishJSON(t *testing.T, args ...string) published {
	t.Helper()
	out, _ := command(t, 0, append([]string{"publish", "--json", "-q", "--poll", "50ms"}, args...)...)
	var doc published
	if err := json.Unmarshal([]byte(out), &doc); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return doc
}

// object returns the bytes of the object that was published.
func object(t *testing.T, s *sandbox.Sandbox, doc published) []byte {
	t.Helper()
	o, _ := parseObject(doc.Object)
	var b bytes.Buffer
	if err := s.OSS.WriteObject(&b, o.Bucket, o.Key); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func demoImage(t *testing.T) string {
	t.Helper()
	p, err := filepath.Abs("../../testdata/demo/alinux3-demo.qcow2")
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// local builds the image on this machine and returns its bytes.
func local(t *testing.T, base string, args ...string) []byte {
	t.Helper()
	out := filepath.Join(t.TempDir(), "local")
	command(t, 0, append([]string{"build", "-q", "--no-sync", base, "-o", out}, args...)...)
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestPublishEqualsTheLocalBuild(t *testing.T) {
	s := rehearse(t)
	base := demoImage(t)
	for _, format := range []string{"qcow2", "vhd", "raw"} {
		doc := publishJSON(t, base, "--bucket", "images", "--name", "node-"+format, "--format", format)
		if !bytes.Equal(object(t, s, doc), local(t, base, "--format", format)) {
			t.Errorf("%s: the object is not the local build", format)
		}
		if got := doc.Image.Regions[0].Status; got != "Available" {
			t.Errorf("%s: the image is %s", format, got)
		}
		if !doc.Upload.Checked {
			t.Errorf("%s: the checksum was not compared", format)
		}
	}
	if left := s.OSS.Uploads("images"); len(left) > 0 {
		t.Errorf("uploads are left: %v", left)
	}
}

func TestPublishAgainDoesNothing(t *testing.T) {
	s := rehearse(t)
	args := []string{demoImage(t), "--bucket", "images", "--name", "node-v2", "--copy-to", "cn-beijing"}
	first := publishJSON(t, args...)
	s.ResetCounters()
	again := publishJSON(t, args...)
	if a, b := first.Image.Regions, again.Image.Regions; len(a) != 2 || len(b) != 2 || a[0].ImageID != b[0].ImageID || a[1].ImageID != b[1].ImageID {
		t.Errorf("other images: %+v, then %+v", a, b)
	}
	if c := s.Counters(); c.Uploaded != 0 || c.Requests["ImportImage"] > 1 || c.Requests["CopyImage"] != 0 {
		t.Errorf("the second run did %+v", c)
	}
	if n := len(s.Images()); n != 2 {
		t.Errorf("%d images", n)
	}
	// With --debug each request is logged; command looks for the secret in all of it.
	stdout, _ := command(t, 0, append([]string{"publish", "--debug", "--poll", "50ms"}, args...)...)
	if stdout != first.Image.Regions[0].ImageID+"\n" {
		t.Errorf("standard output is %q", stdout)
	}
}

// A base that is an object already: only what changed is sent, whatever the format.
func TestDeltaPublishMovesOnlyWhatChanged(t *testing.T) {
	s := rehearse(t)
	raw := testimage.Build(t, "gpt-bls-env")
	for _, f := range []testimage.Format{testimage.Qcow2, testimage.Qcow2Zlib, testimage.Qcow2Zstd, testimage.VHD, testimage.Raw} {
		base := raw
		if f != testimage.Raw {
			base = testimage.Convert(t, raw, f)
		}
		name := filepath.Base(base)
		content, err := os.ReadFile(base)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.OSS.CreateObject("images", "base/"+name, bytes.NewReader(content)); err != nil {
			t.Fatal(err)
		}
		s.ResetCounters()
		doc := publishJSON(t, "oss://images/base/"+name, "--name", "node-"+string(f))
		got := object(t, s, doc)
		if !bytes.Equal(got, local(t, base)) {
			t.Errorf("%s: the object is not the local build", f)
		}
		u, c := doc.Upload, s.Counters()
		t.Logf("%s: %s of %d bytes: sent %d, fetched %d, copied %d in %d parts; on the wire %d up, %d down",
			f, u.Way, u.Size, u.Sent, u.Fetched, u.Copied, u.Parts, c.Uploaded, c.Downloaded)
		if u.Sent+u.Copied < u.Size || c.Copied != u.Copied || !u.Checked {
			t.Errorf("%s: %+v, and the service counts %+v", f, u, c)
		}
		if len(content) > 8<<20 && u.Sent > u.Size/2 {
			t.Errorf("%s: %d of %d bytes were sent", f, u.Sent, u.Size)
		}
	}
	if left := s.OSS.Uploads("images"); len(left) > 0 {
		t.Errorf("uploads are left: %v", left)
	}
}

func TestUploadImportStatusAndGC(t *testing.T) {
	s := rehearse(t)
	node := filepath.Join(t.TempDir(), "node.qcow2")
	command(t, 0, "build", "-q", demoImage(t), "-o", node)
	out, _ := command(t, 0, "upload", "-q", node, "oss://images/node.qcow2")
	if out != "oss://images/node.qcow2\n" {
		t.Errorf("upload prints %q", out)
	}
	id, _ := command(t, 0, "import", "-q", "oss://images/node.qcow2", "--name", "node-v2", "--poll", "50ms", "--image-check")
	id = strings.TrimSpace(id)
	out, _ = command(t, 0, "import", "status", id)
	if !strings.Contains(out, "Available") {
		t.Errorf("import status %s prints %s", id, out)
	}
	out, _ = command(t, 0, "import", "wait", id)
	if strings.TrimSpace(out) != id {
		t.Errorf("import wait %s prints %s", id, out)
	}
	command(t, 0, "gc", "oss://images", "--older-than", "1s")
	if keys := s.OSS.Keys("images"); len(keys) != 1 {
		t.Errorf("gc left %v", keys)
	}
	command(t, 0, "doctor", "--bucket", "images")
	out, _ = command(t, 0, "policy", "--bucket", "images")
	if !strings.Contains(out, "ecs:ImportImage") || !json.Valid([]byte(out)) {
		t.Errorf("policy prints %s", out)
	}
}

func TestPublishRefusals(t *testing.T) {
	s := rehearse(t)
	demo := demoImage(t)
	for want, args := range map[string][]string{
		"needs a bucket":           {demo, "--name", "x1"},
		"needs a name":             {demo, "--bucket", "images"},
		"is not oss://BUCKET/KEY":  {"oss://images", "--name", "x1"},
		"can't become vhd":         {demo, "--bucket", "images", "--name", "x1", "--no-build", "--format", "vhd"},
		"unknown choice \"maybe\"": {demo, "--bucket", "images", "--name", "x1", "--on-exist", "maybe"},
	} {
		_, stderr := command(t, exitUsage, append([]string{"publish"}, args...)...)
		if !strings.Contains(stderr, want) {
			t.Errorf("publish %v: %s", args, stderr)
		}
	}
	if _, stderr := command(t, exitError, "publish", demo, "--bucket", "nobucket", "--name", "x1"); !strings.Contains(stderr, "nobucket") {
		t.Errorf("a bucket that is not there: %s", stderr)
	}
	t.Setenv("ALIBABA_CLOUD_ACCESS_KEY_SECRET", "wrong")
	if _, stderr := command(t, exitError, "publish", demo, "--bucket", "images", "--name", "x1"); !strings.Contains(stderr, "SignatureDoesNotMatch") {
		t.Errorf("wrong keys: %s", stderr)
	}
	if keys := s.OSS.Keys("images"); len(keys) > 0 || len(s.Images()) > 0 {
		t.Errorf("something is left: %v", keys)
	}
}

func TestBatchRunsOneLineOfAList(t *testing.T) {
	s := rehearse(t)
	list := filepath.Join(t.TempDir(), "images.txt")
	line := demoImage(t) + " --bucket images --name "
	if err := os.WriteFile(list, []byte("# two images\n\n"+line+"node-a\n"+line+"node-b\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, _ := command(t, 0, "batch", list, "--index", "1", "--", "--poll", "50ms", "-q")
	images := s.Images()
	if len(images) != 1 || images[0].Name != "node-b" || out != images[0].ID+"\n" {
		t.Errorf("%+v were made, and %q was printed", images, out)
	}
	for want, args := range map[string][]string{
		"no line 2":             {list, "--index", "2"},
		"unknown flag: --speed": {list, "--index", "0", "--", "--speed"},
	} {
		if _, stderr := command(t, exitUsage, append([]string{"batch"}, args...)...); !strings.Contains(stderr, want) {
			t.Errorf("batch %v: %s", args, stderr)
		}
	}
}
