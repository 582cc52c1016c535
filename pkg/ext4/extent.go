package ext4

import "fmt"

// run is a piece of a file that lies in one piece on the disk.
type run struct {
	log       uint64 // first block within the file
	n         uint64
	phys      uint64 // first block on the disk
	unwritten bool   // allocated, reads as zeros
}

// fileMap is where the blocks of a file lie.
type fileMap struct {
	runs []run    // sorted by log, apart, joined where they can be
	meta []uint64 // blocks of the extent tree, or indirect blocks
}

// blocks returns the number of data blocks.
func (m *fileMap) blocks() uint64 {
	var n uint64
	for _, r := range m.runs {
		n += r.n
	}
	return n
}

// end returns the first block behind all runs.
func (m *fileMap) end() uint64 {
	if len(m.runs) == 0 {
		return 0
	}
	r := m.runs[len(m.runs)-1]
	return r.log + r.n
}

// add appends a run behind the others.
func (m *fileMap) add(r run) error {
	if k := len(m.runs); k > 0 {
		p := &m.runs[k-1]
		if p.log+p.n == r.log && p.phys+p.n == r.phys && p.unwritten == r.unwritten {
			p.n += r.n
			return nil
		}
		if k >= maxFragments {
			return fmt.Errorf("more than %d fragments", maxFragments)
		}
	}
	m.runs = append(m.runs, r)
	return nil
}

// fileMap reads the map of a file, folder or long symbolic link.
func (f *FS) fileMap(in inode) (*fileMap, error) {
	if in.flags()&flInlineData != 0 {
		return nil, unsupported("inode %d: inline_data", in.ino)
	}
	w := mapWalk{f: f, in: in, seen: map[uint64]struct{}{}}
	if in.flags()&flExtents != 0 {
		if err := w.extents(0, in.root(), -1, 0, 1<<32); err != nil {
			return nil, err
		}
		return &w.m, nil
	}
	if err := w.indirect(); err != nil {
		return nil, err
	}
	return &w.m, nil
}

// mapWalk is one pass over the map of an inode. Each of its blocks is visited once, so
// that the work is bounded by what the image really holds.
type mapWalk struct {
	f    *FS
	in   inode
	m    fileMap
	seen map[uint64]struct{}
}

func (w *mapWalk) visit(no uint64) error {
	if !w.f.sb.validRange(no, 1) {
		return corrupt(w.in.ino, no, "the map of the file points outside")
	}
	if _, ok := w.seen[no]; ok {
		return corrupt(w.in.ino, no, "block is used twice in the map of the file")
	}
	w.seen[no] = struct{}{}
	w.m.meta = append(w.m.meta, no)
	return nil
}

func (w *mapWalk) add(r run) error {
	if !w.f.sb.validRange(r.phys, r.n) {
		return corrupt(w.in.ino, r.phys, "data outside the file system")
	}
	if err := w.m.add(r); err != nil {
		return unsupported("inode %d: %v", w.in.ino, err)
	}
	return nil
}

// extents walks the node b of an extent tree, which lies in block no (0: the inode)
// and whose entries are within the blocks [lo, hi) of the file. depth is -1 for the
// root, whose own is not known before.
func (w *mapWalk) extents(no uint64, b []byte, depth int, lo, hi uint64) error {
	n, d := int(le16(b, 2)), int(le16(b, 6))
	switch {
	case le16(b, 0) != extMagic:
		return corrupt(w.in.ino, no, "no magic in an extent node")
	case n > int(le16(b, 4)) || extHeader+extEntry*int(le16(b, 4)) > len(b):
		return corrupt(w.in.ino, no, "%d extents where %d have room", n, le16(b, 4))
	case d > maxExtentDepth || depth >= 0 && d != depth:
		return corrupt(w.in.ino, no, "extent node of depth %d", d)
	}
	for i := range n {
		e := b[extHeader+i*extEntry:]
		first := uint64(le32(e, 0))
		if first < lo || first >= hi {
			return corrupt(w.in.ino, no, "extents are out of order at block %d of the file", first)
		}
		if d == 0 {
			r := extentOf(e)
			if r.n == 0 || r.log+r.n > hi {
				return corrupt(w.in.ino, no, "extents overlap at block %d of the file", first)
			}
			if err := w.add(r); err != nil {
				return err
			}
			lo = r.log + r.n
			continue
		}
		end := hi
		if i+1 < n {
			end = min(hi, uint64(le32(e, extEntry)))
		}
		child := uint64(le32(e, 4)) | uint64(le16(e, 8))<<32
		if err := w.child(child, d-1, first, end); err != nil {
			return err
		}
		lo = first + 1
	}
	return nil
}

func (w *mapWalk) child(no uint64, depth int, lo, hi uint64) error {
	if err := w.visit(no); err != nil {
		return err
	}
	b, err := w.f.c.read(no, tag{kindExtent, uint32(w.in.ino)}, func(b []byte) error { return w.in.verifyExtentBlock(no, b) })
	if err != nil {
		return err
	}
	return w.extents(no, b, depth, lo, hi)
}

// extentOf decodes a leaf entry.
func extentOf(e []byte) run {
	r := run{log: uint64(le32(e, 0)), n: uint64(le16(e, 4)), phys: uint64(le32(e, 8)) | uint64(le16(e, 6))<<32}
	if r.n > maxExtentLen {
		r.n, r.unwritten = r.n-maxExtentLen, true
	}
	return r
}

// extentTail returns where the checksum of an extent block lies, or 0 if the block
// has no place for it.
func extentTail(b []byte) int {
	at := extHeader + extEntry*int(le16(b, 4))
	if at+extTail > len(b) {
		return 0
	}
	return at
}

func (in inode) verifyExtentBlock(no uint64, b []byte) error {
	if le16(b, 0) != extMagic {
		return corrupt(in.ino, no, "no magic in an extent node")
	}
	if !in.s.metaCsum() {
		return nil
	}
	if at := extentTail(b); at == 0 || crc32c(in.seed(), b[:at]) != le32(b, at) {
		return corrupt(in.ino, no, "wrong checksum of an extent block")
	}
	return nil
}

// indirect walks the older map: twelve blocks in the inode, then blocks of numbers of
// blocks, one, two and three levels deep ("Direct/Indirect Block Addressing").
func (w *mapWalk) indirect() error {
	root := w.in.root()
	per := uint64(w.f.sb.blockSize / 4)
	var log uint64
	for i := range 15 {
		level := max(0, i-11)
		if no := uint64(le32(root, 4*i)); no != 0 {
			if err := w.pointer(no, level, log); err != nil {
				return err
			}
		}
		span := uint64(1)
		for range level {
			span *= per
		}
		log += span
	}
	return nil
}

// pointer follows a pointer to data (level 0) or to a block of pointers.
func (w *mapWalk) pointer(no uint64, level int, log uint64) error {
	if log >= 1<<32 {
		return corrupt(w.in.ino, no, "the file has more than 2^32 blocks")
	}
	if level == 0 {
		return w.add(run{log: log, n: 1, phys: no})
	}
	if err := w.visit(no); err != nil {
		return err
	}
	b, err := w.f.c.read(no, tag{kindIndirect, uint32(w.in.ino)}, nil)
	if err != nil {
		return err
	}
	per := uint64(len(b) / 4)
	span := uint64(1)
	for range level - 1 {
		span *= per
	}
	for i := range per {
		if p := uint64(le32(b, int(4*i))); p != 0 {
			if err := w.pointer(p, level-1, log+i*span); err != nil {
				return err
			}
		}
	}
	return nil
}
