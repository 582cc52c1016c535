package remaster

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"path"
	"strings"

	"remaster/pkg/disk"
	"remaster/pkg/importer"
)

// Digest returns the SHA-256 of b as "sha256:…". Zeros that b knows of are not read.
func Digest(ctx context.Context, b disk.Blob) (string, error) {
	h := sha256.New()
	buf := make([]byte, 1<<20)
	zeros := make([]byte, len(buf))
	for e, err := range disk.AsDisk(b).Extents(disk.Whole(b)) {
		if err != nil {
			return "", err
		}
		for off := e.Off; off < e.End(); off += int64(len(buf)) {
			n := min(int64(len(buf)), e.End()-off)
			p := zeros[:n]
			if !e.Zero {
				p = buf[:n]
				if err := disk.ReadFull(b, p, off); err != nil {
					return "", err
				}
			}
			h.Write(p)
			if err := ctx.Err(); err != nil {
				return "", err
			}
		}
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil)), nil
}

// Identity returns what tells the plan's output in format f from all others, given the
// digest of the base, as hexadecimal digits: the same base, recipe and format give the
// same. It is known before a byte of the output was computed.
func (p *Plan) Identity(base string, f Format) (string, error) {
	doc, err := p.Document()
	if err != nil {
		return "", err
	}
	text, err := json.Marshal(struct {
		Base   string
		Format Format
		Time   int64
		Doc    *Document
	}{base, f, p.o.Time.UnixNano(), doc})
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:]), nil
}

// Key returns the key that an output of this identity has below a prefix, so that equal
// ones are uploaded once and others never overwrite each other.
func Key(prefix, identity, name string, f Format) string {
	ext := map[Format]string{Qcow2: ".qcow2", VHD: ".vhd", VHDFixed: ".vhd", Raw: ".raw"}[f]
	return path.Join(prefix, identity[:min(12, len(identity))], strings.TrimSuffix(name, ext)+ext)
}

// Base is the object that an image was opened on.
type Base struct {
	Info importer.ObjectInfo
	Blob disk.Blob // as given to Open; of a type that can be compared
	// Fetched, if not nil, returns how many bytes Blob has fetched so far.
	Fetched func() int64
}

// Send makes dst hold out. If out is an overlay over base's object, what did not change
// is copied within the service, where that is possible; everything else, and all without
// a base, is read from out and uploaded. The report says what was done.
func Send(ctx context.Context, s importer.Store, out disk.Blob, base *Base, dst importer.Object, o importer.UploadOptions) (importer.UploadReport, error) {
	v, ok := out.(*disk.Overlay)
	if base != nil && !ok && out == base.Blob {
		// An image that is published as it is: nothing has changed.
		v, ok = disk.NewOverlay(out, disk.OverlayOptions{}), true
		defer v.Close()
	}
	if base == nil || !ok || !over(v, base.Blob) {
		return importer.UploadBlob(ctx, s, dst, out, o)
	}
	return importer.DeltaUpload(ctx, s, base.Info.Object, base.Info, v, dst, o)
}

// over reports whether v lies right on b.
func over(v *disk.Overlay, b disk.Blob) bool {
	return v.Base() == disk.AsDisk(b)
}

// ObjectDigest names the content of an object for [Plan.Identity].
func ObjectDigest(i importer.ObjectInfo) string {
	return fmt.Sprintf("%s:%d", importer.Content(i), i.Size)
}

// BlobIdentity is [Plan.Identity] for an image that is published as it is.
func BlobIdentity(digest string) string {
	sum := sha256.Sum256([]byte("as it is: " + digest))
	return hex.EncodeToString(sum[:])
}
