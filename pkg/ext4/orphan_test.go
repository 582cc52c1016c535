package ext4

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"remaster/internal/hint"
	"remaster/pkg/disk"
)

// orphaned makes a file system with inodes of each kind, and orphans them: deleted ones
// without a name, and files that were to be shorter than they are.
func orphaned(t testing.TB, v variant, inFile bool) string {
	t.Helper()
	img := mkfs(t, v, "")
	w := onFile(t, img)
	e := edit(t, w)
	bs := e.sb.blockSize
	root := e.Root()
	attr := Attr{Mode: 0o644, Xattrs: map[string][]byte{"user.long": bytes.Repeat([]byte("v"), 300)}}
	data := disk.Bytes(bytes.Repeat([]byte("data"), 20*bs/4))
	var inos []Ino
	change := map[Ino]func(in inode){}
	gone := func(ino Ino, err error) {
		inos = append(inos, must(ino, err))
		change[ino] = func(in inode) { put16(in.raw, iLinks, 0) }
	}
	cut := func(ino Ino, err error, size int) {
		inos = append(inos, must(ino, err))
		change[ino] = func(in inode) { in.setSize(int64(size)) }
	}
	for i, size := range []int{0, 1, 100, bs, bs + 1, 5*bs - 1, 20 * bs, 40 * bs} {
		ino, err := e.Create(root, fmt.Sprint("cut-", i), Attr{Mode: 0o644}, data)
		cut(ino, err, size)
	}
	// More pieces than there is room for in the inode.
	ino := must(e.Create(root, "pieces", Attr{Mode: 0o644}, data))
	in := must(e.edit(ino))
	m := must(e.fileMap(in))
	var runs []run
	for _, r := range m.runs {
		for i := range r.n {
			runs = append(runs, run{log: 2 * (r.log + i), n: 1, phys: r.phys + i})
		}
	}
	must(e.writeMap(in, m, runs))
	in.setSize(int64(40 * bs))
	cut(ino, nil, 17*bs)
	ino, err := e.Create(root, "gone", attr, data)
	gone(ino, err)
	ino, err = e.Create(root, "gone-empty", Attr{}, disk.Bytes(nil))
	gone(ino, err)
	ino, err = e.Mkdir(root, "gone-folder", attr)
	gone(ino, err)
	ino, err = e.Symlink(root, "gone-link", strings.Repeat("long", 50), Attr{})
	gone(ino, err)
	ino, err = e.Symlink(root, "gone-fast", "short", Attr{})
	gone(ino, err)
	ino, err = e.Mknod(root, "gone-pipe", fs.ModeNamedPipe, 0, 0, Attr{})
	gone(ino, err)
	for _, name := range []string{"gone", "gone-empty", "gone-folder", "gone-link", "gone-fast", "gone-pipe"} {
		must(e.remove(must(e.editDir(root)), name))
	}
	e.dropSubdir(must(e.edit(root)))
	clear(e.content) // all of which was not to be read back
	must(0, e.Flush())
	for i, ino := range inos {
		in := must(e.inodeSlot(ino, e.c.edit))
		change[ino](in)
		e.touch(ino)
		if next := i + 1; !inFile && next < len(inos) {
			put32(in.raw, iDtime, uint32(inos[next]))
		}
	}
	if inFile {
		orphanFile(t, e, inos)
	} else {
		e.sb.lastOrphan = uint32(inos[0])
	}
	must(0, e.seal(e.c.dirty()))
	must(0, e.writeBlocks(e.c.dirty()))
	return img
}

// orphanFile puts inodes in the orphan file, in all its blocks.
func orphanFile(t testing.TB, e *Editor, inos []Ino) {
	t.Helper()
	in := must(e.inode(e.sb.orphanFile))
	m := must(e.fileMap(in))
	n := uint64(in.size()) / uint64(e.sb.blockSize)
	for i, ino := range inos {
		no, _ := m.lookup(uint64(i) % n)
		b := must(e.c.edit(no, tag{kindOrphans, uint32(in.ino)}, nil))
		put32(b, 8*(1+i/int(n)), uint32(ino))
	}
	e.sb.ro |= roOrphanPresent
}

func TestOrphansAreAsTheKernelLeavesThem(t *testing.T) {
	for _, c := range []struct {
		variant string
		inFile  bool
	}{{"1k", false}, {"ext3", false}, {"orphan_file", true}, {"rhel8", false}, {"inode128", false}, {"gdt_csum", false}, {"orphan_file", false}} {
		if c.variant != "1k" && c.variant != "ext3" && !c.inFile && *modelRuns == 1 {
			continue // the rest is for a soak
		}
		t.Run(fmt.Sprint(c.variant, " ", c.inFile), func(t *testing.T) {
			img := orphaned(t, variantNamed(c.variant), c.inFile)
			rec := sameAsKernel(t, img)
			if rec.Deleted != 6 || rec.Truncated != 9 || rec.Transactions != 0 {
				t.Errorf("%+v", rec)
			}
		})
	}
}

