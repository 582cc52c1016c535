package qcow2

import (
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"remaster/internal/oracle"
	"remaster/pkg/disk"
)

func TestReadEqualsWhatQemuWrote(t *testing.T) {
	for _, s := range shapes() {
		t.Run(s.String(), func(t *testing.T) {
			t.Parallel()
			guest := s.guest(1)
			image, _ := s.make(t, guest)
			m := open(t, openFile(t, image))
			wantBytes(t, "one read", readAll(t, m), guest)
			rng := rand.New(rand.NewPCG(2, 2))
			p := make([]byte, 600_000)
			for range 60 {
				off := rng.IntN(len(guest))
				n := min(1+rng.IntN(1<<rng.IntN(20)), len(guest)-off, len(p))
				if err := disk.ReadFull(m, p[:n], int64(off)); err != nil {
					t.Fatal(err)
				}
				wantBytes(t, fmt.Sprintf("%d bytes at %d", n, off), p[:n], guest[off:off+n])
			}
			if n, err := m.ReadAt(p[:1024], m.Size()-512); n != 512 || err != io.EOF {
				t.Errorf("read over the end: %d, %v", n, err)
			}
			info := m.Info()
			if info.ClusterSize != int64(s.clusterSize) || info.Version != map[string]int{"0.10": 2, "1.1": 3}[s.compat] ||
				s.refcount != 0 && info.RefcountBits != s.refcount || (s.compression == "zstd") != (info.Compression == Zstd) {
				t.Errorf("info %+v", info)
			}
			wantZerosLikeQemu(t, m, image, true)
			if u, err := Check(openFile(t, image)); err != nil || u.Leaked != 0 {
				t.Errorf("check: %+v, %v", u, err)
			}
		})
	}
}

// wantZerosLikeQemu compares the extents of m with qemu-img's map, which also knows
// the holes of the file: not exact, ours may be a part of its.
func wantZerosLikeQemu(t *testing.T, m *Image, image string, exact bool) {
	t.Helper()
	var want []struct {
		Start, Length int64
		Zero          bool
	}
	if err := json.Unmarshal([]byte(oracle.Run(t, "qemu-img", "map", "--output=json", "-f", "qcow2", image)), &want); err != nil {
		t.Fatal(err)
	}
	var qemu, ours disk.Ranges
	for _, e := range want {
		if e.Zero {
			qemu.Add(disk.Range{Off: e.Start, Len: e.Length})
		}
	}
	at := int64(0)
	for e, err := range m.Extents(disk.Whole(m)) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Off != at || e.Len <= 0 {
			t.Fatalf("extent %v does not begin at %d", e, at)
		}
		at = e.End()
		if e.Zero {
			ours.Add(e.Range)
		}
	}
	if at != m.Size() {
		t.Fatalf("extents end at %d", at)
	}
	if a, b := fmt.Sprint(collect(&ours)), fmt.Sprint(collect(&qemu)); exact && a != b {
		t.Fatalf("zero extents\n%s\nqemu-img map:\n%s", a, b)
	}
	n := qemu.Len()
	for r := range ours.All() {
		qemu.Add(r)
	}
	if qemu.Len() != n {
		t.Fatalf("zero extents %v are more than qemu-img map's", collect(&ours))
	}
}

func collect(s *disk.Ranges) (out []disk.Range) {
	for r := range s.All() {
		out = append(out, r)
	}
	return out
}

