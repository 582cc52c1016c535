package alibaba

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"remaster/internal/hint"
)

// configLimit bounds the configuration files, in bytes.
const configLimit = 1 << 20

// profile is a profile of the CLI, with the names that the CLI writes.
type profile struct {
	Name          string `json:"name"`
	Mode          string `json:"mode"`
	ID            string `json:"access_key_id"`
	Secret        string `json:"access_key_secret"`
	Token         string `json:"sts_token"`
	RegionID      string `json:"region_id"`
	RoleARN       string `json:"ram_role_arn"`
	SessionName   string `json:"ram_session_name"`
	Seconds       int    `json:"expired_seconds"`
	STSRegion     string `json:"sts_region"`
	VPC           bool   `json:"enable_vpc"`
	SourceProfile string `json:"source_profile"`
	RoleName      string `json:"ram_role_name"`
	TokenFile     string `json:"oidc_token_file"`
	OIDCProvider  string `json:"oidc_provider_arn"`
	Policy        string `json:"policy"`
	ExternalID    string `json:"external_id"`
	URI           string `json:"credentials_uri"`
}

type cliConfig struct {
	Current  string    `json:"current"`
	Profiles []profile `json:"profiles"`
}

// readConfig reads a small file; its errors do not quote it.
func readConfig(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, configLimit+1))
	if err == nil && len(b) > configLimit {
		err = fmt.Errorf("%s: more than %d bytes", path, configLimit)
	}
	return bytes.TrimPrefix(b, []byte("\ufeff")), err
}

// cliPath is the CLI's configuration file, or "" if it is not to be looked at.
func (c *Clients) cliPath() string {
	if path := c.env("ALICLOUD_SHARED_CREDENTIALS_FILE"); path != "" {
		return path
	}
	if c.cfg.Home == "" {
		return ""
	}
	return filepath.Join(c.cfg.Home, ".aliyun", "config.json")
}

// wantedProfile is the profile that someone named, if any.
func (c *Clients) wantedProfile() string {
	if c.cfg.Profile != "" {
		return c.cfg.Profile
	}
	return c.env("ALIBABA_CLOUD_PROFILE", "ALICLOUD_PROFILE")
}

func (c *Clients) cli() (*cliConfig, error) {
	path := c.cliPath()
	if path == "" {
		return nil, fs.ErrNotExist
	}
	b, err := readConfig(path)
	if err != nil {
		return nil, err
	}
	var conf cliConfig
	if err := json.Unmarshal(b, &conf); err != nil {
		// Only where: json quotes what it found, and that may be a secret.
		at := ""
		if e, ok := errors.AsType[*json.SyntaxError](err); ok {
			at = fmt.Sprintf(" at byte %d", e.Offset)
		}
		return nil, fmt.Errorf("%s: not the JSON of the CLI's configuration%s", path, at)
	}
	for _, p := range conf.Profiles {
		c.wire.secrets.add(p.Secret, p.Token)
	}
	return &conf, nil
}

func (conf *cliConfig) find(name string) *profile {
	if i := slices.IndexFunc(conf.Profiles, func(p profile) bool { return p.Name == name }); i >= 0 {
		return &conf.Profiles[i]
	}
	return nil
}

// profile returns the profile that is wanted, or the current one, or nil. A file that is
// not there is an error only if a flag names the profile: the environment's name may be
// that of a section of the credentials file.
func (c *Clients) profile() (*profile, error) {
	name := c.wantedProfile()
	if name == "" && c.envTrue("ALIBABA_CLOUD_CLI_PROFILE_DISABLED") {
		return nil, nil
	}
	conf, err := c.cli()
	switch {
	case errors.Is(err, fs.ErrNotExist) && c.cfg.Profile == "":
		return nil, nil
	case err != nil && name != "":
		return nil, fmt.Errorf("profile %s: %w", name, err)
	case err != nil:
		return nil, err
	case name == "":
		return conf.find(conf.Current), nil
	}
	p := conf.find(name)
	if p == nil {
		return nil, hint.With(fmt.Errorf("%s has no profile %s", c.cliPath(), name), "aliyun configure list shows them")
	}
	return p, nil
}

// profileSource makes a source of the profile. Nil is none: the CLI writes a current
// profile without keys before it is told any.
func (c *Clients) profileSource() (*source, error) {
	p, err := c.profile()
	if err != nil || p == nil {
		return nil, err
	}
	if c.region == "" {
		c.region = p.RegionID
	}
	if c.wantedProfile() == "" && (p.Mode == "AK" || p.Mode == "") && p.ID == "" && p.Secret == "" {
		return nil, nil
	}
	conf, err := c.cli()
	if err != nil {
		return nil, err
	}
	fetch, err := c.profileKeys(conf, *p, nil)
	if err != nil {
		return nil, fmt.Errorf("profile %s of %s: %w", p.Name, c.cliPath(), err)
	}
	return c.newSource(fmt.Sprintf("profile %s (%s)", p.Name, cmp.Or(p.Mode, "AK")), fetch), nil
}

