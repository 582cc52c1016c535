package ext4

import (
	"encoding/binary"
	"fmt"

	"remaster/internal/hint"
	"remaster/pkg/disk"
)

// A journal's blocks, big-endian: the kernel's documentation, "Journal (jbd2)". Each
// block that is not a copy of another one begins with a header of a magic, a type and
// the sequence number of its transaction.
const (
	jMagic       = 0xC03B3998
	jType        = 0x04
	jSequence    = 0x08
	jHeader      = 12
	jDescriptor  = 1 // types
	jCommit      = 2
	jSuperV1     = 3
	jSuperV2     = 4
	jRevoke      = 5
	jTail        = 4 // checksum at the end of a descriptor or revoke block, with csum_v2 or csum_v3
	jUUID        = 16
	jRevokeCount = 0x0C // bytes in use, with the header
	jRevokeHead  = 16

	// Of a commit block.
	jcSumType = 0x0C
	jcSumSize = 0x0D
	jcSum     = 0x10
	jcSeconds = 0x30
)

// The journal's superblock, in its first block.
const (
	jsBlockSize = 0x0C
	jsMaxLen    = 0x10 // blocks, this one included
	jsFirst     = 0x14 // first block of the log
	jsSequence  = 0x18 // of the transaction at jsStart
	jsStart     = 0x1C // where the log begins; 0 if nothing is to be replayed
	jsErrno     = 0x20
	jsCompat    = 0x24 // from here on with version 2 only
	jsIncompat  = 0x28
	jsRoCompat  = 0x2C
	jsUUID      = 0x30
	jsUsers     = 0x40
	jsSumType   = 0x50
	jsFCBlocks  = 0x54
	jsChecksum  = 0xFC
	jsSize      = 1024

	jCompatChecksum = 1 // a checksum over each transaction, in its commit block

	jIncompatRevoke = 0x1
	jIncompat64bit  = 0x2
	jIncompatAsync  = 0x4 // the commit block may come before what it commits
	jIncompatCsumV2 = 0x8
	jIncompatCsumV3 = 0x10
	jIncompatFastC  = 0x20
	jIncompatKnown  = 0x3F

	jSumCRC32  = 1
	jSumCRC32C = 4

	// A fast commit area begins with this tag, its length, the features and the
	// sequence number that it belongs to, little-endian (fs/ext4/fast_commit.h).
	fcTagHead       = 9
	fcDefaultBlocks = 256
	jMinBlocks      = 1024 // JBD2_MIN_JOURNAL_BLOCKS
)

// maxJournal is the number of blocks of the largest journal that mke2fs makes on
// request; it bounds the time.
const maxJournal = 10_240_000

// Flags of a tag, which says where a copy belongs.
const (
	tagEscaped  = 1 // the first word was the magic; the copy has zeros there
	tagSameUUID = 2 // no UUID follows
	tagLast     = 8
)

func be32(b []byte, off int) uint32       { return binary.BigEndian.Uint32(b[off:]) }
func putBE32(b []byte, off int, v uint32) { binary.BigEndian.PutUint32(b[off:], v) }

// journal is the journal of a file system, in inode 8.
type journal struct {
	d     disk.Blob
	bs    int
	runs  []run // where its blocks lie, without holes
	super []byte
	// The log is the blocks [first, last) of the journal, used in a circle.
	first, last      uint32
	start, sequence  uint32
	compat, incompat uint32
	seed             uint32 // of all checksums but the superblock's
}

// journal reads the superblock of the journal and checks it.
func (f *FS) journal() (*journal, error) {
	switch f.sb.journalInode {
	case uint32(journalIno):
	case 0:
		return nil, unsupported("external journal: it lies on another device")
	default:
		return nil, unsupported("journal in inode %d", f.sb.journalInode)
	}
	in, err := f.inode(journalIno)
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	m, err := f.fileMap(in)
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	j := &journal{d: f.d, bs: f.sb.blockSize, super: make([]byte, jsSize)}
	var blocks uint64
	for _, r := range m.runs {
		if r.log != blocks || r.unwritten {
			break
		}
		if meta, err := f.isMeta(r.phys, r.n); err != nil || meta {
			if err == nil {
				err = corrupt(journalIno, r.phys, "the journal lies on metadata of the file system")
			}
			return nil, err
		}
		j.runs = append(j.runs, r)
		blocks += r.n
	}
	if blocks == 0 {
		return nil, corrupt(journalIno, 0, "journal without a first block")
	}
	var apart uint64
	for _, s := range j.spans() {
		apart += s.n
	}
	if apart != blocks {
		return nil, corrupt(journalIno, 0, "the journal has a block twice")
	}
	if err := disk.ReadFull(f.d, j.super, j.place(0)); err != nil {
		return nil, fmt.Errorf("ext4: superblock of the journal: %w", err)
	}
	return j, j.parse(blocks)
}

