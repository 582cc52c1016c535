package qcow2

import (
	"fmt"

	"remaster/pkg/disk"
)

// maxCheckClusters bounds the memory of a check, 2 bytes a cluster.
const maxCheckClusters = 1 << 26

// Usage is how the clusters of an image's file are used.
type Usage struct {
	Clusters int64 // of the file, the last one perhaps incomplete
	Used     int64 // referenced
	// Leaked clusters have a refcount that is higher than the number of references.
	// They waste space and are no danger. A cluster of a persistent bitmap counts
	// as leaked.
	Leaked int64
}

// Check opens an image and holds every refcount against the references that there
// are, and every copied flag against the refcount. It finds clusters that are used
// twice, by metadata or data, and used ones that the refcounts call free. Data is not
// read. Errors are those of [Open]; an image with internal snapshots is refused.
func Check(b disk.Blob) (Usage, error) {
	m, err := Open(b)
	if err != nil {
		return Usage{}, err
	}
	if m.snapshots > 0 {
		return Usage{}, unsupported(remedyFlatten, "check of an image with %d internal snapshots", m.snapshots)
	}
	n := m.roundUp(m.fileSize) >> m.clusterBits
	if n > maxCheckClusters {
		return Usage{}, unsupported(remedyFlatten, "check of an image of %d clusters", n)
	}
	c := &checker{m: m, refs: make([]uint16, n)}
	if err := c.references(); err != nil {
		return Usage{}, err
	}
	u := Usage{Clusters: n}
	for _, r := range c.refs {
		if r != 0 {
			u.Used++
		}
	}
	u.Leaked, err = c.compare()
	return u, err
}

// checker counts the references to each cluster of the file.
type checker struct {
	m *Image
	// refs is, for each cluster, 0 if it is free, the number of references to
	// compressed data in it, or sole with its use and its copied flag.
	refs  []uint16
	table []int64
}

// Values of checker.refs.
const (
	sole    = 0xff00
	copied  = 0x0080
	flagged = 0x0040 // the reference has a copied flag, set or not
	useMask = 0x003f
)

// What a cluster that has one reference is used for.
const (
	useData = iota
	useL2
	useBlock
	useHeader // and the other regions, in their order
)

func useName(m *Image, ref uint16) string {
	switch use := int(ref & useMask); {
	case ref < sole:
		return "compressed data"
	case use == useData:
		return "data"
	case use == useL2:
		return "L2 table"
	case use == useBlock:
		return "refcount block"
	default:
		return m.used[use-useHeader].name
	}
}

// take marks the cluster at off, which lies within the file, as used once.
func (c *checker) take(off int64, ref uint16) error {
	i := off >> c.m.clusterBits
	if old := c.refs[i]; old != 0 {
		return corrupt(off, "cluster is used twice: %s and %s", useName(c.m, old), useName(c.m, sole|ref))
	}
	c.refs[i] = sole | ref
	return nil
}

// takePacked marks the clusters of compressed data as used once more.
func (c *checker) takePacked(r disk.Range) error {
	for i := r.Off >> c.m.clusterBits; i <= (r.End()-1)>>c.m.clusterBits; i++ {
		if c.refs[i] >= sole-1 {
			return corrupt(i<<c.m.clusterBits, "cluster is used twice or too often: %s and compressed data", useName(c.m, c.refs[i]))
		}
		c.refs[i]++
	}
	return nil
}

// references visits everything that the image uses.
func (c *checker) references() error {
	m := c.m
	for k, r := range m.used {
		for off := r.Off; off < r.End(); off += m.clusterSize {
			if err := c.take(off, uint16(useHeader+k)); err != nil {
				return err
			}
		}
	}
	var err error
	if c.table, err = m.readRefTable(); err != nil {
		return err
	}
	for _, off := range c.table {
		if off != 0 {
			if err := c.take(off, useBlock); err != nil {
				return err
			}
		}
	}
	for i, e := range m.l1 {
		if e == 0 {
			continue
		}
		if err := c.take(int64(e&entryOffset), useL2|flag(e)); err != nil {
			return err
		}
		t, err := m.table(int64(i))
		if err != nil {
			return err
		}
		if err := c.tableReferences(t); err != nil {
			return err
		}
	}
	return nil
}

func (c *checker) tableReferences(t []byte) error {
	for ; len(t) > 0; t = t[8:] {
		e := be.Uint64(t)
		switch {
		case e&entryCompressed != 0:
			if err := c.takePacked(c.m.packed(e)); err != nil {
				return err
			}
		case e&entryOffset != 0:
			if err := c.take(int64(e&entryOffset), useData|flag(e)); err != nil {
				return err
			}
		}
	}
	return nil
}

func flag(e uint64) uint16 {
	if e&entryCopied != 0 {
		return flagged | copied
	}
	return flagged
}

// compare holds the refcounts against the references and returns the number of
// clusters that have more than they need.
func (c *checker) compare() (leaked int64, err error) {
	m := c.m
	block, per := make([]byte, m.clusterSize), int64(1)<<m.refBlockBits()
	for k := int64(0); k < int64(len(c.table)) || k*per < int64(len(c.refs)); k++ {
		refs := c.refs[min(k*per, int64(len(c.refs))):min((k+1)*per, int64(len(c.refs)))]
		if k < int64(len(c.table)) && c.table[k] != 0 {
			if err := disk.ReadFull(m.b, block, c.table[k]); err != nil {
				return 0, fmt.Errorf("qcow2: refcount block %d: %w", k, err)
			}
		} else if len(refs) == 0 {
			continue // most of the table
		} else {
			clear(block)
		}
		for i := range per {
			count, ref := m.refcount(block, i), uint16(0)
			if i < int64(len(refs)) {
				ref = refs[i]
			}
			if count == 0 && ref == 0 {
				continue
			}
			leak, err := c.compareOne(count, ref, (k*per+i)<<m.clusterBits)
			if err != nil {
				return 0, err
			}
			if leak {
				leaked++
			}
		}
	}
	return leaked, nil
}

// compareOne judges the refcount of the cluster at off.
func (c *checker) compareOne(count uint64, ref uint16, off int64) (leak bool, err error) {
	want := uint64(ref)
	if ref >= sole {
		want = 1
	}
	if count < want {
		return false, corrupt(off, "%s has refcount %d with %d references", useName(c.m, ref), count, want)
	}
	if ref >= sole && ref&flagged != 0 && (ref&copied != 0) != (count == 1) {
		return false, corrupt(off, "copied flag of the %s contradicts refcount %d", useName(c.m, ref), count)
	}
	return count > want, nil
}
