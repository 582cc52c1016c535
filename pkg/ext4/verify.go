package ext4

import (
	"cmp"
	"hash/crc32"
	"slices"

	"remaster/pkg/disk"
)

// verifier checks parts of a file system against each other.
type verifier struct {
	f       *FS
	claimed map[uint32][]byte // group → bits of the blocks that inodes have
	shared  map[uint64]uint32 // block of attributes → users seen
	names   map[Ino]int       // names seen; nil if not all folders are looked at
	buf     []byte
}

func newVerifier(f *FS) *verifier {
	return &verifier{f: f, claimed: map[uint32][]byte{}, shared: map[uint64]uint32{}}
}

// verifyEdit parses anew, from the disk, what an edit has touched: the inodes, all that
// belongs to them, the groups whose bitmaps lie in blocks (sorted), the superblock,
// and the content of the files that were written.
func verifyEdit(d disk.Blob, touched []Ino, blocks []uint64, content map[Ino]digest) error {
	f, err := Open(d)
	if err != nil {
		return err
	}
	v := newVerifier(f)
	if err := v.totals(); err != nil {
		return err
	}
	for g := range f.sb.groups {
		d, err := f.group(g)
		if err != nil {
			return err
		}
		_, a := slices.BinarySearch(blocks, d.blockBitmap())
		_, b := slices.BinarySearch(blocks, d.inodeBitmap())
		if !a && !b {
			continue
		}
		if err := v.group(d); err != nil {
			return err
		}
	}
	for _, ino := range touched {
		if err := v.inode(ino); err != nil {
			return err
		}
	}
	for ino, want := range content {
		if err := v.content(ino, want); err != nil {
			return err
		}
	}
	return nil
}

// totals compares the superblock with the sum of the groups.
func (v *verifier) totals() error {
	t, err := v.f.sumGroups()
	if err != nil {
		return err
	}
	i, err := v.f.Info()
	if err != nil {
		return err
	}
	if t.freeBlocks != i.FreeBlocks || t.freeInodes != uint64(i.FreeInodes) {
		return corrupt(0, 0, "superblock has %d free blocks and %d inodes, the groups have %d and %d",
			i.FreeBlocks, i.FreeInodes, t.freeBlocks, t.freeInodes)
	}
	return nil
}

// group checks the bitmaps of a group and its counters.
func (v *verifier) group(d group) error {
	s := &v.f.sb
	if _, err := v.f.checkedBlockBits(d.g); err != nil {
		return err
	}
	b, err := v.f.inodeBits(d)
	if err != nil {
		return err
	}
	n := s.inodesPerGroup
	if free := zeroBits(b, n); free != d.freeInodes() {
		return corrupt(0, 0, "group %d is said to have %d free inodes and has %d", d.g, d.freeInodes(), free)
	}
	if all := uint32(8 * len(b)); nextBit(b, n, all, false) != all {
		return corrupt(0, 0, "padding of the inode bitmap of group %d", d.g)
	}
	if s.groupCsum() && !d.has(bgInodeUninit) && nextBit(b, n-d.itableUnused(), n, true) != n {
		return corrupt(0, 0, "group %d has inodes in the unused part of its table", d.g)
	}
	return nil
}

// inUse reports whether the bitmap has an inode in use.
func (v *verifier) inUse(ino Ino) (bool, error) {
	d, _, _, err := v.f.inodePlace(ino)
	if err != nil {
		return false, err
	}
	b, err := v.f.inodeBits(d)
	return err == nil && bit(b, (uint32(ino)-1)%v.f.sb.inodesPerGroup), err
}

// inode checks an inode and all that belongs to it. One that is not in use must have
// no links.
func (v *verifier) inode(ino Ino) error {
	used, err := v.inUse(ino)
	if err != nil {
		return err
	}
	if !used {
		in, err := v.f.inodeSlot(ino, v.f.c.read)
		if err == nil && in.links() != 0 {
			err = corrupt(ino, 0, "an inode with links is marked free")
		}
		return err
	}
	in, err := v.f.inode(ino)
	if err != nil {
		return err
	}
	if in.flags()&flInlineData != 0 {
		return nil
	}
	blocks := uint64(0)
	switch typ := in.mode() & modeFmt; {
	case typ == modeReg || typ == modeDir || typ == modeLink && !in.fastLink():
		if blocks, err = v.mapped(in); err != nil {
			return err
		}
	case typ == modeLink:
		if _, err := v.f.Readlink(ino); err != nil {
			return err
		}
	}
	n, err := v.attributes(in)
	if err != nil {
		return err
	}
	if sectors := (blocks + n) * uint64(v.f.sb.blockSize/512); sectors != in.blocks512() {
		return corrupt(ino, 0, "%d sectors are said to be in use, and %d are", in.blocks512(), sectors)
	}
	if in.isDir() && in.flags()&flEncrypt == 0 {
		return v.dir(ino)
	}
	return nil
}

