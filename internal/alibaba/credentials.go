package alibaba

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"remaster/internal/hint"
)

// keys are what requests are signed with.
type keys struct {
	id, secret, token string
	expires           time.Time // zero: never
}

// fetcher gets keys, from a service if they are temporary.
type fetcher func(ctx context.Context) (keys, error)

// source keeps keys and renews them before they expire. It may be used by many
// goroutines at once: one renews, the others wait for it.
type source struct {
	name    string
	fetch   fetcher
	now     func() time.Time
	secrets *secrets

	turn  chan struct{} // held by who looks at the rest
	cur   keys
	renew time.Time // when cur is to be renewed; zero: never
}

const (
	// renewBefore is how long before their end keys are renewed, if they last four
	// times as long: a part that is sent with them must be admitted before.
	renewBefore = 5 * time.Minute
	// renewAgain is how soon a renewal that failed is tried again, while the keys last.
	renewAgain = 10 * time.Second
	// fetchTimeout ends one attempt.
	fetchTimeout = 20 * time.Second
)

func (c *Clients) newSource(name string, fetch fetcher) *source {
	return &source{name: name, fetch: fetch, now: c.cfg.Now, secrets: c.wire.secrets, turn: make(chan struct{}, 1)}
}

// get returns keys that are good for now.
func (s *source) get(ctx context.Context) (keys, error) {
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return keys{}, context.Cause(ctx)
	}
	now := s.now()
	if s.cur.id != "" && (s.renew.IsZero() || now.Before(s.renew)) {
		return s.cur, nil
	}
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	k, err := s.fetch(ctx)
	if err == nil && !k.expires.IsZero() && !now.Before(k.expires) {
		err = hint.With(fmt.Errorf("they expired on %s, and it is %s", k.expires.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339)),
			"set this machine's clock")
	}
	if err != nil {
		if s.cur.id != "" && now.Before(s.cur.expires) {
			s.renew = now.Add(renewAgain)
			return s.cur, nil
		}
		return keys{}, fmt.Errorf("credentials of %s: %w", s.name, s.secrets.errOf(err))
	}
	s.secrets.add(k.secret, k.token)
	s.cur, s.renew = k, time.Time{}
	if !k.expires.IsZero() {
		s.renew = k.expires.Add(-min(renewBefore, k.expires.Sub(now)/4))
	}
	return k, nil
}

// static is a fetcher of keys that never change.
func static(k keys) fetcher { return func(context.Context) (keys, error) { return k, nil } }

// family is a set of environment variables. Each list is of names for the same thing.
type family struct {
	name              string
	id, secret, token []string
}

// The families by rank. SECURITY_TOKEN without a prefix goes with the ALICLOUD_ ones, as
// in Terraform.
var (
	families = []family{
		{"ALIBABA_CLOUD_*", []string{"ALIBABA_CLOUD_ACCESS_KEY_ID"}, []string{"ALIBABA_CLOUD_ACCESS_KEY_SECRET"}, []string{"ALIBABA_CLOUD_SECURITY_TOKEN"}},
		{"ALICLOUD_*", []string{"ALICLOUD_ACCESS_KEY"}, []string{"ALICLOUD_SECRET_KEY"}, []string{"ALICLOUD_SECURITY_TOKEN", "SECURITY_TOKEN"}},
	}
	ossFamily = family{"OSS_*", []string{"OSS_ACCESS_KEY_ID"}, []string{"OSS_ACCESS_KEY_SECRET"}, []string{"OSS_SESSION_TOKEN"}}
)

func (c *Clients) env(names ...string) string {
	for _, n := range names {
		if v := c.cfg.Env(n); v != "" {
			return v
		}
	}
	return ""
}

func (c *Clients) envTrue(name string) bool { return isTrue(c.cfg.Env(name)) }

// keysOf makes a source of a family, or nil if the environment has none of it.
func (c *Clients) keysOf(f family) (*source, error) {
	k := keys{id: c.env(f.id...), secret: c.env(f.secret...), token: c.env(f.token...)}
	if k.id == "" && k.secret == "" {
		return nil, nil
	}
	name := "the environment (" + f.name + ")"
	if k.id == "" || k.secret == "" {
		return nil, fmt.Errorf("%s has one of %s and %s without the other", name, f.id[0], f.secret[0])
	}
	c.wire.secrets.add(k.secret, k.token)
	return c.newSource(name, static(k)), nil
}

