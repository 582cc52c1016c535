package accept

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"remaster/internal/oracle"
)

// nobody is the user that the program runs as when the tests run as root.
const nobody = 65534

// site is where the acceptance tests work.
type site struct {
	shared string // the scripts
	work   string // images and the program; kept
	bin    string
}

// open finds the site, and builds the program. It skips the test where there are no
// scripts.
func open(t *testing.T) *site {
	t.Helper()
	s := &site{shared: os.Getenv("REMASTER_SHARED"), work: os.Getenv("REMASTER_WORK")}
	if s.shared == "" {
		t.Skip("REMASTER_SHARED names no folder of fixtures; `make accept` does")
	}
	if s.work == "" {
		s.work = filepath.Join(os.TempDir(), fmt.Sprintf("remaster-accept-%d", os.Geteuid()))
	}
	// A user without privilege has to get there.
	if err := os.MkdirAll(s.work, 0o755); err != nil {
		t.Fatal(err)
	}
	fi, err := os.Lstat(s.work)
	if err != nil {
		t.Fatal(err)
	}
	if st := fi.Sys().(*syscall.Stat_t); !fi.IsDir() || int(st.Uid) != os.Geteuid() {
		t.Fatalf("%s is not a folder of this user's", s.work)
	}
	s.bin = filepath.Join(s.work, "remaster")
	cmd := exec.Command("go", "build", "-trimpath", "-o", s.bin, "remaster/cmd/remaster")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return s
}

// script runs one of the shared scripts with variables of its environment, and shows
// what it printed if it fails.
func (s *site) script(t *testing.T, env []string, name string, args ...string) (string, int) {
	t.Helper()
	cmd := exec.Command("bash", append([]string{filepath.Join(s.shared, "fixtures", name)}, args...)...)
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Fatalf("%s: %v", name, err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// outDir returns a new folder that the program may write to.
func (s *site) outDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp(s.work, "out-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if os.Geteuid() == 0 {
		if err := os.Chown(dir, nobody, nobody); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// ended is how a run of the program ended.
type ended struct {
	code           int
	stdout, stderr string
}

// run runs the program as a user without privilege, in dir.
func (s *site) run(t *testing.T, dir string, args ...string) ended {
	t.Helper()
	cmd := exec.Command(s.bin, args...)
	cmd.Dir = dir
	cmd.Env = []string{"PATH=/nonexistent", "TMPDIR=" + dir, "HOME=/nonexistent"}
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if cmd.ProcessState == nil {
		t.Fatalf("%s: %v", s.bin, err)
	}
	e := ended{cmd.ProcessState.ExitCode(), out.String(), errs.String()}
	if strings.Contains(e.stderr, "goroutine ") {
		t.Fatalf("remaster %s panicked:\n%s", strings.Join(args, " "), e.stderr)
	}
	return e
}

// must is run for what has to end well; it returns standard output.
func (s *site) must(t *testing.T, dir string, args ...string) string {
	t.Helper()
	e := s.run(t, dir, args...)
	if e.code != 0 {
		t.Fatalf("remaster %s: exit %d\n%s%s", strings.Join(args, " "), e.code, e.stdout, e.stderr)
	}
	return e.stdout
}

// plan returns the changes that the program announces for an image, path to operation.
func (s *site) plan(t *testing.T, dir, image string) map[string]string {
	t.Helper()
	var doc struct {
		Changes []struct{ Path, Op string }
	}
	out := s.must(t, dir, "plan", "--json", image)
	if err := json.Unmarshal([]byte(out), &doc); err != nil {
		t.Fatalf("plan --json %s: %v\n%s", image, err, out)
	}
	changes := map[string]string{}
	for _, c := range doc.Changes {
		changes[c.Path] = c.Op
	}
	return changes
}

// expectNothingToDo checks that a result has reached what the program wants.
func (s *site) expectNothingToDo(t *testing.T, dir, image string) {
	t.Helper()
	if c := s.plan(t, dir, image); len(c) > 0 {
		t.Errorf("%s: a second plan still wants to change %v", filepath.Base(image), c)
	}
	if e := s.run(t, dir, "plan", "--detailed-exitcode", image); e.code != 0 {
		t.Errorf("%s: a second plan exits %d\n%s", filepath.Base(image), e.code, e.stderr)
	}
	if e := s.run(t, dir, "verify", image); e.code != 0 {
		t.Errorf("%s: verify exits %d\n%s%s", filepath.Base(image), e.code, e.stdout, e.stderr)
	}
}

// expectOnlyAnnounced checks that the two images differ in nothing but the changes.
func expectOnlyAnnounced(t *testing.T, before, after string, changes map[string]string) {
	t.Helper()
	for _, d := range oracle.Unannounced(oracle.Guest(t, before), oracle.Guest(t, after), changes) {
		t.Errorf("%s: not announced: %v", filepath.Base(after), d)
	}
}

// names returns what lies in a folder.
func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}
