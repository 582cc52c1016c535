package partition

import (
	"cmp"
	"errors"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/diskfs/go-diskfs/backend"

	"remaster/pkg/disk"
)

// storage shows a disk to go-diskfs: read only, and within its bounds. What lies in
// hidden reads as zeros, so that a structure that was found bad is not used. err is the
// first error of reading the disk, which go-diskfs does not always pass on.
type storage struct {
	d      disk.Disk
	hidden disk.Range
	err    error
	pos    int64
}

var _ backend.Storage = (*storage)(nil)

func (s *storage) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off > s.d.Size() || int64(len(p)) > s.d.Size()-off {
		return 0, io.ErrUnexpectedEOF
	}
	if err := disk.ReadFull(s.d, p, off); err != nil {
		s.err = cmp.Or(s.err, err)
		return 0, err
	}
	if h := s.hidden.Intersect(disk.Range{Off: off, Len: int64(len(p))}); h.Len > 0 {
		clear(p[h.Off-off : h.End()-off])
	}
	return len(p), nil
}

func (s *storage) Seek(off int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		off += s.pos
	case io.SeekEnd:
		off += s.d.Size()
	}
	if off < 0 || off > s.d.Size() {
		return s.pos, errors.New("seek out of the disk")
	}
	s.pos = off
	return off, nil
}

func (s *storage) Read(p []byte) (int, error) {
	n := min(int64(len(p)), s.d.Size()-s.pos)
	if n == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	m, err := s.ReadAt(p[:n], s.pos)
	s.pos += int64(m)
	return m, err
}

func (s *storage) Close() error               { return nil }
func (s *storage) Path() string               { return "" }
func (s *storage) Sys() (*os.File, error)     { return nil, backend.ErrNotSuitable }
func (s *storage) Stat() (fs.FileInfo, error) { return stat(s.d.Size()), nil }
func (s *storage) Writable() (backend.WritableFile, error) {
	return nil, backend.ErrIncorrectOpenMode
}

// stat is the fs.FileInfo of a regular file of so many bytes.
type stat int64

func (s stat) Name() string     { return "disk" }
func (s stat) Size() int64      { return int64(s) }
func (stat) Mode() fs.FileMode  { return 0o400 }
func (stat) ModTime() time.Time { return time.Time{} }
func (stat) IsDir() bool        { return false }
func (stat) Sys() any           { return nil }
