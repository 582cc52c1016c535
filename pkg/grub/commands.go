package grub

import (
	"fmt"
	"slices"
	"strings"
)

// command runs one command of a script.
func (m *machine) command(n node) error {
	name := n.words[0].name()
	switch name {
	case "function":
		if len(n.words) > 1 {
			m.funcs[n.words[1].name()] = fn{n.block, m.file}
		}
		return nil
	case "menuentry", "submenu":
		return m.menuentry(n, name == "submenu")
	case "set":
		return m.set(n)
	case "unset":
		for _, w := range n.words[1:] {
			delete(m.env, w.name())
		}
		return nil
	case "load_env":
		return m.loadEnv(n)
	case "source", ".", "configfile":
		return m.include(n, name == "configfile")
	case "blscfg":
		return m.blscfg()
	case "linux", "linux16", "linuxefi":
		return m.linux(n)
	case "initrd", "initrd16", "initrdefi":
		if m.cur != nil {
			for _, w := range n.words[1:] {
				m.cur.Initrds = append(m.cur.Initrds, spell(w.atoms))
			}
		}
		return nil
	}
	if f, ok := m.funcs[name]; ok {
		if m.calls++; m.calls > maxCalls {
			return unsupported(m.where(n.pos), "functions that call each other more than %d deep", maxCalls)
		}
		was := m.file
		m.file = f.file
		err := m.run(f.body)
		m.file = was
		m.calls--
		return err
	}
	if n.hasBlock {
		return m.maybe(n.block)
	}
	return nil
}

func (m *machine) set(n node) error {
	name, atoms, ok := setting(n)
	if !ok {
		return nil
	}
	v, err := m.expand(atoms, m.where(n.pos)+" (set "+name+")")
	if err != nil {
		return unsupported(m.where(n.pos), "%v", err)
	}
	for i := range v {
		if v[i] == nil {
			v[i] = value{} // set, to nothing
		}
	}
	m.env[name] = v
	return nil
}

// loadEnv reads the environment block in $prefix, or the one that is named.
func (m *machine) loadEnv(n node) error {
	file := m.prefix + "/grubenv"
	var only []string
	for i := 1; i < len(n.words); i++ {
		switch w := spell(n.words[i].atoms); {
		case w == "-f" || w == "--file":
			if i++; i < len(n.words) {
				file = m.locate(n.words[i])
			}
		case strings.HasPrefix(w, "--file="):
			file = m.locate(word{atoms: n.words[i].atoms[len("--file="):]})
		case !strings.HasPrefix(w, "-"):
			only = append(only, w)
		}
	}
	block, err := m.boot.block(m.tree, file)
	if err != nil || block == nil {
		return err
	}
	real, _, err := regular(m.tree, file)
	if err != nil {
		return err
	}
	if m.envPath == "" {
		m.envPath = real
	}
	for _, v := range block.vars {
		if len(only) == 0 || slices.Contains(only, v.name) {
			m.env[v.name] = []value{{{v.value, real + " (" + v.name + ")", true}}}
		}
	}
	return nil
}

// locate returns the guest's path of a file that a script names: below $prefix, or below
// the root of the disk that GRUB took for its root, which is / or /boot of the guest.
func (m *machine) locate(w word) string {
	v, err := m.expand(w.atoms, "")
	if err != nil || len(v) == 0 {
		return ""
	}
	p := v[0].String()
	if i := strings.LastIndexByte(p, ')'); i >= 0 && strings.HasPrefix(p, "(") {
		p = p[i+1:]
	}
	for _, c := range []string{p, "/boot" + p} {
		if real, _, err := regular(m.tree, c); err == nil && real != "" {
			return real
		}
	}
	return p
}

// include runs another script in place.
func (m *machine) include(n node, isConfig bool) error {
	if isConfig {
		m.leadsOn = true
		return nil
	}
	if len(n.words) < 2 || m.cur != nil {
		return nil
	}
	real, _, err := regular(m.tree, m.locate(n.words[1]))
	if err != nil || real == "" {
		return err
	}
	return m.runFile(real)
}

