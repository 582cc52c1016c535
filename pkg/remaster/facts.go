package remaster

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"remaster/pkg/disk"
	"remaster/pkg/importer"
	"remaster/pkg/partition"
	"remaster/pkg/rootfs"
	"remaster/pkg/vhd"
)

// Facts returns what the image itself tells of how it is to be imported. What it does
// not tell is left empty.
func (im *Image) Facts() (_ importer.ImageFacts, err error) {
	g, err := im.OpenGuest()
	if err != nil {
		return importer.ImageFacts{}, err
	}
	defer func() { err = errors.Join(err, g.Close()) }()
	f, err := guestFacts(g, im.Disk)
	f.Format, f.VirtualSize = string(im.Format), im.Disk.Size()
	return f, err
}

// Facts returns the same of the plan's output in the given format, or in the base's
// with "".
func (p *Plan) Facts(format Format) (_ importer.ImageFacts, err error) {
	if format == "" {
		format = p.Image.Format
	}
	g, err := rootfs.Open(readOnly{p.guest}, rootfs.OpenOptions{Overlay: p.o.Overlay})
	if err != nil {
		return importer.ImageFacts{}, err
	}
	defer func() { err = errors.Join(err, g.Close()) }()
	f, err := guestFacts(g, p.guest)
	if err != nil {
		return f, err
	}
	f.Format, f.VirtualSize = string(format), p.guest.Size()
	if format != p.Image.Format && (format == VHD || format == VHDFixed) {
		f.VirtualSize, err = vhd.DiskSize(p.guest.Size())
	}
	return f, err
}

func guestFacts(g *rootfs.Guest, d disk.Disk) (f importer.ImageFacts, err error) {
	if f.Architecture, err = architecture(g); err != nil {
		return f, err
	}
	if f.BootModes, err = bootModes(g, d, f.Architecture); err != nil {
		return f, err
	}
	f.Platform, err = platform(g)
	return f, err
}

// What is read of an ELF file: System V ABI, "ELF Header".
const (
	elfMagic      = "\x7fELF"
	elfClass      = 4 // 1: 32 bits, 2: 64 bits
	elfData       = 5 // 1: little endian
	elfMachine    = 18
	elfHeaderPart = 20
)

// architectures are ECS's words for class and e_machine.
var architectures = map[[2]uint16]string{
	{2, 62}:  importer.ArchX86,
	{2, 183}: importer.ArchARM,
	{1, 3}:   "i386",
}

// programs are some that each Linux system has; the first that is there counts.
var programs = []string{"/usr/lib/systemd/systemd", "/lib/systemd/systemd", "/sbin/init", "/usr/bin/bash", "/bin/sh"}

// architecture returns what the guest's programs are for, in ECS's words, or "".
func architecture(t rootfs.Tree) (string, error) {
	for _, p := range programs {
		n, err := t.Stat(p)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", err
		}
		if !n.Mode.IsRegular() || n.Size() < elfHeaderPart {
			continue
		}
		h := make([]byte, elfHeaderPart)
		if err := disk.ReadFull(n.Content, h, 0); err != nil {
			return "", fmt.Errorf("read %s: %w", p, err)
		}
		if !bytes.HasPrefix(h, []byte(elfMagic)) || h[elfData] != 1 {
			continue
		}
		return architectures[[2]uint16{uint16(h[elfClass]), binary.LittleEndian.Uint16(h[elfMachine:])}], nil
	}
	return "", nil
}

// bootCode is the size in bytes of an MBR's boot code (UEFI specification 2.10, 5.2.1).
const bootCode = 440

// biosBoot is the type of the GPT partition that GRUB's core lies in.
const biosBoot = "21686148-6449-6E6F-744E-656564454649"

// bootModes returns the ways in which the disk can be booted: BIOS if there is boot
// code in its first sector, and behind a GPT a partition that it goes on in; UEFI if the
// firmware finds a loader without having been told of it.
func bootModes(g *rootfs.Guest, d disk.Disk, arch string) ([]string, error) {
	var modes []string
	if arch != importer.ArchARM {
		code := make([]byte, min(bootCode, d.Size()))
		if err := disk.ReadFull(d, code, 0); err != nil {
			return nil, err
		}
		t, err := partition.Read(d)
		if err != nil {
			return nil, err
		}
		core := t.Kind != partition.GPT
		for _, p := range t.Parts {
			core = core || strings.EqualFold(p.Type, biosBoot)
		}
		if core && len(bytes.Trim(code, "\x00")) > 0 {
			modes = append(modes, importer.BootBIOS)
		}
	}
	loader, err := hasLoader(g, arch)
	if loader {
		modes = append(modes, importer.BootUEFI)
	}
	return modes, err
}

// loaders are the names that firmware looks for in \EFI\BOOT (UEFI specification 2.10,
// 3.5.1.1). A new instance has no boot entries that would name others.
var loaders = map[string]string{
	importer.ArchX86: "BOOTX64.EFI",
	importer.ArchARM: "BOOTAA64.EFI",
	"i386":           "BOOTIA32.EFI",
}

func hasLoader(g *rootfs.Guest, arch string) (bool, error) {
	esp := g.ESP()
	if esp == nil {
		return false, nil
	}
	folder := "/"
	for _, want := range []string{"EFI", "BOOT", loaders[arch]} {
		entries, err := esp.Volume.ReadDir(folder)
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return false, nil
			}
			return false, fmt.Errorf("%v: %w", esp, err)
		}
		name := ""
		for _, e := range entries {
			if strings.EqualFold(e.Name, want) && e.Type.IsDir() == (want != loaders[arch]) {
				name = e.Name
			}
		}
		if name == "" {
			return false, nil
		}
		folder = strings.TrimSuffix(folder, "/") + "/" + name
	}
	return true, nil
}

// platform returns ECS's word for the guest's system, "" for one that it has none for.
func platform(t rootfs.Tree) (string, error) {
	os, err := rootfs.OSRelease(t)
	if err != nil {
		return "", err
	}
	switch os["ID"] {
	case "alinux":
		return "Aliyun", nil
	case "anolis":
		return "Anolis", nil
	case "rocky":
		return "Rocky Linux", nil
	case "almalinux":
		return "AlmaLinux", nil
	case "centos":
		if strings.Contains(os["NAME"], "Stream") {
			return "CentOS Stream", nil
		}
		return "CentOS", nil
	case "rhel":
		return "RedHat", nil
	}
	return "", nil
}
