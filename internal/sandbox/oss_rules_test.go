package sandbox

import (
	"bytes"
	"crypto/md5"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestMalformedCopyRangeCopiesTheWholeObject(t *testing.T) {
	s := newTestOSS(t)
	base := noise(21, 300_000)
	s.mustPut(t, "/b-home/base", base)
	id := s.initiate(t, "/b-home/k")
	for _, tc := range []struct {
		header string
		n      int64
		rng    string
	}{
		{"bytes=0-199999", 200_000, "bytes 0-199999/300000"},
		{"bytes=0-299999", 300_000, "bytes 0-299999/300000"},
		{"bytes=100-", 299_900, "bytes 100-299999/300000"},
		{"bytes 0-199999", 300_000, ""},
		{"bytes:0-199999", 300_000, ""},
		{"0-199999", 300_000, ""},
		{"bytes=199999-0", 300_000, ""},
		{"bytes=0-300000", 300_000, ""},
		{"", 300_000, ""},
	} {
		r := s.do(t, http.MethodPut, partPath("/b-home/k", id, "1"), nil, "X-Oss-Copy-Source", "/b-home/base", "X-Oss-Copy-Source-Range", tc.header).want(t, 200, "")
		if got := r.Header.Get("Content-Range"); got != tc.rng {
			t.Errorf("%q: Content-Range %q, want %q", tc.header, got, tc.rng)
		}
		l := s.do(t, http.MethodGet, "/b-home/k?uploadId="+id, nil).want(t, 200, "")
		if got := l.element("Size"); got != strconv.FormatInt(tc.n, 10) {
			t.Errorf("%q: %s bytes copied, want %d", tc.header, got, tc.n)
		}
	}
}

func TestPartSizesAreCheckedAtComplete(t *testing.T) {
	s := newTestOSS(t)
	id := s.initiate(t, "/b-home/k")
	put := func(num string, n int) string {
		return s.mustPut(t, partPath("/b-home/k", id, num), make([]byte, n))
	}
	small, last := put("1", minPartSize-1), put("2", 1)
	s.do(t, http.MethodPost, "/b-home/k?uploadId="+id, completion(small, last)).want(t, 400, "EntityTooSmall")
	big := put("1", minPartSize) // replaces it
	s.do(t, http.MethodPost, "/b-home/k?uploadId="+id, completion(small, last)).want(t, 400, "InvalidPart")
	s.do(t, http.MethodPost, "/b-home/k?uploadId="+id, completion(big, last, last)).want(t, 400, "InvalidPart")
	s.do(t, http.MethodPost, "/b-home/k?uploadId="+id, completion()).want(t, 400, "MalformedXML")
	s.do(t, http.MethodPost, "/b-home/k?uploadId="+id, []byte("<CompleteMultipartUpload><Part>")).want(t, 400, "MalformedXML")
	swapped := fmt.Sprintf("<CompleteMultipartUpload><Part><PartNumber>2</PartNumber><ETag>%s</ETag></Part><Part><PartNumber>1</PartNumber><ETag>%s</ETag></Part></CompleteMultipartUpload>", last, big)
	s.do(t, http.MethodPost, "/b-home/k?uploadId="+id, []byte(swapped)).want(t, 400, "InvalidPartOrder")
	for _, num := range []string{"0", "10001", "x", "-1", ""} {
		s.do(t, http.MethodPut, partPath("/b-home/k", id, num), nil).want(t, 400, "InvalidArgument")
	}
	s.do(t, http.MethodPut, partPath("/b-home/other", id, "1"), nil).want(t, 404, "NoSuchUpload")
	s.do(t, http.MethodPut, partPath("/b-home/k", "none", "1"), nil).want(t, 404, "NoSuchUpload")
	r := s.do(t, http.MethodPost, "/b-home/k?uploadId="+id, completion(big, last)).want(t, 200, "")
	if want := strconv.FormatUint(crcOf(make([]byte, minPartSize+1)), 10); r.Header.Get(headerCRC64) != want || !strings.HasSuffix(r.element("ETag"), `-2"`) {
		t.Errorf("CRC %s, want %s; ETag %s", r.Header.Get(headerCRC64), want, r.element("ETag"))
	}
	if r := s.do(t, http.MethodHead, "/b-home/k", nil); r.Header.Get("X-Oss-Object-Type") != "Multipart" || r.ContentLength != minPartSize+1 {
		t.Errorf("%v", r.Header)
	}
}

func TestCompleteAllAndForbidOverwrite(t *testing.T) {
	s := newTestOSS(t)
	id := s.initiate(t, "/b-home/k", "X-Oss-Storage-Class", "IA", "X-Oss-Meta-A", "b")
	s.do(t, http.MethodPost, "/b-home/k?uploadId="+id, nil, "X-Oss-Complete-All", "yes").want(t, 400, "InvalidPart")
	s.mustPut(t, partPath("/b-home/k", id, "7"), []byte("seven"))
	s.mustPut(t, "/b-home/k", []byte("there already"))
	s.do(t, http.MethodPost, "/b-home/k?uploadId="+id, nil, "X-Oss-Complete-All", "yes", "X-Oss-Forbid-Overwrite", "true").want(t, 409, "FileAlreadyExists")
	s.do(t, http.MethodPost, "/b-home/k?uploadId="+id, completion("x"), "X-Oss-Complete-All", "yes").want(t, 400, "InvalidArgument")
	s.do(t, http.MethodPost, "/b-home/k?uploads", nil, "X-Oss-Forbid-Overwrite", "true").want(t, 409, "FileAlreadyExists")
	s.do(t, http.MethodPost, "/b-home/k?uploadId="+id, nil, "X-Oss-Complete-All", "yes").want(t, 200, "")
	r := s.do(t, http.MethodGet, "/b-home/k", nil).want(t, 200, "")
	if r.body != "seven" || r.Header.Get("X-Oss-Storage-Class") != "IA" || r.Header.Get("X-Oss-Meta-A") != "b" {
		t.Errorf("%q %v", r.body, r.Header)
	}
}

func TestCopySourceMustBeNearReadableAndPlain(t *testing.T) {
	clock := NewClock(time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC))
	s := newTestOSS(t, withClock(clock))
	if err := s.CreateObject("b-far", "k", strings.NewReader("far")); err != nil {
		t.Fatal(err)
	}
	s.mustPut(t, "/b-home/cold", []byte("cold"), "X-Oss-Storage-Class", "Archive")
	s.do(t, http.MethodPost, "/b-home/log?append&position=0", []byte("log")).want(t, 200, "")
	etag := s.mustPut(t, "/b-home/base", []byte("base"))
	id := s.initiate(t, "/b-home/k")
	for _, target := range []string{partPath("/b-home/k", id, "1"), "/b-home/copy"} {
		for _, tc := range []struct {
			source string
			status int
			code   string
			header []string
		}{
			{source: "/b-far/k", status: 403, code: "AccessDenied"},
			{source: "/b-home/cold", status: 403, code: "InvalidObjectState"},
			{source: "/b-home/log", status: 400, code: "OperationNotSupported"},
			{source: "/b-home/none", status: 404, code: "NoSuchKey"},
			{source: "/b-none/k", status: 404, code: "NoSuchBucket"},
			{source: "b-home/base", status: 400, code: "InvalidArgument"},
			{source: "/b-home/base?versionId=x", status: 404, code: "NoSuchVersion"},
			{source: "/b-home/base", status: 412, code: "PreconditionFailed", header: []string{"X-Oss-Copy-Source-If-Match", `"x"`}},
			{source: "/b-home/base", status: 412, code: "PreconditionFailed", header: []string{"X-Oss-Copy-Source-If-Unmodified-Since", "Sun, 22 Nov 2026 09:59:59 GMT"}},
			{source: "/b-home/base", status: 304, header: []string{"X-Oss-Copy-Source-If-None-Match", etag}},
			{source: "/b-home/base", status: 200, header: []string{"X-Oss-Copy-Source-If-Match", etag}},
			{source: "/b-home/b%61se", status: 200},
		} {
			s.do(t, http.MethodPut, target, nil, append(tc.header, "X-Oss-Copy-Source", tc.source)...).want(t, tc.status, tc.code)
		}
	}
	// A restored one can be read, for a time.
	s.do(t, http.MethodGet, "/b-home/cold", nil).want(t, 403, "InvalidObjectState")
	s.do(t, http.MethodPost, "/b-home/base?restore", nil).want(t, 400, "OperationNotSupported")
	days := []byte("<RestoreRequest><Days>2</Days></RestoreRequest>")
	s.do(t, http.MethodPost, "/b-home/cold?restore", days).want(t, 202, "")
	s.do(t, http.MethodPost, "/b-home/cold?restore", days).want(t, 409, "RestoreAlreadyInProgress")
	if got := s.do(t, http.MethodHead, "/b-home/cold", nil).Header.Get("X-Oss-Restore"); got != `ongoing-request="true"` {
		t.Errorf("X-Oss-Restore %q", got)
	}
	clock.Advance(restoreTime)
	s.do(t, http.MethodGet, "/b-home/cold", nil).want(t, 200, "")
	s.do(t, http.MethodPut, partPath("/b-home/k", id, "2"), nil, "X-Oss-Copy-Source", "/b-home/cold").want(t, 200, "")
	if got := s.do(t, http.MethodHead, "/b-home/cold", nil).Header.Get("X-Oss-Restore"); got != `ongoing-request="false", expiry-date="Tue, 24 Nov 2026 10:01:00 GMT"` {
		t.Errorf("X-Oss-Restore %q", got)
	}
	clock.Advance(48 * time.Hour)
	s.do(t, http.MethodGet, "/b-home/cold", nil).want(t, 403, "InvalidObjectState")
}

