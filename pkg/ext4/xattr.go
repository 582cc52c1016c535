package ext4

import (
	"bytes"
	"cmp"
	"errors"
	"slices"
	"strings"
)

// xattr is one extended attribute as it is stored.
type xattr struct {
	index byte
	name  string // without the prefix that the index stands for
	value []byte
	inum  uint32 // inode that holds the value (ea_inode), or 0
	size  uint32 // of a value held by an inode
	hash  uint32 // as stored, of an entry whose value an inode holds
}

// xattrPrefixes are the prefixes that an index stands for ("Attribute Name Indices").
// The two of POSIX ACLs are whole names.
var xattrPrefixes = [...]string{
	1: "user.", 2: aclAccess, 3: aclDefault, 4: "trusted.", 6: "security.", 7: "system.", 8: "system.richacl",
}

const (
	aclAccess  = "system.posix_acl_access"
	aclDefault = "system.posix_acl_default"
	xaSystem   = 7
)

// fullName returns the name as listxattr gives it; ok is false for an index that Linux
// doesn't show.
func (x *xattr) fullName() (string, bool) {
	if int(x.index) >= len(xattrPrefixes) || xattrPrefixes[x.index] == "" || x.index == xaSystem && x.name == "data" {
		return "", false
	}
	return xattrPrefixes[x.index] + x.name, true
}

// xattrKey splits a full name.
func xattrKey(name string) (index byte, rest string, ok bool) {
	for i, p := range xattrPrefixes {
		switch whole := i == 2 || i == 3 || i == 8; {
		case p == "" || whole && name != p:
		case whole:
			return byte(i), "", true
		case strings.HasPrefix(name, p) && len(name) > len(p) && len(name)-len(p) <= maxName:
			index, rest, ok = byte(i), name[len(p):], true
		}
	}
	return index, rest, ok
}

// compareXattr is the order of entries in a block.
func compareXattr(a, b xattr) int {
	return cmp.Or(cmp.Compare(a.index, b.index), cmp.Compare(len(a.name), len(b.name)), strings.Compare(a.name, b.name))
}

// Xattrs returns the extended attributes of an inode by their full names, with the
// values that getxattr gives.
func (f *FS) Xattrs(ino Ino) (map[string][]byte, error) {
	in, err := f.inode(ino)
	if err != nil {
		return nil, err
	}
	ibody, block, err := f.xattrs(in)
	if err != nil {
		return nil, err
	}
	out := map[string][]byte{}
	for _, x := range slices.Concat(ibody, block) {
		name, ok := x.fullName()
		if !ok {
			continue
		}
		v := x.value
		if x.inum != 0 {
			if v, err = f.eaValue(in.ino, x); err != nil {
				return nil, err
			}
		}
		if x.index == 2 || x.index == 3 {
			if v, err = aclToXattr(v); err != nil {
				return nil, corrupt(ino, 0, "%s: %v", name, err)
			}
		}
		out[name] = bytes.Clone(v)
		if out[name] == nil {
			out[name] = []byte{}
		}
	}
	return out, nil
}

// ibodyArea returns the part of an inode behind its fields, where attributes can lie,
// or nil if there is none.
func (in inode) ibodyArea() []byte {
	at := inodeGood + in.extra()
	if in.extra() == 0 || len(in.raw)-at < xaIbodyHeader+4 {
		return nil
	}
	return in.raw[at:]
}

// xattrs reads the attributes in the inode and those in its block.
func (f *FS) xattrs(in inode) (ibody, block []xattr, err error) {
	if a := in.ibodyArea(); a != nil && le32(a, 0) == xaMagic {
		a = a[xaIbodyHeader:]
		if ibody, err = parseXattrs(a, 0); err != nil {
			return nil, nil, corrupt(in.ino, 0, "extended attributes: %v", err)
		}
	}
	no := in.fileACL()
	if no == 0 {
		return ibody, nil, nil
	}
	b, err := f.xattrBlock(in.ino, no, f.c.read)
	if err != nil {
		return nil, nil, err
	}
	if block, err = parseXattrs(b, xaBlockHeader); err != nil {
		return nil, nil, corrupt(in.ino, no, "extended attributes: %v", err)
	}
	return ibody, block, nil
}

