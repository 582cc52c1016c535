package importer

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"remaster/internal/hint"
)

// State is what is known of an import or a copy.
type State struct {
	Target
	Task    string       `json:"task,omitempty"`  // the task's status
	Image   string       `json:"image,omitempty"` // the image's status, "" if it is not there
	Name    string       `json:"name,omitempty"`
	Percent string       `json:"progress,omitempty"`
	Code    string       `json:"code,omitempty"` // the reason of a failure
	Message string       `json:"message,omitempty"`
	Check   *CheckReport `json:"check,omitempty"`
}

// ParseTarget takes an id for a task's ("t-…") or an image's ("m-…").
func ParseTarget(region, id string) (Target, error) {
	switch {
	case region == "":
		return Target{}, errors.New("no region is given")
	case strings.HasPrefix(id, "t-"):
		return Target{Region: region, TaskID: id}, nil
	case strings.HasPrefix(id, "m-"):
		return Target{Region: region, ImageID: id}, nil
	}
	return Target{}, hint.With(fmt.Errorf("%q is no id of a task or an image", id), "ids of tasks begin with t-, those of images with m-")
}

// Status looks once at a task and its image.
func Status(ctx context.Context, ecs ECS, t Target) (State, error) {
	j := &job{ecs: ecs}
	s := State{Target: t}
	if t.TaskID != "" {
		task, err := ecs.Task(ctx, t.Region, t.TaskID)
		if err != nil {
			return s, explain(fmt.Errorf("look at task %s: %w", t.TaskID, err), "")
		}
		s.Task, s.Percent, s.Code, s.Message = task.Status, task.Progress, task.ErrorCode, task.ErrorMsg
		if s.ImageID == "" {
			s.ImageID = task.ImageID
		}
	}
	if s.ImageID == "" {
		return s, nil
	}
	im, ok, err := j.image(ctx, t.Region, s.ImageID)
	if err != nil {
		return s, explain(err, "")
	}
	if !ok {
		if s.Task == "" {
			return s, &GoneError{t}
		}
		return s, nil
	}
	var r RegionReport
	r.describe(im)
	s.Image, s.Name, s.Check = im.Status, im.Name, r.Check
	if s.Task == "" || s.Task == taskFinished {
		s.Percent = im.Progress
	}
	return s, nil
}

// Cancel stops an import by its task, or a copy by its image, waits until the service
// has done so, and removes what is left of the image with its snapshots. An image that
// can be used already is left alone, and that is an error.
func Cancel(ctx context.Context, ecs ECS, t Target, o Options) error {
	j, err := newJob(ecs, o)
	if err != nil {
		return err
	}
	if t.TaskID == "" {
		task, _, err := j.running(ctx, t.Region, func(im Image) bool { return im.ID == t.ImageID })
		if err != nil {
			return explain(err, "")
		}
		t.TaskID = task.ID
	}
	if t.TaskID == "" {
		return j.cancelCopy(ctx, t)
	}
	task, err := ecs.Task(ctx, t.Region, t.TaskID)
	if err != nil {
		return explain(fmt.Errorf("look at task %s: %w", t.TaskID, err), "")
	}
	if task.Status == taskFinished {
		return fmt.Errorf("%v has finished already", t)
	}
	if task.Status != taskFailed && task.Status != taskDeleted {
		if err := ecs.CancelTask(ctx, t.Region, t.TaskID); err != nil {
			return explain(fmt.Errorf("cancel task %s: %w", t.TaskID, err), "")
		}
	}
	if t.ImageID == "" {
		t.ImageID = task.ImageID
	}
	return j.afterCancel(ctx, t)
}

func (j *job) cancelCopy(ctx context.Context, t Target) error {
	im, ok, err := j.image(ctx, t.Region, t.ImageID)
	switch {
	case err != nil:
		return explain(err, "")
	case !ok:
		return &GoneError{t}
	case im.usable():
		return fmt.Errorf("%v can be used already", t)
	}
	if !im.dead() {
		if err := j.ecs.CancelCopy(ctx, t.Region, t.ImageID); err != nil && !isCode(err, codesNotFound...) {
			return explain(fmt.Errorf("cancel the copy %s: %w", t.ImageID, err), "")
		}
	}
	return j.afterCancel(ctx, t)
}

// afterCancel waits for the end of what was cancelled, and removes what is left.
func (j *job) afterCancel(ctx context.Context, t Target) error {
	for n := 0; ; n++ {
		ended := t.TaskID == ""
		if !ended {
			task, err := j.ecs.Task(ctx, t.Region, t.TaskID)
			if err != nil {
				return fmt.Errorf("look at task %s: %w", t.TaskID, err)
			}
			if task.Status == taskFinished {
				return fmt.Errorf("%v was done before it could be cancelled", t)
			}
			ended = task.Status == taskFailed || task.Status == taskDeleted
		}
		im, ok, err := j.image(ctx, t.Region, t.ImageID)
		switch {
		case err != nil:
			return err
		case ended && !ok:
			return nil
		case im.usable():
			return fmt.Errorf("%v was done before it could be cancelled", t)
		case ended && im.dead():
			return j.cleaner.remove(ctx, im, false)
		}
		if err := j.pause(ctx, n); err != nil {
			return fmt.Errorf("wait until %v is cancelled: %w", t, err)
		}
	}
}
