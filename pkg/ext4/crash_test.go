package ext4

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"remaster/internal/oracle"
	"remaster/pkg/disk"
)

// crash mounts an image with the kernel, lets it work and returns a copy of the image
// that was taken meanwhile: what is left when a machine stops.
func crash(t testing.TB, img, opts string, work func(host string)) string {
	t.Helper()
	if !canMount(t) {
		t.Skip("loop mounts do not work here")
	}
	dir, out := t.TempDir(), filepath.Join(t.TempDir(), "crash.img")
	if b, err := exec.Command("mount", "-o", strings.Trim("loop,"+opts, ","), img, dir).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v\n%s", err, b)
	}
	defer func() {
		if b, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v\n%s", err, b)
		}
	}()
	work(dir)
	oracle.Run(t, "cp", "--sparse=always", img, out)
	return out
}

// byKernel lets the kernel recover a copy of an image.
func byKernel(t *testing.T, img string) string {
	t.Helper()
	out := copyFile(t, img)
	crash(t, out, "", func(string) {})
	return out
}

var freeCounts = regexp.MustCompile(`(?m)^(Free (blocks|inodes)|Filesystem (features|state)|First orphan inode):.*$`)

// sameAsKernel recovers an image, and compares with what the kernel makes of it.
func sameAsKernel(t *testing.T, img string) *Recovery {
	t.Helper()
	t.Helper()
	want := byKernel(t, img)
	fsck(t, want)
	got, rec := recovered(t, img)
	for _, d := range oracle.Diff(oracle.Volumes(t, want)[0].Tree, oracle.Volumes(t, got)[0].Tree) {
		// The kernel gives a truncated file the time of its truncation.
		if d.Before == nil || d.After == nil || rec.Truncated == 0 || !slices.Equal(d.Fields, []string{"MTime", "CTime"}) {
			t.Error(d)
		}
	}
	counts := func(img string) []string {
		return freeCounts.FindAllString(oracle.Run(t, "dumpe2fs", "-h", img), -1)
	}
	if w, g := counts(want), counts(got); !slices.Equal(w, g) {
		t.Errorf("%q, the kernel has %q", g, w)
	}
	// And the kernel must be able to go on.
	crash(t, got, "", func(host string) {
		must(0, os.MkdirAll(filepath.Join(host, "after/that"), 0o755))
		must(0, os.WriteFile(filepath.Join(host, "after/that/file"), make([]byte, 100_000), 0o644))
	})
	fsck(t, got)
	return rec
}

// busy makes, changes and removes files at random. Some are removed while they are
// open. It ends in the middle of things: what was last done is not in the journal yet.
func busy(t *testing.T, host string, r *rand.Rand, rounds int) {
	t.Helper()
	var paths []string
	sync := func() {
		f := must(os.OpenFile(filepath.Join(host, "sync"), os.O_CREATE|os.O_WRONLY, 0o644))
		must(fmt.Fprint(f, r.Uint64()))
		must(0, f.Sync())
		f.Close()
	}
	content := func() []byte {
		b := make([]byte, r.IntN(60_000))
		for i := 0; i < len(b); i += 512 {
			b[i] = byte(r.Uint32())
		}
		if len(b) > 4 && r.IntN(3) == 0 {
			putBE32(b, 0, jMagic) // must be escaped where data go into the journal
		}
		return b
	}
	some := func() string {
		if len(paths) == 0 {
			return filepath.Join(host, "none")
		}
		return paths[r.IntN(len(paths))]
	}
	// Errors are part of the game: what a path leads to may be gone, or not a file.
	for i := range rounds {
		p := filepath.Join(host, fmt.Sprintf("d%d", r.IntN(5)), fmt.Sprintf("a-rather-long-name-for-%d-a-file", i))
		switch r.IntN(12) {
		case 0, 1, 2, 3:
			os.MkdirAll(filepath.Dir(p), 0o755)
			os.WriteFile(p, content(), 0o640)
			paths = append(paths, p)
		case 4:
			os.WriteFile(some(), content(), 0o600)
		case 5:
			os.Rename(some(), p)
			paths = append(paths, p)
		case 6:
			os.Remove(some())
		case 7:
			os.RemoveAll(filepath.Dir(p)) // blocks of folders become free: they are revoked
		case 8:
			os.Symlink(strings.Repeat("x", 1+r.IntN(100)), p)
			syscall.Setxattr(some(), "user.note", make([]byte, r.IntN(500)), 0)
		case 9:
			os.Truncate(some(), int64(r.IntN(100_000)))
		case 10:
			q := some()
			if f, err := os.OpenFile(q, os.O_RDWR, 0); err == nil {
				t.Cleanup(func() { f.Close() })
				defer f.Close()
				os.Remove(q)
				f.Write(content())
				f.WriteAt([]byte("far"), int64(r.IntN(1<<20)))
			}
		case 11:
			sync()
		}
	}
	sync()
	os.WriteFile(filepath.Join(host, "not-committed"), content(), 0o644)
	os.RemoveAll(filepath.Join(host, "d1"))
}

