package ext4

import (
	"fmt"
	"math/bits"

	"remaster/internal/hint"
	"remaster/pkg/disk"
)

// super is the geometry and the features of a file system: what the superblock says
// and no change alters. Counters are read from the raw superblock.
type super struct {
	blockSize, inodeSize     int
	descSize, descPerBlock   int
	blocks, firstData        uint64
	reserved                 uint64
	inodes, firstIno         uint32
	blocksPerGroup           uint32
	inodesPerGroup           uint32
	inodeTableBlocks         uint64 // of each group
	groups                   uint32
	reservedGDT              uint32
	firstMetaBG              uint32
	backups                  [2]uint32 // sparse_super2
	flexSize                 uint32    // groups whose metadata lie together, 1 without flex_bg
	compat, incompat, ro     uint32
	state                    uint16
	lastOrphan, journalInode uint32
	orphanFile               Ino // inode of the orphan file, or 0
	uuid                     [16]byte
	seed                     uint32 // of all checksums, with metadata_csum
	hashSeed                 [4]uint32
	defHash                  byte
	unsignedHash             bool
	wantExtra                int
}

func (s *super) metaCsum() bool { return s.ro&roMetadataCsum != 0 }

// groupCsum reports whether descriptors have checksums, and with them their flags a
// meaning.
func (s *super) groupCsum() bool { return s.ro&(roMetadataCsum|roGDTCsum) != 0 }

func (s *super) hi32(b []byte, off int) uint64 {
	if s.incompat&incompat64bit == 0 {
		return 0
	}
	return uint64(le32(b, off)) << 32
}

// groupFirst returns the first block of a group.
func (s *super) groupFirst(g uint32) uint64 {
	return s.firstData + uint64(g)*uint64(s.blocksPerGroup)
}

// groupBlocks returns the number of blocks in a group; the last one may be short.
func (s *super) groupBlocks(g uint32) uint32 {
	return uint32(min(uint64(s.blocksPerGroup), s.blocks-s.groupFirst(g)))
}

// groupOf returns the group that a block lies in, and its place there.
func (s *super) groupOf(block uint64) (uint32, uint32) {
	n := block - s.firstData
	return uint32(n / uint64(s.blocksPerGroup)), uint32(n % uint64(s.blocksPerGroup))
}

// validRange reports whether the n blocks at block lie within the file system, behind
// the boot sector.
func (s *super) validRange(block, n uint64) bool {
	return block >= max(s.firstData, 1) && n <= s.blocks && block <= s.blocks-n
}

func (s *super) parse(b []byte, size int64) error {
	if le16(b, sbMagic) != superMagic {
		return fmt.Errorf("ext4: no magic in the superblock: %w", disk.ErrFormat)
	}
	s.compat, s.incompat, s.ro = le32(b, sbCompat), le32(b, sbIncompat), le32(b, sbRoCompat)
	s.inodeSize, s.firstIno = inodeGood, 11
	switch rev := le32(b, sbRevision); rev {
	case 0:
		s.compat, s.incompat, s.ro = 0, 0, 0
	case 1:
		s.inodeSize, s.firstIno = int(le16(b, sbInodeSize)), le32(b, sbFirstIno)
	default:
		return unsupported("revision %d of the superblock", rev)
	}
	// A journal device has the superblock's magic, too, but no file system.
	if s.incompat&incompatJournalDv != 0 {
		return unsupported("feature journal_dev: this is the journal of another file system")
	}
	if bad := unknownBits(incompatNames, s.incompat); bad != "" {
		return unsupported("unknown incompatible feature %s", bad)
	}
	copy(s.uuid[:], b[sbUUID:])
	s.seed = crc32c(^uint32(0), s.uuid[:])
	if s.incompat&incompatCsumSeed != 0 {
		s.seed = le32(b, sbChecksumSeed)
	}
	if s.metaCsum() {
		if t := b[sbChecksumType]; t != 1 {
			return unsupported("checksum type %d", t)
		}
		if crc32c(^uint32(0), b[:sbChecksum]) != le32(b, sbChecksum) {
			return corrupt(0, 0, "superblock: wrong checksum")
		}
	}
	if err := s.parseGeometry(b, size); err != nil {
		return err
	}
	s.state, s.lastOrphan, s.journalInode = le16(b, sbState), le32(b, sbLastOrphan), le32(b, sbJournalIno)
	if s.compat&compatOrphanFile != 0 {
		s.orphanFile = Ino(le32(b, sbOrphanFile))
	}
	for i := range s.hashSeed {
		s.hashSeed[i] = le32(b, sbHashSeed+4*i)
	}
	s.defHash, s.unsignedHash = b[sbDefHash], le32(b, sbFlags)&flagUnsignedHash != 0
	if s.inodeSize > inodeGood {
		s.wantExtra = min(max(int(le16(b, sbWantExtra)), 32), s.inodeSize-inodeGood) &^ 3
	}
	return nil
}

