package vhd

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"iter"
	"math"
	"runtime"
	"time"

	"golang.org/x/sync/errgroup"

	"remaster/pkg/disk"
)

// sizeUnit is what disk sizes are multiples of here: Azure wants it, and with 16 heads
// of 128 sectors it makes a geometry that is exact.
const sizeUnit = 1 << 20

// The geometry of disks of up to 65535 MiB: a cylinder is 1 MiB.
const (
	exactHeads        = 16
	exactSectors      = 128
	exactMaxCylinders = 65535
)

// The tags of what is written here. No reader knows the application, and none needs
// to, as all size rules give the same size.
var (
	creatorApp = [4]byte{'r', 'm', 's', 't'}
	creatorOS  = [4]byte{'W', 'i', '2', 'k'}
)

// Options are the free choices in a VHD that is written. The same options and the
// same disk give the same bytes.
type Options struct {
	// UniqueID is the UUID of the image.
	UniqueID [16]byte
	// Timestamp is when the image was made; the zero time, and any before 2000, is
	// written as 2000-01-01.
	Timestamp time.Time
	// DetectZeros makes Dynamic read the disk to leave out blocks that hold only
	// zeros though the disk does not say so. It reads each block up to the first
	// byte that is not zero.
	DetectZeros bool
	// Align makes the data of each block of a dynamic disk start at a multiple of
	// so many bytes, a power of two from 512 to 4096; 0 means 512. With 4096 a
	// file can be written past the page cache, and is 0.17 % larger.
	Align int64
}

// DiskSize returns the size in bytes that a disk of size bytes gets in a VHD that is
// written here: the next multiple of 1 MiB. If that is more than size, the backup of a
// GPT is no longer at the end of the disk and should be moved before encoding: grow
// an overlay of the disk to DiskSize, move the backup in it, encode the overlay.
func DiskSize(size int64) (int64, error) {
	if size <= 0 {
		return 0, fmt.Errorf("VHD of a disk of %d bytes: %w", size, disk.ErrUnsupported)
	}
	if size > MaxSize {
		return 0, fmt.Errorf("VHD of a disk of %d bytes, more than 2040 GiB: %w", size, disk.ErrUnsupported)
	}
	return roundUp(size, sizeUnit), nil
}

// Encoded is a VHD that is computed while it is read. It may be used by many
// goroutines at once, as long as the disk below stays as it is.
type Encoded struct {
	d    disk.Disk
	info Info
	head []byte // what comes before the first block, nil if fixed
	foot []byte

	// Of a dynamic disk: blocks in file order, each stride bytes behind the last
	// one, the data dataAt bytes behind the bitmap's start.
	blocks []uint32
	stride int64
	footAt int64
}

// Fixed returns d as a fixed VHD.
func Fixed(d disk.Disk, o Options) (*Encoded, error) {
	e, f, err := newEncoded(d, o)
	if err != nil {
		return nil, fmt.Errorf("encode fixed VHD: %w", err)
	}
	// Readers that look at the head first would take such a disk for a dynamic one.
	start := make([]byte, min(len(footerCookie), int(d.Size())))
	if err := disk.ReadFull(d, start, 0); err != nil {
		return nil, fmt.Errorf("encode fixed VHD: %w", err)
	}
	if string(start) == footerCookie {
		return nil, fmt.Errorf("encode fixed VHD: the disk's first sector is a VHD footer itself: %w", disk.ErrUnsupported)
	}
	e.info.Type = TypeFixed
	f.DataOffset, f.Type = noOffset, typeFixed
	e.foot = encode(f, footerSize, footerChecksumAt)
	e.footAt = e.info.Size
	return e, nil
}

// Dynamic returns d as a dynamic VHD. Blocks that d knows to be zeros are left out,
// and with o.DetectZeros all others that hold only zeros too.
func Dynamic(d disk.Disk, o Options) (*Encoded, error) {
	e, f, err := newEncoded(d, o)
	if err != nil {
		return nil, fmt.Errorf("encode dynamic VHD: %w", err)
	}
	align := o.Align
	if align == 0 {
		align = sectorSize
	}
	if align < sectorSize || align > 4096 || align&(align-1) != 0 {
		return nil, fmt.Errorf("encode dynamic VHD: alignment of %d bytes is not a power of two from 512 to 4096", o.Align)
	}
	if e.blocks, err = usedBlocks(d, o.DetectZeros); err != nil {
		return nil, fmt.Errorf("encode dynamic VHD: %w", err)
	}
	e.info.Type = TypeDynamic
	e.info.BlockSize, e.info.Blocks, e.info.Allocated = BlockSize, int(roundUp(e.info.Size, BlockSize)/BlockSize), len(e.blocks)
	f.DataOffset, f.Type = footerSize, typeDynamic
	e.foot = encode(f, footerSize, footerChecksumAt)
	e.layOut(align)
	return e, nil
}

