package ext4

import "encoding/binary"

// maxReplay is the number of blocks that one replay may have copies of; it bounds the
// memory. The largest journal that mke2fs makes by itself holds half as many.
const maxReplay = 1 << 19

// replay is what the log of a journal holds. It is made in the three passes that the
// format describes: the first finds the end of the log, the second what was revoked,
// the third copies the blocks to their places.
type replay struct {
	j   *journal
	buf []byte // the header block that the walk is at

	first, end uint32 // the transactions [first, end) are whole
	copies     []jCopy
	// latest is the copy of each block that comes last, revoked ones left out.
	latest map[uint64]int32
	// revoked is the last transaction that has revoked a block there are copies of.
	revoked map[uint64]uint32
}

// jCopy is a copy of a block in the log.
type jCopy struct {
	block    uint64
	at       uint32 // block of the journal
	sequence uint32
	sum      uint32
	escaped  bool
}

// after reports whether a transaction comes behind another one. Numbers go round.
func after(a, b uint32) bool { return int32(a-b) > 0 }

func (j *journal) corrupt(format string, args ...any) error {
	return corrupt(journalIno, 0, "journal: "+format, args...)
}

// next returns the block of the log n blocks behind i; n is less than the log is long.
func (j *journal) next(i, n uint32) uint32 {
	if n >= j.last-i {
		return j.first + n - (j.last - i)
	}
	return i + n
}

// header is what a walk along the log calls with each header block of the transaction
// sequence: its type and its bytes, and for a descriptor its tags and the block with the
// first copy. It returns false to end the walk before the block.
type header func(sequence, typ uint32, b []byte, tags []jTag, at uint32) (bool, error)

// walk goes along the log until there is no header block of the transaction that must
// come next, or fn returns false.
func (r *replay) walk(fn header) error {
	j := r.j
	at, seq := j.start, j.sequence
	for left := j.last - j.first; left > 0; {
		if err := j.read(at, r.buf); err != nil {
			return err
		}
		typ := be32(r.buf, jType)
		if be32(r.buf, 0) != jMagic || be32(r.buf, jSequence) != seq || typ != jDescriptor && typ != jCommit && typ != jRevoke {
			return nil
		}
		at, left = j.next(at, 1), left-1
		var tags []jTag
		if typ == jDescriptor {
			tags = j.tags(r.buf)
		}
		if more, err := fn(seq, typ, r.buf, tags, at); err != nil || !more {
			return err
		}
		// What does not fit into the log is no transaction that was written whole.
		n := uint32(len(tags))
		if n >= left {
			return nil
		}
		at, left = j.next(at, n), left-n
		if typ == jCommit {
			seq++
		}
	}
	return nil
}

// scan is the first pass. A transaction without a commit block is as if it had never
// been: the system stopped before it was whole.
func (r *replay) scan() error {
	j := r.j
	r.first, r.end = j.sequence, j.sequence
	s := scanState{r: r, sum: ^uint32(0)}
	if err := r.walk(s.header); err != nil {
		return err
	}
	if s.failed && s.later {
		return j.corrupt("wrong checksum of transaction %d, and others come behind it", r.end)
	}
	for i, c := range r.copies {
		r.latest[c.block] = int32(i)
	}
	return nil
}

// scanState is where the first pass is in a transaction.
type scanState struct {
	r       *replay
	pending []jCopy
	sum     uint32 // of the blocks so far: checksums of version 1
	suspect bool   // a block's own checksum is wrong
	failed  bool   // a commit block's checksum is wrong: the log ends before
	later   bool   // and has another commit block behind it
	seconds uint64 // of the last commit
}

func (s *scanState) header(seq, typ uint32, b []byte, tags []jTag, at uint32) (bool, error) {
	if s.failed {
		s.later = typ == jCommit && seq != s.r.end
		return !s.later, nil
	}
	switch typ {
	case jDescriptor:
		return true, s.descriptor(seq, b, tags, at)
	case jRevoke:
		s.suspect = s.suspect || !s.r.j.goodTail(b)
		return true, nil
	}
	return s.commit(seq, b)
}

func (s *scanState) descriptor(seq uint32, b []byte, tags []jTag, at uint32) error {
	j := s.r.j
	if !j.goodTail(b) {
		s.suspect = true
		return nil
	}
	if len(s.r.copies)+len(s.pending)+len(tags) > maxReplay {
		return unsupported("a journal with copies of more than %d blocks", maxReplay)
	}
	v1 := j.compat&jCompatChecksum != 0
	if v1 {
		s.sum = crc32be(s.sum, b)
	}
	for i, t := range tags {
		c := jCopy{t.block, j.next(at, uint32(i)), seq, t.sum, t.flags&tagEscaped != 0}
		s.pending = append(s.pending, c)
		if !v1 {
			continue
		}
		if err := j.read(c.at, b); err != nil {
			return err
		}
		s.sum = crc32be(s.sum, b)
	}
	return nil
}

