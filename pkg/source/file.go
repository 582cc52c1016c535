// Package source is where a base comes from: a local file, or something remote that is
// read in ranges.
package source

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"

	"remaster/internal/hint"
	"remaster/pkg/disk"
)

// File is a local file as a disk: its holes are known zeros. It is opened for
// reading only. ReadAt and Extents may be called by many goroutines at once.
type File struct {
	f    *os.File
	size int64
}

var _ disk.Disk = (*File)(nil)

// Open opens the regular file or block device at path for reading.
func Open(path string) (*File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() && fi.Mode()&fs.ModeDevice == 0 {
		err = hint.With(fmt.Errorf("open %s: not a regular file or block device", path), "name the image file itself")
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	// Seeking to the end gives the size of a block device, too.
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &File{f, size}, nil
}

// Size returns the size in bytes that the file had when it was opened.
func (s *File) Size() int64 { return s.size }

// ReadAt implements io.ReaderAt.
func (s *File) ReadAt(p []byte, off int64) (int, error) { return s.f.ReadAt(p, off) }

// File returns the open file, for a sink that can copy within the file system.
func (s *File) File() *os.File { return s.f }

// Close closes the file.
func (s *File) Close() error { return s.f.Close() }

// Extents implements disk.Disk by what the file system knows of holes. Where it
// knows nothing, everything is data.
func (s *File) Extents(r disk.Range) iter.Seq2[disk.Extent, error] {
	return func(yield func(disk.Extent, error) bool) {
		r := r.Intersect(disk.Whole(s))
		for at := r.Off; at < r.End(); {
			data, end := nextData(s.f, at, r.End())
			if data > at && !yield(disk.Extent{Range: disk.Range{Off: at, Len: data - at}, Zero: true}, nil) {
				return
			}
			if end > data && !yield(disk.Extent{Range: disk.Range{Off: data, Len: end - data}}, nil) {
				return
			}
			at = end
		}
	}
}
