package importer

import (
	"bytes"
	"context"
	"crypto/md5"
	"errors"
	"fmt"
	"hash/crc64"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"remaster/pkg/disk"
)

// memStore is a strict Store in memory, with OSS's rules for parts.
type memStore struct {
	mu      sync.Mutex
	now     time.Time
	next    int
	objects map[Object]*memObject
	uploads map[string]*memUpload
	regions map[string]string // of buckets; others are in cn-hangzhou
	bytes   map[string]int64  // moved, by request

	noListCRC bool // ListParts tells no CRC
	noCRC     bool // nothing tells the CRC of an object made of copies
}

type memObject struct {
	info ObjectInfo
	data []byte
}

type memUpload struct {
	Upload
	opts   PutOptions
	parts  map[int]Part
	data   map[int][]byte
	copied bool
}

func newMemStore() *memStore {
	return &memStore{
		now: time.Unix(1_800_000_000, 0), objects: map[Object]*memObject{}, uploads: map[string]*memUpload{},
		regions: map[string]string{}, bytes: map[string]int64{},
	}
}

func refusal(op string, status int, code string) error {
	return &ServiceError{Op: op, Status: status, Code: code, Message: "refused", RequestID: "R"}
}

func (m *memStore) BucketInfo(_ context.Context, bucket string) (BucketInfo, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.regions[bucket]
	if r == "" {
		r = "cn-hangzhou"
	}
	return BucketInfo{Region: r, StorageClass: "Standard"}, nil
}

func (m *memStore) Head(_ context.Context, o Object) (ObjectInfo, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	x := m.objects[o]
	if x == nil {
		return ObjectInfo{}, refusal("HeadObject", 404, "NoSuchKey")
	}
	return x.info, nil
}

func (m *memStore) Read(_ context.Context, o Object, ifMatch string, off, n int64) (io.ReadCloser, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	x := m.objects[o]
	switch {
	case x == nil:
		return nil, refusal("GetObject", 404, "NoSuchKey")
	case ifMatch != "" && ifMatch != x.info.ETag:
		return nil, refusal("GetObject", 412, "PreconditionFailed")
	case off < 0 || off+n > int64(len(x.data)):
		return nil, refusal("GetObject", 416, "InvalidRange")
	}
	m.bytes["read"] += n
	return io.NopCloser(bytes.NewReader(x.data[off : off+n])), nil
}

// insert makes an object. m.mu is held.
func (m *memStore) insert(o Object, data []byte, p PutOptions, crc bool) (ObjectInfo, error) {
	if p.ForbidOverwrite && m.objects[o] != nil {
		return ObjectInfo{}, refusal("PutObject", 409, "FileAlreadyExists")
	}
	m.next++
	info := ObjectInfo{
		Object: o, Size: int64(len(data)), ETag: fmt.Sprintf("\"%032X\"", m.next), Modified: m.now,
		Type: "Normal", StorageClass: "Standard", Meta: maps.Clone(p.Meta),
	}
	if crc {
		info.CRC64, info.HasCRC64 = crc64.Checksum(data, crcTable), true
	}
	m.objects[o] = &memObject{info, data}
	return info, nil
}

func (m *memStore) Put(_ context.Context, o Object, body []byte, p PutOptions) (ObjectInfo, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.bytes["put"] += int64(len(body))
	return m.insert(o, bytes.Clone(body), p, true)
}

func (m *memStore) CreateUpload(_ context.Context, o Object, p PutOptions) (Upload, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.next++
	u := &memUpload{Upload: Upload{Object: o, ID: fmt.Sprint("u", m.next), Initiated: m.now}, opts: p, parts: map[int]Part{}, data: map[int][]byte{}}
	m.uploads[u.ID] = u
	return u.Upload, nil
}

func (m *memStore) addPart(op string, u Upload, num int, data []byte, copied bool) (Part, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	x := m.uploads[u.ID]
	if x == nil || x.Object != u.Object {
		return Part{}, refusal(op, 404, "NoSuchUpload")
	}
	if num < 1 || num > 10_000 {
		return Part{}, refusal(op, 400, "InvalidArgument")
	}
	p := Part{Num: num, Size: int64(len(data)), ETag: fmt.Sprintf("\"%X\"", md5.Sum(data)), CRC64: crc64.Checksum(data, crcTable), HasCRC64: true}
	x.parts[num], x.data[num] = p, data
	x.copied = x.copied || copied
	m.bytes[op] += int64(len(data))
	if copied {
		p.CRC64, p.HasCRC64 = 0, false
	}
	return p, nil
}

func (m *memStore) UploadPart(ctx context.Context, u Upload, num int, body io.ReadSeeker, size int64) (Part, error) {
	// As clients do: the size is looked up first.
	if n, err := body.Seek(0, io.SeekEnd); err != nil || n != size {
		return Part{}, fmt.Errorf("seek: %d, %v", n, err)
	}
	if _, err := body.Seek(0, io.SeekStart); err != nil {
		return Part{}, err
	}
	data := make([]byte, size)
	for at := 0; at < len(data); {
		n, err := body.Read(data[at:min(at+32<<10, len(data))])
		if at += n; err != nil {
			return Part{}, fmt.Errorf("send: %w", err)
		}
		if err := ctx.Err(); err != nil {
			return Part{}, err
		}
	}
	return m.addPart("UploadPart", u, num, data, false)
}

