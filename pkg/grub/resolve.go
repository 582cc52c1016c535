package grub

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"remaster/internal/hint"
	"remaster/pkg/disk"
	"remaster/pkg/rootfs"
)

// The places that GRUB on RHEL 8 relatives reads; the links in /etc are what tools use
// to find the real one.
var (
	configPaths = []string{"/boot/grub2/grub.cfg", "/boot/grub/grub.cfg", "/etc/grub2.cfg", "/etc/grub2-efi.cfg"}
	entryDirs   = []string{"/boot/loader/entries", "/loader/entries"}
)

const (
	efiDir       = "/boot/efi/EFI"
	defaultsPath = "/etc/default/grub"
	cmdlinePath  = "/etc/kernel/cmdline"
	maxEntrySize = 1 << 20 // blscfg takes no larger entry
)

// Word is a word of a command line as the kernel gets it, without the quotes that GRUB
// takes off.
type Word struct {
	Text string
	// Origin is where it was written: a file with a line, or a file and a variable.
	Origin string

	fromVar bool // it came out of a variable
}

// Line is a command line that an entry boots with.
type Line struct {
	// Reading is the one of a BLS entry's readings that gives this line; empty where
	// there is but one.
	Reading Reading
	Words   []Word

	site site
	lost bool // options that blscfg drops because they begin with a variable that is not set
}

// site is the place where a command line is written: a BLS entry, or a linux command at
// an offset in a script.
type site struct {
	path string
	pos  int // -1: a BLS entry
}

// Texts returns the words' texts.
func (l Line) Texts() []string {
	out := make([]string, len(l.Words))
	for i, w := range l.Words {
		out[i] = w.Text
	}
	return out
}

// String returns the line as /proc/cmdline shows it.
func (l Line) String() string {
	out := l.Texts()
	for i, w := range out {
		if strings.ContainsAny(w, " \t") {
			out[i] = `"` + w + `"`
		}
	}
	return strings.Join(out, " ")
}

// Entry is an entry of GRUB's menu.
type Entry struct {
	ID, Title string
	Path      string // the file that it is written in
	LineNo    int    // from 1; 0 for a whole file
	Menus     []string
	Kernel    string // empty for an entry that boots none
	Initrds   []string
	// Lines are the command lines that it can boot with: one, unless the readings of a
	// BLS entry differ, or the script has conditions that only a boot can decide.
	Lines   []Line
	Default bool
	Rescue  bool
	// Hidden: RHEL's GRUB does not show it, another reader of BLS entries would.
	Hidden bool

	levels []level
}

// Config is a grub.cfg that makes a menu.
type Config struct {
	Path    string // without links
	Env     string // the environment block that it loads; empty if none is there
	Default string // what the script sets as default entry
	Entries []Entry
}

// Boot is what the machine can boot, whichever way its firmware starts GRUB.
type Boot struct {
	Configs []Config
	Notes   []string // what is odd, for people

	found sources
}

// sources is what was read on the way, by path without links.
type sources struct {
	scripts map[string]*Script
	blocks  map[string]*EnvBlock
	entries map[string]*BLS
	used    map[string]bool // variables that command lines are made of
}

// Entries returns the entries of every configuration.
func (b *Boot) Entries() []Entry {
	var out []Entry
	for _, c := range b.Configs {
		out = append(out, c.Entries...)
	}
	return out
}

func (b *Boot) note(format string, args ...any) {
	if s := fmt.Sprintf(format, args...); !slices.Contains(b.Notes, s) {
		b.Notes = append(b.Notes, s)
	}
}

// Resolve follows GRUB through a guest's boot configuration: each grub.cfg that is not
// a stub leading to another one, the environment block beside it, and the BLS entries.
// It is an error if there is no grub.cfg, or a link at one of the places does not end.
func Resolve(t rootfs.Tree) (*Boot, error) {
	b := &Boot{found: sources{map[string]*Script{}, map[string]*EnvBlock{}, map[string]*BLS{}, map[string]bool{"kernelopts": true, "default_kernelopts": true}}}
	paths, err := findConfigs(t)
	if err != nil {
		return nil, err
	}
	files, err := b.readEntries(t)
	if err != nil {
		return nil, err
	}
	var stubs []string
	for _, p := range paths {
		m := &machine{boot: b, tree: t, bls: files, prefix: path.Dir(p), env: env{}, funcs: map[string]fn{}}
		cfg, err := m.config(p)
		if err != nil {
			return nil, err
		}
		if m.menu == 0 && m.leadsOn {
			stubs = append(stubs, p)
			continue
		}
		b.Configs = append(b.Configs, *cfg)
	}
	if len(b.Configs) == 0 {
		what := "no grub.cfg in /boot/grub2 or " + efiDir
		if len(stubs) > 0 {
			what = stubs[0] + " leads to another grub.cfg, which is not in the image"
		}
		return nil, hint.With(fmt.Errorf("boot configuration: %s: %w", what, fs.ErrNotExist),
			"the image has to boot with GRUB 2; if /boot is a disk of its own, it cannot be edited")
	}
	// Blocks that no script loads are kept in step too.
	for _, dir := range append([]string{"/boot/grub2"}, dirsOf(append(paths, stubs...))...) {
		if _, err := b.block(t, dir+"/grubenv"); err != nil {
			return nil, err
		}
	}
	return b, nil
}

