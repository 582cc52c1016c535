package importer_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"remaster/internal/alibaba"
	"remaster/internal/sandbox"
	"remaster/pkg/disk"
	"remaster/pkg/importer"
)

// Transfers over the wire: through the client that talks to OSS, to a service that keeps
// OSS's rules.

const wirePart = 128 << 10

var (
	wireBase = importer.Object{Bucket: "images", Key: "base/alinux3.qcow2"}
	wireDst  = importer.Object{Bucket: "images", Key: "out/node one+.qcow2"}
)

type wire struct {
	box   *sandbox.Sandbox
	store importer.Store
	o     importer.UploadOptions
}

func newWire(t testing.TB, change func(*sandbox.Options)) *wire {
	t.Helper()
	so := sandbox.Options{Accounts: []sandbox.Account{{AccessKeyID: "LTAItest", Secret: "not-a-secret"}}}
	if change != nil {
		change(&so)
	}
	box := sandbox.New(so)
	if err := box.Start("127.0.0.1:0", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = box.Close() })
	if err := box.OSS.CreateBucket("images", "cn-hangzhou"); err != nil {
		t.Fatal(err)
	}
	w := &wire{box: box}
	w.store = w.client(t, nil)
	w.o = importer.UploadOptions{
		Identity: "sha256-of-it", OwnKey: true, JournalDir: t.TempDir(), PartSize: wirePart, Workers: 3,
		Clock: importer.Clock{Now: time.Now},
	}
	return w
}

// client returns a store with quick retries over a transport, or the usual one.
func (w *wire) client(t testing.TB, rt http.RoundTripper) importer.Store {
	t.Helper()
	c, err := alibaba.New(alibaba.Config{
		Region: "cn-hangzhou", OSSEndpoint: w.box.OSSEndpoint(), ECSEndpoint: w.box.ECSEndpoint(),
		AccessKeyID: "LTAItest", AccessKeySecret: "not-a-secret", NoMetadata: true, NoProxy: true, Transport: rt,
	})
	if err != nil {
		t.Fatal(err)
	}
	s, err := c.Store("")
	if err != nil {
		t.Fatal(err)
	}
	return importer.Retry(s, importer.Policy{Base: time.Millisecond, Stall: 300 * time.Millisecond, Reply: 5 * time.Second})
}

// check fails unless the bucket holds just these objects, the new one has the bytes, and
// no upload is left.
func (w *wire) check(t testing.TB, want []byte, keys int) {
	t.Helper()
	var got bytes.Buffer
	if err := w.box.OSS.WriteObject(&got, wireDst.Bucket, wireDst.Key); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Fatal("the object is not what was uploaded")
	}
	if k, u := w.box.OSS.Keys("images"), w.box.OSS.Uploads("images"); len(k) != keys || len(u) != 0 {
		t.Fatalf("objects %v, uploads %v", k, u)
	}
}

func noise(seed uint64, n int) []byte {
	p := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(p)
	return p
}

// remoteBase is the base as a blob that is read from the store.
type remoteBase struct {
	s    importer.Store
	info importer.ObjectInfo
}

func (b remoteBase) Size() int64 { return b.info.Size }

func (b remoteBase) ReadAt(p []byte, off int64) (int, error) {
	rc, err := b.s.Read(context.Background(), b.info.Object, b.info.ETag, off, min(int64(len(p)), b.info.Size-off))
	if err != nil {
		return 0, err
	}
	defer rc.Close()
	n := 0
	for n < len(p) {
		k, err := rc.Read(p[n:])
		if n += k; err != nil {
			return n, err
		}
	}
	return n, nil
}

