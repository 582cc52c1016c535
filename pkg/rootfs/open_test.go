package rootfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"remaster/internal/hint"
	"remaster/internal/oracle"
	"remaster/pkg/disk"
	"remaster/pkg/partition"
)

const mib = 1 << 20

// testPart is a partition of a test's disk: an image of a file system, or a magic.
type testPart struct {
	options string // for sfdisk: type=, name=, uuid=
	image   string
	size    int64
}

const (
	rootUUID = "11111111-2222-3333-4444-555555555555"
	bootUUID = "66666666-7777-8888-9999-aaaaaaaaaaaa"
	espType  = "type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
)

// osFiles are what makes a root.
func osFiles(more map[string]string) map[string]string {
	files := map[string]string{
		"/usr/lib/os-release": "ID=\"alinux\"\n", "/etc/os-release": "-> ../usr/lib/os-release", "/etc/fstab": "# empty\n",
		"/boot/efi/": "", "/etc/default/grub": "GRUB_TIMEOUT=5\n",
	}
	for p, c := range more {
		files[p] = c
	}
	return files
}

// ext4Image makes a file system of size bytes with files, and sets labels by path.
func ext4Image(tb testing.TB, size int64, uuid string, files, labels map[string]string, options ...string) testPart {
	tb.Helper()
	dir, img := filepath.Join(tb.TempDir(), "tree"), filepath.Join(tb.TempDir(), "ext4.img")
	check := func(err error) {
		if err != nil {
			tb.Fatal(err)
		}
	}
	check(os.Mkdir(dir, 0o755))
	for p, c := range files {
		at := filepath.Join(dir, p)
		check(os.MkdirAll(filepath.Dir(at), 0o755))
		if strings.HasSuffix(p, "/") {
			check(os.MkdirAll(at, 0o755))
		} else if t, ok := strings.CutPrefix(c, "-> "); ok {
			check(os.Symlink(t, at))
		} else {
			check(os.WriteFile(at, []byte(c), 0o644))
		}
	}
	args := append([]string{"-q", "-t", "ext4", "-d", dir, "-U", uuid, "-E", "root_owner=0:0"}, options...)
	oracle.Run(tb, "mke2fs", append(args, img, strconv.FormatInt(size>>10, 10)+"k")...)
	if len(labels) > 0 {
		var script strings.Builder
		for p, l := range labels {
			fmt.Fprintf(&script, "ea_set %s security.selinux %s\n", p, l)
		}
		oracle.TryInput(tb, []byte(script.String()), "debugfs", "-w", "-f", "-", img)
	}
	return testPart{"", img, size}
}

// fatImage makes a FAT volume with files.
func fatImage(tb testing.TB, files map[string]string) testPart {
	tb.Helper()
	img := filepath.Join(tb.TempDir(), "esp.img")
	if err := os.WriteFile(img, make([]byte, 8*mib), 0o600); err != nil {
		tb.Fatal(err)
	}
	oracle.Run(tb, "mkfs.vfat", "-F", "16", "-s", "1", "-i", "5ea7c0de", "-n", "EFI", img)
	for _, dir := range []string{"/EFI", "/EFI/alinux"} {
		oracle.Run(tb, "mmd", "-i", img, "::"+dir)
	}
	for p, c := range files {
		if r := oracle.TryInput(tb, []byte(c), "mcopy", "-i", img, "-", "::"+p); r.Code != 0 {
			tb.Fatal(r.Stderr)
		}
	}
	return testPart{espType, img, 8 * mib}
}

// magic is a partition that shows a magic and nothing else.
func magic(tb testing.TB, off int64, text string) testPart {
	tb.Helper()
	img := filepath.Join(tb.TempDir(), "magic.img")
	p := make([]byte, mib)
	copy(p[off:], text)
	if err := os.WriteFile(img, p, 0o600); err != nil {
		tb.Fatal(err)
	}
	return testPart{"", img, mib}
}

