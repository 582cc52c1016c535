package ext4

import "encoding/binary"

// All numbers on disk are little-endian; the journal's alone are big-endian.

func le16(b []byte, off int) uint16     { return binary.LittleEndian.Uint16(b[off:]) }
func le32(b []byte, off int) uint32     { return binary.LittleEndian.Uint32(b[off:]) }
func put16(b []byte, off int, v uint16) { binary.LittleEndian.PutUint16(b[off:], v) }
func put32(b []byte, off int, v uint32) { binary.LittleEndian.PutUint32(b[off:], v) }

// The superblock lies at byte 1024, whatever the block size. Offsets: the kernel's
// documentation, "Super Block"; struct ext4_super_block.
const (
	superOffset = 1024
	superSize   = 1024
	superMagic  = 0xEF53

	sbInodes         = 0x00
	sbBlocks         = 0x04
	sbReserved       = 0x08
	sbFreeBlocks     = 0x0C
	sbFreeInodes     = 0x10
	sbFirstData      = 0x14
	sbLogBlockSize   = 0x18
	sbLogClusterSize = 0x1C
	sbBlocksPerGroup = 0x20
	sbInodesPerGroup = 0x28
	sbWtime          = 0x30
	sbMagic          = 0x38
	sbState          = 0x3A
	sbLastCheck      = 0x40
	sbRevision       = 0x4C
	sbFirstIno       = 0x54
	sbInodeSize      = 0x58
	sbBlockGroup     = 0x5A // of a copy: the group that it lies in
	sbCompat         = 0x5C
	sbIncompat       = 0x60
	sbRoCompat       = 0x64
	sbUUID           = 0x68
	sbLabel          = 0x78
	sbLastMounted    = 0x88
	sbReservedGDT    = 0xCE
	sbJournalIno     = 0xE0
	sbLastOrphan     = 0xE8
	sbHashSeed       = 0xEC
	sbDefHash        = 0xFC
	sbDescSize       = 0xFE
	sbFirstMetaBG    = 0x104
	sbMkfsTime       = 0x108
	sbBlocksHi       = 0x150
	sbReservedHi     = 0x154
	sbFreeBlocksHi   = 0x158
	sbWantExtra      = 0x15E
	sbFlags          = 0x160
	sbLogFlex        = 0x174
	sbChecksumType   = 0x175
	sbErrorCount     = 0x194
	sbOverhead       = 0x248
	sbBackupGroups   = 0x24C
	sbChecksumSeed   = 0x270
	sbWtimeHi        = 0x274
	sbMkfsTimeHi     = 0x276
	sbLastCheckHi    = 0x277
	sbOrphanFile     = 0x280
	sbChecksum       = 0x3FC

	stateValid  = 1
	stateErrors = 2

	flagUnsignedHash = 2 // in s_flags
)

// Feature bits: the kernel's documentation, "Super Block", s_feature_*.
const (
	compatHasJournal   = 0x4
	compatExtAttr      = 0x8
	compatResizeInode  = 0x10
	compatDirIndex     = 0x20
	compatSparseSuper2 = 0x200
	compatOrphanFile   = 0x1000

	incompatFiletype  = 0x2
	incompatRecover   = 0x4
	incompatMetaBG    = 0x10
	incompatExtents   = 0x40
	incompat64bit     = 0x80
	incompatFlexBG    = 0x200
	incompatCsumSeed  = 0x2000
	incompatLargeDir  = 0x4000
	incompatJournalDv = 0x8

	roSparseSuper  = 0x1
	roLargeFile    = 0x2
	roHugeFile     = 0x8
	roGDTCsum      = 0x10
	roDirNlink     = 0x20
	roExtraIsize   = 0x40
	roBigalloc     = 0x200
	roMetadataCsum = 0x400

	roOrphanPresent = 0x10000
)

// A group descriptor: the kernel's documentation, "Block Group Descriptors". The
// second 32 bytes are there with the 64bit feature only.
const (
	gdBlockBitmap       = 0x00
	gdInodeBitmap       = 0x04
	gdInodeTable        = 0x08
	gdFreeBlocks        = 0x0C
	gdFreeInodes        = 0x0E
	gdUsedDirs          = 0x10
	gdFlags             = 0x12
	gdBlockBitmapCsum   = 0x18
	gdInodeBitmapCsum   = 0x1A
	gdItableUnused      = 0x1C
	gdChecksum          = 0x1E
	gdBlockBitmapHi     = 0x20
	gdInodeBitmapHi     = 0x24
	gdInodeTableHi      = 0x28
	gdFreeBlocksHi      = 0x2C
	gdFreeInodesHi      = 0x2E
	gdUsedDirsHi        = 0x30
	gdItableUnusedHi    = 0x32
	gdBlockBitmapCsumHi = 0x38
	gdInodeBitmapCsumHi = 0x3A

	gdSize32 = 32
	gdSize64 = 64

	bgInodeUninit  = 1
	bgBlockUninit  = 2
	bgInodeZeroed  = 4
	maxExtentDepth = 5 // EXT4_MAX_EXTENT_DEPTH
)

