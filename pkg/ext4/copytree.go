package ext4

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"maps"
	"slices"
	"strings"
	"time"

	"remaster/internal/hint"
)

// TreeEntry is one object of a tree that is copied into a file system.
type TreeEntry struct {
	// Path is where the object belongs, from the folder that the tree is copied to:
	// names with slashes between them. "" and "." are that folder itself.
	Path string
	// Mode has the type and the permission bits with setuid, setgid and sticky.
	Mode     fs.FileMode
	UID, GID uint32
	MTime    time.Time // zero: EditOptions.Now
	// Xattrs are the extended attributes by full name, as in [Attr].
	Xattrs map[string][]byte
	// Content gives the Size bytes of a regular file. It is read at once.
	Content io.Reader
	Size    int64
	// Target is the text of a symbolic link.
	Target string
	// Link, if not "", is the Path of an object that is to get one more name. All
	// else but Path is without meaning then.
	Link string
	// Major and Minor are the numbers of a device.
	Major, Minor uint32
}

// Existing says what is done where a name of a tree is taken by something that was
// there before. A folder over a folder is not such a case: what is in the new one goes
// into the old one, which keeps its attributes.
type Existing int

// The ways to deal with a name that is taken.
const (
	// RefuseExisting makes it an error, fs.ErrExist.
	RefuseExisting Existing = iota
	// KeepExisting leaves what is there and leaves out what is new.
	KeepExisting
	// ReplaceExisting puts the new in the place of the old. A regular file that
	// takes the place of one stays the same inode, with all its names, and keeps
	// the attributes that the new one does not name, but for security.capability
	// and ACLs, which belong to the content and the mode. A folder neither
	// replaces anything else nor is it replaced: that is fs.ErrExist.
	ReplaceExisting
)

// CopyOptions are the rules of a CopyTree. The zero value refuses what is there
// already, and devices.
type CopyOptions struct {
	Existing Existing
	// Devices lets block and character devices be made.
	Devices bool
	// MaxEntries limits the number of entries; 0 means 1<<20. What an entry needs in
	// memory until Flush is what it has on the disk without its content.
	MaxEntries int
	// MaxBytes limits the sum of the sizes of files; 0 means that the free space is
	// the limit.
	MaxBytes int64
	// Map, if not nil, may change the owner, the mode, the time and the attributes of
	// an entry before it is made. It is called for folders that a path only implies,
	// too: root's, with mode 0755.
	Map func(x *TreeEntry) error
}

// CopyStats counts what a CopyTree has made.
type CopyStats struct {
	Files, Folders, Symlinks, Links, Special int
	Replaced, Kept                           int   // of what was there before
	Bytes                                    int64 // of content
}

// maxEntries is the default of CopyOptions.MaxEntries; maxPath limits a path in bytes,
// as PATH_MAX of Linux does.
const (
	maxEntries = 1 << 20
	maxPath    = 4096
)

// CopyTree makes the objects of src below the folder dir, in the order of src, with
// their content one behind the other on the disk. [FromTar] and [FromFS] are sources. Folders
// that a path implies are made. An entry whose path has come before takes the place of
// the earlier one, as in an archive that was appended to.
//
// A source is not trusted: a path that is absolute, has ".." in it or leads through a
// symbolic link, old or new, is refused, and so is what the file system can't hold. A
// hard link can only name what lies below dir, and nothing is written through one to a
// file that was there before.
//
// CopyTree is one operation: an error leaves the view as it was, whatever has been
// copied before. Nothing that it frees is used again before it ends, so that ErrNoSpace
// leaves the disk usable, too. It ends early if the source fails, with the source's error.
func (e *Editor) CopyTree(dir Ino, src iter.Seq2[*TreeEntry, error], o CopyOptions) (CopyStats, error) {
	c := &copier{e: e, o: o, root: dir, dirs: map[string]*treeDir{}, made: map[Ino]time.Time{}}
	c.o.MaxEntries = cmp.Or(o.MaxEntries, maxEntries)
	err := e.atomically(func() error {
		var freed []span
		e.later = &freed
		defer func() { e.later = nil }()
		for x, err := range src {
			if err != nil {
				return err
			}
			if err := c.add(x); err != nil {
				return fmt.Errorf("copy %q: %w", x.Path, err)
			}
		}
		if err := e.out.flush(); err != nil {
			return err
		}
		e.later = nil
		for _, s := range freed {
			if err := e.freeSpan(s); err != nil {
				return err
			}
		}
		return c.setTimes()
	})
	if err != nil {
		return CopyStats{}, err
	}
	return c.stats, nil
}

