package systemd

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"

	"remaster/pkg/disk"
	"remaster/pkg/rootfs"
)

// State is how a unit is turned on, in the words of "systemctl is-enabled".
type State string

// The states that a unit can have in an image. Those of a running system (enabled-runtime,
// generated, transient) cannot occur.
const (
	Enabled  State = "enabled"  // a link under /etc starts it, or an Alias of its own is made
	Disabled State = "disabled" // it has an [Install] section that is not carried out
	Static   State = "static"   // it has no [Install] section; others start it
	Masked   State = "masked"   // it cannot be started
	Linked   State = "linked"   // a link under /etc leads to the file outside the search path
	Alias    State = "alias"    // the name is that of another unit
	Indirect State = "indirect" // only Also= in [Install], or known under a name that is not in it
)

// IsEnabled returns what "systemctl is-enabled" says of a unit. The error wraps
// fs.ErrNotExist if the guest has no such unit.
//
// It differs in one thing: a "TARGET.wants" that is itself a link to a folder is looked
// into, because the system manager does so when it starts units.
func IsEnabled(t rootfs.Tree, unit string) (State, error) {
	u, alias, err := find(t, unit)
	if err != nil {
		return "", err
	}
	switch {
	case u.Masked:
		return Masked, nil
	case alias && !isInstance(unit):
		return Alias, nil
	}
	dirs, err := unitDirs(t)
	if err != nil {
		return "", err
	}
	l := linkSearch{t: t, u: u}
	if l.known, err = u.knownNames(); err != nil {
		return "", err
	}
	state, err := l.search(dirs)
	if state != "" || err != nil {
		return state, err
	}
	l.known = nil
	if state, err = l.search(dirs); err != nil {
		return "", err
	}
	switch {
	case state != "", !u.installable() && len(u.List("Install", "Also")) > 0:
		return Indirect, nil
	case u.installable():
		return Disabled, nil
	}
	return Static, nil
}

// installable reports whether [Install] asks for links of the unit itself.
func (u *Unit) installable() bool {
	return len(u.List("Install", "Alias"))+len(u.List("Install", "WantedBy"))+len(u.List("Install", "RequiredBy")) > 0
}

// knownNames are the names under which a unit's own [Install] section makes links.
func (u *Unit) knownNames() ([]string, error) {
	names := []string{u.Name}
	for _, a := range u.List("Install", "Alias") {
		a, err := expand(a, u.Name)
		if errors.Is(err, disk.ErrUnsupported) {
			continue
		}
		names = append(names, a)
	}
	if inst, ok := u.Value("Install", "DefaultInstance"); ok && isTemplate(u.Name) {
		names = append(names, withInstance(u.Name, inst))
	}
	return names, nil
}

// linkSearch looks for links that make a unit start. With known set only links of these
// names count, else those of any name that lead to it.
type linkSearch struct {
	t     rootfs.Tree
	u     *Unit
	known []string
}

// search goes along the search path. What lies below the place that has the unit file
// cannot be an alias of it.
func (l *linkSearch) search(dirs []string) (State, error) {
	linked, vendor, below := false, false, false
	for _, dir := range dirs {
		found, same, err := l.inDir(dir, below)
		if err != nil {
			return "", err
		}
		switch {
		case found && dir == Dir:
			return Enabled, nil
		case found:
			vendor = true
		case same && dir == Dir:
			linked = true
		}
		if !below {
			_, err := l.t.Lstat(dir + "/" + l.u.Name)
			if err != nil && !missing(err) {
				return "", err
			}
			below = err == nil
		}
	}
	switch {
	case vendor && isInstance(l.u.Name):
		return Static, nil
	case linked:
		return Linked, nil
	}
	return "", nil
}

// inDir looks through one folder of the search path: first the links that start the
// unit along with others, then other names of it. same reports a link of the unit's own
// name to a file elsewhere.
func (l *linkSearch) inDir(dir string, below bool) (found, same bool, err error) {
	entries, err := readDir(l.t, dir)
	if err != nil {
		return false, false, err
	}
	for _, e := range entries {
		if ext := path.Ext(e.Name); ext != ".wants" && ext != ".requires" {
			continue
		}
		names, err := linksIn(l.t, dir+"/"+e.Name)
		if err != nil {
			return false, false, err
		}
		for _, name := range names {
			if (name == l.u.Name || templateOf(name) == l.u.Name) && l.counts(name) {
				return true, false, nil
			}
		}
	}
	for _, e := range entries {
		if e.Type != fs.ModeSymlink || !validName(e.Name) {
			continue
		}
		n, err := l.t.Lstat(dir + "/" + e.Name)
		if err != nil {
			return false, false, err
		}
		toUs := path.Base(n.Target) == l.u.Name
		ours := !below && e.Name == l.u.Name
		switch {
		case toUs && ours && dir == Dir:
			same = true
		case (toUs || ours) && l.counts(e.Name):
			return true, same, nil
		}
	}
	return false, same, nil
}

func (l *linkSearch) counts(name string) bool {
	return l.known == nil || slices.Contains(l.known, name)
}

// linksIn returns the names of the links in a folder.
func linksIn(t rootfs.Tree, dir string) ([]string, error) {
	entries, err := readDir(t, dir)
	if err != nil {
		return nil, fmt.Errorf("links that start units: %w", err)
	}
	var out []string
	for _, e := range entries {
		if e.Type == fs.ModeSymlink {
			out = append(out, e.Name)
		}
	}
	return out, nil
}
