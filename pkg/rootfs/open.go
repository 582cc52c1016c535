package rootfs

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"remaster/internal/hint"
	"remaster/pkg/disk"
	"remaster/pkg/ext4"
	"remaster/pkg/fat"
	"remaster/pkg/partition"
)

// OpenOptions say how a guest is opened.
type OpenOptions struct {
	// Edit makes the volumes Editors. The disk must be a disk.Writable that is
	// dropped if anything fails: an overlay.
	Edit bool
	// Now is the time of an edit, of changed inodes for one. The zero time means the
	// time of the last write to each file system.
	Now time.Time
	// Overlay limits the memory that the replay of journals takes.
	Overlay disk.OverlayOptions
}

// Part is a partition with the file system on it.
type Part struct {
	partition.Part
	// FS is what lies there by its magic, in the words of [partition.Probe].
	FS string
	// FSUUID and FSLabel are those of an ext4 or FAT file system, as Linux shows them.
	FSUUID, FSLabel string
	// Features are those of an ext4 file system, by mke2fs' names.
	Features []string
	// MountedAt is the path that the volume has in the guest, or "".
	MountedAt string
	// Recovery is what had to be done to read an ext4 file system that was not
	// unmounted: the replay of its journal. It is nil for any other. The disk below
	// keeps the file system as it is until the volume is edited.
	Recovery *ext4.Recovery
	// Volume is the file system, whether it is mounted or not; nil if it is of
	// another kind, or if Err says why it can't be read.
	Volume Volume
	Err    error

	written  time.Time
	replayed *disk.Overlay // the partition as Recovery left it, or nil
	space    func() (size, free int64, err error)
}

// String names the partition and what lies on it.
func (p *Part) String() string {
	if p.FS == "" {
		return p.Part.String() + " (nothing known)"
	}
	return p.Part.String() + " (" + p.FS + ")"
}

// Space returns the size of the file system and what is free there, in bytes. Both are
// 0 for a kind that is not read.
func (p *Part) Space() (size, free int64, err error) {
	if p.space == nil {
		return 0, 0, nil
	}
	return p.space()
}

// IsESP reports whether the table says that the partition is the EFI system partition
// (UEFI specification 2.10, 5.3.3 and 5.2.2).
func (p *Part) IsESP() bool {
	return strings.EqualFold(p.Type, "C12A7328-F81F-11D2-BA4B-00A0C93EC93B") || strings.EqualFold(p.Type, "EF")
}

// ESP returns the EFI system partition that can be read, or nil. The firmware reads it
// whether the guest mounts it or not.
func (g *Guest) ESP() *Part {
	for i := range g.Parts {
		if p := &g.Parts[i]; p.IsESP() && p.Volume != nil {
			return p
		}
	}
	return nil
}

// onlyESP returns the EFI system partition if there is just one, and it is not mounted.
func (g *Guest) onlyESP() (esp *Part) {
	for i := range g.Parts {
		if p := &g.Parts[i]; p.IsESP() {
			if esp != nil {
				return nil
			}
			esp = p
		}
	}
	if esp != nil && esp.MountedAt != "" {
		return nil
	}
	return esp
}

// LastWrite returns the time of the last write to the root file system before it was
// opened; the zero time for a guest that was put together by hand.
func (g *Guest) LastWrite() time.Time { return g.lastWrite }

// Open finds the guest on its disk: the root, which is the file system with os-release,
// /etc and /usr, and what its own fstab mounts. There must be exactly one root. What
// belongs on /boot and /boot/efi must be there; of other mounts, what can't be read is
// left out with a note. An ext4 file system that was not unmounted, since the image was
// taken from a running system, is read as the replay of its journal leaves it.
func Open(d disk.Disk, o OpenOptions) (_ *Guest, err error) {
	if _, ok := d.(disk.Writable); o.Edit && !ok {
		return nil, errors.New("open guest for editing: its disk can only be read")
	}
	t, err := partition.Read(d)
	if err != nil {
		return nil, err
	}
	parts := make([]Part, len(t.Parts))
	defer func() {
		if err != nil {
			err = errors.Join(err, closeAll(parts))
		}
	}()
	for i, p := range t.Parts {
		parts[i].Part = p
		if err := parts[i].open(d, o); err != nil {
			return nil, fmt.Errorf("%v: %w", &parts[i], err)
		}
	}
	root, err := findRoot(parts)
	if err != nil {
		return nil, err
	}
	g := NewGuest(root.Volume)
	g.Parts, g.Notes, g.lastWrite = parts, append(g.Notes, t.Notes...), root.written
	root.MountedAt = "/"
	for i := range parts {
		if p := &parts[i]; p.Err != nil {
			g.note("%v can't be read: %v", p, p.Err)
		}
	}
	g.Notes = append(g.Notes, g.Recovered()...)
	return g, g.mountFstab()
}

