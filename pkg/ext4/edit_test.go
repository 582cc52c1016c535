package ext4

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"remaster/internal/hint"
	"remaster/internal/oracle"
	"remaster/pkg/disk"
)

var rhel8Variant = variants[0]

// edit opens an image for editing with the options of the tests.
func edit(t testing.TB, d disk.Writable) *Editor {
	t.Helper()
	e, err := Edit(d, EditOptions{Now: now, Generation: 1})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func flush(t testing.TB, e *Editor) {
	t.Helper()
	if err := e.Flush(); err != nil {
		t.Fatal(err)
	}
}

func TestReplaceKeepsInode(t *testing.T) {
	for _, n := range []int{0, 1, 40, 5000, 3 << 20} {
		img := mkfs(t, rhel8Variant, seedTree(t))
		oracle.Run(t, "debugfs", "-w", "-R", "ln /etc/fstab /etc/second", img)
		oracle.Run(t, "debugfs", "-w", "-R", "sif /etc/fstab links_count 2", img)
		oracle.Run(t, "debugfs", "-w", "-R", "ea_set /etc/fstab security.selinux system_u:object_r:etc_t:s0", img)
		oracle.Run(t, "debugfs", "-w", "-R", "sif /etc/fstab flags 0x80080", img)
		e := edit(t, onFile(t, img))
		ino := must(place(e, "etc/fstab", false))
		before := must(e.Stat(ino))
		want := bytes.Repeat([]byte("n"), n)
		if err := e.SetContent(ino, disk.Bytes(want), time.Time{}); err != nil {
			t.Fatal(err)
		}
		flush(t, e)
		fsck(t, img)
		after := must(e.Stat(ino))
		if !after.Mtime.Equal(now) || !after.Ctime.Equal(now) {
			t.Errorf("times %v %v", after.Mtime, after.Ctime)
		}
		before.Mtime, before.Ctime, before.Size, before.Blocks = after.Mtime, after.Ctime, int64(n), after.Blocks
		if *before != *after {
			t.Errorf("%+v became %+v", before, after)
		}
		if x := must(e.Xattrs(ino)); len(x) != 1 || string(x["security.selinux"]) != "system_u:object_r:etc_t:s0" {
			t.Errorf("attributes %q", x)
		}
		if got := oracle.Run(t, "debugfs", "-R", "cat /etc/second", img); got != string(want) {
			t.Errorf("debugfs reads %d bytes, want %d", len(got), n)
		}
	}
}

// TestSmallReplaceTouchesLittle replaces a small file by one of the same size: its
// block is used again, so that no bitmap and no descriptor changes.
func TestSmallReplaceTouchesLittle(t *testing.T) {
	ov := disk.NewOverlay(openFile(t, mkfs(t, rhel8Variant, seedTree(t))), disk.OverlayOptions{})
	e := edit(t, ov)
	if err := e.Flush(); err != nil || ov.Dirty() {
		t.Fatalf("a Flush without changes writes, or fails: %v", err)
	}
	ino := must(place(e, "etc/fstab", false))
	if err := e.SetContent(ino, disk.Bytes("hello"), now); err != nil {
		t.Fatal(err)
	}
	flush(t, e)
	var n int64
	for r := range ov.Changed() {
		n += r.Len
	}
	if n != 3*4096 { // superblock, inode, data
		t.Errorf("%d bytes were written", n)
	}
}

func TestSameEditsGiveSameBytes(t *testing.T) {
	base := openFile(t, mkfs(t, rhel8Variant, seedTree(t)))
	var sum [2]string
	for i := range sum {
		ov := disk.NewOverlay(base, disk.OverlayOptions{})
		if err := configJob(ov); err != nil {
			t.Fatal(err)
		}
		e := edit(t, ov)
		dir := must(e.Mkdir(e.Root(), "new", Attr{Mode: 0o700}))
		for k := range 300 {
			x := map[string][]byte{"user.a": {1}, "user.b": {2}, "user.c": bytes.Repeat([]byte("c"), k)}
			must(e.Create(dir, fmt.Sprint("file", k), Attr{Mode: 0o600, Xattrs: x}, disk.Bytes("x")))
		}
		flush(t, e)
		all := make([]byte, ov.Size())
		if err := disk.ReadFull(ov, all, 0); err != nil {
			t.Fatal(err)
		}
		sum[i] = string(all)
	}
	if sum[0] != sum[1] {
		t.Error("two runs differ")
	}
}

func TestContentMayComeFromTheFileItself(t *testing.T) {
	img := mkfs(t, rhel8Variant, "")
	e := edit(t, onFile(t, img))
	for _, n := range []int{5000, 3 << 20} {
		data := bytes.Repeat([]byte("0123456789abcdef"), n/16)
		ino := must(e.Create(e.Root(), fmt.Sprint(n), Attr{}, disk.Bytes(data)))
		if err := e.SetContent(ino, must(e.File(ino)), now); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(data))
		if _, err := must(e.File(ino)).ReadAt(got, 0); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%d bytes: content changed, %v", n, err)
		}
	}
	flush(t, e)
	fsck(t, img)
}

