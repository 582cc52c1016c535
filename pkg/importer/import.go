package importer

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"remaster/internal/hint"
)

// OnExist says what to do when another image has the wanted name. An image of the same
// content is no other: it is used, whatever is chosen here.
type OnExist string

// The choices.
const (
	// OnExistFail makes it an error; it is the default.
	OnExistFail OnExist = "fail"
	// OnExistReuse takes the other image for the wanted one.
	OnExistReuse OnExist = "reuse"
	// OnExistReplace makes the image under another name. [Finish] then exchanges the
	// names.
	OnExistReplace OnExist = "replace"
	// OnExistSuffix makes the image under the first free one of NAME-2, NAME-3, …
	OnExistSuffix OnExist = "suffix"
)

// ParseOnExist returns the choice of that name; "" is the default.
func ParseOnExist(s string) (OnExist, error) {
	switch x := OnExist(s); x {
	case "":
		return OnExistFail, nil
	case OnExistFail, OnExistReuse, OnExistReplace, OnExistSuffix:
		return x, nil
	}
	return "", hint.With(fmt.Errorf("unknown choice %q for an image that exists", s), "use fail, reuse, replace or suffix")
}

// ExistsError says that another image has the wanted name.
type ExistsError struct {
	Region, Name, ImageID string
	Why                   string // it can't be used or replaced; "" if that was not asked for
}

func (e *ExistsError) Error() string {
	s := fmt.Sprintf("there is another image named %q in %s: %s", e.Name, e.Region, e.ImageID)
	if e.Why != "" {
		s += ", which " + e.Why
	}
	return s
}

// Import has ECS begin to make an image of an object, or finds the image that an earlier
// run has begun or ended; so it may be called again after anything that happened.
// [Wait] then waits for it.
//
// It is asked for with a client token that is a hash of the content and the request, so
// that a lost reply does no harm. An image that failed earlier is removed with its
// snapshots and made anew.
func Import(ctx context.Context, ecs ECS, s ImageSpec, o Options) (Result, error) {
	j, err := newJob(ecs, o)
	if err != nil {
		return Result{}, err
	}
	if err := fatal(s.Check()); err != nil {
		return Result{}, err
	}
	return j.importImage(ctx, s)
}

// Find returns the image that [Import] would not need the object for, as it is there or
// being made: found is false if there is none. Publishing can leave out the upload then.
// It asks once, and changes nothing.
func Find(ctx context.Context, ecs ECS, s ImageSpec, o Options) (res Result, found bool, err error) {
	if err := fatal(s.Check()); err != nil {
		return Result{}, false, err
	}
	p := (&job{ecs: ecs, o: o}).placeOf(s)
	at, err := p.find(ctx, nil)
	if err != nil || at.image == nil || at.image.dead() {
		return Result{}, false, explain(err, "")
	}
	return p.found(at), true, nil
}

// placeOf is where the image of s is to be.
func (j *job) placeOf(s ImageSpec) *place {
	r := s.Request()
	return &place{
		job: j, region: r.Region, name: r.Name, identity: r.Tags[TagContent],
		kin:   func(im Image) kinship { return s.kin(r, im) },
		start: func(ctx context.Context, name string) (Result, error) { return j.startImport(ctx, s, r, name) },
		later: []string{codeImporting},
	}
}

func (j *job) importImage(ctx context.Context, s ImageSpec) (Result, error) {
	r := s.Request()
	res, err := j.placeOf(s).settle(ctx)
	if err != nil {
		return res, explain(err, r.RoleName)
	}
	if res.TaskID == "" && !res.Reused {
		// The image tells neither its task nor, if it fails, the reason.
		if t, _, err := j.running(ctx, r.Region, func(im Image) bool { return im.ID == res.ImageID }); err == nil {
			res.TaskID = t.ID
		}
	}
	return res, nil
}

// kinship tells whether an image is the one that is wanted.
type kinship int

const (
	other   kinship = iota
	same            // made of the same content in the same way
	unknown         // the image does not tell
)

// kin compares an image with the one that r asks for.
func (s ImageSpec) kin(r ImportRequest, im Image) kinship {
	if v := im.Tags[TagContent]; v != "" && s.Content != "" {
		if v == r.Tags[TagContent] {
			return same
		}
		return other
	}
	differ := func(a, b string) bool { return a != "" && a != b }
	switch {
	case differ(im.Architecture, r.Architecture), differ(im.BootMode, r.BootMode):
		return other
	case len(im.Sources) == 0:
		return unknown
	case madeOf(im, r.Object):
		return same
	}
	return other
}

func madeOf(im Image, o Object) bool {
	return slices.ContainsFunc(im.Sources, func(src Object) bool { return src.Bucket == o.Bucket && src.Key == o.Key })
}

// maxReplays bounds how many earlier attempts that failed are passed over.
const maxReplays = 20

