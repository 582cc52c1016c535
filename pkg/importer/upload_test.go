package importer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc64"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"remaster/internal/hint"
	"remaster/pkg/disk"
)

var testDst = Object{Bucket: "b", Key: "images/node.qcow2"}

const testPart = 100 << 10

func noSleep(ctx context.Context, _ time.Duration) error { return ctx.Err() }

var testClock = Clock{Now: func() time.Time { return time.Unix(1_800_000_000, 0) }, Sleep: noSleep}

func testOptions(t testing.TB) UploadOptions {
	return UploadOptions{Identity: "sha256-of-it", JournalDir: t.TempDir(), PartSize: testPart, Workers: 4, Clock: testClock}
}

func patient(s Store) Store { return Retry(s, Policy{Clock: testClock}) }

// checkObject fails unless the store has just the objects and nothing under way.
func checkObject(t testing.TB, m *memStore, want []byte, objects int) {
	t.Helper()
	x := m.objects[testDst]
	if x == nil || !bytes.Equal(x.data, want) {
		t.Fatal("the object is not there, or not what was uploaded")
	}
	if len(m.uploads) != 0 || len(m.objects) != objects {
		t.Fatalf("%d uploads are left, and there are %d objects", len(m.uploads), len(m.objects))
	}
}

func checkNoJournal(t testing.TB, dir string) {
	t.Helper()
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Fatalf("the journal is still there: %v, %v", left, err)
	}
}

func TestUploadWays(t *testing.T) {
	for _, c := range []struct {
		size, parts int
		way         Way
	}{{0, 1, WayPut}, {1, 1, WayPut}, {testPart, 1, WayPut}, {testPart + 1, 2, WayMultipart}, {7*testPart - 5, 7, WayMultipart}} {
		m, data, o := newMemStore(), randomBytes(1, c.size), testOptions(t)
		var told int64
		o.Progress = func(n int64) { told += n }
		o.Tags, o.Encryption = map[string]string{"a": "b"}, "AES256"
		r, err := UploadBlob(t.Context(), patient(m), testDst, disk.Bytes(data), o)
		if err != nil {
			t.Fatal(err)
		}
		checkObject(t, m, data, 1)
		checkNoJournal(t, o.JournalDir)
		if r.Way != c.way || r.Parts != c.parts || r.Sent != int64(c.size) || told != int64(c.size) || !r.Checked || r.CRC64 != crc64.Checksum(data, crcTable) {
			t.Errorf("%d bytes: %+v, progress %d", c.size, r, told)
		}
		if m.objects[testDst].info.Meta[MetaIdentity] != o.Identity {
			t.Error("the object does not carry its identity")
		}
		// A rerun does nothing.
		m.bytes = map[string]int64{}
		r, err = UploadBlob(t.Context(), patient(m), testDst, disk.Bytes(data), o)
		if err != nil || r.Way != WayPresent || r.Sent != 0 || len(m.bytes) != 0 {
			t.Errorf("rerun: %+v, %v", r, err)
		}
	}
}

func TestUploadForbidOverwrite(t *testing.T) {
	for _, size := range []int{10, 3 * testPart} {
		m, o := newMemStore(), testOptions(t)
		if _, err := m.Put(t.Context(), testDst, []byte("another"), PutOptions{}); err != nil {
			t.Fatal(err)
		}
		o.ForbidOverwrite = true
		_, err := UploadBlob(t.Context(), patient(m), testDst, disk.Bytes(randomBytes(1, size)), o)
		if !errors.Is(err, fs.ErrExist) || len(hint.Of(err)) == 0 || Retryable(err) {
			t.Errorf("got %v", err)
		}
		checkObject(t, m, []byte("another"), 1)

		// It comes up while the upload is under way.
		m = newMemStore()
		s := &faulty{Store: m, script: func(op string) fault {
			if op == "Complete" || op == "Put" {
				_, _ = m.Put(context.Background(), testDst, []byte("another"), PutOptions{})
			}
			return fine
		}}
		if _, err := UploadBlob(t.Context(), patient(s), testDst, disk.Bytes(randomBytes(1, size)), o); !errors.Is(err, fs.ErrExist) {
			t.Errorf("got %v", err)
		}
		checkObject(t, m, []byte("another"), 1)
		checkNoJournal(t, o.JournalDir)
	}
}

