package qcow2

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"remaster/internal/oracle"
	"remaster/pkg/disk"
)

func overlay(tb testing.TB, b disk.Blob) *disk.Overlay {
	tb.Helper()
	v := disk.NewOverlay(b, disk.OverlayOptions{})
	tb.Cleanup(func() {
		if err := v.Close(); err != nil {
			tb.Error(err)
		}
	})
	return v
}

// scribble makes the same edits to a disk and to a model of it: many small ones, some
// that cover clusters, some that write zeros or what is there already.
func scribble(tb testing.TB, rng *rand.Rand, w io.WriterAt, model []byte, cluster int) {
	tb.Helper()
	for range 1 + rng.IntN(25) {
		n := 1 + rng.IntN(6000)
		if rng.IntN(4) == 0 {
			n = 1 + rng.IntN(3*cluster)
		}
		off := rng.IntN(len(model))
		if rng.IntN(3) == 0 {
			off -= off % cluster
		}
		n = min(n, len(model)-off)
		p := append([]byte(nil), model[off:off+n]...)
		if rng.IntN(5) > 0 {
			fill(rng, p)
		}
		if _, err := w.WriteAt(p, int64(off)); err != nil {
			tb.Fatal(err)
		}
		copy(model[off:], p)
	}
}

// wantHeadAndTail fails unless c differs from its base in its first cluster, and
// behind the base's end, only.
func wantHeadAndTail(tb testing.TB, c *disk.Overlay, cluster int64) {
	tb.Helper()
	for r := range c.Changed() {
		if r.End() > cluster && r.Off < c.Base().Size() {
			tb.Errorf("changed range %v", r)
		}
	}
}

func TestRewrittenImagesAreCleanAndEqualAModel(t *testing.T) {
	for k, s := range shapes() {
		t.Run(s.String(), func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(8, uint64(k)))
			model := s.guest(7)
			image, raw := s.make(t, model)
			for round := range 3 {
				f := openFile(t, image)
				m := open(t, f)
				c, guest := overlay(t, f), overlay(t, m)
				scribble(t, rng, guest, model, s.clusterSize)
				if err := m.Rewrite(c, guest); err != nil {
					t.Fatalf("round %d: %v", round, err)
				}
				wantHeadAndTail(t, c, int64(s.clusterSize))
				wantBytes(t, "guest of the rewritten container", readAll(t, open(t, c)), model)
				if u, err := Check(c); err != nil || u.Leaked != 0 {
					t.Fatalf("round %d: check: %+v, %v", round, u, err)
				}
				image = filepath.Join(t.TempDir(), "next.qcow2")
				writeFile(t, image, c)
			}
			oracle.CheckQcow2(t, image)
			if err := os.WriteFile(raw, model, 0o600); err != nil {
				t.Fatal(err)
			}
			oracle.SameDisk(t, "qcow2", image, "raw", raw)
		})
	}
}

