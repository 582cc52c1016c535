package fat

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"strings"

	"remaster/pkg/disk"
)

var le = binary.LittleEndian

// Offsets in the boot sector: Microsoft FAT32 File System Specification 1.03, "Boot
// Sector and BPB". All numbers on disk are little-endian.
const (
	bpbSectorSize   = 0x0B // u16, bytes
	bpbClusterSize  = 0x0D // u8, sectors
	bpbReserved     = 0x0E // u16, sectors before the first FAT
	bpbFATs         = 0x10 // u8
	bpbRootEntries  = 0x11 // u16, slots of the fixed root folder; 0 on FAT32
	bpbSectors16    = 0x13 // u16
	bpbFATSize16    = 0x16 // u16, sectors; 0 on FAT32
	bpbSectors32    = 0x20 // u32
	bpbFATSize32    = 0x24 // u32, sectors
	bpbExtFlags     = 0x28 // u16: bit 7 no mirroring, bits 0-3 the FAT in use
	bpbVersion      = 0x2A // u16
	bpbRootCluster  = 0x2C // u32
	bpbFSInfo       = 0x30 // u16, sector
	bootState16     = 0x25 // u8, bit 0: Linux's mark of a mounted volume (BS_Reserved1)
	bootState32     = 0x41
	bootSerial16    = 0x27 // u32
	bootSerial32    = 0x43
	bootLabel16     = 0x2B // 11 bytes
	bootLabel32     = 0x47
	bootSignature   = 510 // 55 AA
	infoLead        = 0   // u32, "FSInfo Sector Structure"
	infoStruct      = 484
	infoFree        = 488 // u32, free clusters or unknown
	infoNext        = 492 // u32, a cluster to begin a search at
	infoTrail       = 508
	infoLeadMagic   = 0x41615252
	infoStructMagic = 0x61417272
	infoTrailMagic  = 0xAA550000
)

// slotSize is the length of an entry of a folder, in bytes.
const slotSize = 32

// maxDirSize is the length, in bytes, that a folder can have: 65,536 slots.
const maxDirSize = 65536 * slotSize

// boot is what the boot sector says, checked. All offsets and sizes are in bytes.
type boot struct {
	bits        int // of an entry of the FAT: 12, 16 or 32
	sector      int64
	cluster     int64
	fatOff      int64
	fatSize     int64
	fats        int64
	activeFAT   int64 // the one that is read
	mirrored    bool
	rootOff     int64 // FAT12 and FAT16 only
	rootSize    int64
	rootCluster uint32 // FAT32 only
	dataOff     int64
	end         uint32 // clusters are [2, end)
	infoOff     int64  // 0: there is no FSInfo sector
	state       byte
	serial      uint32
	label       string
}

func parseBoot(d disk.Disk) (*boot, error) {
	p := make([]byte, 512)
	if d.Size() < int64(len(p)) {
		return nil, fmt.Errorf("fat: %d bytes are too few: %w", d.Size(), disk.ErrFormat)
	}
	if err := disk.ReadFull(d, p, 0); err != nil {
		return nil, fmt.Errorf("fat: boot sector: %w", err)
	}
	b := &boot{sector: int64(le.Uint16(p[bpbSectorSize:])), fats: int64(p[bpbFATs])}
	perCluster, reserved := int64(p[bpbClusterSize]), int64(le.Uint16(p[bpbReserved:]))
	if p[bootSignature] != 0x55 || p[bootSignature+1] != 0xAA || !powerOfTwo(b.sector, 512, 4096) ||
		!powerOfTwo(perCluster, 1, 128) || reserved == 0 || b.fats == 0 {
		return nil, fmt.Errorf("fat: no boot sector of FAT: %w", disk.ErrFormat)
	}
	if b.fats > 2 {
		return nil, fmt.Errorf("fat: %d copies of the FAT: %w", b.fats, disk.ErrUnsupported)
	}
	b.cluster, b.fatOff = perCluster*b.sector, reserved*b.sector
	sectors := int64(le.Uint16(p[bpbSectors16:]))
	if sectors == 0 {
		sectors = int64(le.Uint32(p[bpbSectors32:]))
	}
	fatSectors := int64(le.Uint16(p[bpbFATSize16:]))
	is32 := fatSectors == 0
	if is32 {
		fatSectors = int64(le.Uint32(p[bpbFATSize32:]))
	}
	b.fatSize = fatSectors * b.sector
	b.rootOff = b.fatOff + b.fats*b.fatSize
	b.rootSize = int64(le.Uint16(p[bpbRootEntries:])) * slotSize
	b.dataOff = b.rootOff + (b.rootSize+b.sector-1)/b.sector*b.sector
	size := sectors * b.sector
	switch {
	case size > d.Size():
		return nil, fmt.Errorf("fat: the volume of %d bytes does not fit into its partition of %d: %w", size, d.Size(), disk.ErrCorrupt)
	case fatSectors == 0 || b.dataOff >= size:
		return nil, fmt.Errorf("fat: no room for data in %d sectors: %w", sectors, disk.ErrCorrupt)
	case is32 != (b.rootSize == 0):
		return nil, fmt.Errorf("fat: a root folder of %d bytes in a fixed place: %w", b.rootSize, disk.ErrCorrupt)
	}
	return b, b.setType(p, is32, (size-b.dataOff)/b.cluster)
}

