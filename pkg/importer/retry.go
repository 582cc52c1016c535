package importer

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"time"

	"remaster/internal/hint"
)

// Policy says how requests are repeated. The zero value is usable.
type Policy struct {
	// Tries is how often a request is made at most; 0 means 10.
	Tries int
	// A try that failed is followed by a pause of a random length up to Base, which
	// doubles with each one, to Max at most. 0 means 250 ms and 20 s.
	Base, Max time.Duration
	// Stall is how long no byte of a body may move, beside the time that it takes to
	// get the bytes; 0 means 30 s.
	Stall time.Duration
	// Reply is how long a reply may take once the request was sent; 0 means 1 min.
	Reply time.Duration
	// Work is the same for CopyPart and Complete, where the service moves the bytes
	// of the part or checks all of them; 0 means 15 min.
	Work time.Duration
	// Clock is for the pauses; Now is not used.
	Clock Clock
	// Note, if not nil, is told of each failure that is followed by another try. It
	// may be called by many goroutines at once.
	Note func(Failure)
}

// Failure is a try of a request that failed.
type Failure struct {
	Op    string // the request: "UploadPart"
	Try   int    // from 1
	Err   error
	Pause time.Duration // until the next try
}

// errStalled is the cause of a request that was given up because nothing moved.
var errStalled = errors.New("no progress")

// Retry returns a Store that repeats what fails for a reason that may pass: see
// [Retryable]. Requests whose bytes do not move, or whose reply does not come, are given
// up and repeated, too. A read goes on where it broke off, if it names an ETag.
//
// Complete alone is made only once: whether it was done must be looked up before it is
// made again, as [UploadBlob] does. A CreateUpload that is repeated may leave an upload
// behind; see [UploadOptions].OwnKey and [GC].
func Retry(s Store, p Policy) Store {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&p.Base, 250*time.Millisecond)
	def(&p.Max, 20*time.Second)
	def(&p.Stall, 30*time.Second)
	def(&p.Reply, time.Minute)
	def(&p.Work, 15*time.Minute)
	if p.Tries == 0 {
		p.Tries = 10
	}
	if p.Clock.Sleep == nil {
		p.Clock.Sleep = sleepTimer
	}
	if p.Clock.Rand == nil {
		p.Clock.Rand = func() float64 { return 0.5 }
	}
	return &retrying{s, p}
}

// Codes by which OSS and ECS ask for patience whatever the HTTP status is.
var codesPassing = []string{
	"Throttling*", "ServiceUnavailable", "InternalError", "RequestTimeout", "ConnectionTimeout",
	"QpsLimitExceeded", "TooManyRequests", "SlowDown",
}

// Codes that a request signed anew may not get: it was held up, or its token has just
// been replaced. They get a second try and no third, as does a wrong range.
var codesSignature = []string{"RequestTimeTooSkewed", "SecurityTokenExpired", "InvalidSecurityToken.Expired"}

// Retryable reports whether what failed with err may succeed if nothing but time goes
// by: the service was overloaded or out of order, the network broke or was too slow, or
// bytes were damaged on their way. Refusals, errors of a local file and cancellation are
// final.
func Retryable(err error) bool {
	if err == nil || errors.Is(err, context.Canceled) {
		return false
	}
	if e, ok := errors.AsType[*ServiceError](err); ok {
		switch {
		case isCode(e, codesPassing...) || strings.HasSuffix(e.Code, "TrafficRateLimitExceeded"):
			return true
		case e.Status == http.StatusRequestTimeout || e.Status == http.StatusTooManyRequests:
			return true
		}
		return e.Status >= 500 && e.Status != http.StatusNotImplemented
	}
	for _, passing := range []error{
		ErrChecksum, errStalled, context.DeadlineExceeded, io.EOF, io.ErrUnexpectedEOF, net.ErrClosed,
		syscall.ECONNRESET, syscall.ECONNREFUSED, syscall.ECONNABORTED, syscall.EPIPE,
		syscall.ETIMEDOUT, syscall.ENETUNREACH, syscall.EHOSTUNREACH,
	} {
		if errors.Is(err, passing) {
			return true
		}
	}
	if e, ok := errors.AsType[*net.DNSError](err); ok {
		return !e.IsNotFound
	}
	if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() {
		return true
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return false
	}
	// The rest of what a connection of net/http dies of has no type.
	for _, s := range []string{"http: server closed idle connection", "net/http: HTTP/1.x transport connection broken", "http2: "} {
		if strings.Contains(err.Error(), s) {
			return true
		}
	}
	return false
}

type retrying struct {
	s Store
	p Policy
}

