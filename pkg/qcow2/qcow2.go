// Package qcow2 reads QEMU's copy-on-write disk images, versions 2 and 3, edits them
// so that one small write commits, and encodes new ones.
//
//   - [Open] gives the guest's disk: plain, zlib and zstd clusters of every legal
//     size. It refuses, by name, what it cannot read faithfully, and opens nothing
//     that an image names.
//   - [Image.Rewrite] puts the edits of a guest overlay into a container overlay.
//     It is shadow-paged: everything new lies behind the old end of the file, and
//     the header, which is patched last, switches over to it.
//   - [Check] holds the refcounts against the references.
//   - [Encode] computes a plain version 3 image of any disk; nothing is stored.
//
// The format is described in QEMU's docs/interop/qcow2 ("the specification" in this
// package). All numbers on disk are big-endian. A cluster is the unit of allocation;
// "host" offsets are bytes of the file, "guest" offsets bytes of the disk.
package qcow2

import (
	"fmt"

	"remaster/internal/hint"
	"remaster/pkg/disk"
)

// CorruptError says what contradicts the specification, or itself, and where. It
// wraps disk.ErrCorrupt.
type CorruptError struct {
	Off    int64 // host offset of the thing that is wrong
	Reason string
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("qcow2: at byte %d: %s: %v", e.Off, e.Reason, disk.ErrCorrupt)
}

// Unwrap returns disk.ErrCorrupt.
func (e *CorruptError) Unwrap() error { return disk.ErrCorrupt }

func corrupt(off int64, format string, args ...any) error {
	return &CorruptError{off, fmt.Sprintf(format, args...)}
}

// unsupported refuses a feature by its name.
func unsupported(remedy, format string, args ...any) error {
	return hint.With(fmt.Errorf("qcow2: "+format+": %w", append(args, disk.ErrUnsupported)...), remedy)
}

// Remedies for what is refused.
const (
	remedyFlatten = "make a plain copy of the image first: qemu-img convert -O qcow2 IMAGE COPY"
	remedyRepair  = "repair a copy of the image first: qemu-img check -r all COPY"
)
