package sandbox

import (
	"encoding/base64"
	"encoding/xml"
	"fmt"
	"net/http"
	"strings"
)

// ossError is a refusal in the words of OSS.
type ossError struct {
	status    int
	code, msg string
	ec        string   // the code that OSS documents the cause under, where it is known
	extra     []string // further elements of the body: name, value, …
	header    []string // of the reply: name, value, …
}

func (e *ossError) Error() string { return fmt.Sprintf("%s: %s (HTTP %d)", e.code, e.msg, e.status) }

// with returns e with an element in its body.
func (e *ossError) with(name, value string) *ossError {
	c := *e
	c.extra = append(c.extra[:len(c.extra):len(c.extra)], name, value)
	return &c
}

func refusal(status int, code, msg string) *ossError {
	return &ossError{status: status, code: code, msg: msg}
}

// The refusals that more than one operation makes. Codes and statuses are meant to be those
// of OSS's error tables, though not each could be looked up; a client must not depend on
// the words. ECs are left out where they are not known.
var (
	errBucketMissing = &ossError{404, "NoSuchBucket", "The specified bucket does not exist.", "0015-00000101", nil, nil}
	errKeyMissing    = &ossError{404, "NoSuchKey", "The specified key does not exist.", "0026-00000001", nil, nil}
	errVersionGone   = refusal(404, "NoSuchVersion", "The specified version does not exist.")
	errUploadMissing = &ossError{404, "NoSuchUpload", "The specified upload does not exist. The upload ID may be invalid, or the upload may have been aborted or completed.", "0042-00000002", nil, nil}
	errExists        = &ossError{409, "FileAlreadyExists", "The object you specified already exists and can not be overwritten.", "0026-00000016", nil, nil}
	errState         = refusal(403, "InvalidObjectState", "The operation is not valid for the object's state")
	errPrecondition  = refusal(412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold.")
	errNotModified   = refusal(304, "NotModified", "The resource has not been modified.")
	errRange         = refusal(416, "InvalidRange", "The requested range cannot be satisfied")
	errXML           = refusal(400, "MalformedXML", "The XML you provided was not well-formed or did not validate against our published schema.")
	errTooBig        = refusal(400, "EntityTooLarge", "Your proposed upload exceeds the maximum allowed size.")
	errDigest        = refusal(400, "InvalidDigest", "The Content-MD5 you specified was invalid.")
	errIncomplete    = refusal(400, "IncompleteBody", "The request body was incomplete.")
	errMethod        = refusal(405, "MethodNotAllowed", "The specified method is not allowed against this resource.")
	errUnsupported   = refusal(501, "NotImplemented", "A header or parameter you provided implies functionality that is not implemented.")
	errAnonymous     = &ossError{403, "AccessDenied", "You have no right to access this object because of bucket acl.", "0003-00000001", nil, nil}
)

// argument is the refusal of an argument.
func argument(name, value, msg string) *ossError {
	return refusal(400, "InvalidArgument", msg).with("ArgumentName", name).with("ArgumentValue", value)
}

func precondition(header string) *ossError { return errPrecondition.with("Condition", header) }

// write replies with e. A reply to HEAD has no body, so it has the XML in a header.
func (e *ossError) write(w http.ResponseWriter, r *http.Request, requestID string) {
	h := w.Header()
	for i := 0; i+1 < len(e.header); i += 2 {
		h.Set(e.header[i], e.header[i+1])
	}
	if e.status == http.StatusNotModified {
		w.WriteHeader(e.status)
		return
	}
	var b strings.Builder
	b.WriteString(xml.Header + "<Error>\n")
	element := func(name, value string) {
		b.WriteString("  <" + name + ">")
		_ = xml.EscapeText(&b, []byte(value)) // a Builder does not fail
		b.WriteString("</" + name + ">\n")
	}
	element("Code", e.code)
	element("Message", e.msg)
	element("RequestId", requestID)
	element("HostId", r.Host)
	for i := 0; i+1 < len(e.extra); i += 2 {
		element(e.extra[i], e.extra[i+1])
	}
	if e.ec != "" {
		element("EC", e.ec)
		h.Set("X-Oss-Ec", e.ec)
	}
	b.WriteString("</Error>\n")
	h.Set("Content-Type", "application/xml")
	if r.Method == http.MethodHead {
		h.Set("X-Oss-Err", base64.StdEncoding.EncodeToString([]byte(b.String())))
		w.WriteHeader(e.status)
		return
	}
	w.WriteHeader(e.status)
	_, _ = w.Write([]byte(b.String())) // the client may have gone
}
