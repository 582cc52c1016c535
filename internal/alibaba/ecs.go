package alibaba

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aliyun/alibaba-cloud-sdk-go/sdk"
	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/auth/credentials"
	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/requests"
	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/responses"
	"github.com/aliyun/alibaba-cloud-sdk-go/services/ecs"

	"remaster/internal/hint"
	"remaster/pkg/importer"
)

const (
	// ecsPage is the most entries of a page that ECS gives.
	ecsPage = 100
	// ecsPages bounds a listing, in pages.
	ecsPages = 1000
	// shareMax is the most accounts of one call that shares an image.
	shareMax = 10
)

// ECS implements [importer.ECS]. Its methods may be called by many goroutines at once.
type ECS struct{ c *Clients }

var _ importer.ECS = (*ECS)(nil)

// ECS returns the client of ECS, for all regions. It connects to nothing.
func (c *Clients) ECS() *ECS { return &ECS{c} }

// bound gives a request of the SDK, which knows no contexts, the context of its caller.
type bound struct {
	ctx  context.Context
	wire http.RoundTripper
}

func (b bound) RoundTrip(req *http.Request) (*http.Response, error) {
	return b.wire.RoundTrip(req.WithContext(b.ctx))
}

// signWith gives the SDK its credentials.
type signWith struct{ keys }

func (k signWith) GetProviderName() string { return "remaster" }
func (k signWith) GetCredentials() (*credentials.Credentials, error) {
	return &credentials.Credentials{AccessKeyId: k.id, AccessKeySecret: k.secret, SecurityToken: k.token, ProviderName: k.GetProviderName()}, nil
}

// rpc makes one request of the RPC style. The client of the SDK is made for it alone: it
// changes itself and the request with each call.
func (c *Clients) rpc(ctx context.Context, k keys, op, region string, at endpoint, req requests.AcsRequest, resp responses.AcsResponse) (err error) {
	ctx, stop := context.WithTimeout(ctx, requestTimeout)
	defer stop()
	ctx, x := begin(ctx, op)
	// The SDK asserts that the fields of a refusal are strings.
	defer func() {
		if r := recover(); r != nil {
			err = c.failure(x, fmt.Errorf("reply that the SDK can't read: HTTP %d", x.status))
		}
	}()
	conf := sdk.NewConfig().WithScheme(strings.ToUpper(at.scheme)).WithAutoRetry(false).
		WithTimeout(2 * requestTimeout) // the context ends it sooner
	conf.Transport = bound{ctx, c.wire}
	conf.UserAgent = c.cfg.UserAgent
	client, err := sdk.NewClientWithOptions(region, conf, signWith{k})
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	client.Domain = at.host
	client.SetCloseTrace(true)
	// It would parse the proxies of the process's environment, for a transport of its own.
	client.SetHttpProxy("http://unused")
	client.SetHttpsProxy("http://unused")
	client.SetNoProxy("unused")
	return c.failure(x, client.DoAction(req, resp))
}

// do makes one request of ECS.
func (e *ECS) do(ctx context.Context, region string, req requests.AcsRequest, resp responses.AcsResponse) error {
	op := req.GetActionName()
	if region == "" {
		region = e.c.region
	}
	if !validRegion(region) {
		return hint.With(fmt.Errorf("%s: %q is no region", op, region), "say --region, or set ALIBABA_CLOUD_REGION_ID")
	}
	k, err := e.c.ecs.get(ctx)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	if _, ok := req.GetQueryParams()["RegionId"]; !ok {
		req.GetQueryParams()["RegionId"] = region
	}
	return e.c.rpc(ctx, k, op, region, e.c.ecsEndpoint(region), req, resp)
}

// Task implements [importer.ECS].
func (e *ECS) Task(ctx context.Context, region, id string) (importer.Task, error) {
	req, resp := ecs.CreateDescribeTaskAttributeRequest(), ecs.CreateDescribeTaskAttributeResponse()
	req.TaskId = id
	if err := e.do(ctx, region, req, resp); err != nil {
		return importer.Task{}, err
	}
	t := importer.Task{
		ID: resp.TaskId, Action: resp.TaskAction, Status: resp.TaskStatus, Progress: resp.TaskProcess,
		Cancelable: isTrue(resp.SupportCancel), Created: parseTime(resp.CreationTime),
	}
	if t.ID != id {
		return importer.Task{}, fmt.Errorf("DescribeTaskAttribute: asked for task %q, and the reply is about %q", id, t.ID)
	}
	for _, p := range resp.OperationProgressSet.OperationProgress {
		if t.ErrorCode == "" && t.ErrorMsg == "" {
			t.ErrorCode, t.ErrorMsg = p.ErrorCode, p.ErrorMsg
		}
		for _, item := range p.RelatedItemSet.RelatedItem {
			if t.ImageID == "" && strings.EqualFold(item.Name, "ImageId") {
				t.ImageID = item.Value
			}
		}
	}
	return t, nil
}

