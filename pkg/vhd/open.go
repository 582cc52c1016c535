package vhd

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"sort"
	"time"

	"remaster/internal/hint"
	"remaster/pkg/disk"
)

// Type is the kind of a VHD.
type Type string

// The kinds that are supported.
const (
	TypeFixed   Type = "fixed"   // the disk's bytes, then the footer
	TypeDynamic Type = "dynamic" // blocks of the disk in any order, absent ones are zeros
)

// Geometry is the shape of the disk in cylinders, heads and sectors per track.
type Geometry struct{ Cylinders, Heads, Sectors int }

// Bytes returns the size that the geometry describes.
func (g Geometry) Bytes() int64 {
	return int64(g.Cylinders) * int64(g.Heads) * int64(g.Sectors) * sectorSize
}

// Info describes an image. Sizes are bytes.
type Info struct {
	Type Type
	// Size is that of the guest's disk, and SizeRule says where it was taken from,
	// with the other candidate if there is another.
	Size     int64
	SizeRule string
	// OriginalSize and CurrentSize are the fields of the footer.
	OriginalSize, CurrentSize int64
	Geometry                  Geometry
	// CreatorApp and CreatorOS are tags of up to four printable characters.
	CreatorApp, CreatorOS string
	CreatorVersion        string // major.minor
	UniqueID              [16]byte
	Created               time.Time
	// BlockSize, Blocks and Allocated are 0 for a fixed disk. Blocks are those that
	// the disk is made of, Allocated those that the file holds.
	BlockSize         int64
	Blocks, Allocated int
}

// Image is the guest's disk inside a VHD. It may be used by many goroutines at once.
type Image struct {
	b    disk.Disk
	info Info
	foot []byte // the tail footer

	// Of a dynamic disk:
	table  int64    // where the BAT is, in bytes
	bat    []uint32 // sector of each block's bitmap, or absentBlock
	bitmap int64    // bytes of a block's bitmap
	maps   bitmaps
}

// Open reads the structure of the VHD in b. If b has no VHD footer at all the error
// wraps disk.ErrFormat. What contradicts itself is disk.ErrCorrupt, and what is a VHD
// of another kind disk.ErrUnsupported: differencing disks, disks of more than 2040 GiB
// and disks of a suspended machine among others.
func Open(b disk.Blob) (*Image, error) {
	m := &Image{b: disk.AsDisk(b)}
	f, err := m.readFooter()
	if err != nil {
		return nil, fmt.Errorf("open VHD: %w", err)
	}
	if err := m.describe(f); err != nil {
		return nil, fmt.Errorf("open VHD: %w", err)
	}
	if m.info.Type == TypeFixed {
		err = m.checkFixed()
	} else {
		err = m.readDynamic(f)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s VHD: %w", m.info.Type, err)
	}
	return m, nil
}

func corrupt(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, disk.ErrCorrupt)...)
}

func unsupported(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, disk.ErrUnsupported)...)
}

const remedyDamaged = "the file is incomplete or damaged: fetch it again and compare its checksum, or let the program that made it repair it"

// readFooter finds and checks the tail footer, and its copy at the head.
func (m *Image) readFooter() (*footer, error) {
	size := m.b.Size()
	if size < footerSize {
		return nil, fmt.Errorf("a file of %d bytes has no footer: %w", size, disk.ErrFormat)
	}
	head, tail := make([]byte, footerSize), make([]byte, footerSize)
	if err := disk.ReadFull(m.b, head, 0); err != nil {
		return nil, err
	}
	if err := disk.ReadFull(m.b, tail, size-footerSize); err != nil {
		return nil, err
	}
	hasCookie := func(b []byte) bool { return string(b[:8]) == footerCookie }
	switch {
	case !hasCookie(head) && !hasCookie(tail):
		return nil, fmt.Errorf("no footer: %w", disk.ErrFormat)
	case size%sectorSize != 0:
		return nil, hint.With(corrupt("the file's size of %d bytes is not a multiple of %d", size, sectorSize), remedyDamaged)
	case !hasCookie(tail):
		return nil, hint.With(corrupt("the footer at the end, byte %d, is missing; only its copy at byte 0 is there", size-footerSize), remedyDamaged)
	}
	if got, want := binary.BigEndian.Uint32(tail[footerChecksumAt:]), checksum(tail, footerChecksumAt); got != want {
		return nil, hint.With(corrupt("footer at byte %d: checksum is %#08x, should be %#08x", size-footerSize, got, want), remedyDamaged)
	}
	f := new(footer)
	decode(tail, f)
	if f.Version != version1 {
		return nil, unsupported("file format version %#x", f.Version)
	}
	if f.Features&^featureBits != 0 {
		return nil, unsupported("unknown feature bits %#x", f.Features&^featureBits)
	}
	switch f.Type {
	case typeFixed:
		// A reader that looks at the head first, as qemu does, would take the guest's
		// bytes for a dynamic disk.
		if size > footerSize && hasCookie(head) {
			return nil, corrupt("the disk is fixed, but its first sector is a VHD footer too")
		}
	case typeDynamic:
		if !bytes.Equal(head, tail) {
			return nil, hint.With(corrupt("the footer at byte %d and its copy at byte 0 differ", size-footerSize), remedyDamaged)
		}
	case typeDiffering:
		return nil, hint.With(unsupported("differencing disk: its parent is another file"),
			"merge it with its parent into a dynamic or fixed VHD first")
	default:
		return nil, unsupported("disk type %d", f.Type)
	}
	if f.SavedState != 0 {
		return nil, hint.With(unsupported("the disk belongs to a suspended machine"), "resume the machine and shut it down")
	}
	m.foot = tail
	return f, nil
}

