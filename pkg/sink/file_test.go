package sink

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"remaster/internal/hint"
	"remaster/pkg/disk"
	"remaster/pkg/source"
)

func random(seed uint64, n int) []byte {
	rng := rand.New(rand.NewPCG(seed, 0))
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
	return p
}

// edited returns an overlay over a sparse file, and what it must read as.
func edited(t *testing.T, dir string) (*disk.Overlay, []byte) {
	t.Helper()
	path := filepath.Join(dir, "base")
	want := make([]byte, 6<<20)
	copy(want[2<<20:], random(1, 1<<20))
	copy(want[5<<20:], random(2, 1<<20))
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	for off := 0; off < len(want); off += 1 << 20 {
		if p := want[off : off+1<<20]; !disk.IsZero(p) {
			if _, err := f.WriteAt(p, int64(off)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	s, err := source.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	v := disk.NewOverlay(s, disk.OverlayOptions{})
	t.Cleanup(func() { v.Close(); s.Close() })
	for i, off := range []int64{100, 3 << 20, 5<<20 - 10} {
		p := random(uint64(10+i), 3000)
		if _, err := v.WriteAt(p, off); err != nil {
			t.Fatal(err)
		}
		copy(want[off:], p)
	}
	if err := v.Grow(7 << 20); err != nil {
		t.Fatal(err)
	}
	return v, append(want, make([]byte, 1<<20)...)
}

func names(t *testing.T, dir string) string {
	t.Helper()
	es, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var s []string
	for _, e := range es {
		s = append(s, e.Name())
	}
	return strings.Join(s, " ")
}

func TestFileHoldsTheBlob(t *testing.T) {
	dir := t.TempDir()
	v, want := edited(t, dir)
	var dealt int64
	out := filepath.Join(dir, "out")
	if err := File(context.Background(), out, v, FileOptions{Progress: func(n int64) { dealt += n }}); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(out); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("content differs (%v)", err)
	}
	if dealt != v.Base().Size() {
		t.Errorf("progress of %d of %d bytes", dealt, v.Base().Size())
	}
	if err := File(context.Background(), filepath.Join(dir, "plain"), disk.Bytes(want), FileOptions{NoSync: true}); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(filepath.Join(dir, "plain")); !bytes.Equal(got, want) {
		t.Error("content of a plain blob differs")
	}
	if got := names(t, dir); got != "base out plain" {
		t.Errorf("folder holds %s", got)
	}
	if fi, _ := os.Stat(out); fi.Mode().Perm()&0o600 != 0o600 {
		t.Errorf("mode %v", fi.Mode())
	}
}

func TestFileRefusesToReplaceUnlessTold(t *testing.T) {
	dir := t.TempDir()
	v, want := edited(t, dir)
	out := filepath.Join(dir, "out")
	if err := os.WriteFile(out, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	err := File(context.Background(), out, v, FileOptions{})
	if !errors.Is(err, fs.ErrExist) || len(hint.Of(err)) == 0 || !strings.Contains(err.Error(), out) {
		t.Errorf("err = %v", err)
	}
	if got, _ := os.ReadFile(out); string(got) != "precious" {
		t.Error("the existing file was changed")
	}
	if err := File(context.Background(), out, v, FileOptions{Overwrite: true}); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(out); !bytes.Equal(got, want) {
		t.Error("the file was not replaced")
	}
	if err := File(context.Background(), filepath.Join(dir, "base"), v, FileOptions{Overwrite: true}); err == nil {
		t.Error("the base was replaced by its own overlay")
	}
	if got := names(t, dir); got != "base out" {
		t.Errorf("folder holds %s", got)
	}
}

type broken struct{ disk.Bytes }

func (broken) ReadAt([]byte, int64) (int, error) { return 0, errors.New("broken medium") }

func TestNothingIsLeftAfterAnError(t *testing.T) {
	dir := t.TempDir()
	out := filepath.Join(dir, "out")
	if err := File(context.Background(), out, broken{disk.Bytes("x")}, FileOptions{}); err == nil {
		t.Error("a broken blob was written")
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := File(ctx, out, disk.Bytes("x"), FileOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if err := File(context.Background(), filepath.Join(dir, "absent", "out"), disk.Bytes("x"), FileOptions{}); err == nil {
		t.Error("wrote into a folder that is not there")
	}
	if got := names(t, dir); got != "" {
		t.Errorf("folder holds %s", got)
	}
}

// A file system without O_TMPFILE or a container without /proc: the temporary file has
// a name until it is published.
func TestNamedTemporaryFile(t *testing.T) {
	dir := t.TempDir()
	out := filepath.Join(dir, "out")
	for _, overwrite := range []bool{false, true} {
		tmp, err := named(dir, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tmp.f.WriteString("new"); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(tmp.publish(out, overwrite), tmp.discard()); err != nil {
			t.Fatal(err)
		}
		if got, _ := os.ReadFile(out); string(got) != "new" || names(t, dir) != "out" {
			t.Errorf("out is %q, folder holds %s", got, names(t, dir))
		}
	}
	tmp, err := named(dir, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	if err := tmp.publish(out, false); !errors.Is(err, fs.ErrExist) {
		t.Errorf("publish over a file: %v", err)
	}
	if err := tmp.discard(); err != nil || names(t, dir) != "out" {
		t.Errorf("discard: %v, folder holds %s", err, names(t, dir))
	}
}
