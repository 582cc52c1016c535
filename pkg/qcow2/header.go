package qcow2

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/bits"
	"slices"

	"remaster/pkg/disk"
)

var be = binary.BigEndian

const magic = 0x514649fb // "QFI\xfb"

// Offsets of the header's fields; the specification, "Header".
const (
	hdrVersion      = 4   // uint32
	hdrBackingOff   = 8   // uint64, 0: none
	hdrBackingLen   = 16  // uint32
	hdrClusterBits  = 20  // uint32
	hdrSize         = 24  // uint64, bytes of the guest's disk
	hdrCrypt        = 32  // uint32, 0: none
	hdrL1Len        = 36  // uint32, entries
	hdrL1Off        = 40  // uint64
	hdrRefTableOff  = 48  // uint64
	hdrRefTableLen  = 56  // uint32, clusters
	hdrSnapshots    = 60  // uint32
	hdrSnapshotOff  = 64  // uint64
	hdrEndV2        = 72  // version 2 ends here
	hdrIncompatible = 72  // uint64, feature bits
	hdrCompatible   = 80  // uint64
	hdrAutoclear    = 88  // uint64
	hdrRefOrder     = 96  // uint32, log2 of the refcount's width in bits
	hdrLen          = 100 // uint32, bytes
	hdrEndV3        = 104 // the shortest version 3 header
	hdrCompression  = 104 // uint8, if the header is long enough
	hdrEndKnown     = 112 // with compression type and its padding
)

// Incompatible feature bits; the specification, "Header", bytes 72-79.
const (
	featDirty = 1 << iota
	featCorrupt
	featDataFile
	featCompression
	featExtendedL2
	featKnown = 1<<iota - 1
)

// featBitmaps, an autoclear bit, says that the bitmaps extension is consistent with the disk.
const featBitmaps = 1

// Header extension types; the specification, "Header extensions".
const (
	extEnd           = 0
	extBackingFormat = 0xe2792aca
	extFeatureNames  = 0x6803f857
	extBitmaps       = 0x23852875
	extEncryption    = 0x0537be77
	extDataFile      = 0x44415441
)

// Limits, those of QEMU's block/qcow2.h where the specification has none.
const (
	minClusterBits = 9
	maxClusterBits = 21
	maxL1Bytes     = 32 << 20
	maxRefTable    = 8 << 20
	maxSnapshots   = 65536
	maxBackingName = 1023
	maxHostOffset  = 1 << 56 // offsets in tables have 56 bits
)

// Compression is how compressed clusters are stored.
type Compression uint8

// The compression types; the specification, "Header", byte 104.
const (
	Zlib Compression = 0 // raw deflate, in spite of the name
	Zstd Compression = 1
)

func (c Compression) String() string {
	switch c {
	case Zlib:
		return "zlib"
	case Zstd:
		return "zstd"
	}
	return fmt.Sprintf("compression type %d", uint8(c))
}

// Extension is a header extension, which is kept byte for byte by an edit.
type Extension struct {
	Type uint32
	Len  int // bytes of data, without padding
}

func (e Extension) String() string {
	switch e.Type {
	case extBackingFormat:
		return "backing file format"
	case extFeatureNames:
		return "feature name table"
	case extBitmaps:
		return "bitmaps"
	case extEncryption:
		return "full disk encryption"
	case extDataFile:
		return "external data file name"
	}
	return fmt.Sprintf("unknown extension %#08x", e.Type)
}

// Info is what an image says about itself.
type Info struct {
	Version     int
	Size        int64 // of the guest's disk, bytes
	FileSize    int64 // of the image, bytes
	ClusterSize int64 // bytes
	Compression Compression
	// RefcountBits is the width of a reference count: 1, 2, 4 … 64.
	RefcountBits int
	Snapshots    int // internal snapshots
	Extensions   []Extension
	// Feature bits as they are in the header; 0 in version 2.
	Incompatible, Compatible, Autoclear uint64
}

