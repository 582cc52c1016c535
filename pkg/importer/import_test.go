package importer_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"remaster/internal/hint"
	"remaster/pkg/importer"
)

func nodeSpec() importer.ImageSpec {
	return importer.ImageSpec{
		ImportRequest: importer.ImportRequest{
			Region: "cn-hangzhou", Name: "node", Object: importer.Object{Bucket: "b", Key: "k.qcow2"},
		},
		Facts: importer.ImageFacts{
			Format: "qcow2", VirtualSize: 20 << 30, Architecture: "x86_64", BootModes: []string{"BIOS", "UEFI"}, Platform: "Aliyun",
		},
		Content: "crc64:0123456789abcdef:5",
	}
}

// run runs an import that must succeed.
func run(t *testing.T, c *cloud, s importer.ImageSpec, a importer.After, o importer.Options) *importer.Report {
	t.Helper()
	rep, err := importer.Run(context.Background(), c, c, s, a, o)
	if err != nil {
		t.Fatalf("%v (hints: %v)", err, hint.Of(err))
	}
	return rep
}

func expectNames(t *testing.T, c *cloud, want ...string) {
	t.Helper()
	if got := c.names(); !slices.Equal(got, want) {
		t.Errorf("images %q, want %q", got, want)
	}
	if left := c.leftovers(); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
}

func TestImportWaitsForTaskAndImage(t *testing.T) {
	c := newCloud()
	var log bytes.Buffer
	o := c.options()
	o.Log = slog.New(slog.NewTextHandler(&log, nil))
	var states []string
	o.Progress = func(p importer.Progress) {
		if len(states) == 0 || states[len(states)-1] != p.State {
			states = append(states, p.State)
		}
	}
	rep := run(t, c, nodeSpec(), importer.After{}, o)
	if im := rep.Image(); im.ImageID == "" || im.TaskID == "" || im.Reused || im.As != "node" {
		t.Errorf("result %+v", im)
	}
	want := []string{"task Processing", "task Finished", "image Creating", "image Available"}
	if !slices.Equal(states, want) {
		t.Errorf("states %q, want %q", states, want)
	}
	for _, s := range want {
		if n := strings.Count(log.String(), `msg="`+s+`"`); n != 1 {
			t.Errorf("%q was logged %d times", s, n)
		}
	}
	if s := rep.Regions[0]; s.Status != "Available" || s.Seconds < 660 || s.Seconds > 720 {
		t.Errorf("status %s after %v s", s.Status, s.Seconds)
	}
	r := c.asked[0]
	if r.Platform != "Aliyun" || r.OSType != "linux" || r.Architecture != "x86_64" || r.BootMode != "BIOS" || r.Format != "QCOW2" ||
		r.DiskSizeGiB != 20 || len(r.ClientToken) != 64 || r.Tags[importer.TagContent] == "" {
		t.Errorf("request %+v", r)
	}
	if n := c.calls["DescribeTaskAttribute"] + c.calls["DescribeImages"]; n > 80 {
		t.Errorf("%d looks in eleven minutes", n)
	}
}

func TestFinishedImportIsReused(t *testing.T) {
	for _, untagged := range []bool{false, true} {
		for _, on := range []importer.OnExist{"", importer.OnExistReuse, importer.OnExistReplace, importer.OnExistSuffix} {
			c := newCloud()
			c.untagged = untagged
			o := c.options()
			o.OnExist = on
			first := run(t, c, nodeSpec(), importer.After{}, o).Image()
			second := run(t, c, nodeSpec(), importer.After{}, o).Image()
			if second.ImageID != first.ImageID || !second.Reused || c.calls["ImportImage"] != 1 {
				t.Errorf("%q: %+v, then %+v", on, first, second)
			}
			expectNames(t, c, "cn-hangzhou node")
		}
	}
}

