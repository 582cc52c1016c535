package ext4

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"remaster/internal/hint"
	"remaster/internal/oracle"
	"remaster/pkg/disk"
)

// copyFile returns a copy of a file in a new folder.
func copyFile(tb testing.TB, file string) string {
	tb.Helper()
	out := filepath.Join(tb.TempDir(), filepath.Base(file))
	must(0, os.WriteFile(out, must(os.ReadFile(file)), 0o600))
	return out
}

// debugfs runs commands of debugfs on an image.
func debugfs(tb testing.TB, img string, commands ...string) string {
	tb.Helper()
	r := oracle.TryInput(tb, []byte(strings.Join(commands, "\n")+"\n"), "debugfs", "-w", img)
	// What went wrong is told on standard error, behind the name of the version.
	if errs := strings.SplitN(r.Stderr, "\n", 2)[1]; r.Code != 0 || strings.TrimSpace(errs) != "" && !strings.Contains(errs, "Setting csum") {
		tb.Fatalf("debugfs %q: exit %d\n%s%s", commands, r.Code, r.Stdout, r.Stderr)
	}
	return r.Stdout
}

// recovered recovers a copy of an image and returns it. It fails the test if e2fsck
// finds anything wrong with it, or if the image has something left to recover.
func recovered(tb testing.TB, img string) (string, *Recovery) {
	tb.Helper()
	out := copyFile(tb, img)
	w := onFile(tb, out)
	rec, err := Recover(w, EditOptions{Now: now})
	if err != nil {
		tb.Fatal(err)
	}
	fsck(tb, out)
	if err := Check(w); err != nil {
		tb.Error(err)
	}
	if again, err := Recover(w, EditOptions{Now: now}); again != nil || err != nil {
		tb.Errorf("a second time: %v, %v", again, err)
	}
	return out, rec
}

// byE2fsck lets e2fsck replay the journal of a copy, and do no more.
func byE2fsck(tb testing.TB, img string) (string, oracle.Result) {
	tb.Helper()
	out := copyFile(tb, img)
	return out, oracle.Try(tb, "e2fsck", "-y", "-E", "journal_only", out)
}

// inMemory recovers an image without writing to it, and returns its bytes.
func inMemory(img string) ([]byte, *Recovery, error) {
	o := disk.NewOverlay(disk.Bytes(must(os.ReadFile(img))), disk.OverlayOptions{})
	defer o.Close()
	rec, err := Recover(o, EditOptions{Now: now})
	b := make([]byte, o.Size())
	must(0, disk.ReadFull(o, b, 0))
	return b, rec, err
}

// sawDamage reports whether e2fsck has found that a journal is damaged. It repairs that,
// and says so in its own way each time.
func sawDamage(r oracle.Result) bool {
	return r.Code != 0 || strings.Contains(r.Stdout, "corrupt") || strings.Contains(r.Stdout, "checksum error") || strings.Contains(r.Stderr, "while recovering")
}

// sameBytes compares an image with bytes, but for what in the superblock tells when and
// how often it was written.
func sameBytes(tb testing.TB, img string, y []byte) {
	tb.Helper()
	x := must(os.ReadFile(img))
	y = bytes.Clone(y)
	for _, p := range [][]byte{x, y} {
		s := p[superOffset:]
		for _, r := range [][2]int{{sbWtime, 4}, {0x178, 8}, {sbWtimeHi, 1}, {sbChecksum, 4}} {
			clear(s[r[0] : r[0]+r[1]])
		}
	}
	if len(x) != len(y) {
		tb.Fatalf("%d and %d bytes", len(x), len(y))
	}
	const unit = 1024
	for n := 0; len(x) > 0; x, y, n = x[unit:], y[unit:], n+1 {
		for i := range unit {
			if x[i] != y[i] {
				tb.Errorf("KiB %d differs at byte %d: %x, not %x", n, i, y[i], x[i])
				break
			}
		}
	}
}

