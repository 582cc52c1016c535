package oracle

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// FileSystem is a file system in a raw image, as sfdisk and blkid see it.
type FileSystem struct {
	Part      int // the partition's number; 0 if there is no table
	Off, Size int64
	Type      string // "ext4", "vfat", "xfs", …
}

// Format returns qemu-img's name of the format of an image: by its name for a VHD,
// because a fixed one begins like a raw image.
func Format(tb testing.TB, image string) string {
	tb.Helper()
	if strings.HasSuffix(image, ".vhd") {
		return "vpc"
	}
	var info struct{ Format string }
	if err := json.Unmarshal([]byte(Run(tb, "qemu-img", "info", "--output=json", image)), &info); err != nil {
		tb.Fatal(err)
	}
	return info.Format
}

// RawDisk returns a raw file with the guest's bytes of an image: the image itself,
// or a copy that qemu-img made.
func RawDisk(tb testing.TB, image string) string {
	tb.Helper()
	format := Format(tb, image)
	if format == "raw" {
		return image
	}
	raw := filepath.Join(tb.TempDir(), "guest.raw")
	Run(tb, "qemu-img", "convert", "-q", "-f", format, "-O", "raw", image, raw)
	return raw
}

// FileSystems returns the file systems in a raw image, in the order of the table.
// Partitions without one are left out.
func FileSystems(tb testing.TB, raw string) []FileSystem {
	tb.Helper()
	fi, err := os.Stat(raw)
	if err != nil {
		tb.Fatal(err)
	}
	parts := partitions(tb, raw)
	if len(parts) == 0 {
		parts = []FileSystem{{Size: fi.Size()}}
	}
	for i, p := range parts {
		// An extended partition, or one beyond the end, has nothing to probe.
		r := Try(tb, "blkid", "-p", "-O", strconv.FormatInt(p.Off, 10), "-S", strconv.FormatInt(p.Size, 10), "-s", "TYPE", "-o", "value", raw)
		parts[i].Type = strings.TrimSpace(r.Stdout)
	}
	return slices.DeleteFunc(parts, func(p FileSystem) bool { return p.Type == "" })
}

// partitions returns the partitions of a raw image.
func partitions(tb testing.TB, raw string) []FileSystem {
	tb.Helper()
	var table struct {
		PartitionTable struct {
			Label      string
			SectorSize int64
			Partitions []struct {
				Node        string
				Start, Size int64
				Type        string
			}
		}
	}
	r := Try(tb, "sfdisk", "-J", raw)
	if r.Code != 0 {
		return nil
	}
	if err := json.Unmarshal([]byte(r.Stdout), &table); err != nil {
		tb.Fatalf("sfdisk -J %s: %v", raw, err)
	}
	t := table.PartitionTable
	if len(t.Partitions) == 1 && t.Partitions[0].Type == "ee" {
		return partitions4K(tb, raw)
	}
	var out []FileSystem
	for _, p := range t.Partitions {
		n, err := strconv.Atoi(strings.TrimPrefix(p.Node, raw))
		if err != nil {
			// sfdisk puts a "p" between a name that ends in a digit and the number.
			n, err = strconv.Atoi(strings.TrimPrefix(p.Node, raw+"p"))
		}
		if err != nil {
			tb.Fatalf("sfdisk names a partition of %s %q", raw, p.Node)
		}
		out = append(out, FileSystem{Part: n, Off: p.Start * 512, Size: p.Size * 512})
	}
	return out
}

// partitions4K returns the partitions of a GPT for sectors of 4096 bytes. Only fdisk
// can be told to look at one in a file.
func partitions4K(tb testing.TB, raw string) []FileSystem {
	tb.Helper()
	var out []FileSystem
	table := Run(tb, "fdisk", "-l", "-b", "4096", "-o", "Start,Sectors", raw)
	_, rows, _ := strings.Cut(table, "Start")
	for line := range strings.Lines(rows) {
		var start, sectors int64
		if n, _ := fmt.Sscan(line, &start, &sectors); n == 2 {
			out = append(out, FileSystem{Part: len(out) + 1, Off: start * 4096, Size: sectors * 4096})
		}
	}
	return out
}

// CheckImage fails the test unless every file system in the image is clean to
// e2fsck and fsck.vfat, and the image itself, if a qcow2, to qemu-img.
func CheckImage(tb testing.TB, image string) {
	tb.Helper()
	if Format(tb, image) == "qcow2" {
		CheckQcow2(tb, image)
	}
	raw := RawDisk(tb, image)
	for _, f := range FileSystems(tb, raw) {
		var r Result
		switch f.Type {
		case "ext2", "ext3", "ext4":
			r = Try(tb, "e2fsck", "-fn", fmt.Sprintf("%s?offset=%d", raw, f.Off))
		case "vfat":
			r = Try(tb, "fsck.vfat", "-n", extract(tb, raw, f))
		}
		if r.Code != 0 {
			tb.Errorf("%s: partition %d (%s) is not clean:\n%s%s", image, f.Part, f.Type, r.Stdout, r.Stderr)
		}
	}
}

// extract copies a partition to a file of its own, for tools that cannot be told an
// offset.
func extract(tb testing.TB, raw string, f FileSystem) string {
	tb.Helper()
	part := filepath.Join(tb.TempDir(), "part")
	Run(tb, "dd", "if="+raw, "of="+part, "bs=1M", "conv=sparse", "status=none", "iflag=skip_bytes,count_bytes",
		fmt.Sprintf("skip=%d", f.Off), fmt.Sprintf("count=%d", f.Size))
	return part
}
