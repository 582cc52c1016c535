package sandbox

import (
	"net"
	"net/http"
	"strings"
	"testing"
)

func TestStartListensOnLoopbackOnly(t *testing.T) {
	for _, addr := range []string{"0.0.0.0:0", ":0", "192.0.2.1:0", "[::]:0", "example.com:0", "nonsense"} {
		s := New(Options{})
		if err := s.Start("127.0.0.1:0", addr); err == nil {
			t.Errorf("listens on %s", addr)
			s.Close()
		}
		if _, err := net.Dial("tcp", strings.TrimPrefix(s.OSSEndpoint(), "http://")); err == nil {
			t.Errorf("%s: still listens for OSS", addr)
		}
	}
}

func TestCloseEndsBothServices(t *testing.T) {
	s := New(Options{Dir: t.TempDir()})
	if err := s.Start("localhost:0", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	for _, url := range []string{s.OSSEndpoint(), s.ECSEndpoint()} {
		resp, err := http.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode < 400 {
			t.Errorf("%s: HTTP %d to a stranger", url, resp.StatusCode)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, url := range []string{s.OSSEndpoint(), s.ECSEndpoint()} {
		if resp, err := http.Get(url); err == nil {
			resp.Body.Close()
			t.Errorf("%s still answers", url)
		}
	}
}
