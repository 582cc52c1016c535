package main

import (
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"remaster/pkg/remaster"
	"remaster/pkg/rootfs"
)

func (a *app) plan() *cobra.Command {
	var f recipeFlags
	var detailed, asJSON bool
	cmd := &cobra.Command{
		Use:   "plan IMAGE",
		Short: "Show what build would change",
		Long: `Show what build would change in IMAGE, without writing anything: each file as a
unified diff, and the command line of each boot entry before and after. The edits are
made and verified in memory, so that a plan that succeeds is a build that would.`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			p, err := f.make(cmd.Context(), a, argv[0])
			if err != nil {
				return err
			}
			defer p.Close()
			doc, err := p.Document()
			if err != nil {
				return err
			}
			if asJSON {
				err = a.json(doc)
			} else {
				a.printPlan(doc)
			}
			if err == nil && detailed && len(doc.Changes) > 0 {
				err = exitCode(exitChanges)
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&detailed, "detailed-exitcode", false, "exit 2 if there is something to do")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the plan as JSON")
	f.add(cmd)
	return cmd
}

func (a *app) printPlan(d *remaster.Document) {
	for _, c := range d.Changes {
		a.printf("%s %s%s\n", c.Op, c.Path, describeChange(c))
		for _, why := range c.Why {
			a.printf("    # %s\n", why)
		}
		if c.Diff != "" {
			a.printf("%s", indent(c.Diff, "    "))
		}
	}
	for _, e := range d.Boot {
		a.printBoot(e)
	}
	for _, n := range d.Notes {
		a.printf("note: %s\n", n)
	}
	for _, w := range d.Warnings {
		a.printf("warning: %s\n", w)
	}
	switch n := len(d.Changes); n {
	case 0:
		a.printf("nothing to do\n")
	default:
		a.printf("%d to change\n", n)
	}
}

// printBoot prints what a boot entry boots with before and after.
func (a *app) printBoot(e remaster.BootDoc) {
	mark := ""
	if e.Default {
		mark = " (default)"
	}
	a.printf("boot %s%s\n", e.Title, mark)
	show := func(sign string, lines []remaster.LineDoc) {
		for _, l := range lines {
			reading := ""
			if l.Reading != "" {
				reading = fmt.Sprintf(" [as read by %s]", l.Reading)
			}
			a.printf("    %s %s%s\n", sign, l.Cmdline, reading)
		}
	}
	if e.Before == nil || slices.Equal(e.Before, e.After) {
		show("=", e.After)
		return
	}
	show("-", e.Before)
	show("+", e.After)
}

// describeChange says in a few words what a diff does not show.
func describeChange(c remaster.ChangeDoc) string {
	b, n := c.Before, c.After
	switch {
	case n == nil:
		return ""
	case n.Target != "":
		return " -> " + n.Target
	case c.Op == rootfs.OpCreate:
		s := fmt.Sprintf(" %s %d:%d", n.Mode, n.UID, n.GID)
		if c.Diff == "" && n.SHA256 != "" {
			s += ", " + size(n.Size)
		}
		return s
	case b.Mode != n.Mode || b.UID != n.UID || b.GID != n.GID:
		return fmt.Sprintf(" %s %d:%d -> %s %d:%d", b.Mode, b.UID, b.GID, n.Mode, n.UID, n.GID)
	case c.Diff == "" && n.SHA256 != b.SHA256:
		return fmt.Sprintf(" %s -> %s", size(b.Size), size(n.Size))
	}
	return ""
}
