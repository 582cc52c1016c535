package ext4

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"remaster/pkg/disk"
)

var (
	modelSeed = flag.Uint64("ext4.seed", 1, "first seed of the model test")
	modelRuns = flag.Int("ext4.runs", 1, "seeds of the model test")
	modelOps  = flag.Int("ext4.ops", 250, "operations of each run of the model test")
)

// now is the time of edits in tests.
var now = time.Date(2024, 5, 6, 7, 8, 9, 123456789, time.UTC)

// object is what the model knows of an inode.
type object struct {
	ino      Ino
	mode     fs.FileMode
	uid, gid uint32
	data     []byte // content, or a link's target
	xattrs   map[string][]byte
	names    map[string]*object // of a folder
	links    int
	dev      [2]uint32
}

// model is a file system in memory beside one that is edited.
type model struct {
	t    *testing.T
	e    *Editor
	r    *rand.Rand
	root *object
	full bool // the file system has run full at least once
}

// readModel reads what is there at the beginning.
func readModel(t *testing.T, f *FS) *object {
	t.Helper()
	seen := map[Ino]*object{}
	var read func(ino Ino) *object
	read = func(ino Ino) *object {
		if o := seen[ino]; o != nil {
			return o
		}
		st, err := f.Stat(ino)
		if err != nil {
			t.Fatal(err)
		}
		o := &object{ino: ino, mode: st.Mode, uid: st.UID, gid: st.GID, links: st.Links, dev: [2]uint32{st.Major, st.Minor}}
		seen[ino] = o
		if o.xattrs, err = f.Xattrs(ino); err != nil {
			t.Fatal(err)
		}
		switch st.Mode.Type() {
		case fs.ModeDir:
			o.names = map[string]*object{}
			ents, err := f.ReadDir(ino)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range ents {
				o.names[e.Name] = read(e.Ino)
				if got, err := f.Lookup(ino, e.Name); err != nil || got != e.Ino {
					t.Fatalf("lookup of %q in %d: %d, %v", e.Name, ino, got, err)
				}
			}
		case fs.ModeSymlink:
			s, err := f.Readlink(ino)
			if err != nil {
				t.Fatal(err)
			}
			o.data = []byte(s)
		case 0:
			file, err := f.File(ino)
			if err != nil {
				t.Fatal(err)
			}
			if o.data, err = io.ReadAll(io.NewSectionReader(file, 0, file.Size())); err != nil {
				t.Fatal(err)
			}
		}
		return o
	}
	return read(f.Root())
}

// diff reports the first difference between two trees.
func diff(path string, a, b *object) error {
	if a.ino != b.ino || a.mode != b.mode || a.uid != b.uid || a.gid != b.gid || a.links != b.links || a.dev != b.dev {
		return fmt.Errorf("%s: %+v, want %+v", path, *b, *a)
	}
	if !bytes.Equal(a.data, b.data) {
		return fmt.Errorf("%s: content of %d bytes, want %d", path, len(b.data), len(a.data))
	}
	if !maps.EqualFunc(a.xattrs, b.xattrs, bytes.Equal) {
		return fmt.Errorf("%s: attributes %q, want %q", path, b.xattrs, a.xattrs)
	}
	if len(a.names) != len(b.names) {
		return fmt.Errorf("%s: %d names, want %d", path, len(b.names), len(a.names))
	}
	for _, name := range slices.Sorted(maps.Keys(a.names)) {
		c := b.names[name]
		if c == nil {
			return fmt.Errorf("%s/%s is not there", path, name)
		}
		if err := diff(path+"/"+name, a.names[name], c); err != nil {
			return err
		}
	}
	return nil
}

// pick returns a random folder, and a random name in it whose object ok accepts.
func (m *model) pick(ok func(*object) bool) (*object, string, *object) {
	for range 20 {
		d := m.root
		for m.r.IntN(3) > 0 {
			var sub []string
			for name, o := range d.names {
				if o.mode.IsDir() && name != "lost+found" {
					sub = append(sub, name)
				}
			}
			if len(sub) == 0 {
				break
			}
			slices.Sort(sub)
			d = d.names[sub[m.r.IntN(len(sub))]]
		}
		if ok == nil {
			return d, "", nil
		}
		var hits []string
		for name, o := range d.names {
			if name != "lost+found" && ok(o) {
				hits = append(hits, name)
			}
		}
		if len(hits) > 0 {
			slices.Sort(hits)
			name := hits[m.r.IntN(len(hits))]
			return d, name, d.names[name]
		}
	}
	return nil, "", nil
}

