package rootfs

import (
	"io/fs"
	"strings"
	"testing"
)

const fileContexts = `# a policy
/.*	system_u:object_r:default_t:s0
/etc/.*	system_u:object_r:etc_t:s0
/etc(/.*)?	system_u:object_r:etc_t:s0
/etc/containerd(/.*)?	system_u:object_r:container_config_t:s0
/usr/(.*/)?bin(/.*)?	system_u:object_r:bin_t:s0
/etc/systemd/system/.*	-l	system_u:object_r:unit_link_t:s0
/etc/x\.conf	--	system_u:object_r:x_t:s0
/etc/x.*	system_u:object_r:y_t:s0
/nolabel/.*	<<none>>
/a|/b/c	system_u:object_r:ab_t:s0
/look(?=ahead)	system_u:object_r:bad_t:s0
/boot/grub2?/.*	--	system_u:object_r:boot_t:s0
/var/run/.*	system_u:object_r:var_run_t:s0
`

func labelled(label string) map[string][]byte {
	return map[string][]byte{selinux: append([]byte(label), 0)}
}

func labelledTree(policy bool) *Mem {
	m := MemOf(map[string]string{"/nolabel/": "", "/data/": "", "/esp/": ""})
	for p, l := range map[string]string{"/": "root_t", "/etc": "etc_t", "/nolabel": "parent_t", "/data": "data_t"} {
		m.Set(p, &Node{Mode: fs.ModeDir | 0o755, Xattrs: labelled(l)})
	}
	for p, l := range map[string]string{"/data/a": "rare_t", "/data/b": "often_t", "/data/c": "often_t"} {
		m.Set(p, &Node{Mode: 0o644, Xattrs: labelled(l)})
	}
	if policy {
		m.Set("/etc/selinux/config", &Node{Mode: 0o644, Content: bytesOf("SELINUX=disabled\nSELINUXTYPE=mine\n")})
		m.Set("/etc/selinux/mine/contexts/files/file_contexts", &Node{Mode: 0o644, Content: bytesOf(fileContexts)})
		m.Set("/etc/selinux/mine/contexts/files/file_contexts.local", &Node{Mode: 0o644, Content: bytesOf("/etc/local.*	local_t\n")})
		m.Set("/etc/selinux/mine/contexts/files/file_contexts.subs_dist", &Node{Mode: 0o644, Content: bytesOf("# alias\n/run /var/run\n/run/bin /usr/bin\n/usr/local/sbin /usr/bin\n")})
	}
	return m
}

func labelOf(t *testing.T, s *Stage, p string) (label, rule string) {
	t.Helper()
	for _, c := range s.Changes() {
		if c.Path == p {
			return strings.TrimSuffix(string(c.After.Xattrs[selinux]), "\x00"), c.Label
		}
	}
	t.Fatalf("no change of %s", p)
	return "", ""
}

func TestLabelsByPolicy(t *testing.T) {
	s := NewStage(NewGuest(labelledTree(true)))
	for p, want := range map[string]string{
		"/etc/containerd/config.toml":  "container_config_t",
		"/etc/plain":                   "etc_t",
		"/usr/local/lib/bin/tool":      "bin_t",
		"/usr/local/sbin/tool":         "bin_t", // by .subs_dist
		"/run/bin/x":                   "bin_t", // the more special line comes later
		"/run/x":                       "var_run_t",
		"/etc/x.conf":                  "x_t", // a path goes before a pattern, wherever it stands
		"/etc/xyz":                     "y_t",
		"/etc/local.d":                 "local_t",
		"/b/c":                         "ab_t",
		"/boot/grub/x":                 "boot_t",
		"/boot/grub2/x":                "boot_t",
		"/look":                        "default_t",
		"/etc/systemd/system/w/a.unit": "etc_t", // -l is for links only
	} {
		ok(t, s.WriteFile(p, nil, ""))
		if got, rule := labelOf(t, s, p); !strings.Contains(":"+got+":", ":"+want+":") || !strings.HasPrefix(rule, "file_contexts /") {
			t.Errorf("%s: %s by %s, want %s", p, got, rule, want)
		}
	}
	ok(t, s.Symlink("/x", "/etc/systemd/system/w/l", ""))
	if got, _ := labelOf(t, s, "/etc/systemd/system/w/l"); !strings.Contains(got, "unit_link_t") {
		t.Error(got)
	}
	if got, rule := labelOf(t, s, "/etc/containerd"); !strings.Contains(got, "container_config_t") || rule != "file_contexts /etc/containerd(/.*)?" {
		t.Error(got, rule)
	}
	ok(t, s.WriteFile("/nolabel/x", nil, ""))
	if got, rule := labelOf(t, s, "/nolabel/x"); got != "parent_t" || rule != "folder /nolabel" {
		t.Error(got, rule)
	}
}

