package recipe

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"

	"remaster/pkg/disk"
)

// Limits of a TOML file that is edited: its length in bytes, and the parts of the longest
// path in it. Together they bound what is kept in memory of it. The defaults of
// containerd, written out, have some ten kilobytes and eight parts.
const (
	maxToml  = 256 << 10
	maxDepth = 16
)

// tomlText is a TOML file (toml.io/en/v1.0.0) as bytes together with the places of
// everything that it defines, so that one value can be changed and every other byte
// stays.
type tomlText struct {
	src    []byte
	values map[string]any // what the file means
	stmts  []stmt
}

// stmt is a header or a key with its value. Offsets are bytes in the file.
type stmt struct {
	kind       unstable.Kind // Table, ArrayTable or KeyValue
	path       []string      // from the root of the file
	keys       []span        // of the key as it is written: the last len(keys) parts of path
	start, end int           // of a key and its value; of a header's keys
	value      span
	valueKind  unstable.Kind
	list       []element // of an array of strings
	inline     bool      // stands in an inline table
}

type span struct{ start, end int }

type element struct {
	span
	kind unstable.Kind
	text string
}

// parseToml reads a file. The error says where it is not TOML.
func parseToml(src []byte) (*tomlText, error) {
	if len(src) > maxToml {
		return nil, fmt.Errorf("%d bytes are more than %d: %w", len(src), maxToml, disk.ErrUnsupported)
	}
	t := &tomlText{src: src, values: map[string]any{}}
	if err := toml.Unmarshal(src, &t.values); err != nil {
		var at *toml.DecodeError
		if errors.As(err, &at) {
			row, col := at.Position()
			return nil, fmt.Errorf("line %d, column %d: %w: %w", row, col, err, disk.ErrCorrupt)
		}
		return nil, fmt.Errorf("%w: %w", err, disk.ErrCorrupt)
	}
	p := unstable.Parser{}
	p.Reset(src)
	var table []string
	for p.NextExpression() {
		e := p.Expression()
		switch e.Kind {
		case unstable.Table, unstable.ArrayTable:
			s, err := t.statement(e, nil)
			if err != nil {
				return nil, err
			}
			table = s.path
			t.stmts = append(t.stmts, s)
		case unstable.KeyValue:
			if err := t.keyValue(e, table, false); err != nil {
				return nil, err
			}
		}
	}
	if err := p.Error(); err != nil {
		return nil, fmt.Errorf("%w: %w", err, disk.ErrCorrupt)
	}
	return t, nil
}

// statement notes the keys of a header or of a key with its value.
func (t *tomlText) statement(e *unstable.Node, table []string) (stmt, error) {
	s := stmt{kind: e.Kind, path: slices.Clone(table)}
	for it := e.Key(); it.Next(); {
		if len(s.path) == maxDepth {
			return s, fmt.Errorf("a key below %s is more than %d tables deep: %w", s.path[0], maxDepth, disk.ErrUnsupported)
		}
		k := it.Node()
		s.path = append(s.path, string(k.Data))
		s.keys = append(s.keys, span{int(k.Raw.Offset), int(k.Raw.Offset + k.Raw.Length)})
	}
	s.start, s.end = s.keys[0].start, s.keys[len(s.keys)-1].end
	return s, nil
}

func (t *tomlText) keyValue(e *unstable.Node, table []string, inline bool) error {
	s, err := t.statement(e, table)
	if err != nil {
		return err
	}
	s.inline = inline
	s.start, s.end = int(e.Raw.Offset), int(e.Raw.Offset+e.Raw.Length)
	s.value = span{s.keys[len(s.keys)-1].end, s.end}
	for s.value.start < s.end && strings.IndexByte(" \t=", t.src[s.value.start]) >= 0 {
		s.value.start++
	}
	v := e.Value()
	s.valueKind = v.Kind
	if v.Kind == unstable.Array {
		for it := v.Children(); it.Next(); {
			c := it.Node()
			s.list = append(s.list, element{span{int(c.Raw.Offset), int(c.Raw.Offset + c.Raw.Length)}, c.Kind, string(c.Data)})
		}
	}
	t.stmts = append(t.stmts, s)
	if v.Kind == unstable.InlineTable {
		for it := v.Children(); it.Next(); {
			if it.Node().Kind != unstable.KeyValue {
				continue
			}
			if err := t.keyValue(it.Node(), s.path, true); err != nil {
				return err
			}
		}
	}
	return nil
}

