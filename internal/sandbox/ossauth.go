package sandbox

import (
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// What OSS's documents of its signatures versions 1 and 4 fix.
const (
	maxSkew       = 15 * time.Minute // of the client's clock
	maxExpiry     = 7 * 24 * 3600    // of a presigned URL, version 4, in seconds
	v4Algorithm   = "OSS4-HMAC-SHA256"
	v4Terminator  = "aliyun_v4_request"
	v4Time        = "20060102T150405Z"
	v4Day         = "20060102"
	unsignedBody  = "UNSIGNED-PAYLOAD"
	headerDate    = "X-Oss-Date"
	headerToken   = "X-Oss-Security-Token"
	headerContent = "X-Oss-Content-Sha256"
)

// signedParams are the parameters that version 1 signs, with all that begin with x-oss-.
var signedParams = func() map[string]bool {
	m := map[string]bool{}
	for name := range strings.FieldsSeq(`acl append bucketInfo callback callback-var cname comp continuation-token
		cors delete encryption endTime inventory inventoryId lifecycle live location logging metaQuery objectMeta
		partNumber policy position qos qosInfo referer regionList replication replicationLocation
		replicationProgress requestPayment resourceGroup response-cache-control response-content-disposition
		response-content-encoding response-content-language response-content-type response-expires restore
		security-token sequential startTime stat status style styleName symlink tagging transferAcceleration
		uploadId uploads versionId versioning versions vod website worm wormExtend wormId`) {
		m[name] = true
	}
	return m
}()

// signature is what a request says about who sent it.
type signature struct {
	version   int // 1 or 4; 0 for an anonymous request
	presigned bool
	keyID     string
	token     string
	value     string
	date      string    // as it was signed
	at        time.Time // when it was signed; in a presigned URL of version 1, when it ends
	expires   time.Duration
	day       string // version 4: of its scope
	region    string
	headers   []string // version 4: the additional ones, sorted
}

var (
	errSkew      = &ossError{403, "RequestTimeTooSkewed", "The difference between the request time and the current time is too large.", "0002-00000504", nil, nil}
	errKeyID     = &ossError{403, "InvalidAccessKeyId", "The OSS Access Key Id you provided does not exist in our records.", "0002-00000902", nil, nil}
	errSignature = &ossError{403, "SignatureDoesNotMatch", "The request signature we calculated does not match the signature you provided. Check your key and signing method.", "0002-00000040", nil, nil}
	errToken     = refusal(403, "InvalidSecurityToken", "The security token you provided is invalid.")
	errOldToken  = refusal(403, "SecurityTokenExpired", "The security token you provided has expired.")
	errExpired   = refusal(403, "AccessDenied", "Request has expired.")
	errNoDate    = refusal(403, "AccessDenied", "OSS authentication requires a valid Date.")
)

func badAuth(what string) *ossError {
	return refusal(400, "InvalidArgument", "Invalid "+what+" in Authorization header.")
}

// parseSignature reads what r says about who sent it; whether that is true is another
// question.
func parseSignature(r *http.Request, q url.Values) (signature, error) {
	auth := r.Header.Get("Authorization")
	switch {
	case strings.HasPrefix(auth, v4Algorithm+" "):
		return parseV4Header(r, auth[len(v4Algorithm)+1:])
	case strings.HasPrefix(auth, "OSS "):
		return parseV1Header(r, auth[len("OSS "):])
	case auth != "":
		return signature{}, badAuth("signature version")
	case q.Has("x-oss-signature-version") || q.Has("x-oss-signature"):
		return parseV4Query(q)
	case q.Has("Signature") || q.Has("OSSAccessKeyId"):
		return parseV1Query(q)
	}
	return signature{}, nil
}

func parseV1Header(r *http.Request, auth string) (signature, error) {
	s := signature{version: 1, token: r.Header.Get(headerToken), date: r.Header.Get("Date")}
	var ok bool
	if s.keyID, s.value, ok = strings.Cut(auth, ":"); !ok {
		return s, badAuth("format")
	}
	at, err := http.ParseTime(s.date)
	if d := r.Header.Get(headerDate); d != "" {
		at, err = http.ParseTime(d)
	}
	if err != nil {
		return s, errNoDate
	}
	s.at = at
	return s, nil
}

func parseV1Query(q url.Values) (signature, error) {
	s := signature{version: 1, presigned: true, keyID: q.Get("OSSAccessKeyId"), value: q.Get("Signature"),
		token: q.Get("security-token"), date: q.Get("Expires")}
	sec, err := strconv.ParseInt(s.date, 10, 64)
	if err != nil || s.keyID == "" || s.value == "" {
		return s, refusal(403, "AccessDenied", "Query-string authentication requires the Signature, Expires and OSSAccessKeyId parameters")
	}
	s.at = time.Unix(sec, 0)
	return s, nil
}

func parseV4Header(r *http.Request, auth string) (signature, error) {
	s := signature{version: 4, token: r.Header.Get(headerToken)}
	for field := range strings.SplitSeq(auth, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(field), "=")
		switch name {
		case "Credential":
			if err := s.scope(value); err != nil {
				return s, err
			}
		case "AdditionalHeaders":
			s.headers = strings.Split(value, ";")
		case "Signature":
			s.value = value
		default:
			return s, badAuth("field")
		}
	}
	if s.keyID == "" || s.value == "" || !slices.IsSorted(s.headers) {
		return s, badAuth("format")
	}
	if v := r.Header.Get(headerContent); v != unsignedBody {
		return s, argument("x-oss-content-sha256", v, "x-oss-content-sha256 must be UNSIGNED-PAYLOAD.")
	}
	layout := http.TimeFormat
	if s.date = r.Header.Get(headerDate); s.date != "" {
		layout = v4Time
	} else {
		s.date = r.Header.Get("Date")
	}
	at, err := time.Parse(layout, s.date)
	if err != nil {
		return s, errNoDate
	}
	if at.Format(v4Day) != s.day {
		return s, badAuth("signing date")
	}
	s.at = at
	return s, nil
}

