package recipe

import (
	"fmt"
	"slices"
	"strings"

	"remaster/internal/hint"
	"remaster/pkg/disk"
)

// Versions of containerd's config.toml: 1 (or none) names plugins by their short ids, 2
// by their full ones; 3 moved the runtimes from the CRI service to a plugin of their
// own, and 4 moved the server's sockets, which does not matter here (containerd's
// docs/PLUGINS.md and containerd-config.toml(5)).
const maxConfigVersion = 4

const (
	criShort   = "cri"
	criLong    = "io.containerd.grpc.v1.cri"
	criRuntime = "io.containerd.cri.v1.runtime"
	criImages  = "io.containerd.cri.v1.images"
)

// runcShim is the only shim for runc that can do cgroup v2.
const runcShim = "io.containerd.runc.v2"

// config is containerd's config.toml while it is edited.
type config struct {
	t       *tomlText
	version int
	plugin  string // the one that has the runtimes
	quote   byte
	notes   []string
	warns   []string
}

// editConfig returns config.toml with SystemdCgroup = true for runc, in the shape of the
// file's own version, and with the CRI plugin not disabled. major is the first number of
// the version of containerd in the image, 0 if that is unknown. Nothing else changes,
// byte for byte.
func editConfig(data []byte, major int) (*config, error) {
	t, err := parseToml(data)
	if err != nil {
		return nil, hint.With(err, "containerd would not start with this file; repair it in the base image")
	}
	c := &config{t: t, quote: '"'}
	if err := c.findVersion(major); err != nil {
		return nil, err
	}
	if err := c.enableCRI(); err != nil {
		return nil, err
	}
	if err := c.systemdCgroup(major); err != nil {
		return nil, err
	}
	c.advise()
	return c, nil
}

func (c *config) path(keys ...string) []string {
	return append([]string{"plugins", c.plugin, "containerd"}, keys...)
}

// findVersion finds out which shape the file has. A file without a version that uses
// the full names of plugins means version 2, but containerd 1 reads it as version 1 and
// passes over what it says of them: such a file is given its version.
func (c *config) findVersion(major int) error {
	if v := c.t.get("version"); v != nil {
		n, ok := v.(int64)
		if !ok {
			return errShape([]string{"version"}, "not a number")
		}
		if n < 0 || n > maxConfigVersion {
			return hint.With(fmt.Errorf("config version %d: %w", n, disk.ErrUnsupported), "versions 1 to 4 are known; set SystemdCgroup in the base image, or leave containerd out")
		}
		c.version = int(n)
	}
	switch c.version {
	case 2:
		c.plugin = criLong
		return nil
	case 3, 4:
		c.plugin, c.quote = criRuntime, '\''
		return nil
	}
	short, long := c.pluginNames()
	if len(long) == 0 {
		c.version, c.plugin = 1, criShort
		return nil
	}
	if len(short) > 0 {
		return hint.With(fmt.Errorf("a file of version 1 names plugins in the short and in the full way (%s, %s): %w", short[0], long[0], disk.ErrUnsupported),
			"use full names everywhere in config.toml, and put version = 2 in front")
	}
	c.plugin = criLong
	if major != 1 && c.t.get(c.path("runtimes", "runc", "options", "SystemdCgroup")...) == true {
		if major == 0 {
			c.warns = append(c.warns, "config.toml has full plugin names but no version: containerd 1 would pass over them, containerd 2 reads it well")
		}
		return nil
	}
	c.version = 2
	c.notes = append(c.notes, "config.toml has full plugin names but no version, so that containerd 1 would pass over them: it is given version = 2")
	if c.t.find([]string{"version"}) >= 0 {
		t, err := c.t.set([]string{"version"}, "2", int64(2), c.quote)
		c.t = t
		return err
	}
	t, err := c.t.check(append([]byte("version = 2"+c.t.eol()), c.t.src...), func(m map[string]any) { m["version"] = int64(2) })
	c.t = t
	return err
}

// pluginNames returns the names that the file gives plugins. "cri" in the list of the
// disabled does not count: it goes.
func (c *config) pluginNames() (short, long []string) {
	add := func(name string) {
		if strings.Contains(name, ".") {
			long = append(long, name)
		} else {
			short = append(short, name)
		}
	}
	if m, ok := c.t.get("plugins").(map[string]any); ok {
		for name := range m {
			add(name)
		}
	}
	for _, list := range []string{"disabled_plugins", "required_plugins"} {
		words, _ := c.t.get(list).([]any)
		for _, w := range words {
			if name, ok := w.(string); ok && !(list == "disabled_plugins" && isCRI(name)) {
				add(name)
			}
		}
	}
	slices.Sort(short)
	slices.Sort(long)
	return short, long
}

