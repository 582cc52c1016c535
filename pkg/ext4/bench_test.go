package ext4

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"remaster/internal/oracle"
	"remaster/pkg/disk"
)

// guestImage is a file system of the size and shape of a cloud image's root: 1944 MiB,
// with a few thousand files.
func guestImage(b *testing.B) string {
	b.Helper()
	if img := os.Getenv("REMASTER_EXT4_IMAGE"); img != "" {
		return img
	}
	src := b.TempDir()
	for i := range 4000 {
		p := filepath.Join(src, fmt.Sprintf("usr/lib/d%02d/file-%04d", i%40, i))
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			b.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(strings.Repeat(p, 40)), 0o644); err != nil {
			b.Fatal(err)
		}
	}
	for _, p := range configFiles {
		p = filepath.Join(src, p)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			b.Fatal(err)
		}
		if err := os.WriteFile(p, []byte("old\n"), 0o644); err != nil {
			b.Fatal(err)
		}
	}
	return mkfs(b, variant{"guest", []string{"-b", "4096", "-O", rhel8}, 1944}, src)
}

var configFiles = []string{
	"boot/grub2/grub.cfg", "boot/grub2/grubenv", "boot/loader/entries/a.conf", "boot/loader/entries/b.conf",
	"etc/default/grub", "etc/kernel/cmdline", "etc/fstab",
}

// place returns the inode at a path, with folders made as needed.
func place(e *Editor, path string, mkdir bool) (Ino, error) {
	at := e.Root()
	for _, name := range strings.Split(path, "/") {
		next, err := e.Lookup(at, name)
		if err != nil && mkdir {
			next, err = e.Mkdir(at, name, Attr{Mode: 0o755})
		}
		if err != nil {
			return 0, err
		}
		at = next
	}
	return at, nil
}

// configJob is the edit of a node image: files replaced, a few made, a link.
func configJob(d disk.Writable) error {
	e, err := Edit(d, EditOptions{Now: now})
	if err != nil {
		return err
	}
	data := disk.Bytes(strings.Repeat("systemd.unified_cgroup_hierarchy=1 cgroup_no_v1=all\n", 40))
	for _, p := range configFiles {
		if ino, err := place(e, p, false); err == nil {
			if err := e.SetContent(ino, data, now); err != nil {
				return err
			}
		}
	}
	label := map[string][]byte{"security.selinux": []byte("system_u:object_r:etc_t:s0\x00")}
	for _, p := range []string{"etc/containerd/config.toml", "etc/systemd/system.conf.d/10-accounting.conf",
		"etc/sysctl.d/99-k8s.conf", "etc/modules-load.d/k8s.conf"} {
		dir, name := filepath.Split(p)
		ino, err := place(e, strings.TrimSuffix(dir, "/"), true)
		if err != nil {
			return err
		}
		if _, err := e.Lookup(ino, name); err == nil {
			continue
		}
		if _, err := e.Create(ino, name, Attr{Mode: 0o644, Xattrs: label}, data); err != nil {
			return err
		}
	}
	wants, err := place(e, "etc/systemd/system/multi-user.target.wants", true)
	if err != nil {
		return err
	}
	if _, err := e.Lookup(wants, "containerd-x.service"); err != nil {
		if _, err := e.Symlink(wants, "containerd-x.service", "/usr/lib/systemd/system/containerd.service", Attr{Xattrs: label}); err != nil {
			return err
		}
	}
	return e.Flush()
}

// BenchmarkConfigJob opens a file system, makes some dozen small changes and flushes,
// with all that is verified afterwards, on an overlay over a file. Set
// REMASTER_EXT4_IMAGE to an image of a file system to run it on that.
func BenchmarkConfigJob(b *testing.B) {
	base := openFile(b, guestImage(b))
	b.ReportAllocs()
	var changed int64
	for b.Loop() {
		ov := disk.NewOverlay(base, disk.OverlayOptions{})
		if err := configJob(ov); err != nil {
			b.Fatal(err)
		}
		changed = 0
		for r := range ov.Changed() {
			changed += r.Len
		}
		ov.Close()
	}
	b.ReportMetric(float64(changed), "changed-B")
}

