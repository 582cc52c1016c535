package systemd

import (
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"remaster/pkg/disk"
)

// maxName is the length of a unit name with its suffix, in bytes (UNIT_NAME_MAX,
// systemd.unit(5)).
const maxName = 255

var types = []string{".service", ".socket", ".target", ".device", ".mount", ".automount", ".swap", ".timer", ".path", ".slice", ".scope"}

// validName reports whether s is a unit name: characters of systemd.unit(5), a known
// type, something before it.
func validName(s string) bool {
	ext := path.Ext(s)
	stem := strings.TrimSuffix(s, ext)
	if len(s) > maxName || !slices.Contains(types, ext) || stem == "" || stem[0] == '@' {
		return false
	}
	for i := range len(stem) {
		c := stem[i]
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte(`:-_.\@`, c) >= 0 {
			continue
		}
		return false
	}
	return true
}

func checkName(s string) error {
	if !validName(s) {
		return fmt.Errorf("%q is not a valid unit name: %w", s, fs.ErrInvalid)
	}
	return nil
}

// splitName takes a unit name apart: prefix, instance and type with its dot. at says
// that the name has an "@": with an empty instance it is a template.
func splitName(s string) (prefix, instance, ext string, at bool) {
	ext = path.Ext(s)
	prefix, instance, at = strings.Cut(strings.TrimSuffix(s, ext), "@")
	return prefix, instance, ext, at
}

// isTemplate reports whether s is a name like "getty@.service".
func isTemplate(s string) bool {
	_, instance, _, at := splitName(s)
	return at && instance == ""
}

// isInstance reports whether s is a name like "getty@tty1.service".
func isInstance(s string) bool {
	_, instance, _, at := splitName(s)
	return at && instance != ""
}

// templateOf returns the template of an instance, and any other name as it is.
func templateOf(s string) string {
	if prefix, _, ext, at := splitName(s); at {
		return prefix + "@" + ext
	}
	return s
}

// withInstance returns the instance of a template.
func withInstance(s, instance string) string {
	prefix, _, ext, _ := splitName(s)
	return prefix + "@" + instance + ext
}

// expand replaces the specifiers that an [Install] section may hold (systemd.unit(5))
// and that follow from the unit's name alone.
func expand(s, unit string) (string, error) {
	prefix, instance, ext, _ := splitName(unit)
	var out strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '%' || i+1 == len(s) {
			out.WriteByte(s[i])
			continue
		}
		i++
		switch s[i] {
		case '%':
			out.WriteByte('%')
		case 'n':
			out.WriteString(unit)
		case 'N':
			out.WriteString(strings.TrimSuffix(unit, ext))
		case 'p':
			out.WriteString(prefix)
		case 'i':
			out.WriteString(instance)
		case 'j':
			out.WriteString(prefix[strings.LastIndexByte(prefix, '-')+1:])
		default:
			return "", fmt.Errorf("specifier %%%c in %q depends on the running system: %w", s[i], s, disk.ErrUnsupported)
		}
	}
	return out.String(), nil
}
