package testimage

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"remaster/internal/oracle"
)

// gptImage lays a root file system on the disk that most images are: GPT with a BIOS
// boot partition, an ESP that goes on to /boot/grub2, and the root.
func gptImage(tb testing.TB, root string) string {
	tb.Helper()
	return Disk(tb, GPT, Part{Type: BIOSBoot}, Part{ESP, FAT(tb, ESPTree(RootUUID, "/boot"), 4)}, Part{Linux, root})
}

// onGPT is an image of gptImage's shape whose system boots by BLS and grubenv, and
// which change makes odd.
func onGPT(change func(Tree)) func(testing.TB) string {
	return func(tb testing.TB) string {
		tb.Helper()
		return gptImage(tb, rootFS(tb, bls(change)))
	}
}

// onExt4 is onGPT with another ext4.
func onExt4(o Ext4Options) func(testing.TB) string {
	return func(tb testing.TB) string {
		tb.Helper()
		return gptImage(tb, Ext4(tb, bls(), o))
	}
}

// bls is a system that boots by BLS and grubenv, changed.
func bls(changes ...func(Tree)) Tree {
	t := System()
	BootBLS(t, KernelArgs)
	for _, c := range changes {
		c(t)
	}
	return t
}

// plain is a system of a single partition that boots by menu entries, changed.
func plain(changes ...func(Tree)) Tree {
	t := System()
	BootPlain(t, KernelArgs)
	t.Put("/etc/fstab", "UUID="+RootUUID+" / ext4 defaults 1 1\n")
	for _, c := range changes {
		c(t)
	}
	return t
}

// rootFS makes the usual ext4.
func rootFS(tb testing.TB, t Tree) string {
	tb.Helper()
	return Ext4(tb, t, Ext4Options{})
}

// oldFeatures are those of e2fsprogs 1.42, which made older images.
const oldFeatures = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,flex_bg,sparse_super,large_file,huge_file,uninit_bg,dir_nlink,extra_isize"

