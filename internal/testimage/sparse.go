package testimage

import (
	"bytes"
	"os"
)

// sparse is a file in memory without its blocks of zeros.
type sparse struct {
	size   int64
	blocks map[int64][]byte // offset → sparseBlock bytes, fewer at the end
}

const sparseBlock = 4096

func newSparse(b []byte) *sparse {
	s := &sparse{int64(len(b)), map[int64][]byte{}}
	var zeros [sparseBlock]byte
	for off := 0; off < len(b); off += sparseBlock {
		if block := b[off:min(off+sparseBlock, len(b))]; !bytes.Equal(block, zeros[:len(block)]) {
			s.blocks[int64(off)] = bytes.Clone(block)
		}
	}
	return s
}

// writeAt writes the blocks to file from off on, over zeros, and makes it long enough.
func (s *sparse) writeAt(file string, off int64) (err error) {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
	}()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if fi.Size() < off+s.size {
		if err := f.Truncate(off + s.size); err != nil {
			return err
		}
	}
	for at, block := range s.blocks {
		if _, err := f.WriteAt(block, off+at); err != nil {
			return err
		}
	}
	return nil
}
