package grub

import (
	"fmt"
	"slices"
	"strings"

	"remaster/pkg/disk"
)

// Arg is one argument of the kernel: "key" or "key=value", without quotes.
type Arg struct {
	Key, Value string
	HasValue   bool
}

// ParseArg splits "key=value" at the first equals sign that is not the first character,
// as the kernel does (lib/cmdline.c, next_arg).
func ParseArg(s string) Arg {
	if i := strings.IndexByte(s, '='); i > 0 {
		return Arg{s[:i], s[i+1:], true}
	}
	return Arg{Key: s}
}

// String returns the argument as a word of a command line: the value is quoted where it
// holds spaces, or characters that GRUB's script language would take for its own.
func (a Arg) String() string {
	switch {
	case !a.HasValue:
		return a.Key
	case strings.ContainsAny(a.Value, " \t;|&<>{}"):
		return a.Key + `="` + a.Value + `"`
	}
	return a.Key + "=" + a.Value
}

// check refuses what cannot stand in all the places where the argument has to go, each
// with its own quoting.
func (a Arg) check() error {
	bad := func(s, set string) bool {
		return strings.ContainsAny(s, set) || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f })
	}
	if a.Key == "" || a.Key == "--" || strings.HasPrefix(a.Key, "#") || bad(a.Key, "\"'\\`$ ;|&<>{}=") {
		return fmt.Errorf("kernel argument %q: not a usable name: %w", a.Key, disk.ErrUnsupported)
	}
	if bad(a.Value, "\"'\\`$") {
		return fmt.Errorf("kernel argument %s: value %q has quotes, $ or control characters: %w", a.Key, a.Value, disk.ErrUnsupported)
	}
	return nil
}

// SameKey says whether two names are of one parameter: the kernel (parameqn) and systemd
// (proc_cmdline_key_streq) both take '-' and '_' for the same character.
func SameKey(a, b string) bool {
	return len(a) == len(b) && strings.ReplaceAll(a, "-", "_") == strings.ReplaceAll(b, "-", "_")
}

// multiValued are the parameters that mean something each time they are given.
var multiValued = []string{
	"console", "earlycon", "cgroup_disable", "memmap", "dyndbg", "blacklist", "modprobe.blacklist", "rd.driver.blacklist",
	"module_blacklist", "rd.lvm.lv", "rd.lvm.vg", "rd.luks.uuid", "rd.luks.name", "rd.md.uuid", "rd.break", "ip", "systemd.wants",
	"systemd.mask", "systemd.setenv", "systemd.mount-extra", "pci", "hugepagesz", "hugepages", "video", "crashkernel",
}

// MultiValued says whether a parameter may be given several times, each time with a
// meaning of its own, as console= is. Such arguments belong in [Edit].Append.
func MultiValued(key string) bool {
	return slices.ContainsFunc(multiValued, func(k string) bool { return SameKey(k, key) })
}

// Edit is what to change in a command line, wherever it lives.
type Edit struct {
	// Set: each key is left with exactly this value, once.
	Set []Arg
	// Append: each is added unless it is there already; other values of its key stay.
	Append []Arg
	// Delete: an Arg with a value removes that value of the key, one without every
	// occurrence of the key.
	Delete []Arg
}

// CgroupV2 is the edit that makes systemd mount the unified hierarchy, and keeps the
// kernel from giving a controller to version 1.
func CgroupV2() Edit {
	return Edit{
		Set:    []Arg{ParseArg(keyUnified + "=1"), ParseArg(keyNoV1 + "=all")},
		Delete: []Arg{{Key: keyLegacy}},
	}
}

// Empty says whether the edit changes nothing at all.
func (e Edit) Empty() bool { return len(e.Set)+len(e.Append)+len(e.Delete) == 0 }