var layouts = []Layout{
	{"gpt-bls-env", Edit, "GPT; BLS with $kernelopts in grubenv", onGPT(func(Tree) {})},
	{"gpt-bls-inline", Edit, "the whole command line in each BLS entry", onGPT(func(t Tree) { BootInline(t, KernelArgs) })},
	{"mbr-plain", Edit, "MBR, one partition, menu entries in grub.cfg", func(tb testing.TB) string {
		return Disk(tb, MBR, Part{Linux, rootFS(tb, plain())})
	}},
	{"mbr-logical", Edit, "MBR, the root in a logical partition", func(tb testing.TB) string {
		return Disk(tb, MBR, Part{Type: Linux}, Part{Type: Extended}, Part{Type: Linux}, Part{Linux, rootFS(tb, plain())})
	}},
	{"gpt-boot-part", Edit, "/boot is an ext4 of its own", bootPart},
	{"gpt-uefi-grubenv", Edit, "grub.cfg and grubenv on the ESP, links to them in the root", uefiGrubenv(ESPSerial)},
	{"gpt-uefi-moved", Edit, "the same, and fstab names the only ESP by a UUID that it has no more", uefiGrubenv("0BAD-0BAD")},
	{"whole-disk", Edit, "ext4 without a partition table", func(tb testing.TB) string {
		return Disk(tb, None, Part{Linux, rootFS(tb, plain())})
	}},
	{"gpt-4k", Edit, "GPT for 4096-byte sectors", func(tb testing.TB) string {
		return Disk(tb, GPT4K, Part{ESP, FAT(tb, ESPTree(RootUUID, "/boot"), 4)}, Part{Linux, rootFS(tb, bls())})
	}},
	{"gpt-backup", Edit, "the first GPT is overwritten, the backup is good", func(tb testing.TB) string {
		img := gptImage(tb, rootFS(tb, bls()))
		patch(tb, img, make([]byte, 512), 512)
		return img
	}},
	{"ext4-1k", Edit, "blocks of 1024 bytes", onExt4(Ext4Options{BlockSize: 1024})},
	{"ext4-old", Edit, "ext4 without 64bit and metadata_csum", onExt4(Ext4Options{Features: oldFeatures})},
	{"ext4-unlabelled", Edit, "no SELinux labels", onExt4(Ext4Options{NoLabels: true})},
	{"gpt-xfs", Refuse, "the root is XFS", func(tb testing.TB) string {
		return gptImage(tb, foreignFS(tb, 64, "mkfs.xfs", "--unsupported", "-q", "-m", "uuid="+RootUUID))
	}},
	{"gpt-btrfs", Refuse, "the root is Btrfs", func(tb testing.TB) string {
		return gptImage(tb, foreignFS(tb, 128, "mkfs.btrfs", "-q", "-U", RootUUID))
	}},
	{"gpt-lvm", Refuse, "/boot on ext4, the rest an LVM physical volume", lvm},
	{"dirty-journal", Edit, "a committed transaction waits in the journal", dirtyJournal},
	{"unclean", Refuse, "ext4 marked as having errors", func(tb testing.TB) string {
		root := rootFS(tb, bls())
		DebugFS(tb, root, "ssv state 2")
		return gptImage(tb, root)
	}},
	{"many-kernels", Edit, "four entries of different kinds; saved_entry is an index", onGPT(manyKernels)},
	{"bls-odd", Edit, "entries with tabs, CRLF, two options lines, none, no last newline", onGPT(oddEntries)},
	{"stale-v1", Edit, "cgroup arguments that contradict, doubles, look-alikes", onGPT(staleV1)},
	{"already-v2", Noop, "the result itself", onGPT(alreadyV2)},
	{"default-grub-odd", Edit, "quotes, escapes, a double, a continued line, += and export", onGPT(oddDefaultGrub)},
	{"default-grub-bare", Edit, "no quotes, CRLF, no last newline", onGPT(func(t Tree) {
		t.Put("/etc/default/grub", "GRUB_TIMEOUT=3\r\nGRUB_CMDLINE_LINUX=nomodeset\r\nGRUB_ENABLE_BLSCFG=true")
	})},
	{"default-grub-none", Edit, "no /etc/default/grub, and a link that leads to it", onGPT(func(t Tree) { t.Remove("/etc/default/grub") })},
	{"kernel-cmdline", Edit, "/etc/kernel/cmdline for the kernels to come", onGPT(func(t Tree) {
		t.Put("/etc/kernel/cmdline", RootArgs+" "+KernelArgs+"\n")
	})},
	{"grubenv-full", Edit, "too little room in grubenv for the new arguments", onGPT(func(t Tree) {
		GrubEnv(t, "/boot/grub2/grubenv", "saved_entry="+MachineID+"-"+Kernel, "kernelopts="+RootArgs+" long="+strings.Repeat("l", 600)+" quiet ",
			"other="+strings.Repeat("o", 200), "boot_success=0")
	})},
	{"grubenv-short", Edit, "a grubenv of 180 bytes, which GRUB does not read", onGPT(func(t Tree) {
		t.Put("/boot/grub2/grubenv", t.Text("/boot/grub2/grubenv")[:180])
	})},
	{"grubenv-none", Edit, "no grubenv: kernelopts is the one in grub.cfg", onGPT(func(t Tree) { t.Remove("/boot/grub2/grubenv") })},
	{"no-containerd", Edit, "containerd is not installed", onGPT(func(t Tree) {
		t.Remove("/usr/lib/systemd/system/containerd.service")
		t.Remove("/usr/bin/containerd")
		t.Remove("/usr/bin/runc")
		t.Remove("/etc/containerd")
	})},
	{"containerd-masked", Edit, "containerd.service is masked", onGPT(func(t Tree) { t.Link("/dev/null", "/etc/systemd/system/containerd.service") })},
	{"links-inside", Edit, "absolute and relative links that stay inside", onGPT(linksInside)},
	{"links-attack", Edit, "links that would leave the image if the host followed them", onGPT(linksAttack)},
	{"links-loop", Refuse, "links that lead to each other", onGPT(func(t Tree) {
		t.Link("grub.real", "/etc/default/grub")
		t.Link("grub", "/etc/default/grub.real")
		t.Link("turn.conf", "/boot/loader/entries/turn.conf")
	})},
	{"hardlinked", Edit, "/etc/default/grub has two names", onGPT(func(t Tree) { t.HardLink("/etc/default/grub", "/etc/default/grub.orig") })},
	{"modes", Edit, "owners, modes and xattrs that an edit must keep", onGPT(oddModes)},
	{"full-fs", Refuse, "no free block", full(0)},
	{"full-fs-fits", Edit, "just enough free blocks", full(64)},
	{"wrong-os", Refuse, "a Debian", func(tb testing.TB) string {
		return Disk(tb, MBR, Part{Linux, rootFS(tb, plain(func(t Tree) {
			t.Put("/usr/lib/os-release", "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nID=debian\nVERSION_ID=\"12\"\n")
			t.Remove("/etc/image-id")
			t.Remove("/etc/alinux-release")
			t.Remove("/etc/system-release")
		}))})
	}},
	{"old-os", Refuse, "an Alibaba Cloud Linux 2: systemd 219", func(tb testing.TB) string {
		return Disk(tb, MBR, Part{Linux, rootFS(tb, plain(func(t Tree) {
			t.Put("/usr/lib/os-release", "NAME=\"Alibaba Cloud Linux (Aliyun Linux)\"\nVERSION=\"2.1903 LTS (Hunting Beagle)\"\nID=\"alinux\"\nID_LIKE=\"rhel fedora centos anolis\"\nVERSION_ID=\"2.1903\"\n")
		}))})
	}},
	{"two-roots", Refuse, "two partitions that could be the root", func(tb testing.TB) string {
		root := rootFS(tb, bls())
		return Disk(tb, GPT, Part{Linux, root}, Part{Linux, root})
	}},
	{"no-root", Refuse, "an ESP and an empty partition", func(tb testing.TB) string {
		return Disk(tb, GPT, Part{ESP, FAT(tb, ESPTree(RootUUID, "/boot"), 4)}, Part{Type: Linux})
	}},
	{"blank", Refuse, "nothing but zeros", func(tb testing.TB) string {
		img := filepath.Join(tb.TempDir(), "blank")
		truncate(tb, img, 8<<20)
		return img
	}},
	{"truncated", Refuse, "the image ends within the root", func(tb testing.TB) string {
		img := gptImage(tb, rootFS(tb, bls()))
		truncate(tb, img, 15<<20)
		return img
	}},
}

