package importer

import (
	"context"
	"errors"
	"io"
	"time"
)

// What a Store itself finds wrong with a reply. Another try may help.
var (
	// ErrChecksum says that bytes did not arrive as they were sent.
	ErrChecksum = errors.New("checksum mismatch")
	// ErrRange says that a reply is for other bytes than those asked for.
	ErrRange = errors.New("reply for another range")
)

// Store is an object store, one request a method. Nothing is retried below it: [Retry]
// does that for every Store. Its methods may be called by many goroutines at once, end
// when ctx does, and report refusals of the service as a [*ServiceError].
//
// It is the part of OSS that a transfer needs; internal/alibaba has the real one.
type Store interface {
	// BucketInfo tells where a bucket is.
	BucketInfo(ctx context.Context, bucket string) (BucketInfo, error)
	// Head describes an object. A missing one is a ServiceError with code NoSuchKey.
	Head(ctx context.Context, o Object) (ObjectInfo, error)
	// Read returns the bytes [off, off+n) of an object that still has the ETag
	// ifMatch ("" for any). The reply is refused unless it is just this range.
	Read(ctx context.Context, o Object, ifMatch string, off, n int64) (io.ReadCloser, error)
	// Put writes a small object in one request.
	Put(ctx context.Context, o Object, body []byte, p PutOptions) (ObjectInfo, error)

	// CreateUpload begins a multipart upload.
	CreateUpload(ctx context.Context, o Object, p PutOptions) (Upload, error)
	// UploadPart sends part number num, which replaces an earlier one of that number.
	// Parts are numbered from 1.
	UploadPart(ctx context.Context, u Upload, num int, body io.ReadSeeker, size int64) (Part, error)
	// CopyPart makes part num of the bytes [off, off+n) of src within the service. It
	// fails unless src still has the ETag ifMatch, and unless the reply confirms that
	// just this range was copied.
	CopyPart(ctx context.Context, u Upload, num int, src Object, ifMatch string, off, n int64) (Part, error)
	// ListParts returns the parts that the service has, by number, all pages.
	ListParts(ctx context.Context, u Upload) ([]Part, error)
	// Complete makes the object of the parts. With forbidOverwrite it fails with code
	// FileAlreadyExists if there is one of that name.
	Complete(ctx context.Context, u Upload, parts []Part, forbidOverwrite bool) (ObjectInfo, error)
	// Abort drops an upload and its parts. One that is gone already is no error.
	Abort(ctx context.Context, u Upload) error
	// ListUploads returns the uploads that were begun under a prefix and not ended, all
	// pages.
	ListUploads(ctx context.Context, bucket, prefix string) ([]Upload, error)

	// List returns the objects under a prefix, all pages.
	List(ctx context.Context, bucket, prefix string) ([]ObjectInfo, error)
	// Delete deletes an object. One that is gone already is no error.
	Delete(ctx context.Context, o Object) error
}

// Object names an object.
type Object struct {
	Bucket, Key string
	VersionID   string // "" for the newest
}

func (o Object) String() string { return "oss://" + o.Bucket + "/" + o.Key }

// BucketInfo describes a bucket.
type BucketInfo struct {
	Region       string // "cn-hangzhou", without the prefix "oss-"
	StorageClass string // Standard, IA, Archive, …
	Versioning   bool
	Encryption   string // server-side encryption by default: "", AES256, KMS, SM4
}

// ObjectInfo describes an object.
type ObjectInfo struct {
	Object
	Size         int64 // bytes
	ETag         string
	CRC64        uint64 // CRC-64/XZ (ECMA-182, reflected) of the whole object
	HasCRC64     bool   // the service does not always tell
	StorageClass string
	Type         string // Normal, Multipart, Appendable, Symlink
	Modified     time.Time
	Meta         map[string]string // x-oss-meta-*, names in lower case without the prefix
	Restored     bool              // an archived object that can be read for now
}

// PutOptions are what a new object gets.
type PutOptions struct {
	ForbidOverwrite bool
	Encryption      string // "", AES256, KMS, SM4
	KMSKeyID        string
	Tags            map[string]string
	Meta            map[string]string
	StorageClass    string // "" for the bucket's
}

// Upload is a multipart upload that was begun.
type Upload struct {
	Object
	ID        string
	Initiated time.Time // as the service says; zero if it was not asked
}

// Part is a part of an upload.
type Part struct {
	Num      int
	Size     int64
	ETag     string
	CRC64    uint64
	HasCRC64 bool
}
