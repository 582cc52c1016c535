package rootfs

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// fstabEntry is a line of /etc/fstab, fstab(5).
type fstabEntry struct {
	spec, dir, typ string
	options        []string
}

func (e fstabEntry) has(option string) bool { return slices.Contains(e.options, option) }

// parseFstab returns the lines that mount something on a folder, parents first.
func parseFstab(text string) []fstabEntry {
	var out []fstabEntry
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 2 || strings.HasPrefix(f[0], "#") {
			continue
		}
		for len(f) < 4 {
			f = append(f, "")
		}
		dir := unescape(f[1])
		if !strings.HasPrefix(dir, "/") || f[2] == "swap" {
			continue
		}
		out = append(out, fstabEntry{unescape(f[0]), clean(dir), f[2], strings.Split(f[3], ",")})
	}
	slices.SortStableFunc(out, func(a, b fstabEntry) int {
		return cmp.Compare(strings.Count(a.dir, "/"), strings.Count(b.dir, "/"))
	})
	return out
}

// unescape undoes the octal escapes that stand for blanks.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if v, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(v))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// firstDisk are the names that Linux gives to partitions of the first disk.
var firstDisk = regexp.MustCompile(`^/dev/(?:(?:[shv]|xv)da|nvme0n1p|mmcblk0p)([0-9]{1,3})$`)

// wholeDisk are those of the disk itself.
var wholeDisk = regexp.MustCompile(`^/dev/(?:(?:[shv]|xv)da|nvme0n1|mmcblk0)$`)

// device finds the partition that spec, the first field of a line, names. guess says
// that it was found by a name that depends on the machine.
func device(parts []Part, spec string) (p *Part, guess bool, err error) {
	tag, value, isTag := strings.Cut(spec, "=")
	if rest, ok := strings.CutPrefix(spec, "/dev/disk/by-"); ok {
		if tag, value, isTag = strings.Cut(rest, "/"); isTag {
			value = unescapeUdev(value)
		}
	}
	match := func(*Part) bool { return false }
	switch value = strings.Trim(value, `"'`); {
	case value == "" && isTag:
	case isTag && strings.EqualFold(tag, "UUID"):
		match = func(p *Part) bool { return strings.EqualFold(p.FSUUID, value) }
	case isTag && strings.EqualFold(tag, "LABEL"):
		match = func(p *Part) bool { return p.FSLabel == value }
	case isTag && strings.EqualFold(tag, "PARTUUID"):
		match = func(p *Part) bool { return strings.EqualFold(p.UUID, value) }
	case isTag && strings.EqualFold(tag, "PARTLABEL"):
		match = func(p *Part) bool { return p.Name == value }
	case wholeDisk.MatchString(spec):
		guess, match = true, func(p *Part) bool { return p.Number == 0 }
	default:
		if m := firstDisk.FindStringSubmatch(spec); m != nil {
			n, _ := strconv.Atoi(m[1])
			guess, match = true, func(p *Part) bool { return p.Number == n && n > 0 }
		}
	}
	for i := range parts {
		if !match(&parts[i]) {
			continue
		}
		if p != nil {
			return nil, false, fmt.Errorf("both %v and %v are %s", p.Part, parts[i].Part, spec)
		}
		p = &parts[i]
	}
	return p, guess, nil
}

// unescapeUdev undoes udev's \x20 in names of links.
func unescapeUdev(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if strings.HasPrefix(s[i:], `\x`) && i+3 < len(s) {
			if v, err := strconv.ParseUint(s[i+2:i+4], 16, 8); err == nil {
				b.WriteByte(byte(v))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
