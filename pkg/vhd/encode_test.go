package vhd_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"remaster/internal/oracle"
	"remaster/pkg/disk"
	"remaster/pkg/vhd"
)

// TestEncodedIsTheSameToEveryReader has qemu and this package read what was encoded.
func TestEncodedIsTheSameToEveryReader(t *testing.T) {
	encoders := map[string]func(disk.Disk, vhd.Options) (*vhd.Encoded, error){
		"fixed": vhd.Fixed, "dynamic": vhd.Dynamic,
		"dynamic aligned": func(d disk.Disk, o vhd.Options) (*vhd.Encoded, error) {
			o.Align = 4096
			return vhd.Dynamic(d, o)
		},
		"dynamic zeros": func(d disk.Disk, o vhd.Options) (*vhd.Encoded, error) {
			o.DetectZeros = true
			return vhd.Dynamic(d, o)
		},
	}
	sizes := []int64{512, mib, 2 * mib, 5*mib + 512, 37*mib + 513, 20 << 30, 65535 * mib, 65536 * mib, 127<<30 + 700<<20, 2040 << 30}
	for name, encode := range encoders {
		for _, size := range sizes {
			t.Run(fmt.Sprintf("%s/%d", name, size), func(t *testing.T) {
				r := rand.New(rand.NewPCG(uint64(size), 1))
				d := sparse(t, size)
				scatter(t, r, d, 5)
				write(t, d, 0, []byte("boot"))
				e, err := encode(d, options)
				if err != nil {
					t.Fatal(err)
				}
				file := save(t, e)
				want, _ := vhd.DiskSize(size)
				if got := qemuSize(t, file); got != want || want%mib != 0 || want-size != e.Grown() {
					t.Errorf("qemu says %d bytes, want %d (%d grown)", got, want, e.Grown())
				}
				m := open(t, e) // and not the file, whose holes are not seen here
				if m.Info() != e.Info() {
					t.Errorf("opened %+v\nencoded %+v", m.Info(), e.Info())
				}
				if err := vhd.Check(e); err != nil {
					t.Error(err)
				}
				same(t, grown(t, d, want), m)
				if size < 1<<30 { // qemu looks at each block
					oracle.SameDisk(t, "raw", save(t, grown(t, d, want)), "vpc", file)
				}
			})
		}
	}
}

// grown returns d with zeros behind it.
func grown(t testing.TB, d disk.Disk, size int64) disk.Disk {
	t.Helper()
	v := overlay(t, d)
	if err := v.Grow(size); err != nil {
		t.Fatal(err)
	}
	return v
}

// same fails the test unless both disks hold the same bytes, trusting what they
// say of zeros only if both say so.
func same(t testing.TB, a, b disk.Disk) {
	t.Helper()
	if a.Size() != b.Size() {
		t.Fatalf("disks of %d and %d bytes", a.Size(), b.Size())
	}
	var known disk.Ranges
	for e, err := range a.Extents(disk.Whole(a)) {
		if err != nil {
			t.Fatal(err)
		}
		if !e.Zero {
			known.Add(e.Range)
		}
	}
	for e, err := range b.Extents(disk.Whole(b)) {
		if err != nil {
			t.Fatal(err)
		}
		if !e.Zero {
			known.Add(e.Range)
		}
	}
	pa, pb := make([]byte, mib), make([]byte, mib)
	for r := range known.All() {
		for off := r.Off; off < r.End(); off += mib {
			n := min(mib, r.End()-off)
			if err := errors.Join(disk.ReadFull(a, pa[:n], off), disk.ReadFull(b, pb[:n], off)); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(pa[:n], pb[:n]) {
				t.Fatalf("disks differ in the %d bytes at %d", n, off)
			}
		}
	}
}

func TestEncodedGeometryIsExact(t *testing.T) {
	for _, c := range []struct {
		size int64
		want vhd.Geometry
	}{
		{20 << 30, vhd.Geometry{Cylinders: 20480, Heads: 16, Sectors: 128}},
		{64<<30 - mib, vhd.Geometry{Cylinders: 65535, Heads: 16, Sectors: 128}},
		{64 << 30, vhd.Geometry{Cylinders: 65535, Heads: 16, Sectors: 255}},
	} {
		if got := encodeDynamic(t, zeroDisk(c.size)).Info().Geometry; got != c.want {
			t.Errorf("%d bytes: %v, want %v", c.size, got, c.want)
		}
	}
}

func TestEncodeRefusesSizes(t *testing.T) {
	for _, size := range []int64{0, 2040<<30 + 1} {
		if _, err := vhd.Fixed(zeroDisk(size), options); !errors.Is(err, disk.ErrUnsupported) {
			t.Errorf("fixed of %d bytes: %v", size, err)
		}
		if _, err := vhd.Dynamic(zeroDisk(size), options); !errors.Is(err, disk.ErrUnsupported) {
			t.Errorf("dynamic of %d bytes: %v", size, err)
		}
	}
}

