package sandbox

import "net/http"

// route finds the operation of a request.
func route(c *call) (operation, error) {
	table := objectOps
	switch {
	case c.bucket == "":
		table = serviceOps
	case c.key == "":
		table = bucketOps
	}
	found := false
	for _, e := range table[c.r.Method] {
		if e.param != "" && !c.query.Has(e.param) || e.header != "" && c.r.Header.Values(e.header) == nil {
			continue
		}
		found = true
		if e.param == "" && asksForMore(c) {
			break
		}
		return operation{e.name, e.do}, nil
	}
	if found || asksForMore(c) {
		return operation{}, errUnsupported
	}
	return operation{}, errMethod
}

// asksForMore tells whether a request has a parameter that is an operation of its own,
// which the real service would have done instead.
func asksForMore(c *call) bool {
	for name := range c.query {
		if subresources[name] {
			return true
		}
	}
	return false
}

// endpoint is an operation and what tells it from the others of its method.
type endpoint struct {
	param, header string
	name          string
	do            func(*oss, *call) error
}

var subresources = map[string]bool{
	"acl": true, "append": true, "bucketInfo": true, "cname": true, "comp": true, "cors": true, "delete": true,
	"encryption": true, "inventory": true, "lifecycle": true, "location": true, "logging": true, "metaQuery": true,
	"objectMeta": true, "policy": true, "qosInfo": true, "referer": true, "regions": true, "replication": true,
	"requestPayment": true, "resourceGroup": true, "restore": true, "stat": true, "style": true, "symlink": true,
	"tagging": true, "transferAcceleration": true, "uploadId": true, "uploads": true, "versioning": true,
	"versions": true, "website": true, "worm": true, "x-oss-process": true, "callback": true,
}

var serviceOps = map[string][]endpoint{
	http.MethodGet: {
		{param: "regions", name: "DescribeRegions", do: (*oss).describeRegions},
		{name: "ListBuckets", do: (*oss).listBuckets},
	},
}

var bucketOps = map[string][]endpoint{
	http.MethodGet: {
		{param: "bucketInfo", name: "GetBucketInfo", do: (*oss).getBucketInfo},
		{param: "location", name: "GetBucketLocation", do: (*oss).getBucketLocation},
		{param: "acl", name: "GetBucketAcl", do: (*oss).getBucketACL},
		{param: "versioning", name: "GetBucketVersioning", do: (*oss).getBucketVersioning},
		{param: "encryption", name: "GetBucketEncryption", do: (*oss).getBucketEncryption},
		{param: "lifecycle", name: "GetBucketLifecycle", do: (*oss).getBucketLifecycle},
		{param: "uploads", name: "ListMultipartUploads", do: (*oss).listUploads},
		{param: "versions", name: "ListObjectVersions", do: (*oss).listVersions},
		{param: "list-type", name: "ListObjectsV2", do: (*oss).listObjects},
		{name: "ListObjects", do: (*oss).listObjects},
	},
	http.MethodPut: {
		{param: "versioning", name: "PutBucketVersioning", do: (*oss).putBucketVersioning},
		{param: "encryption", name: "PutBucketEncryption", do: (*oss).putBucketEncryption},
		{param: "lifecycle", name: "PutBucketLifecycle", do: (*oss).putBucketLifecycle},
		{name: "PutBucket", do: (*oss).putBucket},
	},
	http.MethodDelete: {
		{param: "encryption", name: "DeleteBucketEncryption", do: (*oss).deleteBucketEncryption},
		{param: "lifecycle", name: "DeleteBucketLifecycle", do: (*oss).deleteBucketLifecycle},
		{name: "DeleteBucket", do: (*oss).deleteBucket},
	},
	http.MethodPost: {
		{param: "delete", name: "DeleteMultipleObjects", do: (*oss).deleteObjects},
	},
}

var objectOps = map[string][]endpoint{
	http.MethodGet: {
		{param: "uploadId", name: "ListParts", do: (*oss).listParts},
		{param: "tagging", name: "GetObjectTagging", do: (*oss).getTagging},
		{param: "objectMeta", name: "GetObjectMeta", do: (*oss).getObjectMeta},
		{name: "GetObject", do: (*oss).getObject},
	},
	http.MethodHead: {
		{param: "objectMeta", name: "GetObjectMeta", do: (*oss).getObjectMeta},
		{name: "HeadObject", do: (*oss).headObject},
	},
	http.MethodPut: {
		{param: "uploadId", header: "X-Oss-Copy-Source", name: "UploadPartCopy", do: (*oss).uploadPartCopy},
		{param: "uploadId", name: "UploadPart", do: (*oss).uploadPart},
		{param: "tagging", name: "PutObjectTagging", do: (*oss).putTagging},
		{header: "X-Oss-Copy-Source", name: "CopyObject", do: (*oss).copyObject},
		{name: "PutObject", do: (*oss).putObject},
	},
	http.MethodPost: {
		{param: "uploads", name: "InitiateMultipartUpload", do: (*oss).initiateUpload},
		{param: "uploadId", name: "CompleteMultipartUpload", do: (*oss).completeUpload},
		{param: "append", name: "AppendObject", do: (*oss).appendObject},
		{param: "restore", name: "RestoreObject", do: (*oss).restoreObject},
	},
	http.MethodDelete: {
		{param: "uploadId", name: "AbortMultipartUpload", do: (*oss).abortUpload},
		{param: "tagging", name: "DeleteObjectTagging", do: (*oss).deleteTagging},
		{name: "DeleteObject", do: (*oss).deleteObject},
	},
}
