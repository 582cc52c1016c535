package ext4

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"remaster/internal/hint"
	"remaster/internal/oracle"
	"remaster/pkg/disk"
)

// TestReadsWhatTheKernelReads fills a file system through the kernel with what is
// rare, and compares everything.
func TestReadsWhatTheKernelReads(t *testing.T) {
	for _, v := range []variant{variants[0], variants[1], variants[3], variants[4], variants[7], variants[14]} {
		t.Run(v.name, func(t *testing.T) {
			img := mkfs(t, v, seedTree(t))
			ext3 := strings.HasPrefix(v.name, "ext3")
			mounted(t, img, false, func(host string) { rareFiles(t, host, !ext3) })
			fsck(t, img)
			mounted(t, img, true, func(host string) {
				if n := compareWithHost(t, must(Open(openFile(t, img))), host); n < 400 {
					t.Errorf("%d objects only", n)
				}
			})
			must(0, Check(openFile(t, img)))
		})
	}
}

func rareFiles(t *testing.T, host string, extents bool) {
	t.Helper()
	file := func(name string) *os.File {
		f, err := os.Create(filepath.Join(host, name))
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	// What is free holds something, so that reading it by mistake shows.
	f := file("stale")
	must(f.Write(bytes.Repeat([]byte{0xA5}, 12<<20)))
	must(0, f.Sync())
	must(0, f.Close())
	must(0, os.Remove(filepath.Join(host, "stale")))
	unix.Sync()
	data := bytes.Repeat([]byte("0123456789"), 10000)
	f = file("holes")
	for _, off := range []int64{50000, 300000, 5 << 20, 90 << 20} {
		must(f.WriteAt(data, off))
	}
	must(0, f.Truncate(100<<20+5))
	f.Close()
	f = file("all-hole")
	must(0, f.Truncate(1<<20+1))
	f.Close()
	if extents {
		f = file("preallocated")
		must(0, unix.Fallocate(int(f.Fd()), 0, 0, 2<<20))
		must(f.WriteAt(data, 70000))
		f.Close()
		f = file("punched")
		must(f.Write(bytes.Repeat(data, 8)))
		must(0, unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 100000, 200000))
		must(0, unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, 3<<20))
		f.Close()
	}
	// Every second block: a deep tree.
	f = file("comb")
	for i := range 900 {
		must(f.WriteAt([]byte{byte(i)}, int64(i)*8192))
	}
	f.Close()
	dir := filepath.Join(host, "dir")
	must(0, os.Mkdir(dir, 0o1777))
	for i := range 300 {
		must(0, os.WriteFile(filepath.Join(dir, strings.Repeat("n", 250)+fmt.Sprintf("%05d", i)), nil, 0o600))
	}
	must(0, os.Symlink(strings.Repeat("x", 59), filepath.Join(host, "link59")))
	must(0, os.Symlink(strings.Repeat("x", 60), filepath.Join(host, "link60")))
	must(0, unix.Mknod(filepath.Join(host, "sock"), unix.S_IFSOCK|0o600, 0))
	must(0, unix.Mknod(filepath.Join(host, "fifo"), unix.S_IFIFO|0o600, 0))
	must(0, unix.Mknod(filepath.Join(host, "dev"), unix.S_IFBLK|0o600, int(unix.Mkdev(300, 70000))))
	for i, s := range []string{"", "short", strings.Repeat("L", 500)} {
		must(0, unix.Setxattr(filepath.Join(host, "holes"), fmt.Sprint("user.x", i), []byte(s), 0))
	}
	acl := "\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x07\x00\x64\x00\x00\x00" +
		"\x04\x00\x04\x00\xff\xff\xff\xff\x10\x00\x07\x00\xff\xff\xff\xff\x20\x00\x04\x00\xff\xff\xff\xff"
	must(0, unix.Setxattr(dir, "system.posix_acl_access", []byte(acl), 0))
	must(0, unix.Setxattr(dir, "system.posix_acl_default", []byte(acl), 0))
}