// parse reads the superblock of a journal whose file has so many blocks.
func (j *journal) parse(blocks uint64) error {
	b, at := j.super, j.runs[0].phys
	bad := func(format string, args ...any) error {
		return corrupt(journalIno, at, "superblock of the journal: "+format, args...)
	}
	if be32(b, 0) != jMagic {
		return bad("no magic")
	}
	switch t := be32(b, jType); t {
	case jSuperV1:
	case jSuperV2:
		j.compat, j.incompat = be32(b, jsCompat), be32(b, jsIncompat)
		if x := j.incompat &^ jIncompatKnown; x != 0 {
			return unsupported("unknown feature 0x%x of the journal", x&-x)
		}
		if x := be32(b, jsRoCompat); x != 0 {
			return unsupported("unknown read-only feature 0x%x of the journal", x&-x)
		}
		if n := be32(b, jsUsers); n > 1 {
			return unsupported("a journal that %d file systems share", n)
		}
	default:
		return bad("type %d", t)
	}
	if err := j.parseChecksums(bad); err != nil {
		return err
	}
	if n := be32(b, jsBlockSize); n != uint32(j.bs) {
		return bad("blocks of %d bytes, the file system's have %d", n, j.bs)
	}
	j.first, j.last = be32(b, jsFirst), be32(b, jsMaxLen)
	if uint64(j.last) > blocks {
		return bad("%d blocks in a file of %d", j.last, blocks)
	}
	if j.has(jIncompatFastC) {
		n := be32(b, jsFCBlocks)
		if n == 0 {
			n = fcDefaultBlocks
		}
		if j.last >= jMinBlocks && n <= j.last-jMinBlocks {
			j.last -= n
		}
	}
	if j.first == 0 || j.first >= j.last {
		return bad("a log from block %d to %d", j.first, j.last)
	}
	if j.last > maxJournal {
		return unsupported("a journal of %d blocks", j.last)
	}
	j.start, j.sequence = be32(b, jsStart), be32(b, jsSequence)
	if j.start != 0 && (j.start < j.first || j.start >= j.last) {
		return bad("the log begins at block %d, not between %d and %d", j.start, j.first, j.last)
	}
	if n := int32(be32(b, jsErrno)); n != 0 {
		return hint.With(unsupported("the journal has recorded error %d", n), fsckRemedy)
	}
	return nil
}

func (j *journal) parseChecksums(bad func(string, ...any) error) error {
	v2, v3 := j.has(jIncompatCsumV2), j.has(jIncompatCsumV3)
	if v2 && v3 || (v2 || v3) && j.compat&jCompatChecksum != 0 {
		return bad("checksums of two versions")
	}
	if !v2 && !v3 {
		return nil
	}
	b := j.super
	if b[jsSumType] != jSumCRC32C {
		return unsupported("checksum type %d of the journal", b[jsSumType])
	}
	if crc32cHole(^uint32(0), b, jsChecksum, 4) != be32(b, jsChecksum) {
		return bad("wrong checksum")
	}
	j.seed = crc32c(^uint32(0), b[jsUUID:jsUUID+jUUID])
	return nil
}

func (j *journal) has(feature uint32) bool { return j.incompat&feature != 0 }

// tailCsum reports whether each block has a checksum of its own.
func (j *journal) tailCsum() bool { return j.has(jIncompatCsumV2 | jIncompatCsumV3) }

// place returns the place of a block of the journal on the disk, in bytes.
func (j *journal) place(i uint32) int64 {
	phys, _ := (&fileMap{runs: j.runs}).lookup(uint64(i))
	return int64(phys) * int64(j.bs)
}

// read fills b with a block of the journal.
func (j *journal) read(i uint32, b []byte) error {
	if err := disk.ReadFull(j.d, b, j.place(i)); err != nil {
		return fmt.Errorf("ext4: block %d of the journal: %w", i, err)
	}
	return nil
}

// spans returns where the journal lies, sorted.
func (j *journal) spans() []span {
	out := make([]span, len(j.runs))
	for i, r := range j.runs {
		out[i] = span{r.phys, r.n}
	}
	return mergeSpans(out)
}

