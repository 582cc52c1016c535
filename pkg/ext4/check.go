package ext4

import "remaster/pkg/disk"

// Check reads the whole metadata of the file system on d and reports the first
// contradiction: checksums, bitmaps and counters, maps, folders and their indexes,
// attributes, link counts, blocks used twice or not at all. It changes nothing, and
// knows less than e2fsck.
func Check(d disk.Blob) error {
	f, err := Open(d)
	if err != nil {
		return err
	}
	if f.sb.ro&roBigalloc != 0 {
		return unsupported("checking with feature bigalloc")
	}
	v := newVerifier(f)
	v.names = map[Ino]int{}
	if err := v.totals(); err != nil {
		return err
	}
	var used []Ino
	for g := range f.sb.groups {
		d, err := f.group(g)
		if err != nil {
			return err
		}
		if err := v.group(d); err != nil {
			return err
		}
		inos, err := v.usedInodes(d)
		if err != nil {
			return err
		}
		used = append(used, inos...)
	}
	for _, ino := range used {
		if err := v.inode(ino); err != nil {
			return err
		}
	}
	return v.whole(used)
}

// usedInodes returns the inodes of a group that are in use, and checks how many of
// them are folders.
func (v *verifier) usedInodes(d group) ([]Ino, error) {
	bits, err := v.f.inodeBits(d)
	if err != nil {
		return nil, err
	}
	var out []Ino
	dirs, n := uint32(0), v.f.sb.inodesPerGroup
	for i := nextBit(bits, 0, n, true); i < n; i = nextBit(bits, i+1, n, true) {
		ino := Ino(d.g*n + i + 1)
		in, err := v.f.inodeSlot(ino, v.f.c.read)
		if err != nil {
			return nil, err
		}
		if in.links() == 0 && uint32(ino) < v.f.sb.firstIno {
			continue // reserved, and without use
		}
		if in.isDir() {
			dirs++
		}
		out = append(out, ino)
	}
	if dirs != d.usedDirs() {
		return nil, corrupt(0, 0, "group %d is said to have %d folders and has %d", d.g, d.usedDirs(), dirs)
	}
	return out, nil
}

// whole checks what only all inodes together show.
func (v *verifier) whole(used []Ino) error {
	for _, ino := range used {
		in, err := v.f.inode(ino)
		if err != nil {
			return err
		}
		if n := v.names[ino]; !in.isDir() && n != in.links() && uint32(ino) >= v.f.sb.firstIno && in.flags()&flEAInode == 0 && ino != v.f.sb.orphanFile {
			return corrupt(ino, 0, "%d names, and a link count of %d", n, in.links())
		}
	}
	for no, n := range v.shared {
		b, err := v.f.xattrBlock(0, no, v.f.c.read)
		if err != nil {
			return err
		}
		if le32(b, xaRefcount) != n {
			return corrupt(0, no, "block of extended attributes with %d users is said to have %d", n, le32(b, xaRefcount))
		}
	}
	s := &v.f.sb
	for g := range s.groups {
		d, err := v.f.group(g)
		if err != nil {
			return err
		}
		b, err := v.f.blockBits(d)
		if err != nil {
			return err
		}
		want := make([]byte, s.blockSize)
		if err := v.f.initBlockBits(d, want); err != nil {
			return err
		}
		for i, c := range v.claimed[g] {
			want[i] |= c
		}
		for i := range s.groupBlocks(g) {
			if bit(b, i) != bit(want, i) {
				return corrupt(0, s.groupFirst(g)+uint64(i), "block in use: %v, in the bitmap: %v", bit(want, i), bit(b, i))
			}
		}
	}
	return nil
}
