package fat

import (
	"fmt"
	"io/fs"
	"slices"
	"time"
	"unicode/utf16"

	"remaster/pkg/disk"
)

// Offsets in a slot of a folder: specification, "FAT 32 Byte Directory Entry
// Structure" and "FAT Long Directory Entries".
const (
	slotAttr      = 0x0B
	slotCase      = 0x0C
	slotMadeTenth = 0x0D
	slotMadeTime  = 0x0E
	slotMadeDate  = 0x10
	slotReadDate  = 0x12
	slotHigh      = 0x14 // upper half of the first cluster, FAT32 only
	slotTime      = 0x16
	slotDate      = 0x18
	slotLow       = 0x1A
	slotBytes     = 0x1C // u32, size in bytes

	attrReadOnly = 0x01
	attrVolume   = 0x08
	attrDir      = 0x10
	attrArchive  = 0x20
	attrLong     = 0x0F
	attrLongMask = 0x3F

	slotEnd  = 0x00 // in first place: this slot and all behind it are free
	slotFree = 0xE5

	longLast  = 0x40 // flag of the slot with the end of a name
	longSum   = 0x0D
	longChars = 13
	maxLong   = 20 // slots of a name of 255 characters
)

// longPlaces are the offsets of the UTF-16 units in the slot of a long name.
var longPlaces = [longChars]int{1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30}

// Entry is a file or folder of a volume.
type Entry struct {
	Name     string
	Mode     fs.FileMode // 0644 or a folder of 0755; without the write bits if marked read-only
	Size     int64       // bytes; 0 for a folder
	ModTime  time.Time   // to two seconds, taken for UTC
	alias    string      // the short name
	first    uint32      // first cluster; 0: none
	dir      *dir        // where its slots are; nil for the root
	slot, n  int         // slots [slot, slot+n) of dir, the short one last
	rawShort [11]byte
}

// IsDir reports whether the entry is a folder.
func (e *Entry) IsDir() bool { return e.Mode.IsDir() }

// dir is the bytes of a folder and where they lie.
type dir struct {
	data []byte
	runs []run // none: the fixed root folder
	b    *boot
	self uint32 // first cluster as ".." of a folder in it names it
}

// offset returns the place on the volume of the byte at off.
func (d *dir) offset(off int64) int64 {
	if len(d.runs) == 0 {
		return d.b.rootOff + off
	}
	for _, r := range d.runs {
		if n := r.n * d.b.cluster; off >= n {
			off -= n
			continue
		}
		return d.b.clusterOff(r.first) + off
	}
	panic("fat: offset behind the end of a folder")
}

// readDir reads the folder e.
func (f *FS) readDir(e *Entry) (*dir, error) {
	d := &dir{b: f.boot, self: e.first}
	if e.dir == nil {
		d.self = 0
		if f.boot.bits != 32 {
			d.data = make([]byte, f.boot.rootSize)
			return d, disk.ReadFull(f.d, d.data, f.boot.rootOff)
		}
	}
	runs, ended, err := f.table.chain(e.first, max(1, maxDirSize/f.boot.cluster))
	if err != nil {
		return nil, err
	}
	if !ended {
		return nil, fmt.Errorf("fat: a folder is longer than %d bytes: %w", maxDirSize, disk.ErrCorrupt)
	}
	d.runs = runs
	d.data = make([]byte, count(runs)*f.boot.cluster)
	at := int64(0)
	for _, r := range runs {
		n := r.n * f.boot.cluster
		if err := disk.ReadFull(f.d, d.data[at:at+n], f.boot.clusterOff(r.first)); err != nil {
			return nil, fmt.Errorf("fat: folder: %w", err)
		}
		at += n
	}
	return d, nil
}

// entries returns what the folder holds, without "." and "..", volume labels and what
// is left of deleted names.
func (d *dir) entries() []*Entry {
	var out []*Entry
	var long longName
	for i := 0; i*slotSize < len(d.data); i++ {
		s := d.data[i*slotSize:][:slotSize]
		switch {
		case s[0] == slotEnd:
			return out
		case s[0] == slotFree:
			long = longName{}
			continue
		case s[slotAttr]&attrLongMask == attrLong:
			long.add(s, i)
			continue
		case s[slotAttr]&attrVolume != 0:
			long = longName{}
			continue
		}
		e := d.entry(s, i, long)
		long = longName{}
		if goodName(e.Name) && e.alias != "." && e.alias != ".." {
			out = append(out, e)
		}
	}
	return out
}

func (d *dir) entry(s []byte, i int, long longName) *Entry {
	e := &Entry{
		Mode: 0o644, Size: int64(le.Uint32(s[slotBytes:])), alias: shortName(s), dir: d, slot: i, n: 1,
		ModTime:  decodeTime(le.Uint16(s[slotDate:]), le.Uint16(s[slotTime:])),
		first:    uint32(le.Uint16(s[slotLow:])),
		rawShort: [11]byte(s[:11]),
	}
	if d.b.bits == 32 {
		e.first |= uint32(le.Uint16(s[slotHigh:])) << 16
	}
	if s[slotAttr]&attrDir != 0 {
		e.Mode, e.Size = fs.ModeDir|0o755, 0
	} else if s[slotAttr]&attrReadOnly != 0 {
		e.Mode = 0o444
	}
	e.Name = e.alias
	if name := long.of(s); goodName(name) {
		e.Name, e.slot, e.n = name, long.start, i-long.start+1
	}
	return e
}

// longName collects the slots of a long name.
type longName struct {
	parts [][]uint16 // the last part first
	start int        // slot of the first of them
	next  byte       // number that the next slot must have
	sum   byte
}

func (l *longName) add(s []byte, i int) {
	if s[0]&longLast != 0 {
		*l = longName{start: i, next: s[0] &^ longLast, sum: s[longSum]}
	}
	if l.next == 0 || l.next > maxLong || s[0]&^longLast != l.next || s[longSum] != l.sum {
		*l = longName{}
		return
	}
	l.next--
	part := make([]uint16, 0, longChars)
	for _, off := range longPlaces {
		u := le.Uint16(s[off:])
		if u == 0 {
			break
		}
		part = append(part, u)
	}
	l.parts = append(l.parts, part)
}

// of returns the long name that belongs to the short slot s, or "".
func (l *longName) of(s []byte) string {
	if len(l.parts) == 0 || l.next != 0 || l.sum != shortSum(s) {
		return ""
	}
	var units []uint16
	for _, p := range slices.Backward(l.parts) {
		units = append(units, p...)
	}
	if len(units) > 255 {
		return ""
	}
	return string(utf16.Decode(units))
}

// decodeTime reads a date and a time of a slot; a day that is none gives the epoch.
func decodeTime(date, clock uint16) time.Time {
	y, m, d := 1980+int(date>>9), time.Month(date>>5&15), int(date&31)
	if m < 1 || m > 12 || d < 1 {
		return time.Unix(0, 0).UTC()
	}
	return time.Date(y, m, d, int(clock>>11), int(clock>>5&63), int(clock&31)*2, 0, time.UTC)
}

// encodeTime is the inverse; times that FAT can't hold become the nearest.
func encodeTime(t time.Time) (date, clock uint16) {
	t = t.UTC()
	if t.Year() < 1980 {
		t = time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC)
	} else if t.Year() > 2107 {
		t = time.Date(2107, 12, 31, 23, 59, 58, 0, time.UTC)
	}
	return uint16((t.Year()-1980)<<9 | int(t.Month())<<5 | t.Day()), uint16(t.Hour()<<11 | t.Minute()<<5 | t.Second()/2)
}
