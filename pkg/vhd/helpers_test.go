package vhd_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"io"
	"iter"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"remaster/internal/oracle"
	"remaster/pkg/disk"
	"remaster/pkg/vhd"
)

const mib = 1 << 20

// zeroDisk is a disk of so many zeros that knows it.
type zeroDisk int64

func (z zeroDisk) Size() int64 { return int64(z) }

func (z zeroDisk) ReadAt(p []byte, off int64) (int, error) {
	n := max(min(int64(len(p)), int64(z)-off), 0)
	clear(p[:n])
	if n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}

func (z zeroDisk) Extents(r disk.Range) iter.Seq2[disk.Extent, error] {
	return func(yield func(disk.Extent, error) bool) {
		if r = r.Intersect(disk.Whole(z)); r.Len > 0 {
			yield(disk.Extent{Range: r, Zero: true}, nil)
		}
	}
}

// sparse returns a disk of zeros that can be written.
func sparse(t testing.TB, size int64) *disk.Overlay {
	t.Helper()
	v := disk.NewOverlay(zeroDisk(size), disk.OverlayOptions{})
	t.Cleanup(func() { v.Close() })
	return v
}

func overlay(t testing.TB, b disk.Blob) *disk.Overlay {
	t.Helper()
	v := disk.NewOverlay(b, disk.OverlayOptions{})
	t.Cleanup(func() { v.Close() })
	return v
}

func write(t testing.TB, w io.WriterAt, off int64, p []byte) {
	t.Helper()
	if _, err := w.WriteAt(p, off); err != nil {
		t.Fatal(err)
	}
}

func noise(r *rand.Rand, n int64) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(r.Uint32())
	}
	return p
}

// scatter writes n runs of noise, some of them at ends of blocks and of the disk.
func scatter(t testing.TB, r *rand.Rand, w *disk.Overlay, n int) {
	t.Helper()
	size := w.Size()
	for range n {
		l := min(1+r.Int64N(20000), size)
		off := r.Int64N(size - l + 1)
		switch r.IntN(4) {
		case 0:
			off = max(0, off/vhd.BlockSize*vhd.BlockSize-l/2)
		case 1:
			off = size - l
		}
		write(t, w, off, noise(r, l))
	}
}

// data reads all of a blob.
func data(t testing.TB, b disk.Blob) []byte {
	t.Helper()
	p := make([]byte, b.Size())
	if err := disk.ReadFull(b, p, 0); err != nil {
		t.Fatal(err)
	}
	return p
}

// save writes a disk to a file, leaving holes where it knows zeros.
func save(t testing.TB, d disk.Disk) string {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(d.Size()); err != nil {
		t.Fatal(err)
	}
	next := int64(0)
	buf := make([]byte, mib)
	for e, err := range d.Extents(disk.Whole(d)) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Off != next || e.Len <= 0 {
			t.Fatalf("extent %v after byte %d", e, next)
		}
		next = e.End()
		for off := e.Off; !e.Zero && off < e.End(); off += mib {
			p := buf[:min(mib, e.End()-off)]
			if err := disk.ReadFull(d, p, off); err != nil {
				t.Fatal(err)
			}
			write(t, f, off, p)
		}
	}
	if next != d.Size() {
		t.Fatalf("extents end at byte %d of %d", next, d.Size())
	}
	return f.Name()
}

// fileBlob is a file as a blob.
type fileBlob struct {
	*os.File
	size int64
}

func (f fileBlob) Size() int64 { return f.size }

func openFile(t testing.TB, name string) fileBlob {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	fi, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return fileBlob{f, fi.Size()}
}

func open(t testing.TB, b disk.Blob) *vhd.Image {
	t.Helper()
	m, err := vhd.Open(b)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// qemuSize returns the size that qemu gives to the disk in a VHD file.
func qemuSize(t testing.TB, file string) int64 {
	t.Helper()
	var info struct {
		Size int64 `json:"virtual-size"`
	}
	if err := json.Unmarshal([]byte(oracle.Run(t, "qemu-img", "info", "--output=json", "-f", "vpc", file)), &info); err != nil {
		t.Fatal(err)
	}
	return info.Size
}

var options = vhd.Options{
	UniqueID:  [16]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16},
	Timestamp: time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC),
}

func encodeDynamic(t testing.TB, d disk.Disk) *vhd.Encoded {
	t.Helper()
	e, err := vhd.Dynamic(d, options)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func encodeFixed(t testing.TB, d disk.Disk) *vhd.Encoded {
	t.Helper()
	e, err := vhd.Fixed(d, options)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// resum corrects the checksums of a footer or header at off, by the sum's own offset.
func resum(p []byte, off, size, sumAt int) {
	clear(p[off+sumAt : off+sumAt+4])
	var sum uint32
	for _, c := range p[off : off+size] {
		sum += uint32(c)
	}
	binary.BigEndian.PutUint32(p[off+sumAt:], ^sum)
}

// patchFooter changes both footers of a dynamic image, or the only one of a fixed image.
func patchFooter(p []byte, edit func(footer []byte)) {
	tail := len(p) - 512
	edit(p[tail:])
	resum(p, tail, 512, 64)
	if bytes.HasPrefix(p, []byte("conectix")) {
		copy(p, p[tail:])
	}
}

func patchHeader(p []byte, edit func(header []byte)) {
	edit(p[512 : 512+1024])
	resum(p, 512, 1024, 36)
}

func putEntry(p []byte, block int, sector uint32) {
	binary.BigEndian.PutUint32(p[1536+4*block:], sector)
}

func entry(p []byte, block int) uint32 { return binary.BigEndian.Uint32(p[1536+4*block:]) }
