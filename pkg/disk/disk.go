// Package disk defines the few nouns that every other package speaks.
//
// Everything is a [Blob]: a fixed-size run of bytes that can be read anywhere, by
// many at once. A local file, an object in a store, the disk inside a qcow2, a VHD
// that has not been written yet: all are Blobs, and they stack. Nothing is copied
// until a sink reads the top of the stack.
//
//   - [Disk] is a Blob that knows which of its ranges read as zeros.
//   - [Writable] is a Disk that can be written.
//   - [Overlay] is the only Writable here: edits over a base that is never written.
//   - [Window] is a part of a Disk, a partition say.
//
// The package knows no file, no format and no network.
package disk

import (
	"errors"
	"fmt"
	"io"
	"iter"
)

// Sentinels for the decisions that callers make.
var (
	// ErrFormat says that the bytes are not of the format that was tried; another
	// may be tried.
	ErrFormat = errors.New("not of this format")
	// ErrUnsupported says that the format is the right one, but uses a feature
	// that is refused. The error around it names the feature.
	ErrUnsupported = errors.New("unsupported")
	// ErrCorrupt says that the bytes contradict themselves or the specification.
	ErrCorrupt = errors.New("corrupt")
)

// Range is the bytes [Off, Off+Len). Neither field is negative.
type Range struct{ Off, Len int64 }

// End returns the offset behind the last byte.
func (r Range) End() int64 { return r.Off + r.Len }

func (r Range) String() string { return fmt.Sprintf("[%d,%d)", r.Off, r.End()) }

// Intersect returns the part of r that lies in s; its Len is 0 if there is none.
func (r Range) Intersect(s Range) Range {
	off, end := max(r.Off, s.Off), min(r.End(), s.End())
	if end <= off {
		return Range{Off: off}
	}
	return Range{off, end - off}
}

// Blob is a run of bytes of a fixed size, in bytes. ReadAt may be called by many
// goroutines at once and follows [io.ReaderAt].
type Blob interface {
	io.ReaderAt
	Size() int64
}

// Extent is a range of a disk. Zero says that it is known to read as zeros without
// reading it; an extent that is not Zero may still hold zeros.
type Extent struct {
	Range
	Zero bool
}

// Disk is a Blob that knows its zeros.
type Disk interface {
	Blob
	// Extents yields extents that cover r exactly, in order, without gaps and
	// without empty ones. r is clipped to the disk. After an error nothing more
	// is yielded. It may be called by many goroutines at once.
	Extents(r Range) iter.Seq2[Extent, error]
}

// Writable is a disk that can be written, by one goroutine at a time. Its size
// never changes: a write past the end fails and writes nothing.
type Writable interface {
	Disk
	io.WriterAt
}

// Whole returns the range of all bytes of b.
func Whole(b Blob) Range { return Range{0, b.Size()} }

// AsDisk returns b itself if it is a Disk, else a Disk over b that takes every
// byte for data. This is also the raw format: a raw image is its own disk.
func AsDisk(b Blob) Disk {
	if d, ok := b.(Disk); ok {
		return d
	}
	return opaque{b}
}

type opaque struct{ Blob }

func (o opaque) Extents(r Range) iter.Seq2[Extent, error] {
	return func(yield func(Extent, error) bool) {
		if r = r.Intersect(Whole(o.Blob)); r.Len > 0 {
			yield(Extent{Range: r}, nil)
		}
	}
}

// Bytes is a Blob in memory. The slice must not be changed while it is in use.
type Bytes []byte

// Size returns the number of bytes.
func (b Bytes) Size() int64 { return int64(len(b)) }

// ReadAt implements io.ReaderAt.
func (b Bytes) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read at negative offset %d", off)
	}
	if off >= int64(len(b)) {
		return 0, io.EOF
	}
	n := copy(p, b[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// ReadFull fills p from b at off. A range that ends behind b is an error that
// wraps io.ErrUnexpectedEOF.
func ReadFull(b io.ReaderAt, p []byte, off int64) error {
	n, err := b.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read %d bytes at %d: %w", len(p), off, err)
}

// Window is a part of a disk, seen as a disk of its own. Offsets are checked
// against it, so that nothing read or written through it can reach a neighbour.
type Window struct {
	d Disk
	r Range
}

// NewWindow returns the part r of d. It fails if r does not lie within d.
func NewWindow(d Disk, r Range) (*Window, error) {
	if r.Off < 0 || r.Len < 0 || r.Off > d.Size() || r.Len > d.Size()-r.Off {
		return nil, fmt.Errorf("window %v is not within the disk of %d bytes: %w", r, d.Size(), ErrCorrupt)
	}
	return &Window{d, r}, nil
}

// Size returns the size in bytes.
func (w *Window) Size() int64 { return w.r.Len }

// Range returns the place of the window on its disk.
func (w *Window) Range() Range { return w.r }

// ReadAt implements io.ReaderAt.
func (w *Window) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read at negative offset %d", off)
	}
	if off >= w.r.Len {
		return 0, io.EOF
	}
	short := int64(len(p)) > w.r.Len-off
	if short {
		p = p[:w.r.Len-off]
	}
	n, err := w.d.ReadAt(p, w.r.Off+off)
	if n == len(p) {
		err = nil
		if short {
			err = io.EOF
		}
	}
	return n, err
}

// WriteAt implements io.WriterAt. It fails if the disk below is not Writable or if
// the bytes do not fit.
func (w *Window) WriteAt(p []byte, off int64) (int, error) {
	t, ok := w.d.(Writable)
	if !ok {
		return 0, errors.New("write to a read-only disk")
	}
	if off < 0 || off > w.r.Len || int64(len(p)) > w.r.Len-off {
		return 0, fmt.Errorf("write of %d bytes at %d is not within the window of %d bytes", len(p), off, w.r.Len)
	}
	return t.WriteAt(p, w.r.Off+off)
}

// Extents implements Disk.
func (w *Window) Extents(r Range) iter.Seq2[Extent, error] {
	r = r.Intersect(Range{0, w.r.Len})
	return func(yield func(Extent, error) bool) {
		if r.Len == 0 {
			return
		}
		for e, err := range w.d.Extents(Range{w.r.Off + r.Off, r.Len}) {
			e.Off -= w.r.Off
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}
