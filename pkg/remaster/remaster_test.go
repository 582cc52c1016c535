package remaster_test

import (
	"context"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"remaster/internal/hint"
	"remaster/internal/oracle"
	"remaster/internal/testimage"
	"remaster/pkg/disk"
	"remaster/pkg/recipe"
	"remaster/pkg/remaster"
	"remaster/pkg/sink"
	"remaster/pkg/source"
	"remaster/pkg/verify"
)

// open opens an image file.
func open(t testing.TB, path string) *remaster.Image {
	t.Helper()
	f, err := source.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	im, err := remaster.Open(f, "")
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return im
}

// plan makes a plan that must succeed.
func plan(t testing.TB, path string, r recipe.Recipe) *remaster.Plan {
	t.Helper()
	p, err := remaster.MakePlan(context.Background(), open(t, path), r, remaster.Options{})
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// build writes the output of a plan to a new file.
func build(t testing.TB, p *remaster.Plan, f remaster.Format, name string) string {
	t.Helper()
	b, err := p.Output(f)
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), name)
	if err := sink.File(context.Background(), out, b, sink.FileOptions{NoSync: true}); err != nil {
		t.Fatal(err)
	}
	return out
}

// announced returns path to operation of a plan.
func announced(p *remaster.Plan) map[string]string {
	m := map[string]string{}
	for _, c := range p.Changes {
		m[c.Path] = string(c.Op)
	}
	return m
}

// expectDone checks that an image is what remaster wants.
func expectDone(t testing.TB, path string) {
	t.Helper()
	p := plan(t, path, recipe.Recipe{})
	for _, c := range p.Changes {
		t.Errorf("%s: a second plan would %s %s", filepath.Base(path), c.Op, c.Path)
	}
	if verify.Failed(p.Rules) {
		t.Errorf("%s: %v", filepath.Base(path), p.Rules)
	}
}

func TestLayouts(t *testing.T) {
	for _, l := range testimage.Layouts() {
		t.Run(l.Name, func(t *testing.T) {
			base := testimage.Build(t, l.Name)
			before := oracle.SHA256(t, base)
			switch l.Expect {
			case testimage.Edit:
				edit(t, base)
			case testimage.Noop:
				expectDone(t, base)
			case testimage.Refuse:
				refuse(t, base)
			}
			if oracle.SHA256(t, base) != before {
				t.Error("the base was changed")
			}
		})
	}
}

// edit remasters an image, twice, and judges the result.
func edit(t *testing.T, base string) {
	p := plan(t, base, recipe.Recipe{})
	if len(p.Changes) == 0 {
		t.Error("nothing was changed")
	}
	out := build(t, p, "", "node.raw")
	oracle.CheckImage(t, out)
	for _, d := range oracle.Unannounced(oracle.Guest(t, base), oracle.Guest(t, out), announced(p)) {
		t.Errorf("not announced: %v", d)
	}
	expectDone(t, out)
	again := build(t, plan(t, base, recipe.Recipe{}), "", "again.raw")
	if oracle.SHA256(t, out) != oracle.SHA256(t, again) {
		t.Error("the same build gives other bytes the second time")
	}
}

// refuse checks that an image is refused, with a remedy.
func refuse(t *testing.T, base string) {
	f, err := source.Open(base)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	im, err := remaster.Open(f, "")
	if err == nil {
		var p *remaster.Plan
		if p, err = remaster.MakePlan(context.Background(), im, recipe.Recipe{}, remaster.Options{}); err == nil {
			p.Close()
			t.Fatal("it was not refused")
		}
	}
	t.Logf("%v %q", err, hint.Of(err))
	if !remaster.Refused(err) {
		t.Errorf("not told from an error of this machine: %v", err)
	}
	if len(hint.Of(err)) == 0 {
		t.Errorf("no remedy: %v", err)
	}
}

// qemuName is what qemu-img calls a format.
var qemuName = map[remaster.Format]string{remaster.Raw: "raw", remaster.Qcow2: "qcow2", remaster.VHD: "vpc", remaster.VHDFixed: "vpc"}

func TestEveryFormatInAndOut(t *testing.T) {
	raw := testimage.Build(t, "gpt-bls-env")
	tree := oracle.Guest(t, raw)
	want := build(t, plan(t, raw, recipe.Recipe{}), remaster.Raw, "want.raw")
	for _, in := range testimage.Formats {
		base := testimage.Convert(t, raw, in)
		before := oracle.SHA256(t, base)
		for _, f := range slices.Concat([]remaster.Format{""}, remaster.Formats) {
			p := plan(t, base, recipe.Recipe{})
			as := f
			if as == "" {
				as = p.Image.Format
			}
			t.Run(string(in)+" to "+string(f), func(t *testing.T) {
				out := build(t, p, f, "node."+strings.TrimSuffix(string(as), "-fixed"))
				oracle.SameDisk(t, "raw", want, qemuName[as], out)
				oracle.CheckImage(t, out)
				if got := open(t, out).Format; got != as {
					t.Errorf("the output is %s", got)
				}
				expectDone(t, out)
				if f != "" {
					return
				}
				for _, d := range oracle.Unannounced(tree, oracle.Guest(t, out), announced(p)) {
					t.Errorf("not announced: %v", d)
				}
				again := build(t, plan(t, base, recipe.Recipe{}), f, filepath.Base(out))
				if oracle.SHA256(t, out) != oracle.SHA256(t, again) {
					t.Error("the same build gives other bytes the second time")
				}
			})
		}
		if oracle.SHA256(t, base) != before {
			t.Errorf("%s: the base was changed", in)
		}
	}
}

func TestForeignFormatsAreRefusedByName(t *testing.T) {
	for magic, name := range map[string]string{
		"\x1f\x8b\x08": "gzip", "\xfd7zXZ\x00": "xz", "KDMV": "VMDK", "vhdxfile": "VHDX", "<<< Oracle VM VirtualBox Disk Image >>>": "VDI",
	} {
		_, err := remaster.Open(disk.Bytes(magic+strings.Repeat("\x00", 4096)), "")
		if err == nil || !strings.Contains(err.Error(), name) || !remaster.Refused(err) || len(hint.Of(err)) == 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, f := range []remaster.Format{remaster.Qcow2, remaster.VHD} {
		if _, err := remaster.Open(disk.Bytes(make([]byte, 4096)), f); !remaster.Refused(err) {
			t.Errorf("zeros taken for %s: %v", f, err)
		}
	}
	if _, err := remaster.Open(disk.Bytes(nil), ""); !remaster.Refused(err) {
		t.Errorf("an empty file: %v", err)
	}
}
