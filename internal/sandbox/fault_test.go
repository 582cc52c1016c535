package sandbox

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestFaultsHitAsScripted(t *testing.T) {
	s := newTestOSS(t)
	f := s.opt.faults
	f.inject(Fault{Op: "PutObject", Key: "k", Nth: 2, Times: 2})
	var got []int
	for _, k := range []string{"k", "other", "k", "k", "k"} {
		got = append(got, s.do(t, http.MethodPut, "/b-home/"+k, nil).StatusCode)
	}
	if want := []int{200, 200, 503, 503, 200}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	f.inject(Fault{Match: func(r *http.Request, op string) bool { return op == "GetObject" && r.Header.Get("Range") != "" }, Times: -1, Status: 403, Code: "AccessDenied", Message: "no"})
	s.do(t, http.MethodGet, "/b-home/k", nil).want(t, 200, "")
	for range 3 {
		s.do(t, http.MethodGet, "/b-home/k", nil, "Range", "bytes=0-0").want(t, 403, "AccessDenied")
	}
	f.clear()
	s.do(t, http.MethodGet, "/b-home/k", nil, "Range", "bytes=0-0").want(t, 200, "")
	id := s.initiate(t, "/b-home/k")
	f.inject(Fault{PartNumber: 2, Status: 500})
	s.mustPut(t, partPath("/b-home/k", id, "1"), nil)
	s.do(t, http.MethodPut, partPath("/b-home/k", id, "2"), nil).want(t, 500, "InternalError")
	s.mustPut(t, partPath("/b-home/k", id, "2"), nil)
}

func TestFaultsHaveTheirEffect(t *testing.T) {
	body := noise(5, 200_000)
	crc := strconv.FormatUint(crcOf(body), 10)
	for _, tc := range []struct {
		name   string
		fault  Fault
		method string
		failed bool // the client sees an error or a status
		stored bool // the object is there afterwards
	}{
		{"refuse", Fault{Kind: Refuse}, "PUT", true, false},
		{"refuse after", Fault{Kind: RefuseAfter}, "PUT", true, true},
		{"drop", Fault{Kind: Drop, After: 1000}, "PUT", true, false},
		{"lose reply", Fault{Kind: LoseReply}, "PUT", true, true},
		{"stall", Fault{Kind: Stall, After: 1000, Delay: 50 * time.Millisecond}, "PUT", false, true},
		{"slow", Fault{Kind: Slow, Delay: 10 * time.Millisecond}, "PUT", false, true},
		{"cut", Fault{Kind: CutReply, After: 1000}, "GET", true, true},
		{"cut at once", Fault{Kind: CutReply}, "GET", true, true},
		{"stall reply", Fault{Kind: Stall, After: 1000, Delay: 50 * time.Millisecond}, "GET", false, true},
		{"slow reply", Fault{Kind: Slow, Delay: 10 * time.Millisecond}, "GET", false, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newTestOSS(t)
			sent := body
			if tc.method == "GET" {
				s.mustPut(t, "/b-home/k", body)
				sent = nil
			}
			s.opt.faults.inject(tc.fault)
			begin := time.Now()
			r, err := s.try(tc.method, "/b-home/k", sent)
			if failed := err != nil || r.StatusCode >= 300; failed != tc.failed {
				t.Errorf("%v %v, failed %v, want %v", r.Response, err, failed, tc.failed)
			}
			if took := time.Since(begin); took < tc.fault.Delay {
				t.Errorf("took %v, want %v at least", took, tc.fault.Delay)
			}
			if tc.name == "cut" && len(r.body) != 1000 {
				t.Errorf("%d bytes came before the cut, want 1000", len(r.body))
			}
			st, err := s.stat("b-home", "k")
			if stored := err == nil && st.Size == int64(len(body)); stored != tc.stored {
				t.Errorf("stored %v, want %v", stored, tc.stored)
			}
		})
	}
	s := newTestOSS(t)
	s.opt.faults.inject(Fault{Kind: WrongCRC})
	if r := s.do(t, http.MethodPut, "/b-home/k", body); r.Header.Get(headerCRC64) == crc || r.Header.Get(headerCRC64) == "" {
		t.Errorf("CRC %q", r.Header.Get(headerCRC64))
	}
	if r := s.do(t, http.MethodHead, "/b-home/k", nil); r.Header.Get(headerCRC64) != crc {
		t.Errorf("CRC %q, want %s", r.Header.Get(headerCRC64), crc)
	}
	s.opt.faults.inject(Fault{Kind: Corrupt, After: 70_000})
	r := s.do(t, http.MethodGet, "/b-home/k", nil)
	if len(r.body) != len(body) || r.body[70_000] != body[70_000]^1 || r.body[:70_000] != string(body[:70_000]) || r.body[70_001:] != string(body[70_001:]) {
		t.Error("not just one bit is wrong")
	}
	if r := s.do(t, http.MethodGet, "/b-home/k", nil); r.body != string(body) {
		t.Error("the object itself was spoilt")
	}
}

func TestLostReplyToCompleteLeavesTheObject(t *testing.T) {
	s := newTestOSS(t)
	id := s.initiate(t, "/b-home/k")
	etag := s.mustPut(t, partPath("/b-home/k", id, "1"), []byte("x"))
	s.opt.faults.inject(Fault{Op: "CompleteMultipartUpload", Kind: LoseReply})
	if r, err := s.try(http.MethodPost, "/b-home/k?uploadId="+id, completion(etag)); err == nil {
		t.Errorf("%s", r.Status)
	}
	s.do(t, http.MethodPost, "/b-home/k?uploadId="+id, completion(etag)).want(t, 404, "NoSuchUpload")
	if r := s.do(t, http.MethodGet, "/b-home/k", nil).want(t, 200, ""); r.body != "x" {
		t.Errorf("%q", r.body)
	}
}

func TestScriptedClockIsTold(t *testing.T) {
	c := NewClock(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
	s := newTestOSS(t, withClock(c))
	s.mustPut(t, "/b-home/k", nil)
	c.Advance(time.Hour)
	r := s.do(t, http.MethodHead, "/b-home/k", nil)
	if r.Header.Get("Date") != "Fri, 02 Jan 2026 04:04:05 GMT" || r.Header.Get("Last-Modified") != "Fri, 02 Jan 2026 03:04:05 GMT" {
		t.Errorf("%v", r.Header)
	}
	if l := s.do(t, http.MethodGet, "/b-home/", nil); !strings.Contains(l.body, "<LastModified>2026-01-02T03:04:05.000Z</LastModified>") {
		t.Error(l.body)
	}
}
