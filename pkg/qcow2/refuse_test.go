package qcow2

import (
	"bytes"
	"compress/flate"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"remaster/internal/hint"
	"remaster/internal/oracle"
	"remaster/pkg/disk"
)

// patch is bytes to be laid over an image.
type patch struct {
	off  int64
	with []byte
}

func u8(off int64, v byte) patch    { return patch{off, []byte{v}} }
func u32(off int64, v uint32) patch { return patch{off, be.AppendUint32(nil, v)} }
func u64(off int64, v uint64) patch { return patch{off, be.AppendUint64(nil, v)} }

func patched(image []byte, ps ...patch) disk.Bytes {
	out := bytes.Clone(image)
	for _, p := range ps {
		copy(out[p.off:], p.with)
	}
	return out
}

// plainImage is a version 3 image of 1 MiB with clusters of 4 KiB: header, refcount
// table, refcount block, L1 table, one L2 table, data from cluster 5 on.
func plainImage(tb testing.TB) []byte {
	tb.Helper()
	e, err := Encode(disk.AsDisk(disk.Bytes(bytes.Repeat([]byte("qcow2 in "), 1<<20/9+1)[:1<<20])), EncodeOptions{ClusterSize: 4096})
	if err != nil {
		tb.Fatal(err)
	}
	return readAll(tb, e)
}