func TestCrashedFileSystemIsAsTheKernelLeavesIt(t *testing.T) {
	small := variant{"1k-small-journal", []string{"-b", "1024", "-O", rhel8, "-J", "size=1"}, 24}
	for i, c := range []struct {
		v    variant
		opts string
		soak bool // only if more than one run is asked for
	}{
		{variantNamed("rhel8"), "", false},
		{variantNamed("rhel8"), "data=journal", true},
		{variantNamed("rhel8"), "data=writeback,journal_async_commit", true},
		{small, "", true},
		{small, "data=journal", false},
		{variantNamed("no-csum"), "journal_checksum", true},
		{variantNamed("no-csum"), "data=writeback,journal_checksum,journal_async_commit", false},
		{variantNamed("gdt_csum-1k-32bit"), "", true},
		{variantNamed("orphan_file"), "", false},
		{variantNamed("ext3"), "", false},
		{variantNamed("meta_bg"), "data=journal", true},
	} {
		if c.soak && *modelRuns == 1 {
			continue
		}
		t.Run(c.v.name+" "+c.opts, func(t *testing.T) {
			for run := range uint64(*modelRuns) {
				r := rand.New(rand.NewPCG(*modelSeed+run, uint64(i)))
				img := crash(t, mkfs(t, c.v, ""), c.opts, func(host string) { busy(t, host, r, 150+r.IntN(300)) })
				rec := sameAsKernel(t, img)
				t.Log(rec)
				if rec.Transactions == 0 {
					t.Error("nothing was replayed")
				}
			}
		})
	}
}

// syncFS makes the kernel commit what it has of a mounted file system.
func syncFS(t testing.TB, host string) {
	t.Helper()
	d := must(os.Open(host))
	defer d.Close()
	must(0, unix.Syncfs(int(d.Fd())))
}

// BenchmarkRecover replays a journal of some MiB from memory to memory.
func BenchmarkRecover(b *testing.B) {
	if !canMount(b) {
		b.Skip("loop mounts do not work here")
	}
	v := variant{"", []string{"-b", "4096", "-O", rhel8, "-J", "size=32"}, 128}
	img := crash(b, mkfs(b, v, ""), "data=journal", func(host string) {
		must(0, os.WriteFile(filepath.Join(host, "file"), make([]byte, 6<<20), 0o644))
		syncFS(b, host)
	})
	base := disk.Bytes(must(os.ReadFile(img)))
	b.ReportAllocs()
	for b.Loop() {
		o := disk.NewOverlay(base, disk.OverlayOptions{})
		rec, err := Recover(o, EditOptions{})
		if err != nil || rec.Blocks < 6<<20/4096 {
			b.Fatal(rec, err)
		}
		b.SetBytes(int64(rec.Blocks) * 4096)
		o.Close()
	}
}
