package verify

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"remaster/pkg/grub"
)

var bootRules = []rule{
	{Rule{"boot-cgroup-v2", "Every boot entry asks for unified cgroup v2",
		"The node boots with cgroup v1 if the kernel command line of the entry does not say otherwise, or contradicts itself.",
		"build the image with remaster, or add systemd.unified_cgroup_hierarchy=1 cgroup_no_v1=all to every place that the command line is kept in", Error}, checkCgroupV2},
	{Rule{"boot-controllers", "No boot entry disables a cgroup controller",
		"A controller that cgroup_disable names is missing from the unified hierarchy too.",
		"delete the cgroup_disable argument", Advice}, checkControllers},
	{Rule{"boot-default", "GRUB has a default entry",
		"Without one GRUB boots the first entry of its menu, which may be another kernel than the one that was meant.",
		"set saved_entry in grubenv to the id of an entry", Advice}, checkDefault},
	{Rule{"boot-grubenv", "GRUB can read its environment block",
		"GRUB passes over what it cannot read of grubenv, the kernel command line and the default entry among it.",
		"build the image with remaster, which repairs the block, or make it anew with grub2-editenv", Advice}, checkGrubenv},
	{Rule{"boot-kernels", "The kernel and initramfs of every boot entry are there",
		"An entry whose files are missing does not boot.",
		"remove the entry, or install the kernel that it is for", Advice}, checkKernels},
	{Rule{"boot-psi", "The kernel keeps pressure stall information",
		"A kernel that is built with it turned off needs psi=1 to show how long the tasks of a cgroup waited.",
		"add the kernel argument psi=1", Advice}, checkPSI},
}

// bootEntries returns the entries that boot a kernel.
func (g *guest) bootEntries() []grub.Entry {
	if g.boot == nil {
		return nil
	}
	var out []grub.Entry
	for _, e := range g.boot.Entries() {
		if e.Kernel != "" && len(e.Lines) > 0 {
			out = append(out, e)
		}
	}
	return out
}

func entryName(e grub.Entry) string {
	if e.ID != "" {
		return e.ID
	}
	return e.Title
}

// checkCgroupV2 wants v2 under every reading of every entry.
func checkCgroupV2(g *guest) finding {
	if g.bootErr != nil {
		return fail("the boot configuration cannot be followed: %v", g.bootErr)
	}
	entries := g.bootEntries()
	if len(entries) == 0 {
		return fail("there is no entry that boots a kernel")
	}
	for _, e := range entries {
		for _, l := range e.Lines {
			words := l.Texts()
			by := ""
			if l.Reading != "" {
				by = fmt.Sprintf(" (as %s reads it)", l.Reading)
			}
			switch mode := grub.Verdict(words); {
			case mode == grub.ModeDefault:
				return fail("%s%s leaves the hierarchy to systemd's default", entryName(e), by).at(e.Path)
			case mode != grub.ModeUnified:
				return fail("%s%s asks for %s", entryName(e), by, mode).at(e.Path)
			case !grub.NoV1(words):
				return fail("%s%s lets controllers go to cgroup v1: no cgroup_no_v1=all", entryName(e), by).at(e.Path)
			}
			if c := contradiction(words); c != "" {
				return fail("%s%s has %s beside it", entryName(e), by, c).at(e.Path)
			}
		}
	}
	return pass("%d entries", len(entries))
}

// contradiction returns a word that says the opposite of what the line as a whole does.
func contradiction(words []string) string {
	for _, w := range words {
		if w == "--" {
			break
		}
		a := grub.ParseArg(w)
		switch {
		case grub.SameKey(a.Key, "systemd.legacy_systemd_cgroup_controller"):
			return w
		case grub.SameKey(a.Key, "systemd.unified_cgroup_hierarchy") && grub.Verdict([]string{w}) != grub.ModeUnified:
			return w
		}
	}
	return ""
}

func checkControllers(g *guest) finding {
	entries := g.bootEntries()
	if len(entries) == 0 {
		return skip("there is no entry that boots a kernel")
	}
	for _, e := range entries {
		for _, l := range e.Lines {
			for _, w := range l.Texts() {
				a := grub.ParseArg(w)
				for v := range strings.SplitSeq(a.Value, ",") {
					if a.Key == "cgroup_disable" && slices.Contains([]string{"cpu", "cpuset", "memory", "io", "blkio", "pids", "hugetlb"}, v) {
						return fail("%s has %s", entryName(e), w).at(e.Path)
					}
				}
			}
		}
	}
	return pass("none of %d entries disables one", len(entries))
}

