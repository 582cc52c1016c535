package importer

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Limits of names and texts, in characters (ECS API 2014-05-26, ImportImage).
const (
	minName, maxName = 2, 128
	maxDescription   = 256
	maxTags          = 20
	maxTag           = 128
)

// CheckName says what is wrong with an image's name.
func CheckName(name string) error {
	if n := utf8.RuneCountInString(name); n < minName || n > maxName {
		return fmt.Errorf("image name %q has %d characters, not %d to %d", name, n, minName, maxName)
	}
	if !utf8.ValidString(name) {
		return fmt.Errorf("image name %q is not UTF-8", name)
	}
	for i, c := range name {
		switch {
		case isLetter(c):
		case i == 0:
			return fmt.Errorf("image name %q does not start with a letter", name)
		case c >= '0' && c <= '9', strings.ContainsRune(".:_-", c):
		default:
			return fmt.Errorf("image name %q has %q in it, which is none of letters, digits, '.', ':', '_' and '-'", name, c)
		}
	}
	if p := reserved(name); p != "" {
		return fmt.Errorf("image name %q starts with %s, which is Alibaba Cloud's own", name, p)
	}
	return nil
}

// CheckDescription says what is wrong with an image's description; none is fine.
func CheckDescription(s string) error {
	if s == "" {
		return nil
	}
	if n := utf8.RuneCountInString(s); n < 2 || n > maxDescription {
		return fmt.Errorf("the description has %d characters, not 2 to %d", n, maxDescription)
	}
	if strings.HasPrefix(s, "http://") || strings.HasPrefix(s, "https://") {
		return errors.New("the description starts with a URL")
	}
	return nil
}

// CheckTags says what is wrong with an image's tags. The ones that this package adds
// count too.
func CheckTags(tags map[string]string) error {
	if n := len(tags); n > maxTags {
		return fmt.Errorf("%d tags are more than the %d that an image can have", n, maxTags)
	}
	for _, k := range slices.Sorted(maps.Keys(tags)) {
		switch n := utf8.RuneCountInString(k); {
		case n == 0:
			return errors.New("a tag has no key")
		case n > maxTag:
			return fmt.Errorf("the key of tag %q has %d characters, more than %d", k, n, maxTag)
		case reserved(k) != "":
			return fmt.Errorf("the key of tag %q starts with %s, which is Alibaba Cloud's own", k, reserved(k))
		}
		if n := utf8.RuneCountInString(tags[k]); n > maxTag {
			return fmt.Errorf("the value of tag %q has %d characters, more than %d", k, n, maxTag)
		}
		for _, s := range []string{k, tags[k]} {
			if strings.Contains(s, "http://") || strings.Contains(s, "https://") {
				return fmt.Errorf("tag %q holds a URL", k)
			}
		}
	}
	return nil
}

// reserved returns the prefix of s that users may not use, or "".
func reserved(s string) string {
	for _, p := range []string{"aliyun", "acs:"} {
		if len(s) >= len(p) && strings.EqualFold(s[:len(p)], p) {
			return p
		}
	}
	return ""
}

// isLetter reports whether a name may start with c.
func isLetter(c rune) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || unicode.Is(unicode.Han, c)
}

// nameWith puts an ASCII suffix behind a name, which loses its end where both are too
// long.
func nameWith(name, suffix string) string {
	r := []rune(name)
	return string(r[:min(len(r), maxName-len(suffix))]) + suffix
}