// diskOf makes a disk with a GPT of the parts, each on the next MiB.
func diskOf(tb testing.TB, parts ...testPart) string {
	tb.Helper()
	img := filepath.Join(tb.TempDir(), "disk.img")
	f, err := os.Create(img)
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	script, off := "label: gpt\n", int64(mib)
	for i, p := range parts {
		script += fmt.Sprintf("start=%d, size=%d", off/512, p.size/512)
		for _, o := range append(strings.Fields(p.options), fmt.Sprintf("uuid=00000000-0000-0000-0000-00000000000%d", i+1)) {
			script += ", " + o
		}
		script += "\n"
		off += p.size
	}
	if err := f.Truncate(off + mib); err != nil {
		tb.Fatal(err)
	}
	if r := oracle.TryInput(tb, []byte(script), "sfdisk", "-q", img); r.Code != 0 {
		tb.Fatal(r.Stderr)
	}
	off = mib
	for _, p := range parts {
		data, err := os.ReadFile(p.image)
		if err != nil {
			tb.Fatal(err)
		}
		if _, err := f.WriteAt(data, off); err != nil {
			tb.Fatal(err)
		}
		off += p.size
	}
	return img
}

type sized struct {
	io.ReaderAt
	size int64
}

func (f sized) Size() int64 { return f.size }

func overlay(tb testing.TB, img string) *disk.Overlay {
	tb.Helper()
	f, err := os.Open(img)
	if err != nil {
		tb.Fatal(err)
	}
	st, err := f.Stat()
	if err != nil {
		tb.Fatal(err)
	}
	ov := disk.NewOverlay(sized{f, st.Size()}, disk.OverlayOptions{})
	tb.Cleanup(func() { _, _ = ov.Close(), f.Close() })
	return ov
}

// extract writes the partitions of a disk to files.
func extract(tb testing.TB, d disk.Disk, g *Guest) (files []string) {
	tb.Helper()
	for i, p := range g.Parts {
		data := make([]byte, p.Range.Len)
		if err := disk.ReadFull(d, data, p.Range.Off); err != nil {
			tb.Fatal(err)
		}
		name := filepath.Join(tb.TempDir(), fmt.Sprintf("part%d.img", i))
		if err := os.WriteFile(name, data, 0o600); err != nil {
			tb.Fatal(err)
		}
		files = append(files, name)
	}
	return files
}