func (s *super) parseGeometry(b []byte, size int64) error {
	log := le32(b, sbLogBlockSize)
	if log > 6 {
		return corrupt(0, 0, "superblock: block size 2^%d", uint64(log)+10)
	}
	s.blockSize = 1024 << log
	bs := uint64(s.blockSize)
	s.blocks = uint64(le32(b, sbBlocks)) | s.hi32(b, sbBlocksHi)
	s.reserved = uint64(le32(b, sbReserved)) | s.hi32(b, sbReservedHi)
	s.firstData = uint64(le32(b, sbFirstData))
	s.inodes = le32(b, sbInodes)
	s.blocksPerGroup, s.inodesPerGroup = le32(b, sbBlocksPerGroup), le32(b, sbInodesPerGroup)
	if s.ro&roBigalloc == 0 {
		if want := uint64(1) >> min(log, 1); s.firstData != want {
			return corrupt(0, 0, "superblock: first data block %d", s.firstData)
		}
		if s.blocksPerGroup > uint32(8*s.blockSize) {
			return corrupt(0, 0, "superblock: %d blocks per group", s.blocksPerGroup)
		}
	}
	if is := s.inodeSize; is < inodeGood || is > s.blockSize || is&(is-1) != 0 {
		return corrupt(0, 0, "superblock: inode size %d", is)
	}
	// 256 is mke2fs' least: fewer would only serve to make this work long.
	if n := s.blocksPerGroup; n < 256 || n%8 != 0 || s.firstData > 1 || s.blocks <= s.firstData {
		return corrupt(0, 0, "superblock: %d blocks, %d per group", s.blocks, n)
	}
	if n := s.inodesPerGroup; n == 0 || n > uint32(8*s.blockSize) || n%8 != 0 {
		return corrupt(0, 0, "superblock: %d inodes per group", n)
	}
	s.inodeTableBlocks = (uint64(s.inodesPerGroup)*uint64(s.inodeSize) + bs - 1) / bs
	if s.blocks > uint64(size)/bs {
		return hint.With(corrupt(0, 0, "the file system has %d blocks of %d bytes, its partition only %d bytes", s.blocks, bs, size),
			"the image is cut off, or its partition table is wrong: fetch the image again")
	}
	groups := (s.blocks - s.firstData + uint64(s.blocksPerGroup) - 1) / uint64(s.blocksPerGroup)
	if groups > 1<<32-1 || groups*uint64(s.inodesPerGroup) != uint64(s.inodes) {
		return corrupt(0, 0, "superblock: %d inodes in %d groups of %d", s.inodes, groups, s.inodesPerGroup)
	}
	s.groups = uint32(groups)
	if s.firstIno < 11 || s.firstIno > s.inodes {
		return corrupt(0, 0, "superblock: first inode %d", s.firstIno)
	}
	return s.parseDescriptors(b)
}

func (s *super) parseDescriptors(b []byte) error {
	s.descSize = gdSize32
	if s.incompat&incompat64bit != 0 {
		s.descSize = int(le16(b, sbDescSize))
		if d := s.descSize; d < gdSize64 || d > s.blockSize || d&(d-1) != 0 {
			return corrupt(0, 0, "superblock: descriptor size %d", d)
		}
	}
	s.descPerBlock = s.blockSize / s.descSize
	s.reservedGDT = uint32(le16(b, sbReservedGDT))
	if s.reservedGDT > uint32(s.blockSize/4) {
		return corrupt(0, 0, "superblock: %d reserved descriptor blocks", s.reservedGDT)
	}
	if s.incompat&incompatMetaBG != 0 {
		s.firstMetaBG = le32(b, sbFirstMetaBG)
		if s.firstMetaBG > s.descBlocks() {
			return corrupt(0, 0, "superblock: first meta block group %d", s.firstMetaBG)
		}
	}
	s.backups = [2]uint32{le32(b, sbBackupGroups), le32(b, sbBackupGroups+4)}
	s.flexSize = 1
	if s.incompat&incompatFlexBG != 0 && b[sbLogFlex] < 32 {
		s.flexSize = 1 << b[sbLogFlex]
	}
	return nil
}

// descBlocks returns the number of blocks that all descriptors take.
func (s *super) descBlocks() uint32 {
	return uint32((uint64(s.groups) + uint64(s.descPerBlock) - 1) / uint64(s.descPerBlock))
}

