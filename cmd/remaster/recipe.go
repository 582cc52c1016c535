package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"remaster/internal/hint"
	"remaster/pkg/disk"
	"remaster/pkg/recipe"
	"remaster/pkg/remaster"
)

// recipeFlags are the flags of build and plan that say what to change.
type recipeFlags struct {
	recipe   recipe.Recipe
	archives []string
	inFormat string
	tempDir  string
}

func (f *recipeFlags) add(cmd *cobra.Command) {
	r, fl := &f.recipe, cmd.Flags()
	fl.StringArrayVar(&r.KernelArgs, "kernel-arg", nil, "set a kernel argument, `KEY[=VALUE]`, in every boot entry (repeatable)")
	fl.StringArrayVar(&r.DeleteKernelArgs, "delete-kernel-arg", nil, "remove a kernel argument, `KEY[=VALUE]` (repeatable)")
	fl.StringArrayVar(&f.archives, "containerd-archive", nil, "put a release `FILE` of containerd, runc or the CNI plugins into the image (repeatable)")
	fl.StringVar(&r.Timezone, "timezone", "", "set the time zone, such as `Asia/Shanghai`")
	fl.BoolVar(&r.DisableSwap, "disable-swap", false, "comment the swap lines of /etc/fstab out")
	fl.StringArrayVar(&r.DisableUnits, "disable-unit", nil, "turn a systemd `UNIT` off (repeatable)")
	fl.BoolVar(&r.SkipCgroupV2, "no-cgroup-v2", false, "leave the cgroup hierarchy as it is")
	fl.BoolVar(&r.SkipContainerd, "no-containerd", false, "leave containerd and its settings as they are")
	fl.BoolVar(&r.AllowOS, "any-os", false, "edit an operating system that remaster was not made for")
	fl.StringVar(&f.inFormat, "input-format", "", "take the image for `FORMAT` (qcow2, vhd, vhd-fixed, raw) instead of looking")
	fl.StringVar(&f.tempDir, "temp-dir", "", "`FOLDER` for edits that do not fit in memory")
}

// job is a plan with what it was made from.
type job struct {
	*remaster.Plan // nil for an image that is taken as it is
	base           *base
	payload        *recipe.Payload
}

// Close releases everything.
func (j *job) Close() error {
	var errs []error
	if j.Plan != nil {
		errs = append(errs, j.Plan.Close())
	}
	if j.payload != nil {
		errs = append(errs, j.payload.Close())
	}
	return errors.Join(append(errs, j.base.Close())...)
}

// make opens the image in a file and makes the plan.
func (f *recipeFlags) make(ctx context.Context, a *app, path string) (*job, error) {
	b, err := a.open(path, f.inFormat)
	if err != nil {
		return nil, err
	}
	return f.plan(ctx, b)
}

// plan makes the plan for an opened image, which belongs to the job then, and is closed
// if there is an error.
func (f *recipeFlags) plan(ctx context.Context, b *base) (_ *job, err error) {
	j := &job{base: b, payload: recipe.NewPayload(f.tempDir)}
	defer func() {
		if err != nil {
			err = errors.Join(err, j.Close())
		}
	}()
	at, err := sourceDateEpoch()
	if err != nil {
		return nil, err
	}
	for _, name := range f.archives {
		if err := j.payload.AddFile(ctx, name); err != nil {
			return nil, err
		}
	}
	r := f.recipe
	r.Payload = j.payload
	o := remaster.Options{Time: at, Overlay: disk.OverlayOptions{TempDir: f.tempDir}}
	if j.Plan, err = remaster.MakePlan(ctx, b.Image, r, o); err != nil {
		return nil, fmt.Errorf("%s: %w", b.path, err)
	}
	return j, nil
}

// sourceDateEpoch returns the time that SOURCE_DATE_EPOCH asks for, or the zero time.
func sourceDateEpoch() (time.Time, error) {
	s := os.Getenv("SOURCE_DATE_EPOCH")
	if s == "" {
		return time.Time{}, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n <= 0 {
		return time.Time{}, hint.With(usagef("SOURCE_DATE_EPOCH=%q is not a number of seconds", s), "unset it, or set it to seconds since 1970")
	}
	return time.Unix(n, 0).UTC(), nil
}