// menuentry takes an entry or a submenu up; its commands are run later, as GRUB does.
func (m *machine) menuentry(n node, submenu bool) error {
	m.menu++
	if len(m.items) >= maxEntries {
		return unsupported(m.where(n.pos), "more than %d menu entries", maxEntries)
	}
	e := Entry{Path: m.file, LineNo: m.boot.found.scripts[m.file].line(n.pos), Menus: slices.Clone(m.menus)}
	titled := false
	for i := 1; i < len(n.words); i++ {
		switch w := spell(n.words[i].atoms); {
		case (w == "--id" || w == "$menuentry_id_option") && i+1 < len(n.words):
			i++
			e.ID = spell(n.words[i].atoms)
		case strings.HasPrefix(w, "--id="):
			e.ID = w[len("--id="):]
		case slices.Contains([]string{"--class", "--users", "--hotkey", "--source"}, w):
			i++
		case strings.HasPrefix(w, "--"):
		case !titled:
			e.Title, titled = w, true
		}
	}
	if e.ID == "" {
		e.ID = e.Title
	}
	e.levels = m.place(e.ID, e.Title)
	if !submenu {
		m.items = append(m.items, menuItem{e, n.block, m.file})
		return nil
	}
	if len(m.menus) > maxCalls {
		return unsupported(m.where(n.pos), "submenus nested more than %d deep", maxCalls)
	}
	menus, levels, next := m.menus, m.levels, m.next
	m.menus, m.levels, m.next = append(slices.Clone(m.menus), e.Title), e.levels, 0
	err := m.maybe(n.block)
	m.menus, m.levels, m.next = menus, levels, next
	return err
}

// linux takes the command line of a linux command.
func (m *machine) linux(n node) error {
	if m.cur == nil || !isLinux(n) {
		return nil
	}
	m.cur.Kernel = spell(n.words[1].atoms)
	here := m.where(n.pos)
	if len(n.words) > maxWords {
		return unsupported(here, "more than %d arguments", maxWords)
	}
	lines := [][]Word{nil}
	for _, w := range n.words[2:] {
		m.boot.use(w.atoms)
		vals, err := m.expand(w.atoms, here)
		if err != nil {
			return unsupported(here, "%v", err)
		}
		quoted := slices.ContainsFunc(w.atoms, func(a atom) bool { return a.name != "" && a.quote != 0 })
		if len(vals) == 1 {
			for i := range lines {
				lines[i] = append(lines[i], fields(vals[0], quoted)...)
			}
			continue
		}
		var next [][]Word
		for _, l := range lines {
			for _, v := range vals {
				next = append(next, append(slices.Clone(l), fields(v, quoted)...))
			}
		}
		if lines = next; len(lines) > maxValues {
			return unsupported(here, "more than %d command lines are possible", maxValues)
		}
	}
	for _, l := range lines {
		m.cur.Lines = append(m.cur.Lines, Line{Words: l, site: site{m.file, n.pos}})
	}
	return nil
}

// fields splits a value at the spaces that came out of variables, or nowhere.
func fields(v value, whole bool) []Word {
	var out []Word
	open := false // the last word goes on
	for _, p := range v {
		if whole || !p.fromVar {
			if p.text == "" {
				continue
			}
			if !open {
				out = append(out, Word{Origin: p.origin, fromVar: p.fromVar})
			}
			out[len(out)-1].Text += p.text
			open = true
			continue
		}
		for i := 0; i < len(p.text); {
			if isSpace(p.text[i]) {
				open = false
				i++
				continue
			}
			j := i
			for j < len(p.text) && !isSpace(p.text[j]) {
				j++
			}
			if !open {
				out = append(out, Word{Origin: p.origin, fromVar: true})
			}
			out[len(out)-1].Text += p.text[i:j]
			open = true
			i = j
		}
	}
	return out
}

// use remembers that a command line is made of variables, and of what those are made.
func (b *Boot) use(atoms []atom) {
	for _, a := range atoms {
		if a.name != "" {
			b.found.used[a.name] = true
		}
	}
}

// blscfg adds the entries of the boot loader specification.
func (m *machine) blscfg() error {
	m.menu++
	if m.blsDone {
		return nil
	}
	m.blsDone = true
	for _, f := range m.bls {
		var err error
		r := ReadingRHEL
		hidden := !f.bls.Bootable(r)
		if hidden {
			r = ReadingSpec
		}
		e := Entry{ID: f.name, Path: f.path, Hidden: hidden, Title: f.bls.Value("title", r), Kernel: f.bls.Value("linux", r),
			Menus: slices.Clone(m.menus)}
		if e.Initrds, err = m.blsInitrds(f, r); err != nil {
			return err
		}
		if e.Title == "" {
			e.Title = e.Kernel
		}
		if !hidden {
			e.levels = m.place(e.ID, e.Title)
		}
		if e.Lines, err = m.blsLines(f, hidden); err != nil {
			return err
		}
		m.items = append(m.items, menuItem{entry: e})
	}
	return nil
}

