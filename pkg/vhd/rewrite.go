package vhd

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"

	"remaster/pkg/disk"
)

// chunk is how much of the guest's disk is looked at in one go.
const chunk = 1 << 20

// Rewrite carries the edits of guest, an overlay over m, into c, an overlay without
// edits over the blob that m was opened from. Afterwards c is the VHD of the edited
// disk.
//
// Sectors that differ are overwritten where they are, and their bitmap bits set; no
// other byte of existing blocks changes. A block that is absent is appended where the
// tail footer was if it is to hold anything but zeros, and the footer moves to the new
// end. The result depends on nothing but the two disks. After an error c is of no use.
func (m *Image) Rewrite(c *disk.Overlay, guest *disk.Overlay) error {
	if c.Size() != m.b.Size() || c.Dirty() {
		return fmt.Errorf("rewrite VHD: the container's overlay has edits of its own")
	}
	if guest.Size() != m.info.Size {
		return fmt.Errorf("rewrite VHD: guest's disk of %d bytes does not fit one of %d", guest.Size(), m.info.Size)
	}
	w := &rewriter{
		m: m, c: c, guest: guest, end: m.b.Size() - footerSize, added: map[int]bool{},
		old: make([]byte, chunk), new: make([]byte, chunk),
	}
	// Whole sectors, so that ranges that share one are seen as one.
	var sectors disk.Ranges
	for r := range guest.Changed() {
		off := r.Off / sectorSize * sectorSize
		sectors.Add(disk.Range{Off: off, Len: roundUp(r.End(), sectorSize) - off})
	}
	for r := range sectors.All() {
		for r.Len > 0 {
			n, err := w.write(r)
			if err != nil {
				return fmt.Errorf("rewrite VHD: guest's byte %d: %w", r.Off, err)
			}
			r = disk.Range{Off: r.Off + n, Len: r.Len - n}
		}
	}
	if len(w.added) == 0 {
		return nil
	}
	if _, err := c.WriteAt(m.foot, w.end); err != nil {
		return fmt.Errorf("rewrite VHD: footer: %w", err)
	}
	return nil
}

type rewriter struct {
	m        *Image
	c, guest *disk.Overlay
	end      int64        // where the next block, or the footer, goes
	added    map[int]bool // blocks that were appended
	old, new []byte
}

// write carries the first bytes of r, a range of whole sectors, over and returns how
// many these are.
func (w *rewriter) write(r disk.Range) (int64, error) {
	n := min(r.Len, chunk)
	if w.m.info.Type == TypeFixed {
		return n, w.differing(r.Off, n, func(off int64, p []byte) error {
			_, err := w.c.WriteAt(p, off)
			return err
		})
	}
	block, in := w.m.locate(r.Off)
	rest := w.m.info.BlockSize - in
	n = min(n, rest)
	if w.added[block] {
		return min(r.Len, rest), nil
	}
	at, ok := w.m.place(block)
	if !ok {
		p := w.new[:n]
		if err := disk.ReadFull(w.guest, p, r.Off); err != nil || isZero(p) {
			return n, err
		}
		return min(r.Len, rest), w.add(block)
	}
	return n, w.differing(r.Off, n, func(off int64, p []byte) error {
		in := in + off - r.Off
		if _, err := w.c.WriteAt(p, at+w.m.bitmap+in); err != nil {
			return err
		}
		return w.setBits(block, in/sectorSize, int64(len(p))/sectorSize)
	})
}

// differing calls f for each run of sectors in which the guest's disk differs from
// what it was. It looks at n bytes, not more than a chunk, from off on.
func (w *rewriter) differing(off, n int64, f func(off int64, p []byte) error) error {
	before, after := w.old[:n], w.new[:n]
	if err := disk.ReadFull(w.m, before, off); err != nil {
		return err
	}
	if err := disk.ReadFull(w.guest, after, off); err != nil {
		return err
	}
	same := func(i int64) bool {
		return bytes.Equal(before[i:i+sectorSize], after[i:i+sectorSize])
	}
	for i := int64(0); i < n; {
		if same(i) {
			i += sectorSize
			continue
		}
		from := i
		for i < n && !same(i) {
			i += sectorSize
		}
		if err := f(off+from, after[from:i]); err != nil {
			return err
		}
	}
	return nil
}

// setBits sets the bitmap bits of n sectors from the given one on, where they are not
// set yet.
func (w *rewriter) setBits(block int, sector, n int64) error {
	bits, err := w.m.readBitmap(block)
	if err != nil || bits == nil {
		return err
	}
	at, _ := w.m.place(block)
	first, last := sector/8, (sector+n-1)/8
	// What was set for earlier runs is in the container already.
	p := make([]byte, last-first+1)
	if err := disk.ReadFull(w.c, p, at+first); err != nil {
		return err
	}
	now := slices.Clone(p)
	for s := sector; s < sector+n; s++ {
		now[s/8-first] |= 0x80 >> (s % 8)
	}
	if bytes.Equal(p, now) {
		return nil
	}
	_, err = w.c.WriteAt(now, at+first)
	return err
}

// add appends a block with all that the guest's disk holds in its range.
func (w *rewriter) add(block int) error {
	m := w.m
	at := w.end
	if at/sectorSize >= absentBlock {
		return unsupported("the file would grow to %d bytes, more than its block table can address", at)
	}
	next := at + m.bitmap + m.info.BlockSize
	if err := w.c.Grow(next + footerSize); err != nil {
		return err
	}
	// All bits are set, also for sectors of zeros, as qemu does it. The bitmap takes
	// the place of the footer, everything behind it is zeros by now.
	if _, err := w.c.WriteAt(bytes.Repeat([]byte{0xFF}, int(m.bitmap)), at); err != nil {
		return err
	}
	from := int64(block) * m.info.BlockSize
	end := min(from+m.info.BlockSize, m.info.Size)
	for off := from; off < end; off += chunk {
		p := w.new[:min(chunk, end-off)]
		if err := disk.ReadFull(w.guest, p, off); err != nil {
			return err
		}
		if isZero(p) {
			continue
		}
		if _, err := w.c.WriteAt(p, at+m.bitmap+off-from); err != nil {
			return err
		}
	}
	entry := binary.BigEndian.AppendUint32(nil, uint32(at/sectorSize))
	if _, err := w.c.WriteAt(entry, m.table+4*int64(block)); err != nil {
		return err
	}
	w.end = next
	w.added[block] = true
	return nil
}
