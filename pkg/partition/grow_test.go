package partition_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"remaster/internal/oracle"
	"remaster/pkg/disk"
	"remaster/pkg/partition"
)

// grown returns the bytes of a disk after GrowLast on one of size bytes.
func grown(t testing.TB, p []byte, size int64, last int) ([]byte, error) {
	t.Helper()
	w := disk.NewOverlay(disk.Bytes(p), disk.OverlayOptions{})
	defer w.Close()
	tab := read(t, p)
	if err := w.Grow(size); err != nil {
		t.Fatal(err)
	}
	if err := partition.GrowLast(tab, w, last); err != nil {
		return nil, err
	}
	out := make([]byte, size)
	return out, disk.ReadFull(w, out, 0)
}

func TestGrowLastReachesTheEnd(t *testing.T) {
	t.Parallel() // the tools mostly wait
	for name, c := range map[string]struct {
		p    []byte
		size int64
		last int
		end  int64
	}{
		"gpt":            {sfdisk(t, 16*mib, alinuxGPT), 40 * mib, 3, 39 * mib},
		"gpt odd":        {sfdisk(t, 16*mib, alinuxGPT), 40*mib + 512*77, 3, 40 * mib},
		"gpt same size":  {sfdisk(t, 16*mib, alinuxGPT), 16 * mib, 3, 15 * mib},
		"gpt a sector":   {sfdisk(t, 16*mib, alinuxGPT), 16*mib + 512, 3, 15 * mib},
		"gpt 4096":       {gpt4K(t), 50 * mib, 2, 49 * mib},
		"gpt with gaps":  {sgdisk(t, 32*mib, "-n", "5:2048:+4M", "-n", "3:20480:+1M", "-A", "3:set:2"), 64 * mib, 3, 63 * mib},
		"gpt 256":        {sgdisk(t, 16*mib, "-S", "256", "-n", "200:4096:+2M"), 20 * mib, 200, 19 * mib},
		"mbr":            {sfdisk(t, 16*mib, "label: dos\nlabel-id: 0x5ea7c0de\nstart=2048, size=4096, type=83, bootable\nstart=8192, size=4096, type=c\n"), 33*mib + 1024, 2, 33 * mib},
		"mbr with a gap": {sfdisk(t, 16*mib, "label: dos\nlabel-id: 0x2\n/dev/x2 : start=2048, size=4096, type=83\n/dev/x4 : start=8192, size=4096, type=83\n"), 20 * mib, 4, 20 * mib},
		"mbr whole":      {sfdisk(t, 16*mib, "label: dos\nlabel-id: 0x2\nstart=2048, type=83\n"), 16 * mib, 1, 16 * mib},
	} {
		t.Run(name, func(t *testing.T) {
			before := read(t, c.p)
			p, err := grown(t, c.p, c.size, c.last)
			if err != nil {
				t.Fatal(err)
			}
			after := read(t, p)
			if len(after.Notes) != 0 {
				t.Errorf("notes %q", after.Notes)
			}
			for i, x := range before.Parts {
				if x.Number == c.last {
					x.Range.Len = c.end - x.Range.Off
				}
				if after.Parts[i] != x {
					t.Errorf("%+v, want %+v", after.Parts[i], x)
				}
			}
			ss := after.SectorSize
			if ss == 512 {
				sameAsSfdisk(t, p, after)
			}
			if after.Kind == partition.MBR {
				// sfdisk, asked for the same, writes the same bytes.
				want := sfdiskGrown(t, c.p, c.size, c.last, c.end)
				if !bytes.Equal(p[:512], want[:512]) {
					t.Errorf("MBR\n%x\nsfdisk\n%x", p[446:], want[446:512])
				}
				return
			}
			if ss == 512 {
				if out := oracle.Run(t, "sgdisk", "-v", store(t, p)); !strings.Contains(out, "No problems found") {
					t.Errorf("sgdisk -v: %s", out)
				}
			}
			clear(p[ss : 2*ss])
			if b := read(t, p); b.Parts[0] != after.Parts[0] || b.Parts[len(b.Parts)-1] != after.Parts[len(b.Parts)-1] {
				t.Errorf("from the backup: %v", b.Parts)
			}
		})
	}
}

// sfdiskGrown has sfdisk grow the partition with a number, so that it ends at byte end.
func sfdiskGrown(t testing.TB, p []byte, size int64, number int, end int64) []byte {
	t.Helper()
	file := store(t, append(bytes.Clone(p), make([]byte, size-int64(len(p)))...))
	for _, x := range read(t, p).Parts {
		if x.Number == number {
			in := fmt.Sprintf(", %d\n", (end-x.Range.Off)/512)
			if r := oracle.TryInput(t, []byte(in), "sfdisk", "-q", "-N", fmt.Sprint(number), file); r.Code != 0 {
				t.Fatalf("sfdisk: %s%s", r.Stdout, r.Stderr)
			}
		}
	}
	out, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestGrowLastRefuses(t *testing.T) {
	t.Parallel() // the tools mostly wait
	for name, c := range map[string]struct {
		p    []byte
		last int
	}{
		"not the last":    {sfdisk(t, 16*mib, alinuxGPT), 2},
		"none":            {sfdisk(t, 16*mib, alinuxGPT), 9},
		"number 0":        {sfdisk(t, 16*mib, alinuxGPT), 0},
		"hybrid":          {sgdisk(t, 16*mib, "-n", "1:2048:+4M", "-h", "1"), 1},
		"logical":         {sfdisk(t, 64*mib, "label: dos\nlabel-id: 0x1\nstart=2048, size=4096, type=83\nstart=8192, size=100000, type=f\nstart=10240, size=4096, type=83\n"), 5},
		"before extended": {sfdisk(t, 64*mib, "label: dos\nlabel-id: 0x1\nstart=2048, size=4096, type=83\nstart=8192, size=100000, type=f\n"), 1},
		"mbr not last":    {sfdisk(t, 16*mib, "label: dos\nstart=2048, size=4096, type=83\nstart=8192, size=4096, type=83\n"), 1},
	} {
		w := disk.NewOverlay(disk.Bytes(c.p), disk.OverlayOptions{})
		if err := partition.GrowLast(read(t, c.p), w, c.last); !errors.Is(err, disk.ErrUnsupported) || w.Dirty() {
			t.Errorf("%s: %v, written: %t", name, err, w.Dirty())
		}
		w.Close()
	}
	// A table that has changed since it was read.
	p := sfdisk(t, 16*mib, "label: dos\nstart=2048, size=4096, type=83\n")
	tab := read(t, p)
	p[446+8]++
	w := disk.NewOverlay(disk.Bytes(p), disk.OverlayOptions{})
	defer w.Close()
	if err := partition.GrowLast(tab, w, 1); !errors.Is(err, disk.ErrCorrupt) || w.Dirty() {
		t.Errorf("changed: %v", err)
	}
}
