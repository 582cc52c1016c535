package sandbox

import (
	"bytes"
	"errors"
	"hash/crc64"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"

	ossv1 "github.com/aliyun/aliyun-oss-go-sdk/oss"
)

// oddKey has what clients and servers disagree about.
const oddKey = "dir/a b+c%2F&=?#~*'é漢.qcow2"

// sdk1 is the official SDK's bucket b-home.
func sdk1(t *testing.T, s *testOSS, a Account, endpoint string, opts ...ossv1.ClientOption) *ossv1.Bucket {
	t.Helper()
	opts = append(opts, ossv1.Region(DefaultRegion), ossv1.SecurityToken(a.SecurityToken), ossv1.HTTPClient(s.client))
	c, err := ossv1.New(endpoint, a.AccessKeyID, a.Secret, opts...)
	if err != nil {
		t.Fatal(err)
	}
	b, err := c.Bucket("b-home")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// sdk1Matrix runs a test for each signature, style of address, account and kind of store.
func sdk1Matrix(t *testing.T, f func(t *testing.T, s *testOSS, b *ossv1.Bucket)) {
	for _, tc := range []struct {
		name     string
		version  ossv1.AuthVersionType
		account  Account
		endpoint string // "" is the listener's, path style
		disk     bool
	}{
		{"V1 path", ossv1.AuthV1, testAccount, "", false},
		{"V1 host token disk", ossv1.AuthV1, testSession, "http://oss-cn-hangzhou.example", true},
		{"V4 path token disk", ossv1.AuthV4, testSession, "", true},
		{"V4 host", ossv1.AuthV4, testAccount, "http://oss-cn-hangzhou-internal.example", false},
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
			f(t, s, sdk1(t, s, tc.account, endpoint, ossv1.AuthVersion(tc.version)))
		})
	}
}