// xattrBlock returns the block of attributes of an inode.
func (f *FS) xattrBlock(ino Ino, no uint64, get access) ([]byte, error) {
	if !f.sb.validRange(no, 1) {
		return nil, corrupt(ino, no, "the block of extended attributes is outside")
	}
	return get(no, tag{kindXattr, 0}, func(b []byte) error {
		if le32(b, 0) != xaMagic || le32(b, xaBlocks) != 1 || le32(b, xaRefcount) == 0 {
			return corrupt(ino, no, "bad head of extended attributes")
		}
		if f.sb.metaCsum() && f.sb.xattrChecksum(no, b) != le32(b, xaChecksum) {
			return corrupt(ino, no, "wrong checksum of extended attributes")
		}
		return nil
	})
}

// xattrChecksum is over the block's number and its bytes (ext4_xattr_block_csum).
func (s *super) xattrChecksum(no uint64, b []byte) uint32 {
	c := crc32c32(crc32c32(s.seed, uint32(no)), uint32(no>>32))
	return crc32cHole(c, b, xaChecksum, 4)
}

// parseXattrs reads the entries from byte first of area on. Places of values count
// from the beginning of area. The values are parts of area.
func parseXattrs(area []byte, first int) ([]xattr, error) {
	var out []xattr
	type piece struct{ off, end int }
	var values []piece
	for off := first; ; {
		if off+4 > len(area) {
			return nil, errors.New("entries without an end")
		}
		if le32(area, off) == 0 {
			for _, p := range values {
				if p.off < off+4 && p.end > first {
					return nil, errors.New("a value lies on the entries")
				}
			}
			return out, nil
		}
		n := int(area[off])
		next := off + (xaEntry+n+3)&^3
		if off+xaEntry > len(area) || next > len(area) {
			return nil, errors.New("an entry does not fit")
		}
		e := area[off:]
		x := xattr{index: e[1], name: string(e[xaEntry : xaEntry+n]), inum: le32(e, 4)}
		at, size := int(le16(e, 2)), le32(e, 8)
		switch {
		case x.inum != 0:
			x.size, x.hash = size, le32(e, 12)
		case size > uint32(len(area)) || at+int(size) > len(area) || at%4 != 0 && size > 0:
			return nil, errors.New("a value is outside")
		case size > 0:
			x.value = area[at : at+int(size) : at+int(size)]
			values = append(values, piece{at, at + int(size)})
			if h := le32(e, 12); h != 0 && h != x.entryHash(false) && h != x.entryHash(true) {
				return nil, errors.New("wrong hash of " + x.name)
			}
		}
		out = append(out, x)
		off = next
	}
}

// entryHash computes e_hash: over the name, then over the value in words, padded with
// zeros (ext4_xattr_hash_entry). Kernels on machines with signed chars have computed
// it in another way for names beyond ASCII.
func (x *xattr) entryHash(signed bool) uint32 {
	var h uint32
	for i := range len(x.name) {
		h = h<<5 ^ h>>27 ^ hashChar(x.name[i], !signed)
	}
	v := x.value
	for ; len(v) > 0; v = v[min(4, len(v)):] {
		var w [4]byte
		copy(w[:], v)
		h = h<<16 ^ h>>16 ^ le32(w[:], 0)
	}
	return h
}

// eaValue reads a value that has an inode of its own.
func (f *FS) eaValue(ino Ino, x xattr) ([]byte, error) {
	in, err := f.inode(Ino(x.inum))
	if err != nil {
		return nil, err
	}
	if in.flags()&flEAInode == 0 || in.size() != int64(x.size) || x.size > 1<<16 {
		return nil, corrupt(ino, 0, "inode %d does not hold the value of %q", x.inum, x.name)
	}
	file, err := f.File(in.ino)
	if err != nil {
		return nil, err
	}
	v := make([]byte, x.size)
	if _, err := file.ReadAt(v, 0); err != nil {
		return nil, err
	}
	return v, nil
}