// An inode: the kernel's documentation, "Index Nodes". What lies behind byte 128 is
// there as far as i_extra_isize says.
const (
	inodeGood = 128 // size of the oldest form

	iMode       = 0x00
	iUID        = 0x02
	iSize       = 0x04
	iAtime      = 0x08
	iCtime      = 0x0C
	iMtime      = 0x10
	iDtime      = 0x14
	iGID        = 0x18
	iLinks      = 0x1A
	iBlocks     = 0x1C
	iFlags      = 0x20
	iBlock      = 0x28
	iBlockLen   = 60
	iGeneration = 0x64
	iFileACL    = 0x68
	iSizeHi     = 0x6C
	iBlocksHi   = 0x74
	iFileACLHi  = 0x76
	iUIDHi      = 0x78
	iGIDHi      = 0x7A
	iChecksum   = 0x7C
	iExtraIsize = 0x80
	iChecksumHi = 0x82
	iCtimeExtra = 0x84
	iMtimeExtra = 0x88
	iAtimeExtra = 0x8C
	iCrtime     = 0x90
	iCrtimeEx   = 0x94

	flImmutable  = 0x10
	flAppend     = 0x20
	flEncrypt    = 0x800
	flIndex      = 0x1000
	flHugeFile   = 0x40000
	flExtents    = 0x80000
	flVerity     = 0x100000
	flEAInode    = 0x200000
	flEOFBlocks  = 0x400000
	flInlineData = 0x10000000
	flCasefold   = 0x40000000
	// flInherited are the flags that a new inode takes from its folder, as far as
	// this package knows their features: sync, nodump, noatime, journal_data and,
	// for folders only, dirsync.
	flInherited = 0x8 | 0x40 | 0x80 | 0x4000 | flDirSync
	flDirSync   = 0x10000

	// maxLinks is EXT4_LINK_MAX; a folder with more subfolders has the count 1.
	maxLinks = 65000
	// maxSymlink is the longest target that Linux takes.
	maxSymlink = 4095
	maxName    = 255
)

// Type bits of i_mode, POSIX.
const (
	modeFmt  = 0xF000
	modeSock = 0xC000
	modeLink = 0xA000
	modeReg  = 0x8000
	modeBlk  = 0x6000
	modeDir  = 0x4000
	modeChr  = 0x2000
	modeFifo = 0x1000
)

// An extent tree: the kernel's documentation, "Extent Tree".
const (
	extMagic     = 0xF30A
	extHeader    = 12 // magic, entries, max, depth, generation
	extEntry     = 12
	extRootMax   = 4
	extTail      = 4     // checksum behind the entries, with metadata_csum
	maxExtentLen = 32768 // blocks; a longer length marks an unwritten extent
)

// A directory: the kernel's documentation, "Linear (Classic) Directories" and "Hash
// Tree Directories".
const (
	deHeader = 8 // inode, rec_len, name_len, file_type
	deTail   = 12
	deTailFT = 0xDE

	dxRootInfo     = 24 // behind "." and ".."
	dxRootEntries  = 32
	dxNodeEntries  = 8
	dxEntry        = 8
	dxTail         = 8
	maxDxLevels    = 3
	maxDirBlocks   = 1 << 16 // more than any real folder has
	maxFragments   = 1 << 20 // runs that one file may have
	hashEOF32      = 0x7fffffff
	hashContinued  = 1
	dxHashLegacy   = 0
	dxHashHalfMD4  = 1
	dxHashTea      = 2
	dxRootInfoSize = 8
)

// Extended attributes: the kernel's documentation, "Extended Attributes".
const (
	xaMagic       = 0xEA020000
	xaIbodyHeader = 4
	xaBlockHeader = 32
	xaEntry       = 16
	xaRefcount    = 0x04
	xaBlocks      = 0x08
	xaHash        = 0x0C
	xaChecksum    = 0x10
	xaMaxRefs     = 1024 // EXT4_XATTR_REFCOUNT_MAX
)
