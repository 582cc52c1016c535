package remaster

import (
	"testing"

	"remaster/pkg/rootfs"
)

func TestPlatformFollowsOSRelease(t *testing.T) {
	for text, want := range map[string]string{
		"ID=\"alinux\"\nNAME=\"Alibaba Cloud Linux\"\n": "Aliyun",
		"ID=anolis\n":                                    "Anolis",
		"ID=\"rocky\"\n":                                 "Rocky Linux",
		"ID=\"almalinux\"\n":                             "AlmaLinux",
		"ID=\"centos\"\nNAME=\"CentOS Linux\"\n":         "CentOS",
		"ID=\"centos\"\nNAME=\"CentOS Stream\"\n":        "CentOS Stream",
		"ID=\"rhel\"\nNAME=\"Red Hat Enterprise Linux\"": "RedHat",
		"ID=ubuntu\n":                                    "",
	} {
		g := rootfs.NewGuest(rootfs.MemOf(map[string]string{"/etc/os-release": text}))
		if got, err := platform(g); err != nil || got != want {
			t.Errorf("%q: %q, %v, want %q", text, got, err, want)
		}
	}
}

func TestArchitectureFollowsPrograms(t *testing.T) {
	elf := func(class, data, machine byte) string {
		b := make([]byte, 64)
		copy(b, "\x7fELF")
		b[4], b[5], b[18] = class, data, machine
		return string(b)
	}
	for _, x := range []struct {
		files map[string]string
		want  string
	}{
		{map[string]string{"/usr/lib/systemd/systemd": elf(2, 1, 62)}, "x86_64"},
		{map[string]string{"/usr/lib/systemd/systemd": elf(2, 1, 183)}, "arm64"},
		{map[string]string{"/usr/lib/systemd/systemd": "#!/bin/sh\n", "/usr/bin/bash": elf(1, 1, 3)}, "i386"},
		{map[string]string{"/bin/sh": "-> ../usr/bin/bash", "/usr/bin/bash": "-> busybox", "/usr/bin/busybox": elf(2, 1, 62)}, "x86_64"},
		{map[string]string{"/usr/bin/bash": elf(2, 2, 22)}, ""},
		{map[string]string{"/usr/bin/bash": "\x7fELF"}, ""},
		{map[string]string{"/usr/bin/bash": "-> bash"}, "error"},
		{nil, ""},
	} {
		got, err := architecture(rootfs.NewGuest(rootfs.MemOf(x.files)))
		if err != nil {
			got = "error"
		}
		if got != x.want {
			t.Errorf("%q: %q, %v, want %q", x.files, got, err, x.want)
		}
	}
}
