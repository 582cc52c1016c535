package vhd_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"remaster/internal/oracle"
	"remaster/pkg/disk"
	"remaster/pkg/vhd"
)

// TestRewriteIsTheEditedDisk edits images of both types at random; qemu must see the
// edited disk, and nothing else in the file may have changed.
func TestRewriteIsTheEditedDisk(t *testing.T) {
	for seed := range uint64(6) {
		r := rand.New(rand.NewPCG(seed, 5))
		d := sparse(t, (1+r.Int64N(40))*mib)
		scatter(t, r, d, 6)
		for _, e := range []*vhd.Encoded{encodeFixed(t, d), encodeDynamic(t, d)} {
			t.Run(fmt.Sprintf("%d/%s", seed, e.Info().Type), func(t *testing.T) {
				before := disk.Bytes(data(t, e))
				m := open(t, before)
				guest := overlay(t, m)
				scatter(t, r, guest, 8)
				write(t, guest, 0, make([]byte, 3000)) // zeros over what is there or is not
				c := overlay(t, before)
				if err := m.Rewrite(c, guest); err != nil {
					t.Fatal(err)
				}
				if err := vhd.Check(c); err != nil {
					t.Fatal(err)
				}
				same(t, guest, open(t, c))
				oracle.SameDisk(t, "raw", save(t, guest), "vpc", save(t, c))
				onlyNeeded(t, m, guest, before, c)

				again := overlay(t, before)
				if err := m.Rewrite(again, guest); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(data(t, c), data(t, again)) {
					t.Error("the same edits gave other bytes")
				}
			})
		}
	}
}

// onlyNeeded fails the test if the rewritten container c has other changes than sectors
// that differ on the disk, BAT entries, and what lies behind the old tail footer.
func onlyNeeded(t *testing.T, m *vhd.Image, guest *disk.Overlay, before disk.Bytes, c *disk.Overlay) {
	t.Helper()
	old, now := data(t, m), data(t, guest)
	var allowed disk.Ranges
	allowed.Add(disk.Range{Off: int64(len(before)) - 512, Len: 1 << 40})
	for s := 0; s < len(old); s += 512 {
		if bytes.Equal(old[s:s+512], now[s:s+512]) {
			continue
		}
		if m.Info().Type == vhd.TypeFixed {
			allowed.Add(disk.Range{Off: int64(s), Len: 512})
			continue
		}
		block := s / vhd.BlockSize
		if e := entry(before, block); e != 0xFFFFFFFF {
			allowed.Add(disk.Range{Off: int64(e)*512 + 512 + int64(s%vhd.BlockSize), Len: 512})
		} else {
			allowed.Add(disk.Range{Off: 1536 + 4*int64(block), Len: 4})
		}
	}
	for r := range c.Changed() {
		n := int64(0)
		for a := range allowed.In(r) {
			n += a.Len
		}
		if n != r.Len {
			t.Errorf("%v was written without need", r)
		}
	}
}

func TestRewriteOfSameContentWritesNothing(t *testing.T) {
	d := sparse(t, 9*mib)
	scatter(t, rand.New(rand.NewPCG(1, 1)), d, 5)
	for _, e := range []*vhd.Encoded{encodeFixed(t, d), encodeDynamic(t, d)} {
		m := open(t, e)
		guest, c := overlay(t, m), overlay(t, e)
		write(t, guest, 0, data(t, m))
		if err := m.Rewrite(c, guest); err != nil {
			t.Fatal(err)
		}
		if c.Dirty() {
			t.Errorf("%s: written", e.Info().Type)
		}
	}
}

func TestRewriteLeavesZerosAbsent(t *testing.T) {
	e := encodeDynamic(t, zeroDisk(9*mib))
	m := open(t, e)
	guest, c := overlay(t, m), overlay(t, e)
	write(t, guest, mib, make([]byte, 5*mib))
	write(t, guest, 7*mib, []byte{0, 0, 1})
	if err := m.Rewrite(c, guest); err != nil {
		t.Fatal(err)
	}
	if got := open(t, c).Info().Allocated; got != 1 {
		t.Errorf("%d blocks, want 1", got)
	}
	if want := e.Size() + 512 + vhd.BlockSize; c.Size() != want {
		t.Errorf("file of %d bytes, want %d", c.Size(), want)
	}
}

