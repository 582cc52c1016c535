package rootfs

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// maxLinks is the number of links that one path may lead through, as in Linux
// (path_resolution(7)); maxPath the length of a link's text (PATH_MAX).
const (
	maxLinks = 40
	maxPath  = 4096
)

// walked is where a path led to. Path is free of links. If something is missing, Node
// is nil, Path is the first place where nothing is, and Rest holds the components
// behind it.
type walked struct {
	Path string
	Node *Node
	Rest []string
}

// missing returns the place that the path would have if its missing folders were made.
func (w walked) missing() string { return path.Join(append([]string{w.Path}, w.Rest...)...) }

// walk resolves p, a clean path, component by component inside the tree: an absolute
// link starts again at the root, and ".." at the root stays there. lstat is given paths
// without links. A link in last place is followed only if follow is set.
func walk(lstat func(string) (*Node, error), p string, follow bool) (walked, error) {
	todo := components(p)
	links := 0
	at := walked{Path: "/"}
	var err error
	if at.Node, err = lstat("/"); err != nil {
		return at, err
	}
	for len(todo) > 0 {
		name := todo[0]
		todo = todo[1:]
		if !at.Node.Mode.IsDir() {
			return at, pathError("look up", p, fmt.Errorf("%s is %s: %w", at.Path, kind(at.Node.Mode), ErrNotDir))
		}
		next := path.Join(at.Path, name) // at.Path has no links, so its ".." is the real parent
		n, err := lstat(next)
		if errors.Is(err, fs.ErrNotExist) {
			if slices.Contains(todo, "..") {
				return at, pathError("look up", p, fmt.Errorf("%s: %w", next, fs.ErrNotExist))
			}
			return walked{next, nil, todo}, nil
		}
		if err != nil {
			return at, err
		}
		if n.Mode.Type() != fs.ModeSymlink || len(todo) == 0 && !follow {
			at = walked{Path: next, Node: n}
			continue
		}
		if links++; links > maxLinks {
			return at, pathError("look up", p, fmt.Errorf("at the link %s: %w", next, ErrLoop))
		}
		if n.Target == "" || len(n.Target) > maxPath {
			return at, pathError("look up", p, fmt.Errorf("the link %s has a target of %d bytes: %w", next, len(n.Target), fs.ErrInvalid))
		}
		todo = append(components(n.Target), todo...)
		if strings.HasPrefix(n.Target, "/") {
			at.Path = "/"
			if at.Node, err = lstat("/"); err != nil {
				return at, err
			}
		}
	}
	return at, nil
}

// components splits a path and drops what says nothing. ".." is kept: what it means
// depends on the links before it.
func components(p string) []string {
	var out []string
	for c := range strings.SplitSeq(p, "/") {
		if c != "" && c != "." {
			out = append(out, c)
		}
	}
	return out
}

// view gives the methods of Tree to what can look up paths without links.
type view struct {
	lstat   func(path string) (*Node, error)
	readDir func(path string) ([]Entry, error)
}

func (v view) node(op, p string, follow bool) (walked, error) {
	p = clean(p)
	w, err := walk(v.lstat, p, follow)
	if err != nil {
		return w, err
	}
	if w.Node == nil {
		return w, pathError(op, p, whereMissing(w, p))
	}
	return w, nil
}

// whereMissing names the place where a path ends if it is not the path itself.
func whereMissing(w walked, p string) error {
	if w.Path == p {
		return fs.ErrNotExist
	}
	return fmt.Errorf("%s: %w", w.Path, fs.ErrNotExist)
}

// Lstat implements Tree.
func (v view) Lstat(path string) (*Node, error) {
	w, err := v.node("lstat", path, false)
	return w.Node, err
}

// Stat implements Tree.
func (v view) Stat(path string) (*Node, error) {
	w, err := v.node("stat", path, true)
	return w.Node, err
}

// ReadDir implements Tree.
func (v view) ReadDir(path string) ([]Entry, error) {
	w, err := v.node("list", path, true)
	if err != nil {
		return nil, err
	}
	if !w.Node.Mode.IsDir() {
		return nil, pathError("list", clean(path), fmt.Errorf("is %s: %w", kind(w.Node.Mode), ErrNotDir))
	}
	return v.readDir(w.Path)
}

// Resolve implements Tree.
func (v view) Resolve(path string) (string, error) {
	p := clean(path)
	w, err := walk(v.lstat, p, true)
	if err != nil {
		return "", err
	}
	if len(w.Rest) > 0 {
		return "", pathError("resolve", p, whereMissing(w, p))
	}
	return w.Path, nil
}