// bySize are the creators whose current size counts for qemu, in version 7.2. It takes
// the geometry of any other, while most other programs take the current size of all.
var bySize = []string{"win ", "qem2", "d2v ", "tap\x00", "CTXS"}

// maxGeometry is what the specification gives to disks too large for a geometry.
var maxGeometry = Geometry{65535, 16, 255}

// describe fills in what the footer tells, and decides on the size.
func (m *Image) describe(f *footer) error {
	if f.CurrentSize == 0 || f.CurrentSize%sectorSize != 0 {
		return corrupt("disk size of %d bytes is not a multiple of %d", f.CurrentSize, sectorSize)
	}
	if f.CurrentSize > MaxSize {
		return unsupported("disk size of %d bytes is more than 2040 GiB", f.CurrentSize)
	}
	m.info = Info{
		Type: TypeDynamic, Size: int64(f.CurrentSize), SizeRule: "current size",
		OriginalSize: int64(min(f.OriginalSize, 1<<63-1)), CurrentSize: int64(f.CurrentSize),
		Geometry:   Geometry{int(f.Cylinders), int(f.Heads), int(f.Sectors)},
		CreatorApp: printable(f.CreatorApp), CreatorOS: printable(f.CreatorOS),
		CreatorVersion: fmt.Sprintf("%d.%d", f.CreatorVersion>>16, f.CreatorVersion&0xFFFF),
		UniqueID:       f.UniqueID,
		Created:        epoch.Add(time.Duration(f.Timestamp) * time.Second),
	}
	if f.Type == typeFixed {
		m.info.Type = TypeFixed
	}
	switch chs := m.info.Geometry.Bytes(); {
	case chs == m.info.CurrentSize:
		m.info.SizeRule = "current size and geometry"
	case chs == maxGeometry.Bytes() || chs == 0:
		// The geometry says nothing.
	case slices.Contains(bySize, string(f.CreatorApp[:])):
		m.info.SizeRule = fmt.Sprintf("current size, as creator %q wants it; the geometry says %d bytes", m.info.CreatorApp, chs)
	case chs > MaxSize:
		return unsupported("geometry of %d bytes is more than 2040 GiB", chs)
	default:
		m.info.Size = chs
		m.info.SizeRule = fmt.Sprintf("geometry, as creator %q wants it; the current size says %d bytes", m.info.CreatorApp, f.CurrentSize)
	}
	return nil
}

func printable(tag [4]byte) string {
	b := bytes.TrimRight(tag[:], " \x00")
	for i, c := range b {
		if c < ' ' || c > '~' {
			b[i] = '?'
		}
	}
	return string(b)
}

func (m *Image) checkFixed() error {
	if have := m.b.Size() - footerSize; have < m.info.Size {
		return hint.With(corrupt("the disk has %d bytes, but the file holds %d of them", m.info.Size, have), remedyDamaged)
	}
	return nil
}

// readDynamic reads and checks the dynamic header and the BAT.
func (m *Image) readDynamic(f *footer) error {
	end := m.b.Size() - footerSize // of everything but the tail footer
	at := int64(min(f.DataOffset, 1<<62))
	if at < footerSize || at%sectorSize != 0 || at > end-headerSize {
		return corrupt("dynamic header at byte %d is not within the file of %d bytes", f.DataOffset, m.b.Size())
	}
	raw := make([]byte, headerSize)
	if err := disk.ReadFull(m.b, raw, at); err != nil {
		return err
	}
	h := new(header)
	decode(raw, h)
	if err := m.checkHeader(h, raw, at); err != nil {
		return err
	}
	m.table, m.bitmap = int64(min(h.TableOffset, 1<<62)), bitmapSize(int64(h.BlockSize))
	table := roundUp(int64(h.MaxEntries)*4, sectorSize)
	if m.table < footerSize || m.table%sectorSize != 0 || m.table > end || table > end-m.table {
		return corrupt("block allocation table at byte %d with %d entries is not within the file of %d bytes", h.TableOffset, h.MaxEntries, m.b.Size())
	}
	raw = make([]byte, int64(h.MaxEntries)*4)
	if err := disk.ReadFull(m.b, raw, m.table); err != nil {
		return fmt.Errorf("block allocation table: %w", err)
	}
	m.bat = make([]uint32, h.MaxEntries)
	for i := range m.bat {
		m.bat[i] = binary.BigEndian.Uint32(raw[4*i:])
		if m.bat[i] != absentBlock {
			m.info.Allocated++
		}
	}
	return m.checkPlaces(at, table, end)
}

