package fat

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"remaster/internal/oracle"
	"remaster/pkg/disk"
)

var testTime = time.Date(2026, 3, 4, 5, 6, 8, 0, time.UTC)

// shapes are volumes that mkfs.vfat makes: every type, sector and cluster sizes.
var shapes = map[string]struct {
	size int64
	args []string
}{
	"fat12":     {8 << 20, []string{"-F", "12"}},
	"fat12tiny": {512 << 10, []string{"-F", "12", "-r", "16", "-s", "1"}},
	"fat16":     {64 << 20, []string{"-F", "16"}},
	"fat16one":  {20 << 20, []string{"-F", "16", "-f", "1"}},
	"fat32":     {64 << 20, []string{"-F", "32", "-s", "1"}},
	"fat32big":  {300 << 20, []string{"-F", "32", "-s", "8"}},
	"fat32-4k":  {300 << 20, []string{"-F", "32", "-S", "4096", "-s", "1"}},
}

// volume makes a volume in a file.
func volume(tb testing.TB, shape string) string {
	tb.Helper()
	s := shapes[shape]
	p := filepath.Join(tb.TempDir(), shape+".img")
	f, err := os.Create(p)
	if err == nil {
		err = errors.Join(f.Truncate(s.size), f.Close())
	}
	if err != nil {
		tb.Fatal(err)
	}
	oracle.Run(tb, "mkfs.vfat", append(slices.Clone(s.args), "-i", "1a2b3c4d", "-n", "EFI", p)...)
	return p
}

// put copies content into the volume with mtools.
func put(tb testing.TB, img, name string, content []byte) {
	tb.Helper()
	r := oracle.TryInput(tb, content, "mcopy", "-i", img, "-", "::"+name)
	if r.Code != 0 {
		tb.Fatalf("mcopy %s: %s", name, r.Stderr)
	}
}

func mkdirs(tb testing.TB, img string, names ...string) {
	tb.Helper()
	for _, n := range names {
		oracle.Run(tb, "mmd", "-i", img, "::"+n)
	}
}

// get reads a file of the volume with mtools.
func get(tb testing.TB, img, name string) []byte {
	tb.Helper()
	return []byte(oracle.Run(tb, "mtype", "-i", img, "::"+name))
}

func fsck(tb testing.TB, img string) {
	tb.Helper()
	oracle.Run(tb, "fsck.vfat", "-n", img)
}

// onFile is a file as a disk that can be written.
type onFile struct {
	disk.Disk
	*os.File
}

type sized struct {
	*os.File
	size int64
}

func (f sized) Size() int64 { return f.size }

func (f onFile) ReadAt(p []byte, off int64) (int, error) { return f.File.ReadAt(p, off) }

func openDisk(tb testing.TB, img string) disk.Writable {
	tb.Helper()
	f, err := os.OpenFile(img, os.O_RDWR, 0)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = f.Close() })
	st, err := f.Stat()
	if err != nil {
		tb.Fatal(err)
	}
	return onFile{disk.AsDisk(sized{f, st.Size()}), f}
}

// edit changes the volume in the file and flushes it.
func edit(tb testing.TB, img string, change func(e *Editor)) {
	tb.Helper()
	e, err := Edit(openDisk(tb, img))
	if err != nil {
		tb.Fatal(err)
	}
	change(e)
	if err := e.Flush(); err != nil {
		tb.Fatal(err)
	}
}

