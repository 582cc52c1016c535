package disk

import (
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"os"
	"sync"
)

// blockSize is the unit in which an overlay keeps copies. It is the page and block
// size of nearly every guest, so that a guest's write rarely reads its base.
const blockSize = 4096

// chunkSize bytes of memory are allocated at a time.
const chunkSize = 64 * blockSize

// tableBlocks blocks that lie side by side on the disk share a table of their slots.
const tableBlocks = 64

// OverlayOptions are the limits of an overlay. The zero value is usable.
type OverlayOptions struct {
	// MemoryLimit is the number of bytes kept in memory before the rest goes to a
	// temporary file; 0 means 64 MiB.
	MemoryLimit int64
	// TempDir is where that file is made; "" means [os.TempDir]. The file has no
	// name by the time that anything is written to it.
	TempDir string
}

// Overlay is a copy-on-write view of a base: it reads as the base with every write
// laid over it. The base is never written. ReadAt, Extents and Changed may be called
// by many goroutines at once, also while one goroutine writes.
type Overlay struct {
	base Disk
	o    OverlayOptions

	mu      sync.RWMutex
	size    int64
	slots   map[int64]*[tableBlocks]uint32 // block / tableBlocks → slots, counted from 1; 0 is none
	next    int64                          // first slot that was never used
	mem     [][]byte                       // slots [0, memSlots), in chunks
	spill   *os.File                       // slots from memSlots on
	changed Ranges
}

// NewOverlay returns an overlay without edits over base. Close it to release what
// it holds; the base is the caller's.
func NewOverlay(base Blob, o OverlayOptions) *Overlay {
	if o.MemoryLimit == 0 {
		o.MemoryLimit = 64 << 20
	}
	return &Overlay{base: AsDisk(base), o: o, size: base.Size(), slots: map[int64]*[tableBlocks]uint32{}}
}

// Base returns the disk that the overlay was laid over.
func (v *Overlay) Base() Disk { return v.base }

// Size returns the size in bytes, the base's unless Grow was called.
func (v *Overlay) Size() int64 {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.size
}

// Grow makes the overlay size bytes large; the new bytes are zeros and count as
// changed. A smaller size is an error.
func (v *Overlay) Grow(size int64) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if size < v.size || size > math.MaxInt64-blockSize {
		return fmt.Errorf("grow overlay of %d bytes to %d", v.size, size)
	}
	v.changed.Add(Range{v.size, size - v.size})
	v.size = size
	return nil
}

// Changed yields the ranges that were written or grown, in order, merged. What was
// written counts as changed even if it equals the base.
func (v *Overlay) Changed() iter.Seq[Range] { return v.ChangedIn(Range{0, math.MaxInt64}) }

// ChangedIn yields the parts of Changed that lie in r.
func (v *Overlay) ChangedIn(r Range) iter.Seq[Range] {
	return func(yield func(Range) bool) {
		v.mu.RLock()
		var rs []Range
		for x := range v.changed.In(r) {
			rs = append(rs, x)
		}
		v.mu.RUnlock()
		for _, x := range rs {
			if !yield(x) {
				return
			}
		}
	}
}

// Dirty reports whether anything was written or grown.
func (v *Overlay) Dirty() bool {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.changed.Count() > 0
}

// ReadAt implements io.ReaderAt.
func (v *Overlay) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read at negative offset %d", off)
	}
	v.mu.RLock()
	defer v.mu.RUnlock()
	if off >= v.size {
		return 0, io.EOF
	}
	eof := false
	if int64(len(p)) > v.size-off {
		p, eof = p[:v.size-off], true
	}
	for n := 0; n < len(p); {
		at := off + int64(n)
		block, in := at/blockSize, at%blockSize
		slot, blocks := v.run(block, (in+int64(len(p)-n)+blockSize-1)/blockSize)
		want := int(min(int64(len(p)-n), blocks*blockSize-in))
		if slot >= 0 {
			if err := v.readSlots(p[n:n+want], slot*blockSize+in); err != nil {
				return n, err
			}
			n += want
			continue
		}
		if err := v.readBase(p[n:n+want], at); err != nil {
			return n, err
		}
		n += want
	}
	if eof {
		return len(p), io.EOF
	}
	return len(p), nil
}

// readBase fills p from the base; bytes behind its end are zeros.
func (v *Overlay) readBase(p []byte, off int64) error {
	have := min(max(v.base.Size()-off, 0), int64(len(p)))
	clear(p[have:])
	if have == 0 {
		return nil
	}
	return ReadFull(v.base, p[:have], off)
}

// WriteAt implements io.WriterAt. A write past the end fails and writes nothing.
func (v *Overlay) WriteAt(p []byte, off int64) (int, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if off < 0 || off > v.size || int64(len(p)) > v.size-off {
		return 0, fmt.Errorf("write of %d bytes at %d is not within %d bytes", len(p), off, v.size)
	}
	for n := 0; n < len(p); {
		at := off + int64(n)
		block, in := at/blockSize, at%blockSize
		want, err := v.writeRun(block, p[n:], in)
		if err != nil {
			v.changed.Add(Range{off, int64(n)})
			return n, err
		}
		n += want
	}
	v.changed.Add(Range{off, int64(len(p))})
	return len(p), nil
}

