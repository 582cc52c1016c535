// Package importer takes an image to ECS: it uploads a Blob to OSS, or makes the object
// of an older one's parts there, has ECS import it, waits until the image can be used,
// and does what comes after: copies to regions, sharing, cleaning up.
//
// It speaks to the cloud through two small interfaces, [Store] and [ECS], and asks for
// everything in a way that can be asked again: a rerun of what was done does nothing.
package importer

import "fmt"

// ServiceError is a refusal by OSS or ECS, or a failure that they report.
type ServiceError struct {
	Op        string // the request: "UploadPart", "ImportImage"
	Status    int    // of HTTP
	Code      string // the service's: "NoSuchKey", "InvalidImageName.Duplicated"
	Message   string
	RequestID string
}

func (e *ServiceError) Error() string {
	return fmt.Sprintf("%s: %s (%s, HTTP %d, request %s)", e.Op, e.Message, e.Code, e.Status, e.RequestID)
}
