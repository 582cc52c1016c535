package alibaba

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"hash/crc64"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"remaster/internal/hint"
	"remaster/pkg/importer"
)

func store(t *testing.T, cfg Config) *Store {
	t.Helper()
	s, err := newClients(t, cfg).Store("")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

var obj = importer.Object{Bucket: "bucket", Key: "dir/a b+c.qcow2"}

func crcHeader(b []byte) string {
	return strconv.FormatUint(crc64.Checksum(b, crc64.MakeTable(crc64.ECMA)), 10)
}

func TestEndpointRules(t *testing.T) {
	for _, tc := range []struct {
		cfg            Config
		oss, info, ecs string
		sts            string
	}{
		{Config{}, "https://oss-cn-beijing.aliyuncs.com", "https://oss-cn-beijing.aliyuncs.com", "https://ecs.cn-beijing.aliyuncs.com", "https://sts.aliyuncs.com"},
		{Config{Internal: true}, "https://oss-cn-beijing-internal.aliyuncs.com", "https://oss-cn-beijing-internal.aliyuncs.com", "https://ecs.cn-beijing.aliyuncs.com", "https://sts.aliyuncs.com"},
		{Config{VPC: true}, "https://oss-cn-beijing-internal.aliyuncs.com", "https://oss-cn-beijing-internal.aliyuncs.com", "https://ecs-vpc.cn-beijing.aliyuncs.com", "https://sts-vpc.cn-beijing.aliyuncs.com"},
		{Config{Accelerate: true}, "https://oss-accelerate.aliyuncs.com", "https://oss-cn-beijing.aliyuncs.com", "https://ecs.cn-beijing.aliyuncs.com", "https://sts.aliyuncs.com"},
		{Config{OSSEndpoint: "oss.private:8443", ECSEndpoint: "http://10.0.0.1", STSEndpoint: "https://[::1]:9/"}, "https://oss.private:8443", "https://oss.private:8443", "http://10.0.0.1", "https://[::1]:9"},
	} {
		tc.cfg.Region, tc.cfg.NoMetadata = "cn-beijing", true
		c := newClients(t, tc.cfg)
		got := []string{c.ossEndpoint("cn-beijing", false).String(), c.ossEndpoint("cn-beijing", true).String(), c.ecsEndpoint("cn-beijing").String(), c.stsEndpoint("", false).String()}
		if want := []string{tc.oss, tc.info, tc.ecs, tc.sts}; !slices.Equal(got, want) {
			t.Errorf("%+v: %v, want %v", tc.cfg, got, want)
		}
	}
	c := newClients(t, Config{NoMetadata: true})
	if got := c.ecsEndpoint("cn-hangzhou-finance").host; got != "ecs.aliyuncs.com" {
		t.Errorf("a region with a host of its own form: %s", got)
	}
	if _, err := c.Store(""); err == nil || len(hint.Of(err)) == 0 {
		t.Errorf("store without a region: %v", err)
	}
	for host, want := range map[string]string{"oss-cn-hangzhou.aliyuncs.com": "cn-hangzhou", "oss-cn-hangzhou-internal.aliyuncs.com": "cn-hangzhou",
		"oss-accelerate.aliyuncs.com": "", "evil.example": "", "oss-a.b.aliyuncs.com": ""} {
		if got := regionOfEndpoint(host); got != want {
			t.Errorf("%s is in %q", host, got)
		}
	}
}

// TestBucketInHostAndPath looks at what goes over a connection for each style of address.
func TestBucketInHostAndPath(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNoContent) })
	to := map[string]string{"oss.private:80": s.addr(), "bucket.oss.private:80": s.addr()}
	for _, tc := range []struct {
		endpoint  string
		pathStyle bool
		host, uri string
	}{
		{s.URL, false, s.addr(), "/bucket/dir%2Fa%20b%2Bc.qcow2"},
		{"http://oss.private", false, "bucket.oss.private", "/dir%2Fa%20b%2Bc.qcow2"},
		{"http://oss.private", true, "oss.private", "/bucket/dir%2Fa%20b%2Bc.qcow2"},
		{strings.Replace(s.URL, "127.0.0.1", "localhost", 1), false, strings.Replace(s.addr(), "127.0.0.1", "localhost", 1), "/bucket/dir%2Fa%20b%2Bc.qcow2"},
	} {
		cfg := staticConfig(s)
		cfg.OSSEndpoint, cfg.PathStyle, cfg.Dial = tc.endpoint, tc.pathStyle, loopbackDial(t, to)
		if err := store(t, cfg).Delete(t.Context(), obj); err != nil {
			t.Fatal(err)
		}
		r := s.last(t)
		if r.Host != tc.host || r.RequestURI != tc.uri {
			t.Errorf("%+v: %s%s", tc, r.Host, r.RequestURI)
		}
		if a := r.Header.Get("Authorization"); !strings.HasPrefix(a, "OSS4-HMAC-SHA256 Credential="+testID+"/") || !strings.Contains(a, "/cn-beijing/oss/aliyun_v4_request,") {
			t.Errorf("not signed by V4: %s", a)
		}
		if r.Header.Get("X-Oss-Security-Token") != testToken {
			t.Error("no token")
		}
	}
}

