package verify

import (
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"slices"
	"strings"

	"remaster/pkg/recipe"
	"remaster/pkg/systemd"
)

const containerd = "containerd.service"

var nodeRules = []rule{
	{Rule{"os", "The system is Alibaba Cloud Linux 3 or a relative",
		"Other systems boot in another way, or have a systemd without a usable cgroup v2.",
		"start from an Alibaba Cloud Linux 3 image", Error}, checkOS},
	{Rule{"systemd-version", "systemd is 239 or newer",
		"systemd 219 has no usable cgroup v2.",
		"start from an Alibaba Cloud Linux 3 image", Error}, checkSystemdVersion},
	{Rule{"kernel-version", "Every kernel is 5.2 or newer",
		"Older kernels lack controllers of cgroup v2, the freezer the last of them; before 4.18 cpuset and cpu are missing as well.",
		"start from a newer base image", Error}, checkKernelVersion},
	{Rule{"systemd-accounting", "systemd accounts CPU, memory, IO and tasks of every unit",
		"A controller is turned on for a unit only if something asks for it; a node wants the counters of all.",
		"build the image with remaster, or set Default…Accounting=yes below /etc/systemd/system.conf.d", Advice}, checkAccounting},
	{Rule{"containerd-enabled", "containerd starts at boot",
		"The kubelet needs it.",
		"build the image with remaster, or enable containerd.service", Error}, checkContainerd},
	{Rule{"containerd-delegate", "containerd.service has Delegate=yes",
		"Without it systemd takes the cgroups of containers back when it reloads.",
		"build the image with remaster, or add a drop-in with Delegate=yes", Error}, checkDelegate},
	{Rule{"containerd-systemd-cgroup", "containerd lets systemd make the cgroups of containers",
		"With cgroup v2 there must be one manager of the hierarchy; the kubelet of ACK uses systemd's.",
		"build the image with remaster, or set SystemdCgroup = true for runc in /etc/containerd/config.toml", Error}, checkSystemdCgroup},
	{Rule{"node-modules", "overlay and br_netfilter are loaded at boot",
		"Container images lie on overlay file systems, and services need bridged traffic to pass the packet filter.",
		"build the image with remaster, or name them below /etc/modules-load.d", Advice}, checkModules},
	{Rule{"node-sysctl", "The kernel forwards IPv4 packets",
		"Pods of different nodes cannot reach each other otherwise.",
		"build the image with remaster, or set net.ipv4.ip_forward = 1 below /etc/sysctl.d", Advice}, checkSysctl},
}

func checkOS(g *guest) finding {
	if err := recipe.CheckOS(g); err != nil {
		if missing(err) {
			return unknown("%v", err)
		}
		return fail("%v", err)
	}
	return pass("")
}

// unit looks containerd up. found is what to return if it is not there to be judged.
func (g *guest) unit() (*systemd.Unit, *finding) {
	u, err := systemd.Find(g, containerd)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, &finding{err: err}
	case u.Masked:
		f := fail("%s is masked", containerd).at(u.Path)
		return nil, &f
	}
	return u, nil
}

func checkContainerd(g *guest) finding {
	u, f := g.unit()
	if f != nil {
		return *f
	}
	if u == nil {
		enable, file, err := systemd.Preset(g, containerd)
		if err != nil {
			return finding{err: err}
		}
		if !enable {
			return fail("containerd is not in the image, and a package that brings it would leave it disabled").at(file)
		}
		return pass("containerd is not in the image; a package that brings it enables it").at(file)
	}
	state, err := systemd.IsEnabled(g, containerd)
	if err != nil {
		return finding{err: err}
	}
	if state != systemd.Enabled && state != systemd.Alias {
		return fail("%s is %s", containerd, state).at(u.Path)
	}
	return pass("%s", state).at(u.Path)
}

func checkDelegate(g *guest) finding {
	u, f := g.unit()
	if f != nil {
		return *f
	}
	if u == nil {
		paths, err := g.files(systemd.Dir+"/"+containerd+".d", "*.conf")
		if err != nil {
			return finding{err: err}
		}
		for _, p := range paths {
			text, _, err := g.text(p)
			if err != nil {
				return finding{err: err}
			}
			lines, err := systemd.Parse([]byte(text))
			if err != nil {
				return finding{err: fmt.Errorf("%s: %w", p, err)}
			}
			if slices.ContainsFunc(lines, func(a systemd.Assignment) bool {
				on, ok := systemd.Boolean(a.Value)
				return a.Section == "Service" && a.Key == "Delegate" && on && ok
			}) {
				return pass("containerd is not in the image; a drop-in waits for it").at(p)
			}
		}
		return skip("containerd is not in the image")
	}
	v, ok := u.Value("Service", "Delegate")
	if on, isBool := systemd.Boolean(v); !ok || !isBool || !on {
		return fail("Delegate=%s", v).at(u.Path)
	}
	return pass("").at(u.Path)
}

