package grub

import (
	"math/rand"
	"slices"
	"strings"
	"testing"
)

func TestCmdlineEdits(t *testing.T) {
	set := func(arg string) Edit { return Edit{Set: []Arg{ParseArg(arg)}} }
	add := func(arg string) Edit { return Edit{Append: []Arg{ParseArg(arg)}} }
	del := func(arg string) Edit { return Edit{Delete: []Arg{ParseArg(arg)}} }
	for _, c := range []struct {
		name, in, want string
		e              Edit
	}{
		{"set appends", "ro quiet", "ro quiet a=1", set("a=1")},
		{"set into nothing", "", "a=1", set("a=1")},
		{"set into space", " \t", "a=1 \t", set("a=1")},
		{"set keeps what is right", "a=1  ro", "a=1  ro", set("a=1")},
		{"set knows quotes", `a="1" ro`, `a="1" ro`, set("a=1")},
		{"set knows a quoted word", `"a=1" ro`, `"a=1" ro`, set("a=1")},
		{"set replaces", "a=0 ro", "ro a=1", set("a=1")},
		{"set removes doubles", "a=1 ro a=1", "ro a=1", set("a=1")},
		{"set removes every other", "x a=0  ro  a=2 y ", "x  ro y a=1 ", set("a=1")},
		{"set takes - for _", "a-b=0 ro", "ro a_b=1", set("a_b=1")},
		{"set keeps look-alikes", "xa=0 a.b=0 a ab", "xa=0 a.b=0 ab a=1", set("a=1")},
		{"set bare", "debug=1", "debug", set("debug")},
		{"set before init's", "ro -- single", "ro a=1 -- single", set("a=1")},
		{"set before a first --", "-- single", "a=1 -- single", set("a=1")},
		{"what is init's does not count", "ro -- a=1", "ro a=1 --", set("a=1")},
		{"set the only word", "a=0", "a=1", set("a=1")},
		{"set the only word, spaces stay", " a=0 ", " a=1 ", set("a=1")},
		{"set before an open quote", `ro x="y z`, `ro a=1 x="y z`, set("a=1")},
		{"set keeps the tail", "ro \n", "ro a=1 \n", set("a=1")},
		{"set quotes", "ro", `ro a="x y;z"`, set("a=x y;z")},
		{"add keeps others", "console=tty0", "console=tty0 console=ttyS0,115200n8", add("console=ttyS0,115200n8")},
		{"add once", "console=tty0 ro", "console=tty0 ro", add("console=tty0")},
		{"delete all", "a ro a=1 a=2", "ro", del("a")},
		{"delete one value", "a=1 a=2 a", "a=2 a", del("a=1")},
		{"delete nothing", "ab=1  ro", "ab=1  ro", del("a")},
		{"quoted spaces are one word", `d="file a +p; file b +p" a=0 x`, `d="file a +p; file b +p" x a=1`, set("a=1")},
		{"variables are words", "$kernelopts ${x} a=0", "$kernelopts ${x} a=1", set("a=1")},
		{"the preset", "ro systemd.unified_cgroup_hierarchy=0 systemd.legacy_systemd_cgroup_controller systemd.legacy_systemd_cgroup_controller=yes cgroup_no_v1=memory,cpu my.systemd.unified_cgroup_hierarchy=0 xcgroup_no_v1=all quiet",
			"ro my.systemd.unified_cgroup_hierarchy=0 xcgroup_no_v1=all quiet " + testV2, CgroupV2()},
	} {
		l := ParseCmdline(c.in)
		changed := l.Apply(c.e)
		if l.String() != c.want || changed != (c.in != c.want) {
			t.Errorf("%s: %q gives %q (changed %v), want %q", c.name, c.in, l, changed, c.want)
		}
		if l.Apply(c.e) {
			t.Errorf("%s: a second time %q", c.name, l)
		}
	}
}

func TestCmdlineReads(t *testing.T) {
	c := ParseCmdline(`root=/dev/vda1 "a=b c" d="e f"g h=i=j =k console=tty0 console=ttyS0 -- console=x`)
	want := []Arg{{"root", "/dev/vda1", true}, {"a", "b c", true}, {"d", "e fg", true}, {"h", "i=j", true}, {"=k", "", false}, {"console", "tty0", true}, {"console", "ttyS0", true}}
	if got := c.Args(); !slices.Equal(got, want) {
		t.Errorf("args %q", got)
	}
	if v, ok := c.Get("console"); v != "ttyS0" || !ok {
		t.Errorf("console %q %v", v, ok)
	}
	if _, ok := c.Get("consol"); ok {
		t.Error("half a name is found")
	}
	if got := c.Words(); got[1] != `"a=b c"` || got[2] != `d="e f"g` || len(got) != 9 {
		t.Errorf("words %q", got)
	}
}

