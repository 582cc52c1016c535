package systemd

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"remaster/pkg/rootfs"
)

// presetDirs are where presets are, the first one with a file of some name wins
// (systemd.preset(5)).
var presetDirs = []string{"/etc/systemd/system-preset", "/usr/local/lib/systemd/system-preset", "/usr/lib/systemd/system-preset", "/lib/systemd/system-preset"}

// Preset returns whether a package that brings the unit shall enable it, and the file
// that says so: the first line that fits the name, of the files in the order of their
// names. Without such a line the answer is yes, and file is "".
func Preset(t rootfs.Tree, unit string) (enable bool, file string, err error) {
	files := map[string]string{}
	for _, dir := range presetDirs {
		entries, err := readDir(t, dir)
		if err != nil {
			return false, "", err
		}
		for _, e := range entries {
			if _, dup := files[e.Name]; !dup && strings.HasSuffix(e.Name, ".preset") {
				files[e.Name] = dir + "/" + e.Name
			}
		}
	}
	names := make([]string, 0, len(files))
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		n, err := t.Stat(files[name])
		if missing(err) || err == nil && !n.Mode.IsRegular() {
			continue
		}
		if err != nil {
			return false, "", err
		}
		data, err := readUnit(t, files[name])
		if err != nil {
			return false, "", err
		}
		if enable, ok := presetIn(string(data), unit); ok {
			return enable, files[name], nil
		}
	}
	return true, "", nil
}

// presetIn returns what the first line of a preset that fits the unit says.
func presetIn(text, unit string) (enable, ok bool) {
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) < 2 || words[0] != "enable" && words[0] != "disable" {
			continue
		}
		if fits, err := path.Match(words[1], unit); err == nil && fits {
			return words[0] == "enable", true
		}
	}
	return false, false
}

// EnablePreset plans a preset "<name>.preset" under /etc that has packages enable the
// units when they bring them. The first line that fits a unit counts over all presets,
// sorted by name: a low number in front makes it come first.
func EnablePreset(s *rootfs.Stage, name string, units []string, why string) error {
	var b strings.Builder
	for _, u := range units {
		if err := checkName(u); err != nil {
			return err
		}
		fmt.Fprintf(&b, "enable %s\n", u)
	}
	return s.WriteFile(presetDirs[0]+"/"+name+".preset", []byte(b.String()), why)
}
