package ext4

import (
	"errors"
	"fmt"
	"io"
	"iter"
	"math"

	"remaster/pkg/disk"
)

// Free yields the ranges of bytes that belong to no file and to no structure of the
// file system, by its bitmaps, in order and apart. The bitmaps are verified: their
// checksums, that they have as many free blocks as the descriptors say, and that no
// metadata is marked free. Those that were never initialised are computed. Nothing but
// descriptors and bitmaps is read.
//
// In an [Editor] the ranges are those that the disk has after the next Flush. The bytes
// of a removed file are free, too; nothing outside the blocks of the file system is.
func (f *FS) Free() iter.Seq2[disk.Range, error] {
	return func(yield func(disk.Range, error) bool) {
		if f.sb.ro&roBigalloc != 0 {
			yield(disk.Range{}, unsupported("free space with feature bigalloc"))
			return
		}
		bs := uint64(f.sb.blockSize)
		var last span // joins the free blocks at the end of a group with those of the next
		emit := func(s span) bool {
			if last.n > 0 && last.first+last.n == s.first {
				last.n += s.n
				return true
			}
			out := last
			last = s
			return out.n == 0 || yield(disk.Range{Off: int64(out.first * bs), Len: int64(out.n * bs)}, nil)
		}
		for g := range f.sb.groups {
			b, err := f.checkedBlockBits(g)
			if err != nil {
				yield(disk.Range{}, err)
				return
			}
			n := f.sb.groupBlocks(g)
			for i := nextBit(b, 0, n, false); i < n; {
				end := nextBit(b, i, n, true)
				if !emit(span{f.sb.groupFirst(g) + uint64(i), uint64(end - i)}) {
					return
				}
				i = nextBit(b, end, n, false)
			}
		}
		emit(span{math.MaxUint64, 1})
	}
}

// checkedBlockBits returns the block bitmap of a group for reading, after a check that
// it agrees with the descriptor and that no metadata of a fixed place is free.
func (f *FS) checkedBlockBits(g uint32) ([]byte, error) {
	d, err := f.group(g)
	if err != nil {
		return nil, err
	}
	b, err := f.blockBits(d)
	if err != nil {
		return nil, err
	}
	if free := zeroBits(b, f.sb.groupBlocks(g)); free != d.freeBlocks() {
		return nil, corrupt(0, 0, "group %d is said to have %d free blocks and has %d", g, d.freeBlocks(), free)
	}
	must := make([]byte, f.sb.blockSize)
	if err := f.initBlockBits(d, must); err != nil {
		return nil, err
	}
	for i, m := range must {
		if b[i]&m != m {
			return nil, corrupt(0, 0, "metadata of group %d is marked free", g)
		}
	}
	return b, nil
}

// maxSparse is the number of free ranges that a sparse view remembers. A file system
// with more of them, which no image for a first boot has, keeps its short ones.
const maxSparse = 1 << 20

// Sparse returns a view of d in which the free blocks of f, whose first byte is d's
// byte off, read as zeros and are known to be zeros: whoever copies the view need not
// read them, nor write them. What those blocks hold, the content of deleted files for
// one, is not part of the view. The free blocks are those of the moment of the call;
// the view is to be dropped when the file system changes. It may be read by many
// goroutines at once if d may.
func Sparse(d disk.Disk, off int64, f *FS) (disk.Disk, error) {
	if size := int64(f.sb.blocks) * int64(f.sb.blockSize); off < 0 || off > d.Size() || size > d.Size()-off {
		return nil, fmt.Errorf("ext4: a file system of %d bytes at %d is not within a disk of %d", size, off, d.Size())
	}
	v := &sparse{d: d}
	least := int64(0)
	for r, err := range f.Free() {
		if err != nil {
			return nil, err
		}
		if r.Len < least {
			continue
		}
		if v.free.Add(disk.Range{Off: off + r.Off, Len: r.Len}); v.free.Count() < maxSparse {
			continue
		}
		// Half of the memory at least comes free, or the limit rises again soon.
		least = max(2*least, 2*int64(f.sb.blockSize))
		var longer disk.Ranges
		for r := range v.free.All() {
			if r.Len >= least {
				longer.Add(r)
			}
		}
		v.free = longer
	}
	return v, nil
}

// sparse is a disk with ranges that read as zeros.
type sparse struct {
	d    disk.Disk
	free disk.Ranges
}

func (v *sparse) Size() int64 { return v.d.Size() }

// ReadAt implements io.ReaderAt.
func (v *sparse) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("read at a negative offset")
	}
	if off >= v.d.Size() {
		return 0, io.EOF
	}
	eof := int64(len(p)) > v.d.Size()-off
	if eof {
		p = p[:v.d.Size()-off]
	}
	done := off
	data := func(end int64) error {
		if done == end {
			return nil
		}
		return disk.ReadFull(v.d, p[done-off:end-off], done)
	}
	for r := range v.free.In(disk.Range{Off: off, Len: int64(len(p))}) {
		if err := data(r.Off); err != nil {
			return int(done - off), err
		}
		clear(p[r.Off-off : r.End()-off])
		done = r.End()
	}
	if err := data(off + int64(len(p))); err != nil {
		return int(done - off), err
	}
	if eof {
		return len(p), io.EOF
	}
	return len(p), nil
}

// Extents implements disk.Disk.
func (v *sparse) Extents(r disk.Range) iter.Seq2[disk.Extent, error] {
	return func(yield func(disk.Extent, error) bool) {
		r := r.Intersect(disk.Whole(v.d))
		var last disk.Extent // joins neighbours of one kind
		emit := func(e disk.Extent) bool {
			if last.Len > 0 && last.Zero == e.Zero {
				last.Len += e.Len
				return true
			}
			out := last
			last = e
			return out.Len == 0 || yield(out, nil)
		}
		base := func(r disk.Range) bool {
			if r.Len == 0 {
				return true
			}
			for e, err := range v.d.Extents(r) {
				if err != nil {
					yield(disk.Extent{}, err)
					return false
				}
				if !emit(e) {
					return false
				}
			}
			return true
		}
		at := r.Off
		for x := range v.free.In(r) {
			if !base(disk.Range{Off: at, Len: x.Off - at}) || !emit(disk.Extent{Range: x, Zero: true}) {
				return
			}
			at = x.End()
		}
		if base(disk.Range{Off: at, Len: r.End() - at}) && last.Len > 0 {
			yield(last, nil)
		}
	}
}
