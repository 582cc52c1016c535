package fat

import (
	"fmt"

	"remaster/pkg/disk"
)

// tally is what a check counted, in clusters.
type tally struct {
	used, free int64
	lost       int64 // marked as used, and part of nothing
}

// check reads every folder and follows every chain. It fails unless the copies of the
// FAT are equal, no cluster belongs to two chains, and each chain is as long as its
// file. Lost clusters do no harm, and are only counted.
func (f *FS) check() (tally, error) {
	if err := f.table.mirrors(); err != nil {
		return tally{}, err
	}
	c := checker{f, make([]uint64, (int64(f.boot.end)+63)/64), 0}
	if err := c.folder("", f.root(), 0); err != nil {
		return tally{}, err
	}
	t := tally{used: c.used}
	for n := uint32(2); n < f.boot.end; n++ {
		v, err := f.table.get(n)
		switch {
		case err != nil:
			return tally{}, err
		case v == 0 && c.seen(n):
			return tally{}, fmt.Errorf("fat: cluster %d is in use and free: %w", n, disk.ErrCorrupt)
		case v == 0:
			t.free++
		case v != f.table.eoc()-1 && !c.seen(n): // eoc-1 marks a bad cluster
			t.lost++
		}
	}
	return t, nil
}

type checker struct {
	f    *FS
	bits []uint64 // clusters that belong to something
	used int64
}

func (c *checker) seen(n uint32) bool { return c.bits[n/64]>>(n%64)&1 != 0 }

// maxDepth is the number of folders within each other that a check follows; a path of
// the 260 characters that other systems allow has fewer.
const maxDepth = 256

func (c *checker) folder(name string, e *Entry, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("fat: more than %d folders within each other: %w", maxDepth, disk.ErrUnsupported)
	}
	d, err := c.f.readDir(e)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if err := c.mark(name, d.runs); err != nil { // also ends a loop of folders
		return err
	}
	for _, e := range d.entries() {
		child := name + "/" + e.Name
		if e.IsDir() {
			err = c.folder(child, e, depth+1)
		} else {
			err = c.file(child, e)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *checker) file(name string, e *Entry) error {
	want := c.f.boot.clustersFor(e.Size)
	if want == 0 {
		if e.first != 0 {
			return fmt.Errorf("fat: %s is empty and has cluster %d: %w", name, e.first, disk.ErrCorrupt)
		}
		return nil
	}
	runs, ended, err := c.f.table.chain(e.first, want)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if !ended || count(runs) < want {
		return fmt.Errorf("fat: %s of %d bytes has not %d clusters: %w", name, e.Size, want, disk.ErrCorrupt)
	}
	return c.mark(name, runs)
}

func (c *checker) mark(name string, runs []run) error {
	c.used += count(runs)
	for _, r := range runs {
		for n := r.first; n < r.first+uint32(r.n); n++ {
			if c.seen(n) {
				return fmt.Errorf("fat: cluster %d of %s belongs to something else too: %w", n, name, disk.ErrCorrupt)
			}
			c.bits[n/64] |= 1 << (n % 64)
		}
	}
	return nil
}
