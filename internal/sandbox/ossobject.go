package sandbox

import (
	"crypto/md5"
	"encoding/base64"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Limits of OSS.
const (
	maxUpload   = 5 << 30     // of one request, in bytes
	maxCopy     = 1 << 30     // of CopyObject, in bytes
	maxMeta     = 8 << 10     // of x-oss-meta-*, in bytes
	maxDeleted  = 1000        // of DeleteMultipleObjects
	restoreTime = time.Minute // how long a restore takes
)

// object is a version of an object. What it holds never changes but for its tags and its
// restore, which the mutex of the service guards.
type object struct {
	key, version string
	deleted      bool // it is a delete marker
	content
	md5      []byte // nil if it was not one upload
	etag     string // without quotes
	kind     string // Normal, Multipart, Appendable
	modified time.Time
	class    string
	properties
	restore restore
}

// properties are what a request asks for a new object.
type properties struct {
	headers    http.Header // Content-Type and others that are given back
	meta       http.Header // x-oss-meta-*
	tags       []tag
	encryption string
	kmsKey     string
}

type tag struct{ Key, Value string }

// restore is when an archived object can be read.
type restore struct{ from, until time.Time }

func (o *object) cold() bool { return slices.Contains(coldClasses, o.class) }

func (o *object) readable(now time.Time) bool {
	return !o.cold() || !now.Before(o.restore.from) && now.Before(o.restore.until)
}

func md5Sum(b []byte) [md5.Size]byte { return md5.Sum(b) }

// hexETag is the ETag of what one request uploaded.
func hexETag(sum [md5.Size]byte) string { return strings.ToUpper(hex.EncodeToString(sum[:])) }

// checkMD5 compares the Content-MD5 of a request with the sum of its body.
func (c *call) checkMD5(sum [md5.Size]byte) error {
	v := c.r.Header.Get("Content-Md5")
	if have := base64.StdEncoding.EncodeToString(sum[:]); v != "" && v != have {
		return errDigest.with("ClientMD5", v).with("ServerMD5", have)
	}
	return nil
}

// receive stores the body of a request.
func (s *oss) receive(c *call) (content, [md5.Size]byte, error) {
	if c.r.ContentLength == 0 && c.r.Header.Get("Content-Length") == "" && len(c.r.TransferEncoding) == 0 {
		return content{}, [md5.Size]byte{}, refusal(411, "MissingContentLength", "You must provide the Content-Length HTTP header.")
	}
	if c.r.ContentLength > maxUpload {
		return content{}, [md5.Size]byte{}, errTooLarge
	}
	data, sum, err := s.store.write(c.r.Body, maxUpload)
	if err == nil {
		err = c.checkMD5(sum)
	}
	return data, sum, err
}

// storedHeaders are those of a request that come back with the object.
var storedHeaders = []string{"Content-Type", "Cache-Control", "Content-Disposition", "Content-Encoding", "Content-Language", "Expires"}

// properties reads what a request asks for a new object, with its storage class.
func (c *call) properties() (p properties, class string, err error) {
	p.headers, p.meta = http.Header{}, http.Header{}
	for _, name := range storedHeaders {
		if v := c.r.Header.Get(name); v != "" {
			p.headers.Set(name, v)
		}
	}
	size := 0
	for name, v := range c.r.Header {
		if strings.HasPrefix(name, "X-Oss-Meta-") {
			p.meta[name] = v
			size += len(name) + len(v[0])
		}
	}
	if size > maxMeta {
		return p, "", refusal(400, "InvalidArgument", "The total size of the user metadata exceeds the limit.")
	}
	if p.tags, err = parseTags(c.r.Header.Get("X-Oss-Tagging")); err != nil {
		return p, "", err
	}
	p.encryption, p.kmsKey = c.r.Header.Get("X-Oss-Server-Side-Encryption"), c.r.Header.Get("X-Oss-Server-Side-Encryption-Key-Id")
	if err := checkEncryption(p.encryption, p.kmsKey); err != nil {
		return p, "", err
	}
	class = c.r.Header.Get("X-Oss-Storage-Class")
	if class != "" && !slices.Contains(storageClasses, class) {
		return p, "", argument("x-oss-storage-class", class, "Invalid storage class.")
	}
	return p, class, nil
}

func checkEncryption(algorithm, kmsKey string) error {
	switch algorithm {
	case "", "AES256", "SM4":
		if kmsKey != "" {
			return argument("x-oss-server-side-encryption-key-id", kmsKey, "A KMS key id is given but the encryption is not KMS.")
		}
	case "KMS":
	default:
		return refusal(400, "InvalidEncryptionAlgorithmError", "The Encryption request you specified is not valid. Supported value: AES256/KMS/SM4.")
	}
	return nil
}

// withDefaults fills in what the bucket says where the request says nothing.
func (b *bucket) withDefaults(p properties, class string) (properties, string) {
	if p.encryption == "" {
		p.encryption, p.kmsKey = b.encryption, b.kmsKey
	}
	if class == "" {
		class = b.class
	}
	return p, class
}

// mayOverwrite refuses a request that forbids to overwrite, if there is something.
func (b *bucket) mayOverwrite(c *call) error {
	v := b.objects[c.key]
	if c.r.Header.Get("X-Oss-Forbid-Overwrite") == "true" && b.versioning == "" && len(v) > 0 {
		return errExists.with("ObjectName", c.key)
	}
	return nil
}

// put makes o the newest version of its key and gives it its version id.
func (s *oss) put(b *bucket, o *object) {
	o.version = "null"
	v := b.objects[o.key]
	if b.versioning == "Enabled" {
		o.version = s.opt.ids.hex(64)
	} else {
		v = slices.DeleteFunc(v, func(old *object) bool { return old.version == "null" })
	}
	b.objects[o.key] = append(v, o)
}

// find returns a copy of the version of a key that a request means, "" being the newest.
func (b *bucket) find(key, version string) (object, error) {
	v := b.objects[key]
	if version != "" {
		i := slices.IndexFunc(v, func(o *object) bool { return o.version == version })
		if i < 0 {
			return object{}, errVersionGone.with("Key", key).with("VersionId", version)
		}
		if v[i].deleted {
			return object{}, errMethod
		}
		return *v[i], nil
	}
	if len(v) == 0 || v[len(v)-1].deleted {
		return object{}, errKeyMissing.with("Key", key)
	}
	return *v[len(v)-1], nil
}

// lookup returns the object that a request means.
func (s *oss) lookup(c *call) (o object, err error) {
	err = s.with(c, func(b *bucket) error {
		o, err = b.find(c.key, c.query.Get("versionId"))
		if b.versioning != "" && err == nil {
			c.w.Header().Set("X-Oss-Version-Id", o.version)
		}
		return err
	})
	return o, err
}

// commit makes an object of what a request brought.
func (s *oss) commit(c *call, o *object, class string) error {
	return s.with(c, func(b *bucket) error {
		if err := b.mayOverwrite(c); err != nil {
			return err
		}
		o.properties, o.class = b.withDefaults(o.properties, class)
		s.put(b, o)
		if b.versioning != "" {
			c.w.Header().Set("X-Oss-Version-Id", o.version)
		}
		return nil
	})
}

// crcHeader gives the checksum of content, unless the sandbox is to be silent about it.
func (s *oss) crcHeader(c *call, data content) {
	if !s.opt.NoCopyCRC || !data.copied {
		c.w.Header().Set(headerCRC64, strconv.FormatUint(data.crc, 10))
	}
}

func (c *call) encryptionHeaders(p properties) {
	if p.encryption != "" {
		c.w.Header().Set("X-Oss-Server-Side-Encryption", p.encryption)
		if p.kmsKey != "" {
			c.w.Header().Set("X-Oss-Server-Side-Encryption-Key-Id", p.kmsKey)
		}
	}
}

func (s *oss) putObject(c *call) error {
	p, class, err := c.properties()
	if err != nil {
		return err
	}
	if err := s.with(c, func(b *bucket) error { return b.mayOverwrite(c) }); err != nil {
		return err
	}
	data, sum, err := s.receive(c)
	if err != nil {
		return err
	}
	o := &object{key: c.key, content: data, md5: sum[:], etag: hexETag(sum), kind: "Normal", modified: c.now, properties: p}
	if err := s.commit(c, o, class); err != nil {
		return err
	}
	c.w.Header().Set("ETag", `"`+o.etag+`"`)
	c.w.Header().Set("Content-Md5", base64.StdEncoding.EncodeToString(sum[:]))
	s.crcHeader(c, data)
	c.encryptionHeaders(o.properties)
	return c.empty(http.StatusOK)
}

// appendObject adds to the end of an object that was made so.
func (s *oss) appendObject(c *call) error {
	p, class, err := c.properties()
	if err != nil {
		return err
	}
	position, err := strconv.ParseInt(c.query.Get("position"), 10, 64)
	if err != nil || position < 0 {
		return argument("position", c.query.Get("position"), "The position is not a number.")
	}
	data, _, err := s.receive(c)
	if err != nil {
		return err
	}
	return s.with(c, func(b *bucket) error {
		o := &object{key: c.key, kind: "Appendable", properties: p}
		o.properties, o.class = b.withDefaults(p, class)
		if old, err := b.find(c.key, ""); err == nil {
			if old.kind != "Appendable" {
				return refusal(409, "ObjectNotAppendable", "The object is not appendable")
			}
			*o = old
		}
		if position != o.size {
			c.w.Header().Set("X-Oss-Next-Append-Position", strconv.FormatInt(o.size, 10))
			return refusal(409, "PositionNotEqualToLength", "Position is not equal to file length")
		}
		o.content = join([]content{o.content, data})
		o.etag, o.modified = copyETag(o.content), c.now
		s.put(b, o)
		c.w.Header().Set("X-Oss-Next-Append-Position", strconv.FormatInt(o.size, 10))
		s.crcHeader(c, o.content)
		return c.empty(http.StatusOK)
	})
}

// copyETag is the ETag of what was not uploaded in one request. The real one is a digest
// of the bytes too, which would have to be read for it.
func copyETag(data content) string {
	return hexETag(md5Sum(fmt.Appendf(nil, "%d bytes, %d", data.size, data.crc)))
}

// copySource is what x-oss-copy-source means, as of now.
func (s *oss) copySource(c *call, target *bucket) (object, error) {
	bucketName, key, version, err := parseCopySource(c.r.Header.Get("X-Oss-Copy-Source"))
	if err != nil {
		return object{}, err
	}
	b := s.buckets[bucketName]
	if b == nil {
		return object{}, errBucketMissing.with("BucketName", bucketName)
	}
	o, err := b.find(key, version)
	switch {
	case err != nil:
		return o, err
	case b.region != target.region:
		return o, refusal(403, "AccessDenied", "Target object does not reside in the same data center as source object.") //nolint:misspell // the service's words
	case !o.readable(c.now):
		return o, errState.with("ObjectName", key)
	case o.kind == "Appendable":
		return o, refusal(400, "OperationNotSupported", "Objects that were made by AppendObject cannot be copied.")
	}
	if b.versioning != "" {
		c.w.Header().Set("X-Oss-Copy-Source-Version-Id", o.version)
	}
	return o, checkConditions(c.r.Header, "X-Oss-Copy-Source-", &o)
}

func (s *oss) copyObject(c *call) error {
	p, class, err := c.properties()
	if err != nil {
		return err
	}
	var o *object
	err = s.with(c, func(b *bucket) error {
		src, err := s.copySource(c, b)
		if err != nil {
			return err
		}
		if src.size > maxCopy {
			return errTooBig.with("MaxSizeAllowed", strconv.Itoa(maxCopy)).with("ProposedSize", strconv.FormatInt(src.size, 10))
		}
		if d := c.r.Header.Get("X-Oss-Metadata-Directive"); d != "REPLACE" {
			p.headers, p.meta = src.headers, src.meta
		}
		if d := c.r.Header.Get("X-Oss-Tagging-Directive"); !strings.EqualFold(d, "Replace") {
			p.tags = src.tags
		}
		o = &object{key: c.key, content: src.content, md5: src.md5, etag: src.etag, kind: "Normal", modified: c.now, properties: p}
		o.copied = true
		return nil
	})
	if err != nil {
		return err
	}
	if err := s.commit(c, o, class); err != nil {
		return err
	}
	s.opt.audit.bytes(0, 0, o.size)
	s.crcHeader(c, o.content)
	c.encryptionHeaders(o.properties)
	return c.xml(struct {
		XMLName            xml.Name `xml:"CopyObjectResult"`
		LastModified, ETag string
	}{LastModified: isoTime(c.now), ETag: `"` + o.etag + `"`})
}
