package importer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"remaster/internal/hint"
)

// States of tasks and images (ECS API 2014-05-26, DescribeTasks and DescribeImages).
const (
	taskWaiting    = "Waiting"
	taskProcessing = "Processing"
	taskFinished   = "Finished"
	taskFailed     = "Failed"
	taskDeleted    = "Deleted"

	imageAvailable    = "Available"
	imageDeprecated   = "Deprecated"
	imageUnavailable  = "UnAvailable"
	imageCreateFailed = "CreateFailed"

	actionImport = "ImportImage"
)

// usable reports whether instances can be made of the image.
func (im Image) usable() bool { return im.Status == imageAvailable || im.Status == imageDeprecated }

// dead reports whether the image will never be usable.
func (im Image) dead() bool { return im.Status == imageUnavailable || im.Status == imageCreateFailed }

// Target is an image that is being made. One of the ids may be empty: a task leads to
// its image, and a copy has no task.
type Target struct {
	Region  string `json:"region"`
	TaskID  string `json:"taskID,omitempty"`
	ImageID string `json:"imageID,omitempty"`
}

func (t Target) String() string {
	var s []string
	if t.ImageID != "" {
		s = append(s, "image "+t.ImageID)
	}
	if t.TaskID != "" {
		s = append(s, "task "+t.TaskID)
	}
	return strings.Join(s, ", ") + " in " + t.Region
}

// FailedError says that the service could not make an image, or was told not to.
type FailedError struct {
	Target
	State         string // "task Failed", "image CreateFailed"
	Code, Message string // the service's reason, if it gave one
}

func (e *FailedError) Error() string {
	s := fmt.Sprintf("%v ended as %q", e.Target, e.State)
	if e.Code != "" || e.Message != "" {
		s += fmt.Sprintf(": %s (%s)", e.Message, e.Code)
	}
	return s
}

// TimeoutError says that an image was not done in time. It goes on being made, and a
// later wait can be for the same target.
type TimeoutError struct {
	Target
	After time.Duration
	State string // that was seen last
	Err   error  // of the last look, if that failed
}

