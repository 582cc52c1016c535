package ext4

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"remaster/internal/hint"
	"remaster/internal/oracle"
	"remaster/pkg/disk"
)

// figures are those lines of dumpe2fs -h that a grown file system must share with the
// one that resize2fs makes.
var figures = regexp.MustCompile(`(?m)^(Inode count|Block count|Reserved block count|Free blocks|Free inodes|First block|Reserved GDT blocks|` +
	`Blocks per group|Inodes per group|Inode blocks per group|Filesystem features|Filesystem state|First meta block group|Group descriptor size):.*$`)

// growBoth grows an image by Grow and a copy of it by resize2fs, and compares.
func growBoth(t *testing.T, img string, size int64) {
	t.Helper()
	ref := filepath.Join(t.TempDir(), "ref")
	oracle.Run(t, "cp", "--sparse=always", img, ref)
	for _, p := range []string{img, ref} {
		must(0, os.Truncate(p, size))
	}
	before := readModel(t, must(Open(openFile(t, img))))
	if err := Grow(onFile(t, img), EditOptions{Now: now}); err != nil {
		t.Fatal(err)
	}
	fsck(t, img)
	oracle.Run(t, "resize2fs", "-f", ref)
	got := figures.FindAllString(oracle.Run(t, "dumpe2fs", "-h", img), -1)
	want := figures.FindAllString(oracle.Run(t, "dumpe2fs", "-h", ref), -1)
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("size %d: %s; resize2fs: %s", size, got[i], want[i])
		}
	}
	f := must(Open(openFile(t, img)))
	if err := diff("", before, readModel(t, f)); err != nil {
		t.Error(err)
	}
	must(0, Check(openFile(t, img)))
	checkBackups(t, img, f)
}

// checkBackups compares every copy of the superblock and of the descriptors with the
// first one, and has e2fsck start from the last one.
func checkBackups(t *testing.T, img string, f *FS) {
	t.Helper()
	s := &f.sb
	bs := int64(s.blockSize)
	read := func(off, n int64) []byte {
		b := make([]byte, n)
		must(0, disk.ReadFull(f.d, b, off))
		return b
	}
	super := func(off int64) []byte {
		b := read(off, superSize)
		put16(b, sbState, 0)
		put16(b, sbBlockGroup, 0)
		put32(b, sbChecksum, 0)
		return b
	}
	last := uint64(0)
	n := int64(s.descBlocks()) * bs
	for g := uint32(1); g < s.groups; g++ {
		at := int64(s.groupFirst(g)) * bs
		if s.hasSuper(g) {
			last = s.groupFirst(g)
			if !bytes.Equal(super(at), super(superOffset)) || le16(read(at, superSize), sbBlockGroup) != uint16(g) {
				t.Errorf("the superblock of group %d differs", g)
			}
			at += bs
		}
		switch per := uint32(s.descPerBlock); {
		case s.incompat&incompatMetaBG != 0:
			if i := g % per; (i == 1 || i == per-1) && !bytes.Equal(read(at, bs), read(int64(s.descBlock(g/per))*bs, bs)) {
				t.Errorf("the descriptors in group %d differ", g)
			}
		case s.hasSuper(g) && !bytes.Equal(read(at, n), read(int64(s.descBlock(0))*bs, n)):
			t.Errorf("the descriptors in group %d differ", g)
		}
	}
	if last == 0 || s.incompat&incompatMetaBG != 0 {
		return
	}
	// From a copy, e2fsck finds nothing but that the primary one is not in use.
	work := filepath.Join(t.TempDir(), "work")
	oracle.Run(t, "cp", "--sparse=always", img, work)
	w := onFile(t, work)
	must(w.WriteAt(make([]byte, superSize), superOffset))
	if r := oracle.Try(t, "e2fsck", "-fy", "-b", fmt.Sprint(last), "-B", fmt.Sprint(s.blockSize), work); r.Code > 1 {
		t.Errorf("e2fsck from block %d: %d\n%s%s", last, r.Code, r.Stdout, r.Stderr)
	}
	fsck(t, work)
}