func TestConditionsOfReads(t *testing.T) {
	clock := NewClock(time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC))
	s := newTestOSS(t, withClock(clock))
	etag := s.mustPut(t, "/b-home/k", []byte("x"))
	const before, same, after = "Sun, 22 Nov 2026 09:59:59 GMT", "Sun, 22 Nov 2026 10:00:00 GMT", "Sun, 22 Nov 2026 10:00:01 GMT"
	for _, tc := range []struct {
		name, value string
		status      int
	}{
		{"If-Match", etag, 200}, {"If-Match", strings.Trim(etag, `"`), 200}, {"If-Match", `"x"`, 412},
		{"If-None-Match", etag, 304}, {"If-None-Match", `"x"`, 200},
		{"If-Modified-Since", before, 200}, {"If-Modified-Since", same, 304}, {"If-Modified-Since", after, 304},
		{"If-Unmodified-Since", before, 412}, {"If-Unmodified-Since", same, 200},
	} {
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			if r := s.do(t, method, "/b-home/k", nil, tc.name, tc.value); r.StatusCode != tc.status {
				t.Errorf("%s %s: %s: %d, want %d", method, tc.name, tc.value, r.StatusCode, tc.status)
			}
		}
	}
}

func TestBodiesAreChecked(t *testing.T) {
	s := newTestOSS(t)
	sum := md5.Sum([]byte("right"))
	digest := base64.StdEncoding.EncodeToString(sum[:])
	s.mustPut(t, "/b-home/k", []byte("right"), "Content-Md5", digest)
	s.do(t, http.MethodPut, "/b-home/k", []byte("wrong"), "Content-Md5", digest).want(t, 400, "InvalidDigest")
	id := s.initiate(t, "/b-home/m")
	s.do(t, http.MethodPut, partPath("/b-home/m", id, "1"), []byte("wrong"), "Content-Md5", digest).want(t, 400, "InvalidDigest")
	s.do(t, http.MethodPost, "/b-home/?delete", []byte("<Delete><Object><Key>k</Key></Object></Delete>")).want(t, 400, "MissingArgument")
	if r := s.do(t, http.MethodGet, "/b-home/k", nil); r.body != "right" {
		t.Errorf("%q", r.body)
	}
	for _, tc := range []struct{ name, value, code string }{
		{"X-Oss-Server-Side-Encryption", "DES", "InvalidEncryptionAlgorithmError"},
		{"X-Oss-Server-Side-Encryption-Key-Id", "key", "InvalidArgument"},
		{"X-Oss-Storage-Class", "Warm", "InvalidArgument"},
		{"X-Oss-Tagging", "a=b&a=c", "InvalidTag"},
		{"X-Oss-Tagging", "a=%zz", "InvalidTag"},
		{"X-Oss-Tagging", strings.Repeat("k", 129) + "=v", "InvalidTag"},
		{"X-Oss-Tagging", "1&2&3&4&5&6&7&8&9&10&11", "InvalidTag"},
		{"X-Oss-Meta-Big", strings.Repeat("v", maxMeta), "InvalidArgument"},
	} {
		s.do(t, http.MethodPut, "/b-home/k", nil, tc.name, tc.value).want(t, 400, tc.code)
	}
	for _, path := range []string{"/b-home/%2Fk", "/b-home/" + strings.Repeat("k", 1024), "/b-home/%FF"} {
		s.do(t, http.MethodPut, path, nil).want(t, 400, "InvalidObjectName")
	}
	s.do(t, http.MethodPut, "/B_home/k", nil).want(t, 400, "InvalidBucketName")
	s.do(t, http.MethodGet, "/b-home/?max-keys=1001", nil).want(t, 400, "InvalidArgument")
	s.do(t, http.MethodGet, "/b-home/k?symlink", nil).want(t, 501, "NotImplemented")
}

