// Package remaster is the product as a few calls:
//
//	img, err := remaster.Open(blob, "")                 // what is it?
//	plan, err := remaster.MakePlan(ctx, img, recipe, o) // edited in memory and verified
//	out, err := plan.Output("")                         // a Blob, for any sink
//
// The base is never written. MakePlan performs the edits on an overlay and verifies
// them there; a dry run is a plan that no sink reads.
package remaster

import (
	"bytes"
	"errors"
	"fmt"

	"remaster/internal/hint"
	"remaster/pkg/disk"
	"remaster/pkg/qcow2"
	"remaster/pkg/rootfs"
	"remaster/pkg/vhd"
)

// Format is a container of a disk.
type Format string

// The formats that are read and written.
const (
	Raw      Format = "raw"
	Qcow2    Format = "qcow2"
	VHD      Format = "vhd"       // dynamic
	VHDFixed Format = "vhd-fixed" // as large as the disk
)

// Formats lists them.
var Formats = []Format{Qcow2, VHD, VHDFixed, Raw}

// ParseFormat returns the format of that name.
func ParseFormat(s string) (Format, error) {
	for _, f := range Formats {
		if string(f) == s {
			return f, nil
		}
	}
	switch s {
	case "vpc", "vhd-dynamic":
		return VHD, nil
	}
	return "", hint.With(fmt.Errorf("unknown format %q", s), fmt.Sprintf("use one of %v", Formats))
}

// Refused reports whether err says that the image is not one to be edited, rather than
// that something went wrong outside of it.
func Refused(err error) bool {
	for _, why := range []error{disk.ErrFormat, disk.ErrUnsupported, disk.ErrCorrupt, rootfs.ErrLoop, rootfs.ErrNoSpace} {
		if errors.Is(err, why) {
			return true
		}
	}
	return false
}

// container is a format's part in the work: a disk that can bring edits of its guest
// bytes into its container.
type container interface {
	disk.Disk
	Rewrite(container, guest *disk.Overlay) error
}

// Image is an opened base.
type Image struct {
	Blob   disk.Blob // the container's bytes
	Format Format
	Disk   disk.Disk // the guest's bytes

	c     container               // nil for raw: the container is the disk
	check func(b disk.Blob) error // a strict check of a container of this format
	Info  any                     // the format's own description: qcow2.Info, vhd.Info or nil
}

// foreign are formats that are known by their first bytes and refused by name.
var foreign = []struct{ magic, name, remedy string }{
	{"\x1f\x8b", "gzip", "unpack it first: gunzip"},
	{"\xfd7zXZ\x00", "xz", "unpack it first: unxz"},
	{"\x28\xb5\x2f\xfd", "zstd", "unpack it first: unzstd"},
	{"BZh", "bzip2", "unpack it first: bunzip2"},
	{"PK\x03\x04", "zip", "unpack it first: unzip"},
	{"KDMV", "VMDK", "convert it first: qemu-img convert -O qcow2"},
	{"# Disk DescriptorFile", "VMDK", "convert it first: qemu-img convert -O qcow2"},
	{"vhdxfile", "VHDX", "convert it first: qemu-img convert -O qcow2"},
	{"<<< ", "VDI", "convert it first: qemu-img convert -O qcow2"},
	{"QED\x00", "QED", "convert it first: qemu-img convert -O qcow2"},
}

// Open opens the image in b, of the given format or, with "", of the one that its
// bytes show. Nothing named inside the image is opened. An image of a format that is
// known but not read wraps [disk.ErrUnsupported].
func Open(b disk.Blob, as Format) (*Image, error) {
	switch as {
	case Raw:
		return openRaw(b)
	case Qcow2:
		return openQcow2(b)
	case VHD, VHDFixed:
		return openVHD(b)
	}
	head := make([]byte, min(b.Size(), 512))
	if err := disk.ReadFull(b, head, 0); err != nil {
		return nil, err
	}
	for _, f := range foreign {
		if bytes.HasPrefix(head, []byte(f.magic)) {
			return nil, hint.With(fmt.Errorf("the image is %s: %w", f.name, disk.ErrUnsupported), f.remedy)
		}
	}
	for _, open := range []func(disk.Blob) (*Image, error){openQcow2, openVHD} {
		if im, err := open(b); !errors.Is(err, disk.ErrFormat) {
			return im, err
		}
	}
	return openRaw(b)
}

func openQcow2(b disk.Blob) (*Image, error) {
	q, err := qcow2.Open(b)
	if err != nil {
		return nil, err
	}
	return &Image{Blob: b, Format: Qcow2, Disk: q, c: q, check: checkQcow2, Info: q.Info()}, nil
}

// checkQcow2 leaves leaks to the format: Rewrite makes none that the base hadn't.
func checkQcow2(b disk.Blob) error {
	_, err := qcow2.Check(b)
	return err
}

// reopen parses a VHD anew: footers, header and the whole table. The bitmaps of all its
// blocks, which lie 2 MiB apart, are left alone, as all of the base that no edit touched.
func reopen(b disk.Blob) error {
	_, err := vhd.Open(b)
	return err
}

func openVHD(b disk.Blob) (*Image, error) {
	v, err := vhd.Open(b)
	if err != nil {
		return nil, err
	}
	im := &Image{Blob: b, Format: VHD, Disk: v, c: v, check: reopen, Info: v.Info()}
	if v.Info().Type == vhd.TypeFixed {
		im.Format = VHDFixed
	}
	return im, nil
}

func openRaw(b disk.Blob) (*Image, error) {
	if b.Size() == 0 {
		return nil, hint.With(fmt.Errorf("the image is empty: %w", disk.ErrFormat), "fetch it again and compare its size and checksum")
	}
	return &Image{Blob: b, Format: Raw, Disk: disk.AsDisk(b)}, nil
}
