package ext4

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"remaster/internal/oracle"
	"remaster/pkg/disk"
)

// snapshot is all that an editor would write.
func snapshot(e *Editor) map[uint64]string {
	out := map[uint64]string{}
	for _, no := range e.c.dirty() {
		out[no] = string(e.c.m[no].data)
	}
	return out
}

func TestNoSpaceChangesNothing(t *testing.T) {
	for _, v := range []variant{
		{"4k", []string{"-b", "4096", "-m", "5", "-O", rhel8}, 24},
		{"1k", []string{"-b", "1024", "-m", "0", "-O", rhel8 + ",^flex_bg"}, 40},
		{"ext3", []string{"-t", "ext3", "-b", "1024", "-m", "1"}, 20},
	} {
		t.Run(v.name, func(t *testing.T) {
			img := mkfs(t, v, "")
			e := edit(t, onFile(t, img))
			small := must(e.Create(e.Root(), "small", Attr{}, disk.Bytes("1234")))
			var err error
			for i := 0; err == nil; i++ {
				_, err = e.Create(e.Root(), fmt.Sprint("file", i), Attr{}, make(disk.Bytes, 1<<20+i))
			}
			for i := 0; errors.Is(err, ErrNoSpace) && i < 1<<20>>10; i++ {
				_, err = e.Create(e.Root(), fmt.Sprint("fill", i), Attr{}, make(disk.Bytes, 1<<10))
			}
			err = nil
			for i := 0; err == nil; i++ {
				_, err = e.Create(e.Root(), fmt.Sprint("last", i), Attr{}, disk.Bytes("x"))
			}
			if !errors.Is(err, ErrNoSpace) {
				t.Fatal(err)
			}
			before := snapshot(e)
			for what, err := range map[string]error{
				"create":  second(e.Create(e.Root(), "more", Attr{}, make(disk.Bytes, 70000))),
				"mkdir":   second(e.Mkdir(e.Root(), "more", Attr{})),
				"content": e.SetContent(small, make(disk.Bytes, 50000), now),
				"large":   e.SetContent(small, make(disk.Bytes, 5000000), now),
				"xattr":   e.SetXattr(small, "user.big", make([]byte, 800)),
				"symlink": second(e.Symlink(e.Root(), "more", strings.Repeat("x", 100), Attr{})),
			} {
				if !errors.Is(err, ErrNoSpace) {
					t.Errorf("%s: %v", what, err)
				}
			}
			after := snapshot(e)
			if len(before) != len(after) {
				t.Errorf("%d dirty blocks became %d", len(before), len(after))
			}
			for no := range before {
				if before[no] != after[no] {
					t.Errorf("block %d changed", no)
				}
			}
			if err := e.SetContent(small, disk.Bytes("4321"), now); err != nil {
				t.Errorf("a file of the same size: %v", err)
			}
			flush(t, e)
			fsck(t, img)
			info := must(e.Info())
			if info.FreeBlocks < info.ReservedBlocks {
				t.Errorf("%d blocks are free, %d are reserved", info.FreeBlocks, info.ReservedBlocks)
			}
			must(0, Check(e.w))
		})
	}
}

func second[T any](_ T, err error) error { return err }

func TestReservedBlocksOnDemand(t *testing.T) {
	img := mkfs(t, variant{"", []string{"-b", "4096", "-m", "50", "-O", rhel8}, 24}, "")
	w := onFile(t, img)
	e := must(Edit(w, EditOptions{Now: now, UseReserved: true}))
	must(e.Create(e.Root(), "big", Attr{}, make(disk.Bytes, 15<<20)))
	flush(t, e)
	fsck(t, img)
}

func TestNoInodes(t *testing.T) {
	img := mkfs(t, variant{"", []string{"-b", "1024", "-N", "64", "-O", rhel8}, 16}, "")
	e := edit(t, onFile(t, img))
	var err error
	n := 0
	for ; err == nil; n++ {
		_, err = e.Create(e.Root(), fmt.Sprint(n), Attr{}, disk.Bytes(nil))
	}
	if !errors.Is(err, ErrNoSpace) || n < 40 {
		t.Fatalf("after %d files: %v", n, err)
	}
	flush(t, e)
	fsck(t, img)
}