// Check refuses edits that contradict themselves or cannot be written down.
func (e Edit) Check() error {
	for _, a := range slices.Concat(e.Set, e.Append, e.Delete) {
		if err := a.check(); err != nil {
			return err
		}
	}
	for i, a := range e.Set {
		same := func(b Arg) bool { return SameKey(a.Key, b.Key) }
		if slices.ContainsFunc(e.Set[:i], same) || slices.ContainsFunc(e.Append, same) {
			return fmt.Errorf("kernel argument %s: given twice", a.Key)
		}
		if slices.ContainsFunc(e.Delete, func(d Arg) bool { return d.covers(a) }) {
			return fmt.Errorf("kernel argument %s: to be set and to be deleted", a)
		}
	}
	for _, a := range e.Append {
		if slices.ContainsFunc(e.Delete, func(d Arg) bool { return d.covers(a) }) {
			return fmt.Errorf("kernel argument %s: to be added and to be deleted", a)
		}
	}
	return nil
}

// covers says whether deleting a removes b.
func (a Arg) covers(b Arg) bool {
	return SameKey(a.Key, b.Key) && (!a.HasValue || b.HasValue && a.Value == b.Value)
}

// without returns the edit that only removes: every value of what is set, and what is
// to be deleted. It is for places that come before or after the one that sets.
func (e Edit) without() Edit {
	out := Edit{Delete: slices.Clone(e.Delete)}
	for _, a := range e.Set {
		out.Delete = append(out.Delete, Arg{Key: a.Key})
	}
	return out
}

// span is a word of a command line: its bytes in some text, quotes included, and what
// it says. Spans do not overlap and are in order.
type span struct {
	start, end int
	arg        Arg
	open       bool // a quote in it is not closed: nothing may follow
}

// splice replaces the bytes [start, end) of a text.
type splice struct {
	start, end int
	text       string
}

// applySplices returns text with the splices done. They are sorted and merged first;
// overlapping ones take the union.
func applySplices(text string, sp []splice) string {
	if len(sp) == 0 {
		return text
	}
	sp = slices.Clone(sp)
	slices.SortStableFunc(sp, func(a, b splice) int {
		if a.start != b.start {
			return a.start - b.start
		}
		return a.end - b.end
	})
	var out strings.Builder
	at := 0
	for _, s := range sp {
		if s.start > at {
			out.WriteString(text[at:s.start])
		}
		out.WriteString(s.text)
		at = max(at, s.end)
	}
	out.WriteString(text[at:])
	return out.String()
}

// change is an edit of a list of words: which ones go, and those that come, which stand
// before word at (the number of words: at the end).
type change struct {
	drop  []bool
	drops int
	add   []Arg
	at    int
}

// dropIf marks the words that f is true for.
func (c *change) dropIf(words []span, f func(Arg) bool) {
	for i, w := range words {
		if !c.drop[i] && f(w.arg) {
			c.drop[i] = true
			c.drops++
		}
	}
}

// plan works an edit out for a list of words. Words behind a lone "--" are init's: they
// do not count as set, yet are removed, because systemd reads /proc/cmdline to its end.
func (e Edit) plan(words []span) change {
	c := change{drop: make([]bool, len(words)), at: len(words)}
	for i, w := range words {
		if w.arg == (Arg{Key: "--"}) || w.open {
			c.at = i
			break
		}
	}
	c.dropIf(words, func(a Arg) bool {
		return slices.ContainsFunc(e.Delete, func(d Arg) bool { return d.covers(a) })
	})
	for _, set := range e.Set {
		n, right := 0, false
		for i, w := range words {
			if SameKey(w.arg.Key, set.Key) {
				n++
				right = i < c.at && w.arg == set
			}
		}
		if n == 1 && right {
			continue
		}
		c.dropIf(words, func(a Arg) bool { return SameKey(a.Key, set.Key) })
		c.add = append(c.add, set)
	}
	for _, add := range e.Append {
		if !slices.ContainsFunc(words[:c.at], func(w span) bool { return w.arg == add }) {
			c.add = append(c.add, add)
		}
	}
	return c
}

