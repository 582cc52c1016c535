package sandbox

import "hash/crc64"

// The checksum of OSS is CRC-64/XZ: ECMA-182's polynomial, reflected, with all bits
// inverted before and after, which is what hash/crc64 computes with this table.
var crcTable = crc64.MakeTable(crc64.ECMA)

// crcPowers has x^(2^i) modulo the polynomial. In this representation the highest bit is
// the coefficient of x^0.
var crcPowers = func() (p [67]uint64) {
	p[0] = 1 << 62
	for i := 1; i < len(p); i++ {
		p[i] = crcMultiply(p[i-1], p[i-1])
	}
	return p
}()

// crcMultiply multiplies two polynomials modulo the one of the checksum.
func crcMultiply(a, b uint64) uint64 {
	p := uint64(0)
	for ; a != 0; a <<= 1 {
		if a>>63 != 0 {
			p ^= b
		}
		if b&1 != 0 {
			b = b>>1 ^ crc64.ECMA
		} else {
			b >>= 1
		}
	}
	return p
}

// crcShift returns x^(8n), by which a checksum is multiplied when n bytes follow.
func crcShift(n int64) uint64 {
	p := uint64(1) << 63
	for i := 3; n > 0; n, i = n>>1, i+1 {
		if n&1 != 0 {
			p = crcMultiply(crcPowers[i], p)
		}
	}
	return p
}

// crcCombine returns the checksum of A followed by B of theirs and of B's length.
func crcCombine(a, b uint64, lenB int64) uint64 { return crcMultiply(crcShift(lenB), a) ^ b }
