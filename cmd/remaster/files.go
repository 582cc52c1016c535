package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"remaster/internal/hint"
	"remaster/pkg/rootfs"
)

// guest opens the guest of IMAGE:PATH and passes the path on.
func (a *app) guest(arg string, do func(t rootfs.Tree, path string) error) error {
	image, p, err := splitGuestPath(arg)
	if err != nil {
		return err
	}
	b, err := a.open(image, "")
	if err != nil {
		return err
	}
	defer b.Close()
	g, err := b.OpenGuest()
	if err != nil {
		return fmt.Errorf("%s: %w", image, err)
	}
	defer g.Close()
	return do(g, p)
}

// fileDoc is what ls --json prints of a file.
type fileDoc struct {
	Name   string    `json:"name"`
	Mode   string    `json:"mode"`
	UID    uint32    `json:"uid"`
	GID    uint32    `json:"gid"`
	Size   int64     `json:"size"`
	MTime  time.Time `json:"mtime"`
	Target string    `json:"target,omitempty"`
	Label  string    `json:"label,omitempty"`
}

func newFileDoc(name string, n *rootfs.Node) fileDoc {
	label := n.Xattrs["security.selinux"]
	if k := len(label); k > 0 && label[k-1] == 0 {
		label = label[:k-1]
	}
	return fileDoc{name, n.Mode.String(), n.UID, n.GID, n.Size(), n.ModTime.UTC(), n.Target, string(label)}
}

func (a *app) ls() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "ls IMAGE:PATH",
		Short: "List a folder inside an image",
		Args:  args(cobra.ExactArgs(1)),
		RunE: func(_ *cobra.Command, argv []string) error {
			return a.guest(argv[0], func(t rootfs.Tree, p string) error {
				docs, err := list(t, p)
				if err != nil {
					return err
				}
				if asJSON {
					return a.json(docs)
				}
				for _, d := range docs {
					arrow := ""
					if d.Target != "" {
						arrow = " -> " + d.Target
					}
					a.printf("%s %5d %5d %10d %s %s%s\n", d.Mode, d.UID, d.GID, d.Size, d.MTime.Format("2006-01-02 15:04"), d.Name, arrow)
				}
				return nil
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the list as JSON")
	return cmd
}

func list(t rootfs.Tree, p string) ([]fileDoc, error) {
	n, err := t.Stat(p)
	if err != nil {
		return nil, err
	}
	if !n.Mode.IsDir() {
		if n, err = t.Lstat(p); err != nil {
			return nil, err
		}
		return []fileDoc{newFileDoc(p, n)}, nil
	}
	entries, err := t.ReadDir(p)
	if err != nil {
		return nil, err
	}
	docs := make([]fileDoc, 0, len(entries))
	for _, e := range entries {
		n, err := t.Lstat(path.Join(p, e.Name))
		if err != nil {
			return nil, err
		}
		docs = append(docs, newFileDoc(e.Name, n))
	}
	return docs, nil
}

func (a *app) cat() *cobra.Command {
	return &cobra.Command{
		Use:   "cat IMAGE:PATH...",
		Short: "Print files inside an image",
		Args:  args(cobra.MinimumNArgs(1)),
		RunE: func(_ *cobra.Command, argv []string) error {
			for _, arg := range argv {
				err := a.guest(arg, func(t rootfs.Tree, p string) error {
					n, err := regular(t, p)
					if err != nil {
						return err
					}
					_, err = io.Copy(a.out, n.Reader())
					return err
				})
				if err != nil {
					return err
				}
			}
			return nil
		},
	}
}

func regular(t rootfs.Tree, p string) (*rootfs.Node, error) {
	n, err := t.Stat(p)
	if err == nil && n.Content == nil {
		err = &fs.PathError{Op: "read", Path: p, Err: errors.New("not a regular file")}
	}
	return n, err
}

func (a *app) cp() *cobra.Command {
	var recursive, force bool
	cmd := &cobra.Command{
		Use:   "cp IMAGE:PATH DEST",
		Short: "Copy a file or a tree out of an image",
		Long: `Copy the file at PATH inside IMAGE to DEST, or into DEST if that is a folder. With -r
a folder is copied with all that it holds; DEST must not exist then, or be a folder.
Links inside the image are resolved inside it and never followed on this machine;
owners are not kept.`,
		Args: args(cobra.ExactArgs(2)),
		RunE: func(_ *cobra.Command, argv []string) error {
			return a.guest(argv[0], func(t rootfs.Tree, p string) error {
				return copyOut(t, p, argv[1], recursive, force)
			})
		},
	}
	cmd.Flags().BoolVarP(&recursive, "recursive", "r", false, "copy folders")
	cmd.Flags().BoolVar(&force, "force", false, "replace existing files")
	return cmd
}

// copyOut copies path out of the guest. It writes through an [os.Root], so that no link,
// wherever it came from, leads out of the destination.
func copyOut(t rootfs.Tree, p, dest string, recursive, force bool) error {
	n, err := t.Stat(p)
	if err != nil {
		return err
	}
	if n.Mode.IsDir() && !recursive {
		return hint.With(fmt.Errorf("copy %s: it is a folder", p), "say -r to copy it with all that it holds")
	}
	dir, name := filepath.Dir(dest), filepath.Base(dest)
	if fi, err := os.Stat(dest); err == nil && fi.IsDir() {
		dir, name = dest, path.Base(path.Clean("/"+p))
		if name == "/" {
			name = "."
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	return extract(t, p, n, root, name, force)
}

func extract(t rootfs.Tree, p string, n *rootfs.Node, root *os.Root, name string, force bool) error {
	switch {
	case n.Mode.IsDir():
		if err := root.Mkdir(name, n.Mode.Perm()|0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		entries, err := t.ReadDir(p)
		if err != nil {
			return err
		}
		for _, e := range entries {
			child := path.Join(p, e.Name)
			cn, err := t.Lstat(child)
			if err != nil {
				return err
			}
			if err := extract(t, child, cn, root, filepath.Join(name, e.Name), force); err != nil {
				return err
			}
		}
		return nil
	case n.Target != "":
		return root.Symlink(n.Target, name)
	case n.Content == nil:
		return nil // devices, sockets and pipes have no place outside
	}
	flags := os.O_WRONLY | os.O_CREATE | os.O_EXCL
	if force {
		flags = os.O_WRONLY | os.O_CREATE | os.O_TRUNC
	}
	f, err := root.OpenFile(name, flags, n.Mode.Perm()|0o200)
	if err != nil {
		if errors.Is(err, fs.ErrExist) {
			err = hint.With(err, "choose another name, or say --force to replace it")
		}
		return err
	}
	_, err = io.Copy(f, n.Reader())
	return errors.Join(err, f.Close())
}
