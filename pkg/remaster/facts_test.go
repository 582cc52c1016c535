package remaster_test

import (
	"bytes"
	"slices"
	"testing"

	"remaster/internal/testimage"
	"remaster/pkg/disk"
	"remaster/pkg/recipe"
	"remaster/pkg/remaster"
)

// withBootCode is an image with boot code in its first sector, whatever it had there.
func withBootCode(t *testing.T, path string) *remaster.Image {
	t.Helper()
	o := disk.NewOverlay(open(t, path).Disk, disk.OverlayOptions{})
	t.Cleanup(func() { o.Close() })
	if _, err := o.WriteAt(bytes.Repeat([]byte{0xeb}, 440), 0); err != nil {
		t.Fatal(err)
	}
	im, err := remaster.Open(o, "")
	if err != nil {
		t.Fatal(err)
	}
	return im
}

func TestFactsOfTheImage(t *testing.T) {
	for layout, want := range map[string]struct {
		modes    []string // without boot code
		platform string
	}{
		"gpt-bls-env":      {[]string{"UEFI"}, "Aliyun"},
		"gpt-uefi-grubenv": {[]string{"UEFI"}, "Aliyun"},
		"mbr-plain":        {nil, "Aliyun"},
	} {
		path := testimage.Build(t, layout)
		im := open(t, path)
		f, err := im.Facts()
		if err != nil {
			t.Errorf("%s: %v", layout, err)
			continue
		}
		if f.Architecture != "x86_64" || f.Platform != want.platform || f.Format != "raw" || f.VirtualSize != im.Disk.Size() ||
			!slices.Equal(f.BootModes, want.modes) {
			t.Errorf("%s: %+v", layout, f)
		}
		inspection, err := im.Inspect()
		if err != nil {
			t.Fatal(err)
		}
		core := inspection.Table == "mbr" || slices.ContainsFunc(inspection.Parts, func(p remaster.PartDoc) bool {
			return p.Type == "21686148-6449-6E6F-744E-656564454649"
		})
		if f, err = withBootCode(t, path).Facts(); err != nil || slices.Contains(f.BootModes, "BIOS") != core {
			t.Errorf("%s with boot code: %+v, %v", layout, f, err)
		}
	}
}

func TestFactsFollowTheOutputFormat(t *testing.T) {
	p := plan(t, testimage.Build(t, "gpt-bls-env"), recipe.Recipe{})
	for _, format := range remaster.Formats {
		out, err := p.Output(format)
		if err != nil {
			t.Fatal(err)
		}
		im, err := remaster.Open(out, "")
		if err != nil {
			t.Fatal(err)
		}
		want, err := im.Facts()
		if err != nil {
			t.Fatal(err)
		}
		got, err := p.Facts(format)
		if err != nil || got.Format != want.Format || got.VirtualSize != want.VirtualSize || !slices.Equal(got.BootModes, want.BootModes) {
			t.Errorf("%s: %+v, but the output tells %+v (%v)", format, got, want, err)
		}
	}
}
