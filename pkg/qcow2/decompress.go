package qcow2

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"sync"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"
)

// decompress fills dst, one cluster, from src, which holds the compressed data and
// whatever follows it up to the end of its last sector. The data must make exactly
// one cluster. Nothing is allocated by what src says.
func decompress(c Compression, dst, src []byte) error {
	if c == Zstd {
		return unzstd(dst, src)
	}
	return inflate(dst, src)
}

// inflater is a deflate reader that is used again and again.
type inflater struct {
	src bytes.Reader
	r   io.ReadCloser
}

var inflaters = sync.Pool{New: func() any {
	f := &inflater{}
	f.r = flate.NewReader(&f.src)
	return f
}}

func inflate(dst, src []byte) error {
	f := inflaters.Get().(*inflater)
	defer inflaters.Put(f)
	f.src.Reset(src)
	defer f.src.Reset(nil)
	if err := f.r.(flate.Resetter).Reset(&f.src, nil); err != nil {
		return err
	}
	if n, err := io.ReadFull(f.r, dst); err != nil {
		return fmt.Errorf("deflate stream ends after %d of %d bytes: %w", n, len(dst), err)
	}
	var more [1]byte
	switch _, err := io.ReadFull(f.r, more[:]); err {
	case io.EOF:
		return nil
	case nil:
		return fmt.Errorf("deflate stream makes more than %d bytes", len(dst))
	default:
		return fmt.Errorf("deflate stream does not end: %w", err)
	}
}

// unzstdWindow is the largest window that is accepted, the default limit of
// libzstd's stream decoder, which QEMU uses. No memory is taken for it.
const unzstdWindow = 1 << 27

var unzstder = sync.OnceValues(func() (*zstd.Decoder, error) {
	return zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxWindow(unzstdWindow),
		zstd.WithDecodeAllCapLimit(true))
})

// unzstd decodes frames until dst is full. The decoder takes whole frames only,
// hence the search for their ends.
func unzstd(dst, src []byte) error {
	d, err := unzstder()
	if err != nil {
		return err
	}
	for n := 0; n < len(dst); {
		end, err := zstdFrameEnd(src)
		if err != nil {
			return err
		}
		out, err := d.DecodeAll(src[:end], dst[n:n:len(dst)])
		if err != nil {
			return fmt.Errorf("zstd frame: %w", err)
		}
		if len(out) == 0 {
			return errors.New("empty zstd frame")
		}
		if &out[0] != &dst[n] {
			copy(dst[n:], out)
		}
		n += len(out)
		src = src[end:]
	}
	return nil
}

// zstdFrameEnd returns the length of the zstd frame that p begins with; RFC 8878,
// section 3.1.1.
func zstdFrameEnd(p []byte) (int, error) {
	errShort := errors.New("zstd frame leaves its sectors")
	if len(p) < 6 {
		return 0, errShort
	}
	if !bytes.Equal(p[:4], []byte{0x28, 0xb5, 0x2f, 0xfd}) {
		return 0, errors.New("no zstd frame")
	}
	desc := p[4]
	single := desc >> 5 & 1
	sizeLen := [4]int{int(single), 2, 4, 8}[desc>>6]
	at := 5 + int(1-single) + [4]int{0, 1, 2, 4}[desc&3] + sizeLen
	for last := false; !last; {
		if at > len(p)-3 {
			return 0, errShort
		}
		b := int(p[at]) | int(p[at+1])<<8 | int(p[at+2])<<16
		last = b&1 != 0
		size := b >> 3
		if b>>1&3 == 1 { // one byte, repeated size times
			size = 1
		}
		if at += 3 + size; at < 0 || at > math.MaxInt32 {
			return 0, errShort
		}
	}
	if desc>>2&1 != 0 {
		at += 4 // checksum
	}
	if at > len(p) {
		return 0, errShort
	}
	return at, nil
}
