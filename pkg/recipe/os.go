package recipe

import (
	"fmt"
	"slices"
	"strings"

	"remaster/internal/hint"
	"remaster/pkg/disk"
	"remaster/pkg/rootfs"
)

// relatives are the systems, by ID of os-release(5), that boot and are laid out like
// Alibaba Cloud Linux 3, with the releases that have a usable cgroup v2.
var relatives = map[string][]string{
	"alinux":    {"3", "4"},
	"anolis":    {"8", "23"},
	"rhel":      {"8", "9"},
	"centos":    {"8", "9"},
	"rocky":     {"8", "9"},
	"almalinux": {"8", "9"},
}

// platforms are the values of PLATFORM_ID that speak for a system of another name.
var platforms = []string{"platform:al8", "platform:an8", "platform:el8", "platform:el9"}

// CheckOS returns an error that says why the guest's system is not one that can be made
// a node of here. It wraps disk.ErrUnsupported.
func CheckOS(t rootfs.Tree) error {
	r, err := rootfs.OSRelease(t)
	if err != nil {
		return fmt.Errorf("find out which system the image holds: %w", err)
	}
	id, version := r["ID"], r["VERSION_ID"]
	major, _, _ := strings.Cut(version, ".")
	name := r["PRETTY_NAME"]
	if name == "" {
		name = strings.TrimSpace(id + " " + version)
	}
	known, isRelative := relatives[id]
	switch {
	case slices.Contains(known, major):
		return nil
	case id == "alinux" && (major == "2" || strings.HasPrefix(version, "17.")), isRelative && major == "7":
		return hint.With(fmt.Errorf("%s has systemd 219, which has no usable cgroup v2: %w", name, disk.ErrUnsupported),
			"start from an Alibaba Cloud Linux 3 image")
	case !isRelative && slices.Contains(platforms, r["PLATFORM_ID"]):
		return nil
	}
	return hint.With(fmt.Errorf("%s (ID=%s, VERSION_ID=%s) is neither Alibaba Cloud Linux 3 nor a relative of RHEL 8 or 9: %w", name, id, version, disk.ErrUnsupported),
		"start from an Alibaba Cloud Linux 3 image")
}