// copier is one run of CopyTree.
type copier struct {
	e     *Editor
	o     CopyOptions
	root  Ino
	n     int // entries
	stats CopyStats
	next  uint64 // block behind the content that was written last
	// dirs are open folders by path. Names are put in through them only, so that
	// their maps stay right.
	dirs map[string]*treeDir
	// made are the inodes of this run, folders with the time of their last change.
	made map[Ino]time.Time
}

// treeDir is an open folder; it is opened for changing with the first name that it gets.
type treeDir struct {
	*dir
	edit bool
}

// maxOpenDirs is how many folders are kept open.
const maxOpenDirs = 1024

// cleanTreePath checks a path and returns it in its shortest form, "" for the root.
func cleanTreePath(p string) (string, error) {
	if len(p) > maxPath || strings.HasPrefix(p, "/") {
		return "", fmt.Errorf("a path that is absolute or longer than %d bytes: %w", maxPath, fs.ErrInvalid)
	}
	var names []string
	for name := range strings.SplitSeq(p, "/") {
		if name == "" || name == "." {
			continue
		}
		if err := checkName(name); err != nil {
			return "", err
		}
		names = append(names, name)
	}
	return strings.Join(names, "/"), nil
}

// splitTreePath splits a clean path that is not the root.
func splitTreePath(p string) (dir, name string) {
	i := strings.LastIndexByte(p, '/')
	return p[:max(i, 0)], p[i+1:]
}

// add makes one entry.
func (c *copier) add(x *TreeEntry) error {
	if c.n++; c.n > c.o.MaxEntries {
		return fmt.Errorf("more than %d entries: %w", c.o.MaxEntries, fs.ErrInvalid)
	}
	p, err := cleanTreePath(x.Path)
	if err != nil {
		return err
	}
	if p == "" {
		if x.Link != "" || !x.Mode.IsDir() {
			return fmt.Errorf("the top of the tree is not a folder: %w", fs.ErrInvalid)
		}
		return nil // it was there before
	}
	if x.Link == "" && c.o.Map != nil {
		if err := c.o.Map(x); err != nil {
			return err
		}
	}
	dir, name := splitTreePath(p)
	d, err := c.folder(dir)
	if err != nil {
		return err
	}
	_, r, err := d.find(name)
	if err != nil {
		return err
	}
	if r.ino != 0 {
		done, err := c.occupied(d, name, r.ino, x)
		if err != nil || done {
			return err
		}
	}
	return c.make(d, name, x)
}

// folder returns an open folder; one that is not there is made.
func (c *copier) folder(p string) (*treeDir, error) {
	if d := c.dirs[p]; d != nil {
		return d, nil
	}
	if p == "" {
		return c.open(p, c.root)
	}
	above, name := splitTreePath(p)
	up, err := c.folder(above)
	if err != nil {
		return nil, err
	}
	_, r, err := up.find(name)
	if err != nil {
		return nil, err
	}
	if r.ino != 0 {
		return c.open(p, r.ino)
	}
	x := &TreeEntry{Path: p, Mode: fs.ModeDir | 0o755}
	if c.o.Map != nil {
		if err := c.o.Map(x); err != nil {
			return nil, err
		}
	}
	if err := c.make(up, name, x); err != nil {
		return nil, err
	}
	return c.folder(p)
}

