package ext4

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"remaster/internal/hint"
	"remaster/pkg/disk"
)

func TestBadJournalsAreRefusedByName(t *testing.T) {
	good := map[string][]byte{}
	for _, opts := range []string{"", "-c -v 3"} {
		good[opts] = must(os.ReadFile(dirtyJournal(t, tiny, opts, rand.New(rand.NewPCG(1, 2)))))
	}
	super := func(fn func(b []byte)) func(*journal, disk.Writable) {
		return func(j *journal, w disk.Writable) { j.setSuper(w, fn) }
	}
	or := func(off int, v uint32) func(*journal, disk.Writable) {
		return super(func(b []byte) { putBE32(b, off, be32(b, off)|v) })
	}
	set := func(off int, v uint32) func(*journal, disk.Writable) {
		return super(func(b []byte) { putBE32(b, off, v) })
	}
	// tag makes the first tag of the log name a block.
	tag := func(no func(j *journal) uint64) func(*journal, disk.Writable) {
		return func(j *journal, w disk.Writable) {
			b := make([]byte, j.bs)
			for i := j.start; ; i++ {
				if must(0, j.read(i, b)); be32(b, jType) != jDescriptor {
					continue
				}
				putBE32(b, jHeader, uint32(no(j)))
				must(w.WriteAt(b, j.place(i)))
				return
			}
		}
	}
	fsSuper := func(fn func(b []byte)) func(*journal, disk.Writable) {
		return func(j *journal, w disk.Writable) {
			b := make([]byte, superSize)
			must(w.ReadAt(b, superOffset))
			fn(b)
			put32(b, sbChecksum, crc32c(^uint32(0), b[:sbChecksum]))
			must(w.WriteAt(b, superOffset))
		}
	}
	for _, x := range []struct {
		name, opts string
		spoil      func(*journal, disk.Writable)
		want       string
	}{
		{"magic", "", set(0, 0), "no magic"},
		{"type", "", set(jType, 7), "type 7"},
		{"block size", "", set(jsBlockSize, 4096), "blocks of 4096 bytes"},
		{"too long", "", set(jsMaxLen, 5000), "5000 blocks in a file of"},
		{"no log", "", set(jsFirst, 0), "a log from block 0"},
		{"log behind the end", "", set(jsFirst, 1<<31), "a log from block"},
		{"start in front", "", func(j *journal, w disk.Writable) {
			j.setSuper(w, func(b []byte) { putBE32(b, jsFirst, 5) })
		}, "begins at block 1"},
		{"start behind", "", set(jsStart, 1<<31), "begins at block"},
		{"error", "", set(jsErrno, ^uint32(4)), "recorded error -5"},
		{"shared", "", set(jsUsers, 2), "2 file systems share"},
		{"unknown feature", "", or(jsIncompat, 0x40), "unknown feature 0x40"},
		{"unknown ro feature", "", or(jsRoCompat, 0x2), "read-only feature 0x2"},
		{"v2 and v3", "-c -v 3", or(jsIncompat, jIncompatCsumV2), "two versions"},
		{"v1 and v3", "-c -v 3", or(jsCompat, jCompatChecksum), "two versions"},
		{"checksum type", "-c -v 3", super(func(b []byte) { b[jsSumType] = 2 }), "checksum type 2"},
		{"checksum", "-c -v 3", func(j *journal, w disk.Writable) { must(w.WriteAt([]byte{1}, j.place(0)+200)) }, "wrong checksum"},
		{"into the journal", "", tag(func(j *journal) uint64 { return j.runs[0].phys + 3 }), "the journal's own"},
		{"outside", "", tag(func(*journal) uint64 { return 5 << 10 }), "which is outside"},
		{"boot block", "", tag(func(*journal) uint64 { return 0 }), "which is outside"},
		{"external journal", "", fsSuper(func(b []byte) { put32(b, sbJournalIno, 0) }), "external journal"},
		{"journal elsewhere", "", fsSuper(func(b []byte) { put32(b, sbJournalIno, 12) }), "journal in inode 12"},
		{"no journal", "", fsSuper(func(b []byte) { put32(b, sbCompat, le32(b, sbCompat)&^compatHasJournal) }), "without a journal"},
		{"compression", "", fsSuper(or32(sbIncompat, 1)), "compression"},
		{"errors", "", fsSuper(func(b []byte) { b[sbState] |= stateErrors }), "having errors"},
		{"not valid", "", fsSuper(func(b []byte) { b[sbState] &^= stateValid }), "cleanly unmounted"},
	} {
		t.Run(x.name, func(t *testing.T) {
			img := filepath.Join(t.TempDir(), "img")
			must(0, os.WriteFile(img, good[x.opts], 0o600))
			j, w := journalOf(t, img)
			x.spoil(j, w)
			_, _, err := inMemory(img)
			if err == nil || !strings.Contains(err.Error(), x.want) ||
				!errors.Is(err, disk.ErrCorrupt) && !errors.Is(err, disk.ErrUnsupported) {
				t.Errorf("%v, want %q", err, x.want)
			}
			if len(hint.Of(err)) == 0 && x.name != "compression" {
				t.Errorf("no remedy: %v", err)
			}
		})
	}
}

