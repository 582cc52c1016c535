package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"remaster/pkg/importer"
)

func (a *app) upload() *cobra.Command {
	var cf cloudFlags
	var uf uploadFlags
	var format string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "upload IMAGE oss://BUCKET/KEY",
		Short: "Upload an image as it is",
		Long: `Upload IMAGE – a file or an object – as it is. An upload that was cut off is gone on
with; one that is done already is left alone.`,
		Args: args(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			dst, ok := parseObject(argv[1])
			if !ok || dst.Bucket == "" || dst.Key == "" {
				return usagef("%q is not oss://BUCKET/KEY", argv[1])
			}
			c, err := cf.open(a)
			if err != nil {
				return err
			}
			p := publisher{app: a, noBuild: true}
			b, err := c.openAny(cmd.Context(), a, argv[0], format)
			if err != nil {
				return err
			}
			j, out, _, err := p.make(cmd.Context(), b)
			if err != nil {
				return err
			}
			defer j.Close()
			store, err := c.storeOf(cmd.Context(), dst.Bucket)
			if err != nil {
				return err
			}
			r, err := a.send(cmd.Context(), store, out, dst, uf.options(c, out.identity))
			if err != nil {
				return err
			}
			if asJSON {
				return a.json(published{Object: dst.String(), Upload: newUploadDoc(r)})
			}
			a.printf("%v\n", dst)
			return nil
		},
	}
	cmd.Flags().StringVar(&format, "input-format", "", "take the image for `FORMAT` instead of looking")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print what was done as JSON")
	cf.add(cmd)
	uf.add(cmd)
	return cmd
}

func (a *app) importImage() *cobra.Command {
	var cf cloudFlags
	var f imageFlags
	var asJSON, noLook bool
	cmd := &cobra.Command{
		Use:   "import oss://BUCKET/KEY --name NAME",
		Short: "Have ECS make an image of an object, and follow it",
		Long: `Have ECS make an image of an object that is an image already, wait until it can be
used, and do what is to come after. A rerun goes on where the last one ended.`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			c, region, err := cf.openRegion(a)
			if err != nil {
				return err
			}
			spec, after, err := a.importSpec(cmd.Context(), c, &f, region, argv[0], noLook)
			if err != nil {
				return err
			}
			o, err := f.options(c)
			if err != nil {
				return err
			}
			store, err := c.storeOf(cmd.Context(), spec.Object.Bucket)
			if err != nil {
				return err
			}
			rep, err := importer.Run(cmd.Context(), store, c.ecs, spec, after, o)
			if asJSON {
				return errors.Join(err, a.json(published{Object: spec.Object.String(), Image: rep}))
			}
			a.printReport(rep)
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print what was done as JSON")
	cmd.Flags().BoolVar(&noLook, "no-look", false, "do not look into the object for its format, architecture and boot mode")
	cf.add(cmd)
	f.add(cmd)
	cmd.AddCommand(a.importWait(), a.importStatus(), a.importCancel())
	return cmd
}

// importSpec looks at the object and returns what to import.
func (a *app) importSpec(ctx context.Context, c *cloud, f *imageFlags, region, name string, noLook bool) (importer.ImageSpec, importer.After, error) {
	o, ok := parseObject(name)
	if !ok {
		return importer.ImageSpec{}, importer.After{}, usagef("%q is not oss://BUCKET/KEY; publish takes files", name)
	}
	b, err := c.openAny(ctx, a, name, "")
	if err != nil {
		return importer.ImageSpec{}, importer.After{}, err
	}
	facts := importer.ImageFacts{Format: string(b.Format), VirtualSize: b.Disk.Size()}
	if !noLook {
		if facts, err = b.Facts(); err != nil {
			return importer.ImageSpec{}, importer.After{}, fmt.Errorf("%s: %w", name, err)
		}
	}
	return f.spec(region, o, facts, importer.Content(b.object.Info))
}

// following makes a command on something that is under way: a task or an image.
func (a *app) following(use, short string, do func(ctx context.Context, c *cloud, t importer.Target) (any, error)) *cobra.Command {
	var cf cloudFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use:   use + " ID",
		Short: short,
		Args:  args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			c, region, err := cf.openRegion(a)
			if err != nil {
				return err
			}
			t, err := importer.ParseTarget(region, argv[0])
			if err != nil {
				return usageError{err}
			}
			v, err := do(cmd.Context(), c, t)
			if err != nil {
				return err
			}
			if s, ok := v.(text); ok && !asJSON {
				a.printf("%s\n", s)
				return nil
			}
			return a.json(v)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the result as JSON")
	cf.add(cmd)
	return cmd
}

func (a *app) importWait() *cobra.Command {
	var timeout, poll time.Duration
	cmd := a.following("wait", "Wait until an image can be used, by its id or its task's", func(ctx context.Context, c *cloud, t importer.Target) (any, error) {
		im, err := importer.Wait(ctx, c.ecs, t, importer.Options{Clock: c.clock, Log: c.log, Timeout: timeout, Poll: poll})
		return text(im.ID), err
	})
	cmd.Flags().DurationVar(&timeout, "timeout", 2*time.Hour, "give up after this time")
	cmd.Flags().DurationVar(&poll, "poll", 15*time.Second, "time between two looks")
	return cmd
}

func (a *app) importStatus() *cobra.Command {
	return a.following("status", "Show how far an import or a copy is", func(ctx context.Context, c *cloud, t importer.Target) (any, error) {
		return importer.Status(ctx, c.ecs, t)
	})
}

func (a *app) importCancel() *cobra.Command {
	return a.following("cancel", "Cancel an import or a copy", func(ctx context.Context, c *cloud, t importer.Target) (any, error) {
		return text("cancelled " + t.String()), importer.Cancel(ctx, c.ecs, t, importer.Options{Clock: c.clock, Log: c.log})
	})
}

// text is a result of one line.
type text string

func (a *app) gc() *cobra.Command {
	var cf cloudFlags
	var age time.Duration
	var objects, dryRun, asJSON bool
	cmd := &cobra.Command{
		Use:   "gc oss://BUCKET[/PREFIX]",
		Short: "List and remove uploads that were left behind",
		Long: `Remove multipart uploads under PREFIX that were begun long ago and not ended, which
cost money until they are aborted. With --objects, also objects that remaster wrote
there. --dry-run only lists.`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			o, ok := parseObject(argv[0])
			if !ok || o.Bucket == "" {
				return usagef("%q is not oss://BUCKET[/PREFIX]", argv[0])
			}
			c, err := cf.open(a)
			if err != nil {
				return err
			}
			store, err := c.storeOf(cmd.Context(), o.Bucket)
			if err != nil {
				return err
			}
			left, err := importer.GC(cmd.Context(), store, o.Bucket, o.Key, importer.GCOptions{
				OlderThan: age, Now: c.clock.Now(), Objects: objects, DryRun: dryRun,
			})
			if asJSON {
				return errors.Join(err, a.json(left))
			}
			for _, l := range left {
				what := "object"
				if l.UploadID != "" {
					what = "upload " + l.UploadID
				}
				did := "removed"
				if !l.Removed {
					did = "found"
				}
				a.printf("%s %v %s %s\n", did, l.Object, what, l.Since.UTC().Format(time.RFC3339))
			}
			return err
		},
	}
	cmd.Flags().DurationVar(&age, "older-than", 72*time.Hour, "remove only what is older than this")
	cmd.Flags().BoolVar(&objects, "objects", false, "remove objects that remaster wrote, too")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only list")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print what was found as JSON")
	cf.add(cmd)
	return cmd
}
