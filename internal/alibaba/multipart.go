package alibaba

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/aliyun/aliyun-oss-go-sdk/oss"

	"remaster/pkg/importer"
)

// maxParts is the most parts that an upload has.
const maxParts = 10_000

// CreateUpload implements [importer.Store].
func (s *Store) CreateUpload(ctx context.Context, o importer.Object, p importer.PutOptions) (importer.Upload, error) {
	k, err := s.call(ctx, "InitiateMultipartUpload", o.Bucket)
	if err != nil {
		return importer.Upload{}, err
	}
	defer k.within(requestTimeout)()
	r, err := k.bucket.InitiateMultipartUpload(o.Key, k.with(putOptions(p)...)...)
	if err != nil {
		return importer.Upload{}, k.fail(err)
	}
	if r.UploadID == "" {
		return importer.Upload{}, k.fail(errors.New("reply has no id of an upload"))
	}
	return importer.Upload{Object: importer.Object{Bucket: o.Bucket, Key: o.Key}, ID: r.UploadID}, nil
}

// started is what the SDK wants to know of an upload.
func started(u importer.Upload) oss.InitiateMultipartUploadResult {
	return oss.InitiateMultipartUploadResult{Bucket: u.Bucket, Key: u.Key, UploadID: u.ID}
}

// UploadPart implements [importer.Store]. It reads size bytes from where body stands, and
// does not touch body after it has returned.
func (s *Store) UploadPart(ctx context.Context, u importer.Upload, num int, body io.ReadSeeker, size int64) (importer.Part, error) {
	k, err := s.call(ctx, "UploadPart", u.Bucket)
	if err != nil {
		return importer.Part{}, err
	}
	src := &detachable{r: body}
	defer src.detach()
	// The SDK compares the CRC64 of what it sent with the reply's.
	p, err := k.bucket.UploadPart(started(u), src, size, num, k.with()...)
	if err != nil {
		return importer.Part{}, k.fail(err)
	}
	return k.part(num, size, p.ETag)
}

func (k *call) part(num int, size int64, tag string) (importer.Part, error) {
	p := importer.Part{Num: num, Size: size, ETag: etag(tag)}
	if p.ETag == "" {
		return importer.Part{}, k.fail(errors.New("reply has no ETag"))
	}
	p.CRC64, p.HasCRC64 = crc64Of(k.header)
	return p, nil
}

// detachable is a body that a request has no more hold of once it has returned: the
// standard library may still read the body of a request that was cancelled.
type detachable struct {
	mu sync.Mutex
	r  io.Reader
}

func newBody(b []byte) *detachable { return &detachable{r: bytes.NewReader(b)} }

func (d *detachable) Read(p []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.r == nil {
		return 0, errors.New("the request is over")
	}
	return d.r.Read(p)
}

func (d *detachable) detach() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.r = nil
}

// CopyPart implements [importer.Store].
func (s *Store) CopyPart(ctx context.Context, u importer.Upload, num int, src importer.Object, ifMatch string, off, n int64) (importer.Part, error) {
	if off < 0 || n <= 0 || off+n < off {
		return importer.Part{}, fmt.Errorf("UploadPartCopy %s: bytes %d to %d: not a range", src, off, off+n)
	}
	k, err := s.call(ctx, "UploadPartCopy", u.Bucket)
	if err != nil {
		return importer.Part{}, err
	}
	defer k.within(serverTimeout)()
	// The SDK would write a space in the key as a plus.
	from := "/" + src.Bucket + "/" + strings.ReplaceAll(url.QueryEscape(src.Key), "+", "%20")
	if src.VersionID != "" {
		from += "?versionId=" + url.QueryEscape(src.VersionID)
	}
	opts := []oss.Option{oss.SetHeader(oss.HTTPHeaderOssCopySource, from)}
	if ifMatch != "" {
		opts = append(opts, oss.CopySourceIfMatch(ifMatch))
	}
	p, err := k.bucket.UploadPartCopy(started(u), src.Bucket, src.Key, off, n, num, k.with(opts...)...)
	if err != nil {
		return importer.Part{}, k.fail(err)
	}
	if err := exactRange(k.header, off, n); err != nil {
		return importer.Part{}, k.fail(fmt.Errorf("%s: %w", src, err))
	}
	return k.part(num, n, p.ETag)
}

