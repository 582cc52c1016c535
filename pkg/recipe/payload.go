package recipe

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/klauspost/compress/gzip"

	"remaster/internal/hint"
	"remaster/pkg/disk"
	"remaster/pkg/rootfs"
	"remaster/pkg/systemd"
)

// Limits of what an archive may hold. The release files of containerd, runc and the CNI
// plugins together have some hundred entries and 300 MB.
const (
	maxUnpacked = 1 << 30
	maxEntries  = 4096
)

// Places of what the release files hold, as their own instructions have them.
const (
	binDir  = "/usr/local/bin"
	sbinDir = "/usr/local/sbin"
	cniDir  = "/opt/cni/bin"
)

// Payload is a set of files to put into a guest: the releases of containerd, runc and
// the CNI plugins. Their contents lie in a temporary file without a name and are read
// when they are written to the guest, so that memory does not grow with them. It is used
// by one goroutine at a time.
type Payload struct {
	dir   string
	limit int64 // of unpacked bytes
	open  []*os.File
	files []payloadFile
	left  []string // what was left out of bundles
}

type payloadFile struct {
	path    string
	from    string // the archive
	content disk.Blob
	machine uint16
}

// NewPayload returns an empty payload, whose temporary files will be in dir, or in
// [os.TempDir] if dir is "". Close it when the changes have been applied.
func NewPayload(dir string) *Payload { return &Payload{dir: dir, limit: maxUnpacked} }

// Close releases the temporary files and those opened by AddFile.
func (p *Payload) Close() error {
	var errs []error
	for _, f := range p.open {
		errs = append(errs, f.Close())
	}
	p.open, p.files = nil, nil
	return errors.Join(errs...)
}

// AddFile is Add for a file on the host.
func (p *Payload) AddFile(ctx context.Context, name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	p.open = append(p.open, f)
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file: %w", name, fs.ErrInvalid)
	}
	return p.Add(ctx, filepath.Base(name), io.NewSectionReader(f, 0, st.Size()))
}

// Add takes a release file, which must be readable until Close: an archive of
// containerd (with bin/containerd), a bundle of everything (with
// usr/local/bin/containerd), an archive of CNI plugins, each as .tar or .tar.gz, or the
// program runc. What it is follows from what is in it; name is for messages.
//
// An archive that holds anything but files and folders, a path that leads out of it, or
// more than the limits allow, is refused. The error wraps disk.ErrFormat if the file is
// none of these.
func (p *Payload) Add(ctx context.Context, name string, b disk.Blob) error {
	if err := p.add(ctx, name, b); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func (p *Payload) add(ctx context.Context, name string, b disk.Blob) error {
	head := make([]byte, min(512, b.Size()))
	if err := disk.ReadFull(b, head, 0); err != nil {
		return err
	}
	if bytes.HasPrefix(head, []byte("\x7fELF")) {
		if !strings.HasPrefix(goPackage(b), "github.com/opencontainers/runc") && !strings.HasPrefix(name, "runc") {
			return unknownPayload("a program that is not runc")
		}
		return p.put(sbinDir+"/runc", name, b)
	}
	if bytes.HasPrefix(head, []byte{0x1f, 0x8b}) {
		var err error
		if b, err = p.unzip(ctx, b); err != nil {
			return err
		}
	} else if len(head) < 262 || !bytes.HasPrefix(head[257:], []byte("ustar")) {
		return unknownPayload("neither a program nor a .tar or .tar.gz archive")
	}
	entries, err := untar(ctx, b)
	if err != nil {
		return err
	}
	return p.place(name, entries)
}

func unknownPayload(what string) error {
	return hint.With(fmt.Errorf("%s: %w", what, disk.ErrFormat),
		"give the release files of containerd (containerd-VERSION-linux-ARCH.tar.gz), runc (runc.ARCH) or the CNI plugins (cni-plugins-linux-ARCH-VERSION.tgz)")
}

// unzip decompresses b into a temporary file.
func (p *Payload) unzip(ctx context.Context, b disk.Blob) (disk.Blob, error) {
	z, err := gzip.NewReader(io.NewSectionReader(b, 0, b.Size()))
	if err != nil {
		return nil, fmt.Errorf("gzip: %w: %w", err, disk.ErrCorrupt)
	}
	f, err := disk.TempFile(p.dir)
	if err != nil {
		return nil, err
	}
	p.open = append(p.open, f)
	n, err := io.CopyBuffer(struct{ io.Writer }{f}, io.LimitReader(ctxReader{ctx, z}, p.limit+1), make([]byte, 256<<10))
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, gzip.ErrChecksum), errors.Is(err, gzip.ErrHeader):
		return nil, fmt.Errorf("gzip: %w: %w", err, disk.ErrCorrupt)
	case err != nil:
		return nil, fmt.Errorf("unpack: %w", err)
	case n > p.limit:
		return nil, fmt.Errorf("unpacks to more than %d bytes: %w", p.limit, disk.ErrUnsupported)
	}
	return io.NewSectionReader(f, 0, n), nil
}