func bootPart(tb testing.TB) string {
	tb.Helper()
	t := bls()
	Entry(t, "", Kernel, "$kernelopts $tuned_params")
	Entry(t, "", Rescue, "$kernelopts")
	t.Put("/boot/grub2/grub.cfg", GrubCfgBLS(BootUUID, KernelArgs))
	t.Put("/etc/fstab", t.Text("/etc/fstab")+"UUID="+BootUUID+" /boot ext4 defaults 1 2\n")
	boot := Ext4(tb, t.Cut("/boot"), Ext4Options{MiB: 16, UUID: BootUUID, Prefix: "/boot"})
	return Disk(tb, GPT, Part{ESP, FAT(tb, ESPTree(BootUUID, ""), 4)}, Part{Linux, boot}, Part{Linux, rootFS(tb, t)})
}

// uefiGrubenv is a system whose fstab has the ESP under that UUID.
func uefiGrubenv(uuid string) func(testing.TB) string {
	return func(tb testing.TB) string {
		tb.Helper()
		t, esp := bls(), ESPTree(RootUUID, "/boot")
		for _, name := range []string{"grub.cfg", "grubenv"} {
			esp["/EFI/alinux/"+name] = t["/boot/grub2/"+name]
			t.Remove("/boot/grub2/" + name)
		}
		t.Link("../efi/EFI/alinux/grubenv", "/boot/grub2/grubenv")
		t.Link("../boot/efi/EFI/alinux/grub.cfg", "/etc/grub2-efi.cfg")
		t.Remove("/etc/grub2.cfg")
		t.Put("/etc/fstab", strings.Replace(t.Text("/etc/fstab"), ESPSerial, uuid, 1))
		return Disk(tb, GPT, Part{Type: BIOSBoot}, Part{ESP, FAT(tb, esp, 4)}, Part{Linux, rootFS(tb, t)})
	}
}

