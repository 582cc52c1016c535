package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"remaster/pkg/disk"
	"remaster/pkg/remaster"
	"remaster/pkg/sink"
)

func (a *app) build() *cobra.Command {
	var f recipeFlags
	var out, format string
	var force, noSync, asJSON bool
	cmd := &cobra.Command{
		Use:   "build IMAGE -o OUT",
		Short: "Write a remastered copy of an image",
		Long: `Write a copy of IMAGE that boots with unified cgroup v2 and containerd. The base is
never written; OUT appears whole and verified, or not at all.

OUT has the format of IMAGE unless --format says another: of the same format it is a
copy of IMAGE in which only what changed is different.`,
		Example: "  remaster build alinux3.qcow2 -o node.qcow2\n  remaster build alinux3.vhd -o node.qcow2 --format qcow2",
		Args:    args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			if out == "" {
				return usagef("build needs the name of its output: -o OUT")
			}
			var as remaster.Format
			if format != "" {
				var err error
				if as, err = remaster.ParseFormat(format); err != nil {
					return usageError{err}
				}
			}
			begun := time.Now()
			p, err := f.make(cmd.Context(), a, argv[0])
			if err != nil {
				return err
			}
			defer p.Close()
			blob, err := p.Output(as)
			if err != nil {
				return fmt.Errorf("%s: %w", argv[0], err)
			}
			bar := a.progress("writing "+out, blob.Size())
			err = sink.File(cmd.Context(), out, blob, sink.FileOptions{Overwrite: force, NoSync: noSync, Progress: bar.add})
			bar.end()
			if err != nil {
				return err
			}
			if asJSON {
				return a.buildJSON(p.Plan, out, as, blob)
			}
			a.remarks(p.Plan)
			a.say("%s: %s, %s in %.1f s", out, changesOf(p.Plan), size(blob.Size()), time.Since(begun).Seconds())
			return nil
		},
	}
	fl := cmd.Flags()
	fl.StringVarP(&out, "output", "o", "", "write the new image to `FILE`")
	fl.StringVar(&format, "format", "", "write `FORMAT`: qcow2, vhd, vhd-fixed or raw (default: that of IMAGE)")
	fl.BoolVar(&force, "force", false, "replace an existing output")
	fl.BoolVar(&noSync, "no-sync", false, "do not wait until the output is on the medium")
	fl.BoolVar(&asJSON, "json", false, "print what was done as JSON")
	f.add(cmd)
	return cmd
}

// buildJSON prints what was done: the plan, and what was written.
func (a *app) buildJSON(p *remaster.Plan, path string, as remaster.Format, blob disk.Blob) error {
	doc, err := p.Document()
	if err != nil {
		return err
	}
	if as == "" {
		as = doc.Format
	}
	return a.json(struct {
		Output       string          `json:"output"`
		OutputFormat remaster.Format `json:"outputFormat"`
		OutputSize   int64           `json:"outputSize"`
		*remaster.Document
	}{path, as, blob.Size(), doc})
}

// remarks prints what the recipe and the verification have to say.
func (a *app) remarks(p *remaster.Plan) {
	for _, n := range p.Notes {
		a.say("note: %s", n)
	}
	for _, w := range p.Warnings {
		a.say("warning: %s", w)
	}
}

func changesOf(p *remaster.Plan) string {
	switch n := len(p.Changes); n {
	case 0:
		return "nothing to change"
	case 1:
		return "1 change"
	default:
		return fmt.Sprintf("%d changes", n)
	}
}

// indent puts prefix before each line of s.
func indent(s, prefix string) string {
	s = strings.TrimSuffix(s, "\n")
	return prefix + strings.ReplaceAll(s, "\n", "\n"+prefix) + "\n"
}
