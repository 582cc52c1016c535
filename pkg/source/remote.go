package source

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"remaster/pkg/disk"
)

// Ranger reads ranges of something remote whose size is known and whose bytes do not
// change: an object that is pinned by its ETag. It may be called by many goroutines at
// once.
type Ranger interface {
	// ReadRange returns the n bytes from off on.
	ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error)
}

// RemoteOptions tune a Remote. The zero value is usable.
type RemoteOptions struct {
	// BlockSize is the unit of the cache in bytes, a power of two; 0 means 16 KiB. A
	// small read fetches whole blocks. Larger ones mean fewer requests and more bytes:
	// to edit a 20 GiB image, 64 KiB fetch 4.6 to 7.2 MB, 16 KiB 2.9 to 3.2 MB.
	BlockSize int64
	// CacheSize is the number of bytes kept; 0 means 16 MiB.
	CacheSize int64
}

// direct is the size in bytes from which on a read goes past the cache: a stream would
// only push out what is read again and again.
const direct = 512 << 10

// Remote is a Blob whose bytes are fetched in ranges when they are read, with a bounded
// cache for small reads. It may be read by many goroutines at once; small reads that miss
// the cache are fetched one after the other, neighbouring blocks in one request.
type Remote struct {
	ctx  context.Context
	r    Ranger
	size int64
	o    RemoteOptions

	fetching sync.Mutex // held while a block that a small read needs is fetched

	mu     sync.Mutex
	blocks map[int64]*list.Element // of *remoteBlock
	recent *list.List              // the most recently used first

	requests, bytes atomic.Int64
}

type remoteBlock struct {
	no   int64
	data []byte
}

var _ disk.Blob = (*Remote)(nil)

// NewRemote returns the size bytes that r reads. Reads end with an error when ctx does:
// a Blob's ReadAt has no context of its own.
func NewRemote(ctx context.Context, r Ranger, size int64, o RemoteOptions) *Remote {
	if o.BlockSize == 0 {
		o.BlockSize = 16 << 10
	}
	if o.CacheSize == 0 {
		o.CacheSize = 16 << 20
	}
	return &Remote{ctx: ctx, r: r, size: size, o: o, blocks: map[int64]*list.Element{}, recent: list.New()}
}

// Size returns the size in bytes.
func (m *Remote) Size() int64 { return m.size }

// Traffic returns how many requests were made so far, and how many bytes they fetched.
func (m *Remote) Traffic() (requests, bytes int64) { return m.requests.Load(), m.bytes.Load() }

// ReadAt implements io.ReaderAt.
func (m *Remote) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read at negative offset %d", off)
	}
	if off >= m.size {
		return 0, io.EOF
	}
	eof := int64(len(p)) > m.size-off
	if eof {
		p = p[:m.size-off]
	}
	var err error
	if len(p) >= direct {
		err = m.fetch(p, off)
	} else {
		err = m.cached(p, off)
	}
	if err != nil {
		return 0, err
	}
	if eof {
		return len(p), io.EOF
	}
	return len(p), nil
}

// cached fills p through the cache.
func (m *Remote) cached(p []byte, off int64) error {
	if m.copyCached(p, off) {
		return nil
	}
	m.fetching.Lock()
	defer m.fetching.Unlock()
	first, last := off/m.o.BlockSize, (off+int64(len(p))-1)/m.o.BlockSize
	for no := first; no <= last; {
		if m.block(no) != nil {
			no++
			continue
		}
		end := no + 1
		for end <= last && m.block(end) == nil {
			end++
		}
		start := no * m.o.BlockSize
		buf := make([]byte, min(end*m.o.BlockSize, m.size)-start)
		if err := m.fetch(buf, start); err != nil {
			return err
		}
		for ; no < end; no++ {
			i := no*m.o.BlockSize - start
			m.keep(no, buf[i:min(i+m.o.BlockSize, int64(len(buf)))])
		}
	}
	if m.copyCached(p, off) {
		return nil
	}
	return m.fetch(p, off) // the cache is smaller than p
}

// copyCached fills p if the cache has all of it.
func (m *Remote) copyCached(p []byte, off int64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for n := int64(0); n < int64(len(p)); {
		at := off + n
		e := m.blocks[at/m.o.BlockSize]
		if e == nil {
			return false
		}
		m.recent.MoveToFront(e)
		n += int64(copy(p[n:], e.Value.(*remoteBlock).data[at%m.o.BlockSize:]))
	}
	return true
}

func (m *Remote) block(no int64) *list.Element {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.blocks[no]
}

// keep puts a block into the cache.
func (m *Remote) keep(no int64, data []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.blocks[no] != nil {
		return
	}
	for int64(m.recent.Len()+1)*m.o.BlockSize > m.o.CacheSize && m.recent.Len() > 0 {
		old := m.recent.Back()
		delete(m.blocks, m.recent.Remove(old).(*remoteBlock).no)
	}
	m.blocks[no] = m.recent.PushFront(&remoteBlock{no, data})
}

// fetch fills p with one request.
func (m *Remote) fetch(p []byte, off int64) error {
	m.requests.Add(1)
	body, err := m.r.ReadRange(m.ctx, off, int64(len(p)))
	if err != nil {
		return fmt.Errorf("read %d bytes at %d: %w", len(p), off, err)
	}
	n, err := io.ReadFull(body, p)
	m.bytes.Add(int64(n))
	if err := errors.Join(err, body.Close()); err != nil {
		return fmt.Errorf("read %d bytes at %d: %w", len(p), off, err)
	}
	return nil
}
