package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"remaster/internal/alibaba"
	"remaster/internal/hint"
	"remaster/pkg/importer"
	"remaster/pkg/remaster"
	"remaster/pkg/source"
)

// cloudFlags say how the cloud is reached.
type cloudFlags struct {
	cfg   alibaba.Config
	debug bool
}

func (f *cloudFlags) add(cmd *cobra.Command) {
	c, fl := &f.cfg, cmd.Flags()
	fl.StringVar(&c.Region, "region", "", "`REGION`, such as cn-hangzhou (default: that of the environment or the profile)")
	fl.StringVar(&c.OSSEndpoint, "oss-endpoint", os.Getenv("REMASTER_OSS_ENDPOINT"), "reach OSS at `URL` instead of its public endpoint")
	fl.StringVar(&c.ECSEndpoint, "ecs-endpoint", os.Getenv("REMASTER_ECS_ENDPOINT"), "reach ECS at `URL` instead of its public endpoint")
	fl.StringVar(&c.STSEndpoint, "sts-endpoint", os.Getenv("REMASTER_STS_ENDPOINT"), "reach STS at `URL` instead of its public endpoint")
	fl.BoolVar(&c.Internal, "internal", false, "use OSS's internal endpoint, within its region")
	fl.BoolVar(&c.Accelerate, "accelerate", false, "use OSS's acceleration endpoint")
	fl.BoolVar(&c.VPC, "vpc", false, "use the endpoints inside a VPC")
	fl.BoolVar(&c.PathStyle, "path-style", false, "put the bucket in the path of URLs, as private clouds may want it")
	fl.StringVar(&c.CAFile, "ca-file", "", "also trust the certificate authorities in a PEM `FILE`")
	fl.BoolVar(&c.NoProxy, "no-proxy", false, "go past the proxy that the environment names")
	fl.BoolVar(&c.NoMetadata, "no-metadata", false, "do not ask the instance's metadata service for credentials")
	fl.StringVar(&c.Profile, "profile", "", "use the credentials of this profile of the aliyun command")
	fl.StringVar(&c.AccessKeyID, "access-key-id", "", "access key (better in ALIBABA_CLOUD_ACCESS_KEY_ID)")
	fl.StringVar(&c.AccessKeySecret, "access-key-secret", "", "its secret, which others on this machine can see (better in ALIBABA_CLOUD_ACCESS_KEY_SECRET)")
	fl.StringVar(&c.SecurityToken, "security-token", "", "token of temporary keys")
	fl.BoolVar(&f.debug, "debug", false, "log each request, without secrets")
}

// cloud is a connection to an account.
type cloud struct {
	*alibaba.Clients
	retry importer.Policy
	ecs   importer.ECS
	log   *slog.Logger
	clock importer.Clock
}

// open finds the credentials. No connection is made yet.
func (f *cloudFlags) open(a *app) (*cloud, error) {
	a.cloudy = true
	cfg := f.cfg
	cfg.Env = os.Getenv
	if home, err := os.UserHomeDir(); err == nil {
		cfg.Home = home
	}
	cfg.UserAgent = "remaster/" + programVersion()
	level := slog.LevelInfo
	if a.quiet {
		level = slog.LevelWarn
	}
	if f.debug {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(a.errs, &slog.HandlerOptions{Level: level}))
	if f.debug {
		cfg.Debug = log
	}
	c, err := alibaba.New(cfg)
	if err != nil {
		return nil, err
	}
	clock := importer.Clock{Now: time.Now, Rand: rand.Float64}
	retry := importer.Policy{Clock: clock, Note: func(x importer.Failure) { log.Info("again", "request", x.Op, "why", x.Err) }}
	return &cloud{Clients: c, retry: retry, ecs: importer.RetryECS(c.ECS(), retry), log: log, clock: clock}, nil
}

// storeOf returns the store that a bucket is in.
func (c *cloud) storeOf(ctx context.Context, bucket string) (importer.Store, error) {
	s, err := c.StoreOf(ctx, bucket)
	if err != nil {
		return nil, fmt.Errorf("bucket %s: %w", bucket, err)
	}
	return importer.Retry(s, c.retry), nil
}

// openRegion is open for commands that work in one region, which it returns.
func (f *cloudFlags) openRegion(a *app) (*cloud, string, error) {
	c, err := f.open(a)
	if err == nil && c.Region() == "" {
		err = hint.With(usagef("no region is known"), "say --region, or set ALIBABA_CLOUD_REGION_ID")
	}
	if err != nil {
		return nil, "", err
	}
	return c, c.Region(), nil
}

// parseObject parses oss://BUCKET/KEY[?versionId=ID].
func parseObject(s string) (importer.Object, bool) {
	rest, ok := strings.CutPrefix(s, "oss://")
	if !ok {
		return importer.Object{}, false
	}
	rest, version, _ := strings.Cut(rest, "?versionId=")
	bucket, key, _ := strings.Cut(rest, "/")
	return importer.Object{Bucket: bucket, Key: key, VersionID: version}, true
}

// pinned reads ranges of an object that still has the ETag it had at first.
type pinned struct {
	store importer.Store
	info  importer.ObjectInfo
}

func (p pinned) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	return p.store.Read(ctx, p.info.Object, p.info.ETag, off, n)
}

// openAny opens an image in a file or in OSS.
func (c *cloud) openAny(ctx context.Context, a *app, name, format string) (*base, error) {
	o, ok := parseObject(name)
	if !ok {
		return a.open(name, format)
	}
	if o.Bucket == "" || o.Key == "" {
		return nil, usagef("%q is not oss://BUCKET/KEY", name)
	}
	store, err := c.storeOf(ctx, o.Bucket)
	if err != nil {
		return nil, err
	}
	info, err := store.Head(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	info.Object = o
	remote := source.NewRemote(ctx, pinned{store, info}, info.Size, source.RemoteOptions{})
	return a.openBlob(remote, name, format, &remaster.Base{
		Info: info, Blob: remote, Fetched: func() int64 { _, n := remote.Traffic(); return n },
	})
}