// get returns the value at a path, nil if there is none.
func (t *tomlText) get(path ...string) any {
	var v any = t.values
	for _, key := range path {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = m[key]
	}
	return v
}

// errShape says that something in the file is not what the program that it belongs to
// expects there.
func errShape(path []string, what string) error {
	return fmt.Errorf("%s is %s: %w", strings.Join(path, "."), what, disk.ErrCorrupt)
}

// set returns the file with the value at path set to a literal, want being what that
// means. quote is the mark for keys that need one and have none to copy. Every byte
// that does not belong to the change stays.
func (t *tomlText) set(path []string, literal string, want any, quote byte) (*tomlText, error) {
	for _, s := range t.stmts {
		switch {
		case s.kind == unstable.ArrayTable && hasPrefix(path, s.path):
			return nil, errShape(s.path, "an array of tables")
		case hasPrefix(s.path, path) && (len(s.path) > len(path) || s.kind == unstable.Table):
			return nil, errShape(path, "a table")
		case s.kind == unstable.KeyValue && len(s.path) < len(path) && hasPrefix(path, s.path) && s.valueKind != unstable.InlineTable:
			return nil, errShape(s.path, "not a table")
		}
	}
	change := func(m map[string]any) { assign(m, path, want) }
	i := t.find(path)
	switch {
	case i < 0:
		return t.check(t.insert(path, literal, quote), change)
	case reflect.DeepEqual(t.get(path...), want):
		return t, nil
	}
	return t.check(splice(t.src, t.stmts[i].value, literal), change)
}

// find returns the statement that gives path its value, or -1.
func (t *tomlText) find(path []string) int {
	return slices.IndexFunc(t.stmts, func(s stmt) bool {
		return s.kind == unstable.KeyValue && slices.Equal(s.path, path)
	})
}

// insert puts a new key where its table is: in the deepest inline table or section, or
// beside the dotted key, that belongs to it; else in a new section.
func (t *tomlText) insert(path []string, literal string, quote byte) []byte {
	table := path[:len(path)-1]
	best, depth := -1, 0
	for i, s := range t.stmts {
		n := s.reach(table)
		if n > depth || n == depth && n > 0 && s.kind == unstable.KeyValue && t.stmts[best].kind == unstable.KeyValue && s.valueKind != unstable.InlineTable {
			best, depth = i, n // of siblings the last one
		}
	}
	// In front of the first section below the table, if there is one.
	below := slices.IndexFunc(t.stmts, func(s stmt) bool {
		return s.kind == unstable.Table && len(s.path) > len(table) && hasPrefix(s.path, table)
	})
	if below >= 0 && (best < 0 || t.stmts[best].kind == unstable.Table && depth < len(table)) {
		return t.sectionBefore(below, len(table), path[len(path)-1]+" = "+literal)
	}
	if best < 0 {
		return t.section(len(t.src), "", dotted(table, quote), path[len(path)-1]+" = "+literal)
	}
	s := t.stmts[best]
	switch {
	case s.kind == unstable.Table && depth == len(table):
		at, indent := t.sectionEnd(best)
		return t.line(at, indent, path[len(path)-1]+" = "+literal)
	case s.kind == unstable.Table:
		at, _ := t.sectionEnd(best)
		head := string(t.src[s.start:s.end]) + "." + dotted(table[depth:], quote)
		return t.section(at, t.indent(s.start)+"  ", head, path[len(path)-1]+" = "+literal)
	case s.valueKind == unstable.InlineTable && len(s.path) == depth:
		text := " " + dotted(path[depth:], quote) + " = " + literal
		open := s.value.start + 1
		if rest := bytes.TrimLeft(t.src[open:], " \t\r\n"); rest[0] == '}' {
			return splice(t.src, span{open, open}, text+" ")
		}
		if next := t.src[open]; next != ' ' && next != '\t' {
			return splice(t.src, span{open, open}, text+", ")
		}
		return splice(t.src, span{open, open}, text+",")
	}
	// A dotted key: its first parts again, then what is missing.
	shared := s.keys[depth-(len(s.path)-len(s.keys))-1]
	text := string(t.src[s.start:shared.end]) + "." + dotted(path[depth:], quote) + " = " + literal
	if s.inline {
		return splice(t.src, span{s.end, s.end}, ", "+text)
	}
	return t.line(s.end, t.indent(s.start), text)
}

