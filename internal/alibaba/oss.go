package alibaba

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aliyun/aliyun-oss-go-sdk/oss"

	"remaster/internal/hint"
	"remaster/pkg/importer"
)

const (
	// requestTimeout ends a request that moves no content.
	requestTimeout = time.Minute
	// serverTimeout ends one that the service works on: a copy, a completion.
	serverTimeout = 10 * time.Minute
	// pageSize is the most entries of a listing's page that OSS gives.
	pageSize = 1000
	// listLimit bounds a listing, in entries.
	listLimit = 1_000_000
)

// Store is OSS as one region and endpoint show it. It implements [importer.Store]; all
// its requests are single ones of the SDK, signed by V4. Its methods may be called by
// many goroutines at once.
type Store struct {
	c      *Clients
	region string
}

var _ importer.Store = (*Store)(nil)

// Store returns the store of the buckets of a region, or of the configured region if it
// is "". It connects to nothing.
func (c *Clients) Store(region string) (*Store, error) {
	if region == "" {
		region = c.region
	}
	if region == "" {
		return nil, hint.With(errors.New("no region for OSS"), "say --region, or set ALIBABA_CLOUD_REGION_ID")
	}
	if !validRegion(region) {
		return nil, fmt.Errorf("%q is no region", region)
	}
	return &Store{c, region}, nil
}

// StoreOf returns the store of a bucket, in whatever region that is: it asks.
func (c *Clients) StoreOf(ctx context.Context, bucket string) (*Store, error) {
	region := c.region
	if region == "" {
		if c.custom.oss != nil {
			return c.Store("") // a service that has no other regions does not tell
		}
		region = homeRegion
	}
	s, err := c.Store(region)
	if err != nil {
		return nil, err
	}
	info, err := s.BucketInfo(ctx, bucket)
	if err != nil {
		return nil, err
	}
	return c.Store(info.Region)
}

// Region is the region that the requests are signed for.
func (s *Store) Region() string { return s.region }

// call is one request. It belongs to one goroutine.
type call struct {
	c      *Clients
	ctx    context.Context
	x      *exchange
	bucket *oss.Bucket
	header http.Header // of the reply
}

// call prepares a request. The SDK's client is made anew, with the keys of now: it holds
// no connection, and its provider of credentials knows no context.
func (s *Store) call(ctx context.Context, op, bucket string) (*call, error) {
	return s.callAt(ctx, op, bucket, s.c.ossEndpoint(s.region, false))
}

func (s *Store) callAt(ctx context.Context, op, bucket string, at endpoint) (*call, error) {
	c := s.c
	k, err := c.oss.get(ctx)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	client, err := oss.New(at.String(), "", "",
		oss.AuthVersion(oss.AuthV4), oss.Region(s.region),
		oss.HTTPClient(c.http), oss.SetCredentialsProvider(ossKeys{k}),
		oss.ForcePathStyle(c.cfg.PathStyle || loopback(at.host)),
		oss.UserAgent(userAgent("aliyun-sdk-go/"+oss.Version, c.cfg.UserAgent)))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	b, err := client.Bucket(bucket)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	ctx, x := begin(ctx, op)
	return &call{c: c, ctx: ctx, x: x, bucket: b}, nil
}

func userAgent(sdk, own string) string { return strings.TrimSpace(sdk + " " + own) }

// ossKeys gives the SDK its credentials.
type ossKeys struct{ keys }

func (k ossKeys) GetCredentials() oss.Credentials           { return k }
func (k ossKeys) GetCredentialsE() (oss.Credentials, error) { return k, nil }
func (k ossKeys) GetAccessKeyID() string                    { return k.id }
func (k ossKeys) GetAccessKeySecret() string                { return k.secret }
func (k ossKeys) GetSecurityToken() string                  { return k.token }

// with adds the options of every request to those of this one.
func (k *call) with(o ...oss.Option) []oss.Option {
	return append(o, oss.WithContext(k.ctx), oss.GetResponseHeader(&k.header))
}