func dirsOf(paths []string) []string {
	var out []string
	for _, p := range paths {
		out = append(out, path.Dir(p))
	}
	return out
}

// findConfigs returns the paths, without links, of every grub.cfg.
func findConfigs(t rootfs.Tree) ([]string, error) {
	paths := slices.Clone(configPaths)
	vendors, err := t.ReadDir(efiDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, rootfs.ErrNotDir) {
		return nil, lookup(err)
	}
	for _, v := range vendors {
		paths = append(paths, path.Join(efiDir, v.Name, "grub.cfg"))
	}
	var out []string
	for _, p := range paths {
		real, _, err := regular(t, p)
		if err != nil {
			return nil, err
		}
		if real != "" && !slices.Contains(out, real) {
			out = append(out, real)
		}
	}
	return out, nil
}

// regular returns the path without links of a regular file, or "" if there is none at
// path: nothing, a dangling link, a folder.
func regular(t rootfs.Tree, p string) (string, *rootfs.Node, error) {
	n, err := t.Stat(p)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, rootfs.ErrNotDir) {
		return "", nil, nil
	}
	if err != nil {
		return "", nil, lookup(err)
	}
	if !n.Mode.IsRegular() {
		return "", nil, nil
	}
	real, err := t.Resolve(p)
	if err != nil {
		return "", nil, lookup(err)
	}
	return real, n, nil
}

// lookup says what a failed lookup, which names the path, was for.
func lookup(err error) error {
	err = fmt.Errorf("boot configuration: %w", err)
	if errors.Is(err, rootfs.ErrLoop) {
		err = hint.With(err, "remove the link from the base image, or point it at a file")
	}
	return err
}

// script returns the script at a path, without links, parsed once.
func (b *Boot) script(t rootfs.Tree, p string) (*Script, error) {
	if s := b.found.scripts[p]; s != nil {
		return s, nil
	}
	data, err := rootfs.ReadFile(t, p)
	if err != nil {
		return nil, err
	}
	s, err := ParseScript(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p, err)
	}
	b.found.scripts[p] = s
	return s, nil
}

// block returns the environment block at a path, or nil if there is none.
func (b *Boot) block(t rootfs.Tree, p string) (*EnvBlock, error) {
	real, _, err := regular(t, p)
	if err != nil || real == "" {
		return nil, err
	}
	if e := b.found.blocks[real]; e != nil {
		return e, nil
	}
	data, err := rootfs.ReadFile(t, real)
	if err != nil {
		return nil, err
	}
	e, err := ParseEnvBlock(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", real, err)
	}
	if e.Damage() != "" {
		b.note("%s is damaged: %s", real, e.Damage())
	}
	b.found.blocks[real] = e
	return e, nil
}

// entryFile is a BLS entry in its file.
type entryFile struct {
	name string // without ".conf": the entry's id
	path string // without links
	bls  *BLS
}

// readEntries reads the BLS entries that some reader would show, newest version first,
// as RHEL's GRUB sorts them.
func (b *Boot) readEntries(t rootfs.Tree) ([]entryFile, error) {
	var out []entryFile
	for _, dir := range entryDirs {
		list, err := t.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, rootfs.ErrNotDir) {
			continue
		}
		if err != nil {
			return nil, lookup(err)
		}
		for _, e := range list {
			name, ok := strings.CutSuffix(e.Name, ".conf")
			if !ok || name == "" || name[0] == '.' {
				continue
			}
			f, err := b.readEntry(t, path.Join(dir, e.Name))
			if err != nil {
				return nil, err
			}
			if f.bls == nil || slices.ContainsFunc(out, func(g entryFile) bool { return g.path == f.path && g.name == name }) {
				continue
			}
			f.name = name
			b.found.entries[f.path] = f.bls
			out = append(out, f)
		}
	}
	slices.SortStableFunc(out, func(x, y entryFile) int { return compareIDs(y.name, x.name) })
	return out, nil
}

// readEntry reads one file; bls is nil if nobody would show it.
func (b *Boot) readEntry(t rootfs.Tree, p string) (entryFile, error) {
	real, n, err := regular(t, p)
	if err != nil {
		return entryFile{}, err
	}
	switch {
	case real == "":
		b.note("%s is no file: GRUB shows no entry for it", p)
		return entryFile{}, nil
	case n.Size() > maxEntrySize:
		b.note("%s has %d bytes: GRUB takes no entry larger than 1 MiB", p, n.Size())
		return entryFile{}, nil
	}
	data, err := rootfs.ReadFile(t, real)
	if err != nil {
		return entryFile{}, err
	}
	e := ParseBLS(data)
	if !e.Bootable(ReadingSpec) {
		b.note("%s names no kernel: GRUB shows no entry for it", p)
		return entryFile{}, nil
	}
	if !e.Bootable(ReadingRHEL) {
		b.note("%s has a blank or odd line before its kernel, where GRUB stops reading: it shows no entry for it", p)
	}
	return entryFile{path: real, bls: e}, nil
}

// unsupported names what stops the analysis.
func unsupported(where, format string, args ...any) error {
	return fmt.Errorf("%s: %s: %w", where, fmt.Sprintf(format, args...), disk.ErrUnsupported)
}
