package importer

import (
	"context"
	"errors"
	"fmt"
	"hash/crc64"
	"time"

	"remaster/pkg/disk"
)

// UploadOptions tune UploadBlob and DeltaUpload. The zero value lacks only Clock.Now.
type UploadOptions struct {
	PutOptions

	// Identity names the content, and whatever else makes an object another one: a
	// digest of the base's digest, the plan and the format, say. The object carries it
	// in its metadata, as MetaIdentity, by which a rerun knows that nothing is left to
	// do. Without one nothing can be resumed.
	Identity string
	// OwnKey says that nothing else than this content, with these options, is ever
	// written to the key, as when the key is made of the identity. Uploads that were
	// begun on another machine are then found and gone on with, and no other upload of
	// the key is left behind.
	OwnKey bool
	// JournalDir is a folder for a small file that remembers an upload that is under
	// way, so that a later run goes on with it. "" is none.
	JournalDir string
	// Keep leaves the upload, and its journal, when the context is cancelled.
	Keep bool

	// Workers is the number of parts in flight; 0 means 8. Each takes 256 KiB.
	Workers int
	// PartSize is the size of parts in bytes; 0 means that of [PartSize]. What fits
	// into one part is sent in one request, if it has no more than 64 MiB.
	PartSize int64
	// BytesPerSecond limits what is sent; 0 is no limit.
	BytesPerSecond int64
	// Progress, if not nil, is told how many more bytes of the object are dealt with:
	// sent, copied, or found to be there. Calls do not overlap.
	Progress func(n int64)
	// Fetched, if not nil, returns how many bytes were downloaded so far, for the
	// report.
	Fetched func() int64
	// Clock tells the time for the report.
	Clock Clock
}

// MetaIdentity is the metadata of an object that holds [UploadOptions].Identity:
// x-oss-meta-remaster-identity.
const MetaIdentity = "remaster-identity"

// Way is how an object came about.
type Way string

// The ways.
const (
	WayPresent   Way = "present"   // it was there, and nothing was done
	WayPut       Way = "put"       // one request
	WayMultipart Way = "multipart" // uploaded part by part
	WayDelta     Way = "delta"     // made of a base by the service, and of uploads
	WayResumed   Way = "resumed"   // an earlier upload, of either kind, gone on with
)

// UploadReport tells what became of an upload.
type UploadReport struct {
	Object ObjectInfo
	Way    Way
	// Why says why an object was not made of its base though that was asked for.
	Why string
	// Parts is the number of parts; Copied of them are copies and Reused ones were
	// there from an earlier run.
	Parts, CopiedParts, ReusedParts int
	// Sent counts the bytes of bodies, those sent again included. Copied bytes were
	// moved by the service; reused ones by an earlier run, either way. Fetched is what
	// UploadOptions.Fetched tells.
	Sent, Copied, Reused, Fetched int64
	// CRC64 is the object's checksum as it was computed here, if HasCRC64. Checked
	// says that the service's is the same; else it gave none.
	CRC64             uint64
	HasCRC64, Checked bool
	Duration          time.Duration
}

// maxPut is the largest object that is sent in one request, from memory.
const maxPut = 64 << 20

// UploadBlob makes the object dst of blob. The object appears whole or not at all, and its
// checksum is compared with the service's. s is usually one of [Retry].
//
// If the context is cancelled, or the service refuses, the upload is aborted, so that
// nothing is left that costs money. Where it can be gone on with, by the journal or by
// OwnKey, it is kept after a failure that may pass.
//
// An object of the same identity is left alone. One of another is replaced, or with
// ForbidOverwrite an error that wraps [fs.ErrExist]. On a bucket with versions the
// service does not look at ForbidOverwrite, and only a look beforehand protects it.
func UploadBlob(ctx context.Context, s Store, dst Object, blob disk.Blob, o UploadOptions) (UploadReport, error) {
	t, err := newTransfer(s, dst, blob, o)
	if err != nil {
		return UploadReport{}, err
	}
	t.layOut(PlanUpload(blob.Size(), t.o.PartSize), Object{}, "")
	return t.run(ctx)
}

// layOut sets the pieces, and the object with its ETag that copies are made of.
func (t *transfer) layOut(pieces []Piece, src Object, etag string) {
	t.pieces, t.src, t.pin = pieces, src, etag
	t.way = WayMultipart
	switch {
	case len(pieces) == 1 && !pieces[0].Copy && pieces[0].Len <= maxPut:
		t.way = WayPut
	case src != Object{}:
		t.way = WayDelta
	}
}

// put sends the whole object in one request.
func (t *transfer) put(ctx context.Context) error {
	b := make([]byte, t.blob.Size())
	if err := disk.ReadFull(t.blob, b, 0); err != nil && len(b) > 0 {
		return err
	}
	if err := t.sum(crc64.Checksum(b, crcTable)); err != nil {
		return err
	}
	for n := len(b); n > 0; n -= chunkSize {
		if err := t.wait(ctx, min(n, chunkSize)); err != nil {
			return err
		}
	}
	for try := 1; ; try++ {
		t.sent.Add(int64(len(b)))
		info, err := t.s.Put(ctx, t.dst, b, t.o.PutOptions)
		if err != nil {
			err = t.landed(ctx, err)
		} else {
			err = t.verify(ctx, info)
		}
		if err == nil {
			t.progress(int64(len(b)))
			return nil
		}
		if try == checksumTries || !errors.Is(err, ErrChecksum) {
			return err
		}
	}
}

// checksumTries is how often a part is sent that arrives damaged.
const checksumTries = 3

// send uploads a piece as part num.
func (t *transfer) send(ctx context.Context, num int, r disk.Range) (Part, error) {
	b := t.newBody(ctx, r)
	defer b.close()
	for try := 1; ; try++ {
		p, err := t.s.UploadPart(ctx, t.upload, num, b, r.Len)
		if err != nil {
			return p, err
		}
		crc, err := b.sum()
		if err == nil && p.HasCRC64 && p.CRC64 != crc {
			err = fmt.Errorf("part %d has CRC-64 %016x, the service has %016x: %w", num, crc, p.CRC64, ErrChecksum)
		}
		if err == nil {
			return Part{Num: num, Size: r.Len, ETag: p.ETag, CRC64: crc, HasCRC64: true}, nil
		}
		if try == checksumTries {
			return p, err
		}
		if _, err := b.Seek(0, 0); err != nil {
			return p, err
		}
	}
}
