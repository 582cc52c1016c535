package rootfs

import (
	"errors"
	"io/fs"
	"path"
	"regexp"
	"strings"
)

// labeller finds the SELinux label of a new node as restorecon would: by the policy's
// file_contexts inside the guest (selabel_file(5)).
type labeller struct {
	labelled bool // the tree carries labels
	specs    []*spec
	subs     [2][]subst // .subs, then .subs_dist
}

// spec is a line of a file_contexts file.
type spec struct {
	pattern string
	prefix  string      // what every match begins with
	exact   bool        // the pattern is a path: prefix, all of it
	typ     fs.FileMode // of the nodes that it is for
	anyType bool
	context string
	re      *regexp.Regexp // compiled when it is first needed
	broken  bool
}

// subst says that paths below src are labelled like those below dst.
type subst struct{ src, dst string }

// label gives n, a new node at p, its label if the tree has labels, and returns the rule
// that it came from: the policy, else the most frequent label of nodes of the same type
// in the folder, else the folder's.
func (s *Stage) label(p string, n *Node) (rule string, err error) {
	folder := parent(p)
	dir, err := s.lstat(folder)
	if err != nil {
		return "", err
	}
	if dir.Xattrs == nil { // a volume that has no room for labels
		return "", nil
	}
	if s.labels == nil {
		if s.labels, err = newLabeller(s.base); err != nil {
			return "", err
		}
	}
	if !s.labels.labelled {
		return "", nil
	}
	label, rule := []byte(nil), ""
	if sp := s.labels.find(p, n.Mode.Type()); sp == nil {
		if label, rule, err = s.siblingLabel(folder, n.Mode.Type()); err != nil {
			return "", err
		}
	} else if sp.context != "<<none>>" {
		label, rule = append([]byte(sp.context), 0), "file_contexts "+sp.pattern
	}
	if label == nil {
		if label, rule = dir.Xattrs[selinux], "folder "+folder; label == nil {
			return "", nil
		}
	}
	if n.Xattrs == nil {
		n.Xattrs = map[string][]byte{}
	}
	n.Xattrs[selinux] = label
	return rule, nil
}

// maxSiblings is the number of siblings that are looked at.
const maxSiblings = 64

// siblingLabel returns the most frequent label of what is of type typ in the folder, of
// equally frequent ones the first.
func (s *Stage) siblingLabel(folder string, typ fs.FileMode) (label []byte, rule string, err error) {
	es, err := s.readDir(folder)
	if err != nil {
		return nil, "", err
	}
	var order []string // labels as they were met
	times, first := map[string]int{}, map[string]string{}
	seen := 0
	for _, e := range es {
		if e.Type != typ || seen == maxSiblings {
			continue
		}
		seen++
		n, err := s.lstat(join(folder, e.Name))
		if err != nil {
			return nil, "", err
		}
		if l := string(n.Xattrs[selinux]); l != "" {
			if times[l]++; times[l] == 1 {
				order, first[l] = append(order, l), join(folder, e.Name)
			}
		}
	}
	best := ""
	for _, l := range order {
		if times[l] > times[best] {
			best = l
		}
	}
	if best == "" {
		return nil, "", nil
	}
	return []byte(best), "sibling " + first[best], nil
}

// newLabeller looks whether the tree carries labels, and reads its policy's files.
func newLabeller(t Tree) (*labeller, error) {
	l := &labeller{}
	for _, p := range []string{"/", "/etc", "/usr"} {
		n, err := t.Stat(p)
		if err == nil && len(n.Xattrs[selinux]) > 0 {
			l.labelled = true
		} else if err != nil && !isMissing(err) {
			return nil, err
		}
	}
	if !l.labelled {
		return l, nil
	}
	dir, err := contextsDir(t)
	if err != nil || dir == "" {
		return l, err
	}
	read := func(suffix string) (string, error) {
		b, err := ReadFile(t, dir+"/file_contexts"+suffix)
		if isMissing(err) {
			err = nil
		}
		return string(b), err
	}
	var exact []*spec
	for _, suffix := range []string{"", ".homedirs", ".local"} {
		text, err := read(suffix)
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(text) {
			if sp := parseSpec(line); sp != nil && sp.exact {
				exact = append(exact, sp)
			} else if sp != nil {
				l.specs = append(l.specs, sp)
			}
		}
	}
	l.specs = append(l.specs, exact...) // libselinux prefers paths to patterns
	for i, suffix := range []string{".subs", ".subs_dist"} {
		text, err := read(suffix)
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(text) {
			if f := strings.Fields(line); len(f) == 2 && !strings.HasPrefix(f[0], "#") {
				l.subs[i] = append(l.subs[i], subst{f[0], f[1]})
			}
		}
	}
	return l, nil
}

