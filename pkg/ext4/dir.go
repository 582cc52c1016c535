package ext4

import (
	"cmp"
	"fmt"
	"io/fs"
	"slices"
	"strings"
)

// Dirent is a name in a folder.
type Dirent struct {
	Name string
	Ino  Ino
	Type fs.FileMode // type bits only
}

// File types in directory entries: the kernel's documentation, "Linear Directories".
var dirTypes = [...]uint16{0, modeReg, modeDir, modeChr, modeBlk, modeFifo, modeSock, modeLink}

func dirTypeOf(mode uint16) byte {
	for i, m := range dirTypes {
		if i > 0 && m == mode&modeFmt {
			return byte(i)
		}
	}
	return 0
}

// dir is a folder that is being read or changed.
type dir struct {
	f  *FS
	in inode
	m  *fileMap
}

// dir opens a folder.
func (f *FS) dir(ino Ino) (*dir, error) {
	in, err := f.inode(ino)
	if err != nil {
		return nil, err
	}
	if !in.isDir() {
		return nil, fmt.Errorf("ext4: inode %d: %w", ino, ErrNotDir)
	}
	if in.flags()&flEncrypt != 0 {
		return nil, unsupported("inode %d: encrypted folder", ino)
	}
	m, err := f.fileMap(in)
	if err != nil {
		return nil, err
	}
	d := &dir{f, in, m}
	bs := int64(f.sb.blockSize)
	switch n := in.size(); {
	case n == 0 || n%bs != 0:
		return nil, corrupt(ino, 0, "folder of %d bytes", n)
	case n/bs > maxDirBlocks:
		return nil, unsupported("inode %d: a folder of %d bytes", ino, n)
	case uint64(n/bs) > m.blocks():
		return nil, corrupt(ino, 0, "folder with a hole")
	}
	return d, nil
}

// blocks returns the number of blocks of the folder.
func (d *dir) blocks() uint32 { return uint32(d.in.size() / int64(d.f.sb.blockSize)) }

// phys returns where the i-th block of the folder lies.
func (d *dir) phys(i uint32) (uint64, error) {
	j, ok := slices.BinarySearchFunc(d.m.runs, uint64(i), func(r run, i uint64) int {
		if r.log+r.n <= i {
			return -1
		}
		if r.log > i {
			return 1
		}
		return 0
	})
	if !ok || d.m.runs[j].unwritten || i >= d.blocks() {
		return 0, corrupt(d.in.ino, 0, "folder without its block %d", i)
	}
	return d.m.runs[j].phys + uint64(i) - d.m.runs[j].log, nil
}

// block returns the i-th block for reading, its checksum verified.
func (d *dir) block(i uint32) ([]byte, error) { return d.blockVia(i, d.f.c.read) }

func (d *dir) blockVia(i uint32, get access) ([]byte, error) {
	no, err := d.phys(i)
	if err != nil {
		return nil, err
	}
	return get(no, tag{kindDir, uint32(d.in.ino)}, func(b []byte) error { return d.verify(i, no, b) })
}

// verify checks the checksum of a block, and that its records form a chain.
func (d *dir) verify(i uint32, no uint64, b []byte) error {
	if d.f.sb.metaCsum() {
		if d.isNode(i, b) {
			return d.verifyDx(i, no, b)
		}
		n := len(b) - deTail
		if le32(b, n) != 0 || le16(b, n+4) != deTail || b[n+6] != 0 || b[n+7] != deTailFT ||
			crc32c(d.in.seed(), b[:n]) != le32(b, n+8) {
			return corrupt(d.in.ino, no, "wrong checksum of a folder's block")
		}
	}
	end := d.leafEnd(b)
	for off := 0; off < end; {
		e, err := d.record(b[:end], off)
		if err != nil {
			return corrupt(d.in.ino, no, "%v", err)
		}
		off += e.rec
	}
	return nil
}

// leafEnd returns where the records of a leaf end: before the tail with the checksum,
// if there is one.
func (d *dir) leafEnd(b []byte) int {
	if d.f.sb.metaCsum() {
		return len(b) - deTail
	}
	return len(b)
}

// isNode reports whether the i-th block holds a node of the index: the root lies in
// the first block, the others look like one empty record.
func (d *dir) isNode(i uint32, b []byte) bool {
	return d.in.isIndex() && (i == 0 || le32(b, 0) == 0 && recLen(b, 0) == len(b))
}

// record is one entry of a linear block.
type record struct {
	off, rec int // bytes, of the whole record
	ino      Ino
	name     []byte // within the block
	typ      byte
}

// used returns the bytes that the record needs at least.
func (e record) used() int {
	if e.ino == 0 {
		return 0
	}
	return recSize(len(e.name))
}

// recSize returns the bytes that a record with a name of n bytes takes.
func recSize(n int) int { return (deHeader + n + 3) &^ 3 }

// recLen decodes a rec_len. It has 16 bits; 65,536 is written as 65,535 or 0
// (ext4_rec_len_from_disk).
func recLen(b []byte, off int) int {
	n := int(le16(b, off+4))
	if len(b) == 1<<16 && (n == 0xFFFF || n == 0) {
		return 1 << 16
	}
	return n
}

func putRecLen(b []byte, off, n int) { put16(b, off+4, uint16(min(n, 0xFFFF))) }