// open looks at what lies on the partition. The error is that of reading the disk.
func (p *Part) open(d disk.Disk, o OpenOptions) error {
	w, err := p.Window(d)
	if err != nil {
		return err
	}
	if p.FS, err = partition.Probe(w); err != nil {
		return err
	}
	switch p.FS {
	case "ext4":
		p.Err = p.openExt4(w, o)
	case "vfat":
		p.Err = p.openFAT(w, o)
	}
	return nil
}

func (p *Part) openExt4(w *disk.Window, o OpenOptions) error {
	d, err := p.recover(w, o)
	if err != nil {
		return err
	}
	f, err := ext4.Open(d)
	if err != nil {
		return err
	}
	info, err := f.Info()
	if err != nil {
		return err
	}
	u := info.UUID
	p.FSUUID = fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
	p.FSLabel, p.Features, p.written = info.Label, info.Features, info.Written
	p.space = func() (int64, int64, error) {
		return int64(info.Blocks) * int64(info.BlockSize), int64(info.FreeBlocks) * int64(info.BlockSize), nil
	}
	v := newExt4(f)
	p.Volume = v
	if o.Edit {
		p.Volume = &ext4Editor{ext4Volume: v, d: w, replayed: p.replayed, now: o.Now}
	}
	return nil
}

// recover returns the partition as it is to be read: w itself, or an overlay of it in
// which the journal was replayed.
func (p *Part) recover(w *disk.Window, o OpenOptions) (disk.Disk, error) {
	v := disk.NewOverlay(w, o.Overlay)
	rec, err := ext4.Recover(v, ext4.EditOptions{Now: o.Now})
	if err != nil || rec == nil {
		return w, errors.Join(err, v.Close())
	}
	p.Recovery, p.replayed = rec, v
	return v, nil
}

// Recovered tells, for each file system that was not unmounted, what was done to read it.
func (g *Guest) Recovered() []string {
	var out []string
	for i := range g.Parts {
		if p := &g.Parts[i]; p.Recovery != nil {
			out = append(out, fmt.Sprintf("%v was not unmounted: %v", p, p.Recovery))
		}
	}
	return out
}

// closeAll releases what partitions hold.
func closeAll(parts []Part) error {
	var errs []error
	for i := range parts {
		if v := parts[i].replayed; v != nil {
			errs = append(errs, v.Close())
		}
	}
	return errors.Join(errs...)
}

func (p *Part) openFAT(w *disk.Window, o OpenOptions) error {
	f, err := fat.Open(w)
	if err != nil {
		return err
	}
	if p.FSLabel, err = f.Label(); err != nil {
		return err
	}
	p.FSUUID = f.UUID()
	p.space = func() (int64, int64, error) {
		info, err := f.Info()
		return info.Size, info.Free, err
	}
	v := &fatVolume{f}
	p.Volume = v
	if o.Edit {
		p.Volume = &fatEditor{fatVolume: v, d: w}
	}
	return nil
}

// isRoot reports whether the volume has what makes a root.
func isRoot(v Volume) (bool, error) {
	g := NewGuest(v)
	for _, p := range []string{"/etc", "/usr"} {
		n, err := g.Stat(p)
		if isMissing(err) || err == nil && !n.Mode.IsDir() {
			return false, nil
		}
		if err != nil {
			return false, err
		}
	}
	for _, p := range []string{"/etc/os-release", "/usr/lib/os-release"} {
		if found, err := Exists(g, p); err != nil || found {
			return found, err
		}
	}
	return false, nil
}

// closed are the kinds of content that a root may lie in and that are not read.
var closed = map[string]string{
	"xfs":               "only ext4 roots can be edited; use a base image whose root is ext4, as Alibaba Cloud Linux 3 has it",
	"btrfs":             "only ext4 roots can be edited; use a base image whose root is ext4, as Alibaba Cloud Linux 3 has it",
	"LVM2_member":       "logical volumes are not read; use a base image whose root is an ext4 partition",
	"crypto_LUKS":       "encrypted partitions are not read; use a base image that is not encrypted",
	"linux_raid_member": "software RAID is not read; use a base image whose root is an ext4 partition",
	"squashfs":          "only ext4 roots can be edited; use an installed image, not a live one",
	"erofs":             "only ext4 roots can be edited; use a base image whose root is ext4",
}