// dirtyJournal makes a file system with a file of free data blocks, and with random
// transactions in its journal that write to them. opts are those of debugfs' jo.
func dirtyJournal(t testing.TB, v variant, opts string, r *rand.Rand, before ...func(img string)) string {
	t.Helper()
	img := mkfs(t, v, seedTree(t))
	f := must(Open(onFile(t, img)))
	bs := f.sb.blockSize
	const blocks = 40
	dir := t.TempDir()
	file := func(name string, n int) string {
		p := filepath.Join(dir, name)
		b := make([]byte, n*bs)
		for i := range n {
			k := i * bs
			for j := range 64 {
				b[k+j*8] = byte(r.Uint32())
			}
			if r.IntN(4) == 0 { // must be escaped
				putBE32(b, k, jMagic)
			}
		}
		must(0, os.WriteFile(p, b, 0o600))
		return p
	}
	debugfs(t, img, "write "+file("target", blocks)+" target")
	f = must(Open(onFile(t, img)))
	m := must(f.fileMap(must(f.inode(must(f.Lookup(f.Root(), "target"))))))
	var free []string
	for _, x := range m.runs {
		for i := range x.n {
			free = append(free, fmt.Sprint(x.phys+i))
		}
	}
	for _, fn := range before {
		fn(img)
	}
	commands := []string{"jo " + opts}
	some := func(n int) []string {
		r.Shuffle(len(free), func(i, j int) { free[i], free[j] = free[j], free[i] })
		return free[:n]
	}
	for i := range 3 + r.IntN(8) {
		switch r.IntN(4) {
		case 0:
			commands = append(commands, "jw -r "+strings.Join(some(1+r.IntN(5)), ","))
		default:
			n := 1 + r.IntN(6)
			commands = append(commands, "jw -b "+strings.Join(some(n), ",")+" "+file(fmt.Sprint("data", i), n))
		}
	}
	if r.IntN(2) == 0 {
		commands = append(commands, "jw -c -b "+strings.Join(some(2), ",")+" "+file("cut", 2))
	}
	debugfs(t, img, append(commands, "jc")...)
	return img
}

// tiny is as small as a file system with a journal can be.
var tiny = variant{"tiny", []string{"-b", "1024", "-O", rhel8, "-N", "256"}, 5}

var journalVariants = []struct{ name, opts string }{{"none", ""}, {"csum v2", "-c -v 2"}, {"csum v3", "-c -v 3"}}

func variantNamed(name string) variant {
	for _, v := range variants {
		if v.name == name {
			return v
		}
	}
	panic(name)
}

func TestReplayEqualsE2fsck(t *testing.T) {
	for _, name := range []string{"1k", "ext3", "rhel8", "no64bit", "orphan_file"} {
		if name != "1k" && name != "ext3" && *modelRuns == 1 {
			continue // the rest is for a soak
		}
		for i, j := range journalVariants {
			t.Run(name+" "+j.name, func(t *testing.T) {
				r := rand.New(rand.NewPCG(uint64(i), uint64(len(name))))
				img := dirtyJournal(t, variantNamed(name), j.opts, r)
				want, res := byE2fsck(t, img)
				if sawDamage(res) {
					// debugfs itself sums some transactions wrongly in version 1.
					if _, _, err := inMemory(img); name != "ext3" || !errors.Is(err, disk.ErrCorrupt) {
						t.Error(err, res)
					}
					return
				}
				got, rec := recovered(t, img)
				sameBytes(t, want, must(os.ReadFile(got)))
				t.Log(rec)
				if rec.Transactions == 0 || rec.Blocks == 0 || rec.Last-rec.First+1 != rec.Transactions {
					t.Errorf("%+v", *rec)
				}
			})
		}
	}
}

// journalOf returns the journal of an image and a way to write its blocks.
func journalOf(t *testing.T, img string) (*journal, disk.Writable) {
	t.Helper()
	w := onFile(t, img)
	f := must(open(w))
	return must(f.journal()), w
}

// setSuper changes fields of the journal's superblock and puts its checksum right.
func (j *journal) setSuper(w disk.Writable, fn func(b []byte)) {
	fn(j.super)
	if j.tailCsum() {
		putBE32(j.super, jsChecksum, crc32cHole(^uint32(0), j.super, jsChecksum, 4))
	}
	must(w.WriteAt(j.super, j.place(0)))
}

func TestWrappedLogIsReplayed(t *testing.T) {
	for i, j := range journalVariants {
		for shift := range uint32(3) {
			t.Run(fmt.Sprint(j.name, " ", shift), func(t *testing.T) {
				img := dirtyJournal(t, tiny, j.opts, rand.New(rand.NewPCG(uint64(i), uint64(shift))))
				// The blocks of a log know nothing of their places.
				j, w := journalOf(t, img)
				const used = 120
				log := make([][]byte, used)
				for k := range log {
					log[k] = make([]byte, j.bs)
					must(0, j.read(j.next(j.start, uint32(k)), log[k]))
				}
				start := j.last - 4*shift - 1
				for k := range log {
					must(w.WriteAt(log[k], j.place(j.next(start, uint32(k)))))
				}
				j.setSuper(w, func(b []byte) { putBE32(b, jsStart, start) })
				want, res := byE2fsck(t, img)
				if sawDamage(res) {
					t.Fatal(res)
				}
				got, rec, err := inMemory(img)
				if err != nil || rec.Blocks == 0 {
					t.Fatalf("%+v, %v", rec, err)
				}
				sameBytes(t, want, got)
			})
		}
	}
}

