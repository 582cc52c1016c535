package grub

import "strings"

// The parameters that decide on the control group hierarchy: systemd's
// (kernel-command-line(7), systemd(1)) and the kernel's (admin-guide/cgroup-v2).
const (
	keyUnified = "systemd.unified_cgroup_hierarchy"
	keyLegacy  = "systemd.legacy_systemd_cgroup_controller"
	keyNoV1    = "cgroup_no_v1"
)

// Mode is the hierarchy that a command line asks systemd for.
type Mode string

// The modes.
const (
	ModeUnified Mode = "v2"
	ModeHybrid  Mode = "hybrid"
	ModeLegacy  Mode = "v1"
	// ModeDefault: the line does not say; systemd's build decides (RHEL 8: v1).
	ModeDefault Mode = "default"
)

// Verdict says what systemd makes of a command line, given the words as the kernel gets
// them. systemd takes the last value of systemd.unified_cgroup_hierarchy, a bare one
// counts as true, and one that is no boolean as absent. It reads the words behind a lone
// "--" too.
func Verdict(words []string) Mode {
	unified, ok := lastBool(words, keyUnified)
	legacy, legacyOK := lastBool(words, keyLegacy)
	switch {
	case ok && unified:
		return ModeUnified
	case ok && legacyOK && !legacy:
		return ModeHybrid
	case ok:
		return ModeLegacy
	case legacyOK && legacy:
		return ModeLegacy // unless systemd's default is unified
	}
	return ModeDefault
}

// NoV1 says whether the words keep every controller from cgroup v1.
func NoV1(words []string) bool {
	for _, w := range words {
		if w == "--" {
			break
		}
		if a := ParseArg(unquote(w)); SameKey(a.Key, keyNoV1) {
			for _, v := range strings.Split(a.Value, ",") {
				if v == "all" {
					return true
				}
			}
		}
	}
	return false
}

func lastBool(words []string, key string) (value, ok bool) {
	last := Arg{}
	for _, w := range words {
		a := ParseArg(unquote(w))
		if SameKey(a.Key, key) && (a.HasValue || last.Key == "") {
			last = a
		}
	}
	switch {
	case last.Key == "":
		return false, false
	case !last.HasValue:
		return true, true
	}
	switch strings.ToLower(last.Value) {
	case "1", "yes", "y", "true", "t", "on":
		return true, true
	case "0", "no", "n", "false", "f", "off":
		return false, true
	}
	return false, false
}
