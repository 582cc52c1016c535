package importer

import (
	"hash/crc64"
	"math/rand/v2"
	"testing"

	"remaster/pkg/disk"
)

func randomBytes(seed uint64, n int) []byte {
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)})
	p := make([]byte, n)
	_, _ = r.Read(p)
	return p
}

func TestCombineCRC64IsThatOfBoth(t *testing.T) {
	for seed := range uint64(1000) {
		r := rand.New(rand.NewPCG(seed, 3))
		p := randomBytes(seed, r.IntN(3000))
		cut := r.IntN(len(p) + 1)
		got := CombineCRC64(crc64.Checksum(p[:cut], crcTable), crc64.Checksum(p[cut:], crcTable), int64(len(p)-cut))
		if want := crc64.Checksum(p, crcTable); got != want {
			t.Fatalf("seed %d: %x, want %x", seed, got, want)
		}
	}
}

func TestCRCShiftIsARunOfZeros(t *testing.T) {
	zeros := make([]byte, 1<<20)
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 4))
		crc, n := r.Uint64(), r.IntN(len(zeros))
		if got, want := crcShift(crc, int64(n)), crcRaw(crc, zeros[:n]); got != want {
			t.Fatalf("%d zeros behind %x: %x, want %x", n, crc, got, want)
		}
	}
	// Beyond what can be run through: shifts add up.
	a, b := int64(20<<30+4711), int64(3<<40+1)
	if crcShift(crcShift(12345, a), b) != crcShift(12345, a+b) {
		t.Error("shifts do not add up")
	}
}

// The check value of CRC-64/XZ.
func TestCRC64IsTheOneOfOSS(t *testing.T) {
	if got, err := CRC64(disk.Bytes("123456789"), disk.Range{Len: 9}); err != nil || got != 0x995dc9bbdf1939fa {
		t.Errorf("%x, %v", got, err)
	}
}

func TestPatchedCRC64IsThatOfTheResult(t *testing.T) {
	for seed := range uint64(100) {
		r := rand.New(rand.NewPCG(seed, 5))
		base := randomBytes(seed, 1+r.IntN(1<<19))
		v := disk.NewOverlay(disk.Bytes(base), disk.OverlayOptions{})
		if r.IntN(2) == 0 {
			if err := v.Grow(int64(len(base) + r.IntN(400_000))); err != nil {
				t.Fatal(err)
			}
		}
		for range r.IntN(8) {
			p := randomBytes(seed+1, r.IntN(int(min(v.Size(), 300_000))+1))
			off := r.Int64N(v.Size() - int64(len(p)) + 1)
			if r.IntN(3) == 0 { // written, but the same
				if err := disk.ReadFull(v, p, off); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := v.WriteAt(p, off); err != nil {
				t.Fatal(err)
			}
		}
		got, differs, err := patchedCRC64(crc64.Checksum(base, crcTable), v)
		if err != nil {
			t.Fatal(err)
		}
		want, err := CRC64(v, disk.Whole(v))
		if err != nil || got != want {
			t.Fatalf("seed %d: %x, want %x, %v", seed, got, want, err)
		}
		// Outside of differs, nothing does.
		out := make([]byte, v.Size())
		if err := disk.ReadFull(v, out, 0); err != nil {
			t.Fatal(err)
		}
		for x := range differs.All() {
			copy(out[x.Off:x.End()], make([]byte, x.Len))
			if n := min(x.End(), int64(len(base))) - x.Off; n > 0 {
				copy(out[x.Off:x.End()], base[x.Off:x.Off+n])
			}
		}
		if string(out[:len(base)]) != string(base) {
			t.Fatalf("seed %d: a difference was overlooked", seed)
		}
	}
}

func TestPatchedCRC64LeavesOutWhatIsTheSame(t *testing.T) {
	base := randomBytes(1, 1<<20)
	v := disk.NewOverlay(disk.Bytes(base), disk.OverlayOptions{})
	if _, err := v.WriteAt(base[8192:65536], 8192); err != nil {
		t.Fatal(err)
	}
	if _, err := v.WriteAt([]byte{base[20000] + 1}, 20000); err != nil {
		t.Fatal(err)
	}
	_, differs, err := patchedCRC64(0, v)
	if err != nil || differs.Count() != 1 || differs.Len() != 4096 {
		t.Errorf("%v, %v", differs, err)
	}
}

func BenchmarkCRC64(b *testing.B) {
	p := randomBytes(1, 8<<20)
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		if _, err := CRC64(disk.Bytes(p), disk.Range{Len: int64(len(p))}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCRCShift(b *testing.B) {
	for b.Loop() {
		crcShift(12345, 20<<30-1)
	}
}
