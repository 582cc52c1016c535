package qcow2

import (
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"remaster/internal/oracle"
	"remaster/pkg/disk"
)

// sparse is a disk in memory whose runs of zeros, in units of 512 bytes, are Zero.
type sparse struct{ disk.Bytes }

func (s sparse) Extents(r disk.Range) iter.Seq2[disk.Extent, error] {
	return func(yield func(disk.Extent, error) bool) {
		r := r.Intersect(disk.Whole(s))
		for at := r.Off; at < r.End(); {
			isZ, end := isZero(s.Bytes[at:min(at+512, r.End())]), at
			for end < r.End() && isZero(s.Bytes[end:min(end+512, r.End())]) == isZ {
				end = min(end+512, r.End())
			}
			if !yield(disk.Extent{Range: disk.Range{Off: at, Len: end - at}, Zero: isZ}, nil) {
				return
			}
			at = end
		}
	}
}

func TestEncodedImagesAreCleanAndEqual(t *testing.T) {
	for _, size := range []int{512, 65536, 3<<20 + 512} {
		guest := guestBytes(20, size)
		raw := filepath.Join(t.TempDir(), "raw")
		if err := os.WriteFile(raw, guest, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, cluster := range []int64{0, 512, 4096, 2 << 20} {
			t.Run(fmt.Sprintf("%d-%d", size, cluster), func(t *testing.T) {
				e, err := Encode(sparse{guest}, EncodeOptions{cluster})
				if err != nil {
					t.Fatal(err)
				}
				image := filepath.Join(t.TempDir(), "image")
				writeFile(t, image, e)
				oracle.CheckQcow2(t, image)
				oracle.SameDisk(t, "qcow2", image, "raw", raw)
				if u, err := Check(e); err != nil || u.Leaked != 0 {
					t.Errorf("check: %+v, %v", u, err)
				}
				wantBytes(t, "own reader", readAll(t, open(t, e)), guest)

				whole := readAll(t, e)
				rng := rand.New(rand.NewPCG(21, 21))
				for range 100 {
					off := rng.IntN(len(whole))
					p := make([]byte, min(1+rng.IntN(1<<rng.IntN(20)), len(whole)-off))
					if err := disk.ReadFull(e, p, int64(off)); err != nil {
						t.Fatal(err)
					}
					wantBytes(t, fmt.Sprintf("%d bytes at %d", len(p), off), p, whole[off:off+len(p)])
				}
			})
		}
	}
}

// hole is a large disk with a little data at chosen places.
type hole struct {
	size int64
	data []disk.Range
}

func (h hole) Size() int64 { return h.size }

func (h hole) ReadAt(p []byte, off int64) (int, error) {
	for i := range p {
		p[i] = 0
		for _, r := range h.data {
			if at := off + int64(i); at >= r.Off && at < r.End() {
				p[i] = byte(at) | 1
			}
		}
	}
	return len(p), nil
}

func (h hole) Extents(r disk.Range) iter.Seq2[disk.Extent, error] {
	return func(yield func(disk.Extent, error) bool) {
		at := int64(0)
		for _, d := range h.data {
			if !yield(disk.Extent{Range: disk.Range{Off: at, Len: d.Off - at}, Zero: true}, nil) || !yield(disk.Extent{Range: d}, nil) {
				return
			}
			at = d.End()
		}
		yield(disk.Extent{Range: disk.Range{Off: at, Len: h.size - at}, Zero: true}, nil)
	}
}

func TestEncodeLeavesHolesOut(t *testing.T) {
	d := hole{1 << 40, []disk.Range{{Off: 5 << 30, Len: 100_000}, {Off: 1<<40 - 1<<30, Len: 70_000}}}
	e, err := Encode(d, EncodeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if e.Size() > 2<<20 {
		t.Errorf("image of %d bytes", e.Size())
	}
	image := filepath.Join(t.TempDir(), "image")
	writeFile(t, image, e)
	oracle.CheckQcow2(t, image)
	m := open(t, openFile(t, image))
	got, want := make([]byte, 200_000), make([]byte, 200_000)
	for _, r := range d.data {
		err1 := disk.ReadFull(m, got, r.Off-1000)
		err2 := disk.ReadFull(d, want, r.Off-1000)
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		wantBytes(t, "around data", got, want)
	}
}

func TestEncodeRefuses(t *testing.T) {
	for _, c := range []struct{ size, cluster int64 }{{0, 0}, {511, 0}, {1 << 20, 256}, {1 << 20, 4 << 20}, {1 << 20, 65535}, {1 << 20, -1}, {1 << 50, 512}} {
		if _, err := Encode(hole{size: c.size}, EncodeOptions{c.cluster}); err == nil {
			t.Errorf("disk of %d bytes with clusters of %d was encoded", c.size, c.cluster)
		}
	}
}
