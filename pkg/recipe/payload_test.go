package recipe

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"debug/buildinfo"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"remaster/internal/hint"
	"remaster/internal/oracle"
	"remaster/pkg/disk"
	"remaster/pkg/rootfs"
	"remaster/pkg/systemd"
)

// program is an ELF file for a machine that says it is a Go program of that package.
func program(machine uint16, pkg string) string {
	info := "\xff Go buildinf:\x08\x02" + strings.Repeat("\x00", 16) + "\x08go1.26.0"
	mod := strings.Repeat("x", 16) + "path\t" + pkg + "\nmod\tx\t(devel)\n" + strings.Repeat("y", 16)
	info += string(binary.AppendUvarint(nil, uint64(len(mod)))) + mod
	names := "\x00.go.buildinfo\x00.shstrtab\x00"
	le := binary.LittleEndian
	h := make([]byte, 64)
	copy(h, "\x7fELF\x02\x01\x01")
	le.PutUint16(h[18:], machine)
	le.PutUint64(h[40:], uint64(64+len(info)+len(names)))
	le.PutUint16(h[58:], 64)
	le.PutUint16(h[60:], 3)
	le.PutUint16(h[62:], 2)
	section := func(name uint32, at, size int) []byte {
		s := make([]byte, 64)
		le.PutUint32(s, name)
		le.PutUint64(s[24:], uint64(at))
		le.PutUint64(s[32:], uint64(size))
		return s
	}
	out := slices.Concat(h, []byte(info+names))
	out = append(out, make([]byte, 64)...)
	out = append(out, section(1, 64, len(info))...)
	return string(append(out, section(15, 64+len(info), len(names))...))
}

const (
	x86, arm     = 62, 183
	containerd1  = "github.com/containerd/containerd/cmd/containerd"
	containerd2  = "github.com/containerd/containerd/v2/cmd/containerd"
	runcPackage  = "github.com/opencontainers/runc"
	someoneElses = "example.com/tool"
)

func archive(t testing.TB, gz bool, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		content := h.Linkname // regular files keep their content here
		if h.Typeflag == 0 {
			h.Typeflag, h.Linkname, h.Size = tar.TypeReg, "", int64(len(content))
		}
		h.Mode, h.Uid, h.Gid = 0o640, 1001, 127
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := io.WriteString(w, content); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if !gz {
		return b.Bytes()
	}
	return zip(t, b.Bytes())
}

func zip(t testing.TB, p []byte) []byte {
	t.Helper()
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	if _, err := w.Write(p); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return z.Bytes()
}

func file(name, content string) tar.Header { return tar.Header{Name: name, Linkname: content} }
func folder(name string) tar.Header        { return tar.Header{Name: name, Typeflag: tar.TypeDir} }