// Names of the feature bits, as mke2fs has them; the order is that of the bits.
var (
	compatNames = [32]string{"dir_prealloc", "imagic_inodes", "has_journal", "ext_attr", "resize_inode", "dir_index", "lazy_bg",
		"", "snapshot_bitmap", "sparse_super2", "fast_commit", "stable_inodes", "orphan_file"}
	incompatNames = [32]string{"compression", "filetype", "needs_recovery", "journal_dev", "meta_bg", "", "extent", "64bit", "mmp",
		"flex_bg", "ea_inode", "", "dirdata", "metadata_csum_seed", "large_dir", "inline_data", "encrypt", "casefold"}
	roNames = [32]string{"sparse_super", "large_file", "btree_dir", "huge_file", "uninit_bg", "dir_nlink", "extra_isize",
		"has_snapshot", "quota", "bigalloc", "metadata_csum", "replica", "read-only", "project", "shared_blocks", "verity", "orphan_present"}
)

// Features that are understood. What is not in the first is refused altogether; what
// is not in the others is refused for editing. Features whose marks lie on single
// inodes (encrypt, verity, inline_data, casefold, ea_inode) are refused there.
const (
	incompatRead  = 0x2 | 0x4 | 0x10 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x8000 | 0x10000 | 0x20000
	incompatWrite = incompatRead &^ (incompatRecover | 0x100)
	compatWrite   = 0x1 | 0x4 | 0x8 | 0x10 | 0x20 | 0x200 | 0x400 | 0x800 | 0x1000
	roWrite       = 0x1 | 0x2 | 0x8 | 0x10 | 0x20 | 0x40 | 0x400 | 0x8000
)

// unknownBits names the bits of v that have no name.
func unknownBits(names [32]string, v uint32) string {
	for i := range names {
		if v>>i&1 != 0 && names[i] == "" {
			return fmt.Sprintf("0x%x", uint32(1)<<i)
		}
	}
	return ""
}

func bitName(names [32]string, v uint32) string {
	i := bits.TrailingZeros32(v)
	if names[i] == "" {
		return fmt.Sprintf("0x%x", uint32(1)<<i)
	}
	return names[i]
}

func (s *super) featureNames() []string {
	var out []string
	add := func(names [32]string, v uint32) {
		for ; v != 0; v &= v - 1 {
			out = append(out, bitName(names, v))
		}
	}
	add(compatNames, s.compat)
	add(incompatNames, s.incompat)
	add(roNames, s.ro)
	return out
}

const fsckRemedy = "repair a copy of the image with e2fsck -f, or take the image from an instance that was shut down"

// refuseFeatures refuses features that change the meaning of what is read.
func (s *super) refuseFeatures() error {
	if bad := s.incompat &^ incompatRead; bad != 0 {
		return unsupported("feature %s", bitName(incompatNames, bad))
	}
	return nil
}

// refuseRead refuses what cannot be read right.
func (s *super) refuseRead() error {
	if err := s.refuseFeatures(); err != nil {
		return err
	}
	if s.incompat&incompatRecover != 0 {
		return hint.With(unsupported("feature needs_recovery: the journal has not been replayed"),
			"the image was taken from a running system: replay the journal of a copy with e2fsck -fy, or take the image after a shutdown")
	}
	if s.state&stateErrors != 0 {
		return hint.With(unsupported("the file system is marked as having errors"), fsckRemedy)
	}
	if s.state&stateValid == 0 {
		return hint.With(unsupported("the file system is not marked as cleanly unmounted"), fsckRemedy)
	}
	return nil
}

// refuseWrite refuses what can be read but not be changed right.
func (s *super) refuseWrite() error {
	if bad := s.compat &^ compatWrite; bad != 0 {
		return unsupported("editing with feature %s", bitName(compatNames, bad))
	}
	if bad := s.incompat &^ incompatWrite; bad != 0 {
		return unsupported("editing with feature %s", bitName(incompatNames, bad))
	}
	if bad := s.ro &^ (roWrite | roOrphanPresent); bad != 0 {
		return unsupported("editing with feature %s", bitName(roNames, bad))
	}
	return nil
}

// refuseOrphans refuses inodes without names that a system has left behind. Recover
// removes them.
func (s *super) refuseOrphans() error {
	if s.ro&roOrphanPresent != 0 {
		return hint.With(unsupported("editing with feature orphan_present"), fsckRemedy)
	}
	if s.lastOrphan != 0 {
		return hint.With(unsupported("editing with orphaned inodes, from %d on", s.lastOrphan), fsckRemedy)
	}
	return nil
}