// reset writes a superblock that says that nothing is to be replayed, and that the next
// transaction has the given number.
func (j *journal) reset(w disk.Writable, sequence uint32) error {
	putBE32(j.super, jsStart, 0)
	putBE32(j.super, jsSequence, sequence)
	if j.tailCsum() {
		putBE32(j.super, jsChecksum, crc32cHole(^uint32(0), j.super, jsChecksum, 4))
	}
	if _, err := w.WriteAt(j.super, j.place(0)); err != nil {
		return fmt.Errorf("ext4: superblock of the journal: %w", err)
	}
	return nil
}

// hasFastCommit reports whether the area of fast commits holds some that belong behind
// the transaction before the given one. What is there of others is old.
func (j *journal) hasFastCommit(sequence uint32) (bool, error) {
	// One block between the log and the area is not used (jbd2_journal_load).
	first := j.last + 1
	if !j.has(jIncompatFastC) || first >= be32(j.super, jsMaxLen) {
		return false, nil
	}
	b := make([]byte, j.bs)
	if err := j.read(first, b); err != nil {
		return false, err
	}
	return le16(b, 0) == fcTagHead && le32(b, 8) == sequence, nil
}

// jTag is a tag of a descriptor block.
type jTag struct {
	block uint64
	flags uint16
	sum   uint32 // of the copy, with csum_v2 16 bits of it
}

// tagSize returns the bytes of a tag without UUID. The form of csum_v2 has two bytes
// at its end that nothing uses (journal_tag_bytes).
func (j *journal) tagSize() int {
	if j.has(jIncompatCsumV3) {
		return 16
	}
	n := 8
	if j.has(jIncompat64bit) {
		n += 4
	}
	if j.has(jIncompatCsumV2) {
		n += 2
	}
	return n
}

// tags reads the tags of a descriptor block. There is a copy for each in the blocks
// behind it.
func (j *journal) tags(b []byte) []jTag {
	size, end := j.tagSize(), len(b)
	if j.tailCsum() {
		end -= jTail
	}
	var out []jTag
	for off := jHeader; off+size <= end; {
		// The flags of csum_v3 have 32 bits, of which the upper half is unused.
		t := jTag{block: uint64(be32(b, off)), flags: binary.BigEndian.Uint16(b[off+6:])}
		if j.has(jIncompat64bit) {
			t.block |= uint64(be32(b, off+8)) << 32
		}
		if j.has(jIncompatCsumV3) {
			t.sum = be32(b, off+12)
		} else {
			t.sum = uint32(binary.BigEndian.Uint16(b[off+4:]))
		}
		out = append(out, t)
		off += size
		if t.flags&tagSameUUID == 0 {
			off += jUUID
		}
		if t.flags&tagLast != 0 {
			break
		}
	}
	return out
}

// goodTail checks the checksum at the end of a descriptor or revoke block.
func (j *journal) goodTail(b []byte) bool {
	at := len(b) - jTail
	return !j.tailCsum() || crc32cHole(j.seed, b, at, jTail) == be32(b, at)
}

// goodCommit checks the checksum of a commit block. sum is that of the transaction's
// blocks, as checksums of version 1 have it.
func (j *journal) goodCommit(b []byte, sum uint32) bool {
	if j.tailCsum() {
		return crc32cHole(j.seed, b, jcSum, 4) == be32(b, jcSum)
	}
	if j.compat&jCompatChecksum == 0 {
		return true
	}
	found, typ, size := be32(b, jcSum), b[jcSumType], b[jcSumSize]
	return found == sum && typ == jSumCRC32 && size == 4 || found == 0 && typ == 0 && size == 0
}

// goodCopy checks the checksum of a copy, as it stands in the journal.
func (j *journal) goodCopy(b []byte, sequence, sum uint32) bool {
	if !j.tailCsum() {
		return true
	}
	var seq [4]byte
	putBE32(seq[:], 0, sequence)
	c := crc32c(crc32c(j.seed, seq[:]), b)
	if j.has(jIncompatCsumV3) {
		return c == sum
	}
	return uint16(c) == uint16(sum)
}

// crc32beTable is for CRC-32's polynomial, the highest bit first: lib/crc32 of Linux,
// crc32_be.
var crc32beTable = func() (t [256]uint32) {
	const poly = 0x04C11DB7
	for i := range t {
		c := uint32(i) << 24
		for range 8 {
			if c>>31 != 0 {
				c = c<<1 ^ poly
			} else {
				c <<= 1
			}
		}
		t[i] = c
	}
	return t
}()

func crc32be(c uint32, p []byte) uint32 {
	for _, b := range p {
		c = c<<8 ^ crc32beTable[byte(c>>24)^b]
	}
	return c
}
