package rootfs

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"slices"
	"time"

	"remaster/pkg/disk"
)

// Apply performs the changes on the volumes of g, in their order, and then flushes each
// volume that it touched. now is the time of contents that have none of their own. What
// lies at the path of a change must be its Before, else Apply fails; so two names of one
// file can't be given different contents. After an error the disk below g must not be
// published.
func Apply(g *Guest, changes []Change, now time.Time) error {
	touched := map[Volume]bool{}
	for _, c := range changes {
		v, rel := g.VolumeAt(c.Path)
		e, ok := v.(Editor)
		if !ok {
			return pathError(string(c.Op), c.Path, errors.New("the volume that it lies on was opened for reading only"))
		}
		touched[v] = true
		if err := g.apply(e, rel, c, now); err != nil {
			var located *fs.PathError
			if errors.As(err, &located) && located.Error() == err.Error() {
				err = located.Err // the path was the volume's
			}
			return pathError(string(c.Op), c.Path, err)
		}
	}
	for _, m := range g.mounts {
		if !touched[m.vol] {
			continue
		}
		if err := m.vol.(Editor).Flush(); err != nil {
			return fmt.Errorf("write the volume of %s: %w", m.path, err)
		}
	}
	return nil
}

func (g *Guest) apply(e Editor, rel string, c Change, now time.Time) error {
	if slices.ContainsFunc(g.mounts, func(m mount) bool { return m.path == c.Path }) && c.Op != OpAttr {
		return errors.New("a volume is mounted there")
	}
	cur, err := e.Lstat(rel)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	as, err := sameNode(cur, c.Before, compareLimit)
	if err != nil {
		return err
	}
	if as != "" {
		// Another name of the file may have brought the change already.
		if cur != nil && cur.Links > 1 {
			if done, err := sameNode(cur, c.After, compareLimit); err != nil || done == "" {
				return err
			}
		}
		return fmt.Errorf("what is there is not what the plan was made for: %s", as)
	}
	var after *Node
	if c.After != nil {
		after = c.After.Clone()
		if after.ModTime.IsZero() {
			after.ModTime = now
		}
	}
	switch c.Op {
	case OpCreate:
		return e.Create(rel, after)
	case OpRemove:
		return e.Remove(rel)
	case OpReplace:
		if err := e.Remove(rel); err != nil {
			return err
		}
		return e.Create(rel, after)
	case OpModify:
		if err := e.SetContent(rel, content(after), after.ModTime); err != nil {
			return err
		}
		if sameAttr(c.Before, after) {
			return nil
		}
		return e.SetAttr(rel, after)
	case OpAttr:
		return e.SetAttr(rel, after)
	}
	return fmt.Errorf("unknown kind of change %q", c.Op)
}

// Confirm reads back what t, in which the changes were made, holds at their paths. It
// fails unless that is what each change was to leave there, to the last byte.
func Confirm(t Tree, changes []Change) error {
	for _, c := range changes {
		n, err := t.Lstat(c.Path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		as, err := sameNode(n, c.After, math.MaxInt64)
		if err != nil {
			return err
		}
		if as != "" {
			return fmt.Errorf("%s was not changed as planned: %s", c.Path, as)
		}
	}
	return nil
}

func content(n *Node) disk.Blob {
	if n.Content == nil {
		return disk.Bytes(nil)
	}
	return n.Content
}

// compareLimit is the number of bytes up to which a content is compared with the one
// that the plan was made for; of a larger one only the size is.
const compareLimit = 1 << 20

// sameNode says in what a and b differ, times apart, and is empty if they do not.
// Contents of more than limit bytes are compared by their size only.
func sameNode(a, b *Node, limit int64) (string, error) {
	switch {
	case a == nil && b == nil:
		return "", nil
	case a == nil:
		return "nothing is there", nil
	case b == nil:
		return kind(a.Mode) + " is there", nil
	case a.Mode.Type() != b.Mode.Type():
		return kind(a.Mode) + " is there, not " + kind(b.Mode), nil
	case a.Target != b.Target:
		return fmt.Sprintf("the link points at %q, not at %q", a.Target, b.Target), nil
	case !sameAttr(a, b):
		return "mode, owner or extended attributes differ", nil
	case a.Size() != b.Size():
		return fmt.Sprintf("it has %d bytes, not %d", a.Size(), b.Size()), nil
	case a.Size() > limit:
		return "", nil
	}
	same, err := sameContent(a.Content, b.Content)
	if err == nil && !same {
		return "its content differs", nil
	}
	return "", err
}
