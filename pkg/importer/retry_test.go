package importer

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/url"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"remaster/internal/hint"
	"remaster/pkg/disk"
)

func TestRetryable(t *testing.T) {
	broke := &url.Error{Op: "Put", URL: "https://b", Err: &net.OpError{Op: "write", Err: syscall.EPIPE}}
	for _, c := range []struct {
		err  error
		want bool
	}{
		{nil, false},
		{errors.New("something else"), false},
		{refusal("Put", 500, "InternalError"), true},
		{refusal("Put", 503, ""), true},
		{refusal("Put", 501, "NotImplemented"), false},
		{refusal("Put", 400, "RequestTimeout"), true},
		{refusal("Put", 429, "Whatever"), true},
		{refusal("ImportImage", 400, "Throttling"), true},
		{refusal("ImportImage", 400, "Throttling.User"), true},
		{refusal("GetObject", 403, "DownloadTrafficRateLimitExceeded"), true},
		{refusal("Put", 403, "AccessDenied"), false},
		{refusal("Put", 403, "RequestTimeTooSkewed"), false},
		{refusal("Head", 404, "NoSuchKey"), false},
		{refusal("Put", 409, "FileAlreadyExists"), false},
		{fmt.Errorf("part 3: %w", ErrChecksum), true},
		{ErrRange, false},
		{fmt.Errorf("x: %w", io.ErrUnexpectedEOF), true},
		{context.DeadlineExceeded, true},
		{context.Canceled, false},
		{errors.Join(context.Canceled, io.ErrUnexpectedEOF), false},
		{broke, true},
		{&url.Error{Op: "Put", Err: io.EOF}, true},
		{&url.Error{Op: "Put", Err: errors.New("http: server closed idle connection")}, true},
		{&url.Error{Op: "Put", Err: errors.New("unsupported protocol scheme")}, false},
		{&url.Error{Op: "Put", Err: &tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}}, false},
		{&url.Error{Op: "Get", Err: &net.DNSError{IsNotFound: true}}, false},
		{&url.Error{Op: "Get", Err: &net.DNSError{IsTemporary: true}}, true},
		{&net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}, true},
		{&fs.PathError{Op: "read", Path: "f", Err: syscall.EIO}, false},
	} {
		if got := Retryable(c.err); got != c.want {
			t.Errorf("%v: %v", c.err, got)
		}
	}
}

func TestRetryPausesWithFullJitterAndGivesUp(t *testing.T) {
	var pauses []time.Duration
	var failures []Failure
	r := rand.New(rand.NewPCG(1, 1))
	p := Policy{
		Tries: 9, Base: 100 * time.Millisecond, Max: 2 * time.Second,
		Clock: Clock{Rand: r.Float64, Sleep: func(_ context.Context, d time.Duration) error {
			pauses = append(pauses, d)
			return nil
		}},
		Note: func(f Failure) { failures = append(failures, f) },
	}
	s := &faulty{Store: newMemStore(), script: func(string) fault { return refused }}
	_, err := Retry(s, p).Head(t.Context(), testDst)
	if !Retryable(err) || s.seen["Head"] != 9 || len(pauses) != 8 || len(failures) != 8 {
		t.Fatalf("%v, %d tries, pauses %v", err, s.seen["Head"], pauses)
	}
	most := p.Base
	spread := map[time.Duration]bool{}
	for i, d := range pauses {
		if d < 0 || d > most || failures[i].Pause != d || failures[i].Try != i+1 || failures[i].Op != "HeadObject" {
			t.Errorf("pause %d of %v, at most %v; %+v", i, d, most, failures[i])
		}
		spread[d] = true
		most = min(2*most, p.Max)
	}
	if len(spread) < 8 {
		t.Errorf("no jitter: %v", pauses)
	}
}

