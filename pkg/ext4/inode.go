package ext4

import (
	"io/fs"
	"time"
)

// inode is seen through its raw bytes, which may lie in a dirty block.
type inode struct {
	ino Ino
	raw []byte
	s   *super
}

// Stat is what an inode says about itself.
type Stat struct {
	Ino                        Ino
	Mode                       fs.FileMode // type, permissions, setuid, setgid, sticky, in Go's form
	RawMode                    uint16      // the same, as POSIX has it
	UID, GID                   uint32
	Size                       int64 // bytes
	Links                      int
	Atime, Mtime, Ctime, Birth time.Time // UTC; Birth is zero where inodes have no room for it
	Flags                      uint32    // i_flags, as lsattr shows them
	Generation                 uint32
	Blocks                     int64  // taken on disk, in units of 512 bytes
	Major, Minor               uint32 // of a device
}

// Stat returns the attributes of an inode.
func (f *FS) Stat(ino Ino) (*Stat, error) {
	in, err := f.inode(ino)
	if err != nil {
		return nil, err
	}
	st := &Stat{
		Ino: ino, Mode: goMode(in.mode()), RawMode: in.mode(), UID: in.uid(), GID: in.gid(),
		Size: in.size(), Links: in.links(), Flags: in.flags(), Generation: le32(in.raw, iGeneration),
		Atime: in.time(iAtime, iAtimeExtra), Mtime: in.time(iMtime, iMtimeExtra), Ctime: in.time(iCtime, iCtimeExtra),
		Blocks: int64(in.blocks512()),
	}
	if in.hasExtra(iCrtimeEx + 4) {
		st.Birth = in.time(iCrtime, iCrtimeEx)
	}
	if t := in.mode() & modeFmt; t == modeChr || t == modeBlk {
		st.Major, st.Minor = in.device()
	}
	return st, nil
}

// inode returns an inode that is in use, its checksum verified.
func (f *FS) inode(ino Ino) (inode, error) {
	in, err := f.inodeSlot(ino, f.c.read)
	if err != nil {
		return in, err
	}
	if in.mode() == 0 || in.links() == 0 {
		return in, corrupt(ino, 0, "the inode is not in use")
	}
	if _, ok := f.touched[ino]; ok {
		return in, nil
	}
	return in, in.verify()
}

// inodePlace returns the block that an inode lies in, and the offset there in bytes.
func (f *FS) inodePlace(ino Ino) (group, uint64, int, error) {
	s := &f.sb
	if ino == 0 || uint32(ino) > s.inodes {
		return group{}, 0, 0, corrupt(ino, 0, "there are %d inodes only", s.inodes)
	}
	g, i := (uint32(ino)-1)/s.inodesPerGroup, (uint32(ino)-1)%s.inodesPerGroup
	d, err := f.group(g)
	if err != nil {
		return d, 0, 0, err
	}
	off := uint64(i) * uint64(s.inodeSize)
	return d, d.inodeTable() + off/uint64(s.blockSize), int(off % uint64(s.blockSize)), nil
}

// inodeSlot returns an inode's bytes, whatever they hold.
func (f *FS) inodeSlot(ino Ino, get access) (inode, error) {
	d, no, off, err := f.inodePlace(ino)
	if err != nil {
		return inode{}, err
	}
	b, err := get(no, tag{kindInodeTable, d.g}, nil)
	if err != nil {
		return inode{}, err
	}
	return inode{ino, b[off : off+f.sb.inodeSize], &f.sb}, nil
}

func (in inode) mode() uint16  { return le16(in.raw, iMode) }
func (in inode) isDir() bool   { return in.mode()&modeFmt == modeDir }
func (in inode) isReg() bool   { return in.mode()&modeFmt == modeReg }
func (in inode) links() int    { return int(le16(in.raw, iLinks)) }
func (in inode) flags() uint32 { return le32(in.raw, iFlags) }
func (in inode) uid() uint32   { return uint32(le16(in.raw, iUID)) | uint32(le16(in.raw, iUIDHi))<<16 }
func (in inode) gid() uint32   { return uint32(le16(in.raw, iGID)) | uint32(le16(in.raw, iGIDHi))<<16 }
func (in inode) root() []byte  { return in.raw[iBlock : iBlock+iBlockLen] }
func (in inode) isIndex() bool { return in.flags()&flIndex != 0 && in.s.compat&compatDirIndex != 0 }
func (in inode) setFlag(v, on uint32) {
	put32(in.raw, iFlags, in.flags()&^v|on)
}