func TestExtentsKnowHoles(t *testing.T) {
	img := mkfs(t, rhel8Variant, "")
	mounted(t, img, false, func(host string) { rareFiles(t, host, true) })
	f := must(Open(openFile(t, img)))
	for _, name := range []string{"holes", "all-hole", "preallocated", "punched", "comb"} {
		file := must(f.File(must(f.Lookup(f.Root(), name))))
		all := must(io.ReadAll(io.NewSectionReader(file, 0, file.Size())))
		for _, r := range []disk.Range{disk.Whole(file), {Off: 4095, Len: 300001}, {Off: file.Size() - 1, Len: 100}, {Off: file.Size(), Len: 5}} {
			at, zeros := r.Off, 0
			for e, err := range file.Extents(r) {
				if err != nil || e.Off != at || e.Len == 0 {
					t.Fatalf("%s: extent %v at %d, %v", name, e, at, err)
				}
				if e.Zero {
					zeros++
					if len(bytes.Trim(all[e.Off:e.End()], "\x00")) > 0 {
						t.Errorf("%s: %v is not zero", name, e)
					}
				}
				at = e.End()
			}
			if end := min(r.End(), file.Size()); at != end || r.Len > 300001 && zeros == 0 {
				t.Errorf("%s: extents of %v end at %d, %d of zeros", name, r, at, zeros)
			}
		}
		// Odd pieces give what the whole gave.
		p := make([]byte, 7777)
		for off := int64(0); off < file.Size(); off += 7777 {
			n, err := file.ReadAt(p, off)
			if !bytes.Equal(p[:n], all[off:off+int64(n)]) || n < len(p) && err != io.EOF {
				t.Fatalf("%s: piece at %d differs: %v", name, off, err)
			}
		}
	}
}

func TestHashAgreesWithDebugfs(t *testing.T) {
	names := []string{"a", "abcd", "x.conf", strings.Repeat("long", 8), strings.Repeat("longer-", 30), "n\xc3\xa4me", "\xff\xfe\xfd"}
	hash := regexp.MustCompile(`is 0x([0-9a-f]+) \(minor 0x([0-9a-f]+)\)`)
	img := mkfs(t, rhel8Variant, "")
	f := must(Open(openFile(t, img)))
	for version, alg := range []string{"legacy", "half_md4", "tea"} {
		for _, unsigned := range []bool{false, true} {
			tool := alg
			if unsigned {
				tool = fmt.Sprint("HASHALG_", version+3)
			}
			for _, name := range names {
				out := oracle.Run(t, "debugfs", "-R", "dx_hash -h "+tool+" -s 1114fe9e-2309-4580-b183-d778e6d97397 "+name, img)
				want := hash.FindStringSubmatch(out)
				f.sb.unsignedHash = unsigned
				major, minor, ok := f.sb.dirHash(byte(version), []byte(name))
				if want == nil || !ok || fmt.Sprintf("%x %x", major, minor) != strings.TrimLeft(want[1], "0")+" "+cmpZero(want[2]) {
					t.Errorf("%s of %q: %x %x, debugfs: %s", tool, name, major, minor, out)
				}
			}
		}
	}
}

func cmpZero(s string) string {
	if s = strings.TrimLeft(s, "0"); s == "" {
		return "0"
	}
	return s
}

// patch changes bytes of the superblock and puts its checksum right.
func patch(t *testing.T, img string, fn func(b []byte)) disk.Writable {
	t.Helper()
	all := must(os.ReadFile(img))
	b := all[superOffset : superOffset+superSize]
	fn(b)
	put32(b, sbChecksum, crc32c(^uint32(0), b[:sbChecksum]))
	must(0, os.WriteFile(img, all, 0o600))
	return onFile(t, img)
}

func or32(off int, v uint32) func([]byte) {
	return func(b []byte) { put32(b, off, le32(b, off)|v) }
}

