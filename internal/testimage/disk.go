package testimage

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"remaster/internal/oracle"
)

// Table is the kind of a partition table.
type Table string

// The kinds of partition table.
const (
	GPT   Table = "gpt"
	GPT4K Table = "gpt, 4096-byte sectors"
	MBR   Table = "dos"
	None  Table = "" // one file system on the whole disk
)

// PartType is what a partition's entry says of it.
type PartType int

// The types of partition.
const (
	Linux PartType = iota
	BIOSBoot
	ESP
	LVM
	Extended // MBR only: holds every partition after it
)

var gptTypes = map[PartType]string{
	Linux: "0FC63DAF-8483-4772-8E79-3D69D8477DE4", BIOSBoot: "21686148-6449-6E6F-744E-656564454649",
	ESP: "C12A7328-F81F-11D2-BA4B-00A0C93EC93B", LVM: "E6D6D379-F507-44C2-A23C-238F2A3DF928",
}

var mbrTypes = map[PartType]string{Linux: "83", ESP: "ef", LVM: "8e", Extended: "5"}

// Part is a partition: its type, and the file with its content. Without a file it
// is 1 MiB of zeros.
type Part struct {
	Type PartType
	File string
}

// Disk makes a raw image in a new file: the partitions in order, each at a full MiB,
// with a free MiB at the end.
func Disk(tb testing.TB, table Table, parts ...Part) string {
	tb.Helper()
	img := filepath.Join(tb.TempDir(), "disk.raw")
	if table == None {
		truncate(tb, img, 0)
		copyInto(tb, img, parts[0].File, 0)
		return img
	}
	sector := int64(512)
	script := fmt.Sprintf("label: dos\nlabel-id: 0x%s\n", strings.Replace(ESPSerial, "-", "", 1))
	if table != MBR {
		script = "label: gpt\nlabel-id: " + partUUID(0) + "\n"
	}
	if table == GPT4K {
		sector = 4096
	}
	starts, sizes, end := place(tb, parts)
	for i, p := range parts {
		line := fmt.Sprintf("start=%d, size=%d", starts[i]<<20/sector, sizes[i]<<20/sector)
		switch {
		case table != MBR:
			line += ", type=" + gptTypes[p.Type] + ", uuid=" + partUUID(i+1)
		case i == 0:
			line += ", type=" + mbrTypes[p.Type] + ", bootable"
		default:
			line += ", type=" + mbrTypes[p.Type]
		}
		script += line + "\n"
	}
	truncate(tb, img, (end+1)<<20)
	writeTable(tb, table, img, script)
	for i, p := range parts {
		if p.File != "" {
			copyInto(tb, img, p.File, starts[i]<<20)
		}
	}
	return img
}

// writeTable writes the table that the script describes, by sfdisk, or by fdisk, which
// alone can be told the size of a sector.
func writeTable(tb testing.TB, table Table, img, script string) {
	tb.Helper()
	if table != GPT4K {
		if r := oracle.TryInput(tb, []byte(script), "sfdisk", "-q", "--no-reread", "--no-tell-kernel", img); r.Code != 0 {
			tb.Fatalf("sfdisk: %s\n%s", r.Stderr, script)
		}
		return
	}
	file := filepath.Join(tb.TempDir(), "script")
	if err := os.WriteFile(file, []byte(script), 0o644); err != nil {
		tb.Fatal(err)
	}
	if r := oracle.TryInput(tb, []byte("I\n"+file+"\nw\n"), "fdisk", "-w", "never", "-b", "4096", img); r.Code != 0 || !strings.Contains(r.Stdout, "successfully applied") {
		tb.Fatalf("fdisk: %s%s\n%s", r.Stdout, r.Stderr, script)
	}
}

func partUUID(n int) string { return fmt.Sprintf("c0ffee00-52a5-4e57-9d15-0a11ce%06x", n) }

func sizeMiB(tb testing.TB, p Part) int64 {
	tb.Helper()
	if p.File == "" {
		return 1
	}
	fi, err := os.Stat(p.File)
	if err != nil {
		tb.Fatal(err)
	}
	return (fi.Size() + 1<<20 - 1) >> 20
}

// place returns where each partition starts, its size, and where the last one ends,
// in MiB. An extended partition reaches to the end; each logical one in it has a MiB
// before it, for its table.
func place(tb testing.TB, parts []Part) (starts, sizes []int64, end int64) {
	tb.Helper()
	end = 1
	extended := -1
	for i, p := range parts {
		if extended >= 0 {
			end++
		}
		size := sizeMiB(tb, p)
		starts, sizes = append(starts, end), append(sizes, size)
		if p.Type == Extended {
			extended = i
			continue
		}
		end += size
	}
	if extended >= 0 {
		sizes[extended] = end - starts[extended]
	}
	return starts, sizes, end
}

// copyInto writes the file's bytes to img at off, without the zeros.
func copyInto(tb testing.TB, img, file string, off int64) {
	tb.Helper()
	src, err := os.ReadFile(file)
	if err != nil {
		tb.Fatal(err)
	}
	if err := newSparse(src).writeAt(img, off); err != nil {
		tb.Fatal(err)
	}
}
