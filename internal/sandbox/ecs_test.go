package sandbox

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/aliyun/alibaba-cloud-sdk-go/sdk"
	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/auth/credentials"
	sdkerrors "github.com/aliyun/alibaba-cloud-sdk-go/sdk/errors"
	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/requests"
	ecsapi "github.com/aliyun/alibaba-cloud-sdk-go/services/ecs"
)

// cloud is a sandbox with a bucket, an importable object in it, a scripted clock of jobs
// and the official SDK's client.
type cloud struct {
	*Sandbox
	*testing.T
	jobs *Clock
	cli  *ecsapi.Client
}

const (
	atHome  = "cn-hangzhou"
	away    = "cn-shanghai"
	bucket1 = "images"
	object1 = "node.qcow2"
)

var ecsUser = Account{AccessKeyID: "AKID", Secret: "SECRET"}

func newCloud(t *testing.T, change ...func(*Options)) *cloud {
	t.Helper()
	c := &cloud{T: t, jobs: NewClock(time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC))}
	o := Options{Accounts: []Account{ecsUser}, ECS: ECSOptions{Clock: c.jobs.Now,
		Durations: Durations{Queue: 10 * time.Second, Import: 100 * time.Second, Settle: 20 * time.Second, Check: 30 * time.Second, Copy: 100 * time.Second}}}
	for _, f := range change {
		f(&o)
	}
	c.Sandbox = New(o)
	if err := c.Start("127.0.0.1:0", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	c.bucket(bucket1, atHome)
	c.put(bucket1, object1, fakeQcow2(20<<30))
	c.cli = c.client(ecsUser)
	return c
}

func (c *cloud) bucket(name, region string) {
	c.Helper()
	if err := c.OSS.CreateBucket(name, region); err != nil {
		c.Fatal(err)
	}
}

func (c *cloud) put(bucket, key string, body []byte) {
	c.Helper()
	if err := c.OSS.CreateObject(bucket, key, bytes.NewReader(body)); err != nil {
		c.Fatal(err)
	}
}

func (c *cloud) client(a Account) *ecsapi.Client {
	c.Helper()
	cfg := sdk.NewConfig().WithScheme("HTTP").WithTimeout(5 * time.Second).WithAutoRetry(false)
	cli, err := ecsapi.NewClientWithOptions(atHome, cfg, credentials.NewStaticSTSCredentialsProvider(a.AccessKeyID, a.Secret, a.SecurityToken))
	if err != nil {
		c.Fatal(err)
	}
	cli.Domain = strings.TrimPrefix(c.ECSEndpoint(), "http://")
	return cli
}

// fakeQcow2 is the head of a qcow2 with a disk of a size: all that an import looks at.
func fakeQcow2(virtual uint64) []byte {
	b := make([]byte, 4<<16)
	be := binary.BigEndian
	copy(b, "QFI\xfb")
	be.PutUint32(b[4:], 3)
	be.PutUint32(b[20:], 16)
	be.PutUint64(b[24:], virtual)
	be.PutUint32(b[36:], 1)
	be.PutUint64(b[40:], 3<<16)
	be.PutUint64(b[48:], 1<<16)
	be.PutUint32(b[56:], 1)
	be.PutUint32(b[96:], 4)
	be.PutUint32(b[100:], 104)
	return b
}

// importRequest asks for an import of the object that is there.
func importRequest(name string) *ecsapi.ImportImageRequest {
	r := ecsapi.CreateImportImageRequest()
	r.RegionId, r.ImageName, r.Platform = atHome, name, "Aliyun"
	r.DiskDeviceMapping = &[]ecsapi.ImportImageDiskDeviceMapping{{OSSBucket: bucket1, OSSObject: object1, Format: "QCOW2"}}
	return r
}

func (c *cloud) importImage(r *ecsapi.ImportImageRequest) *ecsapi.ImportImageResponse {
	c.Helper()
	resp, err := c.cli.ImportImage(r)
	if err != nil || resp.ImageId == "" || resp.TaskId == "" {
		c.Fatalf("import: %+v, %v", resp, err)
	}
	return resp
}

// available imports an image and waits until it is available.
func (c *cloud) available(name string) string {
	c.Helper()
	id := c.importImage(importRequest(name)).ImageId
	c.jobs.Advance(130 * time.Second)
	if got := c.status(atHome, id); got != imageAvailable {
		c.Fatalf("image %s is %s", id, got)
	}
	return id
}

