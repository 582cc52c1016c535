package testimage

import (
	"encoding/binary"
	"fmt"
	"io/fs"
	"slices"
	"strings"
)

// What the systems here are called; tests may name them.
const (
	MachineID = "20190711105006363114529432770642"
	Kernel    = "5.10.134-18.al8.x86_64" // the default one
	Rescue    = "0-rescue-" + MachineID
	RootUUID  = "8f1b5d0c-6a0e-4f6b-9d55-2c1f0a7e4b31"
	BootUUID  = "27c4e7a9-1d3b-4c58-8f0e-6b9a5d2e7c10"
	ESPSerial = "CAFE-0003"
	// RootArgs and KernelArgs are the command line of each kernel entry, unless a
	// layout is about another one. V2Args are what remaster adds to it.
	RootArgs   = "root=UUID=" + RootUUID + " ro"
	KernelArgs = "crashkernel=0M-2G:0M,2G-8G:192M,8G-:256M biosdevname=0 net.ifnames=0 console=tty0 console=ttyS0,115200n8 noibrs nvme_core.io_timeout=4294967295"
	V2Args     = "systemd.unified_cgroup_hierarchy=1 cgroup_no_v1=all"
)

// System returns the files of an Alinux3 that matter here, without a boot
// configuration: two kernels, systemd, and a containerd that is there but not
// enabled.
func System() Tree {
	t := Tree{}
	for _, dir := range []string{"/boot/efi", "/boot/grub2", "/boot/loader/entries", "/dev", "/proc", "/run", "/sys", "/usr/lib64", "/var/log",
		"/etc/default", "/etc/modules-load.d", "/etc/sysctl.d", "/etc/systemd/system/multi-user.target.wants"} {
		t.Dir(dir, 0o755)
	}
	t.Dir("/root", 0o550)
	t.Dir("/tmp", fs.ModeSticky|0o777)
	for _, dir := range []string{"bin", "sbin", "lib", "lib64"} {
		t.Link("usr/"+dir, "/"+dir)
	}
	identity(t)
	services(t)
	for _, k := range []string{Kernel, Rescue} {
		addKernel(t, k)
	}
	DefaultGrub(t, KernelArgs, true)
	t.Link("../default/grub", "/etc/sysconfig/grub")
	t.Link("../boot/grub2/grub.cfg", "/etc/grub2.cfg")
	t.Put("/etc/fstab", "# /etc/fstab\nUUID="+RootUUID+" /         ext4  defaults  1 1\nUUID="+ESPSerial+" /boot/efi vfat  umask=0077  0 2\n")
	return t
}

// identity is what says which system this is.
func identity(t Tree) {
	t.Put("/usr/lib/os-release", `NAME="Alibaba Cloud Linux"
VERSION="3 (OpenAnolis Edition)"
ID="alinux"
ID_LIKE="rhel fedora centos anolis"
VERSION_ID="3"
VARIANT_ID="server"
PLATFORM_ID="platform:al8"
PRETTY_NAME="Alibaba Cloud Linux 3 (OpenAnolis Edition)"
`)
	t.Link("../usr/lib/os-release", "/etc/os-release")
	t.Put("/etc/alinux-release", "Alibaba Cloud Linux release 3 (OpenAnolis Edition)\n")
	t.Link("alinux-release", "/etc/system-release")
	t.Put("/etc/image-id", "image_name=\"Alibaba Cloud Linux 3 test image\"\nimage_id=\"remaster_test_x64_20G.qcow2\"\n")
	t.Put("/etc/machine-id", MachineID+"\n")
	t.Put("/etc/hostname", "alinux3-test\n")
	t.Put("/etc/passwd", "root:x:0:0:root:/root:/bin/bash\nsshd:x:74:74::/:/sbin/nologin\n")
	t.Put("/etc/shadow", "root:!!:19700:0:99999:7:::\n")
	t["/etc/shadow"].Mode = 0
	t.Put("/etc/selinux/config", "SELINUX=disabled\nSELINUXTYPE=targeted\n")
	t.Put("/etc/selinux/targeted/contexts/files/file_contexts", fileContexts())
	t.Put("/usr/share/zoneinfo/Asia/Shanghai", string(zone("CST-8")))
	t.Put("/usr/share/zoneinfo/UTC", string(zone("UTC0")))
	t.Link("../usr/share/zoneinfo/UTC", "/etc/localtime")
}

