package importer

import (
	"context"
	"errors"
	"log/slog"
	"time"
)

// Clock is where time and chance come from, so that a test can script both.
type Clock struct {
	// Now tells the time. It must be set; time.Now is the usual one.
	Now func() time.Time
	// Sleep waits for d, or returns ctx's error when that ends first. Nil is a timer.
	Sleep func(ctx context.Context, d time.Duration) error
	// Rand returns a number in [0, 1), for jitter. Nil is 0.5 at all times.
	Rand func() float64
}

// Options say how the calls to ECS are made. The zero value lacks only Clock.Now.
type Options struct {
	Clock Clock
	// Poll is the time between two looks at what is under way, give or take a fifth;
	// the first looks come sooner. Zero is 15 s.
	Poll time.Duration
	// Timeout is how long a call waits altogether before it gives up and leaves
	// everything as it is. Zero is two hours.
	Timeout time.Duration
	// CheckTimeout is how long to wait, of the time that is left, for the result of an
	// image check that was asked for. Zero does not wait.
	CheckTimeout time.Duration
	// OnExist says what to do about another image of the wanted name.
	OnExist OnExist
	// Notes remembers deletions between runs; see [Notes]. Nil forgets them.
	Notes Notes
	// Log gets each change of state once. Nil is silent.
	Log *slog.Logger
	// Progress is called after each look. Calls do not overlap.
	Progress func(Progress)
}

// Progress is what a look at an import or copy has found.
type Progress struct {
	Region, TaskID, ImageID string
	State                   string // "task Processing", "image Creating"
	Percent                 int    // 0 to 100
	Elapsed                 time.Duration
}

// Defaults of Options.
const (
	defaultPoll    = 15 * time.Second
	defaultTimeout = 2 * time.Hour
)

// job is one call with its deadline. It may be used by many goroutines at once.
type job struct {
	ecs     ECS
	o       Options
	began   time.Time
	cleaner *cleaner
	mu      chan struct{} // held while Progress is called
}

func newJob(ecs ECS, o Options) (*job, error) {
	if o.Clock.Now == nil {
		return nil, errors.New("importer: Options.Clock.Now is not set")
	}
	if o.Clock.Sleep == nil {
		o.Clock.Sleep = sleepTimer
	}
	if o.Clock.Rand == nil {
		o.Clock.Rand = func() float64 { return 0.5 }
	}
	if o.Poll <= 0 {
		o.Poll = defaultPoll
	}
	if o.Timeout <= 0 {
		o.Timeout = defaultTimeout
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	j := &job{ecs: ecs, o: o, began: o.Clock.Now(), mu: make(chan struct{}, 1)}
	j.cleaner = &cleaner{job: j}
	return j, nil
}

func sleepTimer(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

func (j *job) elapsed() time.Duration { return j.o.Clock.Now().Sub(j.began) }

// errDeadline says that the time of a job is over. It does not leave the package.
var errDeadline = errors.New("the time is over")

// pause waits before look number n, counted from 0, is repeated. It returns
// errDeadline when the job's time is over, and ctx's error when ctx ends.
func (j *job) pause(ctx context.Context, n int) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	left := j.o.Timeout - j.elapsed()
	if left <= 0 {
		return errDeadline
	}
	d := j.o.Poll >> max(0, 3-n) // an eighth, a quarter, a half
	d = time.Duration(float64(d) * (0.8 + 0.4*j.o.Clock.Rand()))
	return j.o.Clock.Sleep(ctx, min(max(d, time.Millisecond), left))
}

// maxBusy is the number of times that a request is made of a thing that is busy. The
// service says the same of some that will always be.
const maxBusy = 40

// patiently repeats f as long as the service is busy with the thing, or can't answer.
func (j *job) patiently(ctx context.Context, f func() error) error {
	for n := 0; ; n++ {
		err := f()
		busy := isCode(err, codesBusy...)
		if err == nil || !busy && !Retryable(err) || busy && n >= maxBusy {
			return err
		}
		if stop := j.pause(ctx, n); stop != nil {
			return errors.Join(stop, err)
		}
	}
}

func (j *job) report(p Progress) {
	if j.o.Progress == nil {
		return
	}
	j.mu <- struct{}{}
	defer func() { <-j.mu }()
	p.Elapsed = j.elapsed()
	j.o.Progress(p)
}