func (m *Image) checkHeader(h *header, raw []byte, at int64) error {
	if string(h.Cookie[:]) != headerCookie {
		return corrupt("no dynamic header at byte %d", at)
	}
	if want := checksum(raw, headerChecksumAt); h.Checksum != want {
		return hint.With(corrupt("dynamic header at byte %d: checksum is %#08x, should be %#08x", at, h.Checksum, want), remedyDamaged)
	}
	if h.Version != version1 {
		return unsupported("dynamic header version %#x", h.Version)
	}
	if h.DataOffset != noOffset && h.DataOffset != noOffset32 {
		return unsupported("dynamic header at byte %d is followed by another structure at byte %d", at, h.DataOffset)
	}
	bs := int64(h.BlockSize)
	if bs < sectorSize || bs&(bs-1) != 0 {
		return corrupt("block size of %d bytes is not a power of two of at least %d", bs, sectorSize)
	}
	if bs < minBlockSize || bs > maxBlockSize {
		return unsupported("block size of %d bytes is less than %d or more than %d", bs, minBlockSize, maxBlockSize)
	}
	need := roundUp(m.info.Size, bs) / bs
	if int64(h.MaxEntries) < need {
		return corrupt("block allocation table of %d entries, but the disk of %d bytes has %d blocks", h.MaxEntries, m.info.Size, need)
	}
	// There may be entries behind the end of the disk, as sizes are rounded in many
	// ways, but not for blocks that no disk of this format could have.
	if h.MaxEntries > maxBATEntries || int64(h.MaxEntries)*bs > maxTableSpan {
		return unsupported("block allocation table of %d entries, for a disk of %d blocks", h.MaxEntries, need)
	}
	m.info.BlockSize, m.info.Blocks = bs, int(need)
	return nil
}

// checkPlaces makes sure that no two structures share a byte of the file, and that
// none reaches into the tail footer, at end.
func (m *Image) checkPlaces(headerAt, table, end int64) error {
	sectors := make([]uint32, 0, m.info.Allocated)
	for _, s := range m.bat {
		if s != absentBlock {
			sectors = append(sectors, s)
		}
	}
	slices.Sort(sectors)
	place := func(i int) disk.Range {
		return disk.Range{Off: int64(sectors[i]) * sectorSize, Len: m.bitmap + m.info.BlockSize}
	}
	name := func(i int) string {
		return fmt.Sprintf("block %d at byte %d", slices.Index(m.bat, sectors[i]), place(i).Off)
	}
	fixed := []struct {
		what string
		disk.Range
	}{
		{"the footer's copy", disk.Range{Len: footerSize}},
		{"the dynamic header", disk.Range{Off: headerAt, Len: headerSize}},
		{"the block allocation table", disk.Range{Off: m.table, Len: table}},
	}
	for n, f := range fixed {
		for _, g := range fixed[:n] {
			if f.Intersect(g.Range).Len > 0 {
				return corrupt("%s %v overlaps %s %v", f.what, f.Range, g.what, g.Range)
			}
		}
	}
	for i := range sectors {
		if place(i).End() > end {
			return hint.With(corrupt("%s ends at byte %d, behind byte %d where the file's data end", name(i), place(i).End(), end), remedyDamaged)
		}
		if i > 0 && place(i-1).End() > place(i).Off {
			if sectors[i-1] == sectors[i] {
				return corrupt("%s is another block too", name(i))
			}
			return corrupt("%s overlaps %s", name(i), name(i-1))
		}
	}
	for _, f := range fixed {
		// Blocks do not overlap, so the first one that ends behind f.Off decides.
		i := sort.Search(len(sectors), func(i int) bool { return place(i).End() > f.Off })
		if i < len(sectors) && place(i).Off < f.End() {
			return corrupt("%s overlaps %s %v", name(i), f.what, f.Range)
		}
	}
	return nil
}

// Info returns what is known of the image.
func (m *Image) Info() Info { return m.info }

// Size returns the size of the guest's disk in bytes.
func (m *Image) Size() int64 { return m.info.Size }
