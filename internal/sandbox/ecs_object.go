package sandbox

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// diskInfo is what an import finds in an object.
type diskInfo struct {
	format  string // QCOW2, VHD, RAW: what it is, whatever the request says
	virtual int64  // bytes of the guest's disk
	problem string // why it can't be imported, or ""
}

// inspectDisk looks at an object as an import does. It is on purpose apart from the
// program's own readers of these formats, and looks at no more than what makes a
// container usable: what is in the disk, a boot tells.
func inspectDisk(r io.ReaderAt, size int64) (diskInfo, error) {
	head, tail := make([]byte, 512), make([]byte, 512)
	n, err := r.ReadAt(head, 0)
	if err != nil && !isEOF(err) {
		return diskInfo{}, err
	}
	head = head[:n]
	if bytes.HasPrefix(head, []byte("QFI\xfb")) {
		return inspectQcow2(head, size), nil
	}
	if size >= 512 {
		if _, err := r.ReadAt(tail, size-512); err != nil && !isEOF(err) {
			return diskInfo{}, err
		}
		if bytes.HasPrefix(tail, []byte("conectix")) {
			return inspectVHD(head, tail, size), nil
		}
	}
	d := diskInfo{format: "RAW", virtual: size}
	switch {
	case size == 0 || size%512 != 0:
		d.problem = fmt.Sprintf("the size %d of a raw image is not a multiple of 512", size)
	case head[510] != 0x55 || head[511] != 0xaa:
		// Nor is anything else that is not known: a compressed file, half a qcow2.
		d.problem = "neither a qcow2, a VHD nor a raw image with a boot sector"
	}
	return d, nil
}

// inspectQcow2 reads the header; offsets are those of the "Header" section of QEMU's
// docs/interop/qcow2.
func inspectQcow2(h []byte, size int64) diskInfo {
	d := diskInfo{format: "QCOW2"}
	be := binary.BigEndian
	if len(h) < 104 {
		d.problem = "the qcow2 header is cut off"
		return d
	}
	version, virtual := be.Uint32(h[4:]), be.Uint64(h[24:])
	l1 := be.Uint64(h[40:]) + 8*uint64(be.Uint32(h[36:]))
	refs := be.Uint64(h[48:])
	var features uint64
	if version == 3 {
		features = be.Uint64(h[72:])
	}
	switch {
	case version != 2 && version != 3:
		d.problem = fmt.Sprintf("qcow2 version %d is not supported", version)
	case virtual == 0 || virtual > 1<<50:
		d.problem = fmt.Sprintf("the virtual size %d is not valid", virtual)
	case be.Uint64(h[8:]) != 0:
		d.problem = "the qcow2 image has a backing file"
	case be.Uint32(h[32:]) != 0:
		d.problem = "the qcow2 image is encrypted"
	case features&(1<<1) != 0:
		d.problem = "the qcow2 image is marked as corrupt"
	case features&(1<<2) != 0:
		d.problem = "the data of the qcow2 image is in another file"
	case features>>5 != 0:
		d.problem = fmt.Sprintf("the qcow2 image needs unknown features %#x", features)
	case l1 > uint64(size) || refs >= uint64(size):
		d.problem = "the qcow2 image is cut off before its tables"
	default:
		d.virtual = int64(virtual)
	}
	return d
}

// inspectVHD reads the footer; offsets are those of "Hard Disk Footer Format" of the
// Virtual Hard Disk Image Format Specification, version 1.0.
func inspectVHD(head, foot []byte, size int64) diskInfo {
	d := diskInfo{format: "VHD"}
	be := binary.BigEndian
	virtual, kind := be.Uint64(foot[48:]), be.Uint32(foot[60:])
	var sum uint32
	for i, c := range foot {
		if i < 64 || i >= 68 {
			sum += uint32(c)
		}
	}
	switch {
	case ^sum != be.Uint32(foot[64:]):
		d.problem = "the checksum of the VHD footer is wrong"
	case virtual == 0 || virtual > 2040<<30:
		d.problem = fmt.Sprintf("the virtual size %d is not valid", virtual)
	case kind == 2 && int64(virtual) != size-512:
		d.problem = fmt.Sprintf("the fixed VHD holds %d bytes and not %d", size-512, virtual)
	case kind == 3 && !bytes.Equal(head, foot):
		d.problem = "the copy of the VHD footer differs from it"
	case kind != 2 && kind != 3:
		d.problem = fmt.Sprintf("VHD type %d is not supported", kind)
	default:
		d.virtual = int64(virtual)
	}
	return d
}

// contentReader reads an object at random.
type contentReader struct{ content }

func (r contentReader) ReadAt(p []byte, off int64) (int, error) {
	n := min(int64(len(p)), r.size-off)
	if n <= 0 {
		return 0, io.EOF
	}
	b := bytes.NewBuffer(p[:0])
	if _, err := r.copyTo(b, off, n); err != nil {
		return 0, err
	}
	if n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}

func isEOF(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }
