package qcow2

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"remaster/pkg/disk"
)

// Rewrite puts the guest's edits into the container. guest is an overlay over m; c is
// an overlay without edits over the blob that m was opened from. Afterwards, c is the
// edited image. m still reads the old one.
//
// It is shadow-paged: new data clusters (uncompressed), the L2 tables that point at
// them, the L1 table, the changed refcount blocks and the refcount table are written
// behind the old end of c; then a few bytes of the header switch over to them. Stopped
// anywhere before that, the file reads as before and has leaked clusters at most. What
// is replaced becomes free space within the file, with its refcounts lowered.
//
// A cluster whose bytes did not change is left alone; one that became zero is
// dropped. If that leaves nothing, c is not touched. Autoclear feature bits are
// cleared, so that persistent bitmaps count as inconsistent, and their clusters as
// leaked, from then on. Data is copied a cluster at a time.
//
// An image with internal snapshots, or a refcount that contradicts the use of a
// cluster that is to be freed, is refused. Clusters that are not touched are not
// looked at: [Check] of c, before it is published, finds what was wrong with them.
// After an error c must be dropped.
func (m *Image) Rewrite(c, guest *disk.Overlay) error {
	switch {
	case guest.Size() != m.size:
		return fmt.Errorf("qcow2: guest overlay of %d bytes over a disk of %d", guest.Size(), m.size)
	case !guest.Dirty():
		return nil
	case c.Size() != m.fileSize || c.Dirty():
		return errors.New("qcow2: the container overlay is not a fresh one over the image")
	case m.snapshots > 0:
		return unsupported(remedyFlatten, "edit of an image with %d internal snapshots", m.snapshots)
	}
	rc, err := newRefcounts(m)
	if err != nil {
		return err
	}
	w := &rewriter{
		m: m, c: c, guest: guest, rc: rc, l1: slices.Clone(m.l1), cur: -1,
		next: m.roundUp(m.fileSize), old: make([]byte, m.clusterSize), data: make([]byte, m.clusterSize),
	}
	w.first = w.next
	last := int64(-1)
	for r := range guest.Changed() {
		for g := max(r.Off>>m.clusterBits, last+1); g <= (r.End()-1)>>m.clusterBits; g++ {
			if err := w.cluster(g); err != nil {
				return err
			}
			last = g
		}
	}
	if err := w.flushTable(); err != nil || !w.changed {
		return err
	}
	return w.commit()
}

// rewriter is the state of one Rewrite.
type rewriter struct {
	m           *Image
	c, guest    *disk.Overlay
	rc          *refcounts
	first, next int64 // host offsets of the first new cluster and behind the last one
	l1          []uint64
	changed     bool // l1 differs

	cur       int64  // L1 index of table, -1: none
	table     []byte // L2 table, a copy
	tableEdit bool   // table differs

	old, data []byte // a cluster each
}

// alloc returns the offset of n new bytes of whole clusters.
func (w *rewriter) alloc(n int64) (int64, error) {
	off := w.next
	if n > maxHostOffset-off {
		return 0, unsupported(remedyFlatten, "file of more than %d bytes", int64(maxHostOffset))
	}
	w.next += n
	return off, nil
}

// write writes p, whole clusters, at off, where the file may have to grow.
func (w *rewriter) write(p []byte, off int64) error {
	if end := off + int64(len(p)); end > w.c.Size() {
		if err := w.c.Grow(end); err != nil {
			return fmt.Errorf("qcow2: %w", err)
		}
	}
	if _, err := w.c.WriteAt(p, off); err != nil {
		return fmt.Errorf("qcow2: %w", err)
	}
	return nil
}

// cluster takes over the edits of guest cluster g.
func (w *rewriter) cluster(g int64) error {
	m := w.m
	if err := w.openTable(g >> m.l2Bits); err != nil {
		return err
	}
	entry := w.table[8*(g&(1<<m.l2Bits-1)):][:8]
	e := be.Uint64(entry)

	r := disk.Range{Off: g << m.clusterBits, Len: m.clusterSize}.Intersect(disk.Whole(m))
	old := w.old[:r.Len]
	if err := disk.ReadFull(m, old, r.Off); err != nil {
		return err
	}
	clear(w.data[copy(w.data, old):])
	for x := range w.guest.ChangedIn(r) {
		if err := disk.ReadFull(w.guest, w.data[x.Off-r.Off:x.End()-r.Off], x.Off); err != nil {
			return fmt.Errorf("qcow2: edited guest: %w", err)
		}
	}
	if bytes.Equal(w.data[:r.Len], old) {
		return nil
	}
	if err := w.releaseData(e, g); err != nil {
		return err
	}
	w.tableEdit = true
	if isZero(w.data) {
		be.PutUint64(entry, 0)
		return nil
	}
	off, err := w.alloc(m.clusterSize)
	if err != nil {
		return err
	}
	be.PutUint64(entry, uint64(off)|entryCopied)
	return w.write(w.data, off)
}

// releaseData frees what the L2 entry of guest cluster g points at.
func (w *rewriter) releaseData(e uint64, g int64) error {
	what := fmt.Sprintf("guest cluster %d", g)
	if e&entryCompressed != 0 {
		return w.rc.release(w.m.packed(e), false, what)
	}
	return w.releaseSole(e, what)
}

// releaseSole frees the cluster that an L1 entry, or an L2 entry that is not
// compressed, points at. Without snapshots nothing else does, and the entry says so.
func (w *rewriter) releaseSole(e uint64, what string) error {
	off := int64(e & entryOffset)
	if off == 0 {
		return nil
	}
	if err := w.rc.release(disk.Range{Off: off, Len: 1}, true, what); err != nil {
		return err
	}
	if e&entryCopied == 0 {
		return corrupt(off, "%s has refcount 1, but not the copied flag", what)
	}
	return nil
}

// openTable makes the L2 table of L1 entry i the current one.
func (w *rewriter) openTable(i int64) error {
	if i == w.cur {
		return nil
	}
	if err := w.flushTable(); err != nil {
		return err
	}
	t, err := w.m.table(i)
	if err != nil {
		return err
	}
	if w.table == nil {
		w.table = make([]byte, w.m.clusterSize)
	}
	clear(w.table[copy(w.table, t):])
	w.cur = i
	return nil
}

// flushTable writes the current L2 table, if it was changed, to a new place.
func (w *rewriter) flushTable() error {
	if !w.tableEdit {
		return nil
	}
	w.tableEdit, w.changed = false, true
	if err := w.releaseSole(w.l1[w.cur], fmt.Sprintf("L2 table %d", w.cur)); err != nil {
		return err
	}
	if isZero(w.table) {
		w.l1[w.cur] = 0
		return nil
	}
	off, err := w.alloc(w.m.clusterSize)
	if err != nil {
		return err
	}
	w.l1[w.cur] = uint64(off) | entryCopied
	return w.write(w.table, off)
}

// commit writes the L1 table and the refcounts behind the data and switches the header.
func (w *rewriter) commit() error {
	m := w.m
	l1 := make([]byte, m.roundUp(8*int64(len(w.l1))))
	for i, e := range w.l1 {
		be.PutUint64(l1[8*i:], e)
	}
	if err := w.rc.release(disk.Range{Off: m.l1Off, Len: 8 * m.l1Len}, true, "L1 table"); err != nil {
		return err
	}
	l1Off, err := w.alloc(int64(len(l1)))
	if err != nil {
		return err
	}
	if err := w.write(l1, l1Off); err != nil {
		return err
	}
	tableOff, tableLen, err := w.writeRefcounts()
	if err != nil {
		return err
	}

	// One write, within one sector, that carries the image over.
	var h [hdrRefOrder]byte
	if err := disk.ReadFull(w.c, h[:], 0); err != nil {
		return fmt.Errorf("qcow2: header: %w", err)
	}
	be.PutUint64(h[hdrL1Off:], uint64(l1Off))
	be.PutUint64(h[hdrRefTableOff:], uint64(tableOff))
	be.PutUint32(h[hdrRefTableLen:], uint32(tableLen>>m.clusterBits))
	end := hdrSnapshots
	if m.version >= 3 && m.autoclear != 0 {
		be.PutUint64(h[hdrAutoclear:], 0)
		end = hdrRefOrder
	}
	return w.write(h[hdrL1Off:end], hdrL1Off)
}

// writeRefcounts counts everything new, and writes the changed refcount blocks and
// the refcount table behind it.
func (w *rewriter) writeRefcounts() (tableOff, tableLen int64, err error) {
	m := w.m
	blocks, tableLen, err := w.rc.place(disk.Range{Off: w.first, Len: w.next - w.first})
	if err != nil {
		return 0, 0, err
	}
	off, err := w.alloc(int64(len(blocks))<<m.clusterBits + tableLen)
	if err != nil {
		return 0, 0, err
	}
	tableOff = w.next - tableLen
	if err := w.rc.use(disk.Range{Off: w.first, Len: w.next - w.first}); err != nil {
		return 0, 0, err
	}
	table := make([]byte, tableLen)
	for k, old := range w.rc.table {
		be.PutUint64(table[8*k:], uint64(old))
	}
	for _, k := range blocks {
		if err := w.write(w.rc.dirty[k], off); err != nil {
			return 0, 0, err
		}
		be.PutUint64(table[8*k:], uint64(off))
		off += m.clusterSize
	}
	return tableOff, tableLen, w.write(table, tableOff)
}
