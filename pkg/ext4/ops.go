package ext4

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"slices"
	"time"

	"remaster/pkg/disk"
)

// digest is of the content that was given for a file. It guards against faults of the
// machine and of this package, so that a CRC-32C, which costs next to nothing beside
// the copying, is enough.
type digest struct {
	size int64
	sum  uint32
}

// smallContent is the size in bytes up to which the content of a file is held in
// memory while its old blocks are given back, so that they can be used again.
const smallContent = 1 << 20

// SetContent replaces the bytes of a regular file, which stays the same one: mode,
// owner, attributes, flags, generation and other names are untouched. A zero mtime
// stands for EditOptions.Now. content may come from the file system itself. The old and
// the new content need room beside each other if the new one has more than 1 MiB.
func (e *Editor) SetContent(ino Ino, content disk.Blob, mtime time.Time) error {
	return e.atomically(func() error {
		in, err := e.editUser(ino)
		if err != nil {
			return err
		}
		if !in.isReg() {
			return fmt.Errorf("ext4: inode %d is not a regular file but %v", ino, goMode(in.mode()).Type())
		}
		old, err := e.fileMap(in)
		if err != nil {
			return err
		}
		if err := e.setContent(in, old, content); err != nil {
			return fmt.Errorf("content of inode %d: %w", ino, err)
		}
		e.changed(in, mtime)
		return nil
	})
}

// changed sets the times of an inode whose content was changed.
func (e *Editor) changed(in inode, mtime time.Time) {
	if mtime.IsZero() {
		mtime = e.o.Now
	}
	in.setTime(iMtime, iMtimeExtra, mtime)
	in.setTime(iCtime, iCtimeExtra, e.o.Now)
}

// setContent gives the inode new blocks with content, and gives the old ones back.
func (e *Editor) setContent(in inode, old *fileMap, content disk.Blob) error {
	size, bs := content.Size(), int64(e.sb.blockSize)
	if size < 0 || size > bs<<32-bs {
		return unsupported("a file of %d bytes", size)
	}
	goal := e.goal(in.ino)
	if len(old.runs) > 0 {
		goal = old.runs[0].phys
	}
	small := size <= smallContent
	release := func() error { return e.freeMap(&fileMap{runs: old.runs}) }
	if small {
		mem := make(disk.Bytes, size)
		if err := disk.ReadFull(content, mem, 0); err != nil && size > 0 {
			return err
		}
		content = mem
		if err := release(); err != nil {
			return err
		}
	}
	spans, err := e.allocBlocks(goal, uint64((size+bs-1)/bs))
	if err != nil {
		return err
	}
	if !small {
		if err := release(); err != nil {
			return err
		}
	}
	if err := e.mapContent(in, old, spans, size); err != nil {
		return err
	}
	if err := e.writeContent(in.ino, spans, io.NewSectionReader(content, 0, size), size); err != nil {
		return err
	}
	return e.out.flush()
}

// mapContent makes spans the content of an inode, of size bytes, instead of old's.
func (e *Editor) mapContent(in inode, old *fileMap, spans []span, size int64) error {
	if _, err := e.writeMap(in, old, runsOf(spans)); err != nil {
		return err
	}
	in.setSize(size)
	in.setFlag(flEOFBlocks, 0)
	if size > 1<<31-1 {
		e.sb.ro |= roLargeFile
	}
	return nil
}

// writeContent copies size bytes of content to the blocks of spans, the rest of the last
// one filled with zeros. It goes through e.out: what is last may still be held there.
func (e *Editor) writeContent(ino Ino, spans []span, content io.Reader, size int64) error {
	bs, left := int64(e.sb.blockSize), size
	var sum uint32
	for _, s := range spans {
		at, end := int64(s.first)*bs, int64(s.first+s.n)*bs
		for at < end {
			p, err := e.out.room(at, end-at)
			if err != nil {
				return err
			}
			n := min(int64(len(p)), left)
			if _, err := io.ReadFull(content, p[:n]); err != nil {
				return fmt.Errorf("content at byte %d of %d: %w", size-left, size, cut(err))
			}
			clear(p[n:])
			sum = crc32.Update(sum, castagnoli, p[:n])
			e.out.add(len(p))
			left -= n
			at += int64(len(p))
		}
	}
	e.setDigest(ino, &digest{size, sum})
	return nil
}

