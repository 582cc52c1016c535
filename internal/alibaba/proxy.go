package alibaba

import (
	"errors"
	"net"
	"net/http"
	"net/url"
	"strings"
)

// proxies returns the choice of a proxy by HTTPS_PROXY, HTTP_PROXY and NO_PROXY, in
// capitals or not, as curl and the standard library understand them. The standard
// library's own would read the environment of the process.
func proxies(env func(string) string, s *secrets) (func(*http.Request) (*url.URL, error), error) {
	get := func(name string) string {
		if v := env(name); v != "" {
			return v
		}
		return env(strings.ToLower(name))
	}
	chosen := map[string]*url.URL{}
	for scheme, name := range map[string]string{"https": "HTTPS_PROXY", "http": "HTTP_PROXY"} {
		text := get(name)
		if text == "" {
			continue
		}
		if !strings.Contains(text, "://") {
			text = "http://" + text
		}
		u, err := url.Parse(text)
		if err != nil || u.Host == "" {
			return nil, errors.New(name + " is not a URL") // which may have a password in it
		}
		if p, ok := u.User.Password(); ok {
			s.add(p)
		}
		chosen[scheme] = u
	}
	if len(chosen) == 0 {
		return nil, nil
	}
	except := strings.Split(get("NO_PROXY"), ",")
	return func(req *http.Request) (*url.URL, error) {
		// The metadata service is for the machine itself.
		if host := req.URL.Hostname(); loopback(host) || host == metadataHost || spared(host, req.URL.Port(), except) {
			return nil, nil
		}
		return chosen[req.URL.Scheme], nil
	}, nil
}

// spared reports whether NO_PROXY names a host: itself, a domain above it, an address
// or a network, or "*".
func spared(host, port string, list []string) bool {
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	ip := net.ParseIP(host)
	for _, e := range list {
		e = strings.ToLower(strings.TrimSpace(e))
		if e == "" {
			continue
		}
		if e == "*" {
			return true
		}
		if _, network, err := net.ParseCIDR(e); err == nil {
			if ip != nil && network.Contains(ip) {
				return true
			}
			continue
		}
		if h, p, err := net.SplitHostPort(e); err == nil {
			if p != port {
				continue
			}
			e = h
		}
		e = strings.TrimPrefix(e, "*")
		domain := "." + strings.TrimPrefix(e, ".")
		if host == e || strings.HasSuffix(host, domain) || ip != nil && ip.Equal(net.ParseIP(e)) {
			return true
		}
	}
	return false
}