// services are the programs and units that a Kubernetes node starts from.
func services(t Tree) {
	for _, p := range []string{"/usr/bin/containerd", "/usr/bin/runc", "/usr/bin/curl", "/usr/bin/wget", "/usr/bin/cloud-init", "/usr/sbin/sshd", "/usr/lib/systemd/systemd"} {
		t.Exec(p, elf())
	}
	t.Link("../lib/systemd/systemd", "/usr/sbin/init")
	t.Put("/usr/lib/systemd/libsystemd-shared-239.so", string(elf()))
	t.Put("/usr/lib/systemd/system/containerd.service", `[Unit]
Description=containerd container runtime
After=network.target local-fs.target

[Service]
ExecStartPre=-/sbin/modprobe overlay
ExecStart=/usr/bin/containerd
Restart=always

[Install]
WantedBy=multi-user.target
`)
	t.Put("/usr/lib/systemd/system/multi-user.target", "[Unit]\nDescription=Multi-User System\n")
	t.Link("/usr/lib/systemd/system/multi-user.target", "/etc/systemd/system/default.target")
	for _, unit := range []string{"sshd", "cloud-init"} {
		t.Put("/usr/lib/systemd/system/"+unit+".service", "[Unit]\nDescription="+unit+"\n\n[Service]\nExecStart=/usr/sbin/"+unit+"\n\n[Install]\nWantedBy=multi-user.target\n")
		t.Link("/usr/lib/systemd/system/"+unit+".service", "/etc/systemd/system/multi-user.target.wants/"+unit+".service")
	}
	t.Put("/etc/cloud/cloud.cfg", "users:\n - default\ndisable_root: 0\n")
	t.Put("/etc/ssh/sshd_config", "PermitRootLogin yes\nPasswordAuthentication yes\n")
	t["/etc/ssh/sshd_config"].Mode = 0o600
	t.Put("/etc/containerd/config.toml", `# Settings of the image's builder, to be kept.
version = 2

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.example/pause:3.9" # ours

  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"

    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
`)
}

// addKernel adds a kernel and its initramfs, for looks.
func addKernel(t Tree, version string) {
	// The setup header of the x86 boot protocol, with the version string that it
	// points at (offset 0x20e, from 0x200 on).
	k := make([]byte, 4096)
	copy(k, "MZ")
	copy(k[0x1fe:], "\x55\xaa")
	copy(k[0x202:], "HdrS")
	binary.LittleEndian.PutUint16(k[0x206:], 0x020f)
	binary.LittleEndian.PutUint16(k[0x20e:], 0x400)
	copy(k[0x600:], version+" (build@example) #1 SMP")
	t.Exec("/boot/vmlinuz-"+version, k)
	t.Put("/boot/initramfs-"+version+".img", "070701 initramfs of "+version+"\n")
	t["/boot/initramfs-"+version+".img"].Mode = 0o600
	t.Dir("/usr/lib/modules/"+version, 0o755)
}

// elf is the header of a program for x86-64 and nothing else.
func elf() []byte {
	b := make([]byte, 64)
	copy(b, "\x7fELF\x02\x01\x01")
	le := binary.LittleEndian
	le.PutUint16(b[16:], 2)  // an executable
	le.PutUint16(b[18:], 62) // x86-64
	le.PutUint32(b[20:], 1)
	le.PutUint16(b[52:], 64) // the size of this header
	return b
}

// zone is a time zone of one rule, in the format of RFC 8536, version 2.
func zone(rule string) []byte {
	header := append([]byte("TZif2"), make([]byte, 39)...)
	header[39], header[43] = 1, 1 // one local time type, one byte of designations
	body := []byte{0, 0, 0, 0, 0, 0, 0}
	return slices.Concat(header, body, header, body, []byte("\n"+rule+"\n"))
}

// DefaultGrub writes /etc/default/grub.
func DefaultGrub(t Tree, args string, bls bool) {
	t.Put("/etc/default/grub", fmt.Sprintf(`GRUB_TIMEOUT=5
GRUB_DISTRIBUTOR="$(sed 's, release .*$,,g' /etc/system-release)"
GRUB_DEFAULT=saved
GRUB_DISABLE_SUBMENU=true
GRUB_TERMINAL_OUTPUT="console"
GRUB_CMDLINE_LINUX="%s"
GRUB_DISABLE_RECOVERY="true"
GRUB_ENABLE_BLSCFG=%v
`, args, bls))
}

// Entry writes a BLS entry. Its kernel lies in dir, as GRUB sees it.
func Entry(t Tree, dir, version, options string) {
	t.Put("/boot/loader/entries/"+MachineID+"-"+version+".conf", fmt.Sprintf(`title Alibaba Cloud Linux (%[1]s) 3 (OpenAnolis Edition)
version %[1]s
linux %[2]s/vmlinuz-%[1]s
initrd %[2]s/initramfs-%[1]s.img $tuned_initrd
options %[3]s
id alinux-20231101000000-%[1]s
grub_users $grub_users
grub_arg --unrestricted
grub_class kernel
`, version, dir, options))
}