func ok(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

func pattern(n int) disk.Bytes {
	p := make(disk.Bytes, n)
	for i := range p {
		p[i] = byte(i*7 + i/251)
	}
	return p
}

func read(tb testing.TB, f *FS, name string) []byte {
	tb.Helper()
	e, err := f.Lookup(name)
	ok(tb, err)
	b, err := f.File(e)
	ok(tb, err)
	p := make([]byte, b.Size())
	if len(p) > 0 {
		ok(tb, disk.ReadFull(b, p, 0))
	}
	return p
}

func TestReadWhatMtoolsWrote(t *testing.T) {
	for shape := range shapes {
		t.Run(shape, func(t *testing.T) {
			img := volume(t, shape)
			mkdirs(t, img, "/EFI", "/EFI/alinux", "/EFI/a folder with a long name")
			files := map[string][]byte{
				"/EFI/alinux/grub.cfg":                          pattern(5000),
				"/EFI/alinux/SHIMX64.EFI":                       pattern(70000),
				"/EFI/alinux/empty":                             nil,
				"/EFI/a folder with a long name/and a file.txt": []byte("y"),
				"/README": []byte("x"),
				"/EFI/" + strings.Repeat("n", 200) + ".long": pattern(513),
			}
			for name, data := range files {
				put(t, img, name, data)
			}
			f, err := Open(openDisk(t, img))
			ok(t, err)
			for name, want := range files {
				if got := read(t, f, name); !bytes.Equal(got, want) {
					t.Errorf("%s: %d bytes, want %d", name, len(got), len(want))
				}
			}
			if got := read(t, f, "/efi/ALINUX/Grub.CFG"); len(got) != 5000 {
				t.Error("another case is not found")
			}
			es, err := f.ReadDir("/EFI/alinux")
			ok(t, err)
			var names []string
			for _, e := range es {
				names = append(names, e.Name)
			}
			if got := strings.Join(names, " "); got != "SHIMX64.EFI empty grub.cfg" {
				t.Errorf("listing: %s", got)
			}
			for _, name := range []string{"/none", "/EFI/none/x", "/README/x"} {
				if _, err := f.Lookup(name); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("%s: %v", name, err)
				}
			}
			info, err := f.Info()
			ok(t, err)
			want := strings.ToUpper(shape[:5])
			if info.UUID != "1A2B-3C4D" || info.Label != "EFI" || info.Type != want || info.Dirty {
				t.Errorf("%+v, want %s", info, want)
			}
		})
	}
}

func TestEditIsCleanToFsckAndReadableByMtools(t *testing.T) {
	for shape := range shapes {
		t.Run(shape, func(t *testing.T) {
			img := volume(t, shape)
			mkdirs(t, img, "/EFI", "/EFI/alinux")
			shim := pattern(70000)
			put(t, img, "/EFI/alinux/shimx64.efi", shim)
			put(t, img, "/EFI/alinux/grub.cfg", []byte("short\n"))
			put(t, img, "/EFI/alinux/grubenv", bytes.Repeat([]byte("#"), 1024))
			put(t, img, "/EFI/alinux/shrink", pattern(9000))
			put(t, img, "/EFI/alinux/fill", nil)
			put(t, img, "/gone", pattern(3000))
			want := map[string]disk.Bytes{
				"/EFI/alinux/grub.cfg":   pattern(9000),
				"/EFI/alinux/grubenv":    pattern(1024),
				"/EFI/alinux/shrink":     pattern(10),
				"/EFI/alinux/fill":       pattern(4097),
				"/EFI/new dir/x":         pattern(1),
				"/EFI/new dir/.dotfile":  pattern(700),
				"/EFI/new dir/empty":     nil,
				"/EFI/new dir/UPPER.TXT": pattern(33),
			}
			for i := range 40 { // makes the folder longer
				want[fmt.Sprintf("/EFI/new dir/a rather long name %02d.conf", i)] = pattern(i)
			}
			edit(t, img, func(e *Editor) {
				ok(t, e.Remove("/GONE"))
				ok(t, e.Mkdir("/EFI/new dir", testTime))
				ok(t, e.Mkdir("/EFI/passing", testTime))
				ok(t, e.Remove("/EFI/passing"))
				names := make([]string, 0, len(want))
				for name := range want {
					names = append(names, name)
				}
				slices.Sort(names)
				for _, name := range names {
					if _, err := e.Lookup(name); err == nil {
						ok(t, e.SetContent(name, want[name], testTime))
					} else {
						ok(t, e.CreateFile(name, want[name], testTime))
					}
				}
			})
			fsck(t, img)
			f, err := Open(openDisk(t, img))
			ok(t, err)
			for name, data := range want {
				if got := get(t, img, name); !bytes.Equal(got, data) {
					t.Errorf("mtype %s: %d bytes, want %d", name, len(got), len(data))
				}
				if got := read(t, f, name); !bytes.Equal(got, data) {
					t.Errorf("%s: %d bytes, want %d", name, len(got), len(data))
				}
			}
			if !bytes.Equal(get(t, img, "/EFI/alinux/shimx64.efi"), shim) {
				t.Error("shim changed")
			}
			if e, err := f.Lookup("/EFI/alinux/grub.cfg"); err != nil || !e.ModTime.Equal(testTime) {
				t.Errorf("time %v, %v", e.ModTime, err)
			}
			edit(t, img, func(e *Editor) { // everything away again
				for name := range want {
					ok(t, e.Remove(name))
				}
				ok(t, e.Remove("/EFI/new dir"))
			})
			fsck(t, img)
		})
	}
}

