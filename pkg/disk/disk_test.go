package disk

import (
	"bytes"
	"context"
	"errors"
	"io"
	"iter"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"testing/iotest"

	"golang.org/x/sync/errgroup"
)

// model is what an overlay must behave like.
type model struct {
	data    []byte
	written []bool
}

func (m *model) ranges() []Range {
	var rs Ranges
	for i, w := range m.written {
		if w {
			rs.Add(Range{int64(i), 1})
		}
	}
	return slices.Collect(rs.All())
}

func TestOverlayEqualsModelUnderRandomWrites(t *testing.T) {
	for seed := range uint64(30) {
		rng := rand.New(rand.NewPCG(seed, 1))
		base := make([]byte, 1+rng.IntN(100_000))
		for i := range base {
			base[i] = byte(rng.Uint32())
		}
		pristine := bytes.Clone(base)
		// A tiny memory limit makes most of the writes spill.
		v := NewOverlay(Bytes(base), OverlayOptions{MemoryLimit: int64(rng.IntN(3)+1) * 4096, TempDir: t.TempDir()})
		m := model{bytes.Clone(base), make([]bool, len(base))}
		for range 60 {
			if rng.IntN(10) == 0 {
				n := rng.IntN(20_000)
				if err := v.Grow(int64(len(m.data) + n)); err != nil {
					t.Fatal(err)
				}
				m.data = append(m.data, make([]byte, n)...)
				m.written = append(m.written, slices.Repeat([]bool{true}, n)...)
			}
			off := rng.IntN(len(m.data))
			p := make([]byte, rng.IntN(min(len(m.data)-off, 9000)+1))
			for i := range p {
				p[i] = byte(rng.Uint32())
			}
			if n, err := v.WriteAt(p, int64(off)); n != len(p) || err != nil {
				t.Fatalf("seed %d: WriteAt = %d, %v", seed, n, err)
			}
			copy(m.data[off:], p)
			for i := range p {
				m.written[off+i] = true
			}
		}
		got, err := io.ReadAll(io.NewSectionReader(v, 0, v.Size()))
		if err != nil || !bytes.Equal(got, m.data) {
			t.Fatalf("seed %d: content differs (%v)", seed, err)
		}
		if got, want := slices.Collect(v.Changed()), m.ranges(); !slices.Equal(got, want) {
			t.Fatalf("seed %d: changed %v, want %v", seed, got, want)
		}
		if !bytes.Equal(base, pristine) {
			t.Fatalf("seed %d: the base was written", seed)
		}
		if err := v.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOverlayIsAReaderAt(t *testing.T) {
	base := bytes.Repeat([]byte("0123456789abcdef"), 1000)
	v := NewOverlay(Bytes(base), OverlayOptions{})
	defer v.Close()
	want := bytes.Clone(base)
	copy(want[4090:], "across a block border")
	if _, err := v.WriteAt([]byte("across a block border"), 4090); err != nil {
		t.Fatal(err)
	}
	if err := iotest.TestReader(io.NewSectionReader(v, 0, v.Size()), want); err != nil {
		t.Error(err)
	}
	if n, err := v.ReadAt(make([]byte, 10), v.Size()-4); n != 4 || err != io.EOF {
		t.Errorf("read across the end = %d, %v; want 4, EOF", n, err)
	}
	if n, err := v.ReadAt(make([]byte, 10), v.Size()); n != 0 || err != io.EOF {
		t.Errorf("read behind the end = %d, %v; want 0, EOF", n, err)
	}
	if _, err := v.ReadAt(make([]byte, 1), -1); err == nil {
		t.Error("a negative offset was read")
	}
}

func TestOverlayRefusesWritesPastItsEnd(t *testing.T) {
	v := NewOverlay(Bytes(make([]byte, 100)), OverlayOptions{})
	defer v.Close()
	for _, off := range []int64{-1, 98, 100, 1 << 62} {
		if _, err := v.WriteAt([]byte("abc"), off); err == nil {
			t.Errorf("write at %d succeeded", off)
		}
	}
	if v.Dirty() {
		t.Error("a refused write left a trace")
	}
	if err := v.Grow(99); err == nil {
		t.Error("the overlay shrank")
	}
}

func TestOverlayManyReadersOneWriter(t *testing.T) {
	v := NewOverlay(Bytes(make([]byte, 1<<20)), OverlayOptions{MemoryLimit: 64 << 10, TempDir: t.TempDir()})
	defer v.Close()
	var g errgroup.Group
	for range 4 {
		g.Go(func() error {
			p := make([]byte, 100_000)
			for off := range int64(200) {
				if err := ReadFull(v, p, off*4000); err != nil {
					return err
				}
				for range v.Extents(Whole(v)) {
				}
			}
			return nil
		})
	}
	for i := range int64(200) {
		if _, err := v.WriteAt([]byte("x"), i*5000); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
}

func TestSpillFileHasNoName(t *testing.T) {
	dir := t.TempDir()
	v := NewOverlay(Bytes(make([]byte, 1<<20)), OverlayOptions{MemoryLimit: 4096, TempDir: dir})
	defer v.Close()
	if _, err := v.WriteAt(make([]byte, 1<<20), 0); err != nil {
		t.Fatal(err)
	}
	if v.spill == nil {
		t.Fatal("nothing was spilled")
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("the spill file is visible: %v", left)
	}
}

// sparse is a disk that is data in the given ranges and zeros elsewhere.
type sparse struct {
	Bytes
	data []Range
}

func (s sparse) Extents(r Range) iter.Seq2[Extent, error] {
	return func(yield func(Extent, error) bool) {
		at := r.Off
		for _, d := range s.data {
			if d = d.Intersect(r); d.Len == 0 {
				continue
			}
			if d.Off > at && !yield(Extent{Range{at, d.Off - at}, true}, nil) || !yield(Extent{Range: d}, nil) {
				return
			}
			at = d.End()
		}
		if at < r.End() {
			yield(Extent{Range{at, r.End() - at}, true}, nil)
		}
	}
}

func extents(t *testing.T, d Disk, r Range) []Extent {
	t.Helper()
	var out []Extent
	at := r.Off
	for e, err := range d.Extents(r) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Len <= 0 || e.Off != at {
			t.Fatalf("extent %v after %d: gap, overlap or empty", e, at)
		}
		at = e.End()
		out = append(out, e)
	}
	if at != r.End() {
		t.Fatalf("extents end at %d, want %d", at, r.End())
	}
	return out
}

func TestOverlayExtentsAreTheBasesWithEditsAsData(t *testing.T) {
	base := sparse{Bytes(make([]byte, 100_000)), []Range{{10_000, 5000}, {50_000, 100}}}
	v := NewOverlay(base, OverlayOptions{})
	defer v.Close()
	if got := extents(t, v, Whole(v)); len(got) != 5 {
		t.Errorf("unedited: %v", got)
	}
	for _, off := range []int64{9_000, 14_990, 80_000} {
		if _, err := v.WriteAt(make([]byte, 1000), off); err != nil {
			t.Fatal(err)
		}
	}
	if err := v.Grow(110_000); err != nil {
		t.Fatal(err)
	}
	z := func(off, end int64, zero bool) Extent { return Extent{Range{off, end - off}, zero} }
	want := []Extent{z(0, 9000, true), z(9000, 15_990, false), z(15_990, 50_000, true), z(50_000, 50_100, false),
		z(50_100, 80_000, true), z(80_000, 81_000, false), z(81_000, 100_000, true), z(100_000, 110_000, false)}
	if got := extents(t, v, Whole(v)); !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	extents(t, v, Range{12_345, 40_000})
}

func TestWindowKeepsToItself(t *testing.T) {
	v := NewOverlay(Bytes([]byte("0123456789")), OverlayOptions{})
	defer v.Close()
	w, err := NewWindow(v, Range{3, 4})
	if err != nil {
		t.Fatal(err)
	}
	if err := iotest.TestReader(io.NewSectionReader(w, 0, w.Size()), []byte("3456")); err != nil {
		t.Error(err)
	}
	for _, off := range []int64{-1, 3, 5} {
		if _, err := w.WriteAt([]byte("xx"), off); err == nil {
			t.Errorf("write of 2 at %d of 4 succeeded", off)
		}
	}
	if _, err := w.WriteAt([]byte("xx"), 2); err != nil {
		t.Error(err)
	}
	got := make([]byte, 10)
	if err := ReadFull(v, got, 0); err != nil || string(got) != "01234xx789" {
		t.Errorf("disk is %q, %v", got, err)
	}
	if e := extents(t, w, Range{1, 2}); e[0].Off != 1 {
		t.Errorf("extents are not the window's: %v", e)
	}
	ro, _ := NewWindow(AsDisk(Bytes("abc")), Range{0, 3})
	if _, err := ro.WriteAt([]byte("x"), 0); err == nil {
		t.Error("a read-only disk was written")
	}
	for _, r := range []Range{{0, 11}, {11, 0}, {-1, 2}, {5, 1 << 62}} {
		if _, err := NewWindow(v, r); !errors.Is(err, ErrCorrupt) {
			t.Errorf("window %v: %v", r, err)
		}
	}
}

func TestRangesMergeAndClip(t *testing.T) {
	var s Ranges
	for _, r := range []Range{{10, 10}, {40, 10}, {0, 0}, {30, 10}, {5, 2}, {20, 1}} {
		s.Add(r)
	}
	if got, want := slices.Collect(s.All()), []Range{{5, 2}, {10, 11}, {30, 20}}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got, want := slices.Collect(s.In(Range{6, 30})), []Range{{6, 1}, {10, 11}, {30, 6}}; !slices.Equal(got, want) {
		t.Errorf("In: got %v, want %v", got, want)
	}
	if s.Len() != 33 || s.Count() != 3 {
		t.Errorf("Len %d, Count %d", s.Len(), s.Count())
	}
}

// memory is a WriterAt that records what was written where.
type memory struct {
	*Overlay
}

func TestCopyWritesDataAndLeavesZerosOut(t *testing.T) {
	size := int64(5<<20 + 777)
	src := sparse{Bytes(make([]byte, size)), []Range{{1000, 3 << 20}, {4<<20 + 100, 1<<20 + 677}}}
	rng := rand.New(rand.NewPCG(1, 2))
	for _, r := range src.data {
		for i := r.Off; i < r.End(); i++ {
			src.Bytes[i] = byte(rng.Uint32() | 1)
		}
	}
	hole := Range{1 << 20, 256 << 10} // zeros that only the content shows
	clear(src.Bytes[hole.Off:hole.End()])
	dst := memory{NewOverlay(Bytes(make([]byte, size)), OverlayOptions{})}
	defer dst.Close()
	var dealt int64
	n, err := Copy(context.Background(), dst, src, CopyOptions{Workers: 3, Progress: func(n int64) { dealt += n }})
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, size)
	if err := ReadFull(dst, got, 0); err != nil || !bytes.Equal(got, src.Bytes) {
		t.Fatalf("copy differs (%v)", err)
	}
	if want := src.data[0].Len + src.data[1].Len - hole.Len; n != want || dealt != size {
		t.Errorf("wrote %d, dealt with %d; want %d, %d", n, dealt, want, size)
	}
	for r := range dst.ChangedIn(hole) {
		t.Errorf("zeros were written at %v", r)
	}
}

func TestCopyStopsAtTheFirstError(t *testing.T) {
	broken := errors.New("broken medium")
	_, err := Copy(context.Background(), failing{broken}, AsDisk(Bytes(bytes.Repeat([]byte("x"), 8<<20))), CopyOptions{})
	if !errors.Is(err, broken) {
		t.Errorf("err = %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Copy(ctx, failing{broken}, AsDisk(Bytes(make([]byte, 8<<20))), CopyOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: err = %v", err)
	}
}

type failing struct{ err error }

func (f failing) WriteAt([]byte, int64) (int, error) { return 0, f.err }

func BenchmarkOverlayWrite(b *testing.B) {
	v := NewOverlay(Bytes(nil), OverlayOptions{MemoryLimit: 1 << 40})
	defer v.Close()
	if err := v.Grow(1 << 30); err != nil {
		b.Fatal(err)
	}
	p := make([]byte, 1<<20)
	b.SetBytes(int64(len(p)))
	for i := 0; b.Loop(); i++ {
		if _, err := v.WriteAt(p, int64(i%1000)<<20); err != nil {
			b.Fatal(err)
		}
	}
}
