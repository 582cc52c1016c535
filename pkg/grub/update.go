package grub

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"remaster/pkg/rootfs"
)

// Report is what an update planned.
type Report struct {
	// Before and After are what the machine boots, in the same order of entries.
	Before, After *Boot
	// Notes are for people: what was found odd, skipped, or could not be done in the
	// usual place.
	Notes []string
}

// Update plans an edit in every place that a command line is read from: grubenv,
// grub.cfg, the BLS entries, /etc/default/grub and /etc/kernel/cmdline. The changes are
// in the stage afterwards; an update that finds nothing to do leaves none. Then the
// result is resolved, and it is an error if an entry would boot without the edit, under
// either reading. After an error the stage must not be applied.
func Update(s *rootfs.Stage, e Edit) (*Report, error) {
	if err := e.Check(); err != nil {
		return nil, err
	}
	before, err := Resolve(s)
	if err != nil {
		return nil, err
	}
	u := &updater{stage: s, edit: e, report: &Report{Before: before}}
	steps := []func() error{u.repairBlocks, u.variables, u.sites, u.defaults, u.cmdline}
	for _, step := range steps {
		if err := step(); err != nil {
			return nil, err
		}
	}
	after, err := Resolve(s)
	if err != nil {
		return nil, fmt.Errorf("resolve the edited boot configuration: %w", err)
	}
	u.report.After = after
	for _, n := range slices.Concat(before.Notes, after.Notes) {
		if !slices.Contains(u.report.Notes, n) && !(slices.Contains(before.Notes, n) && !slices.Contains(after.Notes, n)) {
			u.report.Notes = append(u.report.Notes, n)
		}
	}
	return u.report, e.verify(after)
}

type updater struct {
	stage  *rootfs.Stage
	edit   Edit
	report *Report
}

func (u *updater) note(format string, args ...any) {
	u.report.Notes = append(u.report.Notes, fmt.Sprintf(format, args...))
}

const (
	whyArgs   = "kernel arguments"
	whyRepair = "repair GRUB's environment block"
)

// repairBlocks makes damaged environment blocks whole.
func (u *updater) repairBlocks() error {
	blocks := u.report.Before.found.blocks
	for _, p := range slices.Sorted(maps.Keys(blocks)) {
		b := blocks[p]
		if b.Damage() != "" && path.Base(p) != "grubenv" {
			u.note("%s is no environment block, though a grubenv leads there: it is left alone", p)
			delete(blocks, p)
			continue
		}
		if why := b.Damage(); b.Repair() {
			u.note("%s is repaired: %s; the variables that GRUB does read (%s) are kept", p, why, strings.Join(b.Names(), ", "))
			if err := u.stage.WriteFile(p, b.Bytes(), whyRepair); err != nil {
				return err
			}
		}
	}
	return nil
}

// lineVariable says whether a variable is a whole command line by convention, where new
// arguments belong; others lose contradictions only.
func lineVariable(name string) bool { return name == "kernelopts" || name == "default_kernelopts" }

// variables edits the variables that command lines are made of, in the environment
// blocks and in scripts.
func (u *updater) variables() error {
	found := u.report.Before.found
	used := maps.Clone(found.used)
	for grew := true; grew; { // what they are made of, in turn
		grew = false
		for _, s := range found.scripts {
			walkNodes(s.nodes, func(n node) {
				name, atoms, ok := setting(n)
				for _, a := range atoms {
					if ok && used[name] && a.name != "" && !used[a.name] {
						used[a.name], grew = true, true
					}
				}
			})
		}
	}
	for _, p := range slices.Sorted(maps.Keys(found.blocks)) {
		if err := u.block(p, found.blocks[p], used); err != nil {
			return err
		}
	}
	for _, p := range slices.Sorted(maps.Keys(found.scripts)) {
		s := found.scripts[p]
		var sp []splice
		walkNodes(s.nodes, func(n node) {
			name, atoms, ok := setting(n)
			if !ok || !used[name] {
				return
			}
			e := u.edit
			if !lineVariable(name) || slices.ContainsFunc(atoms, func(a atom) bool { return lineVariable(a.name) }) {
				e = e.without()
			}
			sp = append(sp, s.editSetting(n, e)...)
		})
		if err := u.write(p, s.text, applySplices(s.text, sp)); err != nil {
			return err
		}
	}
	return nil
}