// size returns i_size. Its high half has a meaning for regular files, and with
// large_dir for folders.
func (in inode) size() int64 {
	n := uint64(le32(in.raw, iSize))
	if in.isReg() || in.isDir() && in.s.incompat&incompatLargeDir != 0 {
		n |= uint64(le32(in.raw, iSizeHi)) << 32
	}
	return int64(n & (1<<63 - 1))
}

func (in inode) setSize(n int64) {
	put32(in.raw, iSize, uint32(n))
	if in.isReg() || in.isDir() && in.s.incompat&incompatLargeDir != 0 {
		put32(in.raw, iSizeHi, uint32(n>>32))
	}
}

// blocks512 returns i_blocks in units of 512 bytes.
func (in inode) blocks512() uint64 {
	n := uint64(le32(in.raw, iBlocks))
	if in.s.ro&roHugeFile == 0 {
		return n
	}
	n |= uint64(le16(in.raw, iBlocksHi)) << 32
	if in.flags()&flHugeFile != 0 {
		n *= uint64(in.s.blockSize) / 512
	}
	return n
}

// setBlocks512 is the reverse of blocks512.
func (in inode) setBlocks512(n uint64) error {
	in.setFlag(flHugeFile, 0)
	if n>>32 != 0 {
		if in.s.ro&roHugeFile == 0 {
			return unsupported("inode %d: a file of %d bytes without feature huge_file", in.ino, n*512)
		}
		if n>>48 != 0 {
			in.setFlag(0, flHugeFile)
			n /= uint64(in.s.blockSize) / 512
		}
	}
	put32(in.raw, iBlocks, uint32(n))
	if in.s.ro&roHugeFile != 0 {
		put16(in.raw, iBlocksHi, uint16(n>>32))
	}
	return nil
}

// fileACL returns the block of extended attributes, or 0.
func (in inode) fileACL() uint64 {
	n := uint64(le32(in.raw, iFileACL))
	if in.s.incompat&incompat64bit != 0 {
		n |= uint64(le16(in.raw, iFileACLHi)) << 32
	}
	return n
}

func (in inode) setFileACL(n uint64) {
	put32(in.raw, iFileACL, uint32(n))
	if in.s.incompat&incompat64bit != 0 {
		put16(in.raw, iFileACLHi, uint16(n>>32))
	}
}

// extra returns i_extra_isize.
func (in inode) extra() int {
	if len(in.raw) <= inodeGood {
		return 0
	}
	return int(le16(in.raw, iExtraIsize))
}

// hasExtra reports whether a field that ends at byte end is part of this inode.
func (in inode) hasExtra(end int) bool { return inodeGood+in.extra() >= end && len(in.raw) >= end }

// seed is that of the checksums of what belongs to the inode.
func (in inode) seed() uint32 {
	return crc32c(crc32c32(in.s.seed, uint32(in.ino)), in.raw[iGeneration:iGeneration+4])
}

// checksum computes the inode's checksum: over all its bytes, attributes included,
// with the fields of the checksum taken for zeros (ext4_inode_csum).
func (in inode) checksum() uint32 {
	var zero [2]byte
	c := crc32c(in.seed(), in.raw[:iChecksum])
	c = crc32c(c, zero[:])
	if !in.hasExtra(iChecksumHi + 2) {
		return crc32c(c, in.raw[iChecksum+2:])
	}
	c = crc32c(c, in.raw[iChecksum+2:iChecksumHi])
	c = crc32c(c, zero[:])
	return crc32c(c, in.raw[iChecksumHi+2:])
}

