package testimage

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"remaster/internal/oracle"
)

// Epoch is the time of everything in the images. Files of ext4 are MTimeNsec
// nanoseconds younger, so that an editor that drops the fraction is seen.
var Epoch = time.Unix(1_700_000_000, 0).UTC()

// MTimeNsec is the fraction of each ext4 file's modification time.
const MTimeNsec = 123_456_789

// RHEL8Features are the features of an ext4 made by RHEL 8's e2fsprogs, whatever
// those of the host would choose.
const RHEL8Features = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg," +
	"sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum"

// Ext4Options describe an ext4 file system. The zero value is a small one as RHEL 8
// makes it.
type Ext4Options struct {
	MiB       int    // size; 0 means 24
	UUID      string // "" means RootUUID
	Features  string // of mke2fs -O; "" means RHEL8Features
	BlockSize int    // 0 means 4096
	InodeSize int    // 0 means 256
	Prefix    string // where it will be mounted, for the labels; "" means /
	NoLabels  bool   // no security.selinux at all
}

// Ext4 makes a file system that holds the tree, in a new file. It is the same at
// each run with the same tools.
func Ext4(tb testing.TB, t Tree, o Ext4Options) string {
	tb.Helper()
	o = Ext4Options{
		MiB: cmp.Or(o.MiB, 24), UUID: cmp.Or(o.UUID, RootUUID), Features: cmp.Or(o.Features, RHEL8Features),
		BlockSize: cmp.Or(o.BlockSize, 4096), InodeSize: cmp.Or(o.InodeSize, 256), Prefix: o.Prefix, NoLabels: o.NoLabels,
	}
	dir := tb.TempDir()
	tree, file := filepath.Join(dir, "tree"), filepath.Join(dir, "ext4")
	if err := os.Mkdir(tree, 0o755); err != nil {
		tb.Fatal(err)
	}
	t.write(tb, tree)
	args := []string{"-q", "-F", "-t", "ext4", "-b", strconv.Itoa(o.BlockSize), "-I", strconv.Itoa(o.InodeSize), "-m", "0",
		"-U", o.UUID, "-E", "hash_seed=" + o.UUID + ",root_owner=0:0,nodiscard,lazy_itable_init=0,lazy_journal_init=0",
		"-O", o.Features, "-d", tree}
	if strings.Contains(o.Features, "has_journal") {
		args = append(args, "-J", "size=4")
	}
	oracle.Run(tb, "mke2fs", append(args, file, fmt.Sprintf("%dM", o.MiB))...)
	if err := os.RemoveAll(tree); err != nil {
		tb.Fatal(err)
	}
	DebugFS(tb, file, inodeCommands(tb, t, o)...)
	return file
}

// inodeCommands are debugfs commands that give each inode its mode, owner, times
// and extended attributes, whoever runs this and whenever.
func inodeCommands(tb testing.TB, t Tree, o Ext4Options) []string {
	tb.Helper()
	var cmds []string
	xdir := tb.TempDir()
	for i, p := range append([]string{"/", "/lost+found"}, t.paths()...) {
		if f := t[p]; f != nil && f.HardLink != "" {
			continue
		}
		f := t.at(p)
		set := func(field, value string) { cmds = append(cmds, fmt.Sprintf("sif %q %s %s", p, field, value)) }
		if p != "/lost+found" {
			set("mode", "0"+strconv.FormatUint(uint64(unixMode(f.Mode)), 8))
		}
		set("uid", strconv.Itoa(f.UID))
		set("gid", strconv.Itoa(f.GID))
		for _, time := range []string{"atime", "ctime", "mtime"} {
			set(time, "@"+strconv.FormatInt(Epoch.Unix(), 10))
		}
		if o.InodeSize >= 256 {
			set("crtime", "@"+strconv.FormatInt(Epoch.Unix(), 10))
			for _, extra := range []string{"atime_extra", "ctime_extra", "crtime_extra"} {
				set(extra, "0")
			}
			set("mtime_extra", strconv.Itoa(MTimeNsec<<2))
		}
		if _, own := f.Xattrs["security.selinux"]; !own && !o.NoLabels {
			cmds = append(cmds, fmt.Sprintf("ea_set %q security.selinux %s\\000", p, Label(path.Join("/", o.Prefix, p))))
		}
		for name, value := range f.Xattrs {
			x := filepath.Join(xdir, fmt.Sprintf("%d-%s", i, name))
			if err := os.WriteFile(x, value, 0o644); err != nil {
				tb.Fatal(err)
			}
			cmds = append(cmds, fmt.Sprintf("ea_set -f %s %q %s", x, p, name))
		}
	}
	return cmds
}

// unixMode returns m as i_mode holds it.
func unixMode(m fs.FileMode) uint32 {
	u := uint32(m.Perm())
	for _, b := range []struct {
		mode fs.FileMode
		bit  uint32
	}{{fs.ModeSetuid, 0o4000}, {fs.ModeSetgid, 0o2000}, {fs.ModeSticky, 0o1000}} {
		if m&b.mode != 0 {
			u |= b.bit
		}
	}
	switch m.Type() {
	case fs.ModeDir:
		return u | 0o040000
	case fs.ModeSymlink:
		return u | 0o120000
	}
	return u | 0o100000
}