func lvm(tb testing.TB) string {
	tb.Helper()
	t := bls()
	boot := Ext4(tb, t.Cut("/boot"), Ext4Options{MiB: 16, UUID: BootUUID, Prefix: "/boot"})
	return Disk(tb, GPT, Part{Linux, boot}, Part{LVM, physicalVolume(tb, 16)})
}

// dirtyJournal writes a transaction that is not yet replayed: it turns the timeout of
// /etc/default/grub from 5 to 8.
func dirtyJournal(tb testing.TB) string {
	tb.Helper()
	t := bls()
	root := rootFS(tb, t)
	block := strings.TrimSpace(oracle.Run(tb, "debugfs", "-R", "bmap /etc/default/grub 0", root))
	bytes := make([]byte, 4096)
	copy(bytes, strings.Replace(t.Text("/etc/default/grub"), "TIMEOUT=5", "TIMEOUT=8", 1))
	file := filepath.Join(tb.TempDir(), "block")
	truncate(tb, file, 4096)
	patch(tb, file, bytes, 0)
	DebugFS(tb, root, "jo", "jw -b "+block+" "+file, "jc")
	if h := oracle.Run(tb, "dumpe2fs", "-h", root); !strings.Contains(h, "needs_recovery") {
		tb.Fatal("the journal is not dirty")
	}
	return gptImage(tb, root)
}

func manyKernels(t Tree) {
	const a, b = "5.10.134-16.3.al8.x86_64", "5.10.112-11.2.al8.x86_64"
	addKernel(t, a)
	addKernel(t, b)
	Entry(t, "/boot", a, RootArgs+" "+KernelArgs)
	Entry(t, "/boot", b, "$kernelopts debug")
	GrubEnv(t, "/boot/grub2/grubenv", "saved_entry=2", "kernelopts="+RootArgs+" "+KernelArgs+" ", "boot_success=1")
}

func oddEntries(t Tree) {
	kernel := "/boot/vmlinuz-" + Kernel
	for name, text := range map[string]string{
		"1-tabs.conf":    "# by hand\n\ntitle\t\tTabs\nversion\t1\nlinux\t" + kernel + "\noptions\t\troot=/dev/vda3  ro\t quiet\n",
		"2-crlf.conf":    "title Crlf\r\nlinux " + kernel + "\r\noptions root=/dev/vda3 ro\r\n",
		"3-two.conf":     "title Two\nlinux " + kernel + "\noptions root=/dev/vda3\noptions ro quiet\n",
		"4-none.conf":    "title None\nlinux " + kernel + "\n",
		"5-noeol.conf":   "title NoEOL\nlinux " + kernel + "\noptions root=/dev/vda3 ro",
		"6-quoted.conf":  "title Quoted\nlinux " + kernel + "\noptions root=/dev/vda3 dyndbg=\"file x.c +p; file y.c +p\" systemd.unified_cgroup_hierarchy=\"0\" my_cgroup_no_v1=all\n",
		"7-init.conf":    "title Init\nlinux " + kernel + "\noptions root=/dev/vda3 ro -- systemd.unified_cgroup_hierarchy=0\n",
		"notes.txt":      "options not-an-entry\n",
		"8-disabled.bak": "title Old\nlinux " + kernel + "\noptions root=/dev/vda3\n",
	} {
		t.Put("/boot/loader/entries/"+name, text)
	}
}

