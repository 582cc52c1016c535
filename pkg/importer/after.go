package importer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"remaster/internal/hint"
)

// Disposal says what becomes of a predecessor.
type Disposal string

// The disposals. The zero value deletes an image that was replaced by name, and is an
// error where predecessors are named.
const (
	Keep      Disposal = "keep"
	Deprecate Disposal = "deprecate"
	Delete    Disposal = "delete" // with its snapshots
)

// ParseDisposal returns the disposal of that name.
func ParseDisposal(s string) (Disposal, error) {
	switch d := Disposal(s); d {
	case "", Keep, Deprecate, Delete:
		return d, nil
	}
	return "", hint.With(fmt.Errorf("unknown disposal %q of a predecessor", s), "use keep, deprecate or delete")
}

// After is what is to be done with an image once it can be used. All of it may be asked
// for again: what is done is found and left alone.
type After struct {
	// Copies are made, five at once, in other regions. Sharing, family and
	// predecessors are dealt with there, too.
	Copies []Copy
	// Share are the accounts that may use the image.
	Share []string
	// Family is set last of all in a region: what starts instances from the family
	// changes over to the image then.
	Family string

	// Predecessor says what becomes of the images that this one takes over from, once
	// everything else was done in every region: of the one whose name it takes, of
	// those of Predecessors, by id or exact name, and, with OlderOfFamily, of all
	// older ones of the family that bear the tag [TagContent].
	Predecessor   Disposal
	Predecessors  []string
	OlderOfFamily bool
	// Force deletes predecessors that instances were made of.
	Force bool

	// DeleteObject deletes the imported object in the end.
	DeleteObject bool
}

// Copy is a copy in another region.
type Copy struct {
	Region        string
	Name          string // "" for the image's
	Description   string // "" for the image's
	Encrypted     bool
	KMSKeyID      string
	ResourceGroup string
}

// Limits of the service: copies that it makes at once, and accounts in a call.
const (
	maxCopies  = 5
	maxSharing = 10
)

// tagSource is the tag of a copy that tells where it came from.
const tagSource = "remaster:source"

// Run imports an image, waits for it, and does what comes after: [Import], [Wait] and
// [Finish], with one timeout for all. Without o.Notes, they are kept beside the object.
// The report is never nil. An error after the image was made is a [*PartialError]. When
// ctx ends, what was begun goes on in the cloud, and a later run takes it up.
func Run(ctx context.Context, store Store, ecs ECS, s ImageSpec, a After, o Options) (*Report, error) {
	f, err := newFinish(ctx, store, ecs, s, a, o)
	if err != nil {
		return f.rep, err
	}
	defer f.close()
	if err := fatal(s.Check()); err != nil {
		return f.rep, err
	}
	res, err := f.importImage(ctx, s)
	if err != nil {
		return f.rep, err
	}
	return f.rep, f.run(ctx, res)
}

// Finish does what comes after an import: it waits for the image, and then does what a
// asks for. See [Run].
func Finish(ctx context.Context, store Store, ecs ECS, s ImageSpec, res Result, a After, o Options) (*Report, error) {
	f, err := newFinish(ctx, store, ecs, s, a, o)
	if err != nil {
		return f.rep, err
	}
	defer f.close()
	return f.rep, f.run(ctx, res)
}

// finish is the work behind an import.
type finish struct {
	*job
	store Store
	spec  ImageSpec
	after After
	rep   *Report
}

// newFinish also ends the deletions that an earlier run has begun. Its result has a
// report even with an error.
func newFinish(ctx context.Context, store Store, ecs ECS, s ImageSpec, a After, o Options) (*finish, error) {
	f := &finish{store: store, spec: s, after: a, rep: &Report{Object: s.Object.String(), Regions: []RegionReport{}}}
	if o.Notes == nil && store != nil {
		o.Notes = NotesBeside(store, s.Object)
	}
	var err error
	if f.job, err = newJob(ecs, o); err != nil {
		return f, err
	}
	if err := a.check(); err != nil {
		return f, err
	}
	if a.DeleteObject && store == nil {
		return f, errors.New("the object is to be deleted, but there is no store")
	}
	return f, f.cleaner.resume(ctx)
}