// describe returns an image in whatever state, or fails.
func (c *cloud) describe(region, id string) ecsapi.Image {
	c.Helper()
	r := ecsapi.CreateDescribeImagesRequest()
	r.RegionId, r.ImageId, r.Status = region, id, strings.Join(imageStates, ",")
	resp, err := c.cli.DescribeImages(r)
	if err != nil {
		c.Fatal(err)
	}
	if len(resp.Images.Image) != 1 {
		return ecsapi.Image{Status: "gone"}
	}
	return resp.Images.Image[0]
}

func (c *cloud) status(region, id string) string {
	c.Helper()
	return c.describe(region, id).Status
}

func (c *cloud) taskOf(id string) *ecsapi.DescribeTaskAttributeResponse {
	c.Helper()
	r := ecsapi.CreateDescribeTaskAttributeRequest()
	r.RegionId, r.TaskId = atHome, id
	resp, err := c.cli.DescribeTaskAttribute(r)
	if err != nil {
		c.Fatal(err)
	}
	return resp
}

// refused checks that an error is the service's, with a code and a status.
func refused(t testing.TB, err error, status int, code string) {
	t.Helper()
	var e *sdkerrors.ServerError
	switch {
	case !errors.As(err, &e):
		t.Errorf("error %v, want %s", err, code)
	case e.ErrorCode() != code || status != 0 && e.HttpStatus() != status:
		t.Errorf("error %s (HTTP %d), want %s (HTTP %d): %s", e.ErrorCode(), e.HttpStatus(), code, status, e.Message())
	case e.RequestId() == "" || e.HostId() == "" || e.Message() == "":
		t.Errorf("error %s lacks something: %v", code, e)
	}
}

func TestImportGoesThroughItsStates(t *testing.T) {
	c := newCloud(t)
	r := importRequest("node-1")
	r.DetectionStrategy = "Standard"
	r.Tag = &[]ecsapi.ImportImageTag{{Key: "made-by", Value: "remaster"}}
	imp := c.importImage(r)
	if imp.RegionId != atHome || imp.RequestId == "" {
		t.Errorf("reply %+v", imp)
	}
	steps := []struct {
		after                          time.Duration // since the last
		task, process, image, progress string
		check                          string
	}{
		{0, "Waiting", "0%", "Creating", "0%", ""},
		{10 * time.Second, "Processing", "0%", "Creating", "0%", ""},
		{37 * time.Second, "Processing", "37%", "Creating", "37%", ""},
		{62 * time.Second, "Processing", "99%", "Creating", "99%", ""},
		{1 * time.Second, "Finished", "100%", "Waiting", "100%", ""}, // the trap
		{19 * time.Second, "Finished", "100%", "Waiting", "100%", ""},
		{1 * time.Second, "Finished", "100%", "Available", "100%", "Processing"},
		{29 * time.Second, "Finished", "100%", "Available", "100%", "Processing"},
		{1 * time.Second, "Finished", "100%", "Available", "100%", "Finished"},
	}
	for i, s := range steps {
		c.jobs.Advance(s.after)
		task, img := c.taskOf(imp.TaskId), c.describe(atHome, imp.ImageId)
		if task.TaskStatus != s.task || task.TaskProcess != s.process || img.Status != s.image || img.Progress != s.progress || img.DetectionOptions.Status != s.check {
			t.Errorf("step %d: task %s %s, image %s %s, check %q; want %+v", i, task.TaskStatus, task.TaskProcess, img.Status, img.Progress, img.DetectionOptions.Status, s)
		}
		if related := task.OperationProgressSet.OperationProgress[0].RelatedItemSet.RelatedItem; related[0].Value != imp.ImageId {
			t.Errorf("task is of %+v", related)
		}
	}
	img := c.describe(atHome, imp.ImageId)
	d := img.DiskDeviceMappings.DiskDeviceMapping[0]
	if img.Size != 20 || img.BootMode != "BIOS" || img.Architecture != "x86_64" || img.Platform != "Aliyun" || img.ImageOwnerAlias != "self" ||
		d.ImportOSSBucket != bucket1 || d.ImportOSSObject != object1 || d.SnapshotId == "" || d.Format != "QCOW2" {
		t.Errorf("image %+v", img)
	}
	if len(img.DetectionOptions.Items.Item) == 0 || len(img.Tags.Tag) != 3 {
		t.Errorf("check found %v, tags %v", img.DetectionOptions.Items.Item, img.Tags.Tag)
	}
}

