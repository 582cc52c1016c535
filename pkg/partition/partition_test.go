package partition_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"remaster/internal/hint"
	"remaster/internal/oracle"
	"remaster/pkg/disk"
	"remaster/pkg/partition"
)

const mib = 1 << 20

// sfdisk returns the bytes of a disk of size bytes with a table that sfdisk made from a
// script; zeros but for the table.
func sfdisk(t testing.TB, size int64, script string) []byte {
	t.Helper()
	return made(t, size, script, func(file string) {
		if r := oracle.TryInput(t, []byte(script), "sfdisk", "-q", file); r.Code != 0 {
			t.Fatalf("sfdisk: %s%s", r.Stdout, r.Stderr)
		}
	})
}

func sgdisk(t testing.TB, size int64, args ...string) []byte {
	t.Helper()
	return made(t, size, fmt.Sprint(args), func(file string) { oracle.Run(t, "sgdisk", append(args, file)...) })
}

// fdisk4K has fdisk make a GPT for sectors of 4096 bytes, which sfdisk cannot.
func fdisk4K(t testing.TB, size int64, commands ...string) []byte {
	t.Helper()
	in := "g\n" + strings.Join(commands, "\n") + "\nw\n"
	return made(t, size, in, func(file string) {
		if r := oracle.TryInput(t, []byte(in), "fdisk", "-w", "never", "-b", "4096", file); r.Code != 0 {
			t.Fatalf("fdisk: %s%s", r.Stdout, r.Stderr)
		}
	})
}

// tables remembers what the tools made: they wait for the disk, sgdisk a whole second.
var tables sync.Map

func made(t testing.TB, size int64, how string, f func(file string)) []byte {
	t.Helper()
	key := fmt.Sprintln(size, how)
	if p, ok := tables.Load(key); ok {
		return bytes.Clone(p.([]byte))
	}
	file := store(t, nil)
	if err := os.Truncate(file, size); err != nil {
		t.Fatal(err)
	}
	f(file)
	p, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	tables.Store(key, p)
	return bytes.Clone(p)
}

func store(t testing.TB, p []byte) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, p, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func asDisk(p []byte) disk.Disk { return disk.AsDisk(disk.Bytes(p)) }

func read(t testing.TB, p []byte) *partition.Table {
	t.Helper()
	tab, err := partition.Read(asDisk(p))
	if err != nil {
		t.Fatal(err)
	}
	return tab
}

// dump is what sfdisk -J says.
type dump struct {
	Table struct {
		Label, ID  string
		SectorSize int64
		Partitions []struct {
			Node, Type, UUID, Name, Attrs string
			Start, Size                   int64
			Bootable                      bool
		}
	} `json:"partitiontable"`
}

