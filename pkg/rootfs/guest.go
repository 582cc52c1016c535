package rootfs

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"
)

// Guest joins volumes to one [Tree]: a path belongs to the volume with the longest
// mount point that is a prefix of it. It is used by one goroutine at a time.
type Guest struct {
	view
	mounts []mount // the longest path first; the root is the last

	// Parts are the partitions of the disk that the guest was opened on, in the
	// table's order, and Notes what [Open] saw that a user may want to know. Both
	// are empty for a guest that was put together by hand.
	Parts []Part
	Notes []string

	lastWrite time.Time
}

type mount struct {
	path string
	vol  Volume
}

// NewGuest returns the tree whose root folder is that of the volume root.
func NewGuest(root Volume) *Guest {
	g := &Guest{mounts: []mount{{"/", root}}}
	g.view = view{g.lstat, g.readDir}
	return g
}

// Close releases what the replay of journals has taken, if there were any to replay. The
// guest, and what was read from it, must not be used afterwards.
func (g *Guest) Close() error { return closeAll(g.Parts) }

// Mount puts the root folder of v in the place of the folder at path, which hides what
// that holds. Links in path are followed. The folder may be missing from its parent, as
// systemd would make it.
func (g *Guest) Mount(path string, v Volume) error {
	w, err := walk(g.lstat, clean(path), true)
	if err != nil {
		return err
	}
	if w.Node != nil && !w.Node.Mode.IsDir() {
		return pathError("mount on", w.Path, fmt.Errorf("is %s: %w", kind(w.Node.Mode), ErrNotDir))
	}
	if len(w.Rest) > 0 {
		return pathError("mount on", clean(path), whereMissing(w, clean(path)))
	}
	for i := range g.mounts {
		if g.mounts[i].path == w.Path {
			return pathError("mount on", w.Path, errors.New("another volume is mounted there"))
		}
	}
	g.mounts = append(g.mounts, mount{w.Path, v})
	slices.SortStableFunc(g.mounts, func(a, b mount) int { return len(b.path) - len(a.path) })
	return nil
}

// VolumeAt returns the volume that the path p, which must be free of links, lies on, and
// the path that it has there.
func (g *Guest) VolumeAt(p string) (v Volume, rel string) {
	for _, m := range g.mounts {
		if p == m.path {
			return m.vol, "/"
		}
		if m.path == "/" {
			return m.vol, p
		}
		if rel, ok := strings.CutPrefix(p, m.path+"/"); ok {
			return m.vol, "/" + rel
		}
	}
	panic("rootfs: guest without a root")
}

func (g *Guest) lstat(p string) (*Node, error) {
	v, rel := g.VolumeAt(p)
	return v.Lstat(rel)
}

func (g *Guest) readDir(p string) ([]Entry, error) {
	v, rel := g.VolumeAt(p)
	es, err := v.ReadDir(rel)
	if err != nil {
		return nil, err
	}
	for _, m := range g.mounts {
		if m.path == "/" || parent(m.path) != p {
			continue
		}
		name := path.Base(m.path)
		i, found := slices.BinarySearchFunc(es, name, func(e Entry, n string) int { return strings.Compare(e.Name, n) })
		if !found {
			es = slices.Insert(es, i, Entry{name, fs.ModeDir})
		}
	}
	return es, nil
}
