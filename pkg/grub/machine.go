package grub

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"remaster/pkg/rootfs"
)

// Bounds of the analysis of a script.
const (
	maxSteps   = 50_000  // commands run
	maxEntries = 1000    // of a menu
	maxCalls   = 16      // functions, files and submenus within each other
	maxValues  = 16      // values that a variable may have, where a boot decides
	maxText    = 1 << 16 // bytes of a value
	maxWords   = 4096    // of a command line, which the kernel cuts at as many bytes
	maxExpands = 256     // variables in a word
)

// piece is a part of a value with where it was written. var says that it came out of
// a variable.
type piece struct {
	text, origin string
	fromVar      bool
}

// value is one value that a variable can have; nil stands for "not set".
type value []piece

func (v value) String() string {
	var b strings.Builder
	for _, p := range v {
		b.WriteString(p.text)
	}
	return b.String()
}

// env holds every value that a variable can have at a point: more than one where a
// condition cannot be decided here. A variable that is not in it is not set.
type env map[string][]value

func (m *machine) fork() env {
	m.steps += len(m.env) / 8 // copies are work too
	return m.env.clone()
}

func (e env) clone() env {
	out := make(env, len(e))
	for k, v := range e {
		out[k] = v
	}
	return out
}

// merge adds the values that other has.
func (e env) merge(other env) error {
	union := func(a, b []value) []value {
		out := slices.Clone(a)
		for _, v := range b {
			if !slices.ContainsFunc(out, func(w value) bool { return (w == nil) == (v == nil) && w.String() == v.String() }) {
				out = append(out, v)
			}
		}
		return out
	}
	unset := []value{nil}
	for k, v := range other {
		mine, ok := e[k]
		if !ok {
			mine = unset
		}
		if e[k] = union(mine, v); len(e[k]) > maxValues {
			return fmt.Errorf("variable %s can have more than %d values", k, maxValues)
		}
	}
	for k, v := range e {
		if _, ok := other[k]; !ok {
			e[k] = union(v, unset)
		}
	}
	return nil
}

// coreVariable says whether GRUB itself gives a variable its value, so that it is not
// known here.
func coreVariable(name string) bool {
	if strings.HasPrefix(name, "feature_") || strings.HasPrefix(name, "net_") || strings.HasPrefix(name, "grub_") {
		return name != "grub_users"
	}
	return slices.Contains([]string{"root", "boot", "prefix", "cmdpath", "config_directory", "config_file", "menuentry_id_option", "chosen", "debug", "lang", "locale_dir", "pager", "superusers", "?", "#", "*", "@"}, name)
}

// fn is a function of a script.
type fn struct {
	body []node
	file string
}

// menuItem is a menu entry whose commands wait to be run.
type menuItem struct {
	entry Entry
	body  []node
	file  string
}

// machine runs a script as far as it matters to what boots.
type machine struct {
	boot   *Boot
	tree   rootfs.Tree
	bls    []entryFile
	prefix string // where $prefix points: the folder of grub.cfg

	env     env
	funcs   map[string]fn
	file    string   // that is run
	menus   []string // titles of the submenus that are being made
	levels  []level  // the same
	next    int      // index of the next item
	items   []menuItem
	cur     *Entry // whose commands are run
	steps   int
	calls   int
	menu    int  // entries seen
	blsDone bool // a second blscfg adds nothing
	leadsOn bool // configfile was seen
	envPath string
}

