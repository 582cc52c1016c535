package importer_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"remaster/internal/alibaba"
	"remaster/internal/sandbox"
	"remaster/pkg/importer"
)

// rehearsal is a sandbox whose jobs go on when somebody sleeps, and clients that speak to
// it by HTTP.
type rehearsal struct {
	*sandbox.Sandbox
	clock *sandbox.Clock
	wire  *wireTap
	store importer.Store
	ecs   importer.ECS
}

// wireTap is asked before and after each exchange; its error is what the client gets.
type wireTap struct {
	mu    sync.Mutex
	fault func(r *http.Request, after bool) error
}

func (w *wireTap) set(f func(*http.Request, bool) error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fault = f
}

func (w *wireTap) ask(r *http.Request, after bool) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fault == nil {
		return nil
	}
	return w.fault(r, after)
}

func (w *wireTap) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := w.ask(r, false); err != nil {
		return nil, err
	}
	resp, err := http.DefaultTransport.RoundTrip(r)
	if err == nil {
		if err := w.ask(r, true); err != nil {
			return nil, errors.Join(err, resp.Body.Close())
		}
	}
	return resp, err
}

func newRehearsal(t *testing.T) *rehearsal {
	t.Helper()
	x := &rehearsal{clock: sandbox.NewClock(time.Now()), wire: &wireTap{}}
	x.Sandbox = sandbox.New(sandbox.Options{
		Accounts: []sandbox.Account{{AccessKeyID: "AK", Secret: "SK"}},
		ECS:      sandbox.ECSOptions{Clock: x.clock.Now, AnyContent: true},
	})
	if err := x.Start("127.0.0.1:0", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { x.Close() })
	if err := x.OSS.CreateBucket("images", "cn-hangzhou"); err != nil {
		t.Fatal(err)
	}
	x.put(t)
	clients, err := alibaba.New(alibaba.Config{
		Region: "cn-hangzhou", OSSEndpoint: x.OSSEndpoint(), ECSEndpoint: x.ECSEndpoint(), AccessKeyID: "AK", AccessKeySecret: "SK", Transport: x.wire,
	})
	if err != nil {
		t.Fatal(err)
	}
	x.ecs = clients.ECS()
	if x.store, err = clients.Store("cn-hangzhou"); err != nil {
		t.Fatal(err)
	}
	return x
}

func (x *rehearsal) put(t *testing.T) {
	t.Helper()
	if err := x.OSS.CreateObject("images", "node.raw", bytes.NewReader(make([]byte, 4096))); err != nil {
		t.Fatal(err)
	}
}

func (x *rehearsal) options() importer.Options {
	return importer.Options{
		Clock: importer.Clock{Now: x.clock.Now, Sleep: func(ctx context.Context, d time.Duration) error {
			x.clock.Advance(d)
			return ctx.Err()
		}},
		OnExist: importer.OnExistReplace,
	}
}

func rehearsalSpec(content string) importer.ImageSpec {
	s := nodeSpec()
	s.Object, s.Content, s.Detection = importer.Object{Bucket: "images", Key: "node.raw"}, content, "Standard"
	return s
}

// expect checks that there is one usable image "node" in each of the regions, and
// nothing else that is billed.
func (x *rehearsal) expect(t *testing.T, what any, regions ...string) {
	t.Helper()
	var got []string
	for _, im := range x.Images() {
		got = append(got, im.Region)
		if im.Name != "node" || im.Status != "Available" || !slices.Equal(im.Shared, []string{"1234567890123456"}) {
			t.Errorf("%v: %+v", what, im)
		}
	}
	slices.Sort(got)
	slices.Sort(regions)
	if !slices.Equal(got, regions) {
		t.Errorf("%v: images in %v, want %v", what, got, regions)
	}
	if n := len(x.Snapshots()); n != len(regions) {
		t.Errorf("%v: %d snapshots: %v", what, n, x.Snapshots())
	}
	if keys := x.OSS.Keys("images"); len(keys) > 0 {
		t.Errorf("%v: objects %q", what, keys)
	}
}

var rehearsalAfter = importer.After{
	Copies: []importer.Copy{{Region: "cn-beijing"}, {Region: "eu-central-1"}}, Share: []string{"1234567890123456"}, Family: "nodes", DeleteObject: true,
}

