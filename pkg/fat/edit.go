package fat

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path"
	"strings"
	"time"

	"remaster/internal/hint"
	"remaster/pkg/disk"
)

// ErrNoSpace says that the volume has too few free clusters.
var ErrNoSpace = errors.New("no space left on the volume")

// Editor is a volume that can be changed. Data and folders are written to the disk at
// once, the FAT and FSInfo by Flush. After an error, and before Flush has returned, the
// disk must not be published.
type Editor struct {
	*FS
	w       disk.Writable
	tally   tally
	next    uint32 // where a search for a free cluster begins
	changed bool   // the FAT was
	written map[string]disk.Blob
}

// Edit opens the volume that fills d to change it. A volume that was not unmounted, or
// that contradicts itself, is refused.
func Edit(d disk.Writable) (*Editor, error) {
	f, err := Open(d)
	if err != nil {
		return nil, err
	}
	if !f.boot.mirrored {
		return nil, fmt.Errorf("fat: FATs that are not mirrored: %w", disk.ErrUnsupported)
	}
	if dirty, err := f.dirty(); err != nil || dirty {
		if err == nil {
			err = hint.With(fmt.Errorf("fat: the volume was not unmounted cleanly: %w", disk.ErrUnsupported),
				"boot the image once and shut it down, or run fsck.vfat -a on that partition, then try again")
		}
		return nil, err
	}
	t, err := f.check()
	if err != nil {
		return nil, hint.With(err, "repair the volume with fsck.vfat first")
	}
	e := &Editor{FS: f, w: d, tally: t, next: 2, written: map[string]disk.Blob{}}
	if p, err := e.info(); err != nil {
		return nil, err
	} else if p != nil {
		if n := le.Uint32(p[infoNext:]); f.boot.valid(n) {
			e.next = n
		}
	}
	return e, nil
}

// SetContent replaces the bytes of the file at path. Its name and attributes stay.
func (e *Editor) SetContent(name string, content disk.Blob, mtime time.Time) error {
	return e.do("write", name, func() error {
		t, err := e.Lookup(name)
		if err != nil {
			return err
		}
		if t.IsDir() {
			return errors.New("is a folder")
		}
		var runs []run
		if t.Size > 0 {
			if runs, _, err = e.table.chain(t.first, e.boot.clustersFor(t.Size)); err != nil {
				return err
			}
		}
		if runs, err = e.fill(runs, content); err != nil {
			return err
		}
		s := t.dir.data[(t.slot+t.n-1)*slotSize:][:slotSize]
		e.describe(s, runs, content.Size())
		date, clock := encodeTime(mtime)
		le.PutUint16(s[slotDate:], date)
		le.PutUint16(s[slotTime:], clock)
		s[slotAttr] |= attrArchive
		e.written[key(name)] = content
		return e.writeSlots(t.dir, t.slot+t.n-1, 1)
	})
}

// CreateFile makes a file in a folder that is there.
func (e *Editor) CreateFile(name string, content disk.Blob, mtime time.Time) error {
	return e.do("create", name, func() error {
		at, err := e.place(name)
		if err != nil {
			return err
		}
		runs, err := e.fill(nil, content)
		if err != nil {
			return err
		}
		e.written[key(name)] = content
		return e.add(at, attrArchive, runs, content.Size(), mtime)
	})
}

// Mkdir makes an empty folder in a folder that is there.
func (e *Editor) Mkdir(name string, mtime time.Time) error {
	return e.do("make folder", name, func() error {
		at, err := e.place(name)
		if err != nil {
			return err
		}
		runs, err := e.alloc(nil, 1)
		if err != nil {
			return err
		}
		data := make([]byte, e.boot.cluster)
		for i, name := range []string{".", ".."} {
			s := data[i*slotSize:][:slotSize]
			copy(s, name+"          ")
			e.newSlot(s, attrDir, mtime)
			self := runs
			if i == 1 {
				self = []run{{at.dir.self, 1}} // 0 stands for the root
			}
			e.describe(s, self, 0)
		}
		if _, err := e.w.WriteAt(data, e.boot.clusterOff(runs[0].first)); err != nil {
			return err
		}
		return e.add(at, attrDir, runs, 0, mtime)
	})
}

// Remove removes the file or the empty folder at path.
func (e *Editor) Remove(name string) error {
	return e.do("remove", name, func() error {
		t, err := e.Lookup(name)
		if err != nil {
			return err
		}
		if t.dir == nil {
			return errors.New("is the root folder")
		}
		var runs []run
		if t.IsDir() {
			d, err := e.readDir(t)
			if err != nil {
				return err
			}
			if len(d.entries()) > 0 {
				return errors.New("folder is not empty")
			}
			runs = d.runs
		} else if t.Size > 0 {
			if runs, _, err = e.table.chain(t.first, e.boot.clustersFor(t.Size)); err != nil {
				return err
			}
		}
		if err := e.release(runs); err != nil {
			return err
		}
		for i := t.slot; i < t.slot+t.n; i++ {
			t.dir.data[i*slotSize] = slotFree
		}
		delete(e.written, key(name))
		return e.writeSlots(t.dir, t.slot, t.n)
	})
}

// do gives the errors of f their place.
func (e *Editor) do(op, name string, f func() error) error {
	err := f()
	var located *fs.PathError
	if err == nil || errors.As(err, &located) && located.Path == name {
		return err
	}
	return &fs.PathError{Op: op, Path: name, Err: err}
}

// spot is the place of a new entry: in a folder, by a name.
type spot struct {
	dir   *dir
	name  string
	short [11]byte
	long  bool
}