// cut makes an end that comes too early an error that no caller takes for an end.
func cut(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Create makes a regular file in the folder dir. The attributes are taken as they are:
// neither the folder's group nor its default ACL is inherited.
func (e *Editor) Create(dir Ino, name string, a Attr, content disk.Blob) (Ino, error) {
	return e.make(dir, name, modeReg, a, func(in inode) error {
		return e.setContent(in, &fileMap{}, content)
	})
}

// Mkdir makes an empty folder in the folder dir.
func (e *Editor) Mkdir(parent Ino, name string, a Attr) (Ino, error) {
	return e.make(parent, name, modeDir, a, e.fillDir(parent))
}

// fillDir makes a new inode an empty folder in the folder parent.
func (e *Editor) fillDir(parent Ino) func(inode) error {
	return func(in inode) error {
		d := &dir{e.FS, in, &fileMap{}}
		put16(in.raw, iLinks, 2)
		_, b, err := e.growDir(d)
		if err != nil {
			return err
		}
		d.clearLeaf(b)
		d.put(b, record{rec: d.leafEnd(b)}, newRecord{".", in.ino, modeDir})
		dot, _ := d.record(b, 0)
		d.put(b, dot, newRecord{"..", parent, modeDir})
		p, err := e.edit(parent)
		if err != nil {
			return err
		}
		return e.addLink(p)
	}
}

// addLink counts one more name of an inode. A folder with too many subfolders has the
// count 1, where the feature dir_nlink allows it.
func (e *Editor) addLink(in inode) error {
	n := in.links() + 1
	if in.isDir() && n == 2 {
		return nil // the count has overflowed before
	}
	if n > maxLinks || in.isDir() && n == maxLinks {
		if !in.isDir() || e.sb.ro&roDirNlink == 0 {
			return fmt.Errorf("ext4: inode %d has %d links: %w", in.ino, n-1, ErrNoSpace)
		}
		n = 1
	}
	put16(in.raw, iLinks, uint16(n))
	return nil
}

// Symlink makes a symbolic link to target in the folder dir. Its mode is always 0777.
func (e *Editor) Symlink(dir Ino, name, target string, a Attr) (Ino, error) {
	a.Mode = 0o777
	return e.make(dir, name, modeLink, a, e.fillSymlink(target))
}

// fillSymlink makes a new inode a symbolic link.
func (e *Editor) fillSymlink(target string) func(inode) error {
	return func(in inode) error {
		if n := len(target); n == 0 || n > min(maxSymlink, e.sb.blockSize-1) || cString([]byte(target)) != target {
			return fmt.Errorf("ext4: a symbolic link to %d bytes: %w", n, fs.ErrInvalid)
		}
		in.setSize(int64(len(target)))
		if len(target) < iBlockLen {
			in.setFlag(flExtents, 0)
			clear(in.root())
			copy(in.root(), target)
			return nil
		}
		s, err := e.allocBlocks(e.goal(in.ino), 1)
		if err != nil {
			return err
		}
		copy(e.c.fresh(s[0].first, tag{kindSymlink, uint32(in.ino)}), target)
		_, err = e.writeMap(in, &fileMap{}, runsOf(s))
		return err
	}
}

// Mknod makes a device, a named pipe or a socket, as mode's type bits say. The numbers
// are those of a device.
func (e *Editor) Mknod(dir Ino, name string, mode fs.FileMode, major, minor uint32, a Attr) (Ino, error) {
	return e.make(dir, name, specialTypes[mode.Type()], a, e.fillSpecial(mode, major, minor))
}

var specialTypes = map[fs.FileMode]uint16{
	fs.ModeDevice: modeBlk, fs.ModeDevice | fs.ModeCharDevice: modeChr, fs.ModeNamedPipe: modeFifo, fs.ModeSocket: modeSock,
}

// fillSpecial makes a new inode what Mknod makes.
func (e *Editor) fillSpecial(mode fs.FileMode, major, minor uint32) func(inode) error {
	return func(in inode) error {
		if specialTypes[mode.Type()] == 0 || major > 0xFFF || minor > 0xFFFFF {
			return fmt.Errorf("ext4: special file of type %v, %d:%d: %w", mode.Type(), major, minor, fs.ErrInvalid)
		}
		in.setFlag(flExtents, 0)
		clear(in.root())
		if mode&fs.ModeDevice != 0 {
			in.setDevice(major, minor)
		}
		return nil
	}
}

// make makes an inode and its name; fill gives it what is of its type.
func (e *Editor) make(parent Ino, name string, typ uint16, a Attr, fill func(inode) error) (ino Ino, err error) {
	err = e.atomically(func() error {
		d, err := e.vacant(parent, name)
		if err != nil {
			return err
		}
		ino, err = e.makeIn(d, name, typ, a, fill)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("make %q: %w", name, err)
	}
	return ino, nil
}

// makeIn is make in an open folder where the name is free.
func (e *Editor) makeIn(d *dir, name string, typ uint16, a Attr, fill func(inode) error) (Ino, error) {
	in, err := e.newInode(d.in, typ, a)
	if err != nil {
		return 0, err
	}
	if err := e.insert(d, newRecord{name, in.ino, typ}); err != nil {
		return 0, err
	}
	e.changed(d.in, time.Time{})
	if len(a.Xattrs) > 0 {
		if err := e.setXattrs(in, a.Xattrs); err != nil {
			return 0, err
		}
	}
	return in.ino, fill(in)
}

// vacant opens a folder for changing in which name is free.
func (e *Editor) vacant(parent Ino, name string) (*dir, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	d, err := e.editDir(parent)
	if err != nil {
		return nil, err
	}
	_, r, err := d.find(name)
	if err == nil && r.ino != 0 {
		err = fmt.Errorf("ext4: %q in inode %d: %w", name, parent, fs.ErrExist)
	}
	return d, err
}

// newInode takes an inode into use.
func (e *Editor) newInode(parent inode, typ uint16, a Attr) (inode, error) {
	in, err := e.allocInode(parent.ino, typ == modeDir)
	if err != nil {
		return in, err
	}
	e.made++
	put16(in.raw, iMode, rawMode(typ, a.Mode))
	in.setOwner(a.UID, a.GID)
	put16(in.raw, iLinks, 1)
	if len(in.raw) > inodeGood {
		put16(in.raw, iExtraIsize, uint16(e.sb.wantExtra))
	}
	put32(in.raw, iGeneration, crc32c32(crc32c32(e.o.Generation, e.made), uint32(in.ino)))
	flags := parent.flags() & flInherited
	if typ != modeDir {
		flags &^= flDirSync
	}
	in.setFlag(0, flags)
	if e.sb.incompat&incompatExtents != 0 {
		in.setFlag(0, flExtents)
		putExtentNode(in.root(), nil, extRootMax, 0)
	}
	mtime := a.MTime
	if mtime.IsZero() {
		mtime = e.o.Now
	}
	in.setTime(iMtime, iMtimeExtra, mtime)
	in.setTime(iAtime, iAtimeExtra, e.o.Now)
	in.setTime(iCtime, iCtimeExtra, e.o.Now)
	if in.hasExtra(iCrtimeEx + 4) {
		in.setTime(iCrtime, iCrtimeEx, e.o.Now)
	}
	return in, nil
}

func (in inode) setOwner(uid, gid uint32) {
	put16(in.raw, iUID, uint16(uid))
	put16(in.raw, iUIDHi, uint16(uid>>16))
	put16(in.raw, iGID, uint16(gid))
	put16(in.raw, iGIDHi, uint16(gid>>16))
}

// Link gives the inode, which is no folder, one more name.
func (e *Editor) Link(parent Ino, name string, ino Ino) error {
	return e.atomically(func() error {
		d, err := e.vacant(parent, name)
		if err != nil {
			return err
		}
		in, err := e.editUser(ino)
		if err != nil {
			return err
		}
		if in.isDir() {
			return fmt.Errorf("ext4: inode %d: link to a folder: %w", ino, fs.ErrInvalid)
		}
		if err := e.addLink(in); err != nil {
			return err
		}
		in.setTime(iCtime, iCtimeExtra, e.o.Now)
		e.changed(d.in, time.Time{})
		return e.insert(d, newRecord{name, ino, in.mode()})
	})
}

// Remove removes a name from the folder dir, and with the last name what it named. A
// folder must be empty.
func (e *Editor) Remove(parent Ino, name string) error {
	return e.atomically(func() error {
		if err := checkName(name); err != nil {
			return err
		}
		d, err := e.editDir(parent)
		if err != nil {
			return err
		}
		r, err := e.remove(d, name)
		if err != nil {
			return err
		}
		in, err := e.editUser(r.ino)
		if err != nil {
			return fmt.Errorf("remove %q: %w", name, err)
		}
		e.changed(d.in, time.Time{})
		in.setTime(iCtime, iCtimeExtra, e.o.Now)
		if in.isDir() {
			return e.removeDir(d.in, in)
		}
		if n := in.links() - 1; n > 0 {
			put16(in.raw, iLinks, uint16(n))
			return nil
		}
		return e.release(in)
	})
}

// Rename moves the name from in the folder fromDir to the name to in the folder toDir,
// where it must be free. A folder can't be moved into itself.
func (e *Editor) Rename(fromDir Ino, from string, toDir Ino, to string) error {
	return e.atomically(func() error {
		ino, err := e.Lookup(fromDir, from)
		if err == nil {
			err = checkName(from)
		}
		if err != nil {
			return err
		}
		dst, err := e.vacant(toDir, to)
		if err != nil {
			return err
		}
		in, err := e.editUser(ino)
		if err != nil {
			return err
		}
		if in.isDir() && fromDir != toDir {
			if err := e.moveDir(in, fromDir, dst); err != nil {
				return err
			}
		}
		if err := e.insert(dst, newRecord{to, ino, in.mode()}); err != nil {
			return err
		}
		src, err := e.editDir(fromDir)
		if err != nil {
			return err
		}
		if _, err := e.remove(src, from); err != nil {
			return err
		}
		in.setTime(iCtime, iCtimeExtra, e.o.Now)
		e.changed(dst.in, time.Time{})
		e.changed(src.in, time.Time{})
		return nil
	})
}

// moveDir gives a folder another parent.
func (e *Editor) moveDir(in inode, from Ino, to *dir) error {
	// Up from the new parent to the root, no further than there are inodes.
	for at, n := to.in.ino, uint32(0); at != rootIno; n++ {
		if at == in.ino {
			return fmt.Errorf("ext4: move of folder %d into itself: %w", in.ino, fs.ErrInvalid)
		}
		up, err := e.Lookup(at, "..")
		if err != nil {
			return err
		}
		if n > e.sb.inodes {
			return corrupt(at, 0, "the folders above go round")
		}
		at = up
	}
	d, err := e.dir(in.ino)
	if err != nil {
		return err
	}
	if err := e.setDotDot(d, to.in.ino); err != nil {
		return err
	}
	src, err := e.edit(from)
	if err != nil {
		return err
	}
	e.dropSubdir(src)
	return e.addLink(to.in)
}

// dropSubdir counts one subfolder less. A count that has overflowed stays as it is.
func (e *Editor) dropSubdir(parent inode) {
	if n := parent.links(); n > 2 {
		put16(parent.raw, iLinks, uint16(n-1))
	}
}

// removeDir removes an empty folder whose name is gone already.
func (e *Editor) removeDir(parent, in inode) error {
	d, err := e.dir(in.ino)
	if err != nil {
		return err
	}
	switch empty, err := d.empty(); {
	case err != nil:
		return err
	case !empty:
		return fmt.Errorf("ext4: inode %d: %w", in.ino, ErrNotEmpty)
	case in.ino == parent.ino || in.ino == rootIno:
		return corrupt(parent.ino, 0, "a folder is an entry of itself")
	}
	e.dropSubdir(parent)
	return e.release(in)
}

// release gives back all that an inode without names has, and the inode.
func (e *Editor) release(in inode) error {
	ibody, block, err := e.xattrs(in)
	if err != nil {
		return err
	}
	for _, x := range slices.Concat(ibody, block) {
		if x.inum != 0 {
			return unsupported("inode %d: removing an attribute with ea_inode", in.ino)
		}
	}
	if in.fileACL() != 0 {
		if err := e.writeXattrBlock(in, nil); err != nil {
			return err
		}
	}
	typ := in.mode() & modeFmt
	if in.flags()&flInlineData == 0 && (typ == modeReg || typ == modeDir || typ == modeLink && !in.fastLink()) {
		m, err := e.fileMap(in)
		if err != nil {
			return err
		}
		if err := e.freeMap(m); err != nil {
			return err
		}
	}
	e.setDigest(in.ino, nil)
	return e.freeInode(in)
}
