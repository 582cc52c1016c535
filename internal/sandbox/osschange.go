package sandbox

import (
	"encoding/xml"
	"net/http"
	"slices"
	"time"
)

func (s *oss) deleteObject(c *call) error {
	return s.with(c, func(b *bucket) error {
		version, marker := s.remove(b, c.key, c.query.Get("versionId"))
		if version != "" {
			c.w.Header().Set("X-Oss-Version-Id", version)
		}
		if marker {
			c.w.Header().Set("X-Oss-Delete-Marker", "true")
		}
		return c.empty(http.StatusNoContent)
	})
}

// remove deletes a version of a key, or marks the key as deleted where versions are kept;
// what is not there is deleted too. It returns the version that came or went, and whether
// that is a marker.
func (s *oss) remove(b *bucket, key, version string) (string, bool) {
	v := b.objects[key]
	if version == "" && b.versioning != "" {
		o := &object{key: key, deleted: true, modified: s.opt.Clock()}
		s.put(b, o)
		return o.version, true
	}
	keep := b.versioning != ""
	marker := false
	v = slices.DeleteFunc(v, func(o *object) bool {
		gone := version == "" || o.version == version
		marker = marker || gone && o.deleted
		return gone
	})
	if b.objects[key] = v; len(v) == 0 {
		delete(b.objects, key)
	}
	if !keep {
		return "", false
	}
	return version, marker
}

// deleteXML names the objects to delete.
type deleteXML struct {
	XMLName xml.Name `xml:"Delete"`
	Quiet   bool
	Objects []struct {
		Key       string
		VersionID string `xml:"VersionId"`
	} `xml:"Object"`
}

func (s *oss) deleteObjects(c *call) error {
	if c.r.Header.Get("Content-Md5") == "" {
		return refusal(400, "MissingArgument", "Missing Some Required Arguments.").with("ArgumentName", "Content-MD5")
	}
	var doc deleteXML
	if err := c.decode(&doc); err != nil {
		return err
	}
	if len(doc.Objects) == 0 || len(doc.Objects) > maxDeleted {
		return errXML
	}
	type deleted struct {
		Key          string
		VersionID    string `xml:"VersionId,omitempty"`
		DeleteMarker bool   `xml:",omitempty"`
		MarkerID     string `xml:"DeleteMarkerVersionId,omitempty"`
	}
	result := struct {
		XMLName      xml.Name  `xml:"DeleteResult"`
		EncodingType string    `xml:",omitempty"`
		Deleted      []deleted `xml:"Deleted"`
	}{EncodingType: c.query.Get("encoding-type")}
	return s.with(c, func(b *bucket) error {
		for _, o := range doc.Objects {
			version, marker := s.remove(b, o.Key, o.VersionID)
			d := deleted{Key: c.encode(o.Key), VersionID: o.VersionID, DeleteMarker: marker}
			if marker {
				d.MarkerID = version
			}
			result.Deleted = append(result.Deleted, d)
		}
		if doc.Quiet {
			result.Deleted = nil
		}
		return c.xml(result)
	})
}

// restoreXML asks for an archived object.
type restoreXML struct {
	XMLName xml.Name `xml:"RestoreRequest"`
	Days    int
}

func (s *oss) restoreObject(c *call) error {
	doc := restoreXML{Days: 1}
	if c.r.ContentLength != 0 {
		if err := c.decode(&doc); err != nil {
			return err
		}
	}
	if doc.Days < 1 || doc.Days > 365 {
		return errXML
	}
	return s.change(c, func(o *object) error {
		status := http.StatusOK
		switch {
		case !o.cold():
			return refusal(400, "OperationNotSupported", "The operation is not supported for this resource")
		case c.now.Before(o.restore.from):
			return refusal(409, "RestoreAlreadyInProgress", "The restore operation is in progress.")
		case !o.readable(c.now):
			o.restore.from = c.now.Add(restoreTime)
			status = http.StatusAccepted
		}
		o.restore.until = maxTime(c.now, o.restore.from).AddDate(0, 0, doc.Days)
		return c.empty(status)
	})
}

func maxTime(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// change calls f with the object that a request means, under the mutex.
func (s *oss) change(c *call, f func(o *object) error) error {
	return s.with(c, func(b *bucket) error {
		found, err := b.find(c.key, c.query.Get("versionId"))
		if err != nil {
			return err
		}
		i := slices.IndexFunc(b.objects[c.key], func(o *object) bool { return o.version == found.version })
		return f(b.objects[c.key][i])
	})
}

// taggingXML are the tags of an object.
type taggingXML struct {
	XMLName xml.Name `xml:"Tagging"`
	Tags    []tag    `xml:"TagSet>Tag"`
}

func (s *oss) getTagging(c *call) error {
	return s.change(c, func(o *object) error { return c.xml(taggingXML{Tags: o.tags}) })
}

func (s *oss) putTagging(c *call) error {
	var doc taggingXML
	if err := c.decode(&doc); err != nil {
		return err
	}
	if err := checkTags(doc.Tags); err != nil {
		return err
	}
	return s.change(c, func(o *object) error {
		o.tags = doc.Tags
		return c.empty(http.StatusOK)
	})
}

func (s *oss) deleteTagging(c *call) error {
	return s.change(c, func(o *object) error {
		o.tags = nil
		return c.empty(http.StatusNoContent)
	})
}
