package rootfs

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"time"

	"remaster/internal/hint"
	"remaster/pkg/disk"
	"remaster/pkg/ext4"
	"remaster/pkg/fat"
)

// ErrNoSpace says that a volume is too full for a change.
var ErrNoSpace = errors.New("no space left on the volume")

// full makes err ErrNoSpace too if it is cause.
func full(err, cause error) error {
	if !errors.Is(err, cause) {
		return err
	}
	return hint.With(noSpaceError{err}, "make the base image's disk and file system larger first, or remove files from it")
}

type noSpaceError struct{ error }

func (e noSpaceError) Unwrap() error        { return e.error }
func (e noSpaceError) Is(target error) bool { return target == ErrNoSpace }

// unreadable stands for a content that is there and can't be read: an encrypted file.
type unreadable struct {
	size int64
	err  error
}

func (u unreadable) Size() int64                       { return u.size }
func (u unreadable) ReadAt([]byte, int64) (int, error) { return 0, u.err }

// maxKnown is the number of paths, and of nodes, that a volume remembers.
const maxKnown = 1 << 14

// ext4Volume is an ext4 file system as a Volume. The same few folders and files are
// looked up again and again on the way to others, so it remembers what lies at a path.
type ext4Volume struct {
	fs    *ext4.FS
	inos  map[string]ext4.Ino // 0: nothing is there
	nodes map[ext4.Ino]*Node
}

func newExt4(f *ext4.FS) *ext4Volume {
	v := &ext4Volume{fs: f}
	v.forget()
	return v
}

// forget drops what was remembered.
func (v *ext4Volume) forget() {
	v.inos = map[string]ext4.Ino{"/": v.fs.Root()}
	v.nodes = map[ext4.Ino]*Node{}
}

