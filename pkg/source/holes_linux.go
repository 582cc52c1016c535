package source

import (
	"os"

	"golang.org/x/sys/unix"
)

// nextData returns the first range [data, end) of data in [at, limit) by lseek(2)
// SEEK_DATA and SEEK_HOLE; data == end == limit if there is none. The descriptor's
// position, which these calls move, is used by nobody else.
func nextData(f *os.File, at, limit int64) (data, end int64) {
	fd := int(f.Fd())
	data, err := unix.Seek(fd, at, unix.SEEK_DATA)
	switch {
	case err == unix.ENXIO || err == nil && data >= limit:
		return limit, limit // a hole up to the end
	case err != nil || data < at:
		return at, limit // the file system does not tell
	}
	end, err = unix.Seek(fd, data, unix.SEEK_HOLE)
	if err != nil || end <= data {
		return data, limit
	}
	return data, min(end, limit)
}
