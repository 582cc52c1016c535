package grub

import (
	"errors"
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"remaster/internal/oracle"
	"remaster/pkg/disk"
)

const oddDefaults = `# GRUB_CMDLINE_LINUX="commented out"
GRUB_CMDLINE_LINUX_DEFAULT="quiet splash"
GRUB_CMDLINE_LINUX="first definition" # the second one counts
export GRUB_TIMEOUT=5
  GRUB_CMDLINE_LINUX='console=ttyS0 dyndbg="file drivers/usb/* +p" it'"'"'s=1'   # comment with "quotes"
GRUB_CMDLINE_LINUX+=" appended=\"a b\" path=\\x price=\$5 \
continued=yes"
GRUB_ENABLE_BLSCFG=true
`

// bashValues returns what bash makes of variables in settings files, one result a file.
func bashValues(t *testing.T, name string, texts []string) []string {
	t.Helper()
	oracle.Need(t, "bash")
	dir := t.TempDir()
	for i, s := range texts {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%06d", i)), []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	script := `for f in "$1"/*; do ( . "$f" >/dev/null 2>&1; printf '%s\0' "$` + name + `" ); done`
	r := oracle.Run(t, "bash", "--norc", "-c", script, "bash", dir)
	out := strings.Split(r, "\x00")
	if len(out) != len(texts)+1 {
		t.Fatalf("bash answers %d times for %d files", len(out)-1, len(texts))
	}
	return out[:len(texts)]
}

func TestDefaultsAsBash(t *testing.T) {
	corpus := []string{
		oddDefaults, testDefaults(testArgs, "true"), "", "\n", "#x", "A=1",
		"GRUB_CMDLINE_LINUX=quiet", "GRUB_CMDLINE_LINUX=", "GRUB_CMDLINE_LINUX=''", `GRUB_CMDLINE_LINUX=""` + "\n",
		"GRUB_CMDLINE_LINUX=quiet\r\nX=1\r\n", "GRUB_CMDLINE_LINUX=\"a b\"\r\n", "GRUB_CMDLINE_LINUX=a\\ b", "GRUB_CMDLINE_LINUX=a\\\nb",
		`GRUB_CMDLINE_LINUX="a"'b'c\"d`, `GRUB_CMDLINE_LINUX='a' X=2; GRUB_CMDLINE_LINUX+=b`, "X='base args'; GRUB_CMDLINE_LINUX=\"$X more ${X}\"",
		`GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX own"`, "GRUB_CMDLINE_LINUX=\"a\nb\"", `GRUB_CMDLINE_LINUX="a\nb $ x\$y \\ \z"`, "export GRUB_CMDLINE_LINUX='x' Y",
		"  GRUB_CMDLINE_LINUX=a#b # c", `GRUB_CMDLINE_LINUX="a" ; GRUB_CMDLINE_LINUX="b"`, "GRUB_CMDLINE_LINUX=x\ntrue\n",
		"if true; then Z=1; fi\nGRUB_CMDLINE_LINUX='z'\n", "GRUB_D=\"$(echo \")\")\"\nGRUB_CMDLINE_LINUX='z'", "GRUB_D=`echo x`\nGRUB_CMDLINE_LINUX=z", "f() {\n Z=1\n}\nGRUB_CMDLINE_LINUX=z",
		"GRUB_CMDLINE_LINUX=a=~b:c", `GRUB_CMDLINE_LINUX="~"`, "GRUB_CMDLINE_LINUX=é\"ü\"", "case x in a) Z=1;; esac\nGRUB_CMDLINE_LINUX=z\n", "\\\nGRUB_CMDLINE_LINUX=x", "GRUB_CMDLINE_LINUX=x;# c",
	}
	corpus = append(corpus, generatedDefaults(400)...)
	before := bashValues(t, varCmdline, corpus)
	var edited []string
	var wants []string
	refused := 0
	for i, s := range corpus {
		d, err := ParseDefaults([]byte(s))
		if err != nil {
			t.Errorf("%q: %v", s, err)
			continue
		}
		if string(d.Bytes()) != s {
			t.Errorf("%q prints as %q", s, d.Bytes())
		}
		got, _, err := d.Get(varCmdline)
		if err != nil || got != before[i] {
			t.Errorf("%q: %q %v, bash says %q", s, got, err, before[i])
			continue
		}
		c := ParseCmdline(got)
		c.Apply(CgroupV2())
		if _, err := d.Apply(varCmdline, CgroupV2()); errors.Is(err, disk.ErrUnsupported) {
			refused++
			continue
		} else if err != nil {
			t.Errorf("%q: %v", s, err)
			continue
		}
		edited, wants = append(edited, string(d.Bytes())), append(wants, c.String())
	}
	if refused > len(corpus)/20 {
		t.Errorf("%d of %d refused", refused, len(corpus))
	}
	for i, got := range bashValues(t, varCmdline, edited) {
		if got != wants[i] {
			t.Errorf("edited %q: bash says %q, want %q", edited[i], got, wants[i])
		}
	}
}

// generatedDefaults makes settings files of random quoting.
func generatedDefaults(n int) []string {
	rnd := rand.New(rand.NewSource(2))
	pick := func(s ...string) string { return s[rnd.Intn(len(s))] }
	words := func() string {
		var b strings.Builder
		for range rnd.Intn(5) {
			b.WriteString(pick("quiet", "console=tty0", "systemd.unified_cgroup_hierarchy=0", "cgroup_no_v1=memory", "systemd.unified_cgroup_hierarchy=1", "--", "ro", "x"))
			b.WriteString(pick(" ", " ", "  ", ""))
		}
		return b.String()
	}
	value := func() string {
		var b strings.Builder
		for range rnd.Intn(4) {
			switch rnd.Intn(5) {
			case 0:
				b.WriteString(`"` + words() + pick("", `\"a b\"`, `\\`, `\$x`, "$B", "${B}", "\\\n") + words() + `"`)
			case 1:
				b.WriteString("'" + words() + pick("", `"q r"`, `$x`, `\`) + "'")
			case 2:
				b.WriteString(strings.ReplaceAll(words(), " ", pick(`\ `, "x")))
			case 3:
				b.WriteString(pick("$B", "${B}", `"$B"`, `\'`, "abc"))
			}
		}
		return b.String()
	}
	var out []string
	for range n {
		var b strings.Builder
		for range 1 + rnd.Intn(4) {
			b.WriteString(pick("", "", "  ", "export ", "# c\n") + pick("GRUB_CMDLINE_LINUX", "GRUB_CMDLINE_LINUX", "B") + pick("=", "=", "+=") + value() + pick("\n", "\n", "; ", " # c\n", "\n\n"))
		}
		out = append(out, b.String())
	}
	return out
}

func TestDefaultsKeepTheRest(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"double quotes", "A=1\nGRUB_CMDLINE_LINUX=\"quiet\" # c\nB=2", "A=1\nGRUB_CMDLINE_LINUX=\"quiet " + testV2 + "\" # c\nB=2"},
		{"single quotes", "GRUB_CMDLINE_LINUX='quiet'", "GRUB_CMDLINE_LINUX='quiet " + testV2 + "'"},
		{"bare", "GRUB_CMDLINE_LINUX=quiet\n", "GRUB_CMDLINE_LINUX=\"quiet " + testV2 + "\"\n"},
		{"bare and odd", "GRUB_CMDLINE_LINUX=a\\ b\n", "GRUB_CMDLINE_LINUX=a\\ b\" " + testV2 + "\"\n"},
		{"empty", "GRUB_CMDLINE_LINUX=\n", "GRUB_CMDLINE_LINUX=\"" + testV2 + "\"\n"},
		{"empty quotes", "GRUB_CMDLINE_LINUX=\"\"\n", "GRUB_CMDLINE_LINUX=\"" + testV2 + "\"\n"},
		{"missing", "A=1\n", "A=1\nGRUB_CMDLINE_LINUX=\"" + testV2 + "\"\n"},
		{"missing, no newline", "A=1", "A=1\nGRUB_CMDLINE_LINUX=\"" + testV2 + "\""},
		{"only the last counts", "GRUB_CMDLINE_LINUX=\"cgroup_no_v1=x\"\nGRUB_CMDLINE_LINUX=\"quiet\"\n", "GRUB_CMDLINE_LINUX=\"cgroup_no_v1=x\"\nGRUB_CMDLINE_LINUX=\"quiet " + testV2 + "\"\n"},
		{"+=", "GRUB_CMDLINE_LINUX=\"cgroup_no_v1=x a\"\nGRUB_CMDLINE_LINUX+=' b'\n", "GRUB_CMDLINE_LINUX=\"a\"\nGRUB_CMDLINE_LINUX+=' b " + testV2 + "'\n"},
		{"in another variable", "B=\"x systemd.unified_cgroup_hierarchy=0 y\"\nGRUB_CMDLINE_LINUX=\"$B\"\n", "B=\"x y\"\nGRUB_CMDLINE_LINUX=\"$B " + testV2 + "\"\n"},
		{"already there", "GRUB_CMDLINE_LINUX=\"" + testV2 + "\"\n", "GRUB_CMDLINE_LINUX=\"" + testV2 + "\"\n"},
		{"odd", oddDefaults, strings.Replace(oddDefaults, "continued=yes", "continued=yes "+testV2, 1)},
		{"words across quotes", `GRUB_CMDLINE_LINUX="a cgroup_no"_v1='mem'"ory b"`, `GRUB_CMDLINE_LINUX="a"''" b ` + testV2 + `"`},
	} {
		d, err := ParseDefaults([]byte(c.in))
		if err == nil {
			_, err = d.Apply(varCmdline, CgroupV2())
		}
		if err != nil || string(d.Bytes()) != c.want {
			t.Errorf("%s: %v\n%s\nwant\n%s", c.name, err, d.Bytes(), c.want)
		}
	}
}

func TestDefaultsRefuse(t *testing.T) {
	for _, s := range []string{
		"GRUB_CMDLINE_LINUX=\"$(cat /etc/x)\"", "GRUB_CMDLINE_LINUX=`cat x`", "GRUB_CMDLINE_LINUX=${A:-b}", "GRUB_CMDLINE_LINUX=$1", "GRUB_CMDLINE_LINUX=$'a'", "GRUB_CMDLINE_LINUX=~/x",
		"GRUB_CMDLINE_LINUX=(a b)", "if true; then\nGRUB_CMDLINE_LINUX=x\nfi", "[ -e x ] && GRUB_CMDLINE_LINUX=x", "f() { GRUB_CMDLINE_LINUX=x; }", "unset GRUB_CMDLINE_LINUX", "eval 'GRUB_CMDLINE_LINUX=x'",
		"(GRUB_CMDLINE_LINUX=x)", "GRUB_CMDLINE_LINUX=x | cat", "cat <<E\nGRUB_CMDLINE_LINUX=x\nE\n", "A=$(x)\nGRUB_CMDLINE_LINUX=$A", "read GRUB_CMDLINE_LINUX < x", "return 0\nGRUB_CMDLINE_LINUX=x",
		": ${GRUB_CMDLINE_LINUX:=x}", "export \"GRUB_CMDLINE_LINUX=x\"", "GRUB_CMDLINE_LINUX=a env true", "A=$A$A$A$A$A$A$A$A\nGRUB_CMDLINE_LINUX[0]=x",
	} {
		d, err := ParseDefaults([]byte(s))
		if err != nil {
			t.Errorf("%q: %v", s, err)
			continue
		}
		if changed, err := d.Apply(varCmdline, CgroupV2()); !errors.Is(err, disk.ErrUnsupported) || changed || string(d.Bytes()) != s {
			t.Errorf("%q: %v, now %q", s, err, d.Bytes())
		}
	}
	for _, s := range []string{"A='x", "A=\"x", "A=$(x", "A=${x", "A=`x", "A=\x00", "A=$'x"} {
		if _, err := ParseDefaults([]byte(s)); !errors.Is(err, disk.ErrCorrupt) {
			t.Errorf("%q: %v", s, err)
		}
	}
	// Doubling a variable again and again ends early.
	d, err := ParseDefaults([]byte("A=xxxxxxxx\n" + strings.Repeat("A=$A$A$A$A\n", 60) + "GRUB_CMDLINE_LINUX=$A\n"))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := d.Get(varCmdline); !errors.Is(err, disk.ErrUnsupported) {
		t.Errorf("4^60 bytes: %v", err)
	}
}

func FuzzDefaultGrub(f *testing.F) {
	f.Add([]byte(oddDefaults))
	f.Add([]byte(testDefaults(testArgs, "true")))
	for _, s := range generatedDefaults(20) {
		f.Add([]byte(s))
	}
	f.Add([]byte("if x; then A=$(y); fi\nGRUB_CMDLINE_LINUX=${A}'\n'"))
	f.Fuzz(func(t *testing.T, data []byte) {
		d, err := ParseDefaults(data)
		if err != nil {
			return
		}
		if string(d.Bytes()) != string(data) {
			t.Fatalf("%q prints as %q", data, d.Bytes())
		}
		if _, err := d.Apply(varCmdline, CgroupV2()); err != nil {
			return
		}
		got, _, err := d.Get(varCmdline)
		if err != nil {
			t.Fatal(err)
		}
		if c := ParseCmdline(got); c.Apply(CgroupV2()) {
			t.Fatalf("%q gives %q", data, got)
		}
	})
}
