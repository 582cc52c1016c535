package ext4

import (
	"cmp"
	"fmt"
	"io/fs"
	"slices"
)

// editDir opens a folder that a caller has named for changing. Its inode stays in
// memory, so that d.in may be written.
func (e *Editor) editDir(ino Ino) (*dir, error) {
	in, err := e.editUser(ino)
	if err != nil {
		return nil, err
	}
	d, err := e.dir(ino)
	if err != nil {
		return nil, err
	}
	d.in = in
	if d.m.end() != uint64(d.blocks()) || d.m.blocks() != d.m.end() {
		return nil, unsupported("inode %d: folder with blocks behind its end", ino)
	}
	return d, nil
}

// editBlock returns the i-th block of a folder for changing.
func (e *Editor) editBlock(d *dir, i uint32) ([]byte, error) { return d.blockVia(i, e.c.edit) }

// newRecord is a name to be put into a folder.
type newRecord struct {
	name string
	ino  Ino
	mode uint16
}

// insert puts a name that is not there yet into a folder.
func (e *Editor) insert(d *dir, r newRecord) error {
	if d.in.isIndex() {
		return e.insertIndexed(d, r)
	}
	for i := range d.blocks() {
		b, err := d.block(i)
		if err != nil {
			return err
		}
		at, ok := d.room(b, recSize(len(r.name)))
		if !ok {
			continue
		}
		if b, err = e.editBlock(d, i); err == nil {
			d.put(b, at, r)
		}
		return err
	}
	if d.blocks() == 1 && e.sb.compat&compatDirIndex != 0 && e.sb.defHash <= dxHashTea {
		if err := e.makeIndex(d); err != nil {
			return err
		}
		return e.insertIndexed(d, r)
	}
	_, b, err := e.growDir(d)
	if err != nil {
		return err
	}
	d.clearLeaf(b)
	at, _ := d.room(b, recSize(len(r.name)))
	d.put(b, at, r)
	return nil
}

// room finds a record of a leaf behind or in which need bytes are free.
func (d *dir) room(b []byte, need int) (at record, ok bool) {
	d.records(b, func(e record) bool {
		if e.rec-e.used() >= need {
			at, ok = e, true
		}
		return !ok
	})
	return at, ok
}

// put writes a record into the room that at has.
func (d *dir) put(b []byte, at record, r newRecord) {
	off, n := at.off, at.rec
	if u := at.used(); u > 0 {
		putRecLen(b, off, u)
		off, n = off+u, n-u
	}
	clear(b[off : off+recSize(len(r.name))])
	put32(b, off, uint32(r.ino))
	putRecLen(b, off, n)
	b[off+6] = byte(len(r.name))
	if d.f.sb.incompat&incompatFiletype != 0 {
		b[off+7] = dirTypeOf(r.mode)
	}
	copy(b[off+deHeader:], r.name)
}

// clearLeaf makes a block an empty leaf.
func (d *dir) clearLeaf(b []byte) {
	clear(b)
	n := d.leafEnd(b)
	putRecLen(b, 0, n)
	if n < len(b) {
		put16(b, n+4, deTail)
		b[n+7] = deTailFT
	}
}

// growDir adds a zeroed block to the end of a folder and returns its number within it.
func (e *Editor) growDir(d *dir) (uint32, []byte, error) {
	i := d.blocks()
	if i >= maxDirBlocks {
		return 0, nil, fmt.Errorf("ext4: inode %d: folder of %d blocks: %w", d.in.ino, i, ErrNoSpace)
	}
	goal := e.goal(d.in.ino)
	if k := len(d.m.runs); k > 0 {
		goal = d.m.runs[k-1].phys + d.m.runs[k-1].n
	}
	s, err := e.allocBlocks(goal, 1)
	if err != nil {
		return 0, nil, err
	}
	grown := fileMap{runs: slices.Clone(d.m.runs)}
	if err := grown.add(run{log: uint64(i), n: 1, phys: s[0].first}); err != nil {
		return 0, nil, unsupported("inode %d: %v", d.in.ino, err)
	}
	if d.m, err = e.writeMap(d.in, d.m, grown.runs); err != nil {
		return 0, nil, err
	}
	d.in.setSize(int64(i+1) * int64(e.sb.blockSize))
	return i, e.c.fresh(s[0].first, tag{kindDir, uint32(d.in.ino)}), nil
}