// With asynchronous commits a commit block may reach the disk before what it commits.
func TestAsyncCommitThatIsNotWholeIsIgnored(t *testing.T) {
	img := dirtyJournal(t, tiny, "-c -v 3", rand.New(rand.NewPCG(4, 4)))
	j, w := journalOf(t, img)
	j.setSuper(w, func(b []byte) { putBE32(b, jsIncompat, j.incompat|jIncompatAsync) })
	_, rec, err := inMemory(img)
	if err != nil || rec.Transactions < 3 {
		t.Fatal(rec, err)
	}
	whole := rec.Transactions
	b := make([]byte, j.bs)
	for i := j.start; i < 200; i++ {
		must(0, j.read(i, b))
		if be32(b, 0) != jMagic || be32(b, jType) != jCommit {
			continue
		}
		n := be32(b, jSequence) - rec.First
		if n >= whole {
			break
		}
		b[200]++
		must(w.WriteAt(b, j.place(i)))
		want, res := byE2fsck(t, img)
		got, less, err := inMemory(img)
		switch {
		case n+1 < whole:
			// e2fsck drops what comes behind without a word.
			if !errors.Is(err, disk.ErrCorrupt) || !strings.Contains(err.Error(), "others come behind") {
				t.Errorf("transaction %d of %d: %v", n, whole, err)
			}
		case err != nil || sawDamage(res) || less.Transactions != whole-1:
			t.Error(less, err, res)
		default:
			sameBytes(t, want, got)
		}
		b[200]--
		must(w.WriteAt(b, j.place(i)))
	}
}

func TestFastCommitsAreRefused(t *testing.T) {
	v := variant{"fast", []string{"-b", "4096", "-O", rhel8 + ",fast_commit"}, 64}
	write := func(host string, i int) {
		f := must(os.Create(filepath.Join(host, fmt.Sprint("file", i))))
		must(f.WriteString(strings.Repeat("x", 100*i)))
		must(0, f.Sync())
		f.Close()
	}
	img := crash(t, mkfs(t, v, ""), "", func(host string) {
		for i := range 20 {
			write(host, i)
		}
	})
	if _, _, err := inMemory(img); !errors.Is(err, disk.ErrUnsupported) || !strings.Contains(err.Error(), "fast_commit") || len(hint.Of(err)) == 0 {
		t.Errorf("with fast commits: %v", err)
	}
	// The area holds old ones, and a transaction as a whole has come behind them.
	img = crash(t, mkfs(t, v, ""), "", func(host string) {
		for i := range 20 {
			write(host, i)
		}
		must(0, os.WriteFile(filepath.Join(host, "last"), []byte("last"), 0o600))
		syncFS(t, host)
	})
	t.Log(sameAsKernel(t, img))
}
