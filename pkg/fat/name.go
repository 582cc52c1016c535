package fat

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"unicode/utf16"
)

// cp437 is what the bytes from 0x80 on mean in a short name: the code page that Linux
// assumes too.
const cp437 = "ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u00a0"

var oem = []rune(cp437)

func decodeOEM(p []byte) string {
	var b strings.Builder
	for _, c := range p {
		if c < 0x80 {
			b.WriteByte(c)
		} else {
			b.WriteRune(oem[c-0x80])
		}
	}
	return b.String()
}

// shortName returns the 8.3 name of a slot. The flags at 0x0C say whether Windows NT
// wrote its parts in lower case.
func shortName(slot []byte) string {
	raw := [11]byte(slot[:11])
	if raw[0] == 0x05 {
		raw[0] = 0xE5 // 0xE5 itself marks a free slot
	}
	base := strings.TrimRight(decodeOEM(raw[:8]), " ")
	ext := strings.TrimRight(decodeOEM(raw[8:]), " ")
	if slot[slotCase]&0x08 != 0 {
		base = strings.ToLower(base)
	}
	if slot[slotCase]&0x10 != 0 {
		ext = strings.ToLower(ext)
	}
	if ext != "" {
		return base + "." + ext
	}
	return base
}

// shortSum is the checksum by which the slots of a long name know their short one.
func shortSum(raw []byte) (sum byte) {
	for _, c := range raw[:11] {
		sum = sum>>1 | sum<<7
		sum += c
	}
	return sum
}

// goodName reports whether a name read from a slot can be a component of a path.
func goodName(name string) bool {
	return name != "" && name != "." && name != ".." && !strings.ContainsAny(name, "/\x00")
}

// checkNew fails for a name that may not be given to a new file.
func checkNew(name string) error {
	switch {
	case !goodName(name) || strings.ContainsAny(name, `\:*?"<>|`) || strings.HasSuffix(name, ".") || strings.HasSuffix(name, " "):
		return fmt.Errorf("%q cannot be a name on FAT: %w", name, fs.ErrInvalid)
	case len(utf16.Encode([]rune(name))) > 255:
		return fmt.Errorf("a name of %d bytes is too long: %w", len(name), fs.ErrInvalid)
	}
	for _, r := range name {
		if r < 0x20 || r == 0xFFFD {
			return fmt.Errorf("%q cannot be a name on FAT: %w", name, fs.ErrInvalid)
		}
	}
	return nil
}

// shortChar returns the byte that stands for r in a short name, and whether it says the
// same but for its case.
func shortChar(r rune) (c byte, same bool) {
	switch {
	case r >= 'a' && r <= 'z':
		return byte(r - 'a' + 'A'), true
	case r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r < 0x80 && strings.ContainsRune("$%'-_@~`!(){}^#&", r):
		return byte(r), true
	}
	return '_', false
}

// alias makes the short name for a new name. long says that the name needs a long one
// beside it. taken tells which short names the folder has ("Generating 8.3 names", the
// basis-name algorithm of the specification).
func alias(name string, taken func([11]byte) bool) (short [11]byte, long bool, err error) {
	for i := range short {
		short[i] = ' '
	}
	trimmed := strings.TrimLeft(name, ". ")
	base, ext := trimmed, ""
	if i := strings.LastIndexByte(trimmed, '.'); i > 0 {
		base, ext = trimmed[:i], trimmed[i+1:]
	}
	fits := trimmed == name
	fill := func(dst []byte, s string) (n int) {
		for _, r := range s {
			if r == ' ' || r == '.' {
				fits = false
				continue
			}
			c, same := shortChar(r)
			if !same {
				fits = false
			}
			if n == len(dst) {
				fits = false
				break
			}
			dst[n] = c
			n++
		}
		return n
	}
	n := fill(short[:8], base)
	fill(short[8:], ext)
	if n == 0 {
		return short, false, fmt.Errorf("no short name for %q: %w", name, fs.ErrInvalid)
	}
	if fits && !taken(short) {
		return short, shortName(append(short[:], 0, 0)) != name, nil
	}
	for i := 1; i < 1e6; i++ {
		tail := fmt.Sprintf("~%d", i)
		try := short
		at := min(n, 8-len(tail))
		copy(try[at:8], tail+"       ")
		if !taken(try) {
			return try, true, nil
		}
	}
	return short, false, errors.New("no short name is left")
}

// longSlots returns the slots of a long name, as they lie before the short one: the
// last part first.
func longSlots(name string, short [11]byte) []byte {
	units := utf16.Encode([]rune(name))
	n := (len(units) + longChars - 1) / longChars
	out := make([]byte, n*slotSize)
	for i := range n {
		s := out[(n-1-i)*slotSize:][:slotSize]
		s[0] = byte(i + 1)
		if i == n-1 {
			s[0] |= longLast
		}
		s[slotAttr], s[longSum] = attrLong, shortSum(short[:])
		for k, off := range longPlaces {
			u := uint16(0xFFFF) // padding
			switch at := i*longChars + k; {
			case at < len(units):
				u = units[at]
			case at == len(units):
				u = 0
			}
			le.PutUint16(s[off:], u)
		}
	}
	return out
}