// ListParts implements [importer.Store].
func (s *Store) ListParts(ctx context.Context, u importer.Upload) ([]importer.Part, error) {
	var out []importer.Part
	marker := 0
	for {
		k, err := s.call(ctx, "ListParts", u.Bucket)
		if err != nil {
			return nil, err
		}
		// The SDK's own leaves out the CRC.
		var page struct {
			XMLName     xml.Name `xml:"ListPartsResult"`
			IsTruncated bool
			Next        int `xml:"NextPartNumberMarker"`
			Part        []struct {
				PartNumber int
				ETag       string
				Size       int64
				CRC        string `xml:"HashCrc64ecma"`
			}
		}
		params := map[string]any{"uploadId": u.ID, "max-parts": strconv.Itoa(pageSize)}
		if marker > 0 {
			params["part-number-marker"] = strconv.Itoa(marker)
		}
		stop := k.within(requestTimeout)
		err = k.get(u.Key, params, &page)
		stop()
		if err != nil {
			return nil, err
		}
		for _, p := range page.Part {
			if p.PartNumber <= marker || p.PartNumber > maxParts || p.Size < 0 {
				return nil, k.fail(fmt.Errorf("part %d of %d bytes in the page after part %d", p.PartNumber, p.Size, marker))
			}
			marker = p.PartNumber
			part := importer.Part{Num: p.PartNumber, Size: p.Size, ETag: etag(p.ETag)}
			if v, err := strconv.ParseUint(p.CRC, 10, 64); err == nil {
				part.CRC64, part.HasCRC64 = v, true
			}
			out = append(out, part)
		}
		if !page.IsTruncated {
			return out, nil
		}
		if len(page.Part) == 0 || page.Next < marker {
			return nil, k.fail(errors.New("the listing goes on where it was"))
		}
	}
}

// Complete implements [importer.Store].
func (s *Store) Complete(ctx context.Context, u importer.Upload, parts []importer.Part, forbidOverwrite bool) (importer.ObjectInfo, error) {
	k, err := s.call(ctx, "CompleteMultipartUpload", u.Bucket)
	if err != nil {
		return importer.ObjectInfo{}, err
	}
	defer k.within(serverTimeout)()
	info := importer.ObjectInfo{Object: u.Object, Type: "Multipart"}
	list := make([]oss.UploadPart, 0, len(parts))
	for _, p := range parts {
		list = append(list, oss.UploadPart{PartNumber: p.Num, ETag: p.ETag})
		info.Size += p.Size
	}
	slices.SortFunc(list, func(a, b oss.UploadPart) int { return a.PartNumber - b.PartNumber })
	var opts []oss.Option
	if forbidOverwrite {
		opts = append(opts, oss.ForbidOverWrite(true))
	}
	r, err := k.bucket.CompleteMultipartUpload(started(u), list, k.with(opts...)...)
	if err != nil {
		return importer.ObjectInfo{}, k.fail(err)
	}
	info.ETag = etag(r.ETag)
	if info.ETag == "" {
		info.ETag = etag(k.header.Get("Etag"))
	}
	info.VersionID = k.header.Get("X-Oss-Version-Id")
	info.CRC64, info.HasCRC64 = crc64Of(k.header)
	return info, nil
}

// Abort implements [importer.Store].
func (s *Store) Abort(ctx context.Context, u importer.Upload) error {
	k, err := s.call(ctx, "AbortMultipartUpload", u.Bucket)
	if err != nil {
		return err
	}
	defer k.within(requestTimeout)()
	err = k.fail(k.bucket.AbortMultipartUpload(started(u), k.with()...))
	if isCode(err, "NoSuchUpload") {
		return nil
	}
	return err
}

// ListUploads implements [importer.Store].
func (s *Store) ListUploads(ctx context.Context, bucket, prefix string) ([]importer.Upload, error) {
	var out []importer.Upload
	key, id := "", ""
	for {
		k, err := s.call(ctx, "ListMultipartUploads", bucket)
		if err != nil {
			return nil, err
		}
		opts := []oss.Option{oss.Prefix(prefix), oss.MaxUploads(pageSize)}
		if key != "" {
			opts = append(opts, oss.KeyMarker(key), oss.UploadIDMarker(id))
		}
		stop := k.within(requestTimeout)
		page, err := k.bucket.ListMultipartUploads(k.with(opts...)...)
		stop()
		if err != nil {
			return nil, k.fail(err)
		}
		for _, e := range page.Uploads {
			out = append(out, importer.Upload{
				Object: importer.Object{Bucket: bucket, Key: e.Key}, ID: e.UploadID, Initiated: e.Initiated.Round(time.Millisecond),
			})
		}
		if !page.IsTruncated {
			return out, nil
		}
		if err := turning(len(out), page.NextKeyMarker+"\x00"+page.NextUploadIDMarker, key+"\x00"+id); err != nil {
			return nil, k.fail(err)
		}
		key, id = page.NextKeyMarker, page.NextUploadIDMarker
	}
}
