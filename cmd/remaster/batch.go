package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"remaster/internal/hint"
)

func (a *app) batch() *cobra.Command {
	index := 0
	cmd := &cobra.Command{
		Use:   "batch FILE --index N [-- PUBLISH-FLAGS]",
		Short: "Run one publish of a list, for jobs that share the work",
		Long: `Run the publish that line N of FILE (from 0) gives the arguments of: a base and its
flags, as in

  oss://images/alinux3.qcow2 --region cn-hangzhou --bucket images --name node-v2

Blank lines and those that begin with # do not count. Flags behind -- are added to each
line. Each line may be run again: what is done is found and left alone.`,
		Example: "  remaster batch images.txt --index $JOB_COMPLETION_INDEX -- --json",
		Args:    args(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			line, err := batchLine(argv[0], index)
			if err != nil {
				return err
			}
			line = append(append([]string{"publish"}, line...), argv[1:]...)
			if a.quiet {
				line = append(line, "--quiet")
			}
			root := a.root()
			root.SetArgs(line)
			root.SetOut(a.out)
			root.SetErr(a.errs)
			if err := root.ExecuteContext(cmd.Context()); err != nil {
				return fmt.Errorf("%s, line %d: %w", argv[0], index, err)
			}
			return nil
		},
	}
	cmd.Flags().IntVar(&index, "index", 0, "`N`, the line to run")
	return cmd
}

// batchLine returns the words of the n-th line that counts.
func batchLine(file string, n int) ([]string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	i := 0
	for line := range strings.Lines(string(text)) {
		words := strings.Fields(line)
		if len(words) == 0 || strings.HasPrefix(words[0], "#") {
			continue
		}
		if i == n {
			return words, nil
		}
		i++
	}
	return nil, hint.With(usagef("%s has %d lines that count, and no line %d", file, i, n), "lines are counted from 0")
}
