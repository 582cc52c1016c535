package grub

import (
	"fmt"
	"strings"

	"remaster/pkg/disk"
)

// The lexer for the subset of POSIX shell (XCU 2.2, 2.3, 2.9) that settings files are
// written in. It finds words and where each of their bytes comes from; statements that
// are more than assignments are recognised, not run.

// atom is a piece of a shell word.
type atom struct {
	start, end int    // in the source
	quote      byte   // 0, '"' or '\''
	lit        byte   // the byte it stands for, if name and dyn are empty
	name       string // a variable
	dyn        string // something that only a shell can work out: its name
}

type shWord struct {
	start, end int
	atoms      []atom
}

// assign is an assignment that is carried out.
type assign struct {
	line         int
	name         string
	add          bool // +=
	vstart, vend int  // of the value, quotes included
	atoms        []atom
	cond         bool // only perhaps carried out, or in a subshell
}

// shCommand is any other command: its words' literal text.
type shCommand struct {
	line int
	text string
}

type shLexer struct {
	src     string
	pos     int
	assigns []assign
	cmds    []shCommand
	depth   int // of if, case, loops, groups and functions
	lines   lines
}

func (l *shLexer) errorf(pos int, format string, args ...any) error {
	return fmt.Errorf("line %d: %s: %w", lineAt(l.src, pos), fmt.Sprintf(format, args...), disk.ErrCorrupt)
}

func lineAt(s string, pos int) int { return 1 + strings.Count(s[:min(pos, len(s))], "\n") }

// lines counts lines for positions that mostly grow.
type lines struct{ pos, n int }

func (c *lines) at(s string, pos int) int {
	if pos < c.pos {
		*c = lines{}
	}
	c.n += strings.Count(s[c.pos:pos], "\n")
	c.pos = pos
	return c.n + 1
}

const shMeta = " \t\n;&|<>()"

// run reads the whole file.
func (l *shLexer) run() error {
	if i := strings.IndexByte(l.src, 0); i >= 0 {
		return l.errorf(i, "a NUL byte")
	}
	after := "" // the operator before the statement
	for l.pos < len(l.src) {
		words, redirected, err := l.statement()
		if err != nil {
			return err
		}
		inside := l.depth > 0
		op := l.operator()
		l.record(words, inside || redirected || after == "&&" || after == "||" || after == "|" || op == "|" || op == "&")
		after = op
	}
	return nil
}

// operator takes the operator behind a statement.
func (l *shLexer) operator() string {
	for _, op := range []string{"&&", "||", ";;", "\n", ";", "&", "|", "(", ")"} {
		if strings.HasPrefix(l.src[l.pos:], op) {
			l.pos += len(op)
			switch op {
			case "(":
				l.depth++
			case ")":
				l.depth = max(0, l.depth-1)
			}
			return op
		}
	}
	return ""
}

// statement reads words up to an operator.
func (l *shLexer) statement() (words []shWord, redirected bool, err error) {
	for {
		for l.pos < len(l.src) && (l.src[l.pos] == ' ' || l.src[l.pos] == '\t') || strings.HasPrefix(l.src[l.pos:], "\\\n") {
			if l.src[l.pos] == '\\' {
				l.pos++
			}
			l.pos++
		}
		if l.pos >= len(l.src) {
			return words, redirected, nil
		}
		switch c := l.src[l.pos]; {
		case c == '#':
			if i := strings.IndexByte(l.src[l.pos:], '\n'); i >= 0 {
				l.pos += i
			} else {
				l.pos = len(l.src)
			}
		case c == '<' || c == '>':
			redirected = true
			if strings.HasPrefix(l.src[l.pos:], "<<") && !strings.HasPrefix(l.src[l.pos:], "<<<") {
				l.depth += 1 << 20 // a here-document: nothing behind it is certain
			}
			l.pos++
		case strings.IndexByte(shMeta, c) >= 0:
			return words, redirected, nil
		default:
			w, err := l.word()
			if err != nil {
				return nil, false, err
			}
			words = append(words, w)
		}
	}
}