// pause waits before the try after number try, which failed with err. It returns what
// there is to report if there is to be none.
func (r *retrying) pause(ctx context.Context, op string, try int, err error) error {
	second := isCode(err, codesSignature...) || errors.Is(err, ErrRange)
	if isCode(err, "RequestTimeTooSkewed") {
		err = hint.With(err, "set this machine's clock: the service accepts requests that are up to 15 minutes old")
	}
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("%w (%w)", context.Cause(ctx), err)
	case !Retryable(err) && !second, second && try > 1:
		return err
	case try >= r.p.Tries:
		return fmt.Errorf("after %d tries: %w", try, err)
	}
	d := r.p.Max
	if shift := try - 1; shift < 30 {
		d = min(d, r.p.Base<<shift)
	}
	d = time.Duration(float64(d) * r.p.Clock.Rand())
	if r.p.Note != nil {
		r.p.Note(Failure{op, try, err, d})
	}
	if stop := r.p.Clock.Sleep(ctx, d); stop != nil {
		return fmt.Errorf("%w (%w)", stop, err)
	}
	return nil
}

// try makes a request until it succeeds or there is nothing to be hoped for. f gets the
// timer that gives the try up after wait.
func try[T any](ctx context.Context, r *retrying, op string, wait time.Duration, f func(ctx context.Context, t *time.Timer) (T, error)) (T, error) {
	for n := 1; ; n++ {
		v, err := attempt(ctx, wait, f)
		if err == nil {
			return v, nil
		}
		if err := r.pause(ctx, op, n, err); err != nil {
			var none T
			return none, err
		}
	}
}

// attempt makes a request once.
func attempt[T any](ctx context.Context, wait time.Duration, f func(ctx context.Context, t *time.Timer) (T, error)) (T, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	t := time.AfterFunc(wait, func() { cancel(errStalled) })
	defer t.Stop()
	v, err := f(ctx, t)
	if err != nil && errors.Is(context.Cause(ctx), errStalled) {
		// The error only tells of the cancellation.
		err = errStalled
	}
	return v, err
}

func (r *retrying) BucketInfo(ctx context.Context, bucket string) (BucketInfo, error) {
	return ask(ctx, r, "GetBucketInfo", r.p.Reply, func(ctx context.Context) (BucketInfo, error) {
		return r.s.BucketInfo(ctx, bucket)
	})
}

func (r *retrying) Head(ctx context.Context, o Object) (ObjectInfo, error) {
	return ask(ctx, r, "HeadObject", r.p.Reply, func(ctx context.Context) (ObjectInfo, error) {
		return r.s.Head(ctx, o)
	})
}

// slowest is the speed, in bytes per second, below which a Put is given up: how far its
// body is can't be seen.
const slowest = 32 << 10

func (r *retrying) Put(ctx context.Context, o Object, body []byte, p PutOptions) (ObjectInfo, error) {
	wait := r.p.Reply + time.Duration(len(body))*time.Second/slowest
	return ask(ctx, r, "PutObject", wait, func(ctx context.Context) (ObjectInfo, error) {
		return r.s.Put(ctx, o, body, p)
	})
}

func (r *retrying) CreateUpload(ctx context.Context, o Object, p PutOptions) (Upload, error) {
	return ask(ctx, r, "InitiateMultipartUpload", r.p.Reply, func(ctx context.Context) (Upload, error) {
		return r.s.CreateUpload(ctx, o, p)
	})
}

func (r *retrying) UploadPart(ctx context.Context, u Upload, num int, body io.ReadSeeker, size int64) (Part, error) {
	var broken error // reading the body failed
	p, err := try(ctx, r, "UploadPart", r.p.Stall, func(ctx context.Context, t *time.Timer) (Part, error) {
		if _, err := body.Seek(0, io.SeekStart); err != nil {
			return Part{}, err
		}
		w := &watched{body: body, size: size, timer: t, stall: r.p.Stall, reply: r.p.Reply}
		p, err := r.s.UploadPart(ctx, u, num, w, size)
		if broken = w.detach(); broken != nil {
			// Final: what the body is read from has its own retries. Its error can't be
			// told from one of the service.
			return Part{}, errBody
		}
		return p, err
	})
	if broken != nil {
		return p, fmt.Errorf("read part %d: %w", num, broken)
	}
	return p, err
}

var errBody = errors.New("the body can't be read")

func (r *retrying) CopyPart(ctx context.Context, u Upload, num int, src Object, ifMatch string, off, n int64) (Part, error) {
	return ask(ctx, r, "UploadPartCopy", r.p.Work, func(ctx context.Context) (Part, error) {
		return r.s.CopyPart(ctx, u, num, src, ifMatch, off, n)
	})
}

func (r *retrying) ListParts(ctx context.Context, u Upload) ([]Part, error) {
	return ask(ctx, r, "ListParts", r.p.Work, func(ctx context.Context) ([]Part, error) {
		return r.s.ListParts(ctx, u)
	})
}

func (r *retrying) Complete(ctx context.Context, u Upload, parts []Part, forbidOverwrite bool) (ObjectInfo, error) {
	return attempt(ctx, r.p.Work, func(ctx context.Context, _ *time.Timer) (ObjectInfo, error) {
		return r.s.Complete(ctx, u, parts, forbidOverwrite)
	})
}

func (r *retrying) Abort(ctx context.Context, u Upload) error {
	_, err := ask(ctx, r, "AbortMultipartUpload", r.p.Reply, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, r.s.Abort(ctx, u)
	})
	return err
}