func TestKernelAcceptsEdit(t *testing.T) {
	for _, i := range []int{0, 1, 4, 9, 12} {
		v := variants[i]
		t.Run(v.name, func(t *testing.T) {
			img := mkfs(t, v, seedTree(t))
			e := edit(t, onFile(t, img))
			dir := must(e.Mkdir(e.Root(), "new", Attr{Mode: 0o750, UID: 3}))
			for i := range 500 {
				must(e.Create(dir, fmt.Sprint("file-", i), Attr{Mode: 0o640, Xattrs: map[string][]byte{
					"security.selinux": []byte("system_u:object_r:etc_t:s0\x00"), "user.x": bytes.Repeat([]byte("v"), i),
				}}, disk.Bytes(strings.Repeat("line\n", i))))
			}
			for i := range 100 {
				if err := e.Remove(dir, fmt.Sprint("file-", 5*i)); err != nil {
					t.Fatal(err)
				}
			}
			must(e.Symlink(dir, "long", strings.Repeat("a/", 100), Attr{}))
			must(e.Mknod(dir, "null", fs.ModeDevice|fs.ModeCharDevice, 1, 3, Attr{Mode: 0o666}))
			must(e.Mknod(dir, "new-numbers", fs.ModeDevice, 259, 70000, Attr{Mode: 0o600}))
			flush(t, e)
			fsck(t, img)
			mounted(t, img, true, func(host string) {
				if n := compareWithHost(t, must(Open(e.w)), host); n < 500 {
					t.Errorf("%d objects only", n)
				}
			})
			// The kernel goes on where we have stopped.
			mounted(t, img, false, func(host string) {
				for i := range 300 {
					if err := os.WriteFile(filepath.Join(host, "new", fmt.Sprint("kernel-", i)), make([]byte, 3000), 0o600); err != nil {
						t.Fatal(err)
					}
				}
				if err := os.RemoveAll(filepath.Join(host, "many")); err != nil {
					t.Fatal(err)
				}
			})
			fsck(t, img)
			must(0, Check(onFile(t, img)))
		})
	}
}