// header is the parsed header. Everything in it has been checked against the file's
// length.
type header struct {
	version      int
	size         int64 // bytes of the disk
	fileSize     int64
	clusterSize  int64
	clusterBits  uint
	compression  Compression
	refOrder     uint // log2 of the refcounts' width in bits
	snapshots    int
	extensions   []Extension
	incompatible uint64
	compatible   uint64
	autoclear    uint64
	l1Off        int64
	l1Len        int64 // entries
	refTableOff  int64
	refTableLen  int64 // bytes
	snapshotsOff int64
	headerLen    int64
	featureNames []byte
}

func (h *header) info() Info {
	return Info{
		Version: h.version, Size: h.size, FileSize: h.fileSize, ClusterSize: h.clusterSize,
		Compression: h.compression, RefcountBits: 1 << h.refOrder,
		Snapshots: h.snapshots, Extensions: slices.Clone(h.extensions),
		Incompatible: h.incompatible, Compatible: h.compatible, Autoclear: h.autoclear,
	}
}

// readHeader parses and checks the header and its extensions.
func readHeader(b disk.Blob) (*header, error) {
	var p [hdrEndKnown]byte
	n := min(b.Size(), int64(len(p)))
	if n >= 4 {
		if err := disk.ReadFull(b, p[:n], 0); err != nil {
			return nil, fmt.Errorf("qcow2: header: %w", err)
		}
	}
	if be.Uint32(p[:]) != magic {
		return nil, fmt.Errorf("qcow2: no magic: %w", disk.ErrFormat)
	}
	if n < hdrEndV2 {
		return nil, corrupt(n, "the file ends within the header")
	}
	h := &header{version: int(be.Uint32(p[hdrVersion:])), fileSize: b.Size()}
	switch h.version {
	case 2:
		h.headerLen, h.refOrder = hdrEndV2, 4
		clear(p[hdrEndV2:]) // not header in version 2
	case 3:
		h.headerLen, h.refOrder = int64(be.Uint32(p[hdrLen:])), uint(be.Uint32(p[hdrRefOrder:]))
	default:
		return nil, unsupported(remedyFlatten, "version %d", uint32(h.version))
	}
	if n < h.headerLen && n < hdrEndKnown {
		return nil, corrupt(n, "the file ends within the header")
	}
	steps := []func([]byte) error{
		h.parseGeometry, h.parseFeatures, func([]byte) error { return h.readExtensions(b) },
		h.refuseFeatures, h.parseTables, h.checkOverlap,
	}
	for _, step := range steps {
		if err := step(p[:]); err != nil {
			return nil, err
		}
	}
	return h, nil
}

// parseGeometry takes the sizes that everything else is measured in.
func (h *header) parseGeometry(p []byte) error {
	cb := be.Uint32(p[hdrClusterBits:])
	if cb < minClusterBits || cb > maxClusterBits {
		return corrupt(hdrClusterBits, "cluster size 2^%d is not in 2^%d…2^%d", cb, minClusterBits, maxClusterBits)
	}
	h.clusterBits, h.clusterSize = uint(cb), 1<<cb
	if h.fileSize < h.clusterSize {
		return corrupt(h.fileSize, "the file ends within its first cluster of %d bytes", h.clusterSize)
	}
	size := be.Uint64(p[hdrSize:])
	if size == 0 || size%512 != 0 || size > 1<<62 {
		return corrupt(hdrSize, "disk size of %d bytes", size)
	}
	h.size = int64(size)
	if h.refOrder > 6 {
		return corrupt(hdrRefOrder, "refcount order %d is more than 6", h.refOrder)
	}
	return nil
}