func TestHTTPSIsTheDefaultAndTakesACAFile(t *testing.T) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNoContent) }))
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // it tells of the client that does not trust it
	s.StartTLS()
	defer s.Close()
	cfg := staticConfig(&server{Server: s})
	cfg.OSSEndpoint = s.Listener.Addr().String() // no scheme
	cfg.ECSEndpoint, cfg.STSEndpoint = cfg.OSSEndpoint, cfg.OSSEndpoint
	var unknown x509.UnknownAuthorityError
	if err := store(t, cfg).Delete(t.Context(), obj); !errors.As(err, &unknown) {
		t.Errorf("an authority that is not trusted: %v", err)
	}
	cfg.CAFile = filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(cfg.CAFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	c := newClients(t, cfg)
	st, _ := c.Store("")
	if err := st.Delete(t.Context(), obj); err != nil {
		t.Error(err)
	}
	// The SDK of ECS would go by HTTP.
	if err := c.ECS().CancelTask(t.Context(), "", "t"); err != nil {
		t.Error(err)
	}
}

func TestDetachedBodyIsNotRead(t *testing.T) {
	r := strings.NewReader("0123456789")
	d := &detachable{r: r}
	if n, err := d.Read(make([]byte, 4)); n != 4 || err != nil {
		t.Fatal(n, err)
	}
	d.detach()
	if n, err := d.Read(make([]byte, 4)); n != 0 || err == nil || r.Len() != 6 {
		t.Errorf("read %d, %v; %d left", n, err, r.Len())
	}
}

func TestReadAcceptsJustTheRange(t *testing.T) {
	const content = "0123456789"
	for _, tc := range []struct {
		name        string
		contentOf   string // Content-Range
		body        string
		status      int
		want        string // error
		wantReading string
	}{
		{"right", "bytes 2-5/10", "2345", 206, "", ""},
		{"right, size unknown", "bytes 2-5/*", "2345", 206, "", ""},
		{"the whole object", "", content, 200, "asked for bytes 2-5", ""},
		{"another range", "bytes 3-6/10", "3456", 206, "asked for bytes 2-5", ""},
		{"a longer one", "bytes 2-6/10", "23456", 206, "asked for bytes 2-5", ""},
		{"past the end", "bytes 2-5/4", "2345", 206, "asked for bytes 2-5", ""},
		{"nonsense", "bytes 2-5/x", "2345", 206, "asked for bytes 2-5", ""},
		{"too short", "bytes 2-5/10", "23", 206, "", "unexpected EOF"},
		{"too long", "bytes 2-5/10", "23456789", 206, "", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := serve(t, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Range", tc.contentOf)
				w.WriteHeader(tc.status)
				io.WriteString(w, tc.body)
			})
			r, err := store(t, staticConfig(s)).Read(t.Context(), obj, `"E"`, 2, 4)
			req := s.last(t)
			for name, want := range map[string]string{"Range": "bytes=2-5", "X-Oss-Range-Behavior": "standard", "If-Match": `"E"`, "Accept-Encoding": "identity"} { //nolint:misspell // the header's name
				if req.Header.Get(name) != want {
					t.Errorf("%s: %q", name, req.Header.Get(name))
				}
			}
			if tc.want != "" {
				if !errors.Is(err, importer.ErrRange) || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("error %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			b, err := io.ReadAll(r)
			if tc.wantReading != "" {
				if err == nil || !strings.Contains(err.Error(), tc.wantReading) || !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Errorf("reading: %q, %v", b, err)
				}
			} else if err != nil || string(b) != "2345" {
				t.Errorf("reading: %q, %v", b, err)
			}
		})
	}
}

