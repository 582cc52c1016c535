package partition

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"remaster/internal/hint"
	"remaster/pkg/disk"
)

// growAlign is what the end of a grown partition is a multiple of, in bytes, as with
// the tools that make partitions.
const growAlign = 1 << 20

// Offsets in an entry of a GPT and of an MBR.
const (
	gptEntryStart = 32
	gptEntryEnd   = 40 // its last LBA
	mbrEntryEnd   = 5  // cylinder, head and sector
	mbrEntryCount = 12
)

// GrowLast makes the partition with the number last, which must be the one that lies
// last on the disk, reach to the end of the disk w, which has grown since t was read or
// had room behind its partitions. Of a GPT the backup is moved to the end of the disk
// first, see [MoveBackupGPT]. The end lies on a whole MiB. Nothing else changes, and t
// is to be read again. Where nothing can be gained, the partition stays as it is.
//
// What is in the partition does not grow by itself. A disk that is one file system has
// no partition that could grow: nothing is done. Logical partitions, hybrid MBRs and a
// GPT whose primary copy is damaged are refused; what does not fit together is, too,
// before anything is written.
func GrowLast(t *Table, w disk.Writable, last int) error {
	var err error
	switch t.Kind {
	case GPT:
		err = growLastGPT(t, w, last)
	case MBR:
		err = growLastMBR(t, w, last)
	}
	if err != nil {
		return fmt.Errorf("grow partition %d: %w", last, err)
	}
	return nil
}

// lastPart returns the partition with a number, if no other one lies behind it.
func (t *Table) lastPart(number int) (Part, error) {
	var p Part
	for _, x := range t.Parts {
		if x.Number == number {
			p = x
		}
	}
	if p.Number == 0 {
		return p, unsupported("there is no such partition")
	}
	for _, x := range t.Parts {
		if x.Range.Off > p.Range.Off {
			return p, hint.With(unsupported("%v lies behind it", x), "only the last partition of a disk can grow")
		}
	}
	return p, nil
}

func growLastGPT(t *Table, w disk.Writable, last int) error {
	p, err := t.lastPart(last)
	if err != nil {
		return err
	}
	boot := make([]byte, mbrSize)
	if err := disk.ReadFull(w, boot, 0); err != nil {
		return err
	}
	if parseMBR(boot).used() > 1 {
		return unsupported("a hybrid MBR, which would have to be changed, too")
	}
	if err := moveBackupGPT(t, w); err != nil {
		return err
	}
	c, err := readGPTCopy(w, 1, t.SectorSize)
	if err != nil {
		return err
	}
	le := binary.LittleEndian
	at := (last - 1) * gptEntrySize
	if at < 0 || at+gptEntrySize > len(c.array) || le.Uint64(c.array[at+gptEntryStart:]) != uint64(p.Range.Off/c.sector) ||
		le.Uint64(c.array[at+gptEntryEnd:]) != uint64(p.Range.End()/c.sector-1) {
		return corrupt("its entry is not what was read before")
	}
	end := (c.lastUsable + 1) * c.sector / growAlign * growAlign
	if end <= p.Range.End() {
		return nil
	}
	le.PutUint64(c.array[at+gptEntryEnd:], uint64(end/c.sector-1))
	return writeGPTArrays(w, c)
}

// writeGPTArrays writes the array of c, a primary copy whose backup is in place, to
// both copies, and seals their headers.
func writeGPTArrays(w disk.Writable, c *gptCopy) error {
	b, err := readGPTCopy(w, c.alternate, c.sector)
	if err != nil {
		return fmt.Errorf("backup GPT: %w", err)
	}
	if len(b.array) != len(c.array) {
		return corrupt("the two copies of the GPT have %d and %d bytes of entries", len(c.array), len(b.array))
	}
	le := binary.LittleEndian
	for _, x := range []*gptCopy{b, c} {
		le.PutUint32(x.raw[gptArrayCRC:], crc32.ChecksumIEEE(c.array))
		le.PutUint32(x.raw[gptCRC:], headerCRC(x.raw[:gptHeaderSize]))
		if _, err := w.WriteAt(c.array, x.arrayLBA*c.sector); err != nil {
			return err
		}
		if _, err := w.WriteAt(x.raw, x.lba*c.sector); err != nil {
			return err
		}
	}
	for _, lba := range []int64{c.lba, b.lba} {
		x, err := readGPTCopy(w, lba, c.sector)
		if err == nil && !bytes.Equal(x.array, c.array) {
			err = corrupt("the entries are not those that were written")
		}
		if err != nil {
			return fmt.Errorf("what was written at LBA %d: %w", lba, err)
		}
	}
	return nil
}

func growLastMBR(t *Table, w disk.Writable, last int) error {
	if last > 4 {
		return hint.With(unsupported("a logical partition"), "only a primary partition can grow")
	}
	p, err := t.lastPart(last)
	if err != nil {
		return err
	}
	boot := make([]byte, mbrSize)
	if err := disk.ReadFull(w, boot, 0); err != nil {
		return err
	}
	m := parseMBR(boot)
	if last < 1 || int64(m.entries[last-1].start)*mbrSize != p.Range.Off || int64(m.entries[last-1].n)*mbrSize != p.Range.Len {
		return corrupt("its entry is not what was read before")
	}
	for i, e := range m.entries {
		if !e.empty() && int64(e.start)*mbrSize > p.Range.Off {
			return unsupported("entry %d of the MBR lies behind it", i+1)
		}
	}
	// Both the first sector and the number of sectors have 32 bits.
	sectors := min(w.Size()/growAlign*growAlign/mbrSize, 1<<32/(growAlign/mbrSize)*(growAlign/mbrSize)-growAlign/mbrSize)
	if sectors*mbrSize <= p.Range.End() {
		return nil
	}
	e := boot[mbrEntries+(last-1)*mbrEntrySize:][:mbrEntrySize]
	binary.LittleEndian.PutUint32(e[mbrEntryCount:], uint32(sectors-p.Range.Off/mbrSize))
	copy(e[mbrEntryEnd:], chs(sectors-1))
	_, err = w.WriteAt(boot, 0)
	return err
}

// chs encodes an LBA as cylinder, head and sector of the geometry that everyone assumes,
// 255 heads and 63 sectors; what lies behind its end is 1023, 254, 63.
func chs(lba int64) []byte {
	c, h, s := lba/(255*63), lba/63%255, lba%63+1
	if c > 1023 {
		c, h, s = 1023, 254, 63
	}
	return []byte{byte(h), byte(s | c>>8<<6), byte(c)}
}
