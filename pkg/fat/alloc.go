package fat

import (
	"bytes"
	"fmt"
	"maps"
	"slices"

	"remaster/pkg/disk"
)

// alloc appends n clusters to the chain of runs, in a row if the next free ones are.
func (e *Editor) alloc(runs []run, n int64) ([]run, error) {
	if n > e.tally.free {
		return nil, fmt.Errorf("%d clusters of %d bytes are wanted, %d are free: %w", n, e.boot.cluster, e.tally.free, ErrNoSpace)
	}
	runs = slices.Clone(runs)
	last, c := uint32(0), e.next
	if k := len(runs) - 1; k >= 0 {
		last = runs[k].first + uint32(runs[k].n) - 1
		c = last + 1
	}
	for tried := uint32(2); n > 0; c++ {
		if tried++; tried > e.boot.end+1 {
			return nil, fmt.Errorf("fat: fewer clusters are free than were counted: %w", disk.ErrCorrupt)
		}
		if c >= e.boot.end {
			c = 2
		}
		v, err := e.table.get(c)
		if err != nil {
			return nil, err
		}
		if v != 0 {
			continue
		}
		if last != 0 {
			if err := e.table.set(last, c); err != nil {
				return nil, err
			}
		}
		if err := e.table.set(c, e.table.endMark()); err != nil {
			return nil, err
		}
		if last+1 == c && len(runs) > 0 {
			runs[len(runs)-1].n++
		} else {
			runs = append(runs, run{c, 1})
		}
		last, e.next, e.changed = c, c, true
		e.tally.free--
		e.tally.used++
		n--
	}
	return runs, nil
}

// cut shortens the chain of runs to n clusters.
func (e *Editor) cut(runs []run, n int64) ([]run, error) {
	var keep, drop []run
	for _, r := range runs {
		k := min(r.n, n)
		if k > 0 {
			keep = append(keep, run{r.first, k})
		}
		if k < r.n {
			drop = append(drop, run{r.first + uint32(k), r.n - k})
		}
		n -= k
	}
	if len(keep) > 0 {
		l := keep[len(keep)-1]
		if err := e.table.set(l.first+uint32(l.n)-1, e.table.endMark()); err != nil {
			return nil, err
		}
	}
	return keep, e.release(drop)
}

// release makes clusters free.
func (e *Editor) release(runs []run) error {
	for _, r := range runs {
		for c := r.first; c < r.first+uint32(r.n); c++ {
			if err := e.table.set(c, 0); err != nil {
				return err
			}
		}
		e.changed = true
		e.tally.free += r.n
		e.tally.used -= r.n
	}
	return nil
}

// info returns the FSInfo sector, or nil if there is none.
func (e *Editor) info() ([]byte, error) {
	if e.boot.infoOff == 0 {
		return nil, nil
	}
	p := make([]byte, 512)
	if err := disk.ReadFull(e.d, p, e.boot.infoOff); err != nil {
		return nil, fmt.Errorf("fat: FSInfo: %w", err)
	}
	if le.Uint32(p[infoLead:]) != infoLeadMagic || le.Uint32(p[infoStruct:]) != infoStructMagic || le.Uint32(p[infoTrail:]) != infoTrailMagic {
		return nil, nil
	}
	return p, nil
}

// Flush writes the FATs and FSInfo out, then opens the volume anew, checks it whole, and
// reads back every file that was written.
func (e *Editor) Flush() error {
	if e.changed {
		if err := e.table.flush(e.w); err != nil {
			return err
		}
		p, err := e.info()
		if err != nil {
			return err
		}
		if p != nil {
			le.PutUint32(p[infoFree:], uint32(e.tally.free))
			le.PutUint32(p[infoNext:], e.next)
			if _, err := e.w.WriteAt(p[infoFree:infoNext+4], e.boot.infoOff+infoFree); err != nil {
				return fmt.Errorf("fat: write FSInfo: %w", err)
			}
		}
		e.changed = false
	}
	f, err := Open(e.w)
	if err != nil {
		return err
	}
	t, err := f.check()
	if err != nil {
		return fmt.Errorf("after the edit: %w", err)
	}
	if t != e.tally {
		return fmt.Errorf("fat: after the edit %+v clusters were counted, not %+v: %w", t, e.tally, disk.ErrCorrupt)
	}
	for _, name := range slices.Sorted(maps.Keys(e.written)) {
		if err := f.confirm(name, e.written[name]); err != nil {
			return fmt.Errorf("read back %s: %w", name, err)
		}
	}
	clear(e.written)
	return nil
}

// confirm compares the file at path with what it was to hold.
func (f *FS) confirm(name string, want disk.Blob) error {
	t, err := f.Lookup(name)
	if err != nil {
		return err
	}
	got, err := f.File(t)
	if err != nil {
		return err
	}
	if got.Size() != want.Size() {
		return fmt.Errorf("fat: %d bytes, not %d: %w", got.Size(), want.Size(), disk.ErrCorrupt)
	}
	p, q := make([]byte, 64<<10), make([]byte, 64<<10)
	for off := int64(0); off < got.Size(); off += int64(len(p)) {
		n := min(int64(len(p)), got.Size()-off)
		if err := disk.ReadFull(got, p[:n], off); err != nil {
			return err
		}
		if err := disk.ReadFull(want, q[:n], off); err != nil {
			return err
		}
		if !bytes.Equal(p[:n], q[:n]) {
			return fmt.Errorf("fat: other bytes than were written behind %d: %w", off, disk.ErrCorrupt)
		}
	}
	return nil
}