// edited puts a base into the store and edits it as a qcow2 is edited: the head, and
// behind the end.
func (w *wire) edited(t testing.TB, size int) (importer.ObjectInfo, *disk.Overlay, []byte) {
	t.Helper()
	base := noise(1, size)
	if err := w.box.OSS.CreateObject(wireBase.Bucket, wireBase.Key, bytes.NewReader(base)); err != nil {
		t.Fatal(err)
	}
	info, err := w.store.Head(t.Context(), wireBase)
	if err != nil {
		t.Fatal(err)
	}
	v := disk.NewOverlay(remoteBase{w.store, info}, disk.OverlayOptions{})
	t.Cleanup(func() { _ = v.Close() })
	tail := noise(2, 300_000)
	if err := v.Grow(int64(size + len(tail))); err != nil {
		t.Fatal(err)
	}
	for off, p := range map[int64][]byte{40: noise(3, 64), int64(size): tail} {
		if _, err := v.WriteAt(p, off); err != nil {
			t.Fatal(err)
		}
	}
	want := append(bytes.Clone(base), tail...)
	copy(want[40:], noise(3, 64))
	w.box.ResetCounters()
	return info, v, want
}

func TestWireUploadAndRerun(t *testing.T) {
	for _, size := range []int{0, 1000, 5*wirePart + 1} {
		w := newWire(t, nil)
		data := noise(1, size)
		w.o.ForbidOverwrite, w.o.Tags = true, map[string]string{"made-by": "remaster"}
		r, err := importer.UploadBlob(t.Context(), w.store, wireDst, disk.Bytes(data), w.o)
		if err != nil || !r.Checked {
			t.Fatalf("%+v, %v", r, err)
		}
		w.check(t, data, 1)
		r, err = importer.UploadBlob(t.Context(), w.store, wireDst, disk.Bytes(data), w.o)
		if err != nil || r.Way != importer.WayPresent {
			t.Errorf("rerun: %+v, %v", r, err)
		}
	}
}

func TestWireDelta(t *testing.T) {
	for _, noCRC := range []bool{false, true} {
		w := newWire(t, func(o *sandbox.Options) { o.NoCopyCRC = noCRC })
		info, v, want := w.edited(t, 8<<20)
		w.o.PartSize = 0
		r, err := importer.DeltaUpload(t.Context(), w.store, wireBase, info, v, wireDst, w.o)
		if err != nil || r.Way != importer.WayDelta || r.Parts != 3 || r.Checked == noCRC {
			t.Fatalf("%+v, %v", r, err)
		}
		w.check(t, want, 2)
		c := w.box.Counters()
		t.Logf("%+v", c)
		if r.Sent != 300_000+100<<10 {
			t.Errorf("sent %d bytes", r.Sent)
		}
	}
}

func TestWireEachRequestFailsOnce(t *testing.T) {
	ops := []string{"HeadObject", "ListMultipartUploads", "InitiateMultipartUpload", "UploadPart", "UploadPartCopy", "CompleteMultipartUpload", "GetObject"}
	for _, f := range []sandbox.Fault{
		{Kind: sandbox.Refuse}, {Kind: sandbox.Refuse, Status: 500}, {Kind: sandbox.RefuseAfter}, {Kind: sandbox.Drop, After: 1000},
		{Kind: sandbox.LoseReply}, {Kind: sandbox.CutReply, After: 10},
		{Kind: sandbox.Stall, After: 1000, Delay: time.Second}, {Kind: sandbox.Slow, Delay: 10 * time.Millisecond},
	} {
		t.Run(fmt.Sprint(f.Kind, f.Status), func(t *testing.T) {
			t.Parallel()
			w := newWire(t, nil)
			w.o.ForbidOverwrite = true
			info, v, want := w.edited(t, 1<<20)
			for _, op := range ops {
				f := f
				f.Op = op
				w.box.Inject(f)
			}
			for n := 1; n <= 3; n++ {
				f := f
				f.Op, f.PartNumber = "UploadPart", n
				w.box.Inject(f)
			}
			r, err := importer.DeltaUpload(t.Context(), w.store, wireBase, info, v, wireDst, w.o)
			if err != nil || !r.Checked {
				t.Fatalf("%+v, %v", r, err)
			}
			w.check(t, want, 2)
		})
	}
}

