package ext4

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"remaster/internal/oracle"
	"remaster/pkg/disk"
)

// fileDisk is an image in a file.
type fileDisk struct {
	*os.File
	size int64
}

func (f *fileDisk) Size() int64 { return f.size }

func openFile(tb testing.TB, path string) *fileDisk {
	tb.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { f.Close() })
	fi, err := f.Stat()
	if err != nil {
		tb.Fatal(err)
	}
	return &fileDisk{f, fi.Size()}
}

// writable makes an image in a file a disk.Writable.
type writable struct {
	disk.Disk
	io.WriterAt
}

func onFile(tb testing.TB, path string) disk.Writable {
	f := openFile(tb, path)
	return writable{disk.AsDisk(f), f}
}

// rhel8 are the features that mke2fs of RHEL 8 and its relatives gives a root file system.
const rhel8 = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum"

// variant is a way of making a file system.
type variant struct {
	name string
	args []string
	mb   int
}

var variants = []variant{
	{"rhel8", []string{"-b", "4096", "-O", rhel8}, 64},
	{"1k", []string{"-b", "1024", "-O", rhel8}, 32},
	{"2k-inode512", []string{"-b", "2048", "-I", "512", "-O", rhel8}, 32},
	{"no64bit", []string{"-b", "4096", "-O", rhel8 + ",^64bit"}, 48},
	{"gdt_csum", []string{"-b", "4096", "-O", rhel8 + ",^metadata_csum,uninit_bg"}, 48},
	{"gdt_csum-1k-32bit", []string{"-b", "1024", "-O", rhel8 + ",^metadata_csum,uninit_bg,^64bit"}, 32},
	{"no-csum", []string{"-b", "4096", "-O", rhel8 + ",^metadata_csum"}, 48},
	{"inode128", []string{"-b", "4096", "-I", "128", "-O", rhel8 + ",^extra_isize"}, 48},
	{"inode1024", []string{"-b", "4096", "-I", "1024", "-O", rhel8}, 48},
	{"no-flex_bg", []string{"-b", "1024", "-O", rhel8 + ",^flex_bg"}, 48},
	{"meta_bg", []string{"-b", "1024", "-O", rhel8 + ",^resize_inode,meta_bg"}, 96},
	{"csum_seed", []string{"-b", "4096", "-O", rhel8 + ",metadata_csum_seed"}, 48},
	{"orphan_file", []string{"-b", "4096", "-O", rhel8 + ",orphan_file,metadata_csum_seed"}, 48},
	{"sparse_super2", []string{"-b", "1024", "-O", rhel8 + ",sparse_super2,^resize_inode"}, 64},
	{"ext3", []string{"-t", "ext3", "-b", "1024", "-I", "128"}, 32},
	{"ext3-4k", []string{"-t", "ext3", "-b", "4096", "-I", "256"}, 48},
	{"ext2-nofiletype", []string{"-t", "ext2", "-b", "1024", "-O", "none,sparse_super"}, 16},
	{"64k", []string{"-b", "65536", "-O", rhel8}, 256},
	{"small-groups", []string{"-b", "1024", "-g", "1024", "-N", "4096", "-O", rhel8}, 32},
}

// mkfs makes a file system from the folder src, which may be "", and returns the
// image's path.
func mkfs(tb testing.TB, v variant, src string) string {
	tb.Helper()
	img := filepath.Join(tb.TempDir(), "fs.img")
	if err := os.WriteFile(img, nil, 0o644); err != nil {
		tb.Fatal(err)
	}
	if err := os.Truncate(img, int64(v.mb)<<20); err != nil {
		tb.Fatal(err)
	}
	args := []string{"-q", "-F", "-U", "1114fe9e-2309-4580-b183-d778e6d97397",
		"-E", "hash_seed=1114fe9e-2309-4580-b183-d778e6d97397,nodiscard"}
	if src != "" {
		args = append(args, "-d", src)
	}
	args = append(args, v.args...)
	oracle.Run(tb, "mke2fs", append(args, img)...)
	return img
}

// fsck fails the test unless e2fsck finds the image clean, and shows what it said.
func fsck(tb testing.TB, img string) {
	tb.Helper()
	if r := oracle.Try(tb, "e2fsck", "-fn", img); r.Code != 0 {
		tb.Fatalf("e2fsck -fn: exit %d\n%.6000s%s", r.Code, r.Stdout, r.Stderr)
	}
}

