package qcow2

import (
	"fmt"
	"io"
	"math/bits"
	"slices"
	"sort"

	"remaster/pkg/disk"
)

// DefaultClusterSize is what QEMU uses too.
const DefaultClusterSize = 64 << 10

// encodedRefOrder is log2 of the refcounts' width in an image that is encoded here.
const encodedRefOrder = 4

// EncodeOptions are the choices there are. The zero value is usable.
type EncodeOptions struct {
	// ClusterSize in bytes, a power of two from 512 to 2 MiB; 0 means DefaultClusterSize.
	ClusterSize int64
}

// Encoded is a version 3 image whose bytes are computed when they are read. It may be
// read by many goroutines at once, and reads the same each time if its disk does.
//
// Its parts follow each other without gaps: header, refcount table, refcount blocks,
// L1 table, L2 tables, and the data clusters in guest order.
type Encoded struct {
	d           disk.Disk
	clusterBits uint
	l1Len       int64     // entries
	tables      []int64   // L1 entries that have an L2 table, in order
	runs        []dataRun // in order, guest and host alike
	// Cluster numbers at which the parts begin; the header is cluster 0.
	refTable, refBlocks, l1, l2, data, end int64
}

// dataRun is a run of guest clusters that are stored.
type dataRun struct {
	guest, n int64 // clusters
	index    int64 // of the first one among all data clusters
}

// Encode lays out an uncompressed version 3 image of d. Clusters that d's extents call
// zero are not stored; data is read only when the image is. The disk's size must be a
// positive multiple of 512 bytes.
func Encode(d disk.Disk, o EncodeOptions) (*Encoded, error) {
	if o.ClusterSize == 0 {
		o.ClusterSize = DefaultClusterSize
	}
	if cb := bits.Len64(uint64(o.ClusterSize)) - 1; o.ClusterSize < 1 || o.ClusterSize != 1<<cb || cb < minClusterBits || cb > maxClusterBits {
		return nil, fmt.Errorf("qcow2: cluster size of %d bytes is not a power of two from 512 to 2 MiB", o.ClusterSize)
	}
	if d.Size() <= 0 || d.Size()%512 != 0 {
		return nil, fmt.Errorf("qcow2: disk of %d bytes is not a positive multiple of 512", d.Size())
	}
	e := &Encoded{d: d, clusterBits: uint(bits.Len64(uint64(o.ClusterSize)) - 1)}
	perTable := o.ClusterSize / 8
	e.l1Len = (d.Size()-1)/(o.ClusterSize*perTable) + 1
	if e.l1Len*8 > maxL1Bytes {
		return nil, fmt.Errorf("qcow2: disk of %d bytes needs clusters of more than %d bytes: %w", d.Size(), o.ClusterSize, disk.ErrUnsupported)
	}
	if err := e.mapData(); err != nil {
		return nil, err
	}
	e.place()
	if (e.refBlocks-e.refTable)<<e.clusterBits > maxRefTable {
		return nil, fmt.Errorf("qcow2: data of a disk of %d bytes needs clusters of more than %d bytes: %w", d.Size(), o.ClusterSize, disk.ErrUnsupported)
	}
	return e, nil
}

// mapData finds the clusters that are stored and the tables that they need.
func (e *Encoded) mapData() error {
	perTable := int64(1) << (e.clusterBits - 3)
	var end, index int64 // behind the last stored guest cluster; data clusters so far
	for x, err := range e.d.Extents(disk.Whole(e.d)) {
		if err != nil {
			return fmt.Errorf("qcow2: map of the disk: %w", err)
		}
		if x.Zero {
			continue
		}
		from, to := max(x.Off>>e.clusterBits, end), (x.End()-1)>>e.clusterBits+1
		if from >= to {
			continue
		}
		if n := len(e.runs); n > 0 && from == end {
			e.runs[n-1].n += to - from
		} else {
			e.runs = append(e.runs, dataRun{from, to - from, index})
		}
		index += to - from
		end = to
		for t := from / perTable; t <= (to-1)/perTable; t++ {
			if n := len(e.tables); n == 0 || e.tables[n-1] != t {
				e.tables = append(e.tables, t)
			}
		}
	}
	e.end = index
	return nil
}

// place decides where the parts begin. The refcounts count themselves, too.
func (e *Encoded) place() {
	up := func(n int64, log uint) int64 { return (n + 1<<log - 1) >> log }
	rest := 1 + up(8*e.l1Len, e.clusterBits) + int64(len(e.tables)) + e.end
	var table, blocks int64
	for {
		b := up(rest+table+blocks, e.clusterBits+3-encodedRefOrder)
		t := up(8*b, e.clusterBits)
		if b == blocks && t == table {
			break
		}
		blocks, table = b, t
	}
	e.refTable = 1
	e.refBlocks = e.refTable + table
	e.l1 = e.refBlocks + blocks
	e.l2 = e.l1 + up(8*e.l1Len, e.clusterBits)
	e.data = e.l2 + int64(len(e.tables))
	e.end += e.data
}

