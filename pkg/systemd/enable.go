package systemd

import (
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"remaster/internal/hint"
	"remaster/pkg/disk"
	"remaster/pkg/rootfs"
)

// maxAlso bounds the units that one Enable reaches through Also=.
const maxAlso = 64

// link is a symbolic link that enables a unit.
type link struct{ path, target string }

// Enable plans the links that "systemctl enable" would make for a unit: what the
// [Install] section of the unit and those it names in Also= ask for. Links that are
// there stay as they are. A masked unit is an error, and so is a link of that name that
// leads to another unit; a unit without [Install] is enabled by nothing and no error.
func Enable(s *rootfs.Stage, unit, why string) error {
	units, err := withAlso(s, unit)
	if err != nil {
		return err
	}
	for _, u := range units {
		links, err := u.links()
		if err != nil {
			return fmt.Errorf("enable %s: %w", u.Name, err)
		}
		for _, l := range links {
			if err := makeLink(s, l, why); err != nil {
				return fmt.Errorf("enable %s: %w", u.Name, err)
			}
		}
	}
	return nil
}

// withAlso returns the unit and the ones that are enabled with it.
func withAlso(t rootfs.Tree, unit string) ([]*Unit, error) {
	var units []*Unit
	todo := []string{unit}
	for len(todo) > 0 {
		name := todo[0]
		todo = todo[1:]
		u, err := Find(t, name)
		if err != nil {
			return nil, fmt.Errorf("enable %s: %w", name, err)
		}
		if u.Masked {
			return nil, hint.With(fmt.Errorf("enable %s: it is masked by %s", name, u.Path), "unmask the unit first")
		}
		if slices.ContainsFunc(units, func(v *Unit) bool { return v.Name == u.Name }) {
			continue
		}
		if units = append(units, u); len(units) > maxAlso {
			return nil, fmt.Errorf("enable %s: Also= leads to more than %d units: %w", unit, maxAlso, disk.ErrUnsupported)
		}
		for _, also := range u.List("Install", "Also") {
			also, err := expand(also, u.Name)
			if err != nil {
				return nil, fmt.Errorf("enable %s: %w", u.Name, err)
			}
			todo = append(todo, also)
		}
	}
	return units, nil
}

// links returns what [Install] asks for, in the order in which systemctl makes it.
func (u *Unit) links() ([]link, error) {
	var out []link
	for _, a := range u.List("Install", "Alias") {
		a, err := u.alias(a)
		if err != nil {
			return nil, err
		}
		if a != u.Name {
			out = append(out, link{Dir + "/" + a, u.Path})
		}
	}
	name := u.Name
	if isTemplate(name) {
		if inst, ok := u.Value("Install", "DefaultInstance"); ok {
			inst, err := expand(inst, u.Name)
			if err != nil {
				return nil, err
			}
			name = withInstance(name, inst)
			if err := checkName(name); err != nil {
				return nil, err
			}
		}
	}
	for _, k := range []struct{ key, suffix string }{{"WantedBy", ".wants"}, {"RequiredBy", ".requires"}} {
		for _, target := range u.List("Install", k.key) {
			target, err := expand(target, name)
			if err != nil {
				return nil, err
			}
			if err := checkName(target); err != nil {
				return nil, fmt.Errorf("in %s=: %w", k.key, err)
			}
			if isTemplate(name) && !isTemplate(target) {
				return nil, fmt.Errorf("in %s=: %s is a template without an instance and cannot start with %s: %w", k.key, name, target, fs.ErrInvalid)
			}
			out = append(out, link{Dir + "/" + target + k.suffix + "/" + name, u.Path})
		}
	}
	return out, nil
}

// alias returns the other name that Alias= asks for, with the unit's instance if it is a
// template's.
func (u *Unit) alias(a string) (string, error) {
	a, err := expand(a, u.Name)
	if err != nil {
		return "", err
	}
	if err := checkName(a); err != nil {
		return "", fmt.Errorf("in Alias=: %w", err)
	}
	if path.Ext(a) != path.Ext(u.Name) || isTemplate(u.Name) && !isTemplate(a) && !isInstance(a) {
		return "", fmt.Errorf("in Alias=: %s cannot be another name of %s: %w", a, u.Name, fs.ErrInvalid)
	}
	if _, inst, _, _ := splitName(u.Name); inst != "" && isTemplate(a) {
		a = withInstance(a, inst)
	}
	return a, nil
}

// makeLink plans a link unless one that does the same is there. The manager goes by a
// link's name in .wants and .requires, so there any target of the same unit will do.
func makeLink(s *rootfs.Stage, l link, why string) error {
	n, err := s.Lstat(l.path)
	switch {
	case missing(err):
		if err := dropDangling(s, path.Dir(l.path), why); err != nil {
			return err
		}
		return s.Symlink(l.target, l.path, why)
	case err != nil:
		return err
	case n.Mode.Type() != fs.ModeSymlink:
		return fmt.Errorf("%s is in the way: %w", l.path, fs.ErrExist)
	}
	dest := linkTarget(l.path, n.Target)
	if dest == l.target || path.Base(dest) == path.Base(l.target) && inDirs(searchPath, dest) {
		return nil
	}
	return hint.With(fmt.Errorf("%s leads to %s: %w", l.path, n.Target, fs.ErrExist), "remove the link, or disable the other unit")
}

