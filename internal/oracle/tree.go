package oracle

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Node is what a reader that no one here wrote sees of a file.
type Node struct {
	Mode                fs.FileMode
	UID, GID            uint32
	Size                int64
	MTime, CTime, ATime time.Time
	Inode               uint64 // 0 on FAT
	Links               uint64
	Rdev                uint64
	Xattrs              map[string]string
	SHA256              string // of a regular file's content
	Target              string // of a link
}

// Tree is every file of a file system, or of a guest, by absolute path.
type Tree map[string]Node

// Volume is a file system of an image, read whole.
type Volume struct {
	FileSystem
	Tree Tree
}

// Volumes reads every ext4 and FAT of an image: an ext4 by the kernel, mounted
// read-only, where that can be done (root and a loop device), else by debugfs; a FAT
// by mtools, since many a kernel has no driver for it. Other file systems are left out.
func Volumes(tb testing.TB, image string) []Volume {
	tb.Helper()
	raw := RawDisk(tb, image)
	var out []Volume
	for _, f := range FileSystems(tb, raw) {
		var t Tree
		switch {
		case f.Type == "vfat":
			t = byMtools(tb, raw, f)
		case !strings.HasPrefix(f.Type, "ext"):
			continue
		case canMount(tb):
			t = byMount(tb, raw, f)
		default:
			t = byDebugFS(tb, raw, f)
		}
		out = append(out, Volume{f, t})
	}
	return out
}

// Guest reads an image as the tree that its system would see: the volume with
// /etc/fstab is /, a FAT is /boot/efi, and any other with a grub2 folder is /boot.
func Guest(tb testing.TB, image string) Tree {
	tb.Helper()
	out := Tree{}
	for _, v := range Volumes(tb, image) {
		at := ""
		switch _, root := v.Tree["/etc/fstab"]; {
		case root:
			at = "/"
		case v.Type == "vfat":
			at = "/boot/efi"
		default:
			if _, ok := v.Tree["/grub2"]; ok {
				at = "/boot"
			}
		}
		if at == "" {
			tb.Fatalf("%s: partition %d has no place in the guest", image, v.Part)
		}
		for p, n := range v.Tree {
			p = path.Join(at, p)
			// What lies on a volume hides the folder that it is mounted on.
			if _, there := out[p]; !there || at != "/" {
				out[p] = n
			}
		}
	}
	return out
}

// canMount reports whether an ext4 can be mounted here.
func canMount(tb testing.TB) bool {
	tb.Helper()
	mountOnce.Do(func() {
		if os.Geteuid() != 0 || Find("mount") == "" {
			return
		}
		dir := tb.TempDir()
		img := filepath.Join(dir, "probe")
		Run(tb, "mke2fs", "-q", "-t", "ext4", img, "4M")
		if Try(tb, "mount", "-o", "ro,noload,loop", img, dir).Code == 0 {
			mountWorks = unmount(dir) == nil
		}
	})
	return mountWorks
}

var (
	mountOnce  sync.Once
	mountWorks bool
)

func byMount(tb testing.TB, raw string, f FileSystem) Tree {
	tb.Helper()
	dir := tb.TempDir()
	// A journal that is not empty must not be replayed into the image: noload.
	Run(tb, "mount", "-t", "ext4", "-o", fmt.Sprintf("ro,noload,noatime,loop,offset=%d,sizelimit=%d", f.Off, f.Size), raw, dir)
	defer func() {
		if err := unmount(dir); err != nil {
			tb.Errorf("unmount %s: %v", dir, err)
		}
	}()
	return walk(tb, dir)
}

// unmount waits for processes that another test forks: until they run a program of
// their own, they hold a file that is open here.
func unmount(dir string) error {
	for range 500 {
		if err := syscall.Unmount(dir, 0); !errors.Is(err, syscall.EBUSY) {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
	return syscall.Unmount(dir, unix.MNT_DETACH)
}

// walk reads a folder of the host.
func walk(tb testing.TB, dir string) Tree {
	tb.Helper()
	t := Tree{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		n, err := lstat(p)
		if err != nil {
			return err
		}
		t[path.Join("/", strings.TrimPrefix(p, dir))] = n
		return nil
	})
	if err != nil {
		tb.Fatal(err)
	}
	return t
}

func lstat(p string) (Node, error) {
	fi, err := os.Lstat(p)
	if err != nil {
		return Node{}, err
	}
	s := fi.Sys().(*syscall.Stat_t)
	n := Node{Mode: fi.Mode(), UID: s.Uid, GID: s.Gid, Size: s.Size, Inode: s.Ino, Links: s.Nlink, Rdev: s.Rdev,
		MTime: time.Unix(s.Mtim.Unix()).UTC(), CTime: time.Unix(s.Ctim.Unix()).UTC(), ATime: time.Unix(s.Atim.Unix()).UTC(), Xattrs: map[string]string{}}
	list := make([]byte, 1<<16)
	size, err := unix.Llistxattr(p, list)
	if err != nil && !errors.Is(err, unix.ENOTSUP) {
		return n, fmt.Errorf("list xattrs of %s: %w", p, err)
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list[:max(size, 0)]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, 1<<16)
		size, err := unix.Lgetxattr(p, name, value)
		if err != nil {
			return n, fmt.Errorf("xattr %s of %s: %w", name, p, err)
		}
		n.Xattrs[name] = string(value[:size])
	}
	switch {
	case n.Mode.IsRegular():
		n.SHA256, err = sumFile(p)
	case n.Mode&fs.ModeSymlink != 0:
		n.Target, err = os.Readlink(p)
	default:
		err = nil
	}
	return n, err
}