func TestEditAcrossFileSystems(t *testing.T) {
	fstab := "UUID=" + rootUUID + " / ext4 defaults 1 1\nLABEL=BOOT\t/boot ext4 defaults 1 2\n" +
		"UUID=5EA7-C0DE /boot/efi vfat umask=0077 0 2\ntmpfs /tmp tmpfs defaults 0 0\nUUID=none swap swap defaults 0 0\n"
	label := "system_u:object_r:etc_t:s0"
	img := diskOf(t,
		fatImage(t, map[string]string{"/EFI/alinux/grub.cfg": "stub\n", "/EFI/alinux/grubenv": "env\n", "/EFI/alinux/shimx64.efi": "shim"}),
		ext4Image(t, 8*mib, bootUUID, map[string]string{"/efi/": "", "/grub2/grubenv": "-> ../efi/EFI/alinux/grubenv", "/loader/entries/a.conf": "options ro\n"}, nil, "-L", "BOOT", "-O", "^has_journal"),
		ext4Image(t, 24*mib, rootUUID, osFiles(map[string]string{
			"/etc/fstab": fstab, "/etc/keep": "keep", "/etc/dead": "dead", "/etc/link": "-> default/grub", "/usr/bin/": "",
		}), map[string]string{"/": "system_u:object_r:root_t:s0", "/etc": label, "/etc/keep": label, "/etc/default/grub": label}),
	)
	ov := overlay(t, img)
	old, err := Open(overlay(t, img), OpenOptions{})
	ok(t, err)
	g, err := Open(ov, OpenOptions{Edit: true, Now: testTime})
	ok(t, err)
	if len(g.Notes) > 0 {
		t.Error(g.Notes)
	}
	s := NewStage(old)
	big := strings.Repeat("0123456789abcdef", 20000)
	ok(t, s.WriteFile("/etc/link", []byte("GRUB_TIMEOUT=9\n"), "w"))
	ok(t, s.WriteFileMode("/etc/containerd/config.toml", []byte("version = 2\n"), 0o600, "w"))
	ok(t, s.Put("/usr/bin/runc", &Node{Mode: 0o755, Content: disk.Bytes(big)}, "w"))
	ok(t, s.Symlink("/usr/lib/x.service", "/etc/systemd/system/w/x.service", "w"))
	ok(t, s.Remove("/etc/dead", "w"))
	ok(t, s.Chmod("/etc/keep", 0o600, "w"))
	ok(t, s.WriteFile("/boot/loader/entries/a.conf", []byte("options ro quiet\n"), "w"))
	ok(t, s.WriteFile("/boot/grub2/grubenv", []byte(strings.Repeat("#", 1024)), "w"))
	ok(t, s.WriteFile("/boot/efi/EFI/alinux/a new file.cfg", []byte("new"), "w"))
	ok(t, Apply(g, s.Changes(), testTime))

	now, err := Open(struct{ disk.Disk }{ov}, OpenOptions{})
	ok(t, err)
	if got, want := dump(t, now), dump(t, s); got != want {
		t.Errorf("edited guest:\n%s\nplanned:\n%s", got, want)
	}
	files := extract(t, ov, now)
	oracle.Run(t, "fsck.vfat", "-n", files[0])
	oracle.E2fsck(t, files[1])
	oracle.E2fsck(t, files[2])
	for _, c := range []struct{ file, cmd, want string }{
		{files[1], "cat /loader/entries/a.conf", "options ro quiet\n"},
		{files[2], "cat /etc/default/grub", "GRUB_TIMEOUT=9\n"},
		{files[2], "cat /usr/bin/runc", big},
		{files[2], "ea_get /etc/default/grub security.selinux", label},
		{files[2], "ea_get /etc/containerd/config.toml security.selinux", label},
		{files[2], "stat /etc/systemd/system/w/x.service", `Fast link dest: "/usr/lib/x.service"`},
		{files[2], "stat /etc/containerd/config.toml", "Mode:  0600"},
		{files[2], "stat /etc/dead", ""},
	} {
		if got := oracle.Run(t, "debugfs", "-R", c.cmd, c.file); !strings.Contains(got, c.want) || c.want == "" && got != "" {
			t.Errorf("debugfs %s: %.200s", c.cmd, got)
		}
	}
	if got := oracle.Run(t, "mtype", "-i", files[0], "::/EFI/alinux/grubenv"); got != strings.Repeat("#", 1024) {
		t.Errorf("grubenv on the ESP: %q", got)
	}
	if got := oracle.Run(t, "mtype", "-i", files[0], "::/EFI/alinux/a new file.cfg"); got != "new" {
		t.Errorf("new file on the ESP: %q", got)
	}
	n, err := now.Stat("/etc/default/grub")
	ok(t, err)
	if !n.ModTime.Equal(testTime) {
		t.Errorf("time %v", n.ModTime)
	}
}

