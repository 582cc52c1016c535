package verify

import (
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

var rules = slices.Concat(bootRules, nodeRules, systemRules)

var systemRules = []rule{
	{Rule{"cloud-init", "cloud-init is installed",
		"It carries out the user data with which ACK makes the machine a node.",
		"start from a cloud image; do not remove cloud-init", Advice}, checkPrograms("cloud-init")},
	{Rule{"download-tools", "wget and curl are installed",
		"The script that joins the node downloads with them.",
		"install them in the base image", Advice}, checkPrograms("wget", "curl")},
	{Rule{"ssh-root-key", "root may log in over SSH with a key",
		"ACK logs in that way to add existing machines to a cluster.",
		"set PermitRootLogin prohibit-password and PubkeyAuthentication yes in sshd_config", Advice}, checkSSH},
	{Rule{"kubernetes-absent", "kubeadm, kubelet, kubectl, kubernetes-cni and docker are not installed",
		"ACK brings its own when the node joins, and fails where others are in the way.",
		"start from an image without them", Advice}, checkKubernetes},
	{Rule{"swap-off", "There is no swap",
		"The kubelet does not start on a machine with swap, unless told so.",
		"build the image with the option that turns swap off", Advice}, checkSwap},
	{Rule{"timezone", "The time zone is set",
		"/etc/localtime without a file behind it means UTC, which the logs of a node may not want.",
		"build the image with the option that sets the time zone", Advice}, checkTimezone},
}

// systemdVersion is the number in the name of systemd's private library.
var systemdVersion = regexp.MustCompile(`^libsystemd-shared-(\d{2,4})\b.*\.so$`)

func checkSystemdVersion(g *guest) finding {
	dirs := []string{"/usr/lib/systemd", "/usr/lib64/systemd", "/lib/systemd"}
	for _, arch := range []string{"x86_64", "aarch64"} {
		dirs = append(dirs, "/usr/lib/"+arch+"-linux-gnu/systemd", "/lib/"+arch+"-linux-gnu/systemd")
	}
	for _, dir := range dirs {
		paths, err := g.files(dir, "libsystemd-shared-*.so")
		if err != nil {
			return finding{err: err}
		}
		for _, p := range paths {
			m := systemdVersion.FindStringSubmatch(path.Base(p))
			if m == nil {
				continue
			}
			if n, _ := strconv.Atoi(m[1]); n < 239 {
				return fail("systemd %d", n).at(p)
			}
			return pass("systemd %s", m[1]).at(p)
		}
	}
	return unknown("no file bears systemd's version")
}

var kernelVersion = regexp.MustCompile(`^(\d{1,3})\.(\d{1,4})[.-]`)

func checkKernelVersion(g *guest) finding {
	const dir = "/usr/lib/modules"
	paths, err := g.files(dir, "*")
	if err != nil {
		return finding{err: err}
	}
	oldest, name := 0, ""
	for _, p := range paths {
		m := kernelVersion.FindStringSubmatch(path.Base(p) + ".")
		if m == nil {
			continue
		}
		major, _ := strconv.Atoi(m[1])
		minor, _ := strconv.Atoi(m[2])
		if v := major*10000 + minor; name == "" || v < oldest {
			oldest, name = v, path.Base(p)
		}
	}
	switch {
	case name == "":
		return unknown("no kernel has its modules in %s", dir)
	case oldest < 40018:
		return fail("the oldest kernel is %s", name).at(dir)
	case oldest < 50002:
		return warn("the oldest kernel is %s: what it has of cgroup v2 depends on its patches", name).at(dir)
	}
	return pass("%s", name).at(dir)
}

func checkPrograms(names ...string) func(*guest) finding {
	return func(g *guest) finding {
		var found, lacking []string
		for _, name := range names {
			if p := g.program(name); p != "" {
				found = append(found, p)
			} else {
				lacking = append(lacking, name)
			}
		}
		if len(lacking) > 0 {
			return fail("%s not found", strings.Join(lacking, " and "))
		}
		return pass("%s", strings.Join(found, ", "))
	}
}

func checkKubernetes(g *guest) finding {
	for _, name := range []string{"kubeadm", "kubelet", "kubectl", "docker", "dockerd"} {
		if p := g.program(name); p != "" {
			return fail("%s is installed", name).at(p)
		}
	}
	// The package kubernetes-cni brings the plugins and nothing else to know it by.
	for _, p := range []string{"/usr/share/doc/kubernetes-cni", "/usr/share/licenses/kubernetes-cni"} {
		if _, err := g.Stat(p); err == nil {
			return fail("kubernetes-cni is installed").at(p)
		}
	}
	return pass("")
}

func checkSwap(g *guest) finding {
	const fstab = "/etc/fstab"
	text, ok, err := g.text(fstab)
	if err != nil {
		return finding{err: err}
	}
	if !ok {
		return skip("there is no %s", fstab)
	}
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) >= 3 && !strings.HasPrefix(f[0], "#") && f[2] == "swap" {
			return fail("%s is swap", f[0]).at(fstab)
		}
	}
	return pass("")
}

func checkTimezone(g *guest) finding {
	const localtime = "/etc/localtime"
	n, err := g.Stat(localtime)
	if missing(err) {
		return fail("there is no time zone").at(localtime)
	}
	if err != nil {
		return finding{err: err}
	}
	if !n.Mode.IsRegular() {
		return fail("it is no file").at(localtime)
	}
	if p, err := g.Resolve(localtime); err == nil {
		if zone, ok := strings.CutPrefix(p, "/usr/share/zoneinfo/"); ok {
			return pass("%s", zone).at(localtime)
		}
	}
	return pass("").at(localtime)
}
