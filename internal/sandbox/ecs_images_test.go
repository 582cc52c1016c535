package sandbox

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/requests"
	ecsapi "github.com/aliyun/alibaba-cloud-sdk-go/services/ecs"
)

// list returns the names of the images that a query finds, and how many it says there are.
func (c *cloud) list(f func(*ecsapi.DescribeImagesRequest)) ([]string, int) {
	c.Helper()
	r := ecsapi.CreateDescribeImagesRequest()
	r.RegionId, r.ImageOwnerAlias = atHome, "self"
	f(r)
	resp, err := c.cli.DescribeImages(r)
	if err != nil {
		c.Fatal(err)
	}
	var names []string
	for _, img := range resp.Images.Image {
		names = append(names, img.ImageName)
	}
	return names, resp.TotalCount
}

func TestDescribeImagesShowsAvailableOnesUnlessAsked(t *testing.T) {
	c := newCloud(t)
	c.available("ready")
	c.importImage(importRequest("coming"))
	for _, tt := range []struct {
		name string
		f    func(*ecsapi.DescribeImagesRequest)
		want []string
	}{
		{"default", func(*ecsapi.DescribeImagesRequest) {}, []string{"ready"}},
		{"creating", func(r *ecsapi.DescribeImagesRequest) { r.Status = "Creating,Waiting" }, []string{"coming"}},
		{"both", func(r *ecsapi.DescribeImagesRequest) { r.Status = "Creating,Available" }, []string{"coming", "ready"}},
		{"elsewhere", func(r *ecsapi.DescribeImagesRequest) { r.RegionId = away }, nil},
		{"others' too", func(r *ecsapi.DescribeImagesRequest) { r.ImageOwnerAlias = "" }, []string{"ready", "aliyun_3_x64_20G_alibase_20260720.vhd"}},
		{"arm", func(r *ecsapi.DescribeImagesRequest) { r.Architecture = "arm64" }, nil},
	} {
		if got, _ := c.list(tt.f); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
	r := ecsapi.CreateDescribeImagesRequest()
	r.Status = "Ready"
	_, err := c.cli.DescribeImages(r)
	refused(t, err, 400, "InvalidStatus.NotFound")
}

func TestDescribeImagesFindsPartsOfNames(t *testing.T) {
	c := newCloud(t)
	for _, n := range []string{"node", "node-2", "My-Node"} {
		c.available(n)
	}
	for _, part := range []string{"node", "NODE", "node*"} {
		got, _ := c.list(func(r *ecsapi.DescribeImagesRequest) { r.ImageName = part })
		if want := []string{"My-Node", "node-2", "node"}; !slices.Equal(got, want) {
			t.Errorf("%s: found %q, want %q", part, got, want)
		}
	}
}

func TestDescribeImagesPages(t *testing.T) {
	c := newCloud(t)
	var all []string
	for i := range 23 {
		all = append([]string{fmt.Sprintf("node-%02d", i)}, all...)
		c.available(all[0])
	}
	for _, tt := range []struct{ number, size, from, to int }{{0, 0, 0, 10}, {3, 0, 20, 23}, {2, 20, 20, 23}, {1, 100, 0, 23}, {9, 10, 23, 23}} {
		got, total := c.list(func(r *ecsapi.DescribeImagesRequest) {
			if tt.number > 0 {
				r.PageNumber = requests.NewInteger(tt.number)
			}
			if tt.size > 0 {
				r.PageSize = requests.NewInteger(tt.size)
			}
		})
		if !slices.Equal(got, all[tt.from:tt.to]) || total != 23 {
			t.Errorf("page %d of %d: %q of %d", tt.number, tt.size, got, total)
		}
	}
	r := ecsapi.CreateDescribeImagesRequest()
	r.PageSize = "101"
	_, err := c.cli.DescribeImages(r)
	refused(t, err, 400, "InvalidParameter")
}

func TestSnapshotSurvivesItsImage(t *testing.T) {
	c := newCloud(t)
	imp := c.importImage(importRequest("node"))
	snapshot := c.describe(atHome, imp.ImageId).DiskDeviceMappings.DiskDeviceMapping[0].SnapshotId
	state := func() string {
		r := ecsapi.CreateDescribeSnapshotsRequest()
		r.SnapshotIds = fmt.Sprintf("[%q]", snapshot)
		resp, err := c.cli.DescribeSnapshots(r)
		if err != nil {
			t.Fatal(err)
		}
		if len(resp.Snapshots.Snapshot) == 0 {
			return "gone"
		}
		s := resp.Snapshots.Snapshot[0]
		return s.Status + " " + s.Progress + " " + s.Usage
	}
	remove := func() error {
		r := ecsapi.CreateDeleteSnapshotRequest()
		r.SnapshotId = snapshot
		_, err := c.cli.DeleteSnapshot(r)
		return err
	}
	if got := state(); got != "failed 0% image" { // which means nothing yet
		t.Errorf("while importing: %s", got)
	}
	c.jobs.Advance(time.Hour)
	if got := state(); got != "accomplished 100% image" {
		t.Errorf("after the import: %s", got)
	}
	refused(t, remove(), 403, "SnapshotCreatedImage")
	c.delete(imp.ImageId)
	c.delete(imp.ImageId) // is ignored
	if got := state(); got != "accomplished 100% none" {
		t.Errorf("after deletion of the image: %s", got)
	}
	for range 2 { // the second is ignored
		if err := remove(); err != nil {
			t.Fatal(err)
		}
	}
	if got := state(); got != "gone" || len(c.Snapshots()) != 0 {
		t.Errorf("after its own deletion: %s", got)
	}
}

func copyRequest(id, region, name string) *ecsapi.CopyImageRequest {
	r := ecsapi.CreateCopyImageRequest()
	r.ImageId, r.DestinationRegionId, r.DestinationImageName = id, region, name
	return r
}

func TestCopyImageFiveAtATime(t *testing.T) {
	c := newCloud(t)
	src := c.available("node")
	var ids []string
	for i := range 12 {
		resp, err := c.cli.CopyImage(copyRequest(src, away, fmt.Sprint("copy-", i)))
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, resp.ImageId)
	}
	count := func() string {
		n := map[string]int{}
		for _, id := range ids {
			n[c.status(away, id)]++
		}
		return fmt.Sprint(n[imageWaiting], n[imageCreating], n[imageAvailable])
	}
	for i, want := range []string{"7 5 0", "7 5 0", "2 5 5", "0 2 10", "0 0 12"} { // waiting, running, done
		if got := count(); got != want {
			t.Errorf("step %d: %s, want %s", i, got, want)
		}
		if i == 1 {
			if p := c.describe(away, ids[0]).Progress; p != "99%" {
				t.Errorf("progress %s", p)
			}
		}
		c.jobs.Advance([]time.Duration{99 * time.Second, time.Second, 100 * time.Second, 100 * time.Second, 0}[i])
	}
	_, err := c.cli.DeleteImage(deleteRequest(atHome, src))
	if err != nil {
		t.Errorf("source after copying: %v", err)
	}
	if n := len(c.Snapshots()); n != 13 {
		t.Errorf("%d snapshots, want one of each image and the deleted one's", n)
	}
}