// block edits the variables of an environment block.
func (u *updater) block(p string, b *EnvBlock, used map[string]bool) error {
	old := string(b.Bytes())
	for _, name := range b.Names() {
		if !used[name] {
			continue
		}
		v, _ := b.Get(name)
		full, less := ParseCmdline(v), ParseCmdline(v)
		less.Apply(u.edit.without())
		if lineVariable(name) {
			full.Apply(u.edit)
		} else {
			full = less
		}
		err := b.Set(name, full.String())
		if errors.Is(err, ErrNoRoom) {
			u.note("%s has no room for more kernel arguments in %s: they are written into the boot entries; "+
				"kernels installed later take %s as it is, unless grub2-mkconfig is run", p, name, name)
			err = b.Set(name, less.String())
		}
		if err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
	}
	return u.write(p, old, string(b.Bytes()))
}

func (u *updater) write(p, old, text string) error {
	if old == text {
		return nil
	}
	return u.stage.WriteFile(p, []byte(text), whyArgs)
}

// sites edits what is written in the entries themselves. What a variable already gives
// an entry is not written there again.
func (u *updater) sites() error {
	now, err := Resolve(u.stage)
	if err != nil {
		return fmt.Errorf("resolve the edited boot configuration: %w", err)
	}
	lines := map[site][]Line{}
	for _, e := range now.Entries() {
		for _, l := range e.Lines {
			lines[l.site] = append(lines[l.site], l)
		}
	}
	for _, p := range slices.Sorted(maps.Keys(now.found.entries)) {
		if err := u.entry(now, p, lines[site{p, -1}]); err != nil {
			return err
		}
	}
	for _, p := range slices.Sorted(maps.Keys(now.found.scripts)) {
		s := now.found.scripts[p]
		var sp []splice
		walkNodes(s.nodes, func(n node) {
			if isLinux(n) {
				sp = append(sp, s.editLinux(n, u.edit.beside(lines[site{p, n.pos}]))...)
			}
		})
		if err := u.write(p, s.text, applySplices(s.text, sp)); err != nil {
			return err
		}
	}
	return nil
}

// entry edits a BLS entry.
func (u *updater) entry(now *Boot, p string, lines []Line) error {
	b := now.found.entries[p]
	old := string(b.Bytes())
	has := func(r Reading) bool { return strings.TrimSpace(valueText(b.options(r))) != "" }
	only := func(r Reading) []Line {
		return slices.DeleteFunc(slices.Clone(lines), func(l Line) bool { return l.Reading != r && l.Reading != "" })
	}
	base := ""
	switch hasSpec, hasRHEL := has(ReadingSpec), has(ReadingRHEL) || !b.Bootable(ReadingRHEL); {
	case !hasSpec: // it boots with this variable now, and is to do so in every reading
		lines = only(ReadingRHEL)
		if now.sets("default_kernelopts") {
			base = "$default_kernelopts"
		}
	case !hasRHEL: // it has options, which RHEL's GRUB does not come to
		lines = only(ReadingSpec)
	case u.edit.beside(lines).satisfied(lines):
		return nil
	}
	b.applyOptions(u.edit.beside(lines), base, slices.ContainsFunc(lines, func(l Line) bool { return l.lost }))
	return u.write(p, old, string(b.Bytes()))
}

func valueText(f []field) string {
	var b strings.Builder
	for _, v := range f {
		b.WriteString(v.text)
	}
	return b.String()
}

// sets says whether a script or block that was read sets a variable.
func (b *Boot) sets(name string) bool {
	for _, e := range b.found.blocks {
		if _, ok := e.Get(name); ok {
			return true
		}
	}
	ok := false
	for _, s := range b.found.scripts {
		walkNodes(s.nodes, func(n node) {
			if set, _, is := setting(n); is && set == name {
				ok = true
			}
		})
	}
	return ok
}

// beside returns what is left of the edit for a place whose lines are given: arguments
// that variables bring to every one of them are not to be written there as well.
func (e Edit) beside(lines []Line) Edit {
	out := Edit{Delete: slices.Clone(e.Delete)}
	brought := func(a Arg) bool {
		return len(lines) > 0 && !slices.ContainsFunc(lines, func(l Line) bool {
			n := 0
			for _, w := range beforeInit(l.Words) {
				if w.fromVar && ParseArg(w.Text) == a {
					n++
				}
			}
			return n == 0
		})
	}
	for _, a := range e.Set {
		if brought(a) {
			out.Delete = append(out.Delete, Arg{Key: a.Key})
		} else {
			out.Set = append(out.Set, a)
		}
	}
	for _, a := range e.Append {
		if !brought(a) {
			out.Append = append(out.Append, a)
		}
	}
	return out
}

