package sandbox

import (
	"bytes"
	"encoding/xml"
	"io"
	"math"
	"net/url"
	"strconv"
	"strings"
	"unicode/utf8"
)

// toEnd is the last byte of a range that has no end.
const toEnd = math.MaxInt64

// parseRange reads "bytes=first-last", "bytes=first-" or "bytes=-n", for which first is -1
// and last is n. It is not ok if it is malformed.
func parseRange(v string) (first, last int64, ok bool) {
	v, ok = strings.CutPrefix(v, "bytes=")
	if !ok {
		return 0, 0, false
	}
	v, _, _ = strings.Cut(v, ",")
	a, b, ok := strings.Cut(v, "-")
	if !ok || a == "" && b == "" {
		return 0, 0, false
	}
	first, last = -1, toEnd
	if a != "" {
		if first, ok = parseDigits(a); !ok {
			return 0, 0, false
		}
	}
	if b != "" {
		if last, ok = parseDigits(b); !ok {
			return 0, 0, false
		}
	}
	return first, last, a == "" || first <= last
}

// parseDigits reads a number without a sign.
func parseDigits(v string) (int64, bool) {
	n, err := strconv.ParseInt(v, 10, 64)
	return n, err == nil && v[0] != '+' && v[0] != '-'
}

// parseCopySource reads "/bucket/key[?versionId=id]", encoded as a form is: the official SDK
// writes a space as "+" here.
func parseCopySource(v string) (bucket, key, version string, err error) {
	bad := argument("x-oss-copy-source", v, "Copy Source must mention the source bucket and key: /sourcebucket/sourcekey.")
	path, query, _ := strings.Cut(v, "?")
	path, ok := strings.CutPrefix(path, "/")
	if !ok {
		return "", "", "", bad
	}
	bucket, key, _ = strings.Cut(path, "/")
	if key, err = url.QueryUnescape(key); err != nil || key == "" || !validKey(key) || !validBucket(bucket) {
		return "", "", "", bad
	}
	if query != "" {
		if version, ok = strings.CutPrefix(query, "versionId="); !ok {
			return "", "", "", bad
		}
	}
	return bucket, key, version, nil
}

// Limits of an object's tags, in characters.
const (
	maxTags     = 10
	maxTagKey   = 128
	maxTagValue = 256
)

// parseTags reads the header x-oss-tagging: "k=v&k=v", percent-encoded.
func parseTags(v string) ([]tag, error) {
	var tags []tag
	for pair := range strings.SplitSeq(v, "&") {
		if v == "" {
			break
		}
		k, val, _ := strings.Cut(pair, "=")
		k, err1 := url.QueryUnescape(k)
		val, err2 := url.QueryUnescape(val)
		if err1 != nil || err2 != nil || len(tags) > maxTags {
			return nil, badTag(v)
		}
		tags = append(tags, tag{k, val})
	}
	return tags, checkTags(tags)
}

func checkTags(tags []tag) error {
	seen := map[string]bool{}
	for _, t := range tags {
		if t.Key == "" || seen[t.Key] || !utf8.ValidString(t.Key+t.Value) ||
			utf8.RuneCountInString(t.Key) > maxTagKey || utf8.RuneCountInString(t.Value) > maxTagValue {
			return badTag(t.Key)
		}
		seen[t.Key] = true
	}
	if len(tags) > maxTags {
		return badTag(strconv.Itoa(len(tags)))
	}
	return nil
}

func badTag(v string) error {
	return refusal(400, "InvalidTag", "The tag is invalid or there are too many.").with("ArgumentValue", v)
}

// unmarshalXML reads a document that has nothing but white space after it.
func unmarshalXML(body []byte, v any) error {
	d := xml.NewDecoder(bytes.NewReader(body))
	if err := d.Decode(v); err != nil {
		return err
	}
	for {
		t, err := d.Token()
		if err == io.EOF { //nolint:errorlint // Token's contract
			return nil
		}
		if err != nil {
			return err
		}
		switch t := t.(type) {
		case xml.CharData:
			if len(bytes.TrimSpace(t)) > 0 {
				return errXML
			}
		case xml.StartElement:
			return errXML
		}
	}
}
