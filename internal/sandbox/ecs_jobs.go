package sandbox

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"
)

// Status of an image. A [JobFault] may ask for the last two.
const (
	imageCreating    = "Creating"
	imageWaiting     = "Waiting"
	imageAvailable   = "Available"
	imageDeprecated  = "Deprecated"
	imageUnAvailable = "UnAvailable"
	imageFailed      = "CreateFailed"
)

// Status of a task.
const (
	taskWaiting    = "Waiting"
	taskProcessing = "Processing"
	taskFinished   = "Finished"
	taskFailed     = "Failed"
	taskDeleted    = "Deleted"
)

// image is an image.
type image struct {
	id, region, owner         string // owner: self, system
	name, description, family string
	arch, platform, osType    string
	bootMode, nvme, imds      string
	group                     string // resource group
	status                    string
	progress                  int // percent
	created                   time.Time
	tags                      map[string]string
	disks                     []imageDisk
	shared                    []string // accounts
	public, copied            bool

	imp  *importJob // that makes it, until it has ended
	copy *copyJob   // likewise
	// The image check goes on between these times; zero: there is none.
	checkFrom, checkTo time.Time
}

// imageDisk is a disk of an image.
type imageDisk struct {
	bucket, key, etag string
	device, format    string
	gib               int
	info              diskInfo
	snapshot          *snapshot
}

// snapshot is a snapshot, which is billed until it is deleted by itself.
type snapshot struct {
	id, region string
	image      string // the id of the one that uses it
	gib        int
	created    time.Time
	tags       map[string]string
}

// task is an asynchronous task. A copy has none.
type task struct {
	id, region, image  string
	status             string
	progress           int // percent
	created, finished  time.Time
	errCode, errReason string
}

// importJob is an import that has not ended.
type importJob struct {
	task  *task
	from  time.Time // the beginning of the queue
	d     Durations
	fault *JobFault // how it will fail, or nil
	check bool
}

// copyJob is a copy that has not ended. As many as copiesAtOnce of a source region go on,
// the others wait.
type copyJob struct {
	src    *image
	queued time.Time
	begun  time.Time // zero: waiting
	d      Durations
	fault  *JobFault
}

// copiesAtOnce is the number of copies that go on at once in a region, as documented in
// 2026, which is taken to be the one that is copied from.
const copiesAtOnce = 5

// failAt is how far an import gets that fails.
const failAt = 37 // percent

// step brings all jobs up to the time now.
func (e *ecs) step(now time.Time) {
	for _, img := range e.images {
		if img.imp != nil {
			e.stepImport(img, now)
		}
	}
	for e.stepCopies(now) {
	}
}

// stepImport brings an import up to the time now. Its task goes Waiting, Processing,
// Finished; its image Creating until then, Waiting for some time more, and Available.
func (e *ecs) stepImport(img *image, now time.Time) {
	j := img.imp
	begun := j.from.Add(j.d.Queue)
	done := begun.Add(j.d.Import)
	ready := done.Add(j.d.Settle)
	t := j.task
	if t.status == taskWaiting && !now.Before(begun) {
		t.status = taskProcessing
	}
	if t.status == taskProcessing {
		t.progress = percent(now.Sub(begun), j.d.Import)
		img.progress = t.progress
		if f := j.fault; f != nil && f.Stage == WhileImporting && t.progress >= failAt {
			t.progress = failAt
			e.failImport(img, begun.Add(j.d.Import*failAt/100), f.Code, f.Message)
			return
		}
		if now.Before(done) {
			return
		}
		if code, reason := e.readObjects(img); code != "" {
			e.failImport(img, done, code, reason)
			return
		}
		t.status, t.finished = taskFinished, done
		img.status = imageWaiting
	}
	if t.status != taskFinished || now.Before(ready) {
		return
	}
	img.imp = nil
	if j.fault != nil && j.fault.Stage == AfterImporting {
		img.status = orFailed(j.fault.Status)
		return
	}
	img.status = imageAvailable
	if j.check {
		img.checkFrom, img.checkTo = ready, ready.Add(j.d.Check)
	}
}

// readObjects is the import's last look at its objects: they must have been there, and
// the same, all the time.
func (e *ecs) readObjects(img *image) (code, reason string) {
	for _, d := range img.disks {
		st, err := e.oss.stat(d.bucket, d.key)
		switch {
		case err != nil:
			return "InvalidOSSObject.NotFound", fmt.Sprintf("The object %s/%s was deleted while it was imported.", d.bucket, d.key)
		case st.ETag != d.etag:
			return "ImportImageFailed", fmt.Sprintf("The object %s/%s was changed while it was imported.", d.bucket, d.key)
		case d.info.problem != "":
			return "ImportImageFailed", fmt.Sprintf("The image file can not be imported: %s.", d.info.problem)
		}
	}
	return "", ""
}

func (e *ecs) failImport(img *image, at time.Time, code, reason string) {
	t := img.imp.task
	t.status, t.finished = taskFailed, at
	t.errCode, t.errReason = code, reason
	if t.errCode == "" {
		t.errCode = "ImportImageFailed"
	}
	if t.errReason == "" {
		t.errReason = "The image can not be imported."
	}
	img.status, img.progress = imageFailed, t.progress
	if f := img.imp.fault; f != nil {
		img.status = orFailed(f.Status)
	}
	img.imp = nil
}

