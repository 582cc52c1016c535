package verify

import (
	"io/fs"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	"remaster/pkg/disk"
	"remaster/pkg/recipe"
	"remaster/pkg/rootfs"
)

const (
	kver  = "5.10.134-16.3.al8.x86_64"
	entry = "/boot/loader/entries/mid-" + kver + ".conf"
	unit  = "/usr/lib/systemd/system/containerd.service"
	v2    = "root=UUID=1 ro quiet systemd.unified_cgroup_hierarchy=1 cgroup_no_v1=all"
)

func envBlock(lines string) string {
	s := "# GRUB Environment Block\n" + lines
	return s + strings.Repeat("#", 1024-len(s))
}

func bls(options string) string {
	return "title Alinux\nversion " + kver + "\nlinux /boot/vmlinuz-" + kver + "\ninitrd /boot/initramfs-" + kver + ".img\noptions " + options + "\n"
}

// good is a node as it should be, and passes every rule.
var good = map[string]string{
	"/boot/config-" + kver:             "CONFIG_PSI=y\n# CONFIG_PSI_DEFAULT_DISABLED is not set\n",
	"/usr/lib/os-release":              "ID=\"alinux\"\nVERSION_ID=\"3\"\nPLATFORM_ID=\"platform:al8\"\n",
	"/etc/os-release":                  "-> ../usr/lib/os-release",
	"/lib":                             "-> usr/lib",
	"/etc/fstab":                       "UUID=1 / ext4 defaults 1 1\n#UUID=2\tnone\tswap\tsw 0 0\n",
	"/boot/grub2/grubenv":              envBlock("saved_entry=mid-" + kver + "\nkernelopts=" + v2 + "\n"),
	"/boot/grub2/grub.cfg":             "load_env\nset default=\"${saved_entry}\"\ninsmod blscfg\nblscfg\n",
	entry:                              bls("$kernelopts"),
	"/boot/vmlinuz-" + kver:            "kernel",
	"/boot/initramfs-" + kver + ".img": "initramfs",
	"/usr/lib/modules/" + kver + "/modules.dep": "",
	"/usr/lib/systemd/libsystemd-shared-239.so": "so",
	"/etc/systemd/system.conf.d/90-x.conf":      "[Manager]\nDefaultCPUAccounting=yes\nDefaultIOAccounting=yes\n",
	unit:                                        "[Service]\nExecStart=/usr/bin/containerd\nDelegate=yes\n[Install]\nWantedBy=multi-user.target\n",
	"/etc/systemd/system/multi-user.target.wants/containerd.service": "-> " + unit,
	"/etc/containerd/config.toml":                                    "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\nruntime_type = \"io.containerd.runc.v2\"\noptions.SystemdCgroup = true\n",
	"/etc/modules-load.d/k8s.conf":                                   "# modules\noverlay\nbr-netfilter\n",
	"/etc/sysctl.d/99-sysctl.conf":                                   "-> ../sysctl.conf",
	"/etc/sysctl.conf":                                               "net.ipv4.ip_forward=0\n",
	"/etc/sysctl.d/99-zz.conf":                                       "net/ipv4/ip_forward = 1\n",
	"/etc/localtime":                                                 "-> ../usr/share/zoneinfo/Asia/Shanghai",
	"/usr/share/zoneinfo/Asia/Shanghai":                              "TZif",
	"/etc/ssh/sshd_config":                                           "# PermitRootLogin no\nPermitRootLogin yes\nPermitRootLogin no\nMatch User bob\n  PubkeyAuthentication no\n",
	"/usr/bin/cloud-init":                                            "#!",
	"/usr/bin/wget":                                                  "ELF",
	"/usr/bin/curl":                                                  "ELF",
	"/usr/bin/containerd":                                            "ELF",
}