// slot returns the slot of a block, or -1.
func (v *Overlay) slot(block int64) int64 {
	if t := v.slots[block/tableBlocks]; t != nil {
		return int64(t[block%tableBlocks]) - 1
	}
	return -1
}

// run returns the slot of a block, and how many blocks from it on, up to most, lie in
// slots side by side; or -1, and how many blocks have no slots.
func (v *Overlay) run(block, most int64) (slot, n int64) {
	slot = v.slot(block)
	for n = 1; n < most; n++ {
		want := slot
		if slot >= 0 {
			want += n
		}
		if v.slot(block+n) != want {
			break
		}
	}
	return slot, n
}

// writeRun writes the first bytes of p, as many as go to slots side by side, to a block
// from its byte in on, and returns their number.
func (v *Overlay) writeRun(block int64, p []byte, in int64) (int, error) {
	most := max(1, int64(len(p))/blockSize)
	if in > 0 {
		most = 1
	}
	slot, blocks := v.run(block, most)
	n := int(min(int64(len(p)), blocks*blockSize-in))
	p = p[:n]
	if slot >= 0 {
		return n, v.writeSlots(p, slot*blockSize+in)
	}
	if n%blockSize > 0 { // a part of one block
		whole := make([]byte, blockSize)
		if err := v.readBase(whole, block*blockSize); err != nil {
			return 0, err
		}
		copy(whole[in:], p)
		p = whole
	}
	if v.next+blocks > math.MaxUint32 {
		return 0, errors.New("too many edits for one overlay")
	}
	if err := v.writeSlots(p, v.next*blockSize); err != nil {
		return 0, err
	}
	for i := range blocks {
		t := v.slots[(block+i)/tableBlocks]
		if t == nil {
			t = new([tableBlocks]uint32)
			v.slots[(block+i)/tableBlocks] = t
		}
		v.next++
		t[(block+i)%tableBlocks] = uint32(v.next)
	}
	return n, nil
}

// memBytes returns where, in the row of all slots, those on disk begin.
func (v *Overlay) memBytes() int64 { return v.o.MemoryLimit / blockSize * blockSize }

// readSlots fills p from the row of all slots.
func (v *Overlay) readSlots(p []byte, off int64) error {
	for m := v.memBytes(); len(p) > 0; {
		if off >= m {
			return ReadFull(v.spill, p, off-m)
		}
		n := copy(p[:min(int64(len(p)), m-off)], v.mem[off/chunkSize][off%chunkSize:])
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// writeSlots writes p into the row of all slots.
func (v *Overlay) writeSlots(p []byte, off int64) error {
	m := v.memBytes()
	for len(p) > 0 && off < m {
		if off/chunkSize == int64(len(v.mem)) {
			v.mem = append(v.mem, make([]byte, chunkSize))
		}
		n := copy(v.mem[off/chunkSize][off%chunkSize:], p[:min(int64(len(p)), m-off)])
		p, off = p[n:], off+int64(n)
	}
	if len(p) == 0 {
		return nil
	}
	if v.spill == nil {
		f, err := TempFile(v.o.TempDir)
		if err != nil {
			return fmt.Errorf("spill edits to disk: %w", err)
		}
		v.spill = f
	}
	if _, err := v.spill.WriteAt(p, off-m); err != nil {
		return fmt.Errorf("spill edits to disk: %w", err)
	}
	return nil
}

// TempFile returns a file without a name in dir, or in [os.TempDir] if dir is "".
// Its space is free again when it is closed, or when the process ends.
func TempFile(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, ".remaster-*")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Extents implements Disk: the base's extents, with everything changed taken for
// data.
func (v *Overlay) Extents(r Range) iter.Seq2[Extent, error] {
	return func(yield func(Extent, error) bool) {
		r := r.Intersect(Range{0, v.Size()})
		var pending Extent // joins neighbours of one kind
		emit := func(e Extent) bool {
			if e.Len == 0 {
				return true
			}
			if pending.Len > 0 && pending.Zero == e.Zero {
				pending.Len += e.Len
				return true
			}
			out := pending
			pending = e
			return out.Len == 0 || yield(out, nil)
		}
		base := func(r Range) bool {
			end := r.End()
			if in := r.Intersect(Whole(v.base)); in.Len > 0 {
				for e, err := range v.base.Extents(in) {
					if err != nil {
						yield(Extent{}, err)
						return false
					}
					if !emit(e) {
						return false
					}
				}
				r = Range{in.End(), end - in.End()}
			}
			return emit(Extent{r, true})
		}
		at := r.Off
		for c := range v.ChangedIn(r) {
			if !base(Range{at, c.Off - at}) || !emit(Extent{Range: c}) {
				return
			}
			at = c.End()
		}
		if base(Range{at, r.End() - at}) && pending.Len > 0 {
			yield(pending, nil)
		}
	}
}

// Close releases the overlay's memory and its temporary file. The overlay must not
// be used afterwards.
func (v *Overlay) Close() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.slots, v.mem = nil, nil
	if v.spill == nil {
		return nil
	}
	return v.spill.Close()
}
