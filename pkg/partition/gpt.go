package partition

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"strings"

	"github.com/diskfs/go-diskfs/partition/gpt"

	"remaster/internal/hint"
	"remaster/pkg/disk"
)

// GPT numbers are those of the UEFI specification 2.10, §5.3; little-endian.
const (
	gptSignature  = "EFI PART"
	gptRevision   = 0x00010000
	gptHeaderSize = 92
	gptEntrySize  = 128
	// maxGPTArray limits the array of entries in bytes; the usual one has 16 KiB.
	maxGPTArray = 1 << 20
	// maxLBA is more than any disk has.
	maxLBA = 1 << 50
	// attrBootable is the "legacy BIOS bootable" attribute.
	attrBootable = 1 << 2
)

// Offsets of a header's fields.
const (
	gptCRC         = 16 // of the header, with this field zero
	gptMyLBA       = 24
	gptAlternate   = 32
	gptFirstUsable = 40
	gptLastUsable  = 48
	gptArrayLBA    = 72
	gptCount       = 80
	gptSizeOfEntry = 84
	gptArrayCRC    = 88
)

// sectorSizes are those that a GPT is looked for with.
var sectorSizes = []int64{512, 4096}

// gptCopy is one of the two copies of a GPT, checked. LBAs are in sectors.
type gptCopy struct {
	sector                  int64 // bytes
	lba, alternate          int64
	firstUsable, lastUsable int64
	arrayLBA, arraySectors  int64
	raw                     []byte // the header's sector
	array                   []byte // the entries
}

// errNoGPT says that there is no header at a place, not even a damaged one.
var errNoGPT = errors.New("no GPT header")

// readGPTCopy reads and checks the header at lba and its array of entries. What it
// returns lies within the disk.
func readGPTCopy(d disk.Disk, lba, sector int64) (*gptCopy, error) {
	if lba < 1 || lba >= d.Size()/sector {
		return nil, fmt.Errorf("LBA %d is not on the disk: %w", lba, errNoGPT)
	}
	raw := make([]byte, sector)
	if err := disk.ReadFull(d, raw, lba*sector); err != nil {
		return nil, err
	}
	if string(raw[:8]) != gptSignature {
		return nil, errNoGPT
	}
	le := binary.LittleEndian
	n := le.Uint32(raw[12:])
	if n < gptHeaderSize || int64(n) > sector {
		return nil, corrupt("header of %d bytes", n)
	}
	if got, want := le.Uint32(raw[gptCRC:]), headerCRC(raw[:n]); got != want {
		return nil, corrupt("header checksum is %#08x, should be %#08x", got, want)
	}
	if rev := le.Uint32(raw[8:]); rev != gptRevision || n != gptHeaderSize {
		return nil, unsupported("GPT revision %#x with a header of %d bytes", rev, n)
	}
	c := &gptCopy{sector: sector, raw: raw}
	last := d.Size()/sector - 1
	// Far less than 2^63, so that nothing below overflows.
	field := func(at int) int64 { return int64(min(le.Uint64(raw[at:]), maxLBA)) }
	c.lba, c.alternate, c.arrayLBA = field(gptMyLBA), field(gptAlternate), field(gptArrayLBA)
	c.firstUsable, c.lastUsable = field(gptFirstUsable), field(gptLastUsable)
	if c.lba != lba {
		return nil, corrupt("header at LBA %d says that it is at %d", lba, c.lba)
	}
	count, size := int64(le.Uint32(raw[gptCount:])), int64(le.Uint32(raw[gptSizeOfEntry:]))
	if size != gptEntrySize {
		return nil, unsupported("GPT entries of %d bytes", size)
	}
	if count == 0 || count*size > maxGPTArray {
		return nil, unsupported("GPT of %d entries", count)
	}
	c.arraySectors = (count*size + sector - 1) / sector
	if c.arrayLBA < 2 || c.arrayLBA+c.arraySectors-1 > last {
		return nil, corrupt("array of entries at LBA %d is not on the disk", c.arrayLBA)
	}
	c.array = make([]byte, count*size)
	if err := disk.ReadFull(d, c.array, c.arrayLBA*sector); err != nil {
		return nil, err
	}
	if got, want := le.Uint32(raw[gptArrayCRC:]), crc32.ChecksumIEEE(c.array); got != want {
		return nil, corrupt("checksum of the entries is %#08x, should be %#08x", want, got)
	}
	return c, c.checkUsable(last)
}

