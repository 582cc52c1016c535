package ext4

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"

	"remaster/internal/oracle"
	"remaster/pkg/disk"
)

// hugeDir fills a folder with names and checks the result with the tools.
func hugeDir(t *testing.T, v variant, names int, nameLen int) string {
	t.Helper()
	img := mkfs(t, v, "")
	e := edit(t, onFile(t, img))
	dir := must(e.Mkdir(e.Root(), "d", Attr{Mode: 0o755}))
	first := must(e.Create(dir, "first", Attr{Mode: 0o644}, disk.Bytes(nil)))
	name := func(i int) string { return fmt.Sprintf("%0*d", nameLen, i) }
	for i := range names {
		// Links cost a name only.
		if err := e.Link(dir, name(i), first); err != nil {
			t.Fatal(err)
		}
	}
	flush(t, e)
	fsck(t, img)
	if err := Check(e.w); err != nil {
		t.Fatal(err)
	}
	f := must(Open(e.w))
	for i := range names {
		if ino, err := f.Lookup(dir, name(i)); err != nil || ino != first {
			t.Fatalf("lookup of %s: %d, %v", name(i), ino, err)
		}
	}
	if _, err := f.Lookup(dir, name(names)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("lookup of a name that is not there: %v", err)
	}
	// Every third name goes again, and some new ones come.
	for i := 0; i < names; i += 3 {
		if err := e.Remove(dir, name(i)); err != nil {
			t.Fatal(err)
		}
	}
	for i := names; i < names+500; i++ {
		if err := e.Link(dir, name(i), first); err != nil {
			t.Fatal(err)
		}
	}
	flush(t, e)
	fsck(t, img)
	if got := len(must(must(Open(e.w)).ReadDir(dir))); got != 1+names-(names+2)/3+500 {
		t.Errorf("%d names", got)
	}
	return img
}

func TestIndexGrowsToTwoLevels(t *testing.T) {
	v := variant{"1k", []string{"-b", "1024", "-O", rhel8}, 32}
	img := hugeDir(t, v, 12000, 40)
	if out := oracle.Run(t, "debugfs", "-R", "htree_dump /d", img); !strings.Contains(out, "Indirect levels: 1") {
		t.Errorf("the index has not two levels:\n%.400s", out)
	}
}

func TestEveryHashVersion(t *testing.T) {
	for _, alg := range []string{"legacy", "half_md4", "tea"} {
		for _, sign := range []string{"1", "2"} {
			t.Run(alg+sign, func(t *testing.T) {
				img := mkfs(t, variant{"", []string{"-b", "1024", "-O", rhel8}, 16}, "")
				oracle.Run(t, "tune2fs", "-E", "hash_alg="+alg, img)
				oracle.Run(t, "debugfs", "-w", "-R", "ssv flags "+sign, img)
				e := edit(t, onFile(t, img))
				dir := must(e.Mkdir(e.Root(), "d", Attr{Mode: 0o755}))
				for i := range 200 {
					must(e.Create(dir, fmt.Sprintf("näme-\xff-%d-%s", i, strings.Repeat("y", i)), Attr{}, disk.Bytes(nil)))
				}
				flush(t, e)
				fsck(t, img)
			})
		}
	}
}

func TestLinearFolderWithoutIndexGrows(t *testing.T) {
	hugeDir(t, variant{"", []string{"-b", "1024", "-O", rhel8 + ",^dir_index"}, 16}, 300, 30)
	hugeDir(t, variant{"", []string{"-t", "ext2", "-b", "1024", "-O", "none"}, 16}, 300, 30)
}

// TestLinkCountOfFolderOverflows makes a folder with 65,000 subfolders out of one that
// is said to have nearly as many.
func TestLinkCountOfFolderOverflows(t *testing.T) {
	for _, v := range []variant{{"", []string{"-b", "1024", "-O", rhel8}, 16}, {"", []string{"-b", "1024", "-O", rhel8 + ",^dir_nlink"}, 16}} {
		e := edit(t, onFile(t, mkfs(t, v, "")))
		d := must(e.Mkdir(e.Root(), "d", Attr{Mode: 0o755}))
		put16(must(e.edit(d)).raw, iLinks, maxLinks-2)
		must(e.Mkdir(d, "a", Attr{Mode: 0o755}))
		_, err := e.Mkdir(d, "b", Attr{Mode: 0o755})
		if strings.Contains(v.args[3], "^dir_nlink") {
			if !errors.Is(err, ErrNoSpace) {
				t.Errorf("without dir_nlink: %v", err)
			}
			continue
		}
		must(e.Mkdir(d, "c", Attr{Mode: 0o755}))
		must(0, e.Remove(d, "a"))
		if n := must(e.Stat(d)).Links; err != nil || n != 1 {
			t.Errorf("%d links, %v", n, err)
		}
	}
}

// TestEqualHashesAcrossLeaves makes a leaf split between two names of one hash.
func TestEqualHashesAcrossLeaves(t *testing.T) {
	img := mkfs(t, variant{"", []string{"-b", "1024", "-O", rhel8}, 16}, "")
	e := edit(t, onFile(t, img))
	prefix := strings.Repeat("p", 225)
	name := func(i int) string { return fmt.Sprintf("%s%06d", prefix, i) }
	hash := func(i int) uint32 {
		h, _, _ := e.sb.dirHash(e.sb.defHash, []byte(name(i)))
		return h
	}
	seen := map[uint32]int{}
	splits := 0
	for i := range 250000 {
		h := hash(i)
		j, ok := seen[h]
		seen[h] = i
		if !ok || h < 1<<20 || h > 1<<32-1<<20 {
			continue
		}
		// Four such names fill a leaf: one below, the two, one above.
		low, high := 300000, 300000
		for hash(low) >= h {
			low++
		}
		for hash(high) <= h {
			high++
		}
		dir := must(e.Mkdir(e.Root(), fmt.Sprint(i), Attr{Mode: 0o755}))
		for _, k := range []int{low, i, j, high} {
			must(e.Create(dir, name(k), Attr{}, disk.Bytes(nil)))
		}
		must(e.Create(dir, "x"+prefix, Attr{}, disk.Bytes(nil)))
		d := must(e.dir(dir))
		if n, _, _, err := d.indexRoot(); err != nil || n.hash(1) == h|hashContinued {
			splits++
		}
		for _, k := range []int{low, i, j, high} {
			if _, err := e.Lookup(dir, name(k)); err != nil {
				t.Error(err)
			}
		}
	}
	if splits == 0 {
		t.Error("no leaf was split between equal hashes")
	}
	flush(t, e)
	fsck(t, img)
	must(0, Check(e.w))
}

func TestMoveFolderKeepsCounts(t *testing.T) {
	img := mkfs(t, rhel8Variant, "")
	e := edit(t, onFile(t, img))
	a := must(e.Mkdir(e.Root(), "a", Attr{Mode: 0o755}))
	b := must(e.Mkdir(a, "b", Attr{Mode: 0o755}))
	c := must(e.Mkdir(b, "c", Attr{Mode: 0o755}))
	if err := e.Rename(e.Root(), "a", c, "a"); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("a folder moves into itself: %v", err)
	}
	if err := e.Rename(a, "b", e.Root(), "b"); err != nil {
		t.Fatal(err)
	}
	flush(t, e)
	fsck(t, img)
	if up := must(e.Lookup(b, "..")); up != e.Root() {
		t.Errorf(`".." is %d`, up)
	}
	must(0, Check(e.w))
}
