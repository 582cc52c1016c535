package rootfs

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"remaster/pkg/disk"
)

// Mem is an [Editor] in memory: what a real volume does, without a disk, for tests of
// everything that reads and plans. It keeps modes, owners, times, xattrs and hard
// links. It is used by one goroutine at a time.
type Mem struct {
	// NoXattrs makes the volume one without extended attributes, as FAT is.
	NoXattrs bool

	nodes map[string]*Node // names of one file share a *Node
	dirs  map[string]map[string]bool
}

// NewMem returns a volume that holds an empty root folder.
func NewMem() *Mem {
	m := &Mem{nodes: map[string]*Node{}, dirs: map[string]map[string]bool{}}
	m.add("/", &Node{Mode: fs.ModeDir | 0o755, Links: 1})
	return m
}

// MemOf returns a volume with files by path. A text "-> target" makes a link, a path
// that ends in a slash a folder, anything else a file of mode 0644; folders above are
// made with mode 0755. All belong to root, and their time is the start of 2024.
func MemOf(files map[string]string) *Mem {
	m := NewMem()
	for _, p := range slices.Sorted(maps.Keys(files)) {
		n := &Node{Mode: 0o644, ModTime: time.Unix(1704067200, 0), Content: disk.Bytes(files[p])}
		if strings.HasSuffix(p, "/") {
			n = &Node{Mode: fs.ModeDir | 0o755, ModTime: n.ModTime}
		} else if t, ok := strings.CutPrefix(files[p], "-> "); ok {
			n = &Node{Mode: fs.ModeSymlink | 0o777, ModTime: n.ModTime, Target: strings.TrimSuffix(t, "\n")}
		}
		m.Set(p, n)
	}
	return m
}

// Set puts n at path, in place of what is there, and makes the folders above. A folder
// that is there keeps what it holds. It panics if a folder above is not one.
func (m *Mem) Set(path string, n *Node) {
	p := clean(path)
	m.mkdirs(parent(p))
	if m.dirs[p] != nil && !n.Mode.IsDir() {
		panic("rootfs: Mem.Set over the folder " + p)
	}
	n = n.Clone()
	n.Links = 1
	m.drop(p)
	m.add(p, n)
}

// Link gives the file at old another name.
func (m *Mem) Link(old, name string) {
	p := clean(name)
	m.mkdirs(parent(p))
	n := m.nodes[clean(old)]
	if n == nil || n.Mode.IsDir() {
		panic("rootfs: Mem.Link of " + old)
	}
	n.Links++
	m.add(p, n)
}

func (m *Mem) mkdirs(p string) {
	if n := m.nodes[p]; n != nil {
		if !n.Mode.IsDir() {
			panic("rootfs: Mem: " + p + " is not a folder")
		}
		return
	}
	m.mkdirs(parent(p))
	m.add(p, &Node{Mode: fs.ModeDir | 0o755, ModTime: time.Unix(1704067200, 0), Links: 1})
}

func (m *Mem) add(p string, n *Node) {
	m.nodes[p] = n
	if n.Mode.IsDir() && m.dirs[p] == nil {
		m.dirs[p] = map[string]bool{}
	}
	if p != "/" {
		m.dirs[parent(p)][path.Base(p)] = true
	}
}

func (m *Mem) drop(p string) {
	if n := m.nodes[p]; n != nil {
		n.Links--
		delete(m.nodes, p)
		delete(m.dirs[parent(p)], path.Base(p))
	}
}

// Paths returns everything that is there, sorted.
func (m *Mem) Paths() []string { return slices.Sorted(maps.Keys(m.nodes)) }

func (m *Mem) get(op, p string) (*Node, error) {
	n := m.nodes[clean(p)]
	if n == nil {
		return nil, pathError(op, p, fs.ErrNotExist)
	}
	return n, nil
}

// Lstat implements Volume.
func (m *Mem) Lstat(path string) (*Node, error) {
	n, err := m.get("lstat", path)
	if err != nil {
		return nil, err
	}
	c := n.Clone()
	if c.Xattrs == nil && !m.NoXattrs {
		c.Xattrs = map[string][]byte{}
	}
	return c, nil
}

// ReadDir implements Volume.
func (m *Mem) ReadDir(path string) ([]Entry, error) {
	p := clean(path)
	names, ok := m.dirs[p]
	if !ok {
		return nil, pathError("list", p, fs.ErrNotExist)
	}
	out := make([]Entry, 0, len(names))
	for _, name := range slices.Sorted(maps.Keys(names)) {
		out = append(out, Entry{name, m.nodes[join(p, name)].Mode.Type()})
	}
	return out, nil
}

// SetContent implements Editor. The content is copied.
func (m *Mem) SetContent(path string, content disk.Blob, mtime time.Time) error {
	n, err := m.get("write", path)
	if err != nil {
		return err
	}
	if !n.Mode.IsRegular() {
		return pathError("write", path, fmt.Errorf("is %s", kind(n.Mode)))
	}
	b, err := readBlob(content)
	if err != nil {
		return pathError("write", path, err)
	}
	n.Content, n.ModTime = disk.Bytes(b), mtime
	return nil
}

// Create implements Editor. The content is copied.
func (m *Mem) Create(path string, n *Node) error {
	p := clean(path)
	if m.nodes[p] != nil {
		return pathError("create", p, fs.ErrExist)
	}
	if m.dirs[parent(p)] == nil {
		return pathError("create", p, fmt.Errorf("%s: %w", parent(p), fs.ErrNotExist))
	}
	if err := m.attrsFit(n); err != nil {
		return pathError("create", p, err)
	}
	n = n.Clone()
	n.Links = 1
	if n.Mode.IsRegular() {
		b, err := readBlob(n.Content)
		if err != nil {
			return pathError("create", p, err)
		}
		n.Content = disk.Bytes(b)
	}
	m.add(p, n)
	return nil
}

func (m *Mem) attrsFit(n *Node) error {
	if m.NoXattrs && len(n.Xattrs) > 0 {
		return fmt.Errorf("the volume has no extended attributes: %w", disk.ErrUnsupported)
	}
	return nil
}

// SetAttr implements Editor.
func (m *Mem) SetAttr(path string, n *Node) error {
	old, err := m.get("set attributes", path)
	if err != nil {
		return err
	}
	if err := m.attrsFit(n); err != nil {
		return pathError("set attributes", path, err)
	}
	old.Mode = old.Mode.Type() | n.Mode&permBits
	old.UID, old.GID, old.Xattrs = n.UID, n.GID, maps.Clone(n.Xattrs)
	return nil
}

// Remove implements Editor.
func (m *Mem) Remove(path string) error {
	p := clean(path)
	if _, err := m.get("remove", p); err != nil {
		return err
	}
	if p == "/" || len(m.dirs[p]) > 0 {
		return pathError("remove", p, errNotEmpty)
	}
	m.drop(p)
	delete(m.dirs, p)
	return nil
}

var errNotEmpty = errors.New("folder is not empty")

// Flush implements Editor; there is nothing to do.
func (m *Mem) Flush() error { return nil }

// parent returns the folder of a clean path; that of the root is the root.
func parent(p string) string { return path.Dir(p) }

// join puts a name into the folder dir.
func join(dir, name string) string {
	if dir == "/" {
		return "/" + name
	}
	return dir + "/" + name
}
