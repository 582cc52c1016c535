package alibaba

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/requests"
	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/responses"

	"remaster/internal/hint"
)

// The API of STS, and the metadata service that every instance has at this address.
const (
	stsVersion   = "2015-04-01"
	metadataHost = "100.100.100.200"
	// metadataTimeout ends one request to it: outside the cloud nobody is there.
	metadataTimeout = 2 * time.Second
	// metadataTokenTTL is how long the token of a hardened request is asked for, in
	// seconds; it is used at once.
	metadataTokenTTL = 60
)

// role is what is asked for when a role is assumed.
type role struct {
	arn, session, policy, externalID string
	duration                         time.Duration // zero is an hour
	region                           string        // of STS; "" for the central one
	vpc                              bool
}

func (r role) check() error {
	if r.arn == "" {
		return errors.New("the ARN of the role is empty")
	}
	if r.duration != 0 && r.duration < 15*time.Minute {
		return fmt.Errorf("a session of %v is shorter than the 15 minutes that a role lasts at least", r.duration)
	}
	return nil
}

// params are the parameters of both ways to assume a role.
func (r role) params() map[string]string {
	p := map[string]string{
		"RoleArn":         r.arn,
		"RoleSessionName": cmp.Or(r.session, "remaster"),
		"DurationSeconds": strconv.Itoa(int(cmp.Or(r.duration, time.Hour) / time.Second)),
	}
	if r.policy != "" {
		p["Policy"] = r.policy
	}
	if r.externalID != "" {
		p["ExternalId"] = r.externalID
	}
	return p
}

// assumeRole makes a fetcher that assumes a role with other keys.
func (c *Clients) assumeRole(base fetcher, r role) (fetcher, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	// The keys below may be temporary too: they are kept as long as they last.
	from := c.newSource("the role below", base)
	return func(ctx context.Context) (keys, error) {
		k, err := from.get(ctx)
		if err != nil {
			return keys{}, err
		}
		req := requests.NewCommonRequest()
		req.Version, req.ApiName, req.Product = stsVersion, "AssumeRole", "Sts"
		for name, v := range r.params() {
			req.QueryParams[name] = v
		}
		req.TransToAcsRequest()
		resp := responses.NewCommonResponse()
		if err := c.rpc(ctx, k, "AssumeRole", cmp.Or(r.region, homeRegion), c.stsEndpoint(r.region, r.vpc), req, resp); err != nil {
			return keys{}, err
		}
		return parseSTS("AssumeRole", resp.GetHttpContentBytes())
	}, nil
}

// oidc makes a fetcher that assumes a role with the token in a file, which Kubernetes
// renews. The token is the proof: the request has no signature.
func (c *Clients) oidc(r role, provider, file string) fetcher {
	return func(ctx context.Context) (keys, error) {
		if err := r.check(); err != nil {
			return keys{}, err
		}
		token, err := readConfig(file)
		if err != nil {
			return keys{}, hint.With(fmt.Errorf("OIDC token: %w", err), "turn RRSA on for the pod's service account")
		}
		c.wire.secrets.add(strings.TrimSpace(string(token)))
		form := url.Values{"OIDCProviderArn": {provider}, "OIDCToken": {strings.TrimSpace(string(token))}}
		for name, v := range r.params() {
			form.Set(name, v)
		}
		q := url.Values{"Action": {"AssumeRoleWithOIDC"}, "Version": {stsVersion}, "Format": {"JSON"},
			"Timestamp": {c.cfg.Now().UTC().Format("2006-01-02T15:04:05Z")}}
		target := c.stsEndpoint(r.region, r.vpc).String() + "/?" + q.Encode()
		body, err := c.fetchURL(ctx, "AssumeRoleWithOIDC", http.MethodPost, target, strings.NewReader(form.Encode()),
			http.Header{"Content-Type": {"application/x-www-form-urlencoded"}})
		if err != nil {
			return keys{}, err
		}
		return parseSTS("AssumeRoleWithOIDC", body)
	}
}

// temporary is how the services write temporary keys.
type temporary struct {
	AccessKeyID     string `json:"AccessKeyId"`
	AccessKeySecret string
	SecurityToken   string
	Expiration      string
}

