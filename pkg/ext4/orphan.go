package ext4

import (
	"fmt"

	"remaster/internal/hint"
)

// A block of the orphan file: numbers of inodes, 0 for a free place, and a tail of a
// magic and a checksum (the kernel's documentation, "Orphan file").
const (
	orphanTail  = 8
	orphanMagic = 0x0B10CA04
)

// maxOrphans is the number of orphans that are dealt with; it bounds the memory.
const maxOrphans = 1 << 20

// maxOrphanFile is the size of the largest orphan file, in bytes: fs/ext4/orphan.c.
const maxOrphanFile = 8 << 20

// orphans are inodes that a system was about to delete or to shorten when it stopped.
// It names them in a list that begins in the superblock and goes on in the deletion
// times of the inodes, or, with the feature orphan_file, in a file of its own.
type orphans struct {
	e                  *Editor
	seen               map[Ino]struct{}
	deleted, truncated int
}

// cleanOrphans ends what the system was about to do: it deletes the inodes that have no
// names, cuts the others off behind their size, and empties the lists.
func (e *Editor) cleanOrphans() (*orphans, error) {
	o := &orphans{e: e, seen: map[Ino]struct{}{}}
	err := e.atomically(func() error {
		for ino := Ino(e.sb.lastOrphan); ino != 0; {
			next, err := o.clean(ino)
			if err != nil {
				return fmt.Errorf("list of orphaned inodes: %w", err)
			}
			ino = next
		}
		e.sb.lastOrphan = 0
		if e.sb.ro&roOrphanPresent != 0 {
			if err := o.file(); err != nil {
				return fmt.Errorf("file of orphaned inodes: %w", err)
			}
			e.sb.ro &^= roOrphanPresent
		}
		_, err := e.c.edit(uint64(superOffset/e.sb.blockSize), tag{kindSuper, 0}, nil)
		return err
	})
	return o, err
}

// clean deals with one orphan. It returns the next one, if this one is on the list.
func (o *orphans) clean(ino Ino) (Ino, error) {
	e := o.e
	if uint32(ino) < e.sb.firstIno || uint32(ino) > e.sb.inodes || ino == e.sb.orphanFile {
		return 0, corrupt(ino, 0, "not an inode that can be orphaned")
	}
	if _, ok := o.seen[ino]; ok {
		return 0, corrupt(ino, 0, "orphaned twice")
	}
	if len(o.seen) >= maxOrphans {
		return 0, unsupported("more than %d orphaned inodes", maxOrphans)
	}
	o.seen[ino] = struct{}{}
	used, err := newVerifier(e.FS).inUse(ino)
	if err != nil {
		return 0, err
	}
	if !used {
		return 0, corrupt(ino, 0, "an orphaned inode is marked free")
	}
	in, err := e.inodeSlot(ino, e.c.edit)
	if err != nil {
		return 0, err
	}
	if err := in.verify(); err != nil {
		return 0, err
	}
	e.touch(ino)
	next := Ino(le32(in.raw, iDtime))
	if in.links() == 0 {
		o.deleted++
		return next, e.release(in)
	}
	o.truncated++
	put32(in.raw, iDtime, 0)
	return next, e.cut(in)
}

// file deals with the orphans that the orphan file names, and empties it.
func (o *orphans) file() error {
	e := o.e
	in, err := e.inode(e.sb.orphanFile)
	if err != nil {
		return err
	}
	m, err := e.fileMap(in)
	if err != nil {
		return err
	}
	bs := e.sb.blockSize
	if in.size() > maxOrphanFile {
		return corrupt(in.ino, 0, "the file has %d bytes", in.size())
	}
	for i := range uint64(in.size()) / uint64(bs) {
		no, _ := m.lookup(i)
		if no == 0 {
			return corrupt(in.ino, 0, "the file has no block %d", i)
		}
		b, err := e.c.edit(no, tag{kindOrphans, uint32(in.ino)}, func(b []byte) error { return in.verifyOrphans(no, b) })
		if err != nil {
			return err
		}
		for off := 0; off < bs-orphanTail; off += 4 {
			ino := Ino(le32(b, off))
			if ino == 0 {
				continue
			}
			if _, err := o.clean(ino); err != nil {
				return err
			}
			put32(b, off, 0)
		}
	}
	return nil
}