// Each request fails once, in each way, and the object comes about nevertheless.
func TestUploadSurvivesEachRequestFailingOnce(t *testing.T) {
	for _, size := range []int{5000, 5 * testPart} {
		for _, x := range []fault{refused, throttled, dropped, lost, damaged} {
			m, data, o := newMemStore(), randomBytes(2, size), testOptions(t)
			o.ForbidOverwrite, o.OwnKey, o.Workers = true, true, 1
			s := &faulty{Store: m}
			failed := map[string]bool{}
			s.script = func(op string) fault {
				// Of parts every second try, so that each one fails once.
				if op == "UploadPart" && s.seen[op]%2 == 1 || !failed[op] && op != "UploadPart" {
					failed[op] = true
					return x
				}
				return fine
			}
			r, err := UploadBlob(t.Context(), patient(s), testDst, disk.Bytes(data), o)
			if err != nil {
				t.Fatalf("%d bytes, fault %d: %v", size, x, err)
			}
			checkObject(t, m, data, 1)
			checkNoJournal(t, o.JournalDir)
			if !r.Checked {
				t.Errorf("fault %d: the checksum was not compared", x)
			}
		}
	}
}

func TestUploadGivesUpInAStormAndLeavesNothing(t *testing.T) {
	m, o := newMemStore(), testOptions(t)
	o.JournalDir = ""
	s := &faulty{Store: m, script: func(op string) fault {
		if op == "UploadPart" {
			return refused
		}
		return fine
	}}
	_, err := UploadBlob(t.Context(), patient(s), testDst, disk.Bytes(randomBytes(1, 5*testPart)), o)
	if !Retryable(err) || !strings.Contains(err.Error(), "after 10 tries") {
		t.Errorf("got %v", err)
	}
	if len(m.uploads) != 0 || len(m.objects) != 0 {
		t.Error("something is left behind")
	}
}

func TestUploadKeepsForTheNextRunWhatAStormStopped(t *testing.T) {
	m, data, o := newMemStore(), randomBytes(3, 9*testPart), testOptions(t)
	o.Workers = 1
	s := &faulty{Store: m}
	s.script = func(op string) fault {
		if op == "UploadPart" && s.seen[op] > 6 {
			return refused
		}
		return fine
	}
	if _, err := UploadBlob(t.Context(), patient(s), testDst, disk.Bytes(data), o); !Retryable(err) {
		t.Fatalf("got %v", err)
	}
	r, err := UploadBlob(t.Context(), patient(m), testDst, disk.Bytes(data), o)
	if err != nil || r.Way != WayResumed || r.ReusedParts != 6 || r.Reused+r.Sent != int64(len(data)) {
		t.Fatalf("%+v, %v", r, err)
	}
	checkObject(t, m, data, 1)
	checkNoJournal(t, o.JournalDir)
}

func TestUploadAbortsWhenCancelledUnlessItIsToBeKept(t *testing.T) {
	for _, keep := range []bool{false, true} {
		m, o := newMemStore(), testOptions(t)
		o.Keep = keep
		ctx, cancel := context.WithCancel(t.Context())
		s := &faulty{Store: m}
		s.script = func(op string) fault {
			if op == "UploadPart" && s.seen[op] == 3 {
				cancel()
			}
			return fine
		}
		_, err := UploadBlob(ctx, patient(s), testDst, disk.Bytes(randomBytes(1, 9*testPart)), o)
		if !errors.Is(err, context.Canceled) || Retryable(err) {
			t.Errorf("got %v", err)
		}
		if got := len(m.uploads) == 1; got != keep {
			t.Errorf("keep %v: %d uploads are left", keep, len(m.uploads))
		}
		if left, _ := os.ReadDir(o.JournalDir); len(left) == 1 != keep {
			t.Errorf("keep %v: journal %v", keep, left)
		}
	}
}

func TestUploadBeginsAnewWhenItsUploadIsGone(t *testing.T) {
	for _, op := range []string{"UploadPart", "Complete"} {
		m, data, o := newMemStore(), randomBytes(4, 5*testPart), testOptions(t)
		s := &faulty{Store: m}
		s.script = func(got string) fault {
			if got == op && s.seen[op] == 1 {
				return vanished
			}
			return fine
		}
		var told int64
		o.Progress = func(n int64) { told += n }
		if _, err := UploadBlob(t.Context(), patient(s), testDst, disk.Bytes(data), o); err != nil {
			t.Fatal(err)
		}
		checkObject(t, m, data, 1)
		if told != int64(len(data)) {
			t.Errorf("progress of %d bytes of %d", told, len(data))
		}
	}
	// One that the journal remembers.
	m, data, o := newMemStore(), randomBytes(4, 5*testPart), testOptions(t)
	j, err := openJournal(o.JournalDir, o.Identity, testDst)
	if err != nil {
		t.Fatal(err)
	}
	if err := j.begin(journalDoc{Bucket: testDst.Bucket, Key: testDst.Key, Identity: o.Identity, UploadID: "long gone"}); err != nil {
		t.Fatal(err)
	}
	if _, err := UploadBlob(t.Context(), patient(m), testDst, disk.Bytes(data), o); err != nil {
		t.Fatal(err)
	}
	checkObject(t, m, data, 1)
	checkNoJournal(t, o.JournalDir)
}