func TestReadAfterQemuIO(t *testing.T) {
	dir := t.TempDir()
	for _, o := range []string{
		"compat=1.1", "compat=0.10", "compat=1.1,cluster_size=4096", "compat=1.1,lazy_refcounts=on",
		"compat=1.1,preallocation=metadata", "compat=1.1,preallocation=full", "compat=0.10,preallocation=metadata,cluster_size=512",
	} {
		t.Run(o, func(t *testing.T) {
			image, raw := filepath.Join(dir, "a.qcow2"), filepath.Join(dir, "a.raw")
			oracle.Run(t, "qemu-img", "create", "-f", "qcow2", "-o", o, image, "9437696")
			oracle.Run(t, "qemu-io", "-f", "qcow2", "-c", "write -P 1 1M 3M", "-c", "write -z 1536k 300k", "-c", "write -z -u 2M 256k",
				"-c", "discard 3M 128k", "-c", "write -P 2 4097k 5k", "-c", "write -z 6M 64k", "-c", "write -P 3 9437184 512", image)
			oracle.Run(t, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, raw)
			m := open(t, openFile(t, image))
			wantBytes(t, "guest", readAll(t, m), readAll(t, openFile(t, raw)))
			wantZerosLikeQemu(t, m, image, !strings.Contains(o, "preallocation=metadata"))
			if u, err := Check(openFile(t, image)); err != nil || u.Leaked != 0 {
				t.Errorf("check: %+v, %v", u, err)
			}
		})
	}
}

func TestReadActiveStateWithSnapshots(t *testing.T) {
	image, _ := shape{"1.1", 65536, "zlib", 0}.make(t, guestBytes(3, 1<<20))
	oracle.Run(t, "qemu-img", "snapshot", "-c", "one", image)
	oracle.Run(t, "qemu-io", "-f", "qcow2", "-c", "write -P 9 100k 300k", image)
	raw := image + ".raw"
	oracle.Run(t, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, raw)
	m := open(t, openFile(t, image))
	wantBytes(t, "guest", readAll(t, m), readAll(t, openFile(t, raw)))
	if m.Info().Snapshots != 1 {
		t.Errorf("info %+v", m.Info())
	}
}

// counting counts reads, and the bytes of a blob that were read.
type counting struct {
	disk.Blob
	reads, bytes atomic.Int64
}

func (c *counting) ReadAt(p []byte, off int64) (int, error) {
	c.reads.Add(1)
	c.bytes.Add(int64(len(p)))
	return c.Blob.ReadAt(p, off)
}

func TestSequentialReadsTouchEachClusterOnce(t *testing.T) {
	guest := guestBytes(4, 8<<20)
	for _, s := range []shape{{"1.1", 65536, "", 0}, {"1.1", 65536, "zlib", 0}, {"1.1", 65536, "zstd", 0}} {
		image, _ := s.make(t, guest)
		for _, step := range []int{4096, 100_000, 1 << 20} {
			f := openFile(t, image)
			b := &counting{Blob: f}
			m := open(t, b)
			p := make([]byte, step)
			for off := int64(0); off < m.Size(); off += int64(step) {
				if _, err := m.ReadAt(p, off); err != nil && err != io.EOF {
					t.Fatal(err)
				}
			}
			if got := b.bytes.Load(); s.compression != "" && got > f.Size()*11/10 {
				t.Errorf("%v in steps of %d: read %d bytes of a file of %d", s, step, got, f.Size())
			}
			if got := b.reads.Load(); step == 1<<20 && got > 80 {
				t.Errorf("%v: %d reads for 8 MiB in steps of 1 MiB", s, got)
			}
		}
	}
}

func TestReadsMayRunAtOnce(t *testing.T) {
	guest := guestBytes(5, 12<<20)
	image, _ := shape{"1.1", 65536, "zlib", 0}.make(t, guest)
	m := open(t, openFile(t, image))
	m.clusters = newCache(1, 1) // evict all the time
	var wg sync.WaitGroup
	for k := range 8 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(k), 6))
			p := make([]byte, 200_000)
			for range 50 {
				off := rng.IntN(len(guest) - len(p))
				n := 1 + rng.IntN(len(p))
				if err := disk.ReadFull(m, p[:n], int64(off)); err != nil {
					t.Error(err)
					return
				}
				if string(p[:n]) != string(guest[off:off+n]) {
					t.Errorf("%d bytes at %d differ", n, off)
					return
				}
			}
		})
	}
	wg.Wait()
}