func TestRunningImportIsAttachedTo(t *testing.T) {
	for _, blind := range []bool{false, true} {
		c := newCloud()
		c.blind = blind
		first, err := importer.Import(context.Background(), c, nodeSpec(), c.options())
		if err != nil {
			t.Fatal(err)
		}
		second, err := importer.Import(context.Background(), c, nodeSpec(), c.options())
		if err != nil {
			t.Fatal(err)
		}
		if second.ImageID != first.ImageID || second.TaskID != first.TaskID || !second.Attached || second.Reused {
			t.Errorf("blind %v: %+v, then %+v", blind, first, second)
		}
		expectNames(t, c, "cn-hangzhou node")
	}
}

func TestOnExist(t *testing.T) {
	for _, x := range []struct {
		on     importer.OnExist
		status string // of the other image
		want   []string
		fails  string
	}{
		{"", "Available", nil, "another image named"},
		{importer.OnExistReuse, "Available", []string{"cn-hangzhou node"}, ""},
		{importer.OnExistReuse, "UnAvailable", nil, "failed and can't be used"},
		{importer.OnExistReplace, "Available", []string{"cn-hangzhou node"}, ""},
		{importer.OnExistReplace, "UnAvailable", []string{"cn-hangzhou node"}, ""},
		{importer.OnExistReplace, "Waiting", nil, "still being made"},
		{importer.OnExistSuffix, "Available", []string{"cn-hangzhou node", "cn-hangzhou node-2"}, ""},
	} {
		c := newCloud()
		other := c.add("cn-hangzhou", "node", map[string]string{importer.TagContent: "something else"})
		other.Status = x.status
		c.add("cn-hangzhou", "my-node", nil) // which a fuzzy search finds as well
		o := c.options()
		o.OnExist = x.on
		rep, err := importer.Run(context.Background(), c, c, nodeSpec(), importer.After{}, o)
		if x.fails != "" {
			if err == nil || !strings.Contains(err.Error(), x.fails) || len(hint.Of(err)) == 0 {
				t.Errorf("%s over %s: %v", x.on, x.status, err)
			}
			if _, ok := errors.AsType[*importer.ExistsError](err); !ok {
				t.Errorf("%s over %s: %T", x.on, x.status, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s over %s: %v", x.on, x.status, err)
			continue
		}
		expectNames(t, c, append([]string{"cn-hangzhou my-node"}, x.want...)...)
		if got := rep.Image().ImageID == other.ID; got != (x.on == importer.OnExistReuse) {
			t.Errorf("%s over %s: image %s, the other is %s", x.on, x.status, rep.Image().ImageID, other.ID)
		}
		again := run(t, c, nodeSpec(), importer.After{}, o)
		if again.Image().ImageID != rep.Image().ImageID || c.calls["ImportImage"] > 1 {
			t.Errorf("%s over %s: the rerun has %s, the run %s", x.on, x.status, again.Image().ImageID, rep.Image().ImageID)
		}
	}
}

func TestOtherParametersAreAnotherImage(t *testing.T) {
	c := newCloud()
	run(t, c, nodeSpec(), importer.After{}, c.options())
	s := nodeSpec()
	s.BootMode = "UEFI"
	_, err := importer.Import(context.Background(), c, s, c.options())
	if _, ok := errors.AsType[*importer.ExistsError](err); !ok {
		t.Errorf("an import with another boot mode: %v", err)
	}
}

func TestLostReplyMakesOneImage(t *testing.T) {
	for _, op := range []string{"ImportImage", "CopyImage", "DeleteImage", "DeleteSnapshot", "ModifyImageAttribute", "ModifyImageSharePermission"} {
		c := newCloud()
		c.add("cn-hangzhou", "node", nil)
		lost := false
		c.fault = func(what string, after bool) error {
			if what == op && after && !lost {
				lost = true
				return errLost
			}
			return nil
		}
		o := c.options()
		o.OnExist = importer.OnExistReplace
		ecs := importer.RetryECS(c, importer.Policy{Clock: o.Clock})
		a := importer.After{Copies: []importer.Copy{{Region: "cn-beijing"}}, Share: []string{"1"}, Family: "f"}
		rep, err := importer.Run(context.Background(), c, ecs, nodeSpec(), a, o)
		if err != nil || !lost {
			t.Errorf("%s: lost %v: %v", op, lost, err)
		}
		expectNames(t, c, "cn-beijing node", "cn-hangzhou node")
		if len(rep.Regions) != 2 || rep.Regions[1].Error != "" {
			t.Errorf("%s: %+v", op, rep.Regions)
		}
	}
}

func TestThrottlingIsSatOut(t *testing.T) {
	c := newCloud()
	rng := rand.New(rand.NewPCG(1, 1))
	var mu sync.Mutex
	c.fault = func(_ string, after bool) error {
		mu.Lock()
		defer mu.Unlock()
		if rng.IntN(10) < 6 {
			if after {
				return errLost
			}
			return refusal(503, "ServiceUnavailable")
		}
		return nil
	}
	o := c.options()
	p := importer.Policy{Tries: 40, Clock: o.Clock}
	_, err := importer.Run(context.Background(), importer.Retry(c, p), importer.RetryECS(c, p), nodeSpec(),
		importer.After{Copies: []importer.Copy{{Region: "cn-beijing"}}, DeleteObject: true}, o)
	if err != nil {
		t.Fatal(err)
	}
	expectNames(t, c, "cn-beijing node", "cn-hangzhou node")
}

func TestFailureTellsTheReasonAndARerunStartsAnew(t *testing.T) {
	c := newCloud()
	c.failImport = 2
	for range 2 {
		_, err := importer.Run(context.Background(), c, c, nodeSpec(), importer.After{}, c.options())
		e, ok := errors.AsType[*importer.FailedError](err)
		if !ok || e.Code != "ImageFormatNotSupported" || e.Message != "the image is damaged" || e.TaskID == "" || e.ImageID == "" {
			t.Fatalf("%v", err)
		}
	}
	c.failImage = 1
	_, err := importer.Run(context.Background(), c, c, nodeSpec(), importer.After{}, c.options())
	if e, ok := errors.AsType[*importer.FailedError](err); !ok || e.State != "image UnAvailable" {
		t.Fatalf("%v", err)
	}
	run(t, c, nodeSpec(), importer.After{}, c.options())
	expectNames(t, c, "cn-hangzhou node")
}

// Where what failed was removed by somebody else, the token alone leads back to it.
func TestRerunPassesOverReplaysOfWhatFailed(t *testing.T) {
	c := newCloud()
	c.failImport = 2
	for range 2 {
		if _, err := importer.Run(context.Background(), c, c, nodeSpec(), importer.After{}, c.options()); err == nil {
			t.Fatal("no failure")
		}
		for _, im := range slices.Clone(c.images) {
			if err := c.DeleteImage(context.Background(), im.Region, im.ID, true); err != nil {
				t.Fatal(err)
			}
			if err := c.DeleteSnapshot(context.Background(), im.Region, im.Snapshots[0]); err != nil {
				t.Fatal(err)
			}
		}
	}
	run(t, c, nodeSpec(), importer.After{}, c.options())
	expectNames(t, c, "cn-hangzhou node")
}

func TestDeadlineLeavesEverythingAndTellsHowToGoOn(t *testing.T) {
	c := newCloud()
	o := c.options()
	o.Timeout = 5 * time.Minute
	_, err := importer.Run(context.Background(), c, c, nodeSpec(), importer.After{}, o)
	e, ok := errors.AsType[*importer.TimeoutError](err)
	if !ok || e.TaskID == "" || e.ImageID == "" || e.State != "task Processing" {
		t.Fatalf("%v", err)
	}
	if h := strings.Join(hint.Of(err), " "); !strings.Contains(h, "remaster import wait "+e.TaskID+" --region cn-hangzhou") {
		t.Errorf("hint %q", h)
	}
	if el := c.now.Sub(c.images[0].Created); el > 5*time.Minute || el < 4*time.Minute {
		t.Errorf("gave up after %v", el)
	}
	im, err := importer.Wait(context.Background(), c, e.Target, c.options())
	if err != nil || im.Status != "Available" {
		t.Errorf("%+v, %v", im, err)
	}
	target, err := importer.ParseTarget("cn-hangzhou", e.TaskID)
	if err != nil {
		t.Fatal(err)
	}
	if im, err = importer.Wait(context.Background(), c, target, c.options()); err != nil || im.ID != e.ImageID {
		t.Errorf("by the task alone: %+v, %v", im, err)
	}
	if s, err := importer.Status(context.Background(), c, target); err != nil || s.Image != "Available" || s.Task != "Finished" || s.Name != "node" {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestImageCheckIsWaitedForAsLongAsAsked(t *testing.T) {
	for _, x := range []struct {
		wait time.Duration
		want string
	}{{0, "Processing"}, {time.Minute, "Processing"}, {10 * time.Minute, "Finished"}} {
		c := newCloud()
		s := nodeSpec()
		s.Detection = "Standard"
		o := c.options()
		o.CheckTimeout = x.wait
		rep := run(t, c, s, importer.After{}, o)
		got := rep.Regions[0].Check
		if got == nil || got.Status != x.want || (x.want == "Finished") != (len(got.Items) == 1) {
			t.Errorf("%v: %+v", x.wait, got)
		}
	}
}

// The object is being imported under another name: this one comes after it.
func TestObjectThatIsBeingImportedIsWaitedFor(t *testing.T) {
	c := newCloud()
	other := nodeSpec()
	other.Name = "other"
	if _, err := importer.Import(context.Background(), c, other, c.options()); err != nil {
		t.Fatal(err)
	}
	run(t, c, nodeSpec(), importer.After{}, c.options())
	expectNames(t, c, "cn-hangzhou node", "cn-hangzhou other")
}

func TestCancelLeavesNothing(t *testing.T) {
	c := newCloud()
	res, err := importer.Import(context.Background(), c, nodeSpec(), c.options())
	if err != nil {
		t.Fatal(err)
	}
	c.advance(time.Minute)
	if err := importer.Cancel(context.Background(), c, importer.Target{Region: res.Region, TaskID: res.TaskID}, c.options()); err != nil {
		t.Fatal(err)
	}
	expectNames(t, c)
	rep := run(t, c, nodeSpec(), importer.After{}, c.options())
	if err := importer.Cancel(context.Background(), c, importer.Target{Region: res.Region, TaskID: rep.Image().TaskID}, c.options()); err == nil {
		t.Error("a finished import was cancelled")
	}
	id, err := c.CopyImage(context.Background(), importer.CopyRequest{Region: "cn-hangzhou", ImageID: rep.Image().ImageID, ToRegion: "cn-beijing", Name: "node"})
	if err != nil {
		t.Fatal(err)
	}
	if err := importer.Cancel(context.Background(), c, importer.Target{Region: "cn-beijing", ImageID: id}, c.options()); err != nil {
		t.Fatal(err)
	}
	expectNames(t, c, "cn-hangzhou node")
}

// changes are the requests that change something: the moments that matter most.
var changes = []string{
	"ImportImage", "CopyImage", "DeleteImage", "DeleteSnapshot", "ModifyImageAttribute", "ModifyImageSharePermission", "PutObject", "DeleteObject",
}

func TestKilledAtAnyMoment(t *testing.T) {
	regions := []string{"cn-beijing", "cn-shanghai", "eu-central-1"}
	a := importer.After{
		Share: []string{"1", "2"}, Family: "nodes", Predecessor: importer.Delete, OlderOfFamily: true, DeleteObject: true,
	}
	want := []string{"cn-hangzhou node"}
	for _, r := range regions {
		a.Copies = append(a.Copies, importer.Copy{Region: r})
		want = append(want, r+" node")
	}
	slices.Sort(want)
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 3))
		c := newCloud()
		c.blind = seed%3 == 0
		c.failImport, c.failImage = int(seed%2), int(seed/2%2)
		for _, r := range append(regions, "cn-hangzhou") {
			c.add(r, "node", map[string]string{importer.TagContent: "older"}).Family = "nodes"
			c.add(r, "node-2025", map[string]string{importer.TagContent: "still older"}).Family = "nodes"
		}
		o := c.options()
		o.OnExist = importer.OnExistReplace
		var rep *importer.Report
		var err error
		for try := 0; ; try++ {
			ctx, kill := context.WithCancel(context.Background())
			moment, atEnd, n := 1+rng.IntN(600), rng.IntN(2) == 0, 0
			anyCall := seed%2 == 0
			if !anyCall {
				moment = 1 + rng.IntN(45)
			}
			if try >= 3 {
				moment = 0
			}
			var mu sync.Mutex
			c.fault = func(op string, after bool) error {
				mu.Lock()
				defer mu.Unlock()
				counts := anyCall || slices.Contains(changes, op)
				if !after && counts {
					n++
				}
				if moment > 0 && (n > moment || n == moment && counts && after == atEnd) {
					kill()
					return errKilled
				}
				return nil
			}
			rep, err = importer.Run(ctx, c, c, nodeSpec(), a, o)
			kill()
			if err == nil && try >= 3 {
				break
			}
			if try > 8 {
				t.Fatalf("seed %d: %v", seed, err)
			}
		}
		if got := c.names(); !slices.Equal(got, want) {
			t.Fatalf("seed %d: images %q, want %q", seed, got, want)
		}
		delete(c.objects, "b/k.qcow2")
		if left := c.leftovers(); len(left) > 0 {
			t.Fatalf("seed %d: left over: %v", seed, left)
		}
		for i, r := range rep.Regions {
			im := c.find(r.Region, r.ImageID)
			if im == nil || im.Name != "node" || im.Family != "nodes" || !slices.Equal(im.shared, a.Share) || r.Error != "" {
				t.Fatalf("seed %d: region %d: %+v is %+v", seed, i, r, im)
			}
		}
	}
}

// The token of a copy that failed and was removed leads back to it.
func TestCopyIsBegunAnewWhereTheTokenLeadsToWhatIsGone(t *testing.T) {
	c := newCloud()
	run(t, c, nodeSpec(), importer.After{}, c.options())
	c.failImage = 1
	a := importer.After{Copies: []importer.Copy{{Region: "cn-beijing"}}}
	if _, err := importer.Run(context.Background(), c, c, nodeSpec(), a, c.options()); err == nil {
		t.Fatal("no failure")
	}
	for _, im := range slices.Clone(c.images) {
		if im.Region == "cn-beijing" {
			if err := errors.Join(c.DeleteImage(context.Background(), im.Region, im.ID, true),
				c.DeleteSnapshot(context.Background(), im.Region, im.Snapshots[0])); err != nil {
				t.Fatal(err)
			}
		}
	}
	run(t, c, nodeSpec(), a, c.options())
	expectNames(t, c, "cn-beijing node", "cn-hangzhou node")
}

func TestPartialSuccessKeepsPredecessorsAndObject(t *testing.T) {
	c := newCloud()
	old := c.add("cn-hangzhou", "old", nil)
	a := importer.After{
		Copies: []importer.Copy{{Region: "cn-beijing"}, {Region: "cn-shanghai"}}, DeleteObject: true,
		Predecessor: importer.Delete, Predecessors: []string{"old"},
	}
	var refused atomic.Bool
	c.fault = func(op string, after bool) error {
		if op == "CopyImage" && !after && refused.CompareAndSwap(false, true) {
			return refusal(403, "QuotaExceed.Image")
		}
		return nil
	}
	rep, err := importer.Run(context.Background(), c, c, nodeSpec(), a, c.options())
	p, ok := errors.AsType[*importer.PartialError](err)
	if !ok || p.Report != rep || len(hint.Of(err)) < 2 {
		t.Fatalf("%v, hints %q", err, hint.Of(err))
	}
	failed := 0
	for _, r := range rep.Regions[1:] {
		if r.Error != "" {
			failed++
		} else if r.Status != "Available" {
			t.Errorf("%+v", r)
		}
	}
	if failed != 1 || c.find("cn-hangzhou", old.ID) == nil || rep.ObjectDeleted {
		t.Errorf("%d regions failed; %+v", failed, rep)
	}
	rep = run(t, c, nodeSpec(), a, c.options())
	expectNames(t, c, "cn-beijing node", "cn-hangzhou node", "cn-shanghai node")
	if !rep.ObjectDeleted || len(rep.Removed) != 1 || rep.Removed[0].ImageID != old.ID || len(rep.Removed[0].Snapshots) != 1 {
		t.Errorf("%+v", rep)
	}
	text, err := json.Marshal(rep)
	if err != nil || !strings.Contains(string(text), `"imageID":"m-`) || !strings.Contains(string(text), `"regions":[{"region":"cn-hangzhou"`) {
		t.Errorf("%s, %v", text, err)
	}
}

func TestPredecessorInUseIsKeptUnlessForced(t *testing.T) {
	c := newCloud()
	old := c.add("cn-hangzhou", "old", nil)
	c.instances[old.ID] = true
	a := importer.After{Predecessor: importer.Delete, Predecessors: []string{old.ID}}
	_, err := importer.Run(context.Background(), c, c, nodeSpec(), a, c.options())
	if _, ok := errors.AsType[*importer.PartialError](err); !ok || !strings.Contains(err.Error(), "ImageUsedByInstance") {
		t.Fatalf("%v", err)
	}
	if left := c.leftovers(); len(left) > 0 { // the note would have a later run delete it
		t.Errorf("left over: %v", left)
	}
	a.Force = true
	run(t, c, nodeSpec(), a, c.options())
	expectNames(t, c, "cn-hangzhou node")
}

// Notes may be old, or somebody else's.
func TestNotesAloneDeleteNoImage(t *testing.T) {
	c := newCloud()
	kept := c.add("cn-hangzhou", "kept", nil)
	gone := c.add("cn-hangzhou", "gone", nil)
	if err := c.DeleteImage(context.Background(), "cn-hangzhou", gone.ID, true); err != nil {
		t.Fatal(err)
	}
	notes, err := json.Marshal([]importer.Removal{
		{Region: "cn-hangzhou", ImageID: kept.ID, Snapshots: kept.Snapshots}, {Region: "cn-hangzhou", ImageID: gone.ID, Snapshots: gone.Snapshots},
	})
	if err != nil {
		t.Fatal(err)
	}
	c.objects["b/k.qcow2.cleanup.json"] = notes
	run(t, c, nodeSpec(), importer.After{}, c.options())
	expectNames(t, c, "cn-hangzhou kept", "cn-hangzhou node")
	for _, bad := range []string{"{", "[1]", `{"a":1}`} {
		c.objects["b/k.qcow2.cleanup.json"] = []byte(bad)
		if _, err := importer.Run(context.Background(), c, c, nodeSpec(), importer.After{}, c.options()); err == nil {
			t.Errorf("notes %q were taken", bad)
		}
	}
}

func TestDeprecatedPredecessorStays(t *testing.T) {
	c := newCloud()
	old := c.add("cn-hangzhou", "old", map[string]string{importer.TagContent: "x"})
	foreign := c.add("cn-hangzhou", "foreign", nil) // not made by this program
	old.Family, foreign.Family = "f", "f"
	a := importer.After{Family: "f", Predecessor: importer.Deprecate, OlderOfFamily: true}
	rep := run(t, c, nodeSpec(), a, c.options())
	if old.Status != "Deprecated" || foreign.Status != "Available" || !slices.Equal(rep.Deprecated, []string{old.ID}) {
		t.Errorf("%s, %s, %v", old.Status, foreign.Status, rep.Deprecated)
	}
	if rep = run(t, c, nodeSpec(), a, c.options()); len(rep.Deprecated) > 0 {
		t.Errorf("deprecated again: %v", rep.Deprecated)
	}
}

func TestImportWaitAndFinishOneByOne(t *testing.T) {
	c := newCloud()
	o := c.options()
	res, err := importer.Import(context.Background(), c, nodeSpec(), o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := importer.Wait(context.Background(), c, importer.Target{Region: res.Region, TaskID: res.TaskID, ImageID: res.ImageID}, o); err != nil {
		t.Fatal(err)
	}
	rep, err := importer.Finish(context.Background(), c, c, nodeSpec(), res, importer.After{Family: "f", DeleteObject: true}, o)
	if err != nil || rep.Image().ImageID != res.ImageID || !rep.ObjectDeleted || c.images[0].Family != "f" || len(c.objects) > 0 {
		t.Errorf("%+v, %v", rep, err)
	}
}

func TestWhatIsAskedForIsCheckedFirst(t *testing.T) {
	for name, a := range map[string]importer.After{
		"no disposal":  {Predecessors: []string{"old"}},
		"no family":    {Predecessor: importer.Delete, OlderOfFamily: true},
		"no region":    {Copies: []importer.Copy{{}}},
		"twice":        {Copies: []importer.Copy{{Region: "a"}, {Region: "a"}}},
		"name of copy": {Copies: []importer.Copy{{Region: "a", Name: "aliyun"}}},
	} {
		c := newCloud()
		if _, err := importer.Run(context.Background(), c, c, nodeSpec(), a, c.options()); err == nil || len(c.calls) > 0 {
			t.Errorf("%s: %v, calls %v", name, err, c.calls)
		}
	}
	c := newCloud()
	if _, err := importer.Run(context.Background(), c, c, nodeSpec(), importer.After{}, importer.Options{}); err == nil {
		t.Error("there was no clock")
	}
	if _, err := importer.Run(context.Background(), nil, c, nodeSpec(), importer.After{DeleteObject: true}, c.options()); err == nil {
		t.Error("there was no store")
	}
	for _, id := range []string{"", "x-1", "node"} {
		if _, err := importer.ParseTarget("cn-hangzhou", id); err == nil {
			t.Errorf("%q was taken for an id", id)
		}
	}
	if _, err := importer.ParseOnExist("perhaps"); err == nil {
		t.Error("perhaps")
	}
	if _, err := importer.ParseDisposal("perhaps"); err == nil {
		t.Error("perhaps")
	}
	if d, err := importer.ParseOnExist(""); d != importer.OnExistFail || err != nil {
		t.Errorf("%q, %v", d, err)
	}
}

func TestSharingTakesTenAccountsACall(t *testing.T) {
	c := newCloud()
	var a importer.After
	for i := range 23 {
		a.Share = append(a.Share, string(rune('a'+i)))
	}
	run(t, c, nodeSpec(), a, c.options())
	if got := c.images[0].shared; !slices.Equal(got, a.Share) || c.calls["ModifyImageSharePermission"] != 3 {
		t.Errorf("shared with %v in %d calls", got, c.calls["ModifyImageSharePermission"])
	}
}

func TestAtMostFiveCopiesAtOnce(t *testing.T) {
	c := newCloud()
	var a importer.After
	for i := range 12 {
		a.Copies = append(a.Copies, importer.Copy{Region: "r" + string(rune('a'+i))})
	}
	most := 0
	c.fault = func(string, bool) error {
		c.mu.Lock()
		defer c.mu.Unlock()
		n := 0
		for _, im := range c.images {
			if im.source != "" && im.Status == "Creating" {
				n++
			}
		}
		most = max(most, n)
		return nil
	}
	o := c.options()
	o.Timeout = 24 * time.Hour
	jump := o.Clock.Sleep
	o.Clock.Sleep = func(ctx context.Context, d time.Duration) error {
		time.Sleep(100 * time.Microsecond) // the others get their turn
		return jump(ctx, d)
	}
	rep := run(t, c, nodeSpec(), a, o)
	if most > 5 || most < 2 || len(rep.Regions) != 13 {
		t.Errorf("%d at once, %d regions", most, len(rep.Regions))
	}
	for i, r := range rep.Regions[1:] {
		if r.Region != a.Copies[i].Region || r.Status != "Available" {
			t.Errorf("%+v", r)
		}
	}
}
