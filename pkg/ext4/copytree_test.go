package ext4

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"remaster/internal/hint"
	"remaster/internal/oracle"
	"remaster/pkg/disk"
)

// archive makes a tar archive; the content of a file is as many bytes of its name.
func archive(t testing.TB, headers ...tar.Header) io.Reader {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		must(0, w.WriteHeader(&h))
		must(w.Write(bytes.Repeat([]byte(h.Name[len(h.Name)-1:]), int(h.Size))))
	}
	must(0, w.Close())
	return &b
}

var tarTime = time.Date(2020, 2, 3, 4, 5, 6, 0, time.UTC)

func payloadTar(t testing.TB) io.Reader {
	return archive(t,
		tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o700, Uid: 7},
		tar.Header{Name: "etc/", Typeflag: tar.TypeDir, Mode: 0o700, Uid: 7, ModTime: tarTime},
		tar.Header{Name: "./opt/cni/bin/bridge", Mode: 0o4755, Size: 2000000, Uid: 1000, Gid: 100000, ModTime: tarTime},
		tar.Header{Name: "opt/cni/bin/empty", Mode: 0o600, ModTime: tarTime},
		tar.Header{Name: "opt/cni/bin/other", Typeflag: tar.TypeLink, Linkname: "opt/cni/bin/bridge"},
		tar.Header{Name: "opt/short", Typeflag: tar.TypeSymlink, Linkname: "cni/bin", ModTime: tarTime},
		tar.Header{Name: "opt/long", Typeflag: tar.TypeSymlink, Linkname: strings.Repeat("../", 100) + "etc", ModTime: tarTime},
		tar.Header{Name: "opt/fifo", Typeflag: tar.TypeFifo, Mode: 0o600, ModTime: tarTime},
		tar.Header{Name: "opt/null", Typeflag: tar.TypeChar, Mode: 0o666, Devmajor: 1, Devminor: 3, ModTime: tarTime},
		tar.Header{Name: "opt/cni", Typeflag: tar.TypeDir, Mode: 0o1750, Gid: 9, ModTime: tarTime},
		tar.Header{Name: "opt/label", Size: 3, Mode: 0o644, ModTime: tarTime, PAXRecords: map[string]string{
			"RHT.security.selinux": "system_u:object_r:bin_t:s0", "SCHILY.xattr.user.x": "value",
			"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
		}},
		tar.Header{Name: "opt/twice", Size: 3, ModTime: tarTime, Mode: 0o644},
		tar.Header{Name: "opt/twice", Size: 9, ModTime: tarTime, Mode: 0o640},
	)
}

