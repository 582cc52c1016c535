// Package partition finds the partitions of a disk: GPT with sectors of 512 or 4096
// bytes, MBR with logical partitions, or a file system without any table.
//
// The tables themselves are parsed by go-diskfs; the checks that it does not make are
// made here: structures and partitions within the disk, checksums of both copies of a
// GPT, overlaps, and which copy is in use. Nothing that can be read in two ways is
// guessed at.
//
// Tables are never written, but for [MoveBackupGPT] and [GrowLast], which are needed when
// a disk grows.
package partition

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"

	"remaster/internal/hint"
	"remaster/pkg/disk"
)

// Kind is the kind of a partition table.
type Kind string

// The kinds of table.
const (
	GPT  Kind = "gpt"
	MBR  Kind = "mbr"
	None Kind = "none" // a file system on the whole disk
)

// Table is what is known of a disk's partitions.
type Table struct {
	Kind Kind
	// SectorSize is the unit of the table in bytes, 512 or 4096.
	SectorSize int64
	// DiskID is the disk's GUID in upper case, or an MBR's as 0x and eight digits, or "".
	DiskID string
	// Parts are sorted by number. Extended partitions, which only hold others, are
	// not among them.
	Parts []Part
	// Notes are sentences about what is odd, without a final period.
	Notes []string

	backupUsed bool
}

// Part is one partition.
type Part struct {
	// Number is 1 for the first; logical partitions of an MBR start at 5. It is 0
	// for a disk without a table.
	Number int
	// Range is where it lies on the disk, in bytes.
	Range disk.Range
	// Type is the type's GUID in upper case, or an MBR's as two hexadecimal digits.
	Type string
	// Name is a GPT's label of the partition, as it stands there: any text.
	Name string
	// UUID is the partition's GUID in upper case, or an MBR's disk number and
	// partition number as Linux writes them ("5ea7c0de-01").
	UUID string
	// Bootable is an MBR's active flag, or a GPT's legacy BIOS bootable attribute.
	Bootable bool
	// Attributes are a GPT's attribute bits.
	Attributes uint64
}

func (p Part) String() string {
	if p.Number == 0 {
		return "whole disk"
	}
	if p.Name != "" {
		return fmt.Sprintf("partition %d (%q)", p.Number, p.Name)
	}
	return fmt.Sprintf("partition %d", p.Number)
}

// Window returns the part as a disk of its own.
func (p Part) Window(d disk.Disk) (*disk.Window, error) {
	w, err := disk.NewWindow(d, p.Range)
	if err != nil {
		return nil, fmt.Errorf("%v: %w", p, err)
	}
	return w, nil
}

func corrupt(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, disk.ErrCorrupt)...)
}

func unsupported(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, disk.ErrUnsupported)...)
}

const remedyTruncated = "the image is incomplete: fetch it again and compare its size and checksum"

// Read reads the partition table of d.
//
// A disk that holds neither a table nor a known file system is an error that wraps
// disk.ErrFormat. A table that contradicts itself or the disk's size is
// disk.ErrCorrupt. A GPT of which only the backup is good is read, and the Notes say so.
func Read(d disk.Disk) (*Table, error) {
	t, err := read(d)
	if err != nil {
		err = fmt.Errorf("partition table: %w", err)
		if errors.Is(err, disk.ErrFormat) {
			err = hint.With(err, "name the image of a whole disk: qcow2, VHD or raw")
		}
		return nil, err
	}
	return t, nil
}

func read(d disk.Disk) (*Table, error) {
	if d.Size() < mbrSize {
		return nil, fmt.Errorf("the disk has only %d bytes: %w", d.Size(), disk.ErrFormat)
	}
	boot := make([]byte, mbrSize)
	if err := disk.ReadFull(d, boot, 0); err != nil {
		return nil, err
	}
	fs, err := Probe(d)
	if err != nil {
		return nil, err
	}
	// The boot sector of a FAT or NTFS volume is signed like an MBR, and its boot code
	// may look like entries of one.
	if bootSectorFS[fs] {
		return whole(d), nil
	}
	m := parseMBR(boot)
	if m.protective() {
		return readGPT(d, m)
	}
	if m.signed && m.used() > 0 {
		return readUnprotected(d, m, fs)
	}
	if fs != "" {
		return whole(d), nil
	}
	found, err := hasGPT(d)
	if err != nil {
		return nil, err
	}
	if found {
		return nil, hint.With(corrupt("there is a GPT but no protective MBR, without which no kernel uses it"),
			"write the protective MBR with gdisk (command w)")
	}
	return nil, nothing(d, boot)
}

// readUnprotected reads an MBR with partitions, none of which is the protective one. fs
// is what Probe found on the whole disk.
func readUnprotected(d disk.Disk, m mbrSector, fs string) (*Table, error) {
	t, err := readMBR(d, m)
	if err != nil && fs != "" && errors.Is(err, disk.ErrCorrupt) {
		// The signature of an MBR is two bytes, and entries may be boot code.
		return nil, hint.With(fmt.Errorf("%w (there is also the signature of %s on the whole disk)", err, fs),
			"if the disk has no partition table, clear the last 66 bytes of its first sector")
	}
	if err != nil {
		return nil, err
	}
	if fs != "" {
		t.note("there is also the signature of %s on the whole disk, which is not used", fs)
	}
	found, err := hasGPT(d)
	if found {
		t.note("there is also a GPT, which is not used because the MBR does not announce it")
	}
	return t, err
}

// whole is the table of a disk that is one file system.
func whole(d disk.Disk) *Table {
	return &Table{Kind: None, SectorSize: mbrSize, Parts: []Part{{Range: disk.Whole(d)}}}
}

// nothing says in what way there is nothing.
func nothing(d disk.Disk, boot []byte) error {
	const start = 1 << 20
	p := make([]byte, min(d.Size(), start))
	if err := disk.ReadFull(d, p, 0); err != nil {
		return err
	}
	if len(bytes.Trim(p, "\x00")) == 0 {
		return fmt.Errorf("nothing was found: neither a table nor a file system, and the first %d bytes are zeros: %w", len(p), disk.ErrFormat)
	}
	if parseMBR(boot).signed {
		return fmt.Errorf("the MBR has no partitions, and there is no known file system: %w", disk.ErrFormat)
	}
	return fmt.Errorf("neither a table nor a known file system was found: %w", disk.ErrFormat)
}

func (t *Table) note(format string, args ...any) {
	t.Notes = append(t.Notes, fmt.Sprintf(format, args...))
}

// onDisk makes sure that all partitions lie on a disk of size bytes.
func (t *Table) onDisk(size int64) error {
	for _, p := range t.Parts {
		if missing := p.Range.End() - size; missing > 0 {
			return hint.With(corrupt("%v ends at byte %d, but the disk has %d bytes: %d bytes are missing",
				p, p.Range.End(), size, missing), remedyTruncated)
		}
	}
	return nil
}

// area is a named place on the disk.
type area struct {
	what string
	disk.Range
}

// apart makes sure that no two areas share a byte. It sorts them.
func apart(areas []area) error {
	slices.SortStableFunc(areas, func(a, b area) int { return cmp.Compare(a.Off, b.Off) })
	for i := 1; i < len(areas); i++ {
		if a, b := areas[i-1], areas[i]; a.End() > b.Off {
			return corrupt("%s %v and %s %v overlap", a.what, a.Range, b.what, b.Range)
		}
	}
	return nil
}
