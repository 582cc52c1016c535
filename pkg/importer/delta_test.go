package importer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"

	"remaster/pkg/disk"
)

var testSrc = Object{Bucket: "bases", Key: "alinux3.qcow2"}

// newBase puts an object into the store and lays an overlay over it.
func newBase(t testing.TB, m *memStore, data []byte) (*storeBlob, *disk.Overlay) {
	t.Helper()
	info, err := m.Put(context.Background(), testSrc, data, PutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	m.bytes = map[string]int64{}
	b := &storeBlob{s: m, info: info}
	v := disk.NewOverlay(b, disk.OverlayOptions{})
	t.Cleanup(func() { _ = v.Close() })
	return b, v
}

func write(t testing.TB, v *disk.Overlay, off int64, p []byte) {
	t.Helper()
	if end := off + int64(len(p)); end > v.Size() {
		if err := v.Grow(end); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := v.WriteAt(p, off); err != nil {
		t.Fatal(err)
	}
}

// bytesOf reads a blob, and forgets that it did.
func bytesOf(t testing.TB, m *memStore, b disk.Blob) []byte {
	t.Helper()
	p := make([]byte, b.Size())
	if err := disk.ReadFull(b, p, 0); err != nil {
		t.Fatal(err)
	}
	m.bytes = map[string]int64{}
	return p
}

func TestDeltaOfRelocatedQcow2IsThreePartsAndFewBytes(t *testing.T) {
	m, o := newMemStore(), testOptions(t)
	o.PartSize = 0
	b, v := newBase(t, m, randomBytes(1, 10<<20))
	write(t, v, 40, randomBytes(2, 64))
	write(t, v, b.Size(), randomBytes(3, 1300<<10))
	want := bytesOf(t, m, v)
	o.Fetched = func() int64 { return m.bytes["read"] }
	r, err := DeltaUpload(t.Context(), patient(m), testSrc, b.info, v, testDst, o)
	if err != nil {
		t.Fatal(err)
	}
	checkObject(t, m, want, 2)
	if r.Way != WayDelta || r.Parts != 3 || r.CopiedParts != 1 || !r.Checked || r.Why != "" ||
		r.Sent != 1300<<10+100<<10 || r.Copied != 10<<20-100<<10 || r.Fetched > 300<<10 {
		t.Errorf("%+v", r)
	}
	if m.bytes["UploadPart"] != r.Sent || m.bytes["UploadPartCopy"] != r.Copied {
		t.Errorf("moved %v", m.bytes)
	}
	checkNoJournal(t, o.JournalDir)
	r, err = DeltaUpload(t.Context(), patient(m), testSrc, b.info, v, testDst, o)
	if err != nil || r.Way != WayPresent || r.Sent+r.Copied != 0 {
		t.Errorf("rerun: %+v, %v", r, err)
	}
}

// scatter writes here and there, and perhaps behind the end.
func scatter(t *testing.T, r *rand.Rand, v *disk.Overlay) {
	size := v.Size()
	for range r.IntN(7) {
		write(t, v, r.Int64N(size), randomBytes(r.Uint64(), 1+r.IntN(9000)))
	}
	if r.IntN(2) == 0 {
		write(t, v, size, randomBytes(r.Uint64(), 1+r.IntN(3*testPart)))
	}
}

func TestDeltaMakesTheObjectOfAnyEdit(t *testing.T) {
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 7))
		m, o := newMemStore(), testOptions(t)
		m.noCRC = seed%5 == 0
		b, v := newBase(t, m, randomBytes(seed, 1+r.IntN(20*testPart)))
		b.info.HasCRC64 = seed%7 != 0
		scatter(t, r, v)
		want := bytesOf(t, m, v)
		rep, err := DeltaUpload(t.Context(), patient(m), testSrc, b.info, v, testDst, o)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		checkObject(t, m, want, 2)
		copied := rep.Way == WayDelta
		if checks := !copied || b.info.HasCRC64 && !m.noCRC; rep.Checked != checks {
			t.Errorf("seed %d: checked %v: %+v", seed, rep.Checked, rep)
		}
		if rep.Sent+rep.Copied != v.Size() {
			t.Errorf("seed %d: %+v", seed, rep)
		}
	}
}

