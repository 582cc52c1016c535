package main

import (
	"encoding/json"

	"github.com/spf13/cobra"

	"remaster/internal/alibaba"
)

func (a *app) doctor() *cobra.Command {
	var cf cloudFlags
	var p alibaba.Probe
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check that images could be published with these credentials",
		Long: `Check what a publish needs – credentials, clock, bucket, rights, the role of the
import – and say what to do where something is missing. Nothing is left behind. Exit
4 if a publish would fail.`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := cf.open(a)
			if err != nil {
				return err
			}
			failed := false
			found := c.Doctor(cmd.Context(), p)
			for _, f := range found {
				failed = failed || f.Status == alibaba.Failed
				if asJSON {
					continue
				}
				a.printf("%-8s %-12s %s\n", f.Status, f.ID, f.Detail)
				if f.Remedy != "" {
					a.printf("%-8s %-12s hint: %s\n", "", "", f.Remedy)
				}
			}
			if asJSON {
				if err := a.json(found); err != nil {
					return err
				}
			}
			if failed {
				return exitCode(exitVerify)
			}
			return cmd.Context().Err()
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&p.Bucket, "bucket", "", "`BUCKET` to publish to")
	fl.StringVar(&p.Prefix, "key-prefix", "remaster", "`PREFIX` of keys")
	fl.StringVar(&p.Role, "role-name", "", "RAM role that ECS reads the object with")
	fl.BoolVar(&asJSON, "json", false, "print the findings as JSON")
	cf.add(cmd)
	return cmd
}

func (a *app) policy() *cobra.Command {
	var p alibaba.Policy
	cmd := &cobra.Command{
		Use:   "policy --bucket BUCKET",
		Short: "Print the least RAM policies that publish needs",
		Long: `Print, as JSON, the policy of the account that publishes, the policy of the role that
ECS reads the object with, and that role's trust policy.`,
		Args: args(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			caller, err := p.Caller()
			if err != nil {
				return usageError{err}
			}
			role, err := p.Role()
			if err != nil {
				return usageError{err}
			}
			return a.json(map[string]json.RawMessage{"caller": caller, "role": role, "roleTrust": p.Trust()})
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&p.Bucket, "bucket", "", "`BUCKET` to publish to")
	fl.StringVar(&p.Prefix, "key-prefix", "remaster/", "`PREFIX` of keys")
	fl.StringVar(&p.Base, "base", "", "`BUCKET/KEY` of base images in OSS, which may end with *")
	fl.BoolVar(&p.Copy, "copy", false, "allow --copy-to")
	fl.BoolVar(&p.Share, "share", false, "allow --share, --family and --predecessor deprecate")
	fl.BoolVar(&p.Delete, "delete", false, "allow --predecessor delete")
	return cmd
}
