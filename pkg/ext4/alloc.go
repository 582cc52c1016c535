package ext4

// allocBlocks takes n free blocks, near goal and in as few pieces as can be found
// without looking at every group for the best fit. Pieces are in the order in which
// they are to be filled.
func (e *Editor) allocBlocks(goal, n uint64) ([]span, error) {
	if n == 0 {
		return nil, nil
	}
	if n > e.freeBlocks || e.freeBlocks-n < e.floor {
		return nil, noSpace("blocks", n)
	}
	var out []span
	// A piece of a quarter of a group is long enough; shorter ones are taken only
	// when there are none such.
	least := uint64(e.sb.blocksPerGroup / 4)
	for n > 0 {
		least = min(least, n)
		s, err := e.findFree(goal, least, n)
		if err != nil {
			return nil, err
		}
		if s.n == 0 {
			if least == 1 {
				return nil, corrupt(0, 0, "fewer free blocks than the descriptors say")
			}
			least /= 2
			continue
		}
		if err := e.takeBlocks(s); err != nil {
			return nil, err
		}
		if k := len(out); k > 0 && out[k-1].first+out[k-1].n == s.first {
			out[k-1].n += s.n
		} else {
			out = append(out, s)
		}
		n -= s.n
		goal = s.first + s.n
	}
	return out, nil
}

// findFree finds a run of at least least free blocks and returns no more than most of
// them. Groups that were initialised come first, in the order from goal's on.
func (e *Editor) findFree(goal, least, most uint64) (span, error) {
	if !e.sb.validRange(goal, 1) {
		goal = max(e.sb.firstData, 1)
	}
	home, at := e.sb.groupOf(goal)
	for _, uninit := range [...]bool{false, true} {
		for k := range e.sb.groups {
			g := uint32((uint64(home) + uint64(k)) % uint64(e.sb.groups))
			d, err := e.group(g)
			if err != nil {
				return span{}, err
			}
			if uint64(d.freeBlocks()) < least || d.has(bgBlockUninit) != uninit {
				continue
			}
			b, err := e.blockBits(d)
			if err != nil {
				return span{}, err
			}
			n := e.sb.groupBlocks(g)
			from := uint32(0)
			if k == 0 {
				from = at
			}
			s, ok := freeRun(b, from, n, least, most)
			if !ok && from > 0 {
				s, ok = freeRun(b, 0, n, least, most)
			}
			if ok {
				s.first += e.sb.groupFirst(g)
				return s, nil
			}
		}
	}
	return span{}, nil
}

// freeRun finds the first run of at least least clear bits from bit i on, below end.
func freeRun(b []byte, i, end uint32, least, most uint64) (span, bool) {
	for i < end {
		i = nextBit(b, i, end, false)
		stop := nextBit(b, i, end, true)
		if n := uint64(stop - i); n >= least && n > 0 {
			return span{uint64(i), min(n, most)}, true
		}
		i = stop
	}
	return span{}, false
}

// takeBlocks marks the blocks of s, which lie in one group and are free, as used.
func (e *Editor) takeBlocks(s span) error {
	if meta, err := e.isMeta(s.first, s.n); err != nil || meta {
		if meta {
			err = corrupt(0, s.first, "a bitmap says that metadata is free")
		}
		return err
	}
	g, i := e.sb.groupOf(s.first)
	d, b, err := e.editBlockBits(g)
	if err != nil {
		return err
	}
	if uint64(d.freeBlocks()) < s.n {
		return corrupt(0, 0, "group %d has more free blocks than its descriptor says", g)
	}
	setBits(b, i, uint32(s.n))
	d.setCount(gdFreeBlocks, gdFreeBlocksHi, d.freeBlocks()-uint32(s.n))
	e.freeBlocks -= s.n
	for k := range s.n {
		e.c.drop(s.first + k)
	}
	return nil
}

