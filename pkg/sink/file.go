// Package sink is where a Blob goes: today a new local file.
package sink

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"remaster/internal/hint"
	"remaster/pkg/disk"
)

// FileOptions tune File. The zero value is the safe choice.
type FileOptions struct {
	// Overwrite lets File replace an existing file. The old one stays whole until
	// the new one is.
	Overwrite bool
	// NoSync leaves it to the system when the bytes reach the medium, as cp and
	// qemu-img do. Without it the file is durable when File returns.
	NoSync bool
	// Mode is the permission of the new file before the umask; 0 means 0o644.
	Mode fs.FileMode
	// Progress, if not nil, is told how many more bytes of the blob are dealt with.
	// Calls do not overlap.
	Progress func(n int64)
	// Workers is the number of 1 MiB chunks in flight; 0 means GOMAXPROCS.
	Workers int
}

// ErrExist says that the destination is there already.
var ErrExist = hint.With(fs.ErrExist, "choose another name, or say --force to replace it")

// File writes b to a new file at path. The file appears whole or not at all: while it
// is written it has no name, or a temporary one in the same folder that is removed on
// any error.
//
// An overlay over a local file is written as a copy of that file by the file system
// (a reflink where it can), and then patched with what changed. Zeros that b knows of
// become holes.
func File(ctx context.Context, path string, b disk.Blob, o FileOptions) (err error) {
	if o.Mode == 0 {
		o.Mode = 0o644
	}
	if fi, err := os.Lstat(path); err == nil {
		if !o.Overwrite {
			return fmt.Errorf("write %s: %w", path, ErrExist)
		}
		if !fi.Mode().IsRegular() {
			return fmt.Errorf("write %s: not a regular file", path)
		}
		if from, ok := backing(b); ok {
			if base, err := from.Stat(); err == nil && os.SameFile(fi, base) {
				return hint.With(fmt.Errorf("write %s: it is the base itself", path), "choose another output file")
			}
		}
	}
	t, err := newTemp(filepath.Dir(path), o.Mode)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() {
		if cerr := t.discard(); err == nil {
			err = cerr
		}
		if err != nil {
			err = fmt.Errorf("write %s: %w", path, explain(err))
		}
	}()
	if err := fill(ctx, t.f, b, o); err != nil {
		return err
	}
	if !o.NoSync {
		if err := t.f.Sync(); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := t.publish(path, o.Overwrite); err != nil {
		return err
	}
	if o.NoSync {
		return nil
	}
	return syncDir(filepath.Dir(path))
}

// explain adds the remedy to the errors that a user meets.
func explain(err error) error {
	switch {
	case errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT):
		return hint.With(err, "free some space, or write to another file system")
	case errors.Is(err, syscall.EFBIG):
		return hint.With(err, "this file system or ulimit allows no file of that size")
	}
	return err
}

// fill makes f, which is empty, hold b.
func fill(ctx context.Context, f *os.File, b disk.Blob, o FileOptions) error {
	if err := f.Truncate(b.Size()); err != nil {
		return err
	}
	from, ok := backing(b)
	if !ok {
		_, err := disk.Copy(ctx, f, disk.AsDisk(b), disk.CopyOptions{Workers: o.Workers, Progress: o.Progress})
		return err
	}
	v := b.(*disk.Overlay)
	base := v.Base()
	switch err := copyFile(ctx, f, from, base, o.Progress); {
	case errors.Is(err, errNoFastCopy):
		if _, err := disk.Copy(ctx, f, base, disk.CopyOptions{Workers: o.Workers, Progress: o.Progress}); err != nil {
			return err
		}
	case err != nil:
		return err
	}
	if err := f.Truncate(b.Size()); err != nil {
		return err
	}
	buf := make([]byte, 1<<20)
	for r := range v.Changed() {
		for off := r.Off; off < r.End(); off += int64(len(buf)) {
			p := buf[:min(int64(len(buf)), r.End()-off)]
			if err := disk.ReadFull(v, p, off); err != nil {
				return err
			}
			if _, err := f.WriteAt(p, off); err != nil {
				return err
			}
			if err := ctx.Err(); err != nil {
				return err
			}
		}
	}
	return nil
}

// errNoFastCopy says that the system can't copy between these files by itself.
var errNoFastCopy = errors.New("no copy within the file system")

// backing returns the open file that b, an overlay, lies on.
func backing(b disk.Blob) (*os.File, bool) {
	v, ok := b.(*disk.Overlay)
	if !ok {
		return nil, false
	}
	s, ok := v.Base().(interface{ File() *os.File })
	if !ok {
		return nil, false
	}
	return s.File(), true
}

// temp is a file on its way to a name.
type temp struct {
	f    *os.File
	name string // "" while it has none
}

// named makes a temporary file that has a name.
func named(dir string, mode fs.FileMode) (*temp, error) {
	for i := 0; ; i++ {
		name := tempName(dir, i)
		f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, mode.Perm())
		if errors.Is(err, fs.ErrExist) && i < 1000 {
			continue
		}
		if err != nil {
			return nil, err
		}
		return &temp{f, name}, nil
	}
}

func tempName(dir string, i int) string {
	return filepath.Join(dir, fmt.Sprintf(".remaster-%d-%d.part", os.Getpid(), i))
}

// publish gives the file its name.
func (t *temp) publish(path string, overwrite bool) error {
	if t.name == "" {
		if !overwrite {
			return linkNew(t.f, path)
		}
		name := tempName(filepath.Dir(path), 0)
		if err := linkNew(t.f, name); err != nil {
			return err
		}
		t.name = name
	}
	if !overwrite {
		// Link, unlike rename, does not replace what came up meanwhile.
		if err := os.Link(t.name, path); err != nil {
			return linkError(err)
		}
		return nil // discard removes the temporary name
	}
	if err := os.Rename(t.name, path); err != nil {
		return err
	}
	t.name = ""
	return nil
}

func linkError(err error) error {
	if errors.Is(err, fs.ErrExist) {
		return ErrExist
	}
	return err
}

// discard closes the file and removes its temporary name, if it has one still.
func (t *temp) discard() error {
	err := t.f.Close()
	if t.name != "" {
		err = errors.Join(err, os.Remove(t.name))
	}
	return err
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	return errors.Join(err, d.Close())
}