func (t temporary) keys(op string) (keys, error) {
	at, err := time.Parse(time.RFC3339, t.Expiration)
	if err != nil || t.AccessKeyID == "" || t.AccessKeySecret == "" || t.SecurityToken == "" {
		return keys{}, fmt.Errorf("%s: the reply has no temporary credentials", op)
	}
	return keys{t.AccessKeyID, t.AccessKeySecret, t.SecurityToken, at}, nil
}

func parseSTS(op string, body []byte) (keys, error) {
	var r struct{ Credentials temporary }
	if json.Unmarshal(body, &r) != nil { // whose error would quote them
		return keys{}, fmt.Errorf("%s: the reply is not JSON", op)
	}
	return r.Credentials.keys(op)
}

// uri makes a fetcher that asks a service for temporary keys.
func (c *Clients) uri(target string) fetcher {
	return func(ctx context.Context) (keys, error) {
		const op = "credentials URI"
		body, err := c.fetchURL(ctx, op, http.MethodGet, target, nil, nil)
		if err != nil {
			return keys{}, err
		}
		var t temporary
		if json.Unmarshal(body, &t) != nil {
			return keys{}, fmt.Errorf("%s: the reply is not JSON", op)
		}
		return t.keys(op)
	}
}

// instanceRole makes a fetcher of the keys that the metadata service of the instance
// gives; name is the role's, or "" for the one that it has.
func (c *Clients) instanceRole(name string) fetcher {
	get := func(ctx context.Context, method, path string, h http.Header) (string, error) {
		ctx, cancel := context.WithTimeout(ctx, metadataTimeout)
		defer cancel()
		b, err := c.fetchURL(ctx, "metadata service", method, "http://"+metadataHost+"/latest/"+path, nil, h)
		return strings.TrimSpace(string(b)), err
	}
	return func(ctx context.Context) (keys, error) {
		h := http.Header{}
		token, err := get(ctx, http.MethodPut, "api/token",
			http.Header{"X-Aliyun-Ecs-Metadata-Token-Ttl-Seconds": {strconv.Itoa(metadataTokenTTL)}})
		switch refused := (*statusError)(nil); {
		case err == nil:
			h.Set("X-Aliyun-Ecs-Metadata-Token", token)
			c.wire.secrets.add(token)
		case !errors.As(err, &refused) || c.envTrue("ALIBABA_CLOUD_IMDSV1_DISABLED"):
			return keys{}, err // nobody is there, or nothing else is allowed
		}
		name := name
		if name == "" {
			if name, err = get(ctx, http.MethodGet, "meta-data/ram/security-credentials/", h); err != nil {
				return keys{}, err
			}
		}
		if name == "" || strings.ContainsAny(name, "/?#\n") {
			return keys{}, errors.New("metadata service: the instance has no role")
		}
		text, err := get(ctx, http.MethodGet, "meta-data/ram/security-credentials/"+url.PathEscape(name), h)
		if err != nil {
			return keys{}, err
		}
		var r struct {
			Code string
			temporary
		}
		if json.Unmarshal([]byte(text), &r) != nil || r.Code != "Success" {
			return keys{}, fmt.Errorf("metadata service: no credentials for the role %s", name)
		}
		return r.keys("metadata service")
	}
}

// statusError is a reply of a plain HTTP service that is not 200.
type statusError struct {
	op     string
	status int
}

func (e *statusError) Error() string {
	return fmt.Sprintf("%s: HTTP %d %s", e.op, e.status, http.StatusText(e.status))
}

// fetchURL makes a request that is not one of the SDKs'. Refusals of STS are told by
// their code; bodies are never quoted otherwise.
func (c *Clients) fetchURL(ctx context.Context, op, method, target string, body io.Reader, h http.Header) ([]byte, error) {
	ctx, x := begin(ctx, op)
	req, err := http.NewRequestWithContext(ctx, method, target, body)
	if err != nil {
		return nil, fmt.Errorf("%s: not a URL", op)
	}
	for name, v := range h {
		req.Header[name] = v
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.failure(x, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, c.failure(x, err)
	}
	if resp.StatusCode != http.StatusOK {
		var e struct{ Code, Message, RequestID string }
		if json.Unmarshal(b, &e) == nil && e.Code != "" {
			return nil, c.refusal(x, resp.StatusCode, e.Code, e.Message, e.RequestID)
		}
		return nil, &statusError{op, resp.StatusCode}
	}
	return b, nil
}