// startImport asks for an import under a name.
func (j *job) startImport(ctx context.Context, s ImageSpec, r ImportRequest, name string) (Result, error) {
	r.Name = name
	earlier, err := j.ecs.Tasks(ctx, r.Region, actionImport)
	if err != nil {
		return Result{}, fmt.Errorf("list the import tasks in %s: %w", r.Region, err)
	}
	salts := []string{}
	for range maxReplays {
		q := r
		q.ClientToken = s.token(r, salts...)
		st, err := j.ecs.ImportImage(ctx, q)
		if isCode(err, codeImporting) {
			return j.attach(ctx, r, err)
		}
		if err != nil {
			return Result{}, fmt.Errorf("import %v as %q in %s: %w", r.Object, name, r.Region, err)
		}
		res := Result{Region: r.Region, ImageID: st.ImageID, TaskID: st.TaskID, RequestID: st.RequestID, ClientToken: q.ClientToken}
		if !slices.ContainsFunc(earlier, func(t Task) bool { return t.ID == st.TaskID }) {
			return res, nil
		}
		// The token is that of an earlier run, whose reply this is.
		alive, err := j.alive(ctx, res.target())
		if err != nil {
			return Result{}, err
		}
		if alive {
			res.Attached = true
			return res, nil
		}
		salts = append(salts, st.TaskID)
	}
	return Result{}, fmt.Errorf("import %v as %q: %d earlier attempts failed", r.Object, name, maxReplays)
}

// alive reports whether an image is still being made or was made.
func (j *job) alive(ctx context.Context, t Target) (bool, error) {
	task, err := j.ecs.Task(ctx, t.Region, t.TaskID)
	if err != nil {
		return false, fmt.Errorf("look at task %s: %w", t.TaskID, err)
	}
	switch task.Status {
	case taskFailed, taskDeleted:
		return false, nil
	case taskFinished:
		im, ok, err := j.image(ctx, t.Region, t.ImageID)
		return ok && !im.dead(), err
	}
	return true, nil
}

// attach finds the running import of the object of r. It returns the refusal if that is
// going to be another image.
func (j *job) attach(ctx context.Context, r ImportRequest, refusal error) (Result, error) {
	t, im, err := j.running(ctx, r.Region, func(im Image) bool { return madeOf(im, r.Object) && im.Name == r.Name })
	if err != nil {
		return Result{}, err
	}
	if t.ID == "" {
		return Result{}, refusal
	}
	return Result{Region: r.Region, ImageID: im.ID, TaskID: t.ID, Attached: true}, nil
}

// running returns the import task that has not ended whose image is the one looked for,
// and a Task without id if there is none.
func (j *job) running(ctx context.Context, region string, is func(Image) bool) (Task, Image, error) {
	tasks, err := j.ecs.Tasks(ctx, region, actionImport, taskProcessing, taskWaiting)
	if err != nil {
		return Task{}, Image{}, fmt.Errorf("list the import tasks in %s: %w", region, err)
	}
	for _, t := range tasks {
		if t.ImageID == "" {
			if t, err = j.ecs.Task(ctx, region, t.ID); err != nil {
				return Task{}, Image{}, fmt.Errorf("look at task %s: %w", t.ID, err)
			}
		}
		if t.ImageID == "" {
			continue
		}
		im, ok, err := j.image(ctx, region, t.ImageID)
		if err != nil {
			return Task{}, Image{}, err
		}
		if ok && is(im) {
			return t, im, nil
		}
	}
	return Task{}, Image{}, nil
}

// place is where an image is to be: a name in a region. It is the same work for an
// import and for a copy.
type place struct {
	*job
	region, name, identity string

	kin   func(Image) kinship
	start func(ctx context.Context, name string) (Result, error)
	later []string // codes with which start asks for patience
}

// newName and oldName are what images are called while one replaces another. They
// follow from the content, so that a rerun finds them.
func newName(name, identity string) string { return nameWith(name, ".new-"+identity[:8]) }
func oldName(name, identity string) string { return nameWith(name, ".old-"+identity[:8]) }

// slot is what was found at a place.
type slot struct {
	name  string // that the image has or is to be made under
	image *Image // that is used, or nil
	asked *Image // that may be the wanted one, which its token will tell
}

// maxTaken bounds how often a name may turn out to be taken that no list shows.
const maxTaken = 10