// within limits the request's time. The function that it returns ends the limit.
func (k *call) within(d time.Duration) context.CancelFunc {
	var stop context.CancelFunc
	k.ctx, stop = context.WithTimeout(k.ctx, d)
	return stop
}

func (k *call) fail(err error) error { return k.c.failure(k.x, err) }

// get makes a request for a document in XML and decodes it. The SDK's own calls for
// these drop the context or a part of the document.
func (k *call) get(key string, params map[string]any, into any, o ...oss.Option) error {
	resp, err := k.bucket.Do(http.MethodGet, key, params, k.with(o...), nil, nil)
	if err != nil {
		return k.fail(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return k.fail(err)
	}
	if err := xml.Unmarshal(body, into); err != nil {
		return k.fail(fmt.Errorf("reply is not the document that was asked for: %w", err))
	}
	return nil
}

// BucketInfo implements [importer.Store]. If the bucket is in another region than the
// store's, that one is asked.
func (s *Store) BucketInfo(ctx context.Context, bucket string) (importer.BucketInfo, error) {
	info, elsewhere, err := s.bucketInfo(ctx, bucket)
	if elsewhere != "" && elsewhere != s.region && s.c.custom.oss == nil {
		info, _, err = (&Store{s.c, elsewhere}).bucketInfo(ctx, bucket)
	}
	return info, err
}

// bucketInfo also returns the region that the service sends us to with a refusal.
func (s *Store) bucketInfo(ctx context.Context, bucket string) (info importer.BucketInfo, elsewhere string, err error) {
	k, err := s.callAt(ctx, "GetBucketInfo", bucket, s.c.ossEndpoint(s.region, true))
	if err != nil {
		return info, "", err
	}
	defer k.within(requestTimeout)()
	var doc struct {
		XMLName xml.Name `xml:"BucketInfo"`
		Bucket  struct {
			Location     string
			StorageClass string
			Versioning   string
			SSE          struct {
				Algorithm string `xml:"SSEAlgorithm"`
			} `xml:"ServerSideEncryptionRule"`
		}
	}
	resp, err := k.bucket.Do(http.MethodGet, "", map[string]any{"bucketInfo": nil}, k.with(), nil, nil)
	if err != nil {
		if e, ok := errors.AsType[oss.ServiceError](err); ok {
			elsewhere = regionOfEndpoint(e.Endpoint)
		}
		return info, elsewhere, k.fail(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil {
		err = xml.Unmarshal(body, &doc)
	}
	if err != nil {
		return info, "", k.fail(fmt.Errorf("reply is not the document that was asked for: %w", err))
	}
	b := doc.Bucket
	info = importer.BucketInfo{
		Region: strings.TrimPrefix(b.Location, "oss-"), StorageClass: b.StorageClass,
		Versioning: b.Versioning == "Enabled", Encryption: b.SSE.Algorithm,
	}
	if info.Encryption == "None" {
		info.Encryption = ""
	}
	if !validRegion(info.Region) {
		return info, "", k.fail(fmt.Errorf("reply has no region but %q", b.Location))
	}
	return info, "", nil
}

// Head implements [importer.Store].
func (s *Store) Head(ctx context.Context, o importer.Object) (importer.ObjectInfo, error) {
	k, err := s.call(ctx, "HeadObject", o.Bucket)
	if err != nil {
		return importer.ObjectInfo{}, err
	}
	defer k.within(requestTimeout)()
	h, err := k.bucket.GetObjectDetailedMeta(o.Key, k.with(version(o)...)...)
	if err != nil {
		err = k.fail(err)
		// A reply to HEAD has no body, and an old service no header that stands for it.
		if e, ok := errors.AsType[*importer.ServiceError](err); ok && e.Status == http.StatusNotFound && e.Code == "" {
			e.Code = "NoSuchKey"
		}
		return importer.ObjectInfo{}, err
	}
	size, err := strconv.ParseInt(h.Get("Content-Length"), 10, 64)
	if err != nil || size < 0 {
		return importer.ObjectInfo{}, k.fail(errors.New("reply has no size"))
	}
	info := importer.ObjectInfo{
		Object: o, Size: size, ETag: etag(h.Get("Etag")),
		StorageClass: h.Get("X-Oss-Storage-Class"), Type: h.Get("X-Oss-Object-Type"),
		Meta:     map[string]string{},
		Restored: strings.Contains(h.Get("X-Oss-Restore"), `ongoing-request="false"`),
	}
	info.CRC64, info.HasCRC64 = crc64Of(h)
	info.Modified, _ = http.ParseTime(h.Get("Last-Modified"))
	for name, v := range h {
		if m, ok := strings.CutPrefix(strings.ToLower(name), "x-oss-meta-"); ok && len(v) > 0 {
			info.Meta[m] = v[0]
		}
	}
	return info, nil
}

func version(o importer.Object) []oss.Option {
	if o.VersionID == "" {
		return nil
	}
	return []oss.Option{oss.VersionId(o.VersionID)}
}

// etag gives the form with quotes, which headers have and some documents do not.
func etag(s string) string {
	if s = strings.Trim(s, `"`); s == "" {
		return ""
	}
	return `"` + s + `"`
}

func crc64Of(h http.Header) (uint64, bool) {
	v, err := strconv.ParseUint(h.Get("X-Oss-Hash-Crc64ecma"), 10, 64)
	return v, err == nil
}

// Read implements [importer.Store]. Nothing is asked for when n is 0.
func (s *Store) Read(ctx context.Context, o importer.Object, ifMatch string, off, n int64) (io.ReadCloser, error) {
	if off < 0 || n < 0 || off+n < off {
		return nil, fmt.Errorf("GetObject %s: bytes %d to %d: not a range", o, off, off+n)
	}
	if n == 0 {
		return http.NoBody, nil
	}
	k, err := s.call(ctx, "GetObject", o.Bucket)
	if err != nil {
		return nil, err
	}
	k.x.content = true
	opts := append(version(o), oss.Range(off, off+n-1), oss.RangeBehavior("standard"), oss.AcceptEncoding("identity"))
	if ifMatch != "" {
		opts = append(opts, oss.IfMatch(ifMatch))
	}
	body, err := k.bucket.GetObject(o.Key, k.with(opts...)...)
	if err != nil {
		return nil, k.fail(err)
	}
	if err := exactRange(k.header, off, n); err != nil {
		_ = body.Close() // it is not what was asked for
		return nil, k.fail(fmt.Errorf("%s: %w", o, err))
	}
	return &exactReader{k: k, body: body, left: n}, nil
}

// exactRange checks that a reply is about the bytes [off, off+n) and no others: OSS
// ignores a range that it does not understand.
func exactRange(h http.Header, off, n int64) error {
	got := h.Get("Content-Range")
	want := fmt.Sprintf("bytes %d-%d/", off, off+n-1)
	total, ok := strings.CutPrefix(got, want)
	if size, err := strconv.ParseInt(total, 10, 64); ok && (total == "*" || err == nil && size >= off+n) {
		return nil
	}
	return fmt.Errorf("%w: asked for bytes %d-%d, and it is about %q", importer.ErrRange, off, off+n-1, got)
}

// exactReader reads just the bytes that were asked for.
type exactReader struct {
	k    *call
	body io.ReadCloser
	left int64
}

func (r *exactReader) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	n, err := r.body.Read(p[:min(int64(len(p)), r.left)])
	r.left -= int64(n)
	switch {
	case r.left == 0:
		return n, nil // io.EOF comes with the next call
	case errors.Is(err, io.EOF):
		return n, r.k.fail(io.ErrUnexpectedEOF)
	}
	return n, r.k.fail(err)
}

func (r *exactReader) Close() error { return r.body.Close() }

// Put implements [importer.Store].
func (s *Store) Put(ctx context.Context, o importer.Object, body []byte, p importer.PutOptions) (importer.ObjectInfo, error) {
	k, err := s.call(ctx, "PutObject", o.Bucket)
	if err != nil {
		return importer.ObjectInfo{}, err
	}
	src := newBody(body)
	defer src.detach()
	err = k.bucket.PutObject(o.Key, &io.LimitedReader{R: src, N: int64(len(body))}, k.with(putOptions(p)...)...)
	if err != nil {
		return importer.ObjectInfo{}, k.fail(err)
	}
	info := importer.ObjectInfo{Object: o, Size: int64(len(body)), ETag: etag(k.header.Get("Etag")), Meta: maps.Clone(p.Meta)}
	info.CRC64, info.HasCRC64 = crc64Of(k.header)
	return info, nil
}

// putOptions are the headers of a new object, in an order that does not change.
func putOptions(p importer.PutOptions) []oss.Option {
	var o []oss.Option
	if p.ForbidOverwrite {
		o = append(o, oss.ForbidOverWrite(true))
	}
	if p.Encryption != "" {
		o = append(o, oss.ServerSideEncryption(p.Encryption))
	}
	if p.KMSKeyID != "" {
		o = append(o, oss.ServerSideEncryptionKeyID(p.KMSKeyID))
	}
	if p.StorageClass != "" {
		o = append(o, oss.ObjectStorageClass(oss.StorageClassType(p.StorageClass)))
	}
	if len(p.Tags) > 0 {
		var t oss.Tagging
		for _, key := range slices.Sorted(maps.Keys(p.Tags)) {
			t.Tags = append(t.Tags, oss.Tag{Key: key, Value: p.Tags[key]})
		}
		o = append(o, oss.SetTagging(t))
	}
	for _, key := range slices.Sorted(maps.Keys(p.Meta)) {
		o = append(o, oss.Meta(key, p.Meta[key]))
	}
	return o
}

// List implements [importer.Store].
func (s *Store) List(ctx context.Context, bucket, prefix string) ([]importer.ObjectInfo, error) {
	var out []importer.ObjectInfo
	token := ""
	for {
		k, err := s.call(ctx, "ListObjects", bucket)
		if err != nil {
			return nil, err
		}
		opts := []oss.Option{oss.Prefix(prefix), oss.MaxKeys(pageSize)}
		if token != "" {
			opts = append(opts, oss.ContinuationToken(token))
		}
		stop := k.within(requestTimeout)
		page, err := k.bucket.ListObjectsV2(k.with(opts...)...)
		stop()
		if err != nil {
			return nil, k.fail(err)
		}
		for _, e := range page.Objects {
			out = append(out, importer.ObjectInfo{
				Object: importer.Object{Bucket: bucket, Key: e.Key}, Size: e.Size, ETag: etag(e.ETag),
				StorageClass: e.StorageClass, Type: e.Type, Modified: e.LastModified,
				Restored: strings.Contains(e.RestoreInfo, `ongoing-request="false"`),
			})
		}
		if !page.IsTruncated {
			return out, nil
		}
		if err := turning(len(out), page.NextContinuationToken, token); err != nil {
			return nil, k.fail(err)
		}
		token = page.NextContinuationToken
	}
}

// turning checks that a listing comes to an end: that the next page is another one.
func turning(n int, next, last string) error {
	if next == "" || next == last {
		return errors.New("the listing goes on where it was")
	}
	if n > listLimit {
		return fmt.Errorf("the listing has more than %d entries", listLimit)
	}
	return nil
}

// Delete implements [importer.Store].
func (s *Store) Delete(ctx context.Context, o importer.Object) error {
	k, err := s.call(ctx, "DeleteObject", o.Bucket)
	if err != nil {
		return err
	}
	defer k.within(requestTimeout)()
	err = k.fail(k.bucket.DeleteObject(o.Key, k.with(version(o)...)...))
	if isCode(err, "NoSuchKey") {
		return nil
	}
	return err
}

// isCode reports whether err is a refusal with one of the codes.
func isCode(err error, codes ...string) bool {
	e, ok := errors.AsType[*importer.ServiceError](err)
	return ok && slices.Contains(codes, e.Code)
}
