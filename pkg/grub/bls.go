package grub

import "strings"

// Reading is a way to read the files of the boot loader specification.
type Reading string

// The readings of an entry. Fixed or not, both are in use, and they differ in which
// options count.
const (
	// ReadingRHEL is that of blscfg in RHEL 8's GRUB: the first options line counts, a
	// key ends at the first space (at a tab only where the line has no space), and the
	// first line without a value ends the file. Without options, $default_kernelopts
	// is taken.
	ReadingRHEL Reading = "rhel"
	// ReadingSpec is that of the Boot Loader Specification: all options lines are
	// joined, keys end at any white space, odd lines are passed over.
	ReadingSpec Reading = "spec"
)

// BLS is an entry of the boot loader specification, uapi-group.org/specifications
// "Boot Loader Specification", type 1. Bytes that are not edited stay as they are.
type BLS struct {
	text  string
	lines []blsLine
}

// blsLine is a line with a key as either reading sees it. Offsets are bytes in the text.
type blsLine struct {
	no         int    // from 1
	key        string // as the specification reads it; "" for blank, comment and odd lines
	rhelKey    string // as RHEL's GRUB reads it; "" behind the line that ends the file for it
	start, end int    // of the value; end is before the line's end and trailing CRs
	rhelStart  int    // of the value in RHEL's reading
	keyEnd     int
	stop       bool // RHEL's GRUB stops here
	off, next  int  // of the line and of the one behind it
}

// ParseBLS reads an entry. Any text is one; see [BLS.Bootable].
func ParseBLS(data []byte) *BLS {
	b := &BLS{text: string(data)}
	stopped := false
	for off, no := 0, 1; off < len(b.text); no++ {
		l := blsLine{no: no, off: off, next: len(b.text)}
		if i := strings.IndexByte(b.text[off:], '\n'); i >= 0 {
			l.next = off + i + 1
		}
		off = l.next
		raw := strings.TrimRight(b.text[l.off:l.next], "\r\n")
		body := strings.TrimLeft(raw, " \t")
		indent := len(raw) - len(body)
		l.end = l.off + len(raw)
		l.start, l.keyEnd, l.rhelStart = l.end, l.end, l.end
		if !strings.HasPrefix(body, "#") {
			// GRUB looks for a space first, and for a tab only if there is none.
			sep := strings.IndexByte(body, ' ')
			if sep < 0 {
				sep = strings.IndexByte(body, '\t')
			}
			l.stop = sep < 0 || sep+1 >= len(body)
			if stopped = stopped || l.stop; !stopped {
				l.rhelKey = body[:sep]
				v := strings.TrimLeft(body[sep:], " \t")
				l.rhelStart = l.end - len(v)
			}
			if i := strings.IndexAny(body, " \t"); i > 0 {
				l.key = body[:i]
				l.keyEnd = l.off + indent + i
				l.start = l.end - len(strings.TrimLeft(body[i:], " \t"))
			} else if body != "" {
				l.key = body
			}
		}
		b.lines = append(b.lines, l)
	}
	return b
}

// Bytes returns the text, as it was parsed where it was not edited.
func (b *BLS) Bytes() []byte { return []byte(b.text) }

// field is a value and the line that it is on.
type field struct {
	text string
	line int
}

// fields returns the values of a key, in order.
func (b *BLS) fields(key string, r Reading) []field {
	var out []field
	for _, l := range b.lines {
		switch {
		case r == ReadingRHEL && l.rhelKey == key:
			out = append(out, field{b.text[l.rhelStart:l.end], l.no})
		case r == ReadingSpec && l.key == key && l.start < l.end:
			out = append(out, field{b.text[l.start:l.end], l.no})
		}
	}
	return out
}

// Values returns the values of a key, in order.
func (b *BLS) Values(key string, r Reading) []string {
	var out []string
	for _, f := range b.fields(key, r) {
		out = append(out, f.text)
	}
	return out
}

