package qcow2

import (
	"fmt"
	"io"
	"iter"
	"slices"
	"sync"

	"remaster/pkg/disk"
)

// Memory that an image keeps at most, beside its L1 table; but at least two values.
const (
	tableCache   = 4 << 20 // bytes of L2 tables
	clusterCache = 8 << 20 // bytes of decompressed clusters
	packedRun    = 1 << 20 // bytes of compressed clusters that are read at once
)

// Table entries; the specification, "Cluster mapping".
const (
	entryOffset     = 0x00fffffffffffe00 // bits 9-55
	entryL1Reserved = 0x7f000000000001ff // bits 0-8 and 56-62
	entryL2Reserved = 0x3f000000000001fe // bits 1-8 and 56-61
	entryZero       = 1 << 0             // version 3: the cluster reads as zeros
	entryCompressed = 1 << 62
	entryCopied     = 1 << 63 // the refcount is exactly 1
)

// Image is the disk inside a qcow2 file, in its active state: internal snapshots are
// not looked at. It implements disk.Disk and may be used by many goroutines at once.
type Image struct {
	*header
	b        disk.Blob
	l1       []uint64
	tables   *cache // by L1 index
	clusters *cache // decompressed, by guest cluster
	l2Bits   uint   // log2 of the entries of an L2 table
	used     []region
	inputs   sync.Pool // of *[]byte, for compressed data
}

// Open reads the header and the L1 table of a qcow2 image. b is read as long as the
// image is used; nothing else is ever opened.
//
// Errors wrap disk.ErrFormat if b is not a qcow2 image, disk.ErrUnsupported if it uses
// a feature that is refused, and disk.ErrCorrupt if it contradicts the specification.
// An L2 table is checked when it is first used; see also [Check].
func Open(b disk.Blob) (*Image, error) {
	h, err := readHeader(b)
	if err != nil {
		return nil, err
	}
	m := &Image{
		header: h, b: b, l2Bits: h.clusterBits - 3, used: h.regions(),
		tables: newCache(tableCache, h.clusterSize), clusters: newCache(clusterCache, h.clusterSize),
	}
	raw := make([]byte, h.l1Len*8) // at most maxL1Bytes, and within the file
	if err := disk.ReadFull(b, raw, h.l1Off); err != nil {
		return nil, fmt.Errorf("qcow2: L1 table: %w", err)
	}
	m.l1 = make([]uint64, h.l1Len)
	for i := range m.l1 {
		m.l1[i] = be.Uint64(raw[8*i:])
	}
	if err := m.checkL1(); err != nil {
		return nil, err
	}
	return m, nil
}

// checkL1 checks each L1 entry, and that no two share a table: else a small file
// could claim any amount of data.
func (m *Image) checkL1() error {
	sorted, last := true, int64(0)
	for i, e := range m.l1 {
		at := m.l1Off + 8*int64(i)
		if e&entryL1Reserved != 0 {
			return corrupt(at, "L1 entry %d has reserved bits: %#x", i, e)
		}
		if e == 0 {
			continue
		}
		off, err := m.hostOffset(e&entryOffset, m.clusterSize)
		if err != nil {
			return corrupt(at, "L2 table of L1 entry %d: %v", i, err)
		}
		if name := m.inRegion(off); name != "" {
			return corrupt(at, "L2 table of L1 entry %d lies over the %s", i, name)
		}
		sorted, last = sorted && off > last, off
	}
	if sorted {
		return nil
	}
	tables := make([]uint64, 0, len(m.l1))
	for _, e := range m.l1 {
		if e != 0 {
			tables = append(tables, e&entryOffset)
		}
	}
	slices.Sort(tables)
	for i := 1; i < len(tables); i++ {
		if tables[i] == tables[i-1] {
			return corrupt(int64(tables[i]), "two L1 entries share an L2 table")
		}
	}
	return nil
}

// inRegion returns the name of the header's region that the cluster at off lies in.
func (m *Image) inRegion(off int64) string {
	for _, r := range m.used {
		if off >= r.Off && off < r.End() {
			return r.name
		}
	}
	return ""
}

// Size returns the size of the guest's disk in bytes.
func (m *Image) Size() int64 { return m.size }

// Info returns what the image says about itself.
func (m *Image) Info() Info {
	return m.info()
}