func parseV4Query(q url.Values) (signature, error) {
	s := signature{version: 4, presigned: true, value: q.Get("x-oss-signature"), token: q.Get("x-oss-security-token"), date: q.Get("x-oss-date")}
	if v := q.Get("x-oss-signature-version"); v != v4Algorithm {
		return s, argument("x-oss-signature-version", v, "Invalid signature version.")
	}
	if err := s.scope(q.Get("x-oss-credential")); err != nil {
		return s, err
	}
	if v := q.Get("x-oss-additional-headers"); v != "" {
		s.headers = strings.Split(v, ";")
	}
	at, err := time.Parse(v4Time, s.date)
	sec, err2 := strconv.Atoi(q.Get("x-oss-expires"))
	if errors.Join(err, err2) != nil || sec < 1 || sec > maxExpiry || at.Format(v4Day) != s.day {
		return s, argument("x-oss-expires", q.Get("x-oss-expires"), "Invalid date or expires in a presigned URL.")
	}
	s.at, s.expires = at, time.Duration(sec)*time.Second
	return s, nil
}

// scope reads a credential of version 4: key/day/region/oss/aliyun_v4_request.
func (s *signature) scope(v string) error {
	f := strings.Split(v, "/")
	if len(f) != 5 || f[0] == "" || f[3] != "oss" || f[4] != v4Terminator {
		return badAuth("credential")
	}
	s.keyID, s.day, s.region = f[0], f[1], f[2]
	return nil
}

// authenticate finds out who sent a request. The error is an *ossError. An anonymous
// request passes, with c.anonymous set.
func (s *oss) authenticate(c *call) error {
	sig, err := parseSignature(c.r, c.query)
	if err != nil {
		return err
	}
	if c.anonymous = sig.version == 0; c.anonymous {
		return nil
	}
	now := s.opt.Clock()
	switch {
	case sig.presigned && now.After(sig.at.Add(sig.expires)):
		return errExpired.with("Expires", isoTime(sig.at.Add(sig.expires))).with("ServerTime", isoTime(now))
	case !(sig.presigned && sig.version == 1) && sig.at.After(now.Add(maxSkew)),
		!sig.presigned && sig.at.Before(now.Add(-maxSkew)):
		return errSkew.with("RequestTime", isoTime(sig.at)).with("ServerTime", isoTime(now))
	}
	a, ok := s.opt.account(sig.keyID)
	switch {
	case !ok:
		return errKeyID.with("OSSAccessKeyId", sig.keyID)
	case a.SecurityToken != sig.token:
		return errToken
	case !a.Expires.IsZero() && now.After(a.Expires):
		return errOldToken
	}
	text, want := signV1(c, sig, a.Secret)
	if sig.version == 4 {
		text, want = signV4(c, sig, a.Secret)
	}
	if !hmac.Equal([]byte(want), []byte(sig.value)) {
		return errSignature.with("OSSAccessKeyId", sig.keyID).with("SignatureProvided", sig.value).with("StringToSign", text)
	}
	c.signedRegion = sig.region
	return nil
}

