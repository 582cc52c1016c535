package ext4

import (
	"fmt"
	"slices"
	"time"

	"remaster/internal/hint"
	"remaster/pkg/disk"
)

// EditOptions are what an edit takes from outside, so that equal edits of equal file
// systems give equal bytes.
type EditOptions struct {
	// Now is the time of the edit: of changed inodes and of the superblock. The
	// zero time stands for the time of the last write before, as the superblock
	// has it.
	Now time.Time
	// Generation goes into the generation numbers of new inodes, which the kernel
	// chooses at random.
	Generation uint32
	// UseReserved lets edits use the blocks that are kept for root's processes.
	UseReserved bool
	// ChangeProtected lets edits change what is marked immutable or append-only.
	ChangeProtected bool
}

// Editor is a file system that is being changed. Its reading methods see the changes.
// It is used by one goroutine at a time.
type Editor struct {
	*FS
	w disk.Writable
	o EditOptions

	totals
	// floor is the number of free blocks that the running operation must leave.
	floor uint64
	// added are the inodes that the running operation was the first to touch.
	added []Ino
	// content has the digest of what was given for each file that was written.
	content map[Ino]digest
	// digests has the former digest of each file that the running operation has
	// written; nil stands for none.
	digests map[Ino]*digest
	made    uint32 // inodes, to vary generations
	out     outbox
	// later is not nil while blocks that are given back must not be used again: it
	// collects them.
	later *[]span
}

// totals are sums over all groups.
type totals struct{ freeBlocks, freeInodes uint64 }

// Edit opens the file system that fills d for editing. It refuses, by name, what Open
// refuses and what can't be kept consistent. d must be one that is dropped if an
// operation or Flush fails other than with ErrNoSpace: content is written to it at once.
func Edit(d disk.Writable, o EditOptions) (*Editor, error) {
	f, err := Open(d)
	if err != nil {
		return nil, err
	}
	if err := f.sb.refuseWrite(); err != nil {
		return nil, err
	}
	if err := f.sb.refuseOrphans(); err != nil {
		return nil, err
	}
	return newEditor(f, d, o)
}

// newEditor makes an editor of a file system that can be edited.
func newEditor(f *FS, d disk.Writable, o EditOptions) (*Editor, error) {
	if err := f.checkJournal(); err != nil {
		return nil, err
	}
	f.touched = map[Ino]struct{}{}
	e := &Editor{FS: f, w: d, o: o, content: map[Ino]digest{}, out: outbox{w: d}}
	if o.Now.IsZero() {
		b, err := f.superRaw()
		if err != nil {
			return nil, err
		}
		e.o.Now = superTime(b, sbWtime, sbWtimeHi)
	}
	var err error
	e.totals, err = f.sumGroups()
	return e, err
}

// sumGroups adds up the free blocks and inodes of all groups. The superblock's own
// numbers may be old: the kernel doesn't trust them either.
func (f *FS) sumGroups() (t totals, err error) {
	for g := range f.sb.groups {
		d, err := f.group(g)
		if err != nil {
			return t, err
		}
		t.freeBlocks += uint64(d.freeBlocks())
		t.freeInodes += uint64(d.freeInodes())
	}
	return t, nil
}

// checkJournal refuses a journal that lies elsewhere, or that has something to replay.
func (f *FS) checkJournal() error {
	if f.sb.compat&compatHasJournal == 0 {
		return nil
	}
	j, err := f.journal()
	if err != nil {
		return err
	}
	if j.start != 0 {
		return hint.With(unsupported("the journal is not empty"), fsckRemedy)
	}
	return nil
}

// atomically runs an operation. If it fails, everything is as it was before, but for
// bytes of blocks that are free again. An operation inside another one is part of it.
func (e *Editor) atomically(fn func() error) error {
	if e.c.undo != nil {
		return fn()
	}
	before, made, sb := e.totals, e.made, e.sb
	e.floor, e.added = 0, nil
	if !e.o.UseReserved {
		e.floor = min(e.sb.reserved, e.freeBlocks)
	}
	e.digests = map[Ino]*digest{}
	e.c.begin()
	err := fn()
	if err == nil {
		e.c.commit()
		return nil
	}
	e.c.rollback()
	e.out.drop()
	for ino, old := range e.digests {
		if delete(e.content, ino); old != nil {
			e.content[ino] = *old
		}
	}
	e.totals, e.made, e.sb = before, made, sb
	for _, ino := range e.added {
		delete(e.touched, ino)
	}
	return err
}

