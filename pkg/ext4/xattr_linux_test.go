package ext4

import "golang.org/x/sys/unix"

func llistxattr(path string, buf []byte) (int, error) { return unix.Llistxattr(path, buf) }

func lgetxattr(path, name string, buf []byte) (int, error) { return unix.Lgetxattr(path, name, buf) }