func (e *TimeoutError) Error() string {
	s := fmt.Sprintf("%v is not done after %v", e.Target, e.After.Round(time.Second))
	if e.State != "" {
		s += fmt.Sprintf(", but %q", e.State)
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

func (e *TimeoutError) Unwrap() error { return e.Err }

// GoneError says that an image that was being made is not there any more.
type GoneError struct{ Target }

func (e *GoneError) Error() string { return fmt.Sprintf("%v is not there", e.Target) }

// Wait waits until the task of t, if it has one, has finished and the image can be used,
// which are two events. It returns a [*FailedError] with the service's reason, or a
// [*TimeoutError] after o.Timeout, which leaves everything as it is. A look that fails
// for a passing reason is repeated. Where o.CheckTimeout is set, it then waits for the
// result of the image check; that none comes is no error.
func Wait(ctx context.Context, ecs ECS, t Target, o Options) (Image, error) {
	j, err := newJob(ecs, o)
	if err != nil {
		return Image{}, err
	}
	im, err := j.wait(ctx, t)
	if err == nil && o.CheckTimeout > 0 {
		im, err = j.waitCheck(ctx, im)
	}
	return im, err
}

// maxMisses is the number of looks in a row that don't show an image that should be
// there, before it counts as gone. Lists may lag behind.
const maxMisses = 10

type watch struct {
	*job
	Target
	state    string // that was seen last
	task     Task
	finished bool // the task has
	misses   int
}

func (j *job) wait(ctx context.Context, t Target) (Image, error) {
	w := &watch{job: j, Target: t}
	began := j.o.Clock.Now()
	for n := 0; ; n++ {
		im, done, err := w.look(ctx)
		if done || err != nil && !Retryable(err) {
			return im, err
		}
		if err != nil {
			j.o.Log.Warn("look failed", "region", w.Region, "task", w.TaskID, "image", w.ImageID, "error", err)
		}
		stop := j.pause(ctx, n)
		if errors.Is(stop, errDeadline) {
			return im, w.timeout(j.o.Clock.Now().Sub(began), err)
		}
		if stop != nil {
			return im, fmt.Errorf("wait for %v: %w", w.Target, stop)
		}
	}
}

func (w *watch) timeout(after time.Duration, cause error) error {
	id := w.TaskID
	if id == "" {
		id = w.ImageID
	}
	return hint.With(&TimeoutError{Target: w.Target, After: after, State: w.state, Err: cause},
		fmt.Sprintf("nothing was undone; go on with: remaster import wait %s --region %s", id, w.Region))
}

// look asks once. It reports whether the image can be used.
func (w *watch) look(ctx context.Context) (Image, bool, error) {
	if w.TaskID != "" && !w.finished {
		var err error
		if w.task, err = w.ecs.Task(ctx, w.Region, w.TaskID); err != nil {
			return Image{}, false, fmt.Errorf("look at task %s: %w", w.TaskID, err)
		}
		if w.ImageID == "" {
			w.ImageID = w.task.ImageID
		}
		w.saw("task "+w.task.Status, w.task.Progress)
		switch w.task.Status {
		case taskFinished:
			w.finished = true
		case taskFailed, taskDeleted:
			return Image{}, false, w.failed()
		default:
			return Image{}, false, nil
		}
	}
	if w.ImageID == "" {
		return Image{}, false, fmt.Errorf("%v does not tell its image", w.Target)
	}
	im, ok, err := w.image(ctx, w.Region, w.ImageID)
	if err != nil {
		return Image{}, false, err
	}
	if !ok {
		if w.misses++; w.misses >= maxMisses {
			return Image{}, false, &GoneError{w.Target}
		}
		return Image{}, false, nil
	}
	w.misses = 0
	w.saw("image "+im.Status, im.Progress)
	if im.dead() {
		return im, false, w.failed()
	}
	return im, im.usable(), nil
}

func (w *watch) failed() error {
	e := &FailedError{Target: w.Target, State: w.state, Code: w.task.ErrorCode, Message: w.task.ErrorMsg}
	if w.task.Status == taskDeleted {
		return e
	}
	return hint.With(e, "run it again when the reason is removed: what is left of this image is removed then")
}

// saw logs a state if it is a new one, and reports progress.
func (w *watch) saw(state, progress string) {
	percent, _ := strconv.Atoi(strings.TrimSuffix(progress, "%"))
	if state != w.state {
		w.o.Log.LogAttrs(context.Background(), slog.LevelInfo, state, slog.String("region", w.Region),
			slog.String("task", w.TaskID), slog.String("image", w.ImageID), slog.Duration("elapsed", w.elapsed()))
		w.state = state
	}
	w.report(Progress{Region: w.Region, TaskID: w.TaskID, ImageID: w.ImageID, State: state, Percent: min(max(percent, 0), 100)})
}

// image returns the image of an id; ok is false if it is not there.
func (j *job) image(ctx context.Context, region, id string) (im Image, ok bool, err error) {
	images, err := j.ecs.Images(ctx, ImageQuery{Region: region, ImageID: id})
	if err != nil && !isCode(err, codesNotFound...) {
		return Image{}, false, fmt.Errorf("look at image %s: %w", id, err)
	}
	for _, im := range images {
		if im.ID == id {
			im.Region = region
			return im, true, nil
		}
	}
	return Image{}, false, nil
}

// waitCheck waits for the end of the image's check. There may be none.
func (j *job) waitCheck(ctx context.Context, im Image) (Image, error) {
	k := *j
	k.o.Timeout = min(j.o.Timeout, j.elapsed()+j.o.CheckTimeout)
	for n := 0; ; n++ {
		begun := im.Check.Status != ""
		if begun && im.Check.Status != taskProcessing || !begun && n >= maxMisses {
			return im, nil
		}
		stop := k.pause(ctx, n)
		if errors.Is(stop, errDeadline) {
			return im, nil
		}
		if stop != nil {
			return im, stop
		}
		now, ok, err := j.image(ctx, im.Region, im.ID)
		if err != nil && !Retryable(err) {
			return im, err
		}
		if ok {
			im = now
		}
	}
}