// splices turns a change of words into splices of the text that they lie in. A word
// goes with the space before it, the first one with the space behind it.
func (c change) splices(words []span) []splice {
	var out []splice
	kept := -1 // last kept word before where new ones come
	for i, w := range words {
		if !c.drop[i] {
			if i < c.at {
				kept = i
			}
			continue
		}
		switch {
		case i > 0:
			out = append(out, splice{start: words[i-1].end, end: w.end})
		case len(words) > 1:
			out = append(out, splice{start: w.start, end: words[1].start})
		default:
			out = append(out, splice{start: w.start, end: w.end})
		}
	}
	if len(c.add) == 0 {
		return out
	}
	var b strings.Builder
	for i, a := range c.add {
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(a.String())
	}
	switch {
	case kept >= 0:
		return append(out, splice{words[kept].end, words[kept].end, " " + b.String()})
	case len(words) == 0:
		return append(out, splice{0, 0, b.String()})
	case c.drops == len(words): // all go: the space around them stays
		return append(out, splice{words[0].start, words[0].start, b.String()})
	}
	return append(out, splice{words[0].start, words[0].start, b.String() + " "})
}

// Cmdline is a kernel command line. Its text is kept as it is: the words that an edit
// does not touch keep their quoting and the space between them. The zero value is an
// empty line.
type Cmdline struct {
	text  string
	words []span
}

// ParseCmdline splits a line as the kernel does: at white space outside of double
// quotes, which may begin and end anywhere in a word.
func ParseCmdline(s string) *Cmdline { return &Cmdline{s, splitCmdline(s)} }

func isSpace(c byte) bool { return c == ' ' || '\t' <= c && c <= '\r' }

func splitCmdline(s string) []span {
	var out []span
	for i := 0; i < len(s); {
		if isSpace(s[i]) {
			i++
			continue
		}
		start, quoted := i, false
		for i < len(s) && (quoted || !isSpace(s[i])) {
			if s[i] == '"' {
				quoted = !quoted
			}
			i++
		}
		out = append(out, span{start, i, ParseArg(unquote(s[start:i])), quoted})
	}
	return out
}

// unquote drops the quoting characters of the kernel and of GRUB, which hands the words
// to the kernel without them.
func unquote(s string) string {
	if !strings.ContainsAny(s, `"'\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '"', '\'':
			continue
		case '\\':
			if i+1 < len(s) {
				i++
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// String returns the line, byte for byte as it was parsed where it was not edited.
func (c *Cmdline) String() string { return c.text }

// Words returns the words as they are written, quotes included.
func (c *Cmdline) Words() []string {
	out := make([]string, len(c.words))
	for i, w := range c.words {
		out[i] = c.text[w.start:w.end]
	}
	return out
}

// Args returns what the words say. Those behind a lone "--" are init's, and left out.
func (c *Cmdline) Args() []Arg {
	var out []Arg
	for _, w := range c.words {
		if w.arg == (Arg{Key: "--"}) {
			break
		}
		out = append(out, w.arg)
	}
	return out
}

// Values returns the arguments with the key, in order.
func (c *Cmdline) Values(key string) []Arg {
	return slices.DeleteFunc(c.Args(), func(a Arg) bool { return !SameKey(a.Key, key) })
}

// Get returns the last value of a key, which is the one that counts for most
// parameters, and whether the key is there at all.
func (c *Cmdline) Get(key string) (value string, ok bool) {
	v := c.Values(key)
	if len(v) == 0 {
		return "", false
	}
	return v[len(v)-1].Value, true
}

// Set leaves key with exactly this value, once; at the end, if it was not so before.
func (c *Cmdline) Set(key, value string) bool {
	return c.Apply(Edit{Set: []Arg{{key, value, true}}})
}

// Add appends "key" or "key=value" unless that is there already. Other values stay.
func (c *Cmdline) Add(arg string) bool { return c.Apply(Edit{Append: []Arg{ParseArg(arg)}}) }

// Delete removes "key=value", or every occurrence of "key".
func (c *Cmdline) Delete(arg string) bool { return c.Apply(Edit{Delete: []Arg{ParseArg(arg)}}) }

// Apply does an edit and says whether the text changed.
func (c *Cmdline) Apply(e Edit) bool {
	sp := e.plan(c.words).splices(c.words)
	*c = *ParseCmdline(applySplices(c.text, sp))
	return len(sp) > 0
}
