package disk

import (
	"context"
	"io"
	"runtime"
	"sync"

	"golang.org/x/sync/errgroup"
)

// copyChunk bytes are moved at a time by each worker of Copy; Copy's memory is that
// many times the number of workers.
const copyChunk = 1 << 20

// zeroUnit is the granularity in which Copy finds zeros by content.
const zeroUnit = 64 << 10

// CopyOptions tune Copy. The zero value is usable.
type CopyOptions struct {
	// Workers is the number of chunks in flight; 0 means GOMAXPROCS.
	Workers int
	// Progress, if not nil, is told how many more bytes of src are dealt with, zeros
	// included. Calls do not overlap.
	Progress func(n int64)
}

// Copy writes src to dst, at the same offsets, in parallel and in no particular
// order. Ranges of zeros are not written: dst must read as zeros beforehand. It
// returns the number of bytes written.
func Copy(ctx context.Context, dst io.WriterAt, src Disk, o CopyOptions) (int64, error) {
	if o.Workers <= 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(o.Workers)
	pool := sync.Pool{New: func() any { b := make([]byte, copyChunk); return &b }}
	var mu sync.Mutex
	var written int64
	done := func(dealt, wrote int64) {
		mu.Lock()
		defer mu.Unlock()
		written += wrote
		if o.Progress != nil {
			o.Progress(dealt)
		}
	}
	for e, err := range src.Extents(Whole(src)) {
		if err != nil {
			return written, firstError(g.Wait(), err)
		}
		if e.Zero {
			done(e.Len, 0)
			continue
		}
		for next := e.Off; next < e.End() && gctx.Err() == nil; {
			// Chunks end on multiples of the chunk size, so that a destination
			// sees aligned writes.
			off, n := next, min(copyChunk-next%copyChunk, e.End()-next)
			next += n
			g.Go(func() error {
				if err := gctx.Err(); err != nil {
					return err
				}
				buf := pool.Get().(*[]byte)
				defer pool.Put(buf)
				p := (*buf)[:n]
				if err := ReadFull(src, p, off); err != nil {
					return err
				}
				wrote, err := writeData(dst, p, off)
				done(n, wrote)
				return err
			})
		}
		if gctx.Err() != nil {
			break
		}
	}
	if err := g.Wait(); err != nil {
		return written, err
	}
	return written, context.Cause(ctx)
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// writeData writes the runs of p that are not zeros.
func writeData(dst io.WriterAt, p []byte, off int64) (int64, error) {
	var wrote int64
	for i := 0; i < len(p); {
		j := i
		for j < len(p) {
			n := unit(p, j, off)
			if IsZero(p[j : j+n]) {
				break
			}
			j += n
		}
		if j > i {
			if _, err := dst.WriteAt(p[i:j], off+int64(i)); err != nil {
				return wrote, err
			}
			wrote += int64(j - i)
		}
		if j < len(p) {
			j += unit(p, j, off)
		}
		i = j
	}
	return wrote, nil
}

// unit returns the length of the piece of p at i that ends on a multiple of zeroUnit
// of the destination.
func unit(p []byte, i int, off int64) int {
	return int(min(zeroUnit-(off+int64(i))%zeroUnit, int64(len(p)-i)))
}

// IsZero reports whether p holds nothing but zeros.
func IsZero(p []byte) bool {
	const n = 4096
	for len(p) >= n {
		if *(*[n]byte)(p) != [n]byte{} {
			return false
		}
		p = p[n:]
	}
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}