// parseFeatures takes the feature bits and the compression type.
func (h *header) parseFeatures(p []byte) error {
	if h.version < 3 {
		return nil
	}
	if h.headerLen < hdrEndV3 || h.headerLen > h.clusterSize || h.headerLen%8 != 0 {
		return corrupt(hdrLen, "header length %d", h.headerLen)
	}
	h.incompatible = be.Uint64(p[hdrIncompatible:])
	h.compatible = be.Uint64(p[hdrCompatible:])
	h.autoclear = be.Uint64(p[hdrAutoclear:])
	if h.headerLen >= hdrEndKnown {
		h.compression = Compression(p[hdrCompression])
		if !isZero(p[hdrCompression+1 : hdrEndKnown]) {
			return corrupt(hdrCompression+1, "padding of the compression type is not zero")
		}
	}
	if set := h.incompatible&featCompression != 0; set != (h.compression != Zlib) {
		return corrupt(hdrCompression, "compression type %d contradicts its feature bit", uint8(h.compression))
	}
	if h.compression > Zstd {
		return unsupported(remedyFlatten, "compression type %d", uint8(h.compression))
	}
	return nil
}

// readExtensions walks the header extensions, which end with the first cluster or
// where the backing file's name begins.
func (h *header) readExtensions(b disk.Blob) error {
	p := make([]byte, h.clusterSize)
	if err := disk.ReadFull(b, p, 0); err != nil {
		return fmt.Errorf("qcow2: header extensions: %w", err)
	}
	end := h.clusterSize
	if name := be.Uint64(p[hdrBackingOff:]); name != 0 && name < uint64(end) {
		end = int64(name)
	}
	seen := map[uint32]bool{}
	for at := h.headerLen; end-at >= 8; {
		typ, n := be.Uint32(p[at:]), int64(be.Uint32(p[at+4:]))
		if typ == extEnd {
			return nil
		}
		if n > end-at-8 {
			return corrupt(at, "header extension of %d bytes leaves the header cluster", n)
		}
		if seen[typ] {
			return corrupt(at, "second header extension of type %#08x", typ)
		}
		seen[typ] = true
		data := p[at+8 : at+8+n]
		switch typ {
		case extFeatureNames:
			h.featureNames = data
		case extEncryption, extDataFile:
			return h.refuseExtension(Extension{typ, int(n)}, p, data)
		}
		h.extensions = append(h.extensions, Extension{typ, int(n)})
		at += 8 + (n+7)&^7
	}
	return nil
}

// refuseExtension refuses an extension that belongs to a refused feature, whether or
// not the header admits to the feature.
func (h *header) refuseExtension(e Extension, header, data []byte) error {
	if e.Type == extDataFile {
		return unsupported(remedyFlatten, "external data file %s", quote(data))
	}
	return unsupported(remedyFlatten, "encryption (method %d)", be.Uint32(header[hdrCrypt:]))
}

// refuseFeatures refuses what would be misread.
func (h *header) refuseFeatures(p []byte) error {
	if off, n := be.Uint64(p[hdrBackingOff:]), be.Uint32(p[hdrBackingLen:]); off != 0 {
		if n > maxBackingName || off < uint64(h.headerLen) || off > uint64(h.clusterSize) || uint64(n) > uint64(h.clusterSize)-off {
			return corrupt(hdrBackingOff, "backing file name of %d bytes at %d", n, off)
		}
		return unsupported(remedyFlatten, "backing file")
	}
	if c := be.Uint32(p[hdrCrypt:]); c != 0 {
		return unsupported(remedyFlatten, "encryption (method %d)", c)
	}
	f := h.incompatible
	switch unknown := f &^ featKnown; {
	case unknown != 0:
		bit := bits.TrailingZeros64(unknown)
		return unsupported(remedyFlatten, "unknown incompatible feature bit %d%s", bit, h.featureName(bit))
	case f&featDataFile != 0:
		return unsupported(remedyFlatten, "external data file")
	case f&featExtendedL2 != 0:
		return unsupported(remedyFlatten, "extended L2 entries")
	case f&featCorrupt != 0:
		return unsupported(remedyRepair, "image marked corrupt")
	case f&featDirty != 0:
		return unsupported(remedyRepair, "image marked dirty (not closed properly)")
	}
	return nil
}

// featureName returns the name of an incompatible feature by the feature name table,
// whose entries are 48 bytes: type 0, bit, name; the specification, "Feature name table".
func (h *header) featureName(bit int) string {
	for t := h.featureNames; len(t) >= 48; t = t[48:] {
		if t[0] == 0 && int(t[1]) == bit {
			return " " + quote(t[2:48])
		}
	}
	return ""
}