// sameAsSfdisk compares a table with what sfdisk reads from the same bytes. sfdisk
// lists extended partitions too.
func sameAsSfdisk(t testing.TB, p []byte, tab *partition.Table) {
	t.Helper()
	file := store(t, p)
	var d dump
	if err := json.Unmarshal([]byte(oracle.Run(t, "sfdisk", "-J", file)), &d); err != nil {
		t.Fatal(err)
	}
	label := map[string]partition.Kind{"gpt": partition.GPT, "dos": partition.MBR}[d.Table.Label]
	if tab.Kind != label || tab.DiskID != d.Table.ID || tab.SectorSize != d.Table.SectorSize {
		t.Errorf("%s %s %d, sfdisk says %s %s %d", tab.Kind, tab.DiskID, tab.SectorSize, label, d.Table.ID, d.Table.SectorSize)
	}
	parts := tab.Parts
	for _, w := range d.Table.Partitions {
		if w.Type == "5" || w.Type == "f" || w.Type == "85" {
			continue
		}
		if len(parts) == 0 {
			t.Fatalf("sfdisk has one more: %+v", w)
		}
		got := parts[0]
		parts = parts[1:]
		number, _ := strconv.Atoi(strings.TrimPrefix(w.Node, file))
		typ, uuid := w.Type, w.UUID
		if label == partition.MBR {
			n, _ := strconv.ParseUint(w.Type, 16, 8)
			typ = fmt.Sprintf("%02x", n)
			uuid = fmt.Sprintf("%s-%02x", strings.TrimPrefix(d.Table.ID, "0x"), number)
		}
		want := partition.Part{
			Number: number, Type: typ, UUID: uuid, Name: w.Name,
			Range:      disk.Range{Off: w.Start * d.Table.SectorSize, Len: w.Size * d.Table.SectorSize},
			Bootable:   w.Bootable || strings.Contains(w.Attrs, "LegacyBIOSBootable"),
			Attributes: got.Attributes,
		}
		if got != want {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
	}
	if len(parts) != 0 {
		t.Errorf("sfdisk does not know %v", parts)
	}
}

const alinuxGPT = `label: gpt
label-id: 7B1F3F5A-52B5-4B0E-9A38-0D3F7D8C1E00
start=2048, size=2048, type=21686148-6449-6E6F-744E-656564454649, uuid=7B1F3F5A-52B5-4B0E-9A38-0D3F7D8C1E01
start=4096, size=8192, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, uuid=7B1F3F5A-52B5-4B0E-9A38-0D3F7D8C1E02, name="EFI System"
start=12288, size=16384, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4, uuid=7B1F3F5A-52B5-4B0E-9A38-0D3F7D8C1E03, name="ルート"
`

func TestReadEqualsSfdisk(t *testing.T) {
	t.Parallel() // the tools mostly wait
	for name, p := range map[string][]byte{
		"gpt":           sfdisk(t, 16*mib, alinuxGPT),
		"gpt with gaps": sgdisk(t, 32*mib, "-n", "5:2048:+4M", "-n", "3:20480:+1M", "-c", "3:first", "-A", "5:set:2", "-t", "5:8300"),
		"gpt empty":     sgdisk(t, 16*mib, "-o"),
		"gpt 256":       sgdisk(t, 16*mib, "-S", "256", "-n", "200:4096:+2M"),
		"mbr":           sfdisk(t, 16*mib, "label: dos\nlabel-id: 0x5ea7c0de\nstart=2048, size=4096, type=83, bootable\nstart=8192, size=4096, type=c\n"),
		"mbr logical": sfdisk(t, 64*mib, "label: dos\nlabel-id: 0x5ea7c0de\nstart=2048, size=4096, type=83\nstart=8192, size=100000, type=f\n"+
			"start=10240, size=4096, type=83\nstart=16384, size=4096, type=82\nstart=30720, size=20480, type=8e\n"),
		"mbr logical out of order": sfdisk(t, 64*mib, "label: dos\nlabel-id: 0x1\nstart=8192, size=100000, type=5\nstart=2048, size=4096, type=83\n"+
			"start=40960, size=4096, type=83\nstart=16384, size=4096, type=83\n"),
		"mbr with a gap": sfdisk(t, 16*mib, "label: dos\nlabel-id: 0x2\n/dev/x2 : start=2048, size=4096, type=83\n/dev/x4 : start=8192, size=4096, type=83\n"),
	} {
		t.Run(name, func(t *testing.T) {
			tab := read(t, p)
			sameAsSfdisk(t, p, tab)
			if len(tab.Notes) != 0 {
				t.Errorf("notes: %q", tab.Notes)
			}
		})
	}
}

func TestReadManyLogicalPartitions(t *testing.T) {
	t.Parallel() // the tools mostly wait
	var b strings.Builder
	b.WriteString("label: dos\nlabel-id: 0x1\nstart=2048, type=f\n")
	for i := range 40 {
		fmt.Fprintf(&b, "start=%d, size=100, type=83\n", 4096*(i+1))
	}
	p := sfdisk(t, 88*mib, b.String())
	tab := read(t, p)
	sameAsSfdisk(t, p, tab)
	if n := len(tab.Parts); n != 40 || tab.Parts[39].Number != 44 {
		t.Errorf("%d partitions: %v", n, tab.Parts)
	}
}

func gpt4K(t testing.TB) []byte {
	return fdisk4K(t, 32*mib, "n", "1", "256", "1279", "n", "2", "1280", "7423", "t", "1", "1",
		"x", "i", "7b1f3f5a-52b5-4b0e-9a38-0d3f7d8c1e00", "u", "1", "7b1f3f5a-52b5-4b0e-9a38-0d3f7d8c1e01", "r")
}

func TestRead4KSectors(t *testing.T) {
	p := gpt4K(t)
	tab := read(t, p)
	if tab.Kind != partition.GPT || tab.SectorSize != 4096 || tab.DiskID != "7B1F3F5A-52B5-4B0E-9A38-0D3F7D8C1E00" {
		t.Errorf("%+v", tab)
	}
	want := []disk.Range{{Off: 1 * mib, Len: 4 * mib}, {Off: 5 * mib, Len: 24 * mib}}
	if len(tab.Parts) != 2 || tab.Parts[0].Range != want[0] || tab.Parts[1].Range != want[1] ||
		tab.Parts[0].Type != "C12A7328-F81F-11D2-BA4B-00A0C93EC93B" || tab.Parts[0].UUID != "7B1F3F5A-52B5-4B0E-9A38-0D3F7D8C1E01" {
		t.Errorf("%+v", tab.Parts)
	}
	clear(p[4096 : 4096+512])
	backup := read(t, p)
	if len(backup.Parts) != 2 || backup.SectorSize != 4096 || len(backup.Notes) != 1 {
		t.Errorf("from the backup: %+v", backup)
	}
}

// TestDamagedCopies damages each part of a GPT in turn, and both.
func TestDamagedCopies(t *testing.T) {
	good := sfdisk(t, 16*mib, alinuxGPT)
	end := len(good)
	header, array := 512, 1024
	backupHeader, backupArray := end-512, end-33*512
	for name, c := range map[string]struct {
		damage []int
		note   string
	}{
		"primary signature":   {[]int{header}, "the primary GPT is damaged (no GPT header): its backup is used"},
		"primary header":      {[]int{header + 60}, "the primary GPT is damaged (header checksum"},
		"primary array":       {[]int{array + 40}, "the primary GPT is damaged (checksum of the entries"},
		"backup signature":    {[]int{backupHeader}, "the backup GPT is damaged (no GPT header)"},
		"backup header":       {[]int{backupHeader + 60}, "the backup GPT is damaged"},
		"backup array":        {[]int{backupArray + 40}, "the backup GPT is damaged"},
		"both signatures":     {[]int{header, backupHeader}, ""},
		"both arrays":         {[]int{array + 40, backupArray + 40}, ""},
		"a header, an array":  {[]int{header + 60, backupArray + 40}, ""},
		"an array, a header":  {[]int{array + 60, backupHeader + 40}, ""},
		"header and my array": {[]int{array + 60, header + 60}, "its backup is used"},
	} {
		t.Run(name, func(t *testing.T) {
			p := bytes.Clone(good)
			for _, at := range c.damage {
				p[at] ^= 0xFF
			}
			tab, err := partition.Read(asDisk(p))
			if c.note == "" {
				if !errors.Is(err, disk.ErrCorrupt) || len(hint.Of(err)) == 0 {
					t.Errorf("got %v, hints %q", err, hint.Of(err))
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if len(tab.Notes) != 1 || !strings.Contains(tab.Notes[0], c.note) {
				t.Errorf("notes %q, want %q", tab.Notes, c.note)
			}
			want := read(t, good)
			if fmt.Sprint(tab.Parts) != fmt.Sprint(want.Parts) || tab.DiskID != want.DiskID {
				t.Errorf("got %v, want %v", tab, want)
			}
		})
	}
}

// editGPT changes an intact GPT of 512-byte sectors and corrects all its checksums.
func editGPT(p []byte, header func(h []byte), entries func(e []byte)) []byte {
	p = bytes.Clone(p)
	le := binary.LittleEndian
	for _, at := range []int{512, len(p) - 512} {
		h := p[at : at+92]
		e := p[le.Uint64(h[72:])*512:][:128*128]
		if entries != nil {
			entries(e)
		}
		le.PutUint32(h[88:], crc32.ChecksumIEEE(e))
		if header != nil {
			header(h)
		}
		clear(h[16:20])
		le.PutUint32(h[16:], crc32.ChecksumIEEE(h))
	}
	return p
}

func TestReadRefuses(t *testing.T) {
	t.Parallel() // the tools mostly wait
	gpt := sfdisk(t, 16*mib, alinuxGPT)
	mbr := sfdisk(t, 16*mib, "label: dos\nlabel-id: 0x5ea7c0de\nstart=2048, size=4096, type=83\nstart=8192, size=20000, type=f\nstart=10240, size=4096, type=83\nstart=16384, size=2048, type=83\n")
	le := binary.LittleEndian
	entry := func(i int, off int, v uint64) []byte {
		return editGPT(gpt, nil, func(e []byte) { le.PutUint64(e[i*128+off:], v) })
	}
	header := func(off int, v uint64) []byte {
		return editGPT(gpt, func(h []byte) { le.PutUint64(h[off:], v) }, nil)
	}
	header32 := func(off int, v uint32) []byte {
		return editGPT(gpt, func(h []byte) { le.PutUint32(h[off:], v) }, nil)
	}
	patch := func(p []byte, off int, v ...byte) []byte {
		p = bytes.Clone(p)
		copy(p[off:], v)
		return p
	}
	ebr := 8192 * 512
	ebr2 := ebr + int(le.Uint32(mbr[ebr+446+16+8:]))*512
	// Empty boot records that point at each next sector.
	chain := patch(mbr, 0)
	for i := range 300 {
		e := chain[ebr+512*i:]
		clear(e[:512])
		le.PutUint16(e[510:], 0xAA55)
		e[446+16+4] = 5
		le.PutUint32(e[446+16+8:], uint32(i+1))
		le.PutUint32(e[446+16+12:], 1)
	}
	for name, c := range map[string]struct {
		p    []byte
		is   error
		says string
	}{
		"ebr chain":           {chain, disk.ErrUnsupported, "more than 256"},
		"nothing":             {nil, disk.ErrFormat, "only 0 bytes"},
		"zeros":               {make([]byte, 8*mib), disk.ErrFormat, "nothing was found"},
		"noise":               {bytes.Repeat([]byte{0xA5}, 8*mib), disk.ErrFormat, "neither a table nor"},
		"signed, empty MBR":   {patch(make([]byte, mib), 510, 0x55, 0xAA), disk.ErrFormat, "no partitions"},
		"gpt truncated":       {gpt[:8*mib], disk.ErrCorrupt, "partition 3 (\"ルート\") ends at byte 14680064, but the disk has 8388608 bytes: 6291456 bytes are missing"},
		"mbr truncated":       {mbr[:2*mib], disk.ErrCorrupt, "partition 1 ends at byte 3145728, but the disk has 2097152 bytes: 1048576 bytes are missing"},
		"gpt cut in the head": {gpt[:1024], disk.ErrCorrupt, "announces a GPT"},
		"gpt overlap":         {entry(1, 32, 3000), disk.ErrCorrupt, "overlap"},
		"gpt entry ends":      {entry(2, 40, 1<<63), disk.ErrCorrupt, "partition 3 from LBA"},
		"gpt entry backwards": {entry(2, 32, 30000), disk.ErrCorrupt, "partition 3 from LBA"},
		"gpt entry at header": {entry(0, 32, 1), disk.ErrCorrupt, "usable space"},
		"gpt usable space":    {header(48, 16*mib/512-1), disk.ErrCorrupt, "overlap"},
		"gpt no usable space": {header(40, 1<<60), disk.ErrCorrupt, "first usable LBA"},
		"gpt array place":     {header(72, 1<<60), disk.ErrCorrupt, "array of entries"},
		"gpt count":           {header32(80, 1<<31), disk.ErrUnsupported, "entries"},
		"gpt entry size":      {header32(84, 256), disk.ErrUnsupported, "entries of 256 bytes"},
		"gpt revision":        {header32(8, 0x20000), disk.ErrUnsupported, "revision"},
		"gpt header size":     {header32(12, 4096), disk.ErrCorrupt, "header of 4096"},
		"gpt without MBR":     {patch(gpt, 446, make([]byte, 66)...), disk.ErrCorrupt, "no protective MBR"},
		"mbr status":          {patch(mbr, 446, 0x13), disk.ErrCorrupt, "status 0x13"},
		"mbr start 0":         {patch(mbr, 446+8, 0, 0, 0, 0), disk.ErrCorrupt, "MBR itself"},
		"mbr overlap":         {patch(mbr, 446+8, 0, 0x1F, 0, 0), disk.ErrCorrupt, "overlap"},
		"two extended":        {patch(mbr, 446+4, 5), disk.ErrCorrupt, "more than one extended"},
		"ebr loop":            {patch(mbr, ebr2+446+16, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0), disk.ErrCorrupt, "comes back to byte"},
		"ebr out":             {patch(mbr, ebr+446+16+8, 0xFF, 0xFF, 0xFF, 0xFF), disk.ErrCorrupt, "not within the extended"},
		"ebr unsigned":        {patch(mbr, ebr2+510, 0), disk.ErrCorrupt, "no extended boot record"},
		"ebr link type":       {patch(mbr, ebr+446+16+4, 0x83), disk.ErrCorrupt, "link has type 0x83"},
		"ebr with three":      {patch(mbr, ebr+446+32+4, 0x83, 0, 0, 0, 1, 0, 0, 0, 1), disk.ErrUnsupported, "more than one"},
		"logical out":         {patch(mbr, ebr+446+12, 0xFF, 0xFF), disk.ErrCorrupt, "not within the extended"},
		"logical overlap":     {patch(mbr, ebr+446+12, 0, 0x20), disk.ErrCorrupt, "overlap"},
	} {
		t.Run(name, func(t *testing.T) {
			tab, err := partition.Read(asDisk(c.p))
			if !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, %v\nwant %v that says %q", tab, err, c.is, c.says)
			}
		})
	}
}

func TestNotes(t *testing.T) {
	t.Parallel() // the tools mostly wait
	gpt := sfdisk(t, 16*mib, alinuxGPT)
	hybrid := sgdisk(t, 16*mib, "-n", "1:2048:+4M", "-h", "1")
	stale := sfdisk(t, 16*mib, alinuxGPT)
	copy(stale[446:], []byte{0, 0, 0, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0})
	staleFS := sfdisk(t, 16*mib, "label: dos\nlabel-id: 0x1\nstart=2048, size=4096, type=83\n")
	staleFS[0x438], staleFS[0x439] = 0x53, 0xEF
	for name, c := range map[string]struct {
		p    []byte
		kind partition.Kind
		note string
	}{
		"grown":      {append(bytes.Clone(gpt), make([]byte, mib)...), partition.GPT, "not at the end of the disk, which is 1048576 bytes larger"},
		"short":      {gpt[:16*mib-512*10], partition.GPT, "behind the end of the disk"},
		"differ":     {append(editGPT(gpt, nil, func(e []byte) { e[56] = 'x' })[:8*mib], gpt[8*mib:]...), partition.GPT, "differs from the primary"},
		"hybrid":     {hybrid, partition.GPT, "hybrid MBR"},
		"stale ext4": {staleFS, partition.MBR, "the signature of ext4"},
		"stale GPT":  {stale, partition.MBR, "there is also a GPT"},
	} {
		t.Run(name, func(t *testing.T) {
			tab := read(t, c.p)
			if tab.Kind != c.kind || len(tab.Notes) != 1 || !strings.Contains(tab.Notes[0], c.note) {
				t.Errorf("%s with notes %q, want %s with %q", tab.Kind, tab.Notes, c.kind, c.note)
			}
		})
	}
}

// TestMoveBackupGPT grows disks and asks sgdisk and sfdisk what they think of them.
func TestMoveBackupGPT(t *testing.T) {
	t.Parallel() // the tools mostly wait
	for name, c := range map[string]struct {
		p    []byte
		grow int64
	}{
		"gpt":            {sfdisk(t, 16*mib, alinuxGPT), 10 * mib},
		"by one sector":  {sfdisk(t, 16*mib, alinuxGPT), 512},
		"by less":        {sfdisk(t, 16*mib+512*7, alinuxGPT), mib - 512*7},
		"4096":           {gpt4K(t), 5 * mib},
		"256 entries":    {sgdisk(t, 16*mib, "-S", "256", "-n", "200:4096:+2M"), 3 * mib},
		"hybrid":         {sgdisk(t, 16*mib, "-n", "1:2048:+4M", "-h", "1"), mib},
		"bad old backup": {append(sfdisk(t, 16*mib, alinuxGPT)[:16*mib-512], make([]byte, 512)...), mib},
	} {
		t.Run(name, func(t *testing.T) {
			before := read(t, c.p)
			w := disk.NewOverlay(disk.Bytes(c.p), disk.OverlayOptions{})
			defer w.Close()
			if err := w.Grow(int64(len(c.p)) + c.grow); err != nil {
				t.Fatal(err)
			}
			if err := partition.MoveBackupGPT(before, w); err != nil {
				t.Fatal(err)
			}
			p := make([]byte, w.Size())
			if err := disk.ReadFull(w, p, 0); err != nil {
				t.Fatal(err)
			}
			after := read(t, p)
			if fmt.Sprintf("%+v", after.Parts) != fmt.Sprintf("%+v", before.Parts) || after.DiskID != before.DiskID {
				t.Errorf("got %+v\nwant %+v", after, before)
			}
			if name != "hybrid" && len(after.Notes) != 0 {
				t.Errorf("notes %q", after.Notes)
			}
			// Nothing but the table's structures may have changed.
			ss := int(after.SectorSize)
			if !bytes.Equal(p[:446], c.p[:446]) || !bytes.Equal(p[2*ss:16*mib-64*ss], c.p[2*ss:16*mib-64*ss]) {
				t.Error("other bytes changed")
			}
			if ss == 512 {
				sameAsSfdisk(t, p, after)
				if out := oracle.Run(t, "sgdisk", "-v", store(t, p)); !strings.Contains(out, "No problems found") && name != "hybrid" {
					t.Errorf("sgdisk -v: %s", out)
				}
			}
			// The backup alone must give the same table.
			clear(p[ss : 2*ss])
			if b := read(t, p); fmt.Sprint(b.Parts) != fmt.Sprint(before.Parts) {
				t.Errorf("from the backup: %v", b.Parts)
			}
			// Once more, there is nothing to do.
			again := disk.NewOverlay(w, disk.OverlayOptions{})
			defer again.Close()
			if err := partition.MoveBackupGPT(after, again); err != nil || again.Dirty() {
				t.Errorf("moved again: %v", err)
			}
		})
	}
}

func TestMoveBackupGPTRefusesDamagedPrimary(t *testing.T) {
	p := sfdisk(t, 16*mib, alinuxGPT)
	p[512] = 0
	w := disk.NewOverlay(disk.Bytes(p), disk.OverlayOptions{})
	defer w.Close()
	if err := w.Grow(17 * mib); err != nil {
		t.Fatal(err)
	}
	if err := partition.MoveBackupGPT(read(t, p), w); !errors.Is(err, disk.ErrUnsupported) {
		t.Error(err)
	}
}

func TestMoveBackupGPTLeavesMBR(t *testing.T) {
	p := sfdisk(t, 16*mib, "label: dos\nstart=2048, size=4096, type=83\n")
	w := disk.NewOverlay(disk.Bytes(p), disk.OverlayOptions{})
	defer w.Close()
	if err := partition.MoveBackupGPT(read(t, p), w); err != nil || w.Dirty() {
		t.Errorf("%v, written: %t", err, w.Dirty())
	}
}

// sparseFile is a file as a disk.
type sparseFile struct {
	*os.File
	size int64
}

func (f sparseFile) Size() int64 { return f.size }

// fileSystem has a tool make a file system on so many MiB.
func fileSystem(t testing.TB, size int64, tool string, args ...string) disk.Disk {
	t.Helper()
	file := store(t, nil)
	if err := os.Truncate(file, size*mib); err != nil {
		t.Fatal(err)
	}
	oracle.Run(t, tool, append(args, file)...)
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return disk.AsDisk(sparseFile{f, size * mib})
}

func TestProbeKnowsWhatMkfsMakes(t *testing.T) {
	t.Parallel() // the tools mostly wait
	for name, c := range map[string]struct {
		want string
		size int64
		tool []string
	}{
		"ext2":     {"ext4", 8, []string{"mke2fs", "-q", "-t", "ext2"}},
		"ext4 1K":  {"ext4", 8, []string{"mke2fs", "-q", "-t", "ext4", "-b", "1024"}},
		"ext4 4K":  {"ext4", 8, []string{"mke2fs", "-q", "-t", "ext4", "-b", "4096"}},
		"fat12":    {"vfat", 2, []string{"mkfs.vfat", "-F", "12"}},
		"fat16":    {"vfat", 16, []string{"mkfs.vfat", "-F", "16"}},
		"fat32":    {"vfat", 40, []string{"mkfs.vfat", "-F", "32"}},
		"fat32 4K": {"vfat", 300, []string{"mkfs.vfat", "-F", "32", "-S", "4096"}},
		"xfs":      {"xfs", 300, []string{"mkfs.xfs", "-q"}},
		"btrfs":    {"btrfs", 128, []string{"mkfs.btrfs", "-q"}},
		"swap":     {"swap", 1, []string{"mkswap"}},
		"swap 64K": {"swap", 1, []string{"mkswap", "-p", "65536"}},
		"table":    {"", 1, []string{"sgdisk", "-n", "1:34:100"}},
	} {
		t.Run(name, func(t *testing.T) {
			d := fileSystem(t, c.size, c.tool[0], c.tool[1:]...)
			if got, err := partition.Probe(d); got != c.want || err != nil {
				t.Errorf("got %q, %v, want %q", got, err, c.want)
			}
			// On the whole disk it is a table of its own.
			tab, err := partition.Read(d)
			if err != nil {
				t.Fatal(err)
			}
			if c.want != "" && (tab.Kind != partition.None || len(tab.Parts) != 1 || tab.Parts[0].Range != disk.Whole(d)) {
				t.Errorf("%+v", tab)
			}
		})
	}
}

func TestProbeKnowsContainers(t *testing.T) {
	for _, c := range []struct {
		at          int
		magic, want string
	}{
		{0, "LUKS\xba\xbe\x00\x02", "crypto_LUKS"},
		{512, "LABELONE", "LVM2_member"},
		{3, "NTFS    ", "ntfs"},
		{4096, "\xfc\x4e\x2b\xa9", "linux_raid_member"},
	} {
		p := make([]byte, 128<<10)
		copy(p[c.at:], c.magic)
		if got, err := partition.Probe(asDisk(p)); got != c.want || err != nil {
			t.Errorf("got %q, %v, want %q", got, err, c.want)
		}
	}
}

// TestProbeTinyDisks: signatures lie behind the end of some disks.
func TestProbeTinyDisks(t *testing.T) {
	for _, n := range []int{0, 1, 3, 511, 512, 4095, 65535, 65536, 65536 + 70} {
		if got, err := partition.Probe(asDisk(make([]byte, n))); got != "" || err != nil {
			t.Errorf("%d bytes: %q, %v", n, got, err)
		}
	}
}

// broken is a disk of which one read after another fails.
type broken struct {
	disk.Disk
	good int // reads before the one that fails
}

var errIO = errors.New("the cable is cut")

func (b *broken) ReadAt(p []byte, off int64) (int, error) {
	b.good--
	if b.good == -1 {
		return 0, errIO
	}
	return b.Disk.ReadAt(p, off)
}

// TestErrorsOfReadingAreNotFindings: a failure to read must not be taken for a damaged or
// missing table, whichever read it is.
func TestErrorsOfReadingAreNotFindings(t *testing.T) {
	for name, p := range map[string][]byte{
		"gpt":     sfdisk(t, 16*mib, alinuxGPT),
		"mbr":     sfdisk(t, 16*mib, "label: dos\nlabel-id: 0x1\nstart=2048, size=4096, type=f\nstart=4096, size=1000, type=83\n"),
		"nothing": make([]byte, 16*mib),
	} {
		for good := 0; ; good++ {
			b := &broken{asDisk(p), good}
			_, err := partition.Read(b)
			if b.good >= 0 {
				break // fewer reads than that
			}
			if !errors.Is(err, errIO) || errors.Is(err, disk.ErrCorrupt) || errors.Is(err, disk.ErrFormat) {
				t.Errorf("%s, read %d fails: %v", name, good, err)
			}
		}
	}
}

func TestWindowIsThePartition(t *testing.T) {
	p := sfdisk(t, 16*mib, alinuxGPT)
	tab := read(t, p)
	w, err := tab.Parts[2].Window(asDisk(p))
	if err != nil || w.Range() != tab.Parts[2].Range {
		t.Errorf("%v, %v", w, err)
	}
	if _, err := tab.Parts[2].Window(asDisk(p[:mib])); !errors.Is(err, disk.ErrCorrupt) {
		t.Error(err)
	}
}

func FuzzRead(f *testing.F) {
	f.Add(sfdisk(f, mib, "label: gpt\nlabel-id: 7B1F3F5A-52B5-4B0E-9A38-0D3F7D8C1E00\nstart=34, size=100, uuid=7B1F3F5A-52B5-4B0E-9A38-0D3F7D8C1E01\n")[:40<<10], uint16(0))
	f.Add(sfdisk(f, mib, "label: dos\nstart=1, size=10, type=83\nstart=20, size=100, type=f\nstart=22, size=20, type=83\nstart=50, size=20, type=83\n")[:80<<10], uint16(80))
	fat := make([]byte, 2048)
	if err := disk.ReadFull(fileSystem(f, 1, "mkfs.vfat"), fat, 0); err != nil {
		f.Fatal(err)
	}
	f.Add(fat, uint16(4))
	f.Fuzz(func(t *testing.T, p []byte, blocks uint16) {
		// The fuzzer does not find checksums: correct those of a GPT header.
		p = bytes.Clone(p)
		if len(p) > 34*512 && string(p[512:520]) == "EFI PART" {
			h := p[512:]
			binary.LittleEndian.PutUint32(h[88:], crc32.ChecksumIEEE(p[1024:34*512]))
			clear(h[16:20])
			binary.LittleEndian.PutUint32(h[16:], crc32.ChecksumIEEE(h[:92]))
		}
		p = append(p, make([]byte, max(0, int(blocks)*1024-len(p)))...)
		d := asDisk(p)
		tab, err := partition.Read(d)
		if err != nil {
			if !errors.Is(err, disk.ErrFormat) && !errors.Is(err, disk.ErrCorrupt) && !errors.Is(err, disk.ErrUnsupported) {
				t.Fatalf("not a sentinel: %v", err)
			}
			return
		}
		for _, part := range tab.Parts {
			if _, err := part.Window(d); err != nil || part.Range.Len <= 0 {
				t.Fatalf("%v %v: %v", part, part.Range, err)
			}
		}
		w := disk.NewOverlay(d, disk.OverlayOptions{})
		defer w.Close()
		if w.Grow(d.Size()+mib) != nil || partition.MoveBackupGPT(tab, w) != nil {
			return
		}
		moved, err := partition.Read(w)
		if err != nil || fmt.Sprint(moved.Parts) != fmt.Sprint(tab.Parts) {
			t.Fatalf("moved: %v, %v, was %v", moved, err, tab)
		}
	})
}

func BenchmarkRead(b *testing.B) {
	for name, p := range map[string][]byte{
		"gpt": sfdisk(b, 16*mib, alinuxGPT),
		"mbr": sfdisk(b, 16*mib, "label: dos\nstart=2048, size=4096, type=83\n"),
	} {
		b.Run(name, func(b *testing.B) {
			d := &counting{Disk: asDisk(p)}
			for b.Loop() {
				if _, err := partition.Read(d); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(d.reads)/float64(b.N), "reads/op")
			b.ReportMetric(float64(d.bytes)/float64(b.N), "readbytes/op")
		})
	}
}

// counting counts reads.
type counting struct {
	disk.Disk
	reads, bytes int
}

func (c *counting) ReadAt(p []byte, off int64) (int, error) {
	c.reads++
	c.bytes += len(p)
	return c.Disk.ReadAt(p, off)
}
