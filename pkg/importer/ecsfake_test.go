package importer_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"remaster/pkg/importer"
)

// cloud is ECS and as much of OSS as an import needs, in memory, with a clock that goes
// on when somebody sleeps. It is strict about names, states and what refers to what.
type cloud struct {
	importer.Store // what is not needed panics

	mu        sync.Mutex
	now       time.Time
	seq       int
	images    []*fakeImage
	tasks     []*fakeTask
	snapshots map[string]string // id to image id, for good
	tokens    map[string]importer.ImportStarted
	objects   map[string][]byte
	calls     map[string]int
	asked     []importer.ImportRequest

	importFor, settleFor, copyFor time.Duration
	failImport, failImage         int    // the next so many fail, in the task or behind it
	noRole                        string // error code
	bucketRegion                  string
	blind                         bool // images in the making tell neither tags nor sources
	untagged                      bool // images never tell tags
	instances                     map[string]bool

	// fault is asked before each request and after its effect; its error is the reply.
	fault func(op string, after bool) error
}

type fakeImage struct {
	importer.Image
	begun, done, ready time.Time // of the import or copy
	fails, source      string    // status; source image of a copy
	shared             []string
}

type fakeTask struct {
	importer.Task
	region string
	image  *fakeImage
}

func newCloud() *cloud {
	return &cloud{
		now: time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC), snapshots: map[string]string{}, tokens: map[string]importer.ImportStarted{},
		objects: map[string][]byte{"b/k.qcow2": []byte("image")}, calls: map[string]int{}, bucketRegion: "cn-hangzhou",
		importFor: 10 * time.Minute, settleFor: time.Minute, copyFor: 20 * time.Minute, instances: map[string]bool{},
	}
}

func (c *cloud) options() importer.Options {
	return importer.Options{Clock: importer.Clock{
		Now: func() time.Time {
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.now
		},
		Sleep: func(ctx context.Context, d time.Duration) error {
			if d <= 0 {
				panic("a sleep of no length")
			}
			c.mu.Lock()
			defer c.mu.Unlock()
			c.now = c.now.Add(d)
			return ctx.Err()
		},
	}}
}

func refusal(status int, code string) error {
	return &importer.ServiceError{Op: "Fake", Status: status, Code: code, Message: "as the script says", RequestID: "R"}
}