// begun makes an upload with some parts, as a run on another machine leaves it.
func begun(t *testing.T, m *memStore, data []byte, parts int) Upload {
	t.Helper()
	u, err := m.CreateUpload(t.Context(), testDst, PutOptions{Meta: map[string]string{MetaIdentity: "sha256-of-it"}})
	if err != nil {
		t.Fatal(err)
	}
	for i := range parts {
		p := data[i*testPart : min((i+1)*testPart, len(data))]
		if _, err := m.UploadPart(t.Context(), u, i+1, bytes.NewReader(p), int64(len(p))); err != nil {
			t.Fatal(err)
		}
	}
	return u
}

func TestUploadGoesOnFromAnotherMachine(t *testing.T) {
	for _, noCRC := range []bool{false, true} {
		m, data, o := newMemStore(), randomBytes(5, 9*testPart), testOptions(t)
		m.noListCRC = noCRC // by MD5 then
		o.OwnKey = true
		other := bytes.Clone(data)
		other[testPart+5] ^= 1 // part 2 is another one: the same size, other bytes
		begun(t, m, data, 1)
		begun(t, m, other, 6)
		r, err := UploadBlob(t.Context(), patient(m), testDst, disk.Bytes(data), o)
		if err != nil {
			t.Fatal(err)
		}
		checkObject(t, m, data, 1)
		if r.Way != WayResumed || r.ReusedParts != 5 || r.Sent != 4*testPart {
			t.Errorf("%+v", r)
		}
	}
}

func TestUploadLeavesUploadsOfOthersAlone(t *testing.T) {
	m, data, o := newMemStore(), randomBytes(6, 3*testPart), testOptions(t)
	begun(t, m, data, 2)
	if _, err := m.CreateUpload(t.Context(), Object{Bucket: "b", Key: testDst.Key + ".sig"}, PutOptions{}); err != nil {
		t.Fatal(err)
	}
	r, err := UploadBlob(t.Context(), patient(m), testDst, disk.Bytes(data), o)
	if err != nil || r.ReusedParts != 0 || len(m.uploads) != 2 {
		t.Errorf("%+v, %v, %d uploads", r, err, len(m.uploads))
	}
	o.OwnKey, o.Identity = true, "another"
	if _, err := UploadBlob(t.Context(), patient(m), testDst, disk.Bytes(data), o); err != nil || len(m.uploads) != 1 {
		t.Errorf("%v, %d uploads", err, len(m.uploads))
	}
}

// The journal does not make an object of two blobs if the identity was wrong.
func TestUploadDoesNotTrustTheJournal(t *testing.T) {
	for _, noCRC := range []bool{false, true} {
		m, data, o := newMemStore(), randomBytes(7, 6*testPart), testOptions(t)
		m.noListCRC = noCRC
		s := &faulty{Store: m}
		s.script = func(op string) fault {
			if op == "Complete" {
				return dead
			}
			return fine
		}
		if _, err := UploadBlob(t.Context(), patient(s), testDst, disk.Bytes(data), o); err == nil {
			t.Fatal("it was not stopped")
		}
		data = bytes.Clone(data)
		data[3*testPart+1] ^= 1
		r, err := UploadBlob(t.Context(), patient(m), testDst, disk.Bytes(data), o)
		if err != nil || r.ReusedParts != 5 {
			t.Fatalf("%+v, %v", r, err)
		}
		checkObject(t, m, data, 1)
	}
}

// lying is a Store whose object has another checksum than was sent.
type lying struct{ Store }

func (l lying) Complete(ctx context.Context, u Upload, p []Part, f bool) (ObjectInfo, error) {
	info, err := l.Store.Complete(ctx, u, p, f)
	m := l.Store.(*memStore)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.objects[u.Object].info.CRC64 ^= 1
	info.CRC64 ^= 1
	return info, err
}

func TestUploadDeletesAnObjectThatIsWrong(t *testing.T) {
	m, o := newMemStore(), testOptions(t)
	_, err := UploadBlob(t.Context(), patient(lying{m}), testDst, disk.Bytes(randomBytes(1, 4*testPart)), o)
	if !errors.Is(err, ErrChecksum) || len(m.objects) != 0 || len(m.uploads) != 0 {
		t.Errorf("%v; %d objects, %d uploads", err, len(m.objects), len(m.uploads))
	}
	checkNoJournal(t, o.JournalDir)
}