func orFailed(status string) string {
	if status == "" {
		return imageFailed
	}
	return status
}

// stepCopies makes the first thing happen that is due among copies, and reports whether
// there was one.
func (e *ecs) stepCopies(now time.Time) bool {
	running := map[string]int{}
	var first *image
	for _, img := range e.images {
		if c := img.copy; c != nil && !c.begun.IsZero() {
			running[c.src.region]++
			if first == nil || c.end().Before(first.copy.end()) {
				first = img
			}
		}
	}
	for _, img := range e.images { // in the order in which they were asked for
		c := img.copy
		if c == nil || !c.begun.IsZero() || running[c.src.region] >= copiesAtOnce {
			continue
		}
		c.begun = c.queued
		if f := e.freed[c.src.region]; f.After(c.begun) {
			c.begun = f
		}
		img.status = imageCreating
		return true
	}
	if first == nil || now.Before(first.copy.end()) {
		for _, img := range e.images {
			if c := img.copy; c != nil && !c.begun.IsZero() {
				img.progress = percent(now.Sub(c.begun), c.d.Copy)
			}
		}
		return false
	}
	c := first.copy
	e.freed[c.src.region] = c.end()
	first.copy = nil
	if c.fault != nil {
		first.status = orFailed(c.fault.Status)
	} else {
		first.status, first.progress = imageAvailable, 100
	}
	return true
}

func (c *copyJob) end() time.Time { return c.begun.Add(c.d.Copy) }

func percent(done, of time.Duration) int {
	if of <= 0 || done >= of {
		return 100
	}
	return int(max(done, 0) * 100 / of)
}

// takeFault returns how a job that begins will fail, or nil.
func (e *ecs) takeFault(name string, stages ...JobStage) *JobFault {
	for i := range e.cfg.JobFaults {
		f := e.cfg.JobFaults[i]
		if !slices.Contains(stages, f.Stage) || f.Image != "" && f.Image != name {
			continue
		}
		switch f.Times {
		case 0: // without a limit
		case 1:
			e.cfg.JobFaults = slices.Delete(e.cfg.JobFaults, i, i+1)
		default:
			e.cfg.JobFaults[i].Times--
		}
		return &f
	}
	return nil
}

// newID makes the identifier of an image ("m"), a task ("t") or a snapshot ("s").
func (e *ecs) newID(kind string) string {
	e.serial++
	return fmt.Sprintf("%s-sandbox%013d", kind, e.serial)
}

// image finds an image of the account in the region of a request.
func (e *ecs) image(q *rpcRequest, id string) (*image, *rpcError) {
	for _, img := range e.images {
		if img.id == id && img.region == q.params["RegionId"] {
			if img.owner != "self" {
				return nil, rpcRefusal(http.StatusForbidden, "InvalidImageType.NotSupported", "The specified image is not a custom image.")
			}
			return img, nil
		}
	}
	return nil, rpcRefusal(http.StatusNotFound, "InvalidImageId.NotFound", "The specified ImageId %q does not exist.", id)
}

// addImage makes an image with its snapshots; room was found for it before.
func (e *ecs) addImage(img *image) {
	img.id, img.owner = e.newID("m"), "self"
	if img.name == "" {
		img.name = img.id
	}
	for i := range img.disks {
		s := &snapshot{id: e.newID("s"), region: img.region, image: img.id, gib: img.disks[i].gib, created: img.created}
		img.disks[i].snapshot = s
		e.snapshots = append(e.snapshots, s)
	}
	e.images = append(e.images, img)
}

// room checks that an image of this name can be made in a region.
func (e *ecs) room(region, name string) *rpcError {
	n := 0
	for _, img := range e.images {
		if img.region != region || img.owner != "self" {
			continue
		}
		if n++; img.name == name {
			return rpcRefusal(http.StatusBadRequest, "InvalidImageName.Duplicated", "The specified Image name has already bean used.")
		}
	}
	if n >= e.cfg.ImageQuota {
		return rpcRefusal(http.StatusForbidden, "QuotaExceed.Image", "The Image Quota exceeds.")
	}
	return nil
}

// drop forgets an image.
func (e *ecs) drop(img *image) {
	e.images = slices.DeleteFunc(e.images, func(i *image) bool { return i == img })
}

// dropSnapshots forgets the snapshots of an image.
func (e *ecs) dropSnapshots(img *image) {
	e.snapshots = slices.DeleteFunc(e.snapshots, func(s *snapshot) bool { return s.image == img.id })
}

// findObject checks that an import in a region can find its object.
func (e *ecs) findObject(bucket, key, region string) *rpcError {
	st, err := e.oss.stat(bucket, key)
	switch {
	case errors.Is(err, errNoSuchBucket):
		return rpcRefusal(http.StatusBadRequest, "InvalidOSSBucket.NotFound", "The specified OSS bucket %q does not exist.", bucket)
	case err != nil:
		return rpcRefusal(http.StatusBadRequest, "InvalidOSSObject.NotFound", "The specified OSS object %q does not exist.", key)
	case st.Region != region:
		return rpcRefusal(http.StatusBadRequest, "InvalidOSSBucket.NotMatched", "The specified OSS bucket is not in the region %s.", region)
	}
	return nil
}