// table returns the checked L2 table of an L1 entry, or nil if there is none.
func (m *Image) table(i int64) ([]byte, error) {
	off := int64(m.l1[i] & entryOffset)
	if off == 0 {
		return nil, nil
	}
	return m.tables.get(i, func() ([]byte, error) {
		t := make([]byte, m.clusterSize)
		if err := disk.ReadFull(m.b, t, off); err != nil {
			return nil, fmt.Errorf("qcow2: L2 table %d: %w", i, err)
		}
		for j := range int64(len(t) / 8) {
			if e := be.Uint64(t[8*j:]); e != 0 {
				if err := m.checkEntry(e, i<<m.l2Bits+j); err != nil {
					return nil, corrupt(off+8*j, "L2 entry %#x of guest cluster %d: %v", e, i<<m.l2Bits+j, err)
				}
			}
		}
		return t, nil
	})
}

// checkEntry checks an L2 entry as far as it can be without other tables.
func (m *Image) checkEntry(e uint64, guest int64) error {
	if e&entryCompressed != 0 {
		r := m.packed(e)
		if e&entryCopied != 0 {
			return fmt.Errorf("compressed cluster with the copied flag")
		}
		// The file may end within the last sector.
		if r.Off == 0 || r.Off >= m.fileSize || (r.End()-1)/512 > (m.fileSize-1)/512 {
			return fmt.Errorf("compressed data %v is not within the file of %d bytes", r, m.fileSize)
		}
		return m.checkPlace(r)
	}
	off := e & entryOffset
	switch {
	case e&entryL2Reserved != 0 || m.version < 3 && e&entryZero != 0:
		return fmt.Errorf("reserved bits")
	case off == 0 && e&entryCopied != 0:
		return fmt.Errorf("copied flag without a cluster")
	case off == 0:
		return nil
	}
	// Bytes behind the end of the disk are never read, and not always there.
	need := min(m.clusterSize, max(m.size-guest<<m.clusterBits, 1))
	if _, err := m.hostOffset(off, need); err != nil {
		return err
	}
	return m.checkPlace(disk.Range{Off: int64(off), Len: m.clusterSize})
}

// checkPlace checks that data does not lie over what the header names.
func (m *Image) checkPlace(r disk.Range) error {
	for _, u := range m.used {
		if r.Intersect(u.Range).Len > 0 {
			return fmt.Errorf("data %v lies over the %s", r, u.name)
		}
	}
	return nil
}

// packed returns where the compressed data of an entry is: from any byte to the end
// of a sector; the specification, "Compressed Clusters Descriptor".
func (m *Image) packed(e uint64) disk.Range {
	x := 62 - (m.clusterBits - 8)
	off := e & (1<<x - 1)
	sectors := e &^ (entryCompressed | entryCopied) >> x
	if off >= maxHostOffset {
		return disk.Range{} // never valid
	}
	return disk.Range{Off: int64(off), Len: int64((sectors+1)*512 - off%512)}
}

// kind is how a guest cluster is stored.
type kind uint8

const (
	kindZero kind = iota // not at all
	kindPlain
	kindPacked
)

func kindOf(e uint64) kind {
	switch {
	case e&entryCompressed != 0:
		return kindPacked
	case e&entryZero != 0 || e&entryOffset == 0:
		return kindZero
	}
	return kindPlain
}

// ReadAt implements io.ReaderAt.
func (m *Image) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("qcow2: read at negative offset %d", off)
	}
	if off >= m.size {
		return 0, io.EOF
	}
	var eof error
	if int64(len(p)) > m.size-off {
		p, eof = p[:m.size-off], io.EOF
	}
	for n := 0; n < len(p); {
		k, err := m.readRun(p[n:], off+int64(n))
		n += k
		if err != nil {
			return n, err
		}
	}
	return len(p), eof
}

// readRun reads the bytes at off that are stored like the first one, at least one
// and at most len(p), and returns their number. On error it returns 0.
func (m *Image) readRun(p []byte, off int64) (int, error) {
	guest, in := off>>m.clusterBits, off&(m.clusterSize-1)
	i, j := guest>>m.l2Bits, guest&(1<<m.l2Bits-1)
	t, err := m.table(i)
	if err != nil {
		return 0, err
	}
	if t == nil {
		n := int(min(int64(len(p)), (i+1)<<m.l2Bits<<m.clusterBits-off))
		clear(p[:n])
		return n, nil
	}
	e := be.Uint64(t[8*j:])
	k := kindOf(e)
	if k == kindPacked {
		return m.readPacked(p, t[8*j:], guest, in)
	}
	// One read for a run of clusters that follow each other in the file.
	n := m.clusterSize - in
	next := e&entryOffset + uint64(m.clusterSize)
	for t = t[8*j+8:]; n < int64(len(p)) && len(t) > 0; t = t[8:] {
		f := be.Uint64(t)
		if kindOf(f) != k || k == kindPlain && f&entryOffset != next {
			break
		}
		n += m.clusterSize
		next += uint64(m.clusterSize)
	}
	p = p[:min(n, int64(len(p)))]
	if k == kindZero {
		clear(p)
		return len(p), nil
	}
	if err := disk.ReadFull(m.b, p, int64(e&entryOffset)+in); err != nil {
		return 0, fmt.Errorf("qcow2: guest offset %d: %w", off, err)
	}
	return len(p), nil
}