// open opens a folder that is there.
func (c *copier) open(p string, ino Ino) (*treeDir, error) {
	d, err := c.e.dir(ino)
	if errors.Is(err, ErrNotDir) {
		err = fmt.Errorf("%q: %w", p, err)
		if st, e := c.e.Stat(ino); e == nil && st.Mode.Type() == fs.ModeSymlink {
			err = hint.With(err, "symbolic links are not followed: copy to the folder that the link leads to")
		}
	}
	if err != nil {
		return nil, err
	}
	if len(c.dirs) >= maxOpenDirs {
		clear(c.dirs)
	}
	t := &treeDir{dir: d}
	c.dirs[p] = t
	return t, nil
}

// change makes sure that a folder is open for changing.
func (c *copier) change(t *treeDir) error {
	if t.edit {
		return nil
	}
	d, err := c.e.editDir(t.in.ino)
	if err != nil {
		return err
	}
	t.dir, t.edit = d, true
	return nil
}

// occupied deals with a name that is taken by ino. done says that nothing is left to
// be made.
func (c *copier) occupied(d *treeDir, name string, ino Ino, x *TreeEntry) (done bool, err error) {
	in, err := c.e.inode(ino)
	if err != nil {
		return false, err
	}
	_, mine := c.made[ino]
	isDir := x.Link == "" && x.Mode.IsDir()
	switch {
	case isDir && in.isDir():
		if mine {
			return true, c.attrAgain(ino, x)
		}
		return true, nil
	case isDir || in.isDir():
		if c.o.Existing == KeepExisting && !mine {
			c.stats.Kept++
			return true, nil
		}
		return false, fmt.Errorf("a folder and something else have one name: %w", fs.ErrExist)
	case mine:
		// The earlier entry of the same name goes.
	case c.o.Existing == KeepExisting:
		c.stats.Kept++
		return true, nil
	case c.o.Existing == RefuseExisting:
		return false, fmt.Errorf("ext4: %q in inode %d: %w", name, d.in.ino, fs.ErrExist)
	default:
		c.stats.Replaced++
		if x.Link == "" && x.Mode.IsRegular() && in.isReg() {
			return true, c.replace(ino, x)
		}
	}
	if err := c.change(d); err != nil {
		return false, err
	}
	if mine && in.links() == 1 {
		delete(c.made, ino)
	}
	return false, c.e.Remove(d.in.ino, name)
}

// attrAgain gives a folder of this run the attributes of a later entry.
func (c *copier) attrAgain(ino Ino, x *TreeEntry) error {
	c.made[ino] = x.MTime
	a := x.attr()
	if a.Xattrs == nil {
		a.Xattrs = map[string][]byte{}
	}
	return c.e.SetAttr(ino, a)
}

// replace gives a regular file that was there before new content and attributes.
func (c *copier) replace(ino Ino, x *TreeEntry) error {
	in, err := c.e.editUser(ino)
	if err != nil {
		return err
	}
	old, err := c.e.fileMap(in)
	if err != nil {
		return err
	}
	if err := c.e.freeMap(&fileMap{runs: old.runs}); err != nil {
		return err
	}
	if err := c.content(in, old, x); err != nil {
		return err
	}
	a := x.attr()
	have, err := c.e.Xattrs(ino)
	if err != nil {
		return err
	}
	delete(have, "security.capability")
	delete(have, aclAccess)
	maps.Copy(have, a.Xattrs)
	a.Xattrs = have
	a.MTime = cmp.Or(a.MTime, c.e.o.Now)
	return c.e.SetAttr(ino, a)
}

