package recipe

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"remaster/pkg/rootfs"
	"remaster/pkg/systemd"
)

// The files that the preset brings. Those that are not named after something fixed bear
// this program's name, so that an administrator knows where they come from.
const (
	accountingFile = "/etc/systemd/system.conf.d/90-remaster-cgroup-v2.conf"
	modulesFile    = "/etc/modules-load.d/90-remaster-node.conf"
	// Files are read by name, and 99-sysctl.conf is a link to /etc/sysctl.conf, which
	// often turns forwarding off.
	sysctlFile   = "/etc/sysctl.d/99-zz-remaster-node.conf"
	presetName   = "10-remaster-containerd"
	presetFile   = "/etc/systemd/system-preset/" + presetName + ".preset"
	delegateName = "90-remaster-delegate"
	unitName     = "containerd.service"
	unitFile     = "/usr/lib/systemd/system/" + unitName
)

// ContainerdConfig is the path of containerd's configuration.
const ContainerdConfig = "/etc/containerd/config.toml"

const accounting = `# Every service has its own counters, so that the controllers are on all down the tree.
[Manager]
DefaultCPUAccounting=yes
DefaultMemoryAccounting=yes
DefaultIOAccounting=yes
DefaultTasksAccounting=yes
`

const delegate = `# containerd makes the groups of its containers below its own.
[Service]
Delegate=yes
`

const delegateWhy = "containerd manages the cgroups of its containers"

// node plans what a node needs beside the hierarchy and containerd. before is the number
// of changes that the stage had at first: an image that already is a v2 node with
// containerd, by other hands, stays as it is.
func (p *planner) node(before int) func(context.Context) error {
	return func(context.Context) error {
		if p.SkipCgroupV2 && p.SkipContainerd {
			return nil
		}
		if len(p.s.Changes()) == before && p.installed && !p.SkipCgroupV2 {
			ours, err := p.anyOf(accountingFile, modulesFile, sysctlFile, presetFile)
			if err != nil {
				return err
			}
			if !ours {
				p.rep.note("the image boots with cgroup v2 and containerd already: accounting, modules and kernel settings are left as they are")
				return nil
			}
		}
		if !p.SkipCgroupV2 {
			if err := p.s.WriteFile(accountingFile, []byte(accounting), "resources of every service are accounted"); err != nil {
				return err
			}
		}
		if p.SkipContainerd {
			return nil
		}
		if err := systemd.EnablePreset(p.s, presetName, []string{unitName}, "containerd is enabled when a package brings it or resets it"); err != nil {
			return err
		}
		return p.modules()
	}
}

func (p *planner) anyOf(paths ...string) (bool, error) {
	for _, f := range paths {
		if ok, err := rootfs.Exists(p.s, f); ok || err != nil {
			return ok, err
		}
	}
	return false, nil
}

// modules plans the kernel modules and settings of a node. A module that a kernel of the
// image lacks is left out: systemd-modules-load.service would fail at each boot.
func (p *planner) modules() error {
	modules := []string{"overlay", "br_netfilter"}
	lacking, err := p.lacking(modules)
	if err != nil {
		return err
	}
	var load strings.Builder
	for _, m := range modules {
		if kernel, ok := lacking[m]; ok {
			p.rep.warn("kernel %s has no module %s: it is not loaded at boot", kernel, m)
			continue
		}
		load.WriteString(m + "\n")
	}
	if load.Len() > 0 {
		if err := p.s.WriteFile(modulesFile, []byte(load.String()), "kernel modules of a Kubernetes node"); err != nil {
			return err
		}
	}
	sysctl := "net.ipv4.ip_forward = 1\n"
	if _, no := lacking["br_netfilter"]; !no {
		sysctl += "net.bridge.bridge-nf-call-iptables = 1\nnet.bridge.bridge-nf-call-ip6tables = 1\n"
	}
	return p.s.WriteFile(sysctlFile, []byte(sysctl), "kernel settings of a Kubernetes node")
}

