package qcow2

import (
	"math/rand/v2"
	"os"
	"testing"

	"remaster/pkg/disk"
)

func benchImage(b *testing.B, compression string) (string, int64) {
	b.Helper()
	// Half of it words and repetition, like a guest's files.
	guest := guestBytes(40, 64<<20)
	image, _ := shape{"1.1", 65536, compression, 0}.make(b, guest)
	return image, int64(len(guest))
}

func BenchmarkSequentialRead(b *testing.B) {
	for _, compression := range []string{"", "zlib", "zstd"} {
		b.Run("compression="+compression, func(b *testing.B) {
			image, size := benchImage(b, compression)
			p := make([]byte, 1<<20)
			b.SetBytes(size)
			for b.Loop() {
				m := open(b, openFile(b, image))
				for off := int64(0); off < size; off += int64(len(p)) {
					if err := disk.ReadFull(m, p, off); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}

// BenchmarkRewrite edits 20 scattered blocks of 4 KiB. REMASTER_BENCH_QCOW2 names an
// image to take instead of a small one.
func BenchmarkRewrite(b *testing.B) {
	image := os.Getenv("REMASTER_BENCH_QCOW2")
	if image == "" {
		image, _ = benchImage(b, "zlib")
	}
	f := openFile(b, image)
	b.ReportAllocs()
	for b.Loop() {
		m := open(b, f)
		c, guest := disk.NewOverlay(f, disk.OverlayOptions{}), disk.NewOverlay(m, disk.OverlayOptions{})
		rng := rand.New(rand.NewPCG(41, 41))
		for k := range 20 {
			p := make([]byte, 4096)
			p[0] = byte(k + 1)
			if _, err := guest.WriteAt(p, rng.Int64N(m.Size()/4096)*4096); err != nil {
				b.Fatal(err)
			}
		}
		if err := m.Rewrite(c, guest); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(c.Size()-f.Size()), "grown-B")
		if err := c.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCheck(b *testing.B) {
	image := os.Getenv("REMASTER_BENCH_QCOW2")
	if image == "" {
		image, _ = benchImage(b, "zlib")
	}
	f := openFile(b, image)
	for b.Loop() {
		if _, err := Check(f); err != nil {
			b.Fatal(err)
		}
	}
}
