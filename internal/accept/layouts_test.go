package accept

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"remaster/internal/oracle"
	"remaster/internal/testimage"
)

// policy decides on the layouts whose expectation is left to the program.
var policy = map[string]string{
	"gpt-4k": "edit", "grubenv-full": "edit", "grubenv-short": "edit", "no-containerd": "edit", "containerd-masked": "edit", "links-attack": "edit",
	"dirty-journal": "edit",
	"gpt-xfs":       "refuse", "gpt-btrfs": "refuse", "gpt-lvm": "refuse", "unclean": "refuse", "links-loop": "refuse",
	"full-fs": "any", // edited if the new bytes fit, else refused whole
}

// layout is a line of the manifest.
type layout struct{ name, expect, file string }

// layouts makes the shared layouts, unless they are there already, and returns them.
func (s *site) layouts(t *testing.T) []layout {
	t.Helper()
	work := filepath.Join(s.work, "layouts")
	manifest := filepath.Join(work, "manifest.tsv")
	if _, err := os.Stat(manifest); err != nil {
		if out, code := s.script(t, []string{"WORK=" + work}, "make-layouts.sh"); code != 0 {
			t.Fatalf("make-layouts.sh: exit %d\n%s", code, out)
		}
	}
	b, err := os.ReadFile(manifest)
	if err != nil {
		t.Fatal(err)
	}
	var out []layout
	for line := range strings.Lines(string(b)) {
		f := strings.Split(strings.TrimSpace(line), "\t")
		l := layout{strings.TrimSuffix(f[0], ".raw"), f[1], filepath.Join(work, f[0])}
		if l.expect == "choose" {
			if l.expect = policy[l.name]; l.expect == "" {
				t.Fatalf("no policy for the layout %s", l.name)
			}
		}
		out = append(out, l)
	}
	list, _ := s.script(t, nil, "make-layouts.sh", "--list")
	if want := strings.Count(list, "\n"); len(out) != want {
		t.Fatalf("%d of the %d layouts were made", len(out), want)
	}
	return out
}

func TestLayouts(t *testing.T) {
	s := open(t)
	host := oracle.SHA256(t, "/etc/passwd")
	for _, l := range s.layouts(t) {
		t.Run(l.name, func(t *testing.T) {
			t.Parallel()
			base := oracle.SHA256(t, l.file)
			switch l.expect {
			case "refuse":
				s.expectRefusal(t, l.file)
			case "any":
				if s.run(t, s.outDir(t), "plan", l.file).code == 0 {
					s.expectEdit(t, l.file, false)
				} else {
					s.expectRefusal(t, l.file)
				}
			default:
				s.expectEdit(t, l.file, l.expect == "noop")
			}
			if oracle.SHA256(t, l.file) != base {
				t.Error("the base was changed")
			}
		})
	}
	t.Cleanup(func() {
		if oracle.SHA256(t, "/etc/passwd") != host {
			t.Error("a file of the host was changed")
		}
		if _, err := os.Lstat("/tmp/remaster-escape"); err == nil {
			t.Error("a link led out of an image: /tmp/remaster-escape is there")
		}
	})
}

// expectRefusal checks that every container format of the image is refused with a
// reason and a remedy, and that nothing is left behind.
func (s *site) expectRefusal(t *testing.T, raw string) {
	t.Helper()
	for _, f := range []testimage.Format{testimage.Raw, testimage.Qcow2Zlib, testimage.VHD} {
		image := readable(t, testimage.Convert(t, raw, f))
		dir := s.outDir(t)
		e := s.run(t, dir, "build", image, "-o", "out")
		switch {
		case e.code == 0:
			t.Errorf("%s: built, not refused", f)
		case !strings.HasPrefix(e.stderr, "remaster: ") || !strings.Contains(e.stderr, "\nhint: "):
			t.Errorf("%s: no reason and hint: %q", f, e.stderr)
		}
		if left := names(t, dir); len(left) > 0 {
			t.Errorf("%s: left behind: %v", f, left)
		}
		if p := s.run(t, dir, "plan", image); p.code != e.code || p.stderr != e.stderr {
			t.Errorf("%s: build says (%d)\n%splan says (%d)\n%s", f, e.code, e.stderr, p.code, p.stderr)
		}
		if f == testimage.Raw {
			t.Logf("exit %d: %s", e.code, e.stderr)
		}
	}
}

// outputs are the program's formats and qemu-img's names of them.
var outputs = []struct {
	flag, qemu, ext string
	fixedSize       bool // the size is as it was
}{{"raw", "raw", ".raw", true}, {"qcow2", "qcow2", ".qcow2", true}, {"vhd", "vpc", ".vhd", false}, {"vhd-fixed", "vpc", ".vhd", false}}

// expectEdit checks the result of the raw image, and that every other pair of formats
// gives the same guest.
func (s *site) expectEdit(t *testing.T, raw string, noop bool) {
	t.Helper()
	dir := s.outDir(t)
	changes := s.plan(t, dir, raw)
	if noop != (len(changes) == 0) {
		t.Errorf("the plan has %d changes: %v", len(changes), changes)
	}
	want := filepath.Join(dir, "want.raw")
	s.must(t, dir, "build", raw, "-o", want)
	oracle.CheckImage(t, want)
	expectOnlyAnnounced(t, raw, want, changes)
	s.expectNothingToDo(t, dir, want)
	s.must(t, dir, "build", raw, "-o", "again.raw")
	if oracle.SHA256(t, want) != oracle.SHA256(t, filepath.Join(dir, "again.raw")) {
		t.Error("two builds differ")
	}
	for _, in := range testimage.Formats {
		image := readable(t, testimage.Convert(t, raw, in))
		base := oracle.SHA256(t, image)
		for _, o := range outputs {
			out := filepath.Join(dir, string(in)+"-to-"+o.flag+o.ext)
			s.must(t, dir, "build", image, "-o", out, "--format", o.flag)
			if o.qemu == "qcow2" {
				oracle.CheckQcow2(t, out)
			}
			oracle.SameDisk(t, "raw", want, o.qemu, out)
			if err := os.Remove(out); err != nil {
				t.Fatal(err)
			}
		}
		if oracle.SHA256(t, image) != base {
			t.Errorf("%s: the base was changed", in)
		}
	}
}

// readable lets a user without privilege read a file that a test made, whose folder is
// closed to others.
func readable(t *testing.T, file string) string {
	t.Helper()
	for dir := filepath.Dir(file); dir != os.TempDir() && len(dir) > 1; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return file
}
