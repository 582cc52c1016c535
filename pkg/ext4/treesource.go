package ext4

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"math"
	"path"
	"strings"
)

// The records of extended headers that carry attributes, as GNU tar, star and bsdtar
// write them.
const (
	paxXattr   = "SCHILY.xattr."
	paxACL     = "SCHILY.acl."
	paxSELinux = "RHT.security.selinux"
	selinux    = "security.selinux"
)

// FromTar is a source of what the tar archive r holds, which is read once, from front
// to end. Owners are taken as numbers. Extended attributes come from SCHILY.xattr and
// RHT.security records; an ACL that is written as text is refused. What r is packed
// with, gzip for one, is the caller's to unpack.
func FromTar(r io.Reader) iter.Seq2[*TreeEntry, error] {
	return func(yield func(*TreeEntry, error) bool) {
		t := tar.NewReader(r)
		for {
			h, err := t.Next()
			if errors.Is(err, io.EOF) {
				return
			}
			if errors.Is(err, tar.ErrInsecurePath) {
				err = nil // paths are checked where they are used
			}
			if err != nil {
				yield(nil, fmt.Errorf("tar archive: %w", err))
				return
			}
			if h.Typeflag == tar.TypeXGlobalHeader {
				continue // a comment, or defaults of tools
			}
			x, err := fromHeader(h, t)
			if err != nil {
				yield(nil, fmt.Errorf("tar archive: %q: %w", h.Name, err))
				return
			}
			if !yield(x, nil) {
				return
			}
		}
	}
}

var tarTypes = map[byte]fs.FileMode{
	tar.TypeReg: 0, tar.TypeCont: 0, tar.TypeGNUSparse: 0, tar.TypeLink: 0, tar.TypeDir: fs.ModeDir, tar.TypeSymlink: fs.ModeSymlink,
	tar.TypeChar: fs.ModeDevice | fs.ModeCharDevice, tar.TypeBlock: fs.ModeDevice, tar.TypeFifo: fs.ModeNamedPipe,
}

func fromHeader(h *tar.Header, content io.Reader) (*TreeEntry, error) {
	typ, ok := tarTypes[h.Typeflag]
	if !ok {
		return nil, fmt.Errorf("an entry of type %q: %w", h.Typeflag, fs.ErrInvalid)
	}
	// The mode of a header may have type bits, too; they don't count.
	x := &TreeEntry{Path: h.Name, Mode: h.FileInfo().Mode()&^fs.ModeType | typ, MTime: h.ModTime}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		x.Content, x.Size = content, h.Size
	case tar.TypeSymlink:
		x.Target = h.Linkname
	case tar.TypeLink:
		if x.Link = h.Linkname; x.Link == "" {
			return nil, fmt.Errorf("hard link to nothing: %w", fs.ErrInvalid)
		}
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		if h.Devmajor < 0 || h.Devmajor > math.MaxUint32 || h.Devminor < 0 || h.Devminor > math.MaxUint32 {
			return nil, fmt.Errorf("device %d:%d: %w", h.Devmajor, h.Devminor, fs.ErrInvalid)
		}
		x.Major, x.Minor = uint32(h.Devmajor), uint32(h.Devminor)
	}
	uid, gid := int64(h.Uid), int64(h.Gid)
	if uid < 0 || uid >= math.MaxUint32 || gid < 0 || gid >= math.MaxUint32 {
		return nil, fmt.Errorf("owner %d:%d: %w", uid, gid, fs.ErrInvalid)
	}
	x.UID, x.GID = uint32(uid), uint32(gid)
	return x, x.fromPAX(h.PAXRecords)
}

// fromPAX takes over the attributes from the records of an extended header.
func (x *TreeEntry) fromPAX(records map[string]string) error {
	set := func(name, v string) {
		if x.Xattrs == nil {
			x.Xattrs = map[string][]byte{}
		}
		x.Xattrs[name] = []byte(v)
	}
	// Where there are both forms of the label, they are the same one.
	if v := records[paxSELinux]; v != "" {
		set(selinux, strings.TrimSuffix(v, "\x00")+"\x00")
	}
	for name, v := range records {
		if rest, ok := strings.CutPrefix(name, paxXattr); ok {
			set(rest, v)
		}
		if strings.HasPrefix(name, paxACL) {
			return fmt.Errorf("an ACL as text (%s): %w", name, fs.ErrInvalid)
		}
	}
	return nil
}

// FromFS is a source of all that is below the root of src, in the order of
// [fs.WalkDir]. The owner is root, attributes are not read. Symbolic links need an src
// that can read them ([fs.ReadLinkFS]); devices and sockets are refused.
func FromFS(src fs.FS) iter.Seq2[*TreeEntry, error] {
	return func(yield func(*TreeEntry, error) bool) {
		err := fs.WalkDir(src, ".", func(p string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			more, err := fromFS(src, p, d, yield)
			if err == nil && !more {
				err = fs.SkipAll
			}
			return err
		})
		if err != nil {
			yield(nil, err)
		}
	}
}

// fromFS yields one entry, with its content open.
func fromFS(src fs.FS, p string, d fs.DirEntry, yield func(*TreeEntry, error) bool) (more bool, err error) {
	fi, err := d.Info()
	if err != nil {
		return false, err
	}
	x := &TreeEntry{Path: p, Mode: fi.Mode(), MTime: fi.ModTime()}
	switch x.Mode.Type() {
	case fs.ModeDir, fs.ModeNamedPipe:
	case fs.ModeSymlink:
		if x.Target, err = fs.ReadLink(src, p); err != nil {
			return false, err
		}
	case 0:
		f, err := src.Open(p)
		if err != nil {
			return false, err
		}
		defer f.Close()
		x.Content, x.Size = f, fi.Size()
	default:
		return false, &fs.PathError{Op: "copy", Path: path.Clean(p), Err: fmt.Errorf("a file of type %v: %w", x.Mode.Type(), fs.ErrInvalid)}
	}
	return yield(x, nil), nil
}