func staleV1(t Tree) {
	args := "systemd.unified_cgroup_hierarchy=0 " + KernelArgs + " cgroup_no_v1=memory systemd.unified_cgroup_hierarchy=no systemd.legacy_systemd_cgroup_controller " +
		"not.systemd.unified_cgroup_hierarchy=0 systemdXunified_cgroup_hierarchy=0 cgroup.memory=nokmem"
	BootBLS(t, args)
	DefaultGrub(t, args, true)
	Entry(t, "/boot", Kernel, RootArgs+" "+args)
}

func alreadyV2(t Tree) {
	args := KernelArgs + " " + V2Args
	BootBLS(t, args)
	DefaultGrub(t, args, true)
	t.Put("/etc/containerd/config.toml", strings.Replace(t.Text("/etc/containerd/config.toml"), "false", "true", 1))
	unit := "/usr/lib/systemd/system/containerd.service"
	t.Put(unit, strings.Replace(t.Text(unit), "Restart=", "Delegate=yes\nRestart=", 1))
	t.Link(unit, "/etc/systemd/system/multi-user.target.wants/containerd.service")
}

func oddDefaultGrub(t Tree) {
	t.Put("/etc/default/grub", `# GRUB_CMDLINE_LINUX="in a comment"
GRUB_CMDLINE_LINUX_DEFAULT="rhgb quiet systemd.unified_cgroup_hierarchy=0"
GRUB_CMDLINE_LINUX="overridden below" # a comment
export GRUB_TIMEOUT=2
	GRUB_CMDLINE_LINUX='console=ttyS0 dyndbg="module virtio* +p" don'"'"'t=1'   # "quotes" in a comment
GRUB_CMDLINE_LINUX+=" more=\"x y\" back=\\slash cost=\$7 \
next=line"
GRUB_ENABLE_BLSCFG=true
`)
}

func linksInside(t Tree) {
	t["/etc/sysconfig/grub.data"] = t["/etc/default/grub"]
	t.Link("/etc/sysconfig/grub", "/etc/default/grub")
	t.Link("grub.data", "/etc/sysconfig/grub")
	grub2 := t.Cut("/boot/grub2")
	t.Graft("/usr/share/grub2-files", grub2)
	t.Link("/usr/share/grub2-files", "/boot/grub2")
	t.Link("/boot/grub2/grub.cfg", "/etc/grub2.cfg")
}

func linksAttack(t Tree) {
	t.Link("../../../../../../../etc/passwd", "/etc/default/grub")
	t.Remove("/etc/systemd/system/multi-user.target.wants")
	t.Link("/tmp/remaster-test-escape", "/etc/systemd/system/multi-user.target.wants")
	t.Link("/etc/shadow", "/boot/loader/entries/zz.conf")
	t.Link("/proc/self/root/etc/hostname", "/etc/image-id")
}

func oddModes(t Tree) {
	g := t["/etc/default/grub"]
	g.Mode, g.UID, g.GID = 0o640, 12, 70_000
	g.Xattrs = map[string][]byte{
		"security.selinux": []byte("system_u:object_r:special_t:s0:c1.c5\x00"),
		"user.note":        []byte(strings.Repeat("kept ", 60)), // too long for the inode: a block of its own
	}
	t.Put("/etc/sudo-like", "x")
	t["/etc/sudo-like"].Mode |= 0o4000
}

// full fills the root so that so many blocks are free.
func full(free int) func(testing.TB) string {
	return func(tb testing.TB) string {
		tb.Helper()
		root := rootFS(tb, bls(func(t Tree) { t.Put("/var/log/filler", "") }))
		if n := freeBlocks(tb, root) - free; n > 0 {
			DebugFS(tb, root, fmt.Sprintf("fallocate /var/log/filler 0 %d", n-1), fmt.Sprintf("sif /var/log/filler size %d", n*4096))
		}
		if n := freeBlocks(tb, root); n != free {
			tb.Fatalf("%d blocks are free, not %d", n, free)
		}
		oracle.E2fsck(tb, root)
		return gptImage(tb, root)
	}
}
