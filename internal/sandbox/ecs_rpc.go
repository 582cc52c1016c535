package sandbox

import (
	"crypto/hmac"
	"crypto/sha1"
	"encoding/base64"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// rpcSkew is how far the time of an RPC request may be from the service's.
const rpcSkew = 15 * time.Minute

// rpcBodyLimit bounds the form of a request; what the SDK sends is all in the query.
const rpcBodyLimit = 1 << 20

// rpcRequest is a request of the RPC style: an action and flat parameters.
type rpcRequest struct {
	method  string
	params  map[string]string // of the query and the form
	account Account
	now     time.Time // by the clock of jobs
}

// rpcError is an error reply.
type rpcError struct {
	status        int
	code, message string
}

func (e *rpcError) Error() string { return e.code + ": " + e.message }

func rpcRefusal(status int, code, format string, a ...any) *rpcError {
	return &rpcError{status, code, fmt.Sprintf(format, a...)}
}

func missing(name string) *rpcError {
	return rpcRefusal(http.StatusBadRequest, "MissingParameter",
		"The input parameter %q that is mandatory for processing this request is not supplied.", name)
}

// parseRPC reads the parameters of a request. A repeated one is refused, since what is
// signed would be ambiguous.
func parseRPC(w http.ResponseWriter, r *http.Request) (*rpcRequest, *rpcError) {
	if r.URL.Path != "/" || r.Method != http.MethodPost && r.Method != http.MethodGet {
		return nil, rpcRefusal(http.StatusNotFound, "InvalidAction.NotFound", "Specified api is not found, please check your url and method.")
	}
	r.Body = http.MaxBytesReader(w, r.Body, rpcBodyLimit)
	if err := r.ParseForm(); err != nil {
		return nil, rpcRefusal(http.StatusBadRequest, "InvalidParameter", "The parameters can not be parsed: %v.", err)
	}
	q := &rpcRequest{method: r.Method, params: map[string]string{}}
	for name, values := range r.Form {
		if len(values) != 1 {
			return nil, rpcRefusal(http.StatusBadRequest, "InvalidParameter", "Parameter %q is given %d times.", name, len(values))
		}
		q.params[name] = values[0]
	}
	return q, nil
}

// verify checks that the request was signed by an account of o, not long ago, and not
// seen before.
//
// Source: "RPC style: signature" of the service's API reference, and what the official
// SDK sends (alibaba-cloud.md, 6.1).
func (q *rpcRequest) verify(o Options, nonces *nonces) *rpcError {
	for _, name := range []string{"AccessKeyId", "SignatureMethod", "SignatureVersion", "SignatureNonce", "Timestamp", "Signature"} {
		if q.params[name] == "" {
			return missing(name)
		}
	}
	if q.params["SignatureMethod"] != "HMAC-SHA1" || q.params["SignatureVersion"] != "1.0" {
		return rpcRefusal(http.StatusBadRequest, "InvalidSignatureMethod", "Only HMAC-SHA1 of version 1.0 is supported.")
	}
	a, ok := o.account(q.params["AccessKeyId"])
	if !ok {
		return rpcRefusal(http.StatusNotFound, "InvalidAccessKeyId.NotFound", "Specified access key is not found.")
	}
	now := o.Clock()
	if err := verifyToken(a, q.params["SecurityToken"], now); err != nil {
		return err
	}
	at, err := time.Parse("2006-01-02T15:04:05Z", q.params["Timestamp"])
	if err != nil {
		return rpcRefusal(http.StatusBadRequest, "InvalidTimeStamp.Format", "Specified time stamp or date value is not well formatted.")
	}
	if d := now.Sub(at); d > rpcSkew || d < -rpcSkew {
		return rpcRefusal(http.StatusBadRequest, "InvalidTimeStamp.Expired", "Specified time stamp or date value is expired.")
	}
	toSign := q.stringToSign()
	if want := rpcSignature(a.Secret, toSign); !hmac.Equal([]byte(want), []byte(q.params["Signature"])) {
		// The service tells what it signed, token and all: a client must not print it.
		return rpcRefusal(http.StatusBadRequest, "SignatureDoesNotMatch",
			"Specified signature is not matched with our calculation. server string to sign is:%s", toSign)
	}
	if !nonces.use(a.AccessKeyID+" "+q.params["SignatureNonce"], now) {
		return rpcRefusal(http.StatusBadRequest, "SignatureNonceUsed", "Specified signature nonce was used already.")
	}
	q.account = a
	return nil
}

// verifyToken checks the token that comes with temporary keys.
func verifyToken(a Account, token string, now time.Time) *rpcError {
	switch {
	case token == a.SecurityToken && (a.Expires.IsZero() || now.Before(a.Expires)):
		return nil
	case token == "":
		return rpcRefusal(http.StatusBadRequest, "MissingSecurityToken", "SecurityToken is mandatory for this action.")
	case a.SecurityToken == "":
		return rpcRefusal(http.StatusBadRequest, "InvalidSecurityToken.MismatchWithAccessKey", "Specified SecurityToken mismatch with the AccessKey.")
	case token != a.SecurityToken:
		return rpcRefusal(http.StatusBadRequest, "InvalidSecurityToken.Malformed", "Specified SecurityToken is malformed.")
	default:
		return rpcRefusal(http.StatusBadRequest, "InvalidSecurityToken.Expired", "Specified SecurityToken is expired.")
	}
}

// stringToSign is what an RPC signature is made of: the method, the path and all
// parameters but the signature in order, percent-encoded twice.
func (q *rpcRequest) stringToSign() string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(q.params)) {
		if name == "Signature" {
			continue
		}
		if b.Len() > 0 {
			b.WriteByte('&')
		}
		b.WriteString(percentEncode(name) + "=" + percentEncode(q.params[name]))
	}
	return q.method + "&%2F&" + percentEncode(b.String())
}