// profileKeys makes the fetcher of a profile; seen are those whose source it is.
func (c *Clients) profileKeys(conf *cliConfig, p profile, seen []string) (fetcher, error) {
	own := func() (fetcher, error) {
		if p.ID == "" || p.Secret == "" {
			return nil, errors.New("access_key_id or access_key_secret is empty")
		}
		return static(keys{id: p.ID, secret: p.Secret, token: p.Token}), nil
	}
	r := role{
		arn: p.RoleARN, session: p.SessionName, policy: p.Policy, externalID: p.ExternalID,
		duration: time.Duration(p.Seconds) * time.Second, region: p.STSRegion, vpc: p.VPC,
	}
	switch p.Mode {
	case "AK", "":
		p.Token = ""
		return own()
	case "StsToken":
		if p.Token == "" {
			return nil, errors.New("sts_token is empty")
		}
		return own()
	case "RamRoleArn":
		base, err := own()
		if err != nil {
			return nil, err
		}
		return c.assumeRole(base, r)
	case "ChainableRamRoleArn":
		if slices.Contains(seen, p.Name) {
			return nil, errors.New("source_profile goes round")
		}
		from := conf.find(p.SourceProfile)
		if from == nil {
			return nil, fmt.Errorf("there is no source_profile %q", p.SourceProfile)
		}
		base, err := c.profileKeys(conf, *from, append(seen, p.Name))
		if err != nil {
			return nil, fmt.Errorf("source_profile %s: %w", from.Name, err)
		}
		return c.assumeRole(base, r)
	case "EcsRamRole", "RamRoleArnWithRoleName":
		if c.noMetadata() {
			return nil, errors.New("the role of an instance takes the metadata service, which is turned off")
		}
		if base := c.instanceRole(p.RoleName); p.Mode == "EcsRamRole" {
			return base, nil
		} else {
			return c.assumeRole(base, r)
		}
	case "OIDC":
		if p.RoleARN == "" || p.OIDCProvider == "" || p.TokenFile == "" {
			return nil, errors.New("ram_role_arn, oidc_provider_arn or oidc_token_file is empty")
		}
		return c.oidc(r, p.OIDCProvider, p.TokenFile), nil
	case "CredentialsURI":
		return c.uri(p.URI), nil
	}
	return nil, hint.With(fmt.Errorf("mode %q is not supported", p.Mode),
		"choose another profile, or ALIBABA_CLOUD_CLI_PROFILE_DISABLED=true to use none")
}

// iniSource makes a source of the SDKs' credentials file, or nil if it is not there and
// nobody named it.
func (c *Clients) iniSource(path string, named bool) (*source, error) {
	b, err := readConfig(path)
	if errors.Is(err, fs.ErrNotExist) && !named {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("credentials file: %w", err)
	}
	section := cmp.Or(c.env("ALIBABA_CLOUD_PROFILE"), "default")
	v := iniSection(string(b), section)
	if v == nil {
		return nil, fmt.Errorf("credentials file %s: no section [%s]", path, section)
	}
	c.wire.secrets.add(v["access_key_secret"], v["security_token"])
	p := profile{
		Mode: map[string]string{"access_key": "AK", "sts": "StsToken", "ecs_ram_role": "EcsRamRole", "ram_role_arn": "RamRoleArn"}[v["type"]],
		ID:   v["access_key_id"], Secret: v["access_key_secret"], Token: v["security_token"],
		RoleARN: v["role_arn"], SessionName: v["role_session_name"], RoleName: v["role_name"], Policy: v["policy"],
	}
	if p.Mode == "" {
		return nil, fmt.Errorf("credentials file %s: [%s] has a type that is not supported", path, section)
	}
	fetch, err := c.profileKeys(nil, p, nil)
	if err != nil {
		return nil, fmt.Errorf("credentials file %s: [%s]: %w", path, section, err)
	}
	return c.newSource("the credentials file ["+section+"]", fetch), nil
}

// iniSection returns the values of a section, or nil if there is no such.
func iniSection(text, name string) map[string]string {
	var out map[string]string
	in := false
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if s, ok := strings.CutPrefix(line, "["); ok {
			if in = strings.TrimSpace(strings.TrimSuffix(s, "]")) == name; in && out == nil {
				out = map[string]string{}
			}
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if !in || !ok || line[0] == '#' || line[0] == ';' {
			continue
		}
		out[strings.TrimSpace(key)] = strings.Trim(strings.TrimSpace(value), `"'`)
	}
	return out
}

func isTrue(s string) bool { return strings.EqualFold(s, "true") || s == "1" }