// config runs the script at p and then each of its entries.
func (m *machine) config(p string) (*Config, error) {
	if err := m.runFile(p); err != nil {
		return nil, err
	}
	cfg := &Config{Path: p, Env: m.envPath}
	for done := 0; done < len(m.items); { // an entry may add items when it runs
		it := m.items[done]
		done++
		if it.body != nil {
			m.file, m.cur, m.menus, m.levels = it.file, &it.entry, it.entry.Menus, it.entry.levels
			saved := m.env
			m.env = m.fork()
			if err := m.run(it.body); err != nil {
				return nil, err
			}
			m.env = saved
		}
		e := it.entry
		e.Rescue = strings.Contains(strings.ToLower(e.ID+e.Title+e.Kernel), "rescue")
		cfg.Entries = append(cfg.Entries, e)
	}
	m.cur = nil
	defaults, ok := m.env["default"]
	if !ok {
		defaults = []value{nil}
	}
	for i, v := range defaults {
		if i == 0 {
			cfg.Default = v.String()
		}
		if markDefault(cfg.Entries, v.String()) {
			cfg.Default = v.String()
			break
		}
	}
	if !slices.ContainsFunc(cfg.Entries, func(e Entry) bool { return e.Default }) {
		markDefault(cfg.Entries, "0") // GRUB takes the first one
	}
	return cfg, nil
}

// level is an item of a menu: its index there, and what it is called.
type level struct {
	index     int
	id, title string
}

func (l level) is(want string) bool {
	if n, err := strconv.Atoi(want); err == nil {
		return n == l.index
	}
	return want != "" && (want == l.id || want == l.title)
}

// markDefault marks the entry that a value of the variable "default" means: an index, an
// id or a title, behind those of submenus and '>'. Of a submenu it is the first entry.
func markDefault(entries []Entry, want string) bool {
	parts := splitMenuPath(want)
	for i := range entries {
		e := &entries[i]
		if e.Hidden || len(parts) > len(e.levels) {
			continue
		}
		if e.Default = slices.EqualFunc(parts, e.levels[:len(parts)], func(p string, l level) bool { return l.is(p) }); e.Default {
			return true
		}
	}
	return false
}

// place gives an item of the menu that is being made its index.
func (m *machine) place(id, title string) []level {
	l := append(slices.Clone(m.levels), level{m.next, id, title})
	m.next++
	return l
}

// splitMenuPath splits at '>'; a doubled one is a character of a title.
func splitMenuPath(s string) []string {
	var out []string
	part := ""
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '>' && i+1 < len(s) && s[i+1] == '>':
			part += ">"
			i++
		case s[i] == '>':
			out = append(out, part)
			part = ""
		default:
			part += string(s[i])
		}
	}
	return append(out, part)
}

func (m *machine) where(pos int) string {
	if s := m.boot.found.scripts[m.file]; s != nil {
		return fmt.Sprintf("%s:%d", m.file, s.line(pos))
	}
	return m.file
}

// runFile runs the script at a path without links.
func (m *machine) runFile(p string) error {
	s, err := m.boot.script(m.tree, p)
	if err != nil {
		return err
	}
	if m.calls++; m.calls > maxCalls {
		return unsupported(p, "scripts that include each other more than %d deep", maxCalls)
	}
	was := m.file
	m.file = p
	err = m.run(s.nodes)
	m.file = was
	m.calls--
	return err
}