func TestEncryptionIsEchoedAndInherited(t *testing.T) {
	s := newTestOSS(t)
	s.do(t, http.MethodPut, "/b-home/?encryption", []byte("<ServerSideEncryptionRule><ApplyServerSideEncryptionByDefault><SSEAlgorithm>KMS</SSEAlgorithm><KMSMasterKeyID>id</KMSMasterKeyID></ApplyServerSideEncryptionByDefault></ServerSideEncryptionRule>")).want(t, 200, "")
	id := s.initiate(t, "/b-home/k")
	if r := s.do(t, http.MethodPut, partPath("/b-home/k", id, "1"), []byte("x")); r.Header.Get("X-Oss-Server-Side-Encryption") != "KMS" || r.Header.Get("X-Oss-Server-Side-Encryption-Key-Id") != "id" {
		t.Errorf("%v", r.Header)
	}
	r := s.do(t, http.MethodPut, "/b-home/l", []byte("x"), "X-Oss-Server-Side-Encryption", "AES256")
	if r.Header.Get("X-Oss-Server-Side-Encryption") != "AES256" || r.Header.Get("X-Oss-Server-Side-Encryption-Key-Id") != "" {
		t.Errorf("%v", r.Header)
	}
	if r := s.do(t, http.MethodGet, "/b-home/?bucketInfo", nil); r.element("SSEAlgorithm") != "KMS" {
		t.Error(r.body)
	}
}

