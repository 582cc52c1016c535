package rootfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"

	"remaster/pkg/disk"
)

// permBits are the bits of a mode that are not its type.
const permBits = fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky

// selinux is the attribute that holds a node's SELinux label.
const selinux = "security.selinux"

// ReadLimit is the number of bytes that [ReadFile] reads at most. What is edited as
// text is far smaller.
const ReadLimit = 16 << 20

// ReadFile returns the content of the regular file that path leads to, links followed.
func ReadFile(t Tree, path string) ([]byte, error) {
	n, err := t.Stat(path)
	if err != nil {
		return nil, err
	}
	if !n.Mode.IsRegular() {
		return nil, fmt.Errorf("read %s: is %s, not a regular file", path, kind(n.Mode))
	}
	b, err := readBlob(n.Content)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return b, nil
}

func readBlob(b disk.Blob) ([]byte, error) {
	size := sizeOf(b)
	if size > ReadLimit {
		return nil, fmt.Errorf("%d bytes are more than the limit of %d", size, ReadLimit)
	}
	p := make([]byte, size)
	if size == 0 {
		return p, nil
	}
	return p, disk.ReadFull(b, p, 0)
}

// Exists reports whether something lies at path, links followed.
func Exists(t Tree, path string) (bool, error) {
	_, err := t.Stat(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrNotDir) {
		return false, nil
	}
	return err == nil, err
}

// Clone returns a copy of n that shares only its Content.
func (n *Node) Clone() *Node {
	c := *n
	c.Xattrs = maps.Clone(n.Xattrs)
	return &c
}

// Size returns the length in bytes of a regular file's content, and 0 for anything else.
func (n *Node) Size() int64 { return sizeOf(n.Content) }

func sizeOf(b disk.Blob) int64 {
	if b == nil {
		return 0
	}
	return b.Size()
}

// kind names a type of node for messages.
func kind(m fs.FileMode) string {
	switch m.Type() {
	case 0:
		return "a regular file"
	case fs.ModeDir:
		return "a folder"
	case fs.ModeSymlink:
		return "a symbolic link"
	case fs.ModeNamedPipe:
		return "a named pipe"
	case fs.ModeSocket:
		return "a socket"
	case fs.ModeDevice, fs.ModeDevice | fs.ModeCharDevice:
		return "a device"
	}
	return "a special file"
}

// sameAttr reports whether mode, owner and xattrs are equal.
func sameAttr(a, b *Node) bool {
	return a.Mode == b.Mode && a.UID == b.UID && a.GID == b.GID &&
		maps.EqualFunc(a.Xattrs, b.Xattrs, bytes.Equal)
}

// sameContent compares two contents, nil being empty.
func sameContent(a, b disk.Blob) (bool, error) {
	size := sizeOf(a)
	if size != sizeOf(b) {
		return false, nil
	}
	const chunk = 256 << 10
	buf := make([]byte, 2*min(size, chunk))
	for off := int64(0); off < size; {
		n := min(size-off, chunk)
		p, q := buf[:n], buf[n:2*n]
		if err := disk.ReadFull(a, p, off); err != nil {
			return false, err
		}
		if err := disk.ReadFull(b, q, off); err != nil {
			return false, err
		}
		if !bytes.Equal(p, q) {
			return false, nil
		}
		off += n
	}
	return true, nil
}

// Reader returns a reader of a regular file's content from its start.
func (n *Node) Reader() io.Reader {
	if n.Content == nil {
		return bytes.NewReader(nil)
	}
	return io.NewSectionReader(n.Content, 0, n.Content.Size())
}

// clean makes an argument an absolute clean path.
func clean(p string) string { return path.Clean("/" + p) }

// pathError is an error about a path; the word is what was being done.
func pathError(op, p string, err error) error {
	return &fs.PathError{Op: op, Path: p, Err: err}
}
