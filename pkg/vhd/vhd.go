// Package vhd reads, edits in place and writes VHD images ("vpc" in qemu's words):
// fixed and dynamic disks.
//
//   - [Open] gives the guest's disk inside a VHD.
//   - [Image.Rewrite] carries edits of the guest's disk into the container: blocks
//     that exist change in place, new ones take the place of the tail footer, which
//     moves behind them.
//   - [Fixed] and [Dynamic] make a VHD of any disk as a computed Blob: the layout is
//     known at once, the bytes are read when they are asked for, in any order.
//   - [Check] reads a container as strictly as this package can.
//
// Readers of VHD disagree: on the size of the disk (geometry or size field) and on
// whether the sector bitmap of a block counts. What is written here means the same to
// all of them. What is read is either what qemu reads, or refused where others would
// see different bytes; see [Image.ReadAt] and [Info.SizeRule].
//
// Fields and values are those of the Virtual Hard Disk Image Format Specification,
// version 1.0 (Microsoft, October 2006); numbers in it are big-endian. Differencing
// disks are refused, and no parent locator is ever followed.
package vhd

import (
	"bytes"
	"encoding/binary"
	"time"
)

// Sizes in bytes.
const (
	sectorSize = 512
	footerSize = 512  // "Hard Disk Footer Format"
	headerSize = 1024 // "Dynamic Disk Header Format"
	// BlockSize is the block size of the dynamic disks that are written here, the
	// specification's default.
	BlockSize = 2 << 20
	// MaxSize is the largest disk that readers take: qemu and Hyper-V stop at 2040 GiB.
	MaxSize = 2040 << 30
)

// Values of the footer and the dynamic header.
const (
	footerCookie  = "conectix"
	headerCookie  = "cxsparse"
	version1      = 0x00010000
	noOffset      = 0xFFFFFFFFFFFFFFFF // "data offset" of a fixed disk and of a header
	noOffset32    = 0xFFFFFFFF         // the same where the document's 32 bits were taken literally
	featureBits   = 0x3                // temporary, and a bit that is always set
	absentBlock   = 0xFFFFFFFF         // BAT entry of a block that reads as zeros
	typeFixed     = 2
	typeDynamic   = 3
	typeDiffering = 4
)

// Limits on what a header may ask for.
const (
	minBlockSize  = 4096 // below, a bitmap is less than a byte, and qemu takes it for none at all
	maxBlockSize  = 256 << 20
	maxBATEntries = 1 << 22 // 16 MiB of table: 2 TiB in blocks of 512 KiB
	maxTableSpan  = 2 << 40 // bytes of disk that a table may have entries for
)

// footer is the hard disk footer: the last 512 bytes of any VHD, and a copy as the
// first 512 bytes of a dynamic one.
type footer struct {
	Cookie         [8]byte
	Features       uint32
	Version        uint32
	DataOffset     uint64 // of the dynamic header, in bytes
	Timestamp      uint32 // seconds since 2000-01-01 00:00 UTC
	CreatorApp     [4]byte
	CreatorVersion uint32 // major and minor, 16 bits each
	CreatorOS      [4]byte
	OriginalSize   uint64 // bytes
	CurrentSize    uint64 // bytes
	Cylinders      uint16
	Heads          uint8
	Sectors        uint8 // per track
	Type           uint32
	Checksum       uint32 // see checksum
	UniqueID       [16]byte
	SavedState     uint8
	_              [427]byte
}

const footerChecksumAt = 64

// header is the dynamic disk header.
type header struct {
	Cookie      [8]byte
	DataOffset  uint64 // unused, all ones
	TableOffset uint64 // of the block allocation table (BAT), in bytes
	Version     uint32
	MaxEntries  uint32 // of the BAT
	BlockSize   uint32 // bytes of data in a block
	Checksum    uint32
	_           [16 + 4 + 4 + 512 + 8*24]byte // the parent's, of a differencing disk
	_           [256]byte
}

const headerChecksumAt = 36

// epoch is where timestamps start.
var epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// checksum is the one's complement of the sum of all bytes but those of the checksum
// itself, which lies at off.
func checksum(b []byte, off int) uint32 {
	var sum uint32
	for i, c := range b {
		if i < off || i >= off+4 {
			sum += uint32(c)
		}
	}
	return ^sum
}

// encode returns v with its checksum filled in.
func encode(v any, size, checksumAt int) []byte {
	b, err := binary.Append(make([]byte, 0, size), binary.BigEndian, v)
	if err != nil || len(b) != size {
		panic("vhd: structure without a fixed size") // a constant of this file is wrong
	}
	binary.BigEndian.PutUint32(b[checksumAt:], checksum(b, checksumAt))
	return b
}

// decode fills v, which is a fixed size structure not larger than b.
func decode(b []byte, v any) {
	if _, err := binary.Decode(b, binary.BigEndian, v); err != nil {
		panic("vhd: structure without a fixed size")
	}
}

// bitmapSize returns the size of the sector bitmap before the data of a block: a bit
// for each sector, the first in the most significant bit, padded to a sector.
func bitmapSize(blockSize int64) int64 { return roundUp(blockSize/sectorSize/8, sectorSize) }

// roundUp returns n, which is not negative, rounded up to a multiple of unit.
func roundUp(n, unit int64) int64 { return (n + unit - 1) / unit * unit }

var zeros [64 << 10]byte

// isZero reports whether p holds zeros only.
func isZero(p []byte) bool {
	for len(p) > len(zeros) {
		if !bytes.Equal(p[:len(zeros)], zeros[:]) {
			return false
		}
		p = p[len(zeros):]
	}
	return bytes.Equal(p, zeros[:len(p)])
}