func TestOpenRefuses(t *testing.T) {
	good := plainImage(t)
	size := int64(len(good))
	if _, err := Open(disk.Bytes(good)); err != nil {
		t.Fatal(err)
	}
	ext := func(typ, n uint32) patch {
		return patch{hdrEndKnown, be.AppendUint32(be.AppendUint32(nil, typ), n)}
	}
	const format, unsup, corr = "format", "unsupported", "corrupt"
	kinds := map[string]error{format: disk.ErrFormat, unsup: disk.ErrUnsupported, corr: disk.ErrCorrupt}
	for _, c := range []struct {
		kind, message string // a part of the message
		patches       []patch
	}{
		{format, "magic", []patch{u8(0, 'q')}},
		{unsup, "version 1", []patch{u32(hdrVersion, 1)}},
		{unsup, "version 4", []patch{u32(hdrVersion, 4)}},
		{unsup, "backing file", []patch{u64(hdrBackingOff, 200), u32(hdrBackingLen, 11), {200, []byte("/etc/passwd")}}},
		{corr, "backing file name", []patch{u64(hdrBackingOff, 200), u32(hdrBackingLen, 5000)}},
		{corr, "backing file name", []patch{u64(hdrBackingOff, 1<<40), u32(hdrBackingLen, 5)}},
		{unsup, "encryption (method 1)", []patch{u32(hdrCrypt, 1)}},
		{unsup, "encryption (method 2)", []patch{u32(hdrCrypt, 2)}},
		{unsup, "encryption", []patch{ext(extEncryption, 16)}},
		{unsup, "external data file", []patch{u64(hdrIncompatible, featDataFile)}},
		{unsup, `external data file "/etc/passwd"`, []patch{ext(extDataFile, 11), {hdrEndKnown + 8, []byte("/etc/passwd")}}},
		{unsup, "extended L2", []patch{u64(hdrIncompatible, featExtendedL2)}},
		{unsup, "bit 17", []patch{u64(hdrIncompatible, 1<<17)}},
		{unsup, `bit 17 "shiny\x1b"`, []patch{u64(hdrIncompatible, 1<<17), ext(extFeatureNames, 48), {hdrEndKnown + 8, []byte("\x00\x11shiny\x1b")}}},
		{unsup, "marked dirty", []patch{u64(hdrIncompatible, featDirty)}},
		{unsup, "marked corrupt", []patch{u64(hdrIncompatible, featCorrupt)}},
		{corr, "contradicts its feature bit", []patch{u64(hdrIncompatible, featCompression)}},
		{corr, "contradicts its feature bit", []patch{u8(hdrCompression, 1)}},
		{unsup, "compression type 2", []patch{u64(hdrIncompatible, featCompression), u8(hdrCompression, 2)}},
		{corr, "padding", []patch{u8(hdrCompression+7, 1)}},
		{corr, "header length", []patch{u32(hdrLen, 96)}},
		{corr, "header length", []patch{u32(hdrLen, 113)}},
		{corr, "header length", []patch{u32(hdrLen, 4104)}},
		{corr, "refcount order", []patch{u32(hdrRefOrder, 7)}},
		{corr, "cluster size", []patch{u32(hdrClusterBits, 8)}},
		{corr, "cluster size", []patch{u32(hdrClusterBits, 22)}},
		{corr, "disk size", []patch{u64(hdrSize, 0)}},
		{corr, "disk size", []patch{u64(hdrSize, 1<<20-1)}},
		{corr, "disk size", []patch{u64(hdrSize, 1<<63)}},
		{corr, "L1 table of 0 entries", []patch{u32(hdrL1Len, 0)}},
		{corr, "L1 table of 1 entries", []patch{u64(hdrSize, 1<<40)}},
		{corr, "L1 table of", []patch{u32(hdrL1Len, 1<<32-1)}},
		{corr, "not within the file", []patch{u32(hdrL1Len, 1<<22)}},
		{corr, "L1 table: offset 100", []patch{u64(hdrL1Off, 100)}},
		{corr, "L1 table: offset 0", []patch{u64(hdrL1Off, 0)}},
		{corr, "L1 table: 8 bytes at 18446744073709547520", []patch{u64(hdrL1Off, 1<<64-4096)}},
		{corr, "refcount table of 0", []patch{u32(hdrRefTableLen, 0)}},
		{corr, "refcount table of", []patch{u32(hdrRefTableLen, 1<<32-1)}},
		{corr, "refcount table:", []patch{u64(hdrRefTableOff, uint64(size))}},
		{corr, "snapshots", []patch{u32(hdrSnapshots, 65537)}},
		{corr, "snapshot table", []patch{u32(hdrSnapshots, 1), u64(hdrSnapshotOff, uint64(size))}},
		{corr, "lies over", []patch{u64(hdrL1Off, 4096)}},
		{corr, "leaves the header cluster", []patch{ext(99, 4000)}},
		{corr, "second header extension", []patch{ext(99, 0), {hdrEndKnown + 8, be.AppendUint32(nil, 99)}}},
		{corr, "reserved bits", []patch{u64(3*4096, 1<<63|4*4096|1)}},
		{corr, "L2 table of L1 entry 0", []patch{u64(3*4096, 1<<63|4096*4096)}},
		{corr, "does not begin a cluster", []patch{u64(3*4096, 1<<63|4*4096+512)}},
		{corr, "lies over the refcount table", []patch{u64(3*4096, 1<<63|4096)}},
		{corr, "share an L2 table", []patch{u32(hdrL1Len, 2), u64(3*4096+8, 1<<63|4*4096)}},
	} {
		_, err := Open(patched(good, c.patches...))
		if !errors.Is(err, kinds[c.kind]) || !strings.Contains(err.Error(), c.message) {
			t.Errorf("%s %q: %v", c.kind, c.message, err)
		}
		if c.kind == unsup && len(hint.Of(err)) == 0 {
			t.Errorf("%q: no remedy", c.message)
		}
	}
	for _, n := range []int{0, 3, 4, 71, 103, 104, 4095, 4096, 5000} {
		_, err := Open(disk.Bytes(good[:n]))
		want := disk.ErrCorrupt
		if n < 4 {
			want = disk.ErrFormat
		}
		if !errors.Is(err, want) {
			t.Errorf("first %d bytes: %v", n, err)
		}
	}
}

