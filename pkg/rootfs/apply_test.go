package rootfs

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"remaster/pkg/disk"
)

var testTime = time.Unix(1800000000, 0)

func TestApplyOverMounts(t *testing.T) {
	root, boot := MemOf(map[string]string{"/etc/f": "old", "/boot/": ""}), MemOf(map[string]string{"/cfg": "old", "/dead": "x"})
	root.Link("/etc/f", "/etc/f2")
	g := NewGuest(root)
	ok(t, g.Mount("/boot", boot))
	s := NewStage(g)
	ok(t, s.WriteFile("/etc/f", []byte("new"), ""))
	ok(t, s.WriteFile("/boot/cfg", []byte("new"), ""))
	ok(t, s.Remove("/boot/dead", ""))
	ok(t, s.Symlink("/boot/cfg", "/etc/x/y", ""))
	ok(t, Apply(g, s.Changes(), testTime))
	for p, want := range map[string]string{"/etc/f": "new", "/etc/f2": "new", "/boot/cfg": "new", "/etc/x/y": "new"} {
		if b, err := ReadFile(g, p); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v", p, b, err)
		}
	}
	n, err := root.Lstat("/etc/f2")
	ok(t, err)
	if n.Links != 2 || !n.ModTime.Equal(testTime) {
		t.Errorf("the other name: %+v", n)
	}
	if got := strings.Join(boot.Paths(), " "); got != "/ /cfg" {
		t.Error(got)
	}
	if cs := NewStage(g).Changes(); len(cs) != 0 {
		t.Error(cs)
	}
}