// lacking returns the modules that some kernel has neither as a file nor built in, with
// that kernel. Kernels without an index of their modules are passed over.
func (p *planner) lacking(modules []string) (map[string]string, error) {
	const dir = "/usr/lib/modules"
	out := map[string]string{}
	kernels, err := p.s.ReadDir(dir)
	if err != nil {
		return out, ignoreMissing(err)
	}
	for _, k := range kernels {
		index, err := rootfs.ReadFile(p.s, path.Join(dir, k.Name, "modules.dep"))
		if ignoreMissing(err) != nil {
			return nil, err
		}
		if err != nil {
			continue
		}
		builtin, err := rootfs.ReadFile(p.s, path.Join(dir, k.Name, "modules.builtin"))
		if ignoreMissing(err) != nil {
			return nil, err
		}
		for _, m := range modules {
			if !listsModule(string(index), m) && !listsModule(string(builtin), m) {
				out[m] = k.Name
			}
		}
	}
	return out, nil
}

// listsModule reports whether a line of modules.dep or modules.builtin (depmod(8)) is
// about a module: a path that ends in its name, .ko and perhaps a compression.
func listsModule(index, module string) bool {
	for line := range strings.Lines(index) {
		file, _, _ := strings.Cut(strings.TrimSpace(line), ":")
		name, _, ok := strings.Cut(path.Base(file), ".ko")
		if ok && name == module {
			return true
		}
	}
	return false
}

// containerd plans the unit and the configuration of containerd, or what makes it come
// up right when it is installed later.
func (p *planner) containerd(context.Context) error {
	if p.SkipContainerd {
		return nil
	}
	if err := systemd.Unmask(p.s, unitName, "containerd was masked"); err != nil {
		return err
	}
	u, err := systemd.Find(p.s, unitName)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if _, err := p.s.Lstat(systemd.Dir + "/" + unitName); err == nil {
			p.rep.warn("%s/%s is a link that leads nowhere: it hides the unit of a containerd that is installed later", systemd.Dir, unitName)
		}
		p.rep.note("containerd is not in the image (ACK installs it when the node joins): its configuration, drop-in and preset are put there for it")
		if err := systemd.DropIn(p.s, unitName, delegateName, delegate, delegateWhy); err != nil {
			return err
		}
	case err != nil:
		return err
	default:
		p.installed = true
		if err := p.enable(u); err != nil {
			return err
		}
	}
	return p.config()
}

// enable turns on the unit that is there.
func (p *planner) enable(u *systemd.Unit) error {
	if v, ok := u.Value("Service", "Delegate"); !ok || !isTrue(v) {
		if err := systemd.DropIn(p.s, unitName, delegateName, delegate, delegateWhy); err != nil {
			return err
		}
	}
	if err := systemd.Enable(p.s, unitName, "containerd starts at boot"); err != nil {
		return err
	}
	state, err := systemd.IsEnabled(p.s, unitName)
	if err != nil {
		return err
	}
	if state != systemd.Enabled && state != systemd.Alias {
		p.rep.warn("%s is %s: %s has no [Install] section that would start it at boot", unitName, state, u.Path)
	}
	program := execProgram(u)
	if ok, err := rootfs.Exists(p.s, program); program != "" && !ok && err == nil {
		p.rep.warn("%s starts %s, which is not in the image", unitName, program)
	}
	if p.Payload.has("/usr/local/bin/containerd") && program != "/usr/local/bin/containerd" {
		p.rep.warn("%s of the image starts %s, not the /usr/local/bin/containerd that is put in", unitName, program)
	}
	return nil
}

func isTrue(s string) bool {
	v, ok := systemd.Boolean(s)
	return v && ok
}

// execProgram returns the program that a unit starts, without the marks that
// systemd.service(5) allows in front of it.
func execProgram(u *systemd.Unit) string {
	v, _ := u.Value("Service", "ExecStart")
	if f := strings.Fields(v); len(f) > 0 {
		return strings.TrimLeft(f[0], "@-:+!")
	}
	return ""
}

