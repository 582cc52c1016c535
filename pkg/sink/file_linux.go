package sink

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"remaster/pkg/disk"
)

// newTemp makes a file in dir without a name (O_TMPFILE), so that nothing is left even
// if the process is killed; where the file system or a missing /proc doesn't allow
// that, one with a temporary name.
func newTemp(dir string, mode fs.FileMode) (*temp, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, uint32(mode.Perm()))
	if err != nil {
		return named(dir, mode)
	}
	f := os.NewFile(uintptr(fd), filepath.Join(dir, "(unnamed)"))
	if _, err := os.Lstat(procPath(f)); err != nil {
		if err := f.Close(); err != nil {
			return nil, err
		}
		return named(dir, mode)
	}
	return &temp{f: f}, nil
}

func procPath(f *os.File) string { return "/proc/self/fd/" + strconv.Itoa(int(f.Fd())) }

// linkNew gives an unnamed file a name that must be free.
func linkNew(f *os.File, path string) error {
	if err := unix.Linkat(unix.AT_FDCWD, procPath(f), unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW); err != nil {
		return linkError(fmt.Errorf("link: %w", err))
	}
	return nil
}

// copyFile makes dst, of the same file system perhaps, hold what src holds: by a
// reflink of the whole, else by copy_file_range of its data. errNoFastCopy says that
// neither is possible and that nothing was copied.
func copyFile(ctx context.Context, dst, src *os.File, base disk.Disk, progress func(int64)) error {
	if progress == nil {
		progress = func(int64) {}
	}
	if unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())) == nil {
		progress(base.Size())
		return nil
	}
	first := true
	for e, err := range base.Extents(disk.Whole(base)) {
		if err != nil {
			return err
		}
		if e.Zero {
			progress(e.Len)
			continue
		}
		in, out := e.Off, e.Off
		for in < e.End() {
			if err := ctx.Err(); err != nil {
				return err
			}
			n, err := unix.CopyFileRange(int(src.Fd()), &in, int(dst.Fd()), &out, int(min(e.End()-in, 64<<20)), 0)
			if err == unix.EINTR {
				continue
			}
			if first && (n == 0 || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EXDEV) || errors.Is(err, unix.EINVAL) ||
				errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPERM)) {
				return errNoFastCopy
			}
			if err != nil {
				return fmt.Errorf("copy %s at %d: %w", src.Name(), in, err)
			}
			if n == 0 {
				return fmt.Errorf("copy %s at %d: the file became shorter", src.Name(), in)
			}
			first = false
			progress(int64(n))
		}
	}
	return nil
}
