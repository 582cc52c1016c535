// Package ext4 reads and edits ext4 file systems (ext2 and ext3 included) without a
// kernel, strictly: a checksum is verified before a block is trusted, an unknown
// feature is refused by its name, and what contradicts itself is an error.
//
//   - [Open] gives a read view, [FS]. It is based on inode numbers; no symbolic link
//     is ever followed here.
//   - [Edit] gives an [Editor], which is an FS with changes. Changes patch bytes in
//     copies of blocks, so that all that is not named by a change stays bit for bit.
//     [Editor.Flush] puts the checksums right, writes the blocks that differ, and then
//     parses everything that was touched anew from the disk.
//   - [Check] is such a pass over a whole file system.
//   - [Editor.CopyTree] places whole trees, from a tar archive or an fs.FS.
//   - [Grow] makes a file system fill a disk that has grown.
//   - [FS.Free] and [Sparse] know the blocks that nothing uses.
//   - [Recover] replays the journal of a file system that was not unmounted, which Open
//     refuses, and removes the inodes that were being deleted.
//
// Each operation of an Editor is atomic: an error, a full file system for one, leaves
// the view as it was before the call. The content of files is the exception in one
// respect: it goes straight to blocks of the disk that were free before, or that
// belonged to the file that is replaced. The disk must therefore be one that is
// dropped after an error, an overlay.
//
// The structures are described by the kernel's Documentation/filesystems/ext4 ("the
// kernel's documentation" below); where it is silent, by fs/ext4 of Linux and by
// e2fsck, which is the judge in the tests.
package ext4

import (
	"errors"
	"fmt"
	"time"

	"remaster/pkg/disk"
)

// Ino is the number of an inode. The first one is 1, and the root folder's is 2.
type Ino uint32

// Reserved inode numbers: the kernel's documentation, "Special inodes".
const (
	rootIno    Ino = 2
	journalIno Ino = 8
)

// Sentinels for the decisions that callers make. A missing name is fs.ErrNotExist, a
// name that is taken fs.ErrExist.
var (
	// ErrNoSpace says that there are too few free blocks or inodes. Nothing was changed.
	ErrNoSpace = errors.New("no space left on the file system")
	// ErrNotDir says that a folder was needed and something else was found.
	ErrNotDir = errors.New("not a directory")
	// ErrNotEmpty says that a folder that was to be removed has entries.
	ErrNotEmpty = errors.New("directory not empty")
	// ErrProtected says that an inode is marked immutable or append-only.
	ErrProtected = errors.New("marked immutable or append-only")
)

// CorruptError says where a file system contradicts itself. It wraps disk.ErrCorrupt.
type CorruptError struct {
	Inode  Ino    // 0 if no inode is concerned
	Block  uint64 // 0 if no block is concerned
	Reason string
}

func (e *CorruptError) Error() string {
	s := "ext4: "
	if e.Inode != 0 {
		s += fmt.Sprintf("inode %d: ", e.Inode)
	}
	if e.Block != 0 {
		s += fmt.Sprintf("block %d: ", e.Block)
	}
	return s + e.Reason
}

// Unwrap returns disk.ErrCorrupt.
func (e *CorruptError) Unwrap() error { return disk.ErrCorrupt }

func corrupt(ino Ino, block uint64, format string, args ...any) error {
	return &CorruptError{ino, block, fmt.Sprintf(format, args...)}
}

func unsupported(format string, args ...any) error {
	return fmt.Errorf("ext4: "+format+": %w", append(args, disk.ErrUnsupported)...)
}

// FS is a file system as it lies on a disk, or, inside an [Editor], with its changes.
// It is used by one goroutine at a time; a [File] may be read by many.
type FS struct {
	d  disk.Blob
	sb super
	c  *cache
	// touched are the inodes whose checksums are put right at the next Flush. It is
	// nil in a read view.
	touched map[Ino]struct{}
}

// Open returns a view of the file system that fills d from its beginning. What is not
// ext4 at all wraps disk.ErrFormat. A feature that changes the meaning of what is
// read, a journal that was not replayed and a file system that is marked faulty wrap
// disk.ErrUnsupported.
func Open(d disk.Blob) (*FS, error) {
	f, err := open(d)
	if err != nil {
		return nil, err
	}
	if err := f.sb.refuseRead(); err != nil {
		return nil, err
	}
	return f, nil
}

func open(d disk.Blob) (*FS, error) {
	raw := make([]byte, superSize)
	if d.Size() < superOffset+superSize {
		return nil, fmt.Errorf("ext4: %d bytes are too few: %w", d.Size(), disk.ErrFormat)
	}
	if err := disk.ReadFull(d, raw, superOffset); err != nil {
		return nil, fmt.Errorf("ext4: superblock: %w", err)
	}
	f := &FS{d: d}
	if err := f.sb.parse(raw, d.Size()); err != nil {
		return nil, err
	}
	f.c = newCache(d, f.sb.blockSize)
	return f, nil
}

// Root returns the inode of the root folder.
func (f *FS) Root() Ino { return rootIno }

// Info is what the superblock says about a file system.
type Info struct {
	BlockSize, InodeSize    int
	Blocks, FreeBlocks      uint64
	ReservedBlocks          uint64 // kept for root's processes
	Inodes, FreeInodes      uint32
	Groups                  uint32
	UUID                    [16]byte
	Label                   string
	LastMounted             string   // the folder it was mounted on last
	Features                []string // by mke2fs' names, compat, incompat and ro_compat, in the order of their bits
	ErrorCount              uint32   // errors that kernels have found since the last e2fsck
	Written, Made, LastFsck time.Time
}

// Info returns what the superblock says, with the changes of an Editor.
func (f *FS) Info() (Info, error) {
	b, err := f.superRaw()
	if err != nil {
		return Info{}, err
	}
	s := &f.sb
	return Info{
		BlockSize: s.blockSize, InodeSize: s.inodeSize,
		Blocks: s.blocks, FreeBlocks: uint64(le32(b, sbFreeBlocks)) | s.hi32(b, sbFreeBlocksHi),
		ReservedBlocks: s.reserved,
		Inodes:         s.inodes, FreeInodes: le32(b, sbFreeInodes), Groups: s.groups,
		UUID: s.uuid, Label: cString(b[sbLabel : sbLabel+16]), LastMounted: cString(b[sbLastMounted : sbLastMounted+64]),
		Features: s.featureNames(), ErrorCount: le32(b, sbErrorCount),
		Written:  superTime(b, sbWtime, sbWtimeHi),
		Made:     superTime(b, sbMkfsTime, sbMkfsTimeHi),
		LastFsck: superTime(b, sbLastCheck, sbLastCheckHi),
	}, nil
}

// superRaw returns the superblock's bytes for reading.
func (f *FS) superRaw() ([]byte, error) {
	no := uint64(superOffset / f.sb.blockSize)
	b, err := f.c.read(no, tag{kindSuper, 0}, nil)
	if err != nil {
		return nil, err
	}
	in := superOffset % f.sb.blockSize
	return b[in : in+superSize], nil
}

func superTime(b []byte, lo, hi int) time.Time {
	return time.Unix(int64(le32(b, lo))|int64(b[hi])<<32, 0).UTC()
}

func putSuperTime(b []byte, lo, hi int, t time.Time) {
	put32(b, lo, uint32(t.Unix()))
	b[hi] = byte(t.Unix() >> 32)
}

func cString(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}
