package oracle

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestKernelAndDebugFSSeeTheSame(t *testing.T) {
	if !canMount(t) {
		t.Skip("nothing can be mounted here")
	}
	dir := t.TempDir()
	src := filepath.Join(dir, "src")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(filepath.Join(src, "a dir", "b"), 0o755))
	must(os.WriteFile(filepath.Join(src, "a dir", "file"), []byte("content\n"), 0o640))
	must(os.Chmod(filepath.Join(src, "a dir"), 0o755|os.ModeSticky|os.ModeSetgid))
	must(os.Link(filepath.Join(src, "a dir", "file"), filepath.Join(src, "second name")))
	must(os.Symlink("short", filepath.Join(src, "link")))
	must(os.Symlink(strings.Repeat("long/", 40), filepath.Join(src, "long link")))
	must(syscall.Mkfifo(filepath.Join(src, "fifo"), 0o600))
	must(os.Chown(filepath.Join(src, "fifo"), 7, 100_000))
	img := filepath.Join(dir, "img")
	Run(t, "mke2fs", "-q", "-t", "ext4", "-d", src, img, "8M")
	big := filepath.Join(dir, "big")
	must(os.WriteFile(big, []byte(strings.Repeat("v\x00", 300)), 0o644))
	Run(t, "debugfs", "-w", "-R", "ea_set -f "+big+" \"/second name\" user.big", img)

	f := FileSystems(t, img)
	if len(f) != 1 || f[0].Type != "ext4" || f[0].Part != 0 {
		t.Fatalf("file systems: %+v", f)
	}
	m, d := byMount(t, img, f[0]), byDebugFS(t, img, f[0])
	if len(m) != 9 || m["/a dir/file"].Xattrs["user.big"] == "" || m["/fifo"].GID != 100_000 {
		t.Errorf("the kernel sees %d files: %v", len(m), m)
	}
	for _, diff := range Diff(m, d) {
		t.Error(diff)
	}
}
