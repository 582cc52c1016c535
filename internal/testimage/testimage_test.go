package testimage_test

import (
	"strings"
	"testing"
	"time"

	"remaster/internal/oracle"
	"remaster/internal/testimage"
)

func TestEveryLayoutIsWhatItSays(t *testing.T) {
	for _, l := range testimage.Layouts() {
		t.Run(l.Name, func(t *testing.T) {
			img := testimage.Build(t, l.Name)
			if l.Expect == testimage.Refuse {
				return
			}
			oracle.CheckImage(t, img)
			g := oracle.Guest(t, img)
			for _, p := range []string{"/usr/lib/os-release", "/etc/fstab", "/boot/vmlinuz-" + testimage.Kernel} {
				if !g[p].Mode.IsRegular() || g[p].Size == 0 {
					t.Errorf("no %s", p)
				}
			}
		})
	}
}

// An image with a journal to replay, or a foreign file system, has times and
// identifiers of its own each time.
func TestSameBytesEachTime(t *testing.T) {
	for _, name := range []string{"gpt-uefi-grubenv", "gpt-4k", "mbr-logical", "full-fs", "modes"} {
		if a, b := oracle.SHA256(t, testimage.BuildAnew(t, name)), oracle.SHA256(t, testimage.BuildAnew(t, name)); a != b {
			t.Errorf("%s differs from one build to the next", name)
		}
	}
}

func TestAttributesComeOutAsDescribed(t *testing.T) {
	g := oracle.Guest(t, testimage.Build(t, "modes"))
	n := g["/etc/default/grub"]
	if n.Mode != 0o640 || n.UID != 12 || n.GID != 70_000 || n.Xattrs["user.note"] != strings.Repeat("kept ", 60) ||
		n.Xattrs["security.selinux"] != "system_u:object_r:special_t:s0:c1.c5\x00" {
		t.Errorf("/etc/default/grub: %+v", n)
	}
	if want := testimage.Epoch.Add(testimage.MTimeNsec * time.Nanosecond); !n.MTime.Equal(want) {
		t.Errorf("modified %v, not %v", n.MTime, want)
	}
	if n := g["/usr/bin/curl"]; n.Mode != 0o755 || n.Xattrs["security.selinux"] != testimage.Label("/usr/bin/curl")+"\x00" || n.Links != 1 {
		t.Errorf("/usr/bin/curl: %+v", n)
	}
	if n := oracle.Guest(t, testimage.Build(t, "hardlinked"))["/etc/default/grub.orig"]; n.Links != 2 {
		t.Errorf("/etc/default/grub.orig has %d names", n.Links)
	}
}

func TestConvertKeepsTheDisk(t *testing.T) {
	raw := testimage.Build(t, "mbr-plain")
	for _, f := range testimage.Formats {
		img := testimage.Convert(t, raw, f)
		if f == testimage.VHD || f == testimage.VHDFixed {
			oracle.SameDisk(t, "raw", raw, "vpc", img)
			continue
		}
		oracle.SameDisk(t, "raw", raw, oracle.Format(t, img), img)
	}
}