func TestLabelsWithoutPolicy(t *testing.T) {
	s := NewStage(NewGuest(labelledTree(false)))
	ok(t, s.WriteFile("/data/new", nil, ""))
	if got, rule := labelOf(t, s, "/data/new"); got != "often_t" || rule != "sibling /data/b" {
		t.Error(got, rule)
	}
	ok(t, s.WriteFile("/data/d/new", nil, ""))
	for _, p := range []string{"/data/d", "/data/d/new"} {
		if got, rule := labelOf(t, s, p); got != "data_t" || rule != "folder "+parent(p) {
			t.Error(p, got, rule)
		}
	}
	ok(t, s.WriteFile("/esp/x", nil, "")) // a folder without a label itself
	if got, rule := labelOf(t, s, "/esp/x"); got != "" || rule != "" {
		t.Error(got, rule)
	}
}

func TestNoLabelsWhereTheTreeHasNone(t *testing.T) {
	m := MemOf(map[string]string{"/etc/selinux/mine/contexts/files/file_contexts": fileContexts})
	s := NewStage(NewGuest(m))
	ok(t, s.WriteFile("/etc/plain", nil, ""))
	if got, rule := labelOf(t, s, "/etc/plain"); got != "" || rule != "" {
		t.Error(got, rule)
	}
	g := NewGuest(labelledTree(true))
	esp := NewMem()
	esp.NoXattrs = true
	ok(t, g.Mount("/esp", esp))
	s = NewStage(g)
	ok(t, s.WriteFileMode("/esp/x", nil, 0o600, ""))
	ok(t, s.MkdirAll("/esp/d", 0o700, ""))
	for _, c := range s.Changes() {
		if c.After.Xattrs != nil || c.Label != "" || c.After.Mode&0o777 != 0o644 && c.After.Mode != fs.ModeDir|0o755 {
			t.Errorf("%+v", c.After)
		}
	}
	if err := s.Symlink("x", "/esp/l", ""); err == nil {
		t.Error("a link on a volume without links")
	}
	ok(t, Apply(g, s.Changes(), testTime))
}

func TestExistingLabelsAreKept(t *testing.T) {
	s := NewStage(NewGuest(labelledTree(true)))
	ok(t, s.WriteFile("/data/a", []byte("new"), ""))
	ok(t, s.Put("/data/b", &Node{Mode: 0o755, Content: bytesOf("b")}, ""))
	ok(t, s.Put("/data/n", &Node{Mode: 0o755, Xattrs: labelled("given_t")}, ""))
	for p, want := range map[string]string{"/data/a": "rare_t", "/data/b": "often_t", "/data/n": "given_t"} {
		if got, rule := labelOf(t, s, p); got != want || rule != "" {
			t.Error(p, got, rule)
		}
	}
}

func FuzzFileContexts(f *testing.F) {
	f.Add(fileContexts, "/etc/x")
	f.Fuzz(func(t *testing.T, text, p string) {
		m := labelledTree(true)
		m.Set("/etc/selinux/mine/contexts/files/file_contexts", &Node{Mode: 0o644, Content: bytesOf(text)})
		l, err := newLabeller(NewGuest(m))
		if err != nil {
			t.Fatal(err)
		}
		if sp := l.find(clean(p), 0); sp != nil && !strings.HasPrefix(clean(p), sp.prefix) && len(l.subs[1]) == 0 {
			t.Errorf("%q does not begin with %q", p, sp.prefix)
		}
	})
}
