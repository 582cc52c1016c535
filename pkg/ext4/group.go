package ext4

import (
	"encoding/binary"
	"math/bits"
	"sort"
)

// group is a descriptor, seen through its raw bytes.
type group struct {
	g   uint32
	raw []byte
	s   *super
}

// hasSuper reports whether a group begins with a copy of the superblock.
func (s *super) hasSuper(g uint32) bool {
	switch {
	case g == 0:
		return true
	case s.compat&compatSparseSuper2 != 0:
		return g == s.backups[0] || g == s.backups[1]
	case g == 1 || s.ro&roSparseSuper == 0:
		return true
	case g%2 == 0:
		return false
	}
	for _, base := range [...]uint64{3, 5, 7} {
		p := base
		for p < uint64(g) {
			p *= base
		}
		if p == uint64(g) {
			return true
		}
	}
	return false
}

// baseMeta returns how many blocks at the beginning of a group hold the copy of the
// superblock, descriptors and the room kept for more of them.
func (s *super) baseMeta(g uint32) uint32 {
	var n uint32
	if s.hasSuper(g) {
		n = 1
	}
	per := uint32(s.descPerBlock)
	if s.incompat&incompatMetaBG != 0 && g/per >= s.firstMetaBG {
		// Each meta block group has its descriptors in its first, second and last group.
		if in := g % per; in == 0 || in == 1 || in == per-1 {
			n++
		}
		return n
	}
	if n == 0 {
		return 0
	}
	if s.incompat&incompatMetaBG != 0 {
		return n + s.firstMetaBG + s.reservedGDT
	}
	return n + s.descBlocks() + s.reservedGDT
}

// descBlock returns the block that holds the i-th block of descriptors.
func (s *super) descBlock(i uint32) uint64 {
	if s.incompat&incompatMetaBG == 0 || i < s.firstMetaBG {
		return s.firstData + 1 + uint64(i)
	}
	g := i * uint32(s.descPerBlock)
	at := s.groupFirst(g)
	if s.hasSuper(g) {
		at++
	}
	return at
}

// group returns the descriptor of a group for reading.
func (f *FS) group(g uint32) (group, error) { return f.groupVia(g, f.c.read) }

type access func(no uint64, t tag, verify func([]byte) error) ([]byte, error)

func (f *FS) groupVia(g uint32, get access) (group, error) {
	s := &f.sb
	i := g / uint32(s.descPerBlock)
	no := s.descBlock(i)
	if g >= s.groups || !s.validRange(no, 1) {
		return group{}, corrupt(0, no, "no descriptor of group %d", g)
	}
	b, err := get(no, tag{kindDescriptors, i}, func(b []byte) error { return f.verifyDescriptors(i, no, b) })
	if err != nil {
		return group{}, err
	}
	off := int(g%uint32(s.descPerBlock)) * s.descSize
	return group{g, b[off : off+s.descSize], s}, nil
}

// verifyDescriptors checks one block of descriptors: checksums, and that what they
// point at lies within the file system.
func (f *FS) verifyDescriptors(i uint32, no uint64, b []byte) error {
	s := &f.sb
	for j := range s.descPerBlock {
		g := i*uint32(s.descPerBlock) + uint32(j)
		if g >= s.groups {
			break
		}
		d := group{g, b[j*s.descSize : (j+1)*s.descSize], s}
		if s.groupCsum() && d.checksum() != le16(d.raw, gdChecksum) {
			return corrupt(0, no, "wrong checksum in the descriptor of group %d", g)
		}
		if !s.validRange(d.blockBitmap(), 1) || !s.validRange(d.inodeBitmap(), 1) ||
			!s.validRange(d.inodeTable(), s.inodeTableBlocks) {
			return corrupt(0, no, "the descriptor of group %d points outside", g)
		}
		if d.freeBlocks() > s.blocksPerGroup || d.freeInodes() > s.inodesPerGroup || d.itableUnused() > s.inodesPerGroup {
			return corrupt(0, no, "impossible counts in the descriptor of group %d", g)
		}
	}
	return nil
}

