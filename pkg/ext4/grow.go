package ext4

import (
	"cmp"
	"fmt"

	"remaster/internal/hint"
	"remaster/pkg/disk"
)

// resizeIno holds the blocks that are kept for more descriptors: the kernel's
// documentation, "Special inodes". Its map has a block of double indirection only,
// which points at the kept blocks behind the descriptors; each of those has the places
// of its own copies (ext2fs_create_resize_inode of e2fsprogs).
const (
	resizeIno   Ino = 7
	resizeEntry     = 4 * 13 // of i_block: the double indirect block
)

// minTail is the least number of blocks beside metadata that a last group must have;
// resize2fs and mke2fs leave a shorter one out.
const minTail = 50

// Grow makes the file system on d, which was made for a smaller disk, fill it, as
// resize2fs does with one that is not mounted. What is there stays where it is. New
// groups are left uninitialised where the features allow it; their inode tables are
// zeros. The reserved blocks keep their share. All copies of the superblock and of the
// descriptors are written.
//
// A rest of the disk that is too small for a group of its own is left out; if nothing
// remains, nothing is written. The descriptors of the new groups need room, which the
// features resize_inode or meta_bg give: beyond it, growing is refused. What [Edit]
// refuses is refused, too. After an error d must be dropped.
func Grow(d disk.Writable, o EditOptions) error {
	e, err := Edit(d, o)
	if err != nil {
		return err
	}
	old := e.sb
	want, err := old.grown(uint64(d.Size()) / uint64(old.blockSize))
	if err != nil || want == nil {
		return err
	}
	if err := e.growTo(want); err != nil {
		return fmt.Errorf("grow from %d to %d blocks: %w", old.blocks, want.blocks, err)
	}
	return nil
}

// grown returns the geometry of the file system on a disk of so many blocks, or nil if
// there is nothing to gain.
func (s *super) grown(blocks uint64) (*super, error) {
	// Blocks smaller than a page are used in whole pages of 4 KiB, as by resize2fs.
	if s.blockSize < 4096 {
		blocks -= blocks % uint64(4096/s.blockSize)
	}
	if s.incompat&incompat64bit == 0 {
		blocks = min(blocks, 1<<32-1)
	}
	w := *s
	for {
		if blocks <= s.blocks {
			return nil, nil
		}
		w.blocks = blocks
		groups := (blocks - s.firstData + uint64(s.blocksPerGroup) - 1) / uint64(s.blocksPerGroup)
		if groups*uint64(s.inodesPerGroup) > 1<<32-1 {
			return nil, unsupported("growing to more than 2^32 inodes")
		}
		w.groups = uint32(groups)
		w.inodes = w.groups * s.inodesPerGroup
		last := w.groups - 1
		overhead := 2 + s.inodeTableBlocks
		if w.hasSuper(last) {
			overhead += 1 + uint64(w.descBlocks()) + uint64(s.reservedGDT)
		}
		tail := uint64(w.groupBlocks(last))
		if w.groups == s.groups || tail == uint64(s.blocksPerGroup) || tail >= overhead+minTail {
			break
		}
		blocks -= tail
	}
	// Descriptors that lie behind the superblock grow into what was kept for them.
	if more := w.descBlocks() - s.descBlocks(); more > 0 && s.incompat&incompatMetaBG == 0 {
		if more > s.reservedGDT {
			return nil, hint.With(unsupported("growing from %d to %d blocks: %d more blocks of descriptors are needed, %d are reserved (feature resize_inode)",
				s.blocks, w.blocks, more, s.reservedGDT), "ask for a smaller size, or grow a copy with resize2fs, which moves data out of the way")
		}
		w.reservedGDT -= more
	}
	w.reserved = uint64(float64(s.reserved) * 100 / float64(s.blocks) * float64(w.blocks) / 100)
	return &w, nil
}