// Tasks implements [importer.ECS].
func (e *ECS) Tasks(ctx context.Context, region, action string, states ...string) ([]importer.Task, error) {
	var out []importer.Task
	seen := map[string]bool{}
	err := pages(func(page int) (int, error) {
		req, resp := ecs.CreateDescribeTasksRequest(), ecs.CreateDescribeTasksResponse()
		req.TaskAction = action
		// The service takes one state; more are chosen from here.
		if len(states) == 1 {
			req.TaskStatus = states[0]
		}
		req.PageNumber, req.PageSize = requests.NewInteger(page), requests.NewInteger(ecsPage)
		if err := e.do(ctx, region, req, resp); err != nil {
			return 0, err
		}
		for _, t := range resp.TaskSet.Task {
			if seen[t.TaskId] || action != "" && t.TaskAction != action || len(states) > 0 && !slices.Contains(states, t.TaskStatus) {
				continue
			}
			seen[t.TaskId] = true
			out = append(out, importer.Task{
				ID: t.TaskId, Action: t.TaskAction, Status: t.TaskStatus, Cancelable: isTrue(t.SupportCancel),
				Created: parseTime(t.CreationTime), ImageID: t.ResourceId, ErrorMsg: t.FailedReason,
			})
		}
		return len(resp.TaskSet.Task), nil
	})
	return out, err
}

// pages calls f for each page from 1 on, until one has fewer entries than a page holds.
func pages(f func(page int) (entries int, err error)) error {
	for page := 1; page <= ecsPages; page++ {
		n, err := f(page)
		if err != nil || n < ecsPage {
			return err
		}
	}
	return fmt.Errorf("the listing has more than %d pages", ecsPages)
}

// CancelTask implements [importer.ECS].
func (e *ECS) CancelTask(ctx context.Context, region, id string) error {
	req := ecs.CreateCancelTaskRequest()
	req.TaskId = id
	return e.do(ctx, region, req, ecs.CreateCancelTaskResponse())
}

// CancelCopy implements [importer.ECS].
func (e *ECS) CancelCopy(ctx context.Context, region, imageID string) error {
	req := ecs.CreateCancelCopyImageRequest()
	req.ImageId = imageID
	return e.do(ctx, region, req, ecs.CreateCancelCopyImageResponse())
}

// DeleteImage implements [importer.ECS].
func (e *ECS) DeleteImage(ctx context.Context, region, imageID string, force bool) error {
	req := ecs.CreateDeleteImageRequest()
	req.ImageId = imageID
	if force {
		req.Force = requests.NewBoolean(true)
	}
	return e.do(ctx, region, req, ecs.CreateDeleteImageResponse())
}

// DeleteSnapshot implements [importer.ECS].
func (e *ECS) DeleteSnapshot(ctx context.Context, region, snapshotID string) error {
	req := ecs.CreateDeleteSnapshotRequest()
	req.SnapshotId = snapshotID
	return e.do(ctx, region, req, ecs.CreateDeleteSnapshotResponse())
}

// ShareImage implements [importer.ECS].
func (e *ECS) ShareImage(ctx context.Context, region, imageID string, accounts []string) error {
	for some := range slices.Chunk(accounts, shareMax) {
		req := ecs.CreateModifyImageSharePermissionRequest()
		req.ImageId, req.AddAccount = imageID, &some
		if err := e.do(ctx, region, req, ecs.CreateModifyImageSharePermissionResponse()); err != nil {
			return err
		}
	}
	return nil
}

// ModifyImage implements [importer.ECS].
func (e *ECS) ModifyImage(ctx context.Context, region, imageID string, m importer.ImageChange) error {
	req := ecs.CreateModifyImageAttributeRequest()
	req.ImageId = imageID
	// Not by the SDK's fields, which leave out what is to be made empty.
	for name, v := range map[string]*string{
		"ImageName": m.Name, "Description": m.Description, "ImageFamily": m.Family, "Status": m.Status, "BootMode": m.BootMode,
	} {
		if v != nil {
			req.QueryParams[name] = *v
		}
	}
	return e.do(ctx, region, req, ecs.CreateModifyImageAttributeResponse())
}

// Regions implements [importer.ECS].
func (e *ECS) Regions(ctx context.Context) ([]string, error) {
	region := e.c.region
	if region == "" {
		region = homeRegion
	}
	req, resp := ecs.CreateDescribeRegionsRequest(), ecs.CreateDescribeRegionsResponse()
	if err := e.do(ctx, region, req, resp); err != nil {
		return nil, err
	}
	var out []string
	for _, r := range resp.Regions.Region {
		out = append(out, r.RegionId)
	}
	if len(out) == 0 {
		return nil, errors.New("DescribeRegions: the reply has no region")
	}
	slices.Sort(out)
	return out, nil
}

// parseTime parses the two forms of the API, with and without seconds; what is neither
// is the zero time.
func parseTime(s string) time.Time {
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04Z"} {
		if t, err := time.Parse(layout, s); err == nil {
			return t
		}
	}
	return time.Time{}
}

func itoa(n int) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n)
}