func (in inode) verifyOrphans(no uint64, b []byte) error {
	if le32(b, len(b)-orphanTail) != orphanMagic {
		return corrupt(in.ino, no, "no magic in a block of the orphan file")
	}
	if in.s.metaCsum() && in.orphanChecksum(no, b) != le32(b, len(b)-4) {
		return corrupt(in.ino, no, "wrong checksum of a block of the orphan file")
	}
	return nil
}

// orphanChecksum is over the block's number and all places
// (ext4_orphan_file_block_csum_verify).
func (in inode) orphanChecksum(no uint64, b []byte) uint32 {
	c := crc32c32(crc32c32(in.seed(), uint32(no)), uint32(no>>32))
	return crc32c(c, b[:len(b)-orphanTail])
}

func (e *Editor) sealOrphans(no uint64, b []byte) error {
	if !e.sb.metaCsum() {
		return nil
	}
	in, err := e.inode(e.sb.orphanFile)
	if err != nil {
		return err
	}
	put32(b, len(b)-4, in.orphanChecksum(no, b))
	return nil
}

// cut gives back the blocks of an inode behind its size, and fills the rest of its last
// block with zeros. The times stay: they are those of the call that was interrupted.
func (e *Editor) cut(in inode) error {
	typ := in.mode() & modeFmt
	switch {
	case typ != modeReg && typ != modeDir && (typ != modeLink || in.fastLink()):
		return corrupt(in.ino, 0, "an orphaned inode with links that has no content")
	case in.flags()&(flVerity|flInlineData) != 0:
		return hint.With(unsupported("orphaned inode %d with flag verity or inline_data", in.ino), fsckRemedy)
	}
	old, err := e.fileMap(in)
	if err != nil {
		return err
	}
	bs := uint64(e.sb.blockSize)
	end := (uint64(in.size()) + bs - 1) / bs
	var keep, gone []run
	for _, r := range old.runs {
		n := min(r.n, max(r.log, end)-r.log)
		if n > 0 {
			keep = append(keep, run{r.log, n, r.phys, r.unwritten})
		}
		if n < r.n {
			gone = append(gone, run{r.log + n, r.n - n, r.phys + n, r.unwritten})
		}
	}
	if len(gone) > 0 {
		if err := e.freeMap(&fileMap{runs: gone}); err != nil {
			return err
		}
		if _, err := e.writeMap(in, old, keep); err != nil {
			return err
		}
		in.setFlag(flEOFBlocks, 0)
	}
	return e.zeroTail(in, keep)
}

// zeroTail fills the last block of a file with zeros behind the file's size, so that
// they show when it grows. The bytes of an encrypted file can't be told.
func (e *Editor) zeroTail(in inode, runs []run) error {
	bs := int64(e.sb.blockSize)
	used := in.size() % bs
	if used == 0 || !in.isReg() || in.flags()&flEncrypt != 0 {
		return nil
	}
	m := &fileMap{runs: runs}
	log := uint64(in.size() / bs)
	phys, _ := m.lookup(log)
	if phys == 0 || m.unwrittenAt(log) {
		return nil
	}
	if meta, err := e.isMeta(phys, 1); err != nil || meta {
		if err == nil {
			err = corrupt(in.ino, phys, "the inode has metadata of the file system among its blocks")
		}
		return err
	}
	if _, err := e.w.WriteAt(make([]byte, bs-used), int64(phys)*bs+used); err != nil {
		return fmt.Errorf("ext4: write at %d: %w", int64(phys)*bs+used, err)
	}
	return nil
}

// unwrittenAt reports whether a block of the file is allocated and reads as zeros.
func (m *fileMap) unwrittenAt(log uint64) bool {
	for _, r := range m.runs {
		if r.log <= log && log < r.log+r.n {
			return r.unwritten
		}
	}
	return false
}