func TestDescribeTasksFilters(t *testing.T) {
	c := newCloud(t)
	var ids []string
	for i := range 3 {
		key := fmt.Sprintf("k%d", i)
		c.put(bucket1, key, fakeQcow2(1<<30))
		r := importRequest("n" + key)
		(*r.DiskDeviceMapping)[0].OSSObject = key
		ids = append(ids, c.importImage(r).TaskId)
		c.jobs.Advance(110 * time.Second)
	}
	list := func(f func(*ecsapi.DescribeTasksRequest)) []string {
		r := ecsapi.CreateDescribeTasksRequest()
		r.RegionId = atHome
		f(r)
		resp, err := c.cli.DescribeTasks(r)
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, task := range resp.TaskSet.Task {
			out = append(out, task.TaskId+" "+task.TaskStatus+" "+task.SupportCancel)
		}
		return out
	}
	c.put(bucket1, "k3", fakeQcow2(1<<30))
	r := importRequest("nk3")
	(*r.DiskDeviceMapping)[0].OSSObject = "k3"
	ids = append(ids, c.importImage(r).TaskId)
	for _, tt := range []struct {
		name string
		f    func(*ecsapi.DescribeTasksRequest)
		want []string
	}{
		{"all", func(*ecsapi.DescribeTasksRequest) {}, []string{ids[3] + " Waiting true", ids[2] + " Finished false", ids[1] + " Finished false", ids[0] + " Finished false"}},
		{"finished", func(r *ecsapi.DescribeTasksRequest) { r.TaskStatus = "Finished" }, []string{ids[2] + " Finished false", ids[1] + " Finished false", ids[0] + " Finished false"}},
		{"ids", func(r *ecsapi.DescribeTasksRequest) { r.TaskIds = ids[0] + "," + ids[3] }, []string{ids[3] + " Waiting true", ids[0] + " Finished false"}},
		{"other action", func(r *ecsapi.DescribeTasksRequest) { r.TaskAction = "ExportImage" }, nil},
		{"other region", func(r *ecsapi.DescribeTasksRequest) { r.RegionId = away }, nil},
		{"second page", func(r *ecsapi.DescribeTasksRequest) {
			r.PageSize, r.PageNumber = requests.NewInteger(3), requests.NewInteger(2)
		}, []string{ids[0] + " Finished false"}},
	} {
		if got := list(tt.f); fmt.Sprint(got) != fmt.Sprint(tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestImportRefusals(t *testing.T) {
	c := newCloud(t)
	c.bucket("far-away", away)
	c.put("far-away", object1, fakeQcow2(1<<30))
	c.available("taken")
	type request = *ecsapi.ImportImageRequest
	disk := func(r request) *ecsapi.ImportImageDiskDeviceMapping { return &(*r.DiskDeviceMapping)[0] }
	for _, tt := range []struct {
		name   string
		change func(request)
		status int
		code   string
	}{
		{"no disk", func(r request) { r.DiskDeviceMapping = nil }, 403, "MissingParameter.DiskDeviceMapping"},
		{"no object", func(r request) { disk(r).OSSObject = "" }, 400, "MissingParameter"},
		{"short name", func(r request) { r.ImageName = "a" }, 400, "InvalidImageName.Malformed"},
		{"long name", func(r request) { r.ImageName = strings.Repeat("a", 129) }, 400, "InvalidImageName.Malformed"},
		{"digit first", func(r request) { r.ImageName = "1a" }, 400, "InvalidImageName.Malformed"},
		{"reserved name", func(r request) { r.ImageName = "aliyun_3" }, 400, "InvalidImageName.Malformed"},
		{"acs name", func(r request) { r.ImageName = "acs:x" }, 400, "InvalidImageName.Malformed"},
		{"slash in name", func(r request) { r.ImageName = "a/b" }, 400, "InvalidImageName.Malformed"},
		{"description", func(r request) { r.Description = "http://x" }, 400, "InvalidDescription.Malformed"},
		{"one letter of description", func(r request) { r.Description = "x" }, 400, "InvalidDescription.Malformed"},
		{"platform", func(r request) { r.Platform = "Alibaba Cloud Linux" }, 400, "InvalidPlatform.Malformed"},
		{"platform of another OS", func(r request) { r.Platform = "Other Windows" }, 400, "InvalidPlatform.Malformed"},
		{"architecture", func(r request) { r.Architecture = "aarch64" }, 400, "InvalidArchitecture.Malformed"},
		{"OS", func(r request) { r.OSType = "Linux" }, 400, "InvalidOSType.Malformed"},
		{"boot mode", func(r request) { r.BootMode = "UEFI-Preferred" }, 400, "InvalidParameter.Malformed"},
		{"arm by BIOS", func(r request) { r.Architecture = "arm64" }, 400, "InvalidParameter.Malformed"},
		{"format", func(r request) { disk(r).Format = "VMDK2" }, 400, "InvalidImageFormat.Malformed"},
		{"size is no number", func(r request) { disk(r).DiskImageSize = "20G" }, 400, "InvalidImageSize"},
		{"size too large", func(r request) { disk(r).DiskImageSize = "2049" }, 400, "InvalidImageSize"},
		{"smaller than the disk", func(r request) { disk(r).DiskImageSize = "19" }, 400, "InvalidImageSize"},
		{"data disk smaller than the disk", func(r request) {
			*r.DiskDeviceMapping = append(*r.DiskDeviceMapping, *disk(r))
			(*r.DiskDeviceMapping)[1].DiskImageSize = "19"
		}, 400, "InvalidDataDiskSize"},
		{"detection", func(r request) { r.DetectionStrategy = "Full" }, 400, "InvalidParameter.Malformed"},
		{"tag key", func(r request) { r.Tag = &[]ecsapi.ImportImageTag{{Key: "acs:x", Value: "y"}} }, 400, "InvalidTagKey.Malformed"},
		{"tag twice", func(r request) { r.Tag = &[]ecsapi.ImportImageTag{{Key: "x", Value: "y"}, {Key: "x", Value: "z"}} }, 400, "Duplicate.TagKey"},
		{"21 tags", func(r request) {
			r.Tag = &[]ecsapi.ImportImageTag{}
			for i := range 21 {
				*r.Tag = append(*r.Tag, ecsapi.ImportImageTag{Key: fmt.Sprint("k", i), Value: "v"})
			}
		}, 400, "NumberExceed.Tags"},
		{"token too long", func(r request) { r.ClientToken = strings.Repeat("t", 65) }, 400, "InvalidParameter.Malformed"},
		{"role of another name", func(r request) { r.RoleName = "Other" }, 403, "NoSetRoletoECSServiceAccount"},
		{"no region", func(r request) { r.RegionId = "cn-nowhere" }, 400, "InvalidRegionId.NotFound"},
		{"no bucket", func(r request) { disk(r).OSSBucket = "absent" }, 400, "InvalidOSSBucket.NotFound"},
		{"no such object", func(r request) { disk(r).OSSObject = "absent" }, 400, "InvalidOSSObject.NotFound"},
		{"malformed object", func(r request) { disk(r).OSSObject = "/absolute" }, 400, "InvalidOSSObject.Malformed"},
		{"bucket elsewhere", func(r request) { disk(r).OSSBucket = "far-away" }, 400, "InvalidOSSBucket.NotMatched"},
		{"object elsewhere", func(r request) { r.RegionId = away }, 400, "InvalidOSSBucket.NotMatched"},
		{"name taken", func(r request) { r.ImageName = "taken" }, 400, "InvalidImageName.Duplicated"},
		{"dry run", func(r request) { r.DryRun = "true" }, 400, "DryRunOperation"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := importRequest("new")
			tt.change(r)
			_, err := c.cli.ImportImage(r)
			refused(t, err, tt.status, tt.code)
		})
	}
	if n := len(c.Images()); n != 1 {
		t.Errorf("refused imports made images: there are %d", n)
	}
	r := importRequest("Ünïcode.图像:1_a-b")
	r.Architecture, r.BootMode, disk(r).DiskImageSize, r.RoleName = "arm64", "UEFI", "20", importRole
	c.importImage(r)
}

func TestImportRoleMissingInBothSpellings(t *testing.T) {
	for _, code := range []string{NoRoleAcount, NoRoleAccount} {
		c := newCloud(t, func(o *Options) { o.ECS.MissingRole = code })
		r := importRequest("node")
		r.DryRun = "true"
		_, err := c.cli.ImportImage(r)
		refused(t, err, 403, code)
		c.ConfigureECS(func(o *ECSOptions) { o.MissingRole = "" })
		_, err = c.cli.ImportImage(r)
		refused(t, err, 0, "DryRunOperation")
	}
}

func TestImportOfAnObjectThatIsBeingImported(t *testing.T) {
	c := newCloud(t)
	c.importImage(importRequest("first"))
	_, err := c.cli.ImportImage(importRequest("second"))
	refused(t, err, 403, "ImageIsImporting")
	_, err = c.cli.ImportImage(importRequest("first"))
	refused(t, err, 400, "InvalidImageName.Duplicated")
	c.jobs.Advance(time.Hour)
	c.importImage(importRequest("second"))
}

func TestImageQuota(t *testing.T) {
	c := newCloud(t, func(o *Options) { o.ECS.ImageQuota = 1 })
	c.available("first")
	_, err := c.cli.ImportImage(importRequest("second"))
	refused(t, err, 403, "QuotaExceed.Image")
}

func TestClientTokenIsIdempotent(t *testing.T) {
	c := newCloud(t)
	r := func(name string) *ecsapi.ImportImageRequest {
		r := importRequest(name)
		r.ClientToken = "token-1"
		return r
	}
	first := c.importImage(r("node"))
	again := c.importImage(r("node"))
	if again.ImageId != first.ImageId || again.TaskId != first.TaskId || again.RequestId == first.RequestId {
		t.Errorf("first %+v, again %+v", first, again)
	}
	_, err := c.cli.ImportImage(r("other"))
	refused(t, err, 400, "IdempotentParameterMismatch")
	dry := r("other") // a dry run has no effect to be repeated
	dry.DryRun = "true"
	(*dry.DiskDeviceMapping)[0].OSSObject = "absent"
	_, err = c.cli.ImportImage(dry)
	refused(t, err, 400, "InvalidOSSObject.NotFound")
	if n := len(c.Images()); n != 1 {
		t.Errorf("%d images", n)
	}
	// What a token made may be gone: the reply is the same.
	c.jobs.Advance(time.Hour)
	c.delete(first.ImageId)
	if again := c.importImage(r("node")); again.ImageId != first.ImageId {
		t.Errorf("after deletion %+v", again)
	}
	c.jobs.Advance(tokenLife)
	if again := c.importImage(r("node")); again.ImageId == first.ImageId {
		t.Errorf("after a day %+v", again)
	}
}

func TestRefusedRequestDoesNotUseItsClientToken(t *testing.T) {
	c := newCloud(t, func(o *Options) { o.ECS.MissingRole = NoRoleAccount })
	r := func() *ecsapi.ImportImageRequest { r := importRequest("node"); r.ClientToken = "t"; return r }
	_, err := c.cli.ImportImage(r())
	refused(t, err, 403, NoRoleAccount)
	c.ConfigureECS(func(o *ECSOptions) { o.MissingRole = "" })
	c.importImage(r())
}

func TestLostReplyAfterTheEffect(t *testing.T) {
	c := newCloud(t)
	for i, kind := range []FaultKind{LoseReply, RefuseAfter} {
		r := func() *ecsapi.ImportImageRequest {
			r := importRequest(fmt.Sprint("node-", i))
			r.ClientToken = fmt.Sprint("token-", i)
			return r
		}
		c.Inject(Fault{Op: "ImportImage", Kind: kind, Status: 500})
		if _, err := c.cli.ImportImage(r()); err == nil {
			t.Fatal("no error")
		}
		if n := len(c.Images()); n != i+1 {
			t.Fatalf("%d images", n)
		}
		if got := c.importImage(r()).ImageId; got != c.Images()[i].ID {
			t.Errorf("image %s, want %s", got, c.Images()[i].ID)
		}
		c.jobs.Advance(time.Hour)
	}
}

func TestScriptedRefusalsHaveNoEffect(t *testing.T) {
	c := newCloud(t)
	for _, f := range []struct {
		Fault
		code string
	}{
		{Fault{Kind: Refuse}, "ServiceUnavailable"},
		{Fault{Kind: Refuse, Status: 500}, "InternalError"},
		{Fault{Kind: Refuse, Status: 400}, "Throttling.User"},
		{Fault{Kind: Refuse, Status: 403, Code: "ImportImageFailed"}, "ImportImageFailed"},
	} {
		f.Op = "ImportImage"
		c.Inject(f.Fault)
		_, err := c.cli.ImportImage(importRequest("node"))
		refused(t, err, f.Status, f.code)
	}
	c.Inject(Fault{Op: "ImportImage", Kind: Drop})
	if _, err := c.cli.ImportImage(importRequest("node")); err == nil {
		t.Error("a dropped connection is no error")
	}
	if n := len(c.Images()); n != 0 {
		t.Errorf("%d images", n)
	}
	if n := c.Counters().Requests["ImportImage"]; n != 5 {
		t.Errorf("%d requests counted", n)
	}
}

func TestJobFaults(t *testing.T) {
	for _, tt := range []struct {
		fault        JobFault
		task, image  string
		code, reason string
	}{
		{JobFault{Stage: WhileImporting}, "Failed", "CreateFailed", "ImportImageFailed", "The image can not be imported."},
		{JobFault{Stage: WhileImporting, Status: "UnAvailable", Code: "X", Message: "y"}, "Failed", "UnAvailable", "X", "y"},
		{JobFault{Stage: AfterImporting, Status: "UnAvailable"}, "Finished", "UnAvailable", "", ""},
		{JobFault{Stage: AfterImporting}, "Finished", "CreateFailed", "", ""},
	} {
		tt.fault.Image, tt.fault.Times = "node", 1
		c := newCloud(t, func(o *Options) { o.ECS.JobFaults = []JobFault{tt.fault} })
		imp := c.importImage(importRequest("node"))
		c.jobs.Advance(time.Hour)
		task, img := c.taskOf(imp.TaskId), c.describe(atHome, imp.ImageId)
		op := task.OperationProgressSet.OperationProgress[0]
		if task.TaskStatus != tt.task || img.Status != tt.image || op.ErrorCode != tt.code || op.ErrorMsg != tt.reason {
			t.Errorf("%+v: task %s, image %s, %s: %s", tt.fault, task.TaskStatus, img.Status, op.ErrorCode, op.ErrorMsg)
		}
		if tt.task == "Failed" && (task.TaskProcess != "37%" || task.FailedCount != 1 || img.Progress != "37%") {
			t.Errorf("failed at %s, image at %s, %d failed", task.TaskProcess, img.Progress, task.FailedCount)
		}
		// What failed is in the way until it is deleted, and so is its snapshot.
		_, err := c.cli.ImportImage(importRequest("node"))
		refused(t, err, 400, "InvalidImageName.Duplicated")
		c.delete(imp.ImageId)
		if s := c.Snapshots(); len(s) != 1 || s[0].Image != "" {
			t.Errorf("snapshots %+v", s)
		}
		imp = c.importImage(importRequest("node")) // the fault is used up
		c.jobs.Advance(time.Hour)
		if got := c.status(atHome, imp.ImageId); got != imageAvailable {
			t.Errorf("the second image is %s", got)
		}
	}
}

func TestImportReadsTheObjectToTheEnd(t *testing.T) {
	for _, tt := range []struct {
		name   string
		spoil  func(c *cloud)
		reason string
	}{
		{"deleted", func(c *cloud) {
			c.OSS.mu.Lock()
			defer c.OSS.mu.Unlock()
			delete(c.OSS.buckets[bucket1].objects, object1)
		}, "was deleted"},
		{"changed", func(c *cloud) { c.put(bucket1, object1, fakeQcow2(21<<30)) }, "was changed"},
		{"not an image", nil, "neither a qcow2"},
	} {
		c := newCloud(t)
		if tt.spoil == nil {
			c.put(bucket1, object1, bytes.Repeat([]byte("junk"), 1<<10))
		}
		imp := c.importImage(importRequest("node"))
		c.jobs.Advance(60 * time.Second)
		if tt.spoil != nil {
			tt.spoil(c)
		}
		c.jobs.Advance(time.Hour)
		task := c.taskOf(imp.TaskId)
		if reason := task.OperationProgressSet.OperationProgress[0].ErrorMsg; task.TaskStatus != "Failed" || !strings.Contains(reason, tt.reason) {
			t.Errorf("%s: task %s: %s", tt.name, task.TaskStatus, reason)
		}
	}
	c := newCloud(t)
	if err := c.OSS.CreateBucket("cold", atHome, StorageClass("Archive")); err != nil {
		t.Fatal(err)
	}
	c.put("cold", object1, fakeQcow2(1<<30))
	r := importRequest("archived")
	(*r.DiskDeviceMapping)[0].OSSBucket = "cold"
	imp := c.importImage(r)
	c.jobs.Advance(time.Hour)
	if reason := c.taskOf(imp.TaskId).OperationProgressSet.OperationProgress[0].ErrorMsg; !strings.Contains(reason, "Archive") {
		t.Errorf("archived object: %q", reason)
	}
	c = newCloud(t, func(o *Options) { o.ECS.AnyContent = true })
	c.put(bucket1, object1, []byte("junk"))
	c.available("junk")
}

func TestCancelTaskRemovesAllThatTheImportMade(t *testing.T) {
	c := newCloud(t)
	imp := c.importImage(importRequest("node"))
	_, err := c.cli.DeleteImage(deleteRequest(atHome, imp.ImageId))
	refused(t, err, 403, "ImageIsImporting")
	c.jobs.Advance(50 * time.Second)
	cancel := func(id string) error {
		r := ecsapi.CreateCancelTaskRequest()
		r.RegionId, r.TaskId = atHome, id
		_, err := c.cli.CancelTask(r)
		return err
	}
	if err := cancel(imp.TaskId); err != nil {
		t.Fatal(err)
	}
	if got := c.taskOf(imp.TaskId).TaskStatus; got != "Deleted" {
		t.Errorf("task is %s", got)
	}
	if len(c.Images()) != 0 || len(c.Snapshots()) != 0 {
		t.Errorf("left: %+v %+v", c.Images(), c.Snapshots())
	}
	refused(t, cancel(imp.TaskId), 403, "InvalidTaskId.IncorrectTaskStatus")
	refused(t, cancel("t-none"), 400, "InvalidTaskId.NotFound")
	c.available("node") // the name is free again
}

func TestSpeedDividesDurations(t *testing.T) {
	c := newCloud(t, func(o *Options) { o.ECS.Speed = 10 })
	imp := c.importImage(importRequest("node"))
	c.jobs.Advance(13 * time.Second)
	if got := c.status(atHome, imp.ImageId); got != imageAvailable {
		t.Errorf("image is %s", got)
	}
}

// TestRealTimeAtASpeed is how a rehearsal runs: nobody moves a clock.
func TestRealTimeAtASpeed(t *testing.T) {
	c := newCloud(t, func(o *Options) { o.ECS = ECSOptions{Speed: 10000} })
	imp := c.importImage(importRequest("node"))
	for deadline := time.Now().Add(10 * time.Second); c.status(atHome, imp.ImageId) != imageAvailable; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("eleven minutes take longer than ten seconds")
		}
	}
}

func TestImportsAtOnceMakeOneImageOfAName(t *testing.T) {
	c := newCloud(t)
	errs := make(chan error)
	const n = 16
	for range n {
		go func() {
			_, err := c.client(ecsUser).ImportImage(importRequest("node"))
			errs <- err
		}()
	}
	failed := 0
	for range n {
		if err := <-errs; err != nil {
			refused(t, err, 400, "InvalidImageName.Duplicated")
			failed++
		}
	}
	if failed != n-1 || len(c.Images()) != 1 {
		t.Errorf("%d failed, %d images", failed, len(c.Images()))
	}
}

func deleteRequest(region, id string) *ecsapi.DeleteImageRequest {
	r := ecsapi.CreateDeleteImageRequest()
	r.RegionId, r.ImageId = region, id
	return r
}

func (c *cloud) delete(id string) {
	c.Helper()
	if _, err := c.cli.DeleteImage(deleteRequest(atHome, id)); err != nil {
		c.Fatal(err)
	}
}
