// Command remaster turns an Alibaba Cloud Linux 3 image into a node image with unified
// cgroup v2 and containerd, offline: it edits the file system inside the image.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"remaster/internal/hint"
	"remaster/pkg/importer"
	"remaster/pkg/remaster"
)

// Exit codes. They are part of the command's interface; README.md documents them.
const (
	exitOK      = 0
	exitError   = 1  // something went wrong: I/O, no space, interrupted
	exitChanges = 2  // plan --detailed-exitcode: there is something to do
	exitRefused = 3  // the image is one that remaster will not edit
	exitVerify  = 4  // verify, doctor: a rule failed
	exitPartial = 5  // publish, import: the image is there, but not all that was to follow
	exitUsage   = 64 // the command line is wrong
	exitRetry   = 75 // it may pass: run it again, and it goes on where it was
)

// exitCode is an error that carries nothing but how the program is to end.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit %d", int(e)) }

// usageError marks an error in the command line.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func usagef(format string, a ...any) error { return usageError{fmt.Errorf(format, a...)} }

func main() {
	// The first signal stops the work and cleans up; a second one ends the program.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run runs one command line and returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	app := &app{out: stdout, errs: stderr}
	root := app.root()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	return app.report(root.ExecuteContext(ctx))
}

// report prints err with its hints and says how the program is to end.
func (a *app) report(err error) int {
	var code exitCode
	var usage usageError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &code):
		return int(code)
	case errors.Is(err, context.Canceled) && a.cloudy:
		fmt.Fprintln(a.errs, "remaster: interrupted; what the cloud was asked to do goes on, and a rerun follows it")
		return exitRetry
	case errors.Is(err, context.Canceled):
		fmt.Fprintln(a.errs, "remaster: interrupted; nothing was left behind")
		return exitError
	}
	fmt.Fprintf(a.errs, "remaster: %v\n", err)
	for _, h := range hint.Of(err) {
		fmt.Fprintf(a.errs, "hint: %s\n", h)
	}
	var partial *importer.PartialError
	var timeout *importer.TimeoutError
	switch {
	case errors.As(err, &usage):
		return exitUsage
	case errors.As(err, &timeout), a.cloudy && importer.Retryable(err):
		return exitRetry
	case errors.As(err, &partial):
		return exitPartial
	case remaster.Refused(err):
		return exitRefused
	}
	return exitError
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "remaster",
		Short: "Make a cgroup v2 and containerd node image, offline",
		Long: `remaster turns an Alibaba Cloud Linux 3 image (qcow2, VHD or raw) into a node
image that boots with unified cgroup v2 and containerd. It edits the file system
inside the image in user space: no root, no mount, no virtual machine. The base
image is never written.`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError{hint.With(err, "see "+cmd.CommandPath()+" --help")}
	})
	root.PersistentFlags().BoolVarP(&a.quiet, "quiet", "q", false, "print errors and results only")
	root.AddCommand(a.build(), a.plan(), a.inspect(), a.verify(), a.ls(), a.cat(), a.cp(), a.version(),
		a.publish(), a.batch(), a.upload(), a.importImage(), a.gc(), a.doctor(), a.policy(), a.sandbox())
	return root
}

// args wraps a check of positional arguments so that its error counts as one of usage.
func args(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return usageError{hint.With(err, "see "+cmd.CommandPath()+" --help")}
		}
		return nil
	}
}