// editBlockBits returns the block bitmap of a group for changing, with its descriptor.
// One that was never initialised is now.
func (e *Editor) editBlockBits(g uint32) (group, []byte, error) {
	d, err := e.editGroup(g)
	if err != nil {
		return d, nil, err
	}
	if !d.has(bgBlockUninit) {
		if _, err := e.blockBits(d); err != nil {
			return d, nil, err
		}
		b, err := e.c.edit(d.blockBitmap(), tag{kindBlockBitmap, g}, nil)
		return d, b, err
	}
	b := e.c.fresh(d.blockBitmap(), tag{kindBlockBitmap, g})
	if err := e.initBlockBits(d, b); err != nil {
		return d, nil, err
	}
	if n := zeroBits(b, e.sb.groupBlocks(g)); n != d.freeBlocks() {
		return d, nil, corrupt(0, 0, "group %d is said to have %d free blocks and has %d", g, d.freeBlocks(), n)
	}
	d.clearFlag(bgBlockUninit)
	return d, b, nil
}

// freeSpan gives blocks back.
func (e *Editor) freeSpan(s span) error {
	if s.n == 0 {
		return nil
	}
	if e.later != nil {
		*e.later = append(*e.later, s)
		return nil
	}
	if meta, err := e.isMeta(s.first, s.n); err != nil || meta {
		if meta {
			err = corrupt(0, s.first, "a file has metadata of the file system among its blocks")
		}
		return err
	}
	for s.n > 0 {
		g, i := e.sb.groupOf(s.first)
		n := min(s.n, uint64(e.sb.groupBlocks(g)-i))
		d, b, err := e.editBlockBits(g)
		if err != nil {
			return err
		}
		if nextBit(b, i, i+uint32(n), false) != i+uint32(n) {
			return corrupt(0, s.first, "a block that is in use is marked free")
		}
		clearBits(b, i, uint32(n))
		d.setCount(gdFreeBlocks, gdFreeBlocksHi, d.freeBlocks()+uint32(n))
		e.freeBlocks += n
		for k := range n {
			e.c.drop(s.first + k)
		}
		s = span{s.first + n, s.n - n}
	}
	return nil
}

// freeMap gives back all blocks of a map.
func (e *Editor) freeMap(m *fileMap) error {
	for _, r := range m.runs {
		if err := e.freeSpan(span{r.phys, r.n}); err != nil {
			return err
		}
	}
	for _, no := range m.meta {
		if err := e.freeSpan(span{no, 1}); err != nil {
			return err
		}
	}
	return nil
}

// allocInode takes a free inode, in the group of the folder near or one behind it, and
// returns its zeroed bytes.
func (e *Editor) allocInode(near Ino, isDir bool) (inode, error) {
	if e.freeInodes == 0 {
		return inode{}, noSpace("inodes", 1)
	}
	home := (uint32(near) - 1) / e.sb.inodesPerGroup
	for _, uninit := range [...]bool{false, true} {
		for k := range e.sb.groups {
			g := uint32((uint64(home) + uint64(k)) % uint64(e.sb.groups))
			d, err := e.group(g)
			if err != nil {
				return inode{}, err
			}
			if d.freeInodes() == 0 || d.has(bgInodeUninit) != uninit {
				continue
			}
			return e.takeInode(g, isDir)
		}
	}
	return inode{}, corrupt(0, 0, "fewer free inodes than the descriptors say")
}

func (e *Editor) takeInode(g uint32, isDir bool) (inode, error) {
	s := &e.sb
	d, err := e.editGroup(g)
	if err != nil {
		return inode{}, err
	}
	bits, err := e.editInodeBits(d)
	if err != nil {
		return inode{}, err
	}
	from := uint32(0)
	if g == 0 {
		from = s.firstIno - 1
	}
	i := nextBit(bits, from, s.inodesPerGroup, false)
	if i == s.inodesPerGroup {
		return inode{}, corrupt(0, 0, "group %d has no free inode, but its descriptor says so", g)
	}
	setBits(bits, i, 1)
	d.setCount(gdFreeInodes, gdFreeInodesHi, d.freeInodes()-1)
	if isDir {
		d.setCount(gdUsedDirs, gdUsedDirsHi, d.usedDirs()+1)
	}
	e.freeInodes--
	ino := Ino(g*s.inodesPerGroup + i + 1)
	if s.groupCsum() {
		if err := e.growTable(d, i); err != nil {
			return inode{}, err
		}
	}
	in, err := e.inodeSlot(ino, e.c.edit)
	if err != nil {
		return in, err
	}
	if in.links() != 0 {
		return in, corrupt(ino, 0, "an inode that is in use is marked free")
	}
	clear(in.raw)
	e.touch(ino)
	return in, nil
}

