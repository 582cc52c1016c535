package ext4

import (
	"fmt"
	"io"
)

// outbox collects the content of files that lies side by side on the disk, so that
// thousands of small ones are written in pieces of ioPiece. Metadata never pass through
// it. What it holds is not on the disk yet: it is flushed before an operation ends.
type outbox struct {
	w   io.WriterAt
	at  int64 // bytes, of the first byte that is held
	buf []byte
}

// room returns the place for the bytes that belong at byte at of the disk: n of them, or
// fewer. They become part of the outbox with add.
func (o *outbox) room(at, n int64) ([]byte, error) {
	if o.buf == nil {
		o.buf = make([]byte, 0, ioPiece)
	}
	if at != o.at+int64(len(o.buf)) || len(o.buf) == cap(o.buf) {
		if err := o.flush(); err != nil {
			return nil, err
		}
		o.at = at
	}
	k := len(o.buf)
	return o.buf[k:min(int64(cap(o.buf)), int64(k)+n)], nil
}

// add keeps the first n bytes of what room has returned.
func (o *outbox) add(n int) { o.buf = o.buf[:len(o.buf)+n] }

// flush writes what is held.
func (o *outbox) flush() error {
	if len(o.buf) == 0 {
		return nil
	}
	_, err := o.w.WriteAt(o.buf, o.at)
	o.drop()
	if err != nil {
		return fmt.Errorf("ext4: write at %d: %w", o.at, err)
	}
	return nil
}

// drop forgets what is held.
func (o *outbox) drop() { o.buf = o.buf[:0] }
