package rootfs

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"time"

	"remaster/pkg/disk"
)

// summary is the changes as text, a line each: op, path, and the mode or the target or
// the content of what is there afterwards.
func summary(cs []Change) string {
	var b strings.Builder
	for _, c := range cs {
		fmt.Fprintf(&b, "%s %s", c.Op, c.Path)
		if n := c.After; n != nil {
			switch {
			case n.Mode.IsDir():
				fmt.Fprintf(&b, " %v", n.Mode)
			case n.Target != "":
				fmt.Fprintf(&b, " -> %s", n.Target)
			default:
				data, _ := readBlob(n.Content)
				fmt.Fprintf(&b, " %v %q", n.Mode, data)
			}
		}
		fmt.Fprintf(&b, " (%s)\n", strings.Join(c.Why, "; "))
	}
	return b.String()
}

func wantChanges(t *testing.T, s *Stage, want ...string) {
	t.Helper()
	got := summary(s.Changes())
	if w := strings.Join(want, ""); strings.ReplaceAll(got, "\n", "") != w {
		t.Errorf("changes:\n%swant:\n%s", got, strings.Join(want, "\n"))
	}
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func guestOf(files map[string]string) *Guest { return NewGuest(MemOf(files)) }

func TestWriteFileFollowsLinksAndKeepsTheRest(t *testing.T) {
	m := MemOf(map[string]string{"/etc/grub": "-> ../etc/default/grub", "/etc/default/grub": "old"})
	m.Set("/etc/default/grub", &Node{Mode: 0o640, UID: 3, GID: 4, Content: disk.Bytes("old"), Xattrs: map[string][]byte{"user.a": []byte("b")}})
	s := NewStage(NewGuest(m))
	ok(t, s.WriteFile("/etc/grub", []byte("new"), "why"))
	wantChanges(t, s, `modify /etc/default/grub -rw-r----- "new" (why)`)
	after := s.Changes()[0].After
	if after.UID != 3 || after.GID != 4 || string(after.Xattrs["user.a"]) != "b" {
		t.Errorf("owner or xattrs lost: %+v", after)
	}
	if b, err := ReadFile(s, "/etc/grub"); err != nil || string(b) != "new" {
		t.Errorf("stage reads %q, %v", b, err)
	}
	if b, err := ReadFile(s.Base(), "/etc/grub"); err != nil || string(b) != "old" {
		t.Errorf("base reads %q, %v", b, err)
	}
}

func TestWriteSameBytesIsNoChange(t *testing.T) {
	s := NewStage(guestOf(map[string]string{"/a": "x", "/empty": ""}))
	ok(t, s.WriteFile("/a", []byte("x"), "why"))
	ok(t, s.WriteFile("/empty", nil, "why"))
	ok(t, s.WriteFileMode("/a", []byte("x"), 0o644, "why"))
	ok(t, s.Put("/a", &Node{Mode: 0o644, Content: disk.Bytes("x"), ModTime: time.Unix(5, 0)}, "why"))
	ok(t, s.MkdirAll("/", 0o700, "why"))
	ok(t, s.Remove("/none/at/all", "why"))
	wantChanges(t, s)
	ok(t, s.WriteFileMode("/a", []byte("x"), 0o600, "why"))
	wantChanges(t, s, `attr /a -rw------- "x" (why)`)
}

func TestChangeUndoneDisappears(t *testing.T) {
	s := NewStage(guestOf(map[string]string{"/a": "x", "/l": "-> a", "/d/f": "y"}))
	ok(t, s.WriteFile("/a", []byte("y"), "one"))
	ok(t, s.WriteFile("/a", []byte("x"), "two"))
	ok(t, s.Symlink("b", "/l", "one"))
	ok(t, s.Symlink("a", "/l", "two"))
	ok(t, s.WriteFile("/new", []byte("x"), "one"))
	ok(t, s.Remove("/new", "two"))
	ok(t, s.RemoveAll("/d", "one"))
	ok(t, s.WriteFile("/d/f", []byte("y"), "two"))
	ok(t, s.Chmod("/a", 0o600, "one"))
	ok(t, s.Chmod("/a", 0o644, "two"))
	wantChanges(t, s)
}

func TestChangesCanBeAppliedInOrder(t *testing.T) {
	s := NewStage(guestOf(map[string]string{"/old/a/b": "x", "/old/a.b": "x", "/file": "x", "/swap/in": "x", "/z": "-> file"}))
	ok(t, s.WriteFile("/new/deep/f", []byte("1"), "w"))
	ok(t, s.RemoveAll("/old", "w"))
	ok(t, s.Remove("/file", "w"))
	ok(t, s.WriteFile("/file/f", []byte("2"), "w"))
	ok(t, s.RemoveAll("/swap", "w"))
	ok(t, s.WriteFile("/swap", []byte("3"), "w"))
	ok(t, s.Remove("/z", "w"))
	ok(t, s.Symlink("new", "/z", "w2"))
	wantChanges(t, s,
		"remove /swap/in (w)", "remove /old/a/b (w)", "remove /old/a.b (w)", "remove /old/a (w)", "remove /old (w)",
		"replace /file drwxr-xr-x (w)", `create /file/f -rw-r--r-- "2" (w)`,
		"create /new drwxr-xr-x (w)", "create /new/deep drwxr-xr-x (w)", `create /new/deep/f -rw-r--r-- "1" (w)`,
		`replace /swap -rw-r--r-- "3" (w)`, "replace /z -> new (w; w2)")
}

func TestReasonsAreMerged(t *testing.T) {
	s := NewStage(guestOf(nil))
	for _, why := range []string{"one", "two", "one", ""} {
		ok(t, s.WriteFile("/f", []byte(why), why))
	}
	wantChanges(t, s, `create /f -rw-r--r-- "" (one; two)`)
}

func TestStageRefuses(t *testing.T) {
	s := NewStage(guestOf(map[string]string{"/d/f": "x", "/f": "x", "/l": "-> f", "/loop": "-> loop", "/a": "-> b", "/b": "-> /a"}))
	is := func(target error) func(error) bool { return func(err error) bool { return errors.Is(err, target) } }
	says := func(w string) func(error) bool {
		return func(err error) bool { return strings.Contains(err.Error(), w) }
	}
	for name, c := range map[string]struct {
		err  error
		want func(error) bool
	}{
		"write a folder":       {s.WriteFile("/d", nil, ""), says("/d: is a folder")},
		"write below a file":   {s.WriteFile("/f/x", nil, ""), is(ErrNotDir)},
		"write a loop":         {s.WriteFile("/loop", nil, ""), is(ErrLoop)},
		"loop is named":        {s.WriteFile("/a/x", nil, ""), says("/a/x")},
		"link over a file":     {s.Symlink("x", "/f", ""), says("a regular file is in the way")},
		"link over a folder":   {s.Symlink("x", "/d", ""), says("a folder is in the way")},
		"link without target":  {s.Symlink("", "/n", ""), is(fs.ErrInvalid)},
		"remove a full folder": {s.Remove("/d", ""), is(errNotEmpty)},
		"remove the root":      {s.RemoveAll("/", ""), is(errIsRoot)},
		"put file over folder": {s.Put("/d", &Node{Mode: 0o644}, ""), says("cannot take the place")},
		"put folder over file": {s.Put("/f", &Node{Mode: fs.ModeDir | 0o755}, ""), says("cannot take the place")},
		"put a device":         {s.Put("/n", &Node{Mode: fs.ModeDevice}, ""), is(disk.ErrUnsupported)},
		"chmod of nothing":     {s.Chmod("/n", 0, ""), is(fs.ErrNotExist)},
		"folder over file":     {s.MkdirAll("/f", 0o755, ""), is(ErrNotDir)},
	} {
		if c.err == nil || !c.want(c.err) {
			t.Errorf("%s: %v", name, c.err)
		}
	}
}

func TestPutReplacesALinkNotItsTarget(t *testing.T) {
	s := NewStage(guestOf(map[string]string{"/bin": "-> usr/bin", "/usr/bin/runc": "-> /opt/runc", "/opt/runc": "old"}))
	ok(t, s.Put("/bin/runc", &Node{Mode: 0o755, Content: disk.Bytes("new")}, "w"))
	wantChanges(t, s, `replace /usr/bin/runc -rwxr-xr-x "new" (w)`)
}

func TestReadDirSeesThePlan(t *testing.T) {
	s := NewStage(guestOf(map[string]string{"/d/a": "", "/d/b": "", "/d/l": "-> a", "/gone/x": ""}))
	ok(t, s.Remove("/d/a", ""))
	ok(t, s.MkdirAll("/d/c/e", 0o755, ""))
	ok(t, s.RemoveAll("/gone", ""))
	ok(t, s.MkdirAll("/gone", 0o700, ""))
	es, err := s.ReadDir("/d")
	ok(t, err)
	if want := []Entry{{"b", 0}, {"c", fs.ModeDir}, {"l", fs.ModeSymlink}}; !slices.Equal(es, want) {
		t.Errorf("got %v, want %v", es, want)
	}
	for dir, want := range map[string]int{"/gone": 0, "/d/c": 1, "/": 2} {
		if es, err := s.ReadDir(dir); err != nil || len(es) != want {
			t.Errorf("%s: %v, %v", dir, es, err)
		}
	}
}

func TestFolderInPlaceOfALinkDoesNotShowTheLinksTarget(t *testing.T) {
	s := NewStage(guestOf(map[string]string{"/real/secret": "x", "/l": "-> real"}))
	ok(t, s.Remove("/l", ""))
	ok(t, s.MkdirAll("/l", 0o755, ""))
	if _, err := s.Lstat("/l/secret"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the base shines through: %v", err)
	}
	if es, err := s.ReadDir("/l"); err != nil || len(es) > 0 {
		t.Errorf("%v, %v", es, err)
	}
}

func bytesOf(s string) disk.Bytes { return disk.Bytes(s) }
