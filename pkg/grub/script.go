package grub

import (
	"fmt"
	"slices"
	"strings"

	"remaster/pkg/disk"
)

// Bounds of a script: bytes, and blocks within blocks.
const (
	maxScript  = 1 << 20
	maxNesting = 64
)

// Script is a file in GRUB's script language, as grub.cfg is (GRUB manual, "Writing full
// configuration files directly", and the grammar of grub-core/script/yylex.l and
// parser.y). Editing one splices its text; nothing is generated anew.
type Script struct {
	text   string
	nodes  []node
	starts []int // of lines
}

// node is a command, a condition or a loop.
type node struct {
	pos      int
	words    []word   // of a command; of a for loop the variable and the words
	block    []node   // in braces behind a command: a menu entry or function; a loop's body
	hasBlock bool     //
	branches []branch // of an if; a last one without cond is the else
	loop     bool
}

type branch struct{ cond, body []node }

// word is a word of a script. Its atoms are bytes and variables.
type word struct {
	start, end int
	atoms      []atom
}

// name returns the word's text if it has neither variables nor quotes, else "".
func (w word) name() string {
	b := make([]byte, 0, len(w.atoms))
	for _, a := range w.atoms {
		if a.name != "" || a.quote != 0 {
			return ""
		}
		b = append(b, a.lit)
	}
	return string(b)
}

// ParseScript reads a script.
func ParseScript(data []byte) (*Script, error) {
	if len(data) > maxScript {
		return nil, fmt.Errorf("script of %d bytes: %w", len(data), disk.ErrUnsupported)
	}
	s := &Script{text: string(data), starts: []int{0}}
	for i, c := range data {
		if c == '\n' {
			s.starts = append(s.starts, i+1)
		}
	}
	if i := strings.IndexByte(s.text, 0); i >= 0 {
		return nil, fmt.Errorf("line %d: a NUL byte: %w", lineAt(s.text, i), disk.ErrCorrupt)
	}
	p := &scriptParser{src: s.text}
	p.next()
	nodes, err := p.list(0)
	if err == nil && p.tok.kind != tokEOF {
		err = p.errorf("unexpected %q", p.src[p.tok.start:p.tok.end])
	}
	if err != nil {
		return nil, err
	}
	s.nodes = nodes
	return s, nil
}

// Bytes returns the script, as it was parsed where it was not edited.
func (s *Script) Bytes() []byte { return []byte(s.text) }

// line returns the number of the line at a position, from 1.
func (s *Script) line(pos int) int {
	i, ok := slices.BinarySearch(s.starts, pos)
	if ok {
		i++
	}
	return i
}

// walkNodes calls f for every command, in functions and branches too.
func walkNodes(nodes []node, f func(node)) {
	for _, n := range nodes {
		if len(n.words) > 0 && !n.loop {
			f(n)
		}
		for _, b := range n.branches {
			walkNodes(b.cond, f)
			walkNodes(b.body, f)
		}
		walkNodes(n.block, f)
	}
}

type tokKind int

const (
	tokEOF tokKind = iota
	tokWord
	tokEnd // newline or semicolon
	tokOpen
	tokClose
	tokBad
)

type token struct {
	kind       tokKind
	start, end int
	word       word
	why        string // of tokBad
}

type scriptParser struct {
	src string
	pos int
	tok token
}

func (p *scriptParser) errorf(format string, args ...any) error {
	return fmt.Errorf("line %d: %s: %w", lineAt(p.src, p.tok.start), fmt.Sprintf(format, args...), disk.ErrCorrupt)
}

// next reads a token into p.tok.
func (p *scriptParser) next() {
	for p.pos < len(p.src) {
		switch c := p.src[p.pos]; {
		case c == ' ' || c == '\t':
			p.pos++
		case strings.HasPrefix(p.src[p.pos:], "\\\n"):
			p.pos += 2
		case c == '#':
			if i := strings.IndexByte(p.src[p.pos:], '\n'); i >= 0 {
				p.pos += i
			} else {
				p.pos = len(p.src)
			}
		default:
			kind := map[byte]tokKind{'\n': tokEnd, ';': tokEnd, '{': tokOpen, '}': tokClose, '|': tokBad, '&': tokBad, '<': tokBad, '>': tokBad}[c]
			if kind == 0 {
				p.word()
				return
			}
			p.tok = token{kind: kind, start: p.pos, end: p.pos + 1}
			p.pos++
			return
		}
	}
	p.tok = token{kind: tokEOF, start: p.pos, end: p.pos}
}