// checkUsable makes sure that the headers, the array and the space for partitions do not
// overlap, on a disk with LBAs up to last. The end of that space may lie behind the end
// of a disk that was cut short.
func (c *gptCopy) checkUsable(last int64) error {
	if c.firstUsable > min(c.lastUsable+1, last) {
		return corrupt("first usable LBA %d is behind the last, %d", c.firstUsable, min(c.lastUsable, last))
	}
	return apart([]area{
		{"protective MBR", disk.Range{Len: 1}},
		{"GPT header", disk.Range{Off: c.lba, Len: 1}},
		{"header of the other copy", disk.Range{Off: c.alternate, Len: 1}},
		{"array of entries", disk.Range{Off: c.arrayLBA, Len: c.arraySectors}},
		{"space for partitions", disk.Range{Off: c.firstUsable, Len: c.lastUsable - c.firstUsable + 1}},
	})
}

// headerCRC returns the checksum that a header should have.
func headerCRC(header []byte) uint32 {
	h := bytes.Clone(header)
	clear(h[gptCRC : gptCRC+4])
	return crc32.ChecksumIEEE(h)
}

// hasGPT reports whether there is a good copy of a GPT at one of the places where they
// should be, for any sector size.
func hasGPT(d disk.Disk) (bool, error) {
	for _, sector := range sectorSizes {
		for _, lba := range []int64{1, d.Size()/sector - 1} {
			_, err := readGPTCopy(d, lba, sector)
			if err == nil {
				return true, nil
			}
			if !unusable(err) && !errors.Is(err, disk.ErrUnsupported) {
				return false, err
			}
		}
	}
	return false, nil
}

// pickGPT returns the copy that counts: the primary one if it is good. If it is not,
// damage says why.
func pickGPT(d disk.Disk) (c *gptCopy, damage string, err error) {
	primary, damage, err := findGPT(d, func(int64) int64 { return 1 })
	if err != nil || primary != nil {
		return primary, "", err
	}
	backup, backupDamage, err := findGPT(d, func(sector int64) int64 { return d.Size()/sector - 1 })
	if err != nil || backup != nil {
		return backup, damage, err
	}
	return nil, "", hint.With(corrupt("the protective MBR announces a GPT, but neither the primary one (%s) nor its backup (%s) can be used", damage, backupDamage),
		"repair the table in a copy of the image with gdisk (recovery menu), or fetch the image again")
}

// findGPT reads the copy at the given LBA, which depends on the sector size. If it is
// not good, damage says why.
func findGPT(d disk.Disk, lba func(sector int64) int64) (found *gptCopy, damage string, err error) {
	damage = reason(errNoGPT)
	for _, sector := range sectorSizes {
		c, err := readGPTCopy(d, lba(sector), sector)
		switch {
		case err == nil && found != nil:
			return nil, "", corrupt("there are two GPTs, for sectors of %d and of %d bytes", found.sector, sector)
		case err == nil:
			found = c
		case !unusable(err):
			return nil, "", err // of reading, or a kind of GPT that is refused
		case !errors.Is(err, errNoGPT):
			damage = reason(err)
		}
	}
	return found, damage, nil
}

// reason returns the text of an error for a note.
func reason(err error) string {
	return strings.TrimSuffix(err.Error(), ": "+disk.ErrCorrupt.Error())
}

// unusable reports whether err says that a copy is not there or damaged, so that the
// other one may be tried.
func unusable(err error) bool { return errors.Is(err, errNoGPT) || errors.Is(err, disk.ErrCorrupt) }

// readGPT reads a GPT that the protective MBR in m announces.
func readGPT(d disk.Disk, m mbrSector) (*Table, error) {
	c, damage, err := pickGPT(d)
	if err != nil {
		return nil, err
	}
	t := &Table{Kind: GPT, SectorSize: c.sector, backupUsed: damage != ""}
	s := &storage{d: d}
	if t.backupUsed {
		t.note("the primary GPT is damaged (%s): its backup is used", damage)
		s.hidden = disk.Range{Off: c.sector, Len: c.sector}
	}
	g, err := gpt.Read(s, int(c.sector), int(c.sector))
	if s.err != nil {
		return nil, s.err
	}
	if err != nil {
		return nil, corrupt("GPT: %w", err)
	}
	if g.RecoveredFromBackup != t.backupUsed {
		return nil, corrupt("GPT: not clear which of its copies counts")
	}
	t.DiskID = strings.ToUpper(g.UUID())
	if err := t.addGPT(g, c, d.Size()); err != nil {
		return nil, err
	}
	if n := m.used(); n > 1 {
		t.note("hybrid MBR: what it has beside the protective entry is not used (%d)", n-1)
	}
	if t.backupUsed {
		return t, nil
	}
	return t, t.noteBackup(d, c)
}

