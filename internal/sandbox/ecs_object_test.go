package sandbox

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"remaster/internal/oracle"
)

// bootSector is a disk of a size with the signature of a boot sector.
func bootSector(size int64) []byte {
	b := make([]byte, size)
	b[510], b[511] = 0x55, 0xaa
	return b
}

func TestInspectDiskOfQemuImages(t *testing.T) {
	dir := t.TempDir()
	const size = 3 << 20
	raw := filepath.Join(dir, "disk.raw")
	if err := os.WriteFile(raw, bootSector(size), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, format string
		args         []string
	}{
		{"raw", "RAW", []string{"-O", "raw"}},
		{"qcow2", "QCOW2", []string{"-O", "qcow2"}},
		{"old qcow2", "QCOW2", []string{"-O", "qcow2", "-o", "compat=0.10"}},
		{"compressed qcow2", "QCOW2", []string{"-O", "qcow2", "-c"}},
		{"zstd qcow2", "QCOW2", []string{"-O", "qcow2", "-c", "-o", "compression_type=zstd"}},
		{"dynamic VHD", "VHD", []string{"-O", "vpc", "-o", "force_size=on"}},
		{"fixed VHD", "VHD", []string{"-O", "vpc", "-o", "subformat=fixed,force_size=on"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out := filepath.Join(t.TempDir(), "out")
			oracle.Run(t, "qemu-img", append(append([]string{"convert"}, tt.args...), raw, out)...)
			b, err := os.ReadFile(out)
			if err != nil {
				t.Fatal(err)
			}
			d, err := inspectDisk(bytes.NewReader(b), int64(len(b)))
			if want := (diskInfo{format: tt.format, virtual: size}); err != nil || d != want {
				t.Errorf("%+v, %v; want %+v", d, err, want)
			}
			if tt.format == "VHD" { // which ends in what tells
				half := b[:len(b)/2]
				if d, _ := inspectDisk(bytes.NewReader(half), int64(len(half))); d.format == "VHD" {
					t.Errorf("half of it passes: %+v", d)
				}
			}
		})
	}
}

func TestInspectDiskRefuses(t *testing.T) {
	patch := func(b []byte, off int, v ...byte) []byte { copy(b[off:], v); return b }
	vhd := func(change func(foot []byte)) []byte {
		b := append(bootSector(1<<20), make([]byte, 512)...)
		foot := b[1<<20:]
		copy(foot, "conectix")
		binary.BigEndian.PutUint64(foot[48:], 1<<20)
		binary.BigEndian.PutUint32(foot[60:], 2)
		change(foot)
		var sum uint32
		for _, c := range foot {
			sum += uint32(c)
		}
		binary.BigEndian.PutUint32(foot[64:], ^sum)
		return b
	}
	for _, tt := range []struct {
		name    string
		object  []byte
		problem string
	}{
		{"good qcow2", fakeQcow2(1 << 30), ""},
		{"version", patch(fakeQcow2(1<<30), 7, 4), "version 4"},
		{"backing file", patch(fakeQcow2(1<<30), 15, 1), "backing file"},
		{"encrypted", patch(fakeQcow2(1<<30), 35, 1), "encrypted"},
		{"data file", patch(fakeQcow2(1<<30), 79, 4), "another file"},
		{"corrupt", patch(fakeQcow2(1<<30), 79, 2), "corrupt"},
		{"unknown feature", patch(fakeQcow2(1<<30), 72, 1), "unknown features"},
		{"dirty", patch(fakeQcow2(1<<30), 79, 1), ""},
		{"no disk", fakeQcow2(0), "virtual size"},
		{"cut header", fakeQcow2(1 << 30)[:80], "cut off"},
		{"cut tables", fakeQcow2(1 << 30)[:3<<16], "cut off"},
		{"good VHD", vhd(func([]byte) {}), ""},
		{"differencing VHD", vhd(func(f []byte) { f[63] = 4 }), "type 4"},
		{"size of fixed VHD", vhd(func(f []byte) { f[55] = 1 }), "fixed VHD"},
		{"dynamic VHD without a header", vhd(func(f []byte) { f[63] = 3 }), "copy of the VHD footer"},
		{"checksum of VHD", patch(vhd(func([]byte) {}), 1<<20+64, 0, 0), "checksum"},
		{"good raw", bootSector(1 << 20), ""},
		{"raw with a tail", append(bootSector(1<<20), 1), "multiple of 512"},
		{"gzip", append([]byte{0x1f, 0x8b}, make([]byte, 1022)...), "neither"},
		{"empty", nil, "multiple of 512"},
	} {
		d, err := inspectDisk(bytes.NewReader(tt.object), int64(len(tt.object)))
		if err != nil || (tt.problem == "") != (d.problem == "") || !strings.Contains(d.problem, tt.problem) {
			t.Errorf("%s: %+v, %v", tt.name, d, err)
		}
	}
}

func FuzzInspectDisk(f *testing.F) {
	f.Add(fakeQcow2(1 << 30)[:512])
	f.Add(fakeQcow2(1 << 30)[:80])
	f.Add(bootSector(1024))
	f.Add(append(make([]byte, 512), append([]byte("conectix"), make([]byte, 504)...)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := inspectDisk(bytes.NewReader(b), int64(len(b)))
		if err != nil || d.virtual < 0 || d.problem == "" && d.virtual == 0 {
			t.Errorf("%+v, %v", d, err)
		}
	})
}