// BenchmarkDebugfs is a part of the same job with debugfs -w on a copy of the image.
func BenchmarkDebugfs(b *testing.B) {
	img := filepath.Join(b.TempDir(), "copy.img")
	oracle.Run(b, "cp", "--sparse=always", guestImage(b), img)
	data := filepath.Join(b.TempDir(), "data")
	if err := os.WriteFile(data, []byte(strings.Repeat("x", 2000)), 0o644); err != nil {
		b.Fatal(err)
	}
	var cmds strings.Builder
	for _, p := range configFiles {
		fmt.Fprintf(&cmds, "rm /%s\nwrite %s /%s\n", p, data, p)
	}
	for b.Loop() {
		oracle.TryInput(b, []byte(cmds.String()), "debugfs", "-w", "-f", "-", img)
	}
}

// BenchmarkWriteBigFile writes a file of 86 MB, reads it back and verifies it.
func BenchmarkWriteBigFile(b *testing.B) {
	base := openFile(b, mkfs(b, variant{"big", []string{"-b", "4096", "-O", rhel8}, 400}, ""))
	data := make(disk.Bytes, 86<<20)
	for i := range data {
		data[i] = byte(i * 7 >> 3)
	}
	out := openFile(b, filepath.Join(filepath.Dir(base.Name()), "fs.img"))
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		e, err := Edit(writable{disk.AsDisk(out), out}, EditOptions{Now: now})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := e.Create(e.Root(), "containerd", Attr{Mode: 0o755}, data); err != nil {
			b.Fatal(err)
		}
		if err := e.Flush(); err != nil {
			b.Fatal(err)
		}
		if err := e.Remove(e.Root(), "containerd"); err != nil {
			b.Fatal(err)
		}
		if err := e.Flush(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkCreateFiles makes 5,000 files of 300 bytes in a new folder.
func BenchmarkCreateFiles(b *testing.B) {
	base := openFile(b, mkfs(b, variant{"many", []string{"-b", "4096", "-N", "20000", "-O", rhel8}, 400}, ""))
	data := make(disk.Bytes, 300)
	b.ReportAllocs()
	for b.Loop() {
		ov := disk.NewOverlay(base, disk.OverlayOptions{})
		e, err := Edit(ov, EditOptions{Now: now})
		if err != nil {
			b.Fatal(err)
		}
		dir, err := e.Mkdir(e.Root(), "d", Attr{Mode: 0o755})
		if err != nil {
			b.Fatal(err)
		}
		for i := range 5000 {
			if _, err := e.Create(dir, fmt.Sprintf("file-%d", i), Attr{Mode: 0o644}, data); err != nil {
				b.Fatal(err)
			}
		}
		if err := e.Flush(); err != nil {
			b.Fatal(err)
		}
		ov.Close()
	}
}

// BenchmarkWalk looks at every name, inode and attribute of a file system.
func BenchmarkWalk(b *testing.B) {
	base := openFile(b, guestImage(b))
	for b.Loop() {
		f, err := Open(base)
		if err != nil {
			b.Fatal(err)
		}
		if err := walk(f, f.Root(), func(ino Ino) error { _, err := f.Xattrs(ino); return err }); err != nil {
			b.Fatal(err)
		}
	}
}

// walk calls fn with every inode below dir.
func walk(f *FS, dir Ino, fn func(Ino) error) error {
	ents, err := f.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range ents {
		if err := fn(e.Ino); err != nil {
			return err
		}
		if e.Type.IsDir() {
			if err := walk(f, e.Ino, fn); err != nil {
				return err
			}
		}
	}
	return nil
}
