package systemd

import (
	"bytes"
	"fmt"
	"strings"

	"remaster/pkg/disk"
)

// maxUnit is the length of a unit file that is read at most, in bytes. The longest
// that any distribution ships has some ten kilobytes.
const maxUnit = 1 << 20

// Assignment is one "Key=Value" of a unit file, in the section that it stands in.
type Assignment struct{ Section, Key, Value string }

// Parse returns the assignments of a unit file in order. It reads what systemd reads
// (systemd.syntax(7)): lines joined by a final backslash, comments also between joined
// lines, white space around key and value dropped. What systemd ignores with a warning
// (a line without "=", an assignment before the first section) is left out.
func Parse(data []byte) ([]Assignment, error) {
	if len(data) > maxUnit {
		return nil, fmt.Errorf("unit file of %d bytes is longer than %d: %w", len(data), maxUnit, disk.ErrUnsupported)
	}
	if i := bytes.IndexByte(data, 0); i >= 0 {
		return nil, fmt.Errorf("unit file has a zero byte at %d: %w", i, disk.ErrCorrupt)
	}
	var out []Assignment
	section := ""
	add := func(line string) {
		line = strings.TrimSpace(line)
		if line == "" {
			return
		}
		if s, ok := strings.CutPrefix(line, "["); ok {
			if s, ok := strings.CutSuffix(s, "]"); ok {
				section = s
			}
			return
		}
		key, value, ok := strings.Cut(line, "=")
		if ok && section != "" && strings.TrimSpace(key) != "" {
			out = append(out, Assignment{section, strings.TrimSpace(key), strings.TrimSpace(value)})
		}
	}
	var joined strings.Builder
	for raw := range strings.SplitSeq(string(data), "\n") {
		line := strings.TrimSuffix(raw, "\r")
		if t := strings.TrimLeft(line, " \t"); t != "" && (t[0] == '#' || t[0] == ';') {
			continue
		}
		if head, ok := cutContinuation(line); ok {
			joined.WriteString(head)
			joined.WriteByte(' ')
			continue
		}
		joined.WriteString(line)
		add(joined.String())
		joined.Reset()
	}
	add(joined.String())
	return out, nil
}

// cutContinuation drops the backslash that joins a line to the next. Two backslashes at
// the end are an escaped one and join nothing.
func cutContinuation(line string) (string, bool) {
	n := len(line) - len(strings.TrimRight(line, `\`))
	if n%2 == 0 {
		return line, false
	}
	return line[:len(line)-1], true
}

// splitWords splits a list of names at white space; quotes keep it together. A list
// with an open quote is no list, and systemd ignores it.
func splitWords(s string) (words []string, ok bool) {
	var word strings.Builder
	in, quote := false, byte(0)
	for i := range len(s) {
		switch c := s[i]; {
		case quote != 0 && c == quote:
			quote = 0
		case quote == 0 && (c == '"' || c == '\'') && !in:
			quote, in = c, true
		case quote == 0 && (c == ' ' || c == '\t' || c == '\n' || c == '\r'):
			if in {
				words = append(words, word.String())
				word.Reset()
				in = false
			}
		default:
			word.WriteByte(c)
			in = true
		}
	}
	if quote != 0 {
		return nil, false
	}
	if in {
		words = append(words, word.String())
	}
	return words, true
}

// Boolean reads a switch as systemd does: 1, yes, y, true, t, on and their opposites.
func Boolean(s string) (value, ok bool) {
	switch strings.ToLower(s) {
	case "1", "yes", "y", "true", "t", "on":
		return true, true
	case "0", "no", "n", "false", "f", "off":
		return false, true
	}
	return false, false
}