func (v *ext4Volume) ino(p string) (ext4.Ino, error) {
	if ino, ok := v.inos[p]; ok {
		if ino == 0 {
			return 0, fs.ErrNotExist
		}
		return ino, nil
	}
	dir, err := v.ino(parent(p))
	if err != nil {
		return 0, err
	}
	ino, err := v.fs.Lookup(dir, path.Base(p))
	if errors.Is(err, ext4.ErrNotDir) || errors.Is(err, fs.ErrInvalid) {
		err = fs.ErrNotExist
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	if len(v.inos) >= maxKnown {
		v.forget()
	}
	v.inos[p] = ino
	return ino, err
}

// Lstat implements Volume.
func (v *ext4Volume) Lstat(p string) (*Node, error) {
	ino, err := v.ino(clean(p))
	if err != nil {
		return nil, pathError("lstat", p, err)
	}
	n := v.nodes[ino]
	if n == nil {
		if n, err = v.node(ino); err != nil {
			return nil, pathError("lstat", p, err)
		}
		if len(v.nodes) >= maxKnown {
			clear(v.nodes)
		}
		v.nodes[ino] = n
	}
	return n.Clone(), nil
}

func (v *ext4Volume) node(ino ext4.Ino) (*Node, error) {
	st, err := v.fs.Stat(ino)
	if err != nil {
		return nil, err
	}
	n := &Node{Mode: st.Mode, UID: st.UID, GID: st.GID, ModTime: st.Mtime, Links: st.Links}
	if n.Xattrs, err = v.fs.Xattrs(ino); err != nil {
		return nil, err
	}
	switch {
	case n.Mode.IsRegular():
		f, err := v.fs.File(ino)
		if n.Content = f; err != nil {
			n.Content = unreadable{max(st.Size, 0), err}
		}
	case n.Mode.Type() == fs.ModeSymlink:
		if n.Target, err = v.fs.Readlink(ino); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// ReadDir implements Volume.
func (v *ext4Volume) ReadDir(p string) ([]Entry, error) {
	ino, err := v.ino(clean(p))
	if err != nil {
		return nil, pathError("list", p, err)
	}
	es, err := v.fs.ReadDir(ino)
	if err != nil {
		return nil, pathError("list", p, err)
	}
	out := make([]Entry, len(es))
	for i, e := range es {
		out[i] = Entry{e.Name, e.Type}
	}
	return out, nil
}

// ext4Editor is an ext4 file system as an Editor. It is opened for editing at the first
// change, so that one that can't be edited may still be read, and one that is not edited
// stays as it is.
type ext4Editor struct {
	*ext4Volume
	d        disk.Writable
	replayed *disk.Overlay // d after the replay of its journal, or nil
	now      time.Time
	ed       *ext4.Editor
}

// settle brings the replay of the journal to the disk.
func (v *ext4Editor) settle() error {
	if v.replayed == nil {
		return nil
	}
	for r := range v.replayed.Changed() {
		for r.Len > 0 {
			b := make([]byte, min(r.Len, 1<<20))
			if err := disk.ReadFull(v.replayed, b, r.Off); err != nil {
				return err
			}
			if _, err := v.d.WriteAt(b, r.Off); err != nil {
				return err
			}
			r = disk.Range{Off: r.Off + int64(len(b)), Len: r.Len - int64(len(b))}
		}
	}
	return nil
}

// change runs f with the inode of p's folder and p's name there.
func (v *ext4Editor) change(op, p string, f func(e *ext4.Editor, dir ext4.Ino, name string) error) error {
	if v.ed == nil {
		if err := v.settle(); err != nil {
			return err
		}
		ed, err := ext4.Edit(v.d, ext4.EditOptions{Now: v.now})
		if err != nil {
			return err
		}
		v.ed, v.fs = ed, ed.FS
	}
	p = clean(p)
	dir, err := v.ino(parent(p))
	if err == nil {
		err = f(v.ed, dir, path.Base(p))
	}
	v.forget()
	if err != nil {
		return pathError(op, p, full(err, ext4.ErrNoSpace))
	}
	return nil
}

// SetContent implements Editor.
func (v *ext4Editor) SetContent(p string, content disk.Blob, mtime time.Time) error {
	return v.change("write", p, func(e *ext4.Editor, _ ext4.Ino, _ string) error {
		ino, err := v.ino(clean(p))
		if err != nil {
			return err
		}
		return e.SetContent(ino, content, mtime)
	})
}

// Create implements Editor.
func (v *ext4Editor) Create(p string, n *Node) error {
	return v.change("create", p, func(e *ext4.Editor, dir ext4.Ino, name string) (err error) {
		a := attr(n)
		a.MTime = n.ModTime
		switch n.Mode.Type() {
		case 0:
			_, err = e.Create(dir, name, a, content(n))
		case fs.ModeDir:
			_, err = e.Mkdir(dir, name, a)
		case fs.ModeSymlink:
			_, err = e.Symlink(dir, name, n.Target, a)
		default:
			err = fmt.Errorf("%s: %w", kind(n.Mode), disk.ErrUnsupported)
		}
		return err
	})
}

// SetAttr implements Editor.
func (v *ext4Editor) SetAttr(p string, n *Node) error {
	return v.change("set attributes", p, func(e *ext4.Editor, _ ext4.Ino, _ string) error {
		ino, err := v.ino(clean(p))
		if err != nil {
			return err
		}
		return e.SetAttr(ino, attr(n))
	})
}

func attr(n *Node) ext4.Attr {
	a := ext4.Attr{Mode: n.Mode, UID: n.UID, GID: n.GID, Xattrs: n.Xattrs}
	if a.Xattrs == nil { // nil would leave them
		a.Xattrs = map[string][]byte{}
	}
	return a
}

// Remove implements Editor.
func (v *ext4Editor) Remove(p string) error {
	return v.change("remove", p, func(e *ext4.Editor, dir ext4.Ino, name string) error { return e.Remove(dir, name) })
}

// Flush implements Editor.
func (v *ext4Editor) Flush() error {
	if v.ed == nil {
		return nil
	}
	return v.ed.Flush()
}

// fatVolume is a FAT file system as a Volume. Everything on it belongs to root.
type fatVolume struct{ fs *fat.FS }

// Lstat implements Volume.
func (v *fatVolume) Lstat(p string) (*Node, error) {
	e, err := v.fs.Lookup(p)
	if err != nil {
		return nil, err
	}
	n := &Node{Mode: e.Mode, ModTime: e.ModTime, Links: 1}
	if !e.IsDir() {
		f, err := v.fs.File(e)
		if n.Content = f; err != nil {
			n.Content = unreadable{e.Size, err}
		}
	}
	return n, nil
}

// ReadDir implements Volume.
func (v *fatVolume) ReadDir(p string) ([]Entry, error) {
	es, err := v.fs.ReadDir(p)
	if err != nil {
		return nil, err
	}
	out := make([]Entry, len(es))
	for i, e := range es {
		out[i] = Entry{e.Name, e.Mode.Type()}
	}
	return out, nil
}

// fatEditor is a FAT file system as an Editor, opened for editing at the first change.
type fatEditor struct {
	*fatVolume
	d  disk.Writable
	ed *fat.Editor
}

func (v *fatEditor) change(f func(e *fat.Editor) error) error {
	if v.ed == nil {
		ed, err := fat.Edit(v.d)
		if err != nil {
			return err
		}
		v.ed, v.fs = ed, ed.FS
	}
	err := f(v.ed)
	var located *fs.PathError
	if errors.As(err, &located) {
		located.Err = full(located.Err, fat.ErrNoSpace)
	}
	return err
}

// SetContent implements Editor.
func (v *fatEditor) SetContent(p string, content disk.Blob, mtime time.Time) error {
	return v.change(func(e *fat.Editor) error { return e.SetContent(p, content, mtime) })
}

// Create implements Editor. Mode and owner are what they are for everything.
func (v *fatEditor) Create(p string, n *Node) error {
	return v.change(func(e *fat.Editor) error {
		switch {
		case len(n.Xattrs) > 0:
			return pathError("create", p, fmt.Errorf("extended attributes on FAT: %w", disk.ErrUnsupported))
		case n.Mode.IsRegular():
			return e.CreateFile(p, content(n), n.ModTime)
		case n.Mode.IsDir():
			return e.Mkdir(p, n.ModTime)
		}
		return pathError("create", p, fmt.Errorf("%s on FAT: %w", kind(n.Mode), disk.ErrUnsupported))
	})
}

// SetAttr implements Editor: it refuses what would be a change.
func (v *fatEditor) SetAttr(p string, n *Node) error {
	cur, err := v.Lstat(p)
	if err == nil && !sameAttr(cur, n) {
		err = pathError("set attributes", p, fmt.Errorf("attributes on FAT: %w", disk.ErrUnsupported))
	}
	return err
}

// Remove implements Editor.
func (v *fatEditor) Remove(p string) error {
	return v.change(func(e *fat.Editor) error { return e.Remove(p) })
}

// Flush implements Editor.
func (v *fatEditor) Flush() error {
	if v.ed == nil {
		return nil
	}
	return v.ed.Flush()
}