func TestSandboxReplaceAndRerun(t *testing.T) {
	x := newRehearsal(t)
	o := x.options()
	o.CheckTimeout = 10 * time.Minute
	spec := rehearsalSpec("one")
	if p := importer.Preflight(context.Background(), x.store, x.ecs, spec, rehearsalAfter, o); len(p) > 0 {
		t.Errorf("preflight: %+v", p)
	}
	first, err := importer.Run(context.Background(), x.store, x.ecs, spec, rehearsalAfter, o)
	if err != nil {
		t.Fatal(err)
	}
	x.expect(t, "first", "cn-hangzhou", "cn-beijing", "eu-central-1")
	if c := first.Regions[0].Check; c == nil || c.Status != "Finished" || len(c.Items) == 0 {
		t.Errorf("check %+v", c)
	}
	again, err := importer.Run(context.Background(), x.store, x.ecs, spec, rehearsalAfter, o)
	if err != nil {
		t.Fatal(err)
	}
	for i := range first.Regions {
		if a, b := first.Regions[i], again.Regions[i]; a.ImageID != b.ImageID || !b.Reused {
			t.Errorf("%+v, then %+v", a.Result, b.Result)
		}
	}
	if res, found, err := importer.Find(context.Background(), x.ecs, spec, o); err != nil || !found || res.ImageID != first.Image().ImageID {
		t.Errorf("find: %+v, %v, %v", res, found, err)
	}
	x.put(t)
	spec = rehearsalSpec("two")
	if _, found, err := importer.Find(context.Background(), x.ecs, spec, o); err != nil || found {
		t.Errorf("found what is not there: %v", err)
	}
	second, err := importer.Run(context.Background(), x.store, x.ecs, spec, rehearsalAfter, o)
	if err != nil {
		t.Fatal(err)
	}
	x.expect(t, "second", "cn-hangzhou", "cn-beijing", "eu-central-1")
	if len(second.Removed) != 3 || second.Regions[0].Replaced != first.Image().ImageID {
		t.Errorf("removed %+v", second.Removed)
	}
}

func TestSandboxMissingRoleHasARemedy(t *testing.T) {
	for _, code := range []string{sandbox.NoRoleAcount, sandbox.NoRoleAccount} {
		x := newRehearsal(t)
		x.ConfigureECS(func(o *sandbox.ECSOptions) { o.MissingRole = code })
		p := importer.Preflight(context.Background(), x.store, x.ecs, rehearsalSpec("one"), importer.After{}, x.options())
		if len(p) != 1 || p[0].Check != "role" || p[0].Remedy != importer.RoleRecipe("") {
			t.Errorf("%s: %+v", code, p)
		}
	}
}

func TestSandboxKilledAtAnyMoment(t *testing.T) {
	for seed := range uint64(100) {
		rng := rand.New(rand.NewPCG(seed, 4))
		x := newRehearsal(t)
		o := x.options()
		o.Poll = 4 * time.Minute // fewer looks, so that a kill is rarely between two of them
		if _, err := importer.Run(context.Background(), x.store, x.ecs, rehearsalSpec("old"), rehearsalAfter, o); err != nil {
			t.Fatal(err)
		}
		x.put(t)
		var faults []sandbox.JobFault
		if seed%3 == 1 {
			faults = []sandbox.JobFault{{Stage: sandbox.JobStage(rng.IntN(3)), Code: "ImportImageFailed", Message: "scripted", Times: 1}}
		}
		x.ConfigureECS(func(o *sandbox.ECSOptions) { o.JobFaults = faults })
		for try := 0; ; try++ {
			ctx, kill := context.WithCancel(context.Background())
			moment, n := 1+rng.IntN(75), 0
			atEnd := rng.IntN(2) == 0
			x.wire.set(func(_ *http.Request, after bool) error {
				if !after {
					n++
				}
				if try < 3 && (n > moment || n == moment && after == atEnd) {
					kill()
					return errKilled
				}
				return nil
			})
			_, err := importer.Run(ctx, x.store, x.ecs, rehearsalSpec("new"), rehearsalAfter, o)
			kill()
			if err == nil && try >= 3 {
				break
			}
			if try > 8 {
				t.Fatalf("seed %d: %v", seed, err)
			}
		}
		x.expect(t, seed, "cn-hangzhou", "cn-beijing", "eu-central-1")
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
		x.Close()
	}
}