// mapped claims the blocks of an inode and returns their number.
func (v *verifier) mapped(in inode) (uint64, error) {
	m, err := v.f.fileMap(in)
	if err != nil {
		return 0, err
	}
	if in.ino == resizeIno {
		// All but the first of its blocks are descriptors, or kept for them.
		if len(m.meta) > 0 {
			err = v.claim(in.ino, span{m.meta[0], 1})
		}
		return m.blocks() + uint64(len(m.meta)), err
	}
	for _, r := range m.runs {
		if err := v.claim(in.ino, span{r.phys, r.n}); err != nil {
			return 0, err
		}
	}
	for _, no := range m.meta {
		if err := v.claim(in.ino, span{no, 1}); err != nil {
			return 0, err
		}
	}
	return m.blocks() + uint64(len(m.meta)), nil
}

// claim checks that blocks are marked as used, hold no metadata of a fixed place, and
// were not claimed before.
func (v *verifier) claim(ino Ino, s span) error {
	if meta, err := v.f.isMeta(s.first, s.n); err != nil || meta {
		return cmp.Or(err, corrupt(ino, s.first, "the inode has metadata of the file system among its blocks"))
	}
	for s.n > 0 {
		g, i := v.f.sb.groupOf(s.first)
		n := min(s.n, uint64(v.f.sb.groupBlocks(g)-i))
		d, err := v.f.group(g)
		if err != nil {
			return err
		}
		b, err := v.f.blockBits(d)
		if err != nil {
			return err
		}
		end := i + uint32(n)
		if nextBit(b, i, end, false) != end {
			return corrupt(ino, s.first, "a block in use is marked free")
		}
		c := v.claimed[g]
		if c == nil {
			c = make([]byte, v.f.sb.blockSize)
			v.claimed[g] = c
		}
		if k := nextBit(c, i, end, true); k != end {
			return corrupt(ino, s.first+uint64(k-i), "a block is used twice")
		}
		setBits(c, i, uint32(n))
		s = span{s.first + n, s.n - n}
	}
	return nil
}

// attributes checks the extended attributes and returns the number of their blocks.
func (v *verifier) attributes(in inode) (uint64, error) {
	ibody, block, err := v.f.xattrs(in)
	if err != nil {
		return 0, err
	}
	no := in.fileACL()
	for _, x := range slices.Concat(ibody, block) {
		if x.inum != 0 {
			return 0, unsupported("inode %d: checking attributes with ea_inode", in.ino)
		}
	}
	if no == 0 {
		return 0, nil
	}
	if v.shared[no]++; v.shared[no] > 1 {
		return 1, nil
	}
	b, err := v.f.xattrBlock(in.ino, no, v.f.c.read)
	if err != nil {
		return 0, err
	}
	if !slices.IsSortedFunc(block, compareXattr) {
		return 0, corrupt(in.ino, no, "extended attributes are not sorted")
	}
	if h := le32(b, xaHash); h != 0 && blockHash(block) != 0 && h != blockHash(block) && ascii(block) {
		return 0, corrupt(in.ino, no, "wrong hash of extended attributes")
	}
	return 1, v.claim(in.ino, span{no, 1})
}

func ascii(l []xattr) bool {
	return !slices.ContainsFunc(l, func(x xattr) bool {
		return slices.ContainsFunc([]byte(x.name), func(c byte) bool { return c >= 0x80 })
	})
}

// content compares a file with the digest of what was given for it.
func (v *verifier) content(ino Ino, want digest) error {
	file, err := v.f.File(ino)
	if err != nil {
		return err
	}
	if n := min(ioPiece, file.Size()); int64(len(v.buf)) < n {
		v.buf = make([]byte, n)
	}
	var sum uint32
	for off := int64(0); off < file.Size(); {
		p := v.buf[:min(int64(len(v.buf)), file.Size()-off)]
		if err := disk.ReadFull(file, p, off); err != nil {
			return err
		}
		sum = crc32.Update(sum, castagnoli, p)
		off += int64(len(p))
	}
	if file.Size() != want.size || sum != want.sum {
		return corrupt(ino, 0, "the file does not read as it was written")
	}
	return nil
}