func TestRefusedByName(t *testing.T) {
	tests := []struct {
		name  string
		patch func([]byte)
		open  string // what Open says, or ""
		edit  string // what Edit says, or ""
	}{
		{"nothing", func([]byte) {}, "", ""},
		{"not ext4", func(b []byte) { b[sbMagic] = 0 }, "no magic", "no magic"},
		{"dirty", or32(sbIncompat, 0x4), "needs_recovery", "needs_recovery"},
		{"compression", or32(sbIncompat, 0x1), "compression", "compression"},
		{"journal_dev", or32(sbIncompat, 0x8), "journal_dev", "journal_dev"},
		{"dirdata", or32(sbIncompat, 0x1000), "dirdata", "dirdata"},
		{"unknown incompat", or32(sbIncompat, 0x8000000), "0x8000000", "0x8000000"},
		{"unknown compat", or32(sbCompat, 0x8000000), "", "0x8000000"},
		{"unknown ro", or32(sbRoCompat, 0x8000000), "", "0x8000000"},
		{"mmp", or32(sbIncompat, 0x100), "", "mmp"},
		{"quota", or32(sbRoCompat, 0x100), "", "quota"},
		{"project", or32(sbRoCompat, 0x2000), "", "project"},
		{"bigalloc", or32(sbRoCompat, 0x200), "", "bigalloc"},
		{"shared_blocks", or32(sbRoCompat, 0x4000), "", "shared_blocks"},
		{"read-only", or32(sbRoCompat, 0x1000), "", "read-only"},
		{"orphan_present", or32(sbRoCompat, 0x10000), "", "orphan_present"},
		{"exclude bitmap", or32(sbCompat, 0x100), "", "snapshot_bitmap"},
		{"encrypt", or32(sbIncompat, 0x10000), "", ""},
		{"verity", or32(sbRoCompat, 0x8000), "", ""},
		{"errors", func(b []byte) { b[sbState] |= 2 }, "errors", "errors"},
		{"not unmounted", func(b []byte) { b[sbState] &^= 1 }, "cleanly", "cleanly"},
		{"orphans", func(b []byte) { b[sbLastOrphan] = 12 }, "", "orphaned"},
		{"journal elsewhere", func(b []byte) { b[sbJournalIno] = 0 }, "", "journal"},
		{"too large", func(b []byte) { b[sbBlocks+2] = 1 }, "only", "only"},
		{"block size", func(b []byte) { b[sbLogBlockSize] = 9 }, "block size", "block size"},
		{"inode size", func(b []byte) { b[sbInodeSize] = 7 }, "inode size", "inode size"},
		{"groups", func(b []byte) { put32(b, sbBlocksPerGroup, 8) }, "per group", "per group"},
		{"inodes", func(b []byte) { put32(b, sbInodesPerGroup, 16) }, "inodes", "inodes"},
	}
	base := must(os.ReadFile(mkfs(t, variant{"", []string{"-b", "4096", "-O", rhel8}, 8}, "")))
	for _, x := range tests {
		t.Run(x.name, func(t *testing.T) {
			img := filepath.Join(t.TempDir(), "img")
			must(0, os.WriteFile(img, base, 0o600))
			d := patch(t, img, x.patch)
			_, openErr := Open(d)
			_, editErr := Edit(d, EditOptions{})
			for _, y := range []struct {
				err  error
				want string
			}{{openErr, x.open}, {editErr, x.edit}} {
				if y.want == "" && y.err != nil || y.want != "" && (y.err == nil || !strings.Contains(y.err.Error(), y.want)) {
					t.Errorf("%v, want %q", y.err, y.want)
				}
				if y.err != nil && !errors.Is(y.err, disk.ErrFormat) && !errors.Is(y.err, disk.ErrUnsupported) && !errors.Is(y.err, disk.ErrCorrupt) {
					t.Errorf("%v wraps no sentinel", y.err)
				}
			}
			if x.name == "dirty" && len(hint.Of(openErr)) == 0 {
				t.Error("no remedy")
			}
		})
	}
}

func TestDirtyJournalIsRefused(t *testing.T) {
	img := mkfs(t, rhel8Variant, "")
	crash := filepath.Join(t.TempDir(), "crash.img")
	mounted(t, img, false, func(host string) {
		f := must(os.Create(filepath.Join(host, "f")))
		must(f.WriteString("x"))
		must(0, f.Sync())
		if out, err := exec.Command("cp", img, crash).CombinedOutput(); err != nil {
			t.Fatal(string(out))
		}
		f.Close()
	})
	if _, err := Open(openFile(t, crash)); !errors.Is(err, disk.ErrUnsupported) || !strings.Contains(err.Error(), "needs_recovery") {
		t.Error(err)
	}
	// Without the flag, the journal itself is looked at.
	oracle.Run(t, "debugfs", "-w", "-R", "feature -needs_recovery", crash)
	if _, err := Edit(onFile(t, crash), EditOptions{}); !errors.Is(err, disk.ErrUnsupported) || !strings.Contains(err.Error(), "journal") {
		t.Error(err)
	}
}