func TestRetryDoesNotRepeatRefusalsOrCancellation(t *testing.T) {
	s := &faulty{Store: newMemStore(), script: func(string) fault { return denied }}
	if _, err := patient(s).Head(t.Context(), testDst); Code(err) != "AccessDenied" || s.seen["Head"] != 1 {
		t.Errorf("%v, %d tries", err, s.seen["Head"])
	}
	ctx, cancel := context.WithCancel(t.Context())
	s = &faulty{Store: newMemStore(), script: func(string) fault { cancel(); return refused }}
	if _, err := patient(s).Head(ctx, testDst); !errors.Is(err, context.Canceled) || Code(err) != "ServiceUnavailable" || s.seen["Head"] != 1 {
		t.Errorf("%v, %d tries", err, s.seen["Head"])
	}
}

func TestRetryOfSkewedClockTriesTwiceAndTellsTheRemedy(t *testing.T) {
	n := 0
	s := skewed{newMemStore(), &n}
	_, err := patient(s).Head(t.Context(), testDst)
	if Code(err) != "RequestTimeTooSkewed" || n != 2 || len(hint.Of(err)) != 1 {
		t.Errorf("%v, %d tries, hints %v", err, n, hint.Of(err))
	}
}

type skewed struct {
	Store
	n *int
}

func (s skewed) Head(context.Context, Object) (ObjectInfo, error) {
	*s.n++
	return ObjectInfo{}, refusal("HeadObject", 403, "RequestTimeTooSkewed")
}

// slow is a Store whose transfers get stuck, as often as script says.
type slow struct {
	*memStore
	mu    sync.Mutex
	stuck int           // how many requests get stuck
	after int           // bytes
	pace  time.Duration // for each read otherwise
	tries int
	late  io.Reader // the body of the request that was stuck last
}

func (s *slow) isStuck() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tries++
	return s.tries <= s.stuck
}

func (s *slow) UploadPart(ctx context.Context, u Upload, num int, body io.ReadSeeker, size int64) (Part, error) {
	stuck := s.isStuck()
	data := make([]byte, 0, size)
	buf := make([]byte, 4096)
	for {
		n, err := body.Read(buf)
		data = append(data, buf[:n]...)
		if stuck && len(data) >= s.after {
			s.mu.Lock()
			s.late = body
			s.mu.Unlock()
			<-ctx.Done()
			return Part{}, ctx.Err()
		}
		time.Sleep(s.pace)
		if errors.Is(err, io.EOF) {
			return s.memStore.UploadPart(ctx, u, num, bytes.NewReader(data), size)
		}
		if err != nil {
			return Part{}, err
		}
	}
}

func (s *slow) CopyPart(ctx context.Context, u Upload, num int, src Object, m string, off, n int64) (Part, error) {
	if s.isStuck() {
		<-ctx.Done()
		return Part{}, ctx.Err()
	}
	return s.memStore.CopyPart(ctx, u, num, src, m, off, n)
}

func (s *slow) Read(ctx context.Context, o Object, m string, off, n int64) (io.ReadCloser, error) {
	rc, err := s.memStore.Read(ctx, o, m, off, n)
	if err != nil {
		return nil, err
	}
	return &slowBody{rc, s, ctx, s.isStuck(), 0}, nil
}

type slowBody struct {
	io.ReadCloser
	s     *slow
	ctx   context.Context
	stuck bool
	n     int
}

func (b *slowBody) Read(p []byte) (int, error) {
	if b.stuck && b.n >= b.s.after {
		<-b.ctx.Done()
		return 0, b.ctx.Err()
	}
	time.Sleep(b.s.pace)
	n, err := b.ReadCloser.Read(p[:min(len(p), 1000)])
	b.n += n
	return n, err
}

func TestRetryOfStalledUploadPart(t *testing.T) {
	for _, after := range []int{0, 50_000, testPart} { // with the last, the reply does not come
		synctest.Test(t, func(t *testing.T) {
			s := &slow{memStore: newMemStore(), stuck: 2, after: after}
			data := randomBytes(1, testPart)
			u, _ := s.CreateUpload(t.Context(), testDst, PutOptions{})
			begun := time.Now()
			p, err := Retry(s, Policy{}).UploadPart(t.Context(), u, 1, bytes.NewReader(data), testPart)
			want := 2*30*time.Second + 375*time.Millisecond
			if after == testPart {
				want = 2*time.Minute + 375*time.Millisecond
			}
			if took := time.Since(begun); err != nil || p.Size != testPart || took != want {
				t.Errorf("behind %d bytes: %v after %v, want %v", after, err, took, want)
			}
			if n, err := s.late.Read(make([]byte, 1)); n != 0 || !errors.Is(err, errOver) {
				t.Error("a transport can read the body when its request has ended")
			}
		})
	}
}

func TestRetryLeavesSlowTransfersAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &slow{memStore: newMemStore(), pace: 25 * time.Second}
		u, _ := s.CreateUpload(t.Context(), testDst, PutOptions{})
		r := Retry(s, Policy{})
		if _, err := r.UploadPart(t.Context(), u, 1, bytes.NewReader(randomBytes(1, testPart)), testPart); err != nil || s.tries != 1 {
			t.Errorf("%v, %d tries", err, s.tries)
		}
		// A body that is slow itself: a base that is being downloaded.
		s.pace, s.tries = 0, 0
		slept := &slowReader{bytes.NewReader(randomBytes(1, testPart))}
		if _, err := r.UploadPart(t.Context(), u, 1, slept, testPart); err != nil || s.tries != 1 {
			t.Errorf("%v, %d tries", err, s.tries)
		}
	})
}

type slowReader struct{ *bytes.Reader }

func (s *slowReader) Read(p []byte) (int, error) {
	time.Sleep(time.Minute)
	return s.Reader.Read(p)
}

func TestRetryOfStalledCopyWaitsLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &slow{memStore: newMemStore(), stuck: 1}
		info, _ := s.Put(t.Context(), testSrc, randomBytes(1, 1000), PutOptions{})
		u, _ := s.CreateUpload(t.Context(), testDst, PutOptions{})
		begun := time.Now()
		_, err := Retry(s, Policy{}).CopyPart(t.Context(), u, 1, testSrc, info.ETag, 0, 1000)
		if took := time.Since(begun); err != nil || took.Round(time.Minute) != 15*time.Minute {
			t.Errorf("%v after %v", err, took)
		}
	})
}

func TestRetryGoesOnWithABrokenRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &slow{memStore: newMemStore(), stuck: 3, after: 7000}
		data := randomBytes(1, 50_000)
		info, _ := s.Put(t.Context(), testSrc, data, PutOptions{})
		r := Retry(s, Policy{})
		rc, err := r.Read(t.Context(), testSrc, info.ETag, 100, 40_000)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(rc)
		if err != nil || !slices.Equal(got, data[100:40_100]) || s.tries != 4 || rc.Close() != nil {
			t.Errorf("%d bytes, %v, %d tries", len(got), err, s.tries)
		}
		// Only what was missing was read again.
		if n := s.bytes["read"]; n > 40_000+33_000+26_000+19_000 {
			t.Errorf("%d bytes were asked for", n)
		}
		// Without an ETag the object may be another one by now.
		s.tries = 0
		rc, err = r.Read(t.Context(), testSrc, "", 0, 40_000)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(rc); !Retryable(err) || s.tries != 1 || rc.Close() != nil {
			t.Errorf("%v, %d tries", err, s.tries)
		}
	})
}

func TestRetryOfReadEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &slow{memStore: newMemStore(), stuck: 100, after: 10}
		info, _ := s.Put(t.Context(), testSrc, randomBytes(1, 5000), PutOptions{})
		ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
		defer cancel()
		rc, err := Retry(s, Policy{}).Read(ctx, testSrc, info.ETag, 0, 5000)
		if err != nil {
			t.Fatal(err)
		}
		if _, err = io.ReadAll(rc); !errors.Is(err, context.DeadlineExceeded) || rc.Close() != nil {
			t.Errorf("got %v", err)
		}
	})
}

func TestUploadOfStalledPartsSucceeds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &slow{memStore: newMemStore(), stuck: 5, after: 60_000}
		data, o := randomBytes(1, 6*testPart), testOptions(t)
		o.Clock.Now = time.Now
		r, err := UploadBlob(t.Context(), Retry(s, Policy{}), testDst, disk.Bytes(data), o)
		if err != nil || r.Duration < 30*time.Second || r.Sent <= int64(len(data)) {
			t.Fatalf("%+v, %v", r, err)
		}
		checkObject(t, s.memStore, data, 1)
	})
}