// TestQueueOfCopiesDoesNotDependOnWhenOneLooks advances at once over what others see in
// steps.
func TestQueueOfCopiesDoesNotDependOnWhenOneLooks(t *testing.T) {
	for _, step := range []time.Duration{250 * time.Second, 10 * time.Second} {
		c := newCloud(t)
		src := c.available("node")
		for i := range 12 {
			if _, err := c.cli.CopyImage(copyRequest(src, away, fmt.Sprint("copy-", i))); err != nil {
				t.Fatal(err)
			}
		}
		for d := time.Duration(0); d < 250*time.Second; d += step {
			c.jobs.Advance(step)
			c.Images()
		}
		var got []string
		for _, img := range c.Images()[1:] {
			got = append(got, fmt.Sprint(img.Status, img.Progress))
		}
		want := append(slices.Repeat([]string{"Available100"}, 10), "Creating50", "Creating50")
		if !slices.Equal(got, want) {
			t.Errorf("steps of %v: %v", step, got)
		}
	}
}

func TestCopyImageRefusals(t *testing.T) {
	c := newCloud(t)
	imp := c.importImage(importRequest("node"))
	_, err := c.cli.CopyImage(copyRequest(imp.ImageId, away, "copy"))
	refused(t, err, 403, "IncorrectImageStatus")
	c.jobs.Advance(125 * time.Second) // the task is finished, the image is not available
	if got := c.taskOf(imp.TaskId).TaskStatus; got != taskFinished {
		t.Fatalf("task is %s", got)
	}
	_, err = c.cli.CopyImage(copyRequest(imp.ImageId, away, "copy"))
	refused(t, err, 403, "IncorrectImageStatus")
	c.jobs.Advance(time.Hour)
	_, err = c.cli.CopyImage(copyRequest("m-none", away, "copy"))
	refused(t, err, 404, "InvalidImageId.NotFound")
	_, err = c.cli.CopyImage(copyRequest(imp.ImageId, "cn-nowhere", "copy"))
	refused(t, err, 400, "InvalidRegionId.NotFound")
	_, err = c.cli.CopyImage(copyRequest(imp.ImageId, atHome, "copy"))
	refused(t, err, 400, "InvalidParameter")
	if _, err = c.cli.CopyImage(copyRequest(imp.ImageId, away, "copy")); err != nil {
		t.Fatal(err)
	}
	_, err = c.cli.CopyImage(copyRequest(imp.ImageId, away, "copy"))
	refused(t, err, 400, "InvalidImageName.Duplicated")
	_, err = c.cli.DeleteImage(deleteRequest(atHome, imp.ImageId))
	refused(t, err, 403, "OperationDenied.ImageCopying")
	id := c.Images()[1].ID
	_, err = c.cli.DeleteImage(deleteRequest(away, id))
	refused(t, err, 403, "OperationDenied.ImageCopying")
	c.jobs.Advance(time.Hour)
	if _, err = c.cli.DeleteImage(deleteRequest(away, id)); err != nil {
		t.Error(err)
	}
}

