package recipe

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"testing"

	"remaster/internal/hint"
	"remaster/pkg/disk"
	"remaster/pkg/rootfs"
)

const kver = "5.10.134-16.3.al8.x86_64"

// alinux3Boot is the boot configuration of alinux3.
func alinux3Boot() map[string]string {
	root := "root=UUID=1114fe9e-2309-4580-b183-d778e6d97397 ro"
	block := "# GRUB Environment Block\nsaved_entry=mid-" + kver + "\nkernelopts=" + root + " quiet \n"
	return map[string]string{
		"/etc/default/grub":                          "GRUB_TIMEOUT=5\nGRUB_CMDLINE_LINUX=\"quiet\"\nGRUB_ENABLE_BLSCFG=true\n",
		"/boot/grub2/grubenv":                        block + strings.Repeat("#", 1024-len(block)),
		"/boot/grub2/grub.cfg":                       "load_env\nset default=\"${saved_entry}\"\nif [ -z \"${kernelopts}\" ]; then\n  set kernelopts=\"" + root + " quiet \"\nfi\ninsmod blscfg\nblscfg\n",
		"/boot/loader/entries/mid-" + kver + ".conf": "title Alinux\nversion " + kver + "\nlinux /boot/vmlinuz-" + kver + "\ninitrd /boot/initramfs-" + kver + ".img\noptions $kernelopts\n",
	}
}

// alinux3 is what of an Alibaba Cloud Linux 3 system matters here; changes are laid over
// it, and "" removes.
func alinux3(changes map[string]string) *rootfs.Mem {
	files := map[string]string{
		"/usr/lib/os-release":                       "NAME=\"Alibaba Cloud Linux\"\nID=\"alinux\"\nVERSION_ID=\"3\"\nPLATFORM_ID=\"platform:al8\"\nPRETTY_NAME=\"Alibaba Cloud Linux 3\"\n",
		"/etc/os-release":                           "-> ../usr/lib/os-release",
		"/etc/fstab":                                "UUID=1114fe9e / ext4 defaults 1 1\n",
		"/boot/vmlinuz-" + kver:                     "kernel",
		"/boot/initramfs-" + kver + ".img":          "initramfs",
		"/usr/lib/modules/" + kver + "/modules.dep": "kernel/fs/overlayfs/overlay.ko.xz:\nkernel/net/bridge/br_netfilter.ko.xz: kernel/net/bridge/bridge.ko.xz\n",
		"/lib":                     "-> usr/lib",
		"/usr/lib/systemd/systemd": "stub",
		"/usr/lib/systemd/libsystemd-shared-239.so": "so",
	}
	maps.Copy(files, alinux3Boot())
	for p, c := range changes {
		if c == "" {
			delete(files, p)
		} else {
			files[p] = c
		}
	}
	return rootfs.MemOf(files)
}

// installed adds a containerd of its own unit and configuration.
func installed(more map[string]string) map[string]string {
	out := map[string]string{
		"/usr/lib/systemd/system/containerd.service": "[Service]\nExecStart=/usr/bin/containerd\nDelegate=yes\n[Install]\nWantedBy=multi-user.target\n",
		"/usr/bin/containerd":                        "#!/bin/sh\n",
		"/etc/containerd/config.toml":                "version = 2\n[" + v2runc + ".options]\n  SystemdCgroup = false\n",
	}
	maps.Copy(out, more)
	return out
}

