package remaster

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/aymanbagabas/go-udiff"

	"remaster/pkg/disk"
	"remaster/pkg/grub"
	"remaster/pkg/rootfs"
	"remaster/pkg/verify"
)

// Document is a plan for people and programs: what plan and build print with --json.
type Document struct {
	Format   Format      `json:"format"`
	Size     int64       `json:"size"` // bytes of the guest's disk
	Changes  []ChangeDoc `json:"changes"`
	Boot     []BootDoc   `json:"boot"`
	Verify   []RuleDoc   `json:"verify"`
	Notes    []string    `json:"notes"`
	Warnings []string    `json:"warnings"`
}

// ChangeDoc is one change of a file.
type ChangeDoc struct {
	Path   string    `json:"path"`
	Op     rootfs.Op `json:"op"`
	Why    []string  `json:"why"`
	Before *NodeDoc  `json:"before,omitempty"`
	After  *NodeDoc  `json:"after,omitempty"`
	// Diff is a unified diff of a text file.
	Diff string `json:"diff,omitempty"`
}

// NodeDoc describes a file, folder or link.
type NodeDoc struct {
	Mode   string            `json:"mode"` // as ls prints it
	UID    uint32            `json:"uid"`
	GID    uint32            `json:"gid"`
	Size   int64             `json:"size,omitempty"`
	SHA256 string            `json:"sha256,omitempty"`
	Target string            `json:"target,omitempty"`
	Xattrs map[string]string `json:"xattrs,omitempty"` // values that are not text in hexadecimal after 0x
}

// BootDoc is a boot entry and what it boots with.
type BootDoc struct {
	ID      string `json:"id"`
	Title   string `json:"title"`
	Config  string `json:"config"` // the grub.cfg that shows it
	Path    string `json:"path"`   // the file that it is written in
	Kernel  string `json:"kernel,omitempty"`
	Default bool   `json:"default,omitempty"`
	Rescue  bool   `json:"rescue,omitempty"`
	// Before and After are the command lines that it can boot with: one, unless
	// readers of the entry differ. Before is nil where there is but one state.
	Before []LineDoc `json:"before,omitempty"`
	After  []LineDoc `json:"after"`
}

// LineDoc is a kernel command line.
type LineDoc struct {
	Reading grub.Reading `json:"reading,omitempty"`
	Cmdline string       `json:"cmdline"`
	Cgroup  grub.Mode    `json:"cgroup"` // what it asks systemd for
}

// RuleDoc is the result of a rule.
type RuleDoc struct {
	ID     string        `json:"id"`
	Status verify.Status `json:"status"`
	Title  string        `json:"title"`
	Detail string        `json:"detail"`
	Path   string        `json:"path,omitempty"`
	Why    string        `json:"why"`
	Remedy string        `json:"remedy"`
}

// maxDiff is the size, in bytes, of a file that a diff is still made of.
const maxDiff = 1 << 20

// Document describes the plan.
func (p *Plan) Document() (*Document, error) {
	d := &Document{
		Format: p.Image.Format, Size: p.guest.Size(), Changes: []ChangeDoc{},
		Boot: bootDocs(p.Before, p.After), Verify: RuleDocs(p.Rules),
		Notes: slices.Concat([]string{}, p.Notes), Warnings: slices.Concat([]string{}, p.Warnings),
	}
	for _, c := range p.Changes {
		doc := ChangeDoc{Path: c.Path, Op: c.Op, Why: c.Why}
		var err error
		if doc.Before, err = describe(c.Before); err != nil {
			return nil, fmt.Errorf("%s: %w", c.Path, err)
		}
		if doc.After, err = describe(c.After); err != nil {
			return nil, fmt.Errorf("%s: %w", c.Path, err)
		}
		doc.Diff = diff(c)
		d.Changes = append(d.Changes, doc)
	}
	return d, nil
}

// diff returns a unified diff of a text file's content, or "".
func diff(c rootfs.Change) string {
	before, wasText := text(c.Before)
	after, isText := text(c.After)
	if !wasText || !isText || before == after {
		return ""
	}
	a, b := "a"+c.Path, "b"+c.Path
	if c.Before == nil {
		a = "/dev/null"
	}
	if c.After == nil {
		b = "/dev/null"
	}
	return udiff.Unified(a, b, before, after)
}

func describe(n *rootfs.Node) (*NodeDoc, error) {
	if n == nil {
		return nil, nil
	}
	d := &NodeDoc{Mode: n.Mode.String(), UID: n.UID, GID: n.GID, Target: n.Target}
	for k, v := range n.Xattrs {
		if d.Xattrs == nil {
			d.Xattrs = map[string]string{}
		}
		if s := bytes.TrimSuffix(v, []byte{0}); utf8.Valid(s) && bytes.IndexByte(s, 0) < 0 {
			d.Xattrs[k] = string(s)
		} else {
			d.Xattrs[k] = "0x" + hex.EncodeToString(v)
		}
	}
	if n.Content != nil {
		h := sha256.New()
		if _, err := io.Copy(h, io.NewSectionReader(n.Content, 0, n.Content.Size())); err != nil {
			return nil, err
		}
		d.Size, d.SHA256 = n.Content.Size(), hex.EncodeToString(h.Sum(nil))
	}
	return d, nil
}

// text returns the content of a text file; a file that is absent is an empty text.
func text(n *rootfs.Node) (string, bool) {
	if n == nil {
		return "", true
	}
	if n.Content == nil || n.Content.Size() > maxDiff {
		return "", false
	}
	p := make([]byte, n.Content.Size())
	if disk.ReadFull(n.Content, p, 0) != nil || !utf8.Valid(p) || bytes.IndexByte(p, 0) >= 0 {
		return "", false
	}
	if strings.HasPrefix(string(p), "# GRUB Environment Block\n") {
		p = bytes.TrimRight(p, "#") // the block's padding is not text
	}
	return string(p), true
}

// bootDocs describes the entries of after, and what became of those of before.
func bootDocs(before, after *grub.Boot) []BootDoc {
	type key struct{ config, path, id string }
	old := map[key][]LineDoc{}
	if before != nil {
		for _, c := range before.Configs {
			for _, e := range c.Entries {
				old[key{c.Path, e.Path, e.ID}] = lineDocs(e)
			}
		}
	}
	docs := []BootDoc{}
	for _, c := range after.Configs {
		for _, e := range c.Entries {
			if e.Kernel == "" || e.Hidden {
				continue
			}
			docs = append(docs, BootDoc{
				ID: e.ID, Title: e.Title, Config: c.Path, Path: e.Path, Kernel: e.Kernel, Default: e.Default, Rescue: e.Rescue,
				Before: old[key{c.Path, e.Path, e.ID}], After: lineDocs(e),
			})
		}
	}
	return docs
}

func lineDocs(e grub.Entry) []LineDoc {
	docs := make([]LineDoc, 0, len(e.Lines))
	for _, l := range e.Lines {
		docs = append(docs, LineDoc{l.Reading, l.String(), grub.Verdict(l.Texts())})
	}
	return docs
}

// RuleDocs describes results of a verification.
func RuleDocs(results []verify.Result) []RuleDoc {
	docs := make([]RuleDoc, 0, len(results))
	for _, r := range results {
		docs = append(docs, RuleDoc{r.Rule.ID, r.Status, r.Rule.Title, r.Detail, r.Path, r.Rule.Why, r.Rule.Remedy})
	}
	return docs
}
