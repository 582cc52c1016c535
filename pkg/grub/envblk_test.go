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

func mustBlock(t *testing.T, data string) *EnvBlock {
	t.Helper()
	b, err := ParseEnvBlock([]byte(data))
	if err != nil {
		t.Fatal(err)
	}
	if string(b.Bytes()) != data {
		t.Fatalf("%q prints as %q", data, b.Bytes())
	}
	return b
}

// listing is what grub-editenv list prints.
func listing(b *EnvBlock) string {
	var s strings.Builder
	for _, v := range b.vars {
		s.WriteString(v.name + "=" + v.value + "\n")
	}
	return s.String()
}

func TestEnvBlockReads(t *testing.T) {
	for _, c := range []struct{ name, in, want, damage string }{
		{"usual", testBlock("a=1", "b=x y"), "a=1\nb=x y\n", ""},
		{"escapes", testBlock(`a=x\\y\`, `z`), "a=x\\y\nz\n", ""},
		{"comments", testBlock("# note", "a=1", "## b=2", "c="), "a=1\nc=\n", ""},
		{"a name over lines", testBlock("odd", "a=1"), "odd\na=1\n", ""},
		{"doubles", testBlock("a=1", "b=2", "a=3"), "a=1\nb=2\na=3\n", ""},
		{"short", envSignature + "a=1\n#", "a=1\n", "bytes"},
		{"cut", envSignature + "a=1\nb=2", "a=1\n", "not finished"},
		{"long", testBlock("a=1") + strings.Repeat("#", 1024), "a=1\n", ""},
		{"crlf", "# GRUB Environment Block\r\na=1\r\n", "", "signature"},
		{"empty file", "", "", "signature"},
		{"signature alone", envSignature, "", "signature"},
		{"zeros", strings.Repeat("\x00", 1024), "", "signature"},
	} {
		b := mustBlock(t, c.in)
		if got := listing(b); got != c.want || !strings.Contains(b.Damage(), c.damage) || (b.Damage() == "") != (c.damage == "") {
			t.Errorf("%s: %q, damage %q", c.name, got, b.Damage())
		}
		if b.Repair() != (c.damage != "") || listing(b) != c.want || b.Damage() != "" || len(b.Bytes()) < envSize {
			t.Errorf("%s: repaired %q, damage %q, %d bytes", c.name, listing(b), b.Damage(), len(b.Bytes()))
		}
	}
	if _, err := ParseEnvBlock(make([]byte, maxEnvSize+1)); !errors.Is(err, disk.ErrUnsupported) {
		t.Error(err)
	}
}

func TestEnvBlockSetStaysInPlace(t *testing.T) {
	b := mustBlock(t, testBlock("# first", "saved_entry=x", "kernelopts=quiet", "boot_success=0"))
	if err := b.Set("kernelopts", `ro a\b`); err != nil {
		t.Fatal(err)
	}
	if want := testBlock("# first", "saved_entry=x", `kernelopts=ro a\\b`, "boot_success=0"); string(b.Bytes()) != want {
		t.Errorf("%q", b.Bytes())
	}
	if err := b.Set("new", "line\nline"); err != nil {
		t.Fatal(err)
	}
	if v, _ := b.Get("new"); v != "line\nline" || len(b.Bytes()) != 1024 {
		t.Errorf("%q, %d bytes", v, len(b.Bytes()))
	}
	if v, _ := b.Get("kernelopts"); v != `ro a\b` {
		t.Errorf("%q", v)
	}
}

func TestEnvBlockFull(t *testing.T) {
	room := 1024 - len(envSignature) - len("a=\n")
	b := mustBlock(t, testBlock("a=1"))
	if err := b.Set("a", strings.Repeat("x", room)); err != nil {
		t.Fatal(err)
	}
	old := string(b.Bytes())
	if err := b.Set("a", strings.Repeat("x", room+1)); !errors.Is(err, ErrNoRoom) || string(b.Bytes()) != old {
		t.Errorf("one byte too many: %v", err)
	}
	if err := b.Set("b", ""); !errors.Is(err, ErrNoRoom) {
		t.Error(err)
	}
	if err := b.Set("a", "1"); err != nil || string(b.Bytes()) != testBlock("a=1") {
		t.Errorf("shorter: %v %q", err, b.Bytes())
	}
}

func randomBlock(rnd *rand.Rand) string {
	var s strings.Builder
	for range rnd.Intn(6) {
		s.WriteString([]string{"a=", "b=1", "kernelopts=ro quiet ", "# c", `x=\\`, "x=\\\ny", "saved_entry=é"}[rnd.Intn(7)])
		for range rnd.Intn(20) {
			s.WriteByte("ab =\\#"[rnd.Intn(5)])
		}
		s.WriteByte('\n')
	}
	return envSignature + s.String() + strings.Repeat("#", 1024-len(envSignature)-s.Len())
}

// GRUB's own tool reads the same variables before and after an edit, and its own edit
// gives the same bytes.
func TestEnvBlockAsGrubEditenv(t *testing.T) {
	oracle.Need(t, "grub-editenv")
	rnd := rand.New(rand.NewSource(3))
	file := filepath.Join(t.TempDir(), "grubenv")
	list := func(what string, b *EnvBlock) {
		t.Helper()
		if err := os.WriteFile(file, b.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		r := oracle.Try(t, "grub-editenv", file, "list")
		if strings.Contains(b.Damage(), "signature") {
			if r.Code == 0 {
				t.Errorf("%s: grub-editenv takes %q", what, b.Bytes())
			}
		} else if r.Code != 0 || r.Stdout != listing(b) {
			t.Errorf("%s: %q\ngrub-editenv says %q\nwe say %q", what, b.Bytes(), r.Stdout, listing(b))
		}
	}
	for i := range 60 {
		in := randomBlock(rnd)
		if i%4 == 0 {
			in = in[:rnd.Intn(len(in))]
		}
		b := mustBlock(t, in)
		list("read", b)
		b.Repair()
		list("repaired", b)
		name, value := []string{"a", "kernelopts", "new"}[rnd.Intn(3)], fmt.Sprintf(`v\%d x`, i)
		doubles := strings.Count(listing(b), "\n"+name+"=")+strings.Count(listing(b)[:min(len(name)+1, len(listing(b)))], name+"=") > 1
		if err := b.Set(name, value); err != nil {
			t.Fatal(err)
		}
		oracle.Run(t, "grub-editenv", file, "set", name+"="+value)
		theirs, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if string(theirs) != string(b.Bytes()) && !doubles {
			t.Errorf("set %s=%s in %q\ngrub-editenv %q\nours         %q", name, value, in, theirs, b.Bytes())
		}
		list("edited", b)
	}
}

func FuzzGrubenv(f *testing.F) {
	f.Add([]byte(testBlock("saved_entry=x", "kernelopts=ro quiet ")))
	f.Add([]byte(testBlock(`a=\\`, "# x", "b")))
	f.Add([]byte(envSignature + "a=\\"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := ParseEnvBlock(data)
		if err != nil {
			return
		}
		if string(b.Bytes()) != string(data) {
			t.Fatalf("%q prints as %q", data, b.Bytes())
		}
		was := listing(b)
		if b.Repair(); b.Damage() != "" || listing(b) != was {
			t.Fatalf("%q is repaired to %q", data, b.Bytes())
		}
		size := len(b.Bytes())
		if err := b.Set("kernelopts", testV2); err != nil {
			if !errors.Is(err, ErrNoRoom) {
				t.Fatalf("%q: %v", data, err)
			}
			return
		}
		if v, _ := b.Get("kernelopts"); v != testV2 || len(b.Bytes()) != size || b.Damage() != "" {
			t.Fatalf("%q becomes %q", data, b.Bytes())
		}
	})
}
