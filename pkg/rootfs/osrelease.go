package rootfs

import (
	"errors"
	"io/fs"
	"strings"
)

// OSRelease returns the assignments of /etc/os-release, or of /usr/lib/os-release if
// that is missing (os-release(5)). Which systems are accepted is not decided here.
func OSRelease(t Tree) (map[string]string, error) {
	b, err := ReadFile(t, "/etc/os-release")
	if errors.Is(err, fs.ErrNotExist) {
		b, err = ReadFile(t, "/usr/lib/os-release")
	}
	if err != nil {
		return nil, err
	}
	return ParseEnvFile(b), nil
}

// ParseEnvFile returns the assignments of a file in the format of os-release(5), as
// /etc/image-id is another. The last of several of one name counts.
func ParseEnvFile(b []byte) map[string]string {
	out := map[string]string{}
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		k, v, ok := strings.Cut(line, "=")
		if ok && k != "" && k[0] != '#' {
			out[k] = unquote(v)
		}
	}
	return out
}

// unquote takes the quotes of the shell from a value. In double quotes a backslash
// protects the characters that mean something there.
func unquote(v string) string {
	if len(v) >= 2 && v[0] == '\'' && v[len(v)-1] == '\'' {
		return v[1 : len(v)-1]
	}
	quoted := len(v) >= 2 && v[0] == '"' && v[len(v)-1] == '"'
	if quoted {
		v = v[1 : len(v)-1]
	}
	var b strings.Builder
	for i := 0; i < len(v); i++ {
		if v[i] == '\\' && i+1 < len(v) && (!quoted || strings.IndexByte("\"\\$`", v[i+1]) >= 0) {
			i++
		}
		b.WriteByte(v[i])
	}
	return b.String()
}
