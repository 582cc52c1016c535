package importer

import (
	"context"
	"time"
)

// RetryECS returns an ECS that repeats what fails for a reason that may pass, as [Retry]
// does. An import or copy whose reply was lost is asked for again: with a client token
// the service replays its reply, and without one it refuses the name.
func RetryECS(e ECS, p Policy) ECS {
	r := Retry(nil, p).(*retrying) // for its policy and pauses
	return &retryingECS{e, r}
}

type retryingECS struct {
	e ECS
	r *retrying
}

// ask makes a request of one reply. A list of many pages may take as long as it needs,
// which Work bounds.
func ask[T any](ctx context.Context, r *retrying, op string, wait time.Duration, f func(ctx context.Context) (T, error)) (T, error) {
	return try(ctx, r, op, wait, func(ctx context.Context, _ *time.Timer) (T, error) { return f(ctx) })
}

// do makes a request whose reply says nothing.
func (x *retryingECS) do(ctx context.Context, op string, f func(ctx context.Context) error) error {
	_, err := ask(ctx, x.r, op, x.r.p.Reply, func(ctx context.Context) (struct{}, error) { return struct{}{}, f(ctx) })
	return err
}

func (x *retryingECS) ImportImage(ctx context.Context, r ImportRequest) (ImportStarted, error) {
	return ask(ctx, x.r, "ImportImage", x.r.p.Reply, func(ctx context.Context) (ImportStarted, error) { return x.e.ImportImage(ctx, r) })
}

func (x *retryingECS) Task(ctx context.Context, region, id string) (Task, error) {
	return ask(ctx, x.r, "DescribeTaskAttribute", x.r.p.Reply, func(ctx context.Context) (Task, error) { return x.e.Task(ctx, region, id) })
}

func (x *retryingECS) Tasks(ctx context.Context, region, action string, states ...string) ([]Task, error) {
	return ask(ctx, x.r, "DescribeTasks", x.r.p.Work, func(ctx context.Context) ([]Task, error) {
		return x.e.Tasks(ctx, region, action, states...)
	})
}

func (x *retryingECS) CancelTask(ctx context.Context, region, id string) error {
	return x.do(ctx, "CancelTask", func(ctx context.Context) error { return x.e.CancelTask(ctx, region, id) })
}

func (x *retryingECS) Images(ctx context.Context, q ImageQuery) ([]Image, error) {
	return ask(ctx, x.r, "DescribeImages", x.r.p.Work, func(ctx context.Context) ([]Image, error) { return x.e.Images(ctx, q) })
}

func (x *retryingECS) CopyImage(ctx context.Context, r CopyRequest) (string, error) {
	return ask(ctx, x.r, "CopyImage", x.r.p.Reply, func(ctx context.Context) (string, error) { return x.e.CopyImage(ctx, r) })
}

func (x *retryingECS) CancelCopy(ctx context.Context, region, imageID string) error {
	return x.do(ctx, "CancelCopyImage", func(ctx context.Context) error { return x.e.CancelCopy(ctx, region, imageID) })
}

func (x *retryingECS) DeleteImage(ctx context.Context, region, imageID string, force bool) error {
	return x.do(ctx, "DeleteImage", func(ctx context.Context) error { return x.e.DeleteImage(ctx, region, imageID, force) })
}

func (x *retryingECS) DeleteSnapshot(ctx context.Context, region, snapshotID string) error {
	return x.do(ctx, "DeleteSnapshot", func(ctx context.Context) error { return x.e.DeleteSnapshot(ctx, region, snapshotID) })
}

func (x *retryingECS) ShareImage(ctx context.Context, region, imageID string, accounts []string) error {
	return x.do(ctx, "ModifyImageSharePermission", func(ctx context.Context) error {
		return x.e.ShareImage(ctx, region, imageID, accounts)
	})
}

func (x *retryingECS) ModifyImage(ctx context.Context, region, imageID string, m ImageChange) error {
	return x.do(ctx, "ModifyImageAttribute", func(ctx context.Context) error { return x.e.ModifyImage(ctx, region, imageID, m) })
}

func (x *retryingECS) Regions(ctx context.Context) ([]string, error) {
	return ask(ctx, x.r, "DescribeRegions", x.r.p.Work, func(ctx context.Context) ([]string, error) { return x.e.Regions(ctx) })
}
