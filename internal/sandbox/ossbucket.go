package sandbox

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"
)

// bucket is a bucket and all that is in it. It is guarded by the mutex of the service.
type bucket struct {
	name, region string
	class        string // storage class of new objects
	public       bool   // anybody may read its objects
	versioning   string // "", Enabled, Suspended
	encryption   string // of new objects
	kmsKey       string
	lifecycle    []byte // as it was put
	created      time.Time

	objects map[string][]*object // by key: the versions, newest last, at least one
	uploads map[string]*upload   // by id
}

// BucketOption is a property of a new bucket.
type BucketOption func(b *bucket)

// Public lets anybody read the bucket's objects without a signature.
func Public() BucketOption { return func(b *bucket) { b.public = true } }

// StorageClass is that of objects for which none is asked: Standard, IA, Archive, ….
func StorageClass(class string) BucketOption { return func(b *bucket) { b.class = class } }

// Versioned keeps the old versions of objects.
func Versioned() BucketOption { return func(b *bucket) { b.versioning = "Enabled" } }

// The storage classes of OSS, and those that must be restored before they can be read.
var (
	storageClasses = []string{"Standard", "IA", "Archive", "ColdArchive", "DeepColdArchive"}
	coldClasses    = storageClasses[2:]
)

// CreateBucket makes a bucket in a region ("" is the home region), or does nothing if
// there is one of that name there.
func (s *oss) CreateBucket(name, region string, opts ...BucketOption) error {
	if region == "" {
		region = s.opt.Region
	}
	if !validBucket(name) || !slices.Contains(s.opt.Regions, region) {
		return fmt.Errorf("create bucket %q in region %q: invalid name or no such region", name, region)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if b := s.buckets[name]; b != nil {
		if b.region != region {
			return fmt.Errorf("create bucket %q: there is one in region %s", name, b.region)
		}
		return nil
	}
	b := &bucket{name: name, region: region, class: "Standard", created: s.opt.Clock(),
		objects: map[string][]*object{}, uploads: map[string]*upload{}}
	for _, o := range opts {
		o(b)
	}
	s.buckets[name] = b
	return nil
}

// CreateObject puts an object that was there before, unasked.
func (s *oss) CreateObject(bucket, key string, body io.Reader) error {
	data, sum, err := s.store.write(body, maxUpload)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.buckets[bucket]
	if b == nil {
		return fmt.Errorf("bucket %q: %w", bucket, errNoSuchBucket)
	}
	o := &object{key: key, content: data, md5: sum[:], etag: hexETag(sum), kind: "Normal", class: b.class, modified: s.opt.Clock()}
	s.put(b, o)
	return nil
}

// WriteObject writes the bytes of an object to w.
func (s *oss) WriteObject(w io.Writer, bucket, key string) error {
	s.mu.Lock()
	o, err := s.newest(bucket, key)
	s.mu.Unlock()
	if err != nil {
		return err
	}
	_, err = o.copyTo(w, 0, o.size)
	return err
}

// Keys returns the keys of a bucket's objects, sorted.
func (s *oss) Keys(bucket string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.buckets[bucket]
	if b == nil {
		return nil
	}
	return b.keys()
}

// Uploads returns the keys of the uploads that are under way in a bucket, sorted.
func (s *oss) Uploads(bucket string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.buckets[bucket]
	if b == nil {
		return nil
	}
	var keys []string
	for _, u := range b.uploads {
		keys = append(keys, u.key)
	}
	slices.Sort(keys)
	return keys
}

// objectStat describes an object.
type objectStat struct {
	Size   int64
	ETag   string // without quotes
	CRC64  uint64
	Region string // of the bucket
	Class  string // storage class: Standard, IA, Archive, …
}

// Errors of the methods that are for the other half and for tests.
var (
	errNoSuchBucket = errors.New("no such bucket")
	errNoSuchKey    = errors.New("no such object")
)

// newest finds an object. The caller holds the mutex.
func (s *oss) newest(bucket, key string) (object, error) {
	b := s.buckets[bucket]
	if b == nil {
		return object{}, fmt.Errorf("bucket %q: %w", bucket, errNoSuchBucket)
	}
	v := b.objects[key]
	if len(v) == 0 || v[len(v)-1].deleted {
		return object{}, fmt.Errorf("object %q of bucket %q: %w", key, bucket, errNoSuchKey)
	}
	return *v[len(v)-1], nil
}

// stat describes the newest version of an object; the error is errNoSuchBucket or
// errNoSuchKey.
func (s *oss) stat(bucket, key string) (objectStat, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o, err := s.newest(bucket, key)
	if err != nil {
		return objectStat{}, err
	}
	return objectStat{Size: o.size, ETag: o.etag, CRC64: o.crc, Region: s.buckets[bucket].region, Class: o.class}, nil
}

// Stat describes the newest version of an object.
func (s *oss) Stat(bucket, key string) (objectStat, error) { return s.stat(bucket, key) }

// keys are the keys that are not deleted, sorted.
func (b *bucket) keys() []string {
	var keys []string
	for k, v := range b.objects {
		if !v[len(v)-1].deleted {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	return keys
}

// with calls f with the bucket of a request, under the mutex.
func (s *oss) with(c *call, f func(b *bucket) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.buckets[c.bucket]
	if b == nil {
		return errBucketMissing.with("BucketName", c.bucket)
	}
	return f(b)
}

// encryptionRule is the default encryption of a bucket.
type encryptionRule struct {
	XMLName   xml.Name `xml:"ServerSideEncryptionRule"`
	Algorithm string   `xml:"ApplyServerSideEncryptionByDefault>SSEAlgorithm"`
	KMSKey    string   `xml:"ApplyServerSideEncryptionByDefault>KMSMasterKeyID,omitempty"`
}

type owner struct{ ID, DisplayName string }

// theOwner is the account that owns everything.
var theOwner = owner{"1000000000000001", "1000000000000001"}

type bucketXML struct {
	Name, Location, CreationDate, StorageClass string
	ExtranetEndpoint, IntranetEndpoint         string
	Region                                     string
	Owner                                      *owner  `xml:",omitempty"`
	Grant                                      string  `xml:"AccessControlList>Grant,omitempty"`
	DataRedundancyType                         string  `xml:",omitempty"`
	Versioning                                 string  `xml:",omitempty"`
	Encryption                                 *sseXML `xml:"ServerSideEncryptionRule,omitempty"`
}

type sseXML struct {
	SSEAlgorithm   string
	KMSMasterKeyID string `xml:",omitempty"`
}

func (b *bucket) xml() bucketXML {
	return bucketXML{Name: b.name, Location: "oss-" + b.region, CreationDate: isoTime(b.created), StorageClass: b.class,
		ExtranetEndpoint: "oss-" + b.region + ".aliyuncs.com", IntranetEndpoint: "oss-" + b.region + "-internal.aliyuncs.com", Region: b.region}
}

func (b *bucket) acl() string {
	if b.public {
		return "public-read"
	}
	return "private"
}

func (s *oss) getBucketInfo(c *call) error {
	return s.with(c, func(b *bucket) error {
		doc := struct {
			XMLName xml.Name `xml:"BucketInfo"`
			Bucket  bucketXML
		}{Bucket: b.xml()}
		x := &doc.Bucket
		x.Owner, x.Grant, x.DataRedundancyType, x.Versioning = &theOwner, b.acl(), "LRS", b.versioning
		x.Encryption = &sseXML{SSEAlgorithm: "None"}
		if b.encryption != "" {
			x.Encryption = &sseXML{b.encryption, b.kmsKey}
		}
		return c.xml(doc)
	})
}

func (s *oss) getBucketLocation(c *call) error {
	return s.with(c, func(b *bucket) error {
		return c.xml(struct {
			XMLName  xml.Name `xml:"LocationConstraint"`
			Location string   `xml:",chardata"`
		}{Location: "oss-" + b.region})
	})
}

func (s *oss) getBucketACL(c *call) error {
	return s.with(c, func(b *bucket) error {
		return c.xml(struct {
			XMLName xml.Name `xml:"AccessControlPolicy"`
			Owner   owner
			Grant   string `xml:"AccessControlList>Grant"`
		}{Owner: theOwner, Grant: b.acl()})
	})
}

// createBucket is the document that a new bucket may be described by.
type createBucket struct {
	XMLName            xml.Name `xml:"CreateBucketConfiguration"`
	StorageClass       string
	DataRedundancyType string
}

func (s *oss) putBucket(c *call) error {
	var doc createBucket
	if c.r.ContentLength != 0 {
		if err := c.decode(&doc); err != nil {
			return err
		}
	}
	if doc.StorageClass == "" {
		doc.StorageClass = "Standard"
	}
	if !slices.Contains(storageClasses, doc.StorageClass) {
		return argument("StorageClass", doc.StorageClass, "Invalid storage class.")
	}
	region := s.opt.Region
	for _, r := range []string{c.hostRegion, c.signedRegion} {
		if r != "" {
			region = r
		}
	}
	opts := []BucketOption{StorageClass(doc.StorageClass)}
	if strings.HasPrefix(c.r.Header.Get("X-Oss-Acl"), "public-read") {
		opts = append(opts, Public())
	}
	s.mu.Lock()
	b := s.buckets[c.bucket]
	s.mu.Unlock()
	if b != nil && (b.region != region || b.class != doc.StorageClass) || s.CreateBucket(c.bucket, region, opts...) != nil {
		return refusal(409, "BucketAlreadyExists", "The requested bucket name is not available. The bucket namespace is shared by all users of the system. Please select a different name and try again.").
			with("BucketName", c.bucket)
	}
	c.w.Header().Set("Location", "/"+c.bucket)
	return c.empty(http.StatusOK)
}

func (s *oss) deleteBucket(c *call) error {
	return s.with(c, func(b *bucket) error {
		if len(b.objects) > 0 || len(b.uploads) > 0 {
			return refusal(409, "BucketNotEmpty", "The bucket you tried to delete is not empty.").with("BucketName", b.name)
		}
		delete(s.buckets, b.name)
		return c.empty(http.StatusNoContent)
	})
}

func (s *oss) listBuckets(c *call) error {
	limit, err := c.limit("max-keys", 100, 1000)
	if err != nil {
		return err
	}
	type result struct {
		XMLName     xml.Name `xml:"ListAllMyBucketsResult"`
		Prefix      string
		Marker      string
		MaxKeys     int
		IsTruncated bool
		NextMarker  string `xml:",omitempty"`
		Owner       owner
		Buckets     []bucketXML `xml:"Buckets>Bucket"`
	}
	doc := result{Prefix: c.query.Get("prefix"), Marker: c.query.Get("marker"), MaxKeys: limit, Owner: theOwner}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(s.buckets)) {
		if !strings.HasPrefix(name, doc.Prefix) || name <= doc.Marker {
			continue
		}
		if len(doc.Buckets) == limit {
			doc.IsTruncated, doc.NextMarker = true, doc.Buckets[limit-1].Name
			break
		}
		doc.Buckets = append(doc.Buckets, s.buckets[name].xml())
	}
	return c.xml(doc)
}

func (s *oss) describeRegions(c *call) error {
	type info struct{ Region, InternetEndpoint, InternalEndpoint, AccelerateEndpoint string }
	doc := struct {
		XMLName xml.Name `xml:"RegionInfoList"`
		Infos   []info   `xml:"RegionInfo"`
	}{}
	for _, r := range s.opt.Regions {
		if want := c.query.Get("regions"); want != "" && want != "oss-"+r {
			continue
		}
		doc.Infos = append(doc.Infos, info{"oss-" + r, "oss-" + r + ".aliyuncs.com", "oss-" + r + "-internal.aliyuncs.com", "oss-accelerate.aliyuncs.com"})
	}
	if doc.Infos == nil {
		return refusal(404, "NoSuchRegion", "The specified region does not exist.")
	}
	return c.xml(doc)
}

// versioningXML is the state of a bucket's versioning.
type versioningXML struct {
	XMLName xml.Name `xml:"VersioningConfiguration"`
	Status  string   `xml:",omitempty"`
}

func (s *oss) getBucketVersioning(c *call) error {
	return s.with(c, func(b *bucket) error { return c.xml(versioningXML{Status: b.versioning}) })
}

func (s *oss) putBucketVersioning(c *call) error {
	var doc versioningXML
	if err := c.decode(&doc); err != nil {
		return err
	}
	if doc.Status != "Enabled" && doc.Status != "Suspended" {
		return errXML
	}
	return s.with(c, func(b *bucket) error {
		b.versioning = doc.Status
		return c.empty(http.StatusOK)
	})
}

func (s *oss) getBucketEncryption(c *call) error {
	return s.with(c, func(b *bucket) error {
		if b.encryption == "" {
			return refusal(404, "NoSuchServerSideEncryptionRule", "The server side encryption rule does not exist.")
		}
		return c.xml(encryptionRule{Algorithm: b.encryption, KMSKey: b.kmsKey})
	})
}

func (s *oss) putBucketEncryption(c *call) error {
	var doc encryptionRule
	if err := c.decode(&doc); err != nil {
		return err
	}
	if err := checkEncryption(doc.Algorithm, doc.KMSKey); err != nil || doc.Algorithm == "" {
		return errXML
	}
	return s.with(c, func(b *bucket) error {
		b.encryption, b.kmsKey = doc.Algorithm, doc.KMSKey
		return c.empty(http.StatusOK)
	})
}

func (s *oss) deleteBucketEncryption(c *call) error {
	return s.with(c, func(b *bucket) error {
		b.encryption, b.kmsKey = "", ""
		return c.empty(http.StatusNoContent)
	})
}

func (s *oss) getBucketLifecycle(c *call) error {
	return s.with(c, func(b *bucket) error {
		if b.lifecycle == nil {
			return refusal(404, "NoSuchLifecycle", "No Row found in Lifecycle Table.")
		}
		c.w.Header().Set("Content-Type", "application/xml")
		_, _ = c.w.Write(b.lifecycle) // the client may have gone
		return nil
	})
}

// lifecycleXML is what is checked of a bucket's rules: no sandbox lasts as long as they
// take to have an effect.
type lifecycleXML struct {
	XMLName xml.Name                          `xml:"LifecycleConfiguration"`
	Rules   []struct{ Prefix, Status string } `xml:"Rule"`
}

func (s *oss) putBucketLifecycle(c *call) error {
	var raw bytes.Buffer
	c.r.Body = io.NopCloser(io.TeeReader(c.r.Body, &raw))
	var doc lifecycleXML
	if err := c.decode(&doc); err != nil {
		return err
	}
	if len(doc.Rules) == 0 {
		return errXML
	}
	return s.with(c, func(b *bucket) error {
		b.lifecycle = raw.Bytes()
		return c.empty(http.StatusOK)
	})
}

func (s *oss) deleteBucketLifecycle(c *call) error {
	return s.with(c, func(b *bucket) error {
		b.lifecycle = nil
		return c.empty(http.StatusNoContent)
	})
}