func (m *memStore) CopyPart(_ context.Context, u Upload, num int, src Object, ifMatch string, off, n int64) (Part, error) {
	m.mu.Lock()
	x := m.objects[src]
	m.mu.Unlock()
	switch {
	case x == nil:
		return Part{}, refusal("UploadPartCopy", 404, "NoSuchKey")
	case x.info.ETag != ifMatch:
		return Part{}, refusal("UploadPartCopy", 412, "PreconditionFailed")
	case off < 0 || n < 1 || off+n > int64(len(x.data)):
		return Part{}, fmt.Errorf("copied %d bytes, not %d: %w", len(x.data), n, ErrRange)
	}
	return m.addPart("UploadPartCopy", u, num, x.data[off:off+n], true)
}

func (m *memStore) ListParts(_ context.Context, u Upload) ([]Part, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	x := m.uploads[u.ID]
	if x == nil {
		return nil, refusal("ListParts", 404, "NoSuchUpload")
	}
	var out []Part
	for _, num := range slices.Sorted(maps.Keys(x.parts)) {
		p := x.parts[num]
		if m.noListCRC {
			p.CRC64, p.HasCRC64 = 0, false
		}
		out = append(out, p)
	}
	return out, nil
}

func (m *memStore) Complete(_ context.Context, u Upload, parts []Part, forbidOverwrite bool) (ObjectInfo, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	x := m.uploads[u.ID]
	if x == nil {
		return ObjectInfo{}, refusal("Complete", 404, "NoSuchUpload")
	}
	var data []byte
	for i, p := range parts {
		have, ok := x.parts[p.Num]
		switch {
		case !ok || have.ETag != p.ETag:
			return ObjectInfo{}, refusal("Complete", 400, "InvalidPart")
		case i > 0 && parts[i-1].Num >= p.Num:
			return ObjectInfo{}, refusal("Complete", 400, "InvalidPartOrder")
		case i < len(parts)-1 && have.Size < 100<<10:
			return ObjectInfo{}, refusal("Complete", 400, "EntityTooSmall")
		}
		data = append(data, x.data[p.Num]...)
	}
	o := x.opts
	o.ForbidOverwrite = forbidOverwrite
	info, err := m.insert(x.Object, data, o, !m.noCRC || !x.copied)
	if err != nil {
		return info, err
	}
	delete(m.uploads, u.ID)
	return info, nil
}

func (m *memStore) Abort(_ context.Context, u Upload) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.uploads, u.ID)
	return nil
}

func (m *memStore) ListUploads(_ context.Context, bucket, prefix string) ([]Upload, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []Upload
	for _, id := range slices.Sorted(maps.Keys(m.uploads)) {
		if u := m.uploads[id]; u.Bucket == bucket && strings.HasPrefix(u.Key, prefix) {
			out = append(out, u.Upload)
		}
	}
	return out, nil
}

func (m *memStore) List(_ context.Context, bucket, prefix string) ([]ObjectInfo, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []ObjectInfo
	for o, x := range m.objects {
		if o.Bucket == bucket && strings.HasPrefix(o.Key, prefix) {
			info := x.info
			info.Meta = nil
			out = append(out, info)
		}
	}
	slices.SortFunc(out, func(a, b ObjectInfo) int { return strings.Compare(a.Key, b.Key) })
	return out, nil
}

func (m *memStore) Delete(_ context.Context, o Object) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.objects, o)
	return nil
}

// fault is what goes wrong with a request.
type fault int

const (
	fine      fault = iota
	refused         // HTTP 503
	throttled       // Throttling.User
	dropped         // the connection breaks in front of the request
	lost            // it breaks behind it: done, and no reply
	damaged         // the part arrives with other bytes
	misranged       // a copy is of another range
	vanished        // the upload is gone
	denied          // HTTP 403
	dead            // the process is: neither this request nor any later one is made
)

// faulty is a Store in which script decides what goes wrong with each request.
type faulty struct {
	Store
	script func(op string) fault

	mu   sync.Mutex
	dead bool
	seen map[string]int
}

var errDead = fmt.Errorf("killed: %w", context.Canceled)

// next returns the fault of a request, and its error if it is not to be made.
func (f *faulty) next(op string) (fault, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dead {
		return dead, errDead
	}
	if f.seen == nil {
		f.seen = map[string]int{}
	}
	f.seen[op]++
	switch x := f.script(op); x {
	case refused:
		return x, refusal(op, http.StatusServiceUnavailable, "ServiceUnavailable")
	case throttled:
		return x, refusal(op, http.StatusBadRequest, "Throttling.User")
	case denied:
		return x, refusal(op, http.StatusForbidden, "AccessDenied")
	case dropped:
		return x, fmt.Errorf("write: %w", syscall.ECONNRESET)
	case dead:
		f.dead = true
		return x, errDead
	default:
		return x, nil
	}
}