func checkSystemdCgroup(g *guest) finding {
	warnings, err := recipe.CheckContainerdConfig(g)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if u, f := g.unit(); u == nil && f == nil {
			return fail("there is no configuration for a containerd that is installed later").at(recipe.ContainerdConfig)
		}
		return fail("there is no configuration: containerd makes cgroups itself by default").at(recipe.ContainerdConfig)
	case err != nil:
		return fail("%v", err).at(recipe.ContainerdConfig)
	case len(warnings) > 0:
		return warn("%s", strings.Join(warnings, "; ")).at(recipe.ContainerdConfig)
	}
	return pass("").at(recipe.ContainerdConfig)
}

// settings reads drop-in folders as systemd's tools do: files by name, of two with one
// name that of the first folder counts. f gets each file's content in order.
func (g *guest) settings(dirs []string, pattern string, f func(path, text string)) error {
	byName := map[string]string{}
	var names []string
	for _, dir := range dirs {
		paths, err := g.files(dir, pattern)
		if err != nil {
			return err
		}
		for _, p := range paths {
			name := p[strings.LastIndexByte(p, '/')+1:]
			if byName[name] == "" {
				byName[name] = p
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	for _, name := range names {
		n, err := g.Stat(byName[name])
		if missing(err) || err == nil && !n.Mode.IsRegular() {
			continue // a link to /dev/null hides the file of the other folders
		}
		text, _, err := g.text(byName[name])
		if err != nil {
			return err
		}
		f(byName[name], text)
	}
	return nil
}

var accountingKey = regexp.MustCompile(`^Default(\w+)Accounting$`)

func checkAccounting(g *guest) finding {
	want := []string{"CPU", "Memory", "IO", "Tasks"}
	on := map[string]bool{"Memory": true, "Tasks": true} // systemd's defaults since 238
	read := func(_, text string) {
		lines, err := systemd.Parse([]byte(text))
		if err != nil {
			return
		}
		for _, a := range lines {
			if m := accountingKey.FindStringSubmatch(a.Key); m != nil && a.Section == "Manager" {
				on[m[1]], _ = systemd.Boolean(a.Value)
			}
		}
	}
	text, _, err := g.text("/etc/systemd/system.conf")
	if err != nil {
		return finding{err: err}
	}
	read("", text)
	dirs := []string{"/etc/systemd/system.conf.d", "/usr/local/lib/systemd/system.conf.d", "/usr/lib/systemd/system.conf.d"}
	if err := g.settings(dirs, "*.conf", read); err != nil {
		return finding{err: err}
	}
	var off []string
	for _, kind := range want {
		if !on[kind] {
			off = append(off, kind)
		}
	}
	if len(off) > 0 {
		return fail("off for %s", strings.Join(off, ", ")).at(dirs[0])
	}
	return pass("")
}

func checkModules(g *guest) finding {
	loaded := map[string]bool{}
	read := func(_, text string) {
		for line := range strings.Lines(text) {
			if line = strings.TrimSpace(line); line != "" && line[0] != '#' && line[0] != ';' {
				loaded[strings.ReplaceAll(line, "-", "_")] = true
			}
		}
	}
	if err := g.settings([]string{"/etc/modules-load.d", "/usr/local/lib/modules-load.d", "/usr/lib/modules-load.d"}, "*.conf", read); err != nil {
		return finding{err: err}
	}
	for _, m := range []string{"overlay", "br_netfilter"} {
		if !loaded[m] {
			return fail("%s is not loaded", m).at("/etc/modules-load.d")
		}
	}
	return pass("")
}

// checkSysctl finds the value that wins: sysctl.d(5) goes by names, and
// /etc/sysctl.conf counts through its link 99-sysctl.conf.
func checkSysctl(g *guest) finding {
	value, where := "", ""
	read := func(p, text string) {
		for line := range strings.Lines(text) {
			key, v, ok := strings.Cut(strings.TrimSpace(line), "=")
			key = strings.ReplaceAll(strings.TrimLeft(strings.TrimSpace(key), "-"), "/", ".")
			if ok && (key == "net.ipv4.ip_forward" || key == "net.ipv4.conf.all.forwarding") {
				value, where = strings.TrimSpace(v), p
			}
		}
	}
	if err := g.settings([]string{"/etc/sysctl.d", "/usr/local/lib/sysctl.d", "/usr/lib/sysctl.d"}, "*.conf", read); err != nil {
		return finding{err: err}
	}
	switch value {
	case "1":
		return pass("").at(where)
	case "":
		return fail("net.ipv4.ip_forward is not set").at("/etc/sysctl.d")
	}
	return fail("net.ipv4.ip_forward is %s", value).at(where)
}
