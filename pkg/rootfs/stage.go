package rootfs

import (
	"bytes"
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

// Stage is a [Tree] with planned changes on top of another one, its base, which is
// never changed. Reads see what was planned. It is used by one goroutine at a time.
//
// A change of a file keeps the file: whatever other names it has (Node.Links > 1) will
// show the new content too, but the stage itself shows it only at the name that was
// written to. Two names of one file that get different contents are found by [Apply].
//
// Every method that plans takes the reason, a line for people. Planning what is already
// so changes nothing and records nothing.
type Stage struct {
	view
	base   Tree
	staged map[string]*staged         // by path without links
	kids   map[string]map[string]bool // names of staged by folder
	labels *labeller
}

// staged is the planned state of one path.
type staged struct {
	before *Node // nil: nothing is there in the base
	after  *Node // nil: it is removed
	// content says that a regular file's bytes differ from those of before.
	content bool
	why     []string
	label   string
}

// NewStage returns a stage without changes on top of t.
func NewStage(t Tree) *Stage {
	s := &Stage{base: t, staged: map[string]*staged{}, kids: map[string]map[string]bool{}}
	s.view = view{s.lstat, s.readDir}
	return s
}

// Base returns the tree below the changes.
func (s *Stage) Base() Tree { return s.base }

func (s *Stage) lstat(p string) (*Node, error) {
	if st := s.staged[p]; st != nil {
		if st.after == nil {
			return nil, pathError("lstat", p, fs.ErrNotExist)
		}
		return st.after.Clone(), nil
	}
	return s.baseLstat(p)
}

// unresolved is what the trees of this package have below view: lookups of paths that
// are known to be without links.
type unresolved interface {
	lstat(path string) (*Node, error)
	readDir(path string) ([]Entry, error)
}

// baseLstat looks p up in the base, which may have had a link or nothing at all where
// the stage has a folder.
func (s *Stage) baseLstat(p string) (*Node, error) {
	if s.inNewFolder(p) {
		return nil, pathError("lstat", p, fs.ErrNotExist)
	}
	if b, ok := s.base.(unresolved); ok {
		return b.lstat(p)
	}
	return s.base.Lstat(p)
}

// inNewFolder reports whether a folder above p is not a folder in the base.
func (s *Stage) inNewFolder(p string) bool {
	for p != "/" {
		p = parent(p)
		if st := s.staged[p]; st != nil && (st.before == nil || !st.before.Mode.IsDir()) {
			return true
		}
	}
	return false
}

func (s *Stage) readDir(p string) ([]Entry, error) {
	types := map[string]fs.FileMode{}
	if st := s.staged[p]; !s.inNewFolder(p) && (st == nil || st.before != nil && st.before.Mode.IsDir()) {
		read := s.base.ReadDir
		if b, ok := s.base.(unresolved); ok {
			read = b.readDir
		}
		es, err := read(p)
		if err != nil {
			return nil, err
		}
		for _, e := range es {
			types[e.Name] = e.Type
		}
	}
	for name := range s.kids[p] {
		if after := s.staged[join(p, name)].after; after != nil {
			types[name] = after.Mode.Type()
		} else {
			delete(types, name)
		}
	}
	out := make([]Entry, 0, len(types))
	for _, name := range slices.Sorted(maps.Keys(types)) {
		out = append(out, Entry{name, types[name]})
	}
	return out, nil
}

// WriteFile plans that path holds data. A file that is there, links followed, keeps all
// but its content; a missing one is made with mode 0644 for root, and so are missing
// folders above it with mode 0755.
func (s *Stage) WriteFile(path string, data []byte, why string) error {
	return s.write(path, data, nil, why)
}

// WriteFileMode is WriteFile for a file that shall have the permission bits of mode,
// also if it is there.
func (s *Stage) WriteFileMode(path string, data []byte, mode fs.FileMode, why string) error {
	return s.write(path, data, &mode, why)
}

func (s *Stage) write(path string, data []byte, mode *fs.FileMode, why string) error {
	w, err := walk(s.lstat, clean(path), true)
	if err != nil {
		return err
	}
	n := w.Node
	switch {
	case n == nil:
		n = &Node{Mode: 0o644, Links: 1}
	case !n.Mode.IsRegular():
		return pathError("write", w.Path, fmt.Errorf("is %s, not a regular file", kind(n.Mode)))
	}
	if mode != nil {
		n.Mode = *mode & permBits
	}
	n.Content, n.ModTime = disk.Bytes(bytes.Clone(data)), time.Time{}
	return s.setMaking(w, n, why)
}

// Put plans that n lies at path: a file of a payload with its mode, owner and content.
// A link in last place is replaced, not followed; a folder is replaced by nothing but a
// folder, and keeps what it holds. Xattrs that are nil leave those of a file that is
// there; a label is kept, or found, unless n has one. n.Content must be readable until
// the changes are applied. Missing folders above are made with mode 0755.
func (s *Stage) Put(path string, n *Node, why string) error {
	w, err := walk(s.lstat, clean(path), false)
	if err != nil {
		return err
	}
	switch n.Mode.Type() {
	case 0, fs.ModeDir, fs.ModeSymlink:
	default:
		return pathError("put", w.Path, fmt.Errorf("%s: %w", kind(n.Mode), disk.ErrUnsupported))
	}
	n = n.Clone()
	n.Links = 1
	if old := w.Node; old != nil {
		if old.Mode.IsDir() != n.Mode.IsDir() {
			return pathError("put", w.Path, fmt.Errorf("%s cannot take the place of %s", kind(n.Mode), kind(old.Mode)))
		}
		if old.Mode.Type() == n.Mode.Type() {
			n.Links = old.Links
			if n.Xattrs == nil {
				n.Xattrs = old.Xattrs
			} else if l, ok := old.Xattrs[selinux]; ok && n.Xattrs[selinux] == nil {
				n.Xattrs[selinux] = l
			}
		}
	}
	return s.setMaking(w, n, why)
}

// Symlink plans that path is a symbolic link with the text target. A link that is there
// is pointed elsewhere; anything else that is there is an error. Missing folders above
// are made with mode 0755.
func (s *Stage) Symlink(target, path, why string) error {
	if target == "" || len(target) >= maxPath || strings.ContainsRune(target, 0) {
		return pathError("link", clean(path), fmt.Errorf("target of %d bytes: %w", len(target), fs.ErrInvalid))
	}
	w, err := walk(s.lstat, clean(path), false)
	if err != nil {
		return err
	}
	n := &Node{Mode: fs.ModeSymlink | 0o777, Links: 1, Target: target}
	if old := w.Node; old != nil {
		if old.Mode.Type() != fs.ModeSymlink {
			return pathError("link", w.Path, fmt.Errorf("%s is in the way", kind(old.Mode)))
		}
		n.Mode, n.UID, n.GID, n.Xattrs = old.Mode, old.UID, old.GID, old.Xattrs
	}
	return s.setMaking(w, n, why)
}

// MkdirAll plans that path is a folder, links followed. One that is there is left as it
// is; missing ones are made with the permission bits of mode for root.
func (s *Stage) MkdirAll(path string, mode fs.FileMode, why string) error {
	w, err := walk(s.lstat, clean(path), true)
	if err != nil {
		return err
	}
	if w.Node != nil {
		if !w.Node.Mode.IsDir() {
			return pathError("make folder", w.Path, fmt.Errorf("%s is in the way: %w", kind(w.Node.Mode), ErrNotDir))
		}
		return nil
	}
	return s.mkdirs(w, w.missing(), mode, why)
}

// mkdirs makes the folders from w.Path, where nothing is, down to last.
func (s *Stage) mkdirs(w walked, last string, mode fs.FileMode, why string) error {
	for p, rest := w.Path, w.Rest; len(p) <= len(last); rest = rest[1:] {
		n := &Node{Mode: fs.ModeDir | mode&permBits, Links: 1}
		if err := s.set(p, n, why); err != nil {
			return err
		}
		if len(rest) == 0 {
			break
		}
		p = join(p, rest[0])
	}
	return nil
}

// setMaking puts n at the place that w leads to, and makes the folders above it.
func (s *Stage) setMaking(w walked, n *Node, why string) error {
	p := w.missing()
	if len(w.Rest) > 0 {
		if err := s.mkdirs(w, parent(p), 0o755, why); err != nil {
			return err
		}
	}
	return s.set(p, n, why)
}

// Remove plans that nothing lies at path; a link in last place is removed itself. It is
// no error if nothing does. A folder must be empty.
func (s *Stage) Remove(path, why string) error {
	w, es, err := s.removable(path)
	if err != nil || w.Node == nil {
		return err
	}
	if len(es) > 0 {
		return pathError("remove", w.Path, errNotEmpty)
	}
	return s.set(w.Path, nil, why)
}

// RemoveAll is Remove for a folder with all that it holds. Links in it are removed, not
// followed.
func (s *Stage) RemoveAll(path, why string) error {
	w, es, err := s.removable(path)
	if err != nil || w.Node == nil {
		return err
	}
	for _, e := range es {
		if err := s.RemoveAll(join(w.Path, e.Name), why); err != nil {
			return err
		}
	}
	return s.Remove(w.Path, why)
}

// removable looks at what is to be removed, and at what it holds if it is a folder.
func (s *Stage) removable(path string) (walked, []Entry, error) {
	w, err := walk(s.lstat, clean(path), false)
	switch {
	case err != nil || w.Node == nil:
		return w, nil, err
	case w.Path == "/":
		return w, nil, pathError("remove", "/", errIsRoot)
	case !w.Node.Mode.IsDir():
		return w, nil, nil
	}
	es, err := s.readDir(w.Path)
	return w, es, err
}

var errIsRoot = errors.New("it is the root folder")

// Chmod plans that what lies at path, links followed, has the permission bits of mode.
func (s *Stage) Chmod(path string, mode fs.FileMode, why string) error {
	return s.attr("change mode", path, why, func(n *Node) { n.Mode = n.Mode.Type() | mode&permBits })
}

// Chown plans that what lies at path, links followed, belongs to the user and the group.
func (s *Stage) Chown(path string, uid, gid uint32, why string) error {
	return s.attr("change owner", path, why, func(n *Node) { n.UID, n.GID = uid, gid })
}

func (s *Stage) attr(op, path, why string, change func(*Node)) error {
	w, err := s.node(op, path, true)
	if err != nil {
		return err
	}
	change(w.Node)
	return s.set(w.Path, w.Node, why)
}

// set plans that n, or nothing if it is nil, lies at the path p, which has no links and
// whose folder is there. It is the only place that changes s.
func (s *Stage) set(p string, n *Node, why string) error {
	st := s.staged[p]
	if st == nil {
		before, err := s.baseLstat(p)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		st = &staged{before: before, after: before}
	}
	if n != nil {
		if err := s.fit(p, n, st.before); err != nil {
			return err
		}
	}
	next := &staged{before: st.before, after: n, why: st.why, label: st.label}
	if st.before != nil && n != nil {
		if err := next.compare(); err != nil {
			return pathError("compare", p, err)
		}
	}
	if next.before == nil && n == nil || next.op() == "" {
		s.forget(p) // as in the base
		return nil
	}
	if n != nil && (st.before == nil || st.before.Mode.Type() != n.Mode.Type()) && n.Xattrs[selinux] == nil {
		var err error
		if next.label, err = s.label(p, n); err != nil {
			return err
		}
	}
	if why != "" && !slices.Contains(next.why, why) {
		next.why = append(slices.Clip(next.why), why)
	}
	s.staged[p] = next
	if dir := parent(p); p != "/" {
		if s.kids[dir] == nil {
			s.kids[dir] = map[string]bool{}
		}
		s.kids[dir][path.Base(p)] = true
	}
	return nil
}

// fit makes n what its volume will show for it. The volume of a folder without a map of
// xattrs has no modes and owners either: it is the ESP.
func (s *Stage) fit(p string, n, before *Node) error {
	if n.Xattrs == nil && before != nil && before.Mode.Type() == n.Mode.Type() {
		n.Xattrs = maps.Clone(before.Xattrs) // removed and made again: the same file
	}
	dir, err := s.lstat(parent(p))
	if err != nil {
		return err
	}
	if dir.Xattrs != nil {
		if n.Xattrs == nil {
			n.Xattrs = map[string][]byte{}
		}
		if n.Mode.Type() == fs.ModeSymlink && (before == nil || before.Target != n.Target) {
			n.Mode = fs.ModeSymlink | 0o777 // as every new link has it
		}
		return nil
	}
	switch n.Mode.Type() {
	case 0:
		n.Mode = 0o644
	case fs.ModeDir:
		n.Mode = fs.ModeDir | 0o755
	default:
		return pathError("create", p, fmt.Errorf("%s on a file system that has only files and folders: %w", kind(n.Mode), disk.ErrUnsupported))
	}
	n.UID, n.GID, n.Xattrs = 0, 0, nil
	if before != nil && before.Mode.Type() == n.Mode.Type() {
		n.Mode = before.Mode
	}
	return nil
}

func (s *Stage) forget(p string) {
	delete(s.staged, p)
	delete(s.kids[parent(p)], path.Base(p))
}

// compare looks at the contents and settles the time of after: a content that is as
// before stays the old one, with its time.
func (st *staged) compare() error {
	b, a := st.before, st.after
	if !b.Mode.IsRegular() || !a.Mode.IsRegular() {
		return nil
	}
	same, err := sameContent(b.Content, a.Content)
	if err != nil {
		return err
	}
	if st.content = !same; same {
		a.Content, a.ModTime = b.Content, b.ModTime
	} else if a.ModTime.Equal(b.ModTime) {
		a.ModTime = time.Time{}
	}
	return nil
}

// op returns the kind of the change, and "" if there is none.
func (st *staged) op() Op {
	switch b, a := st.before, st.after; {
	case b == nil && a == nil:
		return ""
	case b == nil:
		return OpCreate
	case a == nil:
		return OpRemove
	case b.Mode.Type() != a.Mode.Type(), b.Target != a.Target:
		return OpReplace
	case st.content:
		return OpModify
	case !sameAttr(b, a):
		return OpAttr
	}
	return ""
}

// Changes returns the difference to the base in an order in which it can be applied:
// first what is removed, children before their folders, then the rest, folders before
// their children. What was planned and then undone is not in it. The nodes are the
// caller's to read, not to change.
func (s *Stage) Changes() []Change {
	var removed, rest []Change
	for _, p := range slices.Sorted(maps.Keys(s.staged)) {
		st := s.staged[p]
		c := Change{Path: p, Op: st.op(), Before: st.before, After: st.after, Why: slices.Clone(st.why), Label: st.label}
		if c.Op == OpRemove {
			removed = append(removed, c)
		} else {
			rest = append(rest, c)
		}
	}
	slices.Reverse(removed)
	return append(removed, rest...)
}
