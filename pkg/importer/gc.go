package importer

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// GCOptions say what GC removes.
type GCOptions struct {
	// OlderThan is the age from which on a thing counts as left behind. It must be
	// more than the longest upload takes.
	OlderThan time.Duration
	// Now is the time that ages are counted from.
	Now time.Time
	// Objects includes finished objects, for a prefix under which there are only
	// temporary ones. Those without [MetaIdentity] are someone else's and stay.
	Objects bool
	// DryRun removes nothing.
	DryRun bool
}

// Leftover is something that was left behind.
type Leftover struct {
	Object
	UploadID string    // "" for an object
	Since    time.Time // when the upload was begun, or the object written
	Bytes    int64
	Removed  bool
}

// GC removes uploads under a prefix that were begun and never ended, which are billed and
// not seen in listings, and on request temporary objects. It returns what it found, in
// the order of the service, also with an error. What can't be removed does not keep it
// from the rest.
func GC(ctx context.Context, s Store, bucket, prefix string, o GCOptions) ([]Leftover, error) {
	if o.Now.IsZero() || o.OlderThan < 0 {
		return nil, errors.New("importer: GCOptions.Now is not set, or OlderThan is negative")
	}
	if o.Objects && prefix == "" {
		return nil, errors.New("importer: GC of objects needs a prefix")
	}
	before := o.Now.Add(-o.OlderThan)
	out, errs := gcUploads(ctx, s, bucket, prefix, before, o.DryRun)
	if o.Objects && ctx.Err() == nil {
		objects, err := gcObjects(ctx, s, bucket, prefix, before, o.DryRun)
		out, errs = append(out, objects...), errors.Join(errs, err)
	}
	return out, errs
}

func gcUploads(ctx context.Context, s Store, bucket, prefix string, before time.Time, dry bool) ([]Leftover, error) {
	ups, err := s.ListUploads(ctx, bucket, prefix)
	if err != nil {
		return nil, fmt.Errorf("list the uploads of %s: %w", bucket, err)
	}
	var out []Leftover
	var errs error
	for _, u := range ups {
		if err := ctx.Err(); err != nil {
			return out, errors.Join(errs, err)
		}
		if u.Initiated.IsZero() || u.Initiated.After(before) {
			continue
		}
		l := Leftover{Object: u.Object, UploadID: u.ID, Since: u.Initiated}
		parts, err := s.ListParts(ctx, u)
		if isCode(err, "NoSuchUpload") {
			continue // it has ended meanwhile
		}
		for _, p := range parts {
			l.Bytes += p.Size
		}
		if err == nil && !dry {
			err = s.Abort(ctx, u)
			l.Removed = err == nil
		}
		if err != nil {
			errs = errors.Join(errs, fmt.Errorf("upload %s of %v: %w", u.ID, u.Object, err))
		}
		out = append(out, l)
	}
	return out, errs
}

func gcObjects(ctx context.Context, s Store, bucket, prefix string, before time.Time, dry bool) ([]Leftover, error) {
	objects, err := s.List(ctx, bucket, prefix)
	if err != nil {
		return nil, fmt.Errorf("list the objects of %s: %w", bucket, err)
	}
	var out []Leftover
	var errs error
	for _, o := range objects {
		if err := ctx.Err(); err != nil {
			return out, errors.Join(errs, err)
		}
		if o.Modified.IsZero() || o.Modified.After(before) {
			continue
		}
		o.Bucket = bucket
		// A listing has no metadata.
		info, err := s.Head(ctx, o.Object)
		if isCode(err, codesNotFound...) || err == nil && (info.Meta[MetaIdentity] == "" || info.ETag != o.ETag) {
			continue
		}
		l := Leftover{Object: o.Object, Since: o.Modified, Bytes: o.Size}
		if err == nil && !dry {
			err = s.Delete(ctx, o.Object)
			l.Removed = err == nil
		}
		if err != nil {
			errs = errors.Join(errs, fmt.Errorf("object %v: %w", o.Object, err))
		}
		out = append(out, l)
	}
	return out, errs
}