// ctxReader stops reading when its context is done.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (r ctxReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

// untar lists the regular files of an archive by path, without "./" in front. Their
// contents are windows of b.
func untar(ctx context.Context, b disk.Blob) (map[string]disk.Blob, error) {
	files := map[string]disk.Blob{}
	r := io.NewSectionReader(b, 0, b.Size())
	tr := tar.NewReader(r)
	for n := 0; ; n++ {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return files, nil
		}
		if err != nil {
			return nil, fmt.Errorf("tar: %w: %w", err, disk.ErrCorrupt)
		}
		if n >= maxEntries {
			return nil, fmt.Errorf("more than %d entries: %w", maxEntries, disk.ErrUnsupported)
		}
		name := path.Clean(h.Name)
		if name == "." && h.Typeflag == tar.TypeDir || h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		if !fs.ValidPath(name) || name == "." || strings.ContainsAny(name, "\x00\\") {
			return nil, fmt.Errorf("entry %q leads out of the archive: %w", h.Name, disk.ErrCorrupt)
		}
		switch h.Typeflag {
		case tar.TypeDir:
			continue
		case tar.TypeReg:
		default:
			return nil, fmt.Errorf("entry %s is a link or a device (type %q): %w", name, h.Typeflag, disk.ErrUnsupported)
		}
		for key := range h.PAXRecords {
			if strings.HasPrefix(key, "GNU.sparse.") {
				return nil, fmt.Errorf("entry %s is sparse: %w", name, disk.ErrUnsupported)
			}
		}
		// The reader takes whole headers and nothing ahead, so that the content of the
		// entry is what comes next.
		at, err := r.Seek(0, io.SeekCurrent)
		if err != nil {
			return nil, err
		}
		if h.Size < 0 || h.Size > b.Size()-at {
			return nil, fmt.Errorf("entry %s of %d bytes ends behind the archive: %w", name, h.Size, disk.ErrCorrupt)
		}
		if _, dup := files[name]; dup {
			return nil, fmt.Errorf("entry %s is there twice: %w", name, disk.ErrCorrupt)
		}
		files[name] = io.NewSectionReader(b, at, h.Size)
	}
}

// place finds out what an archive is and where its files belong. Only programs are
// taken: documentation, and the files of bundles that configure a node in their own
// way, are left out.
func (p *Payload) place(from string, entries map[string]disk.Blob) error {
	var dirs map[string]string
	switch {
	case entries["bin/containerd"] != nil:
		dirs = map[string]string{"bin": binDir}
	case entries["usr/local/bin/containerd"] != nil:
		dirs = map[string]string{"usr/local/bin": binDir, "usr/local/sbin": sbinDir, "opt/cni/bin": cniDir}
	case entries["loopback"] != nil && entries["bridge"] != nil:
		dirs = map[string]string{".": cniDir}
	default:
		return unknownPayload("an archive of something else than containerd or CNI plugins")
	}
	for _, name := range sortedKeys(entries) {
		dir, ok := dirs[path.Dir(name)]
		if _, elf := elfMachine(entries[name]); !ok || !elf && !isScript(entries[name]) {
			p.left = append(p.left, from+": "+name)
			continue
		}
		if err := p.put(dir+"/"+path.Base(name), from, entries[name]); err != nil {
			return err
		}
	}
	return nil
}