func TestCopyPartAcceptsJustTheRange(t *testing.T) {
	for contentRange, ok := range map[string]bool{"bytes 100-299/1000": true, "": false, "bytes 0-999/1000": false} {
		s := serve(t, func(w http.ResponseWriter, r *http.Request) {
			if contentRange != "" {
				w.Header().Set("Content-Range", contentRange)
			}
			io.WriteString(w, `<CopyPartResult><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>&quot;AB&quot;</ETag></CopyPartResult>`)
		})
		src := importer.Object{Bucket: "base", Key: "a b/ü+&.qcow2", VersionID: "v/1"}
		p, err := store(t, staticConfig(s)).CopyPart(t.Context(), importer.Upload{Object: obj, ID: "U"}, 3, src, `"SRC"`, 100, 200)
		r := s.last(t)
		for name, want := range map[string]string{"X-Oss-Copy-Source": "/base/a%20b%2F%C3%BC%2B%26.qcow2?versionId=v%2F1",
			"X-Oss-Copy-Source-Range": "bytes=100-299", "X-Oss-Copy-Source-If-Match": `"SRC"`} {
			if r.Header.Get(name) != want {
				t.Errorf("%s: %q", name, r.Header.Get(name))
			}
		}
		if q := r.URL.Query(); r.Method != http.MethodPut || q.Get("partNumber") != "3" || q.Get("uploadId") != "U" {
			t.Errorf("%s %v", r.Method, q)
		}
		if ok && (err != nil || p != importer.Part{Num: 3, Size: 200, ETag: `"AB"`}) || !ok && err == nil {
			t.Errorf("%q: %+v, %v", contentRange, p, err)
		}
	}
}

func TestUploadPartComparesTheCRC(t *testing.T) {
	body := []byte("some bytes of a part")
	for _, tc := range []struct {
		crc string
		has bool
		ok  bool
	}{{crcHeader(body), true, true}, {"", false, true}, {"12345", false, false}} {
		var got []byte
		s := serve(t, func(w http.ResponseWriter, r *http.Request) {
			got, _ = io.ReadAll(r.Body)
			w.Header().Set("ETag", `"P"`)
			if tc.crc != "" {
				w.Header().Set("X-Oss-Hash-Crc64ecma", tc.crc)
			}
		})
		r := bytes.NewReader(append([]byte("before"), body...))
		r.Seek(6, io.SeekStart)
		p, err := store(t, staticConfig(s)).UploadPart(t.Context(), importer.Upload{Object: obj, ID: "U"}, 1, r, int64(len(body)))
		if !tc.ok {
			if !errors.Is(err, importer.ErrChecksum) {
				t.Errorf("error %v", err)
			}
			continue
		}
		if err != nil || p.HasCRC64 != tc.has || p.ETag != `"P"` || p.Size != int64(len(body)) || !bytes.Equal(got, body) {
			t.Errorf("%+v, %v; sent %q", p, err, got)
		}
	}
}

// TestNobodyReadsTheBodyAfterUploadPart would be a race that the detector finds, and a
// read of what the caller has rewound.
func TestNobodyReadsTheBodyAfterUploadPart(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		// Slowly, until the client has had enough.
		for buf := make([]byte, 1<<16); ; time.Sleep(time.Millisecond) {
			if _, err := r.Body.Read(buf); err != nil {
				return
			}
		}
	})
	st := store(t, staticConfig(s))
	for range 20 {
		ctx, stop := context.WithTimeout(t.Context(), 5*time.Millisecond)
		body := bytes.NewReader(make([]byte, 64<<20))
		_, err := st.UploadPart(ctx, importer.Upload{Object: obj, ID: "U"}, 1, body, 64<<20)
		stop()
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("error %v", err)
		}
		body.Seek(0, io.SeekStart)
		time.Sleep(time.Millisecond)
		if body.Len() != 64<<20 {
			t.Fatal("read after the end")
		}
	}
}