// TestFlippedBitsAreFound changes one byte of each structure that has a checksum.
func TestFlippedBitsAreFound(t *testing.T) {
	img := mkfs(t, variant{"", []string{"-b", "1024", "-O", rhel8}, 8}, seedTree(t))
	w := onFile(t, img)
	e := edit(t, w)
	many := must(place(e, "many", false))
	for i := range 300 {
		must(e.Create(many, fmt.Sprint("more-", i), Attr{}, disk.Bytes("x")))
	}
	file := must(place(e, "boot/grub2/grub.cfg", false))
	must(0, e.SetXattr(file, "user.big", make([]byte, 500)))
	in := must(e.edit(file))
	m := must(e.fileMap(in))
	// One block apart each, so that the tree needs a block of its own.
	var runs []run
	for i := range uint64(6) {
		runs = append(runs, run{log: 2 * i, n: 1, phys: m.runs[0].phys + i})
	}
	must(0, e.freeSpan(span{m.runs[0].phys + 6, m.blocks() - 6}))
	must(e.writeMap(in, m, runs))
	in.setSize(12 << 10)
	flush(t, e)
	fsck(t, img)

	f := must(Open(w))
	d := must(f.dir(many))
	g := must(f.group(0))
	_, ino, off, _ := f.inodePlace(file)
	places := map[string]int64{
		"superblock":   superOffset + sbUUID,
		"descriptor":   int64(f.sb.descBlock(0))*1024 + gdFreeBlocks,
		"block bitmap": int64(g.blockBitmap())*1024 + 10,
		"inode bitmap": int64(g.inodeBitmap()) * 1024,
		"inode":        int64(ino)*1024 + int64(off) + iMtime,
		"extents":      int64(must(f.fileMap(must(f.inode(file)))).meta[0])*1024 + 100,
		"attributes":   int64(must(f.inode(file)).fileACL())*1024 + 1000,
		"index":        int64(must(d.phys(0)))*1024 + 40,
		"leaf":         int64(must(d.phys(1)))*1024 + 9,
	}
	base := must(os.ReadFile(img))
	for name, at := range places {
		bad := bytes.Clone(base)
		bad[at] ^= 0x40
		err := Check(disk.Bytes(bad))
		if !errors.Is(err, disk.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
		var c *CorruptError
		if !errors.As(err, &c) {
			t.Errorf("%s: %v is no CorruptError", name, err)
		}
		// What e2fsck finds and what Check finds is the same here.
		file := filepath.Join(t.TempDir(), "bad")
		must(0, os.WriteFile(file, bad, 0o600))
		if r := oracle.Try(t, "e2fsck", "-fn", file); r.Code == 0 {
			t.Errorf("%s: e2fsck finds nothing", name)
		}
	}
	must(0, Check(disk.Bytes(base)))
}

// TestDamageByDebugfsIsFound makes faults that have valid checksums.
func TestDamageByDebugfsIsFound(t *testing.T) {
	img := mkfs(t, variant{"", []string{"-b", "4096", "-O", rhel8}, 16}, seedTree(t))
	for _, cmd := range []string{
		"sif /etc/fstab links_count 5", "sif /etc/fstab blocks 99", "freeb 20 1", "setb 3500 1", "seti <3000>",
		"set_bg 0 free_blocks_count 7", "sif /etc links_count 9", "set_bg 0 used_dirs_count 1",
		"unlink /etc/fstab", "ln /etc/fstab /etc/third",
	} {
		bad := filepath.Join(t.TempDir(), "bad")
		must(0, os.WriteFile(bad, must(os.ReadFile(img)), 0o600))
		oracle.Run(t, "debugfs", "-w", "-R", cmd, bad)
		if r := oracle.Try(t, "e2fsck", "-fn", bad); r.Code == 0 {
			t.Logf("%s: e2fsck finds nothing", cmd)
			continue
		}
		if err := Check(openFile(t, bad)); !errors.Is(err, disk.ErrCorrupt) {
			t.Errorf("%s: %v", cmd, err)
		}
	}
}

// fuzzSeeds are small images of several kinds, without faults.
func fuzzSeeds(tb testing.TB) [][]byte {
	src := tb.TempDir()
	must(0, os.MkdirAll(filepath.Join(src, "d/e"), 0o755))
	for i := range 60 {
		must(0, os.WriteFile(filepath.Join(src, "d", fmt.Sprintf("%050d", i)), bytes.Repeat([]byte{byte(i)}, 10*i), 0o600))
	}
	must(0, os.Symlink(strings.Repeat("t", 100), filepath.Join(src, "slow")))
	var out [][]byte
	for _, args := range [][]string{
		{"-b", "1024", "-N", "128", "-g", "256", "-O", rhel8 + ",^has_journal,^resize_inode"},
		{"-b", "1024", "-N", "128", "-O", rhel8 + ",^has_journal,^metadata_csum,^resize_inode"},
		{"-t", "ext2", "-b", "1024", "-N", "128", "-O", "none,dir_index"},
	} {
		img := mkfs(tb, variant{"", args, 1}, src)
		must(0, os.Truncate(img, 300<<10))
		if r := oracle.Try(tb, "mke2fs", append(append([]string{"-q", "-F", "-d", src}, args...), img, "300")...); r.Code != 0 {
			tb.Fatal(r.Stderr)
		}
		w := onFile(tb, img)
		e := edit(tb, w)
		dir := must(place(e, "d", false))
		for i := range 40 {
			must(0, e.Link(dir, fmt.Sprintf("link-%040d", i), must(e.Lookup(dir, fmt.Sprintf("%050d", i)))))
		}
		must(0, e.SetXattr(dir, "user.x", make([]byte, 300)))
		flush(tb, e)
		fsck(tb, img)
		out = append(out, must(os.ReadFile(img)))
	}
	return out
}

// FuzzOpen reads, checks and edits images of which some bytes were changed, with
// checksums put right where that is easy. Nothing may panic or take long, and what
// Check accepts before an edit it must accept after it.
func FuzzOpen(f *testing.F) {
	seeds := fuzzSeeds(f)
	for i := range seeds {
		f.Add(uint8(i), []byte{})
		for _, at := range []uint32{1024 + 0x20, 1024 + 0x28, 2048 + 8, 2048 + 18, 40 << 10, 50<<10 + 4} {
			f.Add(uint8(i), []byte{byte(at >> 8), byte(at), 0xFF, 0x10})
		}
	}
	f.Fuzz(func(t *testing.T, which uint8, changes []byte) {
		img := bytes.Clone(seeds[int(which)%len(seeds)])
		for ; len(changes) >= 4; changes = changes[4:] {
			at := (int(changes[0])<<8 | int(changes[1])) * 5 % len(img)
			img[at] = changes[2]
			img[(at+1)%len(img)] ^= changes[3]
		}
		sb := img[superOffset : superOffset+superSize]
		put32(sb, sbChecksum, crc32c(^uint32(0), sb[:sbChecksum]))
		start := time.Now()
		readAll(img)
		editAll(t, img)
		if d := time.Since(start); d > 20*time.Second {
			t.Errorf("it took %v", d)
		}
	})
}

func readAll(img []byte) {
	f, err := Open(disk.Bytes(img))
	if err != nil {
		return
	}
	f.Info()
	p := make([]byte, 64<<10)
	seen := map[Ino]bool{}
	var walkAll func(ino Ino)
	walkAll = func(ino Ino) {
		if seen[ino] {
			return
		}
		seen[ino] = true
		f.Stat(ino)
		f.Xattrs(ino)
		f.Readlink(ino)
		if file, err := f.File(ino); err == nil {
			for off := int64(0); off < min(file.Size(), 1<<20); off += int64(len(p)) {
				file.ReadAt(p, off)
			}
			file.ReadAt(p, file.Size()-1)
			for range file.Extents(disk.Whole(file)) {
			}
		}
		ents, _ := f.ReadDir(ino)
		for _, e := range ents {
			f.Lookup(ino, e.Name)
			walkAll(e.Ino)
		}
	}
	walkAll(f.Root())
}

func editAll(t *testing.T, img []byte) {
	good := Check(disk.Bytes(img)) == nil
	ov := disk.NewOverlay(disk.Bytes(img), disk.OverlayOptions{})
	defer ov.Close()
	e, err := Edit(ov, EditOptions{Now: now})
	if err != nil {
		return
	}
	ents, _ := e.ReadDir(e.Root())
	for i, x := range ents {
		e.SetContent(x.Ino, disk.Bytes("new content"), now)
		e.SetXattr(x.Ino, "user.y", make([]byte, 200))
		e.Create(x.Ino, "new", Attr{}, disk.Bytes("new"))
		sub, _ := e.ReadDir(x.Ino)
		for k, y := range sub {
			if k%2 == i%2 {
				e.Remove(x.Ino, y.Name)
			}
		}
		for k := range 30 {
			e.Symlink(x.Ino, fmt.Sprintf("%0100d", k), strings.Repeat("t", 3*k+1), Attr{})
		}
	}
	e.Remove(e.Root(), "slow")
	err = e.Flush()
	if !good {
		return
	}
	if err == nil {
		err = Check(ov)
	}
	if err != nil {
		t.Errorf("an image without faults was spoilt: %v", err)
	}
}
