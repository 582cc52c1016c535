// Package systemd turns units on and off inside a guest: as the symbolic links and
// files that systemctl would make there, without systemctl.
//
// A unit is looked up along the search path of the system manager. /run is left out: it
// is empty in an image. The result of each call is judged against the real
// "systemctl --root" in the tests.
package systemd

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"remaster/pkg/disk"
	"remaster/pkg/rootfs"
)

// Dir is where the administrator's units, and the links that enable units, are.
const Dir = "/etc/systemd/system"

// searchPath is where units are looked for, the first place that has one wins
// (systemd.unit(5), table 1). /lib counts only where it is a folder of its own.
var searchPath = []string{Dir, "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"}

// Unit is a unit as it is found in a guest, with its drop-ins.
type Unit struct {
	// Name is the unit's own name. It differs from the one that was asked for if
	// that is an alias.
	Name string
	// Path is the unit file. In a guest whose unit is a link to a file outside the
	// search path, it is that file.
	Path string
	// Masked says that the unit is a link to /dev/null, or an empty file: it cannot
	// be started. Path is then the mask.
	Masked bool
	// DropIns are the paths of the drop-ins that were read, in the order in which
	// they apply.
	DropIns []string

	lines []Assignment
}

// Find looks a unit up. An alias is followed to the unit that it stands for, and an
// instance without a file of its own to its template. The error wraps fs.ErrNotExist if
// the guest has no such unit.
func Find(t rootfs.Tree, unit string) (*Unit, error) {
	u, _, err := find(t, unit)
	return u, err
}

// find is Find; alias says that unit is another name of the result.
func find(t rootfs.Tree, unit string) (u *Unit, alias bool, err error) {
	if err := checkName(unit); err != nil {
		return nil, false, err
	}
	dirs, err := unitDirs(t)
	if err != nil {
		return nil, false, err
	}
	name := unit
	// An alias of an alias is legal; a ring of them is not.
	for range 16 {
		file, n, err := locate(t, dirs, name)
		if err != nil {
			return nil, false, err
		}
		if n == nil {
			return nil, false, fmt.Errorf("unit %s: %w", unit, fs.ErrNotExist)
		}
		u = &Unit{Name: name, Path: file}
		if n.Mode.Type() == fs.ModeSymlink {
			dest := linkTarget(file, n.Target)
			if dest == "/dev/null" {
				u.Masked = true
				return u, false, nil
			}
			if next := path.Base(dest); next != name && next != templateOf(name) && validName(next) && inDirs(dirs, dest) {
				if isInstance(name) && isTemplate(next) {
					_, inst, _, _ := splitName(name)
					next = withInstance(next, inst)
				}
				name, alias = next, true
				continue
			}
			if u.Path, err = t.Resolve(file); err != nil {
				return nil, false, fmt.Errorf("unit %s: %w", unit, err)
			}
		}
		return u, alias, u.load(t, dirs)
	}
	return nil, false, fmt.Errorf("unit %s: aliases do not end: %w", unit, rootfs.ErrLoop)
}

// locate returns the first file or link of that name along the search path, or of its
// template; a nil node if there is none.
func locate(t rootfs.Tree, dirs []string, name string) (string, *rootfs.Node, error) {
	names := []string{name}
	if isInstance(name) {
		names = append(names, templateOf(name))
	}
	for _, name := range names {
		for _, dir := range dirs {
			p := dir + "/" + name
			n, err := t.Lstat(p)
			if err == nil {
				return p, n, nil
			}
			if !missing(err) {
				return "", nil, err
			}
		}
	}
	return "", nil, nil
}

// load reads the unit file and its drop-ins.
func (u *Unit) load(t rootfs.Tree, dirs []string) error {
	data, err := readUnit(t, u.Path)
	if err != nil {
		return fmt.Errorf("unit %s: %w", u.Name, err)
	}
	if len(data) == 0 {
		u.Masked = true
		return nil
	}
	if u.lines, err = Parse(data); err != nil {
		return fmt.Errorf("%s: %w", u.Path, err)
	}
	if u.DropIns, err = dropIns(t, dirs, u.Name); err != nil {
		return err
	}
	for _, p := range u.DropIns {
		data, err := readUnit(t, p)
		if err != nil {
			return err
		}
		more, err := Parse(data)
		if err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
		u.lines = append(u.lines, more...)
	}
	return nil
}