// commit decides whether a transaction counts. A wrong checksum is a fault, unless the
// block is older than the commit before, and so was left by an earlier turn of the log,
// or, with asynchronous commits, may have been written before the rest.
func (s *scanState) commit(seq uint32, b []byte) (bool, error) {
	j := s.r.j
	seconds := binary.BigEndian.Uint64(b[jcSeconds:])
	good := j.goodCommit(b, s.sum)
	if !good || s.suspect {
		switch {
		case seconds < s.seconds:
			return false, nil
		case s.suspect || !j.has(jIncompatAsync):
			return false, j.corrupt("wrong checksum in transaction %d", seq)
		}
		s.failed = true
		return true, nil
	}
	s.seconds = seconds
	s.r.copies = append(s.r.copies, s.pending...)
	s.pending, s.sum = s.pending[:0], ^uint32(0)
	s.r.end = seq + 1
	return true, nil
}

// whole runs the walk of a later pass, which must end where the first one did.
func (r *replay) whole(fn header) error {
	end := r.first
	err := r.walk(func(seq, typ uint32, b []byte, tags []jTag, at uint32) (bool, error) {
		if seq == r.end {
			return false, nil
		}
		if typ == jCommit {
			end = seq + 1
		}
		return fn(seq, typ, b, tags, at)
	})
	if err == nil && end != r.end {
		err = r.j.corrupt("the log ends before transaction %d, not before %d", end, r.end)
	}
	return err
}

// revokes is the second pass: it takes down which blocks are not to be replayed from
// the transactions up to some one, for they have been given to something else since.
func (r *replay) revokes() error {
	err := r.whole(func(seq, typ uint32, b []byte, _ []jTag, _ uint32) (bool, error) {
		if typ != jRevoke {
			return true, nil
		}
		end, size := int(be32(b, jRevokeCount)), 4
		most := len(b)
		if r.j.tailCsum() {
			most -= jTail
		}
		if be32(b, jRevokeCount) > uint32(most) {
			return false, r.j.corrupt("%d bytes in a revoke block of transaction %d", be32(b, jRevokeCount), seq)
		}
		if r.j.has(jIncompat64bit) {
			size = 8
		}
		for off := jRevokeHead; off+size <= end; off += size {
			no := uint64(be32(b, off))
			if size == 8 {
				no = no<<32 | uint64(be32(b, off+4))
			}
			if _, ok := r.latest[no]; !ok {
				continue
			}
			if old, ok := r.revoked[no]; !ok || after(seq, old) {
				r.revoked[no] = seq
			}
		}
		return true, nil
	})
	if err != nil {
		return err
	}
	clear(r.latest)
	for i, c := range r.copies {
		if !r.isRevoked(c) {
			r.latest[c.block] = int32(i)
		}
	}
	return nil
}

func (r *replay) isRevoked(c jCopy) bool {
	seq, ok := r.revoked[c.block]
	return ok && !after(c.sequence, seq)
}

// targets checks where the copies belong: on the file system, of which limit is the
// number of blocks, but not in the journal itself. It returns the greatest number.
func (r *replay) targets(firstData, limit uint64) (uint64, error) {
	own := r.j.spans()
	var most uint64
	for no := range r.latest {
		switch {
		case no < firstData || no >= limit:
			return 0, r.j.corrupt("a copy of block %d, which is outside", no)
		case overlaps(own, no, 1):
			return 0, r.j.corrupt("a copy of block %d, which is the journal's own", no)
		}
		most = max(most, no)
	}
	return most, nil
}

// write is the third pass. Of several copies of a block the last one counts, but a
// wrong checksum of any of them is a fault.
func (r *replay) write(put func(no uint64, b []byte) error) error {
	for i, c := range r.copies {
		if r.isRevoked(c) {
			continue
		}
		if !r.j.tailCsum() && r.latest[c.block] != int32(i) {
			continue
		}
		if err := r.j.read(c.at, r.buf); err != nil {
			return err
		}
		if !r.j.goodCopy(r.buf, c.sequence, c.sum) {
			return r.j.corrupt("wrong checksum of the copy of block %d in transaction %d", c.block, c.sequence)
		}
		if r.latest[c.block] != int32(i) {
			continue
		}
		if c.escaped {
			putBE32(r.buf, 0, jMagic)
		}
		if err := put(c.block, r.buf); err != nil {
			return err
		}
	}
	return nil
}

// replay reads the log, up to what is whole of it.
func (j *journal) replay() (*replay, error) {
	r := &replay{j: j, buf: make([]byte, j.bs), latest: map[uint64]int32{}, revoked: map[uint64]uint32{}}
	if err := r.scan(); err != nil {
		return nil, err
	}
	fc, err := j.hasFastCommit(r.end)
	if err != nil {
		return nil, err
	}
	if fc {
		return nil, unsupported("feature fast_commit: the journal has fast commits to replay")
	}
	if err := r.revokes(); err != nil {
		return nil, err
	}
	return r, nil
}