// remove takes a name out of a folder; its room goes to the record before it.
func (e *Editor) remove(d *dir, name string) (record, error) {
	i, hit, err := d.find(name)
	if err != nil {
		return hit, err
	}
	if hit.ino == 0 {
		return hit, fmt.Errorf("ext4: %q in inode %d: %w", name, d.in.ino, fs.ErrNotExist)
	}
	b, err := e.editBlock(d, i)
	if err != nil {
		return hit, err
	}
	var before record
	d.records(b, func(r record) bool {
		if r.off < hit.off {
			before = r
		}
		return r.off < hit.off
	})
	if hit.off > 0 {
		putRecLen(b, before.off, before.rec+hit.rec)
		clear(b[hit.off : hit.off+hit.used()])
	} else {
		put32(b, 0, 0)
	}
	return hit, nil
}

// setDotDot changes the inode that ".." names. It lies in the first block, that of an
// index too.
func (e *Editor) setDotDot(d *dir, parent Ino) error {
	b, err := e.editBlock(d, 0)
	if err != nil {
		return err
	}
	r, err := d.record(b, recLen(b, 0))
	if err != nil || string(r.name) != ".." {
		return corrupt(d.in.ino, 0, `no ".." in second place`)
	}
	put32(b, r.off, uint32(parent))
	return nil
}

// empty reports whether a folder has no names but "." and "..".
func (d *dir) empty() (bool, error) {
	empty := true
	err := d.each(func(_ uint32, e record) bool {
		empty = string(e.name) == "." || string(e.name) == ".."
		return empty
	})
	return empty, err
}

// makeIndex turns a folder of one full block into one with an index: its names go to a
// second block, and the first becomes the root.
func (e *Editor) makeIndex(d *dir) error {
	b, err := e.editBlock(d, 0)
	if err != nil {
		return err
	}
	dot, err := d.record(b, 0)
	if err != nil || string(dot.name) != "." || dot.rec != 12 {
		return corrupt(d.in.ino, 0, `no "." in first place`)
	}
	dotdot, err := d.record(b, dot.rec)
	if err != nil || string(dotdot.name) != ".." {
		return corrupt(d.in.ino, 0, `no ".." in second place`)
	}
	i, leaf, err := e.growDir(d)
	if err != nil {
		return err
	}
	d.clearLeaf(leaf)
	at := record{rec: d.leafEnd(leaf)}
	d.records(b, func(r record) bool {
		if r.ino != 0 && r.off > dotdot.off {
			at = d.append(leaf, at, r)
		}
		return true
	})
	clear(b[dotdot.off+recSize(2):])
	putRecLen(b, dotdot.off, len(b)-dotdot.off)
	b[dxRootInfo+4] = e.sb.defHash
	b[dxRootInfo+5] = dxRootInfoSize
	n := dxNode{0, b, dxRootEntries}
	put16(b, n.off, uint16(e.sb.dxLimit(n.off)))
	n.setCount(1)
	n.set(0, 0, i)
	d.in.setFlag(0, flIndex)
	return nil
}

// append puts a copy of the record r into the room of at, which is the last record of
// leaf, and returns what is the last one then.
func (d *dir) append(leaf []byte, at, r record) record {
	off, n := at.off+at.used(), at.rec-at.used()
	if at.ino != 0 {
		putRecLen(leaf, at.off, at.used())
	}
	put32(leaf, off, uint32(r.ino))
	putRecLen(leaf, off, n)
	leaf[off+6], leaf[off+7] = byte(len(r.name)), r.typ
	copy(leaf[off+deHeader:], r.name)
	return record{off: off, rec: n, ino: r.ino, name: leaf[off+deHeader : off+deHeader+len(r.name)], typ: r.typ}
}

// insertIndexed is insert through the index.
func (e *Editor) insertIndexed(d *dir, r newRecord) error {
	p, err := d.descend([]byte(r.name))
	if err != nil {
		return err
	}
	i := p.leaf()
	if i == 0 || slices.ContainsFunc(p.nodes, func(n dxNode) bool { return n.i == i }) {
		return corrupt(d.in.ino, 0, "the index of the folder points at itself")
	}
	b, err := e.editBlock(d, i)
	if err != nil {
		return err
	}
	at, ok := d.room(b, recSize(len(r.name)))
	if !ok {
		upper, least, other, err := e.splitLeaf(d, p.version, b)
		if err != nil {
			return err
		}
		if err := e.insertPair(d, p, len(p.nodes)-1, least, upper); err != nil {
			return err
		}
		if p.hash >= least&^hashContinued {
			b = other
		}
		// Half a leaf is empty now, more than the longest name needs.
		if at, ok = d.room(b, recSize(len(r.name))); !ok {
			return corrupt(d.in.ino, 0, "a leaf has no room after it was split")
		}
	}
	d.put(b, at, r)
	return nil
}

