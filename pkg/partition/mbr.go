package partition

import (
	"encoding/binary"
	"fmt"

	"github.com/diskfs/go-diskfs/partition/mbr"

	"remaster/pkg/disk"
)

// MBR numbers: UEFI specification 2.10, §5.2.1 and §5.2.3; extended partitions as Linux
// and Windows use them. Little-endian, in sectors of 512 bytes.
const (
	mbrSize       = 512
	mbrEntries    = 446 // four of 16 bytes
	mbrEntrySize  = 16
	typeProtected = 0xEE
	maxEBRs       = 256 // Linux numbers fewer partitions
)

// mbrSector is an MBR or an extended boot record (EBR).
type mbrSector struct {
	signed  bool
	entries [4]mbrEntry
}

type mbrEntry struct {
	status, typ byte
	start, n    uint32
}

func parseMBR(b []byte) mbrSector {
	m := mbrSector{signed: b[510] == 0x55 && b[511] == 0xAA}
	for i := range m.entries {
		e := b[mbrEntries+i*mbrEntrySize:]
		m.entries[i] = mbrEntry{e[0], e[4], binary.LittleEndian.Uint32(e[8:]), binary.LittleEndian.Uint32(e[12:])}
	}
	return m
}

func (e mbrEntry) empty() bool { return e.typ == 0 || e.n == 0 }

// extended reports whether the entry holds logical partitions.
func (e mbrEntry) extended() bool { return e.typ == 0x05 || e.typ == 0x0F || e.typ == 0x85 }

// used counts the entries that are not empty.
func (m mbrSector) used() int {
	n := 0
	for _, e := range m.entries {
		if !e.empty() {
			n++
		}
	}
	return n
}

// protective reports whether the MBR says that the disk has a GPT.
func (m mbrSector) protective() bool {
	for _, e := range m.entries {
		if m.signed && e.typ == typeProtected {
			return true
		}
	}
	return false
}

// readMBR reads the partitions of the MBR in m.
func readMBR(d disk.Disk, m mbrSector) (*Table, error) {
	for i, e := range m.entries {
		if e.status&^0x80 != 0 {
			return nil, corrupt("MBR: entry %d has status %#02x", i+1, e.status)
		}
	}
	s := &storage{d: d}
	x, err := mbr.Read(s, mbrSize, mbrSize)
	if s.err != nil {
		return nil, s.err
	}
	if err != nil {
		return nil, corrupt("MBR: %w", err)
	}
	t := &Table{Kind: MBR, SectorSize: mbrSize, DiskID: "0x" + x.UUID()}
	var areas []area
	var extended disk.Range
	for i, p := range x.Partitions {
		e := m.entries[i]
		if e.empty() {
			continue
		}
		part := Part{
			Number: p.Index, Type: fmt.Sprintf("%02x", byte(p.Type)), UUID: p.UUID(), Bootable: p.Bootable,
			Range: disk.Range{Off: int64(p.Start) * mbrSize, Len: int64(p.Size) * mbrSize},
		}
		if p.Start == 0 {
			return nil, corrupt("%v starts at the MBR itself", part)
		}
		areas = append(areas, area{part.String(), part.Range})
		if !e.extended() {
			t.Parts = append(t.Parts, part)
			continue
		}
		if extended.Len > 0 {
			return nil, corrupt("more than one extended partition")
		}
		extended = part.Range
	}
	if err := t.onDisk(d.Size()); err != nil {
		return nil, err
	}
	if err := apart(areas); err != nil {
		return nil, err
	}
	if extended.Len == 0 {
		return t, nil
	}
	return t, t.addLogical(d, x.UUID(), extended)
}

// addLogical follows the chain of EBRs in the extended partition x. Each holds one
// logical partition, counted from the EBR, and the next EBR, counted from the start
// of x.
func (t *Table) addLogical(d disk.Disk, diskID string, x disk.Range) error {
	var areas []area
	seen := map[int64]bool{}
	ebr := disk.Range{Off: x.Off, Len: mbrSize}
	for number := 5; ; {
		if seen[ebr.Off] {
			return corrupt("the chain of extended boot records comes back to byte %d", ebr.Off)
		}
		if seen[ebr.Off] = true; len(seen) > maxEBRs {
			return unsupported("more than %d extended boot records", maxEBRs)
		}
		if ebr.Intersect(x) != ebr || ebr.End() > d.Size() {
			return corrupt("extended boot record at byte %d is not within the extended partition %v", ebr.Off, x)
		}
		b := make([]byte, mbrSize)
		if err := disk.ReadFull(d, b, ebr.Off); err != nil {
			return err
		}
		m := parseMBR(b)
		if !m.signed && ebr.Off == x.Off {
			t.note("the extended partition holds no partitions")
			return nil
		}
		if !m.signed {
			return corrupt("no extended boot record at byte %d", ebr.Off)
		}
		areas = append(areas, area{"extended boot record", ebr})
		here, next := m.entries[0], m.entries[1]
		if !m.entries[2].empty() || !m.entries[3].empty() || (!here.empty() && here.extended()) {
			return unsupported("extended boot record at byte %d with more than one partition and a link", ebr.Off)
		}
		if !here.empty() {
			p := Part{
				Number: number, Type: fmt.Sprintf("%02x", here.typ), UUID: fmt.Sprintf("%s-%02x", diskID, number),
				Bootable: here.status == 0x80,
				Range:    disk.Range{Off: ebr.Off + int64(here.start)*mbrSize, Len: int64(here.n) * mbrSize},
			}
			number++
			if p.Range.Intersect(x) != p.Range {
				return corrupt("%v %v is not within the extended partition %v", p, p.Range, x)
			}
			t.Parts = append(t.Parts, p)
			areas = append(areas, area{p.String(), p.Range})
		}
		if next.empty() {
			break
		}
		if !next.extended() {
			return corrupt("extended boot record at byte %d: its link has type %#02x", ebr.Off, next.typ)
		}
		ebr.Off = x.Off + int64(next.start)*mbrSize
	}
	if err := t.onDisk(d.Size()); err != nil {
		return err
	}
	return apart(areas)
}

// growProtectiveMBR makes the protective entry cover the disk up to LBA last, if it is
// the only entry.
func growProtectiveMBR(w disk.Writable, last int64) error {
	b := make([]byte, mbrSize)
	if err := disk.ReadFull(w, b, 0); err != nil {
		return err
	}
	m := parseMBR(b)
	for i, e := range m.entries {
		if !m.signed || e.typ != typeProtected || m.used() != 1 {
			continue
		}
		n := uint32(min(last, 0xFFFFFFFF))
		if e.n == n {
			return nil
		}
		_, err := w.WriteAt(binary.LittleEndian.AppendUint32(nil, n), int64(mbrEntries+i*mbrEntrySize+12))
		return err
	}
	return nil
}