func plan(t *testing.T, r Recipe, files map[string]string) (*rootfs.Stage, *Report) {
	t.Helper()
	s := rootfs.NewStage(rootfs.NewGuest(alinux3(files)))
	rep, err := r.Plan(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	again := rootfs.NewStage(s)
	if _, err := r.Plan(t.Context(), again); err != nil || len(again.Changes()) > 0 {
		t.Fatalf("a second plan: %v, changes %v", err, paths(again))
	}
	return s, rep
}

func paths(s *rootfs.Stage) []string {
	var out []string
	for _, c := range s.Changes() {
		if c.After == nil || !c.After.Mode.IsDir() {
			out = append(out, string(c.Op)+" "+c.Path)
		}
	}
	slices.Sort(out)
	return out
}

func read(t *testing.T, tree rootfs.Tree, p string) string {
	t.Helper()
	b, err := rootfs.ReadFile(tree, p)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestPlanOfTheRealBase(t *testing.T) {
	s, rep := plan(t, Recipe{}, nil)
	want := []string{
		"create /etc/containerd/config.toml",
		"create /etc/modules-load.d/90-remaster-node.conf",
		"create /etc/sysctl.d/99-zz-remaster-node.conf",
		"create /etc/systemd/system-preset/10-remaster-containerd.preset",
		"create /etc/systemd/system.conf.d/90-remaster-cgroup-v2.conf",
		"create /etc/systemd/system/containerd.service.d/90-remaster-delegate.conf",
		"modify /boot/grub2/grub.cfg",
		"modify /boot/grub2/grubenv",
		"modify /etc/default/grub",
	}
	if got := paths(s); !slices.Equal(got, want) {
		t.Errorf("changes\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if got := read(t, s, "/etc/modules-load.d/90-remaster-node.conf"); got != "overlay\nbr_netfilter\n" {
		t.Errorf("modules %q", got)
	}
	if got := read(t, s, ContainerdConfig); got != string(newConfig(0)) {
		t.Errorf("config %q", got)
	}
	if !strings.Contains(strings.Join(rep.Notes, "\n"), "containerd is not in the image") || len(rep.Warnings) > 0 {
		t.Errorf("%+v", rep)
	}
	for _, c := range s.Changes() {
		if len(c.Why) == 0 {
			t.Errorf("%s has no reason", c.Path)
		}
		if c.Op == rootfs.OpCreate && (c.After.UID != 0 || c.After.GID != 0 || c.After.Mode.Perm()&0o022 != 0) {
			t.Errorf("%s: %v %d:%d", c.Path, c.After.Mode, c.After.UID, c.After.GID)
		}
	}
}

func TestPlanEnablesWhatIsInstalled(t *testing.T) {
	for name, c := range map[string]struct {
		files map[string]string
		want  []string // changes beside those of the boot configuration and of every node
		warns int
	}{
		"disabled": {installed(nil), []string{
			"create /etc/systemd/system/multi-user.target.wants/containerd.service",
			"modify /etc/containerd/config.toml"}, 0},
		"masked": {installed(map[string]string{"/etc/systemd/system/containerd.service": "-> /dev/null"}), []string{
			"create /etc/systemd/system/multi-user.target.wants/containerd.service",
			"modify /etc/containerd/config.toml",
			"remove /etc/systemd/system/containerd.service"}, 0},
		"no Delegate": {installed(map[string]string{"/usr/lib/systemd/system/containerd.service": "[Service]\nExecStart=/usr/bin/containerd\nDelegate=no\n[Install]\nWantedBy=multi-user.target\n"}), []string{
			"create /etc/systemd/system/containerd.service.d/90-remaster-delegate.conf",
			"create /etc/systemd/system/multi-user.target.wants/containerd.service",
			"modify /etc/containerd/config.toml"}, 0},
		"no [Install]": {installed(map[string]string{"/usr/lib/systemd/system/containerd.service": "[Service]\nExecStart=-/usr/bin/containerd\nDelegate=1\n"}), []string{
			"modify /etc/containerd/config.toml"}, 1},
		"no program": {installed(map[string]string{"/usr/bin/containerd": ""}), []string{
			"create /etc/systemd/system/multi-user.target.wants/containerd.service",
			"modify /etc/containerd/config.toml"}, 1},
		"no configuration": {installed(map[string]string{ContainerdConfig: ""}), []string{
			"create /etc/containerd/config.toml",
			"create /etc/systemd/system/multi-user.target.wants/containerd.service"}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			s, rep := plan(t, Recipe{}, c.files)
			got := slices.DeleteFunc(paths(s), func(p string) bool {
				return strings.Contains(p, "/boot/") || strings.Contains(p, "/default/grub") ||
					strings.Contains(p, "-remaster-") && !strings.Contains(p, "delegate")
			})
			if !slices.Equal(got, c.want) || len(rep.Warnings) != c.warns {
				t.Errorf("changes %q\nwant %q\nwarnings %q", got, c.want, rep.Warnings)
			}
		})
	}
}

// TestANodeByOtherHandsStaysAsItIs is the image that needs nothing: not even the files
// that make a converted one complete.
func TestANodeByOtherHandsStaysAsItIs(t *testing.T) {
	files := installed(map[string]string{
		"/etc/systemd/system/multi-user.target.wants/containerd.service": "-> /usr/lib/systemd/system/containerd.service",
		ContainerdConfig: "[" + v2runc + ".options]\n  SystemdCgroup = true\n",
	})
	v2 := " systemd.unified_cgroup_hierarchy=1 cgroup_no_v1=all"
	for p, c := range alinux3Boot() {
		files[p] = strings.ReplaceAll(c, "quiet", "quiet"+v2)
	}
	block := strings.TrimRight(files["/boot/grub2/grubenv"], "#")
	files["/boot/grub2/grubenv"] = block + strings.Repeat("#", 1024-len(block))
	s, rep := plan(t, Recipe{}, files)
	if got := paths(s); len(got) > 0 {
		t.Errorf("changes %q", got)
	}
	if !strings.Contains(strings.Join(rep.Notes, "\n"), "already") {
		t.Errorf("notes %q", rep.Notes)
	}
	// With a file of ours, or another change, it is completed.
	files["/etc/modules-load.d/90-remaster-node.conf"] = "old\n"
	if s, _ = plan(t, Recipe{}, files); len(paths(s)) != 4 {
		t.Errorf("changes %q", paths(s))
	}
}

func TestSkippedPartsAreLeftAlone(t *testing.T) {
	s, rep := plan(t, Recipe{SkipCgroupV2: true, SkipContainerd: true}, nil)
	if got := paths(s); len(got) > 0 || rep.Boot != nil {
		t.Errorf("%q", got)
	}
	s, _ = plan(t, Recipe{SkipContainerd: true}, installed(nil))
	for _, p := range paths(s) {
		if strings.Contains(p, "containerd") || strings.Contains(p, "sysctl") || strings.Contains(p, "modules") {
			t.Error(p)
		}
	}
	s, _ = plan(t, Recipe{SkipCgroupV2: true}, installed(nil))
	for _, p := range paths(s) {
		if strings.Contains(p, "/boot/") || strings.Contains(p, "system.conf.d") || strings.Contains(p, "default/grub") {
			t.Error(p)
		}
	}
}

func TestKernelArguments(t *testing.T) {
	s, rep := plan(t, Recipe{KernelArgs: []string{"psi=1", "console=ttyS1"}, DeleteKernelArgs: []string{"quiet"}}, nil)
	env := read(t, s, "/boot/grub2/grubenv")
	if !strings.Contains(env, "psi=1") || !strings.Contains(env, "console=ttyS1") || strings.Contains(env, "quiet") || len(env) != 1024 {
		t.Errorf("%q", env)
	}
	if rep.Boot == nil || len(rep.Boot.After.Entries()) != 1 {
		t.Errorf("%+v", rep.Boot)
	}
	st := rootfs.NewStage(rootfs.NewGuest(alinux3(nil)))
	if _, err := (Recipe{KernelArgs: []string{"a b\n"}}).Plan(t.Context(), st); err == nil {
		t.Error("an argument with a newline is taken")
	}
}

func TestMissingModulesAreNotLoaded(t *testing.T) {
	s, rep := plan(t, Recipe{}, map[string]string{"/usr/lib/modules/" + kver + "/modules.dep": "kernel/fs/overlayfs/overlay.ko:\nkernel/x/xbr_netfilter.ko:\n"})
	if got := read(t, s, modulesFile); got != "overlay\n" || len(rep.Warnings) != 1 || !strings.Contains(rep.Warnings[0], "br_netfilter") {
		t.Errorf("%q %q", got, rep.Warnings)
	}
	if got := read(t, s, sysctlFile); strings.Contains(got, "bridge") {
		t.Errorf("%q", got)
	}
	s, rep = plan(t, Recipe{}, map[string]string{
		"/usr/lib/modules/" + kver + "/modules.dep":     "kernel/net/bridge/br_netfilter.ko.zst:\n",
		"/usr/lib/modules/" + kver + "/modules.builtin": "kernel/fs/overlayfs/overlay.ko\n",
		"/usr/lib/modules/0-rescue-x/vmlinuz":           "x",
	})
	if got := read(t, s, modulesFile); got != "overlay\nbr_netfilter\n" || len(rep.Warnings) != 0 {
		t.Errorf("%q %q", got, rep.Warnings)
	}
}

func TestTimezone(t *testing.T) {
	zone := map[string]string{"/usr/share/zoneinfo/Asia/Shanghai": "TZif2", "/usr/share/zoneinfo/Bad": "text"}
	with := func(localtime string) map[string]string {
		m := maps.Clone(zone)
		m["/etc/localtime"] = localtime
		return m
	}
	r := Recipe{SkipCgroupV2: true, SkipContainerd: true, Timezone: "Asia/Shanghai"}
	for name, files := range map[string]map[string]string{
		"none": zone, "a file": with("TZif"), "a link": with("-> ../usr/share/zoneinfo/UTC"), "dangling": with("-> /nowhere"),
	} {
		s, _ := plan(t, r, files)
		n, err := s.Lstat("/etc/localtime")
		if err != nil || n.Target != "../usr/share/zoneinfo/Asia/Shanghai" {
			t.Errorf("%s: %+v %v", name, n, err)
		}
	}
	if s, _ := plan(t, r, with("-> /usr/share/zoneinfo/Asia/Shanghai")); len(paths(s)) > 0 {
		t.Errorf("an absolute link to the same zone is changed: %q", paths(s))
	}
	for _, zone := range []string{"Bad", "Asia", "Asia/Nowhere", "../../../etc/passwd", "/etc/passwd", "Asia//Shanghai", "a b", "."} {
		r.Timezone = zone
		if _, err := r.Plan(t.Context(), rootfs.NewStage(rootfs.NewGuest(alinux3(with("TZif"))))); err == nil {
			t.Errorf("%q is taken", zone)
		}
	}
}

func TestSwapLinesAreCommentedOnce(t *testing.T) {
	in := "# swap swap swap\nUUID=1 / ext4 defaults 1 1\nUUID=2\tnone\tswap\tsw\t0 0\n  /swapfile none swap sw 0 0 # swap\r\n#UUID=3 none swap sw 0 0\n/dev/x /swap ext4 defaults 0 0\n/dev/y swap swap defaults"
	want := "# swap swap swap\nUUID=1 / ext4 defaults 1 1\n#UUID=2\tnone\tswap\tsw\t0 0\n#  /swapfile none swap sw 0 0 # swap\r\n#UUID=3 none swap sw 0 0\n/dev/x /swap ext4 defaults 0 0\n#/dev/y swap swap defaults"
	s, _ := plan(t, Recipe{DisableSwap: true}, map[string]string{"/etc/fstab": in})
	if got := read(t, s, "/etc/fstab"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	plan(t, Recipe{DisableSwap: true}, map[string]string{"/etc/fstab": ""})
}

func TestDisableUnits(t *testing.T) {
	s, _ := plan(t, Recipe{DisableUnits: []string{"tuned"}}, map[string]string{
		"/usr/lib/systemd/system/tuned.service":                     "[Install]\nWantedBy=multi-user.target\n",
		"/etc/systemd/system/multi-user.target.wants/tuned.service": "-> /usr/lib/systemd/system/tuned.service",
	})
	if _, err := s.Lstat("/etc/systemd/system/multi-user.target.wants/tuned.service"); err == nil {
		t.Error("tuned starts still")
	}
}

func TestALinkThatHidesALaterUnitIsNamed(t *testing.T) {
	_, rep := plan(t, Recipe{}, map[string]string{"/etc/systemd/system/containerd.service": "-> /opt/containerd.service"})
	if len(rep.Warnings) != 1 || !strings.Contains(rep.Warnings[0], "leads nowhere") {
		t.Errorf("%q", rep.Warnings)
	}
}

func TestImportsThatWinAreNamed(t *testing.T) {
	_, rep := plan(t, Recipe{}, installed(map[string]string{
		ContainerdConfig:                "version = 2\nimports = [\"conf.d/*.toml\", \"/opt/none.toml\", \"/opt/bad.toml\"]\n",
		"/etc/containerd/conf.d/a.toml": "[plugins.\"io.containerd.grpc.v1.cri\"]\nx = 1\n",
		"/etc/containerd/conf.d/b.toml": "[debug]\nlevel = \"info\"\n",
		"/opt/bad.toml":                 "junk",
	}))
	if len(rep.Warnings) != 2 || !strings.Contains(rep.Warnings[0], "conf.d/a.toml") || !strings.Contains(rep.Warnings[1], "bad.toml") {
		t.Errorf("%q", rep.Warnings)
	}
}

func TestOSPolicy(t *testing.T) {
	for release, want := range map[string]string{ // "" accepts, else a part of the error
		"ID=\"alinux\"\nVERSION_ID=\"3\"\n":                                        "",
		"ID=alinux\nVERSION_ID=4\n":                                                "",
		"ID=rocky\nVERSION_ID='8.10'\nPLATFORM_ID=platform:el8\n":                  "",
		"ID=\"rhel\"\nVERSION_ID=\"9.4\"\n":                                        "",
		"ID=\"centos\"\nVERSION_ID=\"8\"\n":                                        "",
		"ID=anolis\nVERSION_ID=8.8\n":                                              "",
		"ID=anolis\nVERSION_ID=23\n":                                               "",
		"ID=ol\nVERSION_ID=8.9\nPLATFORM_ID=\"platform:el8\"\n":                    "",
		"ID=alinux\nVERSION_ID=2.1903\nPRETTY_NAME=\"Alinux 2\"\n":                 "Alinux 2 has systemd 219",
		"ID=\"centos\"\nVERSION_ID=\"7\"\nPRETTY_NAME=\"CentOS Linux 7 (Core)\"\n": "CentOS Linux 7 (Core) has systemd 219",
		"ID=debian\nVERSION_ID=12\nPRETTY_NAME=\"Debian 12\"\n":                    "Debian 12 (ID=debian",
		"ID=ubuntu\nVERSION_ID=8\n":                                                "ubuntu 8",
		"ID=rhel\nVERSION_ID=10.0\nPLATFORM_ID=platform:el10\n":                    "neither",
		"junk\n": "neither",
	} {
		g := rootfs.NewGuest(alinux3(map[string]string{"/usr/lib/os-release": release}))
		err := CheckOS(g)
		if want == "" != (err == nil) || err != nil && (!strings.Contains(err.Error(), want) || !errors.Is(err, disk.ErrUnsupported) || len(hint.Of(err)) == 0) {
			t.Errorf("%q: %v", release, err)
		}
		_, err = Recipe{AllowOS: true}.Plan(t.Context(), rootfs.NewStage(g))
		if err != nil {
			t.Errorf("allowed %q: %v", release, err)
		}
	}
	if err := CheckOS(rootfs.NewGuest(alinux3(map[string]string{"/usr/lib/os-release": "", "/etc/os-release": ""}))); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no os-release: %v", err)
	}
}

func TestACancelledPlanStops(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s := rootfs.NewStage(rootfs.NewGuest(alinux3(nil)))
	if _, err := (Recipe{}).Plan(ctx, s); !errors.Is(err, context.Canceled) || len(s.Changes()) > 0 {
		t.Errorf("%v, %d changes", err, len(s.Changes()))
	}
}

// BenchmarkPlan is the planning of everything on a small tree, without a disk.
func BenchmarkPlan(b *testing.B) {
	m := alinux3(installed(nil))
	for b.Loop() {
		if _, err := (Recipe{}).Plan(b.Context(), rootfs.NewStage(rootfs.NewGuest(m))); err != nil {
			b.Fatal(err)
		}
	}
}
