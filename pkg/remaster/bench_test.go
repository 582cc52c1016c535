package remaster_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"remaster/internal/testimage"
	"remaster/pkg/recipe"
	"remaster/pkg/remaster"
	"remaster/pkg/sink"
)

// benchImages are the images to measure on: small ones of every format, or the one that
// REMASTER_BENCH_IMAGE names, a real 20 GiB image say.
func benchImages(b *testing.B) map[string]string {
	if path := os.Getenv("REMASTER_BENCH_IMAGE"); path != "" {
		return map[string]string{filepath.Base(path): path}
	}
	raw := testimage.Build(b, "gpt-bls-env")
	images := map[string]string{}
	for _, f := range []testimage.Format{testimage.Raw, testimage.Qcow2, testimage.Qcow2Zlib, testimage.Qcow2Zstd, testimage.VHD} {
		images[string(f)] = testimage.Convert(b, raw, f)
	}
	return images
}

// BenchmarkEdit is everything but the copy of the base: open, plan, edit, verify, and
// bring the edits into the container.
func BenchmarkEdit(b *testing.B) {
	for name, path := range benchImages(b) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				p, err := remaster.MakePlan(context.Background(), open(b, path), recipe.Recipe{}, remaster.Options{})
				if err != nil {
					b.Fatal(err)
				}
				if _, err := p.Output(""); err != nil {
					b.Fatal(err)
				}
				if err := p.Close(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkBuild is the whole job, to a new file of the base's format, without waiting
// for the medium.
func BenchmarkBuild(b *testing.B) {
	for name, path := range benchImages(b) {
		b.Run(name, func(b *testing.B) {
			out := filepath.Join(b.TempDir(), "out")
			for b.Loop() {
				p := plan(b, path, recipe.Recipe{})
				blob, err := p.Output("")
				if err != nil {
					b.Fatal(err)
				}
				if err := sink.File(context.Background(), out, blob, sink.FileOptions{Overwrite: true, NoSync: true}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
