package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"remaster/internal/sandbox"
)

// The keys of a sandbox. They open nothing else.
const (
	sandboxKey    = "SANDBOX-KEY"
	sandboxSecret = "sandbox-secret"
)

func (a *app) sandbox() *cobra.Command {
	var ossAddr, ecsAddr, region, dir, envFile string
	var buckets []string
	var speed float64
	cmd := &cobra.Command{
		Use:   "sandbox",
		Short: "Run OSS and ECS in this process, for rehearsals",
		Long: `Run a stand-in of OSS and ECS on this machine until it is interrupted. It verifies what
the real services would: signatures, ranges, checksums, states. It prints what to set
so that other remaster commands use it; a publish to it is a rehearsal of the real one.`,
		Example: "  remaster sandbox --env-file sandbox.env &\n  . ./sandbox.env\n  remaster publish alinux3.qcow2 --bucket images --name node-v2",
		Args:    args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s := sandbox.New(sandbox.Options{
				Accounts: []sandbox.Account{{AccessKeyID: sandboxKey, Secret: sandboxSecret}},
				Dir:      dir, Region: region, ECS: sandbox.ECSOptions{Speed: speed},
			})
			for _, b := range buckets {
				if err := s.OSS.CreateBucket(b, region); err != nil {
					return usageError{err}
				}
			}
			if err := s.Start(ossAddr, ecsAddr); err != nil {
				return err
			}
			defer s.Close()
			env := strings.Join([]string{
				"export REMASTER_OSS_ENDPOINT=" + s.OSSEndpoint(),
				"export REMASTER_ECS_ENDPOINT=" + s.ECSEndpoint(),
				"export REMASTER_STS_ENDPOINT=" + s.STSEndpoint(),
				"export ALIBABA_CLOUD_ACCESS_KEY_ID=" + sandboxKey,
				"export ALIBABA_CLOUD_ACCESS_KEY_SECRET=" + sandboxSecret,
				"export ALIBABA_CLOUD_REGION_ID=" + region, "",
			}, "\n")
			a.printf("%s", env)
			if envFile != "" {
				// By another name first: whoever waits for the file finds it whole.
				if err := os.WriteFile(envFile+".part", []byte(env), 0o600); err != nil {
					return err
				}
				if err := os.Rename(envFile+".part", envFile); err != nil {
					return err
				}
			}
			a.say("the sandbox listens; interrupt it to end it")
			<-cmd.Context().Done()
			c := s.Counters()
			a.say("the sandbox ends: %s in, %s out, %s copied within OSS; images: %s",
				size(c.Uploaded), size(c.Downloaded), size(c.Copied), imageNames(s))
			return nil
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&ossAddr, "oss-listen", "127.0.0.1:0", "loopback `ADDRESS` of OSS")
	fl.StringVar(&ecsAddr, "ecs-listen", "127.0.0.1:0", "loopback `ADDRESS` of ECS")
	fl.StringVar(&region, "region", sandbox.DefaultRegion, "home `REGION`")
	fl.StringVar(&dir, "dir", "", "keep the bytes of objects in `FOLDER` instead of in memory")
	fl.StringSliceVar(&buckets, "bucket", []string{"images"}, "`BUCKET`s to make")
	fl.Float64Var(&speed, "speed", 300, "how many times faster than the real ones imports are")
	fl.StringVar(&envFile, "env-file", "", "also write what to set to `FILE`")
	return cmd
}

func imageNames(s *sandbox.Sandbox) string {
	var names []string
	for _, im := range s.Images() {
		names = append(names, fmt.Sprintf("%s (%s)", im.Name, im.Status))
	}
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}