func TestPutAndUploadOptions(t *testing.T) {
	var got []byte
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		got, _ = io.ReadAll(r.Body)
		w.Header().Set("ETag", `"E"`)
		w.Header().Set("X-Oss-Hash-Crc64ecma", crcHeader(got))
		if r.URL.Query().Has("uploads") {
			w.Header().Del("X-Oss-Hash-Crc64ecma")
			io.WriteString(w, `<InitiateMultipartUploadResult><Bucket>bucket</Bucket><Key>k</Key><UploadId>U1</UploadId></InitiateMultipartUploadResult>`)
		}
	})
	st := store(t, staticConfig(s))
	p := importer.PutOptions{ForbidOverwrite: true, Encryption: "KMS", KMSKeyID: "kid", StorageClass: "IA",
		Tags: map[string]string{"b": "2", "a": "x y&z"}, Meta: map[string]string{"sha256": "abc"}}
	check := func() {
		t.Helper()
		for name, want := range map[string]string{"X-Oss-Forbid-Overwrite": "true", "X-Oss-Server-Side-Encryption": "KMS",
			"X-Oss-Server-Side-Encryption-Key-Id": "kid", "X-Oss-Storage-Class": "IA", "X-Oss-Tagging": "a=x+y%26z&b=2", "X-Oss-Meta-Sha256": "abc"} {
			if v := s.last(t).Header.Get(name); v != want {
				t.Errorf("%s: %q, want %q", name, v, want)
			}
		}
	}
	info, err := st.Put(t.Context(), obj, []byte("body"), p)
	if err != nil || info.Size != 4 || info.ETag != `"E"` || !info.HasCRC64 || string(got) != "body" {
		t.Errorf("%+v, %v", info, err)
	}
	check()
	u, err := st.CreateUpload(t.Context(), obj, p)
	if err != nil || u.ID != "U1" || u.Object != obj {
		t.Errorf("%+v, %v", u, err)
	}
	check()
}

func TestHead(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		switch r.URL.Query().Get("versionId") {
		case "gone":
			h.Set("X-Oss-Err", base64.StdEncoding.EncodeToString([]byte(`<Error><Code>NoSuchVersion</Code><Message>gone</Message></Error>`)))
			w.WriteHeader(http.StatusNotFound)
			return
		case "silent":
			w.WriteHeader(http.StatusNotFound)
			return
		}
		h.Set("Content-Length", "123456789012")
		h.Set("ETag", "ABC") // some give it without quotes
		h.Set("X-Oss-Hash-Crc64ecma", "18446744073709551615")
		h.Set("X-Oss-Object-Type", "Multipart")
		h.Set("X-Oss-Storage-Class", "Archive")
		h.Set("X-Oss-Restore", `ongoing-request="false", expiry-date="Mon, 23 Nov 2026 00:00:00 GMT"`)
		h.Set("X-Oss-Meta-Content-Digest", "sha256:1")
		h.Set("Last-Modified", "Sun, 22 Nov 2026 10:00:00 GMT")
	})
	st := store(t, staticConfig(s))
	o := obj
	o.VersionID = "v1"
	info, err := st.Head(t.Context(), o)
	if err != nil || info.Size != 123456789012 || info.ETag != `"ABC"` || info.CRC64 != 1<<64-1 || !info.HasCRC64 || info.Type != "Multipart" ||
		info.StorageClass != "Archive" || !info.Restored || info.Meta["content-digest"] != "sha256:1" || info.Modified.Hour() != 10 || info.VersionID != "v1" {
		t.Errorf("%+v, %v", info, err)
	}
	for version, code := range map[string]string{"gone": "NoSuchVersion", "silent": "NoSuchKey"} {
		o.VersionID = version
		if _, err := st.Head(t.Context(), o); !isCode(err, code) {
			t.Errorf("%s: %v", version, err)
		}
	}
}