// Size returns the size of the image in bytes.
func (e *Encoded) Size() int64 { return e.end << e.clusterBits }

// ReadAt implements io.ReaderAt.
func (e *Encoded) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("qcow2: read at negative offset %d", off)
	}
	if off >= e.Size() {
		return 0, io.EOF
	}
	var eof error
	if int64(len(p)) > e.Size()-off {
		p, eof = p[:e.Size()-off], io.EOF
	}
	var meta []byte
	for n := 0; n < len(p); {
		c, in := (off+int64(n))>>e.clusterBits, (off+int64(n))&(1<<e.clusterBits-1)
		if c >= e.data {
			k, err := e.readData(p[n:], c-e.data, in)
			n += k
			if err != nil {
				return n, err
			}
			continue
		}
		if meta == nil {
			meta = make([]byte, 1<<e.clusterBits)
		}
		clear(meta)
		e.metadata(meta, c)
		n += copy(p[n:], meta[in:])
	}
	return len(p), eof
}

// readData reads from data cluster i on, beginning at byte in, as far as its run goes.
func (e *Encoded) readData(p []byte, i, in int64) (int, error) {
	k := sort.Search(len(e.runs), func(k int) bool { return e.runs[k].index > i }) - 1
	r := e.runs[k]
	p = p[:min(int64(len(p)), (r.n-(i-r.index))<<e.clusterBits-in)]
	guest := (r.guest+i-r.index)<<e.clusterBits + in
	// The disk may end within its last cluster.
	have := min(max(e.d.Size()-guest, 0), int64(len(p)))
	clear(p[have:])
	if have > 0 {
		if err := disk.ReadFull(e.d, p[:have], guest); err != nil {
			return 0, fmt.Errorf("qcow2: encode: %w", err)
		}
	}
	return len(p), nil
}

// metadata fills p, which is zero, with cluster c.
func (e *Encoded) metadata(p []byte, c int64) {
	switch {
	case c >= e.l2:
		e.l2Table(p, e.tables[c-e.l2])
	case c >= e.l1:
		perCluster := int64(len(p) / 8)
		from := (c - e.l1) * perCluster
		k, _ := slices.BinarySearch(e.tables, from)
		for ; k < len(e.tables) && e.tables[k] < from+perCluster; k++ {
			be.PutUint64(p[8*(e.tables[k]-from):], uint64(e.l2+int64(k))<<e.clusterBits|entryCopied)
		}
	case c >= e.refBlocks:
		// Every cluster is used once.
		first := (c - e.refBlocks) << (e.clusterBits + 3 - encodedRefOrder)
		for i := range min(e.end-first, int64(len(p)/2)) {
			be.PutUint16(p[2*i:], 1)
		}
	case c >= e.refTable:
		first := (c - e.refTable) * int64(len(p)/8)
		for i := range min(e.l1-e.refBlocks-first, int64(len(p)/8)) {
			be.PutUint64(p[8*i:], uint64(e.refBlocks+first+i)<<e.clusterBits)
		}
	default:
		e.header(p)
	}
}

// l2Table fills p with the L2 table of L1 entry t.
func (e *Encoded) l2Table(p []byte, t int64) {
	per := int64(len(p) / 8)
	from, to := t*per, (t+1)*per
	k := max(sort.Search(len(e.runs), func(k int) bool { return e.runs[k].guest > from })-1, 0)
	for ; k < len(e.runs) && e.runs[k].guest < to; k++ {
		r := e.runs[k]
		for g := max(r.guest, from); g < min(r.guest+r.n, to); g++ {
			be.PutUint64(p[8*(g-from):], uint64(e.data+r.index+g-r.guest)<<e.clusterBits|entryCopied)
		}
	}
}

// header fills p with the header; no feature bit is set, and the zeros behind it end
// the list of extensions.
func (e *Encoded) header(p []byte) {
	be.PutUint32(p, magic)
	be.PutUint32(p[hdrVersion:], 3)
	be.PutUint32(p[hdrClusterBits:], uint32(e.clusterBits))
	be.PutUint64(p[hdrSize:], uint64(e.d.Size()))
	be.PutUint32(p[hdrL1Len:], uint32(e.l1Len))
	be.PutUint64(p[hdrL1Off:], uint64(e.l1)<<e.clusterBits)
	be.PutUint64(p[hdrRefTableOff:], uint64(e.refTable)<<e.clusterBits)
	be.PutUint32(p[hdrRefTableLen:], uint32(e.refBlocks-e.refTable))
	be.PutUint32(p[hdrRefOrder:], encodedRefOrder)
	be.PutUint32(p[hdrLen:], hdrEndKnown)
}