func TestApplyChecksWhatIsThere(t *testing.T) {
	files := map[string]string{"/a": "1", "/b": "1", "/l": "-> a"}
	for name, disturb := range map[string]func(*Mem){
		"content": func(m *Mem) { m.Set("/a", &Node{Mode: 0o644, Content: disk.Bytes("2")}) },
		"size":    func(m *Mem) { m.Set("/a", &Node{Mode: 0o644, Content: disk.Bytes("22")}) },
		"mode":    func(m *Mem) { m.Set("/a", &Node{Mode: 0o600, Content: disk.Bytes("1")}) },
		"gone":    func(m *Mem) { ok(t, m.Remove("/a")) },
		"type":    func(m *Mem) { ok(t, m.Remove("/a")); m.Set("/a", &Node{Mode: fs.ModeDir}) },
		"target":  func(m *Mem) { m.Set("/l", &Node{Mode: fs.ModeSymlink | 0o777, Target: "b"}) },
		"created": func(m *Mem) { m.Set("/new", &Node{Mode: 0o644}) },
	} {
		s := NewStage(guestOf(files))
		ok(t, s.WriteFile("/a", []byte("new"), ""))
		ok(t, s.Symlink("new", "/l", ""))
		ok(t, s.WriteFile("/new", []byte("new"), ""))
		m := MemOf(files)
		disturb(m)
		if err := Apply(NewGuest(m), s.Changes(), testTime); err == nil || !strings.Contains(err.Error(), "not what the plan was made for") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTwoNamesOfOneFile(t *testing.T) {
	for text, fails := range map[string]bool{"same": false, "other": true} {
		m := MemOf(map[string]string{"/a": "1"})
		m.Link("/a", "/b")
		s := NewStage(NewGuest(m))
		ok(t, s.WriteFile("/a", []byte("same"), ""))
		ok(t, s.WriteFile("/b", []byte(text), ""))
		if err := Apply(NewGuest(m), s.Changes(), testTime); (err != nil) != fails {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestApplyRefusesReadOnlyVolumesAndMountPoints(t *testing.T) {
	m := MemOf(map[string]string{"/a": "1", "/boot/": ""})
	s := NewStage(NewGuest(m))
	ok(t, s.WriteFile("/a", []byte("2"), ""))
	if err := Apply(NewGuest(readOnlyVolume{m}), s.Changes(), testTime); err == nil || !strings.Contains(err.Error(), "reading only") {
		t.Error(err)
	}
	g := NewGuest(m)
	ok(t, g.Mount("/boot", NewMem()))
	s = NewStage(g)
	ok(t, s.Remove("/boot", ""))
	if err := Apply(g, s.Changes(), testTime); err == nil || !strings.Contains(err.Error(), "mounted there") {
		t.Error(err)
	}
}

type readOnlyVolume struct{ Volume }

// dump is a whole tree as text.
func dump(tb testing.TB, t Tree) string {
	tb.Helper()
	var b strings.Builder
	var visit func(p string)
	visit = func(p string) {
		n, err := t.Lstat(p)
		if err != nil {
			tb.Fatal(err)
		}
		data, err := readBlob(n.Content)
		if err != nil {
			tb.Fatal(err)
		}
		fmt.Fprintf(&b, "%s %v %d:%d %q %q %q\n", p, n.Mode, n.UID, n.GID, data, n.Target, fmt.Sprint(n.Xattrs))
		if !n.Mode.IsDir() {
			return
		}
		es, err := t.ReadDir(p)
		if err != nil {
			tb.Fatal(err)
		}
		for _, e := range es {
			if c, err := t.Lstat(join(p, e.Name)); err != nil || c.Mode.Type() != e.Type {
				tb.Fatalf("%s in %s: listed as %v, is %+v, %v", e.Name, p, e.Type, c, err)
			}
			visit(join(p, e.Name))
		}
	}
	visit("/")
	return b.String()
}

// operate runs operations that the bytes stand for, on a stage. It returns how many
// were not refused.
func operate(s *Stage, ops []byte) (done int) {
	paths := []string{"/", "/a", "/b", "/a/x", "/a/y", "/a/x/p", "/b/l", "/b/l/q", "/c", "/c/x", "/up", "/up/a/n"}
	for len(ops) >= 3 {
		p := paths[int(ops[1])%len(paths)]
		arg, why := ops[2], fmt.Sprint(ops[0]%8)
		var err error
		switch ops[0] % 8 {
		case 0, 1:
			err = s.WriteFile(p, bytes.Repeat([]byte{'a' + arg%3}, int(arg%4)), why)
		case 2:
			err = s.WriteFileMode(p, []byte{arg % 2}, 0o600|fs.FileMode(arg%8), why)
		case 3:
			err = s.Symlink([]string{"a", "/b", "../c", "x/p", "/up"}[arg%5], p, why)
		case 4:
			err = s.MkdirAll(p, 0o755, why)
		case 5:
			err = s.Remove(p, why)
		case 6:
			err = s.RemoveAll(p, why)
		case 7:
			err = s.Chmod(p, 0o640|fs.FileMode(arg%8), why)
		}
		if err == nil {
			done++
		}
		ops = ops[3:]
	}
	return done
}

func opsBase() *Mem {
	return MemOf(map[string]string{"/a/x/p": "aa", "/a/y": "b", "/b/l": "-> ../a/x", "/c": "c", "/up": "-> ..", "/keep/me": "k"})
}

// checkStage holds that what a stage shows is what its changes make of the base, that
// each change is one, and that they can be applied in their order.
func checkStage(t *testing.T, ops []byte) int {
	t.Helper()
	base := opsBase()
	s := NewStage(NewGuest(base))
	done := operate(s, ops)
	before := dump(t, s.Base())
	if before != dump(t, NewGuest(opsBase())) {
		t.Fatal("the base was changed")
	}
	changes := s.Changes()
	again := NewStage(s) // a stage on a stage shows the same
	want := dump(t, again)
	if err := Apply(NewGuest(base), changes, testTime); err != nil {
		t.Fatalf("%v\n%s", err, summary(changes))
	}
	got := dump(t, NewGuest(base))
	if got != want {
		t.Fatalf("applied:\n%s\nstaged:\n%s\nchanges:\n%s", got, want, summary(changes))
	}
	// Net: each change shows as a difference of its own line.
	lines := func(s string) map[string]string {
		m := map[string]string{}
		for l := range strings.Lines(s) {
			p, rest, _ := strings.Cut(l, " ")
			m[p] = rest
		}
		return m
	}
	was, is := lines(before), lines(got)
	for _, c := range changes {
		if was[c.Path] == is[c.Path] {
			t.Errorf("%s %s changes nothing", c.Op, c.Path)
		}
		delete(was, c.Path)
		delete(is, c.Path)
	}
	for p := range was {
		if was[p] != is[p] {
			t.Errorf("%s changed without a change", p)
		}
	}
	return done
}

func TestRandomOperationsEqualTheirChanges(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	done := 0
	for range 1000 {
		ops := make([]byte, 3*(1+r.IntN(40)))
		for i := range ops {
			ops[i] = byte(r.Uint32())
		}
		done += checkStage(t, ops)
	}
	if done < 4000 {
		t.Errorf("only %d operations took place", done)
	}
}

func FuzzStage(f *testing.F) {
	f.Add([]byte{0, 1, 2, 6, 3, 0, 4, 3, 0})
	f.Add([]byte{6, 1, 0, 3, 1, 1, 0, 3, 1})
	f.Fuzz(func(t *testing.T, ops []byte) {
		if len(ops) > 600 {
			return
		}
		checkStage(t, ops)
	})
}

func TestMemBehavesLikeAnEditor(t *testing.T) {
	m := MemOf(map[string]string{"/d/f": "x"})
	if err := m.Remove("/d"); !errors.Is(err, errNotEmpty) {
		t.Error(err)
	}
	if err := m.Create("/none/f", &Node{Mode: 0o644}); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if err := m.Create("/d/f", &Node{Mode: 0o644}); !errors.Is(err, fs.ErrExist) {
		t.Error(err)
	}
	ok(t, m.Create("/d/g", &Node{Mode: 0o644, Content: disk.Bytes("g")}))
	ok(t, m.SetAttr("/d/g", &Node{Mode: 0o600, UID: 7, Xattrs: map[string][]byte{"user.x": {1}}}))
	n, err := m.Lstat("/d/g")
	ok(t, err)
	if n.Mode != 0o600 || n.UID != 7 || len(n.Xattrs) != 1 {
		t.Errorf("%+v", n)
	}
	m.NoXattrs = true
	if err := m.SetAttr("/d/g", n); !errors.Is(err, disk.ErrUnsupported) {
		t.Error(err)
	}
	if !slices.Contains(m.Paths(), path.Join("/d", "g")) {
		t.Error(m.Paths())
	}
}

func TestConfirmSeesWhatIsNotAsPlanned(t *testing.T) {
	vol := MemOf(map[string]string{"/etc/a": "old", "/etc/gone": "x"})
	g := NewGuest(vol)
	s := NewStage(g)
	if err := errors.Join(s.WriteFile("/etc/a", []byte("new"), "test"), s.Remove("/etc/gone", "test"), s.Symlink("a", "/etc/link", "test")); err != nil {
		t.Fatal(err)
	}
	changes := s.Changes()
	if err := Confirm(g, changes); err == nil {
		t.Error("nothing was applied, and that was confirmed")
	}
	if err := Apply(g, changes, time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if err := Confirm(g, changes); err != nil {
		t.Error(err)
	}
	for path, spoil := range map[string]*Node{
		"/etc/a":    {Mode: 0o644, Links: 1, Content: disk.Bytes("nev")},
		"/etc/link": {Mode: fs.ModeSymlink | 0o777, Links: 1, Target: "b"},
		"/etc/gone": {Mode: 0o644, Links: 1, Content: disk.Bytes("")},
	} {
		keep, err := vol.Lstat(path)
		vol.Set(path, spoil)
		if Confirm(g, changes) == nil {
			t.Errorf("%s is not as planned, and that was confirmed", path)
		}
		if err != nil {
			keep = nil
			if err := vol.Remove(path); err != nil {
				t.Fatal(err)
			}
		}
		if keep != nil {
			vol.Set(path, keep)
		}
	}
}
