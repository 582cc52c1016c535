package sandbox

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	ossv2 "github.com/aliyun/alibabacloud-oss-go-sdk-v2/oss"
	"github.com/aliyun/alibabacloud-oss-go-sdk-v2/oss/credentials"
)

// sdk2 is the independent client. It does not retry, so that faults are seen.
func sdk2(s *testOSS, a Account, v ossv2.SignatureVersionType, endpoint string) *ossv2.Client {
	cfg := ossv2.NewConfig().WithRegion(DefaultRegion).WithEndpoint(endpoint).WithSignatureVersion(v).
		WithCredentialsProvider(credentials.NewStaticCredentialsProvider(a.AccessKeyID, a.Secret, a.SecurityToken)).
		WithHttpClient(s.client).WithRetryMaxAttempts(1).WithUsePathStyle(endpoint == s.url)
	return ossv2.NewClient(cfg)
}

func sdk2Matrix(t *testing.T, f func(ctx context.Context, t *testing.T, s *testOSS, c *ossv2.Client)) {
	for _, tc := range []struct {
		name     string
		version  ossv2.SignatureVersionType
		account  Account
		endpoint string
		disk     bool
	}{
		{"V1 host", ossv2.SignatureVersionV1, testAccount, "http://oss-cn-hangzhou.example", false},
		{"V1 path token disk", ossv2.SignatureVersionV1, testSession, "", true},
		{"V4 path", ossv2.SignatureVersionV4, testAccount, "", false},
		{"V4 host token disk", ossv2.SignatureVersionV4, testSession, "http://oss-cn-hangzhou.example", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var opts []func(*ossOptions)
			if tc.disk {
				opts = append(opts, onDisk(t))
			}
			s := newTestOSS(t, opts...)
			endpoint := tc.endpoint
			if endpoint == "" {
				endpoint = s.url
			}
			f(t.Context(), t, s, sdk2(s, tc.account, tc.version, endpoint))
		})
	}
}