func payload(t *testing.T, files map[string][]byte) *Payload {
	t.Helper()
	p := NewPayload(t.TempDir())
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, name := range sortedKeys(files) {
		if err := p.Add(t.Context(), name, disk.Bytes(files[name])); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

func releases(t *testing.T, containerd string) map[string][]byte {
	t.Helper()
	return map[string][]byte{
		"containerd-linux-amd64.tar.gz": archive(t, true, folder("bin/"), file("bin/containerd", program(x86, containerd)), file("bin/ctr", program(x86, someoneElses)), file("bin/README", "text")),
		"runc.amd64":                    []byte(program(x86, runcPackage)),
		"cni-plugins-linux-amd64.tgz":   archive(t, true, folder("./"), file("./LICENSE", "text"), file("./bridge", program(x86, someoneElses)), file("./loopback", program(x86, someoneElses))),
	}
}

func TestPayloadOfReleaseFiles(t *testing.T) {
	for major, containerd := range map[int]string{1: containerd1, 2: containerd2} {
		p := payload(t, releases(t, containerd))
		s, rep := plan(t, Recipe{Payload: p}, map[string]string{"/usr/lib/systemd/systemd": program(x86, "")})
		want := []string{
			"create /etc/containerd/config.toml",
			"create /etc/systemd/system/multi-user.target.wants/containerd.service",
			"create /opt/cni/bin/bridge", "create /opt/cni/bin/loopback",
			"create /usr/lib/systemd/system/containerd.service",
			"create /usr/local/bin/containerd", "create /usr/local/bin/ctr", "create /usr/local/sbin/runc",
		}
		got := slices.DeleteFunc(paths(s), func(p string) bool {
			return !slices.Contains(want, p) && (strings.Contains(p, "remaster") || strings.HasPrefix(p, "modify"))
		})
		if !slices.Equal(got, want) || len(rep.Warnings) > 0 {
			t.Errorf("changes %q\nwarnings %q", got, rep.Warnings)
		}
		for _, f := range want[2:4] {
			n, err := s.Lstat(strings.TrimPrefix(f, "create "))
			if err != nil || n.Mode != 0o755 || n.UID != 0 || n.GID != 0 {
				t.Errorf("%s: %+v %v", f, n, err)
			}
		}
		if got := read(t, s, "/usr/local/bin/containerd"); got != program(x86, containerd) {
			t.Errorf("containerd has %d bytes", len(got))
		}
		if got := read(t, s, ContainerdConfig); got != string(newConfig(major)) {
			t.Errorf("containerd %d: %s", major, got)
		}
		if state, err := systemd.IsEnabled(s, unitName); state != systemd.Enabled || err != nil {
			t.Errorf("%s %v", state, err)
		}
	}
}

func TestPayloadOfABundle(t *testing.T) {
	p := payload(t, map[string][]byte{"cri-containerd-cni.tar": archive(t, false,
		file("etc/cni/net.d/10-containerd-net.conflist", "{}"), file("etc/systemd/system/containerd.service", "[Service]"),
		file("usr/local/bin/containerd", program(x86, containerd1)), file("usr/local/sbin/runc", program(x86, runcPackage)),
		file("opt/cni/bin/bridge", program(x86, someoneElses)), file("opt/containerd/cluster/gce/configure.sh", "#!/bin/sh"))})
	s, rep := plan(t, Recipe{Payload: p}, nil)
	for _, f := range []string{"/usr/local/bin/containerd", "/usr/local/sbin/runc", "/opt/cni/bin/bridge"} {
		if _, err := s.Stat(f); err != nil {
			t.Error(err)
		}
	}
	for _, f := range []string{"/etc/cni", "/opt/containerd", "/etc/systemd/system/containerd.service"} {
		if _, err := s.Lstat(f); err == nil {
			t.Errorf("%s is there", f)
		}
	}
	if !strings.Contains(strings.Join(rep.Notes, "\n"), "3 files of the archives") || len(rep.Warnings) != 1 || !strings.Contains(rep.Warnings[0], "which machine") {
		t.Errorf("%+v", rep)
	}
}

func TestPayloadWarnings(t *testing.T) {
	r := releases(t, containerd1)
	delete(r, "runc.amd64")
	_, rep := plan(t, Recipe{Payload: payload(t, r)}, installed(map[string]string{"/usr/lib/systemd/systemd": program(x86, "")}))
	if len(rep.Warnings) != 2 || !strings.Contains(rep.Warnings[0], "no runc") || !strings.Contains(rep.Warnings[1], "starts /usr/bin/containerd") {
		t.Errorf("%q", rep.Warnings)
	}
}

func TestPayloadForAnotherMachineIsRefused(t *testing.T) {
	s := rootfs.NewStage(rootfs.NewGuest(alinux3(map[string]string{"/usr/lib/systemd/systemd": program(arm, "")})))
	_, err := Recipe{Payload: payload(t, releases(t, containerd1))}.Plan(t.Context(), s)
	if !errors.Is(err, disk.ErrUnsupported) || !strings.Contains(err.Error(), "is for x86_64, the image is for aarch64") || len(hint.Of(err)) == 0 {
		t.Error(err)
	}
}

func TestHostilePayloadsAreRefused(t *testing.T) {
	good := file("bin/containerd", program(x86, containerd1))
	many := make([]tar.Header, maxEntries+1)
	for i := range many {
		many[i] = folder(fmt.Sprintf("d%d", i))
	}
	for name, data := range map[string][]byte{
		"traversal":       archive(t, true, good, file("bin/../../etc/passwd", "x")),
		"traversal above": archive(t, true, good, file("../x", "x")),
		"absolute":        archive(t, true, good, file("/etc/passwd", "x")),
		"symlink":         archive(t, true, good, tar.Header{Name: "bin/x", Typeflag: tar.TypeSymlink, Linkname: "/etc"}),
		"hard link":       archive(t, true, good, tar.Header{Name: "bin/x", Typeflag: tar.TypeLink, Linkname: "bin/containerd"}),
		"device":          archive(t, true, good, tar.Header{Name: "bin/x", Typeflag: tar.TypeBlock}),
		"fifo":            archive(t, true, good, tar.Header{Name: "bin/x", Typeflag: tar.TypeFifo}),
		"twice":           archive(t, true, good, good),
		"too many":        archive(t, true, many...),
		"truncated gzip":  archive(t, true, good)[:200],
		"truncated tar":   archive(t, false, good)[:700],
		"other archive":   archive(t, true, file("usr/bin/tool", program(x86, someoneElses))),
		"other program":   []byte(program(x86, someoneElses)),
		"text":            []byte("hello"),
		"empty":           nil,
		"gzip of text":    zip(t, []byte("hello")),
		"bad gzip":        []byte("\x1f\x8bjunk"),
	} {
		p := NewPayload(t.TempDir())
		err := p.Add(t.Context(), name, disk.Bytes(data))
		if err == nil || !errors.Is(err, disk.ErrFormat) && !errors.Is(err, disk.ErrCorrupt) && !errors.Is(err, disk.ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
		if len(p.files) > 0 {
			t.Errorf("%s: %d files are taken", name, len(p.files))
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
}

// zeros is a gzip stream's worth of nothing, made as it is read.
type zeros int64

func (z zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestABombIsRefused(t *testing.T) {
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(w, zeros(0), 16<<20); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	// Members of a gzip file add up.
	p := NewPayload(t.TempDir())
	defer func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}()
	p.limit = 40 << 20
	if err := p.Add(t.Context(), "bomb", disk.Bytes(bytes.Repeat(b.Bytes(), 4))); !errors.Is(err, disk.ErrUnsupported) {
		t.Error(err)
	}
}

func TestAddFileReadsTheRealThing(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{"bin/containerd": program(x86, containerd2), "bin/" + strings.Repeat("long", 24): program(x86, "")} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, format := range []string{"gnu", "pax", "ustar"} {
		out := filepath.Join(dir, format+".tar.gz")
		oracle.Run(t, "tar", "-C", dir, "--format="+format, "-czf", out, "bin")
		p := NewPayload("")
		if err := p.AddFile(t.Context(), out); err != nil || len(p.files) != 2 {
			t.Errorf("%s: %v %d", format, err, len(p.files))
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
	sparse := filepath.Join(dir, "bin/sparse")
	if err := os.WriteFile(sparse, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(sparse, 8<<20); err != nil {
		t.Fatal(err)
	}
	for _, format := range []string{"gnu", "pax"} {
		out := filepath.Join(dir, "s.tar")
		oracle.Run(t, "tar", "-C", dir, "--sparse", "--format="+format, "-cf", out, "bin")
		p := NewPayload("")
		if err := p.AddFile(t.Context(), out); !errors.Is(err, disk.ErrUnsupported) {
			t.Errorf("sparse %s: %v", format, err)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
	p := NewPayload("")
	if err := p.AddFile(t.Context(), dir); err == nil {
		t.Error("a folder is taken")
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.AddFile(ctx, filepath.Join(dir, "gnu.tar.gz")); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}

// TestGoPackageAgreesWithBuildinfo reads this very test.
func TestGoPackageAgreesWithBuildinfo(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(exe)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	want, err := buildinfo.Read(f)
	if err != nil {
		t.Fatal(err)
	}
	if got := goPackage(io.NewSectionReader(f, 0, st.Size())); got != want.Path || got == "" {
		t.Errorf("%q, debug/buildinfo says %q", got, want.Path)
	}
}

func TestContainerdMajor(t *testing.T) {
	for pkg, want := range map[string]int{containerd1: 1, containerd2: 2, someoneElses: 0, "": 0} {
		if got := containerdMajor(disk.Bytes(program(x86, pkg))); got != want {
			t.Errorf("%q: %d", pkg, got)
		}
	}
}

func FuzzGoPackage(f *testing.F) {
	f.Add([]byte(program(x86, containerd1)))
	f.Add([]byte("\x7fELF\x02\x01"))
	f.Fuzz(func(_ *testing.T, data []byte) {
		elfMachine(disk.Bytes(data))
		goPackage(disk.Bytes(data))
	})
}

func FuzzPayload(f *testing.F) {
	f.Add(archive(f, false, folder("bin"), file("bin/containerd", program(x86, containerd1))))
	f.Add(archive(f, true, file("loopback", program(x86, "")), file("bridge", program(x86, ""))))
	f.Fuzz(func(t *testing.T, data []byte) {
		p := NewPayload("")
		p.limit = 1 << 20
		if err := p.Add(t.Context(), "fuzz", disk.Bytes(data)); err == nil {
			for _, file := range p.files {
				if !strings.HasPrefix(file.path, binDir+"/") && !strings.HasPrefix(file.path, cniDir+"/") && !strings.HasPrefix(file.path, sbinDir+"/") {
					t.Error(file.path)
				}
			}
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
}