// addGPT takes over the partitions that go-diskfs found, and checks them.
func (t *Table) addGPT(g *gpt.Table, c *gptCopy, size int64) error {
	var areas []area
	for _, p := range g.Partitions {
		if p.Start > p.End || p.End >= maxLBA {
			return corrupt("partition %d from LBA %d to %d", p.Index, p.Start, p.End)
		}
		part := Part{
			Number: p.Index, Type: string(p.Type), Name: p.Name, UUID: p.GUID,
			Attributes: p.Attributes, Bootable: p.Attributes&attrBootable != 0,
			Range: disk.Range{Off: int64(p.Start) * c.sector, Len: int64(p.End-p.Start+1) * c.sector},
		}
		t.Parts = append(t.Parts, part)
		areas = append(areas, area{part.String(), part.Range})
	}
	if err := t.onDisk(size); err != nil {
		return err
	}
	usable := disk.Range{Off: c.firstUsable * c.sector, Len: (c.lastUsable - c.firstUsable + 1) * c.sector}
	for _, p := range t.Parts {
		if p.Range.Intersect(usable) != p.Range {
			return corrupt("%v %v is not within the usable space %v", p, p.Range, usable)
		}
	}
	return apart(areas)
}

// noteBackup says what is odd about the backup of the good primary copy c.
func (t *Table) noteBackup(d disk.Disk, c *gptCopy) error {
	last := d.Size()/c.sector - 1
	if c.alternate > last {
		t.note("the backup GPT should be at byte %d, behind the end of the disk of %d bytes", c.alternate*c.sector, d.Size())
		return nil
	}
	b, err := readGPTCopy(d, c.alternate, c.sector)
	switch {
	case unusable(err):
		t.note("the backup GPT is damaged (%s): the primary one is used", reason(err))
	case err != nil:
		return fmt.Errorf("backup GPT: %w", err)
	case !bytes.Equal(b.array, c.array):
		t.note("the backup GPT differs from the primary one, which is used")
	case c.alternate != last:
		t.note("the backup GPT is not at the end of the disk, which is %d bytes larger than it was", (last-c.alternate)*c.sector)
	}
	return nil
}

// MoveBackupGPT makes the GPT t, which was read from a smaller disk, fit the disk w: the
// backup is written to its end, the primary header and the protective MBR told so, and
// the new space made usable. Partitions, names, identifiers and whatever else the headers
// hold stay as they are. The backup at the old place is left; it is not referred to any
// more. Nothing is written if the backup is at the end already.
//
// A table that is not a GPT has nothing at the end of the disk: nothing is done. A GPT
// whose primary copy is damaged is refused.
func MoveBackupGPT(t *Table, w disk.Writable) error {
	if t.Kind != GPT {
		return nil
	}
	if err := moveBackupGPT(t, w); err != nil {
		return fmt.Errorf("move backup GPT: %w", err)
	}
	return nil
}

func moveBackupGPT(t *Table, w disk.Writable) error {
	if t.backupUsed {
		return hint.With(unsupported("the primary GPT is damaged"), "repair the table in a copy of the image with gdisk (recovery menu)")
	}
	c, err := readGPTCopy(w, 1, t.SectorSize)
	if err != nil {
		return err
	}
	last := w.Size()/c.sector - 1
	if w.Size()%c.sector != 0 {
		return unsupported("a disk of %d bytes does not end with a sector of %d", w.Size(), c.sector)
	}
	if c.alternate == last {
		return nil
	}
	arrayLBA := last - c.arraySectors
	for _, p := range t.Parts {
		if p.Range.End() > arrayLBA*c.sector {
			return unsupported("%v ends at byte %d, where a disk of %d bytes has its backup GPT", p, p.Range.End(), w.Size())
		}
	}
	le := binary.LittleEndian
	primary := bytes.Clone(c.raw)
	le.PutUint64(primary[gptAlternate:], uint64(last))
	le.PutUint64(primary[gptLastUsable:], uint64(arrayLBA-1))
	backup := bytes.Clone(primary)
	le.PutUint64(backup[gptMyLBA:], uint64(last))
	le.PutUint64(backup[gptAlternate:], 1)
	le.PutUint64(backup[gptArrayLBA:], uint64(arrayLBA))
	for _, h := range [][]byte{primary, backup} {
		le.PutUint32(h[gptCRC:], headerCRC(h[:gptHeaderSize]))
	}
	for _, x := range []struct {
		p   []byte
		off int64
	}{{c.array, arrayLBA * c.sector}, {backup, last * c.sector}, {primary, c.sector}} {
		if _, err := w.WriteAt(x.p, x.off); err != nil {
			return err
		}
	}
	if err := growProtectiveMBR(w, last); err != nil {
		return err
	}
	for _, lba := range []int64{1, last} {
		if _, err := readGPTCopy(w, lba, c.sector); err != nil {
			return fmt.Errorf("what was written at LBA %d: %w", lba, err)
		}
	}
	return nil
}