func TestEditCheckRefuses(t *testing.T) {
	a := ParseArg
	for name, e := range map[string]Edit{
		"set twice":      {Set: []Arg{a("a=1"), a("a=2")}},
		"set and delete": {Set: []Arg{a("a=1")}, Delete: []Arg{a("a")}},
		"add and delete": {Append: []Arg{a("a=1")}, Delete: []Arg{a("a=1")}},
		"no name":        {Set: []Arg{a("")}},
		"init's":         {Append: []Arg{a("--")}},
		"a quote":        {Set: []Arg{{"a", `x"y`, true}}},
		"a variable":     {Set: []Arg{a("a=$b")}},
		"a newline":      {Set: []Arg{a("a=b\nc")}},
		"a space":        {Set: []Arg{a("a b=c")}},
	} {
		if e.Check() == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if err := (Edit{Set: []Arg{a("a=1")}, Delete: []Arg{a("a=0")}}).Check(); err != nil {
		t.Error(err)
	}
}

func TestVerdict(t *testing.T) {
	for in, want := range map[string]Mode{
		"": ModeDefault, "quiet": ModeDefault,
		"systemd.unified_cgroup_hierarchy": ModeUnified, "systemd.unified_cgroup_hierarchy=yes": ModeUnified, "systemd.unified_cgroup_hierarchy=ON": ModeUnified,
		"systemd.unified_cgroup_hierarchy=0": ModeLegacy, "systemd.unified_cgroup_hierarchy=maybe": ModeDefault,
		"systemd.unified_cgroup_hierarchy=0 systemd.unified_cgroup_hierarchy=1": ModeUnified, "systemd.unified_cgroup_hierarchy=1 systemd.unified_cgroup_hierarchy=0": ModeLegacy,
		"systemd.unified_cgroup_hierarchy=0 systemd.unified_cgroup_hierarchy":             ModeLegacy, // a bare one does not undo a value
		"systemd.unified-cgroup-hierarchy=1":                                              ModeUnified,
		"systemd.unified_cgroup_hierarchy=no systemd.legacy_systemd_cgroup_controller=no": ModeHybrid,
		"systemd.legacy_systemd_cgroup_controller":                                        ModeLegacy,
		"my.systemd.unified_cgroup_hierarchy=1":                                           ModeDefault,
		"systemd.unified_cgroup_hierarchy=1 systemd.legacy_systemd_cgroup_controller":     ModeUnified,
	} {
		if got := Verdict(strings.Fields(in)); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
	for in, want := range map[string]bool{"cgroup_no_v1=all": true, "cgroup_no_v1=memory,all": true, "cgroup_no_v1=memory": false, "-- cgroup_no_v1=all": false, "xcgroup_no_v1=all": false, "": false} {
		if NoV1(strings.Fields(in)) != want {
			t.Errorf("%q: NoV1 is %v", in, !want)
		}
	}
}

// An edit leaves exactly what it says, whatever the line: every set key once, other
// words as they were and in order, and a second time changes nothing.
func TestCmdlineEditProperty(t *testing.T) {
	rnd := rand.New(rand.NewSource(1))
	parts := []string{"a=1", "a=0", "a", "b", "b=1", "c=x", `c="y z"`, `"a=2"`, "--", "$v", " ", "  ", "\t", "x", "A=1", "a-b=1", "a_b=2", `d="`}
	for range 20000 {
		var in strings.Builder
		for range rnd.Intn(9) {
			in.WriteString(parts[rnd.Intn(len(parts))])
			if rnd.Intn(4) > 0 {
				in.WriteByte(' ')
			}
		}
		e := Edit{Set: []Arg{ParseArg("a=1"), ParseArg("a_b=3")}, Append: []Arg{ParseArg("c=x")}, Delete: []Arg{ParseArg("b")}}
		c := ParseCmdline(in.String())
		if c.String() != in.String() {
			t.Fatalf("%q prints as %q", in.String(), c)
		}
		kept := func(c *Cmdline) []string {
			var out []string
			for i, w := range c.Words() {
				a := c.words[i].arg
				if !SameKey(a.Key, "a") && !SameKey(a.Key, "a_b") && a.Key != "b" && a != ParseArg("c=x") {
					out = append(out, w)
				}
			}
			return out
		}
		before := kept(c)
		c.Apply(e)
		if after := kept(c); !slices.Equal(before, after) {
			t.Fatalf("%q: %q, other words %q became %q", in.String(), c, before, after)
		}
		if a, ab := c.Values("a"), c.Values("a_b"); len(a) != 1 || a[0].Value != "1" || len(ab) != 1 || ab[0].Value != "3" || len(c.Values("b")) != 0 || !slices.Contains(c.Args(), ParseArg("c=x")) {
			t.Fatalf("%q gives %q", in.String(), c)
		}
		if text := c.String(); c.Apply(e) {
			t.Fatalf("%q: a second edit of %q gives %q", in.String(), text, c)
		}
	}
}

func FuzzCmdline(f *testing.F) {
	for _, s := range []string{"", "ro quiet", `a="b c" -- x`, `x="`, "systemd.unified_cgroup_hierarchy=0\tcgroup_no_v1=memory"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c := ParseCmdline(s)
		if c.String() != s {
			t.Fatalf("%q prints as %q", s, c)
		}
		c.Apply(CgroupV2())
		if v := c.Values(keyUnified); len(v) != 1 || v[0].Value != "1" {
			t.Fatalf("%q gives %q", s, c)
		}
		if text := c.String(); c.Apply(CgroupV2()) {
			t.Fatalf("%q: a second edit of %q gives %q", s, text, c)
		}
	})
}
