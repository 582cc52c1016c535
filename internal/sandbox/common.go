// Package sandbox is OSS and ECS in one process, for tests, the demo and rehearsals.
//
// It is strict where a client can be wrong: it verifies every signature, the clock that
// it was made by, every checksum, and the order and the limits that the services
// document; and it answers with their errors. What it does wrong on purpose is scripted:
// see [Fault].
//
// Nothing in it is random, and time passes as [Options.Clock] says, so that the same
// requests in the same order get the same replies.
package sandbox

import (
	"fmt"
	"maps"
	"sync"
	"time"
)

// DefaultRegion is where buckets and images are if nobody says otherwise.
const DefaultRegion = "cn-hangzhou"

// Options configure a sandbox. The zero value is useful, but nobody can log in to it.
type Options struct {
	// Accounts may log in; all of them own everything.
	Accounts []Account
	// Clock tells the time; nil is time.Now. A [*Clock] stands still between orders.
	// It may be called by many goroutines at once.
	Clock func() time.Time
	// Dir is an existing folder for the bytes of objects, of which only the sandbox's
	// own temporary files are touched; "" keeps them in memory.
	Dir string
	// Region is the home region, DefaultRegion if empty: where a bucket is made for
	// which no region is asked.
	Region string
	// Regions are all the regions that there are, Region and a few more if empty.
	Regions []string
	// NoCopyCRC leaves the CRC64 header out of replies about what was copied within the
	// service and objects that contain it, as OSS is free to.
	NoCopyCRC bool
	// ECS is how the ECS half behaves.
	ECS ECSOptions
	// STS is how temporary keys are given out.
	STS STSOptions

	// sessions are the temporary accounts that the STS half gave out; nil for none.
	sessions *sessions
}

// Account is a pair of keys and, if they are temporary ones, the token that must come
// with them and when they expire (zero: never).
type Account struct {
	AccessKeyID, Secret, SecurityToken string
	Expires                            time.Time
}

func (o Options) withDefaults() Options {
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.Region == "" {
		o.Region = DefaultRegion
	}
	if len(o.Regions) == 0 {
		o.Regions = []string{o.Region}
		for _, r := range []string{"cn-hangzhou", "cn-shanghai", "cn-beijing", "ap-southeast-1", "eu-central-1"} {
			if r != o.Region {
				o.Regions = append(o.Regions, r)
			}
		}
	}
	return o
}

// account finds the account of an access key.
func (o Options) account(id string) (Account, bool) {
	for _, a := range o.Accounts {
		if a.AccessKeyID == id && id != "" {
			return a, true
		}
	}
	return o.sessions.find(id)
}

// Clock is a scripted clock. Its methods may be called by many goroutines at once.
type Clock struct {
	mu  sync.Mutex
	now time.Time
}

// NewClock returns a clock that stands at t.
func NewClock(t time.Time) *Clock { return &Clock{now: t} }

// Now tells the clock's time; use it as [Options.Clock].
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// Advance moves the clock by d.
func (c *Clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// ids makes identifiers, each once: the n-th is the same in every run.
type ids struct {
	mu sync.Mutex
	n  uint64
}

func (g *ids) next() uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.n++
	return g.n
}

// hex returns a new identifier of n hexadecimal digits in capitals, the form of OSS's
// request ids (24) and upload ids (32).
func (g *ids) hex(n int) string {
	v := g.next()
	s := ""
	for i := uint64(0); len(s) < n; i++ {
		s += fmt.Sprintf("%016X", mix(v+i<<32))
	}
	return s[:n]
}

// uuid returns a new identifier in the form of ECS's request ids.
func (g *ids) uuid() string {
	s := g.hex(32)
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}

// mix scatters v over 64 bits, one to one (the finaliser of SplitMix64).
func mix(v uint64) uint64 {
	v += 0x9E3779B97F4A7C15
	v = (v ^ v>>30) * 0xBF58476D1CE4E5B9
	v = (v ^ v>>27) * 0x94D049BB133111EB
	return v ^ v>>31
}

// Counters say what was asked of a sandbox.
type Counters struct {
	// Requests are the authenticated requests by operation, with those that failed:
	// "UploadPart", "ImportImage". What is not authenticated counts as "Refused".
	Requests map[string]int
	// Uploaded and Downloaded are bytes of objects that crossed the wire, whether the
	// request succeeded or not; Copied are those that were copied within the service.
	Uploaded, Downloaded, Copied int64
}

// Total is the number of requests.
func (c Counters) Total() int {
	n := 0
	for _, v := range c.Requests {
		n += v
	}
	return n
}

// audit counts. Its methods may be called by many goroutines at once.
type audit struct {
	mu sync.Mutex
	c  Counters
}

func (a *audit) request(op string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.c.Requests == nil {
		a.c.Requests = map[string]int{}
	}
	a.c.Requests[op]++
}

func (a *audit) bytes(up, down, copied int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.c.Uploaded += up
	a.c.Downloaded += down
	a.c.Copied += copied
}

// counters returns the counts so far.
func (a *audit) counters() Counters {
	a.mu.Lock()
	defer a.mu.Unlock()
	c := a.c
	c.Requests = maps.Clone(c.Requests)
	return c
}

// reset counts anew from nothing.
func (a *audit) reset() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.c = Counters{}
}