// newEncoded checks the size and fills in what both types have in common.
func newEncoded(d disk.Disk, o Options) (*Encoded, *footer, error) {
	size, err := DiskSize(d.Size())
	if err != nil {
		return nil, nil, err
	}
	g := Geometry{int(size / sizeUnit), exactHeads, exactSectors}
	rule := "current size and geometry"
	if g.Cylinders > exactMaxCylinders {
		g, rule = maxGeometry, "current size"
	}
	seconds := int64(0)
	if !o.Timestamp.IsZero() {
		seconds = min(max(o.Timestamp.Unix()-epoch.Unix(), 0), math.MaxUint32)
	}
	f := &footer{
		Features: 2, Version: version1, Timestamp: uint32(seconds),
		CreatorApp: creatorApp, CreatorVersion: version1, CreatorOS: creatorOS,
		OriginalSize: uint64(size), CurrentSize: uint64(size),
		Cylinders: uint16(g.Cylinders), Heads: uint8(g.Heads), Sectors: uint8(g.Sectors),
		UniqueID: o.UniqueID,
	}
	copy(f.Cookie[:], footerCookie)
	return &Encoded{d: d, info: Info{
		Size: size, SizeRule: rule, OriginalSize: size, CurrentSize: size, Geometry: g,
		CreatorApp: string(creatorApp[:]), CreatorOS: string(creatorOS[:]), CreatorVersion: "1.0",
		UniqueID: o.UniqueID, Created: epoch.Add(time.Duration(seconds) * time.Second),
	}}, f, nil
}

