package source

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"remaster/pkg/disk"
)

func TestHolesAreZeroExtents(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sparse")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const mib = 1 << 20
	for _, off := range []int64{2 * mib, 7 * mib} {
		if _, err := f.WriteAt(make([]byte, mib), off); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(10 * mib); err != nil {
		t.Fatal(err)
	}
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var data, zero, at int64
	for e, err := range s.Extents(disk.Range{Off: mib / 2, Len: 9 * mib}) {
		if err != nil || e.Off != max(at, mib/2) || e.Len <= 0 {
			t.Fatalf("extent %v, %v after %d", e, err, at)
		}
		at = e.End()
		if e.Zero {
			zero += e.Len
		} else {
			data += e.Len
		}
	}
	if at != mib/2+9*mib || data+zero != 9*mib {
		t.Errorf("extents end at %d, %d data, %d zero", at, data, zero)
	}
	if data > 3*mib {
		t.Skipf("ORACLE SKIPPED: the file system under %s keeps no holes", path)
	}
}

func TestFileIsAReaderAt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	content := []byte(strings.Repeat("0123456789", 500))
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := iotest.TestReader(io.NewSectionReader(s, 0, s.Size()), content); err != nil {
		t.Error(err)
	}
}

func TestOpenRefusesWhatIsNotAFile(t *testing.T) {
	dir := t.TempDir()
	for _, path := range []string{dir, filepath.Join(dir, "absent")} {
		if _, err := Open(path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("Open(%s) = %v", path, err)
		}
	}
}
