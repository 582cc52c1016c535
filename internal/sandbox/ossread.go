package sandbox

import (
	"encoding/base64"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// describe sets the headers that every reply about an object has.
func (s *oss) describe(c *call, o *object) {
	h := c.w.Header()
	h.Set("Content-Type", "application/octet-stream")
	maps.Copy(h, o.headers)
	maps.Copy(h, o.meta)
	h.Set("ETag", `"`+o.etag+`"`)
	h.Set("Last-Modified", o.modified.UTC().Format(http.TimeFormat))
	h.Set("X-Oss-Object-Type", o.kind)
	h.Set("X-Oss-Storage-Class", o.class)
	h.Set("Accept-Ranges", "bytes")
	if o.md5 != nil {
		h.Set("Content-Md5", base64.StdEncoding.EncodeToString(o.md5))
	}
	if len(o.tags) > 0 {
		h.Set("X-Oss-Tagging-Count", strconv.Itoa(len(o.tags)))
	}
	if r := o.restore; c.now.Before(r.from) {
		h.Set("X-Oss-Restore", `ongoing-request="true"`)
	} else if c.now.Before(r.until) {
		h.Set("X-Oss-Restore", `ongoing-request="false", expiry-date="`+r.until.UTC().Format(http.TimeFormat)+`"`)
	}
	c.encryptionHeaders(o.properties)
	s.crcHeader(c, o.content)
}

func (s *oss) headObject(c *call) error {
	o, err := s.lookup(c)
	if err != nil {
		return err
	}
	if err := checkConditions(c.r.Header, "", &o); err != nil {
		return err
	}
	s.describe(c, &o)
	c.w.Header().Set("Content-Length", strconv.FormatInt(o.size, 10))
	c.w.WriteHeader(http.StatusOK)
	return nil
}

// getObjectMeta replies with little, and to GET without the bytes too.
func (s *oss) getObjectMeta(c *call) error {
	o, err := s.lookup(c)
	if err != nil {
		return err
	}
	h := c.w.Header()
	h.Set("ETag", `"`+o.etag+`"`)
	h.Set("Last-Modified", o.modified.UTC().Format(http.TimeFormat))
	s.crcHeader(c, o.content)
	if c.r.Method == http.MethodHead {
		h.Set("Content-Length", strconv.FormatInt(o.size, 10))
	}
	c.w.WriteHeader(http.StatusOK)
	return nil
}

func (s *oss) getObject(c *call) error {
	o, err := s.lookup(c)
	if err != nil {
		return err
	}
	if !o.readable(c.now) {
		return errState.with("ObjectName", c.key)
	}
	if err := checkConditions(c.r.Header, "", &o); err != nil {
		return err
	}
	off, n, partial := int64(0), o.size, false
	if v := c.r.Header.Get("Range"); v != "" {
		standard := c.r.Header.Get("X-Oss-Range-Behavior") == "standard" //nolint:misspell // the service spells it so
		if off, n, partial, err = selectRange(v, o.size, standard); err != nil {
			return err
		}
	}
	s.describe(c, &o)
	h := c.w.Header()
	for name, v := range c.query {
		if stored, ok := strings.CutPrefix(name, "response-"); ok && slices.Contains(storedHeaders, http.CanonicalHeaderKey(stored)) {
			h.Set(stored, v[0])
		}
	}
	h.Set("Content-Length", strconv.FormatInt(n, 10))
	status := http.StatusOK
	if partial {
		h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", off, off+n-1, o.size))
		status = http.StatusPartialContent
	}
	c.w.WriteHeader(status)
	sent := &countingWriter{w: c.w}
	defer func() { s.opt.audit.bytes(0, sent.n, 0) }() // also if a fault breaks off
	_, err = o.copyTo(sent, off, n)
	_ = err // the status is sent: a reply that is too short says it, and the client may have gone
	return nil
}

type countingWriter struct {
	w io.Writer
	n int64
}

func (w *countingWriter) Write(p []byte) (int, error) {
	n, err := w.w.Write(p)
	w.n += int64(n)
	return n, err
}

// selectRange returns what the Range header v means for an object of so many bytes.
//
// By OSS's own rule a header that is malformed, or whose ends are not both within the
// object, does not count; by the standard's, an end past the object's is cut off, and a
// start past it cannot be satisfied. Of several ranges the first counts.
func selectRange(v string, size int64, standard bool) (off, n int64, partial bool, err error) {
	first, last, ok := parseRange(v)
	switch {
	case !ok:
		return 0, size, false, nil
	case first < 0: // the last bytes
		if last > size && !standard || last == 0 && !standard {
			return 0, size, false, nil
		}
		n = min(last, size)
		off = size - n
	default:
		if (first >= size || last >= size && last != toEnd) && !standard {
			return 0, size, false, nil
		}
		off, n = first, min(last, size-1)-first+1
	}
	if n <= 0 {
		if standard {
			return 0, 0, false, errRange.with("ObjectSize", strconv.FormatInt(size, 10))
		}
		return 0, size, false, nil
	}
	return off, n, true, nil
}

// checkConditions checks the conditional headers with a prefix: "" for those about an object
// that is read, and another for those about the source of a copy.
func checkConditions(h http.Header, prefix string, o *object) error {
	if v := h.Get(prefix + "If-Match"); v != "" && !matchETag(v, o.etag) {
		return precondition("If-Match")
	}
	modified := o.modified.Truncate(time.Second)
	if t, err := http.ParseTime(h.Get(prefix + "If-Unmodified-Since")); err == nil && modified.After(t) {
		return precondition("If-Unmodified-Since")
	}
	if v := h.Get(prefix + "If-None-Match"); v != "" && matchETag(v, o.etag) {
		return errNotModified
	}
	if t, err := http.ParseTime(h.Get(prefix + "If-Modified-Since")); err == nil && !modified.After(t) {
		return errNotModified
	}
	return nil
}

func matchETag(header, etag string) bool {
	return header == "*" || strings.Trim(header, `"`) == etag
}