// TestFixedRefusesDiskThatStartsWithFooter: readers that look at the head would find
// another disk than those that look at the tail.
func TestFixedRefusesDiskThatStartsWithFooter(t *testing.T) {
	d := disk.AsDisk(disk.Bytes(data(t, encodeDynamic(t, zeroDisk(mib)))))
	if _, err := vhd.Fixed(d, options); !errors.Is(err, disk.ErrUnsupported) {
		t.Error(err)
	}
}

func TestDynamicRefusesOddAlignment(t *testing.T) {
	for _, align := range []int64{-1, 1000, 8192} {
		if _, err := vhd.Dynamic(zeroDisk(mib), vhd.Options{Align: align}); err == nil {
			t.Errorf("alignment %d is taken", align)
		}
	}
}

func TestAlignedBlocksStartAtPages(t *testing.T) {
	d := sparse(t, 9*mib)
	scatter(t, rand.New(rand.NewPCG(1, 1)), d, 9)
	o := options
	o.Align = 4096
	e, err := vhd.Dynamic(d, o)
	if err != nil {
		t.Fatal(err)
	}
	p := data(t, e)
	for i := range e.Info().Blocks {
		if s := entry(p, i); s != 0xFFFFFFFF && (s+1)%8 != 0 {
			t.Errorf("data of block %d start at sector %d", i, s+1)
		}
	}
}

// TestDetectZerosLeavesBlocksOut gives the encoder a disk that knows no zeros.
func TestDetectZerosLeavesBlocksOut(t *testing.T) {
	p := make([]byte, 11*mib)
	p[7*mib-1] = 1
	p[11*mib-1] = 1
	d := disk.AsDisk(disk.Bytes(p))
	if got := encodeDynamic(t, d).Info().Allocated; got != 6 {
		t.Errorf("%d blocks without looking, want all 6", got)
	}
	o := options
	o.DetectZeros = true
	e, err := vhd.Dynamic(d, o)
	if err != nil {
		t.Fatal(err)
	}
	if got := e.Info().Allocated; got != 2 {
		t.Errorf("%d blocks, want 2", got)
	}
	if !bytes.Equal(data(t, open(t, e)), p) {
		t.Error("the disk changed")
	}
}

// TestEncodedReadsTheSameInAnyOrder reads pieces of odd sizes at once and compares them
// with one read of all.
func TestEncodedReadsTheSameInAnyOrder(t *testing.T) {
	d := sparse(t, 21*mib+512)
	scatter(t, rand.New(rand.NewPCG(3, 1)), d, 20)
	for _, e := range []*vhd.Encoded{encodeFixed(t, d), encodeDynamic(t, d)} {
		want := data(t, e)
		var wg sync.WaitGroup
		for g := range 4 {
			wg.Go(func() {
				r := rand.New(rand.NewPCG(uint64(g), 2))
				for range 200 {
					off := r.Int64N(e.Size())
					p := make([]byte, 1+r.IntN(100000))
					n, err := e.ReadAt(p, off)
					if end := min(off+int64(len(p)), e.Size()); !bytes.Equal(p[:n], want[off:end]) || (n < len(p)) != (err == io.EOF) {
						t.Errorf("%d bytes at %d: got %d, %v", len(p), off, n, err)
						return
					}
				}
			})
		}
		wg.Wait()
	}
}

// TestEncodedGolden pins the bytes: a change of them changes every digest that users know.
func TestEncodedGolden(t *testing.T) {
	d := sparse(t, 7*mib)
	write(t, d, 5*mib, []byte("golden"))
	for _, c := range []struct {
		e    *vhd.Encoded
		want string
	}{
		{encodeFixed(t, d), "75b625f4543379138f5b35f0156d705f8ce45427d7120ecf7fa3101832c81e11"},
		{encodeDynamic(t, d), "d6d88d97a403dbb404f891294cd4e4199429935ea0cbdb194b7fcf1cef75cb82"},
	} {
		if got := fmt.Sprintf("%x", sha256.Sum256(data(t, c.e))); got != c.want {
			t.Errorf("%s: sha256 %s, want %s", c.e.Info().Type, got, c.want)
		}
	}
}

func TestTimestampsOutOfRangeAreClipped(t *testing.T) {
	for _, c := range []struct{ in, want time.Time }{
		{time.Time{}, time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)},
		{time.Unix(0, 0), time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)},
		{time.Unix(1700000000, 0), time.Unix(1700000000, 0)},
		{time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2136, 2, 7, 6, 28, 15, 0, time.UTC)},
	} {
		e, err := vhd.Dynamic(zeroDisk(mib), vhd.Options{Timestamp: c.in})
		if err != nil {
			t.Fatal(err)
		}
		if got := open(t, e).Info().Created; !got.Equal(c.want) {
			t.Errorf("%v: %v, want %v", c.in, got, c.want)
		}
	}
}