func (e *Editor) place(name string) (*spot, error) {
	name = path.Clean("/" + name)
	folder, base := path.Split(name)
	if err := checkNew(base); err != nil {
		return nil, err
	}
	p, err := e.Lookup(folder)
	if err != nil {
		return nil, err
	}
	if !p.IsDir() {
		return nil, fmt.Errorf("%s is not a folder: %w", folder, fs.ErrNotExist)
	}
	d, err := e.readDir(p)
	if err != nil {
		return nil, err
	}
	es := d.entries()
	if find(es, base) != nil {
		return nil, fs.ErrExist
	}
	at := &spot{dir: d, name: base}
	taken := map[[11]byte]bool{}
	for _, x := range es {
		taken[x.rawShort] = true
	}
	at.short, at.long, err = alias(base, func(s [11]byte) bool { return taken[s] })
	return at, err
}

// add writes the slots of a new entry.
func (e *Editor) add(at *spot, attr byte, runs []run, size int64, mtime time.Time) error {
	var slots []byte
	if at.long {
		slots = longSlots(at.name, at.short)
	}
	s := make([]byte, slotSize)
	copy(s, at.short[:])
	e.newSlot(s, attr, mtime)
	e.describe(s, runs, size)
	slots = append(slots, s...)
	n := len(slots) / slotSize
	d := at.dir
	i, atEnd, err := e.freeSlots(d, n)
	if err != nil {
		return err
	}
	copy(d.data[i*slotSize:], slots)
	if next := (i + n) * slotSize; atEnd && next < len(d.data) {
		d.data[next] = slotEnd
		n++
	}
	return e.writeSlots(d, i, n)
}

func (e *Editor) newSlot(s []byte, attr byte, mtime time.Time) {
	date, clock := encodeTime(mtime)
	s[slotAttr] = attr
	for _, at := range []int{slotMadeDate, slotReadDate, slotDate} {
		le.PutUint16(s[at:], date)
	}
	for _, at := range []int{slotMadeTime, slotTime} {
		le.PutUint16(s[at:], clock)
	}
}

// describe puts the first cluster and the size into a slot.
func (e *Editor) describe(s []byte, runs []run, size int64) {
	var first uint32
	if len(runs) > 0 {
		first = runs[0].first
	}
	le.PutUint16(s[slotLow:], uint16(first))
	if e.boot.bits == 32 {
		le.PutUint16(s[slotHigh:], uint16(first>>16))
	}
	le.PutUint32(s[slotBytes:], uint32(size))
}

// freeSlots finds n free slots in a row, and makes the folder longer if it must. atEnd
// says that they reach behind the end mark, where anything may lie.
func (e *Editor) freeSlots(d *dir, n int) (start int, atEnd bool, err error) {
	total := len(d.data) / slotSize
	for i := range total {
		atEnd = atEnd || d.data[i*slotSize] == slotEnd
		if !atEnd && d.data[i*slotSize] != slotFree {
			start = i + 1
		} else if i-start+1 == n {
			return start, atEnd, nil
		}
	}
	if len(d.runs) == 0 {
		return 0, false, fmt.Errorf("the root folder is full: %w", ErrNoSpace)
	}
	more := e.boot.clustersFor(int64((n - (total - start)) * slotSize))
	old, size := len(d.data), int(more*e.boot.cluster)
	if old+size > maxDirSize {
		return 0, false, fmt.Errorf("the folder is full: %w", ErrNoSpace)
	}
	if d.runs, err = e.alloc(d.runs, more); err != nil {
		return 0, false, err
	}
	d.data = append(d.data, make([]byte, size)...)
	return start, true, e.writeBytes(d, old, size)
}

func (e *Editor) writeSlots(d *dir, i, n int) error {
	return e.writeBytes(d, i*slotSize, n*slotSize)
}

// writeBytes writes a part of a folder to its clusters.
func (e *Editor) writeBytes(d *dir, off, n int) error {
	for n > 0 {
		k := n
		if len(d.runs) > 0 {
			k = min(n, int(e.boot.cluster)-off%int(e.boot.cluster))
		}
		if _, err := e.w.WriteAt(d.data[off:off+k], d.offset(int64(off))); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

// fill makes the chain of runs as long as the content needs and writes it there; what
// is left of the last cluster becomes zeros.
func (e *Editor) fill(runs []run, content disk.Blob) ([]run, error) {
	size := content.Size()
	if size > math.MaxUint32 {
		return nil, fmt.Errorf("%d bytes are more than a file on FAT can have: %w", size, disk.ErrUnsupported)
	}
	have, want := count(runs), e.boot.clustersFor(size)
	var err error
	if want > have {
		runs, err = e.alloc(runs, want-have)
	} else if want < have {
		runs, err = e.cut(runs, want)
	}
	if err != nil {
		return nil, err
	}
	buf := make([]byte, max(64<<10, e.boot.cluster))
	off := int64(0)
	for _, r := range runs {
		at, n := e.boot.clusterOff(r.first), r.n*e.boot.cluster
		for n > 0 {
			p := buf[:min(n, int64(len(buf)))]
			data := min(int64(len(p)), size-off)
			clear(p[data:])
			if err := disk.ReadFull(content, p[:data], off); err != nil {
				return nil, err
			}
			if _, err := e.w.WriteAt(p, at); err != nil {
				return nil, err
			}
			off, at, n = off+data, at+int64(len(p)), n-int64(len(p))
		}
	}
	return runs, nil
}

// key is the same for all spellings of a path.
func key(name string) string { return strings.ToLower(path.Clean("/" + name)) }