// TestCopyTarEqualsTar copies an archive and has GNU tar unpack it on a mounted copy.
func TestCopyTarEqualsTar(t *testing.T) {
	for _, i := range []int{0, 4, 9, 15} {
		v := variants[i]
		t.Run(v.name, func(t *testing.T) {
			img := mkfs(t, v, seedTree(t))
			e := edit(t, onFile(t, img))
			st := must(e.CopyTree(e.Root(), FromTar(payloadTar(t)), CopyOptions{Devices: true}))
			if want := (CopyStats{Files: 5, Folders: 3, Symlinks: 2, Links: 1, Special: 2, Bytes: 2000015}); st != want {
				t.Errorf("%+v, want %+v", st, want)
			}
			flush(t, e)
			fsck(t, img)
			must(0, Check(e.w))
			if st := must(e.Stat(must(place(e, "etc", false)))); st.UID != 0 || st.Mode.Perm() == 0o700 {
				t.Errorf("a folder that was there has become %v of %d", st.Mode, st.UID)
			}
			if st := must(e.Stat(must(place(e, "opt/cni", false)))); st.Mode != fs.ModeDir|fs.ModeSticky|0o750 || !st.Mtime.Equal(tarTime) {
				t.Errorf("a folder that came after its files is %v %v", st.Mode, st.Mtime)
			}
			mounted(t, img, true, func(host string) {
				compareWithHost(t, e.FS, host)
				ref := t.TempDir()
				file := filepath.Join(t.TempDir(), "a.tar")
				must(0, os.WriteFile(file, must(io.ReadAll(payloadTar(t))), 0o600))
				oracle.Run(t, "tar", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf", file, "-C", ref)
				sameTrees(t, filepath.Join(ref, "opt"), filepath.Join(host, "opt"))
			})
		})
	}
}

// sameTrees compares what lies in two folders of the host.
func sameTrees(t *testing.T, want, got string) {
	t.Helper()
	n := 0
	must(0, filepath.WalkDir(want, func(p string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(want, p)
		a, b := must(os.Lstat(p)), must(os.Lstat(filepath.Join(got, rel)))
		sa, sb := owner(a), owner(b)
		if a.Mode() != b.Mode() || sa != sb || !a.IsDir() && (a.Size() != b.Size() || !sameTime(a.ModTime(), b.ModTime())) {
			t.Errorf("%s: %v %v %v, want %v %v %v", rel, b.Mode(), sb, b.ModTime(), a.Mode(), sa, a.ModTime())
		}
		if a.Mode().IsRegular() && !bytes.Equal(must(os.ReadFile(p)), must(os.ReadFile(filepath.Join(got, rel)))) {
			t.Errorf("%s: content differs", rel)
		}
		if a.Mode()&fs.ModeSymlink != 0 && must(os.Readlink(p)) != must(os.Readlink(filepath.Join(got, rel))) {
			t.Errorf("%s: link differs", rel)
		}
		n++
		return err
	}))
	if n < 10 {
		t.Errorf("%d objects only", n)
	}
}

func TestCopyTreeKeepsAttributesOfTar(t *testing.T) {
	e := edit(t, onFile(t, mkfs(t, rhel8Variant, "")))
	must(e.CopyTree(e.Root(), FromTar(payloadTar(t)), CopyOptions{Devices: true}))
	x := must(e.Xattrs(must(place(e, "opt/label", false))))
	if len(x) != 3 || string(x["security.selinux"]) != "system_u:object_r:bin_t:s0\x00" || string(x["user.x"]) != "value" || len(x["security.capability"]) != 20 {
		t.Errorf("%q", x)
	}
}

func TestCopyTreeMapsAttributes(t *testing.T) {
	e := edit(t, onFile(t, mkfs(t, rhel8Variant, "")))
	seen := map[string]bool{}
	must(e.CopyTree(e.Root(), FromTar(payloadTar(t)), CopyOptions{Devices: true, Map: func(x *TreeEntry) error {
		seen[x.Path] = true
		x.UID, x.GID, x.MTime = 0, 0, now
		x.Xattrs = map[string][]byte{"security.selinux": []byte("l\x00")}
		return nil
	}}))
	for _, p := range []string{"opt", "opt/cni", "opt/cni/bin", "opt/cni/bin/bridge", "opt/long"} {
		ino := must(place(e, p, false))
		st := must(e.Stat(ino))
		if x := must(e.Xattrs(ino)); st.UID+st.GID != 0 || !st.Mtime.Equal(now) || string(x["security.selinux"]) != "l\x00" {
			t.Errorf("%s: %+v %q", p, st, x)
		}
	}
	if !seen["opt/cni/bin"] {
		t.Error("implied folders are not shown")
	}
}

func TestCopyTreeMeetsWhatIsThere(t *testing.T) {
	img := mkfs(t, rhel8Variant, seedTree(t))
	oracle.Run(t, "debugfs", "-w", "-R", "ea_set /etc/fstab security.selinux fstab_t", img)
	oracle.Run(t, "debugfs", "-w", "-R", "ea_set /etc/fstab security.capability xx", img)
	w := onFile(t, img)
	e := edit(t, w)
	src := func() io.Reader {
		return archive(t, tar.Header{Name: "etc/fstab", Size: 50, Mode: 0o600, ModTime: tarTime}, tar.Header{Name: "etc/new", Size: 50, Mode: 0o644},
			tar.Header{Name: "lib", Size: 5, Mode: 0o644})
	}
	ino := must(place(e, "etc/fstab", false))
	old := must(e.Stat(ino))
	if _, err := e.CopyTree(e.Root(), FromTar(src()), CopyOptions{}); !errors.Is(err, fs.ErrExist) || !strings.Contains(err.Error(), "etc/fstab") {
		t.Errorf("refuse: %v", err)
	}
	if _, err := place(e, "etc/new", false); err == nil {
		t.Error("something was left behind")
	}
	st := must(e.CopyTree(e.Root(), FromTar(src()), CopyOptions{Existing: KeepExisting}))
	if st.Kept != 2 || st.Files != 1 || must(e.Stat(ino)).Size != old.Size {
		t.Errorf("keep: %+v", st)
	}
	must(0, e.Remove(must(place(e, "etc", false)), "new"))
	st = must(e.CopyTree(e.Root(), FromTar(src()), CopyOptions{Existing: ReplaceExisting}))
	got := must(e.Stat(must(place(e, "etc/fstab", false))))
	if st.Replaced != 2 || got.Ino != ino || got.Size != 50 || got.Mode != 0o600 || !got.Mtime.Equal(tarTime) {
		t.Errorf("replace: %+v %+v", st, got)
	}
	if x := must(e.Xattrs(ino)); len(x) != 1 || string(x["security.selinux"]) != "fstab_t" {
		t.Errorf("attributes %q", x)
	}
	if st := must(e.Stat(must(place(e, "lib", false)))); !st.Mode.IsRegular() {
		t.Errorf("the link is %v", st.Mode)
	}
	for _, o := range []Existing{RefuseExisting, ReplaceExisting} {
		for _, h := range []tar.Header{{Name: "etc", Size: 5}, {Name: "etc/fstab", Typeflag: tar.TypeDir}, {Name: "etc/fstab/below", Size: 5}} {
			if _, err := e.CopyTree(e.Root(), FromTar(archive(t, h)), CopyOptions{Existing: o}); !errors.Is(err, fs.ErrExist) && !errors.Is(err, ErrNotDir) {
				t.Errorf("%s: %v", h.Name, err)
			}
		}
	}
	flush(t, e)
	fsck(t, img)
	must(0, Check(w))
}

func TestCopyTreeRefusesHostileArchives(t *testing.T) {
	img := mkfs(t, rhel8Variant, seedTree(t))
	w := onFile(t, img)
	e := edit(t, w)
	before := snapshot(e)
	dir := func(name string) tar.Header { return tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755} }
	for name, hs := range map[string][]tar.Header{
		"dot-dot":                {{Name: "a/../../etc/passwd", Size: 1}},
		"dot-dot alone":          {{Name: "..", Typeflag: tar.TypeDir}},
		"absolute":               {{Name: "/etc/passwd", Size: 1}},
		"long name":              {{Name: strings.Repeat("n", 256), Size: 1}},
		"long path":              {{Name: strings.Repeat("n/", 3000) + "x", Size: 1}},
		"top is a file":          {{Name: "./", Typeflag: tar.TypeSymlink, Linkname: "x"}},
		"through an old link":    {{Name: "lib/x", Size: 1}},
		"through a new link":     {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "/etc"}, {Name: "l/fstab2", Size: 1}},
		"hard link out":          {{Name: "h", Typeflag: tar.TypeLink, Linkname: "../../etc/shadow"}},
		"hard link absolute":     {{Name: "h", Typeflag: tar.TypeLink, Linkname: "/etc/fstab"}},
		"hard link to nothing":   {{Name: "h", Typeflag: tar.TypeLink, Linkname: "none"}},
		"hard link to folder":    {{Name: "h", Typeflag: tar.TypeLink, Linkname: "etc"}},
		"hard link to top":       {{Name: "h", Typeflag: tar.TypeLink, Linkname: "."}},
		"hard link through link": {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "etc"}, {Name: "h", Typeflag: tar.TypeLink, Linkname: "l/fstab"}},
		"hard link to itself":    {{Name: "h", Size: 1}, {Name: "h", Typeflag: tar.TypeLink, Linkname: "h"}},
		"device":                 {{Name: "sda", Typeflag: tar.TypeBlock, Devmajor: 8}},
		"owner":                  {{Name: "f", Uid: -5, Format: tar.FormatGNU}},
		"empty link":             {{Name: "l", Typeflag: tar.TypeSymlink}},
		"folder over a file":     {{Name: "f", Size: 1}, dir("f")},
		"file over a folder":     {dir("f"), {Name: "f", Size: 1}},
		"attribute name":         {{Name: "f", PAXRecords: map[string]string{"SCHILY.xattr.none": "x"}}},
		"large attribute":        {{Name: "f", PAXRecords: map[string]string{"SCHILY.xattr.user.x": strings.Repeat("x", 5000)}}},
		"bad ACL":                {{Name: "f", PAXRecords: map[string]string{"SCHILY.xattr.system.posix_acl_access": "x"}}},
		"ACL as text":            {{Name: "f", PAXRecords: map[string]string{"SCHILY.acl.access": "user::rwx"}}},
		"too many":               {{Name: "1"}, {Name: "2"}, {Name: "3"}, {Name: "4"}},
		"too much":               {{Name: "f", Size: 5000}, {Name: "g", Size: 5001}},
		"dot-dot below a file":   {{Name: "f", Size: 1}, {Name: "f/..", Size: 1}},
	} {
		_, err := e.CopyTree(e.Root(), FromTar(archive(t, hs...)), CopyOptions{Existing: ReplaceExisting, MaxEntries: 3, MaxBytes: 10000})
		if err == nil {
			t.Errorf("%s is accepted", name)
		}
		if after := snapshot(e); len(after) != len(before) || len(e.content) > 0 || len(e.touched) > 0 {
			t.Errorf("%s leaves %d dirty blocks, %d contents", name, len(after), len(e.content))
		}
		if name == "through an old link" && len(hint.Of(err)) == 0 {
			t.Error("no remedy")
		}
	}
	must(e.CopyTree(e.Root(), FromTar(archive(t, tar.Header{Name: "good", Size: 5000})), CopyOptions{}))
	flush(t, e)
	fsck(t, img)
}

