// Package testimage makes the disk images that the tests work on: small, not
// bootable, in the shape of an Alibaba Cloud Linux 3, and odd in the ways in which
// real images are odd. The tools that make them are mke2fs, mkfs.vfat, mtools,
// sfdisk and qemu-img, through [oracle]; neither root nor a loop device is needed.
//
//   - [Layouts] names the images, and what remaster should do with each.
//   - [Build] makes one.
//   - [Tree], [Ext4], [FAT] and [Disk] are the parts, for images of a test's own.
//
// An image is the same bit for bit at each run with the same tools, unless a foreign
// file system (XFS, Btrfs) or a journal is in it.
package testimage

import (
	"os"
	"path/filepath"
	"sync"
	"testing"

	"remaster/internal/oracle"
)

// Expect is what remaster should do with an image.
type Expect string

// What to expect.
const (
	Edit   Expect = "edit"   // remaster it
	Noop   Expect = "noop"   // say that there is nothing to do
	Refuse Expect = "refuse" // say why not, and leave nothing behind
)

// Layout is a kind of image.
type Layout struct {
	Name   string
	Expect Expect
	About  string
	build  func(tb testing.TB) string
}

// Layouts returns every kind of image, in a fixed order.
func Layouts() []Layout { return layouts }

// Named returns the layout of that name.
func Named(tb testing.TB, name string) Layout {
	tb.Helper()
	for _, l := range layouts {
		if l.Name == name {
			return l
		}
	}
	tb.Fatalf("no layout is named %s", name)
	return Layout{}
}

var (
	builtMu sync.Mutex
	built   = map[string]*sparse{} // by name, as long as the process lives
)

// Build makes the raw image of the layout of that name and returns its path, in a
// folder of the test's own: the test may change it.
func Build(tb testing.TB, name string) string {
	tb.Helper()
	l := Named(tb, name)
	builtMu.Lock()
	defer builtMu.Unlock()
	s := built[name]
	if s == nil {
		b, err := os.ReadFile(l.build(tb))
		if err != nil {
			tb.Fatal(err)
		}
		s = newSparse(b)
		built[name] = s
	}
	img := filepath.Join(tb.TempDir(), name+".raw")
	if err := s.writeAt(img, 0); err != nil {
		tb.Fatal(err)
	}
	return img
}

// Format is a container format of [Convert].
type Format string

// The formats.
const (
	Raw       Format = "raw"
	Qcow2     Format = "qcow2"
	Qcow2Zlib Format = "qcow2-zlib" // compressed
	Qcow2Zstd Format = "qcow2-zstd" // compressed
	Qcow2V2   Format = "qcow2-v2"
	VHD       Format = "vhd" // dynamic
	VHDFixed  Format = "vhd-fixed"
)

// Formats are all formats.
var Formats = []Format{Raw, Qcow2, Qcow2Zlib, Qcow2Zstd, Qcow2V2, VHD, VHDFixed}

var convertArgs = map[Format][]string{
	Raw:       {"-O", "raw"},
	Qcow2:     {"-O", "qcow2"},
	Qcow2Zlib: {"-O", "qcow2", "-c", "-o", "compression_type=zlib"},
	Qcow2Zstd: {"-O", "qcow2", "-c", "-o", "compression_type=zstd"},
	Qcow2V2:   {"-O", "qcow2", "-o", "compat=0.10"},
	VHD:       {"-O", "vpc", "-o", "subformat=dynamic,force_size=on"},
	VHDFixed:  {"-O", "vpc", "-o", "subformat=fixed,force_size=on"},
}

// Convert writes the raw image in the format, in a new file, and returns its path.
func Convert(tb testing.TB, raw string, f Format) string {
	tb.Helper()
	ext := map[Format]string{Raw: ".raw", VHD: ".vhd", VHDFixed: ".vhd"}[f]
	if ext == "" {
		ext = ".qcow2"
	}
	out := filepath.Join(tb.TempDir(), string(f)+ext)
	oracle.Run(tb, "qemu-img", append(append([]string{"convert", "-q", "-f", "raw"}, convertArgs[f]...), raw, out)...)
	return out
}