func isCRI(name string) bool {
	return name == criShort || name == criLong || name == criRuntime || name == criImages
}

// enableCRI takes the CRI plugin off the list of the disabled: Docker's packages put it
// there, and without it there is no Kubernetes node.
func (c *config) enableCRI() error {
	t, gone, err := c.t.drop([]string{"disabled_plugins"}, isCRI)
	if err != nil {
		return err
	}
	c.t = t
	if len(gone) > 0 {
		c.notes = append(c.notes, fmt.Sprintf("config.toml disabled the plugin %s, which Kubernetes needs: it is enabled", strings.Join(gone, ", ")))
	}
	return nil
}

// systemdCgroup sets the switch itself.
func (c *config) systemdCgroup(major int) error {
	set := func(path []string, literal string, want any) (err error) {
		t, err := c.t.set(path, literal, want, c.quote)
		if err == nil {
			c.t = t
		}
		return err
	}
	runc := func(keys ...string) []string { return c.path(append([]string{"runtimes", "runc"}, keys...)...) }
	done := c.t.get(runc("options", "SystemdCgroup")...) == true
	// containerd 1 replaces what is built in for a runtime by what the file has of it,
	// and cannot run one without a type.
	if c.version < 3 && c.t.get(runc("runtime_type")...) == nil {
		switch {
		case major == 1, major == 0 && !done:
			if err := set(runc("runtime_type"), `"`+runcShim+`"`, runcShim); err != nil {
				return err
			}
			if c.t.get(runc("options")...) != nil {
				c.notes = append(c.notes, "config.toml had no runtime_type for runc, without which containerd 1 runs nothing: it is "+runcShim)
			}
		case major == 0:
			c.warns = append(c.warns, "config.toml has no runtime_type for runc: containerd 1 would run nothing, containerd 2 knows it")
		}
	}
	if err := set(runc("options", "SystemdCgroup"), "true", true); err != nil {
		return err
	}
	// The switch of the first runtime. With any other the CRI plugin does not load.
	old := []string{"plugins", c.plugin, "systemd_cgroup"}
	if c.version < 3 && c.t.get(old...) == true && c.t.get(runc("runtime_type")...) != "io.containerd.runtime.v1.linux" {
		c.notes = append(c.notes, "config.toml had systemd_cgroup = true, which keeps the CRI plugin from loading: it is false")
		return set(old, "false", false)
	}
	return nil
}

// advise warns of what else in the file keeps the switch from having its effect.
func (c *config) advise() {
	if s, ok := c.t.get(c.path("runtimes", "runc", "runtime_type")...).(string); ok && s != runcShim {
		c.warns = append(c.warns, fmt.Sprintf("config.toml has runc run by %s, which cannot do cgroup v2; %s can", s, runcShim))
	}
	if s, ok := c.t.get(c.path("default_runtime", "runtime_type")...).(string); ok && s != "" && c.version < 3 {
		c.warns = append(c.warns, "config.toml sets the obsolete default_runtime, which takes the place of runc")
	}
	if s, ok := c.t.get(c.path("default_runtime_name")...).(string); ok && s != "" && s != "runc" &&
		c.t.get(c.path("runtimes", s, "options", "SystemdCgroup")...) != true {
		c.warns = append(c.warns, fmt.Sprintf("config.toml has %s for its default runtime, without SystemdCgroup = true", s))
	}
	if c.version > 2 && c.t.get("plugins", criLong, "containerd") != nil {
		c.warns = append(c.warns, fmt.Sprintf("config.toml of version %d has runtimes under %s, where this version does not look", c.version, criLong))
	}
}

// imports returns the other files that the file takes in.
func (c *config) imports() []string {
	var out []string
	words, _ := c.t.get("imports").([]any)
	for _, w := range words {
		if s, ok := w.(string); ok && s != "" {
			out = append(out, s)
		}
	}
	return out
}

// newConfig is a config.toml that says no more than it must. Version 2 is read by every
// containerd from 1.3 on; 2.x has its own.
func newConfig(major int) []byte {
	if major >= 2 {
		return []byte(`version = 3

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = 'io.containerd.runc.v2'

  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
    SystemdCgroup = true
`)
	}
	return []byte(`version = 2

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"

  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
    SystemdCgroup = true
`)
}