// setDigest notes what a file must read as after Flush; nil is for one that is gone.
func (e *Editor) setDigest(ino Ino, d *digest) {
	if _, ok := e.digests[ino]; !ok && e.c.undo != nil {
		e.digests[ino] = nil
		if old, ok := e.content[ino]; ok {
			e.digests[ino] = &old
		}
	}
	if d == nil {
		delete(e.content, ino)
		return
	}
	e.content[ino] = *d
}

// edit returns an inode for changing. Its block stays in memory until Flush.
func (e *Editor) edit(ino Ino) (inode, error) {
	if _, err := e.inode(ino); err != nil {
		return inode{}, err
	}
	in, err := e.inodeSlot(ino, e.c.edit)
	if err == nil {
		e.touch(ino)
	}
	return in, err
}

func (e *Editor) touch(ino Ino) {
	if _, ok := e.touched[ino]; !ok {
		e.touched[ino] = struct{}{}
		e.added = append(e.added, ino)
	}
}

// editUser is edit for an inode that a caller has named: not one that the file system
// keeps for itself, nor one that is protected or that can't be changed right.
func (e *Editor) editUser(ino Ino) (inode, error) {
	if ino != rootIno && uint32(ino) < e.sb.firstIno || ino == e.sb.orphanFile {
		return inode{}, fmt.Errorf("ext4: inode %d is reserved for the file system itself", ino)
	}
	in, err := e.edit(ino)
	if err != nil {
		return in, err
	}
	for _, x := range [...]struct {
		flag uint32
		name string
	}{{flEncrypt, "encrypt"}, {flVerity, "verity"}, {flInlineData, "inline_data"}, {flCasefold, "casefold"}, {flEAInode, "ea_inode"}} {
		if in.flags()&x.flag != 0 {
			return in, unsupported("editing inode %d with flag %s", ino, x.name)
		}
	}
	if in.flags()&(flImmutable|flAppend) != 0 && !e.o.ChangeProtected {
		return in, hint.With(fmt.Errorf("ext4: inode %d: %w", ino, ErrProtected), "remove the mark with chattr -ia inside the guest first")
	}
	return in, nil
}

// editGroup returns a descriptor for changing.
func (e *Editor) editGroup(g uint32) (group, error) { return e.groupVia(g, e.c.edit) }

// Flush puts checksums and counters right and writes the blocks that differ to the
// disk. Then it opens the disk anew, checks everything that was touched and reads back
// every file that was written. The editor may be used further.
func (e *Editor) Flush() error {
	dirty := e.c.dirty()
	if len(dirty) == 0 {
		return nil
	}
	if err := e.seal(dirty); err != nil {
		return err
	}
	dirty = e.c.dirty()
	if err := e.writeBlocks(dirty); err != nil {
		return err
	}
	for _, no := range dirty {
		e.c.m[no].dirty = false
		e.c.clean++
	}
	touched := make([]Ino, 0, len(e.touched))
	for ino := range e.touched {
		touched = append(touched, ino)
	}
	slices.Sort(touched)
	if err := verifyEdit(e.w, touched, dirty, e.content); err != nil {
		return fmt.Errorf("verify the edited file system: %w", err)
	}
	clear(e.touched)
	clear(e.content)
	return nil
}

// seal computes the checksums of everything that is dirty, from the leaves up: what
// the inodes point at, inodes, bitmaps, descriptors, superblock.
func (e *Editor) seal(dirty []uint64) error {
	for _, no := range dirty {
		b := e.c.m[no]
		ino := Ino(b.tag.owner)
		switch b.tag.kind {
		case kindExtent:
			if err := e.sealExtents(ino, b.data); err != nil {
				return err
			}
		case kindDir:
			if err := e.sealDir(ino, no, b.data); err != nil {
				return err
			}
		case kindXattr:
			if e.sb.metaCsum() {
				put32(b.data, xaChecksum, e.sb.xattrChecksum(no, b.data))
			}
		case kindBlockBitmap, kindInodeBitmap:
			if err := e.sealBitmap(b); err != nil {
				return err
			}
		case kindOrphans:
			if err := e.sealOrphans(no, b.data); err != nil {
				return err
			}
		}
	}
	for ino := range e.touched {
		in, err := e.inodeSlot(ino, e.c.edit)
		if err != nil {
			return err
		}
		in.seal()
	}
	for _, no := range dirty {
		if b := e.c.m[no]; b.tag.kind == kindDescriptors {
			for j := range e.sb.descPerBlock {
				g := b.tag.owner*uint32(e.sb.descPerBlock) + uint32(j)
				if g < e.sb.groups {
					group{g, b.data[j*e.sb.descSize : (j+1)*e.sb.descSize], &e.sb}.seal()
				}
			}
		}
	}
	return e.sealSuper()
}

