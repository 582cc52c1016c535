package grub

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"
	"time"

	"remaster/internal/hint"
	"remaster/pkg/disk"
	"remaster/pkg/rootfs"
)

func resolve(t *testing.T, f files) *Boot {
	t.Helper()
	b, err := Resolve(rootfs.NewGuest(rootfs.MemOf(f)))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// menu draws a menu: a line an entry.
func menu(b *Boot) string {
	var s strings.Builder
	for _, c := range b.Configs {
		for _, e := range c.Entries {
			mark := " "
			if e.Default {
				mark = "*"
			}
			fmt.Fprintf(&s, "%s%s", mark, strings.Join(append(e.Menus, e.ID), ">"))
			if e.Rescue {
				s.WriteString(" (rescue)")
			}
			if e.Hidden {
				s.WriteString(" (hidden)")
			}
			for _, l := range e.Lines {
				fmt.Fprintf(&s, " [%s%s]", map[bool]string{true: string(l.Reading) + ": "}[l.Reading != ""], l)
			}
			s.WriteString("\n")
		}
	}
	return s.String()
}

func TestResolveMenus(t *testing.T) {
	two := func(id string) string { return testEntry(id, "id="+id) }
	bls := func(env string, entries files) files {
		return files{grubcfg: testHead + "set kernelopts=\"f g\"\nblscfg\n", grubenv: testBlock(env)}.with(entries)
	}
	dir := "/boot/loader/entries/"
	plain := testHead + "menuentry A --id a { linux /k a }\nsubmenu 'S s' --id s {\n menuentry B --id b { linux /k b }\n menuentry 'C > c' { linux /k c }\n}\nmenuentry D { chainloader +1 }\n"
	for _, c := range []struct {
		name string
		in   files
		want string
	}{
		{"by id", bls("saved_entry=m-1-1", files{dir + "m-2-1.conf": two("2"), dir + "m-1-1.conf": two("1"), dir + "m-0-rescue.conf": two("0-rescue")}), " m-2-1 [id=2]\n*m-1-1 [id=1]\n m-0-rescue (rescue) [id=0-rescue]\n"},
		{"by index", bls("saved_entry=1", files{dir + "m-2-1.conf": two("2"), dir + "m-1-1.conf": two("1")}), " m-2-1 [id=2]\n*m-1-1 [id=1]\n"},
		{"by title", bls("saved_entry=Alibaba Cloud Linux (1) 3 (OpenAnolis Edition)", files{dir + "m-2-1.conf": two("2"), dir + "m-1-1.conf": two("1")}), " m-2-1 [id=2]\n*m-1-1 [id=1]\n"},
		{"once", bls("saved_entry=m-2-1\nnext_entry=m-1-1", files{dir + "m-2-1.conf": two("2"), dir + "m-1-1.conf": two("1")}), " m-2-1 [id=2]\n*m-1-1 [id=1]\n"},
		{"none: the first", bls("x=1", files{dir + "m-2-1.conf": two("2"), dir + "m-1-1.conf": two("1")}), "*m-2-1 [id=2]\n m-1-1 [id=1]\n"},
		{"gone: the first", bls("saved_entry=m-9-9", files{dir + "m-2-1.conf": two("2")}), "*m-2-1 [id=2]\n"},
		{"readings", bls("x=1", files{dir + "a.conf": "linux /k\noptions x\noptions y $kernelopts\n"}), "*a [rhel: x] [spec: x y f g]\n"},
		{"hidden", bls("x=1", files{dir + "b.conf": "\nlinux /k\noptions x\n", dir + "a.conf": two("1")}), " b (hidden) [spec: x]\n*a [id=1]\n"},
		{"quotes", bls("x=1", files{dir + "a.conf": "linux /k\noptions a=\"b c\" 'd e' f\\ g\n"}), "*a [\"a=b c\" \"d e\" \"f g\"]\n"},
		{"not entries", bls("x=1", files{dir + ".conf": two("1"), dir + ".h.conf": two("1"), dir + "a.conf~": two("1"), dir + "d.conf/": "", dir + "n.conf": "-> nowhere", dir + "a.conf": two("1")}), "*a [id=1]\n"},
		{"plain", files{grubcfg: plain, grubenv: testBlock("saved_entry=D")}, " a [a]\n S s>b [b]\n S s>C > c [c]\n*D\n"},
		{"in a submenu", files{grubcfg: plain, grubenv: testBlock("saved_entry=S s>b")}, " a [a]\n*S s>b [b]\n S s>C > c [c]\n D\n"},
		{"in a submenu by index", files{grubcfg: plain, grubenv: testBlock("saved_entry=1>1")}, " a [a]\n S s>b [b]\n*S s>C > c [c]\n D\n"},
		{"behind a submenu", files{grubcfg: plain, grubenv: testBlock("saved_entry=2")}, " a [a]\n S s>b [b]\n S s>C > c [c]\n*D\n"},
		{"a submenu", files{grubcfg: plain, grubenv: testBlock("saved_entry=s")}, " a [a]\n*S s>b [b]\n S s>C > c [c]\n D\n"},
		{"in a submenu by title", files{grubcfg: plain, grubenv: testBlock("saved_entry=S s>C >> c")}, " a [a]\n S s>b [b]\n*S s>C > c [c]\n D\n"},
		{"custom.cfg", files{grubcfg: testHead + "if [ -f $prefix/custom.cfg ]; then\n source $prefix/custom.cfg\nfi\n", "/boot/grub2/custom.cfg": "menuentry x { linux /k c }\n"}, "*x [c]\n"},
		{"a function", files{grubcfg: "function f { linux /k $1 a; }\nmenuentry x { f }\n"}, "*x [a]\n"},
		{"undecided", files{grubcfg: "if search x; then set o=1; else set o=2; fi\nmenuentry x { linux /k o=$o }\n"}, "*x [o=2] [o=1]\n"},
		{"late variables", files{grubcfg: "menuentry x { linux /k $o }\nset o=\"a  b\"\n"}, "*x [a b]\n"},
		{"quoted variable", files{grubcfg: "set o=\"a b\"\nmenuentry x { linux /k \"$o\" x${o}y }\n"}, "*x [\"a b\" xa by]\n"},
	} {
		if got := menu(resolve(t, c.in)); got != c.want {
			t.Errorf("%s:\n%swant\n%s", c.name, got, c.want)
		}
	}
}

func TestInitrdsHaveTheValuesOfVariables(t *testing.T) {
	for env, want := range map[string]string{"": "[/boot/i.img]", "tuned_initrd=/boot/tuned.img": "[/boot/i.img /boot/tuned.img]"} {
		b := resolve(t, files{
			grubcfg: testHead + "blscfg\n", grubenv: testBlock(env),
			"/boot/loader/entries/a.conf": "title A\nlinux /boot/k\ninitrd /boot/i.img $tuned_initrd\noptions ro\n",
		})
		if got := fmt.Sprint(b.Entries()[0].Initrds); got != want {
			t.Errorf("grubenv with %q: %s, want %s", env, got, want)
		}
	}
}

func TestOriginsNameThePlace(t *testing.T) {
	b := resolve(t, blsEnv("quiet").with(files{mainEntry: testEntry(testKver, "$kernelopts debug")}))
	var got []string
	for _, e := range b.Entries() {
		if e.Path == mainEntry {
			for _, w := range e.Lines[0].Words {
				got = append(got, w.Text+" "+w.Origin)
			}
		}
	}
	want := []string{"root=UUID=1114fe9e-2309-4580-b183-d778e6d97397 /boot/grub2/grubenv (kernelopts)", "ro /boot/grub2/grubenv (kernelopts)", "quiet /boot/grub2/grubenv (kernelopts)", "debug " + mainEntry + ":5"}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("%s", strings.Join(got, "\n"))
	}
	b = resolve(t, blsEnv("quiet").with(files{grubenv: ""}))
	if o := b.Entries()[0].Lines[0].Words[0].Origin; o != "/boot/grub2/grub.cfg:27 (set kernelopts)" {
		t.Errorf("the fallback's origin is %q", o)
	}
}