func TestCopyFails(t *testing.T) {
	c := newCloud(t, func(o *Options) { o.ECS.JobFaults = []JobFault{{Stage: WhileCopying, Image: "copy"}} })
	if _, err := c.cli.CopyImage(copyRequest(c.available("node"), away, "copy")); err != nil {
		t.Fatal(err)
	}
	c.jobs.Advance(time.Hour)
	if img := c.Images()[1]; img.Status != imageFailed {
		t.Errorf("copy is %s", img.Status)
	}
}

func TestCancelCopyImage(t *testing.T) {
	c := newCloud(t)
	src := c.available("node")
	var ids []string
	for i := range 6 {
		resp, err := c.cli.CopyImage(copyRequest(src, away, fmt.Sprint("copy-", i)))
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, resp.ImageId)
	}
	cancel := func(region, id string) error {
		r := ecsapi.CreateCancelCopyImageRequest()
		r.RegionId, r.ImageId = region, id
		_, err := c.cli.CancelCopyImage(r)
		return err
	}
	c.jobs.Advance(40 * time.Second)
	if got := c.status(away, ids[5]); got != imageWaiting {
		t.Errorf("the sixth is %s", got)
	}
	if err := cancel(away, ids[0]); err != nil {
		t.Fatal(err)
	}
	if got := c.status(away, ids[0]) + " " + c.status(away, ids[5]); got != "gone Creating" {
		t.Errorf("the cancelled and the sixth: %s", got)
	}
	c.jobs.Advance(60 * time.Second)
	if img := c.describe(away, ids[5]); img.Progress != "60%" { // begun when the place became free
		t.Errorf("the sixth is %s %s", img.Status, img.Progress)
	}
	refused(t, cancel(away, ids[1]), 400, "IncorrectImageStatus")
	refused(t, cancel(atHome, src), 400, "ImageCreatedNotFromCopy")
	refused(t, cancel(away, ids[0]), 404, "InvalidImageId.NotFound")
	if n := len(c.Snapshots()); n != 6 {
		t.Errorf("%d snapshots", n)
	}
}

func TestModifyImageSharePermission(t *testing.T) {
	c := newCloud(t)
	id := c.available("node")
	modify := func(add, remove []string) error {
		r := ecsapi.CreateModifyImageSharePermissionRequest()
		r.ImageId = id
		if add != nil {
			r.AddAccount = &add
		}
		if remove != nil {
			r.RemoveAccount = &remove
		}
		_, err := c.cli.ModifyImageSharePermission(r)
		return err
	}
	shared := func() (n []string) {
		for page := 1; page <= 2; page++ {
			r := ecsapi.CreateDescribeImageSharePermissionRequest()
			r.ImageId, r.PageNumber = id, requests.NewInteger(page)
			resp, err := c.cli.DescribeImageSharePermission(r)
			if err != nil {
				t.Fatal(err)
			}
			for _, a := range resp.Accounts.Account {
				n = append(n, a.AliyunId)
			}
		}
		return n
	}
	var accounts []string
	for i := range 11 {
		accounts = append(accounts, fmt.Sprintf("10000000000000%02d", i))
	}
	refused(t, modify(accounts, nil), 400, "InvalidParameter")
	refused(t, modify([]string{"somebody"}, nil), 404, "InvalidAccount.NotFound")
	for _, part := range [][]string{accounts[:10], accounts[5:]} { // twice is once
		if err := modify(part, nil); err != nil {
			t.Fatal(err)
		}
	}
	if got := shared(); !slices.Equal(got, accounts) {
		t.Errorf("shared with %v", got)
	}
	if err := modify(nil, accounts[:2]); err != nil {
		t.Fatal(err)
	}
	if got := shared(); !slices.Equal(got, accounts[2:]) || c.describe(atHome, id).IsSelfShared != "true" {
		t.Errorf("shared with %v", got)
	}
}

