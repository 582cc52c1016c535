package grub

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"remaster/internal/hint"
	"remaster/pkg/disk"
)

// The variables of /etc/default/grub that hold kernel arguments (GRUB manual, "Simple
// configuration"). grub2-mkconfig puts those of the second one last.
const (
	varCmdline        = "GRUB_CMDLINE_LINUX"
	varCmdlineDefault = "GRUB_CMDLINE_LINUX_DEFAULT"
)

// Bounds of a settings file, and of a variable's value, which may name others and so
// grow with each line. In bytes.
const (
	maxDefaults = 1 << 18
	maxValue    = 1 << 18
)

// Defaults is a settings file in shell syntax, as /etc/default/grub is: assignments with
// any quoting, +=, export, continued lines and comments are understood; what only a
// shell could work out is kept, and refused where it matters.
type Defaults struct {
	text string
	lex  shLexer
}

// ParseDefaults reads a settings file.
func ParseDefaults(data []byte) (*Defaults, error) {
	if len(data) > maxDefaults {
		return nil, fmt.Errorf("settings file of %d bytes: %w", len(data), disk.ErrUnsupported)
	}
	d := &Defaults{text: string(data), lex: shLexer{src: string(data)}}
	if err := d.lex.run(); err != nil {
		return nil, err
	}
	return d, nil
}

// Bytes returns the file, as it was parsed where it was not edited.
func (d *Defaults) Bytes() []byte { return []byte(d.text) }

// ForGRUB says whether the file assigns anything that GRUB's tools read.
func (d *Defaults) ForGRUB() bool {
	return slices.ContainsFunc(d.lex.assigns, func(a assign) bool { return strings.HasPrefix(a.name, "GRUB_") })
}

// Get returns the value that a variable has at the end of the file, and whether it is
// set at all. It is an error wrapping disk.ErrUnsupported if only a shell could tell.
func (d *Defaults) Get(name string) (value string, ok bool, err error) {
	v, ok, err := d.eval(name)
	return atomText(v), ok, err
}

func atomText(v []atom) string {
	b := make([]byte, len(v))
	for i, a := range v {
		b[i] = a.lit
	}
	return string(b)
}

// eval returns a variable's value, each byte with the place in the source that it comes
// from.
func (d *Defaults) eval(name string) ([]atom, bool, error) {
	for _, c := range d.lex.cmds {
		if mentions(c.text, name) {
			return nil, false, d.dynamic(c.line, name, "a command uses it: "+strings.ToValidUTF8(c.text[:min(len(c.text), 60)], "?"))
		}
	}
	env := map[string][]atom{}
	bad := map[string]error{}
	set := map[string]bool{}
	size := 0
	for _, a := range d.lex.assigns {
		v := []atom{}
		var err error
		if a.add {
			v, err = append(v, env[a.name]...), bad[a.name]
		}
		if a.cond {
			err = d.dynamic(a.line, a.name, "it is assigned inside of a condition, loop, function or pipe")
		}
		for _, at := range a.atoms {
			switch {
			case at.dyn != "" && err == nil:
				err = d.dynamic(a.line, a.name, at.dyn)
			case at.name != "":
				v = append(v, env[at.name]...)
				if err == nil {
					err = bad[at.name]
				}
			default:
				v = append(v, at)
			}
			if size++; len(v)+size > maxValue {
				return nil, false, fmt.Errorf("line %d: values grow over %d bytes: %w", a.line, maxValue, disk.ErrUnsupported)
			}
		}
		size += len(v)
		env[a.name], bad[a.name], set[a.name] = v, err, true
	}
	return env[name], set[name], bad[name]
}

func (d *Defaults) dynamic(line int, name, what string) error {
	err := fmt.Errorf("line %d: %s cannot be worked out without a shell: %s: %w", line, name, what, disk.ErrUnsupported)
	return hint.With(err, "write the value of "+name+" as one plain assignment in the base image")
}

// mentions says whether text holds name as a whole identifier.
func mentions(text, name string) bool {
	for at := 0; ; {
		i := strings.Index(text[at:], name)
		if i < 0 {
			return false
		}
		i += at
		at = i + len(name)
		if (i == 0 || !isName(text[i-1], false)) && (at == len(text) || !isName(text[at], false)) {
			return true
		}
	}
}