func TestCopiesCanBeSilentAboutTheirCRC(t *testing.T) {
	s := newTestOSS(t, func(o *ossOptions) { o.NoCopyCRC = true })
	put := s.do(t, http.MethodPut, "/b-home/base", make([]byte, 200<<10))
	id := s.initiate(t, "/b-home/k")
	cp := s.do(t, http.MethodPut, partPath("/b-home/k", id, "1"), nil, "X-Oss-Copy-Source", "/b-home/base").want(t, 200, "")
	last := s.mustPut(t, partPath("/b-home/k", id, "2"), []byte("x"))
	done := s.do(t, http.MethodPost, "/b-home/k?uploadId="+id, completion(cp.element("ETag"), last)).want(t, 200, "")
	head := s.do(t, http.MethodHead, "/b-home/k", nil)
	if put.Header.Get(headerCRC64) == "" || cp.Header.Get(headerCRC64)+done.Header.Get(headerCRC64)+head.Header.Get(headerCRC64) != "" {
		t.Errorf("put %q, copy %q, complete %q, head %q", put.Header.Get(headerCRC64), cp.Header.Get(headerCRC64), done.Header.Get(headerCRC64), head.Header.Get(headerCRC64))
	}
}

func TestPublicBucketsAreReadWithoutKeys(t *testing.T) {
	s := newTestOSS(t)
	if err := s.CreateBucket("b-open", "", Public()); err != nil {
		t.Fatal(err)
	}
	if err := s.CreateObject("b-open", "k", strings.NewReader("open")); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		method, path string
		status       int
	}{{"GET", "/b-open/k", 200}, {"HEAD", "/b-open/k", 200}, {"PUT", "/b-open/k", 403}, {"GET", "/b-open/", 403}, {"GET", "/b-home/k", 403}, {"GET", "/b-none/k", 403}} {
		req, err := http.NewRequest(tc.method, s.url+tc.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if r, err := s.send(req); err != nil || r.StatusCode != tc.status {
			t.Errorf("%s %s: %s, %v; want %d", tc.method, tc.path, r.Status, err, tc.status)
		}
	}
}