// TestRandomOperationsOnRealFileSystems does what the same test does in memory.
func TestRandomOperationsOnRealFileSystems(t *testing.T) {
	files := map[string]string{"/a/x/p": "aa", "/a/y": "b", "/b/l": "-> ../a/x", "/c": "c", "/up": "-> ..", "/keep/me": "k"}
	esp := fatImage(t, map[string]string{"/c": "c", "/EFI/alinux/y": "b"})
	for name, c := range map[string]struct {
		img   string
		check func(file string)
	}{
		"ext4": {ext4Image(t, 4*mib, rootUUID, files, nil).image, func(f string) { oracle.E2fsck(t, f) }},
		"fat":  {esp.image, func(f string) { oracle.Run(t, "fsck.vfat", "-n", f) }},
	} {
		r := rand.New(rand.NewPCG(3, 4))
		for i := range 20 {
			ops := make([]byte, 3*80)
			for i := range ops {
				ops[i] = byte(r.Uint32())
			}
			ov := overlay(t, c.img)
			p := Part{Part: partition.Part{Range: disk.Whole(ov)}}
			ok(t, p.open(ov, OpenOptions{Edit: true, Now: testTime}))
			g := NewGuest(p.Volume)
			s := NewStage(g)
			operate(s, ops)
			want := dump(t, s)
			ok(t, Apply(g, s.Changes(), testTime))
			again := Part{Part: p.Part}
			ok(t, again.open(ov, OpenOptions{}))
			if got := dump(t, NewGuest(again.Volume)); got != want {
				t.Fatalf("%s %d: applied:\n%s\nstaged:\n%s", name, i, got, want)
			}
			if i < 5 {
				data := make([]byte, ov.Size())
				ok(t, disk.ReadFull(ov, data, 0))
				out := filepath.Join(t.TempDir(), "out.img")
				ok(t, os.WriteFile(out, data, 0o600))
				c.check(out)
			}
		}
	}
}

func TestFullVolumeIsNamed(t *testing.T) {
	img := diskOf(t, ext4Image(t, 4*mib, rootUUID, osFiles(nil), nil))
	g, err := Open(overlay(t, img), OpenOptions{Edit: true, Now: testTime})
	ok(t, err)
	s := NewStage(g)
	ok(t, s.Put("/etc/big", &Node{Mode: 0o644, Content: zeros(8 * mib)}, ""))
	err = Apply(g, s.Changes(), testTime)
	if !errors.Is(err, ErrNoSpace) || strings.Count(err.Error(), "/etc/big") != 1 || len(hint.Of(err)) == 0 {
		t.Errorf("%v %q", err, hint.Of(err))
	}
	// On a volume that is mounted, the path is the guest's.
	img = diskOf(t, fatImage(t, nil), ext4Image(t, 4*mib, rootUUID, osFiles(map[string]string{"/etc/fstab": "LABEL=EFI /boot/efi vfat\n"}), nil))
	g, err = Open(overlay(t, img), OpenOptions{Edit: true, Now: testTime})
	ok(t, err)
	s = NewStage(g)
	ok(t, s.Put("/boot/efi/big", &Node{Mode: 0o644, Content: zeros(8 * mib)}, ""))
	err = Apply(g, s.Changes(), testTime)
	if !errors.Is(err, ErrNoSpace) || strings.Count(err.Error(), "/boot/efi/big") != 1 || len(hint.Of(err)) == 0 {
		t.Errorf("%v %q", err, hint.Of(err))
	}
}

func TestReadOnlyDiskIsNotOpenedForEditing(t *testing.T) {
	img := diskOf(t, ext4Image(t, 4*mib, rootUUID, osFiles(nil), nil))
	if _, err := Open(struct{ disk.Disk }{overlay(t, img)}, OpenOptions{Edit: true}); err == nil {
		t.Error("opened")
	}
	g, err := Open(overlay(t, img), OpenOptions{})
	ok(t, err)
	s := NewStage(g)
	ok(t, s.WriteFile("/etc/x", nil, ""))
	if err := Apply(g, s.Changes(), testTime); err == nil || !strings.Contains(err.Error(), "reading only") {
		t.Error(err)
	}
}