func isMissing(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrNotDir)
}

// contextsDir returns the folder of the configured policy's file_contexts, else of the
// first policy that has one, else "".
func contextsDir(t Tree) (string, error) {
	var types []string
	config, err := ReadFile(t, "/etc/selinux/config")
	if err != nil && !isMissing(err) {
		return "", err
	}
	for line := range strings.Lines(string(config)) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), "SELINUXTYPE="); ok {
			types = append(types, strings.TrimSpace(v))
		}
	}
	es, err := t.ReadDir("/etc/selinux")
	if err != nil && !isMissing(err) {
		return "", err
	}
	for _, e := range es {
		types = append(types, e.Name)
	}
	for _, typ := range types {
		dir := path.Join("/etc/selinux", typ, "contexts/files")
		if found, err := Exists(t, dir+"/file_contexts"); err != nil || found {
			return dir, err
		}
	}
	return "", nil
}

var specTypes = map[string]fs.FileMode{
	"--": 0, "-d": fs.ModeDir, "-l": fs.ModeSymlink, "-p": fs.ModeNamedPipe, "-s": fs.ModeSocket,
	"-b": fs.ModeDevice, "-c": fs.ModeDevice | fs.ModeCharDevice,
}

// maxSpec bounds the length of a pattern and of a label.
const maxSpec = 4096

// parseSpec reads a line: a pattern, a type or none, and a context. It returns nil for
// what is no such line.
func parseSpec(line string) *spec {
	f := strings.Fields(line)
	if len(line) > maxSpec || len(f) < 2 || len(f) > 3 || strings.HasPrefix(f[0], "#") {
		return nil
	}
	sp := &spec{pattern: f[0], anyType: true, context: f[len(f)-1]}
	if len(f) == 3 {
		typ, ok := specTypes[f[1]]
		if !ok {
			return nil
		}
		sp.typ, sp.anyType = typ, false
	}
	for _, c := range []byte(sp.context) {
		if c <= ' ' || c >= 0x7F {
			return nil
		}
	}
	sp.prefix, sp.exact = literalPrefix(sp.pattern)
	return sp
}

// literalPrefix returns the text that every match of a pattern begins with, and whether
// that is the whole pattern.
func literalPrefix(pattern string) (prefix string, whole bool) {
	depth := 0
	for i := 0; i < len(pattern); i++ {
		switch pattern[i] {
		case '\\':
			i++
		case '(':
			depth++
		case ')':
			depth--
		case '|':
			if depth <= 0 {
				return "", false
			}
		}
	}
	var b []byte
	for i := 0; i < len(pattern); i++ {
		c := pattern[i]
		switch {
		case c == '\\' && i+1 < len(pattern) && !isAlnum(pattern[i+1]):
			i++
			b = append(b, pattern[i])
		case strings.IndexByte(`?*{`, c) >= 0: // the character before it may be missing
			return string(b[:max(0, len(b)-1)]), false
		case strings.IndexByte(`\.^$+|[(`, c) >= 0:
			return string(b), false
		default:
			b = append(b, c)
		}
	}
	return string(b), true
}

func isAlnum(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

// find returns the line that counts for a node of type typ at p: the last that matches.
func (l *labeller) find(p string, typ fs.FileMode) *spec {
	for _, subs := range l.subs {
		p = substitute(subs, p)
	}
	for i := len(l.specs) - 1; i >= 0; i-- {
		if sp := l.specs[i]; (sp.anyType || sp.typ == typ) && sp.match(p) {
			return sp
		}
	}
	return nil
}

// substitute applies the last line for p; libselinux too tries them from the end.
func substitute(subs []subst, p string) string {
	for i := len(subs) - 1; i >= 0; i-- {
		rest, ok := strings.CutPrefix(p, subs[i].src)
		if ok && (rest == "" || rest[0] == '/') {
			return path.Join("/", subs[i].dst, rest)
		}
	}
	return p
}

func (sp *spec) match(p string) bool {
	if sp.exact {
		return p == sp.prefix
	}
	if sp.broken || !strings.HasPrefix(p, sp.prefix) {
		return false
	}
	if sp.re == nil {
		// Policies are written for PCRE. What RE2 can't do, no policy at hand uses.
		re, err := regexp.Compile(`(?s)^(?:` + sp.pattern + `)$`)
		if err != nil {
			sp.broken = true
			return false
		}
		sp.re = re
	}
	return sp.re.MatchString(p)
}