// readPacked reads from the compressed cluster guest, whose entry t begins with, and
// from whole ones behind it. A part of a cluster goes through the cache: the rest of
// it is likely to be wanted next.
func (m *Image) readPacked(p, t []byte, guest, in int64) (int, error) {
	if in != 0 || int64(len(p)) < m.clusterSize || m.clusters.has(guest) {
		data, err := m.clusters.get(guest, func() ([]byte, error) {
			data := make([]byte, m.clusterSize)
			_, err := m.unpack(data, t, guest)
			return data, err
		})
		if err != nil {
			return 0, err
		}
		return copy(p, data[in:]), nil
	}
	return m.unpack(p, t, guest)
}

// unpack decompresses whole clusters into p, which has room for at least one: the
// cluster guest, whose entry t begins with, and those behind it that follow in the
// file. They are read at once.
func (m *Image) unpack(p, t []byte, guest int64) (int, error) {
	first := m.packed(be.Uint64(t))
	first.Len = min(first.Len, m.fileSize-first.Off)
	run, n := first, m.clusterSize
	for ; n+m.clusterSize <= int64(len(p)) && 8*n>>m.clusterBits < int64(len(t)); n += m.clusterSize {
		e := be.Uint64(t[8*n>>m.clusterBits:])
		r := m.packed(e)
		if kindOf(e) != kindPacked || r.Off < run.Off || r.Off > run.End() || r.End() > run.Off+packedRun {
			break
		}
		run.Len = max(run.End(), min(r.End(), m.fileSize)) - run.Off
	}
	buf, _ := m.inputs.Get().(*[]byte)
	if buf == nil || int64(len(*buf)) < run.Len {
		// At least what most runs need, so that it is rarely made anew.
		b := make([]byte, max(run.Len, min(m.clusterSize, packedRun)))
		buf = &b
	}
	defer m.inputs.Put(buf)
	src := (*buf)[:run.Len]
	if err := disk.ReadFull(m.b, src, run.Off); err != nil {
		return 0, fmt.Errorf("qcow2: compressed cluster %d: %w", guest, err)
	}
	for at := int64(0); at < n; at += m.clusterSize {
		r := m.packed(be.Uint64(t[8*at>>m.clusterBits:])).Intersect(run)
		part := src[r.Off-run.Off : r.End()-run.Off]
		if err := decompress(m.compression, p[at:at+m.clusterSize], part); err != nil {
			return 0, corrupt(r.Off, "compressed cluster %d: %v", guest+at>>m.clusterBits, err)
		}
	}
	return int(n), nil
}

// Extents implements disk.Disk. Only tables are read; clusters that are not allocated
// or have the zero flag are Zero.
func (m *Image) Extents(r disk.Range) iter.Seq2[disk.Extent, error] {
	r = r.Intersect(disk.Whole(m))
	return func(yield func(disk.Extent, error) bool) {
		var run disk.Extent // joins neighbours of one kind
		for at := r.Off; at < r.End(); {
			i := at >> m.clusterBits >> m.l2Bits
			t, err := m.table(i)
			if err != nil {
				yield(disk.Extent{}, err)
				return
			}
			for end := min((i+1)<<m.l2Bits<<m.clusterBits, r.End()); at < end; {
				e := m.extent(t, disk.Range{Off: at, Len: end - at})
				at = e.End()
				if run.Len > 0 && run.Zero == e.Zero {
					run.Len += e.Len
					continue
				}
				if run.Len > 0 && !yield(run, nil) {
					return
				}
				run = e
			}
		}
		if run.Len > 0 {
			yield(run, nil)
		}
	}
}

// extent returns the extent that r, which lies within what the table t maps, begins
// with: a cluster's, or all of r if there is no table.
func (m *Image) extent(t []byte, r disk.Range) disk.Extent {
	if t == nil {
		return disk.Extent{Range: r, Zero: true}
	}
	guest := r.Off >> m.clusterBits
	e := be.Uint64(t[8*(guest&(1<<m.l2Bits-1)):])
	return disk.Extent{
		Range: r.Intersect(disk.Range{Off: guest << m.clusterBits, Len: m.clusterSize}),
		Zero:  kindOf(e) == kindZero,
	}
}