// growTo gives the file system the geometry want.
func (e *Editor) growTo(want *super) error {
	old := e.sb
	if err := e.openLastGroup(); err != nil {
		return err
	}
	e.sb, e.c.zone = *want, nil
	if err := e.growDescriptors(old.descBlocks()); err != nil {
		return err
	}
	if err := e.growLastGroup(old); err != nil {
		return err
	}
	for g := old.groups; g < e.sb.groups; {
		g = e.placeGroups(g)
	}
	for g := old.groups; g < e.sb.groups; g++ {
		if err := e.newGroup(g); err != nil {
			return err
		}
	}
	if e.sb.compat&compatResizeInode != 0 {
		if err := e.growResizeInode(); err != nil {
			return err
		}
	}
	if err := e.growSuper(); err != nil {
		return err
	}
	if err := e.Flush(); err != nil {
		return err
	}
	if err := e.writeBackups(); err != nil {
		return err
	}
	return verifyGroups(e.w, old.groups-1)
}

// openLastGroup loads, with the old geometry, what is checked against it: all blocks
// of descriptors and the bitmap of the last group.
func (e *Editor) openLastGroup() error {
	for i := range e.sb.descBlocks() {
		if _, err := e.editGroup(i * uint32(e.sb.descPerBlock)); err != nil {
			return err
		}
	}
	_, _, err := e.editBlockBits(e.sb.groups - 1)
	return err
}

// growDescriptors takes blocks into use for descriptors, from the i-th on.
func (e *Editor) growDescriptors(i uint32) error {
	for ; i < e.sb.descBlocks(); i++ {
		no := e.sb.descBlock(i)
		if !e.sb.validRange(no, 1) {
			return corrupt(0, no, "no place for descriptors")
		}
		e.c.fresh(no, tag{kindDescriptors, i})
	}
	return nil
}

// growLastGroup makes the blocks behind the end of what was the last group free.
func (e *Editor) growLastGroup(old super) error {
	g := old.groups - 1
	from, to := old.groupBlocks(g), e.sb.groupBlocks(g)
	d, err := e.editGroup(g)
	if err != nil || from == to {
		return err
	}
	b, err := e.c.edit(d.blockBitmap(), tag{kindBlockBitmap, g}, nil)
	if err != nil {
		return err
	}
	clearBits(b, from, to-from)
	d.setCount(gdFreeBlocks, gdFreeBlocksHi, d.freeBlocks()+to-from)
	e.freeBlocks += uint64(to - from)
	return nil
}

// placeGroups finds places for the bitmaps and inode tables of the new group g and of
// those behind it in the same flex group: side by side in g if they have room there,
// else each in its own group. It returns the next flex group.
func (e *Editor) placeGroups(g uint32) uint32 {
	s := &e.sb
	end := uint32(min(uint64(s.groups), (uint64(g)/uint64(s.flexSize)+1)*uint64(s.flexSize)))
	k := uint64(end - g)
	at := s.groupFirst(g) + uint64(s.baseMeta(g))
	together := k*(2+s.inodeTableBlocks)+minTail <= uint64(s.groupBlocks(g))-min(uint64(s.baseMeta(g)), uint64(s.groupBlocks(g)))
	for i := range k {
		d := e.newDescriptor(g + uint32(i))
		clear(d.raw) // nobody has looked at it before
		if together {
			d.setPlaces(at+i, at+k+i, at+2*k+i*s.inodeTableBlocks)
			continue
		}
		own := s.groupFirst(d.g) + uint64(s.baseMeta(d.g))
		d.setPlaces(own, own+1, own+2)
	}
	return end
}

// newDescriptor returns the descriptor of a new group, whose block is dirty already.
func (e *Editor) newDescriptor(g uint32) group {
	s := &e.sb
	i := g / uint32(s.descPerBlock)
	off := int(g%uint32(s.descPerBlock)) * s.descSize
	return group{g, e.c.m[s.descBlock(i)].data[off : off+s.descSize], s}
}

func (d group) setPlaces(blockBitmap, inodeBitmap, table uint64) {
	for _, x := range [...]struct {
		lo, hi int
		no     uint64
	}{{gdBlockBitmap, gdBlockBitmapHi, blockBitmap}, {gdInodeBitmap, gdInodeBitmapHi, inodeBitmap}, {gdInodeTable, gdInodeTableHi, table}} {
		put32(d.raw, x.lo, uint32(x.no))
		if d.big() {
			put32(d.raw, x.hi, uint32(x.no>>32))
		}
	}
}

