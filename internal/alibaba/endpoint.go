package alibaba

import (
	"fmt"
	"net"
	"net/url"
	"regexp"
	"strings"

	"github.com/aliyun/alibaba-cloud-sdk-go/services/ecs"

	"remaster/internal/hint"
)

// homeRegion is asked where a bucket is, and which regions there are, when no region is
// known.
const homeRegion = "cn-hangzhou"

// regionName is what may be a part of a host's name. Private clouds have longer ones
// than the public: cn-qingdao-env17-d01.
var regionName = regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`)

func validRegion(s string) bool { return len(s) <= 63 && regionName.MatchString(s) }

// endpoint is where a service is.
type endpoint struct {
	scheme string // http, https
	host   string // with the port, if any
}

func (e endpoint) String() string { return e.scheme + "://" + e.host }

// parseEndpoint parses what a user gives: a host, or a URL without a path.
func parseEndpoint(s string) (endpoint, error) {
	text := s
	if !strings.Contains(text, "://") {
		text = "https://" + text
	}
	u, err := url.Parse(text)
	// The reason would quote the text, which may have a password in it.
	if err != nil || u.Hostname() == "" || u.Scheme != "https" && u.Scheme != "http" {
		return endpoint{}, hint.With(fmt.Errorf("not a host or a URL"), "write https://HOST[:PORT]; http:// is for services without TLS")
	}
	if u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
		return endpoint{}, fmt.Errorf("%s: more than a scheme, a host and a port", u.Redacted())
	}
	return endpoint{u.Scheme, u.Host}, nil
}

// loopback reports whether a host with or without a port is this machine.
func loopback(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.Trim(host, "[]")
	if ip := net.ParseIP(host); ip != nil {
		return ip.IsLoopback()
	}
	return host == "localhost" || strings.HasSuffix(host, ".localhost")
}

// ossEndpoint is where the buckets of a region are. The acceleration endpoint serves
// objects only: what asks about a bucket itself goes to the region's own.
func (c *Clients) ossEndpoint(region string, bucketItself bool) endpoint {
	switch {
	case c.custom.oss != nil:
		return *c.custom.oss
	case c.cfg.Accelerate && !bucketItself:
		return endpoint{"https", "oss-accelerate.aliyuncs.com"}
	case c.cfg.Internal || c.cfg.VPC:
		return endpoint{"https", "oss-" + region + "-internal.aliyuncs.com"}
	}
	return endpoint{"https", "oss-" + region + ".aliyuncs.com"}
}

// regionOfEndpoint returns the region that an OSS endpoint of the public cloud is in, or
// "".
func regionOfEndpoint(host string) string {
	host, ok := strings.CutSuffix(host, ".aliyuncs.com")
	if !ok {
		return ""
	}
	host = strings.TrimSuffix(host, "-internal")
	region, ok := strings.CutPrefix(host, "oss-")
	if !ok || !validRegion(region) || strings.HasPrefix(region, "accelerate") {
		return ""
	}
	return region
}

// ecsEndpoint is where the images of a region are. Some regions have hosts of their own
// form, which the SDK lists.
func (c *Clients) ecsEndpoint(region string) endpoint {
	switch {
	case c.custom.ecs != nil:
		return *c.custom.ecs
	case c.cfg.VPC:
		return endpoint{"https", "ecs-vpc." + region + ".aliyuncs.com"}
	}
	if host := ecsHosts[region]; host != "" {
		return endpoint{"https", host}
	}
	return endpoint{"https", "ecs." + region + ".aliyuncs.com"}
}

// ecsHosts is taken once, as the SDK makes the map when it is first asked for.
var ecsHosts = ecs.GetEndpointMap()

// stsEndpoint is where roles are assumed; "" is the central one.
func (c *Clients) stsEndpoint(region string, vpc bool) endpoint {
	if c.custom.sts != nil {
		return *c.custom.sts
	}
	host := "sts"
	if vpc || c.cfg.VPC {
		host = "sts-vpc"
		if region == "" {
			region = c.region
		}
	}
	if !validRegion(region) {
		return endpoint{"https", "sts.aliyuncs.com"}
	}
	return endpoint{"https", host + "." + region + ".aliyuncs.com"}
}
