package sandbox

import (
	"context"
	"io"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"
)

// FaultKind is what goes wrong.
type FaultKind int

// The kinds of faults.
const (
	// Refuse replies with Status and Code, and the request has no effect.
	Refuse FaultKind = iota
	// RefuseAfter replies with Status and Code although the request had its effect.
	RefuseAfter
	// Drop closes the connection after reading After bytes of the request's body; the
	// request has no effect.
	Drop
	// LoseReply closes the connection when the request had its effect.
	LoseReply
	// CutReply closes the connection after After bytes of the reply's body.
	CutReply
	// Stall waits for Delay after After bytes of the request's body, or of the reply's
	// when the request has none, and goes on then.
	Stall
	// Slow waits for Delay before each 64 KiB of the reply's body and of the request's.
	Slow
	// WrongCRC replies with a CRC64 header that is not the object's.
	WrongCRC
	// Corrupt flips a bit of the reply's body, at After.
	Corrupt
)

// Fault is one thing that goes wrong, for the requests that it matches: by all of the
// fields that are set.
type Fault struct {
	Op         string // "UploadPart", "ImportImage"
	Key        string // the object
	PartNumber int
	Match      func(r *http.Request, op string) bool // must not read the body

	Nth   int // the first of the matching requests that is hit, from 1; 0 is 1
	Times int // how many are hit; 0 is 1, and below 0 is all

	Kind    FaultKind
	Status  int    // 503 if 0
	Code    string // by Status if empty
	Message string
	After   int64 // bytes
	// Delay is of real time. That a client has gone is noticed at once while the reply
	// waits, but only after the delay while its request does.
	Delay time.Duration
}

// faults is the script. Its methods may be called by many goroutines at once.
type faults struct {
	mu   sync.Mutex
	list []*pending
}

type pending struct {
	Fault
	seen, hit int
}

// target is what a fault is matched with.
type target struct {
	op, key string
	part    int
}

func (f *faults) inject(fault Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.list = append(f.list, &pending{Fault: fault})
}

// clear forgets the script.
func (f *faults) clear() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.list = nil
}

// take returns the first fault that hits this request, or nil.
func (f *faults) take(r *http.Request, t target) *Fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	var hit *Fault
	for _, p := range f.list {
		if p.Op != "" && p.Op != t.op || p.Key != "" && p.Key != t.key ||
			p.PartNumber != 0 && p.PartNumber != t.part || p.Match != nil && !p.Match(r, t.op) {
			continue
		}
		p.seen++
		if hit != nil || p.seen < p.Nth || p.Times >= 0 && p.hit >= max(p.Times, 1) {
			continue
		}
		p.hit++
		fault := p.Fault
		hit = &fault
	}
	f.list = slices.DeleteFunc(f.list, func(p *pending) bool { return p.Times >= 0 && p.hit >= max(p.Times, 1) })
	return hit
}

// serve answers r by do, unless a fault prevents it. refuse writes an error in the
// service's form; for an empty code it chooses one.
func (f *faults) serve(w http.ResponseWriter, r *http.Request, t target, do http.HandlerFunc,
	refuse func(w http.ResponseWriter, status int, code, message string)) {
	fault := f.take(r, t)
	if fault == nil {
		do(w, r)
		return
	}
	status := fault.Status
	if status == 0 {
		status = http.StatusServiceUnavailable
	}
	switch fault.Kind {
	case Refuse:
		refuse(w, status, fault.Code, fault.Message)
	case RefuseAfter:
		do(nowhere{}, r)
		refuse(w, status, fault.Code, fault.Message)
	case Drop:
		_, _ = io.CopyN(io.Discard, r.Body, fault.After) // the client may have gone: the same to us
		panic(http.ErrAbortHandler)
	case LoseReply:
		do(nowhere{}, r)
		panic(http.ErrAbortHandler)
	default:
		if r.ContentLength != 0 && (fault.Kind == Stall || fault.Kind == Slow) {
			r = r.WithContext(r.Context()) // a copy: the request is not ours to change
			r.Body = &faultyBody{ReadCloser: r.Body, fault: fault, ctx: r.Context()}
			if fault.Kind == Stall {
				do(w, r)
				return
			}
		}
		do(&faultyReply{ResponseWriter: w, fault: fault, ctx: r.Context()}, r)
	}
}

// nowhere is a reply that is lost.
type nowhere struct{}

func (nowhere) Header() http.Header         { return http.Header{} }
func (nowhere) Write(p []byte) (int, error) { return len(p), nil }
func (nowhere) WriteHeader(int)             {}

// slowPiece is what Slow lets through at once.
const slowPiece = 64 << 10

// faultyReply is a reply that goes wrong on the way.
type faultyReply struct {
	http.ResponseWriter
	fault *Fault
	ctx   context.Context
	sent  int64
	begun bool
}

func (w *faultyReply) WriteHeader(status int) {
	if !w.begun && w.fault.Kind == WrongCRC {
		h := w.Header()
		if v, err := strconv.ParseUint(h.Get(headerCRC64), 10, 64); err == nil {
			h.Set(headerCRC64, strconv.FormatUint(v^1, 10))
		}
	}
	w.begun = true
	w.ResponseWriter.WriteHeader(status)
}

func (w *faultyReply) Write(p []byte) (int, error) {
	if !w.begun {
		w.WriteHeader(http.StatusOK)
	}
	done := 0
	for done < len(p) {
		piece := p[done:]
		left := w.fault.After - w.sent
		switch w.fault.Kind {
		case Slow:
			piece = piece[:min(len(piece), slowPiece)]
			wait(w.ctx, w.fault.Delay)
		case CutReply, Stall:
			if left == 0 {
				w.flush()
				if w.fault.Kind == CutReply {
					panic(http.ErrAbortHandler)
				}
				wait(w.ctx, w.fault.Delay)
			} else if left > 0 {
				piece = piece[:min(int64(len(piece)), left)]
			}
		case Corrupt:
			if left >= 0 && left < int64(len(piece)) {
				piece = slices.Clone(piece)
				piece[left] ^= 1
			}
		}
		n, err := w.ResponseWriter.Write(piece)
		done += n
		w.sent += int64(n)
		if err != nil {
			return done, err
		}
		if w.fault.Kind == Slow {
			w.flush()
		}
	}
	return done, nil
}

func (w *faultyReply) flush() {
	_ = http.NewResponseController(w.ResponseWriter).Flush() // what can't be flushed is sent later
}

// faultyBody is the body of a request that is read with pauses.
type faultyBody struct {
	io.ReadCloser
	fault *Fault
	ctx   context.Context
	read  int64
}

func (b *faultyBody) Read(p []byte) (int, error) {
	left := b.fault.After - b.read
	switch {
	case b.fault.Kind == Slow:
		wait(b.ctx, b.fault.Delay)
		p = p[:min(len(p), slowPiece)]
	case left == 0:
		wait(b.ctx, b.fault.Delay)
	case left > 0:
		p = p[:min(int64(len(p)), left)]
	}
	n, err := b.ReadCloser.Read(p)
	b.read += int64(n)
	return n, err
}

// wait lets real time pass, until the client has gone.
func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