func beforeInit(words []Word) []Word {
	if i := slices.IndexFunc(words, func(w Word) bool { return w.Text == "--" }); i >= 0 {
		return words[:i]
	}
	return words
}

// satisfied says whether lines have the edit already, as far as it is literal.
func (e Edit) satisfied(lines []Line) bool {
	return len(lines) > 0 && !slices.ContainsFunc(lines, func(l Line) bool {
		var spans []span
		for _, w := range l.Words {
			if !w.fromVar {
				spans = append(spans, span{arg: ParseArg(w.Text)})
			}
		}
		c := e.plan(spans)
		return c.drops > 0 || len(c.add) > 0
	})
}

// defaults edits /etc/default/grub, if it is there: what grub2-mkconfig makes a new
// grub.cfg from. It is not created: without it grub2-mkconfig has defaults of its own.
func (u *updater) defaults() error {
	real, _, err := regular(u.stage, defaultsPath)
	if err != nil {
		return err
	}
	if real == "" {
		u.note("%s is not there: a grub.cfg that grub2-mkconfig makes anew will not have the kernel arguments", defaultsPath)
		return nil
	}
	data, err := rootfs.ReadFile(u.stage, real)
	if err != nil {
		return err
	}
	d, err := ParseDefaults(data)
	// Any text is some shell script, /etc/passwd too. What a link leads to has to be
	// recognised before anything is written there.
	known := err == nil && d.ForGRUB() || err != nil && strings.Contains(string(data), "GRUB_")
	if fits := real == defaultsPath && (err != nil || len(d.lex.assigns) > 0 || len(d.lex.cmds) == 0); !known && !fits {
		u.note("%s (%s) is no settings file of GRUB: it is left alone", defaultsPath, real)
		return nil
	}
	if err == nil {
		if _, err = d.Apply(varCmdline, u.edit); err == nil {
			_, err = d.applyIfSet(varCmdlineDefault, u.edit.without())
		}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", real, err)
	}
	return u.write(real, string(data), string(d.Bytes()))
}

func (d *Defaults) applyIfSet(name string, e Edit) (bool, error) {
	if _, ok, err := d.Get(name); err != nil || !ok {
		return false, err
	}
	return d.Apply(name, e)
}

// cmdline edits /etc/kernel/cmdline, which kernel-install gives to kernels that are
// installed later, if it is there.
func (u *updater) cmdline() error {
	real, _, err := regular(u.stage, cmdlinePath)
	if err != nil || real == "" {
		return err
	}
	if path.Base(real) != path.Base(cmdlinePath) {
		u.note("%s leads to %s, which is no command line: it is left alone", cmdlinePath, real)
		return nil
	}
	data, err := rootfs.ReadFile(u.stage, real)
	if err != nil {
		return err
	}
	c := ParseCmdline(string(data))
	c.Apply(u.edit)
	return u.write(real, string(data), c.String())
}

// verify checks that every line of every entry that loads a kernel has the edit.
func (e Edit) verify(b *Boot) error {
	for _, en := range b.Entries() {
		for _, l := range en.Lines {
			if err := e.verifyLine(l); err != nil {
				return fmt.Errorf("%s: entry %q: %w", en.Path, en.Title, err)
			}
		}
	}
	return nil
}

func (e Edit) verifyLine(l Line) error {
	for _, a := range slices.Concat(e.Set, e.Append) {
		if !slices.ContainsFunc(beforeInit(l.Words), func(w Word) bool { return ParseArg(w.Text) == a }) {
			return fmt.Errorf("would boot without %s", a)
		}
	}
	for _, w := range l.Words {
		got := ParseArg(w.Text)
		for _, a := range e.Set {
			if SameKey(a.Key, got.Key) && got != a {
				return fmt.Errorf("would boot with %s from %s", got, w.Origin)
			}
		}
		for _, d := range e.Delete {
			if d.covers(got) {
				return fmt.Errorf("would boot with %s from %s", got, w.Origin)
			}
		}
	}
	return nil
}