func (f *finish) close() { f.rep.Seconds, f.rep.Removed = f.elapsed().Seconds(), f.cleaner.done }

// NotesBeside keeps notes in an object beside o; see [Notes].
func NotesBeside(s Store, o Object) Notes {
	return ObjectNotes(s, Object{Bucket: o.Bucket, Key: o.Key + ".cleanup.json"})
}

// check says what is wrong with what is asked for.
func (a After) check() error {
	if (len(a.Predecessors) > 0 || a.OlderOfFamily) && a.Predecessor == "" {
		return errors.New("predecessors are named, but not what is to become of them")
	}
	if a.OlderOfFamily && a.Family == "" {
		return errors.New("older images of the family are to be dealt with, but no family is given")
	}
	seen := map[string]bool{}
	for _, c := range a.Copies {
		if c.Region == "" {
			return errors.New("a copy has no region")
		}
		if seen[c.Region] {
			return fmt.Errorf("there are two copies to %s", c.Region)
		}
		seen[c.Region] = true
		if c.Name != "" {
			if err := CheckName(c.Name); err != nil {
				return fmt.Errorf("copy to %s: %w", c.Region, err)
			}
		}
	}
	return nil
}

func (f *finish) run(ctx context.Context, res Result) error {
	f.rep.Regions = append(f.rep.Regions, RegionReport{Result: res})
	for _, c := range f.after.Copies {
		if c.Region != res.Region { // where it is already
			f.rep.Regions = append(f.rep.Regions, RegionReport{Result: Result{Region: c.Region, Name: c.name(res), Identity: res.Identity}})
		}
	}
	main := &f.rep.Regions[0]
	im, err := f.await(ctx, main)
	if err != nil {
		main.Error = err.Error()
		return err
	}
	err = f.settleIn(ctx, main, im)
	if ctx.Err() == nil {
		err = errors.Join(err, f.copies(ctx, im))
	}
	if err == nil {
		err = f.cleanUp(ctx)
	}
	if err != nil {
		return hint.With(&PartialError{f.rep, explain(err, "")}, "run it again: what was done is found and left alone")
	}
	return nil
}

// await waits until the image of r can be used, and for its check in the import's region.
func (f *finish) await(ctx context.Context, r *RegionReport) (Image, error) {
	began := f.o.Clock.Now()
	im, err := f.wait(ctx, r.target())
	if err == nil && f.o.CheckTimeout > 0 && f.spec.Detection != "" && r == &f.rep.Regions[0] {
		im, err = f.waitCheck(ctx, im)
	}
	r.Seconds += f.o.Clock.Now().Sub(began).Seconds()
	if im.ID != "" {
		r.describe(im)
	}
	return im, err
}

// settleIn gives the image its name, its users and its family.
func (f *finish) settleIn(ctx context.Context, r *RegionReport, im Image) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("image %s in %s: %w", r.ImageID, r.Region, err)
			r.Error = err.Error()
		}
	}()
	if im.Status == imageDeprecated { // by an earlier run that has been undone by this one
		status := imageAvailable
		if err := f.modify(ctx, r.Region, r.ImageID, ImageChange{Status: &status}); err != nil {
			return fmt.Errorf("take back the deprecation: %w", err)
		}
		r.Status = status
	}
	if err := f.takeName(ctx, r); err != nil {
		return err
	}
	for accounts := range slices.Chunk(f.after.Share, maxSharing) {
		if err := f.patiently(ctx, func() error { return f.ecs.ShareImage(ctx, r.Region, r.ImageID, accounts) }); err != nil {
			return fmt.Errorf("share with %s: %w", strings.Join(accounts, ", "), err)
		}
		r.Shared = append(r.Shared, accounts...)
	}
	if fam := f.after.Family; fam != "" {
		if im.Family != fam {
			if err := f.modify(ctx, r.Region, r.ImageID, ImageChange{Family: &fam}); err != nil {
				return fmt.Errorf("set the family %s: %w", fam, err)
			}
		}
		r.Family = fam
	}
	return nil
}

