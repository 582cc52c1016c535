// Package rootfs is the guest as one tree: / with /boot and /boot/efi where its own
// fstab puts them, whatever file system or partition they lie on.
//
//   - [Volume] is one file system, seen without following links.
//   - [Guest] joins volumes to a [Tree] and resolves paths inside it: an absolute
//     link starts again at the guest's root, and nothing ever leads to the host.
//   - [Stage] is a Tree with planned changes on top. Actions read and write a Stage
//     only, so that an action cannot do what it did not announce.
//   - [Apply] performs exactly the changes of a Stage on the guest's volumes.
//
// Paths are absolute, slash separated and clean (path.Clean) in results; arguments
// are cleaned first.
package rootfs

import (
	"errors"
	"io/fs"
	"time"

	"remaster/pkg/disk"
)

// Node is what lies at a path: a file, a folder, a link or a special file.
type Node struct {
	// Mode is the type and the permission bits with setuid, setgid and sticky, in
	// Go's representation.
	Mode     fs.FileMode
	UID, GID uint32
	// ModTime is the time of the last change of content. The zero time means "now"
	// in a node that is to be written.
	ModTime time.Time
	// Links is the number of names that a file has; 1 for new ones.
	Links int
	// Xattrs are the extended attributes by full name ("security.selinux"), values
	// as the kernel's getxattr gives them. A volume without xattrs leaves it nil.
	Xattrs map[string][]byte
	// Content holds a regular file's bytes, and is nil for anything else. It may be
	// read as long as the tree that it came from is open.
	Content disk.Blob
	// Target is a symbolic link's text.
	Target string
}

// Entry is a name in a folder.
type Entry struct {
	Name string
	Type fs.FileMode // type bits only
}

// Tree reads a guest's files. Links are resolved inside the tree. Errors wrap
// fs.ErrNotExist where a path does not exist, and [ErrLoop] where links do not end.
type Tree interface {
	// Lstat returns the node at path; a link in last place is not followed.
	Lstat(path string) (*Node, error)
	// Stat returns the node at path; a link in last place is followed.
	Stat(path string) (*Node, error)
	// ReadDir returns the entries of the folder at path (a link in last place is
	// followed) without "." and "..", sorted by name.
	ReadDir(path string) ([]Entry, error)
	// Resolve returns the path, free of links, that path leads to. Its last
	// component need not exist; all before it must be folders. A dangling link
	// in last place resolves to the place it points at.
	Resolve(path string) (string, error)
}

// Sentinels for the decisions that callers make, beside fs.ErrNotExist.
var (
	// ErrLoop says that symbolic links do not come to an end.
	ErrLoop = errors.New("too many levels of symbolic links")
	// ErrNotDir says that a component of a path is there and is not a folder.
	ErrNotDir = errors.New("not a folder")
)

// Volume is one file system. No path given to it is resolved: a component that is a
// link is fs.ErrNotExist or an error of its own. It is used by one goroutine at a time.
type Volume interface {
	Lstat(path string) (*Node, error)
	ReadDir(path string) ([]Entry, error)
}

// Editor is a volume that can be changed. An error leaves the volume in a state that
// must not be published; callers drop the overlay that it wrote to.
type Editor interface {
	Volume
	// SetContent replaces the bytes of the regular file at path. The file stays
	// the same one: mode, owner, xattrs and other names are untouched.
	SetContent(path string, content disk.Blob, mtime time.Time) error
	// Create makes what n describes at path, which must not exist, in a folder that
	// does.
	Create(path string, n *Node) error
	// SetAttr gives the object at path the mode, owner and xattrs of n. Xattrs that
	// n lacks are removed.
	SetAttr(path string, n *Node) error
	// Remove removes the file, link or empty folder at path.
	Remove(path string) error
	// Flush writes everything out to the disk below and verifies it: what was
	// changed is parsed anew, and checksums and counters are recomputed.
	Flush() error
}

// Op is the kind of a change.
type Op string

// The kinds of change.
const (
	OpCreate  Op = "create"  // nothing was at Path; Before is nil
	OpModify  Op = "modify"  // the file's content, and perhaps attributes, change
	OpAttr    Op = "attr"    // mode, owner or xattrs only
	OpRemove  Op = "remove"  // After is nil
	OpReplace Op = "replace" // one type of object takes the place of another: a link that is pointed elsewhere
)

// Change is one planned change: what plan, diff, apply and the manifest share. Path
// is free of links; it is where the bytes change, not necessarily the path that an
// action named.
type Change struct {
	Path          string
	Op            Op
	Before, After *Node
	Why           []string // a line from each action that wanted it, without doubles
	// Label says which rule gave a new node its security.selinux, and is empty where
	// none was given: "file_contexts /etc/containerd(/.*)?", "sibling /etc/passwd",
	// "folder /etc".
	Label string
}