// Value returns the first value of a key, or "".
func (b *BLS) Value(key string, r Reading) string {
	if v := b.fields(key, r); len(v) > 0 {
		return v[0].text
	}
	return ""
}

// Bootable says whether the entry names a kernel: without one it is not in the menu.
func (b *BLS) Bootable(r Reading) bool { return b.Value("linux", r) != "" }

// options returns the options lines that count in a reading.
func (b *BLS) options(r Reading) []field {
	f := b.fields("options", r)
	if r == ReadingRHEL && len(f) > 1 {
		f = f[:1]
	}
	return f
}

// applyOptions does an edit of the options, so that both readings of the entry get it:
// deletions on every options line, additions on the first, which RHEL's GRUB reads. An
// entry without options gets a line that begins with base, which is what the entry
// boots with now. With front the additions stand first. It says whether the text changed.
func (b *BLS) applyOptions(e Edit, base string, front bool) bool {
	old := b.text
	b.dropEmptyOptions()
	b.reachOptions()
	first := true
	var sp []splice
	for _, l := range b.lines {
		if l.key != "options" {
			continue
		}
		c := ParseCmdline(b.text[l.start:l.end])
		if first {
			if front {
				c.Apply(e.without())
				head := ParseCmdline("")
				head.Apply(e)
				c = ParseCmdline(strings.TrimSpace(head.String() + " " + c.String()))
			} else {
				c.Apply(e)
			}
			if b.text[l.keyEnd] != ' ' && strings.Contains(c.String(), " ") {
				// A tab behind the key, and a space further on, where RHEL's GRUB would
				// take the key to end.
				sp = append(sp, splice{l.keyEnd, l.start, " "})
			}
			first = false
		} else {
			c.Apply(e.without())
			if len(c.words) == 0 {
				sp = append(sp, splice{l.off, l.next, ""})
				continue
			}
		}
		if c.String() != b.text[l.start:l.end] {
			sp = append(sp, splice{l.start, l.end, c.String()})
		}
	}
	if first {
		c := ParseCmdline(base)
		if c.Apply(e); c.String() != "" {
			sp = append(sp, b.insertLine("options "+c.String()))
		}
	}
	if len(sp) > 0 {
		*b = *ParseBLS([]byte(applySplices(b.text, sp)))
	}
	return b.text != old
}

// dropEmptyOptions removes options lines without a value: the first one would hide what
// comes after it from RHEL's GRUB.
func (b *BLS) dropEmptyOptions() {
	var sp []splice
	for _, l := range b.lines {
		if l.key == "options" && l.start >= l.end {
			sp = append(sp, splice{l.off, l.next, ""})
		}
	}
	*b = *ParseBLS([]byte(applySplices(b.text, sp)))
}

// reachOptions turns the lines that end the file for RHEL's GRUB into comments where
// they hide the options of an entry that it shows.
func (b *BLS) reachOptions() {
	if !b.Bootable(ReadingRHEL) {
		return
	}
	last := -1
	for i, l := range b.lines {
		if l.key == "options" && l.start < l.end {
			last = i
			break
		}
	}
	var sp []splice
	for i := range max(last, 0) {
		if b.lines[i].stop {
			sp = append(sp, splice{b.lines[i].off, b.lines[i].off, "#"})
		}
	}
	*b = *ParseBLS([]byte(applySplices(b.text, sp)))
}

// insertLine returns the splice that adds a line behind the last one that RHEL's GRUB
// reads, with the line end of that one.
func (b *BLS) insertLine(s string) splice {
	at, eol := 0, "\n"
	for _, l := range b.lines {
		if l.stop {
			break
		}
		at = l.next
		if strings.HasSuffix(b.text[l.off:l.next], "\r\n") {
			eol = "\r\n"
		} else if !strings.HasSuffix(b.text[:l.next], "\n") {
			return splice{at, at, eol + s}
		}
	}
	return splice{at, at, s + eol}
}