// Apply edits the kernel arguments in a variable so that its effective value has them,
// and says whether the text changed. A variable that is not there is added at the end
// if there is something to set.
func (d *Defaults) Apply(name string, e Edit) (bool, error) {
	val, ok, err := d.eval(name)
	if err != nil {
		return false, err
	}
	text := atomText(val)
	words := splitCmdline(text)
	sp := e.plan(words).splices(words)
	if len(sp) == 0 {
		return false, nil
	}
	want := applySplices(text, sp)
	src, err := d.sourceSplices(name, ok, val, sp)
	if err != nil {
		return false, err
	}
	// The proof is in reading it again.
	nd, err := ParseDefaults([]byte(applySplices(d.text, src)))
	if err == nil {
		var got string
		if got, _, err = nd.Get(name); err == nil && got != want {
			err = fmt.Errorf("the edited file would give %q instead of %q", got, want)
		}
	}
	if err != nil {
		return false, fmt.Errorf("edit %s: %w", name, err)
	}
	*d = *nd
	return true, nil
}

// sourceSplices maps splices of a variable's value to splices of the file.
func (d *Defaults) sourceSplices(name string, isSet bool, val []atom, sp []splice) ([]splice, error) {
	if !isSet {
		line := name + `="` + dquote(sp[0].text) + "\"\n"
		if d.text != "" && !strings.HasSuffix(d.text, "\n") {
			line = "\n" + strings.TrimSuffix(line, "\n")
		}
		return []splice{{len(d.text), len(d.text), line}}, nil
	}
	var out []splice
	for _, s := range sp {
		for _, a := range val[s.start:s.end] {
			out = append(out, splice{a.start, a.end, ""})
		}
		if s.text == "" {
			continue
		}
		ins, err := d.insertion(name, val, s)
		if err != nil {
			return nil, err
		}
		out = append(out, ins...)
	}
	return out, nil
}

// plainValue is a value that can be put in double quotes as it is.
var plainValue = regexp.MustCompile(`^[A-Za-z0-9_.,:/=@%+-]+\r*$`)

// insertion returns the splices of the file that put s.text at s.start of the value,
// with the quoting of the place.
func (d *Defaults) insertion(name string, val []atom, s splice) ([]splice, error) {
	var own, last *assign // that holds the place; the last one
	var anchor *atom
	if s.start > 0 {
		anchor = &val[s.start-1]
	} else if len(val) > 0 {
		anchor = &val[0]
	}
	for i := range d.lex.assigns {
		a := &d.lex.assigns[i]
		if a.name != name {
			continue
		}
		last = a
		if anchor != nil && a.vstart <= anchor.start && anchor.end <= a.vend {
			own = a
		}
	}
	if own == nil { // the value is empty, or ends in what another variable holds
		if s.start < len(val) {
			return nil, d.dynamic(last.line, name, "the place to edit lies in another variable")
		}
		return d.atEnd(last, s.text), nil
	}
	at := anchor.end
	if s.start == 0 {
		at = anchor.start
	}
	switch {
	case anchor.quote == '"':
		return []splice{{at, at, d.inDouble(own, at, s.text)}}, nil
	case anchor.quote == '\'':
		return []splice{{at, at, s.text}}, nil
	case plainValue.MatchString(d.text[own.vstart:own.vend]):
		end := own.vstart + len(strings.TrimRight(d.text[own.vstart:own.vend], "\r"))
		if at <= end {
			return []splice{{own.vstart, own.vstart, `"`}, {at, at, s.text}, {end, end, `"`}}, nil
		}
	}
	return []splice{{at, at, `"` + dquote(s.text) + `"`}}, nil
}

// atEnd puts text at the end of an assignment's value, inside of the quotes that end it.
func (d *Defaults) atEnd(a *assign, text string) []splice {
	// A quote in last place closes a string: an escaped one would be a byte of the value.
	if v := d.text[a.vstart:a.vend]; len(v) > 1 && v[len(v)-1] == '"' {
		return []splice{{a.vend - 1, a.vend - 1, d.inDouble(a, a.vend-1, text)}}
	} else if len(v) > 1 && v[len(v)-1] == '\'' {
		return []splice{{a.vend - 1, a.vend - 1, text}}
	}
	return []splice{{a.vend, a.vend, `"` + dquote(text) + `"`}}
}

// inDouble returns text as it is written inside of double quotes at a position. Behind
// "$NAME" it would lengthen the name, so the quotes are closed and opened again.
func (d *Defaults) inDouble(a *assign, at int, text string) string {
	for _, b := range a.atoms {
		if b.name != "" && b.end == at && d.text[at-1] != '}' && isName(text[0], false) {
			return `""` + dquote(text)
		}
	}
	return dquote(text)
}

var dquoteEscape = strings.NewReplacer(`\`, `\\`, `"`, `\"`, `$`, `\$`, "`", "\\`")

func dquote(s string) string { return dquoteEscape.Replace(s) }
