package ext4

import (
	"fmt"
	"strings"

	"remaster/internal/hint"
	"remaster/pkg/disk"
)

// Recovery is what Recover has done.
type Recovery struct {
	// Transactions is the number of transactions that were replayed; their sequence
	// numbers are First to Last.
	Transactions uint32
	First, Last  uint32
	// Blocks is the number of blocks that were written to their places, Revoked that
	// of copies which a later transaction had revoked.
	Blocks, Revoked int
	// Deleted is the number of inodes without names that were given back, Truncated
	// that of files that were cut off behind their size.
	Deleted, Truncated int
}

// String says what was done: "2 transactions of its journal replayed (9 blocks; sequence
// 5 to 6), 1 orphaned inode deleted".
func (r *Recovery) String() string {
	count := func(n int, one, many string) string {
		if n == 1 {
			return "1 " + one
		}
		return fmt.Sprintf("%d %s", n, many)
	}
	what := []string{"nothing was in its journal"}
	if n := int(r.Transactions); n > 0 {
		what[0] = fmt.Sprintf("%s of its journal replayed (%s", count(n, "transaction", "transactions"), count(r.Blocks, "block", "blocks"))
		if r.Revoked > 0 {
			what[0] += fmt.Sprintf(", %d revoked", r.Revoked)
		}
		what[0] += fmt.Sprintf("; sequence %d to %d)", r.First, r.Last)
	}
	if r.Deleted > 0 {
		what = append(what, count(r.Deleted, "orphaned inode", "orphaned inodes")+" deleted")
	}
	if r.Truncated > 0 {
		what = append(what, count(r.Truncated, "file", "files")+" truncated")
	}
	return strings.Join(what, ", ")
}

// Recover brings a file system that was not unmounted into the state that its system
// would find it in: it replays the journal, deletes or truncates orphaned inodes, and
// marks the file system as clean. It returns nil, and has written nothing, if there is
// nothing to do. d must be one that is dropped after an error: an overlay. It refuses,
// by name, what it can't replay right, and corrupt journals. Of o, Now only is used.
//
// The orphans of a file system that can't be edited stay: they can't be seen.
func Recover(d disk.Writable, o EditOptions) (*Recovery, error) {
	f, err := open(d)
	if err != nil {
		return nil, err
	}
	if !f.sb.dirty() && !f.sb.hasOrphans() {
		return nil, nil
	}
	if err := f.sb.refuseFeatures(); err != nil {
		return nil, err
	}
	rec, replayed := &Recovery{}, f.sb.dirty()
	if replayed {
		if f, err = f.recoverJournal(d, o, rec); err != nil {
			return nil, hint.With(fmt.Errorf("replay the journal: %w", err), fsckRemedy)
		}
	}
	if err := f.sb.refuseRead(); err != nil {
		return nil, err
	}
	editable := f.sb.refuseWrite() == nil
	if f.sb.hasOrphans() && editable {
		if err := f.recoverOrphans(d, o, rec); err != nil {
			return nil, hint.With(fmt.Errorf("remove orphaned inodes: %w", err), fsckRemedy)
		}
	}
	if !replayed && !editable {
		return nil, nil
	}
	return rec, nil
}

// dirty reports whether the journal waits to be replayed.
func (s *super) dirty() bool { return s.incompat&incompatRecover != 0 }

func (s *super) hasOrphans() bool { return s.lastOrphan != 0 || s.ro&roOrphanPresent != 0 }

// recoverJournal replays the journal and marks it as empty. It returns the file system
// as it is then.
func (f *FS) recoverJournal(d disk.Writable, o EditOptions, rec *Recovery) (*FS, error) {
	if f.sb.compat&compatHasJournal == 0 {
		return nil, corrupt(0, 0, "superblock: needs_recovery without a journal")
	}
	j, err := f.journal()
	if err != nil {
		return nil, err
	}
	next := j.sequence + 1
	if j.start != 0 {
		if next, err = f.replayInto(d, j, rec); err != nil {
			return nil, err
		}
	}
	if err := j.reset(d, next); err != nil {
		return nil, err
	}
	return markClean(d, o)
}

// replayInto copies what is in the log to its places. It returns the number of the next
// transaction.
func (f *FS) replayInto(d disk.Writable, j *journal, rec *Recovery) (uint32, error) {
	r, err := j.replay()
	if err != nil {
		return 0, err
	}
	bs := int64(f.sb.blockSize)
	// A file system that was growing may have put its new superblock in the journal.
	most, err := r.targets(f.sb.firstData, uint64(d.Size()/bs))
	if err != nil {
		return 0, err
	}
	err = r.write(func(no uint64, b []byte) error {
		if _, err := d.WriteAt(b, int64(no)*bs); err != nil {
			return fmt.Errorf("ext4: block %d: %w", no, err)
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	after, err := open(d)
	if err != nil {
		return 0, fmt.Errorf("after the replay: %w", err)
	}
	if after.sb.blockSize != f.sb.blockSize || after.sb.uuid != f.sb.uuid {
		return 0, corrupt(0, 0, "the journal holds the superblock of another file system")
	}
	if most >= after.sb.blocks {
		return 0, j.corrupt("a copy of block %d, which is outside", most)
	}
	rec.Transactions, rec.First, rec.Last = r.end-r.first, r.first, r.end-1
	rec.Blocks = len(r.latest)
	for _, c := range r.copies {
		if r.isRevoked(c) {
			rec.Revoked++
		}
	}
	// The number of a transaction that was not whole is not used again.
	return r.end + 1, nil
}

// recoverOrphans deals with the orphans of a file system that can be edited.
func (f *FS) recoverOrphans(d disk.Writable, o EditOptions, rec *Recovery) error {
	e, err := newEditor(f, d, EditOptions{Now: o.Now})
	if err != nil {
		return err
	}
	done, err := e.cleanOrphans()
	if err != nil {
		return err
	}
	rec.Deleted, rec.Truncated = done.deleted, done.truncated
	return e.Flush()
}

// markClean takes the mark off the superblock that the journal is to be replayed, and
// puts the numbers of what is free right: while it is mounted, only the groups have
// them.
func markClean(d disk.Writable, o EditOptions) (*FS, error) {
	f, err := open(d)
	if err != nil {
		return nil, err
	}
	t, err := f.sumGroups()
	if err != nil {
		return nil, err
	}
	b := make([]byte, superSize)
	if err := disk.ReadFull(d, b, superOffset); err != nil {
		return nil, fmt.Errorf("ext4: superblock: %w", err)
	}
	put32(b, sbIncompat, f.sb.incompat&^incompatRecover)
	if f.sb.ro&roBigalloc == 0 { // whose groups count clusters
		f.sb.putTotals(b, t)
	}
	if !o.Now.IsZero() {
		putSuperTime(b, sbWtime, sbWtimeHi, o.Now)
	}
	f.sb.seal(b)
	if _, err := d.WriteAt(b, superOffset); err != nil {
		return nil, fmt.Errorf("ext4: superblock: %w", err)
	}
	return open(d)
}
