package ext4

import (
	"bytes"
	"fmt"
	"io/fs"
	"maps"
	"slices"
)

// changeXattrs sets and removes extended attributes. Those that are not named stay as
// they are stored. New values go into the inode while there is room, then into the
// block.
func (e *Editor) changeXattrs(in inode, set map[string][]byte, remove []string) error {
	ibody, block, err := e.xattrs(in)
	if err != nil {
		return err
	}
	// The values are parts of the areas that will be written.
	for _, l := range [][]xattr{ibody, block} {
		for i := range l {
			l[i].value = bytes.Clone(l[i].value)
		}
	}
	inode0, block0 := slices.Clone(ibody), slices.Clone(block)
	drop := func(name string) (xattr, error) {
		index, rest, ok := xattrKey(name)
		if !ok {
			return xattr{}, fmt.Errorf("ext4: attribute name %q: %w", name, fs.ErrInvalid)
		}
		for _, x := range slices.Concat(ibody, block) {
			if x.index == index && x.name == rest && x.inum != 0 {
				return xattr{}, unsupported("inode %d: changing %s with ea_inode", in.ino, name)
			}
		}
		same := func(x xattr) bool { return x.index == index && x.name == rest }
		ibody, block = slices.DeleteFunc(ibody, same), slices.DeleteFunc(block, same)
		return xattr{index: index, name: rest}, nil
	}
	for _, name := range remove {
		if _, err := drop(name); err != nil {
			return err
		}
	}
	room := len(in.ibodyArea()) - xaIbodyHeader
	for _, name := range slices.Sorted(maps.Keys(set)) {
		x, err := drop(name)
		if err != nil {
			return err
		}
		if x.value = set[name]; x.index == 2 || x.index == 3 {
			if x.value, err = aclFromXattr(x.value); err != nil {
				return fmt.Errorf("ext4: attribute %s: %w: %w", name, err, fs.ErrInvalid)
			}
		}
		if xattrBytes(append(ibody, x)) <= room {
			ibody = append(ibody, x)
		} else {
			block = append(block, x)
		}
	}
	if n := xattrBytes(block); n > e.sb.blockSize-xaBlockHeader {
		return fmt.Errorf("ext4: inode %d: %d bytes of extended attributes: %w", in.ino, n, ErrNoSpace)
	}
	if len(set) > 0 {
		e.sb.compat |= compatExtAttr // as the kernel does with the first attribute
	}
	if !sameXattrList(ibody, inode0) {
		writeIbody(in.ibodyArea(), ibody)
	}
	if !sameXattrList(block, block0) {
		return e.writeXattrBlock(in, block)
	}
	return nil
}

func sameXattrList(a, b []xattr) bool {
	return slices.EqualFunc(a, b, func(x, y xattr) bool {
		return x.index == y.index && x.name == y.name && x.inum == y.inum && bytes.Equal(x.value, y.value)
	})
}

// xattrBytes returns what entries, their end and their values take.
func xattrBytes(l []xattr) int {
	if len(l) == 0 {
		return 0
	}
	n := 4
	for _, x := range l {
		n += (xaEntry+len(x.name)+3)&^3 + (len(x.value)+3)&^3
	}
	return n
}

// putXattrs writes entries from byte first of area on, and their values from its end
// downwards.
func putXattrs(area []byte, first int, l []xattr) {
	off, end := first, len(area)
	for _, x := range l {
		e := area[off:]
		e[0], e[1] = byte(len(x.name)), x.index
		put32(e, 4, x.inum)
		put32(e, 8, uint32(len(x.value)))
		if x.inum != 0 {
			put32(e, 8, x.size)
		}
		if len(x.value) > 0 {
			end -= (len(x.value) + 3) &^ 3
			copy(area[end:], x.value)
			put16(e, 2, uint16(end))
		}
		put32(e, 12, x.storedHash())
		copy(e[xaEntry:], x.name)
		off += (xaEntry + len(x.name) + 3) &^ 3
	}
}

func (x *xattr) storedHash() uint32 {
	if x.inum != 0 {
		return x.hash
	}
	return x.entryHash(false)
}

func writeIbody(a []byte, l []xattr) {
	if a == nil {
		return
	}
	clear(a)
	if len(l) > 0 {
		put32(a, 0, xaMagic)
		putXattrs(a[xaIbodyHeader:], 0, l)
	}
}

// writeXattrBlock gives an inode a block with the attributes l, or none. A block that
// other inodes share is left to them.
func (e *Editor) writeXattrBlock(in inode, l []xattr) error {
	no := in.fileACL()
	per := uint64(e.sb.blockSize / 512)
	shared := false
	if no != 0 {
		b, err := e.xattrBlock(in.ino, no, e.c.edit)
		if err != nil {
			return err
		}
		if refs := le32(b, xaRefcount); refs > 1 {
			if refs > xaMaxRefs {
				return corrupt(in.ino, no, "block of extended attributes with %d users", refs)
			}
			put32(b, xaRefcount, refs-1)
			shared = true
		}
	}
	if no != 0 && (shared || len(l) == 0) {
		if !shared {
			if err := e.freeSpan(span{no, 1}); err != nil {
				return err
			}
		}
		had := in.blocks512()
		if had < per {
			return corrupt(in.ino, 0, "an inode with a block of extended attributes has %d sectors", had)
		}
		in.setFileACL(0)
		if err := in.setBlocks512(had - per); err != nil {
			return err
		}
		no = 0
	}
	if len(l) == 0 {
		return nil
	}
	if no == 0 {
		s, err := e.allocBlocks(e.goal(in.ino), 1)
		if err != nil {
			return err
		}
		no = s[0].first
		in.setFileACL(no)
		if err := in.setBlocks512(in.blocks512() + per); err != nil {
			return err
		}
	}
	b := e.c.fresh(no, tag{kindXattr, 0})
	slices.SortStableFunc(l, compareXattr)
	put32(b, 0, xaMagic)
	put32(b, xaRefcount, 1)
	put32(b, xaBlocks, 1)
	put32(b, xaHash, blockHash(l))
	putXattrs(b, xaBlockHeader, l)
	return nil
}

// blockHash computes h_hash, by which kernels find equal blocks (ext4_xattr_rehash).
func blockHash(l []xattr) uint32 {
	var h uint32
	for i := range l {
		x := l[i].storedHash()
		if x == 0 {
			return 0
		}
		h = h<<16 ^ h>>16 ^ x
	}
	return h
}