func TestResolveRefuses(t *testing.T) {
	stub := "search --set=dev x\nconfigfile ($dev)/grub2/grub.cfg\n"
	for _, c := range []struct {
		name string
		in   files
		is   error
		says string
	}{
		{"nothing", files{"/etc/": ""}, fs.ErrNotExist, "no grub.cfg"},
		{"a stub alone", files{"/boot/efi/EFI/alinux/grub.cfg": stub}, fs.ErrNotExist, "leads to another"},
		{"a loop", files{grubcfg: "-> grub.cfg"}, rootfs.ErrLoop, grubcfg},
		{"an entry that loops", files{grubcfg: "blscfg", mainEntry: "-> " + mainEntry}, rootfs.ErrLoop, mainEntry},
		{"the folder loops", files{grubcfg: "blscfg", "/boot/loader/entries": "-> entries"}, rootfs.ErrLoop, "entries"},
		{"a syntax error", files{grubcfg: "a\nif x\n"}, disk.ErrCorrupt, grubcfg + ": line "},
		{"recursion", files{grubcfg: "function f { f; }\nf\n"}, disk.ErrUnsupported, "call each other"},
		{"files in a ring", files{grubcfg: "source $prefix/grub.cfg\n"}, disk.ErrUnsupported, "include each other"},
		{"entries without end", files{grubcfg: "function f { menuentry x { f; linux /k; } }\nf\n"}, disk.ErrUnsupported, "more than"},
		{"doubling", files{grubcfg: strings.Repeat("set a=\"x$a$a\"\n", 40) + "menuentry x { linux /k $a }"}, disk.ErrUnsupported, "grows"},
		{"too many values", files{grubcfg: strings.Repeat("if search x; then set a=\"${a}1\"; else set a=\"${a}2\"; fi\n", 10)}, disk.ErrUnsupported, "more than"},
	} {
		_, err := Resolve(rootfs.NewGuest(rootfs.MemOf(c.in)))
		if !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", c.name, err)
		}
		if c.is == fs.ErrNotExist && len(hint.Of(err)) == 0 {
			t.Errorf("%s: no hint", c.name)
		}
	}
}

