package alibaba

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// replyLimit is the most that a reply may have, in bytes, unless it is the content of an
// object. A page of a listing, 1000 entries with keys of 1023 bytes that are escaped,
// stays well below.
const replyLimit = 16 << 20

// wire carries every request of the package. It may be used by many goroutines at once.
type wire struct {
	base    http.RoundTripper
	log     *slog.Logger
	secrets *secrets
	// skew is the service's clock less this machine's, as the newest reply showed it.
	// It is not known to be better than the second that the header has.
	skew atomic.Pointer[time.Duration]
}

// exchange is what is known about a request beside what the SDKs tell. It travels in the
// request's context; it belongs to one goroutine at a time.
type exchange struct {
	op        string
	content   bool // the reply is an object's content, and is not bounded
	status    int  // of the reply; 0 for none
	requestID string
}

type exchangeKey struct{}

// begin gives a request its exchange.
func begin(ctx context.Context, op string) (context.Context, *exchange) {
	x := &exchange{op: op}
	return context.WithValue(ctx, exchangeKey{}, x), x
}

func newWire(cfg Config) (*wire, error) {
	w := &wire{base: cfg.Transport, log: cfg.Debug, secrets: &secrets{}}
	switch {
	case cfg.Offline:
		w.base = refuser{}
	case w.base == nil:
		t, err := newTransport(cfg, w.secrets)
		if err != nil {
			return nil, err
		}
		w.base = t
	}
	return w, nil
}

// refuser is a transport that never connects.
type refuser struct{}

func (refuser) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body != nil {
		_ = req.Body.Close() // as the interface wants it; nothing was read
	}
	return nil, fmt.Errorf("not connecting to %s: offline", req.URL.Host)
}

func newTransport(cfg Config, s *secrets) (*http.Transport, error) {
	dial := cfg.Dial
	if dial == nil {
		dial = (&net.Dialer{Timeout: 15 * time.Second, KeepAlive: 30 * time.Second}).DialContext
	}
	t := &http.Transport{
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := dial(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return &stallConn{conn, cfg.Stall}, nil
		},
		TLSHandshakeTimeout: 15 * time.Second,
		IdleConnTimeout:     50 * time.Second,
		MaxIdleConnsPerHost: 64,
		DisableCompression:  true, // a range of an object is a range of its bytes
	}
	if !cfg.NoProxy {
		p, err := proxies(cfg.Env, s)
		if err != nil {
			return nil, err
		}
		t.Proxy = p
	}
	if cfg.CAFile != "" {
		pem, err := os.ReadFile(cfg.CAFile)
		if err != nil {
			return nil, fmt.Errorf("certificate authorities: %w", err)
		}
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool() // a container without any
		}
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("certificate authorities: no PEM certificate in %s", cfg.CAFile)
		}
		t.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	}
	return t, nil
}

// stallConn ends a connection that has not moved a byte for a time. A write also puts
// off the end of the read that waits for the reply, as an upload can take long.
type stallConn struct {
	net.Conn
	limit time.Duration
}

func (c *stallConn) Read(p []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(c.limit)); err != nil {
		return 0, err
	}
	return c.Conn.Read(p)
}

func (c *stallConn) Write(p []byte) (int, error) {
	if err := c.SetDeadline(time.Now().Add(c.limit)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

// RoundTrip implements http.RoundTripper.
func (w *wire) RoundTrip(req *http.Request) (*http.Response, error) {
	x, _ := req.Context().Value(exchangeKey{}).(*exchange)
	if x == nil {
		x = &exchange{}
	}
	x.status, x.requestID = 0, ""
	began := time.Now()
	resp, err := w.base.RoundTrip(req)
	if err != nil {
		w.trace(req, nil, began, err)
		return nil, err
	}
	x.status = resp.StatusCode
	x.requestID = requestID(resp.Header)
	if date, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		middle := began.Add(time.Since(began) / 2)
		skew := date.Sub(middle.Truncate(time.Second))
		w.skew.Store(&skew)
	}
	// No redirect is followed: signatures and tokens are for one host.
	resp.Header.Del("Location")
	if !x.content || resp.StatusCode != http.StatusPartialContent {
		resp.Body = &boundedBody{resp.Body, replyLimit}
	}
	w.trace(req, resp, began, nil)
	return resp, nil
}

func requestID(h http.Header) string {
	for _, name := range []string{"X-Oss-Request-Id", "X-Acs-Request-Id"} {
		if id := h.Get(name); id != "" {
			return id
		}
	}
	return ""
}

// boundedBody fails when more than left bytes are read.
type boundedBody struct {
	io.ReadCloser
	left int64
}

func (b *boundedBody) Read(p []byte) (int, error) {
	if int64(len(p)) > b.left+1 {
		p = p[:b.left+1]
	}
	n, err := b.ReadCloser.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, fmt.Errorf("reply of more than %d bytes", replyLimit)
	}
	return n, err
}

