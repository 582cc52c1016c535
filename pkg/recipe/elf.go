package recipe

import (
	"bytes"
	"encoding/binary"
	"io"
	"strings"

	"remaster/pkg/disk"
	"remaster/pkg/rootfs"
)

// What is read of an ELF file: e_ident, the machine and the section table of a 64-bit
// little-endian one (System V ABI, "ELF Header", "Section Header").
const (
	elfHeader     = 64
	elfSection    = 64
	elfMachineOff = 18
	maxSections   = 512
	maxBuildInfo  = 1 << 20
)

// machines names the values of e_machine that Alibaba Cloud Linux is made for.
var machines = map[uint16]string{62: "x86_64", 183: "aarch64"}

// elfMachine returns the machine that an ELF file is for; ok is false for other files.
func elfMachine(b io.ReaderAt) (machine uint16, ok bool) {
	var h [20]byte
	if disk.ReadFull(b, h[:], 0) != nil || !bytes.HasPrefix(h[:], []byte("\x7fELF")) {
		return 0, false
	}
	order := binary.ByteOrder(binary.LittleEndian)
	if h[5] == 2 {
		order = binary.BigEndian
	}
	return order.Uint16(h[elfMachineOff:]), true
}

// guestMachine returns the machine that the guest's programs are for.
func guestMachine(t rootfs.Tree) (machine uint16, ok bool) {
	for _, p := range []string{"/usr/lib/systemd/systemd", "/usr/bin/bash", "/lib/systemd/systemd", "/bin/sh"} {
		n, err := t.Stat(p)
		if err != nil || !n.Mode.IsRegular() {
			continue
		}
		if m, ok := elfMachine(n.Content); ok {
			return m, true
		}
	}
	return 0, false
}

func machineName(m uint16) string {
	if s, ok := machines[m]; ok {
		return s
	}
	return "another machine"
}

// goPackage returns the import path of the main package of a Go program, from what the
// linker notes in the section .go.buildinfo (debug/buildinfo), and "" if it is not a Go
// program of 1.18 or later. The file is not trusted.
func goPackage(b disk.Blob) string {
	var h [elfHeader]byte
	if disk.ReadFull(b, h[:], 0) != nil || !bytes.HasPrefix(h[:], []byte("\x7fELF\x02\x01")) {
		return ""
	}
	le := binary.LittleEndian
	off, size, n, names := le.Uint64(h[40:]), le.Uint16(h[58:]), le.Uint16(h[60:]), le.Uint16(h[62:])
	if size != elfSection || n > maxSections || names >= n || off > uint64(b.Size()) {
		return ""
	}
	table := make([]byte, int(n)*elfSection)
	if disk.ReadFull(b, table, int64(off)) != nil {
		return ""
	}
	part := func(i uint16, limit uint64) []byte {
		s := table[int(i)*elfSection:]
		at, length := le.Uint64(s[24:]), min(le.Uint64(s[32:]), limit)
		if at > uint64(b.Size()) {
			return nil
		}
		p := make([]byte, length)
		if disk.ReadFull(b, p, int64(at)) != nil {
			return nil
		}
		return p
	}
	strtab := part(names, 1<<16)
	for i := range n {
		name := le.Uint32(table[int(i)*elfSection:])
		if uint64(name) >= uint64(len(strtab)) || !bytes.HasPrefix(strtab[name:], []byte(".go.buildinfo\x00")) {
			continue
		}
		return mainPath(part(i, maxBuildInfo))
	}
	return ""
}

// mainPath reads the "path" line of a build info section: a magic, flags, and two
// strings with their lengths in front, the version of Go and the modules.
func mainPath(p []byte) string {
	const inline = 2
	if len(p) < 32 || !bytes.HasPrefix(p, []byte("\xff Go buildinf:")) || p[15]&inline == 0 {
		return ""
	}
	p = p[32:]
	n, w := binary.Uvarint(p) // the version of Go, which is passed over
	if w <= 0 || n > uint64(len(p)-w) {
		return ""
	}
	p = p[w+int(n):]
	_, text, ok := strings.Cut(string(p), "path\t")
	if !ok {
		return ""
	}
	text, _, _ = strings.Cut(text, "\n")
	return text
}

// containerdMajor returns the first number of the version of a containerd program, 0 if
// it does not say. From 2 on the number is part of the module's path.
func containerdMajor(b disk.Blob) int {
	switch p := goPackage(b); {
	case strings.HasPrefix(p, "github.com/containerd/containerd/v2/"):
		return 2
	case strings.HasPrefix(p, "github.com/containerd/containerd/"):
		return 1
	}
	return 0
}