func TestCountersTellWhatMoved(t *testing.T) {
	s := newTestOSS(t)
	s.mustPut(t, "/b-home/base", make([]byte, 300_000))
	s.do(t, http.MethodGet, "/b-home/base", nil, "Range", "bytes=0-999")
	id := s.initiate(t, "/b-home/k")
	s.do(t, http.MethodPut, partPath("/b-home/k", id, "1"), nil, "X-Oss-Copy-Source", "/b-home/base", "X-Oss-Copy-Source-Range", "bytes=0-199999")
	s.do(t, http.MethodPut, "/b-home/c", nil, "X-Oss-Copy-Source", "/b-home/base")
	c := s.opt.audit.counters()
	if c.Uploaded != 300_000 || c.Downloaded != 1000 || c.Copied != 500_000 || c.Total() != 5 || c.Requests["UploadPartCopy"] != 1 {
		t.Errorf("%+v", c)
	}
}

func TestFilesGoWithTheLastObjectThatSharesThem(t *testing.T) {
	s := newTestOSS(t, onDisk(t))
	s.mustPut(t, "/b-home/a", noise(1, 1000))
	s.do(t, http.MethodPut, "/b-home/b", nil, "X-Oss-Copy-Source", "/b-home/a").want(t, 200, "")
	files := func() int {
		runtime.GC()
		l, err := filepath.Glob(filepath.Join(s.opt.Dir, "oss-*", "*"))
		if err != nil {
			t.Fatal(err)
		}
		return len(l)
	}
	s.do(t, http.MethodDelete, "/b-home/a", nil).want(t, 204, "")
	if n := files(); n != 1 {
		t.Fatalf("%d files, want 1", n)
	}
	s.do(t, http.MethodDelete, "/b-home/b", nil).want(t, 204, "")
	for range 100 { // a cleanup runs when the collector likes
		if files() == 0 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if n := files(); n != 0 {
		t.Errorf("%d files left", n)
	}
	s.mustPut(t, "/b-home/c", []byte("x"))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if l, err := os.ReadDir(s.opt.Dir); err != nil || len(l) != 0 {
		t.Errorf("left after Close: %v, %v", l, err)
	}
}

func TestParallelPartsAreAllThere(t *testing.T) {
	s := newTestOSS(t, onDisk(t))
	id := s.initiate(t, "/b-home/k")
	parts := make([][]byte, 9)
	etags := make([]string, len(parts))
	var wg sync.WaitGroup
	for i := range parts {
		parts[i] = noise(uint64(i), minPartSize+i)
		wg.Go(func() {
			r, err := s.try(http.MethodPut, partPath("/b-home/k", id, strconv.Itoa(i+1)), parts[i])
			if err != nil || r.StatusCode != http.StatusOK {
				t.Errorf("part %d: %v %v", i+1, r.Response, err)
				return
			}
			etags[i] = r.Header.Get("ETag")
		})
	}
	wg.Wait()
	s.do(t, http.MethodPost, "/b-home/k?uploadId="+id, completion(etags...)).want(t, 200, "")
	var got bytes.Buffer
	if err := s.WriteObject(&got, "b-home", "k"); err != nil || !bytes.Equal(got.Bytes(), slices.Concat(parts...)) {
		t.Errorf("other bytes, %v", err)
	}
}

// BenchmarkPartCopy copies 700 MB of an object of 800 MB within the service, off the
// boundaries of its pieces; the object is a hole, which costs a checksum as much.
func BenchmarkPartCopy(b *testing.B) {
	st := &store{}
	whole, _, err := st.write(&zeros{800 << 20}, maxUpload)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := whole.slice(1000, 700<<20); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkStore takes a body in.
func BenchmarkStore(b *testing.B) {
	body := noise(1, 16<<20)
	for _, dir := range []string{"", b.TempDir()} {
		b.Run("disk="+strconv.FormatBool(dir != ""), func(b *testing.B) {
			b.SetBytes(int64(len(body)))
			st := &store{dir: dir}
			for b.Loop() {
				if _, _, err := st.write(bytes.NewReader(body), maxUpload); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

type zeros struct{ n int }

func (z *zeros) Read(p []byte) (int, error) {
	if z.n == 0 {
		return 0, io.EOF
	}
	n := min(len(p), z.n)
	clear(p[:n])
	z.n -= n
	return n, nil
}