// tree makes a volume of good with changes laid over it; "" removes a path. Programs
// are executable.
func tree(changes map[string]string) *rootfs.Guest {
	files := maps.Clone(good)
	for p, c := range changes {
		if c == "" {
			delete(files, p)
		} else {
			files[p] = c
		}
	}
	m := rootfs.MemOf(files)
	for p, c := range files {
		if strings.Contains(p, "/bin/") && !strings.HasPrefix(c, "-> ") {
			m.Set(p, &rootfs.Node{Mode: 0o755, Content: disk.Bytes(c)})
		}
	}
	return rootfs.NewGuest(m)
}

func result(t *testing.T, g rootfs.Tree, id string) Result {
	t.Helper()
	for _, r := range Run(g) {
		if r.Rule.ID == id {
			return r
		}
	}
	t.Fatalf("no rule %s", id)
	return Result{}
}

func TestAGoodNodePassesEveryRule(t *testing.T) {
	results := Run(tree(nil))
	for _, r := range results {
		if r.Status != Pass {
			t.Errorf("%s: %s %s %s", r.Rule.ID, r.Status, r.Detail, r.Path)
		}
	}
	if Failed(results) {
		t.Error("Failed")
	}
}

// bad has trees that break one rule each, or keep it in another way.
var bad = []struct {
	rule   string
	status Status
	detail string // a part of it
	change map[string]string
}{
	{"boot-cgroup-v2", Fail, "systemd's default", map[string]string{"/boot/grub2/grubenv": envBlock("kernelopts=root=UUID=1 ro quiet\n")}},
	{"boot-cgroup-v2", Fail, "no cgroup_no_v1=all", map[string]string{entry: bls("root=/dev/vda1 systemd.unified_cgroup_hierarchy=1")}},
	{"boot-cgroup-v2", Fail, "v1", map[string]string{entry: bls(v2 + " systemd.unified_cgroup_hierarchy=0")}},
	{"boot-cgroup-v2", Fail, "beside it", map[string]string{entry: bls("systemd.unified_cgroup_hierarchy=0 " + v2)}},
	{"boot-cgroup-v2", Fail, "legacy", map[string]string{entry: bls(v2 + " systemd.legacy_systemd_cgroup_controller=0")}},
	{"boot-cgroup-v2", Fail, "b-second", map[string]string{"/boot/loader/entries/b-second.conf": strings.Replace(bls("root=/dev/vda1 ro"), "title Alinux", "title Second", 1)}},
	{"boot-cgroup-v2", Fail, "as", map[string]string{entry: bls("root=/dev/vda1 ro") + "options systemd.unified_cgroup_hierarchy=1 cgroup_no_v1=all\n"}},
	{"boot-cgroup-v2", Fail, "no entry", map[string]string{entry: ""}},
	{"boot-cgroup-v2", Fail, "cannot be followed", map[string]string{"/boot/grub2/grub.cfg": ""}},
	{"boot-controllers", Warn, "cgroup_disable=memory", map[string]string{entry: bls(v2 + " cgroup_disable=memory")}},
	{"boot-controllers", Pass, "", map[string]string{entry: bls(v2 + " cgroup_disable=ioasids")}},
	{"boot-controllers", Skip, "", map[string]string{entry: ""}},
	{"boot-default", Warn, "the default", map[string]string{entry: ""}},
	{"boot-default", Unknown, "", map[string]string{"/boot/grub2/grub.cfg": ""}},
	{"boot-grubenv", Warn, "signature", map[string]string{"/boot/grub2/grubenv": "junk"}},
	{"boot-grubenv", Skip, "", map[string]string{"/boot/grub2/grubenv": ""}},
	{"boot-kernels", Warn, "/boot/vmlinuz-" + kver, map[string]string{"/boot/vmlinuz-" + kver: ""}},
	{"boot-kernels", Warn, "initramfs", map[string]string{"/boot/initramfs-" + kver + ".img": ""}},
	{"boot-kernels", Pass, "", map[string]string{entry: strings.ReplaceAll(bls(v2), "/boot/", "/")}},
	{"boot-psi", Warn, "psi=1", map[string]string{"/boot/config-" + kver: "CONFIG_PSI=y\nCONFIG_PSI_DEFAULT_DISABLED=y\n"}},
	{"boot-psi", Pass, "", map[string]string{"/boot/config-" + kver: "CONFIG_PSI=y\nCONFIG_PSI_DEFAULT_DISABLED=y\n", entry: bls(v2 + " psi=1")}},
	{"boot-psi", Warn, "no PSI", map[string]string{"/boot/config-" + kver: "# CONFIG_PSI is not set\n"}},
	{"boot-psi", Unknown, "", map[string]string{"/boot/config-" + kver: ""}},
	{"os", Fail, "Debian", map[string]string{"/usr/lib/os-release": "ID=debian\nVERSION_ID=\"12\"\nPRETTY_NAME=\"Debian 12\"\n"}},
	{"os", Unknown, "", map[string]string{"/usr/lib/os-release": "", "/etc/os-release": ""}},
	{"systemd-version", Fail, "219", map[string]string{"/usr/lib/systemd/libsystemd-shared-239.so": "", "/usr/lib/systemd/libsystemd-shared-219.so": "x"}},
	{"systemd-version", Pass, "252", map[string]string{"/usr/lib/systemd/libsystemd-shared-239.so": "", "/usr/lib64/systemd/libsystemd-shared-252-14.el9.so": "x"}},
	{"systemd-version", Unknown, "", map[string]string{"/usr/lib/systemd/libsystemd-shared-239.so": ""}},
	{"kernel-version", Fail, "3.10.0", map[string]string{"/usr/lib/modules/3.10.0-1160.el7.x86_64/modules.dep": "x"}},
	{"kernel-version", Warn, "4.18.0", map[string]string{"/usr/lib/modules/4.18.0-553.el8_10.x86_64/modules.dep": "x"}},
	{"kernel-version", Pass, kver, map[string]string{"/usr/lib/modules/0-rescue-mid/x": "x", "/usr/lib/modules/6.6.1/x": "x"}},
	{"kernel-version", Unknown, "", map[string]string{"/usr/lib/modules/" + kver + "/modules.dep": ""}},
	{"systemd-accounting", Warn, "CPU, IO", map[string]string{"/etc/systemd/system.conf.d/90-x.conf": ""}},
	{"systemd-accounting", Warn, "Memory", map[string]string{"/etc/systemd/system.conf": "[Manager]\nDefaultMemoryAccounting=no\n"}},
	{"containerd-enabled", Fail, "disabled", map[string]string{"/etc/systemd/system/multi-user.target.wants/containerd.service": ""}},
	{"containerd-enabled", Fail, "masked", map[string]string{"/etc/systemd/system/containerd.service": "-> /dev/null"}},
	{"containerd-enabled", Fail, "leave it disabled", map[string]string{unit: "", "/usr/lib/systemd/system-preset/99-x.preset": "disable *\n"}},
	{"containerd-enabled", Pass, "enables it", map[string]string{unit: ""}},
	{"containerd-delegate", Fail, "Delegate=", map[string]string{unit: strings.Replace(good[unit], "Delegate=yes\n", "", 1)}},
	{"containerd-delegate", Pass, "", map[string]string{unit: strings.Replace(good[unit], "Delegate=yes\n", "", 1), "/etc/systemd/system/containerd.service.d/x.conf": "[Service]\nDelegate=true\n"}},
	{"containerd-delegate", Skip, "", map[string]string{unit: ""}},
	{"containerd-delegate", Pass, "waits", map[string]string{unit: "", "/etc/systemd/system/containerd.service.d/x.conf": "[Service]\nDelegate=true\n"}},
	{"containerd-systemd-cgroup", Fail, "not true", map[string]string{"/etc/containerd/config.toml": strings.Replace(good["/etc/containerd/config.toml"], "true", "false", 1)}},
	{"containerd-systemd-cgroup", Fail, "disabled", map[string]string{"/etc/containerd/config.toml": "disabled_plugins = [\"cri\"]\n"}},
	{"containerd-systemd-cgroup", Fail, "no configuration", map[string]string{"/etc/containerd/config.toml": ""}},
	{"containerd-systemd-cgroup", Fail, "line 1", map[string]string{"/etc/containerd/config.toml": "junk"}},
	{"containerd-systemd-cgroup", Warn, "imports", map[string]string{
		"/etc/containerd/config.toml":   "imports = [\"/etc/containerd/conf.d/*.toml\"]\n" + good["/etc/containerd/config.toml"],
		"/etc/containerd/conf.d/x.toml": "[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"x\"\n"}},
	{"node-modules", Warn, "br_netfilter", map[string]string{"/etc/modules-load.d/k8s.conf": "overlay\n"}},
	{"node-modules", Warn, "overlay", map[string]string{"/usr/lib/modules-load.d/k8s.conf": "overlay\nbr_netfilter\n", "/etc/modules-load.d/k8s.conf": "-> /dev/null"}},
	{"node-sysctl", Warn, "is 0", map[string]string{"/etc/sysctl.d/99-zz.conf": ""}},
	{"node-sysctl", Warn, "not set", map[string]string{"/etc/sysctl.d/99-zz.conf": "", "/etc/sysctl.conf": "vm.swappiness=0\n"}},
	{"cloud-init", Warn, "cloud-init", map[string]string{"/usr/bin/cloud-init": ""}},
	{"download-tools", Warn, "curl not", map[string]string{"/usr/bin/curl": ""}},
	{"ssh-root-key", Warn, "PermitRootLogin no", map[string]string{"/etc/ssh/sshd_config": "PermitRootLogin=no\n"}},
	{"ssh-root-key", Warn, "PubkeyAuthentication no", map[string]string{"/etc/ssh/sshd_config": "Include /etc/ssh/sshd_config.d/*.conf\nPubkeyAuthentication yes\n", "/etc/ssh/sshd_config.d/10-x.conf": "pubkeyauthentication \"no\"\n"}},
	{"ssh-root-key", Warn, "AllowUsers", map[string]string{"/etc/ssh/sshd_config": "AllowUsers admin bob@10.*\n"}},
	{"ssh-root-key", Pass, "", map[string]string{"/etc/ssh/sshd_config": "AllowUsers admin\nAllowUsers r*t@10.*\nMatch all\nInclude sshd_config\n"}},
	{"ssh-root-key", Warn, "DenyUsers", map[string]string{"/etc/ssh/sshd_config": "DenyUsers root\n"}},
	{"ssh-root-key", Warn, "fixed commands", map[string]string{"/etc/ssh/sshd_config": "PermitRootLogin forced-commands-only\n"}},
	{"ssh-root-key", Skip, "", map[string]string{"/etc/ssh/sshd_config": ""}},
	{"kubernetes-absent", Warn, "kubelet", map[string]string{"/usr/local/bin/kubelet": "ELF"}},
	{"kubernetes-absent", Warn, "docker", map[string]string{"/usr/bin/docker": "ELF"}},
	{"kubernetes-absent", Warn, "kubernetes-cni", map[string]string{"/usr/share/doc/kubernetes-cni/README": "x"}},
	{"swap-off", Warn, "UUID=2", map[string]string{"/etc/fstab": "UUID=2\tnone\tswap\tsw 0 0\n"}},
	{"swap-off", Skip, "", map[string]string{"/etc/fstab": ""}},
	{"timezone", Warn, "no time zone", map[string]string{"/etc/localtime": ""}},
	{"timezone", Warn, "no time zone", map[string]string{"/usr/share/zoneinfo/Asia/Shanghai": ""}},
	{"timezone", Pass, "", map[string]string{"/etc/localtime": "TZif"}},
}