func checkDefault(g *guest) finding {
	if g.bootErr != nil {
		return finding{err: g.bootErr}
	}
	for _, c := range g.boot.Configs {
		i := slices.IndexFunc(c.Entries, func(e grub.Entry) bool { return e.Default })
		if i < 0 {
			return fail("the default %q is none of %d entries", c.Default, len(c.Entries)).at(c.Path)
		}
		if c.Entries[i].Rescue {
			return fail("the default is the rescue entry %s", entryName(c.Entries[i])).at(c.Path)
		}
	}
	if len(g.boot.Configs) == 0 {
		return skip("there is no boot configuration")
	}
	for _, e := range g.boot.Configs[0].Entries {
		if e.Default {
			return pass("%s", entryName(e))
		}
	}
	return pass("")
}

func checkGrubenv(g *guest) finding {
	if g.bootErr != nil {
		return finding{err: g.bootErr}
	}
	seen := 0
	for _, c := range g.boot.Configs {
		if c.Env == "" {
			continue
		}
		text, ok, err := g.text(c.Env)
		if err != nil {
			return finding{err: err}
		}
		if !ok {
			continue
		}
		b, err := grub.ParseEnvBlock([]byte(text))
		if err != nil {
			return fail("%v", err).at(c.Env)
		}
		if d := b.Damage(); d != "" {
			return fail("%s", d).at(c.Env)
		}
		seen++
	}
	if seen == 0 {
		return skip("there is no environment block")
	}
	return pass("")
}

func checkKernels(g *guest) finding {
	entries := g.bootEntries()
	if len(entries) == 0 {
		return skip("there is no entry that boots a kernel")
	}
	unclear := ""
	for _, e := range entries {
		for _, f := range append([]string{e.Kernel}, e.Initrds...) {
			there, known := g.onBootDevice(f)
			if !known {
				unclear = f
				continue
			}
			if !there {
				return fail("%s needs %s, which is not there", entryName(e), f).at(e.Path)
			}
		}
	}
	if unclear != "" {
		return unknown("where %s is depends on GRUB's variables", unclear)
	}
	return pass("%d entries", len(entries))
}

// checkPSI looks into the configuration that a kernel was built with, where it is there.
func checkPSI(g *guest) finding {
	seen := 0
	for _, e := range g.bootEntries() {
		_, kver, ok := strings.Cut(path.Base(e.Kernel), "vmlinuz-")
		if !ok {
			continue
		}
		p := "/boot/config-" + kver
		text, ok, err := g.text(p)
		if err != nil {
			return finding{err: err}
		}
		if !ok {
			continue
		}
		seen++
		lines := strings.Split(text, "\n")
		if !slices.Contains(lines, "CONFIG_PSI=y") {
			return fail("the kernel of %s has no PSI", entryName(e)).at(p)
		}
		if !slices.Contains(lines, "CONFIG_PSI_DEFAULT_DISABLED=y") {
			continue
		}
		for _, l := range e.Lines {
			if !slices.Contains(l.Texts(), "psi=1") {
				return fail("%s has no psi=1, and its kernel needs it", entryName(e)).at(p)
			}
		}
	}
	if seen == 0 {
		return unknown("no kernel's configuration is in /boot")
	}
	return pass("%d entries", seen)
}

// onBootDevice reports whether a file that GRUB names by its path on the device that it
// boots from is there: the root file system, or that of /boot. clear is false if the
// path cannot be told from the files.
func (g *guest) onBootDevice(f string) (there, known bool) {
	if strings.HasPrefix(f, "(") {
		if _, rest, ok := strings.Cut(f, ")"); ok {
			f = rest
		}
	}
	if strings.Contains(f, "$") || !strings.HasPrefix(f, "/") {
		return false, false
	}
	for _, p := range []string{f, path.Join("/boot", f)} {
		if n, err := g.Stat(p); err == nil && n.Mode.IsRegular() {
			return true, true
		}
	}
	return false, true
}
