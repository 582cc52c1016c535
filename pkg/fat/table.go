package fat

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"slices"

	"remaster/pkg/disk"
)

// pageSize is the unit in which the FAT is read and kept, in bytes; maxPages is the
// number of pages kept that were not changed.
const (
	pageSize = 4096
	maxPages = 256
)

// table is the file allocation table: for each cluster, the one behind it.
type table struct {
	d     disk.Disk
	b     *boot
	pages map[int64][]byte // by number
	dirty map[int64]bool
	last  []byte // the page that was used last, of the number lastN
	lastN int64
}

func newTable(d disk.Disk, b *boot) *table {
	return &table{d: d, b: b, pages: map[int64][]byte{}, dirty: map[int64]bool{}, lastN: -1}
}

func (t *table) page(n int64) ([]byte, error) {
	if n == t.lastN {
		return t.last, nil
	}
	if p := t.pages[n]; p != nil {
		t.last, t.lastN = p, n
		return p, nil
	}
	if len(t.pages) >= maxPages+len(t.dirty) {
		maps.DeleteFunc(t.pages, func(n int64, _ []byte) bool { return !t.dirty[n] })
	}
	p := make([]byte, min(pageSize, t.b.fatSize-n*pageSize))
	if err := disk.ReadFull(t.d, p, t.b.fatOff+t.b.activeFAT*t.b.fatSize+n*pageSize); err != nil {
		return nil, fmt.Errorf("fat: the FAT: %w", err)
	}
	t.pages[n], t.last, t.lastN = p, p, n
	return p, nil
}

// bytesAt calls f with the bytes of the FAT at off, one by one: entries of FAT12 lie
// across pages.
func (t *table) bytesAt(off int64, n int, f func(i int, b *byte), write bool) error {
	for i := range n {
		at := off + int64(i)
		p, err := t.page(at / pageSize)
		if err != nil {
			return err
		}
		if write {
			t.dirty[at/pageSize] = true
		}
		f(i, &p[at%pageSize])
	}
	return nil
}

// place returns where the entry of cluster c lies, and its bits there.
func (t *table) place(c uint32) (off int64, n int, shift uint, mask uint32) {
	switch t.b.bits {
	case 12:
		return int64(c) * 3 / 2, 2, uint(c&1) * 4, 0xFFF
	case 16:
		return int64(c) * 2, 2, 0, 0xFFFF
	}
	return int64(c) * 4, 4, 0, 0x0FFFFFFF // the upper four bits are reserved and kept
}

// get returns the entry of cluster c, which must be below b.end.
func (t *table) get(c uint32) (uint32, error) {
	off, n, shift, mask := t.place(c)
	if t.b.bits != 12 { // entries do not lie across pages, and there are many of them
		p, err := t.page(off / pageSize)
		switch {
		case err != nil:
			return 0, err
		case t.b.bits == 16:
			return uint32(le.Uint16(p[off%pageSize:])), nil
		}
		return le.Uint32(p[off%pageSize:]) & mask, nil
	}
	var v uint32
	err := t.bytesAt(off, n, func(i int, b *byte) { v |= uint32(*b) << (8 * i) }, false)
	return v >> shift & mask, err
}

func (t *table) set(c, v uint32) error {
	off, n, shift, mask := t.place(c)
	return t.bytesAt(off, n, func(i int, b *byte) {
		m := byte(mask << shift >> (8 * i))
		*b = *b&^m | byte(v<<shift>>(8*i))&m
	}, true)
}

// eoc is the least entry that ends a chain. What is written is all ones.
func (t *table) eoc() uint32 {
	_, _, _, mask := t.place(0)
	return mask &^ 7
}

func (t *table) endMark() uint32 { return t.eoc() | 7 }

// run is a stretch of clusters in a row.
type run struct {
	first uint32
	n     int64
}

// chain follows the chain that begins at first for at most limit clusters, and returns
// its runs, and whether it ends there.
func (t *table) chain(first uint32, limit int64) (runs []run, ended bool, err error) {
	c := first
	for range limit {
		if !t.b.valid(c) {
			return nil, false, fmt.Errorf("fat: a chain leads to cluster %d of %d: %w", c, t.b.end, disk.ErrCorrupt)
		}
		if k := len(runs) - 1; k >= 0 && int64(runs[k].first)+runs[k].n == int64(c) {
			runs[k].n++
		} else {
			runs = append(runs, run{c, 1})
		}
		next, err := t.get(c)
		if err != nil {
			return nil, false, err
		}
		if next >= t.eoc() {
			return runs, true, nil
		}
		c = next
	}
	return runs, false, nil
}

func count(runs []run) (n int64) {
	for _, r := range runs {
		n += r.n
	}
	return n
}

// countFree reads the whole FAT and returns the number of free clusters.
func (t *table) countFree() (free int64, err error) {
	for c := uint32(2); c < t.b.end; c++ {
		v, err := t.get(c)
		if err != nil {
			return 0, err
		}
		if v == 0 {
			free++
		}
	}
	return free, nil
}

// mirrors fails unless the copies of the FAT are equal.
func (t *table) mirrors() error {
	if t.b.fats < 2 {
		return nil
	}
	a := io.NewSectionReader(t.d, t.b.fatOff, t.b.fatSize)
	b := io.NewSectionReader(t.d, t.b.fatOff+t.b.fatSize, t.b.fatSize)
	p, q := make([]byte, 64<<10), make([]byte, 64<<10)
	for off := int64(0); off < t.b.fatSize; off += int64(len(p)) {
		n := min(int64(len(p)), t.b.fatSize-off)
		if _, err := io.ReadFull(a, p[:n]); err != nil {
			return fmt.Errorf("fat: the FAT: %w", err)
		}
		if _, err := io.ReadFull(b, q[:n]); err != nil {
			return fmt.Errorf("fat: the second FAT: %w", err)
		}
		if !bytes.Equal(p[:n], q[:n]) {
			return fmt.Errorf("fat: the two FATs differ behind byte %d: %w", off, disk.ErrCorrupt)
		}
	}
	return nil
}

// flush writes the changed pages to every copy of the FAT.
func (t *table) flush(w io.WriterAt) error {
	for _, n := range slices.Sorted(maps.Keys(t.dirty)) {
		for i := range t.b.fats {
			if _, err := w.WriteAt(t.pages[n], t.b.fatOff+i*t.b.fatSize+n*pageSize); err != nil {
				return fmt.Errorf("fat: write the FAT: %w", err)
			}
		}
	}
	clear(t.dirty)
	return nil
}
