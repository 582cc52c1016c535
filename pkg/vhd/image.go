package vhd

import (
	"bytes"
	"fmt"
	"io"
	"iter"
	"sync"

	"remaster/internal/hint"
	"remaster/pkg/disk"
)

// ReadAt reads the guest's disk; it implements io.ReaderAt.
//
// The specification says that a sector of a dynamic disk whose bitmap bit is 0 was
// never written, so that it reads as zeros; VirtualBox and Xen do that, while qemu
// never looks at bitmaps. In a sound image both see the same, as such a sector holds
// zeros. One that holds anything else is refused with disk.ErrCorrupt, because what
// the disk says would depend on who reads it.
func (m *Image) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read at negative offset %d", off)
	}
	size := m.info.Size
	if off >= size {
		return 0, io.EOF
	}
	var eof error
	if int64(len(p)) > size-off {
		p, eof = p[:size-off], io.EOF
	}
	if m.info.Type == TypeFixed {
		if err := disk.ReadFull(m.b, p, off); err != nil {
			return 0, err
		}
		return len(p), eof
	}
	n := 0
	for n < len(p) {
		block, in := m.locate(off + int64(n))
		part := p[n : n+int(min(int64(len(p)-n), m.info.BlockSize-in))]
		if err := m.readBlock(part, block, in); err != nil {
			return n, err
		}
		n += len(part)
	}
	return n, eof
}

// locate returns the block of a guest offset and the offset within it.
func (m *Image) locate(off int64) (block int, in int64) {
	return int(off / m.info.BlockSize), off % m.info.BlockSize
}

// place returns where a block's bitmap is in the file. The block's data follow it.
func (m *Image) place(block int) (off int64, ok bool) {
	s := m.bat[block]
	return int64(s) * sectorSize, s != absentBlock
}

// readBlock fills p from byte in of a block.
func (m *Image) readBlock(p []byte, block int, in int64) error {
	at, ok := m.place(block)
	if !ok {
		clear(p)
		return nil
	}
	if err := disk.ReadFull(m.b, p, at+m.bitmap+in); err != nil {
		return fmt.Errorf("block %d: %w", block, err)
	}
	bits, err := m.readBitmap(block)
	if err != nil || bits == nil {
		return err
	}
	for n := 0; n < len(p); {
		sector := (in + int64(n)) / sectorSize
		next := min(len(p), int((sector+1)*sectorSize-in))
		if !bit(bits, sector) && !isZero(p[n:next]) {
			return hint.With(corrupt("block %d: sector %d is marked as never written, but holds data", block, sector),
				"programs read this image differently: convert it with the one whose view is right")
		}
		n = next
	}
	return nil
}

func bit(bits []byte, sector int64) bool { return bits[sector/8]&(0x80>>(sector%8)) != 0 }

// readBitmap returns the sector bitmap of an allocated block, nil if every bit of it
// is set. The slice must not be changed.
func (m *Image) readBitmap(block int) ([]byte, error) {
	if bits, ok := m.maps.get(block); ok {
		return bits, nil
	}
	at, _ := m.place(block)
	bits := make([]byte, (m.info.BlockSize/sectorSize+7)/8)
	if err := disk.ReadFull(m.b, bits, at); err != nil {
		return nil, fmt.Errorf("bitmap of block %d: %w", block, err)
	}
	if len(bytes.Trim(bits, "\xff")) == 0 {
		bits = nil
	}
	m.maps.put(block, bits)
	return bits, nil
}

// bitmaps remembers the bitmaps that were read: nil for those with every bit set,
// which nearly all are. The others are dropped when they take too much memory.
type bitmaps struct {
	mu   sync.RWMutex
	m    map[int][]byte
	size int
}

const maxBitmapBytes = 4 << 20

func (c *bitmaps) get(block int) ([]byte, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	bits, ok := c.m[block]
	return bits, ok
}

func (c *bitmaps) put(block int, bits []byte) {
	const entry = 64 // roughly what the map itself needs
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.m == nil || c.size+len(bits)+entry > maxBitmapBytes {
		c.m, c.size = map[int][]byte{}, 0
	}
	if _, ok := c.m[block]; !ok {
		c.m[block] = bits
		c.size += len(bits) + entry
	}
}

// Extents implements disk.Disk. Absent blocks are zeros, and so are holes of the file
// below if it knows them.
func (m *Image) Extents(r disk.Range) iter.Seq2[disk.Extent, error] {
	r = r.Intersect(disk.Whole(m))
	return joined(func(yield func(disk.Extent, error) bool) {
		if m.info.Type == TypeFixed {
			m.b.Extents(r)(yield)
			return
		}
		for r.Len > 0 {
			block, in := m.locate(r.Off)
			n := min(r.Len, m.info.BlockSize-in)
			if at, ok := m.place(block); !ok {
				if !yield(disk.Extent{Range: disk.Range{Off: r.Off, Len: n}, Zero: true}, nil) {
					return
				}
			} else {
				from := at + m.bitmap + in
				for e, err := range m.b.Extents(disk.Range{Off: from, Len: n}) {
					e.Off += r.Off - from
					if !yield(e, err) || err != nil {
						return
					}
				}
			}
			r = disk.Range{Off: r.Off + n, Len: r.Len - n}
		}
	})
}

// joined merges neighbouring extents of one kind.
func joined(seq iter.Seq2[disk.Extent, error]) iter.Seq2[disk.Extent, error] {
	return func(yield func(disk.Extent, error) bool) {
		var last disk.Extent
		for e, err := range seq {
			switch {
			case err != nil:
				if last.Len == 0 || yield(last, nil) {
					yield(disk.Extent{}, err)
				}
				return
			case last.Len > 0 && last.Zero == e.Zero:
				last.Len += e.Len
			default:
				if last.Len > 0 && !yield(last, nil) {
					return
				}
				last = e
			}
		}
		if last.Len > 0 {
			yield(last, nil)
		}
	}
}
