package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"remaster/pkg/remaster"
)

func (a *app) inspect() *cobra.Command {
	var format string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "inspect IMAGE",
		Short: "Show what an image is and what it boots",
		Long: `Show what IMAGE is: its container, partitions and file systems, the operating system,
kernels, boot entries with what they really boot with, and containerd. Nothing is
changed.`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(_ *cobra.Command, argv []string) error {
			b, err := a.open(argv[0], format)
			if err != nil {
				return err
			}
			defer b.Close()
			d, err := b.Inspect()
			if err != nil {
				return fmt.Errorf("%s: %w", argv[0], err)
			}
			if asJSON {
				return a.json(d)
			}
			a.printInspection(d)
			return nil
		},
	}
	cmd.Flags().StringVar(&format, "input-format", "", "take the image for `FORMAT` instead of looking")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the findings as JSON")
	return cmd
}

func (a *app) printInspection(d *remaster.Inspection) {
	a.printf("image       %s, %s in a file of %s\n", d.Format, size(d.Size), size(d.FileSize))
	a.printf("table       %s, sectors of %d bytes\n", d.Table, d.Sector)
	for _, p := range d.Parts {
		a.printf("partition %d %8s  %-12s %s\n", p.Number, size(p.Size), p.FS, describePart(p))
	}
	a.printf("system      %s\n", d.OS["PRETTY_NAME"])
	if d.ImageID != "" {
		a.printf("image id    %s\n", d.ImageID)
	}
	a.printf("kernels     %s\n", strings.Join(d.Kernels, " "))
	a.printf("containerd  %s\n", d.Containerd)
	for _, e := range d.Boot {
		a.printBoot(e)
	}
	for _, n := range d.Notes {
		a.printf("note: %s\n", n)
	}
}

func describePart(p remaster.PartDoc) string {
	var s []string
	if p.Mount != "" {
		s = append(s, p.Mount)
	}
	if p.UUID != "" {
		s = append(s, "UUID="+p.UUID, size(p.Free)+" free")
	}
	if p.Name != "" {
		s = append(s, fmt.Sprintf("%q", p.Name))
	}
	if p.Error != "" {
		s = append(s, "unreadable: "+p.Error)
	}
	return strings.Join(s, "  ")
}