func TestOpenFindsTheRootAndItsMounts(t *testing.T) {
	// One root, with another text in the block of its fstab: data has no checksum.
	blank := strings.Repeat("#", 200)
	model := ext4Image(t, 4*mib, rootUUID, osFiles(map[string]string{"/etc/fstab": blank}), nil)
	data, err := os.ReadFile(model.image)
	ok(t, err)
	root := func(fstab string) testPart {
		p := testPart{"", filepath.Join(t.TempDir(), "root.img"), model.size}
		fstab += strings.Repeat("\n", len(blank)-len(fstab))
		ok(t, os.WriteFile(p.image, bytes.Replace(data, []byte(blank), []byte(fstab), 1), 0o600))
		return p
	}
	boot := ext4Image(t, 2*mib, bootUUID, map[string]string{"/here": "boot", "/efi/": ""}, nil, "-L", "my boot")
	boot.options = `name="boot"`
	esp := fatImage(t, map[string]string{"/here": "esp"})
	dirty := ext4Image(t, 4*mib, rootUUID, osFiles(nil), nil)
	broken := ext4Image(t, 4*mib, rootUUID, osFiles(nil), nil, "-O", "^has_journal")
	for _, p := range []testPart{dirty, broken} {
		oracle.Run(t, "debugfs", "-w", "-R", "feature needs_recovery", p.image)
	}
	xfs, luks := magic(t, 0, "XFSB"), magic(t, 0, "LUKS\xba\xbe")
	lvm, swap := magic(t, 512, "LABELONE"), magic(t, 4086, "SWAPSPACE2")
	for name, c := range map[string]struct {
		parts []testPart
		err   string            // the error, or
		at    map[string]string // the mounts: path to content of the file "here" there
		note  string
	}{
		"root alone":        {parts: []testPart{root("")}},
		"by UUID":           {parts: []testPart{esp, boot, root("UUID=" + bootUUID + " /boot ext4\nUUID=5ea7-c0de /boot/efi vfat\n")}, at: map[string]string{"/boot": "boot", "/boot/efi": "esp"}},
		"children first":    {parts: []testPart{esp, boot, root("UUID=5EA7-C0DE /boot/efi vfat\nUUID=" + bootUUID + " /boot ext4\n")}, at: map[string]string{"/boot": "boot", "/boot/efi": "esp"}},
		"by LABEL":          {parts: []testPart{boot, root("LABEL=my\\040boot /boot ext4\n")}, at: map[string]string{"/boot": "boot"}},
		"by quoted LABEL":   {parts: []testPart{esp, root("LABEL=\"EFI\" /boot/efi vfat\n")}, at: map[string]string{"/boot/efi": "esp"}},
		"by PARTUUID":       {parts: []testPart{boot, root("PARTUUID=00000000-0000-0000-0000-000000000001 /boot ext4\n")}, at: map[string]string{"/boot": "boot"}},
		"by PARTLABEL":      {parts: []testPart{boot, root("PARTLABEL=boot /boot ext4\n")}, at: map[string]string{"/boot": "boot"}},
		"by udev's links":   {parts: []testPart{boot, root("/dev/disk/by-label/my\\134x20boot /boot ext4\n")}, at: map[string]string{"/boot": "boot"}},
		"by /dev/vda1":      {parts: []testPart{boot, root("/dev/vda1 /boot ext4\n")}, at: map[string]string{"/boot": "boot"}, note: "/dev/vda1"},
		"by nvme0n1p1":      {parts: []testPart{boot, root("/dev/nvme0n1p1 /boot ext4\n")}, at: map[string]string{"/boot": "boot"}, note: "nvme0n1p1"},
		"second disk":       {parts: []testPart{boot, root("/dev/vdb1 /boot ext4\n")}, err: "/dev/vdb1 on /boot"},
		"unknown boot":      {parts: []testPart{boot, root("UUID=dead /boot ext4 defaults 0 0\n")}, err: "no partition of the image is UUID=dead"},
		"unknown, nofail":   {parts: []testPart{boot, root("UUID=dead /boot ext4 defaults,nofail 0 0\n")}, note: "UUID=dead"},
		"unknown data":      {parts: []testPart{boot, root("UUID=dead /data ext4\n")}, note: "/data"},
		"data":              {parts: []testPart{boot, root("UUID=" + bootUUID + " /etc/default ext4\n")}, at: map[string]string{"/etc/default": "boot"}},
		"ESP not as fstab":  {parts: []testPart{esp, root("UUID=1234-ABCD /boot/efi vfat\n")}, at: map[string]string{"/boot/efi": "esp"}, note: "the only EFI system partition"},
		"ESP not in fstab":  {parts: []testPart{esp, root("")}},
		"root elsewhere":    {parts: []testPart{boot, root("UUID=" + bootUUID + " / ext4\n")}, note: "another partition"},
		"XFS boot":          {parts: []testPart{xfs, root("/dev/vda1 /boot xfs\n")}, err: "partition 1 (xfs)"},
		"two UUIDs":         {parts: []testPart{boot, boot, root("UUID=" + bootUUID + " /boot ext4\n")}, err: "both partition 1"},
		"no folder above":   {parts: []testPart{boot, root("UUID=" + bootUUID + " /no/folder ext4\n")}, note: "/no/folder"},
		"two roots":         {parts: []testPart{root(""), esp, root("")}, err: "both partition 1 (ext4) and partition 3 (ext4)"},
		"XFS root":          {parts: []testPart{esp, boot, xfs}, err: "partition 3 (xfs)"},
		"LVM root":          {parts: []testPart{boot, lvm}, err: "partition 2 (LVM2_member)"},
		"LUKS root":         {parts: []testPart{boot, luks}, err: "partition 2 (crypto_LUKS)"},
		"XFS beside a root": {parts: []testPart{xfs, root("")}},
		"no root":           {parts: []testPart{esp, boot, swap}, err: "partition 1 (vfat), partition 2 (\"boot\") (ext4), partition 3 (swap)"},
		"dirty root":        {parts: []testPart{esp, dirty}, note: "partition 2 (ext4) was not unmounted"},
		"broken root":       {parts: []testPart{esp, broken}, err: "partition 2 (ext4): replay the journal: ext4: superblock: needs_recovery"},
		"broken beside":     {parts: []testPart{broken, root("")}, note: "partition 1 (ext4) can't be read"},
		"broken boot":       {parts: []testPart{broken, root("/dev/sda1 /boot ext4\n")}, err: "needs_recovery"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // most of it is sfdisk's waiting for the disk
			g, err := Open(overlay(t, diskOf(t, c.parts...)), OpenOptions{})
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) || len(hint.Of(err)) == 0 {
					t.Errorf("%v %q, want %s", err, hint.Of(err), c.err)
				}
				return
			}
			ok(t, err)
			mounted := map[string]string{}
			for _, p := range g.Parts {
				if p.MountedAt == "" || p.MountedAt == "/" {
					continue
				}
				b, err := ReadFile(g, p.MountedAt+"/here")
				ok(t, err)
				mounted[p.MountedAt] = string(b)
			}
			if fmt.Sprint(mounted) != fmt.Sprint(c.at) {
				t.Errorf("mounted %v, want %v", mounted, c.at)
			}
			if notes := strings.Join(g.Notes, "\n"); c.note == "" && notes != "" || !strings.Contains(notes, c.note) {
				t.Errorf("notes %q, want %q", notes, c.note)
			}
			if rel, err := OSRelease(g); err != nil || rel["ID"] != "alinux" {
				t.Error(rel, err)
			}
			hasESP := slices.ContainsFunc(c.parts, func(p testPart) bool { return p.options == espType })
			if esp := g.ESP(); (esp != nil) != hasESP {
				t.Errorf("ESP %v", esp)
			} else if esp != nil {
				if b, err := ReadFile(NewGuest(esp.Volume), "/HERE"); err != nil || string(b) != "esp" {
					t.Errorf("%q, %v", b, err)
				}
				if size, free, err := esp.Space(); err != nil || free <= 0 || free >= size {
					t.Errorf("space %d of %d, %v", free, size, err)
				}
			}
		})
	}
}