// dir checks a folder: its blocks, names, links, and its index.
func (v *verifier) dir(ino Ino) error {
	d, err := v.f.dir(ino)
	if err != nil {
		return err
	}
	subdirs := 0
	var bad error
	var self, parent Ino
	err = d.each(func(i uint32, e record) bool {
		switch name := string(e.name); {
		case name == "." && i == 0 && e.off == 0:
			self = e.ino
		case name == ".." && i == 0 && e.off == 12:
			parent = e.ino
		default:
			var isDir bool
			isDir, bad = v.entry(d, e)
			if isDir {
				subdirs++
			}
		}
		return bad == nil
	})
	switch {
	case err != nil || bad != nil:
		return cmp.Or(err, bad)
	case self != ino || parent == 0:
		return corrupt(ino, 0, `folder without "." and ".."`)
	case d.in.links() != 1 && d.in.links() != subdirs+2:
		return corrupt(ino, 0, "folder with %d links and %d subfolders", d.in.links(), subdirs)
	}
	if d.in.isIndex() {
		return v.index(d)
	}
	return nil
}

// entry checks one name, and reports whether it is a folder's.
func (v *verifier) entry(d *dir, e record) (bool, error) {
	if err := checkName(string(e.name)); err != nil {
		return false, corrupt(d.in.ino, 0, "%v", err)
	}
	used, err := v.inUse(e.ino)
	if err != nil {
		return false, err
	}
	if !used {
		return false, corrupt(d.in.ino, 0, "entry %q names inode %d, which is free", e.name, e.ino)
	}
	in, err := v.f.inodeSlot(e.ino, v.f.c.read)
	if err != nil {
		return false, err
	}
	if v.f.sb.incompat&incompatFiletype != 0 && e.typ != dirTypeOf(in.mode()) {
		return false, corrupt(d.in.ino, 0, "entry %q has type %d, inode %d mode %o", e.name, e.typ, e.ino, in.mode())
	}
	if v.names != nil {
		v.names[e.ino]++
	}
	return in.isDir(), nil
}

// index checks that each block of a folder has one place in its index, and that each
// name lies in the leaf that its hash belongs to.
func (v *verifier) index(d *dir) error {
	root, version, levels, err := d.indexRoot()
	if err != nil {
		return err
	}
	if d.in.flags()&flCasefold != 0 {
		return nil
	}
	seen := make([]bool, d.blocks())
	seen[0] = true
	count := 1
	var walk func(n dxNode, level int, least, most uint32) error
	walk = func(n dxNode, level int, least, most uint32) error {
		for k := range n.count() {
			lo, hi := least, most
			if k > 0 {
				lo = n.hash(k)
			}
			if k+1 < n.count() {
				hi = n.hash(k + 1)
			}
			i := n.block(k)
			if lo < least || hi < lo || hi > most || i >= uint32(len(seen)) || seen[i] {
				return corrupt(d.in.ino, 0, "bad entry %d in the index of the folder", k)
			}
			seen[i] = true
			count++
			if level > 0 {
				child, err := d.node(i)
				if err != nil {
					return err
				}
				if err := walk(child, level-1, lo, hi); err != nil {
					return err
				}
				continue
			}
			if err := v.leaf(d, i, version, lo, hi); err != nil {
				return err
			}
		}
		return nil
	}
	if err := walk(root, levels, 0, ^uint32(0)); err != nil {
		return err
	}
	if count != len(seen) {
		return corrupt(d.in.ino, 0, "%d of %d blocks of the folder are in its index", count, len(seen))
	}
	return nil
}

// leaf checks that the hashes of a leaf's names lie within its bounds. The upper one
// is that of the next leaf; its lowest bit says that the hash goes on there.
func (v *verifier) leaf(d *dir, i uint32, version byte, lo, hi uint32) error {
	b, err := d.block(i)
	if err != nil {
		return err
	}
	var bad error
	d.records(b, func(e record) bool {
		if e.ino == 0 {
			return true
		}
		h, _, ok := v.f.sb.dirHash(version, e.name)
		if !ok {
			bad = unsupported("inode %d: folder with hash version %d", d.in.ino, version)
		} else if h < lo&^hashContinued || h > hi || h == hi && hi&hashContinued == 0 {
			bad = corrupt(d.in.ino, 0, "entry %q lies in the wrong leaf", e.name)
		}
		return bad == nil
	})
	return bad
}
