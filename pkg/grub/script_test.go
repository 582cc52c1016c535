package grub

import (
	"errors"
	"math/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"remaster/internal/oracle"
	"remaster/pkg/disk"
)

// scripts are grub.cfg files with what is odd in the wild.
var scripts = map[string]string{
	"empty":    "",
	"comments": "# a\n\n  # b\necho # c",
	"quotes":   "menuentry 'a \"b\"' --id \"c 'd'\" {\n linux /k a\\ b \"c d\" e'f g'h\n}\n",
	"one line": "menuentry x { linux /k a; initrd /i; }; menuentry y { linux /k b }\n",
	"nested":   "if [ a = b ]; then\n if true; then echo x; elif false; then echo y; else echo z; fi\nfi\nsubmenu s {\n menuentry m {\n linux /k\n }\n}\n",
	"loops":    "for i in 1 2 \"3 4\"; do\n echo $i\ndone\nwhile false; do\n true\ndone\nuntil true; do true; done\n",
	"function": "function f {\n linux /k a\n}\nfunction g { f; }\nmenuentry m { g }\n",
	"continue": "menuentry m {\n linux /k a \\\n  b \\\n  c\n}\n",
	"expand":   "set a=\"$b ${c} \\$d $? ${1}\"\nset e='$f'\necho $\n",
	"words":    "echo if fi done { echo }\n",
	"multi":    "echo 'a\nb' \"c\nd\"\n",
	"usual":    testCfgBLS(args(testArgs)) + testMenu("1", "a b"),
}

func TestScriptAsGrubScriptCheck(t *testing.T) {
	for name, text := range scripts {
		s, err := ParseScript([]byte(text))
		if name == "words" {
			continue // GRUB takes a block there; so do we, if in another shape
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if string(s.Bytes()) != text {
			t.Errorf("%s prints as %q", name, s.Bytes())
		}
	}
	oracle.Need(t, "grub-script-check")
	rnd := rand.New(rand.NewSource(4))
	file := filepath.Join(t.TempDir(), "grub.cfg")
	good := 0
	check := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		r := oracle.Try(t, "grub-script-check", file)
		_, err := ParseScript([]byte(text))
		if r.Code == 0 {
			good++
			if err != nil {
				t.Errorf("%q: %v; grub-script-check takes it", text, err)
			}
		}
	}
	for name, text := range scripts {
		if name != "expand" { // a lone $ is an error to GRUB, not to us
			check(text)
		}
	}
	parts := []string{"echo", "a", "'b c'", "\"d $e\"", "\n", "\n", ";", "if", "[ a ]", "; then", "else", "fi\n", "menuentry x {", "}\n", "linux /k", "\\\n", "# c\n", "$f", "${g}", "set h=i", "while true; do", "done\n", "function p {", "elif"}
	for range 150 {
		var b strings.Builder
		for range 1 + rnd.Intn(12) {
			b.WriteString(parts[rnd.Intn(len(parts))] + " ")
		}
		check(b.String() + "\n")
	}
	if good < len(scripts)+15 {
		t.Errorf("only %d scripts were good", good)
	}
}

