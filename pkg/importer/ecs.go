package importer

import (
	"context"
	"time"
)

// ECS is the part of the ECS API that makes images of objects, one request a method;
// see [Store] for retries, concurrency and errors. All of it works in one account; the
// region is named in each call.
type ECS interface {
	ImportImage(ctx context.Context, r ImportRequest) (ImportStarted, error)
	// Task describes a task, with the reason of a failure.
	Task(ctx context.Context, region, id string) (Task, error)
	// Tasks lists the tasks of an action ("ImportImage") in some states, or without any
	// in every state, all pages.
	Tasks(ctx context.Context, region, action string, states ...string) ([]Task, error)
	CancelTask(ctx context.Context, region, id string) error
	// Images lists images in every state, all pages. Names in the query are the
	// service's fuzzy ones: compare results exactly.
	Images(ctx context.Context, q ImageQuery) ([]Image, error)
	// CopyImage begins a copy to another region and returns the new image's id.
	CopyImage(ctx context.Context, r CopyRequest) (string, error)
	CancelCopy(ctx context.Context, region, imageID string) error
	DeleteImage(ctx context.Context, region, imageID string, force bool) error
	DeleteSnapshot(ctx context.Context, region, snapshotID string) error
	// ShareImage adds accounts to those that may use the image. More than ten take
	// more than one call, which it makes.
	ShareImage(ctx context.Context, region, imageID string, accounts []string) error
	// ModifyImage changes what is set in m.
	ModifyImage(ctx context.Context, region, imageID string, m ImageChange) error
	// Regions lists the regions of the account, which also proves the credentials.
	Regions(ctx context.Context) ([]string, error)
}

// ImportRequest is what ImportImage is asked for; the fields are the API's. Zero values
// are not sent.
type ImportRequest struct {
	Region        string
	Object        Object
	Format        string // QCOW2, VHD, RAW
	DiskSizeGiB   int
	Name          string
	Description   string
	Architecture  string // x86_64, arm64
	OSType        string // linux
	Platform      string // Aliyun, …
	BootMode      string // BIOS, UEFI
	LicenseType   string
	Detection     string // DetectionStrategy: Standard, or none
	RoleName      string
	ResourceGroup string
	NVMe          string // Features.NvmeSupport: supported, unsupported
	IMDS          string // Features.ImdsSupport: v1, v2
	Tags          map[string]string
	ClientToken   string // at most 64 ASCII characters
	DryRun        bool   // success is the error code DryRunOperation
}

// ImportStarted is the reply to an import.
type ImportStarted struct{ ImageID, TaskID, RequestID string }

// Task is an asynchronous task of ECS.
type Task struct {
	ID, Action string
	Status     string // Waiting, Processing, Finished, Failed, Deleted, Paused
	Progress   string // "37%"
	Cancelable bool
	Created    time.Time
	ImageID    string // of the related items, if any
	ErrorCode  string
	ErrorMsg   string
}

// ImageQuery selects images; empty fields select all.
type ImageQuery struct{ Region, ImageID, Name, Family string }

// Image describes an image.
type Image struct {
	ID, Name, Description  string
	Region                 string
	Status                 string // Creating, Waiting, Available, UnAvailable, CreateFailed, Deprecated
	Progress               string
	BootMode, Architecture string
	Platform, Family       string
	SizeGiB                int
	Created                time.Time
	Snapshots              []string
	Sources                []Object // the objects that it was imported from
	Tags                   map[string]string
	Check                  ImageCheck
}

// ImageCheck is the result of DetectionStrategy.
type ImageCheck struct {
	Status string // Processing, Finished
	Items  []CheckItem
}

// CheckItem is one finding of the image check.
type CheckItem struct{ Name, Value, RiskLevel, RiskCode string }

// CopyRequest is what CopyImage is asked for.
type CopyRequest struct {
	Region, ImageID         string
	ToRegion, Name          string
	Description             string
	Encrypted               bool
	KMSKeyID, ResourceGroup string
	Tags                    map[string]string
	ClientToken             string
}

// ImageChange is a change of an image's attributes; nil is no change.
type ImageChange struct{ Name, Description, Family, Status, BootMode *string }