func readUnit(t rootfs.Tree, p string) ([]byte, error) {
	n, err := t.Stat(p)
	if err != nil {
		return nil, err
	}
	if n.Mode.IsRegular() && n.Size() > maxUnit {
		return nil, fmt.Errorf("%s: unit file of %d bytes is longer than %d: %w", p, n.Size(), maxUnit, disk.ErrUnsupported)
	}
	return rootfs.ReadFile(t, p)
}

// dropIns returns the drop-ins of a unit by file name; of two with one name the first
// along the search path counts, and a link to /dev/null or an empty file hides it.
func dropIns(t rootfs.Tree, dirs []string, unit string) ([]string, error) {
	byName := map[string]string{}
	folders := []string{unit + ".d"}
	if isInstance(unit) {
		folders = append(folders, templateOf(unit)+".d")
	}
	for _, folder := range folders {
		for _, dir := range dirs {
			entries, err := readDir(t, dir+"/"+folder)
			if err != nil {
				return nil, err
			}
			for _, e := range entries {
				if _, dup := byName[e.Name]; !dup && strings.HasSuffix(e.Name, ".conf") {
					byName[e.Name] = dir + "/" + folder + "/" + e.Name
				}
			}
		}
	}
	names := make([]string, 0, len(byName))
	for name := range byName {
		names = append(names, name)
	}
	slices.Sort(names)
	var out []string
	for _, name := range names {
		n, err := t.Stat(byName[name])
		if err == nil && n.Mode.IsRegular() {
			out = append(out, byName[name])
		} else if err != nil && !missing(err) {
			return nil, err
		}
	}
	return out, nil
}

// Value returns what a setting that takes one value is set to: the last assignment
// counts. ok is false if there is none, or if it was reset by an empty one.
func (u *Unit) Value(section, key string) (value string, ok bool) {
	for _, a := range u.lines {
		if a.Section == section && a.Key == key {
			value = a.Value
		}
	}
	return value, value != ""
}

// List returns the words of a setting that takes a list of names: assignments add up,
// and an empty one resets what was there.
func (u *Unit) List(section, key string) []string {
	var out []string
	for _, a := range u.lines {
		if a.Section != section || a.Key != key {
			continue
		}
		if a.Value == "" {
			out = nil
			continue
		}
		words, _ := splitWords(a.Value)
		out = append(out, words...)
	}
	return out
}

// unitDirs returns the search path without /lib where that is the same as /usr/lib.
func unitDirs(t rootfs.Tree) ([]string, error) {
	last := len(searchPath) - 1
	p, err := t.Resolve(searchPath[last])
	if err == nil && p == searchPath[last] {
		return searchPath, nil
	}
	if err == nil || missing(err) {
		return searchPath[:last], nil
	}
	return nil, err
}

func inDirs(dirs []string, p string) bool {
	dir := path.Dir(p)
	return slices.Contains(dirs, dir) || slices.Contains(searchPath, dir)
}

// linkTarget makes the text of a link an absolute path, without following anything.
func linkTarget(link, text string) string {
	if path.IsAbs(text) {
		return path.Clean(text)
	}
	return path.Join(path.Dir(link), text)
}

// missing reports whether an error only says that nothing is there.
func missing(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, rootfs.ErrNotDir)
}

func ignoreMissing(err error) error {
	if missing(err) {
		return nil
	}
	return err
}

// readDir lists a folder; one that is not there is empty.
func readDir(t rootfs.Tree, p string) ([]rootfs.Entry, error) {
	es, err := t.ReadDir(p)
	if err != nil && missing(err) {
		return nil, nil
	}
	return es, err
}