// What lies behind the size of a file must not show when the file grows.
func TestRestOfATruncatedFileIsZeros(t *testing.T) {
	img, _ := recovered(t, orphaned(t, variantNamed("rhel8"), false))
	w := onFile(t, img)
	f := must(Open(w))
	for i, size := range []int64{0, 1, 100, 4096, 4097, 5*4096 - 1} {
		ino := must(f.Lookup(f.Root(), fmt.Sprint("cut-", i)))
		file := must(f.File(ino))
		if file.Size() != size {
			t.Fatalf("%d has %d bytes", i, file.Size())
		}
		file.size = (size + 4095) &^ 4095
		b := make([]byte, file.size)
		must(0, disk.ReadFull(file, b, 0))
		want := bytes.Repeat([]byte("data"), len(b)/4)
		clear(want[size:])
		if !bytes.Equal(b, want) {
			t.Errorf("cut at %d bytes: content or rest differ", size)
		}
		if n := must(f.Stat(ino)).Blocks; n != file.size/512 {
			t.Errorf("cut at %d bytes: %d sectors", size, n)
		}
	}
}

func TestBadOrphansAreRefused(t *testing.T) {
	good := map[bool][]byte{}
	for _, inFile := range []bool{false, true} {
		good[inFile] = must(os.ReadFile(orphaned(t, variant{"", []string{"-b", "1024", "-O", rhel8 + ",orphan_file"}, 6}, inFile)))
	}
	// first is the inode that the list begins with.
	first := func(e *Editor) inode { return must(e.inodeSlot(Ino(e.sb.lastOrphan), e.c.edit)) }
	next := func(in inode) Ino { return Ino(le32(in.raw, iDtime)) }
	block := func(e *Editor) []byte {
		in := must(e.inode(e.sb.orphanFile))
		return must(e.c.edit(must(e.fileMap(in)).runs[0].phys, tag{kindOrphans, uint32(in.ino)}, nil))
	}
	for _, x := range []struct {
		name   string
		inFile bool
		spoil  func(e *Editor)
		want   string
	}{
		{"loop", false, func(e *Editor) {
			in := first(e)
			second := must(e.inodeSlot(next(in), e.c.edit))
			put32(second.raw, iDtime, uint32(in.ino))
			e.touch(second.ino)
		}, "orphaned twice"},
		{"itself", false, func(e *Editor) { in := first(e); put32(in.raw, iDtime, uint32(in.ino)); e.touch(in.ino) }, "orphaned twice"},
		{"beyond", false, func(e *Editor) { e.sb.lastOrphan = e.sb.inodes + 1 }, "can be orphaned"},
		{"root", false, func(e *Editor) { e.sb.lastOrphan = 2 }, "can be orphaned"},
		{"journal", false, func(e *Editor) { e.sb.lastOrphan = 8 }, "can be orphaned"},
		{"free", false, func(e *Editor) { e.sb.lastOrphan = e.sb.inodes - 7 }, "marked free"},
		{"free in list", false, func(e *Editor) { in := first(e); put32(in.raw, iDtime, e.sb.inodes-7); e.touch(in.ino) }, "marked free"},
		{"device", false, func(e *Editor) { in := first(e); put16(in.raw, iMode, modeChr|0o600); e.touch(in.ino) }, "no content"},
		{"inline", false, func(e *Editor) { in := first(e); in.setFlag(0, flInlineData); e.touch(in.ino) }, "inline_data"},
		{"blocks", false, func(e *Editor) { in := first(e); put32(in.raw, iBlock+extHeader+8, 20); e.touch(in.ino) }, "metadata"},
		{"checksum", false, func(e *Editor) { first(e).raw[iGeneration]++ }, "wrong checksum"},
		{"twice in file", true, func(e *Editor) { b := block(e); put32(b, 400, le32(b, 8)) }, "orphaned twice"},
		{"beyond in file", true, func(e *Editor) { put32(block(e), 400, 1<<31) }, "can be orphaned"},
		{"itself in file", true, func(e *Editor) { put32(block(e), 400, uint32(e.sb.orphanFile)) }, "can be orphaned"},
		{"magic", true, func(e *Editor) { b := block(e); b[len(b)-8] = 0 }, "no magic"},
	} {
		t.Run(x.name, func(t *testing.T) {
			img := filepath.Join(t.TempDir(), "img")
			must(0, os.WriteFile(img, good[x.inFile], 0o600))
			w := onFile(t, img)
			e := must(newEditor(must(Open(w)), w, EditOptions{}))
			x.spoil(e)
			must(0, e.seal(e.c.dirty()))
			must(0, e.writeBlocks(e.c.dirty()))
			_, _, err := inMemory(img)
			if err == nil || !strings.Contains(err.Error(), x.want) || len(hint.Of(err)) == 0 ||
				!errors.Is(err, disk.ErrCorrupt) && !errors.Is(err, disk.ErrUnsupported) {
				t.Errorf("%v, want %q", err, x.want)
			}
		})
	}
}