// do makes a request: faults, then the effect, then faults that lose the reply.
func (c *cloud) do(ctx context.Context, op string, effect func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	c.mu.Lock()
	c.calls[op]++
	fault := c.fault
	c.mu.Unlock()
	if fault != nil {
		if err := fault(op, false); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	c.mu.Lock()
	c.step()
	err := effect()
	c.mu.Unlock()
	if err == nil && fault != nil {
		err = fault(op, true)
	}
	return err
}

// step brings what is under way up to now.
func (c *cloud) step() {
	for _, im := range c.images {
		if im.Status != "Creating" {
			continue
		}
		t := c.taskOf(im)
		if t != nil && (t.Status == "Waiting" || t.Status == "Processing") {
			t.Status, t.Progress = "Processing", "37%"
			if im.fails == "task" && c.now.After(im.begun.Add(c.importFor/3)) {
				t.Status, t.ErrorCode, t.ErrorMsg = "Failed", "ImageFormatNotSupported", "the image is damaged"
				im.Status = "CreateFailed"
				continue
			}
			if !c.now.Before(im.done) {
				t.Status = "Finished"
			}
		}
		if !c.now.Before(im.ready) {
			if im.Status = "Available"; im.fails != "" {
				im.Status = im.fails
			}
		}
	}
}

func (c *cloud) taskOf(im *fakeImage) *fakeTask {
	for _, t := range c.tasks {
		if t.image == im {
			return t
		}
	}
	return nil
}

func (c *cloud) id(kind string) string { c.seq++; return fmt.Sprintf("%s-%04d", kind, c.seq) }

func (c *cloud) taken(region, name string) bool {
	return slices.ContainsFunc(c.images, func(im *fakeImage) bool { return im.Region == region && im.Name == name })
}

func (c *cloud) find(region, id string) *fakeImage {
	for _, im := range c.images {
		if im.Region == region && im.ID == id {
			return im
		}
	}
	return nil
}

// add puts a finished image there.
func (c *cloud) add(region, name string, tags map[string]string) *fakeImage {
	c.mu.Lock()
	defer c.mu.Unlock()
	im := c.newImage(region, name)
	im.Status, im.Tags, im.Created = "Available", tags, c.now.Add(-24*time.Hour)
	return im
}

func (c *cloud) newImage(region, name string) *fakeImage {
	im := &fakeImage{Image: importer.Image{ID: c.id("m"), Name: name, Region: region, Status: "Creating", Created: c.now, SizeGiB: 20}}
	s := c.id("s")
	c.snapshots[s], im.Snapshots = im.ID, []string{s}
	c.images = append(c.images, im)
	return im
}

func (c *cloud) ImportImage(ctx context.Context, r importer.ImportRequest) (st importer.ImportStarted, err error) {
	err = c.do(ctx, "ImportImage", func() error {
		c.asked = append(c.asked, r)
		if len(r.ClientToken) > 64 {
			return refusal(400, "InvalidParameter.ClientToken")
		}
		if old, ok := c.tokens[r.ClientToken]; ok && r.ClientToken != "" {
			st = old
			return nil
		}
		switch {
		case c.noRole != "":
			return refusal(403, c.noRole)
		case r.Region != c.bucketRegion:
			return refusal(400, "InvalidOSSBucket.NotMatched")
		case c.objects[r.Object.Bucket+"/"+r.Object.Key] == nil:
			return refusal(400, "InvalidOSSObject.NotFound")
		case c.taken(r.Region, r.Name):
			return refusal(400, "InvalidImageName.Duplicated")
		case slices.ContainsFunc(c.images, func(im *fakeImage) bool {
			return im.Status == "Creating" && slices.Contains(im.Sources, r.Object)
		}):
			return refusal(403, "ImageIsImporting")
		case r.DryRun:
			return refusal(400, "DryRunOperation")
		}
		im := c.newImage(r.Region, r.Name)
		im.Architecture, im.BootMode, im.Platform, im.Tags, im.Sources = r.Architecture, r.BootMode, r.Platform, r.Tags, []importer.Object{r.Object}
		im.begun, im.done, im.ready = c.now, c.now.Add(c.importFor), c.now.Add(c.importFor+c.settleFor)
		if c.failImport > 0 {
			c.failImport--
			im.fails = "task"
		} else if c.failImage > 0 {
			c.failImage--
			im.fails = "UnAvailable"
		}
		if r.Detection != "" {
			im.Check.Status = "Processing"
		}
		t := &fakeTask{importer.Task{ID: c.id("t"), Action: "ImportImage", Status: "Waiting", Cancelable: true, Created: c.now, ImageID: im.ID}, r.Region, im}
		c.tasks = append(c.tasks, t)
		st = importer.ImportStarted{ImageID: im.ID, TaskID: t.ID, RequestID: "R"}
		c.tokens[r.ClientToken] = st
		return nil
	})
	return st, err
}

func (c *cloud) Task(ctx context.Context, region, id string) (out importer.Task, err error) {
	err = c.do(ctx, "DescribeTaskAttribute", func() error {
		for _, t := range c.tasks {
			if t.region == region && t.ID == id {
				out = t.Task
				return nil
			}
		}
		return refusal(400, "InvalidTaskId.NotFound")
	})
	return out, err
}

func (c *cloud) Tasks(ctx context.Context, region, action string, states ...string) (out []importer.Task, err error) {
	err = c.do(ctx, "DescribeTasks", func() error {
		for _, t := range c.tasks {
			if t.region == region && t.Action == action && (states == nil || slices.Contains(states, t.Status)) {
				x := t.Task
				x.ImageID, x.ErrorCode, x.ErrorMsg = "", "", "" // as a list does
				out = append(out, x)
			}
		}
		return nil
	})
	return out, err
}

func (c *cloud) CancelTask(ctx context.Context, region, id string) error {
	return c.do(ctx, "CancelTask", func() error {
		for _, t := range c.tasks {
			if t.region == region && t.ID == id && (t.Status == "Processing" || t.Status == "Waiting") {
				t.Status = "Deleted"
				t.image.Status = "CreateFailed"
				return nil
			}
		}
		return refusal(403, "InvalidTaskId.IncorrectTaskStatus")
	})
}

func (c *cloud) Images(ctx context.Context, q importer.ImageQuery) (out []importer.Image, err error) {
	err = c.do(ctx, "DescribeImages", func() error {
		for _, im := range c.images {
			if im.Region != q.Region || q.ImageID != "" && im.ID != q.ImageID || q.Family != "" && im.Family != q.Family ||
				!strings.Contains(im.Name, q.Name) {
				continue
			}
			x := im.Image
			if c.blind && im.Status == "Creating" {
				x.Tags, x.Sources = nil, nil
			}
			if c.untagged {
				x.Tags = nil
			}
			if x.Check.Status != "" && im.Status == "Available" && c.now.After(im.ready.Add(2*time.Minute)) {
				x.Check = importer.ImageCheck{Status: "Finished", Items: []importer.CheckItem{{Name: "GRUB", Value: "ok"}}}
			}
			out = append(out, x)
		}
		return nil
	})
	return out, err
}

func (c *cloud) CopyImage(ctx context.Context, r importer.CopyRequest) (id string, err error) {
	err = c.do(ctx, "CopyImage", func() error {
		src := c.find(r.Region, r.ImageID)
		switch {
		case src == nil:
			return refusal(404, "InvalidImageId.NotFound")
		case src.Status != "Available":
			return refusal(403, "IncorrectImageStatus")
		case c.tokens["copy "+r.ClientToken].ImageID != "":
			id = c.tokens["copy "+r.ClientToken].ImageID
			return nil
		case c.taken(r.ToRegion, r.Name):
			return refusal(400, "InvalidImageName.Duplicated")
		}
		im := c.newImage(r.ToRegion, r.Name)
		im.Tags, im.source, im.ready = r.Tags, r.ImageID, c.now.Add(c.copyFor)
		if c.failImage > 0 {
			c.failImage--
			im.fails = "CreateFailed"
		}
		id = im.ID
		c.tokens["copy "+r.ClientToken] = importer.ImportStarted{ImageID: id}
		return nil
	})
	return id, err
}

func (c *cloud) CancelCopy(ctx context.Context, region, imageID string) error {
	return c.do(ctx, "CancelCopyImage", func() error {
		im := c.find(region, imageID)
		if im == nil || im.Status != "Creating" {
			return refusal(403, "IncorrectImageStatus")
		}
		im.Status = "CreateFailed"
		return nil
	})
}

func (c *cloud) DeleteImage(ctx context.Context, region, imageID string, force bool) error {
	return c.do(ctx, "DeleteImage", func() error {
		im := c.find(region, imageID)
		switch {
		case im == nil:
			return nil
		case im.Status == "Creating":
			return refusal(403, "IncorrectImageStatus")
		case c.instances[im.ID] && !force:
			return refusal(403, "ImageUsedByInstance")
		case slices.ContainsFunc(c.images, func(x *fakeImage) bool { return x.source == im.ID && x.Status == "Creating" }):
			return refusal(403, "OperationDenied.ImageCopying")
		}
		c.images = slices.DeleteFunc(c.images, func(x *fakeImage) bool { return x == im })
		return nil
	})
}

func (c *cloud) DeleteSnapshot(ctx context.Context, region, id string) error {
	return c.do(ctx, "DeleteSnapshot", func() error {
		if im := c.snapshots[id]; im != "" && c.find(region, im) != nil {
			return refusal(403, "SnapshotCreatedImage")
		}
		if _, ok := c.snapshots[id]; !ok {
			return refusal(404, "InvalidSnapshotId.NotFound")
		}
		delete(c.snapshots, id)
		return nil
	})
}

func (c *cloud) ShareImage(ctx context.Context, region, imageID string, accounts []string) error {
	return c.do(ctx, "ModifyImageSharePermission", func() error {
		im := c.find(region, imageID)
		switch {
		case im == nil:
			return refusal(404, "InvalidImageId.NotFound")
		case im.Status != "Available":
			return refusal(403, "IncorrectImageStatus")
		case len(accounts) > 10:
			return refusal(400, "InvalidParameter")
		}
		for _, a := range accounts {
			if !slices.Contains(im.shared, a) {
				im.shared = append(im.shared, a)
			}
		}
		return nil
	})
}

func (c *cloud) ModifyImage(ctx context.Context, region, imageID string, m importer.ImageChange) error {
	return c.do(ctx, "ModifyImageAttribute", func() error {
		im := c.find(region, imageID)
		switch {
		case im == nil:
			return refusal(404, "InvalidImageId.NotFound")
		case im.Status != "Available" && im.Status != "Deprecated":
			return refusal(403, "IncorrectImageStatus")
		case m.Name != nil && *m.Name != im.Name && c.taken(region, *m.Name):
			return refusal(400, "InvalidImageName.Duplicated")
		}
		for _, f := range []struct{ to, v *string }{{&im.Name, m.Name}, {&im.Family, m.Family}, {&im.Status, m.Status}} {
			if f.v != nil {
				*f.to = *f.v
			}
		}
		return nil
	})
}

func (c *cloud) Regions(ctx context.Context) ([]string, error) {
	return []string{"cn-hangzhou"}, c.do(ctx, "DescribeRegions", func() error { return nil })
}

func (c *cloud) BucketInfo(ctx context.Context, _ string) (importer.BucketInfo, error) {
	return importer.BucketInfo{Region: c.bucketRegion}, c.do(ctx, "GetBucketInfo", func() error { return nil })
}

func (c *cloud) Head(ctx context.Context, o importer.Object) (info importer.ObjectInfo, err error) {
	err = c.do(ctx, "HeadObject", func() error {
		body, ok := c.objects[o.Bucket+"/"+o.Key]
		if !ok {
			return refusal(404, "NoSuchKey")
		}
		info = importer.ObjectInfo{Object: o, Size: int64(len(body)), ETag: "E"}
		return nil
	})
	return info, err
}

func (c *cloud) Read(ctx context.Context, o importer.Object, _ string, off, n int64) (r io.ReadCloser, err error) {
	err = c.do(ctx, "GetObject", func() error {
		body, ok := c.objects[o.Bucket+"/"+o.Key]
		if !ok || off+n > int64(len(body)) {
			return refusal(404, "NoSuchKey")
		}
		r = io.NopCloser(bytes.NewReader(body[off : off+n]))
		return nil
	})
	return r, err
}

func (c *cloud) Put(ctx context.Context, o importer.Object, body []byte, _ importer.PutOptions) (info importer.ObjectInfo, err error) {
	err = c.do(ctx, "PutObject", func() error {
		c.objects[o.Bucket+"/"+o.Key] = slices.Clone(body)
		return nil
	})
	return importer.ObjectInfo{Object: o, Size: int64(len(body))}, err
}

func (c *cloud) Delete(ctx context.Context, o importer.Object) error {
	return c.do(ctx, "DeleteObject", func() error {
		delete(c.objects, o.Bucket+"/"+o.Key)
		return nil
	})
}

// leftovers names what is there that nobody uses.
func (c *cloud) leftovers() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []string
	for s, im := range c.snapshots {
		if !slices.ContainsFunc(c.images, func(x *fakeImage) bool { return x.ID == im }) {
			out = append(out, "snapshot "+s+" of "+im)
		}
	}
	for k := range c.objects {
		if k != "b/k.qcow2" {
			out = append(out, "object "+k)
		}
	}
	slices.Sort(out)
	return out
}

// names lists "region name" of all images.
func (c *cloud) names() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []string
	for _, im := range c.images {
		out = append(out, im.Region+" "+im.Name)
	}
	slices.Sort(out)
	return out
}

func (c *cloud) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
	c.step()
}

var errLost = fmt.Errorf("read reply: %w", io.ErrUnexpectedEOF)

var errKilled = errors.New("killed")