func TestGrowEqualsResize2fs(t *testing.T) {
	src := seedTree(t)
	for _, x := range []struct {
		variant
		sizes []int64 // KiB, one after the other
	}{
		{variants[0], []int64{100 << 10, 300<<10 + 4}},
		{variants[0], []int64{2<<20 + 52}},
		{variants[1], []int64{32<<10 + 1, 130 << 10, 400<<10 + 3}},
		{variants[2], []int64{200<<10 + 2}},
		{variants[3], []int64{500 << 10}},
		{variants[5], []int64{40<<10 + 8, 290 << 10}},
		{variants[6], []int64{400 << 10}},
		{variants[8], []int64{150 << 10}},
		{variants[9], []int64{49 << 10, 50<<10 + 700, 300 << 10}},
		{variants[10], []int64{120 << 10, 400 << 10, 1 << 20}},
		{variants[12], []int64{300 << 10}},
		{variants[13], []int64{110 << 10}},
		{variants[14], []int64{100 << 10, 300 << 10}},
		{variants[18], []int64{33 << 10, 50 << 10}},
		{variant{"ext2", []string{"-t", "ext2", "-b", "1024"}, 8}, []int64{100 << 10}},
		{variant{"no-sparse_super", []string{"-t", "ext2", "-b", "1024", "-O", "^sparse_super,^resize_inode"}, 16}, []int64{100 << 10}},
		{variant{"flex-4", []string{"-b", "1024", "-G", "4", "-O", rhel8}, 20}, []int64{26 << 10, 61 << 10, 260 << 10}},
		{variant{"many-inodes", []string{"-b", "1024", "-i", "1024", "-O", rhel8}, 20}, []int64{200 << 10}},
		{variant{"reserved", []string{"-b", "4096", "-m", "7.77", "-O", rhel8}, 100}, []int64{333<<10 + 12}},
	} {
		t.Run(x.name, func(t *testing.T) {
			img := mkfs(t, x.variant, src)
			for _, kib := range x.sizes {
				growBoth(t, img, kib<<10)
			}
		})
	}
}

// TestKernelUsesGrownSpace fills a grown file system through the kernel and through
// this package.
func TestKernelUsesGrownSpace(t *testing.T) {
	for _, v := range []variant{variants[1], variants[5], variants[10]} {
		t.Run(v.name, func(t *testing.T) {
			v.mb = 24
			img := mkfs(t, v, seedTree(t))
			must(0, os.Truncate(img, 200<<20))
			must(0, Grow(onFile(t, img), EditOptions{Now: now}))
			fsck(t, img)
			mounted(t, img, false, func(host string) {
				for i := range 12 {
					must(0, os.WriteFile(filepath.Join(host, fmt.Sprint("kernel-", i)), make([]byte, 6<<20), 0o600))
				}
				dir := filepath.Join(host, "kernel")
				must(0, os.Mkdir(dir, 0o700))
				for i := range 2000 {
					must(0, os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), []byte("x"), 0o600))
				}
			})
			fsck(t, img)
			e := edit(t, onFile(t, img))
			for i := range 10 {
				must(e.Create(e.Root(), fmt.Sprint("own-", i), Attr{}, make(disk.Bytes, 6<<20+i)))
			}
			flush(t, e)
			fsck(t, img)
			must(0, Check(e.w))
		})
	}
}

func TestGrowZeroesInodeTables(t *testing.T) {
	for _, v := range []variant{variants[1], variants[6]} {
		v.mb = 16
		img := mkfs(t, v, "")
		all := append(must(os.ReadFile(img)), bytes.Repeat([]byte{0xEE}, 30<<20)...)
		must(0, os.WriteFile(img, all, 0o600))
		must(0, Grow(onFile(t, img), EditOptions{Now: now}))
		fsck(t, img)
		e := edit(t, onFile(t, img))
		dir := must(e.Mkdir(e.Root(), "d", Attr{Mode: 0o755}))
		for i := range int(e.freeInodes) {
			must(e.Create(dir, fmt.Sprint(i), Attr{}, disk.Bytes(nil)))
		}
		flush(t, e)
		fsck(t, img)
	}
}

func TestGrowWithoutGainWritesNothing(t *testing.T) {
	img := mkfs(t, rhel8Variant, "")
	for _, more := range []int64{0, 1, 4095, 4096 * 500} {
		// 64 MiB are half a group; a whole one and a rest that is too short.
		size := int64(64<<20) + more
		if more > 4096 {
			img = mkfs(t, variant{"", []string{"-b", "4096", "-O", rhel8}, 128}, "")
			size += 64 << 20
		}
		must(0, os.Truncate(img, size))
		ov := disk.NewOverlay(openFile(t, img), disk.OverlayOptions{})
		if err := Grow(ov, EditOptions{Now: now}); err != nil || ov.Dirty() {
			t.Errorf("%d bytes more: %v, %v", more, err, ov.Dirty())
		}
	}
}