// checksum computes the descriptor's own checksum: with metadata_csum the low half of
// crc32c over the group's number and the descriptor, else crc16 over the UUID too
// (ext4_group_desc_csum).
func (d group) checksum() uint16 {
	if d.s.metaCsum() {
		return uint16(crc32cHole(crc32c32(d.s.seed, d.g), d.raw, gdChecksum, 2))
	}
	c := crc16(^uint16(0), d.s.uuid[:])
	c = crc16(c, []byte{byte(d.g), byte(d.g >> 8), byte(d.g >> 16), byte(d.g >> 24)})
	c = crc16(c, d.raw[:gdChecksum])
	return crc16(c, d.raw[gdChecksum+2:])
}

func (d group) seal() {
	if d.s.groupCsum() {
		put16(d.raw, gdChecksum, d.checksum())
	}
}

func (d group) big() bool { return len(d.raw) >= gdSize64 }

func (d group) block(lo, hi int) uint64 {
	v := uint64(le32(d.raw, lo))
	if d.big() {
		v |= uint64(le32(d.raw, hi)) << 32
	}
	return v
}

func (d group) count(lo, hi int) uint32 {
	v := uint32(le16(d.raw, lo))
	if d.big() {
		v |= uint32(le16(d.raw, hi)) << 16
	}
	return v
}

func (d group) setCount(lo, hi int, v uint32) {
	put16(d.raw, lo, uint16(v))
	if d.big() {
		put16(d.raw, hi, uint16(v>>16))
	}
}

func (d group) blockBitmap() uint64   { return d.block(gdBlockBitmap, gdBlockBitmapHi) }
func (d group) inodeBitmap() uint64   { return d.block(gdInodeBitmap, gdInodeBitmapHi) }
func (d group) inodeTable() uint64    { return d.block(gdInodeTable, gdInodeTableHi) }
func (d group) freeBlocks() uint32    { return d.count(gdFreeBlocks, gdFreeBlocksHi) }
func (d group) freeInodes() uint32    { return d.count(gdFreeInodes, gdFreeInodesHi) }
func (d group) usedDirs() uint32      { return d.count(gdUsedDirs, gdUsedDirsHi) }
func (d group) itableUnused() uint32  { return d.count(gdItableUnused, gdItableUnusedHi) }
func (d group) has(flag uint16) bool  { return d.s.groupCsum() && le16(d.raw, gdFlags)&flag != 0 }
func (d group) clearFlag(flag uint16) { put16(d.raw, gdFlags, le16(d.raw, gdFlags)&^flag) }

// bitmapCsum returns the stored checksum of a bitmap, and the mask of what is stored.
func (d group) bitmapCsum(lo, hi int) (sum, mask uint32) {
	if d.big() {
		return d.count(lo, hi), ^uint32(0)
	}
	return d.count(lo, hi), 0xFFFF
}

// verifyBitmap checks a bitmap of a group; bits is the number of bits that are summed.
func (d group) verifyBitmap(no uint64, b []byte, bits uint32, lo, hi int) error {
	if !d.s.metaCsum() {
		return nil
	}
	if sum, mask := d.bitmapCsum(lo, hi); crc32c(d.s.seed, b[:bits/8])&mask != sum {
		return corrupt(0, no, "wrong checksum of a bitmap of group %d", d.g)
	}
	return nil
}

// blockBits returns the block bitmap of a group for reading. One that was never
// initialised is computed.
func (f *FS) blockBits(d group) ([]byte, error) {
	if d.has(bgBlockUninit) {
		b := make([]byte, f.sb.blockSize)
		return b, f.initBlockBits(d, b)
	}
	no := d.blockBitmap()
	return f.c.read(no, tag{kindBlockBitmap, d.g}, func(b []byte) error {
		return d.verifyBitmap(no, b, d.s.blocksPerGroup, gdBlockBitmapCsum, gdBlockBitmapCsumHi)
	})
}

// inodeBits is blockBits for the inode bitmap.
func (f *FS) inodeBits(d group) ([]byte, error) {
	if d.has(bgInodeUninit) {
		b := make([]byte, f.sb.blockSize)
		setBits(b, d.s.inodesPerGroup, uint32(8*len(b))-d.s.inodesPerGroup)
		return b, nil
	}
	no := d.inodeBitmap()
	return f.c.read(no, tag{kindInodeBitmap, d.g}, func(b []byte) error {
		return d.verifyBitmap(no, b, d.s.inodesPerGroup, gdInodeBitmapCsum, gdInodeBitmapCsumHi)
	})
}