// Headers and parameters that the log may show. What is not listed is not shown.
var (
	shownHeaders = []string{"Range", "Content-Range", "Content-Length", "Etag", "If-Match", "Date",
		"X-Oss-Copy-Source", "X-Oss-Copy-Source-Range", "X-Oss-Hash-Crc64ecma", "X-Oss-Forbid-Overwrite"}
	hiddenParams = []string{"Signature", "SecurityToken", "SignatureNonce", "security-token", "x-oss-security-token"}
)

// trace logs an exchange.
func (w *wire) trace(req *http.Request, resp *http.Response, began time.Time, err error) {
	if w.log == nil || !w.log.Enabled(req.Context(), slog.LevelDebug) {
		return
	}
	q := req.URL.Query()
	for _, name := range hiddenParams {
		q.Del(name)
	}
	target := url.URL{Scheme: req.URL.Scheme, Host: req.URL.Host, Path: req.URL.Path, RawQuery: q.Encode()}
	attrs := []slog.Attr{
		slog.String("method", req.Method), slog.String("url", w.secrets.redact(target.String())),
		slog.Duration("took", time.Since(began).Round(time.Millisecond)),
	}
	show := func(group string, h http.Header) {
		var list []any
		for _, name := range shownHeaders {
			if v := h.Get(name); v != "" {
				list = append(list, slog.String(strings.ToLower(name), w.secrets.redact(v)))
			}
		}
		if len(list) > 0 {
			attrs = append(attrs, slog.Group(group, list...))
		}
	}
	show("sent", req.Header)
	if resp != nil {
		attrs = append(attrs, slog.Int("status", resp.StatusCode), slog.String("request", w.secrets.redact(requestID(resp.Header))))
		show("got", resp.Header)
	}
	if err != nil {
		attrs = append(attrs, slog.String("error", w.secrets.redact(err.Error())))
	}
	w.log.LogAttrs(req.Context(), slog.LevelDebug, "exchange", attrs...)
}

// secrets knows what must not be shown. It may be used by many goroutines at once.
type secrets struct {
	mu    sync.Mutex
	known []string // each with its escaped forms, newest last
}

// secretsKept bounds what is remembered of credentials that are renewed for days.
const secretsKept = 64

func (s *secrets) add(values ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, v := range values {
		// A shorter one is none, and would cover half of each message.
		if len(v) < 6 || slices.Contains(s.known, v) {
			continue
		}
		once := url.QueryEscape(v)
		for _, form := range []string{url.QueryEscape(once), once, url.PathEscape(v), v} {
			if !slices.Contains(s.known, form) {
				s.known = append(s.known, form)
			}
		}
	}
	if extra := len(s.known) - secretsKept; extra > 0 {
		s.known = slices.Delete(s.known, 0, extra)
	}
}

func (s *secrets) redact(text string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, v := range s.known {
		text = strings.ReplaceAll(text, v, "[secret]")
	}
	return text
}

// clockSkew returns how far the service's clock is ahead, if a reply showed it.
func (w *wire) clockSkew() (time.Duration, bool) {
	if p := w.skew.Load(); p != nil {
		return *p, true
	}
	return 0, false
}

// errOf gives the text of an error without secrets. The error stays in the chain when
// its text has none in it; else only the end of a context does.
func (s *secrets) errOf(err error) error {
	text := err.Error()
	clean := s.redact(text)
	if clean == text {
		return err
	}
	for _, end := range []error{context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, end) {
			return fmt.Errorf("%s: %w", clean, end)
		}
	}
	return errors.New(clean)
}
