package importer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"remaster/internal/hint"
)

// Notes keeps a small text between runs, on whatever machine they are. A deleted image
// does not tell which snapshots it had, so that these are noted first: a run that is
// stopped between the two deletions is followed by one that ends them.
type Notes interface {
	// Load returns the text, nil if there is none.
	Load(ctx context.Context) ([]byte, error)
	// Save replaces the text. Nil removes it.
	Save(ctx context.Context, text []byte) error
}

// ObjectNotes keeps the text in an object, beside the one that is imported for example.
func ObjectNotes(s Store, o Object) Notes { return objectNotes{s, o} }

type objectNotes struct {
	s Store
	o Object
}

// maxNotes is the size in bytes of notes that are still read.
const maxNotes = 1 << 20

func (n objectNotes) Load(ctx context.Context) ([]byte, error) {
	info, err := n.s.Head(ctx, n.o)
	if isCode(err, codesNotFound...) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the notes %v: %w", n.o, err)
	}
	if info.Size == 0 {
		return nil, nil
	}
	if info.Size > maxNotes {
		return nil, fmt.Errorf("read the notes %v: %d bytes are more than the limit of %d", n.o, info.Size, maxNotes)
	}
	r, err := n.s.Read(ctx, n.o, info.ETag, 0, info.Size)
	if err != nil {
		return nil, fmt.Errorf("read the notes %v: %w", n.o, err)
	}
	defer r.Close()
	text := make([]byte, info.Size)
	if _, err := io.ReadFull(r, text); err != nil {
		return nil, fmt.Errorf("read the notes %v: %w", n.o, err)
	}
	return text, nil
}

func (n objectNotes) Save(ctx context.Context, text []byte) error {
	var err error
	if text == nil {
		err = n.s.Delete(ctx, n.o)
	} else {
		_, err = n.s.Put(ctx, n.o, text, PutOptions{})
	}
	if err != nil {
		return fmt.Errorf("write the notes %v: %w", n.o, err)
	}
	return nil
}

// Removal is an image that was deleted, or is to be, with its snapshots.
type Removal struct {
	Region    string   `json:"region"`
	ImageID   string   `json:"imageID"`
	Name      string   `json:"name,omitempty"`
	Snapshots []string `json:"snapshots"`
}

// cleaner deletes images with their snapshots. It may be used by many goroutines at
// once, and deletes one image after the other.
type cleaner struct {
	job *job

	mu      sync.Mutex
	loaded  bool
	pending []Removal // as noted
	done    []Removal
}

// resume ends what an earlier run has begun to delete. An image that is still there is
// left to this run, which finds it again if it is to go: a note alone deletes no image.
func (c *cleaner) resume(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.load(ctx); err != nil {
		return err
	}
	for _, r := range slices.Clone(c.pending) {
		_, there, err := c.job.image(ctx, r.Region, r.ImageID)
		if err == nil && there {
			err = c.forget(ctx, r)
		} else if err == nil {
			err = c.snapshots(ctx, r)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *cleaner) load(ctx context.Context) error {
	if c.loaded || c.job.o.Notes == nil {
		return nil
	}
	text, err := c.job.o.Notes.Load(ctx)
	if err != nil {
		return err
	}
	if len(text) > 0 {
		if err := json.Unmarshal(text, &c.pending); err != nil {
			return hint.With(fmt.Errorf("read the notes on images to delete: %w", err),
				"they are damaged: see which snapshots they name, delete those by hand, and then the notes")
		}
	}
	c.loaded = true
	return nil
}

func (c *cleaner) save(ctx context.Context) error {
	if c.job.o.Notes == nil {
		return nil
	}
	if len(c.pending) == 0 {
		return c.job.o.Notes.Save(ctx, nil)
	}
	text, err := json.Marshal(c.pending)
	if err != nil {
		return err
	}
	return c.job.o.Notes.Save(ctx, text)
}

// remove deletes an image and its snapshots. Both may be gone already.
func (c *cleaner) remove(ctx context.Context, im Image, force bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.load(ctx); err != nil {
		return err
	}
	r := Removal{Region: im.Region, ImageID: im.ID, Name: im.Name, Snapshots: slices.Clone(im.Snapshots)}
	if !slices.ContainsFunc(c.pending, r.sameImage) {
		c.pending = append(c.pending, r)
		if err := c.save(ctx); err != nil {
			c.pending = c.pending[:len(c.pending)-1]
			return fmt.Errorf("image %s is not deleted: %w", im.ID, err)
		}
	}
	return c.perform(ctx, r, force)
}

func (r Removal) sameImage(x Removal) bool { return r.Region == x.Region && r.ImageID == x.ImageID }

// perform deletes what was noted, and forgets it.
func (c *cleaner) perform(ctx context.Context, r Removal, force bool) error {
	j := c.job
	err := j.patiently(ctx, func() error { return j.ecs.DeleteImage(ctx, r.Region, r.ImageID, force) })
	if err != nil && !isCode(err, codesNotFound...) {
		return errors.Join(fmt.Errorf("delete image %s in %s: %w", r.ImageID, r.Region, err), c.recall(ctx, r))
	}
	return c.snapshots(ctx, r)
}

// snapshots deletes those of an image that was deleted, and forgets it.
func (c *cleaner) snapshots(ctx context.Context, r Removal) error {
	j := c.job
	for _, s := range r.Snapshots {
		err := j.patiently(ctx, func() error { return j.ecs.DeleteSnapshot(ctx, r.Region, s) })
		if err != nil && !isCode(err, codesNotFound...) {
			return fmt.Errorf("delete snapshot %s of image %s in %s: %w", s, r.ImageID, r.Region, err)
		}
	}
	j.o.Log.Info("image deleted", "region", r.Region, "image", r.ImageID, "snapshots", r.Snapshots)
	c.done = append(c.done, r)
	return c.forget(ctx, r)
}

// recall drops the note on an image that is still there, as its deletion was refused.
func (c *cleaner) recall(ctx context.Context, r Removal) error {
	if _, ok, err := c.job.image(ctx, r.Region, r.ImageID); err != nil || !ok {
		return nil //nolint:nilerr // the note stays, and the deletion's own error is told
	}
	return c.forget(ctx, r)
}

func (c *cleaner) forget(ctx context.Context, r Removal) error {
	c.pending = slices.DeleteFunc(c.pending, r.sameImage)
	return c.save(ctx)
}