func (m *model) bytes(most int) []byte {
	b := make([]byte, m.r.IntN(1<<m.r.IntN(bitsFor(most))+1))
	for i := range b {
		b[i] = byte(m.r.Uint32())
	}
	return b
}

func bitsFor(n int) int {
	k := 1
	for 1<<k <= n {
		k++
	}
	return k
}

func (m *model) name() string {
	n := 1 + m.r.IntN(20)
	if m.r.IntN(20) == 0 {
		n = 255
	}
	if m.r.IntN(4) == 0 {
		n = min(n, 2) // names that are there, at times
	}
	var b strings.Builder
	for b.Len() < n {
		b.WriteString([]string{"a", "b", "Z", "é", "_", "9", ".x", "\xff"}[m.r.IntN(8)])
	}
	s := b.String()[:n]
	if s == "." || s == ".." {
		s = "dot"
	}
	return s
}

func (m *model) xattrs() map[string][]byte {
	out := map[string][]byte{}
	for range m.r.IntN(4) {
		name, v := m.xattr()
		out[name] = v
	}
	return out
}

func (m *model) xattr() (string, []byte) {
	if m.r.IntN(8) == 0 {
		return "system.posix_acl_access", []byte("\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x07\x00\x64\x00\x00\x00" +
			"\x04\x00\x04\x00\xff\xff\xff\xff\x10\x00\x07\x00\xff\xff\xff\xff\x20\x00\x04\x00\xff\xff\xff\xff")
	}
	name := []string{"security.selinux", "user.a", "user.longer-name", "trusted.t", "security.capability"}[m.r.IntN(5)]
	return name, m.bytes(200)
}

func (m *model) attr() (Attr, *object) {
	a := Attr{Mode: fs.FileMode(m.r.IntN(0o1000)), UID: m.r.Uint32N(3) * 70000, GID: m.r.Uint32N(3) * 70000, Xattrs: m.xattrs()}
	if m.r.IntN(3) == 0 {
		a.Mode |= fs.ModeSetuid
	}
	return a, &object{mode: a.Mode, uid: a.UID, gid: a.GID, xattrs: a.Xattrs, links: 1}
}

// done notes how an operation ended, and reports whether it changed anything. A full
// file system is no fault.
func (m *model) done(what string, err error) bool {
	m.t.Helper()
	if err != nil && !errors.Is(err, ErrNoSpace) {
		m.t.Fatalf("%s: %v", what, err)
	}
	m.full = m.full || err != nil
	return err == nil
}

// step does one random operation on both sides.
func (m *model) step() {
	isFile := func(o *object) bool { return o.mode.IsRegular() }
	all := func(*object) bool { return true }
	switch m.r.IntN(14) {
	case 0, 1, 2:
		m.create()
	case 3, 4:
		if _, name, o := m.pick(isFile); o != nil {
			data := m.bytes(200000)
			if m.done("content of "+name, m.e.SetContent(o.ino, disk.Bytes(data), now)) {
				o.data = data
			}
		}
	case 5, 6:
		if d, name, o := m.pick(all); o != nil {
			err := m.e.Remove(d.ino, name)
			if len(o.names) > 0 {
				if !errors.Is(err, ErrNotEmpty) {
					m.t.Fatalf("remove of a full folder: %v", err)
				}
				return
			}
			if m.done("remove "+name, err) {
				delete(d.names, name)
				o.links--
				if o.mode.IsDir() {
					d.links--
				}
			}
		}
	case 7:
		if _, name, o := m.pick(all); o != nil {
			a, n := m.attr()
			if m.done("attributes of "+name, m.e.SetAttr(o.ino, a)) {
				if o.mode.Type() != fs.ModeSymlink {
					o.mode = o.mode.Type() | n.mode
				}
				o.uid, o.gid, o.xattrs = n.uid, n.gid, n.xattrs
			}
		}
	case 8:
		if _, name, o := m.pick(all); o != nil {
			x, v := m.xattr()
			if m.done("attribute of "+name, m.e.SetXattr(o.ino, x, v)) {
				o.xattrs[x] = v
			}
		}
	case 9:
		if _, name, o := m.pick(func(o *object) bool { return len(o.xattrs) > 0 }); o != nil {
			x := slices.Sorted(maps.Keys(o.xattrs))[0]
			if m.done("no attribute of "+name, m.e.RemoveXattr(o.ino, x)) {
				delete(o.xattrs, x)
			}
		}
	case 10:
		_, _, o := m.pick(isFile)
		d, _, _ := m.pick(nil)
		if name := m.name(); o != nil && d.names[name] == nil && m.done("link", m.e.Link(d.ino, name, o.ino)) {
			d.names[name] = o
			o.links++
		}
	case 12, 13:
		m.rename()
	case 11:
		d, _, _ := m.pick(nil)
		for i := range m.r.IntN(60) {
			m.createIn(d, fmt.Sprintf("%s-%d", m.name()[:1], i+1000*m.r.IntN(50)))
		}
	}
}