// make makes what x describes under a free name.
func (c *copier) make(d *treeDir, name string, x *TreeEntry) error {
	if err := c.change(d); err != nil {
		return err
	}
	if x.Link != "" {
		return c.link(d, name, x.Link)
	}
	e := c.e
	var typ uint16
	var fill func(inode) error
	switch t := x.Mode.Type(); t {
	case fs.ModeDir:
		typ, fill = modeDir, e.fillDir(d.in.ino)
		c.stats.Folders++
	case 0:
		typ, fill = modeReg, func(in inode) error { return c.content(in, &fileMap{}, x) }
		c.stats.Files++
	case fs.ModeSymlink:
		typ, fill = modeLink, e.fillSymlink(x.Target)
		x.Mode |= 0o777
		c.stats.Symlinks++
	default:
		if t&fs.ModeDevice != 0 && !c.o.Devices {
			return fmt.Errorf("a device, %d:%d: %w", x.Major, x.Minor, fs.ErrPermission)
		}
		typ, fill = specialTypes[t], e.fillSpecial(x.Mode, x.Major, x.Minor)
		c.stats.Special++
	}
	ino, err := e.makeIn(d.dir, name, typ, x.attr(), fill)
	if err != nil {
		return err
	}
	c.made[ino] = time.Time{}
	if typ == modeDir {
		c.made[ino] = cmp.Or(x.MTime, e.o.Now)
	}
	return nil
}

func (x *TreeEntry) attr() Attr {
	return Attr{Mode: x.Mode, UID: x.UID, GID: x.GID, MTime: x.MTime, Xattrs: x.Xattrs}
}

// link gives what lies at the path target one more name.
func (c *copier) link(d *treeDir, name, target string) error {
	p, err := cleanTreePath(target)
	if err != nil || p == "" {
		return cmp.Or(err, fmt.Errorf("hard link to the top of the tree: %w", fs.ErrInvalid))
	}
	// Folders on the way are not made: a target comes before its links.
	at := c.root
	for part := range strings.SplitSeq(p, "/") {
		if at, err = c.e.Lookup(at, part); err != nil {
			return fmt.Errorf("hard link to %q: %w", target, err)
		}
	}
	in, err := c.e.editUser(at)
	if err != nil {
		return err
	}
	if in.isDir() {
		return fmt.Errorf("hard link to the folder %q: %w", target, fs.ErrInvalid)
	}
	if err := c.e.addLink(in); err != nil {
		return err
	}
	in.setTime(iCtime, iCtimeExtra, c.e.o.Now)
	c.e.changed(d.in, time.Time{})
	c.stats.Links++
	return c.e.insert(d.dir, newRecord{name, at, in.mode()})
}

// content gives an inode the content of x instead of that of old, behind what was
// written last.
func (c *copier) content(in inode, old *fileMap, x *TreeEntry) error {
	e, bs := c.e, int64(c.e.sb.blockSize)
	if x.Size < 0 || x.Size > bs<<32-bs {
		return unsupported("a file of %d bytes", x.Size)
	}
	if c.o.MaxBytes > 0 && x.Size > c.o.MaxBytes-c.stats.Bytes {
		return fmt.Errorf("more than %d bytes in all: %w", c.o.MaxBytes, fs.ErrInvalid)
	}
	c.stats.Bytes += x.Size
	if c.next == 0 {
		c.next = e.goal(in.ino)
	}
	spans, err := e.allocBlocks(c.next, uint64((x.Size+bs-1)/bs))
	if err != nil {
		return err
	}
	if err := e.mapContent(in, old, spans, x.Size); err != nil {
		return err
	}
	if k := len(spans); k > 0 {
		c.next = spans[k-1].first + spans[k-1].n
	}
	content := x.Content
	if content == nil {
		content = strings.NewReader("")
	}
	if err := e.writeContent(in.ino, spans, content, x.Size); err != nil {
		return err
	}
	// What is longer than was announced has changed while it was read.
	var more [1]byte
	switch n, err := io.ReadFull(content, more[:]); {
	case n > 0:
		return fmt.Errorf("content has more than its %d bytes: %w", x.Size, fs.ErrInvalid)
	case !errors.Is(err, io.EOF):
		return err
	}
	return nil
}

// setTimes gives the folders of this run the times that they came with: each name that
// was put into them has changed it.
func (c *copier) setTimes() error {
	for _, ino := range slices.Sorted(maps.Keys(c.made)) {
		t := c.made[ino]
		if t.IsZero() {
			continue
		}
		in, err := c.e.edit(ino)
		if err != nil {
			return err
		}
		in.setTime(iMtime, iMtimeExtra, t)
	}
	return nil
}
