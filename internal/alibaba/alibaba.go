// Package alibaba is OSS and ECS behind the two interfaces of package importer. It is
// the only place that knows the two SDKs.
//
// The SDKs build, sign and parse requests; everything around that is done here. One
// transport carries all of it: it goes by HTTPS unless an endpoint says http://, ends
// with the caller's context, follows no redirect, bounds replies, and writes a log
// without secrets. The SDKs' own sources of credentials are not used, though their order
// and names are: they read the environment of the process, dial past every proxy, CA and
// switch that was configured, may not be used by two goroutines, and quote files with
// secrets in their errors.
//
// Neither package-level state nor the environment of the process is read: both come in
// by [Config].
package alibaba

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"remaster/internal/hint"
)

// Config says how the cloud is reached. The zero value finds credentials of the machine
// that it runs on only: without Env and Home there are no others to find.
type Config struct {
	// Region is the region of the ECS calls and buckets that name none. If it is empty,
	// the environment and then the profile say it; see [Clients.Region].
	Region string

	// OSSEndpoint, ECSEndpoint and STSEndpoint take the place of the public endpoints:
	// a host or a URL without a path, for HTTPS unless it begins with http://.
	OSSEndpoint, ECSEndpoint, STSEndpoint string
	// Internal reaches OSS by its internal endpoint: from the same region, free of
	// traffic fees.
	Internal bool
	// Accelerate reaches OSS by the global acceleration endpoint, for buckets that have
	// it turned on.
	Accelerate bool
	// VPC reaches ECS and STS by their endpoints inside a VPC, and OSS as Internal does.
	VPC bool
	// PathStyle puts the bucket in the path of a URL instead of the host's name. IP
	// addresses and localhost always have it there.
	PathStyle bool

	// CAFile is a PEM file of certificate authorities to be trusted besides the system's.
	CAFile string
	// NoProxy goes past the proxies that HTTPS_PROXY and HTTP_PROXY name.
	NoProxy bool
	// NoMetadata does not ask the metadata service of the instance for credentials, as
	// ALIBABA_CLOUD_ECS_METADATA_DISABLED=true does.
	NoMetadata bool
	// Offline refuses every connection, to the metadata service too.
	Offline bool

	// AccessKeyID, AccessKeySecret and SecurityToken are the credentials of the command
	// line. They win over all others.
	AccessKeyID, AccessKeySecret, SecurityToken string
	// Profile names a profile of the CLI's configuration. Being named, it wins over the
	// environment.
	Profile string
	// Env looks up an environment variable. Nil is an empty environment.
	Env func(string) string
	// Home is the folder that has .aliyun and .alibabacloud. Empty is none.
	Home string

	// UserAgent is added to that of the SDKs: "remaster/1.0".
	UserAgent string
	// Stall is how long a connection may move no byte. Zero is two minutes.
	Stall time.Duration
	// Dial makes the connections, to proxies too. Nil dials.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// Transport takes the place of everything about connections: Dial, CAFile and
	// proxies. Nil is made of those.
	Transport http.RoundTripper
	// Now tells the time, for the expiry of credentials. Nil is time.Now.
	Now func() time.Time
	// Debug gets a line on each exchange, at level debug, without secrets. Nil is silent.
	Debug *slog.Logger
}

// Clients makes the clients of one account. Its methods may be called by many
// goroutines at once.
type Clients struct {
	cfg      Config
	region   string
	wire     *wire
	http     *http.Client
	oss, ecs *source // one and the same, unless the environment has keys for OSS alone
	custom   struct{ oss, ecs, sts *endpoint }
}

// New finds out which credentials are to be used, and how the services are reached. It
// reads files and opens no connection.
func New(cfg Config) (*Clients, error) {
	if cfg.Env == nil {
		cfg.Env = func(string) string { return "" }
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Stall <= 0 {
		cfg.Stall = 2 * time.Minute
	}
	if cfg.Accelerate && (cfg.Internal || cfg.VPC) {
		return nil, errors.New("the acceleration endpoint of OSS is a public one: it excludes the internal endpoint")
	}
	// With this the ECS SDK prints its requests, tokens and all, to standard output.
	for v := range strings.SplitSeq(cfg.Env("DEBUG"), ",") {
		if v == "sdk" {
			return nil, hint.With(errors.New("DEBUG=sdk makes the SDK print security tokens"), "unset DEBUG, and use --debug")
		}
	}
	c := &Clients{cfg: cfg}
	for _, e := range []struct {
		to         **endpoint
		text, what string
	}{{&c.custom.oss, cfg.OSSEndpoint, "OSS"}, {&c.custom.ecs, cfg.ECSEndpoint, "ECS"}, {&c.custom.sts, cfg.STSEndpoint, "STS"}} {
		if e.text == "" {
			continue
		}
		p, err := parseEndpoint(e.text)
		if err != nil {
			return nil, fmt.Errorf("endpoint of %s: %w", e.what, err)
		}
		*e.to = &p
	}
	var err error
	if c.wire, err = newWire(cfg); err != nil {
		return nil, err
	}
	c.http = &http.Client{Transport: c.wire, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	if err := c.findCredentials(); err != nil {
		return nil, err
	}
	if c.region != "" && !validRegion(c.region) {
		return nil, hint.With(fmt.Errorf("%q is no region", c.region), "name it by its id: cn-hangzhou is one")
	}
	return c, nil
}

// Region is the region by flag, environment or profile, or "" if none of them says it.
func (c *Clients) Region() string { return c.region }

// Source says where the credentials come from. It does not say what they are.
func (c *Clients) Source() string {
	if c.oss == c.ecs {
		return c.ecs.name
	}
	return fmt.Sprintf("%s for OSS, %s for ECS", c.oss.name, c.ecs.name)
}

// Redact returns text with every secret that is known covered.
func (c *Clients) Redact(text string) string { return c.wire.secrets.redact(text) }
