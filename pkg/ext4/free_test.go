package ext4

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"remaster/internal/oracle"
	"remaster/pkg/disk"
)

// dirtyFree fills the free space of an image with bytes that are not zeros.
func dirtyFree(t testing.TB, img string) {
	t.Helper()
	e := edit(t, onFile(t, img))
	n := int64(e.freeBlocks-min(e.freeBlocks, e.sb.reserved+50)) * int64(e.sb.blockSize)
	must(e.Create(e.Root(), "stale", Attr{}, disk.Bytes(bytes.Repeat([]byte{0xA5}, int(n)))))
	flush(t, e)
	must(0, e.Remove(e.Root(), "stale"))
	flush(t, e)
}

// dumpedFree returns the free blocks that dumpe2fs lists.
func dumpedFree(t testing.TB, img string) (blocks []uint64) {
	t.Helper()
	out := oracle.Run(t, "dumpe2fs", img)
	for _, m := range regexp.MustCompile(`(?m)^  Free blocks: (.*)$`).FindAllStringSubmatch(out, -1) {
		for r := range strings.SplitSeq(m[1], ", ") {
			a, b, ok := strings.Cut(r, "-")
			if a == "" {
				continue
			}
			if !ok {
				b = a
			}
			first, last := must(strconv.ParseUint(a, 10, 64)), must(strconv.ParseUint(b, 10, 64))
			for ; first <= last; first++ {
				blocks = append(blocks, first)
			}
		}
	}
	return blocks
}

func TestFreeAgreesWithDumpe2fs(t *testing.T) {
	src := seedTree(t)
	for _, v := range variants {
		t.Run(v.name, func(t *testing.T) {
			v.mb = min(v.mb, 64)
			img := mkfs(t, v, src)
			f := must(Open(openFile(t, img)))
			bs := int64(f.sb.blockSize)
			var got []uint64
			last := int64(-1)
			for r, err := range f.Free() {
				if err != nil || r.Off <= last || r.Len <= 0 || r.Off%bs != 0 || r.Len%bs != 0 {
					t.Fatalf("range %v behind %d: %v", r, last, err)
				}
				last = r.End()
				for b := r.Off / bs; b < r.End()/bs; b++ {
					got = append(got, uint64(b))
				}
			}
			want := dumpedFree(t, img)
			if fmt.Sprint(got) != fmt.Sprint(want) || len(want) == 0 {
				t.Errorf("%d free blocks, dumpe2fs has %d", len(got), len(want))
			}
		})
	}
}

func TestSparseLeavesOutFreeBlocks(t *testing.T) {
	for _, i := range []int{0, 5, 13} {
		v := variants[i]
		t.Run(v.name, func(t *testing.T) {
			img := mkfs(t, v, seedTree(t))
			dirtyFree(t, img)
			f := openFile(t, img)
			// The file system lies somewhere on a disk, with bytes around it.
			const at = 1 << 20
			whole := append(append(bytes.Repeat([]byte{0x11}, at), must(os.ReadFile(img))...), bytes.Repeat([]byte{0x22}, 12345)...)
			d := must(Sparse(disk.AsDisk(disk.Bytes(whole)), at, must(Open(f))))
			if d.Size() != int64(len(whole)) {
				t.Fatalf("%d bytes", d.Size())
			}
			out := make(sliceWriter, len(whole))
			n := must(disk.Copy(context.Background(), out, d, disk.CopyOptions{}))
			if free := int64(must(must(Open(f)).Info()).FreeBlocks) * int64(must(Open(f)).sb.blockSize); n > int64(len(whole))-free {
				t.Errorf("%d of %d bytes were copied, %d are free", n, len(whole), free)
			}
			// Odd pieces read as the extents have said.
			p := make([]byte, 99991)
			for off := int64(0); off < d.Size(); off += int64(len(p)) {
				k, err := d.ReadAt(p, off)
				if int64(k) != min(int64(len(p)), d.Size()-off) || k == len(p) && err != nil || !bytes.Equal(p[:k], out[off:off+int64(k)]) {
					t.Fatalf("%d bytes at %d differ: %v", k, off, err)
				}
			}
			if !bytes.Equal(out[:at], whole[:at]) || !bytes.Equal(out[len(out)-12345:], whole[len(out)-12345:]) {
				t.Error("bytes outside the file system have changed")
			}
			if n := bytes.Count(out, bytes.Repeat([]byte{0xA5}, 1024)); n > 0 {
				t.Errorf("%d pieces of a removed file are left", n)
			}
			copied := filepath.Join(t.TempDir(), "copy")
			must(0, os.WriteFile(copied, out[at:len(out)-12345], 0o600))
			fsck(t, copied)
			if err := diff("", readModel(t, must(Open(f))), readModel(t, must(Open(openFile(t, copied))))); err != nil {
				t.Error(err)
			}
		})
	}
}

type sliceWriter []byte

func (w sliceWriter) WriteAt(p []byte, off int64) (int, error) { return copy(w[off:], p), nil }

func TestFreeRefusesWhatContradictsItself(t *testing.T) {
	for name, v := range map[string]variant{"checksum": rhel8Variant, "count": {"", []string{"-b", "4096", "-O", rhel8 + ",^metadata_csum"}, 48}} {
		all := must(os.ReadFile(mkfs(t, v, "")))
		g := must(must(Open(disk.Bytes(all))).group(0))
		all[int64(g.blockBitmap())*4096+1000] ^= 1
		if _, err := Sparse(disk.AsDisk(disk.Bytes(all)), 0, must(Open(disk.Bytes(all)))); !errors.Is(err, disk.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	all := must(os.ReadFile(mkfs(t, rhel8Variant, "")))
	if _, err := Sparse(disk.AsDisk(disk.Bytes(all)), 4096, must(Open(disk.Bytes(all)))); err == nil {
		t.Error("a file system that is larger than its disk")
	}
}