// settle finds the image of the place or begins to make it.
func (p *place) settle(ctx context.Context) (Result, error) {
	strangers := map[string]bool{}
	taken, why := 0, ""
	for n := 0; ; n++ {
		s, err := p.find(ctx, strangers)
		if err != nil {
			return Result{}, err
		}
		if s.image != nil && s.image.dead() {
			p.o.Log.Info("remove what is left of a failed image", "region", p.region, "image", s.image.ID)
			if err := p.cleaner.remove(ctx, *s.image, false); err != nil {
				return Result{}, err
			}
			if err := p.pause(ctx, n); err != nil { // lists may lag behind
				return Result{}, fmt.Errorf("make %q anew in %s: %w", s.name, p.region, err)
			}
			continue
		}
		if s.image != nil {
			return p.found(s), nil
		}
		res, err := p.start(ctx, s.name)
		if err == nil {
			return p.result(s, res), nil
		}
		switch {
		case isCode(err, codeDuplicated):
			if s.asked != nil {
				strangers[s.asked.ID] = true
				continue
			}
			if taken++; taken >= maxTaken {
				return Result{}, err
			}
		case isCode(err, p.later...), Retryable(err):
			if c := Code(err); c != why {
				why = c
				p.o.Log.Info("not yet", "region", p.region, "name", s.name, "why", err)
			}
		default:
			return Result{}, err
		}
		if stop := p.pause(ctx, n); stop != nil {
			if errors.Is(stop, errDeadline) {
				return Result{}, err
			}
			return Result{}, errors.Join(stop, err)
		}
	}
}

// found is the result where there is an image already.
func (p *place) found(s slot) Result {
	return p.result(s, Result{ImageID: s.image.ID, Reused: s.image.usable(), Attached: !s.image.usable()})
}

// result completes a result by where it was put.
func (p *place) result(s slot, res Result) Result {
	res.Region, res.Name, res.As, res.Identity = p.region, p.name, s.name, p.identity
	if p.o.OnExist == OnExistSuffix {
		res.Name = s.name
	}
	return res
}

// find looks at who has the name, and decides. Images of strangers are not the wanted
// one for sure.
func (p *place) find(ctx context.Context, strangers map[string]bool) (slot, error) {
	s, err := p.at(ctx, p.name, strangers)
	if err != nil {
		return slot{}, err
	}
	free := s.image == nil
	if free && s.asked != nil || !free && p.kin(*s.image) == same {
		return s, nil
	}
	switch {
	case p.o.OnExist == OnExistReplace:
		if !free && !s.image.usable() && !s.image.dead() {
			return slot{}, hint.With(p.exists(*s.image, "is still being made"), "wait for it or cancel it, then run it again")
		}
		second, err := p.at(ctx, newName(p.name, p.identity), strangers)
		if err != nil {
			return slot{}, err
		}
		if second.image != nil && p.kin(*second.image) != same {
			return slot{}, p.exists(*second.image, "")
		}
		if free && second.image == nil {
			return s, nil
		}
		return second, nil
	case free:
		return s, nil
	case p.o.OnExist == OnExistReuse:
		if s.image.dead() {
			return slot{}, hint.With(p.exists(*s.image, "failed and can't be used"), "delete it or choose another name")
		}
		return s, nil
	case p.o.OnExist == OnExistSuffix:
		return p.suffixed(ctx, strangers)
	}
	return slot{}, hint.With(p.exists(*s.image, ""), "choose another name, or --on-exist=reuse, replace or suffix")
}

// maxSuffix is the highest number put behind a name.
const maxSuffix = 99

func (p *place) suffixed(ctx context.Context, strangers map[string]bool) (slot, error) {
	for i := 2; i <= maxSuffix; i++ {
		s, err := p.at(ctx, nameWith(p.name, fmt.Sprintf("-%d", i)), strangers)
		if err != nil || s.image == nil || p.kin(*s.image) == same {
			return s, err
		}
	}
	return slot{}, fmt.Errorf("all names from %s-2 to %s-%d are taken in %s", p.name, p.name, maxSuffix, p.region)
}

// at returns what has a name: the wanted image before any other.
func (p *place) at(ctx context.Context, name string, strangers map[string]bool) (slot, error) {
	images, err := p.named(ctx, p.region, name)
	if err != nil {
		return slot{}, err
	}
	s := slot{name: name}
	for i := range images {
		im := &images[i]
		switch k := p.kin(*im); {
		case k == same:
			return slot{name: name, image: im}, nil
		case k == unknown && !im.usable() && !im.dead() && !strangers[im.ID]:
			s.asked = im
		default:
			s.image = im
		}
	}
	if s.image != nil {
		s.asked = nil
	}
	return s, nil
}

// named returns the images of exactly this name.
func (j *job) named(ctx context.Context, region, name string) ([]Image, error) {
	images, err := j.ecs.Images(ctx, ImageQuery{Region: region, Name: name})
	if err != nil {
		return nil, fmt.Errorf("look for images named %q in %s: %w", name, region, err)
	}
	images = slices.DeleteFunc(slices.Clone(images), func(im Image) bool { return im.Name != name })
	for i := range images {
		images[i].Region = region
	}
	return images, nil
}

func (p *place) exists(im Image, why string) *ExistsError {
	return &ExistsError{Region: p.region, Name: im.Name, ImageID: im.ID, Why: why}
}