// Orphans of a file system that can't be edited are no obstacle to reading it.
func TestOrphansOfAFileSystemThatIsNotEditedStay(t *testing.T) {
	img := orphaned(t, variantNamed("rhel8"), false)
	w := patch(t, img, or32(sbRoCompat, 0x100))
	before := must(os.ReadFile(img))
	if rec, err := Recover(w, EditOptions{}); rec != nil || err != nil {
		t.Error(rec, err)
	}
	if !bytes.Equal(before, must(os.ReadFile(img))) {
		t.Error("it was written")
	}
	if _, err := Open(w); err != nil {
		t.Error(err)
	}
}

// FuzzRecover changes bytes of the log, of the superblocks and of what the orphans are
// made of, and puts checksums right that would hide the rest.
func FuzzRecover(f *testing.F) {
	var bases []disk.Bytes
	for _, opts := range []string{"", "-c -v 3"} {
		bases = append(bases, must(os.ReadFile(dirtyJournal(f, tiny, opts, rand.New(rand.NewPCG(1, 2))))))
	}
	withFile := variant{"", []string{"-b", "1024", "-O", rhel8 + ",orphan_file"}, 6}
	for _, inFile := range []bool{false, true} {
		bases = append(bases, must(os.ReadFile(orphaned(f, withFile, inFile))))
	}
	f.Add(byte(0), []byte{})
	f.Add(byte(1), []byte{1, 0, 4, 15, 9})
	f.Add(byte(2), []byte{2, 0, 0, 20, 1})
	f.Add(byte(3), []byte{3, 0, 0, 8, 200, 4, 0, 0, 232, 77})
	f.Add(byte(0), []byte{1, 0, 4, 14, 255, 1, 0, 0, 31, 3})
	f.Fuzz(func(t *testing.T, which byte, edits []byte) {
		o := disk.NewOverlay(bases[int(which)%len(bases)], disk.OverlayOptions{})
		defer o.Close()
		fs := must(open(o))
		j := must(fs.journal())
		firstTable := int64(must(fs.group(0)).inodeTable()) * 1024
		for ; len(edits) >= 5; edits = edits[5:] {
			off := int64(edits[1])<<16 | int64(edits[2])<<8 | int64(edits[3])
			switch edits[0] % 4 {
			case 0:
				off = superOffset + off%1024
			case 1:
				off = j.place(0) + off%(200*1024)
			case 2:
				off = firstTable + off%(64*256)
			case 3:
				off %= o.Size()
			}
			must(o.WriteAt(edits[4:5], off))
		}
		sealAll(o, j)
		rec, err := Recover(o, EditOptions{Now: now})
		if err != nil {
			if !errors.Is(err, disk.ErrFormat) && !errors.Is(err, disk.ErrCorrupt) && !errors.Is(err, disk.ErrUnsupported) && !errors.Is(err, ErrNoSpace) {
				t.Errorf("%v wraps no sentinel", err)
			}
			return
		}
		if again, err := Recover(o, EditOptions{Now: now}); again != nil && again.Transactions > 0 || err != nil {
			t.Errorf("%v, and then %v, %v", rec, again, err)
		}
		if err := Check(o); err != nil {
			t.Log(err)
		}
	})
}

// sealAll puts the checksums of the superblocks and of the first inodes right.
func sealAll(o *disk.Overlay, j *journal) {
	b := make([]byte, superSize)
	must(0, disk.ReadFull(o, b, superOffset))
	put32(b, sbChecksum, crc32c(^uint32(0), b[:sbChecksum]))
	must(o.WriteAt(b, superOffset))
	must(0, disk.ReadFull(o, b, j.place(0)))
	putBE32(b, jsChecksum, crc32cHole(^uint32(0), b, jsChecksum, 4))
	must(o.WriteAt(b, j.place(0)))
	f, err := open(o)
	if err != nil {
		return
	}
	for ino := range min(Ino(f.sb.inodes), 40) {
		d, no, off, err := f.inodePlace(ino + 1)
		if err != nil || d.g > 0 {
			return
		}
		at := int64(no)*int64(f.sb.blockSize) + int64(off)
		raw := make([]byte, f.sb.inodeSize)
		if disk.ReadFull(o, raw, at) != nil {
			return
		}
		in := inode{ino + 1, raw, &f.sb}
		if in.verify() != nil && in.extra() <= len(raw)-inodeGood {
			in.seal()
			must(o.WriteAt(raw, at))
		}
	}
}