// SHA256 returns the digest of a file, in hexadecimal.
func SHA256(tb testing.TB, file string) string {
	tb.Helper()
	s, err := sumFile(file)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

func sumFile(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// Difference is what differs at a path. Before or After is nil if nothing is there.
type Difference struct {
	Path          string
	Fields        []string // names of the fields of Node that differ
	Before, After *Node
}

func (d Difference) String() string {
	switch {
	case d.Before == nil:
		return fmt.Sprintf("%s: new: %+v", d.Path, *d.After)
	case d.After == nil:
		return fmt.Sprintf("%s: gone: %+v", d.Path, *d.Before)
	}
	s := d.Path + ":"
	b, a := reflect.ValueOf(*d.Before), reflect.ValueOf(*d.After)
	for _, f := range d.Fields {
		s += fmt.Sprintf(" %s %v → %v;", f, b.FieldByName(f), a.FieldByName(f))
	}
	return s
}

// Diff returns what differs between two trees, by path.
func Diff(before, after Tree) []Difference {
	all := maps.Clone(before)
	maps.Copy(all, after)
	var out []Difference
	for _, p := range slices.Sorted(maps.Keys(all)) {
		b, inB := before[p]
		a, inA := after[p]
		switch {
		case !inB:
			out = append(out, Difference{Path: p, After: &a})
		case !inA:
			out = append(out, Difference{Path: p, Before: &b})
		default:
			if fields := differing(b, a); len(fields) > 0 {
				out = append(out, Difference{p, fields, &b, &a})
			}
		}
	}
	return out
}

func differing(b, a Node) []string {
	var fields []string
	vb, va := reflect.ValueOf(b), reflect.ValueOf(a)
	for i := range vb.NumField() {
		if !reflect.DeepEqual(vb.Field(i).Interface(), va.Field(i).Interface()) {
			fields = append(fields, vb.Type().Field(i).Name)
		}
	}
	return fields
}

// Unannounced returns the differences that the announced changes, path to operation
// (create, modify, attr, remove, replace), do not explain:
//
//   - a modified file may differ in content, size and times, under each of its names;
//     one whose attributes change, in those and the time of that change;
//   - a folder in which something appears or disappears may differ in its times, size
//     and number of links.
//
// Announced changes that made no difference are returned too, as a Difference
// without nodes.
func Unannounced(before, after Tree, announced map[string]string) []Difference {
	content := []string{"Size", "MTime", "CTime", "SHA256"}
	attrs := []string{"Mode", "UID", "GID", "Xattrs", "CTime"}
	folder := []string{"Size", "MTime", "CTime", "Links"}
	allowed := map[string][]string{}
	inodes := map[uint64][]string{}
	appears, disappears := map[string]bool{}, map[string]bool{}
	for p, op := range announced {
		switch op {
		case "modify":
			allowed[p] = append(allowed[p], content...)
		case "attr":
			allowed[p] = append(allowed[p], attrs...)
		case "create", "replace", "remove":
			appears[p] = op != "remove"
			disappears[p] = op != "create"
			allowed[path.Dir(p)] = append(allowed[path.Dir(p)], folder...)
		}
		if n := before[p]; n.Inode != 0 && n.Links > 1 && n.Mode.IsRegular() {
			inodes[n.Inode] = append(inodes[n.Inode], allowed[p]...)
			if op == "remove" || op == "replace" {
				inodes[n.Inode] = append(inodes[n.Inode], "Links", "CTime")
			}
		}
	}
	var out []Difference
	seen := map[string]bool{}
	for _, d := range Diff(before, after) {
		seen[d.Path] = true
		ok := slices.Clone(allowed[d.Path])
		if d.Before != nil {
			ok = append(ok, inodes[d.Before.Inode]...)
		}
		switch {
		case d.Before == nil && appears[d.Path], d.After == nil && disappears[d.Path]:
		case appears[d.Path] && disappears[d.Path]: // replaced
		case d.Before == nil, d.After == nil, slices.ContainsFunc(d.Fields, func(f string) bool { return !slices.Contains(ok, f) }):
			out = append(out, d)
		}
	}
	for _, p := range slices.Sorted(maps.Keys(announced)) {
		if !seen[p] {
			out = append(out, Difference{Path: p, Fields: []string{"announced, and the same"}})
		}
	}
	return out
}
