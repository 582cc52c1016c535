package importer

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"remaster/pkg/disk"
)

// DeltaUpload makes the object dst of out, an overlay over a blob that reads the object
// src. What did not change is copied by the service; only the rest is sent. base
// describes src as it was when out was made of it: its ETag pins it, so that an object
// that was replaced meanwhile is an error.
//
// The checksum that the new object must have follows from that of src, what changed, and
// what was there before, which is read through out.Base. Where the service does not tell
// a checksum, the report says so.
//
// If the service can't, or may not, copy, out is uploaded as a whole, as by [UploadBlob], and
// the report says why.
func DeltaUpload(ctx context.Context, s Store, src Object, base ObjectInfo, out *disk.Overlay, dst Object, o UploadOptions) (UploadReport, error) {
	t, err := newTransfer(s, dst, out, o)
	if err != nil {
		return UploadReport{}, err
	}
	if size := out.Base().Size(); size != base.Size || base.ETag == "" {
		return UploadReport{}, fmt.Errorf("upload %v: the base %v has %d bytes and the ETag %q, the image was made of %d bytes", dst, src, base.Size, base.ETag, size)
	}
	changed := slices.Values(slices.Collect(out.Changed()))
	if base.HasCRC64 {
		crc, differs, err := patchedCRC64(base.CRC64, out)
		if err != nil {
			return UploadReport{}, fmt.Errorf("upload %v: %w", dst, err)
		}
		t.crc, t.hasCRC = crc, true
		changed = differs.All()
	}
	why, err := obstacle(ctx, s, src, base, dst)
	if err != nil {
		return UploadReport{}, fmt.Errorf("upload %v: %w", dst, err)
	}
	if why != "" {
		return t.stream(ctx, why)
	}
	l := Limits{}.withDefaults()
	plan, err := PlanDelta(out.Size(), base.Size, changed, l)
	if err != nil || !slices.ContainsFunc(plan, func(p Piece) bool { return p.Copy }) {
		return t.stream(ctx, "hardly anything of the base is left")
	}
	t.layOut(smallUploads(plan, t.o.PartSize, l), src, base.ETag)
	r, err := t.run(ctx)
	if refused, ok := errors.AsType[*copyError](err); ok && refused.isNotAllowed() {
		return t.stream(ctx, refused.Error())
	}
	return r, err
}

// stream uploads everything, for want of copies.
func (t *transfer) stream(ctx context.Context, why string) (UploadReport, error) {
	t.layOut(PlanUpload(t.blob.Size(), t.o.PartSize), Object{}, "")
	r, err := t.run(ctx)
	r.Why = why
	return r, err
}

// obstacle tells why parts of dst can't be copies of src, or "".
func obstacle(ctx context.Context, s Store, src Object, base ObjectInfo, dst Object) (string, error) {
	switch {
	case base.Type == "Appendable":
		return "an appendable object can't be copied from", nil
	case slices.Contains([]string{"Archive", "ColdArchive", "DeepColdArchive"}, base.StorageClass) && !base.Restored:
		return "the base is archived: " + base.StorageClass, nil
	case src.Bucket == dst.Bucket:
		return "", nil
	}
	var region [2]string
	for i, b := range []string{src.Bucket, dst.Bucket} {
		info, err := s.BucketInfo(ctx, b)
		if ctx.Err() != nil {
			return "", err
		}
		if err == nil { // who may not ask may still copy
			region[i] = info.Region
		}
	}
	if region[0] != region[1] && region[0] != "" && region[1] != "" {
		return fmt.Sprintf("the base is in %s, the bucket %s in %s", region[0], dst.Bucket, region[1]), nil
	}
	return "", nil
}

// smallUploads cuts large uploads into parts of size bytes, as far as there may be that
// many: they go in parallel then, and less is sent again if one fails.
func smallUploads(plan []Piece, size int64, l Limits) []Piece {
	for {
		var out []Piece
		for _, p := range plan {
			most := l.MaxPart
			if !p.Copy {
				most = max(size, 2*l.MinPart)
			}
			out = split(out, p, most)
		}
		if len(out) <= max(len(plan), l.Parts) {
			return out
		}
		size *= 2
	}
}

// copyError is the failure of a CopyPart.
type copyError struct{ err error }

func (e *copyError) Error() string { return "copy from the base: " + e.err.Error() }
func (e *copyError) Unwrap() error { return e.err }

// isNotAllowed reports whether the service refuses to copy these objects, or can't, while
// it may still take uploads.
func (e *copyError) isNotAllowed() bool {
	if errors.Is(e.err, ErrRange) {
		return true
	}
	s, ok := errors.AsType[*ServiceError](e.err)
	if !ok || isCode(s, "NoSuchUpload", "NoSuchKey", "NoSuchBucket", "PreconditionFailed", "SignatureDoesNotMatch", "InvalidAccessKeyId") || isCode(s, codesSignature...) {
		return false
	}
	switch s.Status {
	case http.StatusBadRequest, http.StatusForbidden, http.StatusMethodNotAllowed, http.StatusConflict, http.StatusNotImplemented:
		return true
	}
	return false
}