func (e *Editor) sealExtents(ino Ino, b []byte) error {
	if !e.sb.metaCsum() {
		return nil
	}
	in, err := e.inode(ino)
	if err != nil {
		return err
	}
	at := extentTail(b)
	put32(b, at, crc32c(in.seed(), b[:at]))
	return nil
}

func (e *Editor) sealDir(ino Ino, no uint64, b []byte) error {
	if !e.sb.metaCsum() {
		return nil
	}
	d, err := e.dir(ino)
	if err != nil {
		return err
	}
	first, err := d.phys(0)
	if err != nil {
		return err
	}
	i := uint32(1)
	if no == first {
		i = 0
	}
	if d.isNode(i, b) {
		n, err := d.dxNodeOf(i, no, b)
		if err != nil {
			return err
		}
		put32(b, n.tail()+4, d.dxChecksum(n))
		return nil
	}
	put32(b, len(b)-4, crc32c(d.in.seed(), b[:len(b)-deTail]))
	return nil
}

func (e *Editor) sealBitmap(b *block) error {
	if !e.sb.metaCsum() {
		return nil
	}
	d, err := e.editGroup(b.tag.owner)
	if err != nil {
		return err
	}
	lo, hi, bits := gdBlockBitmapCsum, gdBlockBitmapCsumHi, e.sb.blocksPerGroup
	if b.tag.kind == kindInodeBitmap {
		lo, hi, bits = gdInodeBitmapCsum, gdInodeBitmapCsumHi, e.sb.inodesPerGroup
	}
	d.setCount(lo, hi, crc32c(e.sb.seed, b.data[:bits/8]))
	return nil
}

func (e *Editor) sealSuper() error {
	no := uint64(superOffset / e.sb.blockSize)
	blk, err := e.c.edit(no, tag{kindSuper, 0}, nil)
	if err != nil {
		return err
	}
	b := blk[superOffset%e.sb.blockSize:][:superSize]
	e.sb.putTotals(b, e.totals)
	put32(b, sbCompat, e.sb.compat)
	put32(b, sbRoCompat, e.sb.ro)
	put32(b, sbLastOrphan, e.sb.lastOrphan)
	putSuperTime(b, sbWtime, sbWtimeHi, e.o.Now)
	e.sb.seal(b)
	return nil
}

// putTotals puts what is free into a superblock.
func (s *super) putTotals(b []byte, t totals) {
	put32(b, sbFreeBlocks, uint32(t.freeBlocks))
	if s.incompat&incompat64bit != 0 {
		put32(b, sbFreeBlocksHi, uint32(t.freeBlocks>>32))
	}
	put32(b, sbFreeInodes, uint32(t.freeInodes))
}

// seal puts the checksum of a superblock right.
func (s *super) seal(b []byte) {
	if s.metaCsum() {
		put32(b, sbChecksum, crc32c(^uint32(0), b[:sbChecksum]))
	}
}

// writeBlocks writes those of the dirty blocks that differ from the disk, neighbours
// in one go.
func (e *Editor) writeBlocks(dirty []uint64) error {
	size := e.sb.blockSize
	old := make([]byte, size)
	var pending []byte
	var at int64
	flush := func() error {
		if len(pending) == 0 {
			return nil
		}
		_, err := e.w.WriteAt(pending, at)
		pending = pending[:0]
		if err != nil {
			return fmt.Errorf("ext4: write at %d: %w", at, err)
		}
		return nil
	}
	for _, no := range dirty {
		off := int64(no) * int64(size)
		if err := disk.ReadFull(e.d, old, off); err != nil {
			return fmt.Errorf("ext4: block %d: %w", no, err)
		}
		data := e.c.m[no].data
		if slices.Equal(old, data) {
			continue
		}
		if off != at+int64(len(pending)) || len(pending)+size > ioPiece {
			if err := flush(); err != nil {
				return err
			}
			at = off
		}
		pending = append(pending, data...)
	}
	return flush()
}

// ioPiece is the size of the pieces that content is copied in, in bytes.
const ioPiece = 1 << 20

// noSpace is ErrNoSpace with what was wanted.
func noSpace(what string, n uint64) error {
	return fmt.Errorf("ext4: %d %s wanted: %w", n, what, ErrNoSpace)
}