func TestRewriteCommitsWithTheHeader(t *testing.T) {
	for _, s := range []shape{{"1.1", 65536, "zlib", 0}, {"0.10", 4096, "", 0}, {"1.1", 512, "zlib", 1}} {
		model := guestBytes(9, 3<<20)
		image, raw := s.make(t, model)
		before := append([]byte(nil), model...)
		f := openFile(t, image)
		m := open(t, f)
		c, guest := overlay(t, f), overlay(t, m)
		scribble(t, rand.New(rand.NewPCG(10, 10)), guest, model, s.clusterSize)
		if err := m.Rewrite(c, guest); err != nil {
			t.Fatal(err)
		}
		edited := image + ".edited"
		writeFile(t, edited, f)
		w, err := os.OpenFile(edited, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		var head []disk.Range
		for r := range c.Changed() {
			if r.Off < int64(s.clusterSize) {
				head = append(head, r)
				continue
			}
			copyRange(t, w, c, r)
		}
		r := oracle.Try(t, "qemu-img", "check", "-f", "qcow2", edited)
		if r.Code != 0 && r.Code != 3 { // 3: leaks only
			t.Errorf("%v: without the header: check exits %d\n%s%s", s, r.Code, r.Stdout, r.Stderr)
		}
		oracle.SameDisk(t, "qcow2", edited, "raw", raw)
		wantBytes(t, "old guest", readAll(t, m), before)
		if len(head) != 1 || head[0].Len > 64 || head[0].Off/512 != (head[0].End()-1)/512 {
			t.Errorf("%v: header is switched by writes of %v", s, head)
		}
		copyRange(t, w, c, head[0])
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		oracle.CheckQcow2(t, edited)
		wantBytes(t, "new guest", readAll(t, open(t, openFile(t, edited))), model)
	}
}

func copyRange(tb testing.TB, w io.WriterAt, c disk.Blob, r disk.Range) {
	tb.Helper()
	p := make([]byte, r.Len)
	if err := disk.ReadFull(c, p, r.Off); err != nil {
		tb.Fatal(err)
	}
	if _, err := w.WriteAt(p, r.Off); err != nil {
		tb.Fatal(err)
	}
}

func TestRewriteWithoutAChangeWritesNothing(t *testing.T) {
	model := guestBytes(11, 2<<20)
	image, _ := shape{"1.1", 65536, "zlib", 0}.make(t, model)
	f := openFile(t, image)
	m := open(t, f)
	c, guest := overlay(t, f), overlay(t, m)
	for range 2 {
		if err := m.Rewrite(c, guest); err != nil || c.Dirty() {
			t.Fatalf("%v, dirty %v", err, c.Dirty())
		}
		if _, err := guest.WriteAt(model[1000:300_000], 1000); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRewriteIsDeterministic(t *testing.T) {
	model := guestBytes(12, 2<<20)
	image, _ := shape{"1.1", 4096, "zlib", 2}.make(t, model)
	f := openFile(t, image)
	var first []byte
	for range 3 {
		m := open(t, f)
		c, guest := overlay(t, f), overlay(t, m)
		scribble(t, rand.New(rand.NewPCG(13, 13)), guest, append([]byte(nil), model...), 4096)
		if err := m.Rewrite(c, guest); err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = readAll(t, c)
		}
		wantBytes(t, "second run", readAll(t, c), first)
	}
}

func TestRewriteOfEverythingAndToZeros(t *testing.T) {
	// 1-bit refcounts in clusters of 512 bytes need a new refcount table.
	for _, s := range []shape{{"1.1", 512, "", 64}, {"1.1", 512, "zlib", 1}, {"1.1", 65536, "zlib", 0}, {"0.10", 512, "", 0}} {
		for _, value := range []byte{0, 0xa5} {
			model := guestBytes(14, 2<<20+512)
			image, _ := s.make(t, model)
			f := openFile(t, image)
			m := open(t, f)
			c, guest := overlay(t, f), overlay(t, m)
			for i := range model {
				model[i] = value
			}
			if _, err := guest.WriteAt(model, 0); err != nil {
				t.Fatal(err)
			}
			if err := m.Rewrite(c, guest); err != nil {
				t.Fatalf("%v: %v", s, err)
			}
			edited := image + ".edited"
			writeFile(t, edited, c)
			oracle.CheckQcow2(t, edited)
			wantBytes(t, fmt.Sprint(s), readAll(t, open(t, c)), model)
		}
	}
}

func TestRewriteRefuses(t *testing.T) {
	image, _ := shape{"1.1", 65536, "", 0}.make(t, guestBytes(15, 2<<20))
	edit := func(b disk.Blob) error {
		m := open(t, b)
		c, guest := overlay(t, b), overlay(t, m)
		if _, err := guest.WriteAt([]byte("edit"), 70_000); err != nil {
			t.Fatal(err)
		}
		return m.Rewrite(c, guest)
	}
	bytes := readAll(t, openFile(t, image))
	m := open(t, disk.Bytes(bytes))
	table, err := m.readRefTable()
	if err != nil {
		t.Fatal(err)
	}
	entry := int64(m.l1[0]&entryOffset) + 8 // guest cluster 1
	data := int64(be.Uint64(bytes[entry:]) & entryOffset)
	for _, c := range []struct {
		name string
		off  int64
		with []byte
		want error
	}{
		{"free data cluster", table[0] + 2*(data>>16), []byte{0, 0}, disk.ErrCorrupt},
		{"shared data cluster", table[0] + 2*(data>>16), []byte{0, 2}, disk.ErrUnsupported},
		{"missing copied flag", entry, []byte{0}, disk.ErrCorrupt},
		{"free L1 table", table[0] + 2*(m.l1Off>>16), []byte{0, 0}, disk.ErrCorrupt},
		{"free refcount table", table[0] + 2*(m.refTableOff>>16), []byte{0, 0}, disk.ErrCorrupt},
		{"free refcount block", table[0] + 2*(table[0]>>16), []byte{0, 0}, disk.ErrCorrupt},
		{"missing refcount block", m.refTableOff, make([]byte, 8), disk.ErrCorrupt},
		{"refcount block past the end", m.refTableOff, []byte{0, 1}, disk.ErrCorrupt},
		{"used cluster behind the end", table[0] + 2*(m.roundUp(m.fileSize)>>16), []byte{0, 1}, disk.ErrUnsupported},
	} {
		bad := append([]byte(nil), bytes...)
		copy(bad[c.off:], c.with)
		if err := edit(disk.Bytes(bad)); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}

	oracle.Run(t, "qemu-img", "snapshot", "-c", "one", image)
	if err := edit(openFile(t, image)); !errors.Is(err, disk.ErrUnsupported) {
		t.Errorf("snapshots: %v", err)
	}

	c := overlay(t, disk.Bytes(bytes))
	guest := overlay(t, m)
	if _, err := guest.WriteAt([]byte("edit"), 0); err != nil {
		t.Fatal(err)
	}
	if err := m.Rewrite(c, guest); err != nil {
		t.Fatal(err)
	}
	if err := m.Rewrite(c, guest); err == nil {
		t.Error("second rewrite into one overlay succeeded")
	}
}

func TestRewriteClearsAutoclearBits(t *testing.T) {
	image, _ := shape{"1.1", 65536, "", 0}.make(t, guestBytes(16, 2<<20))
	oracle.Run(t, "qemu-img", "bitmap", "--add", image, "b0")
	f := openFile(t, image)
	m := open(t, f)
	if m.Info().Autoclear != featBitmaps {
		t.Fatalf("info %+v", m.Info())
	}
	c, guest := overlay(t, f), overlay(t, m)
	if _, err := guest.WriteAt([]byte("edit"), 0); err != nil {
		t.Fatal(err)
	}
	if err := m.Rewrite(c, guest); err != nil {
		t.Fatal(err)
	}
	if got := open(t, c).Info(); got.Autoclear != 0 || len(got.Extensions) != len(m.Info().Extensions) {
		t.Errorf("info %+v", got)
	}
	edited := image + ".edited"
	writeFile(t, edited, c)
	if r := oracle.Try(t, "qemu-img", "check", "-f", "qcow2", edited); r.Code != 3 { // leaks: the bitmap's clusters
		t.Errorf("check exits %d\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
}
