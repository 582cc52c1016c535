package sandbox

import (
	"crypto/md5"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Limits of multipart uploads.
const (
	maxParts    = 10000
	minPartSize = 100 << 10 // bytes; of all parts but the last
)

// upload is a multipart upload. It is guarded by the mutex of the service.
type upload struct {
	id, key   string
	initiated time.Time
	class     string
	properties
	parts map[int]*part
}

// part is an uploaded part, which never changes.
type part struct {
	content
	etag     string
	modified time.Time
}

func (s *oss) initiateUpload(c *call) error {
	p, class, err := c.properties()
	if err != nil {
		return err
	}
	return s.with(c, func(b *bucket) error {
		if err := b.mayOverwrite(c); err != nil {
			return err
		}
		u := &upload{id: s.opt.ids.hex(32), key: c.key, initiated: c.now, parts: map[int]*part{}}
		u.properties, u.class = b.withDefaults(p, class)
		b.uploads[u.id] = u
		c.encryptionHeaders(u.properties)
		return c.xml(struct {
			XMLName      xml.Name `xml:"InitiateMultipartUploadResult"`
			EncodingType string   `xml:",omitempty"`
			Bucket, Key  string
			UploadID     string `xml:"UploadId"`
		}{EncodingType: c.query.Get("encoding-type"), Bucket: b.name, Key: c.encode(c.key), UploadID: u.id})
	})
}

// upload finds the upload that a request is for.
func (b *bucket) upload(c *call) (*upload, error) {
	u := b.uploads[c.query.Get("uploadId")]
	if u == nil || u.key != c.key {
		return nil, errUploadMissing.with("UploadId", c.query.Get("uploadId"))
	}
	return u, nil
}

// withUpload calls f with the upload that a request is for, under the mutex.
func (s *oss) withUpload(c *call, f func(b *bucket, u *upload) error) error {
	return s.with(c, func(b *bucket) error {
		u, err := b.upload(c)
		if err != nil {
			return err
		}
		return f(b, u)
	})
}

// partNumber reads the number of the part that a request is for.
func (c *call) partNumber() (int, error) {
	v := c.query.Get("partNumber")
	n, err := strconv.Atoi(v)
	if err != nil || n < 1 || n > maxParts {
		return 0, argument("partNumber", v, "Part number must be an integer between 1 and 10000, inclusive.")
	}
	return n, nil
}

func (s *oss) uploadPart(c *call) error {
	num, err := c.partNumber()
	if err != nil {
		return err
	}
	if err := s.withUpload(c, func(*bucket, *upload) error { return nil }); err != nil {
		return err
	}
	data, sum, err := s.receive(c)
	if err != nil {
		return err
	}
	// The upload may have ended meanwhile.
	return s.withUpload(c, func(_ *bucket, u *upload) error {
		p := &part{content: data, etag: hexETag(sum), modified: c.now}
		u.parts[num] = p
		c.w.Header().Set("ETag", `"`+p.etag+`"`)
		s.crcHeader(c, data)
		c.encryptionHeaders(properties{encryption: u.encryption, kmsKey: u.kmsKey})
		return c.empty(http.StatusOK)
	})
}

// uploadPartCopy makes a part of an object or of a range of it. A range that OSS does not
// understand, or that is not within the object, does not count: the whole object is
// copied, and only the reply's lack of a Content-Range tells.
func (s *oss) uploadPartCopy(c *call) error {
	num, err := c.partNumber()
	if err != nil {
		return err
	}
	var src object
	err = s.withUpload(c, func(b *bucket, _ *upload) error {
		src, err = s.copySource(c, b)
		return err
	})
	if err != nil {
		return err
	}
	off, n, partial := int64(0), src.size, false
	if v := c.r.Header.Get("X-Oss-Copy-Source-Range"); v != "" {
		if off, n, partial, err = selectRange(v, src.size, false); err != nil {
			return err
		}
	}
	if n > maxUpload {
		return errTooBig.with("MaxSizeAllowed", strconv.Itoa(maxUpload)).with("ProposedSize", strconv.FormatInt(n, 10))
	}
	data, err := src.slice(off, n)
	if err != nil {
		return err
	}
	return s.withUpload(c, func(_ *bucket, u *upload) error {
		p := &part{content: data, etag: copyETag(data), modified: c.now}
		u.parts[num] = p
		s.opt.audit.bytes(0, 0, n)
		if partial {
			c.w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", off, off+n-1, src.size))
		}
		s.crcHeader(c, data)
		c.encryptionHeaders(u.properties)
		return c.xml(struct {
			XMLName            xml.Name `xml:"CopyPartResult"`
			LastModified, ETag string
		}{LastModified: isoTime(c.now), ETag: `"` + p.etag + `"`})
	})
}

// completeXML are the parts that an object is made of.
type completeXML struct {
	XMLName xml.Name `xml:"CompleteMultipartUpload"`
	Parts   []struct {
		PartNumber int
		ETag       string
	} `xml:"Part"`
}

func (s *oss) completeUpload(c *call) error {
	all := c.r.Header.Get("X-Oss-Complete-All")
	if all != "" && all != "yes" {
		return argument("x-oss-complete-all", all, "Invalid value.")
	}
	var doc completeXML
	switch {
	case all == "":
		if err := c.decode(&doc); err != nil {
			return err
		}
		if len(doc.Parts) == 0 || len(doc.Parts) > maxParts {
			return errXML
		}
	case c.r.ContentLength != 0:
		return argument("x-oss-complete-all", all, "A request to complete with all parts must not have a body.")
	}
	return s.withUpload(c, func(b *bucket, u *upload) error {
		parts, err := u.selectParts(doc, all != "")
		if err != nil {
			return err
		}
		if err := b.mayOverwrite(c); err != nil {
			return err
		}
		data := make([]content, len(parts))
		etags := md5.New()
		for i, p := range parts {
			data[i] = p.content
			etags.Write([]byte(p.etag))
		}
		o := &object{key: u.key, content: join(data), kind: "Multipart", class: u.class, modified: c.now, properties: u.properties}
		o.etag = fmt.Sprintf("%s-%d", strings.ToUpper(hex.EncodeToString(etags.Sum(nil))), len(parts))
		s.put(b, o)
		delete(b.uploads, u.id)
		if b.versioning != "" {
			c.w.Header().Set("X-Oss-Version-Id", o.version)
		}
		s.crcHeader(c, o.content)
		c.encryptionHeaders(o.properties)
		return c.xml(struct {
			XMLName                     xml.Name `xml:"CompleteMultipartUploadResult"`
			EncodingType                string   `xml:",omitempty"`
			Location, Bucket, Key, ETag string
		}{EncodingType: c.query.Get("encoding-type"), Location: "http://" + b.name + ".oss-" + b.region + ".aliyuncs.com/" + escape(u.key, true),
			Bucket: b.name, Key: c.encode(u.key), ETag: `"` + o.etag + `"`})
	})
}

// selectParts checks the parts that a request lists, or takes all there are.
func (u *upload) selectParts(doc completeXML, all bool) ([]*part, error) {
	var parts []*part
	var nums []int
	if all {
		nums = slices.Sorted(maps.Keys(u.parts))
		if len(nums) == 0 {
			return nil, refusal(400, "InvalidPart", "No part was uploaded.")
		}
		for _, n := range nums {
			parts = append(parts, u.parts[n])
		}
	}
	last := 0
	for _, l := range doc.Parts {
		if l.PartNumber <= last {
			return nil, refusal(400, "InvalidPartOrder", "The list of parts was not in ascending order. Parts list must specified in order by part number.").
				with("PartNumber", strconv.Itoa(l.PartNumber))
		}
		last = l.PartNumber
		p := u.parts[l.PartNumber]
		if p == nil || strings.Trim(l.ETag, `"`) != p.etag {
			return nil, refusal(400, "InvalidPart", "One or more of the specified parts could not be found or the specified entity tag might not have matched the part's entity tag.").
				with("PartNumber", strconv.Itoa(l.PartNumber)).with("UploadId", u.id)
		}
		parts, nums = append(parts, p), append(nums, l.PartNumber)
	}
	for i, p := range parts[:len(parts)-1] {
		if p.size < minPartSize {
			return nil, refusal(400, "EntityTooSmall", "Your proposed upload smaller than the minimum allowed size.").
				with("MinSizeAllowed", strconv.Itoa(minPartSize)).with("ProposedSize", strconv.FormatInt(p.size, 10)).
				with("PartNumber", strconv.Itoa(nums[i]))
		}
	}
	return parts, nil
}

func (s *oss) abortUpload(c *call) error {
	return s.withUpload(c, func(b *bucket, u *upload) error {
		delete(b.uploads, u.id)
		return c.empty(http.StatusNoContent)
	})
}

func (s *oss) listParts(c *call) error {
	limit, err := c.limit("max-parts", 1000, 1000)
	if err != nil {
		return err
	}
	marker := 0
	if v := c.query.Get("part-number-marker"); v != "" {
		if marker, err = strconv.Atoi(v); err != nil || marker < 0 {
			return argument("part-number-marker", v, "Invalid part number marker.")
		}
	}
	type listed struct {
		PartNumber         int
		LastModified, ETag string
		HashCrc64ecma      string `xml:",omitempty"`
		Size               int64
	}
	type result struct {
		XMLName              xml.Name `xml:"ListPartsResult"`
		EncodingType         string   `xml:",omitempty"`
		Bucket, Key          string
		UploadID             string `xml:"UploadId"`
		StorageClass         string
		PartNumberMarker     int
		NextPartNumberMarker int
		MaxParts             int
		IsTruncated          bool
		Parts                []listed `xml:"Part"`
	}
	return s.withUpload(c, func(b *bucket, u *upload) error {
		doc := result{EncodingType: c.query.Get("encoding-type"), Bucket: b.name, Key: c.encode(u.key), UploadID: u.id,
			StorageClass: u.class, PartNumberMarker: marker, MaxParts: limit}
		for _, n := range slices.Sorted(maps.Keys(u.parts)) {
			if n <= marker {
				continue
			}
			if doc.IsTruncated = len(doc.Parts) == limit; doc.IsTruncated {
				break
			}
			p := u.parts[n]
			l := listed{PartNumber: n, LastModified: isoTime(p.modified), ETag: `"` + p.etag + `"`, Size: p.size}
			if !s.opt.NoCopyCRC || !p.copied {
				l.HashCrc64ecma = strconv.FormatUint(p.crc, 10)
			}
			doc.Parts = append(doc.Parts, l)
			doc.NextPartNumberMarker = n
		}
		return c.xml(doc)
	})
}

func (s *oss) listUploads(c *call) error {
	limit, err := c.limit("max-uploads", 1000, 1000)
	if err != nil {
		return err
	}
	type listed struct {
		Key          string
		UploadID     string `xml:"UploadId"`
		StorageClass string
		Initiated    string
	}
	type result struct {
		XMLName            xml.Name `xml:"ListMultipartUploadsResult"`
		EncodingType       string   `xml:",omitempty"`
		Bucket             string
		KeyMarker          string
		UploadIDMarker     string `xml:"UploadIdMarker"`
		NextKeyMarker      string
		NextUploadIDMarker string `xml:"NextUploadIdMarker"`
		Delimiter, Prefix  string
		MaxUploads         int
		IsTruncated        bool
		Uploads            []listed       `xml:"Upload"`
		CommonPrefixes     []commonPrefix `xml:"CommonPrefixes"`
	}
	prefix, delimiter := c.query.Get("prefix"), c.query.Get("delimiter")
	marker, idMarker := c.query.Get("key-marker"), c.query.Get("upload-id-marker")
	return s.with(c, func(b *bucket) error {
		doc := result{EncodingType: c.query.Get("encoding-type"), Bucket: b.name, KeyMarker: c.encode(marker), UploadIDMarker: idMarker,
			Delimiter: c.encode(delimiter), Prefix: c.encode(prefix), MaxUploads: limit}
		last := ""
		for _, u := range slices.SortedFunc(maps.Values(b.uploads), compareUploads) {
			name, group := groupOf(u.key, prefix, delimiter)
			switch {
			case name == "" || group && (name == last || name <= marker):
				continue
			case u.key < marker || u.key == marker && (idMarker == "" || u.id <= idMarker):
				continue
			}
			if doc.IsTruncated = len(doc.Uploads)+len(doc.CommonPrefixes) == limit; doc.IsTruncated {
				break
			}
			last = name
			if group {
				doc.CommonPrefixes = append(doc.CommonPrefixes, commonPrefix{c.encode(name)})
				doc.NextKeyMarker, doc.NextUploadIDMarker = c.encode(name), ""
				continue
			}
			doc.Uploads = append(doc.Uploads, listed{c.encode(u.key), u.id, u.class, isoTime(u.initiated)})
			doc.NextKeyMarker, doc.NextUploadIDMarker = c.encode(u.key), u.id
		}
		return c.xml(doc)
	})
}

func compareUploads(a, b *upload) int {
	if v := strings.Compare(a.key, b.key); v != 0 {
		return v
	}
	return strings.Compare(a.id, b.id)
}