// findRoot returns the one partition that holds a root.
func findRoot(parts []Part) (*Part, error) {
	var roots []*Part
	var found []string
	for i := range parts {
		p := &parts[i]
		found = append(found, p.String())
		if p.FS != "ext4" || p.Volume == nil {
			continue
		}
		is, err := isRoot(p.Volume)
		if err != nil {
			return nil, fmt.Errorf("%v: %w", p, err)
		}
		if is {
			roots = append(roots, p)
		}
	}
	switch {
	case len(roots) == 1:
		return roots[0], nil
	case len(roots) > 1:
		return nil, hint.With(fmt.Errorf("both %v and %v look like the root file system: %w", roots[0], roots[1], disk.ErrUnsupported),
			"use an image with one system on it")
	}
	for i := range parts {
		if p := &parts[i]; p.FS == "ext4" && p.Err != nil {
			return nil, fmt.Errorf("%v: %w", p, p.Err)
		}
	}
	for i := range parts {
		if remedy, ok := closed[parts[i].FS]; ok {
			return nil, hint.With(fmt.Errorf("no root file system can be read, and it may lie on %v: %w", &parts[i], disk.ErrUnsupported), remedy)
		}
	}
	what := strings.Join(found, ", ")
	if what == "" {
		what = "no partitions"
	}
	return nil, hint.With(fmt.Errorf("no root file system (with /etc, /usr and os-release) was found, only: %s: %w", what, disk.ErrUnsupported),
		"use the image of an installed system whose root is ext4")
}

// maxMounts is the number of mounts that an fstab may have; it bounds the notes.
const maxMounts = 1000

// mountFstab mounts what the guest's own fstab does.
func (g *Guest) mountFstab() error {
	text, err := ReadFile(g, "/etc/fstab")
	if isMissing(err) {
		g.note("there is no /etc/fstab: nothing but the root is mounted")
		return nil
	}
	if err != nil {
		return err
	}
	entries := parseFstab(string(text))
	if len(entries) > maxMounts {
		return fmt.Errorf("/etc/fstab has %d mounts, more than %d: %w", len(entries), maxMounts, disk.ErrUnsupported)
	}
	for _, e := range entries {
		err := g.mountEntry(e)
		if err == nil {
			continue
		}
		err = fmt.Errorf("mount %s on %s by /etc/fstab: %w", e.spec, e.dir, err)
		essential := e.dir == "/boot" || e.dir == "/boot/efi" || e.dir == "/efi"
		if essential && !e.has("nofail") && !e.has("noauto") {
			return hint.With(err, "the boot files may lie there: mend /etc/fstab in the guest, or mark the line nofail if they do not")
		}
		g.note("not mounted: %v", err)
	}
	return nil
}

// pseudo are the kinds of mounts that show nothing of a disk.
var pseudo = map[string]bool{
	"proc": true, "sysfs": true, "tmpfs": true, "devpts": true, "devtmpfs": true, "cgroup": true, "cgroup2": true,
	"hugetlbfs": true, "debugfs": true, "securityfs": true, "efivarfs": true, "bpf": true, "mqueue": true,
}

func (g *Guest) mountEntry(e fstabEntry) error {
	if pseudo[e.typ] {
		return nil
	}
	p, guess, err := device(g.Parts, e.spec)
	if p == nil && err == nil && (e.dir == "/boot/efi" || e.dir == "/efi") {
		// The firmware goes by the table, and boots from there whatever fstab says.
		if p = g.onlyESP(); p != nil {
			g.note("no partition is %s, which /etc/fstab mounts on %s; the only EFI system partition, %v, is taken for it", e.spec, e.dir, p)
		}
	}
	switch {
	case err != nil:
		return err
	case p == nil:
		return fmt.Errorf("no partition of the image is %s", e.spec)
	case guess && e.dir != "/":
		g.note("/etc/fstab mounts %s on %s; it is taken for %v", e.spec, e.dir, p)
	}
	if e.dir == "/" {
		if p.MountedAt != "/" {
			g.note("/etc/fstab mounts %v as the root, but the system lies on another partition", p)
		}
		return nil
	}
	switch {
	case p.Err != nil:
		return fmt.Errorf("%v: %w", p, p.Err)
	case p.Volume == nil:
		err := fmt.Errorf("%v: %w", p, disk.ErrUnsupported)
		if remedy := closed[p.FS]; remedy != "" {
			err = hint.With(err, remedy)
		}
		return err
	case p.MountedAt != "":
		return fmt.Errorf("%v is mounted on %s already", p, p.MountedAt)
	}
	if err := g.Mount(e.dir, p.Volume); err != nil {
		return err
	}
	p.MountedAt = e.dir
	return nil
}

func (g *Guest) note(format string, args ...any) {
	g.Notes = append(g.Notes, fmt.Sprintf(format, args...))
}
