// Package verify judges a guest: did the change work, will the node come up, will
// Kubernetes take it. It reads files and changes nothing.
//
// Each [Rule] has an id that does not change, a reason and a remedy. A rule that cannot
// be decided from files says so instead of guessing.
package verify

import (
	"errors"
	"fmt"
	"io/fs"
	"path"

	"remaster/pkg/grub"
	"remaster/pkg/rootfs"
)

// Severity says what a rule is about: whether the node does what it was made for, or
// advice.
type Severity string

// The severities.
const (
	Error  Severity = "error"
	Advice Severity = "advice"
)

// Status is the outcome of a rule.
type Status string

// The outcomes.
const (
	Pass    Status = "pass"
	Fail    Status = "fail"    // what the rule wants is not so; only rules of severity Error fail
	Warn    Status = "warn"    // the same of a rule of severity Advice, or something near it
	Unknown Status = "unknown" // the files do not say
	Skip    Status = "skip"    // the rule is about something that the guest does not have
)

// Rule is one thing that is looked at.
type Rule struct {
	ID       string // lower case words with dashes
	Title    string // what is wanted
	Why      string
	Remedy   string
	Severity Severity
}

// Result is the outcome of a rule. Detail says what was found, Path where, if it is one
// place.
type Result struct {
	Rule   Rule
	Status Status
	Detail string
	Path   string
}

// Failed reports whether one of the results is a failure.
func Failed(results []Result) bool {
	for _, r := range results {
		if r.Status == Fail {
			return true
		}
	}
	return false
}

// Rules returns all rules in the order in which Run applies them.
func Rules() []Rule {
	out := make([]Rule, len(rules))
	for i, r := range rules {
		out[i] = r.Rule
	}
	return out
}

// Run applies every rule to a guest. There is one result for each, in a fixed order.
func Run(t rootfs.Tree) []Result {
	g := &guest{Tree: t}
	g.boot, g.bootErr = grub.Resolve(t)
	out := make([]Result, len(rules))
	for i, r := range rules {
		f := r.check(g)
		if f.err != nil {
			f.status, f.detail = Unknown, f.err.Error()
		}
		if f.status == Fail && r.Severity != Error {
			f.status = Warn
		}
		out[i] = Result{r.Rule, f.status, f.detail, f.path}
	}
	return out
}

// rule is a Rule with the function that decides it.
type rule struct {
	Rule
	check func(*guest) finding
}

// finding is what a check found. err makes it Unknown.
type finding struct {
	status Status
	detail string
	path   string
	err    error
}

func pass(format string, args ...any) finding {
	return finding{status: Pass, detail: fmt.Sprintf(format, args...)}
}

func fail(format string, args ...any) finding {
	return finding{status: Fail, detail: fmt.Sprintf(format, args...)}
}

func warn(format string, args ...any) finding {
	return finding{status: Warn, detail: fmt.Sprintf(format, args...)}
}

func unknown(format string, args ...any) finding {
	return finding{status: Unknown, detail: fmt.Sprintf(format, args...)}
}

func skip(format string, args ...any) finding {
	return finding{status: Skip, detail: fmt.Sprintf(format, args...)}
}

func (f finding) at(path string) finding {
	f.path = path
	return f
}

// guest is the tree that is judged, with what several rules need.
type guest struct {
	rootfs.Tree
	boot    *grub.Boot
	bootErr error
}

// text returns a file's content; ok is false if nothing is there.
func (g *guest) text(p string) (text string, ok bool, err error) {
	b, err := rootfs.ReadFile(g, p)
	if missing(err) {
		return "", false, nil
	}
	return string(b), err == nil, err
}

// files returns the paths of what a folder holds and whose name fits the pattern,
// sorted by name; none if there is no folder.
func (g *guest) files(dir, pattern string) ([]string, error) {
	entries, err := g.ReadDir(dir)
	if missing(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		if ok, _ := path.Match(pattern, e.Name); ok {
			out = append(out, path.Join(dir, e.Name))
		}
	}
	return out, nil
}

// program returns the path of a program on the usual search path, "" if there is none.
func (g *guest) program(name string) string {
	for _, dir := range []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"} {
		p := dir + "/" + name
		if n, err := g.Stat(p); err == nil && n.Mode.IsRegular() && n.Mode&0o111 != 0 {
			return p
		}
	}
	return ""
}

func missing(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, rootfs.ErrNotDir)
}