// record files a statement's words as assignments or as a command.
func (l *shLexer) record(words []shWord, cond bool) {
	for len(words) > 0 {
		switch l.text(words[0]) {
		case "if", "for", "while", "until", "case", "select", "{", "function":
			l.depth++
		case "fi", "done", "esac", "}":
			l.depth = max(0, l.depth-1)
		case "then", "do", "else", "elif", "!", "time":
		default:
			goto body
		}
		words = words[1:]
	}
body:
	if len(words) == 0 {
		return
	}
	line := l.lines.at(l.src, words[0].start)
	var as []assign
	args := words
	switch l.text(words[0]) {
	case "export", "declare", "typeset", "readonly":
		args = words[1:]
	}
	command := false
	for _, w := range args {
		a, ok := l.assignment(w)
		if ok {
			a.cond = cond || l.depth > 0
			as = append(as, a)
			continue
		}
		// export takes names and options too; elsewhere this is a command, and the
		// assignments before it are in its environment only.
		if len(args) == len(words) || strings.ContainsFunc(l.text(w), func(r rune) bool { return r > 0x7f || !isName(byte(r), false) && r != '-' }) {
			command = true
			break
		}
	}
	if command {
		l.command(line, words)
		return
	}
	l.assigns = append(l.assigns, as...)
}

// command files a command that is no assignment.
func (l *shLexer) command(line int, words []shWord) {
	var t []string
	for _, w := range words {
		t = append(t, l.text(w))
	}
	l.cmds = append(l.cmds, shCommand{line, strings.Join(t, " ")})
	switch t[0] {
	case "return", "exit", "exec":
		l.depth += 1 << 20 // nothing behind it is certain
	}
}

// text returns the literal bytes of a word; a variable stands for nothing.
func (l *shLexer) text(w shWord) string {
	var b strings.Builder
	for _, a := range w.atoms {
		switch {
		case a.dyn != "":
			b.WriteString(l.src[a.start:a.end])
		case a.name == "":
			b.WriteByte(a.lit)
		}
	}
	return b.String()
}

// assignment reads a word as NAME=value or NAME+=value.
func (l *shLexer) assignment(w shWord) (assign, bool) {
	src := l.src[w.start:w.end]
	n := 0
	for n < len(src) && isName(src[n], n == 0) {
		n++
	}
	a := assign{line: l.lines.at(l.src, w.start), name: src[:n], vend: w.end}
	if a.add = strings.HasPrefix(src[n:], "+="); a.add {
		n++
	}
	if len(a.name) == 0 || n >= len(src) || src[n] != '=' {
		return assign{}, false
	}
	a.vstart = w.start + n + 1
	for i, at := range w.atoms {
		if at.start < a.vstart {
			continue
		}
		if at.lit == '~' && at.quote == 0 && at.end-at.start == 1 && (at.start == a.vstart || l.src[at.start-1] == ':') {
			at.dyn = "~"
		}
		a.atoms = append(a.atoms, w.atoms[i])
		a.atoms[len(a.atoms)-1] = at
	}
	return a, true
}

func isName(c byte, first bool) bool {
	return c == '_' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || !first && '0' <= c && c <= '9'
}

// word reads one word; the position is at its first byte.
func (l *shLexer) word() (shWord, error) {
	w := shWord{start: l.pos}
	for l.pos < len(l.src) {
		p, c := l.pos, l.src[l.pos]
		switch {
		case c == '\'':
			end := strings.IndexByte(l.src[p+1:], '\'')
			if end < 0 {
				return w, l.errorf(p, "a single quote is not closed")
			}
			for i := p + 1; i < p+1+end; i++ {
				w.atoms = append(w.atoms, atom{start: i, end: i + 1, quote: '\'', lit: l.src[i]})
			}
			l.pos = p + end + 2
		case c == '"':
			l.pos++
			if err := l.double(&w, p); err != nil {
				return w, err
			}
		case c == '\\' && p+1 < len(l.src):
			l.pos += 2
			if l.src[p+1] != '\n' {
				w.atoms = append(w.atoms, atom{start: p, end: p + 2, lit: l.src[p+1]})
			}
		case c == '$' || c == '`':
			if err := l.dollar(&w, 0); err != nil {
				return w, err
			}
		case c == '(' && p > w.start && l.src[p-1] == '=':
			w.atoms = append(w.atoms, atom{start: p, end: p + 1, dyn: "an array"})
			l.pos++
			w.end = l.pos
			return w, l.nested(p, ')')
		case strings.IndexByte(shMeta, c) >= 0:
			w.end = p
			return w, nil
		default:
			w.atoms = append(w.atoms, atom{start: p, end: p + 1, lit: c})
			l.pos++
		}
	}
	w.end = l.pos
	return w, nil
}

