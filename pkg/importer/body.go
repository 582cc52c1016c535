package importer

import (
	"context"
	"errors"
	"fmt"
	"hash/crc64"
	"io"

	"remaster/pkg/disk"
)

// body is the bytes of a part, read from the blob as they are sent, 256 KiB at a time. It
// computes their checksum on the way.
type body struct {
	ctx  context.Context
	t    *transfer
	r    disk.Range
	pos  int64
	crc  uint64 // of the first pos bytes
	told int64  // bytes that the progress was told of

	buf  *[]byte
	have []byte // what is left of the bytes read last, those from pos on
}

func (t *transfer) newBody(ctx context.Context, r disk.Range) *body {
	return &body{ctx: ctx, t: t, r: r, buf: chunks.Get().(*[]byte)}
}

func (b *body) close() { chunks.Put(b.buf) }

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	if len(b.have) == 0 {
		if err := b.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, b.have)
	b.crc = crc64.Update(b.crc, crcTable, b.have[:n])
	b.have = b.have[n:]
	b.pos += int64(n)
	b.t.sent.Add(int64(n))
	if b.pos > b.told {
		b.t.progress(b.pos - b.told)
		b.told = b.pos
	}
	return n, nil
}

// fill reads the next bytes of the blob, when they may be sent.
func (b *body) fill() error {
	n := min(chunkSize, b.r.Len-b.pos)
	if n == 0 {
		return io.EOF
	}
	if err := b.ctx.Err(); err != nil {
		return err
	}
	if err := b.t.wait(b.ctx, int(n)); err != nil {
		return err
	}
	p := (*b.buf)[:n]
	if err := disk.ReadFull(b.t.blob, p, b.r.Off+b.pos); err != nil {
		return err
	}
	b.have = p
	return nil
}

// Seek implements io.Seeker, as far as clients need it: to the beginning, and to learn
// the position or the size.
func (b *body) Seek(off int64, whence int) (int64, error) {
	switch {
	case whence == io.SeekEnd && off == 0:
		// Nobody reads from there: what follows is a seek back.
		b.pos, b.have = b.r.Len, nil
	case whence == io.SeekCurrent && off == 0, whence == io.SeekStart && off == b.pos && off != 0:
	case whence == io.SeekStart && off == 0:
		b.pos, b.crc, b.have = 0, 0, nil
	default:
		return 0, fmt.Errorf("seek in a part: %w", errors.ErrUnsupported)
	}
	return b.pos, nil
}

// sum returns the checksum of the bytes if all of them were read.
func (b *body) sum() (uint64, error) {
	if b.pos != b.r.Len {
		return 0, fmt.Errorf("the reply came after %d of %d bytes: %w", b.pos, b.r.Len, io.ErrUnexpectedEOF)
	}
	return b.crc, nil
}