func TestExt4NodesAsTheGuestHasThem(t *testing.T) {
	part := ext4Image(t, 4*mib, rootUUID, osFiles(map[string]string{"/etc/a": "x"}), map[string]string{"/etc/a": "label"})
	script := "ln /etc/a /etc/b\nset_inode_field /etc/a links_count 2\nset_inode_field /etc/a mode 0104711\nset_inode_field /etc/a uid 70000\ncd /etc\nmknod pipe p\n"
	oracle.TryInput(t, []byte(script), "debugfs", "-w", "-f", "-", part.image)
	g, err := Open(overlay(t, part.image), OpenOptions{}) // without a table
	ok(t, err)
	n, err := g.Lstat("/etc/b")
	ok(t, err)
	if n.Mode != 0o711|fs.ModeSetuid || n.UID != 70000 || n.Links != 2 || string(n.Xattrs[selinux]) != "label" {
		t.Errorf("%+v", n)
	}
	if n, err = g.Lstat("/etc/pipe"); err != nil || n.Mode.Type() != fs.ModeNamedPipe {
		t.Errorf("%+v, %v", n, err)
	}
	for p, want := range map[string]error{"/etc/a/b": ErrNotDir, "/etc/none": fs.ErrNotExist, "/etc/" + strings.Repeat("n", 300): fs.ErrNotExist} {
		if _, err := g.Lstat(p); !errors.Is(err, want) {
			t.Errorf("%s: %v", p, err)
		}
	}
	if g.LastWrite().Unix() != 1700000000 {
		t.Error(g.LastWrite())
	}
}