// quote returns bytes of an image so that they can stand in a message.
func quote(p []byte) string {
	p, _, _ = bytes.Cut(p, []byte{0})
	return fmt.Sprintf("%+q", p[:min(len(p), 256)])
}

// parseTables takes the places of the tables.
func (h *header) parseTables(p []byte) error {
	h.l1Len = int64(be.Uint32(p[hdrL1Len:]))
	perL1 := h.clusterSize * (h.clusterSize / 8)
	if h.l1Len*8 > maxL1Bytes || h.l1Len < (h.size-1)/perL1+1 {
		return corrupt(hdrL1Len, "L1 table of %d entries for a disk of %d bytes", h.l1Len, h.size)
	}
	h.refTableLen = int64(be.Uint32(p[hdrRefTableLen:])) << h.clusterBits
	if h.refTableLen == 0 || h.refTableLen > maxRefTable {
		return corrupt(hdrRefTableLen, "refcount table of %d bytes", h.refTableLen)
	}
	var err error
	if h.l1Off, err = h.hostOffset(be.Uint64(p[hdrL1Off:]), h.l1Len*8); err != nil {
		return corrupt(hdrL1Off, "L1 table: %v", err)
	}
	if h.refTableOff, err = h.hostOffset(be.Uint64(p[hdrRefTableOff:]), h.refTableLen); err != nil {
		return corrupt(hdrRefTableOff, "refcount table: %v", err)
	}
	n := be.Uint32(p[hdrSnapshots:])
	if n > maxSnapshots {
		return corrupt(hdrSnapshots, "%d snapshots", n)
	}
	if h.snapshots = int(n); n > 0 {
		// An entry of the snapshot table has at least 40 bytes.
		if h.snapshotsOff, err = h.hostOffset(be.Uint64(p[hdrSnapshotOff:]), 40*int64(n)); err != nil {
			return corrupt(hdrSnapshotOff, "snapshot table: %v", err)
		}
	}
	return nil
}

// hostOffset checks that n bytes of metadata or data at off begin a cluster and lie
// within the file, behind the header.
func (h *header) hostOffset(off uint64, n int64) (int64, error) {
	switch {
	case off == 0 || off%uint64(h.clusterSize) != 0:
		return 0, fmt.Errorf("offset %d does not begin a cluster of %d bytes", off, h.clusterSize)
	case off > uint64(h.fileSize) || n > h.fileSize-int64(off):
		return 0, fmt.Errorf("%d bytes at %d are not within the file of %d bytes", n, off, h.fileSize)
	}
	return int64(off), nil
}

// region is a run of whole clusters with a fixed use.
type region struct {
	disk.Range
	name string
}

// regions returns the places that the header itself names.
func (h *header) regions() []region {
	r := []region{
		{disk.Range{Off: 0, Len: h.clusterSize}, "header"},
		{disk.Range{Off: h.l1Off, Len: h.roundUp(h.l1Len * 8)}, "L1 table"},
		{disk.Range{Off: h.refTableOff, Len: h.refTableLen}, "refcount table"},
	}
	if h.snapshots > 0 {
		r = append(r, region{disk.Range{Off: h.snapshotsOff, Len: h.roundUp(40 * int64(h.snapshots))}, "snapshot table"})
	}
	return r
}

func (h *header) checkOverlap([]byte) error {
	rs := h.regions()
	for i, a := range rs {
		for _, b := range rs[:i] {
			if a.Intersect(b.Range).Len > 0 {
				return corrupt(a.Off, "%s lies over the %s", a.name, b.name)
			}
		}
	}
	return nil
}

// isZero reports whether p holds zeros only.
func isZero(p []byte) bool {
	for len(p) >= 32 {
		if be.Uint64(p)|be.Uint64(p[8:])|be.Uint64(p[16:])|be.Uint64(p[24:]) != 0 {
			return false
		}
		p = p[32:]
	}
	for _, c := range p {
		if c != 0 {
			return false
		}
	}
	return true
}