func TestSameLengthTouchesOnlyDataAndSlot(t *testing.T) {
	img := volume(t, "fat32")
	put(t, img, "/grubenv", bytes.Repeat([]byte("#"), 1024))
	before, err := os.ReadFile(img)
	ok(t, err)
	edit(t, img, func(e *Editor) { ok(t, e.SetContent("/grubenv", pattern(1024), testTime)) })
	after, err := os.ReadFile(img)
	ok(t, err)
	changed := 0
	for i := range before {
		if before[i] != after[i] {
			changed++
		}
	}
	if changed > 1024+4 {
		t.Errorf("%d bytes changed", changed)
	}
	fsck(t, img)
}

// A FAT32 with few clusters is FAT32 for Linux, GRUB and dosfstools (mtools refuses it).
func TestFAT32WithFewClustersAndUnicodeNames(t *testing.T) {
	shapes["few"] = struct {
		size int64
		args []string
	}{34 << 20, []string{"-F", "32", "-s", "8"}}
	img := volume(t, "few")
	delete(shapes, "few")
	names := []string{"/EFI", "/EFI/Ünïcode – ☃", "/EFI/Ünïcode – ☃/𝔘 beyond.txt", "/EFI/" + strings.Repeat("é", 255)}
	edit(t, img, func(e *Editor) {
		for _, name := range names[:2] {
			ok(t, e.Mkdir(name, testTime))
		}
		for _, name := range names[2:] {
			ok(t, e.CreateFile(name, pattern(len(name)), testTime))
		}
	})
	fsck(t, img)
	f, err := Open(openDisk(t, img))
	ok(t, err)
	for _, name := range names[2:] {
		if got := read(t, f, name); !bytes.Equal(got, pattern(len(name))) {
			t.Errorf("%s: %d bytes", name, len(got))
		}
	}
	if read(t, f, "/efi/üNÏCODE – ☃/𝔘 BEYOND.TXT") == nil {
		t.Error("another case is not found")
	}
}

