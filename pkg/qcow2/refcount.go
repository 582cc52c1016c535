package qcow2

import (
	"fmt"
	"maps"
	"slices"

	"remaster/pkg/disk"
)

// refTableReserved are the reserved bits of a refcount table entry; the
// specification, "Host cluster management".
const refTableReserved = 0x1ff

// refBlockBits returns log2 of the refcounts that a refcount block holds.
func (h *header) refBlockBits() uint { return h.clusterBits + 3 - h.refOrder }

// refcount returns the i-th refcount of a block. Refcounts of less than a byte fill
// it from its least significant bit.
func (h *header) refcount(block []byte, i int64) uint64 {
	switch h.refOrder {
	case 3:
		return uint64(block[i])
	case 4:
		return uint64(be.Uint16(block[2*i:]))
	case 5:
		return uint64(be.Uint32(block[4*i:]))
	case 6:
		return be.Uint64(block[8*i:])
	}
	bit := i << h.refOrder
	return uint64(block[bit/8]>>(bit%8)) & (1<<(1<<h.refOrder) - 1)
}

// setRefcount sets the i-th refcount of a block to v, which fits.
func (h *header) setRefcount(block []byte, i int64, v uint64) {
	switch h.refOrder {
	case 3:
		block[i] = byte(v)
	case 4:
		be.PutUint16(block[2*i:], uint16(v))
	case 5:
		be.PutUint32(block[4*i:], uint32(v))
	case 6:
		be.PutUint64(block[8*i:], v)
	default:
		bit := i << h.refOrder
		mask := byte(1<<(1<<h.refOrder)-1) << (bit % 8)
		block[bit/8] = block[bit/8]&^mask | byte(v)<<(bit%8)
	}
}

// readRefTable returns the checked offsets of the refcount blocks, 0 for none.
func (m *Image) readRefTable() ([]int64, error) {
	raw := make([]byte, m.refTableLen) // at most maxRefTable, and within the file
	if err := disk.ReadFull(m.b, raw, m.refTableOff); err != nil {
		return nil, fmt.Errorf("qcow2: refcount table: %w", err)
	}
	table := make([]int64, len(raw)/8)
	for k := range table {
		e, at := be.Uint64(raw[8*k:]), m.refTableOff+8*int64(k)
		if e == 0 {
			continue
		}
		if e&refTableReserved != 0 {
			return nil, corrupt(at, "refcount table entry %d has reserved bits: %#x", k, e)
		}
		off, err := m.hostOffset(e, m.clusterSize)
		if err != nil {
			return nil, corrupt(at, "refcount block %d: %v", k, err)
		}
		if name := m.inRegion(off); name != "" {
			return nil, corrupt(at, "refcount block %d lies over the %s", k, name)
		}
		table[k] = off
	}
	return table, nil
}

// refcounts are the refcounts of an image, of which the blocks that are used are in
// memory. Changes stay there until place and write.
type refcounts struct {
	m     *Image
	table []int64          // offsets of the blocks in the image as it is, 0: none
	dirty map[int64][]byte // blocks that are changed, by their number
}

func newRefcounts(m *Image) (*refcounts, error) {
	table, err := m.readRefTable()
	return &refcounts{m, table, map[int64][]byte{}}, err
}

// block returns block k for a change.
func (rc *refcounts) block(k int64) ([]byte, error) {
	if b := rc.dirty[k]; b != nil {
		return b, nil
	}
	b := make([]byte, rc.m.clusterSize)
	if k < int64(len(rc.table)) && rc.table[k] != 0 {
		if err := disk.ReadFull(rc.m.b, b, rc.table[k]); err != nil {
			return nil, fmt.Errorf("qcow2: refcount block %d: %w", k, err)
		}
	}
	rc.dirty[k] = b
	return b, nil
}

// at returns the block and the index in it for the host cluster at off.
func (rc *refcounts) at(off int64) (block []byte, i int64, err error) {
	cluster, bits := off>>rc.m.clusterBits, rc.m.refBlockBits()
	block, err = rc.block(cluster >> bits)
	return block, cluster & (1<<bits - 1), err
}

// release takes one reference from each cluster that r touches. With sole, it must be
// the only one.
func (rc *refcounts) release(r disk.Range, sole bool, what string) error {
	size := rc.m.clusterSize
	for off := r.Off &^ (size - 1); off < r.End(); off += size {
		b, i, err := rc.at(off)
		if err != nil {
			return err
		}
		v := rc.m.refcount(b, i)
		if v == 0 {
			return corrupt(off, "%s is in use with refcount 0", what)
		}
		if sole && v != 1 {
			return unsupported(remedyRepair, "%s at byte %d has refcount %d instead of 1: a shared or leaked cluster", what, off, v)
		}
		rc.m.setRefcount(b, i, v-1)
	}
	return nil
}

// place decides which blocks are to be written and how long their table will be, if
// the file gets the clusters of grown, which holds everything new but blocks and
// table, and then those. Old blocks and the old table are released. It returns the
// numbers of the blocks in order and the length of the table in bytes.
func (rc *refcounts) place(grown disk.Range) (blocks []int64, tableLen int64, err error) {
	m := rc.m
	if err := rc.release(disk.Range{Off: m.refTableOff, Len: m.refTableLen}, true, "refcount table"); err != nil {
		return nil, 0, err
	}
	tableLen = m.refTableLen
	span := m.clusterBits + m.refBlockBits() // log2 of the bytes that a block counts
	// Blocks and table need refcounts of their own, which may need more blocks, whose
	// predecessors' space is counted in still others: until nothing is added.
	released := map[int64]bool{}
	for {
		before, beforeLen := len(rc.dirty)+len(released), tableLen
		end := grown.End() + int64(len(rc.dirty))<<m.clusterBits + tableLen
		for k := grown.Off >> span; k <= (end-1)>>span; k++ {
			if _, err := rc.block(k); err != nil {
				return nil, 0, err
			}
		}
		blocks = slices.Sorted(maps.Keys(rc.dirty))
		for _, k := range blocks {
			if k >= int64(len(rc.table)) || rc.table[k] == 0 || released[k] {
				continue
			}
			released[k] = true
			if err := rc.release(disk.Range{Off: rc.table[k], Len: 1}, true, "refcount block"); err != nil {
				return nil, 0, err
			}
		}
		tableLen = max(tableLen, m.roundUp(8*(blocks[len(blocks)-1]+1)))
		if tableLen > maxRefTable {
			return nil, 0, unsupported(remedyFlatten, "refcount table of more than %d bytes", maxRefTable)
		}
		if before == len(rc.dirty)+len(released) && beforeLen == tableLen {
			return blocks, tableLen, nil
		}
	}
}

// use gives each cluster of r, none of which may be in use, the refcount 1.
func (rc *refcounts) use(r disk.Range) error {
	for off := r.Off; off < r.End(); off += rc.m.clusterSize {
		b, i, err := rc.at(off)
		if err != nil {
			return err
		}
		if v := rc.m.refcount(b, i); v != 0 {
			return unsupported(remedyRepair, "cluster behind the end of the file, at byte %d, has refcount %d: a leaked cluster", off, v)
		}
		rc.m.setRefcount(b, i, 1)
	}
	return nil
}

// roundUp returns n rounded up to whole clusters.
func (h *header) roundUp(n int64) int64 { return (n + h.clusterSize - 1) &^ (h.clusterSize - 1) }