func TestListingsTurnThePages(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		switch {
		case q.Has("uploadId"):
			if q.Get("part-number-marker") == "" {
				io.WriteString(w, `<ListPartsResult><IsTruncated>true</IsTruncated><NextPartNumberMarker>2</NextPartNumberMarker>
					<Part><PartNumber>1</PartNumber><ETag>"A"</ETag><Size>5000000000</Size><HashCrc64ecma>7</HashCrc64ecma></Part>
					<Part><PartNumber>2</PartNumber><ETag>"B"</ETag><Size>9</Size></Part></ListPartsResult>`)
				return
			}
			io.WriteString(w, `<ListPartsResult><IsTruncated>false</IsTruncated><Part><PartNumber>5</PartNumber><ETag>"C"</ETag><Size>1</Size></Part></ListPartsResult>`)
		case q.Has("uploads"):
			if q.Get("key-marker") == "" {
				io.WriteString(w, `<ListMultipartUploadsResult><EncodingType>url</EncodingType><IsTruncated>true</IsTruncated><NextKeyMarker>p%2Fa</NextKeyMarker><NextUploadIdMarker>U1</NextUploadIdMarker>
					<Upload><Key>p%2Fa%20b</Key><UploadId>U1</UploadId><Initiated>2026-11-22T10:00:00.000Z</Initiated></Upload></ListMultipartUploadsResult>`)
				return
			}
			if q.Get("key-marker") != "p/a" || q.Get("upload-id-marker") != "U1" || q.Get("prefix") != "p/" {
				t.Errorf("query %v", q)
			}
			io.WriteString(w, `<ListMultipartUploadsResult><IsTruncated>false</IsTruncated><Upload><Key>p/z</Key><UploadId>U2</UploadId></Upload></ListMultipartUploadsResult>`)
		default:
			if q.Get("continuation-token") == "" {
				io.WriteString(w, `<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>next</NextContinuationToken>
					<Contents><Key>p%2F1</Key><Size>3</Size><ETag>"X"</ETag><LastModified>2026-11-22T10:00:00.000Z</LastModified></Contents></ListBucketResult>`)
				return
			}
			io.WriteString(w, `<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>p%2F2</Key></Contents></ListBucketResult>`)
		}
	})
	st := store(t, staticConfig(s))
	parts, err := st.ListParts(t.Context(), importer.Upload{Object: obj, ID: "U"})
	if err != nil || len(parts) != 3 || parts[0] != (importer.Part{Num: 1, Size: 5_000_000_000, ETag: `"A"`, CRC64: 7, HasCRC64: true}) || parts[1].HasCRC64 || parts[2].Num != 5 {
		t.Errorf("parts %+v, %v", parts, err)
	}
	uploads, err := st.ListUploads(t.Context(), "bucket", "p/")
	if err != nil || len(uploads) != 2 || uploads[0].Key != "p/a b" || uploads[0].Initiated.IsZero() || uploads[1].ID != "U2" {
		t.Errorf("uploads %+v, %v", uploads, err)
	}
	list, err := st.List(t.Context(), "bucket", "p/")
	if err != nil || len(list) != 2 || list[0].Key != "p/1" || list[0].ETag != `"X"` || list[1].Bucket != "bucket" {
		t.Errorf("objects %+v, %v", list, err)
	}
}

func TestListingsThatGoRoundEnd(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		switch {
		case q.Has("uploadId"):
			io.WriteString(w, `<ListPartsResult><IsTruncated>true</IsTruncated><Part><PartNumber>1</PartNumber></Part></ListPartsResult>`)
		case q.Has("uploads"):
			io.WriteString(w, `<ListMultipartUploadsResult><IsTruncated>true</IsTruncated><NextKeyMarker>a</NextKeyMarker></ListMultipartUploadsResult>`)
		default:
			io.WriteString(w, `<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>same</NextContinuationToken></ListBucketResult>`)
		}
	})
	st := store(t, staticConfig(s))
	_, err1 := st.ListParts(t.Context(), importer.Upload{Object: obj, ID: "U"})
	_, err2 := st.ListUploads(t.Context(), "bucket", "")
	_, err3 := st.List(t.Context(), "bucket", "")
	if err1 == nil || err2 == nil || err3 == nil {
		t.Errorf("%v; %v; %v", err1, err2, err3)
	}
}