func TestSharedAttributeBlockIsCopied(t *testing.T) {
	img := mkfs(t, rhel8Variant, "")
	value := strings.Repeat("s", 600)
	mounted(t, img, false, func(host string) {
		for _, name := range []string{"a", "b", "c"} {
			p := filepath.Join(host, name)
			if err := os.WriteFile(p, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.Command("setfattr", "-n", "user.shared", "-v", value, p).CombinedOutput(); err != nil {
				t.Skipf("setfattr: %v %s", err, out)
			}
		}
	})
	w := onFile(t, img)
	e := edit(t, w)
	a, b := must(place(e, "a", false)), must(place(e, "b", false))
	if must(e.inode(a)).fileACL() != must(e.inode(b)).fileACL() {
		t.Fatal("the kernel has not shared the block")
	}
	if err := e.SetXattr(a, "user.other", bytes.Repeat([]byte("o"), 100)); err != nil {
		t.Fatal(err)
	}
	if err := e.Remove(e.Root(), "c"); err != nil {
		t.Fatal(err)
	}
	flush(t, e)
	fsck(t, img)
	if x := must(e.Xattrs(b)); len(x) != 1 || string(x["user.shared"]) != value {
		t.Errorf("the other file's attributes are %q", x)
	}
	if x := must(e.Xattrs(a)); len(x) != 2 || string(x["user.shared"]) != value {
		t.Errorf("the file's attributes are %q", x)
	}
	must(0, Check(w))
}

func TestProtectedIsRefusedUnlessAsked(t *testing.T) {
	img := mkfs(t, rhel8Variant, seedTree(t))
	oracle.Run(t, "debugfs", "-w", "-R", "sif /etc/fstab flags 0x80010", img)
	w := onFile(t, img)
	e := edit(t, w)
	ino := must(place(e, "etc/fstab", false))
	err := e.SetContent(ino, disk.Bytes("x"), now)
	if !errors.Is(err, ErrProtected) || len(hint.Of(err)) == 0 {
		t.Errorf("content: %v", err)
	}
	if err := e.Remove(must(place(e, "etc", false)), "fstab"); !errors.Is(err, ErrProtected) {
		t.Errorf("remove: %v", err)
	}
	e = must(Edit(w, EditOptions{Now: now, ChangeProtected: true}))
	if err := e.SetContent(ino, disk.Bytes("x"), now); err != nil {
		t.Error(err)
	}
	flush(t, e)
	fsck(t, img)
}

func TestNamesAndTargetsThatCannotBe(t *testing.T) {
	e := edit(t, onFile(t, mkfs(t, rhel8Variant, "")))
	for _, name := range []string{"", ".", "..", "a/b", "a\x00b", strings.Repeat("x", 256)} {
		if _, err := e.Create(e.Root(), name, Attr{}, disk.Bytes(nil)); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("name %q: %v", name, err)
		}
	}
	for _, target := range []string{"", "a\x00b", strings.Repeat("x", 4096)} {
		if _, err := e.Symlink(e.Root(), "l", target, Attr{}); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("target of %d bytes: %v", len(target), err)
		}
	}
	for _, name := range []string{"user.", "nothing.x", "user", "system.posix_acl_access2x"} {
		if err := e.SetXattr(e.Root(), name, nil); !errors.Is(err, fs.ErrInvalid) && name[0] != 's' {
			t.Errorf("attribute %q: %v", name, err)
		}
	}
	file := must(e.Create(e.Root(), "file", Attr{}, disk.Bytes(nil)))
	if _, err := e.Create(file, "x", Attr{}, disk.Bytes(nil)); !errors.Is(err, ErrNotDir) {
		t.Errorf("create in a file: %v", err)
	}
	if err := e.Remove(e.Root(), "nothing"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("remove: %v", err)
	}
	if err := e.RemoveXattr(file, "user.none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("remove an attribute: %v", err)
	}
	if err := e.SetContent(journalIno, disk.Bytes("x"), now); err == nil {
		t.Error("the journal can be overwritten")
	}
}

func TestTimesBeyond2038(t *testing.T) {
	img := mkfs(t, rhel8Variant, "")
	e := edit(t, onFile(t, img))
	times := []time.Time{
		time.Date(1901, 12, 13, 20, 45, 52, 0, time.UTC), time.Date(1969, 7, 20, 1, 2, 3, 999999999, time.UTC), time.Unix(0, 1).UTC(),
		time.Date(2038, 1, 19, 3, 14, 8, 5, time.UTC), time.Date(2100, 1, 1, 0, 0, 0, 7, time.UTC), time.Date(2446, 5, 10, 22, 38, 55, 0, time.UTC),
	}
	for i, tm := range times {
		ino := must(e.Create(e.Root(), fmt.Sprint(i), Attr{MTime: tm}, disk.Bytes(nil)))
		if got := must(e.Stat(ino)).Mtime; !got.Equal(tm) {
			t.Errorf("%v became %v", tm, got)
		}
	}
	flush(t, e)
	fsck(t, img)
	mounted(t, img, true, func(host string) { compareWithHost(t, e.FS, host) })
}

func TestRestOfLastBlockIsZero(t *testing.T) {
	for _, n := range []int{5, 2<<20 + 5} {
		img := mkfs(t, rhel8Variant, "")
		e := edit(t, onFile(t, img))
		ino := must(e.Create(e.Root(), "f", Attr{}, disk.Bytes(bytes.Repeat([]byte{0xFF}, 3<<20))))
		flush(t, e)
		if err := e.SetContent(ino, disk.Bytes(bytes.Repeat([]byte{0xEE}, n)), now); err != nil {
			t.Fatal(err)
		}
		flush(t, e)
		b := make([]byte, 4096)
		m := must(e.fileMap(must(e.inode(ino))))
		last := m.runs[len(m.runs)-1]
		must(0, disk.ReadFull(e.w, b, int64(last.phys+last.n-1)*4096))
		if !bytes.Equal(b, append(bytes.Repeat([]byte{0xEE}, 5), make([]byte, 4091)...)) {
			t.Errorf("%d bytes: old bytes are left behind the end", n)
		}
	}
}