// TestFailedCopyTreeLeavesOldContent runs out of space, and out of the archive, after
// old files were replaced.
func TestFailedCopyTreeLeavesOldContent(t *testing.T) {
	img := mkfs(t, rhel8Variant, seedTree(t))
	e := edit(t, onFile(t, img))
	must(0, e.SetContent(must(place(e, "many/file-with-a-name-149", false)), disk.Bytes("written before"), now))
	before := readModel(t, e.FS)
	hs := []tar.Header{{Name: "boot/grub2/grub.cfg", Size: 9000}, {Name: "many/file-with-a-name-149", Size: 9000}, {Name: "f", Size: 30 << 20}, {Name: "g", Size: 40 << 20}}
	full := must(io.ReadAll(archive(t, hs...)))
	for name, x := range map[string]struct {
		b    []byte
		want error
	}{
		"full": {full, ErrNoSpace}, "cut in a file": {full[:1<<20], io.ErrUnexpectedEOF}, "cut in a header": {full[:30<<20+2*(512+9216)+512+100], io.ErrUnexpectedEOF},
	} {
		if _, err := e.CopyTree(e.Root(), FromTar(bytes.NewReader(x.b)), CopyOptions{Existing: ReplaceExisting}); !errors.Is(err, x.want) {
			t.Fatalf("%s: %v", name, err)
		}
		if err := diff("", before, readModel(t, e.FS)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	flush(t, e)
	fsck(t, img)
	if err := diff("", before, readModel(t, must(Open(e.w)))); err != nil {
		t.Error(err)
	}
}

func TestCopyTreeFromFolder(t *testing.T) {
	src := seedTree(t)
	r := rand.New(rand.NewPCG(1, 1))
	for i := range 700 {
		p := filepath.Join(src, fmt.Sprintf("deep/%d/%d/f-%d", i%7, i%31, i))
		must(0, os.MkdirAll(filepath.Dir(p), 0o750))
		must(0, os.WriteFile(p, make([]byte, r.IntN(1<<r.IntN(16))), fs.FileMode(0o600+i%64)))
		must(0, os.Chtimes(p, time.Time{}, tarTime.Add(time.Duration(i)*time.Hour+5)))
	}
	for _, i := range []int{0, 1, 14} {
		v := variants[i]
		t.Run(v.name, func(t *testing.T) {
			v.mb = 64
			v.args = append([]string{"-N", "4000"}, v.args...)
			img := mkfs(t, v, "")
			e := edit(t, onFile(t, img))
			top := must(e.Mkdir(e.Root(), "top", Attr{Mode: 0o755}))
			must(e.CopyTree(top, FromFS(os.DirFS(src)), CopyOptions{}))
			flush(t, e)
			fsck(t, img)
			must(0, Check(e.w))
			mounted(t, img, true, func(host string) {
				compareWithHost(t, e.FS, host)
				sameTrees(t, src, filepath.Join(host, "top"))
			})
			// All over itself: every file stays the same one.
			before := must(e.Info())
			st := must(e.CopyTree(top, FromFS(os.DirFS(src)), CopyOptions{Existing: ReplaceExisting}))
			flush(t, e)
			fsck(t, img)
			if after := must(e.Info()); st.Replaced < 800 || after.FreeInodes != before.FreeInodes || after.FreeBlocks != before.FreeBlocks {
				t.Errorf("%+v; %d and %d free, before %d and %d", st, after.FreeBlocks, after.FreeInodes, before.FreeBlocks, before.FreeInodes)
			}
		})
	}
}

func TestCopyTreeContentLiesInOrder(t *testing.T) {
	e := edit(t, onFile(t, mkfs(t, rhel8Variant, "")))
	var hs []tar.Header
	for i := range 300 {
		hs = append(hs, tar.Header{Name: fmt.Sprintf("d%d/f%03d", i%3, i), Size: int64(20 * i)})
	}
	must(e.CopyTree(e.Root(), FromTar(archive(t, hs...)), CopyOptions{}))
	var last uint64
	gaps := 0
	for i := range 300 {
		m := must(e.fileMap(must(e.inode(must(place(e, hs[i].Name, false))))))
		for _, r := range m.runs {
			if last > 0 && r.phys != last {
				gaps++
			}
			last = r.phys + r.n
		}
	}
	if gaps > 8 {
		t.Errorf("%d gaps", gaps)
	}
}

func TestCopyTreeFollowsNoLinkOfAnArchive(t *testing.T) {
	// A second entry of a name that is a hard link must not write through it.
	img := mkfs(t, rhel8Variant, seedTree(t))
	e := edit(t, onFile(t, img))
	must(e.CopyTree(e.Root(), FromTar(archive(t,
		tar.Header{Name: "x", Typeflag: tar.TypeLink, Linkname: "etc/fstab"},
	)), CopyOptions{}))
	must(e.CopyTree(must(e.Mkdir(e.Root(), "sub", Attr{Mode: 0o755})), FromTar(archive(t,
		tar.Header{Name: "y", Size: 3}, tar.Header{Name: "z", Typeflag: tar.TypeLink, Linkname: "y"}, tar.Header{Name: "z", Size: 7},
	)), CopyOptions{}))
	y, z := must(e.Stat(must(place(e, "sub/y", false)))), must(e.Stat(must(place(e, "sub/z", false))))
	if y.Ino == z.Ino || y.Size != 3 || z.Size != 7 || y.Links != 1 {
		t.Errorf("%+v %+v", y, z)
	}
	flush(t, e)
	fsck(t, img)
}

// FuzzFromTar copies archives of foreign bytes. What is accepted must leave a file
// system without faults.
func FuzzFromTar(f *testing.F) {
	f.Add(must(io.ReadAll(archive(f,
		tar.Header{Name: "opt/cni/", Typeflag: tar.TypeDir, Mode: 0o1750}, tar.Header{Name: "./opt/bin/x", Mode: 0o4755, Size: 600, Uid: 1000},
		tar.Header{Name: "opt/other", Typeflag: tar.TypeLink, Linkname: "opt/bin/x"}, tar.Header{Name: "s", Typeflag: tar.TypeSymlink, Linkname: "opt"},
		tar.Header{Name: "null", Typeflag: tar.TypeChar, Devmajor: 1}, tar.Header{Name: "l", PAXRecords: map[string]string{"SCHILY.xattr.user.x": "v"}},
	))))
	f.Add(must(io.ReadAll(archive(f, tar.Header{Name: "a", Size: 5}, tar.Header{Name: "b", Typeflag: tar.TypeLink, Linkname: "a"}))))
	base := disk.Bytes(must(os.ReadFile(mkfs(f, variant{"", []string{"-b", "1024", "-N", "128", "-O", rhel8 + ",^has_journal,^resize_inode"}, 1}, ""))))
	f.Fuzz(func(t *testing.T, b []byte) {
		ov := disk.NewOverlay(base, disk.OverlayOptions{})
		defer ov.Close()
		e := edit(t, ov)
		for _, o := range []Existing{RefuseExisting, ReplaceExisting} {
			e.CopyTree(e.Root(), FromTar(bytes.NewReader(b)), CopyOptions{Existing: o, Devices: true, MaxEntries: 50})
		}
		flush(t, e)
		must(0, Check(ov))
	})
}

func owner(fi fs.FileInfo) [2]uint32 {
	st := fi.Sys().(*syscall.Stat_t)
	return [2]uint32{st.Uid, st.Gid}
}

// sameTime takes a time without a fraction, which is all that small inodes have room for,
// for the same as one with it.
func sameTime(want, got time.Time) bool {
	return got.Equal(want) || got.Nanosecond() == 0 && got.Unix() == want.Unix()
}
