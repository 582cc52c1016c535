//go:build !linux

package sink

import (
	"context"
	"errors"
	"io/fs"
	"os"

	"remaster/pkg/disk"
)

func newTemp(dir string, mode fs.FileMode) (*temp, error) { return named(dir, mode) }

func linkNew(*os.File, string) error { return errors.ErrUnsupported }

func copyFile(context.Context, *os.File, *os.File, disk.Disk, func(int64)) error {
	return errNoFastCopy
}
