// Package oracle runs the tools that no one here wrote, to judge what is made here:
// qemu-img, e2fsck, debugfs, fsck.vfat, sfdisk and others.
//
// A tool that is missing skips the test, loudly, for a visitor; with
// REMASTER_ORACLES=required, which CI sets, it fails the test.
package oracle

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Packages names the Debian package of each tool.
var Packages = map[string]string{
	"qemu-img": "qemu-utils", "qemu-io": "qemu-utils", "qemu-nbd": "qemu-utils",
	"e2fsck": "e2fsprogs", "mke2fs": "e2fsprogs", "debugfs": "e2fsprogs", "dumpe2fs": "e2fsprogs", "tune2fs": "e2fsprogs", "resize2fs": "e2fsprogs",
	"blkid": "util-linux", "dd": "coreutils",
	"fsck.vfat": "dosfstools", "mkfs.vfat": "dosfstools",
	"mcopy": "mtools", "mmd": "mtools", "mdir": "mtools", "mtype": "mtools",
	"sfdisk": "fdisk", "sgdisk": "gdisk", "fdisk": "fdisk",
	"mkfs.xfs": "xfsprogs", "mkfs.btrfs": "btrfs-progs",
	"mkswap": "util-linux", "systemctl": "systemd", "setfattr": "attr", "getfattr": "attr",
	"grub-editenv": "grub-common", "grub-script-check": "grub-common", "containerd": "containerd",
	"tar": "tar", "gzip": "gzip", "bash": "bash", "cp": "coreutils", "mount": "mount",
}

// Find returns the path of a tool, also one in an sbin folder that is not on PATH, or
// "" if it is not there.
func Find(tool string) string {
	if p, err := exec.LookPath(tool); err == nil {
		return p
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if p := filepath.Join(dir, tool); isExec(p) {
			return p
		}
	}
	return ""
}

func isExec(p string) bool {
	fi, err := os.Stat(p)
	return err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0
}

// Need returns the path of a tool. If it is missing the test is skipped, or fails
// where oracles are required.
func Need(tb testing.TB, tool string) string {
	tb.Helper()
	p := Find(tool)
	if p == "" {
		Missing(tb, tool+" is missing (Debian package "+Packages[tool]+"; or run: make oracles)")
	}
	return p
}

// Missing ends the test because something outside is missing: a failure where
// oracles are required, a skip elsewhere.
func Missing(tb testing.TB, what string) {
	tb.Helper()
	if os.Getenv("REMASTER_ORACLES") == "required" {
		tb.Fatalf("ORACLE REQUIRED: %s", what)
	}
	tb.Skipf("ORACLE SKIPPED: %s", what)
}

// Result is how a tool ended. Code is -1 if it was killed.
type Result struct {
	Code           int
	Stdout, Stderr string
}

// Try runs a tool in the C locale and returns how it ended.
func Try(tb testing.TB, tool string, args ...string) Result {
	tb.Helper()
	return TryInput(tb, nil, tool, args...)
}

// TryInput is Try with standard input.
func TryInput(tb testing.TB, stdin []byte, tool string, args ...string) Result {
	tb.Helper()
	cmd := exec.Command(Need(tb, tool), args...)
	// The fixed times make file systems that mke2fs and debugfs write the same at each run.
	cmd.Env = append(os.Environ(), "LC_ALL=C", "TZ=UTC", "MTOOLS_SKIP_CHECK=1",
		"SOURCE_DATE_EPOCH=1700000000", "E2FSPROGS_FAKE_TIME=1700000000")
	cmd.Stdin = bytes.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if cmd.ProcessState == nil {
		tb.Fatalf("%s: %v", tool, err)
	}
	return Result{cmd.ProcessState.ExitCode(), out.String(), errs.String()}
}

// Run runs a tool that must exit 0 and returns its standard output.
func Run(tb testing.TB, tool string, args ...string) string {
	tb.Helper()
	r := Try(tb, tool, args...)
	if r.Code != 0 {
		tb.Fatalf("%s %s: exit %d\n%s%s", tool, strings.Join(args, " "), r.Code, r.Stdout, r.Stderr)
	}
	return r.Stdout
}

// E2fsck fails the test unless e2fsck finds the file system in the file clean.
func E2fsck(tb testing.TB, file string) {
	tb.Helper()
	Run(tb, "e2fsck", "-fn", file)
}

// CheckQcow2 fails the test unless qemu-img finds neither errors nor leaks in the
// qcow2 file.
func CheckQcow2(tb testing.TB, file string) {
	tb.Helper()
	Run(tb, "qemu-img", "check", "-f", "qcow2", file)
}

// SameDisk fails the test unless the two images hold the same guest bytes. Formats
// are qemu-img's names: raw, qcow2, vpc.
func SameDisk(tb testing.TB, fmtA, a, fmtB, b string) {
	tb.Helper()
	Run(tb, "qemu-img", "compare", "-f", fmtA, "-F", fmtB, a, b)
}
