package sandbox

import (
	"bytes"
	"crypto/md5"
	"errors"
	"fmt"
	"hash/crc64"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"sync"
)

// pieceSize is how much of a segment has a checksum of its own, so that the checksum of
// any range of it takes reading two pieces at most. It is the page of those in memory.
const pieceSize = 256 << 10

// pieceShift is what a checksum is multiplied by when a piece follows.
var pieceShift = crcShift(pieceSize)

var zeroPiece [pieceSize]byte

// errTooLarge is for a body that is longer than allowed.
var errTooLarge = errors.New("body is too large")

// segment is a run of bytes that never change once it is made.
type segment struct {
	size   int64
	pieces []uint64 // their checksums
	pages  [][]byte // in memory: the pieces, nil for zeros
	file   string   // or on disk
}

// span is a range of a segment.
type span struct {
	seg    *segment
	off, n int64
}

// content is the bytes of an object or a part. It never changes, and what is copied
// within the service shares its segments.
type content struct {
	spans  []span
	size   int64
	crc    uint64
	copied bool // some of it was copied within the service
}

// store makes segments, in memory or in a folder of its own under dir. Its methods may
// be called by many goroutines at once.
type store struct {
	dir string

	mu   sync.Mutex
	own  string
	n    int
	pool sync.Pool // of *[]byte, a piece
}

// path returns a new name in the store's own folder, which it makes if need be.
func (st *store) path() (string, error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.own == "" {
		own, err := os.MkdirTemp(st.dir, "oss-")
		if err != nil {
			return "", fmt.Errorf("folder for objects: %w", err)
		}
		st.own = own
	}
	st.n++
	return filepath.Join(st.own, fmt.Sprintf("%08d", st.n)), nil
}

// close removes the store's folder and what is in it.
func (st *store) close() error {
	st.mu.Lock()
	defer st.mu.Unlock()
	own := st.own
	st.own = ""
	if own == "" {
		return nil
	}
	return os.RemoveAll(own)
}

// write stores what r has, at most limit bytes, and returns it with its MD5 sum.
func (st *store) write(r io.Reader, limit int64) (c content, sum [md5.Size]byte, err error) {
	seg := &segment{}
	var f *os.File
	if st.dir != "" {
		if seg.file, err = st.path(); err != nil {
			return content{}, sum, err
		}
		if f, err = os.OpenFile(seg.file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600); err != nil {
			return content{}, sum, fmt.Errorf("store an object: %w", err)
		}
		defer func() {
			if e := f.Close(); err == nil && e != nil {
				err = fmt.Errorf("store an object: %w", e)
			}
			if err != nil {
				err = errors.Join(err, os.Remove(seg.file))
				return
			}
			// The file goes with the last object that shares it.
			runtime.AddCleanup(seg, func(path string) { _ = os.Remove(path) }, seg.file)
		}()
	}
	if c.crc, sum, err = st.fill(seg, f, r, limit); err != nil {
		return content{}, sum, err
	}
	c.size = seg.size
	if c.size > 0 {
		c.spans = []span{{seg, 0, seg.size}}
	}
	return c, sum, nil
}

// fill reads a segment piece by piece, into f or its pages.
func (st *store) fill(seg *segment, f *os.File, r io.Reader, limit int64) (crc uint64, sum [md5.Size]byte, err error) {
	buf, _ := st.pool.Get().(*[]byte)
	if buf == nil {
		b := make([]byte, pieceSize)
		buf = &b
	}
	defer st.pool.Put(buf)
	digest := md5.New()
	for end := false; !end; {
		p := (*buf)[:0]
		// Not io.ReadFull: the end of a body that was cut short has the name that
		// ReadFull gives to a last piece.
		for len(p) < pieceSize && !end {
			n, err := r.Read((*buf)[len(p):pieceSize])
			p = (*buf)[:len(p)+n]
			if err != nil && err != io.EOF {
				return 0, sum, fmt.Errorf("read body: %w", err)
			}
			end = err != nil
		}
		if seg.size+int64(len(p)) > limit {
			return 0, sum, errTooLarge
		}
		if len(p) == 0 {
			break
		}
		digest.Write(p)
		piece := crc64.Checksum(p, crcTable)
		seg.pieces = append(seg.pieces, piece)
		crc = crcAppend(crc, piece, int64(len(p)))
		zero := bytes.Equal(p, zeroPiece[:len(p)])
		switch {
		case f == nil && zero:
			seg.pages = append(seg.pages, nil)
		case f == nil:
			seg.pages = append(seg.pages, bytes.Clone(p))
		case !zero:
			if _, err := f.WriteAt(p, seg.size); err != nil {
				return 0, sum, fmt.Errorf("store an object: %w", err)
			}
		}
		seg.size += int64(len(p))
	}
	if f != nil {
		if err := f.Truncate(seg.size); err != nil {
			return 0, sum, fmt.Errorf("store an object: %w", err)
		}
	}
	return crc, [md5.Size]byte(digest.Sum(nil)), nil
}