// blsInitrds returns the initial RAM disks of a BLS entry: the words of its initrd
// lines, with the values of variables in them, as RHEL's "initrd FILE $tuned_initrd"
// needs it. Where a boot decides on a value, the line is returned as it is written.
func (m *machine) blsInitrds(f entryFile, r Reading) ([]string, error) {
	var out []string
	for _, text := range f.bls.Values("initrd", r) {
		vals, err := m.expandOptions(value{{text: text, origin: f.path}})
		if err != nil {
			return nil, unsupported(f.path, "%v", err)
		}
		if len(vals) == 1 {
			text = vals[0].String()
		}
		out = append(out, strings.Fields(text)...)
	}
	return out, nil
}

// blsLines returns the command lines of a BLS entry under each reading.
func (m *machine) blsLines(f entryFile, hidden bool) ([]Line, error) {
	var out []Line
	for _, r := range []Reading{ReadingRHEL, ReadingSpec} {
		if r == ReadingRHEL && hidden {
			continue
		}
		var text value
		for _, o := range f.bls.options(r) {
			if len(o.text)+len(text.String()) > maxText {
				return nil, unsupported(f.path, "options of more than %d bytes", maxText)
			}
			if text != nil {
				text = append(text, piece{text: " "})
			}
			text = append(text, piece{o.text, fmt.Sprintf("%s:%d", f.path, o.line), false})
		}
		vals, err := m.expandOptions(text)
		lost := r == ReadingRHEL && m.lost(text)
		if err == nil && r == ReadingRHEL && (lost || strings.TrimSpace(text.String()) == "") {
			vals, err = m.expand([]atom{{name: "default_kernelopts"}}, f.path)
		}
		if err != nil {
			return nil, unsupported(f.path, "%v", err)
		}
		for _, v := range vals {
			words, ok := kernelWords(v)
			if !ok {
				m.boot.note("%s: the options have a quote that is not closed, or a character that GRUB's script language takes for its own", f.path)
			}
			l := Line{Reading: r, Words: words, site: site{f.path, -1}, lost: lost && strings.TrimSpace(text.String()) != ""}
			if i := slices.IndexFunc(out, func(o Line) bool { return slices.Equal(o.Texts(), l.Texts()) }); i >= 0 {
				if out[i].Reading != r {
					out[i].Reading = ""
				}
				continue
			}
			out = append(out, l)
		}
	}
	return out, nil
}

// lost says whether blscfg drops the options altogether: it does, in RHEL's GRUB and in
// 2.14, if they begin with a variable that is not set.
func (m *machine) lost(text value) bool {
	s := scriptParser{src: text.String()}
	if !strings.HasPrefix(s.src, "$") {
		return false
	}
	a := s.variable(0)
	vals, set := m.env[a.name]
	return a.name != "" && (!set || slices.ContainsFunc(vals, func(v value) bool { return v == nil }))
}

// expandOptions puts the values of variables into options, as blscfg does.
func (m *machine) expandOptions(text value) ([]value, error) {
	var atoms []atom
	var origins []string
	for _, p := range text {
		s := scriptParser{src: p.text}
		for s.pos < len(s.src) {
			a := atom{lit: s.src[s.pos]}
			if a.lit == '$' {
				a = s.variable(0)
			} else {
				s.pos++
			}
			atoms, origins = append(atoms, a), append(origins, p.origin)
		}
	}
	m.boot.use(atoms)
	out := []value{nil}
	for i := 0; i < len(atoms); {
		j := i
		for j < len(atoms) && origins[j] == origins[i] {
			j++
		}
		vals, err := m.expand(atoms[i:j], origins[i])
		if err != nil {
			return nil, err
		}
		var next []value
		for _, o := range out {
			for _, v := range vals {
				next = append(next, append(slices.Clone(o), v...))
			}
		}
		if out = next; len(out) > maxValues {
			return nil, fmt.Errorf("more than %d combinations of values", maxValues)
		}
		i = j
	}
	return out, nil
}

// kernelWords splits options as GRUB's script language does when it runs the linux
// command that blscfg makes of them. ok is false if it would not run; the words are
// then those that the kernel would make of the text.
func kernelWords(v value) (out []Word, ok bool) {
	text := v.String()
	at := func(pos int) (string, bool) {
		for _, p := range v {
			if pos < len(p.text) {
				return p.origin, p.fromVar
			}
			pos -= len(p.text)
		}
		return "", false
	}
	s := scriptParser{src: text}
	for s.next(); s.tok.kind == tokWord; s.next() {
		w := Word{Text: spell(s.tok.word.atoms)}
		w.Origin, w.fromVar = at(s.tok.start)
		out = append(out, w)
	}
	if s.tok.kind == tokEOF {
		return out, true
	}
	out = nil
	for _, sp := range splitCmdline(text) {
		w := Word{Text: unquote(text[sp.start:sp.end])}
		w.Origin, w.fromVar = at(sp.start)
		out = append(out, w)
	}
	return out, false
}