// broken is a blob with a bad sector.
type broken struct{ disk.Bytes }

func (b broken) ReadAt(p []byte, off int64) (int, error) {
	if off >= 3*testPart {
		return 0, &fs.PathError{Op: "read", Path: "base.qcow2", Err: errors.New("input/output error")}
	}
	return b.Bytes.ReadAt(p, off)
}

func TestUploadOfUnreadableBlobIsFinal(t *testing.T) {
	m, o := newMemStore(), testOptions(t)
	_, err := UploadBlob(t.Context(), patient(m), testDst, broken{randomBytes(1, 5*testPart)}, o)
	if err == nil || Retryable(err) || !strings.Contains(err.Error(), "base.qcow2") || len(m.uploads) != 0 {
		t.Errorf("%v, %d uploads", err, len(m.uploads))
	}
}

func TestUploadRefusesPartSizesThatTheServiceWould(t *testing.T) {
	for _, c := range []struct{ size, part int64 }{{200 << 10, 99 << 10}, {1 << 30, 6 << 30}, {1001 << 20, 100 << 10}} {
		o := testOptions(t)
		o.PartSize = c.part
		if _, err := UploadBlob(t.Context(), newMemStore(), testDst, hollow(c.size), o); err == nil {
			t.Errorf("%d bytes in parts of %d were taken", c.size, c.part)
		}
	}
}

// A process is killed at a random request, before or behind its effect, and run again,
// possibly on another machine.
func TestUploadKilledAnywhereAndRunAgain(t *testing.T) {
	for seed := range uint64(100) {
		r := rand.New(rand.NewPCG(seed, 6))
		m, data, o := newMemStore(), randomBytes(seed, 1+r.IntN(12*testPart)), testOptions(t)
		m.noListCRC = r.IntN(2) == 0
		o.OwnKey, o.ForbidOverwrite = true, true
		killSome(t, r, &o, func(s Store) error {
			_, err := UploadBlob(t.Context(), patient(&faulty{Store: m, script: deathScript(r)}), testDst, disk.Bytes(data), o)
			return err
		})
		if _, err := UploadBlob(t.Context(), patient(m), testDst, disk.Bytes(data), o); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		checkObject(t, m, data, 1)
		checkNoJournal(t, o.JournalDir)
	}
}

// killSome runs something up to four times, which usually fails. Before a rerun the
// journal may get lost.
func killSome(t *testing.T, r *rand.Rand, o *UploadOptions, run func(Store) error) {
	for range r.IntN(4) {
		_ = run(nil)
		if r.IntN(3) == 0 {
			o.JournalDir = t.TempDir()
		}
	}
}

// deathScript lets a process die at a random request; some others fail.
func deathScript(r *rand.Rand) func(string) fault {
	left := r.IntN(25)
	faults := []fault{refused, dropped, lost, throttled, damaged}
	return func(string) fault {
		if left--; left < 0 {
			return dead
		}
		if r.IntN(6) == 0 {
			return faults[r.IntN(len(faults))]
		}
		return fine
	}
}

// hollow is a blob of zeros that takes no memory.
type hollow int64

func (h hollow) Size() int64 { return int64(h) }

func (h hollow) ReadAt(p []byte, off int64) (int, error) {
	n := int(min(int64(len(p)), int64(h)-off))
	clear(p[:n])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// sink is a Store that takes parts and forgets them.
type sinkStore struct {
	*memStore
	peak *atomic.Int64
}

func (s sinkStore) UploadPart(_ context.Context, _ Upload, num int, body io.ReadSeeker, size int64) (Part, error) {
	crc := crc64.New(crcTable)
	if _, err := io.CopyBuffer(struct{ io.Writer }{crc}, struct{ io.Reader }{body}, make([]byte, 32<<10)); err != nil {
		return Part{}, err
	}
	var ms runtime.MemStats
	runtime.ReadMemStats(&ms)
	for {
		old := s.peak.Load()
		if int64(ms.HeapAlloc) <= old || s.peak.CompareAndSwap(old, int64(ms.HeapAlloc)) {
			break
		}
	}
	return Part{Num: num, Size: size, ETag: fmt.Sprint(num), CRC64: crc.Sum64(), HasCRC64: true}, nil
}

func (s sinkStore) Complete(_ context.Context, u Upload, ps []Part, _ bool) (ObjectInfo, error) {
	var crc uint64
	var size int64
	for _, p := range ps {
		crc, size = CombineCRC64(crc, p.CRC64, p.Size), size+p.Size
	}
	return ObjectInfo{Object: u.Object, Size: size, CRC64: crc, HasCRC64: true}, nil
}

func TestUploadMemoryIsBoundByPartsInFlight(t *testing.T) {
	var ms runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&ms)
	s := sinkStore{newMemStore(), new(atomic.Int64)}
	o := testOptions(t)
	o.PartSize, o.JournalDir = 0, ""
	if _, err := UploadBlob(t.Context(), patient(s), testDst, hollow(512<<20), o); err != nil {
		t.Fatal(err)
	}
	if grew := s.peak.Load() - int64(ms.HeapAlloc); grew > 32<<20 {
		t.Errorf("the heap grew by %d bytes for 4 parts in flight", grew)
	}
}