func (f *finish) modify(ctx context.Context, region, id string, m ImageChange) error {
	return f.patiently(ctx, func() error { return f.ecs.ModifyImage(ctx, region, id, m) })
}

// takeName gives an image that was made to replace another the other's name. The other
// is put aside first, under a name that a later run finds.
func (f *finish) takeName(ctx context.Context, r *RegionReport) error {
	if f.o.OnExist != OnExistReplace || r.Identity == "" {
		return nil
	}
	aside := oldName(r.Name, r.Identity)
	if r.As != r.Name {
		holders, err := f.named(ctx, r.Region, r.Name)
		if err != nil {
			return err
		}
		for _, im := range holders {
			if im.ID == r.ImageID {
				continue
			}
			if im.dead() { // and can't be renamed
				if err := f.cleaner.remove(ctx, im, false); err != nil {
					return err
				}
				continue
			}
			if err := f.modify(ctx, r.Region, im.ID, ImageChange{Name: &aside}); err != nil {
				return fmt.Errorf("put %s aside as %q: %w", im.ID, aside, err)
			}
			f.o.Log.Info("image put aside", "region", r.Region, "image", im.ID, "name", aside)
		}
		if err := f.modify(ctx, r.Region, r.ImageID, ImageChange{Name: &r.Name}); err != nil {
			return fmt.Errorf("rename %q to %q: %w", r.As, r.Name, err)
		}
		r.As = r.Name
	}
	put, err := f.named(ctx, r.Region, aside)
	if err != nil {
		return err
	}
	for _, im := range put {
		r.Replaced = im.ID
	}
	return nil
}

func (c Copy) name(res Result) string {
	if c.Name != "" {
		return c.Name
	}
	return res.Name
}

// copies makes the copies and settles them in.
func (f *finish) copies(ctx context.Context, im Image) error {
	var g errgroup.Group
	g.SetLimit(maxCopies)
	errs := make([]error, len(f.rep.Regions))
	for i := 1; i < len(f.rep.Regions); i++ {
		r := &f.rep.Regions[i]
		k := slices.IndexFunc(f.after.Copies, func(c Copy) bool { return c.Region == r.Region })
		g.Go(func() error {
			if errs[i] = f.copyTo(ctx, f.after.Copies[k], im, r); errs[i] != nil {
				r.Error = errs[i].Error()
			}
			return nil
		})
	}
	_ = g.Wait() // each reports through errs, so that one that fails stops no other
	return errors.Join(errs...)
}

// maxGone bounds how often a copy is begun anew whose image is not there.
const maxGone = 3

func (f *finish) copyTo(ctx context.Context, c Copy, im Image, r *RegionReport) error {
	began := f.o.Clock.Now()
	source := im.Region + "/" + im.ID
	main := f.rep.Regions[0]
	req := CopyRequest{
		Region: im.Region, ImageID: im.ID, ToRegion: c.Region, Description: c.Description,
		Encrypted: c.Encrypted, KMSKeyID: c.KMSKeyID, ResourceGroup: c.ResourceGroup, Tags: map[string]string{},
	}
	if req.Description == "" {
		req.Description = f.spec.Description
	}
	for k, v := range f.spec.Tags {
		req.Tags[k] = v
	}
	req.Tags[TagContent], req.Tags[tagSource] = main.Identity, source
	salts := []string{}
	p := &place{
		job: f.job, region: c.Region, name: c.name(main.Result), identity: main.Identity, kin: copyKin(main.Identity),
		start: func(ctx context.Context, name string) (Result, error) {
			q := req
			q.Name = name
			q.ClientToken = digest(q, salts)
			id, err := f.ecs.CopyImage(ctx, q)
			if err != nil {
				return Result{}, fmt.Errorf("copy %s to %s as %q: %w", source, c.Region, name, err)
			}
			return Result{ImageID: id, ClientToken: q.ClientToken}, nil
		},
		later: codesBusy,
	}
	for n := 0; ; n++ {
		res, err := p.settle(ctx)
		if err != nil {
			return err
		}
		r.Result = res
		made, err := f.await(ctx, r)
		if gone, ok := errors.AsType[*GoneError](err); ok && n < maxGone {
			// The token is that of a copy that failed and was removed.
			salts = append(salts, gone.ImageID)
			continue
		}
		r.Seconds = f.o.Clock.Now().Sub(began).Seconds()
		if err != nil {
			return err
		}
		return f.settleIn(ctx, r, made)
	}
}