func TestScriptEdits(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"linux", "menuentry m {\n\tlinux /k ro quiet\n}\n", "menuentry m {\n\tlinux /k ro quiet " + testV2 + "\n}\n"},
		{"linux without arguments", "menuentry m { linux /k; }\n", "menuentry m { linux /k " + testV2 + "; }\n"},
		{"linuxefi and comment", "menuentry m {\n linuxefi ($root)/k a  # c\n}\n", "menuentry m {\n linuxefi ($root)/k a " + testV2 + "  # c\n}\n"},
		{"continued", "menuentry m {\n linux /k a \\\n  cgroup_no_v1=x \\\n  b\n}\n", "menuentry m {\n linux /k a \\\n  b " + testV2 + "\n}\n"},
		{"quoted words", "menuentry m {\n linux /k 'cgroup_no_v1=x' \"a b\" systemd.unified_cgroup_hierarchy=\"0\"\n}\n", "menuentry m {\n linux /k \"a b\" " + testV2 + "\n}\n"},
		{"init's", "menuentry m {\n linux /k a -- s\n}\n", "menuentry m {\n linux /k a " + testV2 + " -- s\n}\n"},
		{"memtest", "menuentry m {\n linux16 /memtest86+.bin x\n}\n", "menuentry m {\n linux16 /memtest86+.bin x\n}\n"},
		{"initrd and others", "menuentry m {\n linux /k\n initrd /i\n chainloader +1\n}\n", "menuentry m {\n linux /k " + testV2 + "\n initrd /i\n chainloader +1\n}\n"},
		{"submenu", "submenu s {\n menuentry m {\n  linux /k a\n }\n}\n", "submenu s {\n menuentry m {\n  linux /k a " + testV2 + "\n }\n}\n"},
		{"function", "function f {\n linux /k $1\n}\nmenuentry m { f x }\n", "function f {\n linux /k $1 " + testV2 + "\n}\nmenuentry m { f x }\n"},
		{"never run", "function f {\n linux /k\n}\nmenuentry m { true }\n", "function f {\n linux /k " + testV2 + "\n}\nmenuentry m { true }\n"},
		{"both branches", "menuentry m {\n if [ x$grub_platform = xefi ]; then linux /a; else linux /b c; fi\n}\n", "menuentry m {\n if [ x$grub_platform = xefi ]; then linux /a " + testV2 + "; else linux /b c " + testV2 + "; fi\n}\n"},
		{"variable", "set kernelopts=\"a\"\nmenuentry m {\n linux /k $kernelopts b\n}\n", "set kernelopts=\"a " + testV2 + "\"\nmenuentry m {\n linux /k $kernelopts b\n}\n"},
		{"variable, single quotes", "set kernelopts='a'\nmenuentry m {\n linux /k ${kernelopts}\n}\n", "set kernelopts='a " + testV2 + "'\nmenuentry m {\n linux /k ${kernelopts}\n}\n"},
		{"variable, bare", "set kernelopts=a\nmenuentry m {\n linux /k $kernelopts\n}\n", "set kernelopts=a\" " + testV2 + "\"\nmenuentry m {\n linux /k $kernelopts\n}\n"},
		{"variable, empty", "set kernelopts=\"\"\nmenuentry m {\n linux /k $kernelopts\n}\n", "set kernelopts=\"" + testV2 + "\"\nmenuentry m {\n linux /k $kernelopts\n}\n"},
		{"variable in a variable", "set x=\"cgroup_no_v1=y z\"\nset kernelopts=\"a $x\"\nmenuentry m {\n linux /k $kernelopts\n}\n", "set x=\"z\"\nset kernelopts=\"a $x " + testV2 + "\"\nmenuentry m {\n linux /k $kernelopts\n}\n"},
		{"another variable loses what contradicts", "set o=\"systemd.unified_cgroup_hierarchy=0 a\"\nmenuentry m {\n linux /k $o\n}\n", "set o=\"a\"\nmenuentry m {\n linux /k $o " + testV2 + "\n}\n"},
		{"a variable only perhaps set", "if search x; then set kernelopts=\"a\"; fi\nmenuentry m {\n linux /k $kernelopts b\n}\n", "if search x; then set kernelopts=\"a " + testV2 + "\"; fi\nmenuentry m {\n linux /k $kernelopts b " + testV2 + "\n}\n"},
	} {
		s := stageOf(files{grubcfg: c.in})
		if _, err := Update(s, CgroupV2()); err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		got := text(t, s, grubcfg)
		if got != c.want {
			t.Errorf("%s:\n%s\nwant\n%s", c.name, got, c.want)
		}
		if oracle.Find("grub-script-check") != "" {
			file := filepath.Join(t.TempDir(), "grub.cfg")
			if err := os.WriteFile(file, []byte(got), 0o600); err != nil {
				t.Fatal(err)
			}
			oracle.Run(t, "grub-script-check", file)
		}
		before := len(s.Changes())
		text1 := got
		if _, err := Update(s, CgroupV2()); err != nil || len(s.Changes()) != before || text(t, s, grubcfg) != text1 {
			t.Errorf("%s: a second time: %v\n%s", c.name, err, text(t, s, grubcfg))
		}
	}
}

func TestScriptRefuses(t *testing.T) {
	for _, s := range []string{"menuentry x {\n", "}\n", "if true; then\n", "fi\n", "echo 'x", "echo \"x", "a | b", "a && b", "while true; do", "for i in 1; echo", "echo \x00", "if true; echo; fi", strings.Repeat("menuentry x {\n", 100)} {
		if _, err := ParseScript([]byte(s)); !errors.Is(err, disk.ErrCorrupt) || !strings.Contains(err.Error(), "line ") {
			t.Errorf("%q: %v", s, err)
		}
	}
	if _, err := ParseScript(make([]byte, maxScript+1)); !errors.Is(err, disk.ErrUnsupported) {
		t.Error(err)
	}
}

func FuzzGrubCfg(f *testing.F) {
	for _, s := range scripts {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := ParseScript(data)
		if err != nil {
			return
		}
		if string(s.Bytes()) != string(data) {
			t.Fatalf("%q prints as %q", data, s.Bytes())
		}
		st := stageOf(files{grubcfg: string(data), grubenv: testBlock("kernelopts=a", "saved_entry=1>0"), mainEntry: testEntry("1", "$kernelopts $b")})
		if _, err := Update(st, CgroupV2()); err != nil {
			return
		}
		got := text(t, st, grubcfg)
		if _, err := Update(st, CgroupV2()); err != nil || text(t, st, grubcfg) != got {
			t.Fatalf("%q becomes %q, then %v %q", data, got, err, text(t, st, grubcfg))
		}
	})
}