// TestRewriteSetsBitmapBits edits a block of which most sectors were never written, as
// VirtualBox leaves them.
func TestRewriteSetsBitmapBits(t *testing.T) {
	d := sparse(t, 2*mib)
	write(t, d, 0, bytes.Repeat([]byte{1}, 512))
	p := data(t, encodeDynamic(t, d))
	at := int(entry(p, 0)) * 512
	clear(p[at : at+512])
	p[at] = 0x80
	m := open(t, disk.Bytes(p))
	guest, c := overlay(t, m), overlay(t, disk.Bytes(p))
	write(t, guest, 512*5+100, []byte{5})
	write(t, guest, 512*6+100, make([]byte, 100)) // stays zero: the bit stays as it is
	write(t, guest, 512*7+500, bytes.Repeat([]byte{7}, 1024))
	write(t, guest, mib-1, []byte{9, 9})
	if err := m.Rewrite(c, guest); err != nil {
		t.Fatal(err)
	}
	bits := make([]byte, 512)
	if err := disk.ReadFull(c, bits, int64(at)); err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 512)
	want[0], want[1] = 0b10000101, 0b11000000
	want[255], want[256] = 1, 0x80
	if !bytes.Equal(bits, want) {
		t.Errorf("bitmap %x\nwant   %x", bits, want)
	}
	same(t, guest, open(t, c))
	if err := vhd.Check(c); err != nil {
		t.Error(err)
	}
}

// TestRewriteEqualsQemuIO has qemu make the same edit; the disks must be equal.
func TestRewriteEqualsQemuIO(t *testing.T) {
	d := sparse(t, 30*mib)
	scatter(t, rand.New(rand.NewPCG(8, 1)), d, 5)
	e := encodeDynamic(t, d)
	theirs := save(t, e)
	m := open(t, e)
	guest, c := overlay(t, m), overlay(t, e)
	for i, off := range []int64{4096, 3*mib + 512, 4*mib - 1024, 29 * mib} {
		write(t, guest, off, bytes.Repeat([]byte{byte(i + 1)}, 2048))
		oracle.Run(t, "qemu-io", "-f", "vpc", "-c", fmt.Sprintf("write -P %d %d 2048", i+1, off), theirs)
	}
	if err := m.Rewrite(c, guest); err != nil {
		t.Fatal(err)
	}
	oracle.SameDisk(t, "vpc", theirs, "vpc", save(t, c))
	same(t, guest, open(t, openFile(t, theirs)))
}

func TestRewriteWantsItsOwnOverlays(t *testing.T) {
	e := encodeDynamic(t, zeroDisk(3*mib))
	m := open(t, e)
	dirty := overlay(t, e)
	write(t, dirty, 0, []byte{1})
	if err := m.Rewrite(dirty, overlay(t, m)); err == nil {
		t.Error("a container with edits is taken")
	}
	if err := m.Rewrite(overlay(t, e), overlay(t, zeroDisk(mib))); err == nil {
		t.Error("a guest of another size is taken")
	}
}

// benchDisk is a disk of 256 MiB in memory, three quarters of it data.
func benchDisk(b *testing.B) disk.Disk {
	b.Helper()
	d := sparse(b, 256*mib)
	p := noise(rand.New(rand.NewPCG(1, 1)), mib)
	for off := int64(0); off < 192*mib; off += mib {
		write(b, d, off, p)
	}
	return d
}

func readAll(b *testing.B, d disk.Disk) {
	b.Helper()
	buf := make([]byte, mib)
	for off := int64(0); off < d.Size(); off += mib {
		if err := disk.ReadFull(d, buf[:min(mib, d.Size()-off)], off); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDynamicEncode(b *testing.B) {
	d := disk.AsDisk(disk.Bytes(data(b, benchDisk(b))))
	for _, detect := range []bool{false, true} {
		b.Run(fmt.Sprintf("detect=%t", detect), func(b *testing.B) {
			o := options
			o.DetectZeros = detect
			b.SetBytes(d.Size())
			for b.Loop() {
				e, err := vhd.Dynamic(d, o)
				if err != nil {
					b.Fatal(err)
				}
				readAll(b, e)
			}
		})
	}
}

func BenchmarkDynamicRead(b *testing.B) {
	p := disk.Bytes(data(b, encodeDynamic(b, benchDisk(b))))
	m := open(b, p)
	b.SetBytes(m.Size())
	for b.Loop() {
		readAll(b, m)
	}
}

func BenchmarkOpen(b *testing.B) {
	p := disk.Bytes(data(b, encodeDynamic(b, benchDisk(b))))
	for b.Loop() {
		open(b, p)
	}
}

// BenchmarkEncodeToFile has qemu-img convert the same disk to a dynamic VHD file, and this
// package write one.
func BenchmarkEncodeToFile(b *testing.B) {
	d := benchDisk(b)
	raw := save(b, d)
	out := filepath.Join(b.TempDir(), "out")
	b.Run("qemu-img", func(b *testing.B) {
		b.SetBytes(d.Size())
		for b.Loop() {
			oracle.Run(b, "qemu-img", "convert", "-f", "raw", "-O", "vpc", "-o", "force_size=on", raw, out)
		}
	})
	b.Run("remaster", func(b *testing.B) {
		b.SetBytes(d.Size())
		for b.Loop() {
			os.Remove(save(b, encodeDynamic(b, disk.AsDisk(openFile(b, raw)))))
		}
	})
}
