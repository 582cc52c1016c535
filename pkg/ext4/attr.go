package ext4

import (
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"time"
)

// Attr are the attributes of an inode that is made or changed.
type Attr struct {
	// Mode has the permission bits with setuid, setgid and sticky; its type bits
	// are not looked at.
	Mode     fs.FileMode
	UID, GID uint32
	// MTime is the time of the last change of content. The zero time means
	// EditOptions.Now for a new inode, and no change for one that is there.
	MTime time.Time
	// Xattrs are all extended attributes, by full name, with values as getxattr
	// gives them. Nil means none for a new inode, and no change for one that is
	// there.
	Xattrs map[string][]byte
}

// SetAttr gives an inode the mode, the owner and, if they are not zero, the time and
// the extended attributes of a.
func (e *Editor) SetAttr(ino Ino, a Attr) error {
	return e.attr(ino, func(in inode) error {
		e.chmod(in, a.Mode)
		in.setOwner(a.UID, a.GID)
		if !a.MTime.IsZero() {
			in.setTime(iMtime, iMtimeExtra, a.MTime)
		}
		if a.Xattrs == nil {
			return nil
		}
		return e.setXattrs(in, a.Xattrs)
	})
}

// attr runs an operation on the attributes of an inode.
func (e *Editor) attr(ino Ino, fn func(inode) error) error {
	return e.atomically(func() error {
		in, err := e.editUser(ino)
		if err != nil {
			return err
		}
		in.setTime(iCtime, iCtimeExtra, e.o.Now)
		if err := fn(in); err != nil {
			return fmt.Errorf("attributes of inode %d: %w", ino, err)
		}
		return nil
	})
}

// Chmod changes the permission bits with setuid, setgid and sticky.
func (e *Editor) Chmod(ino Ino, mode fs.FileMode) error {
	return e.attr(ino, func(in inode) error { e.chmod(in, mode); return nil })
}

// chmod leaves symbolic links alone, whose mode has no meaning.
func (e *Editor) chmod(in inode, mode fs.FileMode) {
	if typ := in.mode() & modeFmt; typ != modeLink {
		put16(in.raw, iMode, rawMode(typ, mode))
	}
}

// Chown changes the owner.
func (e *Editor) Chown(ino Ino, uid, gid uint32) error {
	return e.attr(ino, func(in inode) error { in.setOwner(uid, gid); return nil })
}

// SetTimes sets the times of the last access and the last change of content.
func (e *Editor) SetTimes(ino Ino, atime, mtime time.Time) error {
	return e.attr(ino, func(in inode) error {
		in.setTime(iAtime, iAtimeExtra, atime)
		in.setTime(iMtime, iMtimeExtra, mtime)
		return nil
	})
}

// SetXattr sets one extended attribute by its full name.
func (e *Editor) SetXattr(ino Ino, name string, value []byte) error {
	return e.attr(ino, func(in inode) error {
		return e.changeXattrs(in, map[string][]byte{name: value}, nil)
	})
}

// RemoveXattr removes one extended attribute. One that is not there is fs.ErrNotExist.
func (e *Editor) RemoveXattr(ino Ino, name string) error {
	return e.attr(ino, func(in inode) error {
		have, err := e.Xattrs(ino)
		if err != nil {
			return err
		}
		if _, ok := have[name]; !ok {
			return fmt.Errorf("ext4: attribute %s: %w", name, fs.ErrNotExist)
		}
		return e.changeXattrs(in, nil, []string{name})
	})
}

// setXattrs makes the extended attributes of an inode exactly those given.
func (e *Editor) setXattrs(in inode, want map[string][]byte) error {
	have, err := e.Xattrs(in.ino)
	if err != nil {
		return err
	}
	set := map[string][]byte{}
	for name, v := range want {
		if old, ok := have[name]; !ok || !slices.Equal(old, v) {
			set[name] = v
		}
	}
	var gone []string
	for _, name := range slices.Sorted(maps.Keys(have)) {
		if _, ok := want[name]; !ok {
			gone = append(gone, name)
		}
	}
	if len(set)+len(gone) == 0 {
		return nil
	}
	return e.changeXattrs(in, set, gone)
}