// editInodeBits returns the inode bitmap of a group for changing. One that was never
// initialised is now, and the block bitmap with it, as the kernel does.
func (e *Editor) editInodeBits(d group) ([]byte, error) {
	init := d.has(bgInodeUninit)
	b, err := e.inodeBits(d)
	if err != nil {
		return nil, err
	}
	no := d.inodeBitmap()
	if !init {
		return e.c.edit(no, tag{kindInodeBitmap, d.g}, nil)
	}
	fresh := e.c.fresh(no, tag{kindInodeBitmap, d.g})
	copy(fresh, b)
	d.clearFlag(bgInodeUninit)
	// Nothing of the table was in use, whatever the count says.
	d.setCount(gdItableUnused, gdItableUnusedHi, e.sb.inodesPerGroup)
	_, _, err = e.editBlockBits(d.g)
	return fresh, err
}

// growTable makes the i-th inode of a group part of what is used of its inode table,
// and clears what may never have been written there.
func (e *Editor) growTable(d group, i uint32) error {
	s := &e.sb
	used := s.inodesPerGroup - d.itableUnused()
	if i < used {
		return nil
	}
	if le16(d.raw, gdFlags)&bgInodeZeroed == 0 {
		per := uint32(s.blockSize / s.inodeSize)
		end := min((i/per+1)*per, s.inodesPerGroup)
		for k := used; k < end; k++ {
			in, err := e.inodeSlot(Ino(d.g*s.inodesPerGroup+k+1), e.c.edit)
			if err != nil {
				return err
			}
			clear(in.raw)
		}
	}
	d.setCount(gdItableUnused, gdItableUnusedHi, s.inodesPerGroup-i-1)
	return nil
}

// freeInode gives an inode back whose blocks are given back already.
func (e *Editor) freeInode(in inode) error {
	s := &e.sb
	g, i := (uint32(in.ino)-1)/s.inodesPerGroup, (uint32(in.ino)-1)%s.inodesPerGroup
	d, err := e.editGroup(g)
	if err != nil {
		return err
	}
	b, err := e.editInodeBits(d)
	if err != nil {
		return err
	}
	if !bit(b, i) {
		return corrupt(in.ino, 0, "an inode that is in use is marked free")
	}
	clearBits(b, i, 1)
	d.setCount(gdFreeInodes, gdFreeInodesHi, d.freeInodes()+1)
	if in.isDir() {
		if d.usedDirs() == 0 {
			return corrupt(in.ino, 0, "group %d is said to have no folders", g)
		}
		d.setCount(gdUsedDirs, gdUsedDirsHi, d.usedDirs()-1)
	}
	e.freeInodes++
	put16(in.raw, iLinks, 0)
	in.setSize(0)
	if err := in.setBlocks512(0); err != nil {
		return err
	}
	in.setFileACL(0)
	clear(in.root())
	if in.flags()&flExtents != 0 {
		// e2fsck doubts all inodes of a block in which many have no tree that can be one.
		putExtentNode(in.root(), nil, extRootMax, 0)
	}
	// A deletion time below the number of inodes would be taken for a link of the
	// orphan list.
	put32(in.raw, iDtime, uint32(min(max(e.o.Now.Unix(), int64(s.inodes)+1), 1<<32-1)))
	return nil
}

// goal returns the block from which on data of an inode are searched room for.
func (e *Editor) goal(ino Ino) uint64 {
	return e.sb.groupFirst((uint32(ino) - 1) / e.sb.inodesPerGroup)
}

// runsOf lays spans out as one file without holes.
func runsOf(spans []span) []run {
	var out []run
	var log uint64
	for _, s := range spans {
		out = append(out, run{log: log, n: s.n, phys: s.first})
		log += s.n
	}
	return out
}
