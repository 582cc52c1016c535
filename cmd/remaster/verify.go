package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"remaster/pkg/remaster"
	"remaster/pkg/verify"
)

func (a *app) verify() *cobra.Command {
	var format string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "verify IMAGE",
		Short: "Check that an image is a cgroup v2 and containerd node image",
		Long: `Check IMAGE against the rules of a node image: every boot entry comes up with unified
cgroup v2, containerd is set up for it, and so on. Exit 4 if a rule fails.`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(_ *cobra.Command, argv []string) error {
			b, err := a.open(argv[0], format)
			if err != nil {
				return err
			}
			defer b.Close()
			g, err := b.OpenGuest()
			if err != nil {
				return fmt.Errorf("%s: %w", argv[0], err)
			}
			defer g.Close()
			results := verify.Run(g)
			if asJSON {
				err = a.json(remaster.RuleDocs(results))
			} else {
				a.printResults(results)
			}
			if err == nil && verify.Failed(results) {
				err = exitCode(exitVerify)
			}
			return err
		},
	}
	cmd.Flags().StringVar(&format, "input-format", "", "take the image for `FORMAT` instead of looking")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the results as JSON")
	return cmd
}

func (a *app) printResults(results []verify.Result) {
	for _, r := range results {
		detail := r.Detail
		if detail == "" {
			detail = r.Rule.Title
		}
		a.printf("%-7s %-25s %s\n", r.Status, r.Rule.ID, detail)
		if r.Status == verify.Fail || r.Status == verify.Warn {
			a.printf("%-7s %-25s hint: %s\n", "", "", r.Rule.Remedy)
		}
	}
}
