// Package recipe says what is changed in a guest to make it a Kubernetes node with
// unified cgroup v2 and containerd: which files get which content, and why.
//
// A [Recipe] only plans. It reads and writes a [rootfs.Stage]; what it did not stage is
// not changed. Planning a second time on the result stages nothing.
package recipe

import (
	"context"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"strings"

	"remaster/internal/hint"
	"remaster/pkg/disk"
	"remaster/pkg/grub"
	"remaster/pkg/rootfs"
	"remaster/pkg/systemd"
)

// Recipe is what to change. The zero value is the preset: cgroup v2 and containerd.
type Recipe struct {
	// SkipCgroupV2 leaves the hierarchy as it is: no kernel arguments but KernelArgs,
	// no accounting.
	SkipCgroupV2 bool
	// SkipContainerd leaves containerd, its configuration and the modules and kernel
	// settings of a node as they are.
	SkipContainerd bool

	// KernelArgs are added to the kernel command line, "key" or "key=value". A value
	// takes the place of earlier ones of its key, but for keys that may be there
	// several times, such as console.
	KernelArgs []string
	// DeleteKernelArgs are removed from it: "key" with all its values, "key=value"
	// with that value only.
	DeleteKernelArgs []string

	// Timezone is a name of the guest's zoneinfo, "Asia/Shanghai" say; "" leaves it.
	Timezone string
	// DisableSwap comments the swap lines of /etc/fstab out.
	DisableSwap bool
	// DisableUnits are units to turn off, as "systemctl disable" does.
	DisableUnits []string

	// Payload is what to put in: containerd, runc, CNI plugins. It may be nil, must
	// be open until the changes are applied, and is the caller's to close.
	Payload *Payload

	// AllowOS accepts a guest that CheckOS refuses.
	AllowOS bool
}

// Report is what a user should know of a plan beside its changes.
type Report struct {
	Notes    []string     // what was found and done, or left alone
	Warnings []string     // what may keep the node from working as wanted
	Boot     *grub.Report // what was planned in the boot configuration, its notes are above too; nil if nothing was asked for
}

func (r *Report) note(format string, args ...any) {
	r.Notes = append(r.Notes, fmt.Sprintf(format, args...))
}

func (r *Report) warn(format string, args ...any) {
	r.Warnings = append(r.Warnings, fmt.Sprintf(format, args...))
}

// planner is a recipe at work.
type planner struct {
	Recipe
	s         *rootfs.Stage
	rep       *Report
	installed bool // containerd has a unit in the guest
}

// Plan stages everything that the recipe asks for. After an error the stage must not be
// applied.
func (r Recipe) Plan(ctx context.Context, s *rootfs.Stage) (*Report, error) {
	p := &planner{Recipe: r, s: s, rep: &Report{}}
	if !r.AllowOS {
		if err := CheckOS(s); err != nil {
			return nil, err
		}
	}
	before := len(s.Changes())
	for _, step := range []func(context.Context) error{p.payload, p.boot, p.containerd, p.node(before), p.timezone, p.swap, p.units} {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	p.rep.note("packages and the kernel stay as they are in the base image: updating them is out of reach of file editing")
	return p.rep, nil
}

// boot plans the kernel command line.
func (p *planner) boot(context.Context) error {
	var e grub.Edit
	if !p.SkipCgroupV2 {
		e = grub.CgroupV2()
	}
	for _, s := range p.KernelArgs {
		a := grub.ParseArg(s)
		if grub.MultiValued(a.Key) {
			e.Append = append(e.Append, a)
		} else {
			e.Set = append(e.Set, a)
		}
	}
	for _, s := range p.DeleteKernelArgs {
		e.Delete = append(e.Delete, grub.ParseArg(s))
	}
	if e.Empty() {
		return nil
	}
	rep, err := grub.Update(p.s, e)
	if err != nil {
		return fmt.Errorf("kernel command line: %w", err)
	}
	p.rep.Boot = rep
	p.rep.Notes = append(p.rep.Notes, rep.Notes...)
	return nil
}

var zoneName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_+-]*(/[A-Za-z0-9][A-Za-z0-9_+-]*)*$`)

const zoneinfo = "/usr/share/zoneinfo"

// timezone points /etc/localtime at a zone (localtime(5)).
func (p *planner) timezone(context.Context) error {
	if p.Timezone == "" {
		return nil
	}
	if !zoneName.MatchString(p.Timezone) {
		return fmt.Errorf("time zone %q: %w", p.Timezone, fs.ErrInvalid)
	}
	const localtime = "/etc/localtime"
	file := zoneinfo + "/" + p.Timezone
	n, err := p.s.Stat(file)
	if err != nil || !n.Mode.IsRegular() {
		return hint.With(fmt.Errorf("time zone %s is not in the image: no file %s", p.Timezone, file), "name a zone as the image has it below "+zoneinfo+", for instance Asia/Shanghai")
	}
	var magic [4]byte
	if disk.ReadFull(n.Content, magic[:], 0) != nil || string(magic[:]) != "TZif" {
		return fmt.Errorf("time zone %s: %s is no time zone file: %w", p.Timezone, file, disk.ErrFormat)
	}
	why := "time zone " + p.Timezone
	old, err := p.s.Lstat(localtime)
	if err == nil && old.Mode.Type() == fs.ModeSymlink {
		dest := old.Target
		if !path.IsAbs(dest) {
			dest = path.Join("/etc", dest)
		}
		if path.Clean(dest) == file {
			return nil
		}
	} else if err == nil {
		if err := p.s.Remove(localtime, why); err != nil {
			return err
		}
	}
	return p.s.Symlink(".."+file, localtime, why)
}

// swap comments out the swap lines of fstab(5), whatever white space they use, and
// leaves those that are comments already.
func (p *planner) swap(context.Context) error {
	const fstab = "/etc/fstab"
	if !p.DisableSwap {
		return nil
	}
	data, err := rootfs.ReadFile(p.s, fstab)
	if err != nil {
		return ignoreMissing(err)
	}
	var b strings.Builder
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) >= 3 && !strings.HasPrefix(f[0], "#") && f[2] == "swap" {
			b.WriteByte('#')
		}
		b.WriteString(line)
	}
	return p.s.WriteFile(fstab, []byte(b.String()), "kubernetes nodes run without swap")
}

// units turns units off.
func (p *planner) units(context.Context) error {
	for _, u := range p.DisableUnits {
		if !strings.Contains(u, ".") {
			u += ".service"
		}
		if err := systemd.Disable(p.s, u, u+" is turned off"); err != nil {
			return err
		}
	}
	return nil
}