// newGroup fills in what the descriptor of a new group counts, and makes its bitmaps
// and its inode table. The bitmaps are left uninitialised where they can be: the last
// group's never are, nor is a block bitmap with metadata of other groups, which no
// kernel would find.
func (e *Editor) newGroup(g uint32) error {
	s := &e.sb
	d := e.newDescriptor(g)
	bits := make([]byte, s.blockSize)
	if err := e.initBlockBits(d, bits); err != nil {
		return err
	}
	n := s.groupBlocks(g)
	free := zeroBits(bits, n)
	own := uint32(0) // what a kernel knows of a group that is not initialised
	first, end := s.groupFirst(g), s.groupFirst(g)+uint64(n)
	for _, x := range [...]span{{d.blockBitmap(), 1}, {d.inodeBitmap(), 1}, {d.inodeTable(), s.inodeTableBlocks}} {
		if !s.validRange(x.first, x.n) {
			return corrupt(0, x.first, "no place for the metadata of group %d", g)
		}
		own += uint32(min(max(x.first+x.n, first), end) - min(max(x.first, first), end))
	}
	flags := uint16(bgInodeZeroed | bgInodeUninit | bgBlockUninit)
	if g == s.groups-1 || s.baseMeta(g)+own != n-free {
		flags &^= bgBlockUninit
	}
	if !s.groupCsum() {
		flags = 0
	}
	put16(d.raw, gdFlags, flags)
	if flags&bgBlockUninit == 0 {
		copy(e.c.fresh(d.blockBitmap(), tag{kindBlockBitmap, g}), bits)
	}
	if flags&bgInodeUninit == 0 {
		b := e.c.fresh(d.inodeBitmap(), tag{kindInodeBitmap, g})
		setBits(b, s.inodesPerGroup, uint32(8*len(b))-s.inodesPerGroup)
	} else {
		d.setCount(gdItableUnused, gdItableUnusedHi, s.inodesPerGroup)
	}
	d.setCount(gdFreeBlocks, gdFreeBlocksHi, free)
	d.setCount(gdFreeInodes, gdFreeInodesHi, s.inodesPerGroup)
	e.freeBlocks += uint64(free)
	e.freeInodes += uint64(s.inodesPerGroup)
	bs := int64(s.blockSize)
	return e.zero(disk.Range{Off: int64(d.inodeTable()) * bs, Len: int64(s.inodeTableBlocks) * bs})
}

// zero makes sure that a range of the disk reads as zeros. What does already is not
// written.
func (e *Editor) zero(r disk.Range) error {
	buf := make([]byte, min(ioPiece, r.Len))
	for x, err := range e.w.Extents(r) {
		if err != nil {
			return err
		}
		for x.Len > 0 && !x.Zero {
			p := buf[:min(int64(len(buf)), x.Len)]
			if err := disk.ReadFull(e.w, p, x.Off); err != nil {
				return err
			}
			if !disk.IsZero(p) {
				clear(p)
				if _, err := e.w.WriteAt(p, x.Off); err != nil {
					return fmt.Errorf("ext4: write at %d: %w", x.Off, err)
				}
			}
			x.Off, x.Len = x.Off+int64(len(p)), x.Len-int64(len(p))
		}
	}
	return nil
}

// growResizeInode makes the map of the inode that keeps room for descriptors right:
// what has become a descriptor is no longer its own, and what is kept has copies in the
// new groups with a superblock.
func (e *Editor) growResizeInode() error {
	s := &e.sb
	in, err := e.edit(resizeIno)
	if err != nil {
		return err
	}
	dind := uint64(le32(in.root(), resizeEntry))
	if in.flags()&flExtents != 0 || !s.validRange(dind, 1) {
		return corrupt(resizeIno, dind, "no map of the blocks reserved for descriptors")
	}
	if meta, err := e.isMeta(dind, 1); err != nil || meta {
		return cmp.Or(err, corrupt(resizeIno, dind, "the map of the blocks reserved for descriptors lies on metadata"))
	}
	per := uint32(s.blockSize / 4)
	var copies []uint64
	for g := uint32(1); g < s.groups; g++ {
		if s.hasSuper(g) {
			copies = append(copies, uint64(g)*uint64(s.blocksPerGroup))
		}
	}
	if len(copies) > int(per) {
		return unsupported("growing with %d copies of the superblock", len(copies))
	}
	root := e.c.fresh(dind, tag{kindIndirect, uint32(resizeIno)})
	first := s.descBlocks()
	for i := first; i < first+s.reservedGDT; i++ {
		no := s.firstData + 1 + uint64(i)
		put32(root, int(4*(i%per)), uint32(no))
		b := e.c.fresh(no, tag{kindIndirect, uint32(resizeIno)})
		for k, off := range copies {
			put32(b, 4*k, uint32(no+off))
		}
	}
	blocks := 1 + uint64(s.reservedGDT)*uint64(1+len(copies))
	return in.setBlocks512(blocks * uint64(s.blockSize/512))
}

