package vhd_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"

	"remaster/internal/hint"
	"remaster/internal/oracle"
	"remaster/pkg/disk"
	"remaster/pkg/vhd"
)

func TestOpenReadsWhatQemuWrote(t *testing.T) {
	for _, size := range []int64{1 * mib, 10*mib + 512, 150 * mib} {
		for _, how := range []string{"subformat=dynamic", "subformat=fixed", "subformat=dynamic,force_size=on", "subformat=fixed,force_size=on"} {
			t.Run(fmt.Sprintf("%d/%s", size, how), func(t *testing.T) {
				d := sparse(t, size)
				scatter(t, rand.New(rand.NewPCG(uint64(size), 1)), d, 8)
				raw, file, back := save(t, d), filepath.Join(t.TempDir(), "vhd"), filepath.Join(t.TempDir(), "raw")
				oracle.Run(t, "qemu-img", "convert", "-f", "raw", "-O", "vpc", "-o", how, raw, file)
				oracle.Run(t, "qemu-img", "convert", "-f", "vpc", "-O", "raw", file, back)
				m := open(t, openFile(t, file))
				if !strings.Contains(how, string(m.Info().Type)) {
					t.Errorf("type %s", m.Info().Type)
				}
				same(t, disk.AsDisk(openFile(t, back)), m)
				if err := vhd.Check(openFile(t, file)); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// TestSizeIsQemus compares the size with qemu's for each creator, where the geometry
// agrees with the current size, says less, says more, and says nothing.
func TestSizeIsQemus(t *testing.T) {
	e := data(t, encodeDynamic(t, zeroDisk(8*mib)))
	for _, app := range []string{"win ", "qem2", "d2v ", "tap\x00", "CTXS", "vpc ", "vs  ", "qemu", "vbox", "rmst"} {
		for _, chs := range [][3]uint{{8, 16, 128}, {120, 4, 17}, {4, 16, 64}, {65535, 16, 255}} {
			p := bytes.Clone(e)
			patchFooter(p, func(f []byte) {
				copy(f[28:], app)
				binary.BigEndian.PutUint16(f[56:], uint16(chs[0]))
				f[58], f[59] = byte(chs[1]), byte(chs[2])
			})
			m := open(t, disk.Bytes(p))
			got, want := m.Size(), qemuSize(t, save(t, disk.AsDisk(disk.Bytes(p))))
			if got != want {
				t.Errorf("creator %q, geometry %v: %d bytes, qemu says %d", app, chs, got, want)
			}
			differ := m.Info().Geometry.Bytes() != 8*mib && chs[0] != 65535
			if differ != strings.Contains(m.Info().SizeRule, "creator") {
				t.Errorf("creator %q, geometry %v: size rule %q", app, chs, m.Info().SizeRule)
			}
		}
	}
}

// TestOpenRefuses has what is refused, by which sentinel and in which words.
func TestOpenRefuses(t *testing.T) {
	d := sparse(t, 9*mib)
	write(t, d, 0, []byte("boot"))
	write(t, d, 5*mib, []byte("data"))
	dynamic, fixed := data(t, encodeDynamic(t, d)), data(t, encodeFixed(t, d))
	u32 := func(b []byte, off int, v uint32) { binary.BigEndian.PutUint32(b[off:], v) }
	u64 := func(b []byte, off int, v uint64) { binary.BigEndian.PutUint64(b[off:], v) }
	foot := func(edit func([]byte)) func([]byte) []byte {
		return func(p []byte) []byte { patchFooter(p, edit); return p }
	}
	head := func(edit func([]byte)) func([]byte) []byte {
		return func(p []byte) []byte { patchHeader(p, edit); return p }
	}
	bat := func(block int, sector uint32) func([]byte) []byte {
		return func(p []byte) []byte { putEntry(p, block, sector); return p }
	}
	first := entry(dynamic, 0)
	for name, c := range map[string]struct {
		from []byte
		edit func([]byte) []byte
		is   error
		says string
	}{
		"empty":                  {nil, func(p []byte) []byte { return p }, disk.ErrFormat, "0 bytes"},
		"raw":                    {make([]byte, mib), func(p []byte) []byte { return p }, disk.ErrFormat, "no footer"},
		"file size odd":          {dynamic, func(p []byte) []byte { return p[:len(p)-1] }, disk.ErrCorrupt, "not a multiple of 512"},
		"truncated":              {dynamic, func(p []byte) []byte { return p[:len(p)-4096] }, disk.ErrCorrupt, "footer at the end"},
		"tail cookie gone":       {dynamic, func(p []byte) []byte { clear(p[len(p)-512:]); return p }, disk.ErrCorrupt, "only its copy"},
		"tail sum wrong":         {dynamic, func(p []byte) []byte { p[len(p)-1] = 1; return p }, disk.ErrCorrupt, "checksum"},
		"head copy gone":         {dynamic, func(p []byte) []byte { clear(p[:512]); return p }, disk.ErrCorrupt, "differ"},
		"footers differ":         {dynamic, func(p []byte) []byte { p[70]++; resum(p, 0, 512, 64); return p }, disk.ErrCorrupt, "differ"},
		"fixed sum wrong":        {fixed, func(p []byte) []byte { p[len(p)-400] ^= 1; return p }, disk.ErrCorrupt, "checksum"},
		"fixed truncated":        {fixed, func(p []byte) []byte { return append(p[:4096], p[len(p)-512:]...) }, disk.ErrCorrupt, "holds 4096"},
		"fixed and dynamic":      {fixed, func(p []byte) []byte { copy(p, dynamic[:512]); return p }, disk.ErrCorrupt, "first sector"},
		"differencing":           {dynamic, foot(func(f []byte) { u32(f, 60, 4) }), disk.ErrUnsupported, "differencing"},
		"unknown type":           {dynamic, foot(func(f []byte) { u32(f, 60, 6) }), disk.ErrUnsupported, "disk type 6"},
		"version":                {dynamic, foot(func(f []byte) { u32(f, 12, 0x20000) }), disk.ErrUnsupported, "version"},
		"features":               {dynamic, foot(func(f []byte) { u32(f, 8, 0x12) }), disk.ErrUnsupported, "feature bits 0x10"},
		"saved state":            {dynamic, foot(func(f []byte) { f[84] = 1 }), disk.ErrUnsupported, "suspended"},
		"size 0":                 {dynamic, foot(func(f []byte) { u64(f, 48, 0) }), disk.ErrCorrupt, "size of 0"},
		"size odd":               {dynamic, foot(func(f []byte) { u64(f, 48, 9*mib+1) }), disk.ErrCorrupt, "not a multiple"},
		"size 2041 GiB":          {dynamic, foot(func(f []byte) { u64(f, 48, 2041<<30) }), disk.ErrUnsupported, "2040 GiB"},
		"size huge":              {dynamic, foot(func(f []byte) { u64(f, 48, 1<<63) }), disk.ErrUnsupported, "2040 GiB"},
		"header place":           {dynamic, foot(func(f []byte) { u64(f, 16, 1<<63) }), disk.ErrCorrupt, "dynamic header at byte"},
		"header is the footer":   {dynamic, foot(func(f []byte) { u64(f, 16, 0) }), disk.ErrCorrupt, "dynamic header at byte 0"},
		"header cookie":          {dynamic, head(func(h []byte) { h[0] = 'C' }), disk.ErrCorrupt, "no dynamic header"},
		"header sum":             {dynamic, func(p []byte) []byte { p[1535] = 1; return p }, disk.ErrCorrupt, "checksum"},
		"header version":         {dynamic, head(func(h []byte) { u32(h, 24, 1) }), disk.ErrUnsupported, "header version"},
		"header chain":           {dynamic, head(func(h []byte) { u64(h, 8, 4096) }), disk.ErrUnsupported, "another structure"},
		"table place":            {dynamic, head(func(h []byte) { u64(h, 16, 1<<62) }), disk.ErrCorrupt, "table at byte"},
		"table place odd":        {dynamic, head(func(h []byte) { u64(h, 16, 1537) }), disk.ErrCorrupt, "table at byte"},
		"table over header":      {dynamic, head(func(h []byte) { u64(h, 16, 1024) }), disk.ErrCorrupt, "overlaps"},
		"table small":            {dynamic, head(func(h []byte) { u32(h, 28, 4) }), disk.ErrCorrupt, "has 5 blocks"},
		"table large":            {dynamic, head(func(h []byte) { u32(h, 28, 1<<31) }), disk.ErrUnsupported, "entries"},
		"table over blocks":      {dynamic, head(func(h []byte) { u32(h, 28, 1<<20) }), disk.ErrCorrupt, "another block"},
		"block size 3 MiB":       {dynamic, head(func(h []byte) { u32(h, 32, 3*mib) }), disk.ErrCorrupt, "power of two"},
		"block size 0":           {dynamic, head(func(h []byte) { u32(h, 32, 0) }), disk.ErrCorrupt, "power of two"},
		"block size 2 KiB":       {dynamic, head(func(h []byte) { u32(h, 32, 2048) }), disk.ErrUnsupported, "less than 4096"},
		"block size 2 GiB":       {dynamic, head(func(h []byte) { u32(h, 32, 1<<31) }), disk.ErrUnsupported, "more than"},
		"entry into header":      {dynamic, bat(2, 1), disk.ErrCorrupt, "overlap"},
		"entry into footer copy": {dynamic, bat(2, 0), disk.ErrCorrupt, "overlap"},
		"entry into table":       {dynamic, bat(0, 3), disk.ErrCorrupt, "overlap"},
		"entry past the end":     {dynamic, bat(2, 0xFFFFFFFE), disk.ErrCorrupt, "behind byte"},
		"entry into tail footer": {dynamic, bat(2, uint32(len(dynamic)/512)-4097), disk.ErrCorrupt, "behind byte"},
		"entries equal":          {dynamic, bat(1, first), disk.ErrCorrupt, "block 0 at byte 2048 is another block too"},
		"entries overlap":        {dynamic, bat(1, first+1), disk.ErrCorrupt, "overlap"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := vhd.Open(disk.Bytes(c.edit(bytes.Clone(c.from))))
			if !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v\nwant %v that says %q", err, c.is, c.says)
			}
		})
	}
}

func TestDamagedTailHasRemedy(t *testing.T) {
	p := data(t, encodeDynamic(t, zeroDisk(mib)))
	clear(p[len(p)-512:])
	if _, err := vhd.Open(disk.Bytes(p)); len(hint.Of(err)) == 0 {
		t.Errorf("no hint beside %v", err)
	}
}

// TestOpenTakesOddButLegalImages has variations that other writers make.
func TestOpenTakesOddButLegalImages(t *testing.T) {
	d := sparse(t, 9*mib)
	write(t, d, 5*mib, []byte("data"))
	want := data(t, d)
	p := data(t, encodeDynamic(t, d))
	t.Run("32-bit unused offset", func(t *testing.T) {
		p := bytes.Clone(p)
		patchHeader(p, func(h []byte) { binary.BigEndian.PutUint64(h[8:], 0xFFFFFFFF) })
		if !bytes.Equal(data(t, open(t, disk.Bytes(p))), want) {
			t.Error("the disk changed")
		}
	})
	t.Run("longer table", func(t *testing.T) {
		p := bytes.Clone(p)
		patchHeader(p, func(h []byte) { binary.BigEndian.PutUint32(h[28:], 100) })
		if !bytes.Equal(data(t, open(t, disk.Bytes(p))), want) {
			t.Error("the disk changed")
		}
	})
	t.Run("gaps", func(t *testing.T) {
		tail := len(p) - 512
		at := int(entry(p, 2)) * 512
		p := append(append(bytes.Clone(p[:at]), make([]byte, 8192)...), p[at:tail]...)
		p = append(append(p, make([]byte, 512)...), p[:512]...)
		putEntry(p, 2, uint32(at+8192)/512)
		if !bytes.Equal(data(t, open(t, disk.Bytes(p))), want) {
			t.Error("the disk changed")
		}
		oracle.SameDisk(t, "raw", save(t, disk.AsDisk(disk.Bytes(want))), "vpc", save(t, disk.AsDisk(disk.Bytes(p))))
	})
}

// TestOtherBlockSizes builds images with other block sizes through Rewrite.
func TestOtherBlockSizes(t *testing.T) {
	for _, bs := range []int{4096, 512 << 10, 8 * mib} {
		t.Run(fmt.Sprint(bs), func(t *testing.T) {
			const size = 3 * mib
			b := emptyDynamic(t, size, bs)
			m := open(t, b)
			guest, c := overlay(t, m), overlay(t, b)
			scatter(t, rand.New(rand.NewPCG(uint64(bs), 1)), guest, 12)
			if err := m.Rewrite(c, guest); err != nil {
				t.Fatal(err)
			}
			if err := vhd.Check(c); err != nil {
				t.Fatal(err)
			}
			same(t, guest, open(t, c))
			oracle.SameDisk(t, "raw", save(t, guest), "vpc", save(t, c))
		})
	}
}

// emptyDynamic returns a dynamic VHD without blocks, with the given block size.
func emptyDynamic(t testing.TB, size int64, blockSize int) disk.Bytes {
	t.Helper()
	p := data(t, encodeDynamic(t, zeroDisk(size)))
	n := int(size) / blockSize
	if int(size)%blockSize != 0 {
		n++
	}
	foot := bytes.Clone(p[:512])
	p = append(p[:1536], bytes.Repeat([]byte{0xFF}, (n*4+511)/512*512)...)
	p = append(p, foot...)
	patchHeader(p, func(h []byte) {
		binary.BigEndian.PutUint32(h[28:], uint32(n))
		binary.BigEndian.PutUint32(h[32:], uint32(blockSize))
	})
	return p
}

// TestUnwrittenSectors: a bit that is 0 over zeros is fine, over anything else it is
// an image that readers disagree on.
func TestUnwrittenSectors(t *testing.T) {
	d := sparse(t, 4*mib)
	write(t, d, 2*mib+512*9, bytes.Repeat([]byte{7}, 512*5)) // sectors 9 to 13 of block 1
	p := data(t, encodeDynamic(t, d))
	at := int(entry(p, 1)) * 512
	clear(p[at : at+512])
	p[at+1] = 0x7F // sectors 9 to 15
	m := open(t, disk.Bytes(p))
	same(t, d, m)
	if err := vhd.Check(disk.Bytes(p)); err != nil {
		t.Error(err)
	}
	p[at+1] = 0x77 // not 12
	m = open(t, disk.Bytes(p))
	if _, err := m.ReadAt(make([]byte, 512), 2*mib+512*11); err != nil {
		t.Errorf("sector 11: %v", err)
	}
	if _, err := m.ReadAt(make([]byte, 1024), 2*mib+512*11); !errors.Is(err, disk.ErrCorrupt) || !strings.Contains(err.Error(), "block 1: sector 12") {
		t.Errorf("sector 12: %v", err)
	}
	if err := vhd.Check(disk.Bytes(p)); !errors.Is(err, disk.ErrCorrupt) {
		t.Errorf("check: %v", err)
	}
}

func TestReadAtFollowsReaderAt(t *testing.T) {
	d := sparse(t, 5*mib)
	scatter(t, rand.New(rand.NewPCG(1, 1)), d, 5)
	for _, m := range []*vhd.Image{open(t, encodeFixed(t, d)), open(t, encodeDynamic(t, d))} {
		p := make([]byte, 100)
		if n, err := m.ReadAt(p, m.Size()-100); n != 100 || err != nil {
			t.Errorf("last bytes: %d, %v", n, err)
		}
		if n, err := m.ReadAt(p, m.Size()-10); n != 10 || err != io.EOF {
			t.Errorf("over the end: %d, %v", n, err)
		}
		if n, err := m.ReadAt(p, m.Size()); n != 0 || err != io.EOF {
			t.Errorf("behind the end: %d, %v", n, err)
		}
		if _, err := m.ReadAt(p, -1); err == nil {
			t.Error("negative offset is taken")
		}
	}
}

func FuzzOpen(f *testing.F) {
	d := sparse(f, 5*mib)
	write(f, d, 3*mib, []byte("data"))
	e, err := vhd.Dynamic(d, options)
	if err != nil {
		f.Fatal(err)
	}
	// Only the structures, with the block left out of the file: inputs stay small.
	p := data(f, e)
	small := emptyDynamic(f, mib, 4096)
	f.Add([]byte(small))
	f.Add(append(bytes.Clone(p[:2048]), p[:512]...))
	f.Add(data(f, encodeFixed(f, zeroDisk(mib)))[mib-1024:])
	c := overlay(f, small)
	m := open(f, small)
	guest := overlay(f, m)
	scatter(f, rand.New(rand.NewPCG(1, 1)), guest, 3)
	if err := m.Rewrite(c, guest); err != nil {
		f.Fatal(err)
	}
	f.Add(data(f, c))
	f.Fuzz(func(t *testing.T, p []byte) {
		// The fuzzer does not find checksums; correct them in half of the inputs.
		if len(p) >= 2048 && p[len(p)/2]&1 == 0 {
			p = bytes.Clone(p)
			resum(p, 512, 1024, 36)
			patchFooter(p, func([]byte) {})
		}
		m, err := vhd.Open(disk.Bytes(p))
		if err != nil {
			if !errors.Is(err, disk.ErrFormat) && !errors.Is(err, disk.ErrCorrupt) && !errors.Is(err, disk.ErrUnsupported) {
				t.Fatalf("not a sentinel: %v", err)
			}
			return
		}
		m.Info()
		buf := make([]byte, 4096)
		for e, err := range m.Extents(disk.Whole(m)) {
			if err != nil {
				t.Fatal(err)
			}
			if e.Len <= 0 || e.End() > m.Size() {
				t.Fatalf("extent %v of %d bytes", e, m.Size())
			}
			if !e.Zero {
				m.ReadAt(buf, e.Off)
			}
		}
		// A write to any block must give an image that is accepted.
		guest, c := overlay(t, m), overlay(t, disk.Bytes(p))
		write(t, guest, m.Size()-min(m.Size(), 600), []byte{1})
		if m.Info().BlockSize > 8*mib || m.Rewrite(c, guest) != nil {
			return
		}
		if _, err := vhd.Open(c); err != nil {
			t.Fatalf("rewritten: %v", err)
		}
	})
}

// broken is a blob of which one read fails.
type broken struct {
	disk.Blob
	good int // reads before it
}

var errIO = errors.New("the cable is cut")

func (b *broken) ReadAt(p []byte, off int64) (int, error) {
	b.good--
	if b.good == -1 {
		return 0, errIO
	}
	return b.Blob.ReadAt(p, off)
}

// TestErrorsOfReadingAreNotFindings: a failure to read must not be taken for a file of
// another format or a damaged one, whichever read it is.
func TestErrorsOfReadingAreNotFindings(t *testing.T) {
	d := sparse(t, 9*mib)
	write(t, d, 5*mib, []byte("data"))
	for _, e := range []*vhd.Encoded{encodeFixed(t, d), encodeDynamic(t, d)} {
		for good := 0; ; good++ {
			b := &broken{e, good}
			err := vhd.Check(b)
			if b.good >= 0 {
				break // fewer reads than that
			}
			if !errors.Is(err, errIO) || errors.Is(err, disk.ErrCorrupt) || errors.Is(err, disk.ErrFormat) {
				t.Errorf("%s, read %d fails: %v", e.Info().Type, good, err)
			}
		}
	}
}