func TestRefusals(t *testing.T) {
	img := volume(t, "fat12tiny")
	mkdirs(t, img, "/d")
	put(t, img, "/d/f", pattern(10))
	whole, err := os.ReadFile(img)
	ok(t, err)
	try := func(f func(e *Editor) error) error {
		ov := disk.NewOverlay(disk.Bytes(whole), disk.OverlayOptions{})
		e, err := Edit(ov)
		ok(t, err)
		return f(e)
	}
	for name, c := range map[string]struct {
		f    func(e *Editor) error
		want error
	}{
		"exists":      {func(e *Editor) error { return e.CreateFile("/D/F", pattern(1), testTime) }, fs.ErrExist},
		"mkdir again": {func(e *Editor) error { return e.Mkdir("/d", testTime) }, fs.ErrExist},
		"no folder":   {func(e *Editor) error { return e.CreateFile("/x/f", pattern(1), testTime) }, fs.ErrNotExist},
		"absent":      {func(e *Editor) error { return e.SetContent("/x", pattern(1), testTime) }, fs.ErrNotExist},
		"disk full":   {func(e *Editor) error { return e.CreateFile("/x", zeros(512<<10), testTime) }, ErrNoSpace},
		"too large":   {func(e *Editor) error { return e.CreateFile("/x", zeros(1<<32), testTime) }, disk.ErrUnsupported},
		"bad name":    {func(e *Editor) error { return e.CreateFile("/a:b", pattern(1), testTime) }, fs.ErrInvalid},
		"dot name":    {func(e *Editor) error { return e.CreateFile("/a.", pattern(1), testTime) }, fs.ErrInvalid},
		"long name":   {func(e *Editor) error { return e.CreateFile("/"+strings.Repeat("n", 256), pattern(1), testTime) }, fs.ErrInvalid},
		"root full": {func(e *Editor) (err error) {
			for i := 0; i < 16 && err == nil; i++ {
				err = e.CreateFile(fmt.Sprintf("/F%d", i), pattern(1), testTime)
			}
			return err
		}, ErrNoSpace},
	} {
		if err := try(c.f); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, f := range map[string]func(e *Editor) error{
		"full folder":    func(e *Editor) error { return e.Remove("/d") },
		"root":           func(e *Editor) error { return e.Remove("/") },
		"write a folder": func(e *Editor) error { return e.SetContent("/d", pattern(1), testTime) },
	} {
		if try(f) == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

type zeros int64

func (z zeros) Size() int64 { return int64(z) }
func (z zeros) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	return len(p), nil
}

func TestDamagedVolumesAreNotEdited(t *testing.T) {
	for name, c := range map[string]struct {
		shape  string
		damage func(p []byte, b *boot)
		want   error
	}{
		"FATs differ":    {"fat16", func(p []byte, b *boot) { p[b.fatOff+b.fatSize+300] ^= 1 }, disk.ErrCorrupt},
		"dirty FAT16":    {"fat16", func(p []byte, b *boot) { p[b.fatOff+3] &^= 0x80; p[b.fatOff+b.fatSize+3] &^= 0x80 }, disk.ErrUnsupported},
		"dirty FAT32":    {"fat32", func(p []byte, b *boot) { p[b.fatOff+7] &^= 0x08; p[b.fatOff+b.fatSize+7] &^= 0x08 }, disk.ErrUnsupported},
		"mounted":        {"fat32", func(p []byte, b *boot) { p[bootState32] |= 1 }, disk.ErrUnsupported},
		"not mirrored":   {"fat32", func(p []byte, b *boot) { p[bpbExtFlags] = 0x80 }, disk.ErrUnsupported},
		"crossed chains": {"fat16", func(p []byte, b *boot) { p[b.rootOff+64+slotLow] = p[b.rootOff+32+slotLow] }, disk.ErrCorrupt},
		"short chain":    {"fat16", func(p []byte, b *boot) { p[b.rootOff+32+slotBytes+2] = 9 }, disk.ErrCorrupt},
		"long chain":     {"fat16", func(p []byte, b *boot) { p[b.rootOff+32+slotBytes+1] = 0 }, disk.ErrCorrupt},
		"version":        {"fat32", func(p []byte, b *boot) { p[bpbVersion] = 1 }, disk.ErrUnsupported},
		"beyond the end": {"fat32", func(p []byte, b *boot) { p[bpbSectors32+3] = 1 }, disk.ErrCorrupt},
		"no signature":   {"fat32", func(p []byte, b *boot) { p[511] = 0 }, disk.ErrFormat},
	} {
		img := volume(t, c.shape)
		put(t, img, "/A", pattern(9000))
		put(t, img, "/B", pattern(9000))
		p, err := os.ReadFile(img)
		ok(t, err)
		b, err := parseBoot(disk.AsDisk(disk.Bytes(p)))
		ok(t, err)
		c.damage(p, b)
		if _, err := Edit(disk.NewOverlay(disk.Bytes(p), disk.OverlayOptions{})); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestRandomEdits holds a volume against a model, through many edits.
func TestRandomEdits(t *testing.T) {
	for _, shape := range []string{"fat12", "fat16one", "fat32"} {
		t.Run(shape, func(t *testing.T) {
			img := volume(t, shape)
			mkdirs(t, img, "/d", "/d/e")
			r := rand.New(rand.NewPCG(7, 11))
			model := map[string][]byte{}
			for range 4 {
				edit(t, img, func(e *Editor) {
					for range 60 {
						name := []string{"/", "/d/", "/d/e/"}[r.IntN(3)] + fmt.Sprintf("file %d.x", r.IntN(12))
						data := pattern(r.IntN(30000) * r.IntN(2))
						_, there := model[name]
						switch {
						case !there:
							ok(t, e.CreateFile(name, data, testTime))
							model[name] = data
						case r.IntN(3) == 0:
							ok(t, e.Remove(name))
							delete(model, name)
						default:
							ok(t, e.SetContent(name, data, testTime))
							model[name] = data
						}
					}
				})
				fsck(t, img)
			}
			f, err := Open(openDisk(t, img))
			ok(t, err)
			for name, want := range model {
				if got := read(t, f, name); !bytes.Equal(got, want) {
					t.Errorf("%s: %d bytes, want %d", name, len(got), len(want))
				}
				if got := get(t, img, name); !bytes.Equal(got, want) {
					t.Errorf("mtype %s: %d bytes, want %d", name, len(got), len(want))
				}
			}
		})
	}
}