// run runs commands in order.
func (m *machine) run(nodes []node) error {
	for _, n := range nodes {
		if m.steps++; m.steps > maxSteps {
			return unsupported(m.where(n.pos), "more than %d commands", maxSteps)
		}
		var err error
		switch {
		case n.branches != nil:
			err = m.conditional(n.branches)
		case n.loop:
			err = m.maybe(n.block)
		default:
			err = m.command(n)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// maybe runs commands that a boot may run or not.
func (m *machine) maybe(nodes []node) error {
	before := m.fork()
	if err := m.run(nodes); err != nil {
		return err
	}
	if err := m.env.merge(before); err != nil {
		return unsupported(m.file, "%v", err)
	}
	return nil
}

// conditional runs the branch that is taken, or each one that may be.
func (m *machine) conditional(branches []branch) error {
	for i, b := range branches {
		if b.cond == nil { // else
			return m.run(b.body)
		}
		known, result := m.test(b.cond)
		if known && !result {
			continue
		}
		if known {
			return m.run(b.body)
		}
		before := m.fork()
		if err := m.run(b.body); err != nil {
			return err
		}
		after := m.env
		m.env = before
		if err := m.conditional(branches[i+1:]); err != nil {
			return err
		}
		if err := m.env.merge(after); err != nil {
			return unsupported(m.file, "%v", err)
		}
		return nil
	}
	return nil
}

// test decides a condition, if it can be decided here.
func (m *machine) test(cond []node) (known, result bool) {
	if len(cond) != 1 || len(cond[0].words) == 0 || cond[0].hasBlock {
		return false, false
	}
	words := cond[0].words
	var args []string
	for _, w := range words[1:] {
		for _, a := range w.atoms {
			if a.name != "" && (coreVariable(a.name) && a.name != "prefix" && a.name != "config_directory") {
				return false, false
			}
		}
		v, err := m.expand(w.atoms, "")
		if err != nil || len(v) != 1 {
			return false, false
		}
		args = append(args, v[0].String())
	}
	negate := false
	switch words[0].name() {
	case "[":
		if len(args) == 0 || args[len(args)-1] != "]" {
			return false, false
		}
		args = args[:len(args)-1]
	case "test":
	case "true":
		return true, true
	case "false":
		return true, false
	default:
		return false, false
	}
	if len(args) > 1 && args[0] == "!" {
		negate = true
		args = args[1:]
	}
	if known, result = m.compare(args); !known {
		return false, false
	}
	return true, result != negate
}

// compare decides a test of up to three words.
func (m *machine) compare(args []string) (known, result bool) {
	switch {
	case len(args) == 0:
		return true, false
	case len(args) == 1:
		return true, args[0] != ""
	case len(args) == 2 && args[0] == "-z":
		return true, args[1] == ""
	case len(args) == 2 && args[0] == "-n":
		return true, args[1] != ""
	case len(args) == 2 && slices.Contains([]string{"-f", "-e", "-s"}, args[0]):
		p, ok := strings.CutPrefix(args[1], m.prefix+"/")
		if !ok {
			return false, false
		}
		real, n, err := regular(m.tree, path.Join(m.prefix, p))
		if err != nil {
			return false, false
		}
		return true, real != "" && (args[0] != "-s" || n.Size() > 0)
	case len(args) == 3 && (args[1] == "=" || args[1] == "=="):
		return true, args[0] == args[2]
	case len(args) == 3 && args[1] == "!=":
		return true, args[0] != args[2]
	}
	return false, false
}

// expand returns the values that a word can have.
func (m *machine) expand(atoms []atom, origin string) ([]value, error) {
	out := []value{nil}
	lit := func(s string) {
		if s == "" {
			return
		}
		for i := range out {
			if n := len(out[i]); n > 0 && !out[i][n-1].fromVar {
				last := out[i][n-1]
				last.text += s
				out[i] = append(slices.Clone(out[i][:n-1]), last)
			} else {
				out[i] = append(slices.Clone(out[i]), piece{s, origin, false})
			}
		}
	}
	var run []byte
	expands := 0
	for _, a := range atoms {
		if a.name == "" {
			run = append(run, a.lit)
			continue
		}
		if expands++; expands > maxExpands {
			return nil, fmt.Errorf("a word of more than %d variables", maxExpands)
		}
		lit(string(run))
		run = run[:0]
		vals := m.lookup(a.name)
		var next []value
		for _, o := range out {
			for _, v := range vals {
				w := slices.Clone(o)
				size := len(o.String())
				for _, p := range v {
					size += len(p.text)
					w = append(w, piece{p.text, p.origin, true})
				}
				if size > maxText || len(w) > maxText {
					return nil, fmt.Errorf("$%s grows over %d bytes", a.name, maxText)
				}
				next = append(next, w)
			}
		}
		if out = next; len(out) > maxValues {
			return nil, fmt.Errorf("more than %d combinations of values", maxValues)
		}
	}
	lit(string(run))
	return out, nil
}

func (m *machine) lookup(name string) []value {
	if name == "prefix" || name == "config_directory" {
		return []value{{{m.prefix, "", true}}}
	}
	if v, ok := m.env[name]; ok {
		return v
	}
	return []value{nil}
}