// dropDangling plans the removal of a link that is in the place of a folder and leads
// nowhere. A link made through it would lie where nothing keeps it.
func dropDangling(s *rootfs.Stage, dir, why string) error {
	n, err := s.Lstat(dir)
	if err != nil || n.Mode.Type() != fs.ModeSymlink {
		return ignoreMissing(err)
	}
	if _, err := s.Stat(dir); !missing(err) {
		return err
	}
	return s.Remove(dir, why)
}

// Disable plans the removal of every link under /etc that "systemctl disable" would
// remove: those that start the unit, those that lead to its file, and the other names
// that its [Install] section gives it. Folders that become empty go too.
func Disable(s *rootfs.Stage, unit, why string) error {
	if err := checkName(unit); err != nil {
		return err
	}
	names := []string{unit}
	u, err := Find(s, unit)
	if err != nil && !missing(err) {
		return err
	}
	if err == nil && !u.Masked {
		known, err := u.knownNames()
		if err != nil {
			return err
		}
		names = append(names, known...)
		for _, also := range u.List("Install", "Also") {
			if also, err := expand(also, u.Name); err == nil {
				names = append(names, also)
			}
		}
	}
	entries, err := readDir(s, Dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		p := Dir + "/" + e.Name
		if ext := path.Ext(e.Name); ext == ".wants" || ext == ".requires" {
			if err := disableIn(s, p, names, why); err != nil {
				return err
			}
			continue
		}
		if e.Type != fs.ModeSymlink {
			continue
		}
		n, err := s.Lstat(p)
		if err != nil {
			return err
		}
		if n.Target != "/dev/null" && matches(names, e.Name, n.Target) {
			if err := s.Remove(p, why); err != nil {
				return err
			}
		}
	}
	return nil
}

func disableIn(s *rootfs.Stage, dir string, names []string, why string) error {
	links, err := linksIn(s, dir)
	if err != nil {
		return err
	}
	removed := false
	for _, name := range links {
		n, err := s.Lstat(dir + "/" + name)
		if err != nil {
			return err
		}
		if !matches(names, name, n.Target) {
			continue
		}
		if err := s.Remove(dir+"/"+name, why); err != nil {
			return err
		}
		removed = true
	}
	left, err := readDir(s, dir)
	if err != nil || !removed || len(left) > 0 {
		return err
	}
	if n, err := s.Lstat(dir); err != nil || !n.Mode.IsDir() {
		return err
	}
	return s.Remove(dir, why)
}

// matches reports whether a link belongs to one of the units: by its own name, by the
// template that it is an instance of, or by the file that it leads to.
func matches(names []string, name, target string) bool {
	return slices.Contains(names, name) || slices.Contains(names, templateOf(name)) && isInstance(name) ||
		slices.Contains(names, path.Base(target))
}

// Mask plans that a unit cannot be started: its name under /etc leads to /dev/null. A
// unit file at that place is an error.
func Mask(s *rootfs.Stage, unit, why string) error {
	if err := checkName(unit); err != nil {
		return err
	}
	p := Dir + "/" + unit
	if n, err := s.Lstat(p); err == nil && n.Mode.Type() != fs.ModeSymlink {
		return fmt.Errorf("mask %s: the unit file %s is in the way: %w", unit, p, fs.ErrExist)
	}
	return s.Symlink("/dev/null", p, why)
}

// Unmask plans the removal of a mask under /etc: a link to /dev/null or an empty file.
// It is no error if there is none.
func Unmask(s *rootfs.Stage, unit, why string) error {
	if err := checkName(unit); err != nil {
		return err
	}
	p := Dir + "/" + unit
	n, err := s.Lstat(p)
	if missing(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if n.Mode.Type() == fs.ModeSymlink && linkTarget(p, n.Target) == "/dev/null" || n.Mode.IsRegular() && n.Size() == 0 {
		return s.Remove(p, why)
	}
	return nil
}

// DropIn plans a drop-in of a unit under /etc, "<name>.conf", with that content. The
// unit need not be there yet.
func DropIn(s *rootfs.Stage, unit, name, content, why string) error {
	if err := checkName(unit); err != nil {
		return err
	}
	if name == "" || strings.ContainsAny(name, "/\x00") {
		return fmt.Errorf("drop-in %q of %s: %w", name, unit, fs.ErrInvalid)
	}
	return s.WriteFile(Dir+"/"+unit+".d/"+name+".conf", []byte(content), why)
}