// reach returns how many parts of the path of a table a statement defines in a way that
// a new key of the table can be put beside it; 0 if none.
func (s *stmt) reach(table []string) int {
	switch s.kind {
	case unstable.Table:
		if hasPrefix(table, s.path) {
			return len(s.path)
		}
	case unstable.KeyValue:
		if s.valueKind == unstable.InlineTable && hasPrefix(table, s.path) {
			return len(s.path)
		}
		n := 0
		for n < len(table) && n < len(s.path)-1 && table[n] == s.path[n] {
			n++
		}
		if n > len(s.path)-len(s.keys) {
			return n
		}
	}
	return 0
}

// sectionEnd returns the place behind the last key of the section whose header is the
// i-th statement, and the indentation of its keys.
func (t *tomlText) sectionEnd(i int) (at int, indent string) {
	at = t.stmts[i].end
	at += bytes.IndexByte(t.src[at:], ']') + 1
	indent = t.indent(t.stmts[i].start)
	if indent != "" {
		indent += "  "
	}
	for j := i + 1; j < len(t.stmts) && t.stmts[j].kind == unstable.KeyValue; j++ {
		if !t.stmts[j].inline {
			at, indent = t.stmts[j].end, t.indent(t.stmts[j].start)
		}
	}
	return at, indent
}

// indent returns the white space at the start of the line that at lies in.
func (t *tomlText) indent(at int) string {
	start := bytes.LastIndexByte(t.src[:at], '\n') + 1
	end := start
	for end < at && (t.src[end] == ' ' || t.src[end] == '\t') {
		end++
	}
	return string(t.src[start:end])
}

// eol returns the line end that the file uses.
func (t *tomlText) eol() string {
	if i := bytes.IndexByte(t.src, '\n'); i > 0 && t.src[i-1] == '\r' {
		return "\r\n"
	}
	return "\n"
}

// line inserts a line behind the one that at lies in.
func (t *tomlText) line(at int, indent, text string) []byte {
	if i := bytes.IndexByte(t.src[at:], '\n'); i >= 0 {
		at += i + 1
		return splice(t.src, span{at, at}, indent+text+t.eol())
	}
	return splice(t.src, span{len(t.src), len(t.src)}, t.eol()+indent+text+t.eol())
}

// section inserts a header with one key behind the line that at lies in.
func (t *tomlText) section(at int, indent, head, text string) []byte {
	eol := t.eol()
	lines := indent + "[" + head + "]" + eol + indent + "  " + text
	if len(bytes.TrimSpace(t.src)) == 0 {
		return append(bytes.Clone(t.src), lines+eol...)
	}
	if at == len(t.src) && bytes.HasSuffix(t.src, []byte("\n")) {
		return append(bytes.Clone(t.src), eol+lines+eol...)
	}
	return t.line(at, "", eol+lines)
}

// sectionBefore inserts a header with one key in front of the section whose header is
// the i-th statement, for the first depth parts of its path.
func (t *tomlText) sectionBefore(i, depth int, text string) []byte {
	s, eol := t.stmts[i], t.eol()
	at := bytes.LastIndexByte(t.src[:s.start], '\n') + 1
	indent := t.indent(s.start)
	head := string(t.src[s.start:s.keys[depth-1].end])
	return splice(t.src, span{at, at}, indent+"["+head+"]"+eol+indent+"  "+text+eol+eol)
}