func TestUploadKeepsToItsBandwidth(t *testing.T) {
	o := testOptions(t)
	o.BytesPerSecond, o.JournalDir = 4<<20, ""
	begun := time.Now()
	if _, err := UploadBlob(t.Context(), patient(newMemStore()), testDst, hollow(1<<20+256<<10), o); err != nil {
		t.Fatal(err)
	}
	// The first 256 KiB are free.
	if took := time.Since(begun); took < 240*time.Millisecond || took > 3*time.Second {
		t.Errorf("1 MiB at 4 MiB/s took %v", took)
	}
}

func BenchmarkUpload(b *testing.B) {
	s := sinkStore{newMemStore(), new(atomic.Int64)}
	o := testOptions(b)
	o.PartSize, o.JournalDir, o.Identity, o.Workers = 0, "", "", 0
	b.SetBytes(256 << 20)
	for b.Loop() {
		if _, err := UploadBlob(b.Context(), patient(s), testDst, hollow(256<<20), o); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(s.peak.Load())/(1<<20), "peak-MiB")
}

func TestJournalHoldsNoSecretsAndIsReplacedWhole(t *testing.T) {
	m, o := newMemStore(), testOptions(t)
	o.Keep, o.Tags, o.KMSKeyID = true, map[string]string{"owner": "TAG"}, "KEY"
	ctx, cancel := context.WithCancel(t.Context())
	s := &faulty{Store: m}
	s.script = func(op string) fault {
		if s.seen[op] == 3 {
			cancel()
		}
		return fine
	}
	_, _ = UploadBlob(ctx, patient(s), testDst, disk.Bytes(randomBytes(1, 9*testPart)), o)
	left, err := os.ReadDir(o.JournalDir)
	if err != nil || len(left) != 1 {
		t.Fatal(left, err)
	}
	name := o.JournalDir + "/" + left[0].Name()
	text, err := os.ReadFile(name)
	if err != nil || bytes.Contains(text, []byte("KEY")) || bytes.Contains(text, []byte("TAG")) {
		t.Errorf("%s, %v", text, err)
	}
	// Cut short anywhere, it is no journal, and no error.
	for n := range text {
		if err := os.WriteFile(name, text[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		j, err := openJournal(o.JournalDir, o.Identity, testDst)
		if err != nil || j.doc.UploadID != "" {
			t.Fatalf("%d bytes: %v, %v", n, j.doc, err)
		}
	}
}

func FuzzJournal(f *testing.F) {
	f.Add([]byte(`{"version":1,"bucket":"b","key":"k","identity":"i","uploadId":"u","parts":{"1":{"size":1,"etag":"x","crc64":"3"}}}`))
	f.Add([]byte(`{"version":1,"bucket":"b","key":"k","identity":"i","uploadId":"u","parts":null}`))
	f.Add([]byte(`{"version":1,"bucket":"b","key":"k","identity":"i","uploadId":"u1","layout":"x","parts":{"1":{"size":102400}}}`))
	f.Add([]byte("{"))
	f.Fuzz(func(t *testing.T, text []byte) {
		j, err := openJournal(t.TempDir(), "i", Object{Bucket: "b", Key: "k"})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(j.path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		if j, err = openJournal(strings.TrimSuffix(j.path, j.path[strings.LastIndex(j.path, "/"):]), "i", Object{Bucket: "b", Key: "k"}); err != nil {
			t.Fatal(err)
		}
		// Whatever it says, the object becomes right.
		m := newMemStore()
		data := randomBytes(1, 3*testPart)
		o := UploadOptions{Identity: "i", JournalDir: j.path[:strings.LastIndex(j.path, "/")], PartSize: testPart, Clock: testClock}
		if _, err := UploadBlob(t.Context(), m, Object{Bucket: "b", Key: "k"}, disk.Bytes(data), o); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(m.objects[Object{Bucket: "b", Key: "k"}].data, data) {
			t.Fatal("the object is wrong")
		}
	})
}
