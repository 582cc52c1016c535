package importer

import (
	"context"
	"crypto/md5" // an ETag is one
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc64"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"remaster/internal/hint"
	"remaster/pkg/disk"
)

// transfer is one object on its way, in pieces that become parts 1, 2, … of an upload.
type transfer struct {
	s    Store
	dst  Object
	blob disk.Blob
	o    UploadOptions

	pieces []Piece
	src    Object // what copies are made of
	pin    string // its ETag
	way    Way
	crc    uint64 // the object's checksum, if hasCRC
	hasCRC bool

	limit   *rate.Limiter // nil: none
	journal *journal
	sent    atomic.Int64
	telling sync.Mutex // held while o.Progress is called
	dealt   int64      // bytes dealt with since the last start
	told    int64      // bytes that o.Progress was told of

	upload Upload
	server map[int]Part // the parts that an upload that was found has
	mu     sync.Mutex
	parts  []Part // those that are done, by piece
	report UploadReport
}

func newTransfer(s Store, dst Object, blob disk.Blob, o UploadOptions) (*transfer, error) {
	if o.Clock.Now == nil {
		return nil, errors.New("importer: UploadOptions.Clock.Now is not set")
	}
	if o.Workers <= 0 {
		o.Workers = 8
	}
	if o.PartSize <= 0 {
		o.PartSize = PartSize(blob.Size())
	}
	if l := (Limits{}).withDefaults(); o.PartSize < l.MinPart && blob.Size() > o.PartSize || o.PartSize > l.MaxPart || blob.Size()/o.PartSize >= int64(l.Parts) {
		return nil, fmt.Errorf("parts of %d bytes: OSS takes 100 KiB to 5 GiB, and no more than 10,000 of them", o.PartSize)
	}
	if o.Identity != "" {
		o.Meta = maps.Clone(o.Meta)
		if o.Meta == nil {
			o.Meta = map[string]string{}
		}
		o.Meta[MetaIdentity] = o.Identity
	}
	t := &transfer{s: s, dst: dst, blob: blob, o: o}
	if o.BytesPerSecond > 0 {
		t.limit = rate.NewLimiter(rate.Limit(o.BytesPerSecond), chunkSize)
	}
	var err error
	t.journal, err = openJournal(o.JournalDir, o.Identity, dst)
	return t, err
}

func (t *transfer) progress(n int64) {
	if t.o.Progress == nil {
		return
	}
	t.telling.Lock()
	defer t.telling.Unlock()
	if t.dealt += n; t.dealt > t.told {
		t.o.Progress(t.dealt - t.told)
		t.told = t.dealt
	}
}

// wait waits until n bytes, of one chunk at most, may be sent.
func (t *transfer) wait(ctx context.Context, n int) error {
	if t.limit == nil {
		return ctx.Err()
	}
	err := t.limit.WaitN(ctx, n)
	if err != nil && ctx.Err() == nil {
		// It does not wait for what comes behind the deadline.
		err = fmt.Errorf("%w: %w", context.DeadlineExceeded, err)
	}
	return err
}

// restarts is how often an upload that is gone at the service is begun anew.
const restarts = 2

// run does everything.
func (t *transfer) run(ctx context.Context) (UploadReport, error) {
	begun := t.o.Clock.Now()
	err := t.make(ctx)
	t.report.Duration = t.o.Clock.Now().Sub(begun)
	t.report.Sent = t.sent.Load()
	if t.o.Fetched != nil {
		t.report.Fetched = t.o.Fetched()
	}
	if err != nil {
		err = fmt.Errorf("upload %v: %w", t.dst, err)
	}
	return t.report, err
}

func (t *transfer) make(ctx context.Context) error {
	t.report, t.dealt = UploadReport{}, 0
	there, err := t.present(ctx)
	if err != nil {
		return err
	}
	switch {
	case there:
		t.report.Way = WayPresent
	case t.way == WayPut:
		t.report.Way, t.report.Parts = WayPut, 1
		err = t.put(ctx)
	default:
		err = t.multipart(ctx)
	}
	if err != nil {
		return err
	}
	if err := t.tidy(ctx); err != nil {
		return hint.With(fmt.Errorf("the object is there, but not all that was in its way is gone: %w", err), remedyGC)
	}
	return nil
}

const remedyGC = "remaster gc removes uploads that were left behind"