func TestOpenTakesOlderAndNewerHeaders(t *testing.T) {
	good := plainImage(t)
	want := readAll(t, open(t, disk.Bytes(good)))
	unknown := be.AppendUint32(be.AppendUint32(nil, 0x12345678), 3)
	for name, ps := range map[string][]patch{
		"version 2":                  {u32(hdrVersion, 2), u64(hdrIncompatible, 0), u32(hdrRefOrder, 0), u32(hdrLen, 0)},
		"before compression types":   {u32(hdrLen, hdrEndV3)},
		"longer than known":          {u32(hdrLen, 128), {hdrEndKnown, []byte("unknown fields")}},
		"unknown extension":          {{hdrEndKnown, unknown}},
		"compatible, autoclear bits": {u64(hdrCompatible, 1<<40|1), u64(hdrAutoclear, 1<<40)},
	} {
		image := patched(good, ps...)
		m := open(t, image)
		wantBytes(t, name, readAll(t, m), want)
		c, guest := overlay(t, image), overlay(t, m)
		if _, err := guest.WriteAt([]byte("edit"), 5000); err != nil {
			t.Fatal(err)
		}
		if err := m.Rewrite(c, guest); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if u, err := Check(c); err != nil || u.Leaked != 0 {
			t.Errorf("%s: %+v, %v", name, u, err)
		}
		// Only the places of the tables, and the autoclear bits, may differ.
		before, after := []byte(image[:4096]), readAll(t, c)[:4096]
		for _, r := range []disk.Range{{Off: hdrL1Off, Len: hdrSnapshots - hdrL1Off}, {Off: hdrAutoclear, Len: 8}} {
			copy(after[r.Off:r.End()], before[r.Off:r.End()])
		}
		wantBytes(t, name+": header", after, before)
	}
}

func TestOpenRefusesWhatQemuMade(t *testing.T) {
	dir := t.TempDir()
	oracle.Run(t, "qemu-img", "create", "-f", "raw", dir+"/base", "1M")
	for message, args := range map[string][]string{
		"backing file":       {"-b", dir + "/base", "-F", "raw", dir + "/a"},
		"external data file": {"-o", "data_file=" + dir + "/data,data_file_raw=on", dir + "/a", "1M"},
		"extended L2":        {"-o", "extended_l2=on", dir + "/a", "1M"},
	} {
		oracle.Run(t, "qemu-img", append([]string{"create", "-f", "qcow2"}, args...)...)
		_, err := Open(openFile(t, dir+"/a"))
		if !errors.Is(err, disk.ErrUnsupported) || !strings.Contains(err.Error(), message) {
			t.Errorf("%s: %v", message, err)
		}
	}
}

func TestReadRefusesBadL2Entries(t *testing.T) {
	good := plainImage(t)
	const l2, packedCopied = 4 * 4096, entryCompressed | entryCopied
	for _, c := range []struct {
		message string
		version uint32
		entry   uint64
	}{
		{"reserved bits", 3, entryCopied | 5*4096 | 2},
		{"reserved bits", 3, entryCopied | 5*4096 | 1<<56},
		{"reserved bits", 2, entryCopied | 5*4096 | entryZero},
		{"does not begin a cluster", 3, entryCopied | 5*4096 + 512},
		{"not within the file", 3, entryCopied | 1<<40},
		{"without a cluster", 3, entryCopied},
		{"over the header", 3, entryCompressed | 100},
		{"over the L1 table", 3, entryCopied | 3*4096},
		{"over the L1 table", 3, entryCompressed | 3*4096 + 512},
		{"copied flag", 3, packedCopied | 5*4096},
		{"not within the file", 3, entryCompressed},
		{"not within the file", 3, entryCompressed | 1<<57},
		{"not within the file", 3, entryCompressed | uint64(len(good))},
		{"not within the file", 3, entryCompressed | 1<<58 | uint64(len(good)-512)},
		{"compressed cluster 1", 3, entryCompressed | 7<<58 | 5*4096}, // text, not deflate
	} {
		m, err := Open(patched(good, u32(hdrVersion, c.version), u64(l2+8, c.entry)))
		if err != nil {
			t.Fatal(err)
		}
		_, err = m.ReadAt(make([]byte, 10), 5000)
		if !errors.Is(err, disk.ErrCorrupt) || !strings.Contains(err.Error(), c.message) {
			t.Errorf("%q: %v", c.message, err)
		}
		var pos *CorruptError
		if !errors.As(err, &pos) || pos.Off == 0 {
			t.Errorf("%q: no position in %v", c.message, err)
		}
	}
}

