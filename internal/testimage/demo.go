package testimage

import "testing"

// Demo makes the image that `make demo` remasters and the README shows: a base that
// boots with cgroup v1 and has containerd, not enabled. It is kept in testdata/demo,
// so that the demo needs none of the tools that made it.
func Demo(tb testing.TB) string {
	tb.Helper()
	root := Ext4(tb, bls(), Ext4Options{MiB: 90})
	return Convert(tb, gptImage(tb, root), Qcow2Zlib)
}