// usedBlocks returns the numbers of the blocks that have to be stored, in order.
func usedBlocks(d disk.Disk, detect bool) ([]uint32, error) {
	var used []uint32
	next := int64(0) // first block not looked at
	for e, err := range d.Extents(disk.Whole(d)) {
		if err != nil {
			return nil, err
		}
		if e.Zero {
			continue
		}
		for next = max(next, e.Off/BlockSize); next*BlockSize < e.End(); next++ {
			used = append(used, uint32(next))
		}
	}
	if !detect {
		return used, nil
	}
	keep := make([]bool, len(used))
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i, block := range used {
		g.Go(func() (err error) {
			keep[i], err = hasData(d, disk.Range{Off: int64(block) * BlockSize, Len: BlockSize}.Intersect(disk.Whole(d)))
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	out := used[:0]
	for i, block := range used {
		if keep[i] {
			out = append(out, block)
		}
	}
	return out, nil
}

// hasData reports whether r of d holds anything but zeros.
func hasData(d disk.Disk, r disk.Range) (bool, error) {
	p := make([]byte, 64<<10)
	for e, err := range d.Extents(r) {
		if err != nil {
			return false, err
		}
		for off := e.Off; !e.Zero && off < e.End(); off += int64(len(p)) {
			part := p[:min(int64(len(p)), e.End()-off)]
			if err := disk.ReadFull(d, part, off); err != nil {
				return false, err
			}
			if !isZero(part) {
				return true, nil
			}
		}
	}
	return false, nil
}

// layOut places the structures of a dynamic disk: copy of the footer, header, BAT,
// blocks, footer. Blocks lie in the order of the disk.
func (e *Encoded) layOut(align int64) {
	const tableAt = footerSize + headerSize
	table := roundUp(int64(e.info.Blocks)*4, sectorSize)
	bitmap := bitmapSize(BlockSize)
	first := roundUp(tableAt+table+bitmap, align) - bitmap // the data are aligned, not the bitmap
	e.stride = roundUp(bitmap+BlockSize, align)
	e.footAt = first
	if n := int64(len(e.blocks)); n > 0 {
		e.footAt += (n-1)*e.stride + bitmap + BlockSize
	}
	h := &header{
		DataOffset: noOffset, TableOffset: tableAt, Version: version1,
		MaxEntries: uint32(e.info.Blocks), BlockSize: BlockSize,
	}
	copy(h.Cookie[:], headerCookie)
	e.head = make([]byte, first)
	copy(e.head, e.foot)
	copy(e.head[footerSize:], encode(h, headerSize, headerChecksumAt))
	bat := e.head[tableAt : tableAt+table]
	for i := range bat {
		bat[i] = 0xFF
	}
	// The last sector number is far from 2^32 even for a full disk of MaxSize.
	for i, block := range e.blocks {
		binary.BigEndian.PutUint32(bat[4*block:], uint32((first+int64(i)*e.stride)/sectorSize))
	}
}

// Info describes the image.
func (e *Encoded) Info() Info { return e.info }

// Size returns the size of the VHD file in bytes.
func (e *Encoded) Size() int64 { return e.footAt + footerSize }

// Grown returns the number of zeros that were added to the end of the disk to make its
// size a multiple of 1 MiB; see [DiskSize].
func (e *Encoded) Grown() int64 { return e.info.Size - e.d.Size() }

// piece is a run of bytes of the file that come from one place.
type piece struct {
	n     int64
	bytes []byte // at least n bytes of the VHD's own, or nil
	guest int64  // else the offset on the disk, or -1 for zeros
}

var ones = bytes.Repeat([]byte{0xFF}, int(bitmapSize(BlockSize)))

// at returns the piece that starts at off of the file.
func (e *Encoded) at(off int64) piece {
	if off >= e.footAt {
		b := e.foot[off-e.footAt:]
		return piece{int64(len(b)), b, 0}
	}
	if e.info.Type == TypeFixed {
		return e.guest(off, e.footAt-off)
	}
	if off < int64(len(e.head)) {
		b := e.head[off:]
		return piece{int64(len(b)), b, 0}
	}
	rel := off - int64(len(e.head))
	i, in := rel/e.stride, rel%e.stride
	switch bitmap := int64(len(ones)); {
	case in < bitmap:
		return piece{bitmap - in, ones, 0}
	case in < bitmap+BlockSize:
		in -= bitmap
		return e.guest(int64(e.blocks[i])*BlockSize+in, BlockSize-in)
	default:
		return piece{e.stride - in, nil, -1}
	}
}

// guest returns the piece of at most n bytes at off of the disk; behind the end of the
// disk that was given there are zeros.
func (e *Encoded) guest(off, n int64) piece {
	if have := e.d.Size() - off; have > 0 {
		return piece{min(n, have), nil, off}
	}
	return piece{n, nil, -1}
}

// ReadAt reads the VHD file; it implements io.ReaderAt.
func (e *Encoded) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read at negative offset %d", off)
	}
	if off >= e.Size() {
		return 0, io.EOF
	}
	var eof error
	if rest := e.Size() - off; int64(len(p)) > rest {
		p, eof = p[:rest], io.EOF
	}
	n := 0
	for n < len(p) {
		s := e.at(off + int64(n))
		part := p[n:min(int64(len(p)), int64(n)+s.n)]
		switch {
		case s.bytes != nil:
			copy(part, s.bytes)
		case s.guest < 0:
			clear(part)
		default:
			if err := disk.ReadFull(e.d, part, s.guest); err != nil {
				return n, err
			}
		}
		n += len(part)
	}
	return n, eof
}

// Extents tells a sink which parts of the VHD file are zeros; it implements disk.Disk.
func (e *Encoded) Extents(r disk.Range) iter.Seq2[disk.Extent, error] {
	r = r.Intersect(disk.Whole(e))
	return joined(func(yield func(disk.Extent, error) bool) {
		for r.Len > 0 {
			s := e.at(r.Off)
			n := min(s.n, r.Len)
			if s.bytes == nil && s.guest >= 0 {
				for x, err := range e.d.Extents(disk.Range{Off: s.guest, Len: n}) {
					x.Off += r.Off - s.guest
					if !yield(x, err) || err != nil {
						return
					}
				}
			} else if !yield(disk.Extent{Range: disk.Range{Off: r.Off, Len: n}, Zero: s.bytes == nil}, nil) {
				return
			}
			r = disk.Range{Off: r.Off + n, Len: r.Len - n}
		}
	})
}
