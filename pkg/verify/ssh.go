package verify

import (
	"path"
	"slices"
	"strings"
)

const (
	sshdConfig = "/etc/ssh/sshd_config"
	// maxIncludes bounds the files that a configuration takes in, one through another.
	maxIncludes = 64
)

// sshd collects what sshd_config(5) says for every connection: of several values of a
// keyword the first counts, but AllowUsers and the like add up. What stands below a
// Match line is for some connections only, and left out.
type sshd struct {
	g     *guest
	first map[string]string
	lists map[string][]string
	files int
}

func (s *sshd) read(p string, depth int) error {
	if s.files++; s.files > maxIncludes || depth > 16 {
		return nil
	}
	text, _, err := s.g.text(p)
	if err != nil {
		return err
	}
	for line := range strings.Lines(text) {
		key, args := sshdLine(line)
		switch {
		case key == "" || len(args) == 0:
		case key == "match":
			if len(args) > 1 || !strings.EqualFold(args[0], "all") {
				return nil
			}
		case key == "include":
			for _, pattern := range args {
				if !path.IsAbs(pattern) {
					pattern = path.Join("/etc/ssh", pattern)
				}
				files, err := s.g.files(path.Dir(pattern), path.Base(pattern))
				if err != nil {
					return err
				}
				for _, f := range files {
					if err := s.read(f, depth+1); err != nil {
						return err
					}
				}
			}
		case slices.Contains([]string{"allowusers", "denyusers", "allowgroups", "denygroups"}, key):
			s.lists[key] = append(s.lists[key], args...)
		default:
			if _, ok := s.first[key]; !ok {
				s.first[key] = strings.ToLower(args[0])
			}
		}
	}
	return nil
}

// sshdLine splits a line into its keyword in lower case and the arguments; an equals
// sign may stand between them.
func sshdLine(line string) (key string, args []string) {
	line = strings.TrimSpace(line)
	if line == "" || line[0] == '#' {
		return "", nil
	}
	i := strings.IndexAny(line, " \t=")
	if i < 0 {
		return strings.ToLower(line), nil
	}
	rest := strings.TrimLeft(line[i:], " \t")
	rest = strings.TrimPrefix(rest, "=")
	for _, a := range strings.Fields(rest) {
		if strings.HasPrefix(a, "#") {
			break
		}
		args = append(args, strings.Trim(a, `"`))
	}
	return strings.ToLower(line[:i]), args
}

func checkSSH(g *guest) finding {
	if g.program("sshd") == "" {
		if _, ok, err := g.text(sshdConfig); !ok {
			return finding{status: Skip, detail: "there is no SSH server", err: err}
		}
	}
	s := sshd{g: g, first: map[string]string{}, lists: map[string][]string{}}
	if err := s.read(sshdConfig, 0); err != nil {
		return finding{err: err}
	}
	f := pass("")
	switch v := s.first["permitrootlogin"]; v {
	case "no":
		f = fail("PermitRootLogin %s", v)
	case "forced-commands-only":
		f = fail("PermitRootLogin %s: keys run fixed commands only", v)
	}
	if v := s.first["pubkeyauthentication"]; v == "no" {
		f = fail("PubkeyAuthentication %s", v)
	}
	if l := s.lists["denyusers"]; matchesRoot(l) {
		f = fail("DenyUsers %s", strings.Join(l, " "))
	}
	if l := s.lists["allowusers"]; len(l) > 0 && !matchesRoot(l) {
		f = fail("AllowUsers %s", strings.Join(l, " "))
	}
	if l := s.lists["denygroups"]; matchesRoot(l) {
		f = fail("DenyGroups %s", strings.Join(l, " "))
	}
	if l := s.lists["allowgroups"]; len(l) > 0 && !matchesRoot(l) {
		f = fail("AllowGroups %s", strings.Join(l, " "))
	}
	return f.at(sshdConfig)
}

// matchesRoot reports whether a list of patterns takes in root; a host behind "@" is for
// the client to fulfil.
func matchesRoot(patterns []string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		p, _, _ = strings.Cut(p, "@")
		ok, _ := path.Match(p, "root")
		return ok
	})
}