func (r *retrying) ListUploads(ctx context.Context, bucket, prefix string) ([]Upload, error) {
	return ask(ctx, r, "ListMultipartUploads", r.p.Work, func(ctx context.Context) ([]Upload, error) {
		return r.s.ListUploads(ctx, bucket, prefix)
	})
}

func (r *retrying) List(ctx context.Context, bucket, prefix string) ([]ObjectInfo, error) {
	return ask(ctx, r, "ListObjects", r.p.Work, func(ctx context.Context) ([]ObjectInfo, error) {
		return r.s.List(ctx, bucket, prefix)
	})
}

func (r *retrying) Delete(ctx context.Context, o Object) error {
	_, err := ask(ctx, r, "DeleteObject", r.p.Reply, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, r.s.Delete(ctx, o)
	})
	return err
}

// watched is the body of one try of an upload. The timer runs while the bytes are under
// way, and not while they are read.
type watched struct {
	stall, reply time.Duration

	mu    sync.Mutex
	body  io.ReadSeeker // nil when the try is over
	timer *time.Timer
	pos   int64
	size  int64
	err   error // of body
}

// errOver is what a transport gets that still reads when its request has ended.
var errOver = errors.New("the request has ended")

func (w *watched) Read(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.body == nil {
		return 0, errOver
	}
	w.timer.Stop()
	n, err := w.body.Read(p)
	w.pos += int64(n)
	if err != nil && !errors.Is(err, io.EOF) {
		w.err = err
	}
	if w.pos < w.size {
		w.timer.Reset(w.stall)
	} else {
		w.timer.Reset(w.reply)
	}
	return n, err
}

func (w *watched) Seek(off int64, whence int) (int64, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.body == nil {
		return 0, errOver
	}
	pos, err := w.body.Seek(off, whence)
	if err == nil {
		w.pos = pos
	}
	return pos, err
}

// detach keeps the transport, which may go on reading when the request has failed, from
// the body, and returns the error that reading it gave.
func (w *watched) detach() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.body = nil
	return w.err
}

// Read implements Store.
func (r *retrying) Read(ctx context.Context, o Object, ifMatch string, off, n int64) (io.ReadCloser, error) {
	b := &resuming{r: r, ctx: ctx, o: o, ifMatch: ifMatch, off: off, left: n}
	if err := b.open(); err != nil {
		return nil, err
	}
	return b, nil
}

// resuming is a read that goes on where it broke off.
type resuming struct {
	r       *retrying
	ctx     context.Context // of the read
	o       Object
	ifMatch string
	off     int64
	left    int64

	rc     io.ReadCloser // nil when it broke off
	own    context.Context
	cancel context.CancelCauseFunc // of own
	broken error                   // why it broke off
	tries  int                     // without any progress
}

// open asks for what is left.
func (b *resuming) open() error {
	rc, err := try(b.ctx, b.r, "GetObject", b.r.p.Reply, func(ctx context.Context, _ *time.Timer) (io.ReadCloser, error) {
		// The body outlives the try.
		own, cancel := context.WithCancelCause(b.ctx)
		stop := context.AfterFunc(ctx, func() { cancel(context.Cause(ctx)) })
		rc, err := b.r.s.Read(own, b.o, b.ifMatch, b.off, b.left)
		if err == nil && !stop() {
			err = errors.Join(context.Cause(ctx), rc.Close())
		}
		if err != nil {
			cancel(nil)
			return nil, err
		}
		b.own, b.cancel = own, cancel
		return rc, nil
	})
	if err != nil {
		return err
	}
	b.rc = rc
	return nil
}

func (b *resuming) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, io.EOF
	}
	for len(p) > 0 {
		if b.rc == nil {
			if err := b.reopen(); err != nil {
				return 0, err
			}
		}
		cancel := b.cancel
		t := time.AfterFunc(b.r.p.Stall, func() { cancel(errStalled) })
		n, err := b.rc.Read(p[:min(int64(len(p)), b.left)])
		t.Stop()
		b.off, b.left = b.off+int64(n), b.left-int64(n)
		if n > 0 {
			b.tries = 0
		}
		if err != nil && b.left > 0 {
			b.breakOff(err)
		}
		if n > 0 || b.left == 0 {
			return n, nil
		}
	}
	return 0, nil
}

// breakOff closes a body that ended early with err.
func (b *resuming) breakOff(err error) {
	switch {
	case errors.Is(err, io.EOF):
		err = io.ErrUnexpectedEOF
	case errors.Is(context.Cause(b.own), errStalled):
		err = errStalled
	}
	b.cancel(nil)
	_ = b.rc.Close() // what broke it is known
	b.broken, b.rc = err, nil
}

// reopen asks again, after a pause.
func (b *resuming) reopen() error {
	if b.ifMatch == "" {
		return b.broken // what is there now may be another object
	}
	b.tries++
	if err := b.r.pause(b.ctx, "GetObject", b.tries, b.broken); err != nil {
		return err
	}
	return b.open()
}

func (b *resuming) Close() error {
	b.left = 0
	if b.rc == nil {
		return nil
	}
	err := b.rc.Close()
	b.cancel(nil)
	b.rc = nil
	return err
}