// word reads a word into p.tok.
func (p *scriptParser) word() {
	w := word{start: p.pos}
	quote := byte(0)
	for p.pos < len(p.src) {
		i, c := p.pos, p.src[p.pos]
		switch {
		case quote == '\'' && c != '\'':
			w.atoms = append(w.atoms, atom{start: i, end: i + 1, quote: quote, lit: c})
			p.pos++
		case c == '\'' && quote == 0 || c == '"' && quote == 0:
			quote = c
			p.pos++
		case c == quote && quote != 0:
			quote = 0
			p.pos++
		case c == '\\' && i+1 < len(p.src):
			p.pos += 2
			switch {
			case p.src[i+1] == '\n':
			case quote == '"' && strings.IndexByte(`$\"`, p.src[i+1]) < 0:
				p.pos--
				w.atoms = append(w.atoms, atom{start: i, end: i + 1, quote: quote, lit: c})
			default:
				w.atoms = append(w.atoms, atom{start: i, end: i + 2, quote: quote, lit: p.src[i+1]})
			}
		case c == '$':
			w.atoms = append(w.atoms, p.variable(quote))
		case quote == 0 && strings.IndexByte("{}|&;<> \t\n", c) >= 0:
			w.end = i
			p.tok = token{kind: tokWord, start: w.start, end: i, word: w}
			return
		default:
			w.atoms = append(w.atoms, atom{start: i, end: i + 1, quote: quote, lit: c})
			p.pos++
		}
	}
	w.end = p.pos
	p.tok = token{kind: tokWord, start: w.start, end: p.pos, word: w}
	if quote != 0 {
		p.tok = token{kind: tokBad, start: w.start, end: p.pos, why: "a quote is not closed"}
	}
}

// variable reads $name, ${name}, $1, $?; a '$' before anything else is itself.
func (p *scriptParser) variable(quote byte) atom {
	start := p.pos
	i := start + 1
	brace := i < len(p.src) && p.src[i] == '{'
	if brace {
		i++
	}
	from := i
	switch {
	case i < len(p.src) && strings.IndexByte("?#*@", p.src[i]) >= 0:
		i++
	default:
		for i < len(p.src) && isName(p.src[i], false) {
			i++
		}
	}
	name := p.src[from:i]
	if brace {
		if i >= len(p.src) || p.src[i] != '}' {
			name = ""
		}
		i++
	}
	if name == "" {
		p.pos++
		return atom{start: start, end: start + 1, quote: quote, lit: '$'}
	}
	p.pos = i
	return atom{start: start, end: i, quote: quote, name: name}
}

// list reads statements up to a word or brace that ends the list it is in.
func (p *scriptParser) list(depth int) ([]node, error) {
	if depth > maxNesting {
		return nil, p.errorf("blocks are nested more than %d deep", maxNesting)
	}
	var out []node
	for {
		switch p.tok.kind {
		case tokEnd:
			p.next()
			continue
		case tokEOF, tokClose:
			return out, nil
		case tokWord:
		default:
			why := p.tok.why
			if why == "" {
				why = fmt.Sprintf("unexpected %q", p.src[p.tok.start:p.tok.end])
			}
			return nil, p.errorf("%s", why)
		}
		name := p.tok.word.name()
		if slices.Contains([]string{"fi", "elif", "else", "then", "do", "done"}, name) {
			return out, nil
		}
		n, err := p.statement(name, depth)
		if err != nil {
			return nil, err
		}
		out = append(out, n)
	}
}

