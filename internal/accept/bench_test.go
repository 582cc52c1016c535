package accept

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"remaster/internal/oracle"
	"remaster/pkg/disk"
	"remaster/pkg/recipe"
	"remaster/pkg/remaster"
	"remaster/pkg/rootfs"
	"remaster/pkg/source"
)

// BenchmarkEdit is the edit itself, without the copy of the image: the preset planned,
// applied, verified and laid over the container; and its peer, debugfs, which writes
// the same files into a raw image and verifies nothing. REMASTER_IMAGE names the image;
// without it, it is the demo's.
func BenchmarkEdit(b *testing.B) {
	image := os.Getenv("REMASTER_IMAGE")
	if image == "" {
		image = "../../testdata/demo/alinux3-demo.qcow2"
	}
	var changes []rootfs.Change
	b.Run("remaster", func(b *testing.B) {
		for b.Loop() {
			changes = edit(b, image)
		}
	})
	b.Run("debugfs", func(b *testing.B) {
		raw := filepath.Join(b.TempDir(), "peer.raw")
		oracle.Run(b, "cp", "--sparse=always", oracle.RawDisk(b, image), raw)
		var root oracle.FileSystem
		for _, f := range oracle.FileSystems(b, raw) {
			if f.Type == "ext4" {
				root = f
			}
		}
		script := debugfsScript(b, changes)
		for b.Loop() {
			oracle.Run(b, "debugfs", "-w", "-f", script, fmt.Sprintf("%s?offset=%d", raw, root.Off))
		}
	})
}

// edit does what build does, but for writing the output.
func edit(b *testing.B, image string) []rootfs.Change {
	b.Helper()
	src, err := source.Open(image)
	if err != nil {
		b.Fatal(err)
	}
	defer src.Close()
	im, err := remaster.Open(src, "")
	if err != nil {
		b.Fatal(err)
	}
	p, err := remaster.MakePlan(b.Context(), im, recipe.Recipe{}, remaster.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer p.Close()
	if _, err := p.Output(""); err != nil {
		b.Fatal(err)
	}
	if len(p.Changes) == 0 {
		b.Fatal("nothing was edited")
	}
	return p.Changes
}

// debugfsScript writes the files of the changes as debugfs can: removed and written
// anew.
func debugfsScript(b *testing.B, changes []rootfs.Change) string {
	b.Helper()
	dir := b.TempDir()
	script, err := os.Create(filepath.Join(dir, "script"))
	if err != nil {
		b.Fatal(err)
	}
	defer script.Close()
	for i, c := range changes {
		if c.After == nil || !c.After.Mode.IsRegular() || c.Op == rootfs.OpAttr {
			continue
		}
		file := filepath.Join(dir, fmt.Sprint(i))
		if err := os.WriteFile(file, content(b, c.After.Content), 0o644); err != nil {
			b.Fatal(err)
		}
		if c.Op == rootfs.OpCreate {
			fmt.Fprintf(script, "mkdir %s\n", filepath.Dir(c.Path))
		}
		fmt.Fprintf(script, "rm %[1]s\nwrite %[2]s %[1]s\n", c.Path, file)
	}
	return script.Name()
}

func content(b *testing.B, c disk.Blob) []byte {
	b.Helper()
	p, err := io.ReadAll(io.NewSectionReader(c, 0, c.Size()))
	if err != nil {
		b.Fatal(err)
	}
	return p
}