// initBlockBits sets in b, which is zeroed, the bits of the blocks of a group that
// hold metadata, be it of this group or, with flex_bg, of another one, and the bits
// behind the last block.
func (f *FS) initBlockBits(d group, b []byte) error {
	s := &f.sb
	n := s.groupBlocks(d.g)
	setBits(b, 0, min(s.baseMeta(d.g), n))
	setBits(b, n, uint32(8*len(b))-n)
	first := s.groupFirst(d.g)
	mark := func(block, count uint64) {
		from, to := max(block, first), min(block+count, first+uint64(n))
		if from < to {
			setBits(b, uint32(from-first), uint32(to-from))
		}
	}
	zone, err := f.metaZone()
	if err != nil {
		return err
	}
	from := sort.Search(len(zone), func(i int) bool { return zone[i].first+zone[i].n > first })
	for _, r := range zone[from:] {
		if r.first >= first+uint64(n) {
			break
		}
		mark(r.first, r.n)
	}
	return nil
}

// span is a run of blocks on the disk.
type span struct{ first, n uint64 }

// metaZone returns where the bitmaps and inode tables of all groups lie. It is
// computed once; their places never change.
func (f *FS) metaZone() ([]span, error) {
	if f.c.zone != nil {
		return f.c.zone, nil
	}
	var zone []span
	for g := range f.sb.groups {
		d, err := f.group(g)
		if err != nil {
			return nil, err
		}
		zone = append(zone, span{d.blockBitmap(), 1}, span{d.inodeBitmap(), 1}, span{d.inodeTable(), f.sb.inodeTableBlocks})
	}
	f.c.zone = mergeSpans(zone)
	return f.c.zone, nil
}

// isMeta reports whether any of the n blocks at block is metadata that lies at a fixed
// place.
func (f *FS) isMeta(block, n uint64) (bool, error) {
	zone, err := f.metaZone()
	if err != nil {
		return false, err
	}
	if overlaps(zone, block, n) {
		return true, nil
	}
	s := &f.sb
	first, _ := s.groupOf(block)
	last, _ := s.groupOf(block + n - 1)
	for g := first; g <= last; g++ {
		at, n0 := s.groupFirst(g), uint64(s.baseMeta(g))
		if n0 > 0 && block < at+n0 && at < block+n {
			return true, nil
		}
	}
	return false, nil
}

// Bits of a bitmap count from the low bit of the first byte.

func bit(b []byte, i uint32) bool { return b[i/8]>>(i%8)&1 != 0 }

// setBits sets n bits from bit i on.
func setBits(b []byte, i, n uint32) {
	for ; n > 0 && i%8 != 0; i, n = i+1, n-1 {
		b[i/8] |= 1 << (i % 8)
	}
	for ; n >= 8; i, n = i+8, n-8 {
		b[i/8] = 0xFF
	}
	for ; n > 0; i, n = i+1, n-1 {
		b[i/8] |= 1 << (i % 8)
	}
}

func clearBits(b []byte, i, n uint32) {
	for ; n > 0; i, n = i+1, n-1 {
		b[i/8] &^= 1 << (i % 8)
	}
}

// nextBit returns the first bit from i on, below end, that is set or clear, or end.
func nextBit(b []byte, i, end uint32, set bool) uint32 {
	// A word that is flipped where clear bits are looked for has its first hit at
	// its lowest bit that is set.
	flip := ^uint64(0)
	if set {
		flip = 0
	}
	for i < end {
		if w := i &^ 63; int(w/8)+8 <= len(b) {
			v := (binary.LittleEndian.Uint64(b[w/8:]) ^ flip) >> (i % 64)
			if v != 0 {
				return min(end, i+uint32(bits.TrailingZeros64(v)))
			}
			i = w + 64
			continue
		}
		if bit(b, i) == set {
			return i
		}
		i++
	}
	return end
}

// zeroBits counts the clear bits among the first n; n is a multiple of 8 or all the
// bits behind it are set.
func zeroBits(b []byte, n uint32) uint32 {
	var ones uint32
	for _, c := range b[:n/8] {
		ones += uint32(bits.OnesCount8(c))
	}
	for i := n &^ 7; i < n; i++ {
		if bit(b, i) {
			ones++
		}
	}
	return n - ones
}
