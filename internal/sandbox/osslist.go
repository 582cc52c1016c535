package sandbox

import (
	"encoding/base64"
	"encoding/xml"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// limit reads how much is asked for at most.
func (c *call) limit(name string, def, most int) (int, error) {
	v := c.query.Get(name)
	if v == "" {
		return def, nil
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 1 || n > most {
		return 0, argument(name, v, "Argument "+name+" must be an integer between 1 and "+strconv.Itoa(most)+".")
	}
	return n, nil
}

// encode returns a key as a request wants it in the reply.
func (c *call) encode(key string) string {
	if c.query.Get("encoding-type") == "url" {
		return escape(key, false)
	}
	return key
}

type commonPrefix struct{ Prefix string }

// groupOf returns what a key is listed as: "" if it has not the prefix, and else itself or
// the group that it is in, which ends at the first delimiter after the prefix.
func groupOf(key, prefix, delimiter string) (name string, group bool) {
	rest, ok := strings.CutPrefix(key, prefix)
	if !ok {
		return "", false
	}
	if i := strings.Index(rest, delimiter); i >= 0 && delimiter != "" {
		return prefix + rest[:i+len(delimiter)], true
	}
	return key, false
}

// keysAfter returns the keys and groups after a marker, at most limit, and the last of them if
// there are more.
func keysAfter(keys []string, prefix, delimiter, marker string, limit int) (objects, groups []string, next string) {
	last := ""
	for _, key := range keys {
		name, group := groupOf(key, prefix, delimiter)
		if name == "" || name <= marker || group && name == last {
			continue
		}
		if len(objects)+len(groups) == limit {
			return objects, groups, last
		}
		if last = name; group {
			groups = append(groups, name)
		} else {
			objects = append(objects, name)
		}
	}
	return objects, groups, ""
}

type listedObject struct {
	Key, LastModified, ETag, Type string
	Size                          int64
	StorageClass                  string
	Owner                         *owner `xml:",omitempty"`
}

func (c *call) listed(o *object, withOwner bool) listedObject {
	l := listedObject{Key: c.encode(o.key), LastModified: isoTime(o.modified), ETag: `"` + o.etag + `"`, Type: o.kind,
		Size: o.size, StorageClass: o.class}
	if withOwner {
		l.Owner = &theOwner
	}
	return l
}

// listResult is the reply to both versions of ListObjects.
type listResult struct {
	XMLName               xml.Name `xml:"ListBucketResult"`
	EncodingType          string   `xml:",omitempty"`
	Name, Prefix          string
	Marker                *string `xml:",omitempty"`
	StartAfter            string  `xml:",omitempty"`
	ContinuationToken     string  `xml:",omitempty"`
	MaxKeys               int
	Delimiter             string
	IsTruncated           bool
	NextMarker            string         `xml:",omitempty"`
	NextContinuationToken string         `xml:",omitempty"`
	KeyCount              *int           `xml:",omitempty"`
	Contents              []listedObject `xml:"Contents"`
	CommonPrefixes        []commonPrefix `xml:"CommonPrefixes"`
}

func (s *oss) listObjects(c *call) error {
	limit, err := c.limit("max-keys", 100, 1000)
	if err != nil {
		return err
	}
	q := c.query
	version2 := q.Has("list-type")
	marker := q.Get("marker")
	if version2 {
		if v := q.Get("list-type"); v != "2" {
			return argument("list-type", v, "Invalid list type.")
		}
		marker = q.Get("start-after")
		if t := q.Get("continuation-token"); t != "" {
			b, err := base64.RawURLEncoding.DecodeString(t)
			if err != nil {
				return argument("continuation-token", t, "The continuation token is invalid.")
			}
			marker = string(b)
		}
	}
	return s.with(c, func(b *bucket) error {
		keys, groups, next := keysAfter(b.keys(), q.Get("prefix"), q.Get("delimiter"), marker, limit)
		doc := listResult{EncodingType: q.Get("encoding-type"), Name: b.name, Prefix: c.encode(q.Get("prefix")), MaxKeys: limit,
			Delimiter: c.encode(q.Get("delimiter")), IsTruncated: next != ""}
		for _, k := range keys {
			o, err := b.find(k, "")
			if err != nil {
				return err
			}
			doc.Contents = append(doc.Contents, c.listed(&o, !version2 || q.Get("fetch-owner") == "true"))
		}
		for _, g := range groups {
			doc.CommonPrefixes = append(doc.CommonPrefixes, commonPrefix{c.encode(g)})
		}
		if !version2 {
			m := c.encode(marker)
			doc.Marker, doc.NextMarker = &m, c.encode(next)
			return c.xml(doc)
		}
		n := len(keys) + len(groups)
		doc.KeyCount, doc.StartAfter, doc.ContinuationToken = &n, c.encode(q.Get("start-after")), q.Get("continuation-token")
		if next != "" {
			doc.NextContinuationToken = base64.RawURLEncoding.EncodeToString([]byte(next))
		}
		return c.xml(doc)
	})
}

type listedVersion struct {
	Key                string
	VersionID          string `xml:"VersionId"`
	IsLatest           bool
	LastModified, ETag string
	Type               string
	Size               int64
	StorageClass       string
	Owner              owner
}

type listedMarker struct {
	Key          string
	VersionID    string `xml:"VersionId"`
	IsLatest     bool
	LastModified string
	Owner        owner
}

type listVersionsResult struct {
	XMLName             xml.Name `xml:"ListVersionsResult"`
	EncodingType        string   `xml:",omitempty"`
	Name, Prefix        string
	KeyMarker           string
	VersionIDMarker     string `xml:"VersionIdMarker"`
	MaxKeys             int
	Delimiter           string
	IsTruncated         bool
	NextKeyMarker       string          `xml:",omitempty"`
	NextVersionIDMarker string          `xml:"NextVersionIdMarker,omitempty"`
	Versions            []listedVersion `xml:"Version"`
	Markers             []listedMarker  `xml:"DeleteMarker"`
	CommonPrefixes      []commonPrefix  `xml:"CommonPrefixes"`
}

// room tells whether one more fits on the page, and remembers where the next one begins.
func (d *listVersionsResult) room(key, version string) bool {
	if len(d.Versions)+len(d.Markers)+len(d.CommonPrefixes) == d.MaxKeys {
		d.IsTruncated = true
		return false
	}
	d.NextKeyMarker, d.NextVersionIDMarker = key, version
	return true
}

// listVersions lists all versions, newest first. A page may begin within a key.
func (s *oss) listVersions(c *call) error {
	limit, err := c.limit("max-keys", 100, 1000)
	if err != nil {
		return err
	}
	q := c.query
	prefix, delimiter := q.Get("prefix"), q.Get("delimiter")
	after, afterVersion := q.Get("key-marker"), q.Get("version-id-marker")
	return s.with(c, func(b *bucket) error {
		doc := listVersionsResult{EncodingType: q.Get("encoding-type"), Name: b.name, Prefix: c.encode(prefix), KeyMarker: c.encode(after),
			VersionIDMarker: afterVersion, MaxKeys: limit, Delimiter: c.encode(delimiter)}
		last := ""
		for _, key := range slices.Sorted(maps.Keys(b.objects)) {
			name, group := groupOf(key, prefix, delimiter)
			switch {
			case name == "" || name < after || name == after && (group || afterVersion == "") || group && name == last:
				continue
			case !group:
				c.listKey(&doc, b.objects[key], key == after, afterVersion)
			case doc.room(c.encode(name), ""):
				doc.CommonPrefixes = append(doc.CommonPrefixes, commonPrefix{c.encode(name)})
			}
			if last = name; doc.IsTruncated {
				return c.xml(doc)
			}
		}
		doc.NextKeyMarker, doc.NextVersionIDMarker = "", ""
		return c.xml(doc)
	})
}

// listKey lists the versions of a key, as far as they fit, after the one that the last page
// ended with if it ended within the key.
func (c *call) listKey(doc *listVersionsResult, versions []*object, within bool, after string) {
	for i, o := range slices.Backward(versions) {
		if within {
			within = o.version != after
			continue
		}
		key, latest := c.encode(o.key), i == len(versions)-1
		if !doc.room(key, o.version) {
			return
		}
		if o.deleted {
			doc.Markers = append(doc.Markers, listedMarker{key, o.version, latest, isoTime(o.modified), theOwner})
			continue
		}
		doc.Versions = append(doc.Versions, listedVersion{key, o.version, latest, isoTime(o.modified), `"` + o.etag + `"`, o.kind, o.size, o.class, theOwner})
	}
}
