package grub

import (
	"strings"
)

// compareIDs compares the names of BLS entries as RHEL's blscfg does: split at the last
// two dashes into name, version and release, each compared like RPM versions. The
// result is positive if a is newer.
func compareIDs(a, b string) int {
	na, va, ra := splitID(a)
	nb, vb, rb := splitID(b)
	if c := compareVersions(na, nb); c != 0 {
		return c
	}
	if c := compareVersions(va, vb); c != 0 {
		return c
	}
	return compareVersions(ra, rb)
}

func splitID(s string) (name, version, release string) {
	i := strings.LastIndexByte(s, '-')
	if i < 0 {
		return s, "", ""
	}
	j := strings.LastIndexByte(s[:i], '-')
	if j < 0 {
		return s[:i], s[i+1:], ""
	}
	return s[:j], s[j+1 : i], s[i+1:]
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }
func isAlpha(c byte) bool { return 'a' <= c|0x20 && c|0x20 <= 'z' }

// compareVersions compares as RPM does (rpm-version(7)): runs of digits as numbers, runs
// of letters as text, digits are newer than letters, a tilde is older than the end.
func compareVersions(a, b string) int {
	if a == b {
		return 0
	}
	skip := func(s string) string {
		return strings.TrimLeftFunc(s, func(r rune) bool { return r > 0x7f || !isDigit(byte(r)) && !isAlpha(byte(r)) && r != '~' })
	}
	for a != "" || b != "" {
		a, b = skip(a), skip(b)
		ta, tb := strings.HasPrefix(a, "~"), strings.HasPrefix(b, "~")
		if ta || tb {
			if !ta {
				return 1
			}
			if !tb {
				return -1
			}
			a, b = a[1:], b[1:]
			continue
		}
		if a == "" || b == "" {
			break
		}
		class := isAlpha
		if isDigit(a[0]) {
			class = isDigit
		}
		x, y := run(a, class), run(b, class)
		switch {
		case y == "" && isDigit(a[0]):
			return 1
		case y == "":
			return -1
		}
		a, b = a[len(x):], b[len(y):]
		if isDigit(x[0]) {
			x, y = strings.TrimLeft(x, "0"), strings.TrimLeft(y, "0")
			if len(x) != len(y) {
				return len(x) - len(y)
			}
		}
		if c := strings.Compare(x, y); c != 0 {
			return c
		}
	}
	return len(a) - len(b)
}

func run(s string, class func(byte) bool) string {
	n := 0
	for n < len(s) && class(s[n]) {
		n++
	}
	return s[:n]
}