// call makes a request with its fault.
func call[T any](f *faulty, op string, do func(fault) (T, error)) (T, error) {
	x, err := f.next(op)
	if err != nil {
		var none T
		return none, err
	}
	v, err := do(x)
	if x == lost && err == nil {
		var none T
		return none, fmt.Errorf("read: %w", syscall.ECONNRESET)
	}
	return v, err
}

func (f *faulty) BucketInfo(ctx context.Context, b string) (BucketInfo, error) {
	return call(f, "BucketInfo", func(fault) (BucketInfo, error) { return f.Store.BucketInfo(ctx, b) })
}

func (f *faulty) Head(ctx context.Context, o Object) (ObjectInfo, error) {
	return call(f, "Head", func(fault) (ObjectInfo, error) { return f.Store.Head(ctx, o) })
}

func (f *faulty) Put(ctx context.Context, o Object, b []byte, p PutOptions) (ObjectInfo, error) {
	return call(f, "Put", func(x fault) (ObjectInfo, error) {
		if x == damaged {
			b = bytes.Clone(b)
			b[len(b)/2] ^= 1
		}
		return f.Store.Put(ctx, o, b, p)
	})
}

func (f *faulty) CreateUpload(ctx context.Context, o Object, p PutOptions) (Upload, error) {
	return call(f, "CreateUpload", func(fault) (Upload, error) { return f.Store.CreateUpload(ctx, o, p) })
}

func (f *faulty) UploadPart(ctx context.Context, u Upload, num int, body io.ReadSeeker, size int64) (Part, error) {
	return call(f, "UploadPart", func(x fault) (Part, error) {
		switch x {
		case vanished:
			return Part{}, errors.Join(f.Store.Abort(ctx, u), refusal("UploadPart", 404, "NoSuchUpload"))
		case damaged:
			data, err := io.ReadAll(body)
			if err != nil {
				return Part{}, err
			}
			data[len(data)/2] ^= 1
			return f.Store.UploadPart(ctx, u, num, bytes.NewReader(data), size)
		}
		return f.Store.UploadPart(ctx, u, num, body, size)
	})
}

func (f *faulty) CopyPart(ctx context.Context, u Upload, num int, src Object, m string, off, n int64) (Part, error) {
	return call(f, "CopyPart", func(x fault) (Part, error) {
		if x == misranged {
			if _, err := f.Store.CopyPart(ctx, u, num, src, m, 0, n+off); err != nil {
				return Part{}, err
			}
			return Part{}, ErrRange
		}
		return f.Store.CopyPart(ctx, u, num, src, m, off, n)
	})
}

func (f *faulty) ListParts(ctx context.Context, u Upload) ([]Part, error) {
	return call(f, "ListParts", func(fault) ([]Part, error) { return f.Store.ListParts(ctx, u) })
}

func (f *faulty) Complete(ctx context.Context, u Upload, parts []Part, forbid bool) (ObjectInfo, error) {
	return call(f, "Complete", func(x fault) (ObjectInfo, error) {
		if x == vanished {
			return ObjectInfo{}, errors.Join(f.Store.Abort(ctx, u), refusal("Complete", 404, "NoSuchUpload"))
		}
		return f.Store.Complete(ctx, u, parts, forbid)
	})
}

func (f *faulty) Abort(ctx context.Context, u Upload) error {
	_, err := call(f, "Abort", func(fault) (int, error) { return 0, f.Store.Abort(ctx, u) })
	return err
}

func (f *faulty) ListUploads(ctx context.Context, b, p string) ([]Upload, error) {
	return call(f, "ListUploads", func(fault) ([]Upload, error) { return f.Store.ListUploads(ctx, b, p) })
}

func (f *faulty) List(ctx context.Context, b, p string) ([]ObjectInfo, error) {
	return call(f, "List", func(fault) ([]ObjectInfo, error) { return f.Store.List(ctx, b, p) })
}

func (f *faulty) Delete(ctx context.Context, o Object) error {
	_, err := call(f, "Delete", func(fault) (int, error) { return 0, f.Store.Delete(ctx, o) })
	return err
}

func (f *faulty) Read(ctx context.Context, o Object, m string, off, n int64) (io.ReadCloser, error) {
	return call(f, "Read", func(fault) (io.ReadCloser, error) { return f.Store.Read(ctx, o, m, off, n) })
}

// storeBlob reads an object of a store, and counts.
type storeBlob struct {
	s    Store
	info ObjectInfo
	mu   sync.Mutex
	n    int64
}

func (b *storeBlob) Size() int64 { return b.info.Size }

func (b *storeBlob) ReadAt(p []byte, off int64) (int, error) {
	n := min(int64(len(p)), b.info.Size-off)
	rc, err := b.s.Read(context.Background(), b.info.Object, b.info.ETag, off, n)
	if err != nil {
		return 0, err
	}
	defer rc.Close()
	b.mu.Lock()
	b.n += n
	b.mu.Unlock()
	k, err := io.ReadFull(rc, p[:n])
	if err == nil && k < len(p) {
		err = io.EOF
	}
	return k, err
}

var _ disk.Blob = (*storeBlob)(nil)