// present looks whether there is nothing to do.
func (t *transfer) present(ctx context.Context) (bool, error) {
	if t.o.Identity == "" && !t.o.ForbidOverwrite {
		return false, nil
	}
	info, err := t.s.Head(ctx, t.dst)
	switch {
	case err == nil && t.o.Identity != "" && t.isOurs(info):
		t.report.Object, t.report.Checked = info, t.hasCRC && info.HasCRC64
		t.report.CRC64, t.report.HasCRC64 = t.crc, t.hasCRC
		t.progress(info.Size)
		return true, nil
	case err == nil && t.o.ForbidOverwrite:
		return false, errExists
	case ctx.Err() != nil || Retryable(err):
		return false, err
	}
	return false, nil // it is missing, or not to be looked at: the upload will tell
}

// multipart makes the object as a multipart upload.
func (t *transfer) multipart(ctx context.Context) error {
	for n := 0; ; n++ {
		err := t.parting(ctx)
		if err == nil {
			return nil
		}
		if isCode(err, "NoSuchUpload") && n < restarts {
			if err := t.journal.remove(); err != nil {
				return err
			}
			continue
		}
		return t.abandon(ctx, err)
	}
}

// parting finds or begins an upload and makes it the object.
func (t *transfer) parting(ctx context.Context) error {
	t.parts = make([]Part, len(t.pieces))
	t.report = UploadReport{Way: t.way, Parts: len(t.pieces)}
	t.upload, t.server, t.dealt = Upload{}, nil, 0
	if err := t.begin(ctx); err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(t.o.Workers)
	// Copies go first: if they are not allowed, nothing was sent in vain.
	for _, copies := range []bool{true, false} {
		for i, p := range t.pieces {
			if p.Copy != copies {
				continue
			}
			if gctx.Err() != nil {
				break
			}
			g.Go(func() error { return t.part(gctx, i) })
		}
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if t.way == WayMultipart {
		var crc uint64
		for i, p := range t.parts {
			crc = CombineCRC64(crc, p.CRC64, t.pieces[i].Len)
		}
		if err := t.sum(crc); err != nil {
			return err
		}
	}
	return t.complete(ctx)
}

// layout names the way in which the pieces are cut, so that parts of another plan are
// not taken for those of this one.
func (t *transfer) layout() string {
	h := sha256.New()
	fmt.Fprintln(h, t.src, t.pin)
	for _, p := range t.pieces {
		fmt.Fprintln(h, p.Off, p.Len, p.Copy)
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// begin goes on with an upload of this object, or begins one.
func (t *transfer) begin(ctx context.Context) error {
	found, err := t.find(ctx)
	if err != nil {
		return err
	}
	if found {
		t.report.Way = WayResumed
		return nil
	}
	if t.upload, err = t.s.CreateUpload(ctx, t.dst, t.o.PutOptions); err != nil {
		return err
	}
	return t.journal.begin(t.journalDoc())
}

func (t *transfer) journalDoc() journalDoc {
	return journalDoc{
		Bucket: t.dst.Bucket, Key: t.dst.Key, Identity: t.o.Identity,
		Layout: t.layout(), UploadID: t.upload.ID, PartSize: t.o.PartSize,
	}
}

// find looks for an upload to go on with: the journal's, else with OwnKey the one of all
// of the key that has the most bytes.
func (t *transfer) find(ctx context.Context) (bool, error) {
	if d := t.journal.doc; d.UploadID != "" {
		u := Upload{Object: t.dst, ID: d.UploadID}
		parts, err := t.s.ListParts(ctx, u)
		switch {
		case err == nil && d.Layout == t.layout():
			t.adopt(u, parts)
			return true, nil
		case err == nil:
			if err := t.s.Abort(ctx, u); err != nil {
				return false, err
			}
		case !isCode(err, "NoSuchUpload"):
			return false, err
		}
	}
	if !t.o.OwnKey {
		return false, nil
	}
	ups, err := t.uploads(ctx)
	if err != nil {
		return false, err
	}
	most := int64(-1)
	for _, u := range ups {
		parts, err := t.s.ListParts(ctx, u)
		if isCode(err, "NoSuchUpload") {
			continue
		}
		if err != nil {
			return false, err
		}
		n := int64(0)
		for _, p := range parts {
			n += p.Size
		}
		if n > most {
			most = n
			t.adopt(u, parts)
		}
	}
	if most < 0 {
		return false, nil
	}
	return true, t.journal.begin(t.journalDoc())
}

func (t *transfer) adopt(u Upload, parts []Part) {
	t.upload, t.server = u, map[int]Part{}
	for _, p := range parts {
		t.server[p.Num] = p
	}
}

// uploads returns the uploads of just this key.
func (t *transfer) uploads(ctx context.Context) ([]Upload, error) {
	all, err := t.s.ListUploads(ctx, t.dst.Bucket, t.dst.Key)
	var out []Upload
	for _, u := range all {
		if u.Key == t.dst.Key {
			out = append(out, u)
		}
	}
	return out, err
}

// part makes piece i a part, unless it is there.
func (t *transfer) part(ctx context.Context, i int) error {
	p, num := t.pieces[i], i+1
	if have, ok := t.server[num]; ok {
		same, err := t.matches(ctx, p, &have)
		if err != nil {
			return err
		}
		if same {
			t.done(i, have, func(r *UploadReport) { r.Reused, r.ReusedParts = r.Reused+p.Len, r.ReusedParts+1 })
			t.progress(p.Len)
			return nil
		}
	}
	var part Part
	var err error
	if p.Copy {
		part, err = t.s.CopyPart(ctx, t.upload, num, t.src, t.pin, p.Off, p.Len)
		if err != nil {
			return &copyError{err}
		}
		part.Num, part.Size = num, p.Len
		t.done(i, part, func(r *UploadReport) { r.Copied, r.CopiedParts = r.Copied+p.Len, r.CopiedParts+1 })
		t.progress(p.Len)
	} else {
		if part, err = t.send(ctx, num, p.Range); err != nil {
			return err
		}
		t.done(i, part, func(*UploadReport) {})
	}
	return t.journal.add(num, journalPart{Size: p.Len, ETag: part.ETag, CRC64: part.CRC64, Copy: p.Copy})
}

// done takes over a part and counts it.
func (t *transfer) done(i int, p Part, count func(*UploadReport)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.parts[i] = p
	count(&t.report)
}

// bareETag returns an ETag as all replies have it, whatever they put around it.
func bareETag(s string) string { return strings.ToLower(strings.Trim(s, `"`)) }

// matches reports whether a part that the service has holds what the blob reads now: by
// the service's CRC-64, by the one that the journal has for this ETag, or by the ETag,
// which is the MD5 of a part. A copy is known by the journal, and then was made of the
// same source. have gets the CRC-64.
func (t *transfer) matches(ctx context.Context, p Piece, have *Part) (bool, error) {
	if have.Size != p.Len {
		return false, nil
	}
	known, ok := t.journal.part(have.Num)
	ok = ok && bareETag(known.ETag) == bareETag(have.ETag) && known.Size == have.Size && known.Copy == p.Copy
	if p.Copy {
		return ok, nil
	}
	etag := bareETag(have.ETag)
	if !ok && !have.HasCRC64 && len(etag) != hex.EncodedLen(md5.Size) {
		return false, nil
	}
	crc, sum := uint64(0), md5.New()
	byMD5 := !ok && !have.HasCRC64
	err := eachChunk(p.Range, func(b []byte, off int64) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := disk.ReadFull(t.blob, b, off); err != nil {
			return err
		}
		crc = crc64.Update(crc, crcTable, b)
		if byMD5 {
			sum.Write(b)
		}
		return nil
	})
	if err != nil {
		return false, err
	}
	same := have.HasCRC64 && have.CRC64 == crc
	switch {
	case byMD5:
		same = hex.EncodeToString(sum.Sum(nil)) == etag
	case !have.HasCRC64:
		same = known.CRC64 == crc
	}
	have.CRC64, have.HasCRC64 = crc, true
	return same, nil
}

// cleanupTime is how long the tidying up after a cancellation may take.
const cleanupTime = 30 * time.Second

// abandon ends an upload that failed with err, or leaves it for a later run.
func (t *transfer) abandon(ctx context.Context, err error) error {
	resumable := t.journal.path != "" || t.o.OwnKey
	if t.upload.ID == "" || resumable && (t.o.Keep && ctx.Err() != nil || ctx.Err() == nil && Retryable(err) && !isFinal(err)) {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	if aerr := t.s.Abort(ctx, t.upload); aerr != nil {
		// The journal stays, for the next run.
		return errors.Join(err, hint.With(fmt.Errorf("abort the upload %s: %w", t.upload.ID, aerr), remedyGC))
	}
	return errors.Join(err, t.journal.remove())
}

// tidy removes what the work has left beside the object.
func (t *transfer) tidy(ctx context.Context) error {
	if id := t.journal.doc.UploadID; id != "" && id != t.upload.ID {
		// Of a run that was stopped when the object had come about.
		if err := t.s.Abort(ctx, Upload{Object: t.dst, ID: id}); err != nil {
			return err
		}
	}
	if err := t.journal.remove(); err != nil || !t.o.OwnKey {
		return err
	}
	ups, err := t.uploads(ctx)
	if err != nil {
		return err
	}
	for _, u := range ups {
		if err := t.s.Abort(ctx, u); err != nil {
			return err
		}
	}
	return nil
}
