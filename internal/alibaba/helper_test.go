package alibaba

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// The secrets of the tests. None of them may ever be seen.
const (
	testID     = "LTAI5tTestKeyId"
	testSecret = "s3cretS3cret/+=and&more"
	testToken  = "CAIS/token+with=odd&signs"
)

// env makes a lookup of variables.
func env(pairs ...string) func(string) string {
	m := map[string]string{}
	for _, p := range pairs {
		k, v, _ := strings.Cut(p, "=")
		m[k] = v
	}
	return func(k string) string { return m[k] }
}

// loopbackDial connects to this machine only. Names and addresses in to are led to
// another address; anything else fails the test.
func loopbackDial(t *testing.T, to map[string]string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		if other, ok := to[addr]; ok {
			addr = other
		}
		if !loopback(addr) {
			t.Errorf("dialled %s", addr)
			return nil, fmt.Errorf("%s is not this machine", addr)
		}
		return (&net.Dialer{}).DialContext(ctx, network, addr)
	}
}

// newClients makes clients that reach this machine only.
func newClients(t *testing.T, cfg Config) *Clients {
	t.Helper()
	if cfg.Dial == nil {
		cfg.Dial = loopbackDial(t, nil)
	}
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.http.CloseIdleConnections)
	return c
}

// server is a service that does as it is told and remembers what it was asked.
type server struct {
	*httptest.Server
	mu   sync.Mutex
	seen []*http.Request
}

func (s *server) addr() string { return s.Listener.Addr().String() }

func serve(t *testing.T, h http.HandlerFunc) *server {
	t.Helper()
	s := &server{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.seen = append(s.seen, r.Clone(context.Background()))
		s.mu.Unlock()
		h(w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

// last returns the newest request.
func (s *server) last(t *testing.T) *http.Request {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.seen) == 0 {
		t.Fatal("nothing was asked for")
	}
	return s.seen[len(s.seen)-1]
}

func (s *server) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.seen)
}

// staticConfig is a configuration with keys for a server that is both OSS and ECS.
func staticConfig(s *server) Config {
	return Config{
		Region: "cn-beijing", OSSEndpoint: s.URL, ECSEndpoint: s.URL, STSEndpoint: s.URL,
		AccessKeyID: testID, AccessKeySecret: testSecret, SecurityToken: testToken, NoMetadata: true, NoProxy: true,
	}
}

// home makes a home folder with files.
func home(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// clock is a time that stands still between orders.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time { c.mu.Lock(); defer c.mu.Unlock(); return c.now }
func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// noSecret fails the test if text has one of the secrets in it, in any spelling.
func noSecret(t *testing.T, what, text string, more ...string) {
	t.Helper()
	s := &secrets{}
	s.add(append(more, testSecret, testToken)...)
	for _, v := range s.known {
		if strings.Contains(text, v) {
			t.Errorf("%s has a secret in it: %s", what, text)
			return
		}
	}
}