// splitLeaf moves the upper half of a leaf's names, by hash, to a new block. It
// returns its number, its least hash, which says whether names of that hash stayed
// behind, and its bytes.
func (e *Editor) splitLeaf(d *dir, version byte, b []byte) (uint32, uint32, []byte, error) {
	type hashed struct {
		record
		major, minor uint32
	}
	old := slices.Clone(b)
	var all []hashed
	total := 0
	d.records(old, func(r record) bool {
		if r.ino != 0 {
			major, minor, _ := e.sb.dirHash(version, r.name)
			all = append(all, hashed{r, major, minor})
			total += r.used()
		}
		return true
	})
	if len(all) < 2 {
		return 0, 0, nil, corrupt(d.in.ino, 0, "a full leaf with %d names", len(all))
	}
	slices.SortStableFunc(all, func(a, b hashed) int {
		return cmp.Or(cmp.Compare(a.major, b.major), cmp.Compare(a.minor, b.minor))
	})
	k, size := 0, 0
	for k < len(all)-1 && (k == 0 || size+all[k].used() <= total/2) {
		size += all[k].used()
		k++
	}
	i, upper, err := e.growDir(d)
	if err != nil {
		return 0, 0, nil, err
	}
	fill := func(leaf []byte, rs []hashed) {
		d.clearLeaf(leaf)
		at := record{rec: d.leafEnd(leaf)}
		for _, r := range rs {
			at = d.append(leaf, at, r.record)
		}
	}
	fill(b, all[:k])
	fill(upper, all[k:])
	least := all[k].major
	if all[k-1].major == least {
		least |= hashContinued
	}
	return i, least, upper, nil
}

// insertPair puts a pair behind the one that the path takes in its node at level. A
// full node is split; if all are full up to the root, the index grows by a level.
func (e *Editor) insertPair(d *dir, p *dxPath, level int, hash, block uint32) error {
	n, err := e.editNode(d, p.nodes[level])
	if err != nil {
		return err
	}
	k := p.at[level] + 1
	if n.count() < n.limit() {
		n.insert(k, hash, block)
		return nil
	}
	if level == 0 {
		return e.growIndex(d, p, n, hash, block)
	}
	upper, err := e.newNode(d)
	if err != nil {
		return err
	}
	half := n.count() / 2
	least := n.hash(half)
	for j := half; j < n.count(); j++ {
		upper.set(j-half, n.hash(j), n.block(j))
	}
	upper.setCount(n.count() - half)
	n.setCount(half)
	if k > half {
		upper.insert(k-half, hash, block)
	} else {
		n.insert(k, hash, block)
	}
	return e.insertPair(d, p, level-1, least, upper.i)
}

// growIndex moves what is in the full root to a node of its own and inserts there.
func (e *Editor) growIndex(d *dir, p *dxPath, root dxNode, hash, block uint32) error {
	levels := maxDxLevels - 1
	if e.sb.incompat&incompatLargeDir != 0 {
		levels = maxDxLevels
	}
	if len(p.nodes) >= levels {
		return fmt.Errorf("ext4: inode %d: the index of the folder is full: %w", d.in.ino, ErrNoSpace)
	}
	n, err := e.newNode(d)
	if err != nil {
		return err
	}
	for j := range root.count() {
		n.set(j, root.hash(j), root.block(j))
	}
	n.setCount(root.count())
	root.setCount(1)
	root.set(0, 0, n.i)
	root.b[dxRootInfo+6]++
	down := &dxPath{p.version, p.hash, []dxNode{root, n}, []int{0, p.at[0]}}
	return e.insertPair(d, down, 1, hash, block)
}

func (e *Editor) editNode(d *dir, n dxNode) (dxNode, error) {
	b, err := e.editBlock(d, n.i)
	return dxNode{n.i, b, n.off}, err
}

// newNode adds an empty node to a folder.
func (e *Editor) newNode(d *dir) (dxNode, error) {
	i, b, err := e.growDir(d)
	if err != nil {
		return dxNode{}, err
	}
	putRecLen(b, 0, len(b))
	n := dxNode{i, b, dxNodeEntries}
	put16(b, n.off, uint16(e.sb.dxLimit(n.off)))
	return n, nil
}