// record decodes the record at off, and checks that it lies within the block.
func (d *dir) record(b []byte, off int) (record, error) {
	if off+deHeader > len(b) {
		return record{}, fmt.Errorf("record at byte %d does not fit", off)
	}
	e := record{off: off, rec: recLen(b, off), ino: Ino(le32(b, off)), typ: b[off+7]}
	n := int(b[off+6])
	if e.rec%4 != 0 || e.rec < recSize(n) || e.rec > len(b)-off || uint32(e.ino) > d.f.sb.inodes {
		return e, fmt.Errorf("bad record at byte %d", off)
	}
	e.name = b[off+deHeader : off+deHeader+n]
	return e, nil
}

// records calls fn with each record of a verified leaf, or with "." and ".." of the
// root of an index, until it returns false.
func (d *dir) records(b []byte, fn func(record) bool) {
	end := d.leafEnd(b)
	for off := 0; off < end; {
		e, err := d.record(b, off)
		if err != nil || !fn(e) {
			return
		}
		off += e.rec
	}
}

// each calls fn with each name of the folder, "." and ".." included.
func (d *dir) each(fn func(block uint32, e record) bool) error {
	more := true
	for i := range d.blocks() {
		b, err := d.block(i)
		if err != nil {
			return err
		}
		if i > 0 && d.isNode(i, b) {
			continue
		}
		d.records(b, func(e record) bool {
			if e.ino != 0 {
				more = fn(i, e)
			}
			return more
		})
		if !more {
			return nil
		}
	}
	return nil
}

// ReadDir returns the entries of a folder without "." and "..", sorted by name.
func (f *FS) ReadDir(ino Ino) ([]Dirent, error) {
	d, err := f.dir(ino)
	if err != nil {
		return nil, err
	}
	var out []Dirent
	var bad error
	err = d.each(func(_ uint32, e record) bool {
		name := string(e.name)
		if name == "." || name == ".." {
			return true
		}
		if bad = checkName(name); bad != nil {
			bad = corrupt(ino, 0, "entry %q: %v", name, bad)
			return false
		}
		t, err := d.typeOf(e)
		if bad = err; bad != nil {
			return false
		}
		out = append(out, Dirent{name, e.ino, t})
		return true
	})
	if err != nil || bad != nil {
		return nil, cmp.Or(err, bad)
	}
	slices.SortFunc(out, func(a, b Dirent) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// typeOf returns the type of an entry, by the entry itself where it knows.
func (d *dir) typeOf(e record) (fs.FileMode, error) {
	if d.f.sb.incompat&incompatFiletype != 0 && e.typ > 0 && int(e.typ) < len(dirTypes) {
		return typeOf[dirTypes[e.typ]], nil
	}
	in, err := d.f.inode(e.ino)
	if err != nil {
		return 0, err
	}
	return goMode(in.mode()).Type(), nil
}

// checkName refuses what can't be a name. A slash in the name on a disk would lead
// somewhere else when it is joined to a path.
func checkName(name string) error {
	switch {
	case name == "" || name == "." || name == "..":
		return fmt.Errorf("name %q: %w", name, fs.ErrInvalid)
	case len(name) > maxName:
		return fmt.Errorf("a name of %d bytes: %w", len(name), fs.ErrInvalid)
	case strings.ContainsAny(name, "/\x00"):
		return fmt.Errorf("name %q: %w", name, fs.ErrInvalid)
	}
	return nil
}

// Lookup returns the inode that name has in the folder dir, through its index where it
// has one. "." and ".." are names like others. A name that is not there is
// fs.ErrNotExist.
func (f *FS) Lookup(dir Ino, name string) (Ino, error) {
	d, err := f.dir(dir)
	if err != nil {
		return 0, err
	}
	_, e, err := d.find(name)
	if err != nil {
		return 0, err
	}
	if e.ino == 0 {
		return 0, fmt.Errorf("ext4: %q in inode %d: %w", name, dir, fs.ErrNotExist)
	}
	return e.ino, nil
}

// find returns the record of a name and the folder's block that it lies in; the
// record's ino is 0 if there is none.
func (d *dir) find(name string) (uint32, record, error) {
	if len(name) > maxName || name == "" {
		return 0, record{}, nil
	}
	// Names in a casefolded folder are hashed in another way: read it as a list.
	if d.in.isIndex() && d.in.flags()&flCasefold == 0 && name != "." && name != ".." {
		return d.findIndexed(name)
	}
	var at uint32
	var hit record
	err := d.each(func(i uint32, e record) bool {
		if string(e.name) == name {
			at, hit = i, e
		}
		return hit.ino == 0
	})
	return at, hit, err
}

// findIn returns the record of a name in one leaf.
func (d *dir) findIn(i uint32, name string) (record, error) {
	b, err := d.block(i)
	if err != nil {
		return record{}, err
	}
	// Without checksums a leaf whose names were all removed looks like a node.
	if i == 0 || d.f.sb.metaCsum() && d.isNode(i, b) {
		return record{}, corrupt(d.in.ino, 0, "the index of the folder points at itself")
	}
	var hit record
	d.records(b, func(e record) bool {
		if e.ino != 0 && string(e.name) == name {
			hit = e
		}
		return hit.ino == 0
	})
	return hit, nil
}
