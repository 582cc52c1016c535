package importer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"remaster/internal/hint"
)

var errExists = hint.With(fmt.Errorf("another object is there: %w", fs.ErrExist), "choose another key, or allow that the object is replaced")

// isOurs reports whether an object is what this transfer makes.
func (t *transfer) isOurs(info ObjectInfo) bool {
	if info.Size != t.blob.Size() || t.o.Identity != info.Meta[MetaIdentity] {
		return false
	}
	if t.hasCRC && info.HasCRC64 {
		return t.crc == info.CRC64
	}
	return t.o.Identity != ""
}

// complete makes the parts the object. A reply that was lost is looked for in the store
// before the request is made again.
func (t *transfer) complete(ctx context.Context) error {
	for try := 1; ; try++ {
		info, err := t.s.Complete(ctx, t.upload, t.parts, t.o.ForbidOverwrite)
		if err == nil {
			return t.verify(ctx, info)
		}
		if err = t.landed(ctx, err); err == nil {
			// It may be another run's.
			return t.s.Abort(ctx, t.upload)
		}
		r, ok := t.s.(*retrying)
		if !ok || isFinal(err) {
			return err
		}
		if err := r.pause(ctx, "CompleteMultipartUpload", try, err); err != nil {
			return err
		}
	}
}

// landed looks whether a request that failed with err was done nevertheless, and
// returns nil if the object is there and right.
func (t *transfer) landed(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return err
	}
	// Without the identity, another object of these bytes will do as well.
	info, lookErr := t.s.Head(ctx, t.dst)
	if lookErr == nil && t.isOurs(info) {
		return t.verify(ctx, info)
	}
	if Retryable(lookErr) {
		return errors.Join(err, lookErr)
	}
	if isCode(err, "FileAlreadyExists") {
		return finalError{errExists}
	}
	return err
}

// finalError marks an error that another try can't change.
type finalError struct{ error }

func (e finalError) Unwrap() error { return e.error }

func isFinal(err error) bool {
	_, ok := errors.AsType[finalError](err)
	return ok
}

// sum takes the checksum of the whole object as it was read, or compares it with what is
// known.
func (t *transfer) sum(crc uint64) error {
	if t.hasCRC && crc != t.crc {
		return fmt.Errorf("the image reads with CRC-64 %016x, its base and edits have %016x: %w", crc, t.crc, ErrChecksum)
	}
	t.crc, t.hasCRC = crc, true
	return nil
}

// verify compares the new object, as a reply to its making describes it, with what was
// sent. The service is asked for what the reply leaves out. A wrong object is deleted.
func (t *transfer) verify(ctx context.Context, info ObjectInfo) error {
	if t.hasCRC && info.HasCRC64 && info.CRC64 == t.crc {
		info.Size = t.blob.Size()
	} else {
		now, err := t.s.Head(ctx, t.dst)
		if err != nil {
			return finalError{fmt.Errorf("look at the new object: %w", err)}
		}
		if info.HasCRC64 && !now.HasCRC64 {
			now.CRC64, now.HasCRC64 = info.CRC64, true
		}
		if info.ETag != "" && bareETag(now.ETag) != bareETag(info.ETag) {
			return finalError{errors.New("the object was replaced by another one meanwhile")}
		}
		info = now
	}
	info.Object = Object{Bucket: t.dst.Bucket, Key: t.dst.Key, VersionID: info.VersionID}
	r := &t.report
	r.Object, r.CRC64, r.HasCRC64 = info, t.crc, t.hasCRC
	r.Checked = t.hasCRC && info.HasCRC64
	var wrong error
	switch {
	case info.Size != t.blob.Size():
		wrong = fmt.Errorf("the object has %d bytes, not %d: %w", info.Size, t.blob.Size(), ErrChecksum)
	case r.Checked && info.CRC64 != t.crc:
		wrong = fmt.Errorf("the object has CRC-64 %016x, not %016x: %w", info.CRC64, t.crc, ErrChecksum)
	default:
		return nil
	}
	if err := t.s.Delete(ctx, info.Object); err != nil {
		wrong = errors.Join(wrong, fmt.Errorf("delete it: %w", err))
	}
	return finalError{wrong}
}
