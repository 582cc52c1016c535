package testimage

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// File is one object of a [Tree].
type File struct {
	// Mode is the type (regular, folder or link) and the permissions.
	Mode     fs.FileMode
	UID, GID int
	Data     []byte // of a regular file
	Target   string // of a symbolic link
	HardLink string // if not "": this is another name of the file at that path
	// Xattrs are written as they are; a label by the path is added unless there is
	// a security.selinux among them.
	Xattrs map[string][]byte
}

// Tree is the content of a file system: absolute, clean paths to objects. A folder
// that something lies in need not be named; it is then 0755 and root's.
type Tree map[string]*File

// Put writes a regular file of mode 0644.
func (t Tree) Put(p, text string) { t[p] = &File{Mode: 0o644, Data: []byte(text)} }

// Exec writes a regular file of mode 0755.
func (t Tree) Exec(p string, data []byte) { t[p] = &File{Mode: 0o755, Data: data} }

// Dir makes a folder.
func (t Tree) Dir(p string, perm fs.FileMode) { t[p] = &File{Mode: fs.ModeDir | perm} }

// Link makes a symbolic link at p.
func (t Tree) Link(target, p string) { t[p] = &File{Mode: fs.ModeSymlink | 0o777, Target: target} }

// HardLink makes p another name of the file at old.
func (t Tree) HardLink(old, p string) { t[p] = &File{HardLink: old} }

// Text returns the content of the regular file at p.
func (t Tree) Text(p string) string { return string(t[p].Data) }

// Remove removes the object at p and everything below it.
func (t Tree) Remove(p string) {
	maps.DeleteFunc(t, func(q string, _ *File) bool { return q == p || strings.HasPrefix(q, p+"/") })
}

// Cut takes what lies below p out of the tree, leaves an empty folder there, and
// returns it as a tree of its own.
func (t Tree) Cut(p string) Tree {
	sub := Tree{}
	for q, f := range t {
		if rest, ok := strings.CutPrefix(q, p+"/"); ok {
			sub["/"+rest] = f
		}
	}
	t.Remove(p)
	t.Dir(p, 0o755)
	return sub
}

// Graft puts sub into the tree below p.
func (t Tree) Graft(p string, sub Tree) {
	for q, f := range sub {
		t[p+q] = f
	}
}

// paths returns every path of the tree and of the folders above them, without the
// root itself, parents first.
func (t Tree) paths() []string {
	all := map[string]bool{}
	for p := range t {
		for ; p != "/"; p = path.Dir(p) {
			all[p] = true
		}
	}
	return slices.Sorted(maps.Keys(all))
}

// at returns the object at p, which may be a folder that only its content names.
func (t Tree) at(p string) *File {
	f := t[p]
	switch {
	case f == nil:
		return &File{Mode: fs.ModeDir | 0o755}
	case f.HardLink != "":
		return t[f.HardLink]
	}
	return f
}

// write writes the tree's names and bytes to a folder of the host, readable by
// whoever runs this; modes and owners are set in the file system that is made of it.
func (t Tree) write(tb testing.TB, dir string) {
	tb.Helper()
	for _, p := range t.paths() {
		at := filepath.Join(dir, p)
		var err error
		switch f := t.at(p); {
		case t[p] != nil && t[p].HardLink != "":
			err = os.Link(filepath.Join(dir, t[p].HardLink), at)
		case f.Mode.IsDir():
			err = os.Mkdir(at, 0o755)
		case f.Mode&fs.ModeSymlink != 0:
			err = os.Symlink(f.Target, at)
		default:
			err = os.WriteFile(at, f.Data, 0o644)
		}
		if err != nil {
			tb.Fatal(err)
		}
	}
}

// labels are the SELinux types of an Alinux3-like system by path prefix; the last
// that fits counts. The guest's file_contexts says the same.
var labels = []struct{ prefix, typ string }{
	{"/", "default_t"},
	{"/usr", "usr_t"},
	{"/usr/bin", "bin_t"},
	{"/usr/sbin", "bin_t"},
	{"/usr/lib", "lib_t"},
	{"/usr/lib/systemd/system", "systemd_unit_file_t"},
	{"/usr/lib/modules", "modules_object_t"},
	{"/etc", "etc_t"},
	{"/etc/systemd/system", "systemd_unit_file_t"},
	{"/etc/default/grub", "bootloader_etc_t"},
	{"/boot", "boot_t"},
	{"/root", "admin_home_t"},
	{"/tmp", "tmp_t"},
	{"/var", "var_t"},
	{"/var/log", "var_log_t"},
}

// Label returns the SELinux label of a path of the guest, without the final NUL that
// is on disk.
func Label(p string) string {
	typ := "root_t"
	for _, l := range labels[1:] {
		if p == l.prefix || strings.HasPrefix(p, l.prefix+"/") {
			typ = l.typ
		}
	}
	if typ == "root_t" && p != "/" {
		typ = labels[0].typ
	}
	return "system_u:object_r:" + typ + ":s0"
}

// fileContexts returns the labels in the form of the policy's file_contexts.
func fileContexts() string {
	var b strings.Builder
	b.WriteString("/\t-d\tsystem_u:object_r:root_t:s0\n/.*\t\tsystem_u:object_r:default_t:s0\n")
	for _, l := range labels[1:] {
		fmt.Fprintf(&b, "%s(/.*)?\t\tsystem_u:object_r:%s:s0\n", l.prefix, l.typ)
	}
	return b.String()
}