// A checksum that differs is worth another try, of the part alone.
func TestWirePartWithAnotherChecksumIsSentAgain(t *testing.T) {
	w := newWire(t, nil)
	data := noise(1, 3*wirePart)
	w.box.Inject(sandbox.Fault{Op: "UploadPart", PartNumber: 2, Kind: sandbox.WrongCRC})
	r, err := importer.UploadBlob(t.Context(), w.store, wireDst, disk.Bytes(data), w.o)
	if err != nil || !r.Checked || r.Sent != 4*wirePart {
		t.Fatalf("%+v, %v", r, err)
	}
	w.check(t, data, 1)
}

func TestWireCopyIsNotAllowed(t *testing.T) {
	w := newWire(t, nil)
	info, v, want := w.edited(t, 1<<20)
	w.box.Inject(sandbox.Fault{Op: "UploadPartCopy", Kind: sandbox.Refuse, Status: 403, Code: "AccessDenied", Times: -1})
	r, err := importer.DeltaUpload(t.Context(), w.store, wireBase, info, v, wireDst, w.o)
	if err != nil || r.Way != importer.WayMultipart || r.Why == "" {
		t.Fatalf("%+v, %v", r, err)
	}
	w.check(t, want, 2)
}

// mortal is a transport that dies at a request, before or behind its effect, for good.
type mortal struct {
	left atomic.Int64
	lose bool
}

func (m *mortal) RoundTrip(r *http.Request) (*http.Response, error) {
	n := m.left.Add(-1)
	if n < 0 {
		if r.Body != nil {
			_ = r.Body.Close()
		}
		return nil, fmt.Errorf("killed: %w", context.Canceled)
	}
	resp, err := http.DefaultTransport.RoundTrip(r)
	if n == 0 && m.lose && err == nil {
		_ = resp.Body.Close()
		return nil, fmt.Errorf("killed: %w", context.Canceled)
	}
	return resp, err
}

func TestWireKilledAtEachRequestAndRunAgain(t *testing.T) {
	for _, delta := range []bool{false, true} {
		for at := range int64(16) {
			w := newWire(t, nil)
			w.o.ForbidOverwrite = true
			info, v, want := w.edited(t, 1<<20)
			run := func(s importer.Store) error {
				var err error
				if delta {
					_, err = importer.DeltaUpload(t.Context(), s, wireBase, info, v, wireDst, w.o)
				} else {
					_, err = importer.UploadBlob(t.Context(), s, wireDst, disk.Bytes(want), w.o)
				}
				return err
			}
			m := &mortal{lose: at%2 == 0}
			m.left.Store(at)
			_ = run(w.client(t, m))
			if at%3 == 0 { // another machine
				w.o.JournalDir = t.TempDir()
			}
			if err := run(w.store); err != nil {
				t.Fatalf("delta %v, killed at request %d: %v", delta, at, err)
			}
			w.check(t, want, 2)
		}
	}
}

func TestWireGC(t *testing.T) {
	w := newWire(t, nil)
	for _, key := range []string{"out/a", "out/b", "keep"} {
		if _, err := w.store.CreateUpload(t.Context(), importer.Object{Bucket: "images", Key: key}, importer.PutOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	out, err := importer.GC(t.Context(), w.store, "images", "out/", importer.GCOptions{Now: time.Now().Add(2 * time.Hour), OlderThan: time.Hour})
	if err != nil || len(out) != 2 || len(w.box.OSS.Uploads("images")) != 1 {
		t.Errorf("%+v, %v, left %v", out, err, w.box.OSS.Uploads("images"))
	}
	// Cancelled, it says so.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := importer.GC(ctx, w.store, "images", "", importer.GCOptions{Now: time.Now()}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