// config plans containerd's configuration.
func (p *planner) config() error {
	major := installedMajor(p.s)
	why := "containers are put in cgroups by systemd"
	data, err := rootfs.ReadFile(p.s, ContainerdConfig)
	if ignoreMissing(err) != nil {
		return err
	}
	if err != nil {
		return p.s.WriteFile(ContainerdConfig, newConfig(major), why)
	}
	c, err := editConfig(data, major)
	if err != nil {
		return fmt.Errorf("%s: %w", ContainerdConfig, err)
	}
	more, err := imports(p.s, c)
	if err != nil {
		return err
	}
	p.rep.Notes = append(p.rep.Notes, c.notes...)
	p.rep.Warnings = append(p.rep.Warnings, slices.Concat(c.warns, more)...)
	return p.s.WriteFile(ContainerdConfig, c.t.src, why)
}

// CheckContainerdConfig returns an error unless containerd's configuration has runc's
// cgroups made by systemd, and the CRI plugin on. The error wraps fs.ErrNotExist if there
// is no file. The warnings tell what else in it may keep that from working.
func CheckContainerdConfig(t rootfs.Tree) (warnings []string, err error) {
	data, err := rootfs.ReadFile(t, ContainerdConfig)
	if err != nil {
		return nil, err
	}
	c, err := editConfig(data, installedMajor(t))
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(c.t.src, data) {
		what := append([]string{"SystemdCgroup is not true for runc, or the CRI plugin is disabled"}, c.notes...)
		return nil, errors.New(strings.Join(what, "; "))
	}
	more, err := imports(t, c)
	return slices.Concat(c.warns, more), err
}

// imports warns of files that config.toml takes in and that say something of the
// runtimes themselves: containerd lets them win.
func imports(t rootfs.Tree, c *config) (warnings []string, err error) {
	for _, im := range c.imports() {
		if !path.IsAbs(im) {
			im = path.Join(path.Dir(ContainerdConfig), im)
		}
		entries, err := t.ReadDir(path.Dir(im))
		if ignoreMissing(err) != nil {
			return nil, err
		}
		for _, e := range entries {
			if ok, _ := path.Match(path.Base(im), e.Name); !ok {
				continue
			}
			f := path.Join(path.Dir(im), e.Name)
			data, err := rootfs.ReadFile(t, f)
			if err != nil {
				warnings = append(warnings, fmt.Sprintf("%s, which config.toml imports, cannot be read: %v", f, err))
				continue
			}
			im, err := parseToml(data)
			if err != nil {
				warnings = append(warnings, fmt.Sprintf("%s, which config.toml imports: %v", f, err))
				continue
			}
			if im.get("plugins", c.plugin) != nil || slices.ContainsFunc(words(im.get("disabled_plugins")), isCRI) {
				warnings = append(warnings, fmt.Sprintf("%s, which config.toml imports, sets the CRI plugin too and comes later: check SystemdCgroup there", f))
			}
		}
	}
	return warnings, nil
}

func words(v any) []string {
	var out []string
	list, _ := v.([]any)
	for _, w := range list {
		if s, ok := w.(string); ok {
			out = append(out, s)
		}
	}
	return out
}

// installedMajor returns the first number of the version of the containerd that will
// run, 0 if it is not there or does not say.
func installedMajor(t rootfs.Tree) int {
	program := "/usr/bin/containerd"
	if u, err := systemd.Find(t, unitName); err == nil && execProgram(u) != "" {
		program = execProgram(u)
	}
	n, err := t.Stat(program)
	if err != nil || !n.Mode.IsRegular() || n.Content == nil {
		return 0
	}
	return containerdMajor(n.Content)
}

// ignoreMissing drops an error that only says that nothing is there.
func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, rootfs.ErrNotDir) {
		return nil
	}
	return err
}
