package importer

import (
	"fmt"
	"hash/crc64"
	"sync"

	"remaster/pkg/disk"
)

// OSS's checksum is CRC-64/XZ: the polynomial of ECMA-182 (annex B), bits reflected, all
// ones before and after. A CRC without the ones ("raw" below) is a polynomial over GF(2)
// modulo that one, so that
//
//   - bytes behind a message multiply its CRC by x⁸ each, whatever they are; and
//   - the raw CRC of the difference of two messages of one length is the difference of
//     their CRCs.
//
// With x^n computed by squaring, the CRC of an object that differs from another one in a
// few places follows from the other's CRC and from these places.

var crcTable = crc64.MakeTable(crc64.ECMA)

// crcTimes returns the product of two polynomials modulo the CRC's. The coefficient of
// x^0 is the highest bit.
func crcTimes(a, b uint64) uint64 {
	var p uint64
	for m := uint64(1) << 63; a != 0; m >>= 1 {
		if a&m != 0 {
			p ^= b
			a ^= m
		}
		carry := b & 1
		b >>= 1
		if carry != 0 {
			b ^= crc64.ECMA
		}
	}
	return p
}

// crcPowers holds x^8, x^16, x^32, …: what 2^i bytes multiply a CRC by.
var crcPowers = sync.OnceValue(func() (t [63]uint64) {
	t[0] = 1 << (63 - 8)
	for i := 1; i < len(t); i++ {
		t[i] = crcTimes(t[i-1], t[i-1])
	}
	return t
})

// crcShift returns the raw CRC of a message with the raw CRC crc and n zeros behind it,
// in O(log n).
func crcShift(crc uint64, n int64) uint64 {
	if crc == 0 {
		return 0
	}
	t := crcPowers()
	for i := 0; n > 0; i, n = i+1, n>>1 {
		if n&1 != 0 {
			crc = crcTimes(t[i], crc)
		}
	}
	return crc
}

// crcRaw continues a raw CRC with the bytes of p.
func crcRaw(crc uint64, p []byte) uint64 { return ^crc64.Update(^crc, crcTable, p) }

// CombineCRC64 returns the CRC-64 of the concatenation of two messages with the CRCs a
// and b, of which the second has lenB bytes.
func CombineCRC64(a, b uint64, lenB int64) uint64 { return crcShift(a, lenB) ^ b }

// CRC64 returns the CRC-64 of the bytes r of b. It reads 256 KiB at a time.
func CRC64(b disk.Blob, r disk.Range) (uint64, error) {
	var crc uint64
	err := eachChunk(r, func(p []byte, off int64) error {
		err := disk.ReadFull(b, p, off)
		crc = crc64.Update(crc, crcTable, p)
		return err
	})
	return crc, err
}

// eachChunk calls f with a buffer for each piece of r.
func eachChunk(r disk.Range, f func(p []byte, off int64) error) error {
	buf := chunks.Get().(*[]byte)
	defer chunks.Put(buf)
	for off := r.Off; off < r.End(); off += chunkSize {
		if err := f((*buf)[:min(chunkSize, r.End()-off)], off); err != nil {
			return err
		}
	}
	return nil
}

// chunkSize bytes of a blob are read at a time.
const chunkSize = 256 << 10

var chunks = sync.Pool{New: func() any { b := make([]byte, chunkSize); return &b }}

// sameUnit is the granularity in which patchedCRC64 finds bytes that were written, but
// not changed. It is the block size of nearly every guest.
const sameUnit = 4096

// patchedCRC64 returns the CRC-64 of out from crc, that of its base. Only what was
// written is read, from both. It also returns where out really differs from its base.
func patchedCRC64(crc uint64, out *disk.Overlay) (uint64, *disk.Ranges, error) {
	base := out.Base()
	old := chunks.Get().(*[]byte)
	defer chunks.Put(old)

	var delta uint64 // the raw CRC of the difference, up to the byte at
	var at int64
	var differs disk.Ranges
	for r := range out.ChangedIn(disk.Whole(base)) {
		delta, at = crcShift(delta, r.Off-at), r.End()
		err := eachChunk(r, func(p []byte, off int64) error {
			q := (*old)[:len(p)]
			if err := disk.ReadFull(base, q, off); err != nil {
				return fmt.Errorf("read the base: %w", err)
			}
			if err := disk.ReadFull(out, p, off); err != nil {
				return err
			}
			for i := range p {
				p[i] ^= q[i]
			}
			for i := int64(0); i < int64(len(p)); {
				n := min(sameUnit-(off+i)%sameUnit, int64(len(p))-i)
				if !disk.IsZero(p[i : i+n]) {
					differs.Add(disk.Range{Off: off + i, Len: n})
				}
				i += n
			}
			delta = crcRaw(delta, p)
			return nil
		})
		if err != nil {
			return 0, nil, err
		}
	}
	crc ^= crcShift(delta, base.Size()-at)
	tail := disk.Range{Off: base.Size(), Len: out.Size() - base.Size()}
	differs.Add(tail)
	sum, err := CRC64(out, tail)
	return CombineCRC64(crc, sum, tail.Len), &differs, err
}
