package testimage_test

import (
	"flag"
	"os"
	"path/filepath"
	"testing"

	"remaster/internal/oracle"
	"remaster/internal/testimage"
)

//go:generate go test -run TestDemoImageIsWhatTheGeneratorMakes -update

var update = flag.Bool("update", false, "write the demo image anew")

const demo = "../../testdata/demo/alinux3-demo.qcow2"

func TestDemoImageIsWhatTheGeneratorMakes(t *testing.T) {
	made := testimage.Demo(t)
	if *update {
		b, err := os.ReadFile(made)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Dir(demo), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(demo, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	fi, err := os.Stat(demo)
	if err != nil {
		t.Fatal(err)
	}
	if fi.Size() > 400<<10 {
		t.Errorf("%s has %d bytes, too many for git", demo, fi.Size())
	}
	oracle.CheckImage(t, demo)
	// Not byte for byte: another version of e2fsprogs or zlib may make other bytes of
	// the same files.
	for _, d := range oracle.Diff(oracle.Guest(t, made), oracle.Guest(t, demo)) {
		t.Error(d)
	}
}