func sdk2Code(err error) string {
	var e *ossv2.ServiceError
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

var homeBucket = ossv2.Ptr("b-home")

// get reads an object or a range of it.
func get(ctx context.Context, t *testing.T, c *ossv2.Client, r *ossv2.GetObjectRequest) (*ossv2.GetObjectResult, []byte) {
	t.Helper()
	res, err := c.GetObject(ctx, r)
	if err != nil {
		t.Fatal(err)
	}
	return res, read(t, res.Body, nil)
}

func TestIndependentClientPutGetRanges(t *testing.T) {
	sdk2Matrix(t, func(ctx context.Context, t *testing.T, s *testOSS, c *ossv2.Client) {
		body := noise(11, 600_000)
		key := ossv2.Ptr(oddKey)
		put, err := c.PutObject(ctx, &ossv2.PutObjectRequest{Bucket: homeBucket, Key: key, Body: bytes.NewReader(body),
			Metadata: map[string]string{"build": "7"}, Tagging: ossv2.Ptr("a=b&c=d%20e"), ServerSideEncryption: ossv2.Ptr("SM4")})
		if err != nil || *put.HashCRC64 != strconv.FormatUint(crcOf(body), 10) || *put.ETag != `"`+hexETag(md5Sum(body))+`"` {
			t.Fatalf("%+v, %v", put, err)
		}
		res, got := get(ctx, t, c, &ossv2.GetObjectRequest{Bucket: homeBucket, Key: key})
		if !bytes.Equal(got, body) || res.Metadata["build"] != "7" || res.ContentLength != int64(len(body)) || *res.ServerSideEncryption != "SM4" || res.TaggingCount != 2 {
			t.Errorf("get: %d bytes, %+v", len(got), res)
		}
		for _, r := range []struct {
			v        string
			off, end int
			status   int
		}{{"bytes=0-0", 0, 1, 206}, {"bytes=1000-299999", 1000, 300_000, 206}, {"bytes=-7", len(body) - 7, len(body), 206}, {"bytes=599999-", len(body) - 1, len(body), 206}, {"bytes=5-600000", 0, len(body), 200}} {
			res, got := get(ctx, t, c, &ossv2.GetObjectRequest{Bucket: homeBucket, Key: key, Range: &r.v})
			if !bytes.Equal(got, body[r.off:r.end]) || res.StatusCode != r.status || res.Headers.Get(headerCRC64) != strconv.FormatUint(crcOf(body), 10) {
				t.Errorf("%s: %d bytes, %s", r.v, len(got), res.Status)
			}
		}
		_, err = c.GetObject(ctx, &ossv2.GetObjectRequest{Bucket: homeBucket, Key: key, Range: ossv2.Ptr("bytes=600000-"), RangeBehavior: ossv2.Ptr("standard")})
		if sdk2Code(err) != "InvalidRange" {
			t.Errorf("range past the end: %v", err)
		}
		head, err := c.HeadObject(ctx, &ossv2.HeadObjectRequest{Bucket: homeBucket, Key: key})
		if err != nil || head.ContentLength != int64(len(body)) || *head.ObjectType != "Normal" || *head.HashCRC64 != *put.HashCRC64 || head.LastModified == nil {
			t.Errorf("%+v, %v", head, err)
		}
		if _, err := c.GetObject(ctx, &ossv2.GetObjectRequest{Bucket: homeBucket, Key: key, IfMatch: ossv2.Ptr(`"other"`)}); sdk2Code(err) != "PreconditionFailed" {
			t.Errorf("If-Match: %v", err)
		}
		if ok, err := c.IsObjectExist(ctx, "b-home", "nothing"); ok || err != nil {
			t.Errorf("a missing object: %v, %v", ok, err)
		}
		if _, err := c.HeadObject(ctx, &ossv2.HeadObjectRequest{Bucket: homeBucket, Key: ossv2.Ptr("nothing")}); sdk2Code(err) != "NoSuchKey" {
			t.Errorf("a missing object: %v", err)
		}
		cp, err := c.CopyObject(ctx, &ossv2.CopyObjectRequest{Bucket: homeBucket, Key: ossv2.Ptr("copy"), SourceKey: key})
		if err != nil || *cp.ETag != *put.ETag {
			t.Errorf("copy: %+v, %v", cp, err)
		}
		if _, err := c.PutObject(ctx, &ossv2.PutObjectRequest{Bucket: homeBucket, Key: key, Body: strings.NewReader(""), ForbidOverwrite: ossv2.Ptr("true")}); sdk2Code(err) != "FileAlreadyExists" {
			t.Errorf("overwrite: %v", err)
		}
		if tags, err := c.GetObjectTagging(ctx, &ossv2.GetObjectTaggingRequest{Bucket: homeBucket, Key: key}); err != nil || len(tags.Tags) != 2 || *tags.Tags[1].Value != "d e" {
			t.Errorf("%+v, %v", tags, err)
		}
		if _, err := c.DeleteObject(ctx, &ossv2.DeleteObjectRequest{Bucket: homeBucket, Key: key}); err != nil || !slices.Equal(s.Keys("b-home"), []string{"copy"}) {
			t.Errorf("delete: %v, left %v", err, s.Keys("b-home"))
		}
	})
}

func TestIndependentClientMultipartAndPartCopy(t *testing.T) {
	sdk2Matrix(t, func(ctx context.Context, t *testing.T, s *testOSS, c *ossv2.Client) {
		base := noise(12, 1_000_000)
		src := ossv2.Ptr("base +é")
		put, err := c.PutObject(ctx, &ossv2.PutObjectRequest{Bucket: homeBucket, Key: src, Body: bytes.NewReader(base)})
		if err != nil {
			t.Fatal(err)
		}
		key := ossv2.Ptr(oddKey)
		up, err := c.InitiateMultipartUpload(ctx, &ossv2.InitiateMultipartUploadRequest{Bucket: homeBucket, Key: key})
		if err != nil || *up.Key != oddKey {
			t.Fatalf("%+v, %v", up, err)
		}
		head, tail := noise(13, 102_400), noise(14, 10)
		p1, err := c.UploadPart(ctx, &ossv2.UploadPartRequest{Bucket: homeBucket, Key: key, UploadId: up.UploadId, PartNumber: 1, Body: bytes.NewReader(head)})
		if err != nil || *p1.HashCRC64 != strconv.FormatUint(crcOf(head), 10) {
			t.Fatalf("%+v, %v", p1, err)
		}
		cp, err := c.UploadPartCopy(ctx, &ossv2.UploadPartCopyRequest{Bucket: homeBucket, Key: key, UploadId: up.UploadId, PartNumber: 2, SourceKey: src,
			Range: ossv2.Ptr("bytes=102400-899999"), IfMatch: put.ETag})
		if err != nil || cp.Headers.Get("Content-Range") != "bytes 102400-899999/1000000" {
			t.Fatalf("%+v, %v", cp, err)
		}
		_, err = c.UploadPartCopy(ctx, &ossv2.UploadPartCopyRequest{Bucket: homeBucket, Key: key, UploadId: up.UploadId, PartNumber: 3, SourceKey: src, IfMatch: ossv2.Ptr(`"other"`)})
		if sdk2Code(err) != "PreconditionFailed" {
			t.Errorf("other source: %v", err)
		}
		p3, err := c.UploadPart(ctx, &ossv2.UploadPartRequest{Bucket: homeBucket, Key: key, UploadId: up.UploadId, PartNumber: 3, Body: bytes.NewReader(tail)})
		if err != nil {
			t.Fatal(err)
		}
		var sizes []int64
		for p := c.NewListPartsPaginator(&ossv2.ListPartsRequest{Bucket: homeBucket, Key: key, UploadId: up.UploadId, MaxParts: 2}); p.HasNext(); {
			page, err := p.NextPage(ctx)
			if err != nil {
				t.Fatal(err)
			}
			for _, part := range page.Parts {
				sizes = append(sizes, part.Size)
			}
		}
		if !slices.Equal(sizes, []int64{102_400, 797_600, 10}) {
			t.Errorf("sizes of parts: %v", sizes)
		}
		complete := &ossv2.CompleteMultipartUploadRequest{Bucket: homeBucket, Key: key, UploadId: up.UploadId, CompleteMultipartUpload: &ossv2.CompleteMultipartUpload{
			Parts: []ossv2.UploadPart{{PartNumber: 1, ETag: p1.ETag}, {PartNumber: 2, ETag: cp.ETag}, {PartNumber: 3, ETag: p3.ETag}}}}
		want := slices.Concat(head, base[102_400:900_000], tail)
		done, err := c.CompleteMultipartUpload(ctx, complete)
		if err != nil || *done.HashCRC64 != strconv.FormatUint(crcOf(want), 10) || *done.Key != oddKey {
			t.Fatalf("%+v, %v", done, err)
		}
		if _, got := get(ctx, t, c, &ossv2.GetObjectRequest{Bucket: homeBucket, Key: key}); !bytes.Equal(got, want) {
			t.Error("other bytes came back")
		}
		if _, got := get(ctx, t, c, &ossv2.GetObjectRequest{Bucket: homeBucket, Key: key, Range: ossv2.Ptr("bytes=102000-103000")}); !bytes.Equal(got, want[102_000:103_001]) {
			t.Error("other bytes across parts came back")
		}
		if _, err := c.CompleteMultipartUpload(ctx, complete); sdk2Code(err) != "NoSuchUpload" {
			t.Errorf("complete again: %v", err)
		}
	})
}

func TestIndependentClientUploaderAndDownloader(t *testing.T) {
	s := newTestOSS(t)
	c := sdk2(s, testAccount, ossv2.SignatureVersionV4, s.url)
	body := noise(15, 1_500_000)
	u := c.NewUploader(func(o *ossv2.UploaderOptions) { o.PartSize, o.ParallelNum = 200<<10, 3 })
	if _, err := u.UploadFrom(t.Context(), &ossv2.PutObjectRequest{Bucket: homeBucket, Key: ossv2.Ptr("k")}, bytes.NewReader(body)); err != nil {
		t.Fatal(err)
	}
	f, err := c.OpenFile(t.Context(), "b-home", "k")
	if got := read(t, io.NopCloser(f), err); !bytes.Equal(got, body) {
		t.Error("other bytes came back")
	}
	if n := s.opt.audit.counters(); n.Uploaded != int64(len(body)) || n.Requests["UploadPart"] != 8 {
		t.Errorf("%+v", n)
	}
}

func TestIndependentClientLists(t *testing.T) {
	sdk2Matrix(t, func(ctx context.Context, t *testing.T, s *testOSS, c *ossv2.Client) {
		keys := []string{"a", "a b/1", "a b/2", "a+/1", "b", "é/1"}
		for _, k := range keys {
			if _, err := c.PutObject(ctx, &ossv2.PutObjectRequest{Bucket: homeBucket, Key: &k, Body: strings.NewReader(k)}); err != nil {
				t.Fatal(err)
			}
		}
		var got, prefixes []string
		for p := c.NewListObjectsV2Paginator(&ossv2.ListObjectsV2Request{Bucket: homeBucket, Delimiter: ossv2.Ptr("/"), MaxKeys: 1}); p.HasNext(); {
			page, err := p.NextPage(ctx)
			if err != nil {
				t.Fatal(err)
			}
			for _, o := range page.Contents {
				got = append(got, *o.Key)
			}
			for _, o := range page.CommonPrefixes {
				prefixes = append(prefixes, *o.Prefix)
			}
		}
		if !slices.Equal(got, []string{"a", "b"}) || !slices.Equal(prefixes, []string{"a b/", "a+/", "é/"}) {
			t.Errorf("objects %q, prefixes %q", got, prefixes)
		}
		got = nil
		for p := c.NewListObjectsPaginator(&ossv2.ListObjectsRequest{Bucket: homeBucket, Prefix: ossv2.Ptr("a"), MaxKeys: 3}); p.HasNext(); {
			page, err := p.NextPage(ctx)
			if err != nil {
				t.Fatal(err)
			}
			for _, o := range page.Contents {
				got = append(got, *o.Key)
			}
		}
		if !slices.Equal(got, keys[:4]) {
			t.Errorf("objects %q", got)
		}
		var uploads []string
		for _, k := range []string{"x/1", "x/1", "x y/2", "other"} {
			if _, err := c.InitiateMultipartUpload(ctx, &ossv2.InitiateMultipartUploadRequest{Bucket: homeBucket, Key: &k}); err != nil {
				t.Fatal(err)
			}
		}
		for p := c.NewListMultipartUploadsPaginator(&ossv2.ListMultipartUploadsRequest{Bucket: homeBucket, Prefix: ossv2.Ptr("x"), MaxUploads: 1}); p.HasNext(); {
			page, err := p.NextPage(ctx)
			if err != nil {
				t.Fatal(err)
			}
			for _, u := range page.Uploads {
				uploads = append(uploads, *u.Key)
			}
		}
		if !slices.Equal(uploads, []string{"x y/2", "x/1", "x/1"}) {
			t.Errorf("uploads %q", uploads)
		}
		if all := s.Uploads("b-home"); len(all) != 4 {
			t.Errorf("uploads %q", all)
		}
		for p := c.NewListBucketsPaginator(&ossv2.ListBucketsRequest{MaxKeys: 1}); p.HasNext(); {
			if page, err := p.NextPage(ctx); err != nil || len(page.Buckets) != 1 {
				t.Fatalf("%+v, %v", page, err)
			}
		}
		info, err := c.GetBucketInfo(ctx, &ossv2.GetBucketInfoRequest{Bucket: homeBucket})
		if err != nil || *info.BucketInfo.Location != "oss-cn-hangzhou" || *info.BucketInfo.StorageClass != "Standard" || *info.BucketInfo.IntranetEndpoint != "oss-cn-hangzhou-internal.aliyuncs.com" {
			t.Errorf("%+v, %v", info, err)
		}
		regions, err := c.DescribeRegions(ctx, &ossv2.DescribeRegionsRequest{Regions: ossv2.Ptr("oss-cn-shanghai")})
		if err != nil || len(regions.RegionInfoList.RegionInfos) != 1 || *regions.RegionInfoList.RegionInfos[0].Region != "oss-cn-shanghai" {
			t.Errorf("%+v, %v", regions, err)
		}
	})
}

func TestIndependentClientVersions(t *testing.T) {
	sdk2Matrix(t, func(ctx context.Context, t *testing.T, s *testOSS, c *ossv2.Client) {
		bucket, key := ossv2.Ptr("b-versions"), ossv2.Ptr("k")
		if err := s.CreateBucket(*bucket, "", Versioned()); err != nil {
			t.Fatal(err)
		}
		var ids []string
		for _, body := range []string{"one", "two"} {
			r, err := c.PutObject(ctx, &ossv2.PutObjectRequest{Bucket: bucket, Key: key, Body: strings.NewReader(body), ForbidOverwrite: ossv2.Ptr("true")})
			if err != nil || r.VersionId == nil {
				t.Fatalf("%+v, %v", r, err)
			}
			ids = append(ids, *r.VersionId)
		}
		if _, got := get(ctx, t, c, &ossv2.GetObjectRequest{Bucket: bucket, Key: key, VersionId: &ids[0]}); string(got) != "one" {
			t.Errorf("%q", got)
		}
		del, err := c.DeleteObject(ctx, &ossv2.DeleteObjectRequest{Bucket: bucket, Key: key})
		if err != nil || !del.DeleteMarker {
			t.Errorf("%+v, %v", del, err)
		}
		if _, err := c.GetObject(ctx, &ossv2.GetObjectRequest{Bucket: bucket, Key: key}); sdk2Code(err) != "NoSuchKey" {
			t.Errorf("a deleted object: %v", err)
		}
		var listed []string
		markers := 0
		for p := c.NewListObjectVersionsPaginator(&ossv2.ListObjectVersionsRequest{Bucket: bucket, MaxKeys: 1}); p.HasNext(); {
			page, err := p.NextPage(ctx)
			if err != nil {
				t.Fatal(err)
			}
			for _, v := range page.ObjectVersions {
				listed = append(listed, *v.VersionId)
			}
			markers += len(page.ObjectDeleteMarkers)
		}
		if !slices.Equal(listed, []string{ids[1], ids[0]}) || markers != 1 {
			t.Errorf("versions %v, want %v; %d markers", listed, ids, markers)
		}
		if _, err := c.DeleteObject(ctx, &ossv2.DeleteObjectRequest{Bucket: bucket, Key: key, VersionId: del.VersionId}); err != nil {
			t.Error(err)
		}
		if _, got := get(ctx, t, c, &ossv2.GetObjectRequest{Bucket: bucket, Key: key}); string(got) != "two" {
			t.Errorf("%q", got)
		}
		if _, err := c.GetObject(ctx, &ossv2.GetObjectRequest{Bucket: bucket, Key: key, VersionId: ossv2.Ptr("none")}); sdk2Code(err) != "NoSuchVersion" {
			t.Errorf("%v", err)
		}
	})
}

func TestIndependentClientPresigned(t *testing.T) {
	sdk2Matrix(t, func(ctx context.Context, t *testing.T, s *testOSS, c *ossv2.Client) {
		p, err := c.Presign(ctx, &ossv2.PutObjectRequest{Bucket: homeBucket, Key: ossv2.Ptr(oddKey)}, ossv2.PresignExpires(time.Minute))
		if err != nil {
			t.Fatal(err)
		}
		req, err := http.NewRequest(p.Method, p.URL, strings.NewReader("presigned"))
		if err != nil {
			t.Fatal(err)
		}
		for k, v := range p.SignedHeaders {
			req.Header.Set(k, v)
		}
		r, err := s.send(req)
		if err != nil {
			t.Fatal(err)
		}
		r.want(t, 200, "")
		if _, got := get(ctx, t, c, &ossv2.GetObjectRequest{Bucket: homeBucket, Key: ossv2.Ptr(oddKey)}); string(got) != "presigned" {
			t.Errorf("%q", got)
		}
		req, err = http.NewRequest(http.MethodGet, p.URL, nil) // another method than the signed one
		if err != nil {
			t.Fatal(err)
		}
		if r, err = s.send(req); err != nil {
			t.Fatal(err)
		}
		r.want(t, 403, "SignatureDoesNotMatch")
	})
}

func TestIndependentClientWrongKeysAreRefused(t *testing.T) {
	s := newTestOSS(t)
	wrong := testAccount
	wrong.Secret += "x"
	unknown := testAccount
	unknown.AccessKeyID += "x"
	noToken := testSession
	noToken.SecurityToken = ""
	for _, v := range []ossv2.SignatureVersionType{ossv2.SignatureVersionV1, ossv2.SignatureVersionV4} {
		for a, want := range map[Account]string{wrong: "SignatureDoesNotMatch", unknown: "InvalidAccessKeyId", noToken: "InvalidSecurityToken"} {
			c := sdk2(s, a, v, s.url)
			_, err := c.PutObject(t.Context(), &ossv2.PutObjectRequest{Bucket: homeBucket, Key: ossv2.Ptr("k"), Body: strings.NewReader("x")})
			if sdk2Code(err) != want {
				t.Errorf("version %v, %s: %v, want %s", v, a.AccessKeyID, err, want)
			}
		}
	}
	if keys := s.Keys("b-home"); len(keys) != 0 {
		t.Errorf("refused requests had an effect: %v", keys)
	}
}
