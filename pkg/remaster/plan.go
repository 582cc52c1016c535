package remaster

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"remaster/internal/hint"
	"remaster/pkg/disk"
	"remaster/pkg/grub"
	"remaster/pkg/partition"
	"remaster/pkg/qcow2"
	"remaster/pkg/recipe"
	"remaster/pkg/rootfs"
	"remaster/pkg/verify"
	"remaster/pkg/vhd"
)

// Options are what a plan needs beside the image and the recipe.
type Options struct {
	// Time is the time that changed files get. The zero time means the time of the
	// last write to the root file system, so that the same input gives the same
	// output whenever it is built.
	Time time.Time
	// Overlay limits the memory that edits take; see [disk.OverlayOptions].
	Overlay disk.OverlayOptions
}

// Plan is a remastered guest, edited and verified but written nowhere. Close it when
// its output was read.
type Plan struct {
	Image *Image
	// Changes are what was changed in the guest's files, and nothing else was.
	Changes []rootfs.Change
	// Notes and Warnings are what the recipe has to say about this image.
	Notes, Warnings []string
	// Before and After are what the boot entries boot with.
	Before, After *grub.Boot
	// Rules are the results of the verification.
	Rules []verify.Result

	old   *rootfs.Guest // the guest before the edits, which Changes may read from
	guest *disk.Overlay // the guest's bytes with the edits
	outs  []*disk.Overlay
	o     Options
}

// OpenGuest opens the guest on the image for reading. Close it.
func (im *Image) OpenGuest() (*rootfs.Guest, error) {
	return rootfs.Open(im.Disk, rootfs.OpenOptions{})
}

// MakePlan applies r to a guest laid over the image, and verifies the result: the
// changed file systems are parsed anew, every changed file is read back, and every boot
// entry is resolved. An error says that this image can't be made what r asks for;
// nothing needs to be undone.
//
// An ext4 file system that was not unmounted is planned for as the replay of its journal
// leaves it, which a note tells. The replay is written out with the first change of
// that file system; without one it stays as it is, and the guest's kernel replays it.
func MakePlan(ctx context.Context, im *Image, r recipe.Recipe, o Options) (_ *Plan, err error) {
	old, err := rootfs.Open(im.Disk, rootfs.OpenOptions{Overlay: o.Overlay})
	if err != nil {
		return nil, err
	}
	if o.Time.IsZero() {
		o.Time = old.LastWrite()
	}
	p := &Plan{Image: im, o: o, old: old, guest: disk.NewOverlay(im.Disk, o.Overlay)}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Close())
		}
	}()
	if p.Before, err = grub.Resolve(old); err != nil {
		return nil, err
	}
	stage := rootfs.NewStage(old)
	report, err := r.Plan(ctx, stage)
	if err != nil {
		return nil, err
	}
	p.Changes, p.Notes, p.Warnings = stage.Changes(), slices.Concat(old.Recovered(), report.Notes), report.Warnings
	if err := p.apply(ctx); err != nil {
		return nil, err
	}
	return p, p.verify(old, r)
}

// apply brings the changes into the overlay.
func (p *Plan) apply(ctx context.Context) (err error) {
	if len(p.Changes) == 0 {
		return nil
	}
	g, err := rootfs.Open(p.guest, rootfs.OpenOptions{Edit: true, Now: p.o.Time, Overlay: p.o.Overlay})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.Close()) }()
	if err := ctx.Err(); err != nil {
		return err
	}
	return rootfs.Apply(g, p.Changes, p.o.Time)
}