// GrubEnv writes an environment block of exactly 1024 bytes.
func GrubEnv(t Tree, p string, vars ...string) {
	s := "# GRUB Environment Block\n" + strings.Join(vars, "\n") + "\n"
	if len(s) > 1024 {
		panic(fmt.Sprintf("testimage: %s of %d bytes", p, len(s)))
	}
	t.Put(p, s+strings.Repeat("#", 1024-len(s)))
}

const cfgHead = `#
# DO NOT EDIT THIS FILE
#
# It is automatically generated by grub2-mkconfig using templates
# from /etc/grub.d and settings from /etc/default/grub
#

### BEGIN /etc/grub.d/00_header ###
set pager=1
if [ -s $prefix/grubenv ]; then
  load_env
fi
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
   set next_entry=
   save_env next_entry
   set boot_once=true
else
   set default="${saved_entry}"
fi
set timeout=5
### END /etc/grub.d/00_header ###

### BEGIN /etc/grub.d/10_linux ###
`

const cfgTail = "### END /etc/grub.d/10_linux ###\n"

// GrubCfgBLS is a grub.cfg that takes its entries from the BLS, on the file system
// of that UUID.
func GrubCfgBLS(uuid, args string) string {
	return cfgHead + `insmod part_gpt
insmod ext2
search --no-floppy --fs-uuid --set=root ` + uuid + `
if [ -z "${kernelopts}" ]; then
  set kernelopts="` + RootArgs + " " + args + ` "
fi

insmod blscfg
blscfg
` + cfgTail
}

// GrubCfgPlain is a grub.cfg with an entry for each of the two kernels.
func GrubCfgPlain(args string) string {
	var b strings.Builder
	b.WriteString(cfgHead)
	for _, v := range []string{Kernel, Rescue} {
		fmt.Fprintf(&b, `menuentry 'Alibaba Cloud Linux (%[1]s) 3 (OpenAnolis Edition)' --class alinux --class gnu-linux --class os --unrestricted $menuentry_id_option 'gnulinux-%[1]s-advanced-%[2]s' {
	load_video
	set gfxpayload=keep
	insmod gzio
	insmod ext2
	set root='hd0,msdos1'
	search --no-floppy --fs-uuid --set=root %[2]s
	linux16 /boot/vmlinuz-%[1]s %[3]s
	initrd16 /boot/initramfs-%[1]s.img
}
`, v, RootUUID, RootArgs+" "+args)
	}
	return b.String() + cfgTail
}

// BootBLS configures BLS entries whose options stand in grubenv, as on RHEL 8.
func BootBLS(t Tree, args string) {
	Entry(t, "/boot", Kernel, "$kernelopts $tuned_params")
	Entry(t, "/boot", Rescue, "$kernelopts")
	t.Put("/boot/grub2/grub.cfg", GrubCfgBLS(RootUUID, args))
	GrubEnv(t, "/boot/grub2/grubenv", "saved_entry="+MachineID+"-"+Kernel, "kernelopts="+RootArgs+" "+args+" ", "boot_success=0")
}

// BootInline configures BLS entries that carry the whole command line.
func BootInline(t Tree, args string) {
	BootBLS(t, args)
	Entry(t, "/boot", Kernel, RootArgs+" "+args)
	Entry(t, "/boot", Rescue, RootArgs+" "+args)
	GrubEnv(t, "/boot/grub2/grubenv", "saved_entry="+MachineID+"-"+Kernel, "boot_success=0")
}

// BootPlain configures a grub.cfg with menu entries, and no BLS.
func BootPlain(t Tree, args string) {
	t.Remove("/boot/loader")
	t.Put("/boot/grub2/grub.cfg", GrubCfgPlain(args))
	DefaultGrub(t, args, false)
	GrubEnv(t, "/boot/grub2/grubenv", "saved_entry=Alibaba Cloud Linux ("+Kernel+") 3 (OpenAnolis Edition)")
}

// ESPTree is the ESP of a system whose /boot/grub2 lies in dir on the file system of
// that UUID: two loaders for looks, and a grub.cfg that goes on there.
func ESPTree(uuid, dir string) Tree {
	t := Tree{}
	t.Put("/EFI/BOOT/BOOTX64.EFI", "MZ loader\n")
	t.Put("/EFI/alinux/grubx64.efi", "MZ grub\n")
	t.Put("/EFI/alinux/grub.cfg", "search --no-floppy --fs-uuid --set=dev "+uuid+"\nset prefix=($dev)"+dir+"/grub2\nexport $prefix\nconfigfile $prefix/grub.cfg\n")
	return t
}
