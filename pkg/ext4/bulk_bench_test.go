package ext4

import (
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"runtime/metrics"
	"strings"
	"sync"
	"testing"
	"time"

	"remaster/internal/oracle"
	"remaster/pkg/disk"
)

// payloads are the trees that BenchmarkPlace places. Their bytes are random, so that
// nobody can leave any out.
var payloads = []struct {
	name  string
	files int
	size  int // of each
}{
	{"5000x300B", 5000, 300},
	{"200MB", 1, 200e6},
	{"300files200MB", 300, 666_667},
}

func payload(b *testing.B, files, size int) string {
	b.Helper()
	dir := b.TempDir()
	r := rand.NewChaCha8([32]byte{})
	buf := make([]byte, size)
	for i := range files {
		r.Read(buf)
		p := filepath.Join(dir, fmt.Sprintf("usr/local/lib/d%d", i/1000), fmt.Sprintf("file-%d", i))
		must(0, os.MkdirAll(filepath.Dir(p), 0o755))
		must(0, os.WriteFile(p, buf, 0o644))
	}
	return dir
}

// BenchmarkPlace places trees in a file system in a file, by CopyTree, by the kernel on
// a loop mount (mount, cp -r, sync, umount) and by debugfs -w; each ends with a sync of
// the image. The first is measured on the file itself and on an overlay of 16 MiB over
// it; both verify and read back all that was written. peak-MB is the most that the
// process had from the system, all in all, in the last round.
func BenchmarkPlace(b *testing.B) {
	for _, p := range payloads {
		src := payload(b, p.files, p.size)
		base := mkfs(b, variant{"bulk", []string{"-b", "4096", "-N", "20000", "-O", rhel8}, 600}, "")
		fresh := func(b *testing.B) string {
			b.StopTimer()
			defer b.StartTimer()
			img := filepath.Join(b.TempDir(), "copy.img")
			oracle.Run(b, "cp", "--sparse=always", base, img)
			debug.FreeOSMemory() // of what made the payload, and of the round before
			return img
		}
		b.Run(p.name+"/CopyTree", func(b *testing.B) {
			for b.Loop() {
				f := openFile(b, fresh(b))
				peak := watchMemory()
				place1(b, writable{disk.AsDisk(f), f}, os.DirFS(src))
				must(0, f.Sync())
				b.ReportMetric(peak(), "peak-MB")
			}
		})
		b.Run(p.name+"/overlay", func(b *testing.B) {
			for b.Loop() {
				f := openFile(b, fresh(b))
				peak := watchMemory()
				ov := disk.NewOverlay(f, disk.OverlayOptions{MemoryLimit: 16 << 20})
				place1(b, ov, os.DirFS(src))
				b.ReportMetric(peak(), "peak-MB")
				ov.Close()
			}
		})
		b.Run(p.name+"/mount", func(b *testing.B) {
			if !canMount(b) {
				oracle.Missing(b, "loop mounts do not work here")
			}
			for b.Loop() {
				img := fresh(b)
				dir := b.TempDir()
				sh := fmt.Sprintf("mount -o loop %s %s && cp -r %s/. %s && sync -f %s && umount %s && sync %s", img, dir, src, dir, dir, dir, img)
				if out, err := exec.Command("sh", "-c", sh).CombinedOutput(); err != nil {
					b.Fatalf("%v %s", err, out)
				}
			}
		})
		b.Run(p.name+"/debugfs", func(b *testing.B) {
			cmds := debugfsScript(b, src)
			for b.Loop() {
				img := fresh(b)
				oracle.TryInput(b, cmds, "debugfs", "-w", "-f", "-", img)
				must(0, exec.Command("sync", img).Run())
			}
		})
	}
}

func place1(b *testing.B, w disk.Writable, src fs.FS) {
	e := must(Edit(w, EditOptions{Now: now}))
	must(e.CopyTree(e.Root(), FromFS(src), CopyOptions{}))
	if err := e.Flush(); err != nil {
		b.Fatal(err)
	}
}

func debugfsScript(b *testing.B, src string) []byte {
	var cmds strings.Builder
	must(0, fs.WalkDir(os.DirFS(src), ".", func(p string, d fs.DirEntry, err error) error {
		switch {
		case p == ".":
		case d.IsDir():
			fmt.Fprintf(&cmds, "mkdir /%s\n", p)
		default:
			fmt.Fprintf(&cmds, "write %s /%s\n", filepath.Join(src, p), p)
		}
		return err
	}))
	return []byte(cmds.String())
}

// watchMemory samples how much memory the process has from the system; the function
// that it returns gives the most, in MB.
func watchMemory() func() float64 {
	most := 0.0
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		s := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
		for {
			metrics.Read(s)
			most = max(most, float64(s[0].Value.Uint64()-s[1].Value.Uint64())/1e6)
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
			}
		}
	})
	return func() float64 { close(stop); wg.Wait(); return most }
}
