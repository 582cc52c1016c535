package ext4

import "math/bits"

// The hashes of names that an index is sorted by: the kernel's documentation, "Hash
// Tree Directories", and e2fsprogs' lib/ext2fs/dirhash. They are MD4 and TEA cut
// short, and one older.

// dirHash computes the hash of a name, version as it stands in the index. The lowest
// bit of major is always clear; minor orders names of equal major. ok is false if the
// version is unknown.
func (s *super) dirHash(version byte, name []byte) (major, minor uint32, ok bool) {
	buf := [4]uint32{0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476}
	if s.hashSeed != [4]uint32{} {
		buf = s.hashSeed
	}
	switch version {
	case dxHashLegacy:
		major = legacyHash(name, s.unsignedHash)
	case dxHashHalfMD4:
		for p := name; ; p = p[32:] {
			var in [8]uint32
			hashWords(in[:], p, s.unsignedHash)
			halfMD4(&buf, &in)
			if len(p) <= 32 {
				break
			}
		}
		major, minor = buf[1], buf[2]
	case dxHashTea:
		for p := name; ; p = p[16:] {
			var in [4]uint32
			hashWords(in[:], p, s.unsignedHash)
			tea(&buf, &in)
			if len(p) <= 16 {
				break
			}
		}
		major, minor = buf[0], buf[1]
	default:
		return 0, 0, false
	}
	major &^= hashContinued
	if major == hashEOF32<<1 {
		major = (hashEOF32 - 1) << 1
	}
	return major, minor, true
}

// hashChar widens a byte as C's char does on the machine that made the file system.
func hashChar(c byte, unsigned bool) uint32 {
	if unsigned {
		return uint32(c)
	}
	return uint32(int32(int8(c)))
}

// hashWords packs the first bytes of p into words, the first byte highest, and pads
// with the length of p.
func hashWords(out []uint32, p []byte, unsigned bool) {
	pad := uint32(len(p)) & 0xFF
	pad |= uint32(len(p)) << 8
	pad |= pad << 16
	if len(p) > 4*len(out) {
		p = p[:4*len(out)]
	}
	for i := range out {
		v := pad
		for j := 4 * i; j < min(4*i+4, len(p)); j++ {
			v = hashChar(p[j], unsigned) + v<<8
		}
		out[i] = v
	}
}

func legacyHash(name []byte, unsigned bool) uint32 {
	h0, h1 := uint32(0x12a3fe2d), uint32(0x37abe8f9)
	for _, c := range name {
		h := h1 + (h0 ^ hashChar(c, unsigned)*7152373)
		if h>>31 != 0 {
			h -= 0x7fffffff
		}
		h1, h0 = h0, h
	}
	return h0 << 1
}

func tea(buf *[4]uint32, k *[4]uint32) {
	x, y, sum := buf[0], buf[1], uint32(0)
	for range 16 {
		sum += 0x9E3779B9
		x += (y<<4 + k[0]) ^ (y + sum) ^ (y>>5 + k[1])
		y += (x<<4 + k[2]) ^ (x + sum) ^ (x>>5 + k[3])
	}
	buf[0] += x
	buf[1] += y
}

// halfMD4 is three rounds of eight steps, RFC 1320's functions and constants.
func halfMD4(buf *[4]uint32, in *[8]uint32) {
	rounds := [3]struct {
		add   uint32
		order [8]int
		rot   [4]int
		f     func(x, y, z uint32) uint32
	}{
		{0, [8]int{0, 1, 2, 3, 4, 5, 6, 7}, [4]int{3, 7, 11, 19}, func(x, y, z uint32) uint32 { return z ^ x&(y^z) }},
		{0x5A827999, [8]int{1, 3, 5, 7, 0, 2, 4, 6}, [4]int{3, 5, 9, 13}, func(x, y, z uint32) uint32 { return x&y + (x^y)&z }},
		{0x6ED9EBA1, [8]int{3, 7, 2, 6, 1, 5, 0, 4}, [4]int{3, 9, 11, 15}, func(x, y, z uint32) uint32 { return x ^ y ^ z }},
	}
	v := *buf
	for _, r := range rounds {
		for i, k := range r.order {
			// The word that changes goes a, d, c, b.
			a := (8 - i) % 4
			b, c, d := (a+1)%4, (a+2)%4, (a+3)%4
			v[a] = bits.RotateLeft32(v[a]+r.f(v[b], v[c], v[d])+in[k]+r.add, r.rot[i%4])
		}
	}
	for i := range buf {
		buf[i] += v[i]
	}
}