func TestSequenceNumbersGoRound(t *testing.T) {
	for back := range uint32(5) {
		img := dirtyJournal(t, tiny, "", rand.New(rand.NewPCG(uint64(back), 5)), func(img string) {
			j, w := journalOf(t, img)
			j.setSuper(w, func(b []byte) { putBE32(b, jsSequence, -back) })
		})
		want, res := byE2fsck(t, img)
		if sawDamage(res) {
			t.Fatal(res)
		}
		got, rec, err := inMemory(img)
		if err != nil || rec.First != -back || rec.Blocks == 0 {
			t.Fatalf("%+v, %v", rec, err)
		}
		t.Log(rec)
		sameBytes(t, want, got)
	}
}

// TestLogThatEndsAnywhere cuts the log off at each of its blocks.
func TestLogThatEndsAnywhere(t *testing.T) {
	for i, j := range journalVariants {
		t.Run(j.name, func(t *testing.T) {
			img := dirtyJournal(t, tiny, j.opts, rand.New(rand.NewPCG(uint64(i), 9)))
			jn, _ := journalOf(t, img)
			var last int
			step := uint32(1)
			if *modelRuns == 1 {
				step = 3 // all of them are for a soak
			}
			for at := uint32(0); at < 36; at += step {
				cut := copyFile(t, img)
				w := onFile(t, cut)
				for k := jn.start + at; k < jn.start+130; k++ {
					must(w.WriteAt(make([]byte, jn.bs), jn.place(k)))
				}
				want, res := byE2fsck(t, cut)
				if sawDamage(res) {
					t.Fatal(res)
				}
				got, rec, err := inMemory(cut)
				if err != nil {
					t.Fatal(err)
				}
				if int(rec.Transactions) < last {
					t.Errorf("%d transactions after %d blocks, %d after one less", rec.Transactions, at, last)
				}
				last = int(rec.Transactions)
				sameBytes(t, want, got)
			}
			if last < 3 {
				t.Errorf("%d transactions at the end", last)
			}
		})
	}
}

// TestDamagedLogIsNotReplayed damages blocks of the log. What e2fsck sees, Recover must
// refuse; what neither sees must come out the same.
func TestDamagedLogIsNotReplayed(t *testing.T) {
	for i, j := range journalVariants {
		t.Run(j.name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(uint64(i), 11))
			img := dirtyJournal(t, tiny, j.opts, r)
			jn, _ := journalOf(t, img)
			refused := 0
			for range 12 * *modelRuns {
				at := jn.start + r.Uint32N(30)
				off := []int64{2, 9, 13, 21, 30, 500, 1020}[r.IntN(7)]
				bad := copyFile(t, img)
				w := onFile(t, bad)
				var b [1]byte
				must(w.ReadAt(b[:], jn.place(at)+off))
				b[0] ^= 1 << r.IntN(8)
				must(w.WriteAt(b[:], jn.place(at)+off))
				want, res := byE2fsck(t, bad)
				ours, _, err := inMemory(bad)
				switch {
				case err == nil && !sawDamage(res):
					sameBytes(t, want, ours)
				case err == nil || !sawDamage(res) && !strings.Contains(err.Error(), "which is outside"):
					t.Errorf("block %d byte %d: %v; e2fsck: %+v", at, off, err, res)
				default:
					refused++
					if !errors.Is(err, disk.ErrCorrupt) || len(hint.Of(err)) == 0 {
						t.Error(err, hint.Of(err))
					}
				}
			}
			t.Log(refused, "refused")
		})
	}
}

func TestCleanFileSystemIsNotTouched(t *testing.T) {
	for _, v := range variants {
		img := mkfs(t, v, "")
		o := disk.NewOverlay(openFile(t, img), disk.OverlayOptions{})
		if rec, err := Recover(o, EditOptions{Now: now}); rec != nil || err != nil || o.Dirty() {
			t.Errorf("%s: %v, %v, written: %v", v.name, rec, err, o.Dirty())
		}
		o.Close()
	}
}

// e2fsck takes a block of the inode table for garbage if most of its inodes look so.
func TestRemovingMostOfABlockOfInodesKeepsTheRest(t *testing.T) {
	img := mkfs(t, rhel8Variant, "")
	e := edit(t, onFile(t, img))
	for i := range 40 {
		must(e.Create(e.Root(), fmt.Sprint(i), Attr{Mode: 0o644}, disk.Bytes("x")))
	}
	flush(t, e)
	for i := range 40 {
		if i%8 != 0 {
			must(0, e.Remove(e.Root(), fmt.Sprint(i)))
		}
	}
	flush(t, e)
	fsck(t, img)
}
