package ext4

import "cmp"

// writeMap gives an inode the map of runs instead of old. The blocks that old's own
// nodes took are used again; data blocks are neither taken nor given back. i_blocks is
// put right. It returns the new map.
func (e *Editor) writeMap(in inode, old *fileMap, runs []run) (*fileMap, error) {
	for _, no := range old.meta {
		if meta, err := e.isMeta(no, 1); err != nil || meta {
			return nil, cmp.Or(err, corrupt(in.ino, no, "the map of the file lies on metadata"))
		}
	}
	w := &mapWriter{e: e, in: in, pool: old.meta, m: fileMap{runs: runs}}
	w.goal = e.goal(in.ino)
	if k := len(runs); k > 0 {
		w.goal = runs[k-1].phys + runs[k-1].n
	}
	var err error
	if e.sb.incompat&incompatExtents != 0 {
		err = w.extents()
	} else {
		err = w.indirect()
	}
	if err != nil {
		return nil, err
	}
	for _, no := range w.pool {
		if err := e.freeSpan(span{no, 1}); err != nil {
			return nil, err
		}
	}
	per := uint64(e.sb.blockSize / 512)
	had, has := (old.blocks()+uint64(len(old.meta)))*per, (w.m.blocks()+uint64(len(w.m.meta)))*per
	total := in.blocks512()
	if total < had {
		return nil, corrupt(in.ino, 0, "%d sectors are said to be in use, and %d are", total, had)
	}
	return &w.m, in.setBlocks512(total - had + has)
}

// mapWriter writes one map.
type mapWriter struct {
	e    *Editor
	in   inode
	m    fileMap
	pool []uint64 // blocks of the former map that can be used again
	goal uint64
}

// block returns a zeroed block for a node.
func (w *mapWriter) block(k kind) (uint64, []byte, error) {
	var no uint64
	if len(w.pool) > 0 {
		no, w.pool = w.pool[0], w.pool[1:]
	} else {
		s, err := w.e.allocBlocks(w.goal, 1)
		if err != nil {
			return 0, nil, err
		}
		no = s[0].first
		w.goal = no + 1
	}
	w.m.meta = append(w.m.meta, no)
	return no, w.e.c.fresh(no, tag{k, uint32(w.in.ino)}), nil
}

// extents writes an extent tree: leaves, then levels of index nodes until four entries
// are enough, which fit into the inode.
func (w *mapWriter) extents() error {
	entries := splitRuns(w.m.runs)
	depth := 0
	max := (w.e.sb.blockSize - extHeader) / extEntry
	for len(entries) > extRootMax {
		var up [][extEntry]byte
		for len(entries) > 0 {
			n := min(len(entries), max)
			no, b, err := w.block(kindExtent)
			if err != nil {
				return err
			}
			putExtentNode(b, entries[:n], max, depth)
			var x [extEntry]byte
			copy(x[:4], entries[0][:4])
			put32(x[:], 4, uint32(no))
			put16(x[:], 8, uint16(no>>32))
			up, entries = append(up, x), entries[n:]
		}
		entries = up
		depth++
	}
	clear(w.in.root())
	putExtentNode(w.in.root(), entries, extRootMax, depth)
	w.in.setFlag(0, flExtents)
	return nil
}

func putExtentNode(b []byte, entries [][extEntry]byte, max, depth int) {
	put16(b, 0, extMagic)
	put16(b, 2, uint16(len(entries)))
	put16(b, 4, uint16(max))
	put16(b, 6, uint16(depth))
	for i, x := range entries {
		copy(b[extHeader+i*extEntry:], x[:])
	}
}

// splitRuns encodes runs as leaf entries, the long ones in pieces.
func splitRuns(runs []run) [][extEntry]byte {
	var out [][extEntry]byte
	for _, r := range runs {
		most := uint64(maxExtentLen)
		if r.unwritten {
			most--
		}
		for r.n > 0 {
			n := min(r.n, most)
			var x [extEntry]byte
			put32(x[:], 0, uint32(r.log))
			length := n
			if r.unwritten {
				length += maxExtentLen
			}
			put16(x[:], 4, uint16(length))
			put16(x[:], 6, uint16(r.phys>>32))
			put32(x[:], 8, uint32(r.phys))
			out = append(out, x)
			r = run{r.log + n, r.n - n, r.phys + n, r.unwritten}
		}
	}
	return out
}

// indirect writes the older map.
func (w *mapWriter) indirect() error {
	root := w.in.root()
	clear(root)
	w.in.setFlag(flExtents, 0)
	per := uint64(w.e.sb.blockSize / 4)
	var log uint64
	for i := range 15 {
		level, n := max(0, i-11), uint64(1)
		for range level {
			n *= per
		}
		no, err := w.pointer(level, log, n)
		if err != nil {
			return err
		}
		put32(root, 4*i, uint32(no))
		log += n
	}
	if w.m.end() > log {
		return unsupported("inode %d: a file of %d blocks without extents", w.in.ino, w.m.end())
	}
	return nil
}

// pointer returns the block that a pointer to the n blocks from log on must name, or 0
// if the file has none of them.
func (w *mapWriter) pointer(level int, log, n uint64) (uint64, error) {
	phys, next := w.m.lookup(log)
	if level == 0 {
		return phys, nil
	}
	if phys == 0 && next >= log+n {
		return 0, nil
	}
	no, b, err := w.block(kindIndirect)
	if err != nil {
		return 0, err
	}
	per := uint64(len(b) / 4)
	for i := range per {
		p, err := w.pointer(level-1, log+i*(n/per), n/per)
		if err != nil {
			return 0, err
		}
		put32(b, int(4*i), uint32(p))
	}
	return no, nil
}

// lookup returns where a block of the file lies, or 0 and the next block that lies
// anywhere.
func (m *fileMap) lookup(log uint64) (phys, next uint64) {
	i, j := 0, len(m.runs)
	for i < j {
		if k := (i + j) / 2; m.runs[k].log+m.runs[k].n <= log {
			i = k + 1
		} else {
			j = k
		}
	}
	if i == len(m.runs) {
		return 0, 1 << 63
	}
	if r := m.runs[i]; r.log <= log {
		return r.phys + log - r.log, log
	}
	return 0, m.runs[i].log
}