// copyKin compares images with the copy of an image with that identity.
func copyKin(identity string) func(Image) kinship {
	return func(im Image) kinship {
		switch im.Tags[TagContent] {
		case "":
			return unknown
		case identity:
			return same
		}
		return other
	}
}

// cleanUp is the end of it all, when nothing failed anywhere.
func (f *finish) cleanUp(ctx context.Context) error {
	var errs []error
	for i := range f.rep.Regions {
		r := &f.rep.Regions[i]
		if err := f.predecessors(ctx, r); err != nil {
			r.Error = err.Error()
			errs = append(errs, err)
		}
	}
	if len(errs) > 0 || !f.after.DeleteObject {
		return errors.Join(errs...)
	}
	if err := f.store.Delete(ctx, f.spec.Object); err != nil {
		return fmt.Errorf("delete %v: %w", f.spec.Object, err)
	}
	f.rep.ObjectDeleted = true
	return nil
}

// predecessors disposes of the images that the one of r takes over from.
func (f *finish) predecessors(ctx context.Context, r *RegionReport) error {
	what := f.after.Predecessor
	if what == Keep || what == "" && r.Replaced == "" {
		return nil
	}
	now, ok, err := f.image(ctx, r.Region, r.ImageID)
	if err != nil {
		return err
	}
	if !ok || !now.usable() {
		return fmt.Errorf("image %s in %s can't be used any more, so that its predecessors are kept", r.ImageID, r.Region)
	}
	old, err := f.findPredecessors(ctx, r, now.Created)
	if err != nil {
		return err
	}
	for _, im := range old {
		if what == Deprecate {
			err = f.deprecate(ctx, im)
		} else {
			err = f.cleaner.remove(ctx, im, f.after.Force)
		}
		if err != nil {
			return hint.With(fmt.Errorf("predecessor: %w", err), "the new image is ready; deal with the old one by hand if it can't be helped")
		}
	}
	return nil
}

func (f *finish) findPredecessors(ctx context.Context, r *RegionReport, before time.Time) ([]Image, error) {
	var old []Image
	add := func(im Image) {
		im.Region = r.Region
		if im.ID != r.ImageID && !slices.ContainsFunc(old, func(x Image) bool { return x.ID == im.ID }) {
			old = append(old, im)
		}
	}
	for _, id := range append([]string{r.Replaced}, f.after.Predecessors...) {
		if id == "" {
			continue
		}
		im, ok, err := f.image(ctx, r.Region, id)
		if err != nil {
			return nil, err
		}
		if ok {
			add(im)
		}
	}
	for _, name := range f.after.Predecessors {
		images, err := f.named(ctx, r.Region, name)
		if err != nil {
			return nil, err
		}
		for _, im := range images {
			add(im)
		}
	}
	if f.after.OlderOfFamily {
		images, err := f.ecs.Images(ctx, ImageQuery{Region: r.Region, Family: f.after.Family})
		if err != nil {
			return nil, fmt.Errorf("look for images of the family %s in %s: %w", f.after.Family, r.Region, err)
		}
		for _, im := range images {
			if im.Family == f.after.Family && im.Tags[TagContent] != "" && im.Created.Before(before) {
				add(im)
			}
		}
	}
	return old, nil
}

func (f *finish) deprecate(ctx context.Context, im Image) error {
	status := imageDeprecated
	if im.Status == imageDeprecated {
		return nil
	}
	if err := f.modify(ctx, im.Region, im.ID, ImageChange{Status: &status}); err != nil {
		return fmt.Errorf("deprecate image %s in %s: %w", im.ID, im.Region, err)
	}
	f.rep.Deprecated = append(f.rep.Deprecated, im.ID)
	return nil
}
