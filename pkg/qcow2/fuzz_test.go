package qcow2

import (
	"bytes"
	"errors"
	"os"
	"testing"

	"remaster/internal/oracle"
	"remaster/pkg/disk"
)

// FuzzOpen reads, checks and edits whatever opens. Nothing may panic or run on, and
// an edit of an image that Check passes leaves one that it passes, too.
func FuzzOpen(f *testing.F) {
	guest := guestBytes(30, 12*512)
	for _, cluster := range []int64{512, 1024} {
		e, err := Encode(sparse{guest}, EncodeOptions{cluster})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(readAll(f, e), int64(700), []byte("edit"))
	}
	if oracle.Find("qemu-img") != "" {
		for _, s := range []shape{{"0.10", 512, "zlib", 0}, {"1.1", 512, "zlib", 1}, {"1.1", 1024, "zstd", 64}, {"1.1", 512, "", 2}} {
			image, _ := s.make(f, guest)
			p, err := os.ReadFile(image)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(p, int64(4000), make([]byte, 3000))
		}
	}
	f.Fuzz(func(t *testing.T, image []byte, off int64, edit []byte) {
		m, err := Open(disk.Bytes(image))
		if err != nil {
			return
		}
		p := make([]byte, 1<<17)
		for _, at := range []int64{0, m.size / 2, max(m.size-int64(len(p)), 0)} {
			n, err := m.ReadAt(p, at)
			if err == nil && n != len(p) {
				t.Fatalf("read of %d bytes without an error", n)
			}
		}
		at, count := int64(0), 0
		for e, err := range m.Extents(disk.Whole(m)) {
			if count++; err != nil || count > 10_000 {
				break
			}
			if e.Off != at || e.Len <= 0 || e.End() > m.size {
				t.Fatalf("extent %v at %d", e, at)
			}
			at = e.End()
		}
		u, checkErr := Check(disk.Bytes(image))

		c, g := disk.NewOverlay(disk.Bytes(image), disk.OverlayOptions{}), disk.NewOverlay(m, disk.OverlayOptions{})
		defer func() { // memory only
			if err := errors.Join(c.Close(), g.Close()); err != nil {
				t.Error(err)
			}
		}()
		if len(edit) > 1<<16 {
			edit = edit[:1<<16]
		}
		if _, err := g.WriteAt(edit, off); err != nil {
			return
		}
		if err := m.Rewrite(c, g); err != nil || checkErr != nil {
			return
		}
		// Bitmaps become leaks, all other leaks stay.
		u2, err := Check(c)
		if err != nil || u2.Leaked != u.Leaked {
			t.Fatalf("after the edit: %+v, %v; before: %+v", u2, err, u)
		}
		n := open(t, c)
		q := make([]byte, len(edit))
		if err = disk.ReadFull(n, q, off); err != nil || !bytes.Equal(q, edit) {
			t.Fatalf("edit of %d bytes at %d reads differently: %v", len(edit), off, err)
		}
	})
}
