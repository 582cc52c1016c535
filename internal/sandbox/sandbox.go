package sandbox

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"
)

// Sandbox is OSS, ECS, STS and the metadata service of an instance, in one account. Its
// methods may be called by many goroutines at once, except Start and Close.
type Sandbox struct {
	// OSS makes what a client does not: buckets, and objects that were there before.
	OSS *oss

	ecs    *ecs
	sts    *sts
	faults *faults
	audit  *audit

	servers          []*http.Server
	serving          sync.WaitGroup
	ossAddr, ecsAddr string
}

// New makes a sandbox that does not listen yet: see [Sandbox.Start] and the handlers.
func New(o Options) *Sandbox {
	o = o.withDefaults()
	o.sessions = &sessions{}
	faults, audit, ids := &faults{}, &audit{}, &ids{}
	store := newOSS(ossOptions{Options: o, ids: ids, faults: faults, audit: audit})
	s := &Sandbox{OSS: store, faults: faults, audit: audit}
	s.ecs = newECS(o, store, ids, faults, audit)
	s.sts = newSTS(o, ids, faults, audit)
	return s
}

// OSSHandler is the object storage service: path style (/bucket/key) and virtual hosts.
func (s *Sandbox) OSSHandler() http.Handler { return s.OSS }

// ECSHandler is the RPC API of ECS and of STS at "/", told apart by the Version of a
// request as they are by their hosts in the cloud, and the metadata service of an
// instance under "/latest/".
func (s *Sandbox) ECSHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case isMetadata(r):
			s.sts.serveMetadata(w, r)
		case isSTS(r):
			s.sts.ServeHTTP(w, r)
		default:
			s.ecs.ServeHTTP(w, r)
		}
	})
}

// Inject adds a fault to the script. Faults of ECS are matched by the action's name.
func (s *Sandbox) Inject(f Fault) { s.faults.inject(f) }

// ClearFaults forgets the script.
func (s *Sandbox) ClearFaults() { s.faults.clear() }

// Counters returns what was asked of the sandbox so far.
func (s *Sandbox) Counters() Counters { return s.audit.counters() }

// ResetCounters counts anew from nothing.
func (s *Sandbox) ResetCounters() { s.audit.reset() }

// Start listens on two addresses of the loopback interface, which is all that a service
// with keys for rehearsals should be reached by: "127.0.0.1:0" is any free port. Close
// ends it.
func (s *Sandbox) Start(ossAddr, ecsAddr string) error {
	var err error
	if s.ossAddr, err = s.serve(ossAddr, s.OSSHandler()); err != nil {
		return fmt.Errorf("sandbox: OSS: %w", err)
	}
	if s.ecsAddr, err = s.serve(ecsAddr, s.ECSHandler()); err != nil {
		return errors.Join(fmt.Errorf("sandbox: ECS: %w", err), s.Close())
	}
	return nil
}

func (s *Sandbox) serve(addr string, h http.Handler) (string, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return "", err
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return "", fmt.Errorf("%s is not an address of the loopback interface", addr)
	}
	l, err := new(net.ListenConfig).Listen(context.Background(), "tcp", addr)
	if err != nil {
		return "", err
	}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 30 * time.Second}
	s.servers = append(s.servers, srv)
	s.serving.Go(func() { _ = srv.Serve(l) }) // ends with ErrServerClosed
	return l.Addr().String(), nil
}

// Close stops listening, breaks off what is under way, and removes what is on disk.
func (s *Sandbox) Close() error {
	var errs []error
	for _, srv := range s.servers {
		errs = append(errs, srv.Close())
	}
	s.serving.Wait()
	s.servers = nil
	errs = append(errs, s.OSS.Close())
	return errors.Join(errs...)
}

// OSSEndpoint is the URL of OSS, once the sandbox was started.
func (s *Sandbox) OSSEndpoint() string { return "http://" + s.ossAddr }

// ECSEndpoint is the URL of ECS.
func (s *Sandbox) ECSEndpoint() string { return "http://" + s.ecsAddr }

// STSEndpoint is the URL of STS.
func (s *Sandbox) STSEndpoint() string { return s.ECSEndpoint() }

// MetadataEndpoint is the URL of the metadata service, to which "/latest/…" is appended.
func (s *Sandbox) MetadataEndpoint() string { return s.ECSEndpoint() }

// ConfigureECS changes the options of ECS, for requests and jobs from now on.
func (s *Sandbox) ConfigureECS(change func(*ECSOptions)) { s.ecs.configure(change) }

// Image is an image of the account, as a test sees it.
type Image struct {
	ID, Region, Name, Status string
	Progress                 int    // percent
	Bucket, Key, ETag        string // the object of its system disk; none for a copy
	Snapshots                []string
	Shared                   []string // accounts
	Tags                     map[string]string
}

// Images returns the images of the account in all regions, oldest first.
func (s *Sandbox) Images() []Image {
	e := s.ecs
	e.mu.Lock()
	defer e.mu.Unlock()
	now := e.cfg.Clock()
	e.step(now)
	var out []Image
	for _, img := range e.images {
		if img.owner != "self" {
			continue
		}
		i := Image{ID: img.id, Region: img.region, Name: img.name, Status: img.status, Progress: img.progress,
			Shared: slices.Clone(img.shared), Tags: maps.Clone(img.tagsAt(now))}
		for _, d := range img.disks {
			i.Snapshots = append(i.Snapshots, d.snapshot.id)
		}
		i.Bucket, i.Key, i.ETag = img.disks[0].bucket, img.disks[0].key, img.disks[0].etag
		out = append(out, i)
	}
	return out
}

// Snapshot is a snapshot. All of them are billed.
type Snapshot struct {
	ID, Region string
	Image      string // that uses it, "" if that is gone
}

// Snapshots returns all snapshots in all regions, oldest first.
func (s *Sandbox) Snapshots() []Snapshot {
	e := s.ecs
	e.mu.Lock()
	defer e.mu.Unlock()
	e.step(e.cfg.Clock())
	var out []Snapshot
	for _, p := range e.snapshots {
		v := Snapshot{ID: p.id, Region: p.region}
		if e.maker(p) != nil {
			v.Image = p.image
		}
		out = append(out, v)
	}
	return out
}