// What was not said cannot be undone: an argument that an edit cannot reach is an error.
func TestUpdateFailsWhereAnEntryWouldBootWithout(t *testing.T) {
	s := stageOf(files{grubcfg: "for o in systemd.unified_cgroup_hierarchy=0; do true; done\nregexp --set=o x y\nmenuentry x { linux /k \"$o\"; }\n"})
	if _, err := Update(s, CgroupV2()); err != nil {
		t.Errorf("an unknown variable is not set: %v", err)
	}
	s = stageOf(files{grubcfg: "set o=\"stemd.unified_cgroup_hierarchy=0\"\nmenuentry x { linux /k sy$o; }\n"})
	if _, err := Update(s, CgroupV2()); err == nil || !strings.Contains(err.Error(), "would boot with systemd.unified_cgroup_hierarchy=0") {
		t.Errorf("a contradiction put together from pieces: %v", err)
	}
}

func TestUpdateOtherArguments(t *testing.T) {
	s := stageOf(blsInline("console=tty0 quiet splash"))
	e := Edit{Set: []Arg{ParseArg("audit=0")}, Append: []Arg{ParseArg("console=ttyS0,115200n8")}, Delete: []Arg{ParseArg("splash")}}
	r, err := Update(s, e)
	if err != nil {
		t.Fatal(err)
	}
	for _, en := range r.After.Entries() {
		if got, want := en.Lines[0].String(), args("console=tty0 quiet audit=0 console=ttyS0,115200n8"); got != want {
			t.Errorf("%s: %s", en.ID, got)
		}
	}
	if got := text(t, s, "/etc/default/grub"); !strings.Contains(got, `GRUB_CMDLINE_LINUX="console=tty0 quiet audit=0 console=ttyS0,115200n8"`) {
		t.Error(got)
	}
	if _, err := Update(s, Edit{Set: []Arg{ParseArg("a=$x")}}); !errors.Is(err, disk.ErrUnsupported) {
		t.Error(err)
	}
}

// Work and memory stay within bounds whatever the files are.
func TestHostileFilesEndSoon(t *testing.T) {
	big := func(unit string, n int) string { return strings.Repeat(unit, n/len(unit)) }
	for name, f := range map[string]files{
		"settings":  {grubcfg: "menuentry x { linux /k }\n", "/etc/default/grub": big("GRUB_CMDLINE_LINUX+=\"cgroup_no_v1=x \"\n", maxDefaults)},
		"variables": {grubcfg: big("set a=b\nif search x; then set c=d; fi\n", maxScript)},
		"arguments": {grubcfg: "menuentry x { linux /k" + big(" cgroup_no_v1=x", maxScript-100) + "}\n"},
		"entry":     {grubcfg: "blscfg\n", mainEntry: "linux /k\n" + big("options cgroup_no_v1=x\n", maxEntrySize-10)},
		"block":     {grubcfg: "load_env\n" + big("if search x; then true; fi\n", 1<<18), grubenv: envSignature + big("a=b\n", maxEnvSize-100)},
		"names":     {grubcfg: "load_env\n" + big("if search x; then true; fi\n", 1<<18), grubenv: manyNames()},
		"cmdline":   {grubcfg: "menuentry x { linux /k }\n", "/etc/kernel/cmdline": big("cgroup_no_v1=x ", 1<<20)},
	} {
		start := time.Now()
		_, err := Update(stageOf(f), CgroupV2())
		if d := time.Since(start); d > 5*time.Second {
			t.Errorf("%s: %v (%v)", name, d, err)
		} else {
			t.Log(name, d, err)
		}
	}
}

func manyNames() string {
	var b strings.Builder
	b.WriteString(envSignature)
	for i := 0; b.Len() < maxEnvSize-20; i++ {
		fmt.Fprintf(&b, "%x=\n", i)
	}
	return b.String()
}

func BenchmarkUpdate(b *testing.B) {
	f := blsEnv(testArgs)
	for b.Loop() {
		if _, err := Update(stageOf(f), CgroupV2()); err != nil {
			b.Fatal(err)
		}
	}
}