func read(t *testing.T, r io.ReadCloser, err error) []byte {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func sdk1Code(err error) string {
	var e ossv1.ServiceError
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

func TestOfficialSDKObjects(t *testing.T) {
	sdk1Matrix(t, func(t *testing.T, s *testOSS, b *ossv1.Bucket) {
		body := noise(1, 700_000)
		if err := b.PutObject(oddKey, bytes.NewReader(body), ossv1.Meta("Build", "7"), ossv1.ContentType("application/x-qcow2"),
			ossv1.ServerSideEncryption("AES256"), ossv1.SetTagging(ossv1.Tagging{Tags: []ossv1.Tag{{Key: "a b", Value: "c&d"}}})); err != nil {
			t.Fatal(err)
		}
		r, err := b.GetObject(oddKey)
		if got := read(t, r, err); !bytes.Equal(got, body) {
			t.Error("other bytes came back")
		}
		r, err = b.GetObject(oddKey, ossv1.Range(100, 300_000))
		if got := read(t, r, err); !bytes.Equal(got, body[100:300_001]) {
			t.Error("other bytes of a range came back")
		}
		h, err := b.GetObjectDetailedMeta(oddKey)
		if err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string]string{"Content-Length": "700000", "Content-Type": "application/x-qcow2", "X-Oss-Meta-Build": "7",
			"X-Oss-Server-Side-Encryption": "AES256", "X-Oss-Tagging-Count": "1", "X-Oss-Object-Type": "Normal", "X-Oss-Storage-Class": "Standard"} {
			if h.Get(name) != want {
				t.Errorf("%s: %q, want %q", name, h.Get(name), want)
			}
		}
		st, err := s.stat("b-home", oddKey)
		if err != nil || h.Get(headerCRC64) != strconv.FormatUint(st.CRC64, 10) || h.Get("ETag") != `"`+st.ETag+`"` || st.Size != 700_000 {
			t.Errorf("stat %+v, %v; head %v", st, err, h)
		}
		tags, err := b.GetObjectTagging(oddKey)
		if err != nil || len(tags.Tags) != 1 || tags.Tags[0].Key != "a b" || tags.Tags[0].Value != "c&d" {
			t.Errorf("tags %v, %v", tags, err)
		}
		if err := b.PutObject(oddKey, strings.NewReader("x"), ossv1.ForbidOverWrite(true)); sdk1Code(err) != "FileAlreadyExists" {
			t.Errorf("overwrite: %v", err)
		}
		if _, err := b.CopyObject(oddKey, "copy"); err != nil {
			t.Error(err)
		}
		if h, err := b.GetObjectDetailedMeta("copy"); err != nil || h.Get("X-Oss-Meta-Build") != "7" {
			t.Errorf("copy: %v, %v", h, err)
		}
		if m, err := b.GetObjectMeta("copy"); err != nil || m.Get("Content-Length") != "700000" {
			t.Errorf("meta: %v, %v", m, err)
		}
		if ok, err := b.IsObjectExist("nothing"); ok || err != nil {
			t.Errorf("a missing object: %v, %v", ok, err)
		}
		if _, err := b.GetObject("nothing"); sdk1Code(err) != "NoSuchKey" {
			t.Errorf("a missing object: %v", err)
		}
		for _, method := range []ossv1.HTTPMethod{ossv1.HTTPPut, ossv1.HTTPGet} {
			u, err := b.SignURL("signed", method, 60)
			if err != nil {
				t.Fatal(err)
			}
			if method == ossv1.HTTPPut {
				err = b.PutObjectWithURL(u, strings.NewReader("signed"))
			} else {
				r, e := b.GetObjectWithURL(u)
				if got := read(t, r, e); string(got) != "signed" {
					t.Errorf("%q", got)
				}
			}
			if err != nil {
				t.Error(err)
			}
		}
		if n, err := b.AppendObject("log", strings.NewReader("abc"), 0); err != nil || n != 3 {
			t.Errorf("append: %d, %v", n, err)
		}
		if _, err := b.AppendObject("log", strings.NewReader("d"), 5); sdk1Code(err) != "PositionNotEqualToLength" {
			t.Errorf("append: %v", err)
		}
		del, err := b.DeleteObjects([]string{oddKey, "copy", "signed", "log", "nothing"})
		if err != nil || len(del.DeletedObjects) != 5 || del.DeletedObjects[0] != oddKey || len(s.Keys("b-home")) != 0 {
			t.Errorf("delete: %v, %v", del, err)
		}
	})
}

func TestOfficialSDKMultipart(t *testing.T) {
	sdk1Matrix(t, func(t *testing.T, s *testOSS, b *ossv1.Bucket) {
		base := noise(2, 900_000)
		if err := b.PutObject("base", bytes.NewReader(base)); err != nil {
			t.Fatal(err)
		}
		up, err := b.InitiateMultipartUpload(oddKey)
		if err != nil || up.Key != oddKey || up.Bucket != "b-home" {
			t.Fatalf("%+v, %v", up, err)
		}
		head, tail := noise(3, 150_000), noise(4, 999)
		if _, err := b.UploadPart(up, bytes.NewReader(tail), int64(len(tail)), 1); err != nil { // replaced below
			t.Fatal(err)
		}
		p1, err := b.UploadPart(up, bytes.NewReader(head), int64(len(head)), 1)
		if err != nil {
			t.Fatal(err)
		}
		var h http.Header
		p2, err := b.UploadPartCopy(up, "b-home", "base", 150_000, 600_000, 2, ossv1.GetResponseHeader(&h))
		if err != nil || h.Get("Content-Range") != "bytes 150000-749999/900000" {
			t.Fatalf("%v, Content-Range %q", err, h.Get("Content-Range"))
		}
		p9, err := b.UploadPart(up, bytes.NewReader(tail), int64(len(tail)), 9)
		if err != nil {
			t.Fatal(err)
		}
		var nums []int
		for marker := 0; ; {
			l, err := b.ListUploadedParts(up, ossv1.MaxParts(1), ossv1.PartNumberMarker(marker))
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range l.UploadedParts {
				nums = append(nums, p.PartNumber)
			}
			if !l.IsTruncated {
				break
			}
			if marker, err = strconv.Atoi(l.NextPartNumberMarker); err != nil {
				t.Fatal(err)
			}
		}
		if !slices.Equal(nums, []int{1, 2, 9}) {
			t.Errorf("parts %v", nums)
		}
		if l, err := b.ListMultipartUploads(ossv1.Prefix("dir/")); err != nil || len(l.Uploads) != 1 || l.Uploads[0].Key != oddKey || l.Uploads[0].UploadID != up.UploadID {
			t.Errorf("uploads %+v, %v", l, err)
		}
		if _, err := b.CompleteMultipartUpload(up, []ossv1.UploadPart{p1, p2, p9}); err != nil {
			t.Fatal(err)
		}
		want := slices.Concat(head, base[150_000:750_000], tail)
		r, err := b.GetObject(oddKey)
		if got := read(t, r, err); !bytes.Equal(got, want) {
			t.Error("other bytes came back")
		}
		if st, err := s.stat("b-home", oddKey); err != nil || st.CRC64 != crcOf(want) {
			t.Errorf("%+v, %v; want CRC %d", st, err, crcOf(want))
		}
		if _, err := b.CompleteMultipartUpload(up, []ossv1.UploadPart{p1, p2, p9}); sdk1Code(err) != "NoSuchUpload" {
			t.Errorf("complete again: %v", err)
		}
		gone, err := b.InitiateMultipartUpload("gone")
		if err != nil {
			t.Fatal(err)
		}
		if err := b.AbortMultipartUpload(gone); err != nil {
			t.Error(err)
		}
		if err := b.AbortMultipartUpload(gone); sdk1Code(err) != "NoSuchUpload" {
			t.Errorf("abort again: %v", err)
		}
		if u := s.Uploads("b-home"); len(u) != 0 {
			t.Errorf("uploads left: %v", u)
		}
	})
}

func crcOf(b []byte) uint64 { return crc64.Checksum(b, crcTable) }

func TestOfficialSDKLists(t *testing.T) {
	sdk1Matrix(t, func(t *testing.T, s *testOSS, b *ossv1.Bucket) {
		keys := []string{"a", "a b/1", "a b/2", "b", "z", "é/1"}
		for _, k := range keys {
			if err := b.PutObject(k, strings.NewReader(k)); err != nil {
				t.Fatal(err)
			}
		}
		var got, prefixes []string
		for marker := ""; ; {
			l, err := b.ListObjects(ossv1.MaxKeys(2), ossv1.Delimiter("/"), ossv1.Marker(marker))
			if err != nil {
				t.Fatal(err)
			}
			for _, o := range l.Objects {
				got = append(got, o.Key)
			}
			prefixes = append(prefixes, l.CommonPrefixes...)
			if !l.IsTruncated {
				break
			}
			marker = l.NextMarker
		}
		if !slices.Equal(got, []string{"a", "b", "z"}) || !slices.Equal(prefixes, []string{"a b/", "é/"}) {
			t.Errorf("objects %q, prefixes %q", got, prefixes)
		}
		got = nil
		for token := ""; ; {
			l, err := b.ListObjectsV2(ossv1.MaxKeys(2), ossv1.ContinuationToken(token))
			if err != nil {
				t.Fatal(err)
			}
			for _, o := range l.Objects {
				got = append(got, o.Key)
			}
			if !l.IsTruncated {
				break
			}
			token = l.NextContinuationToken
		}
		if !slices.Equal(got, keys) || !slices.Equal(s.Keys("b-home"), keys) {
			t.Errorf("objects %q", got)
		}
	})
}

func TestOfficialSDKBuckets(t *testing.T) {
	sdk1Matrix(t, func(t *testing.T, s *testOSS, b *ossv1.Bucket) {
		c := b.Client
		if err := c.CreateBucket("b-new", ossv1.StorageClass(ossv1.StorageIA)); err != nil {
			t.Fatal(err)
		}
		info, err := c.GetBucketInfo("b-new")
		if err != nil || info.BucketInfo.Location != "oss-cn-hangzhou" || info.BucketInfo.StorageClass != "IA" || info.BucketInfo.ACL != "private" ||
			info.BucketInfo.SseRule.SSEAlgorithm != "" && info.BucketInfo.SseRule.SSEAlgorithm != "None" {
			t.Errorf("%+v, %v", info, err)
		}
		if loc, err := c.GetBucketLocation("b-new"); err != nil || loc != "oss-cn-hangzhou" {
			t.Errorf("location %q, %v", loc, err)
		}
		l, err := c.ListBuckets(ossv1.Prefix("b-"), ossv1.MaxKeys(2))
		if err != nil || len(l.Buckets) != 2 || !l.IsTruncated || l.Buckets[0].Name != "b-far" || l.Buckets[0].Location != "oss-eu-central-1" {
			t.Errorf("%+v, %v", l, err)
		}
		if err := c.SetBucketEncryption("b-new", ossv1.ServerEncryptionRule{SSEDefault: ossv1.SSEDefaultRule{SSEAlgorithm: "AES256"}}); err != nil {
			t.Error(err)
		}
		if e, err := c.GetBucketEncryption("b-new"); err != nil || e.SSEDefault.SSEAlgorithm != "AES256" {
			t.Errorf("%+v, %v", e, err)
		}
		if err := c.SetBucketVersioning("b-new", ossv1.VersioningConfig{Status: "Enabled"}); err != nil {
			t.Error(err)
		}
		if v, err := c.GetBucketVersioning("b-new"); err != nil || v.Status != "Enabled" {
			t.Errorf("%+v, %v", v, err)
		}
		days := ossv1.LifecycleAbortMultipartUpload{Days: 3}
		if err := c.SetBucketLifecycle("b-new", []ossv1.LifecycleRule{{ID: "r", Prefix: "p/", Status: "Enabled", AbortMultipartUpload: &days}}); err != nil {
			t.Error(err)
		}
		if r, err := c.GetBucketLifecycle("b-new"); err != nil || len(r.Rules) != 1 || r.Rules[0].AbortMultipartUpload.Days != 3 {
			t.Errorf("%+v, %v", r, err)
		}
		if err := c.CreateBucket("b-far"); sdk1Code(err) != "BucketAlreadyExists" {
			t.Errorf("a name that is taken: %v", err)
		}
		if err := b.PutObject("k", strings.NewReader("x")); err != nil {
			t.Fatal(err)
		}
		if err := c.DeleteBucket("b-home"); sdk1Code(err) != "BucketNotEmpty" {
			t.Errorf("delete a full bucket: %v", err)
		}
		if err := c.DeleteBucket("b-new"); err != nil {
			t.Error(err)
		}
		if _, err := c.GetBucketInfo("b-new"); sdk1Code(err) != "NoSuchBucket" {
			t.Errorf("a deleted bucket: %v", err)
		}
	})
}

func TestOfficialSDKWrongKeysAreRefused(t *testing.T) {
	s := newTestOSS(t)
	for _, v := range []ossv1.AuthVersionType{ossv1.AuthV1, ossv1.AuthV4} {
		wrong := testAccount
		wrong.Secret += "x"
		b := sdk1(t, s, wrong, s.url, ossv1.AuthVersion(v))
		if err := b.PutObject("k", strings.NewReader("x")); sdk1Code(err) != "SignatureDoesNotMatch" {
			t.Errorf("%v: %v", v, err)
		}
		u, err := b.SignURL("k", ossv1.HTTPGet, 60)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.GetObjectWithURL(u); sdk1Code(err) != "SignatureDoesNotMatch" {
			t.Errorf("%v, presigned: %v", v, err)
		}
	}
	b := sdk1(t, s, testAccount, s.url, ossv1.AuthVersion(ossv1.AuthV2))
	if err := b.PutObject("k", strings.NewReader("x")); sdk1Code(err) != "InvalidArgument" {
		t.Errorf("version 2: %v", err)
	}
	if keys := s.Keys("b-home"); len(keys) != 0 {
		t.Errorf("refused requests had an effect: %v", keys)
	}
}
