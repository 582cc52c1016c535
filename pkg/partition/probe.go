package partition

import (
	"bytes"
	"encoding/binary"

	"remaster/pkg/disk"
)

// magics are the signatures that Probe knows, by the names that blkid uses. Where
// several match, the first wins: containers of other volumes come before what may
// be left from an earlier life of the place.
var magics = []struct {
	fs    string
	off   int64
	magic string
}{
	{"crypto_LUKS", 0, "LUKS\xba\xbe"},
	{"linux_raid_member", 4096, "\xfc\x4e\x2b\xa9"}, // version 1.2
	{"LVM2_member", 512, "LABELONE"},                // sectors 0 to 3 may hold it, 1 does
	{"LVM2_member", 0, "LABELONE"},
	{"LVM2_member", 1024, "LABELONE"},
	{"LVM2_member", 1536, "LABELONE"},
	{"xfs", 0, "XFSB"},
	{"btrfs", 0x10040, "_BHRfS_M"},
	{"ntfs", 3, "NTFS    "},
	{"exfat", 3, "EXFAT   "},
	{"ext4", 0x438, "\x53\xef"}, // ext2 and ext3 too
	{"squashfs", 0, "hsqs"},
	{"erofs", 1024, "\xe2\xe1\xf5\xe0"},
	{"swap", 4096 - 10, "SWAPSPACE2"},
	{"swap", 65536 - 10, "SWAPSPACE2"}, // 64 KiB pages
}

// bootSectorFS are the file systems whose boot sector is signed like an MBR.
var bootSectorFS = map[string]bool{"vfat": true, "ntfs": true, "exfat": true}

// Probe tells by magic numbers what lies on d: "ext4" (or ext2, ext3), "vfat", "xfs",
// "btrfs", "ntfs", "exfat", "squashfs", "erofs", "swap", "LVM2_member", "crypto_LUKS",
// "linux_raid_member", or "" if it is nothing of these. It says nothing about the state
// of what it names. The error is that of reading d.
func Probe(d disk.Disk) (string, error) {
	// Two short reads: the first covers all but two of the signatures.
	head := make([]byte, min(d.Size(), 8<<10))
	if err := disk.ReadFull(d, head, 0); err != nil {
		return "", err
	}
	const farOff, farEnd = 65536 - 10, 0x10040 + 8
	far := make([]byte, max(min(d.Size(), farEnd)-farOff, 0))
	if len(far) > 0 {
		if err := disk.ReadFull(d, far, farOff); err != nil {
			return "", err
		}
	}
	for _, m := range magics {
		b, off := head, m.off
		if off >= farOff {
			b, off = far, off-farOff
		}
		if off < int64(len(b)) && bytes.HasPrefix(b[off:], []byte(m.magic)) {
			return m.fs, nil
		}
	}
	if isFAT(head) {
		return "vfat", nil
	}
	return "", nil
}

// isFAT reports whether b starts with the boot sector of a FAT volume. (Microsoft FAT
// specification, 2005, "BPB")
func isFAT(b []byte) bool {
	if len(b) < mbrSize || b[510] != 0x55 || b[511] != 0xAA {
		return false
	}
	if b[0] != 0xE9 && (b[0] != 0xEB || b[2] != 0x90) {
		return false
	}
	le := binary.LittleEndian
	sector, cluster := int(le.Uint16(b[11:])), int(b[13])
	reserved, fats, media := le.Uint16(b[14:]), b[16], b[21]
	return sector >= 512 && sector <= 4096 && sector&(sector-1) == 0 &&
		cluster != 0 && cluster&(cluster-1) == 0 &&
		reserved != 0 && (fats == 1 || fats == 2) && (media == 0xF0 || media >= 0xF8) &&
		(le.Uint16(b[19:]) != 0 || le.Uint32(b[32:]) != 0)
}
