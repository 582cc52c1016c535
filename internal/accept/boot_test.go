package accept

import (
	"os"
	"path/filepath"
	"testing"

	"remaster/internal/oracle"
)

// boot is one image to build and boot.
type boot struct {
	variant, ext string // of the fixture
	uefi         bool
}

// bootMatrix is every bootable fixture from every format.
func bootMatrix() []boot {
	var out []boot
	for _, v := range []string{"bls-gpt", "inline-gpt", "cfg-mbr"} {
		for _, ext := range []string{".z.qcow2", ".qcow2", ".vhd"} {
			out = append(out, boot{v, ext, false})
			if v == "bls-gpt" {
				out = append(out, boot{v, ext, true})
			}
		}
	}
	return out
}

// fixture returns a bootable image, made unless it is there already.
func (s *site) fixture(t *testing.T, variant, ext string) string {
	t.Helper()
	work := os.Getenv("REMASTER_FIXTURES")
	if work == "" {
		work = filepath.Join(s.work, "fixtures")
	}
	image := filepath.Join(work, "images", variant+ext)
	if _, err := os.Stat(image); err == nil {
		return image
	}
	if os.Geteuid() != 0 {
		oracle.Missing(t, "a bootable fixture is made by root; there is no "+image)
	}
	t.Logf("making the bootable fixtures of %s in %s", variant, work)
	if out, code := s.script(t, []string{"WORK=" + work, "FORMATS=qcow2 zqcow2 vhd"}, "make-fixture.sh", variant); code != 0 {
		t.Fatalf("make-fixture.sh: exit %d\n%s", code, out)
	}
	return image
}

// bootOne builds the node image as a user without privilege, looks at it, and boots it.
func (s *site) bootOne(t *testing.T, b boot) {
	t.Helper()
	base := s.fixture(t, b.variant, b.ext)
	before := oracle.SHA256(t, base)
	dir := s.outDir(t)
	node := filepath.Join(dir, "node"+b.ext)
	changes := s.plan(t, dir, base)
	s.must(t, dir, "build", base, "-o", node)
	if !b.uefi { // the same image
		oracle.CheckImage(t, node)
		expectOnlyAnnounced(t, base, node, changes)
		s.expectNothingToDo(t, dir, node)
	}
	args := []string{"--expect", "v2"}
	if b.uefi {
		args = append(args, "--uefi")
	}
	out, code := s.script(t, nil, "boot-check.sh", append(args, node)...)
	t.Logf("boot-check.sh: exit %d\n%s", code, out)
	if code != 0 {
		t.Errorf("%s%s did not boot as expected", b.variant, b.ext)
	}
	if oracle.SHA256(t, base) != before {
		t.Error("the base was changed")
	}
}

// TestBoot boots one result: a BLS image of the format that is offered for download.
func TestBoot(t *testing.T) {
	s := open(t)
	s.bootOne(t, boot{"bls-gpt", ".z.qcow2", false})
}

// TestBootMatrix boots all.
func TestBootMatrix(t *testing.T) {
	s := open(t)
	if os.Getenv("REMASTER_BOOT") != "all" {
		t.Skip("`make boot-test` boots all")
	}
	for _, b := range bootMatrix() {
		name := b.variant + b.ext
		if b.uefi {
			name += "-uefi"
		}
		t.Run(name, func(t *testing.T) { s.bootOne(t, b) })
	}
}
