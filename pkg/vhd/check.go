package vhd

import (
	"fmt"

	"remaster/pkg/disk"
)

// Check reads the VHD in b anew, as strictly as [Open] does, and then goes over every
// sector that a bitmap marks as never written: they must hold zeros, or readers would
// see different disks. It reads the bitmaps, and of the data only such sectors. Use it
// before a container that was edited is let out.
func Check(b disk.Blob) error {
	m, err := Open(b)
	if err != nil {
		return err
	}
	if m.info.Type == TypeFixed {
		return nil
	}
	for block := range m.info.Blocks {
		if _, ok := m.place(block); !ok {
			continue
		}
		bits, err := m.readBitmap(block)
		if err == nil && bits != nil {
			err = m.checkUnwritten(block, bits)
		}
		if err != nil {
			return fmt.Errorf("check VHD: %w", err)
		}
	}
	return nil
}

// checkUnwritten reads the runs of sectors of a block whose bits are not set.
func (m *Image) checkUnwritten(block int, bits []byte) error {
	const most = 128 // sectors read at a time
	p := make([]byte, most*sectorSize)
	sectors := min(m.info.BlockSize, m.info.Size-int64(block)*m.info.BlockSize) / sectorSize
	for s := int64(0); s < sectors; {
		n := int64(0)
		for n < most && s+n < sectors && !bit(bits, s+n) {
			n++
		}
		if n == 0 {
			s++
			continue
		}
		if err := m.readBlock(p[:n*sectorSize], block, s*sectorSize); err != nil {
			return err
		}
		s += n
	}
	return nil
}
