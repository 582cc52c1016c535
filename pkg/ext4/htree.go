package ext4

import "sort"

// dxNode is a node of a folder's index, seen through its bytes: behind a head, a table
// of pairs of a hash and a block of the folder, sorted by hash. The first pair has no
// hash of its own; its place holds the table's limit and count.
type dxNode struct {
	i   uint32 // block within the folder
	b   []byte
	off int // of the table
}

func (n dxNode) limit() int         { return int(le16(n.b, n.off)) }
func (n dxNode) count() int         { return int(le16(n.b, n.off+2)) }
func (n dxNode) setCount(c int)     { put16(n.b, n.off+2, uint16(c)) }
func (n dxNode) block(k int) uint32 { return le32(n.b, n.off+k*dxEntry+4) & 0x0FFFFFFF }

// hash returns the least hash of the k-th pair; the first one's is 0.
func (n dxNode) hash(k int) uint32 {
	if k == 0 {
		return 0
	}
	return le32(n.b, n.off+k*dxEntry)
}

func (n dxNode) set(k int, hash, block uint32) {
	if k > 0 {
		put32(n.b, n.off+k*dxEntry, hash)
	}
	put32(n.b, n.off+k*dxEntry+4, block)
}

// insert puts a pair at place k > 0.
func (n dxNode) insert(k int, hash, block uint32) {
	from, to := n.off+k*dxEntry, n.off+n.count()*dxEntry
	copy(n.b[from+dxEntry:to+dxEntry], n.b[from:to])
	n.setCount(n.count() + 1)
	n.set(k, hash, block)
}

// dxLimit returns how many pairs have room in a block of the given size whose table
// is at off.
func (s *super) dxLimit(off int) int {
	n := s.blockSize - off
	if s.metaCsum() {
		n -= dxTail
	}
	return n / dxEntry
}

// dxNodeOf finds the table in a block that holds a node.
func (d *dir) dxNodeOf(i uint32, no uint64, b []byte) (dxNode, error) {
	n := dxNode{i, b, dxNodeEntries}
	if i == 0 {
		n.off = dxRootEntries
		if recLen(b, 0) != recSize(1) || le16(b, 4) != 12 || recLen(b, 12) != len(b)-12 || le32(b, dxRootInfo) != 0 ||
			b[dxRootInfo+5] != dxRootInfoSize || b[dxRootInfo+7]&1 != 0 {
			return n, corrupt(d.in.ino, no, "bad root of the folder's index")
		}
	}
	if n.limit() != d.f.sb.dxLimit(n.off) || n.count() == 0 || n.count() > n.limit() {
		return n, corrupt(d.in.ino, no, "index node with %d entries of %d", n.count(), n.limit())
	}
	return n, nil
}

// verifyDx checks the checksum of a node: over the bytes up to the last pair in use,
// and the tail behind the last possible one with the sum itself taken for zero
// (ext4_dx_csum).
func (d *dir) verifyDx(i uint32, no uint64, b []byte) error {
	n, err := d.dxNodeOf(i, no, b)
	if err != nil {
		return err
	}
	if at := n.tail(); d.dxChecksum(n) != le32(b, at+4) {
		return corrupt(d.in.ino, no, "wrong checksum of an index node")
	}
	return nil
}

func (n dxNode) tail() int { return n.off + n.limit()*dxEntry }

func (d *dir) dxChecksum(n dxNode) uint32 {
	c := crc32c(d.in.seed(), n.b[:n.off+n.count()*dxEntry])
	return crc32cHole(c, n.b[n.tail():n.tail()+dxTail], 4, 4)
}

// dxPath is the way from the root of an index to a leaf.
type dxPath struct {
	version byte
	hash    uint32 // what was looked for
	nodes   []dxNode
	at      []int // the pair taken in each node
}

func (p *dxPath) leaf() uint32 { return p.nodes[len(p.nodes)-1].block(p.at[len(p.at)-1]) }

// indexRoot returns the root of the index, the version of its hash, and its levels
// below the root.
func (d *dir) indexRoot() (dxNode, byte, int, error) {
	b, err := d.block(0)
	if err != nil {
		return dxNode{}, 0, 0, err
	}
	n, err := d.dxNodeOf(0, 0, b)
	if err != nil {
		return n, 0, 0, err
	}
	levels := int(b[dxRootInfo+6])
	if levels >= maxDxLevels || levels == maxDxLevels-1 && d.f.sb.incompat&incompatLargeDir == 0 {
		return n, 0, 0, corrupt(d.in.ino, 0, "index with %d levels", levels)
	}
	return n, b[dxRootInfo+4], levels, nil
}

// node returns a node below the root.
func (d *dir) node(i uint32) (dxNode, error) {
	b, err := d.block(i)
	if err != nil {
		return dxNode{}, err
	}
	if i == 0 || !d.isNode(i, b) {
		return dxNode{}, corrupt(d.in.ino, 0, "block %d of the folder is no index node", i)
	}
	return d.dxNodeOf(i, 0, b)
}

// descend finds the leaf whose hashes a name's belongs to.
func (d *dir) descend(name []byte) (*dxPath, error) {
	n, version, levels, err := d.indexRoot()
	if err != nil {
		return nil, err
	}
	hash, _, ok := d.f.sb.dirHash(version, name)
	if !ok {
		return nil, unsupported("inode %d: folder with hash version %d", d.in.ino, version)
	}
	p := &dxPath{version: version, hash: hash}
	for {
		k := sort.Search(n.count()-1, func(k int) bool { return n.hash(k+1) > hash })
		p.nodes, p.at = append(p.nodes, n), append(p.at, k)
		if levels == 0 {
			return p, nil
		}
		levels--
		if n, err = d.node(n.block(k)); err != nil {
			return nil, err
		}
	}
}

// next moves to the leaf behind, and reports whether names of the same hash go on
// there: its least hash is the same, with the lowest bit set.
func (d *dir) next(p *dxPath) (bool, error) {
	k := len(p.nodes) - 1
	for ; k >= 0; k-- {
		if p.at[k]+1 < p.nodes[k].count() {
			break
		}
	}
	if k < 0 {
		return false, nil
	}
	p.at[k]++
	if p.nodes[k].hash(p.at[k]) != p.hash|hashContinued {
		return false, nil
	}
	for ; k+1 < len(p.nodes); k++ {
		n, err := d.node(p.nodes[k].block(p.at[k]))
		if err != nil {
			return false, err
		}
		p.nodes[k+1], p.at[k+1] = n, 0
	}
	return true, nil
}

// findIndexed is find through the index.
func (d *dir) findIndexed(name string) (uint32, record, error) {
	p, err := d.descend([]byte(name))
	if err != nil {
		return 0, record{}, err
	}
	// A chain of leaves with one hash is bounded by the folder's size.
	for range d.blocks() {
		i := p.leaf()
		e, err := d.findIn(i, name)
		if err != nil || e.ino != 0 {
			return i, e, err
		}
		more, err := d.next(p)
		if err != nil || !more {
			return 0, record{}, err
		}
	}
	return 0, record{}, corrupt(d.in.ino, 0, "the index of the folder goes round")
}