// verify opens the edited guest as a stranger would and looks at what became of it. A
// rule that fails is an error. Where the recipe leaves something out, the guest may fail
// a rule that it failed before, and this becomes a warning.
func (p *Plan) verify(old rootfs.Tree, r recipe.Recipe) (err error) {
	g, err := rootfs.Open(readOnly{p.guest}, rootfs.OpenOptions{Overlay: p.o.Overlay})
	if err != nil {
		return fmt.Errorf("open the edited guest: %w", err)
	}
	defer func() { err = errors.Join(err, g.Close()) }()
	if err := rootfs.Confirm(g, p.Changes); err != nil {
		return err
	}
	if p.After, err = grub.Resolve(g); err != nil {
		return fmt.Errorf("resolve the edited boot entries: %w", err)
	}
	p.Rules = verify.Run(g)
	failedBefore := map[string]bool{}
	if r.SkipCgroupV2 || r.SkipContainerd || r.AllowOS {
		for _, x := range verify.Run(old) {
			failedBefore[x.Rule.ID] = x.Status == verify.Fail
		}
	}
	for _, x := range p.Rules {
		switch {
		case x.Status != verify.Fail:
		case failedBefore[x.Rule.ID]:
			p.Warnings = append(p.Warnings, fmt.Sprintf("%s: %s", x.Rule.ID, x.Detail))
		default:
			return hint.With(fmt.Errorf("the edited guest does not pass %s: %s", x.Rule.ID, x.Detail), x.Rule.Remedy)
		}
	}
	return nil
}

// readOnly hides that an overlay can be written.
type readOnly struct{ disk.Disk }

// Output returns the remastered image as a container of the given format, or of the
// base's with "". Of the base's own format, it is the base's container with the edits
// brought in; it is checked before it is returned. The Blob lives as long as p.
func (p *Plan) Output(f Format) (disk.Blob, error) {
	if f == "" {
		f = p.Image.Format
	}
	switch f {
	case Raw:
		return p.guest, nil
	case p.Image.Format:
		return p.rewritten()
	case Qcow2:
		return qcow2.Encode(p.guest, qcow2.EncodeOptions{})
	}
	d, err := p.grown()
	if err != nil {
		return nil, err
	}
	id, err := p.id()
	if err != nil {
		return nil, err
	}
	o := vhd.Options{UniqueID: id, Timestamp: p.o.Time}
	if f == VHDFixed {
		return vhd.Fixed(d, o)
	}
	return vhd.Dynamic(d, o)
}

// id returns a UUID (RFC 9562, version 8) that follows from the plan.
func (p *Plan) id() (id [16]byte, err error) {
	doc, err := p.Document()
	if err != nil {
		return id, err
	}
	text, err := json.Marshal(doc)
	if err != nil {
		return id, err
	}
	sum := sha256.Sum256(text)
	copy(id[:], sum[:])
	id[6], id[8] = id[6]&0x0f|0x80, id[8]&0x3f|0x80
	return id, nil
}

// rewritten brings the edits into an overlay over the base's container.
func (p *Plan) rewritten() (disk.Blob, error) {
	c := disk.NewOverlay(p.Image.Blob, p.o.Overlay)
	p.outs = append(p.outs, c)
	if err := p.Image.c.Rewrite(c, p.guest); err != nil {
		return nil, fmt.Errorf("edit the %s container: %w", p.Image.Format, err)
	}
	if err := p.Image.check(c); err != nil {
		return nil, fmt.Errorf("check the edited %s container: %w", p.Image.Format, err)
	}
	return c, nil
}

// grown returns the guest's disk with zeros behind it up to the size that it has as a
// VHD; the backup GPT moves to the new end.
func (p *Plan) grown() (disk.Disk, error) {
	size, err := vhd.DiskSize(p.guest.Size())
	if err != nil || size == p.guest.Size() {
		return p.guest, err
	}
	v := disk.NewOverlay(p.guest, p.o.Overlay)
	p.outs = append(p.outs, v)
	t, err := partition.Read(v)
	if err != nil {
		return nil, err
	}
	if err := v.Grow(size); err != nil {
		return nil, err
	}
	return v, partition.MoveBackupGPT(t, v)
}

// Close releases what the plan and its outputs hold.
func (p *Plan) Close() error {
	err := errors.Join(p.guest.Close(), p.old.Close())
	for _, c := range p.outs {
		err = errors.Join(err, c.Close())
	}
	return err
}
