package ext4

import (
	"fmt"
	"slices"

	"remaster/pkg/disk"
)

// kind is what a block of metadata is used as. A block that is used as two kinds, or
// by two owners, is a fault of the image.
type kind uint8

const (
	kindSuper kind = iota + 1
	kindDescriptors
	kindBlockBitmap // owner: group
	kindInodeBitmap // owner: group
	kindInodeTable  // owner: group
	kindExtent      // owner: inode
	kindIndirect    // owner: inode
	kindDir         // owner: inode; a leaf or an index node
	kindSymlink     // owner: inode
	kindXattr
	kindOrphans // a block of the orphan file
)

// tag says what a block is used as, and by which inode or group.
type tag struct {
	kind  kind
	owner uint32
}

// block is the copy of one block. Its bytes may be kept by readers until the next
// edit of the same block.
type block struct {
	data  []byte
	tag   tag  // what it was verified as, or, if dirty, what it is sealed as
	dirty bool // differs, perhaps, from the disk; trusted, and sealed at Flush
}

// cache holds blocks of metadata: the clean ones up to a limit, all dirty ones.
type cache struct {
	d     disk.Blob
	size  int
	m     map[uint64]*block
	clean int
	limit int // clean blocks

	zone []span // see FS.metaZone

	// undo has the former state of each block that the running operation has
	// changed; nil stands for one that was not dirty. It is nil between operations.
	undo map[uint64]*block
}

// cacheBytes is the memory for clean blocks.
const cacheBytes = 16 << 20

func newCache(d disk.Blob, size int) *cache {
	return &cache{d: d, size: size, m: map[uint64]*block{}, limit: cacheBytes / size}
}

// read returns the bytes of a block of metadata for reading. verify is called on what
// comes from the disk and was not verified for the same use before.
func (c *cache) read(no uint64, t tag, verify func(b []byte) error) ([]byte, error) {
	b := c.m[no]
	if b == nil {
		data := make([]byte, c.size)
		if err := disk.ReadFull(c.d, data, int64(no)*int64(c.size)); err != nil {
			return nil, fmt.Errorf("ext4: block %d: %w", no, err)
		}
		if c.clean >= c.limit {
			c.evict()
		}
		b = &block{data: data}
		c.m[no] = b
		c.clean++
	}
	if b.tag == t {
		return b.data, nil
	}
	if b.dirty {
		return nil, corrupt(0, no, "block is used twice")
	}
	if verify != nil {
		if err := verify(b.data); err != nil {
			return nil, err
		}
	}
	b.tag = t
	return b.data, nil
}

// evict drops every clean block. It happens once in cacheBytes read, so that nothing
// finer pays.
func (c *cache) evict() {
	for no, b := range c.m {
		if !b.dirty {
			delete(c.m, no)
		}
	}
	c.clean = 0
}

// edit is read for a block that will be changed through the bytes returned.
func (c *cache) edit(no uint64, t tag, verify func(b []byte) error) ([]byte, error) {
	if _, err := c.read(no, t, verify); err != nil {
		return nil, err
	}
	b := c.m[no]
	c.save(no)
	if !b.dirty {
		b.dirty = true
		c.clean--
	}
	return b.data, nil
}

// fresh returns the zeroed bytes of a block that is taken into use.
func (c *cache) fresh(no uint64, t tag) []byte {
	c.save(no)
	if b := c.m[no]; b != nil && !b.dirty {
		c.clean--
	}
	b := &block{data: make([]byte, c.size), tag: t, dirty: true}
	c.m[no] = b
	return b.data
}

// drop forgets a block that is no longer in use: it is not written out.
func (c *cache) drop(no uint64) {
	b := c.m[no]
	if b == nil {
		return
	}
	c.save(no)
	if !b.dirty {
		c.clean--
	}
	delete(c.m, no)
}

// save keeps the state of a block before the running operation.
func (c *cache) save(no uint64) {
	if c.undo == nil {
		return
	}
	if _, ok := c.undo[no]; ok {
		return
	}
	var old *block
	if b := c.m[no]; b != nil && b.dirty {
		old = &block{slices.Clone(b.data), b.tag, true}
	}
	c.undo[no] = old
}

// begin starts an operation, commit ends it and rollback takes it back.
func (c *cache) begin()  { c.undo = map[uint64]*block{} }
func (c *cache) commit() { c.undo = nil }
func (c *cache) rollback() {
	for no, old := range c.undo {
		if b := c.m[no]; b != nil && !b.dirty {
			c.clean--
		}
		delete(c.m, no)
		if old != nil {
			c.m[no] = old
		}
	}
	c.undo = nil
}

// dirty returns the numbers of the dirty blocks, in order.
func (c *cache) dirty() []uint64 {
	var out []uint64
	for no, b := range c.m {
		if b.dirty {
			out = append(out, no)
		}
	}
	slices.Sort(out)
	return out
}