// signV1 returns the text that version 1 signs and its signature.
func signV1(c *call, sig signature, secret string) (text, value string) {
	var b strings.Builder
	for _, line := range []string{c.r.Method, c.r.Header.Get("Content-MD5"), c.r.Header.Get("Content-Type"), sig.date} {
		b.WriteString(line + "\n")
	}
	b.WriteString(canonicalHeaders(c.r, func(name string) bool { return strings.HasPrefix(name, "x-oss-") }))
	b.WriteString("/")
	if c.bucket != "" {
		b.WriteString(c.bucket + "/" + c.key)
	}
	var params []string
	for name, values := range c.query {
		if !signedParams[name] && !strings.HasPrefix(name, "x-oss-") {
			continue
		}
		if values[0] != "" {
			name += "=" + values[0]
		}
		params = append(params, name)
	}
	slices.SortFunc(params, func(a, b string) int {
		a, _, _ = strings.Cut(a, "=")
		b, _, _ = strings.Cut(b, "=")
		return strings.Compare(a, b)
	})
	if len(params) > 0 {
		b.WriteString("?" + strings.Join(params, "&"))
	}
	h := hmac.New(sha1.New, []byte(secret))
	h.Write([]byte(b.String()))
	return b.String(), base64.StdEncoding.EncodeToString(h.Sum(nil))
}

// signV4 returns the text that version 4 signs and its signature.
func signV4(c *call, sig signature, secret string) (text, value string) {
	path := "/"
	if c.bucket != "" {
		path += c.bucket + "/" + c.key
	}
	var params []string
	for name, values := range c.query {
		if name == "x-oss-signature" {
			continue
		}
		name = escape(name, false)
		if values[0] != "" {
			name += "=" + escape(values[0], false)
		}
		params = append(params, name)
	}
	slices.SortFunc(params, func(a, b string) int {
		a, _, _ = strings.Cut(a, "=")
		b, _, _ = strings.Cut(b, "=")
		return strings.Compare(a, b)
	})
	headers := canonicalHeaders(c.r, func(name string) bool {
		return strings.HasPrefix(name, "x-oss-") || name == "content-type" || name == "content-md5" || slices.Contains(sig.headers, name)
	})
	canonical := strings.Join([]string{c.r.Method, escape(path, true), strings.Join(params, "&"), headers,
		strings.Join(sig.headers, ";"), unsignedBody}, "\n")
	sum := sha256.Sum256([]byte(canonical))
	text = strings.Join([]string{v4Algorithm, sig.date, sig.day + "/" + sig.region + "/oss/" + v4Terminator, hex.EncodeToString(sum[:])}, "\n")
	key := []byte("aliyun_v4" + secret)
	for _, step := range []string{sig.day, sig.region, "oss", v4Terminator, text} {
		h := hmac.New(sha256.New, key)
		h.Write([]byte(step))
		key = h.Sum(nil)
	}
	return text, hex.EncodeToString(key)
}

// canonicalHeaders are the headers that are signed, one a line, by name.
func canonicalHeaders(r *http.Request, signed func(name string) bool) string {
	var lines []string
	for name, values := range r.Header {
		name = strings.ToLower(name)
		if !signed(name) {
			continue
		}
		trimmed := make([]string, len(values))
		for i, v := range values {
			trimmed[i] = strings.TrimSpace(v)
		}
		lines = append(lines, name+":"+strings.Join(trimmed, ","))
	}
	if signed("host") { // which net/http keeps apart
		lines = append(lines, "host:"+r.Host)
	}
	slices.SortFunc(lines, func(a, b string) int {
		a, _, _ = strings.Cut(a, ":")
		b, _, _ = strings.Cut(b, ":")
		return strings.Compare(a, b)
	})
	if len(lines) == 0 {
		return ""
	}
	return strings.Join(lines, "\n") + "\n"
}

// escape percent-encodes what RFC 3986 does not call unreserved, and "/" unless kept.
func escape(s string, keepSlash bool) string {
	const digits = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(s) {
		ch := s[i]
		switch {
		case 'a' <= ch && ch <= 'z', 'A' <= ch && ch <= 'Z', '0' <= ch && ch <= '9',
			ch == '-', ch == '.', ch == '_', ch == '~', ch == '/' && keepSlash:
			b.WriteByte(ch)
		default:
			b.WriteString("%" + digits[ch>>4:ch>>4+1] + digits[ch&15:ch&15+1])
		}
	}
	return b.String()
}
