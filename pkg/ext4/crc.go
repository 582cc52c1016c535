package ext4

import "hash/crc32"

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// crc32c is the kernel's crc32c: the seed goes in as it is, and the result is not
// inverted.
func crc32c(seed uint32, p []byte) uint32 { return ^crc32.Update(^seed, castagnoli, p) }

// crc32cHole is crc32c over p with the n bytes at off taken for zeros.
func crc32cHole(seed uint32, p []byte, off, n int) uint32 {
	var zero [8]byte
	c := crc32c(seed, p[:off])
	c = crc32c(c, zero[:n])
	return crc32c(c, p[off+n:])
}

func crc32c32(seed, v uint32) uint32 {
	return crc32c(seed, []byte{byte(v), byte(v >> 8), byte(v >> 16), byte(v >> 24)})
}

// crc16Table is for the polynomial 0x8005, bits reflected: lib/crc16 of Linux.
var crc16Table = func() (t [256]uint16) {
	for i := range t {
		c := uint16(i)
		for range 8 {
			if c&1 != 0 {
				c = c>>1 ^ 0xA001
			} else {
				c >>= 1
			}
		}
		t[i] = c
	}
	return t
}()

func crc16(seed uint16, p []byte) uint16 {
	for _, b := range p {
		seed = seed>>8 ^ crc16Table[byte(seed)^b]
	}
	return seed
}