// crcAppend combines a checksum with that of a piece of n bytes that follows.
func crcAppend(crc, piece uint64, n int64) uint64 {
	if n == pieceSize {
		return crcMultiply(pieceShift, crc) ^ piece
	}
	return crcCombine(crc, piece, n)
}

// copyTo writes the bytes [off, off+n) of a segment to w.
func (g *segment) copyTo(w io.Writer, off, n int64) (int64, error) {
	if g.file != "" {
		f, err := os.Open(g.file)
		if err != nil {
			return 0, fmt.Errorf("read an object: %w", err)
		}
		defer f.Close()
		if _, err := f.Seek(off, io.SeekStart); err != nil {
			return 0, fmt.Errorf("read an object: %w", err)
		}
		return io.CopyN(w, f, n) // which the kernel does, if w is a connection
	}
	done := int64(0)
	for done < n {
		page := g.pages[off/pieceSize]
		if page == nil {
			page = zeroPiece[:]
		}
		page = page[off%pieceSize:]
		page = page[:min(int64(len(page)), n-done)]
		m, err := w.Write(page)
		done += int64(m)
		off += int64(m)
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// checksum returns the CRC64 of the bytes [off, off+n) of a segment. It reads only the
// pieces that the range has in part.
func (g *segment) checksum(off, n int64) (uint64, error) {
	crc := uint64(0)
	for end := off + n; off < end; {
		i := off / pieceSize
		start, stop := i*pieceSize, min((i+1)*pieceSize, g.size)
		if off == start && end >= stop {
			crc = crcAppend(crc, g.pieces[i], stop-start)
		} else {
			stop = min(stop, end)
			h := crc64.New(crcTable)
			if _, err := g.copyTo(h, off, stop-off); err != nil {
				return 0, err
			}
			crc = crcCombine(crc, h.Sum64(), stop-off)
		}
		off = stop
	}
	return crc, nil
}

// copyTo writes the bytes [off, off+n) to w and returns how many.
func (c content) copyTo(w io.Writer, off, n int64) (int64, error) {
	done := int64(0)
	for _, s := range c.within(off, n) {
		m, err := s.seg.copyTo(w, s.off, s.n)
		done += m
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// slice returns the bytes [off, off+n), which must be within c, as a copy within the
// service.
func (c content) slice(off, n int64) (content, error) {
	c.copied = true
	if off == 0 && n == c.size {
		return c, nil
	}
	c.spans, c.size, c.crc = c.within(off, n), n, 0
	for _, s := range c.spans {
		crc, err := s.seg.checksum(s.off, s.n)
		if err != nil {
			return content{}, err
		}
		c.crc = crcCombine(c.crc, crc, s.n)
	}
	return c, nil
}

func (c content) within(off, n int64) []span {
	var out []span
	for _, s := range c.spans {
		if off < s.n && n > 0 {
			m := min(s.n-off, n)
			out = append(out, span{s.seg, s.off + off, m})
			off, n = off+m, n-m
		}
		off -= s.n
	}
	return out
}

// join returns contents one after another.
func join(cs []content) content {
	var all content
	for _, c := range cs {
		all.spans = append(all.spans, c.spans...)
		all.size += c.size
		all.crc = crcCombine(all.crc, c.crc, c.size)
		all.copied = all.copied || c.copied
	}
	return all
}