// mounted mounts the image with the kernel, calls fn with the folder and unmounts. The
// test is skipped where that can't be done.
func mounted(tb testing.TB, img string, ro bool, fn func(dir string)) {
	tb.Helper()
	if !canMount(tb) {
		tb.Skip("loop mounts do not work here")
	}
	dir := tb.TempDir()
	opts := "loop"
	if ro {
		opts += ",ro,noload"
	}
	if out, err := exec.Command("mount", "-o", opts, img, dir).CombinedOutput(); err != nil {
		tb.Fatalf("mount: %v\n%s", err, out)
	}
	defer func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			tb.Errorf("umount: %v\n%s", err, out)
		}
	}()
	fn(dir)
}

func canMount(tb testing.TB) bool {
	if os.Getuid() != 0 {
		return false
	}
	img := mkfs(tb, variant{"probe", []string{"-t", "ext2"}, 1}, "")
	dir := tb.TempDir()
	if exec.Command("mount", "-o", "loop", img, dir).Run() != nil {
		return false
	}
	return exec.Command("umount", dir).Run() == nil
}

// compareWithHost walks the file system and the folder that shows the same one, and
// reports each difference.
func compareWithHost(tb testing.TB, f *FS, host string) int {
	tb.Helper()
	n := 0
	var walk func(ino Ino, path string)
	walk = func(ino Ino, path string) {
		n++
		if err := sameObject(f, ino, path); err != nil {
			tb.Errorf("%s: %v", path, err)
		}
		st, err := f.Stat(ino)
		if err != nil || !st.Mode.IsDir() {
			return
		}
		ents, err := f.ReadDir(ino)
		if err != nil {
			tb.Errorf("%s: %v", path, err)
			return
		}
		want, err := os.ReadDir(path)
		if err != nil {
			tb.Fatal(err)
		}
		if len(want) != len(ents) {
			tb.Errorf("%s: %d entries, the kernel has %d", path, len(ents), len(want))
			return
		}
		for i, e := range ents {
			if e.Name != want[i].Name() || e.Type != want[i].Type() {
				tb.Errorf("%s: entry %v, the kernel has %v", path, e, want[i])
			}
			got, err := f.Lookup(ino, e.Name)
			if err != nil || got != e.Ino {
				tb.Errorf("%s/%s: lookup gives %d, %v, not %d", path, e.Name, got, err, e.Ino)
			}
			walk(e.Ino, filepath.Join(path, e.Name))
		}
	}
	walk(f.Root(), host)
	return n
}

func sameObject(f *FS, ino Ino, path string) error {
	st, err := f.Stat(ino)
	if err != nil {
		return err
	}
	fi, err := os.Lstat(path)
	if err != nil {
		return err
	}
	sys := fi.Sys().(*syscall.Stat_t)
	if uint64(ino) != sys.Ino && ino != 2 || fi.Mode() != st.Mode || sys.Uid != st.UID || sys.Gid != st.GID ||
		int(sys.Nlink) != st.Links || fi.Size() != st.Size || sys.Blocks != st.Blocks {
		return fmt.Errorf("stat %+v, the kernel has %v %+v", st, fi.Mode(), sys)
	}
	if !fi.ModTime().Equal(st.Mtime) {
		return fmt.Errorf("mtime %v, the kernel has %v", st.Mtime, fi.ModTime())
	}
	xs, err := f.Xattrs(ino)
	if err != nil {
		return err
	}
	if err := sameXattrs(xs, path); err != nil {
		return err
	}
	switch st.Mode.Type() {
	case 0:
		return sameContent(f, ino, path)
	case fs.ModeSymlink:
		got, err := f.Readlink(ino)
		if err != nil {
			return err
		}
		if want, _ := os.Readlink(path); got != want {
			return fmt.Errorf("link to %q, the kernel has %q", got, want)
		}
	}
	return nil
}

func sameContent(f *FS, ino Ino, path string) error {
	file, err := f.File(ino)
	if err != nil {
		return err
	}
	want, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	got, err := io.ReadAll(io.NewSectionReader(file, 0, file.Size()))
	if err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("content of %d bytes differs", len(want))
	}
	return nil
}

func sameXattrs(xs map[string][]byte, path string) error {
	buf := make([]byte, 1<<16)
	n, err := llistxattr(path, buf)
	if err != nil {
		return err
	}
	names := strings.Split(strings.TrimRight(string(buf[:n]), "\x00"), "\x00")
	if n == 0 {
		names = nil
	}
	if len(names) != len(xs) {
		return fmt.Errorf("attributes %q, the kernel has %q", xs, names)
	}
	for _, name := range names {
		v := make([]byte, 1<<16)
		n, err := lgetxattr(path, name, v)
		if err != nil {
			return err
		}
		if got, ok := xs[name]; !ok || !bytes.Equal(got, v[:n]) {
			return fmt.Errorf("attribute %s is %q, the kernel has %q", name, got, v[:n])
		}
	}
	return nil
}