// double reads the rest of a double-quoted string.
func (l *shLexer) double(w *shWord, open int) error {
	for l.pos < len(l.src) {
		p, c := l.pos, l.src[l.pos]
		switch {
		case c == '"':
			l.pos++
			return nil
		case c == '\\' && p+1 < len(l.src) && l.src[p+1] == '\n':
			l.pos += 2
		case c == '\\' && p+1 < len(l.src) && strings.IndexByte("$`\"\\", l.src[p+1]) >= 0:
			w.atoms = append(w.atoms, atom{start: p, end: p + 2, quote: '"', lit: l.src[p+1]})
			l.pos += 2
		case c == '$' || c == '`':
			if err := l.dollar(w, '"'); err != nil {
				return err
			}
		default:
			w.atoms = append(w.atoms, atom{start: p, end: p + 1, quote: '"', lit: c})
			l.pos++
		}
	}
	return l.errorf(open, "a double quote is not closed")
}

// dollar reads an expansion.
func (l *shLexer) dollar(w *shWord, quote byte) error {
	p := l.pos
	next := byte(0)
	if p+1 < len(l.src) {
		next = l.src[p+1]
	}
	a := atom{start: p, quote: quote}
	var err error
	switch {
	case l.src[p] == '`':
		a.dyn = "a command substitution"
		l.pos++
		for l.pos < len(l.src) && l.src[l.pos] != '`' {
			if l.src[l.pos] == '\\' {
				l.pos++
			}
			l.pos++
		}
		if l.pos++; l.pos > len(l.src) {
			err = l.errorf(p, "a backquote is not closed")
		}
	case isName(next, true):
		l.pos++
		for l.pos < len(l.src) && isName(l.src[l.pos], false) {
			l.pos++
		}
		a.name = l.src[p+1 : l.pos]
	case next == '{':
		l.pos += 2
		err = l.nested(p, '}')
		if n := l.src[p+2 : max(p+2, l.pos-1)]; n != "" && isName(n[0], true) && strings.IndexFunc(n, func(r rune) bool { return r > 0x7f || !isName(byte(r), false) }) < 0 {
			a.name = n
		} else {
			a.dyn = "a parameter expansion"
		}
	case next == '(':
		l.pos += 2
		a.dyn = "a command substitution"
		err = l.nested(p, ')')
	case next == '\'' && quote == 0 || next == '"' && quote == 0:
		a.dyn = "$" + string(next)
		l.pos++ // the quotes are read as any others: only their end matters
		if next == '\'' {
			l.pos++
			for l.pos < len(l.src) && l.src[l.pos] != '\'' {
				if l.src[l.pos] == '\\' {
					l.pos++
				}
				l.pos++
			}
			if l.pos++; l.pos > len(l.src) {
				err = l.errorf(p, "a single quote is not closed")
			}
		}
	case next != 0 && strings.IndexByte("0123456789@*#?-$![", next) >= 0:
		a.dyn = "$" + string(next)
		l.pos += 2
	default:
		a.lit = '$'
		l.pos++
	}
	l.pos = min(l.pos, len(l.src))
	a.end = l.pos
	w.atoms = append(w.atoms, a)
	return err
}

// nested skips to behind the bracket that closes the one that was just taken, over
// quotes and further brackets of its kind.
func (l *shLexer) nested(open int, closing byte) error {
	opening := map[byte]byte{')': '(', '}': '{'}[closing]
	for depth := 1; l.pos < len(l.src); l.pos++ {
		switch c := l.src[l.pos]; c {
		case '\\':
			l.pos++
		case '\'':
			i := strings.IndexByte(l.src[l.pos+1:], '\'')
			if i < 0 {
				return l.errorf(l.pos, "a single quote is not closed")
			}
			l.pos += i + 1
		case '"':
			for l.pos++; l.pos < len(l.src) && l.src[l.pos] != '"'; l.pos++ {
				if l.src[l.pos] == '\\' {
					l.pos++
				}
			}
		case opening:
			depth++
		case closing:
			if depth--; depth == 0 {
				l.pos++
				return nil
			}
		}
	}
	l.pos = len(l.src)
	return l.errorf(open, "a bracket is not closed")
}
