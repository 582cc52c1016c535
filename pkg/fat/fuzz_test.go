package fat

import (
	"bytes"
	"errors"
	"testing"

	"remaster/pkg/disk"
)

// tiny makes a FAT volume of a few kilobytes by hand, small enough to be a seed: 64
// sectors, of which a FAT12 of one sector twice and a root folder of 16 slots.
func tiny(bits int) []byte {
	p := make([]byte, 64*512)
	le.PutUint16(p[bpbSectorSize:], 512)
	p[bpbClusterSize], p[bpbFATs] = 1, 2
	le.PutUint16(p[bpbReserved:], 2)
	le.PutUint16(p[bpbSectors16:], 64)
	p[bootSignature], p[bootSignature+1] = 0x55, 0xAA
	fat := []byte{0xF8, 0xFF, 0xFF, 0x00, 0xF0, 0xFF, 0x05, 0xF0, 0xFF} // 3 is one cluster, cluster 4 → 5 → end
	root := 4 * 512
	if bits == 32 {
		le.PutUint32(p[bpbFATSize32:], 1)
		le.PutUint32(p[bpbRootCluster:], 2)
		p[bpbFSInfo] = 1
		le.PutUint32(p[512:], infoLeadMagic)
		le.PutUint32(p[512+infoStruct:], infoStructMagic)
		le.PutUint32(p[512+infoTrail:], infoTrailMagic)
		fat = bytes.Repeat([]byte{0xFF, 0xFF, 0xFF, 0x0F}, 6)
		fat[16], fat[17], fat[18], fat[19] = 5, 0, 0, 0
	} else {
		le.PutUint16(p[bpbFATSize16:], 1)
		le.PutUint16(p[bpbRootEntries:], 16)
	}
	copy(p[2*512:], fat)
	copy(p[3*512:], fat)
	slot := func(off int, name string, attr byte, first, size int) {
		copy(p[off:], name)
		p[off+slotAttr] = attr
		le.PutUint16(p[off+slotLow:], uint16(first))
		le.PutUint32(p[off+slotBytes:], uint32(size))
	}
	slot(root, "DIR        ", attrDir, 3, 0)
	slot(root+32, "FILE    CFG", 0, 4, 700)
	data := root
	if bits != 32 {
		data += 16 * 32
	}
	sub := data + 512
	slot(sub, ".          ", attrDir, 3, 0)
	slot(sub+32, "..         ", attrDir, 0, 0)
	copy(p[sub+64:], longSlots("a long name", [11]byte([]byte("ALONGN~1   "))))
	slot(sub+96, "ALONGN~1   ", 0, 0, 0)
	return p
}

func TestTinyVolumesAreSound(t *testing.T) {
	for _, bits := range []int{12, 32} {
		f, err := Open(disk.AsDisk(disk.Bytes(tiny(bits))))
		ok(t, err)
		if got, err := f.check(); err != nil || got.lost != 0 {
			t.Errorf("FAT%d: %+v, %v", bits, got, err)
		}
		if e, err := f.Lookup("/dir/A Long Name"); err != nil || e.Size != 0 {
			t.Errorf("FAT%d: %v", bits, err)
		}
	}
}

// FuzzFAT reads a volume of any bytes, and edits it. If the editor takes it and
// succeeds, the result must be a volume that it takes again.
func FuzzFAT(f *testing.F) {
	f.Add(tiny(12))
	f.Add(tiny(32))
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) > 1<<20 {
			return
		}
		v, err := Open(disk.AsDisk(disk.Bytes(p)))
		if err != nil {
			return
		}
		_, _ = v.Info()
		budget := 200
		visit(v, "/", &budget)
		ov := disk.NewOverlay(disk.Bytes(p), disk.OverlayOptions{})
		e, err := Edit(ov)
		if err != nil {
			return
		}
		_ = e.SetContent("/FILE.CFG", pattern(1500), testTime)
		_ = e.Mkdir("/new dir", testTime)
		_ = e.CreateFile("/new dir/x", pattern(10), testTime)
		_ = e.CreateFile("/dir/another long name", pattern(10), testTime)
		_ = e.Remove("/dir/a long name")
		if err := e.Flush(); err != nil {
			return
		}
		if _, err := Edit(ov); err != nil {
			t.Fatalf("edited volume: %v", err)
		}
	})
}

// visit reads everything, within a budget of entries.
func visit(f *FS, name string, budget *int) {
	es, err := f.ReadDir(name)
	if err != nil {
		return
	}
	for _, e := range es {
		if *budget--; *budget < 0 {
			return
		}
		if e.IsDir() {
			visit(f, name+"/"+e.Name, budget)
		} else if b, err := f.File(e); err == nil {
			buf := make([]byte, 100)
			_, _ = b.ReadAt(buf, max(0, e.Size-50))
		}
	}
}

func TestLoopsOfFoldersAndChainsEnd(t *testing.T) {
	p := tiny(12)
	sub := 4*512 + 16*32 + 512
	copy(p[sub+96:], "LOOP       ")
	p[sub+96+slotAttr] = attrDir
	p[sub+96+slotLow] = 3 // the folder itself
	if _, err := Edit(disk.NewOverlay(disk.Bytes(p), disk.OverlayOptions{})); !errors.Is(err, disk.ErrCorrupt) {
		t.Errorf("a folder in itself: %v", err)
	}
	p = tiny(12)
	p[2*512+6], p[2*512+7] = 0x04, 0xF0 // cluster 4 → 4
	v, err := Open(disk.AsDisk(disk.Bytes(p)))
	ok(t, err)
	if _, err := v.check(); !errors.Is(err, disk.ErrCorrupt) {
		t.Errorf("a chain without end: %v", err)
	}
}

func BenchmarkReplace(b *testing.B) {
	img := volume(b, "fat32")
	put(b, img, "/grub.cfg", pattern(5000))
	d := openDisk(b, img)
	for b.Loop() {
		ov := disk.NewOverlay(d, disk.OverlayOptions{})
		e, err := Edit(ov)
		ok(b, err)
		ok(b, e.SetContent("/grub.cfg", pattern(9000), testTime))
		ok(b, e.Flush())
		ok(b, ov.Close())
	}
}