func TestEachRuleCanFail(t *testing.T) {
	broken := map[string]bool{}
	for _, b := range bad {
		r := result(t, tree(b.change), b.rule)
		if r.Status != b.status || !strings.Contains(r.Detail, b.detail) {
			t.Errorf("%s: %s %q at %q; want %s %q", b.rule, r.Status, r.Detail, r.Path, b.status, b.detail)
		}
		if r.Status == Fail || r.Status == Warn {
			broken[b.rule] = true
		}
		if r.Status == Fail && r.Rule.Severity != Error {
			t.Errorf("%s is advice and fails", b.rule)
		}
	}
	for _, r := range Rules() {
		if !broken[r.ID] {
			t.Errorf("no tree breaks %s", r.ID)
		}
	}
}

func TestRulesAreDescribed(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range Rules() {
		if !regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`).MatchString(r.ID) || seen[r.ID] ||
			r.Title == "" || r.Why == "" || r.Remedy == "" || strings.HasSuffix(r.Remedy, ".") || r.Severity != Error && r.Severity != Advice {
			t.Errorf("%+v", r)
		}
		seen[r.ID] = true
	}
}

// TestARecipesResultHasNoFailure plans on bases of different kinds and judges the stage.
func TestARecipesResultHasNoFailure(t *testing.T) {
	v1 := map[string]string{
		"/boot/grub2/grubenv":                  envBlock("saved_entry=mid-" + kver + "\nkernelopts=root=UUID=1 ro quiet\n"),
		"/etc/systemd/system.conf.d/90-x.conf": "", "/etc/modules-load.d/k8s.conf": "", "/etc/sysctl.d/99-zz.conf": "",
		"/etc/systemd/system/multi-user.target.wants/containerd.service": "",
		"/usr/lib/modules/" + kver + "/modules.dep":                      "kernel/overlay.ko.xz:\nkernel/br_netfilter.ko.xz:\n",
		"/usr/lib/systemd/system-preset/99-x.preset":                     "disable *\n",
	}
	with := func(more map[string]string) map[string]string {
		m := maps.Clone(v1)
		maps.Copy(m, more)
		return m
	}
	for name, files := range map[string]map[string]string{
		"containerd disabled":  v1,
		"containerd masked":    with(map[string]string{"/etc/systemd/system/containerd.service": "-> /dev/null"}),
		"no containerd":        with(map[string]string{unit: "", "/usr/bin/containerd": "", "/etc/containerd/config.toml": ""}),
		"no Delegate":          with(map[string]string{unit: strings.Replace(good[unit], "Delegate=yes\n", "", 1)}),
		"Docker's config.toml": with(map[string]string{"/etc/containerd/config.toml": "disabled_plugins = [\"cri\"]\n"}),
	} {
		g := tree(files)
		if !Failed(Run(g)) {
			t.Errorf("%s: the base does not fail", name)
		}
		s := rootfs.NewStage(g)
		if _, err := (recipe.Recipe{}).Plan(t.Context(), s); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for _, r := range Run(s) {
			if r.Status != Pass {
				t.Errorf("%s: %s: %s %s %s", name, r.Rule.ID, r.Status, r.Detail, r.Path)
			}
		}
	}
}

// TestABrokenTreeGivesNoPanic judges trees with one path at a time made a folder, a link
// to itself, or nothing.
func TestABrokenTreeGivesNoPanic(t *testing.T) {
	n := len(Rules())
	for _, p := range slices.Sorted(maps.Keys(good)) {
		m := rootfs.NewMem()
		for q, c := range good {
			node := &rootfs.Node{Mode: 0o644, Content: disk.Bytes(c)}
			if target, ok := strings.CutPrefix(c, "-> "); ok {
				node = &rootfs.Node{Mode: fs.ModeSymlink | 0o777, Target: target}
			}
			if q != p {
				m.Set(q, node)
			}
		}
		for _, node := range []*rootfs.Node{nil, {Mode: fs.ModeDir | 0o755}, {Mode: fs.ModeSymlink | 0o777, Target: p[strings.LastIndexByte(p, '/')+1:]}} {
			if node != nil && p != "/lib" {
				if _, err := m.Lstat(p); err == nil {
					if err := m.Remove(p); err != nil {
						t.Fatal(err)
					}
				}
				m.Set(p, node)
			}
			if got := Run(rootfs.NewGuest(m)); len(got) != n {
				t.Fatalf("%d results", len(got))
			}
		}
	}
}