func rpcSignature(secret, toSign string) string {
	h := hmac.New(sha1.New, []byte(secret+"&"))
	h.Write([]byte(toSign))
	return base64.StdEncoding.EncodeToString(h.Sum(nil))
}

// percentEncode encodes all but the unreserved characters of RFC 3986.
func percentEncode(s string) string {
	return strings.ReplaceAll(url.QueryEscape(s), "+", "%20")
}

// nonces remembers the nonces that were used while their requests could be repeated.
type nonces struct{ seen map[string]time.Time }

func (n *nonces) use(nonce string, now time.Time) bool {
	if _, ok := n.seen[nonce]; ok {
		return false
	}
	if n.seen == nil {
		n.seen = map[string]time.Time{}
	}
	maps.DeleteFunc(n.seen, func(_ string, t time.Time) bool { return now.Sub(t) > 2*rpcSkew })
	n.seen[nonce] = now
	return true
}

// need returns an error if one of the parameters is missing.
func (q *rpcRequest) need(names ...string) *rpcError {
	for _, n := range names {
		if q.params[n] == "" {
			return missing(n)
		}
	}
	return nil
}

// bool returns a parameter that is true or false; absent is false.
func (q *rpcRequest) bool(name string) (bool, *rpcError) {
	switch v := q.params[name]; strings.ToLower(v) {
	case "", "false":
		return false, nil
	case "true":
		return true, nil
	default:
		return false, rpcRefusal(http.StatusBadRequest, "InvalidParameter", "The specified %s %q is not a boolean.", name, v)
	}
}

// list returns the values of name.1, name.2 …, which must be numbered without gaps.
func (q *rpcRequest) list(name string) []string {
	var out []string
	for i := 1; ; i++ {
		v, ok := q.params[name+"."+strconv.Itoa(i)]
		if !ok {
			return out
		}
		out = append(out, v)
	}
}

// tags returns the Tag.N.Key and Tag.N.Value of a request that makes something.
func (q *rpcRequest) tags() (map[string]string, *rpcError) {
	out := map[string]string{}
	for i := 1; ; i++ {
		prefix := "Tag." + strconv.Itoa(i)
		key, ok := q.params[prefix+".Key"]
		value := q.params[prefix+".Value"]
		_, again := out[key]
		switch {
		case !ok && value == "":
			return out, nil
		case i > 20:
			return nil, rpcRefusal(http.StatusBadRequest, "NumberExceed.Tags", "The maximum number of Tags is exceeded. The maximum is 20.")
		case key == "" || tooLong(key, 128) || reserved(key) || hasURL(key):
			return nil, rpcRefusal(http.StatusBadRequest, "InvalidTagKey.Malformed", "The specified %s.Key is not valid.", prefix)
		case tooLong(value, 128) || hasURL(value):
			return nil, rpcRefusal(http.StatusBadRequest, "InvalidTagValue.Malformed", "The specified %s.Value is not valid.", prefix)
		case again:
			return nil, rpcRefusal(http.StatusBadRequest, "Duplicate.TagKey", "The Tag.N.Key contain duplicate key.")
		}
		out[key] = value
	}
}

// page is a part of a list: items [from, to).
type page struct{ number, size, from, to int }

// page returns the page that is asked for of a list of n items.
func (q *rpcRequest) page(n int) (page, *rpcError) {
	p := page{number: 1, size: 10}
	for _, f := range []struct {
		name string
		v    *int
		max  int
	}{{"PageNumber", &p.number, 1 << 20}, {"PageSize", &p.size, 100}} {
		s := q.params[f.name]
		if s == "" {
			continue
		}
		v, err := strconv.Atoi(s)
		if err != nil || v < 1 || v > f.max {
			return p, rpcRefusal(http.StatusBadRequest, "InvalidParameter", "The specified %s %q is not valid: 1 to %d.", f.name, s, f.max)
		}
		*f.v = v
	}
	p.from = min((p.number-1)*p.size, n)
	p.to = min(p.from+p.size, n)
	return p, nil
}

// head is the part of a reply that every list has.
func (p page) head(q *rpcRequest, total int) reply {
	return reply{"RegionId": q.params["RegionId"], "TotalCount": total, "PageNumber": p.number, "PageSize": p.size}
}

// validName reports whether s can be the name of an image or of a family.
func validName(s string) bool {
	if utf8.RuneCountInString(s) < 2 || tooLong(s, 128) || reserved(s) || hasURL(s) {
		return false
	}
	for i, r := range s {
		if !unicode.IsLetter(r) && (i == 0 || !unicode.IsDigit(r) && !strings.ContainsRune(".:_-", r)) {
			return false
		}
	}
	return true
}

func validDescription(s string) bool {
	n := utf8.RuneCountInString(s)
	return s == "" || n >= 2 && n <= 256 && !strings.HasPrefix(s, "http://") && !strings.HasPrefix(s, "https://")
}

func tooLong(s string, n int) bool { return utf8.RuneCountInString(s) > n }

func reserved(s string) bool {
	return strings.HasPrefix(strings.ToLower(s), "aliyun") || strings.HasPrefix(s, "acs:")
}

func hasURL(s string) bool { return strings.Contains(s, "http://") || strings.Contains(s, "https://") }