// findCredentials chooses the sources and the region. The order is that of the flags,
// the environment's families, the CLI's profile, and what the machine has.
func (c *Clients) findCredentials() error {
	c.region = c.cfg.Region
	if c.region == "" {
		c.region = c.env("ALIBABA_CLOUD_REGION_ID", "ALIBABA_CLOUD_REGION", "ALICLOUD_REGION")
	}
	f := c.cfg
	if f.AccessKeyID != "" || f.AccessKeySecret != "" {
		if f.AccessKeyID == "" || f.AccessKeySecret == "" {
			return errors.New("an access key takes an id and a secret: one of them is missing")
		}
		c.wire.secrets.add(f.AccessKeySecret, f.SecurityToken)
		c.ecs = c.newSource("the command line", static(keys{id: f.AccessKeyID, secret: f.AccessKeySecret, token: f.SecurityToken}))
		c.oss = c.ecs
		return c.profileRegion()
	}
	if f.Profile == "" {
		for _, fam := range families {
			s, err := c.keysOf(fam)
			if err != nil {
				return err
			}
			if s != nil {
				c.oss, c.ecs = s, s
				return c.profileRegion()
			}
		}
		s, err := c.keysOf(ossFamily)
		if err != nil {
			return err
		}
		c.oss = s
	}
	s, err := c.profileSource()
	if err != nil {
		return err
	}
	if s == nil {
		if s, err = c.machineSource(); err != nil {
			return err
		}
	}
	c.ecs = s
	if c.oss == nil {
		c.oss = s
	}
	return nil
}

// profileRegion takes the region from the profile when nothing else said it. Keys come
// from elsewhere, so that a configuration that can't be read is no reason to stop.
func (c *Clients) profileRegion() error {
	if c.region != "" {
		return nil
	}
	if p, err := c.profile(); err == nil && p != nil {
		c.region = p.RegionID
	}
	return nil
}

// machineSource is what comes last: the role of a pod, the SDKs' credentials file, a
// service that hands them out, and the role of the instance.
func (c *Clients) machineSource() (*source, error) {
	arn, provider, file := c.env("ALIBABA_CLOUD_ROLE_ARN"), c.env("ALIBABA_CLOUD_OIDC_PROVIDER_ARN"), c.env("ALIBABA_CLOUD_OIDC_TOKEN_FILE")
	if arn != "" && provider != "" && file != "" {
		return c.newSource("the pod's role (OIDC)", c.oidc(role{
			arn: arn, session: c.env("ALIBABA_CLOUD_ROLE_SESSION_NAME"),
			region: c.env("ALIBABA_CLOUD_STS_REGION"), vpc: c.envTrue("ALIBABA_CLOUD_VPC_ENDPOINT_ENABLED"),
		}, provider, file)), nil
	}
	path := c.env("ALIBABA_CLOUD_CREDENTIALS_FILE")
	named := path != ""
	if !named && c.cfg.Home != "" {
		path = filepath.Join(c.cfg.Home, ".alibabacloud", "credentials")
	}
	if path != "" {
		if s, err := c.iniSource(path, named); s != nil || err != nil {
			return s, err
		}
	}
	if uri := c.env("ALIBABA_CLOUD_CREDENTIALS_URI"); uri != "" {
		return c.newSource("ALIBABA_CLOUD_CREDENTIALS_URI", c.uri(uri)), nil
	}
	if c.noMetadata() {
		return c.newSource("nowhere", func(context.Context) (keys, error) {
			return keys{}, hint.With(errors.New("there are none"), remedyNone)
		}), nil
	}
	return c.newSource("the instance's role", func(ctx context.Context) (keys, error) {
		k, err := c.instanceRole(c.env("ALIBABA_CLOUD_ECS_METADATA"))(ctx)
		return k, hint.With(err, remedyNone)
	}), nil
}

const remedyNone = "set ALIBABA_CLOUD_ACCESS_KEY_ID and ALIBABA_CLOUD_ACCESS_KEY_SECRET, or name a profile of ~/.aliyun/config.json, " +
	"or run where a RAM role is: a pod with RRSA, an instance with a role"

func (c *Clients) noMetadata() bool {
	return c.cfg.NoMetadata || c.cfg.Offline || c.envTrue("ALIBABA_CLOUD_ECS_METADATA_DISABLED")
}