func TestOSRelease(t *testing.T) {
	text := "# comment\nNAME=\"Alibaba Cloud Linux\"\nID='alinux'\n\nVERSION_ID=3\nQ=\"a \\\"b\\\" \\$c \\d\"\n ODD = x\nno line\n"
	got, err := OSRelease(guestOf(map[string]string{"/usr/lib/os-release": text}))
	ok(t, err)
	for k, want := range map[string]string{"NAME": "Alibaba Cloud Linux", "ID": "alinux", "VERSION_ID": "3", "Q": `a "b" $c \d`} {
		if got[k] != want {
			t.Errorf("%s = %q, want %q", k, got[k], want)
		}
	}
	if _, err := OSRelease(guestOf(nil)); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

func FuzzFstab(f *testing.F) {
	f.Add("UUID=x /boot ext4 defaults 0 0\n/dev/vda1 / xfs\nLABEL=a\\040b /x\\134y auto\n")
	f.Fuzz(func(t *testing.T, text string) {
		depth := 0
		for _, e := range parseFstab(text) {
			if e.dir != clean(e.dir) || strings.Count(e.dir, "/") < depth {
				t.Errorf("%+v", e)
			}
			depth = strings.Count(e.dir, "/")
			_, _, _ = device(make([]Part, 3), e.spec)
		}
	})
}

// BenchmarkEdit is the whole edit of a guest without the plan's content: open, plan,
// apply with all checks.
func BenchmarkEdit(b *testing.B) {
	img := diskOf(b,
		fatImage(b, map[string]string{"/EFI/alinux/grubenv": "env\n"}),
		ext4Image(b, 64*mib, rootUUID, osFiles(map[string]string{"/etc/fstab": "UUID=5EA7-C0DE /boot/efi vfat\n"}), nil))
	for b.Loop() {
		ov := overlay(b, img)
		g, err := Open(ov, OpenOptions{Edit: true, Now: testTime})
		if err != nil {
			b.Fatal(err)
		}
		s := NewStage(g)
		for i := range 10 {
			if err := s.WriteFile(fmt.Sprintf("/etc/new.d/%d.conf", i), []byte("x"), ""); err != nil {
				b.Fatal(err)
			}
		}
		if err := errors.Join(s.WriteFile("/boot/efi/EFI/alinux/grubenv", make([]byte, 1024), ""),
			s.WriteFile("/etc/default/grub", []byte("y"), ""), Apply(g, s.Changes(), testTime)); err != nil {
			b.Fatal(err)
		}
	}
}