func TestCompleteAndAbort(t *testing.T) {
	var body string
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		body = string(b)
		switch {
		case r.Method == http.MethodDelete:
			w.WriteHeader(http.StatusNotFound)
			io.WriteString(w, `<Error><Code>NoSuchUpload</Code><Message>gone</Message><RequestId>R</RequestId></Error>`)
		case r.Header.Get("X-Oss-Forbid-Overwrite") == "true":
			w.WriteHeader(http.StatusConflict)
			io.WriteString(w, `<Error><Code>FileAlreadyExists</Code><Message>there</Message></Error>`)
		default:
			w.Header().Set("X-Oss-Hash-Crc64ecma", "99")
			io.WriteString(w, `<CompleteMultipartUploadResult><ETag>"M-2"</ETag></CompleteMultipartUploadResult>`)
		}
	})
	st := store(t, staticConfig(s))
	u := importer.Upload{Object: obj, ID: "U"}
	parts := []importer.Part{{Num: 2, Size: 5, ETag: `"B"`}, {Num: 1, Size: 10, ETag: `"A"`}}
	info, err := st.Complete(t.Context(), u, parts, false)
	if err != nil || info.Size != 15 || info.ETag != `"M-2"` || info.CRC64 != 99 || !info.HasCRC64 || parts[0].Num != 2 {
		t.Errorf("%+v, %v, parts %v", info, err, parts)
	}
	if i, j := strings.Index(body, "<PartNumber>1<"), strings.Index(body, "<PartNumber>2<"); i < 0 || j < i {
		t.Errorf("parts out of order: %s", body)
	}
	if _, err := st.Complete(t.Context(), u, parts, true); !isCode(err, "FileAlreadyExists") {
		t.Errorf("over another: %v", err)
	}
	if err := st.Abort(t.Context(), u); err != nil {
		t.Errorf("abort of what is gone: %v", err)
	}
}

func TestBucketInAnotherRegionIsFound(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if !strings.Contains(r.Host, "oss-eu-central-1") {
			w.WriteHeader(http.StatusForbidden)
			io.WriteString(w, `<Error><Code>AccessDenied</Code><Message>The bucket you are attempting to access must be addressed using the specified endpoint.</Message><Endpoint>oss-eu-central-1.aliyuncs.com</Endpoint></Error>`)
			return
		}
		if !strings.Contains(r.Header.Get("Authorization"), "/eu-central-1/oss/") || r.URL.RawQuery != "bucketInfo" {
			t.Errorf("%s %s", r.URL, r.Header.Get("Authorization"))
		}
		io.WriteString(w, `<BucketInfo><Bucket><Name>bucket</Name><Location>oss-eu-central-1</Location><StorageClass>IA</StorageClass><Versioning>Enabled</Versioning>
			<ServerSideEncryptionRule><SSEAlgorithm>None</SSEAlgorithm></ServerSideEncryptionRule></Bucket></BucketInfo>`)
	})
	cfg := staticConfig(s)
	cfg.OSSEndpoint, cfg.Transport = "", redirectAll{s.addr()}
	for _, region := range []string{"cn-beijing", ""} {
		cfg.Region = region
		c := newClients(t, cfg)
		st, err := c.StoreOf(t.Context(), "bucket")
		if err != nil || st.Region() != "eu-central-1" {
			t.Fatalf("%v, %v", st, err)
		}
		info, err := st.BucketInfo(t.Context(), "bucket")
		if want := (importer.BucketInfo{Region: "eu-central-1", StorageClass: "IA", Versioning: true}); err != nil || info != want {
			t.Errorf("%+v, %v", info, err)
		}
		// Other requests tell where it is.
		st, _ = c.Store("cn-beijing")
		if _, err := st.List(t.Context(), "bucket", ""); !isCode(err, "AccessDenied") || !strings.Contains(strings.Join(hint.Of(err), ""), "eu-central-1") {
			t.Errorf("%v, hints %q", err, hint.Of(err))
		}
	}
}