func (in inode) verify() error {
	if x := in.extra(); x > len(in.raw)-inodeGood || x%4 != 0 {
		return corrupt(in.ino, 0, "extra size %d in an inode of %d bytes", x, len(in.raw))
	}
	if !in.s.metaCsum() {
		return nil
	}
	want, got := in.checksum(), uint32(le16(in.raw, iChecksum))
	if in.hasExtra(iChecksumHi + 2) {
		got |= uint32(le16(in.raw, iChecksumHi)) << 16
	} else {
		want &= 0xFFFF
	}
	if want != got {
		return corrupt(in.ino, 0, "wrong checksum of the inode")
	}
	return nil
}

func (in inode) seal() {
	if !in.s.metaCsum() {
		return
	}
	c := in.checksum()
	put16(in.raw, iChecksum, uint16(c))
	if in.hasExtra(iChecksumHi + 2) {
		put16(in.raw, iChecksumHi, uint16(c>>16))
	}
}

// time decodes a time: 32 bits of signed seconds, and where there is room two more
// bits above them and 30 bits of nanoseconds ("Inode Timestamps").
func (in inode) time(lo, extra int) time.Time {
	sec, ns := int64(int32(le32(in.raw, lo))), int64(0)
	if in.hasExtra(extra + 4) {
		x := le32(in.raw, extra)
		sec += int64(x&3) << 32
		ns = int64(x >> 2)
	}
	if ns >= 1e9 {
		ns = 0
	}
	return time.Unix(sec, ns).UTC()
}

// setTime encodes a time; one that has no place in the inode becomes the nearest
// that has.
func (in inode) setTime(lo, extra int, t time.Time) {
	sec, ns := t.Unix(), int64(t.Nanosecond())
	wide := in.hasExtra(extra + 4)
	last := int64(1<<31 - 1)
	if wide {
		last += 3 << 32
	}
	if sec < -1<<31 {
		sec, ns = -1<<31, 0
	}
	if sec > last {
		sec, ns = last, 0
	}
	put32(in.raw, lo, uint32(sec))
	if wide {
		epoch := (sec - int64(int32(sec))) >> 32 & 3
		put32(in.raw, extra, uint32(ns)<<2|uint32(epoch))
	}
}

// device decodes the numbers of a device from the first two words of i_block: the old
// form of 16 bits or the new one of 32.
func (in inode) device() (major, minor uint32) {
	if old := le32(in.raw, iBlock); old != 0 {
		return old >> 8 & 0xFF, old & 0xFF
	}
	v := le32(in.raw, iBlock+4)
	return v >> 8 & 0xFFF, v&0xFF | v>>12&0xFFF00
}

func (in inode) setDevice(major, minor uint32) {
	if major < 256 && minor < 256 {
		put32(in.raw, iBlock, major<<8|minor)
		return
	}
	put32(in.raw, iBlock+4, minor&0xFF|major<<8|minor&^0xFF<<12)
}

var typeOf = map[uint16]fs.FileMode{
	modeDir: fs.ModeDir, modeLink: fs.ModeSymlink, modeFifo: fs.ModeNamedPipe, modeSock: fs.ModeSocket,
	modeBlk: fs.ModeDevice, modeChr: fs.ModeDevice | fs.ModeCharDevice, modeReg: 0,
}

// goMode turns POSIX mode bits into Go's. An unknown type becomes fs.ModeIrregular.
func goMode(m uint16) fs.FileMode {
	t, ok := typeOf[m&modeFmt]
	if !ok {
		t = fs.ModeIrregular
	}
	t |= fs.FileMode(m & 0o777)
	for bit, v := range map[uint16]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if m&bit != 0 {
			t |= v
		}
	}
	return t
}

// rawMode is the reverse of goMode; the type comes from the caller.
func rawMode(typ uint16, m fs.FileMode) uint16 {
	r := typ | uint16(m.Perm())
	if m&fs.ModeSetuid != 0 {
		r |= 0o4000
	}
	if m&fs.ModeSetgid != 0 {
		r |= 0o2000
	}
	if m&fs.ModeSticky != 0 {
		r |= 0o1000
	}
	return r
}
