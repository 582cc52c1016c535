package rootfs

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"
)

func TestResolve(t *testing.T) {
	files := map[string]string{
		"/usr/lib/systemd/x": "x", "/lib": "-> usr/lib", "/abs": "-> /usr/lib/../lib/systemd",
		"/up": "-> ../../../../etc", "/etc/passwd": "guest", "/usr/lib/up": "-> ..",
		"/dangle": "-> /etc/none", "/far": "-> /none/deeper", "/etc/slash": "-> /usr/lib/", "/host": "-> /../../etc/passwd",
	}
	for i := range 41 {
		files[fmt.Sprintf("/n%d", i)] = fmt.Sprintf("-> n%d", i+1)
	}
	files["/n41"] = "end"
	g := guestOf(files)
	for p, want := range map[string]string{
		"/": "/", "": "/", "//etc/./passwd": "/etc/passwd", "etc/passwd": "/etc/passwd", "/../../etc/passwd": "/etc/passwd",
		"/lib/systemd/x": "/usr/lib/systemd/x", "/abs/x": "/usr/lib/systemd/x", "/up/passwd": "/etc/passwd",
		"/lib/up/lib/systemd": "/usr/lib/systemd", "/dangle": "/etc/none", "/etc/slash/systemd": "/usr/lib/systemd",
		"/host": "/etc/passwd", "/etc/absent": "/etc/absent", "/n1": "/n41",
	} {
		if got, err := g.Resolve(p); err != nil || got != want {
			t.Errorf("Resolve(%q) = %q, %v; want %q", p, got, err, want)
		}
	}
	for p, want := range map[string]error{
		"/none/x": fs.ErrNotExist, "/etc/passwd/x": ErrNotDir, "/far": fs.ErrNotExist, "/n0": ErrLoop, "/dangle/x": fs.ErrNotExist,
	} {
		if got, err := g.Resolve(p); !errors.Is(err, want) {
			t.Errorf("Resolve(%q) = %q, %v; want %v", p, got, err, want)
		}
	}
}

func TestLoopNamesThePath(t *testing.T) {
	g := guestOf(map[string]string{"/etc/default/grub": "-> grub2", "/etc/default/grub2": "-> /etc/default/grub"})
	_, err := ReadFile(g, "/etc/default/grub")
	if !errors.Is(err, ErrLoop) || !strings.Contains(err.Error(), "/etc/default/grub") {
		t.Errorf("got %v", err)
	}
}

func TestMountsByLongestPrefix(t *testing.T) {
	g := guestOf(map[string]string{"/boot/hidden": "x", "/bootx": "x", "/etc/l": "-> ../boot/efi/f"})
	ok(t, g.Mount("/boot", MemOf(map[string]string{"/efi/hidden": "x", "/grub": "b"})))
	ok(t, g.Mount("/boot/efi", MemOf(map[string]string{"/f": "esp", "/up": "-> ../../bootx"})))
	ok(t, g.Mount("/new", MemOf(nil)))
	for p, want := range map[string]string{"/boot/grub": "b", "/etc/l": "esp", "/bootx": "x", "/boot/efi/up": "x"} {
		if b, err := ReadFile(g, p); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v", p, b, err)
		}
	}
	for _, p := range []string{"/boot/hidden", "/boot/efi/hidden"} {
		if found, err := Exists(g, p); err != nil || found {
			t.Errorf("%s: %v, %v", p, found, err)
		}
	}
	es, err := g.ReadDir("/")
	ok(t, err)
	if got := fmt.Sprint(es); got != "[{boot d---------} {bootx ----------} {etc d---------} {new d---------}]" {
		t.Error(got)
	}
	for _, p := range []string{"/boot", "/", "/bootx", "/none/x"} {
		if err := g.Mount(p, NewMem()); err == nil {
			t.Errorf("mounted on %s", p)
		}
	}
}

func TestReadFileLimits(t *testing.T) {
	m := MemOf(map[string]string{"/d/": ""})
	m.Set("/big", &Node{Mode: 0o644, Content: zeros(ReadLimit + 1)})
	m.Set("/max", &Node{Mode: 0o644, Content: zeros(ReadLimit)})
	m.Set("/nil", &Node{Mode: 0o644})
	g := NewGuest(m)
	for p, want := range map[string]string{"/big": "more than the limit", "/d": "is a folder", "/x": "does not exist"} {
		if _, err := ReadFile(g, p); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", p, err)
		}
	}
	for p, want := range map[string]int{"/max": ReadLimit, "/nil": 0} {
		if b, err := ReadFile(g, p); err != nil || len(b) != want {
			t.Errorf("%s: %d bytes, %v", p, len(b), err)
		}
	}
}

type zeros int64

func (z zeros) Size() int64 { return int64(z) }
func (z zeros) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	return len(p), nil
}