// redirectAll sends every request, for whatever host, to one server, without TLS.
type redirectAll struct{ addr string }

func (r redirectAll) RoundTrip(req *http.Request) (*http.Response, error) {
	out := req.Clone(req.Context())
	out.Host = req.URL.Host
	out.URL.Scheme, out.URL.Host = "http", r.addr
	return http.DefaultTransport.RoundTrip(out)
}

func TestOSSErrorsCarryTheStatus(t *testing.T) {
	for _, tc := range []struct {
		status     int
		body, code string
	}{
		{403, `<Error><Code>AccessDenied</Code><Message>no</Message><RequestId>R</RequestId></Error>`, "AccessDenied"},
		{503, `<html>an unhappy proxy</html>`, ""},
		{502, ``, ""},
		{307, ``, ""},
		{509, `x`, ""},
	} {
		var hops int
		s := serve(t, func(w http.ResponseWriter, r *http.Request) {
			hops++
			w.Header().Set("X-Oss-Request-Id", "RID")
			w.Header().Set("Location", "/elsewhere")
			w.WriteHeader(tc.status)
			io.WriteString(w, tc.body)
		})
		_, err := store(t, staticConfig(s)).List(t.Context(), "bucket", "")
		e, ok := errors.AsType[*importer.ServiceError](err)
		if !ok || e.Status != tc.status || e.Code != tc.code || e.RequestID != "RID" || e.Op != "ListObjects" || hops != 1 {
			t.Errorf("%d: %v (%+v) after %d hops", tc.status, err, e, hops)
		}
	}
}

func TestRepliesAreBounded(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		for range 40 {
			if _, err := w.Write(make([]byte, 1<<20)); err != nil {
				return
			}
		}
	})
	c := newClients(t, staticConfig(s))
	st, _ := c.Store("")
	if _, err := st.List(t.Context(), "bucket", ""); err == nil || !strings.Contains(err.Error(), "reply of more than") {
		t.Errorf("OSS: %v", err)
	}
	if _, err := c.ECS().Regions(t.Context()); err == nil || !strings.Contains(err.Error(), "reply of more than") {
		t.Errorf("ECS: %v", err)
	}
}

func TestEveryRequestEndsWithItsContext(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body) // or the server does not see that the client has gone
		<-r.Context().Done()
	})
	c := newClients(t, staticConfig(s))
	st, _ := c.Store("")
	u := importer.Upload{Object: obj, ID: "U"}
	e := c.ECS()
	for name, f := range map[string]func(context.Context) error{
		"BucketInfo": func(ctx context.Context) error { _, err := st.BucketInfo(ctx, "bucket"); return err },
		"Head":       func(ctx context.Context) error { _, err := st.Head(ctx, obj); return err },
		"Read":       func(ctx context.Context) error { _, err := st.Read(ctx, obj, "", 0, 9); return err },
		"Put": func(ctx context.Context) error {
			_, err := st.Put(ctx, obj, []byte("x"), importer.PutOptions{})
			return err
		},
		"CreateUpload": func(ctx context.Context) error {
			_, err := st.CreateUpload(ctx, obj, importer.PutOptions{})
			return err
		},
		"UploadPart": func(ctx context.Context) error {
			_, err := st.UploadPart(ctx, u, 1, strings.NewReader("x"), 1)
			return err
		},
		"CopyPart":    func(ctx context.Context) error { _, err := st.CopyPart(ctx, u, 1, obj, "", 0, 1); return err },
		"ListParts":   func(ctx context.Context) error { _, err := st.ListParts(ctx, u); return err },
		"Complete":    func(ctx context.Context) error { _, err := st.Complete(ctx, u, nil, false); return err },
		"Abort":       func(ctx context.Context) error { return st.Abort(ctx, u) },
		"ListUploads": func(ctx context.Context) error { _, err := st.ListUploads(ctx, "bucket", ""); return err },
		"List":        func(ctx context.Context) error { _, err := st.List(ctx, "bucket", ""); return err },
		"Delete":      func(ctx context.Context) error { return st.Delete(ctx, obj) },
		"ImportImage": func(ctx context.Context) error { _, err := e.ImportImage(ctx, importer.ImportRequest{}); return err },
		"Images":      func(ctx context.Context) error { _, err := e.Images(ctx, importer.ImageQuery{}); return err },
		"Task":        func(ctx context.Context) error { _, err := e.Task(ctx, "", "t"); return err },
		"Regions":     func(ctx context.Context) error { _, err := e.Regions(ctx); return err },
	} {
		ctx, stop := context.WithCancel(t.Context())
		time.AfterFunc(20*time.Millisecond, stop)
		began := time.Now()
		if err := f(ctx); !errors.Is(err, context.Canceled) || time.Since(began) > 3*time.Second {
			t.Errorf("%s: %v after %v", name, err, time.Since(began))
		}
		stop()
	}
}