func TestDeltaKilledAnywhereAndRunAgain(t *testing.T) {
	for seed := range uint64(100) {
		r := rand.New(rand.NewPCG(seed, 8))
		m, o := newMemStore(), testOptions(t)
		m.noListCRC, m.noCRC = r.IntN(2) == 0, r.IntN(2) == 0
		o.OwnKey, o.ForbidOverwrite = true, true
		b, v := newBase(t, m, randomBytes(seed, 5*testPart+r.IntN(20*testPart)))
		scatter(t, r, v)
		want := bytesOf(t, m, v)
		killSome(t, r, &o, func(Store) error {
			_, err := DeltaUpload(t.Context(), patient(&faulty{Store: m, script: deathScript(r)}), testSrc, b.info, v, testDst, o)
			return err
		})
		if _, err := DeltaUpload(t.Context(), patient(m), testSrc, b.info, v, testDst, o); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		checkObject(t, m, want, 2)
		checkNoJournal(t, o.JournalDir)
	}
}

func TestDeltaFallsBackToUploadAndSaysWhy(t *testing.T) {
	for _, c := range []struct {
		name, why string
		change    func(*memStore, *ObjectInfo, *faulty)
	}{
		{"other region", "cn-beijing", func(m *memStore, _ *ObjectInfo, _ *faulty) { m.regions["bases"] = "cn-beijing" }},
		{"archive", "archived", func(_ *memStore, i *ObjectInfo, _ *faulty) { i.StorageClass = "Archive" }},
		{"appendable", "appendable", func(_ *memStore, i *ObjectInfo, _ *faulty) { i.Type = "Appendable" }},
		{"no right", "AccessDenied", func(_ *memStore, _ *ObjectInfo, f *faulty) {
			f.script = func(op string) fault {
				if op == "CopyPart" {
					return denied
				}
				return fine
			}
		}},
		{"ranges ignored", "another range", func(_ *memStore, _ *ObjectInfo, f *faulty) {
			f.script = func(op string) fault {
				if op == "CopyPart" {
					return misranged
				}
				return fine
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, o := newMemStore(), testOptions(t)
			b, v := newBase(t, m, randomBytes(1, 9*testPart))
			write(t, v, 5000, []byte("edit"))
			want := bytesOf(t, m, v)
			f := &faulty{Store: m, script: func(string) fault { return fine }}
			c.change(m, &b.info, f)
			r, err := DeltaUpload(t.Context(), patient(f), testSrc, b.info, v, testDst, o)
			if err != nil {
				t.Fatal(err)
			}
			checkObject(t, m, want, 2)
			checkNoJournal(t, o.JournalDir)
			if r.Way != WayMultipart || !strings.Contains(r.Why, c.why) || r.Copied != 0 || r.Sent < v.Size() || !r.Checked {
				t.Errorf("%+v", r)
			}
		})
	}
}

func TestDeltaOfRangeRefusedOnceStillCopies(t *testing.T) {
	m, o := newMemStore(), testOptions(t)
	b, v := newBase(t, m, randomBytes(1, 9*testPart))
	write(t, v, 5000, []byte("edit"))
	want := bytesOf(t, m, v)
	f := &faulty{Store: m}
	f.script = func(op string) fault {
		if op == "CopyPart" && f.seen[op] == 1 {
			return misranged
		}
		return fine
	}
	r, err := DeltaUpload(t.Context(), patient(f), testSrc, b.info, v, testDst, o)
	if err != nil || r.Way != WayDelta {
		t.Fatalf("%+v, %v", r, err)
	}
	checkObject(t, m, want, 2)
}

func TestDeltaOfABaseThatWasReplacedFails(t *testing.T) {
	m, o := newMemStore(), testOptions(t)
	b, v := newBase(t, m, randomBytes(1, 9*testPart))
	write(t, v, 5000, []byte("edit"))
	_ = bytesOf(t, m, v)
	info := b.info
	if _, err := m.Put(t.Context(), testSrc, randomBytes(2, 9*testPart), PutOptions{}); err != nil {
		t.Fatal(err)
	}
	info.HasCRC64 = false // else reading the old bytes finds it
	_, err := DeltaUpload(t.Context(), patient(m), testSrc, info, v, testDst, o)
	if s, ok := errors.AsType[*ServiceError](err); !ok || s.Status != http.StatusPreconditionFailed || Retryable(err) {
		t.Errorf("got %v", err)
	}
	if len(m.uploads) != 0 || m.objects[testDst] != nil {
		t.Error("something is left behind")
	}
	info.Size++
	if _, err := DeltaUpload(t.Context(), patient(m), testSrc, info, v, testDst, o); err == nil {
		t.Error("a base of another size was taken")
	}
}

// wrongCopy is a service that copies other bytes and confirms the right ones.
type wrongCopy struct{ *memStore }

func (w wrongCopy) CopyPart(ctx context.Context, u Upload, num int, src Object, m string, off, n int64) (Part, error) {
	return w.memStore.CopyPart(ctx, u, num, src, m, off-1, n)
}

func TestDeltaFindsAWrongCopyByTheChecksum(t *testing.T) {
	m, o := newMemStore(), testOptions(t)
	b, v := newBase(t, m, randomBytes(1, 9*testPart))
	write(t, v, 0, []byte("edit"))
	_ = bytesOf(t, m, v)
	_, err := DeltaUpload(t.Context(), patient(wrongCopy{m}), testSrc, b.info, v, testDst, o)
	if !errors.Is(err, ErrChecksum) || m.objects[testDst] != nil || len(m.uploads) != 0 {
		t.Errorf("got %v", err)
	}
}

func TestDeltaCutsLargeUploadsForParallelism(t *testing.T) {
	m, o := newMemStore(), testOptions(t)
	b, v := newBase(t, m, randomBytes(1, 20*testPart))
	o.PartSize = 3 * testPart
	write(t, v, b.Size(), randomBytes(2, 10*testPart))
	want := bytesOf(t, m, v)
	r, err := DeltaUpload(t.Context(), patient(m), testSrc, b.info, v, testDst, o)
	if err != nil || r.Parts != 5 || r.CopiedParts != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	checkObject(t, m, want, 2)
}

// What was copied of one base is not taken for what is to be copied of another, even if
// the identity is the same by mistake.
func TestDeltaDoesNotGoOnWithCopiesOfAnotherBase(t *testing.T) {
	m, o := newMemStore(), testOptions(t)
	b, v := newBase(t, m, randomBytes(1, 9*testPart))
	write(t, v, 5000, []byte("edit"))
	f := &faulty{Store: m, script: func(op string) fault {
		if op == "Complete" {
			return dead
		}
		return fine
	}}
	if _, err := DeltaUpload(t.Context(), patient(f), testSrc, b.info, v, testDst, o); err == nil || len(m.uploads) != 1 {
		t.Fatal("it was not stopped")
	}
	b, v = newBase(t, m, randomBytes(2, 9*testPart))
	write(t, v, 5000, []byte("edit"))
	want := bytesOf(t, m, v)
	r, err := DeltaUpload(t.Context(), patient(m), testSrc, b.info, v, testDst, o)
	if err != nil || r.Way != WayDelta || r.ReusedParts != 0 {
		t.Fatalf("%+v, %v", r, err)
	}
	checkObject(t, m, want, 2)
}

func TestSmallUploadsKeepToNumberOfParts(t *testing.T) {
	l := Limits{MinPart: 10, MaxPart: 1 << 20, Parts: 12}
	for _, size := range []int64{10, 100, 1000, 100_000} {
		plan := []Piece{{disk.Range{Len: size}, false}, {disk.Range{Off: size, Len: 5000}, true}, {disk.Range{Off: size + 5000, Len: 333}, false}}
		out := smallUploads(plan, 20, l)
		changed := make([]bool, size+5000+333)
		checkPlan(t, out, changed, l)
	}
}

func BenchmarkDelta(b *testing.B) {
	m, o := newMemStore(), testOptions(b)
	o.JournalDir, o.Identity, o.PartSize = "", "", 0
	base, v := newBase(b, m, bytes.Repeat(randomBytes(1, 1<<20), 100))
	write(b, v, 40, randomBytes(2, 64))
	write(b, v, base.Size(), randomBytes(3, 1300<<10))
	for b.Loop() {
		if _, err := DeltaUpload(b.Context(), patient(m), testSrc, base.info, v, testDst, o); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(m.bytes["UploadPart"]+m.bytes["read"])/float64(b.N), "bytes/op-moved")
}

func ExampleUploadReport() {
	r := UploadReport{Way: WayDelta, Sent: 1400 << 10, Copied: 790 << 20}
	fmt.Printf("%s: sent %d KiB, the service copied %d MiB\n", r.Way, r.Sent>>10, r.Copied>>20)
	// Output: delta: sent 1400 KiB, the service copied 790 MiB
}