// TestUninitGroups writes so much that every group, also those that mke2fs left
// without bitmaps and inode tables, comes into use.
func TestUninitGroups(t *testing.T) {
	for _, v := range []variant{
		{"flex", []string{"-b", "1024", "-m", "0", "-N", "8000", "-O", rhel8}, 64},
		{"no-flex", []string{"-b", "1024", "-m", "0", "-N", "8000", "-O", rhel8 + ",^flex_bg"}, 64},
		{"gdt_csum", []string{"-b", "1024", "-m", "0", "-N", "8000", "-O", rhel8 + ",^metadata_csum,uninit_bg"}, 64},
		{"meta_bg", []string{"-b", "1024", "-m", "0", "-N", "8000", "-O", rhel8 + ",^resize_inode,meta_bg"}, 64},
		{"sparse_super2", []string{"-b", "1024", "-m", "0", "-N", "8000", "-O", rhel8 + ",^resize_inode,sparse_super2"}, 64},
		{"lazy", []string{"-b", "1024", "-m", "0", "-N", "8000", "-O", rhel8, "-E", "lazy_itable_init=1,lazy_journal_init=1"}, 64},
	} {
		t.Run(v.name, func(t *testing.T) {
			img := mkfs(t, v, "")
			// What was never initialised may hold anything.
			e := edit(t, onFile(t, img))
			dir := must(e.Mkdir(e.Root(), "d", Attr{Mode: 0o755}))
			for i := range 7000 {
				must(e.Create(dir, fmt.Sprint("f", i), Attr{}, disk.Bytes(nil)))
			}
			flush(t, e)
			fsck(t, img)
			for i := range 4 {
				must(e.Create(dir, fmt.Sprint("big", i), Attr{}, make(disk.Bytes, 10<<20+i)))
			}
			flush(t, e)
			fsck(t, img)
			if err := Check(e.w); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestFragmentedFile makes files of thousands of pieces, and reads and replaces them.
func TestFragmentedFile(t *testing.T) {
	for _, v := range []variant{
		{"extents", []string{"-b", "1024", "-m", "0", "-N", "9000", "-O", rhel8}, 24},
		{"indirect", []string{"-t", "ext3", "-b", "1024", "-m", "0", "-N", "9000", "-O", "^resize_inode"}, 24},
	} {
		t.Run(v.name, func(t *testing.T) {
			img := mkfs(t, v, "")
			e := edit(t, onFile(t, img))
			dir := must(e.Mkdir(e.Root(), "d", Attr{Mode: 0o755}))
			n := 0
			for ; n < 8900; n++ {
				if _, err := e.Create(dir, fmt.Sprint(n), Attr{}, disk.Bytes("x")); err != nil {
					break
				}
			}
			for i := 0; i < n; i += 2 {
				if err := e.Remove(dir, fmt.Sprint(i)); err != nil {
					t.Fatal(err)
				}
			}
			free := int64(e.freeBlocks)
			data := make(disk.Bytes, (free-200)<<10)
			for i := range data {
				data[i] = byte(i >> 10 * 7)
			}
			big := must(e.Create(e.Root(), "big", Attr{}, data))
			flush(t, e)
			fsck(t, img)
			m := must(e.fileMap(must(e.inode(big))))
			if len(m.runs) < 3000 {
				t.Errorf("%d pieces only", len(m.runs))
			}
			got := oracle.Run(t, "debugfs", "-R", "cat /big", img)
			if got != string(data) {
				t.Error("debugfs reads something else")
			}
			if err := e.SetContent(big, disk.Bytes("short"), now); err != nil {
				t.Fatal(err)
			}
			flush(t, e)
			fsck(t, img)
			must(0, Check(e.w))
		})
	}
}

// TestFailedOperationIsTakenBack fails behind changes of every kind.
func TestFailedOperationIsTakenBack(t *testing.T) {
	e := edit(t, onFile(t, mkfs(t, rhel8Variant, seedTree(t))))
	x := map[string][]byte{"user.x": make([]byte, 900)}
	must(e.Mkdir(e.Root(), "empty-dir", Attr{Mode: 0o755, Xattrs: x}))
	file := must(e.Create(e.Root(), "file", Attr{Mode: 0o755, Xattrs: x}, disk.Bytes("x")))
	before, totals, touched := snapshot(e), e.totals, len(e.touched)
	stop := errors.New("stop")
	err := e.atomically(func() error {
		for _, err := range []error{
			e.Remove(e.Root(), "empty-dir"), e.Remove(e.Root(), "file"),
			second(e.Mkdir(e.Root(), "other", Attr{})), e.Remove(must(place(e, "many", false)), "file-with-a-name-003"),
		} {
			if err != nil {
				t.Error(err)
			}
		}
		return stop
	})
	if !errors.Is(err, stop) {
		t.Fatal(err)
	}
	after := snapshot(e)
	if len(after) != len(before) || e.totals != totals || len(e.touched) != touched {
		t.Errorf("%d dirty blocks became %d, %+v %+v", len(before), len(after), totals, e.totals)
	}
	for no, b := range before {
		if after[no] != b {
			t.Errorf("block %d changed", no)
		}
	}
	if err := e.SetContent(file, disk.Bytes("y"), now); err != nil {
		t.Error(err)
	}
	flush(t, e)
	must(0, Check(e.w))
}
