package ext4

import (
	"fmt"
	"io"
	"iter"
	"sort"

	"remaster/pkg/disk"
)

// File is the content of a regular file. It may be read by many goroutines at once. It
// is a disk.Disk that knows its holes. A File that comes from an Editor is valid
// until that file's content is changed or the file is removed.
type File struct {
	d    disk.Blob
	bs   int64
	size int64
	runs []run
}

// File opens the content of a regular file.
func (f *FS) File(ino Ino) (*File, error) {
	in, err := f.inode(ino)
	if err != nil {
		return nil, err
	}
	if !in.isReg() {
		return nil, fmt.Errorf("ext4: inode %d is not a regular file but %v", ino, goMode(in.mode()).Type())
	}
	if in.flags()&flEncrypt != 0 {
		return nil, unsupported("inode %d: encrypted", ino)
	}
	m, err := f.fileMap(in)
	if err != nil {
		return nil, err
	}
	if in.size() > int64(f.sb.blockSize)<<32 {
		return nil, corrupt(ino, 0, "impossible size %d", in.size())
	}
	return &File{f.d, int64(f.sb.blockSize), in.size(), m.runs}, nil
}

// Size returns the size in bytes.
func (f *File) Size() int64 { return f.size }

// ReadAt implements io.ReaderAt. Holes and ranges that were allocated but never
// written read as zeros.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read at negative offset %d", off)
	}
	if off >= f.size {
		return 0, io.EOF
	}
	eof := int64(len(p)) > f.size-off
	if eof {
		p = p[:f.size-off]
	}
	done := 0
	for at, e := range f.pieces(disk.Range{Off: off, Len: int64(len(p))}) {
		q := p[done : done+int(e.Len)]
		if e.Zero {
			clear(q)
		} else if err := disk.ReadFull(f.d, q, at); err != nil {
			return done, err
		}
		done += len(q)
	}
	if eof {
		return done, io.EOF
	}
	return done, nil
}

// Extents implements disk.Disk.
func (f *File) Extents(r disk.Range) iter.Seq2[disk.Extent, error] {
	return func(yield func(disk.Extent, error) bool) {
		var last disk.Extent
		for _, e := range f.pieces(r.Intersect(disk.Range{Len: f.size})) {
			if last.Len > 0 && last.Zero == e.Zero {
				last.Len += e.Len
				continue
			}
			if last.Len > 0 && !yield(last, nil) {
				return
			}
			last = e
		}
		if last.Len > 0 {
			yield(last, nil)
		}
	}
}

// pieces yields the extents of r, which lies within the file, each with the place of
// its bytes on the disk.
func (f *File) pieces(r disk.Range) iter.Seq2[int64, disk.Extent] {
	return func(yield func(int64, disk.Extent) bool) {
		off, end := r.Off, r.End()
		i := sort.Search(len(f.runs), func(i int) bool {
			return int64(f.runs[i].log+f.runs[i].n)*f.bs > off
		})
		for ; off < end; i++ {
			if i == len(f.runs) {
				yield(0, disk.Extent{Range: disk.Range{Off: off, Len: end - off}, Zero: true})
				return
			}
			x := f.runs[i]
			first, stop := int64(x.log)*f.bs, min(int64(x.log+x.n)*f.bs, end)
			if gap := min(first, end); off < gap {
				if !yield(0, disk.Extent{Range: disk.Range{Off: off, Len: gap - off}, Zero: true}) {
					return
				}
				off = gap
			}
			if off >= stop {
				continue
			}
			e := disk.Extent{Range: disk.Range{Off: off, Len: stop - off}, Zero: x.unwritten}
			if !yield(int64(x.phys)*f.bs+off-first, e) {
				return
			}
			off = stop
		}
	}
}

// Readlink returns the target of a symbolic link.
func (f *FS) Readlink(ino Ino) (string, error) {
	in, err := f.inode(ino)
	if err != nil {
		return "", err
	}
	if in.mode()&modeFmt != modeLink {
		return "", fmt.Errorf("ext4: inode %d is not a symbolic link", ino)
	}
	if in.flags()&(flEncrypt|flInlineData) != 0 {
		return "", unsupported("inode %d: encrypted or inline link", ino)
	}
	n := in.size()
	if n == 0 || n > maxSymlink {
		return "", corrupt(ino, 0, "symbolic link of %d bytes", n)
	}
	if in.fastLink() {
		return linkText(in, in.root())
	}
	m, err := f.fileMap(in)
	if err != nil {
		return "", err
	}
	if len(m.runs) == 0 || m.runs[0].log != 0 || m.runs[0].unwritten || n > int64(f.sb.blockSize) {
		return "", corrupt(ino, 0, "symbolic link without its block")
	}
	b, err := f.c.read(m.runs[0].phys, tag{kindSymlink, uint32(ino)}, nil)
	if err != nil {
		return "", err
	}
	return linkText(in, b)
}

func linkText(in inode, b []byte) (string, error) {
	s := cString(b[:in.size()])
	if int64(len(s)) != in.size() {
		return "", corrupt(in.ino, 0, "symbolic link of %d bytes ends after %d", in.size(), len(s))
	}
	return s, nil
}

// fastLink reports whether a symbolic link's target lies in the inode itself: it is
// short, and the inode has no blocks but that of its attributes.
func (in inode) fastLink() bool {
	own := in.blocks512()
	if in.fileACL() != 0 {
		own -= uint64(in.s.blockSize) / 512
	}
	return in.size() < iBlockLen && own == 0 && in.flags()&flExtents == 0
}