func TestModifyImageAttribute(t *testing.T) {
	c := newCloud(t)
	c.available("other")
	id := c.available("node")
	modify := func(f func(*ecsapi.ModifyImageAttributeRequest)) error {
		r := ecsapi.CreateModifyImageAttributeRequest()
		r.ImageId = id
		f(r)
		_, err := c.cli.ModifyImageAttribute(r)
		return err
	}
	refused(t, modify(func(r *ecsapi.ModifyImageAttributeRequest) { r.ImageName = "other" }), 400, "InvalidImageName.Duplicated")
	refused(t, modify(func(r *ecsapi.ModifyImageAttributeRequest) { r.Status, r.Description = "Waiting", "lost" }), 400, "InvalidStatus.NotFound")
	refused(t, modify(func(r *ecsapi.ModifyImageAttributeRequest) { r.ImageId = "aliyun_3_x64_20G_alibase_20260720.vhd" }), 403, "InvalidImageType.NotSupported")
	if got := c.describe(atHome, id).Description; got != "" {
		t.Errorf("a refused change left %q", got)
	}
	if err := modify(func(r *ecsapi.ModifyImageAttributeRequest) {
		r.ImageName, r.Description, r.ImageFamily, r.BootMode, r.Status = "renamed", "what it is", "nodes", "UEFI-Preferred", "Deprecated"
		r.Features.NvmeSupport, r.Features.ImdsSupport = "supported", "v2"
	}); err != nil {
		t.Fatal(err)
	}
	img := c.describe(atHome, id)
	if got := fmt.Sprint(img.ImageName, img.Description, img.ImageFamily, img.BootMode, img.Status, img.Features.NvmeSupport, img.Features.ImdsSupport); got != fmt.Sprint("renamed", "what it is", "nodes", "UEFI-Preferred", "Deprecated", "supported", "v2") {
		t.Errorf("image is %s", got)
	}
	refused(t, modify(func(r *ecsapi.ModifyImageAttributeRequest) { r.Features.ImdsSupport = "v1" }), 400, "InvalidParameter.Malformed")
	got, _ := c.list(func(r *ecsapi.DescribeImagesRequest) { r.ImageFamily = "nodes" })
	if got != nil {
		t.Errorf("a deprecated image is shown as available: %v", got)
	}
	_, err := c.cli.CopyImage(copyRequest(id, away, "copy"))
	refused(t, err, 403, "IncorrectImageStatus")
}

func TestTagResources(t *testing.T) {
	c := newCloud(t)
	id := c.available("node")
	tag := ecsapi.CreateTagResourcesRequest()
	tag.ResourceType, tag.ResourceId = "image", &[]string{id}
	tag.Tag = &[]ecsapi.TagResourcesTag{{Key: "a", Value: "1"}, {Key: "b", Value: "2"}}
	if _, err := c.cli.TagResources(tag); err != nil {
		t.Fatal(err)
	}
	untag := ecsapi.CreateUntagResourcesRequest()
	untag.ResourceType, untag.ResourceId, untag.TagKey = "image", &[]string{id}, &[]string{"a"}
	if _, err := c.cli.UntagResources(untag); err != nil {
		t.Fatal(err)
	}
	list := ecsapi.CreateListTagResourcesRequest()
	list.ResourceType, list.ResourceId = "image", &[]string{id}
	resp, err := c.cli.ListTagResources(list)
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(resp.TagResources.TagResource); got != fmt.Sprintf("[{2 image %s b}]", id) {
		t.Errorf("tags %s", got)
	}
	found, _ := c.list(func(r *ecsapi.DescribeImagesRequest) { r.Tag = &[]ecsapi.DescribeImagesTag{{Key: "b", Value: "2"}} })
	if len(found) != 1 {
		t.Errorf("by tag: %v", found)
	}
	tag.ResourceId = &[]string{"m-none"}
	_, err = c.cli.TagResources(tag)
	refused(t, err, 404, "InvalidResourceId.NotFound")
}

func TestDescribeRegions(t *testing.T) {
	c := newCloud(t)
	resp, err := c.cli.DescribeRegions(ecsapi.CreateDescribeRegionsRequest())
	if err != nil {
		t.Fatal(err)
	}
	if len(resp.Regions.Region) < 2 || resp.Regions.Region[0].RegionId != atHome {
		t.Errorf("regions %+v", resp.Regions.Region)
	}
}
