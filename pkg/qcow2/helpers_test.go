package qcow2

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"remaster/internal/oracle"
	"remaster/pkg/disk"
)

// file is a Blob over a file.
type file struct {
	*os.File
	size int64
}

func (f file) Size() int64 { return f.size }

func openFile(tb testing.TB, path string) file {
	tb.Helper()
	f, err := os.Open(path)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { f.Close() })
	fi, err := f.Stat()
	if err != nil {
		tb.Fatal(err)
	}
	return file{f, fi.Size()}
}

func open(tb testing.TB, b disk.Blob) *Image {
	tb.Helper()
	m, err := Open(b)
	if err != nil {
		tb.Fatal(err)
	}
	return m
}

func readAll(tb testing.TB, b disk.Blob) []byte {
	tb.Helper()
	p := make([]byte, b.Size())
	if err := disk.ReadFull(b, p, 0); err != nil {
		tb.Fatal(err)
	}
	return p
}

func writeFile(tb testing.TB, path string, b disk.Blob) {
	tb.Helper()
	f, err := os.Create(path)
	if err != nil {
		tb.Fatal(err)
	}
	if _, err := io.Copy(f, io.NewSectionReader(b, 0, b.Size())); err != nil {
		tb.Fatal(err)
	}
	if err := f.Close(); err != nil {
		tb.Fatal(err)
	}
}

var words = []string{"kernel ", "initrd ", "root=", "console=tty0 ", "crashkernel=auto\n", "/boot/", "4.19.91-", "al8 ", "x86_64\n"}

// fill writes one of four kinds of content: zeros, repetition, words, noise.
func fill(rng *rand.Rand, p []byte) {
	switch rng.IntN(4) {
	case 0:
		clear(p)
	case 1:
		c := byte(rng.Uint32())
		for i := range p {
			p[i] = c
		}
	case 2:
		for i := 0; i < len(p); {
			i += copy(p[i:], words[rng.IntN(len(words))])
		}
	case 3:
		var b [8]byte
		for i := 0; i < len(p); {
			be.PutUint64(b[:], rng.Uint64())
			i += copy(p[i:], b[:])
		}
	}
}

// guestBytes returns a disk of size bytes with runs of every content.
func guestBytes(seed uint64, size int) []byte {
	rng := rand.New(rand.NewPCG(seed, 1))
	p := make([]byte, size)
	for at := 0; at < size; {
		n := min(size-at, 1+rng.IntN(size/24))
		fill(rng, p[at:at+n])
		at += n
	}
	return p
}

// shape is how qemu-img shall make an image.
type shape struct {
	compat      string // "0.10" or "1.1"
	clusterSize int
	compression string // "", "zlib" or "zstd"
	refcount    int    // bits, 0: qemu-img's choice
}

func (s shape) String() string {
	return fmt.Sprintf("%s-%d-%s-%d", s.compat, s.clusterSize, s.compression, s.refcount)
}

func (s shape) args() []string {
	o := fmt.Sprintf("compat=%s,cluster_size=%d", s.compat, s.clusterSize)
	if s.refcount != 0 {
		o += fmt.Sprintf(",refcount_bits=%d", s.refcount)
	}
	if s.compression == "zstd" {
		o += ",compression_type=zstd"
	}
	args := []string{"-O", "qcow2", "-o", o}
	if s.compression != "" {
		args = append(args, "-c")
	}
	return args
}

// guest returns a disk for the shape: at least two clusters, and not too many.
func (s shape) guest(seed uint64) []byte {
	return guestBytes(seed, max(1<<20, min(5<<20, 1024*s.clusterSize))+7*512)
}

// make returns the path of an image of guest, and that of guest as a raw file.
func (s shape) make(tb testing.TB, guest []byte) (image, raw string) {
	tb.Helper()
	dir := tb.TempDir()
	image, raw = filepath.Join(dir, "image.qcow2"), filepath.Join(dir, "guest.raw")
	if err := os.WriteFile(raw, guest, 0o600); err != nil {
		tb.Fatal(err)
	}
	oracle.Run(tb, "qemu-img", append(append([]string{"convert", "-f", "raw"}, s.args()...), raw, image)...)
	return image, raw
}

// shapes is every version, cluster size and compression, and every refcount width.
func shapes() []shape {
	var out []shape
	for _, compat := range []string{"0.10", "1.1"} {
		for bits := minClusterBits; bits <= maxClusterBits; bits++ {
			for _, c := range []string{"", "zlib", "zstd"} {
				if compat == "0.10" && (c == "zstd" || bits%3 != 1) || compat == "1.1" && c == "zstd" && bits%2 != 0 {
					continue
				}
				out = append(out, shape{compat, 1 << bits, c, 0})
			}
		}
	}
	for i, bits := range []int{1, 2, 4, 8, 32, 64} {
		out = append(out, shape{"1.1", 4096, "", bits}, shape{"1.1", 512 << (i % 3), "zlib", bits})
	}
	return out
}

func wantBytes(tb testing.TB, what string, got, want []byte) {
	tb.Helper()
	if bytes.Equal(got, want) {
		return
	}
	if len(got) != len(want) {
		tb.Fatalf("%s: %d bytes, want %d", what, len(got), len(want))
	}
	for i := range got {
		if got[i] != want[i] {
			tb.Fatalf("%s: first difference at byte %d: %#02x, want %#02x", what, i, got[i], want[i])
		}
	}
}