// DebugFS runs commands of debugfs on the ext4 in file, writing. debugfs exits 0
// whatever happens, so that any message of it fails the test.
func DebugFS(tb testing.TB, file string, cmds ...string) {
	tb.Helper()
	script := filepath.Join(tb.TempDir(), "debugfs")
	if err := os.WriteFile(script, []byte(strings.Join(cmds, "\n")+"\n"), 0o644); err != nil {
		tb.Fatal(err)
	}
	r := oracle.Try(tb, "debugfs", "-w", "-f", script, file)
	// The first line of stderr is debugfs' version.
	if _, msg, _ := strings.Cut(r.Stderr, "\n"); r.Code != 0 || strings.TrimSpace(msg) != "" {
		tb.Fatalf("debugfs on %s: exit %d: %s", file, r.Code, msg)
	}
}

// freeBlocks returns the number of free blocks of the ext4 in file.
func freeBlocks(tb testing.TB, file string) int {
	tb.Helper()
	for line := range strings.Lines(oracle.Run(tb, "dumpe2fs", "-h", file)) {
		if v, ok := strings.CutPrefix(line, "Free blocks:"); ok {
			n, err := strconv.Atoi(strings.TrimSpace(v))
			if err != nil {
				tb.Fatal(err)
			}
			return n
		}
	}
	tb.Fatalf("dumpe2fs says nothing of free blocks in %s", file)
	return 0
}

// FAT makes a FAT16 file system of so many MiB that holds the tree's files and
// folders, in a new file.
func FAT(tb testing.TB, t Tree, mib int) string {
	tb.Helper()
	dir := tb.TempDir()
	file := filepath.Join(dir, "fat")
	truncate(tb, file, int64(mib)<<20)
	// --invariant first: it sets a serial number too.
	oracle.Run(tb, "mkfs.vfat", "--invariant", "-F", "16", "-s", "1", "-i", strings.Replace(ESPSerial, "-", "", 1), "-n", "EFI", file)
	for i, p := range t.paths() {
		f := t.at(p)
		if f.Mode.IsDir() {
			oracle.Run(tb, "mmd", "-i", file, "::"+p)
			continue
		}
		src := filepath.Join(dir, strconv.Itoa(i))
		if err := os.WriteFile(src, f.Data, 0o644); err != nil {
			tb.Fatal(err)
		}
		if err := os.Chtimes(src, Epoch, Epoch); err != nil {
			tb.Fatal(err)
		}
		oracle.Run(tb, "mcopy", "-m", "-i", file, src, "::"+p)
	}
	return file
}

// physicalVolume makes an LVM2 physical volume, as far as blkid and LVM look at it:
// a label in the second sector, one data area, no metadata area.
func physicalVolume(tb testing.TB, mib int) string {
	tb.Helper()
	file := filepath.Join(tb.TempDir(), "pv")
	truncate(tb, file, int64(mib)<<20)
	le := binary.LittleEndian
	sector := make([]byte, 512)
	copy(sector, "LABELONE")
	le.PutUint64(sector[8:], 1)   // its own sector
	le.PutUint32(sector[20:], 32) // where the header of the volume begins
	copy(sector[24:], "LVM2 001")
	copy(sector[32:], "remaster0remaster1remaster2volum")
	le.PutUint64(sector[64:], uint64(mib)<<20)
	le.PutUint64(sector[72:], 1<<20) // the data area
	// LVM's checksum is CRC-32 without the inversions, begun at 0xf597a6cf.
	le.PutUint32(sector[16:], ^crc32.Update(^uint32(0xf597a6cf), crc32.IEEETable, sector[20:]))
	patch(tb, file, sector, 512)
	return file
}

// foreignFS makes an empty file system by a mkfs tool, for the roots that are refused.
func foreignFS(tb testing.TB, mib int, mkfs string, args ...string) string {
	tb.Helper()
	file := filepath.Join(tb.TempDir(), mkfs)
	truncate(tb, file, int64(mib)<<20)
	oracle.Run(tb, mkfs, append(args, file)...)
	return file
}

// truncate makes the file, or changes it to be, of that size.
func truncate(tb testing.TB, file string, size int64) {
	tb.Helper()
	f, err := os.OpenFile(file, os.O_CREATE|os.O_WRONLY, 0o644)
	if err == nil {
		defer f.Close()
		err = f.Truncate(size)
	}
	if err != nil {
		tb.Fatal(err)
	}
}

// patch writes b at off.
func patch(tb testing.TB, file string, b []byte, off int64) {
	tb.Helper()
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err == nil {
		defer f.Close()
		_, err = f.WriteAt(b, off)
	}
	if err != nil {
		tb.Fatal(err)
	}
}