// drop returns the file without some of the words of the list at path.
func (t *tomlText) drop(path []string, words func(string) bool) (*tomlText, []string, error) {
	i := t.find(path)
	if i < 0 {
		if t.get(path...) != nil {
			return nil, nil, errShape(path, "not a list")
		}
		return t, nil, nil
	}
	s := t.stmts[i]
	if s.valueKind != unstable.Array {
		return nil, nil, errShape(path, "not a list")
	}
	var kept []any
	var gone []string
	var cuts []span
	for j, e := range s.list {
		if e.kind != unstable.String {
			return nil, nil, errShape(path, "not a list of strings")
		}
		if !words(e.text) {
			kept = append(kept, e.text)
			continue
		}
		gone = append(gone, e.text)
		cut := e.span
		if comma := t.comma(e.end, s.value.end); comma >= 0 {
			cuts = append(cuts, cut, span{comma, comma + 1})
			if comma == cut.end {
				cuts = cuts[:len(cuts)-2]
				cut.end++
				for cut.end < len(t.src) && t.src[cut.end] == ' ' {
					cut.end++
				}
				cuts = append(cuts, cut)
			}
			continue
		}
		if comma := t.comma(s.list[max(j-1, 0)].end, e.start); j > 0 && comma >= 0 && !words(s.list[j-1].text) {
			cuts = append(cuts, span{comma, comma + 1})
			if len(bytes.Trim(t.src[comma+1:e.start], " ")) == 0 {
				cut.start = comma + 1
			}
		}
		cuts = append(cuts, cut)
	}
	if len(gone) == 0 {
		return t, nil, nil
	}
	var after []byte
	at := 0
	for _, c := range cuts {
		after = append(after, t.src[at:c.start]...)
		at = c.end
	}
	after = append(after, t.src[at:]...)
	if kept == nil {
		kept = []any{}
	}
	out, err := t.check(after, func(m map[string]any) { assign(m, path, kept) })
	return out, gone, err
}

// comma returns the place of the first comma in [from, to) that is not in a comment,
// or -1.
func (t *tomlText) comma(from, to int) int {
	for i := from; i < to; i++ {
		switch t.src[i] {
		case ',':
			return i
		case '#':
			for i < to && t.src[i] != '\n' {
				i++
			}
		}
	}
	return -1
}

// check reads the changed file anew and compares what it means with what it meant
// before, with the change made.
func (t *tomlText) check(after []byte, change func(map[string]any)) (*tomlText, error) {
	want := map[string]any{}
	if err := toml.Unmarshal(t.src, &want); err != nil {
		return nil, err
	}
	change(want)
	out, err := parseToml(after)
	if err != nil {
		return nil, fmt.Errorf("the edited file would not be valid: %w", err)
	}
	if !sameValue(out.values, want) {
		return nil, fmt.Errorf("the edited file would say something else: %w", disk.ErrUnsupported)
	}
	return out, nil
}

// assign sets a value in nested tables and makes those that are missing.
func assign(m map[string]any, path []string, v any) {
	for _, key := range path[:len(path)-1] {
		next, ok := m[key].(map[string]any)
		if !ok {
			next = map[string]any{}
			m[key] = next
		}
		m = next
	}
	m[path[len(path)-1]] = v
}

// sameValue is deep equality in which a NaN equals itself.
func sameValue(a, b any) bool {
	switch a := a.(type) {
	case map[string]any:
		b, ok := b.(map[string]any)
		if !ok || len(a) != len(b) {
			return false
		}
		for k, v := range a {
			w, ok := b[k]
			if !ok || !sameValue(v, w) {
				return false
			}
		}
		return true
	case []any:
		b, ok := b.([]any)
		return ok && slices.EqualFunc(a, b, sameValue)
	case float64:
		b, ok := b.(float64)
		return ok && (a == b || math.IsNaN(a) && math.IsNaN(b))
	}
	return reflect.DeepEqual(a, b)
}

func hasPrefix(path, prefix []string) bool {
	return len(path) >= len(prefix) && slices.Equal(path[:len(prefix)], prefix)
}

// splice returns src with a part replaced.
func splice(src []byte, at span, text string) []byte {
	out := make([]byte, 0, len(src)+len(text))
	out = append(out, src[:at.start]...)
	out = append(out, text...)
	return append(out, src[at.end:]...)
}

// dotted writes a path as a key. Parts that are not bare are quoted; none of those that
// are written here holds a quote.
func dotted(path []string, quote byte) string {
	var b strings.Builder
	for i, key := range path {
		if i > 0 {
			b.WriteByte('.')
		}
		bare := strings.Trim(key, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_") == ""
		if bare && key != "" {
			b.WriteString(key)
			continue
		}
		b.WriteByte(quote)
		b.WriteString(key)
		b.WriteByte(quote)
	}
	return b.String()
}