func (p *scriptParser) statement(name string, depth int) (node, error) {
	n := node{pos: p.tok.start}
	var err error
	switch name {
	case "if":
		for name != "fi" {
			var b branch
			if p.next(); name != "else" {
				if b.cond, err = p.list(depth + 1); err != nil {
					return n, err
				}
				if err = p.expect("then"); err != nil {
					return n, err
				}
			}
			if b.body, err = p.list(depth + 1); err != nil {
				return n, err
			}
			n.branches = append(n.branches, b)
			was := name
			if name = p.tok.word.name(); p.tok.kind != tokWord || name != "fi" && (was == "else" || name != "elif" && name != "else") {
				return n, p.errorf("an if without its fi")
			}
		}
		p.next()
	case "while", "until":
		n.loop = true
		p.next()
		if _, err = p.list(depth + 1); err == nil {
			err = p.body(&n, depth)
		}
	case "for":
		n.loop = true
		for p.next(); p.tok.kind == tokWord; p.next() {
			n.words = append(n.words, p.tok.word)
		}
		for p.tok.kind == tokEnd {
			p.next()
		}
		err = p.body(&n, depth)
	default:
		for ; p.tok.kind == tokWord; p.next() {
			n.words = append(n.words, p.tok.word)
		}
		if p.tok.kind == tokEnd && len(n.words) > 0 && n.words[0].name() == "function" {
			for p.tok.kind == tokEnd {
				p.next()
			}
		}
		if p.tok.kind == tokOpen {
			n.hasBlock = true
			p.next()
			if n.block, err = p.list(depth + 1); err != nil {
				return n, err
			}
			if p.tok.kind != tokClose {
				return n, p.errorf("the block of line %d is not closed", lineAt(p.src, n.pos))
			}
			p.next()
		}
	}
	return n, err
}

// body reads "do … done".
func (p *scriptParser) body(n *node, depth int) (err error) {
	if err = p.expect("do"); err != nil {
		return err
	}
	if n.block, err = p.list(depth + 1); err != nil {
		return err
	}
	return p.expect("done")
}

func (p *scriptParser) expect(name string) error {
	if p.tok.kind != tokWord || p.tok.word.name() != name {
		return p.errorf("%q is missing", name)
	}
	p.next()
	return nil
}

// isLinux says whether a command loads a kernel and gives it its arguments.
func isLinux(n node) bool {
	if len(n.words) < 2 {
		return false
	}
	switch n.words[0].name() {
	case "linux", "linux16", "linuxefi":
		return !strings.Contains(strings.ToLower(spell(n.words[1].atoms)), "memtest")
	}
	return false
}

// spell returns the text of atoms with variables as "$name".
func spell(atoms []atom) string {
	var b strings.Builder
	for _, a := range atoms {
		if a.name != "" {
			b.WriteString("$" + a.name)
		} else {
			b.WriteByte(a.lit)
		}
	}
	return b.String()
}

// editLinux returns the splices of an edit of the arguments of a linux command.
func (s *Script) editLinux(n node, e Edit) []splice {
	var spans []span
	for i, w := range n.words[1:] {
		a := Arg{} // the kernel itself
		if i > 0 {
			a = ParseArg(spell(w.atoms))
		}
		spans = append(spans, span{w.start, w.end, a, false})
	}
	return e.plan(spans).splices(spans)
}

// setting returns the name that a "set name=value" command sets and the value's atoms.
func setting(n node) (name string, value []atom, ok bool) {
	if len(n.words) != 2 || n.words[0].name() != "set" {
		return "", nil, false
	}
	w := n.words[1].atoms
	for i, a := range w {
		if a.name != "" {
			return "", nil, false
		}
		if a.lit == '=' {
			return name, w[i+1:], name != ""
		}
		name += string(a.lit)
	}
	return "", nil, false
}

// editSetting returns the splices of an edit of the command line in a set command's
// value. Variables in it are words like others.
func (s *Script) editSetting(n node, e Edit) []splice {
	_, value, _ := setting(n)
	var text []byte
	var at []atom // of each byte of text
	for _, a := range value {
		if a.name == "" {
			text, at = append(text, a.lit), append(at, a)
			continue
		}
		for _, c := range []byte(s.text[a.start:a.end]) {
			text, at = append(text, c), append(at, a)
		}
	}
	words := splitCmdline(string(text))
	var out []splice
	for _, sp := range e.plan(words).splices(words) {
		for _, a := range at[sp.start:sp.end] {
			out = append(out, splice{a.start, a.end, ""})
		}
		if sp.text == "" {
			continue
		}
		pos, quote := n.words[1].end, byte(0)
		switch {
		case sp.start > 0:
			pos, quote = at[sp.start-1].end, at[sp.start-1].quote
		case len(at) > 0:
			pos, quote = at[0].start, at[0].quote
		default:
			if c := s.text[pos-1]; c == '"' || c == '\'' {
				pos, quote = pos-1, c
			}
		}
		switch quote {
		case '"':
			sp.text = dquote(sp.text)
		case 0:
			sp.text = `"` + dquote(sp.text) + `"`
		}
		out = append(out, splice{pos, pos, sp.text})
	}
	return out
}