// setType reads what depends on the type. Like Linux, GRUB and dosfstools, it takes a
// volume without a 16-bit size of the FAT for FAT32 however few clusters it has.
func (b *boot) setType(p []byte, is32 bool, clusters int64) error {
	serial, label := bootSerial16, bootLabel16
	b.state, b.mirrored = p[bootState16], true
	switch {
	case is32:
		b.bits = 32
		serial, label = bootSerial32, bootLabel32
		b.state = p[bootState32]
		b.rootCluster = le.Uint32(p[bpbRootCluster:])
		if v := le.Uint16(p[bpbVersion:]); v != 0 {
			return fmt.Errorf("fat: FAT32 version %#x: %w", v, disk.ErrUnsupported)
		}
		if f := le.Uint16(p[bpbExtFlags:]); f&0x80 != 0 {
			b.mirrored, b.activeFAT = false, int64(f&0xF)
		}
		if s := int64(le.Uint16(p[bpbFSInfo:])); s != 0 && s != 0xFFFF && (s+1)*b.sector <= b.fatOff {
			b.infoOff = s * b.sector
		}
	case clusters < 4085:
		b.bits = 12
	default:
		b.bits = 16
	}
	if most := map[int]int64{12: 0xFF4, 16: 0xFFF4, 32: 0xFFFFFF5}[b.bits]; clusters > most {
		return fmt.Errorf("fat: %d clusters are too many for FAT%d: %w", clusters, b.bits, disk.ErrCorrupt)
	}
	b.end = uint32(clusters) + 2
	if room := b.fatSize * 8 / int64(b.bits); clusters+2 > room {
		return fmt.Errorf("fat: %d clusters, and a FAT for %d: %w", clusters, room-2, disk.ErrCorrupt)
	}
	if b.activeFAT >= b.fats {
		return fmt.Errorf("fat: FAT %d of %d is in use: %w", b.activeFAT, b.fats, disk.ErrCorrupt)
	}
	if is32 && !b.valid(b.rootCluster) {
		return fmt.Errorf("fat: the root folder begins at cluster %d of %d: %w", b.rootCluster, b.end, disk.ErrCorrupt)
	}
	b.serial = le.Uint32(p[serial:])
	b.label = decodeLabel(p[label : label+11])
	return nil
}

func (b *boot) valid(cluster uint32) bool { return cluster >= 2 && cluster < b.end }

func (b *boot) clusterOff(c uint32) int64 { return b.dataOff + int64(c-2)*b.cluster }

func (b *boot) clustersFor(size int64) int64 { return (size + b.cluster - 1) / b.cluster }

func powerOfTwo(n, least, most int64) bool {
	return n >= least && n <= most && bits.OnesCount64(uint64(n)) == 1
}

func decodeLabel(p []byte) string {
	s := strings.TrimRight(decodeOEM(p), " \x00")
	if s == "NO NAME" {
		return ""
	}
	return s
}