func isScript(b disk.Blob) bool {
	var head [2]byte
	return disk.ReadFull(b, head[:], 0) == nil && string(head[:]) == "#!"
}

func (p *Payload) put(to, from string, b disk.Blob) error {
	for _, f := range p.files {
		if f.path == to {
			return fmt.Errorf("%s is in %s too: %w", to, f.from, fs.ErrExist)
		}
	}
	machine, _ := elfMachine(b)
	p.files = append(p.files, payloadFile{to, from, b, machine})
	return nil
}

// has reports whether the payload has a file for that path. p may be nil.
func (p *Payload) has(path string) bool {
	return p != nil && slices.ContainsFunc(p.files, func(f payloadFile) bool { return f.path == path })
}

// containerdUnit starts what the release archive of containerd holds.
const containerdUnit = `[Unit]
Description=containerd container runtime
Documentation=https://containerd.io
After=network.target local-fs.target

[Service]
Type=notify
ExecStartPre=-/sbin/modprobe overlay
ExecStart=/usr/local/bin/containerd
# Containers outlive a restart of the daemon, and have cgroups of their own below it.
KillMode=process
Delegate=yes
Restart=always
RestartSec=5
LimitNOFILE=1048576
LimitNPROC=infinity
LimitCORE=infinity
TasksMax=infinity
OOMScoreAdjust=-999

[Install]
WantedBy=multi-user.target
`

// payload plans the files of the payload and, if the image has none, a unit for
// containerd. The unit goes where packages put theirs, so that one that comes with a
// package later takes its place.
func (p *planner) payload(context.Context) error {
	if p.Payload == nil {
		return nil
	}
	machine, known := guestMachine(p.s)
	for _, f := range p.Payload.files {
		if known && f.machine != 0 && f.machine != machine {
			return hint.With(fmt.Errorf("%s: %s is for %s, the image is for %s: %w", f.from, path.Base(f.path), machineName(f.machine), machineName(machine), disk.ErrUnsupported),
				"give the release files for the machine of the image")
		}
		n := &rootfs.Node{Mode: 0o755, Links: 1, Content: f.content}
		if err := p.s.Put(f.path, n, "from "+f.from); err != nil {
			return err
		}
	}
	if !known && len(p.Payload.files) > 0 {
		p.rep.warn("which machine the image is for is unknown: the programs that are put in are not checked against it")
	}
	if n := len(p.Payload.left); n > 0 {
		p.rep.note("%d files of the archives are no programs and are left out (%s)", n, strings.Join(p.Payload.left[:min(n, 3)], ", "))
	}
	if !p.Payload.has(binDir + "/containerd") {
		return nil
	}
	if !p.Payload.has(sbinDir+"/runc") && !p.Payload.has(binDir+"/runc") {
		if there, err := p.anyOf("/usr/bin/runc", "/usr/sbin/runc", "/usr/local/sbin/runc", "/usr/local/bin/runc"); err != nil {
			return err
		} else if !there {
			p.rep.warn("there is no runc, neither in the image nor among the archives: containerd cannot run containers without it")
		}
	}
	if err := systemd.Unmask(p.s, unitName, "containerd was masked"); err != nil {
		return err
	}
	if _, err := systemd.Find(p.s, unitName); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return p.s.WriteFile(unitFile, []byte(containerdUnit), "containerd starts as a service")
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