func TestConnectionThatStallsEnds(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Range", "bytes 0-99/100")
		w.WriteHeader(http.StatusPartialContent)
		io.WriteString(w, "some")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	cfg := staticConfig(s)
	cfg.Stall = 50 * time.Millisecond
	r, err := store(t, cfg).Read(t.Context(), obj, "", 0, 100)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var timeout net.Error
	if _, err = io.ReadAll(r); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("error %v", err)
	}
}

func TestProxiesByEnvironment(t *testing.T) {
	proxy := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Host != "bucket.oss.private" {
			t.Errorf("proxied %s", r.URL)
		}
		w.WriteHeader(http.StatusNoContent)
	})
	direct := serve(t, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNoContent) })
	for _, tc := range []struct {
		noProxy string
		flag    bool
		proxied int
	}{{"", false, 1}, {"other,.oss.private", false, 0}, {"*.private", false, 0}, {"oss.private:443", false, 1}, {"*", false, 0}, {"", true, 0}} {
		was := proxy.count()
		cfg := staticConfig(direct)
		cfg.OSSEndpoint, cfg.NoProxy = "http://oss.private", tc.flag
		cfg.Env = env("http_proxy="+proxy.URL, "NO_PROXY="+tc.noProxy)
		cfg.Dial = loopbackDial(t, map[string]string{"bucket.oss.private:80": direct.addr()})
		if err := store(t, cfg).Delete(t.Context(), obj); err != nil {
			t.Fatal(err)
		}
		if got := proxy.count() - was; got != tc.proxied {
			t.Errorf("%+v: %d by the proxy", tc, got)
		}
	}
	for _, tc := range []struct {
		host string
		want bool
	}{{"10.1.2.3", true}, {"10.2.2.3", false}, {"a.b.example", true}, {"b.example", false}, {"xb.example", false}, {"::1", true}} {
		if got := spared(tc.host, "443", []string{"10.1.0.0/16", " .B.example ", "::1"}); got != tc.want {
			t.Errorf("%s: %v", tc.host, got)
		}
	}
}

func FuzzExactRange(f *testing.F) {
	f.Add("bytes 2-5/10", int64(2), int64(4))
	f.Add("bytes 2-5/*", int64(2), int64(4))
	f.Add("bytes 2-5/-1", int64(2), int64(4))
	f.Fuzz(func(t *testing.T, header string, off, n int64) {
		if off < 0 || n <= 0 || off+n < off {
			return
		}
		err := exactRange(http.Header{"Content-Range": {header}}, off, n)
		if want := fmt.Sprintf("bytes %d-%d/", off, off+n-1); err == nil && !strings.HasPrefix(header, want) {
			t.Errorf("%q taken for %d bytes at %d", header, n, off)
		}
	})
}

func FuzzParseEndpoint(f *testing.F) {
	for _, s := range []string{"host", "https://host:1/", "http://[::1]:9", "https://u:p@h", "a b", "http://h?x#y"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		e, err := parseEndpoint(s)
		if err == nil && (strings.ContainsAny(e.host, "/?#@ ") || e.host == "" || e.scheme != "http" && e.scheme != "https") {
			t.Errorf("%q is %+v", s, e)
		}
	})
}