func (m *model) rename() {
	from, old, o := m.pick(func(*object) bool { return true })
	to, _, _ := m.pick(nil)
	name := m.name()
	if o == nil || to.names[name] != nil {
		return
	}
	err := m.e.Rename(from.ino, old, to.ino, name)
	if o.holds(to) {
		if !errors.Is(err, fs.ErrInvalid) {
			m.t.Fatalf("move of a folder into itself: %v", err)
		}
		return
	}
	if m.done("rename", err) {
		delete(from.names, old)
		to.names[name] = o
		if o.mode.IsDir() {
			from.links--
			to.links++
		}
	}
}

// holds reports whether x is o or lies below it.
func (o *object) holds(x *object) bool {
	if o == x {
		return true
	}
	for _, c := range o.names {
		if c.holds(x) {
			return true
		}
	}
	return false
}

func (m *model) create() {
	d, _, _ := m.pick(nil)
	m.createIn(d, m.name())
}

func (m *model) createIn(d *object, name string) {
	a, o := m.attr()
	var err error
	switch m.r.IntN(8) {
	case 0:
		o.mode |= fs.ModeDir
		o.names, o.links = map[string]*object{}, 2
		o.ino, err = m.e.Mkdir(d.ino, name, a)
	case 1:
		o.mode = fs.ModeSymlink | 0o777
		o.data = []byte(strings.Repeat("t/", 1+m.r.IntN(100)))
		o.ino, err = m.e.Symlink(d.ino, name, string(o.data), a)
	case 2:
		o.mode |= fs.ModeDevice | fs.ModeCharDevice
		o.dev = [2]uint32{uint32(m.r.IntN(4000)), uint32(m.r.IntN(1 << 20))}
		o.ino, err = m.e.Mknod(d.ino, name, o.mode, o.dev[0], o.dev[1], a)
	default:
		o.data = m.bytes(30000)
		o.ino, err = m.e.Create(d.ino, name, a, disk.Bytes(o.data))
	}
	if d.names[name] != nil {
		if !errors.Is(err, fs.ErrExist) {
			m.t.Fatalf("create over %q: %v", name, err)
		}
		return
	}
	if !m.done("create "+name, err) {
		return
	}
	d.names[name] = o
	if o.mode.IsDir() {
		d.links++
	}
}

// seedTree is a folder for mke2fs -d.
func seedTree(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	write := func(name string, n int) {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, bytes.Repeat([]byte(name), n), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	write("etc/fstab", 10)
	write("etc/default/grub", 20)
	write("boot/grub2/grub.cfg", 1000)
	write("empty", 0)
	for i := range 150 {
		write(fmt.Sprintf("many/file-with-a-name-%03d", i), i)
	}
	for link, target := range map[string]string{"lib": "usr/lib", "long": strings.Repeat("x/", 80)} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestModelAgreesAfterRandomEdits(t *testing.T) {
	src := seedTree(t)
	for _, v := range variants {
		t.Run(v.name, func(t *testing.T) {
			for i := range *modelRuns {
				runModel(t, v, src, *modelSeed+uint64(i), *modelOps)
			}
		})
	}
}

func runModel(t *testing.T, v variant, src string, seed uint64, ops int) {
	t.Helper()
	img := mkfs(t, v, src)
	w := onFile(t, img)
	e, err := Edit(w, EditOptions{Now: now, Generation: 7})
	if err != nil {
		t.Fatal(err)
	}
	m := &model{t: t, e: e, r: rand.New(rand.NewPCG(seed, 2)), root: readModel(t, e.FS)}
	for round := range 2 {
		for range ops / 2 {
			m.step()
		}
		if err := diff("", m.root, readModel(t, e.FS)); err != nil {
			t.Fatalf("seed %d, round %d, before Flush: %v", seed, round, err)
		}
		if err := e.Flush(); err != nil {
			t.Fatalf("seed %d, round %d: %v", seed, round, err)
		}
		fsck(t, img)
		if err := Check(w); err != nil {
			t.Fatalf("seed %d, round %d: e2fsck finds nothing, but: %v", seed, round, err)
		}
		f, err := Open(w)
		if err != nil {
			t.Fatal(err)
		}
		if err := diff("", m.root, readModel(t, f)); err != nil {
			t.Fatalf("seed %d, round %d, after Flush: %v", seed, round, err)
		}
	}
}
