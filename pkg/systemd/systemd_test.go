package systemd

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"remaster/internal/oracle"
	"remaster/pkg/rootfs"
)

const (
	lib = "/usr/lib/systemd/system/"
	etc = "/etc/systemd/system/"
)

// host writes a tree to a folder, for the real systemctl.
func host(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for p, content := range files {
		p := filepath.Join(root, p)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, ok := strings.CutPrefix(content, "-> "); ok {
			err = os.Symlink(target, p)
		} else {
			err = os.WriteFile(p, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// hostLinks are the links under /etc/systemd/system of a host folder.
func hostLinks(t *testing.T, root string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(root+etc, func(p string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if d.Type() == fs.ModeSymlink {
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			out[strings.TrimPrefix(p, root)] = target
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// treeLinks are the same of a guest tree.
func treeLinks(t *testing.T, tree rootfs.Tree) map[string]string {
	t.Helper()
	out := map[string]string{}
	var walk func(dir string)
	walk = func(dir string) {
		entries, err := tree.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			p := dir + "/" + e.Name
			switch e.Type {
			case fs.ModeDir:
				walk(p)
			case fs.ModeSymlink:
				n, err := tree.Lstat(p)
				if err != nil {
					t.Fatal(err)
				}
				out[p] = n.Target
			}
		}
	}
	walk(strings.TrimSuffix(etc, "/"))
	return out
}

func systemctl(t *testing.T, root string, args ...string) oracle.Result {
	t.Helper()
	return oracle.Try(t, "systemctl", append([]string{"--root=" + root}, args...)...)
}

func stage(files map[string]string) *rootfs.Stage {
	return rootfs.NewStage(rootfs.NewGuest(rootfs.MemOf(files)))
}

func service(install string) string {
	return "[Unit]\nDescription=x\n\n[Service]\nExecStart=/bin/true\n\n[Install]\n" + install
}

// units are unit files of every kind that [Install] knows, one after the other the
// building blocks of the tests against systemctl.
var units = map[string]string{
	"plain.service":    service("WantedBy=multi-user.target\n"),
	"many.service":     service("WantedBy=multi-user.target graphical.target\nRequiredBy=foo.target\nAlias=al.service bl.service\nAlso=also.service\n"),
	"also.service":     service("WantedBy=multi-user.target\nAlso=many.service\n"),
	"static.service":   "[Service]\nExecStart=/bin/true\n",
	"tpl@.service":     service("WantedBy=multi-user.target\nDefaultInstance=def\n"),
	"bare@.service":    service("WantedBy=multi-user.target\n"),
	"getty@.service":   service("WantedBy=getty@.target\nAlias=console@.service\n"),
	"spec.service":     service("# a comment\nWantedBy=%p.target \\\n# another\n   b-%N.target\n; and one\nAlias=x-%p.service\n"),
	"a-b.service":      service("WantedBy=%j.target\nRequiredBy=%n.target\n"),
	"reset.service":    service("WantedBy=a.target\nWantedBy=\nWantedBy=\"b.target\" c.target\n"),
	"indirect.service": service("Also=plain.service\n"),
	"aliased.service":  service("Alias=nick.service\n"),
	"odd.service":      "junk\nWantedBy=no.target\n[Install]\n=x\nWantedBy\nWantedBy = spaced.target \n[ Install]\nWantedBy=nosection.target\n[X-Foo]\nWantedBy=other.target\n",
	"crlf.service":     "[Service]\r\nExecStart=/bin/true\r\n[Install]\r\nWantedBy=multi-user.target\r\n",
	"sock.socket":      "[Socket]\nListenStream=/run/x\n[Install]\nWantedBy=sockets.target\nAlso=plain.service\n",
}

// TestEnableMakesSystemctlsLinks enables each unit from each place and compares all
// links that result, and the state before and after.
func TestEnableMakesSystemctlsLinks(t *testing.T) {
	oracle.Need(t, "systemctl")
	for _, dir := range []string{lib, etc, "/usr/local/lib/systemd/system/"} {
		files := map[string]string{}
		for name, text := range units {
			files[dir+name] = text
		}
		names := append(slices.Sorted(maps.Keys(units)), "tpl@x.service", "getty@tty1.service", "bare@y.service")
		for _, name := range names {
			t.Run(dir+name, func(t *testing.T) {
				compareEnable(t, files, name)
			})
		}
	}
}

func TestDisableRemovesALinkedUnitLikeSystemctl(t *testing.T) {
	oracle.Need(t, "systemctl")
	compareEnable(t, map[string]string{
		"/opt/linked.service":   units["plain.service"],
		etc + "linked.service":  "-> /opt/linked.service",
		etc + "other.service":   "-> /opt/other.service",
		"/opt/other.service":    units["plain.service"],
		lib + "vendor.service":  units["plain.service"],
		lib + "nick.service":    "-> vendor.service",
		etc + "a.target/x.conf": "",
	}, "linked.service")
}

// compareEnable compares is-enabled, enable, is-enabled, disable, is-enabled.
func compareEnable(t *testing.T, files map[string]string, name string) {
	t.Helper()
	root, s := host(t, files), stage(files)
	compareState(t, root, s, name)
	r := systemctl(t, root, "enable", name)
	err := Enable(s, name, "test")
	if (r.Code == 0) != (err == nil) {
		t.Fatalf("enable %s: %v; systemctl: exit %d\n%s", name, err, r.Code, r.Stderr)
	}
	if err != nil {
		return
	}
	if want, got := hostLinks(t, root), treeLinks(t, s); !maps.Equal(got, want) {
		t.Fatalf("enable %s made\n%v\nsystemctl made\n%v", name, got, want)
	}
	compareState(t, root, s, name)
	before := len(s.Changes())
	if err := Enable(s, name, "test"); err != nil || len(s.Changes()) != before {
		t.Errorf("enable again: %v, %d changes after %d", err, len(s.Changes()), before)
	}
	if name == "getty@tty1.service" {
		return // systemctl forgets the instance's own alias, Disable does not
	}
	if r = systemctl(t, root, "disable", name); r.Code != 0 {
		t.Fatalf("systemctl disable: %s", r.Stderr)
	}
	if err := Disable(s, name, "test"); err != nil {
		t.Fatal(err)
	}
	if want, got := hostLinks(t, root), treeLinks(t, s); !maps.Equal(got, want) {
		t.Errorf("disable %s left\n%v\nsystemctl left\n%v", name, got, want)
	}
	compareState(t, root, s, name)
}

func compareState(t *testing.T, root string, tree rootfs.Tree, name string) {
	t.Helper()
	r := systemctl(t, root, "is-enabled", name)
	want := strings.TrimSpace(r.Stdout)
	got, err := IsEnabled(tree, name)
	if want == "" || want == "not-found" {
		if err == nil {
			t.Errorf("is-enabled %s: %s; systemctl: %s", name, got, r.Stderr)
		}
		return
	}
	if err != nil || string(got) != want {
		t.Errorf("is-enabled %s: %q, %v; systemctl: %q\nlinks %v", name, got, err, want, hostLinks(t, root))
	}
}

// TestStateAgreesWithSystemctl throws units, links, masks and drop-ins together at
// random and asks both about every name.
func TestStateAgreesWithSystemctl(t *testing.T) {
	oracle.Need(t, "systemctl")
	rng := rand.New(rand.NewPCG(1, 2))
	pick := func(from []string) string { return from[rng.IntN(len(from))] }
	names := slices.Sorted(maps.Keys(units))
	asked := append(slices.Clone(names), "al.service", "nick.service", "tpl@def.service", "tpl@x.service", "nope.service", "linked.service")
	for i := range 40 {
		files := map[string]string{"/opt/linked.service": service("WantedBy=multi-user.target\n")}
		for range 6 {
			n := pick(names)
			files[pick([]string{lib, lib, etc, "/usr/local/lib/systemd/system/"})+n] = units[n]
		}
		put := func(p, content string) {
			if _, taken := files[p]; !taken {
				files[p] = content
			}
		}
		for range 8 {
			n := pick(asked)
			switch rng.IntN(8) {
			case 0:
				put(etc+n, "-> /dev/null")
			case 1:
				put(etc+n, "")
			case 2:
				put(etc+"multi-user.target.wants/"+n, "-> "+lib+n)
			case 3:
				put(lib+"multi-user.target.wants/"+n, "-> ../"+n)
			case 4:
				put(etc+"foo.target.requires/"+n, "-> /nowhere/"+n)
			case 5:
				put(etc+n+".d/10-x.conf", "[Install]\nWantedBy=extra.target\n")
			case 6:
				put(etc+"linked.service", "-> /opt/linked.service")
			case 7:
				if m := pick(names); files[lib+m] != "" && m != n && !strings.Contains(n+m, "@") {
					put(etc+n, "-> "+lib+m)
				}
			}
		}
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			root, s := host(t, files), stage(files)
			for _, n := range asked {
				compareState(t, root, s, n)
			}
			if t.Failed() {
				for _, p := range slices.Sorted(maps.Keys(files)) {
					t.Logf("%s %q", p, files[p][:min(40, len(files[p]))])
				}
			}
		})
	}
}

func TestMaskAndUnmaskLikeSystemctl(t *testing.T) {
	oracle.Need(t, "systemctl")
	files := map[string]string{lib + "plain.service": units["plain.service"], etc + "own.service": units["plain.service"]}
	root, s := host(t, files), stage(files)
	for _, verb := range []string{"mask", "enable", "unmask", "enable", "mask", "unmask"} {
		r := systemctl(t, root, verb, "plain.service")
		var err error
		switch verb {
		case "mask":
			err = Mask(s, "plain.service", "test")
		case "unmask":
			err = Unmask(s, "plain.service", "test")
		case "enable":
			err = Enable(s, "plain.service", "test")
		}
		if (r.Code == 0) != (err == nil) {
			t.Fatalf("%s: %v; systemctl: exit %d %s", verb, err, r.Code, r.Stderr)
		}
		if want, got := hostLinks(t, root), treeLinks(t, s); !maps.Equal(got, want) {
			t.Fatalf("%s made %v, systemctl %v", verb, got, want)
		}
		compareState(t, root, s, "plain.service")
	}
	if err := Mask(s, "own.service", "test"); !errors.Is(err, fs.ErrExist) {
		t.Errorf("mask over a unit file: %v", err)
	}
	if r := systemctl(t, root, "mask", "own.service"); r.Code == 0 {
		t.Error("systemctl masks over a unit file")
	}
}

func TestPresetAgreesWithSystemctl(t *testing.T) {
	oracle.Need(t, "systemctl")
	base := map[string]string{
		lib + "plain.service":                        units["plain.service"],
		lib + "other.service":                        units["plain.service"],
		"/usr/lib/systemd/system-preset/90-x.preset": "# comment\nenable oth*.service\ndisable plain.service\nenable plain.service\n",
		"/usr/lib/systemd/system-preset/99-d.preset": "disable *\n",
	}
	with := func(extra map[string]string) map[string]string {
		m := maps.Clone(base)
		maps.Copy(m, extra)
		return m
	}
	for i, files := range []map[string]string{
		base,
		with(map[string]string{"/etc/systemd/system-preset/10-y.preset": "enable plain.service\n"}),
		with(map[string]string{"/etc/systemd/system-preset/90-x.preset": "-> /dev/null"}),
		with(map[string]string{"/etc/systemd/system-preset/90-x.preset": "  enable pl?in.service  \n"}),
		with(map[string]string{"/etc/systemd/system-preset/91-x.preset": "enable plain.service\n"}),
		{lib + "plain.service": units["plain.service"], lib + "other.service": units["plain.service"]},
	} {
		root, s := host(t, files), stage(files)
		for _, name := range []string{"plain.service", "other.service"} {
			enable, _, err := Preset(s, name)
			if err != nil {
				t.Fatal(err)
			}
			systemctl(t, root, "preset", name)
			want := strings.TrimSpace(systemctl(t, root, "is-enabled", name).Stdout)
			if got := map[bool]string{true: "enabled", false: "disabled"}[enable]; got != want {
				t.Errorf("%d: preset of %s: %s; systemctl: %s", i, name, got, want)
			}
		}
	}
}

func TestEnablePresetComesFirst(t *testing.T) {
	s := stage(map[string]string{"/usr/lib/systemd/system-preset/99-default-disable.preset": "disable *\n"})
	if enable, file, err := Preset(s, "containerd.service"); err != nil || enable || !strings.HasSuffix(file, "99-default-disable.preset") {
		t.Fatalf("before: %v %s %v", enable, file, err)
	}
	if err := EnablePreset(s, "10-node", []string{"containerd.service"}, "test"); err != nil {
		t.Fatal(err)
	}
	if enable, file, err := Preset(s, "containerd.service"); err != nil || !enable || file != "/etc/systemd/system-preset/10-node.preset" {
		t.Fatalf("after: %v %s %v", enable, file, err)
	}
}

func TestValueSeesDropIns(t *testing.T) {
	s := stage(map[string]string{
		lib + "c.service":                                       "[Service]\nDelegate=no\nExecStart=/x\n",
		lib + "c.service.d/20-b.conf":                           "[Service]\nDelegate=yes\n",
		lib + "c.service.d/10-a.conf":                           "[Service]\nDelegate=cpu\n",
		etc + "c.service.d/10-a.conf":                           "-> /dev/null",
		etc + "c.service.d/README":                              "[Service]\nDelegate=no\n",
		"/usr/local/lib/systemd/system/c.service.d/99-none.txt": "x",
	})
	u, err := Find(s, "c.service")
	if err != nil {
		t.Fatal(err)
	}
	if v, ok := u.Value("Service", "Delegate"); v != "yes" || !ok {
		t.Errorf("Delegate=%q", v)
	}
	if want := []string{lib + "c.service.d/20-b.conf"}; !slices.Equal(u.DropIns, want) {
		t.Errorf("drop-ins %v", u.DropIns)
	}
	if err := DropIn(s, "c.service", "90-mine", "[Service]\nDelegate=\n", "test"); err != nil {
		t.Fatal(err)
	}
	u, err = Find(s, "c.service")
	if err != nil {
		t.Fatal(err)
	}
	if v, ok := u.Value("Service", "Delegate"); ok {
		t.Errorf("Delegate=%q after a reset", v)
	}
}

func TestSplitUsrHasLibToo(t *testing.T) {
	s := stage(map[string]string{"/lib/systemd/system/x.service": units["plain.service"]})
	if u, err := Find(s, "x.service"); err != nil || u.Path != "/lib/systemd/system/x.service" {
		t.Errorf("%v %v", u, err)
	}
	s = stage(map[string]string{"/lib": "-> usr/lib", lib + "x.service": units["plain.service"]})
	if u, err := Find(s, "x.service"); err != nil || u.Path != lib+"x.service" {
		t.Errorf("%v %v", u, err)
	}
}

func TestWantsThatIsALink(t *testing.T) {
	const wants = etc + "multi-user.target.wants"
	s := stage(map[string]string{lib + "plain.service": units["plain.service"], wants: "-> /tmp/escape"})
	if err := Enable(s, "plain.service", "test"); err != nil {
		t.Fatal(err)
	}
	if n, err := s.Lstat(wants); err != nil || !n.Mode.IsDir() {
		t.Errorf("a dangling link stays: %v %v", n, err)
	}
	if _, err := s.Lstat("/tmp/escape"); err == nil {
		t.Error("something is made in /tmp")
	}
	s = stage(map[string]string{lib + "plain.service": units["plain.service"], wants: "-> /usr/share/wants", "/usr/share/wants/x.service": "-> /x.service"})
	if err := Enable(s, "plain.service", "test"); err != nil {
		t.Fatal(err)
	}
	if n, err := s.Lstat("/usr/share/wants/plain.service"); err != nil || n.Target != lib+"plain.service" {
		t.Errorf("%v %v", n, err)
	}
	if state, err := IsEnabled(s, "plain.service"); state != Enabled || err != nil {
		t.Errorf("%s %v", state, err)
	}
}

func TestRefusals(t *testing.T) {
	files := map[string]string{
		lib + "run.service":                       service("WantedBy=%b.target\n"),
		lib + "bad.service":                       service("WantedBy=nosuffix\n"),
		lib + "sock.service":                      service("Alias=x.socket\n"),
		lib + "p.service":                         units["plain.service"],
		etc + "multi-user.target.wants/p.service": "a file",
		etc + "r1.service":                        "-> " + etc + "r2.service",
		etc + "r2.service":                        "-> " + etc + "r1.service",
		lib + "zero.service":                      "[Install]\x00",
		lib + "dir.service/x":                     "",
		etc + "gone.service":                      "-> /opt/gone.service",
	}
	for _, name := range []string{"run.service", "bad.service", "sock.service", "p.service", "r1.service", "zero.service", "dir.service", "gone.service", "none.service", "../x.service", "x", ""} {
		s := stage(files)
		if err := Enable(s, name, "test"); err == nil || len(s.Changes()) > 0 {
			t.Errorf("enable %q: %v, %d changes", name, err, len(s.Changes()))
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, text := range units {
		f.Add([]byte(text))
	}
	f.Add([]byte("[Install]\nWantedBy=\\"))
	f.Add([]byte("[Install]\nWantedBy=\"open\n'x y' z\\\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		lines, err := Parse(data)
		if err != nil {
			return
		}
		for _, a := range lines {
			if a.Key == "" || a.Section == "" || strings.ContainsAny(a.Key, "=\n") || strings.Contains(a.Value, "\n") {
				t.Fatalf("%q", a)
			}
		}
		s := stage(map[string]string{lib + "f.service": string(data)})
		if err := Enable(s, "f.service", "fuzz"); err != nil {
			return
		}
		for _, c := range s.Changes() {
			if !strings.HasPrefix(c.Path, "/etc") {
				t.Fatalf("change of %s", c.Path)
			}
		}
		if _, err := IsEnabled(s, "f.service"); err != nil {
			t.Fatal(err)
		}
	})
}