func TestCheckFindsContradictions(t *testing.T) {
	good := plainImage(t)
	const block, l2 = 2 * 4096, 4 * 4096
	for _, c := range []struct {
		message string
		patches []patch
	}{
		{"refcount 0", []patch{u32(block+2*7, 0)}},
		{"used twice: data and data", []patch{u64(l2+8, entryCopied|5*4096)}},
		{"used twice: L2 table and data", []patch{u64(l2+8, entryCopied|4*4096)}},
		{"used twice: refcount block and data", []patch{u64(l2+8, entryCopied|2*4096)}},
		{"data and compressed data", []patch{u64(l2+8, entryCompressed|5*4096)}},
		{"copied flag", []patch{u64(l2+8, 6*4096)}},
		{"copied flag", []patch{u8(block+2*7+1, 2)}},
		{"refcount block 0", []patch{u64(4096, 1<<40)}},
		{"used twice: refcount block and refcount block", []patch{u64(4096+8, 2*4096)}},
		{"has refcount 0", []patch{u64(4096, 0)}},
	} {
		bad := patched(good, c.patches...)
		if _, err := Check(bad); !errors.Is(err, disk.ErrCorrupt) || !strings.Contains(err.Error(), c.message) {
			t.Errorf("%q: %v", c.message, err)
		}
	}
	u, err := Check(patched(good, u64(l2+8, 0)))
	if err != nil || u.Leaked != 1 {
		t.Errorf("cleared entry: %+v, %v", u, err)
	}
}

func TestDecompressMakesExactlyOneCluster(t *testing.T) {
	deflate := func(p []byte) []byte {
		var b bytes.Buffer
		w, _ := flate.NewWriter(&b, 6)
		_, err := w.Write(p)
		if err := errors.Join(err, w.Close()); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	cluster := guestBytes(17, 65536)
	dst := make([]byte, len(cluster))
	garbage := append(deflate(cluster), "what follows in the sector"...)
	if err := decompress(Zlib, dst, garbage); err != nil || !bytes.Equal(dst, cluster) {
		t.Errorf("with something behind it: %v", err)
	}
	for name, src := range map[string][]byte{
		"short":     deflate(cluster[1:]),
		"long":      deflate(append(bytes.Clone(cluster), 0)),
		"cut":       deflate(cluster)[:1000],
		"empty":     nil,
		"unending":  deflate(make([]byte, 1<<20)),
		"only text": []byte(strings.Repeat("no stream ", 100)),
	} {
		if err := decompress(Zlib, dst, src); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("deflate, %s: %v", name, err)
		}
	}
}

func TestUnzstdTakesFramesUntilTheClusterIsFull(t *testing.T) {
	cluster := guestBytes(18, 65536)
	frames := func(parts ...[]byte) (out []byte) {
		for k, p := range parts {
			// With and without checksums, with and without the size in the frame.
			w, err := zstd.NewWriter(nil, zstd.WithEncoderCRC(k%2 == 0), zstd.WithSingleSegment(k%3 == 0), zstd.WithEncoderLevel(zstd.SpeedDefault))
			if err != nil {
				t.Fatal(err)
			}
			out = w.EncodeAll(p, out)
		}
		return out
	}
	buf := bytes.Repeat([]byte{0xee}, 2*len(cluster))
	dst := buf[:len(cluster)]
	for name, src := range map[string][]byte{
		"one":    frames(cluster),
		"padded": append(frames(cluster), make([]byte, 511)...),
		"three":  frames(cluster[:100], cluster[100:40000], cluster[40000:]),
	} {
		clear(dst)
		if err := decompress(Zstd, dst, src); err != nil || !bytes.Equal(dst, cluster) {
			t.Errorf("%s: %v", name, err)
		}
	}
	zeros := make([]byte, len(cluster))
	if err := decompress(Zstd, dst, append(frames(zeros), 1, 2, 3)); err != nil || !bytes.Equal(dst, zeros) {
		t.Errorf("repeated bytes: %v", err)
	}
	if c := buf[len(cluster):]; !bytes.Equal(c, bytes.Repeat([]byte{0xee}, len(c))) {
		t.Error("bytes behind the cluster were written")
	}
	for name, src := range map[string][]byte{
		"empty":    nil,
		"short":    frames(cluster[1:]),
		"too long": frames(append(bytes.Clone(cluster), 1)),
		"bomb":     frames(make([]byte, 16<<20)),
		"cut":      frames(cluster)[:1000],
		"garbage":  cluster[:1000],
	} {
		if err := decompress(Zstd, dst, src); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
