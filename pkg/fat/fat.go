// Package fat reads and edits FAT12, FAT16 and FAT32 volumes: the EFI system partition.
//
// [Open] gives a view to read; [Edit] one that can also replace, create and remove. What
// is written follows the specification's letter, and everything on the volume that is
// not named by an edit keeps its bytes: boot sectors, other files, deleted slots. Before
// the first edit and again in [Editor.Flush] the whole volume is checked: chains that
// cross, loop or do not fit their file, and FATs that differ, are refused.
//
// go-diskfs has a FAT driver too. It is not used: of an empty file it reads an error and
// loses what is written to it, it leaks the clusters of what it removes, leaves the free
// count of FSInfo stale, and rewrites both FATs whole at each allocation.
//
// Specification: Microsoft Extensible Firmware Initiative FAT32 File System
// Specification, version 1.03.
package fat

import (
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	"remaster/pkg/disk"
)

// FS is a volume. It is used by one goroutine at a time; the contents of its files may
// be read by many at once.
type FS struct {
	d     disk.Disk
	boot  *boot
	table *table
}

// Open reads the boot sector of the volume that fills d. The error wraps
// disk.ErrFormat if there is none.
func Open(d disk.Disk) (*FS, error) {
	b, err := parseBoot(d)
	if err != nil {
		return nil, err
	}
	return &FS{d, b, newTable(d, b)}, nil
}

// Info describes a volume. Sizes are in bytes.
type Info struct {
	Type        string // FAT12, FAT16 or FAT32
	UUID        string // the serial number as Linux shows it: 1A2B-3C4D
	Label       string // of the root folder, else of the boot sector
	Size        int64  // of the room for data
	Free        int64
	SectorSize  int64
	ClusterSize int64
	Dirty       bool // it was not unmounted
}

// Info reads the whole FAT to count what is free.
func (f *FS) Info() (Info, error) {
	free, err := f.table.countFree()
	if err != nil {
		return Info{}, err
	}
	dirty, err := f.dirty()
	if err != nil {
		return Info{}, err
	}
	label, err := f.Label()
	if err != nil {
		return Info{}, err
	}
	b := f.boot
	return Info{
		Type: fmt.Sprintf("FAT%d", b.bits), UUID: f.UUID(), Label: label,
		Size: int64(b.end-2) * b.cluster, Free: free * b.cluster,
		SectorSize: b.sector, ClusterSize: b.cluster, Dirty: dirty,
	}, nil
}

// UUID returns the serial number as Linux shows it: 1A2B-3C4D.
func (f *FS) UUID() string {
	return fmt.Sprintf("%04X-%04X", f.boot.serial>>16, f.boot.serial&0xFFFF)
}

// Label returns that of the root folder, which is the one that systems change, else that
// of the boot sector.
func (f *FS) Label() (string, error) {
	d, err := f.readDir(f.root())
	if err != nil {
		return "", err
	}
	for i := 0; i+slotSize <= len(d.data) && d.data[i] != slotEnd; i += slotSize {
		s := d.data[i:][:slotSize]
		if s[0] != slotFree && s[slotAttr]&attrVolume != 0 && s[slotAttr]&attrLongMask != attrLong {
			return decodeLabel(s[:11]), nil
		}
	}
	return f.boot.label, nil
}

// dirty looks at the marks of a mounted volume: Linux's in the boot sector, and those of
// the specification in the second entry of the FAT, where a bit that is clear is one.
func (f *FS) dirty() (bool, error) {
	v, err := f.table.get(1)
	if err != nil {
		return false, err
	}
	clean := map[int]uint32{12: 0, 16: 0xC000, 32: 0x0C000000}[f.boot.bits]
	return v&clean != clean || f.boot.state&1 != 0, nil
}

// root returns an entry for the root folder.
func (f *FS) root() *Entry {
	return &Entry{Name: "/", Mode: fs.ModeDir | 0o755, ModTime: decodeTime(0, 0), first: f.boot.rootCluster}
}

// Lookup finds what lies at the slash separated path. Case does not matter, and short
// names are found too. The error wraps fs.ErrNotExist if nothing does.
func (f *FS) Lookup(name string) (*Entry, error) {
	e := f.root()
	for c := range strings.SplitSeq(strings.Trim(path.Clean("/"+name), "/"), "/") {
		if c == "" {
			break
		}
		if !e.IsDir() {
			return nil, &fs.PathError{Op: "look up", Path: name, Err: fs.ErrNotExist}
		}
		d, err := f.readDir(e)
		if err != nil {
			return nil, &fs.PathError{Op: "look up", Path: name, Err: err}
		}
		if e = find(d.entries(), c); e == nil {
			return nil, &fs.PathError{Op: "look up", Path: name, Err: fs.ErrNotExist}
		}
	}
	return e, nil
}

func find(es []*Entry, name string) *Entry {
	for _, e := range es {
		if strings.EqualFold(e.Name, name) || strings.EqualFold(e.alias, name) {
			return e
		}
	}
	return nil
}

// ReadDir returns what the folder at path holds, sorted by name. Of two entries with one
// name, only the first can be looked up, and only it is returned.
func (f *FS) ReadDir(name string) ([]*Entry, error) {
	e, err := f.Lookup(name)
	if err != nil {
		return nil, err
	}
	if !e.IsDir() {
		return nil, &fs.PathError{Op: "list", Path: name, Err: fmt.Errorf("not a folder: %w", fs.ErrInvalid)}
	}
	d, err := f.readDir(e)
	if err != nil {
		return nil, &fs.PathError{Op: "list", Path: name, Err: err}
	}
	es := d.entries()
	slices.SortStableFunc(es, func(a, b *Entry) int { return strings.Compare(a.Name, b.Name) })
	return slices.CompactFunc(es, func(a, b *Entry) bool { return a.Name == b.Name }), nil
}

// File returns the content of the file e. It can be read until e is changed.
func (f *FS) File(e *Entry) (disk.Blob, error) {
	if e.IsDir() {
		return nil, fmt.Errorf("read %s: is a folder: %w", e.Name, fs.ErrInvalid)
	}
	if e.Size == 0 {
		return disk.Bytes(nil), nil
	}
	want := f.boot.clustersFor(e.Size)
	runs, _, err := f.table.chain(e.first, want)
	if err == nil && count(runs) < want {
		err = fmt.Errorf("fat: %d clusters for %d bytes: %w", count(runs), e.Size, disk.ErrCorrupt)
	}
	if err != nil {
		return nil, &fs.PathError{Op: "read", Path: e.Name, Err: err}
	}
	return &file{f.d, f.boot, runs, e.Size}, nil
}

// file is a file's content.
type file struct {
	d    disk.Disk
	b    *boot
	runs []run
	size int64
}

func (f *file) Size() int64 { return f.size }

// ReadAt implements io.ReaderAt.
func (f *file) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read at negative offset %d", off)
	}
	if off >= f.size {
		return 0, io.EOF
	}
	var end error
	if int64(len(p)) > f.size-off {
		p, end = p[:f.size-off], io.EOF
	}
	done, start := 0, int64(0)
	for _, r := range f.runs {
		n := r.n * f.b.cluster
		if at := off + int64(done) - start; at < n {
			k := int(min(int64(len(p)-done), n-at))
			if err := disk.ReadFull(f.d, p[done:done+k], f.b.clusterOff(r.first)+at); err != nil {
				return done, err
			}
			if done += k; done == len(p) {
				break
			}
		}
		start += n
	}
	return done, end
}