func TestGrowIsRefused(t *testing.T) {
	for _, x := range []struct {
		name string
		args []string
		want string
	}{
		{"no room for descriptors", []string{"-b", "1024", "-O", rhel8 + ",^resize_inode"}, "descriptors"},
		{"too little room", []string{"-b", "1024", "-O", rhel8, "-E", "resize=200000"}, "reserved"},
		{"sparse_super2", []string{"-b", "1024", "-O", rhel8 + ",sparse_super2,^resize_inode"}, "descriptors"},
		{"bigalloc", []string{"-b", "4096", "-O", rhel8 + ",bigalloc"}, "bigalloc"},
		{"quota", []string{"-b", "4096", "-O", rhel8 + ",quota"}, "quota"},
	} {
		img := mkfs(t, variant{"", x.args, 64}, "")
		must(0, os.Truncate(img, 8<<30))
		ov := disk.NewOverlay(openFile(t, img), disk.OverlayOptions{})
		err := Grow(ov, EditOptions{Now: now})
		if !errors.Is(err, disk.ErrUnsupported) || !strings.Contains(err.Error(), x.want) || ov.Dirty() {
			t.Errorf("%s: %v", x.name, err)
		}
		if x.want == "descriptors" && len(hint.Of(err)) == 0 {
			t.Errorf("%s: no remedy", x.name)
		}
	}
}

// TestGrowToAnySize grows to sizes around the ends of groups and of flex groups.
func TestGrowToAnySize(t *testing.T) {
	r := rand.New(rand.NewPCG(*modelSeed, 3))
	for i := range 6 * *modelRuns {
		v := variants[[]int{1, 5, 9, 10, 14, 18}[i%6]]
		v.mb = 17 + r.IntN(20)
		img := mkfs(t, v, "")
		for size := int64(v.mb) << 20; size < 150<<20; {
			size += 8<<20 + r.Int64N(40<<20)
			if r.IntN(2) == 0 {
				size = size>>23<<23 + r.Int64N(2<<20)
			}
			must(0, os.Truncate(img, size))
			if err := Grow(onFile(t, img), EditOptions{Now: now}); err != nil {
				t.Fatalf("%s, %d MiB to %d: %v", v.name, v.mb, size, err)
			}
			fsck(t, img)
		}
		must(0, Check(openFile(t, img)))
	}
}

// FuzzGrow grows images of which some bytes were changed, by some blocks. What Check
// accepts before it must accept after.
func FuzzGrow(f *testing.F) {
	seeds := fuzzSeeds(f)
	seeds = append(seeds, must(os.ReadFile(mkfs(f, variant{"", []string{"-b", "1024", "-N", "128", "-g", "256", "-O", rhel8 + ",^has_journal"}, 1}, ""))))
	for i := range seeds {
		f.Add(uint8(i), uint16(3000), []byte{})
		f.Add(uint8(i), uint16(9000), []byte{0, 0x6A, 0xFF, 0x10})
		f.Add(uint8(i), uint16(60000), []byte{1, 0x9A, 0x01, 0x10, 1, 0xA0, 0, 1})
	}
	f.Fuzz(func(t *testing.T, which uint8, more uint16, changes []byte) {
		img := bytes.Clone(seeds[int(which)%len(seeds)])
		for ; len(changes) >= 4; changes = changes[4:] {
			at := (int(changes[0])<<8 | int(changes[1])) * 5 % len(img)
			img[at] = changes[2]
			img[(at+1)%len(img)] ^= changes[3]
		}
		sb := img[superOffset : superOffset+superSize]
		put32(sb, sbChecksum, crc32c(^uint32(0), sb[:sbChecksum]))
		good := Check(disk.Bytes(img)) == nil
		ov := disk.NewOverlay(disk.Bytes(img), disk.OverlayOptions{})
		defer ov.Close()
		must(0, ov.Grow(int64(len(img))+int64(more)<<10))
		err := Grow(ov, EditOptions{Now: now})
		if !good || errors.Is(err, disk.ErrUnsupported) {
			return
		}
		if err == nil {
			err = Check(ov)
		}
		if err != nil {
			t.Errorf("an image without faults was spoilt: %v", err)
		}
		for _, err := range must(Open(ov)).Free() {
			must(0, err)
		}
	})
}
