package grub

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"remaster/pkg/disk"
)

// The environment block, as GRUB's grub-core/lib/envblk.c and the manual's "Environment
// block" describe it: the signature, lines "name=value" in which a backslash takes the
// next byte literally, newlines too, and '#' up to the end of the file.
const (
	envSignature = "# GRUB Environment Block\n"
	envSize      = 1024    // what grub2-editenv creates; GRUB itself takes any size
	maxEnvSize   = 1 << 16 // more than that is not an environment block
)

// ErrNoRoom says that a variable does not fit into an environment block.
var ErrNoRoom = errors.New("no room in the environment block")

// EnvBlock is a GRUB environment block, grubenv. GRUB writes to it at boot, sector by
// sector, so its size never changes.
type EnvBlock struct {
	data []byte
	vars []envVar
	// damage says why GRUB cannot read all of the block; "" if it can.
	damage string
}

type envVar struct {
	name, value string
	start, end  int // of the line, with its newline
}

// ParseEnvBlock reads a block as GRUB does. Any bytes up to 64 KiB are taken: GRUB reads
// nothing from a block with a wrong signature, and nothing from an unfinished line on.
// [EnvBlock.Damage] tells.
func ParseEnvBlock(data []byte) (*EnvBlock, error) {
	if len(data) > maxEnvSize {
		return nil, fmt.Errorf("environment block of %d bytes: %w", len(data), disk.ErrUnsupported)
	}
	b := &EnvBlock{data: bytes.Clone(data)}
	if len(data) <= len(envSignature) || string(data[:len(envSignature)]) != envSignature {
		b.damage = "it does not begin with GRUB's signature, so GRUB reads nothing from it"
		return b, nil
	}
	for p := len(envSignature); p < len(data); {
		end, ok := envLineEnd(data, p)
		if data[p] == '#' {
			p = end
			continue
		}
		// The name ends at an equals sign wherever that is, a later line included.
		eq := bytes.IndexByte(data[p:], '=')
		if eq >= 0 {
			end, ok = envLineEnd(data, p+eq+1)
		}
		if eq < 0 || !ok {
			b.damage = fmt.Sprintf("its last line, at byte %d, is not finished, so GRUB does not read that", p)
			return b, nil
		}
		b.vars = append(b.vars, envVar{string(data[p : p+eq]), envUnescape(data[p+eq+1 : end-1]), p, end})
		p = end
	}
	if len(data) < envSize {
		b.damage = fmt.Sprintf("it has %d bytes, not %d", len(data), envSize)
	}
	return b, nil
}

// envLineEnd returns the offset behind the newline that ends the line, and whether there
// is one.
func envLineEnd(data []byte, p int) (int, bool) {
	for ; p < len(data); p++ {
		switch data[p] {
		case '\n':
			return p + 1, true
		case '\\':
			p++
		}
	}
	return len(data), false
}

func envUnescape(v []byte) string {
	out := make([]byte, 0, len(v))
	for i := 0; i < len(v); i++ {
		if v[i] == '\\' && i+1 < len(v) {
			i++
		}
		out = append(out, v[i])
	}
	return string(out)
}

var envEscape = strings.NewReplacer("\\", "\\\\", "\n", "\\\n")

// Damage says why GRUB cannot read all of the block, or "" if nothing is wrong.
func (b *EnvBlock) Damage() string { return b.damage }

// Bytes returns the block.
func (b *EnvBlock) Bytes() []byte { return bytes.Clone(b.data) }

// Get returns a variable as GRUB sees it: of doubles the last one.
func (b *EnvBlock) Get(name string) (value string, ok bool) {
	for _, v := range b.vars {
		if v.name == name {
			value, ok = v.value, true
		}
	}
	return value, ok
}

// Names returns the names of the variables in order, doubles left out.
func (b *EnvBlock) Names() []string {
	var out []string
	seen := map[string]bool{}
	for _, v := range b.vars {
		if !seen[v.name] {
			seen[v.name] = true
			out = append(out, v.name)
		}
	}
	return out
}

// Set gives a variable a value, in place if it is there, else behind the others. The
// other bytes stay in their order. If there is no room the error is [ErrNoRoom] and the
// block unchanged. A damaged block has to be repaired first.
func (b *EnvBlock) Set(name, value string) error {
	if b.damage != "" {
		return fmt.Errorf("set %s: damaged environment block: %w", name, disk.ErrCorrupt)
	}
	if old, ok := b.Get(name); ok && old == value {
		return nil
	}
	line := name + "=" + envEscape.Replace(value) + "\n"
	var body []byte
	at, found := len(envSignature), false
	for _, v := range b.vars {
		body = append(body, b.data[at:v.start]...)
		switch {
		case v.name != name:
			body = append(body, b.data[v.start:v.end]...)
		case !found: // later doubles go
			body = append(body, line...)
			found = true
		}
		at = v.end
	}
	// Comments may stand between the last variable and the padding.
	rest := bytes.TrimRight(b.data[at:], "#")
	if i := bytes.LastIndexByte(rest, '\n'); i < 0 {
		rest = nil
	} else {
		rest = rest[:i+1]
	}
	body = append(body, rest...)
	if !found {
		body = append(body, line...)
	}
	if n := len(envSignature) + len(body); n > len(b.data) {
		return fmt.Errorf("set %s: %d bytes more than the block has: %w", name, n-len(b.data), ErrNoRoom)
	}
	nb, err := ParseEnvBlock(padEnv(append([]byte(envSignature), body...), len(b.data)))
	if err != nil {
		return err
	}
	*b = *nb
	return nil
}

func padEnv(data []byte, size int) []byte {
	return append(data, bytes.Repeat([]byte{'#'}, max(0, size-len(data)))...)
}

// Repair makes a damaged block a whole one that holds exactly the variables that GRUB
// read from the damaged one: everything boots as it did. It says whether there was
// something to do.
func (b *EnvBlock) Repair() bool {
	if b.damage == "" {
		return false
	}
	body := []byte(envSignature)
	for _, v := range b.vars {
		body = append(body, b.data[v.start:v.end]...)
	}
	nb, err := ParseEnvBlock(padEnv(body, max(envSize, len(b.data))))
	if err != nil {
		return false
	}
	*b = *nb
	return true
}