// growSuper writes the new geometry into the superblock; Flush adds the counts. The
// overhead, which kernels keep there, is left to them to compute anew.
func (e *Editor) growSuper() error {
	s := &e.sb
	blk, err := e.c.edit(uint64(superOffset/s.blockSize), tag{kindSuper, 0}, nil)
	if err != nil {
		return err
	}
	b := blk[superOffset%s.blockSize:][:superSize]
	put32(b, sbBlocks, uint32(s.blocks))
	put32(b, sbReserved, uint32(s.reserved))
	if s.incompat&incompat64bit != 0 {
		put32(b, sbBlocksHi, uint32(s.blocks>>32))
		put32(b, sbReservedHi, uint32(s.reserved>>32))
	}
	put32(b, sbInodes, s.inodes)
	put16(b, sbReservedGDT, uint16(s.reservedGDT))
	put32(b, sbOverhead, 0)
	return nil
}

// writeBackups writes the copies of the superblock and of the descriptors, from what
// Flush has written. As e2fsprogs does, a copy is not marked as cleanly unmounted.
func (e *Editor) writeBackups() error {
	s := &e.sb
	bs := int64(s.blockSize)
	raw, err := e.superRaw()
	if err != nil {
		return err
	}
	put := func(p []byte, block uint64) error {
		if _, err := e.w.WriteAt(p, int64(block)*bs); err != nil {
			return fmt.Errorf("ext4: write at block %d: %w", block, err)
		}
		return nil
	}
	flat := s.descBlocks() // those that lie behind each superblock
	if s.incompat&incompatMetaBG != 0 {
		flat = s.firstMetaBG
	}
	table := make([]byte, 0, int64(flat)*bs)
	for i := range flat {
		b, err := e.c.read(s.descBlock(i), tag{kindDescriptors, i}, nil)
		if err != nil {
			return err
		}
		table = append(table, b...)
	}
	for g := uint32(1); g < s.groups; g++ {
		if !s.hasSuper(g) {
			continue
		}
		b := append(make([]byte, 0, superSize), raw...)
		put16(b, sbBlockGroup, uint16(g))
		put16(b, sbState, le16(b, sbState)&^stateValid)
		if s.metaCsum() {
			put32(b, sbChecksum, crc32c(^uint32(0), b[:sbChecksum]))
		}
		if err := put(b, s.groupFirst(g)); err != nil {
			return err
		}
		if s.incompat&incompatMetaBG != 0 && g/uint32(s.descPerBlock) >= s.firstMetaBG {
			continue
		}
		if err := put(table, s.groupFirst(g)+1); err != nil {
			return err
		}
	}
	return e.metaBackups(flat, put)
}

// metaBackups writes the two copies of each block of descriptors of meta_bg, from the
// i-th on.
func (e *Editor) metaBackups(i uint32, put func([]byte, uint64) error) error {
	s := &e.sb
	for ; i < s.descBlocks(); i++ {
		b, err := e.c.read(s.descBlock(i), tag{kindDescriptors, i}, nil)
		if err != nil {
			return err
		}
		per := uint32(s.descPerBlock)
		for _, g := range [...]uint32{i*per + 1, i*per + per - 1} {
			if g >= s.groups {
				continue
			}
			at := s.groupFirst(g)
			if s.hasSuper(g) {
				at++
			}
			if err := put(b, at); err != nil {
				return err
			}
		}
	}
	return nil
}

// verifyGroups opens the disk anew and checks the groups from g on.
func verifyGroups(d disk.Blob, g uint32) error {
	f, err := Open(d)
	if err != nil {
		return err
	}
	v := newVerifier(f)
	for ; g < f.sb.groups; g++ {
		d, err := f.group(g)
		if err == nil {
			err = v.group(d)
		}
		if err != nil {
			return fmt.Errorf("verify the grown file system: %w", err)
		}
	}
	return nil
}
