package alibaba

import (
	"errors"
	"fmt"
	"net/url"
	"strings"

	sdkerrors "github.com/aliyun/alibaba-cloud-sdk-go/sdk/errors"
	"github.com/aliyun/aliyun-oss-go-sdk/oss"

	"remaster/internal/hint"
	"remaster/pkg/importer"
)

// messageLimit bounds what is shown of a service's message, in bytes: behind a proxy it
// can be a page of HTML.
const messageLimit = 500

// refusal makes the error of a service's refusal, without secrets.
func (c *Clients) refusal(x *exchange, status int, code, message, requestID string) *importer.ServiceError {
	// What follows is the request's text, with the token in it, escaped twice.
	message, _, _ = strings.Cut(message, "server string to sign is:")
	message = strings.Join(strings.Fields(c.Redact(message)), " ")
	if len(message) > messageLimit {
		message = strings.ToValidUTF8(message[:messageLimit], "") + " …"
	}
	if message == "" {
		message = "refused"
	}
	if requestID == "" {
		requestID = x.requestID
	}
	// All of it is what someone on the way may have written.
	return &importer.ServiceError{Op: x.op, Status: status, Code: c.Redact(code), Message: message, RequestID: c.Redact(requestID)}
}

// failure turns an error of an SDK, of HTTP or of the network into ours: a ServiceError
// if the service replied, and never one with a secret in its text. Nil stays nil.
func (c *Clients) failure(x *exchange, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*importer.ServiceError](err); ok {
		return err
	}
	if e, ok := errors.AsType[oss.ServiceError](err); ok {
		out := error(c.refusal(x, e.StatusCode, e.Code, e.Message, e.RequestID))
		if region := regionOfEndpoint(e.Endpoint); region != "" {
			out = hint.With(out, "the bucket is in the region "+region)
		}
		return out
	}
	if e, ok := errors.AsType[*sdkerrors.ServerError](err); ok {
		return c.refusal(x, e.HttpStatus(), e.ErrorCode(), e.Message(), e.RequestId())
	}
	if e, ok := errors.AsType[oss.CRCCheckError](err); ok {
		return fmt.Errorf("%s: %w (%w)", x.op, importer.ErrChecksum, e)
	}
	// The OSS SDK has no type for a refusal that is not its XML.
	if x.status >= 300 {
		return c.refusal(x, x.status, "", err.Error(), "")
	}
	if e, ok := errors.AsType[*sdkerrors.ClientError](err); ok && e.OriginError() != nil {
		err = e.OriginError()
	}
	// The URL of a request to ECS has its signature and token in it.
	if e, ok := errors.AsType[*url.Error](err); ok {
		host := ""
		if u, perr := url.Parse(e.URL); perr == nil {
			host = u.Host + ": "
		}
		err = fmt.Errorf("%s%w", host, e.Err)
	}
	return fmt.Errorf("%s: %w", x.op, c.wire.secrets.errOf(err))
}
