package alibaba

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"

	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/requests"
	"github.com/aliyun/alibaba-cloud-sdk-go/services/ecs"

	"remaster/pkg/importer"
)

// allStatuses are the states of images. Without them the service shows those that are
// Available only.
const allStatuses = "Creating,Waiting,Available,UnAvailable,CreateFailed,Deprecated"

// ImportImage implements [importer.ECS].
func (e *ECS) ImportImage(ctx context.Context, r importer.ImportRequest) (importer.ImportStarted, error) {
	req, resp := ecs.CreateImportImageRequest(), ecs.CreateImportImageResponse()
	req.DiskDeviceMapping = &[]ecs.ImportImageDiskDeviceMapping{{
		OSSBucket: r.Object.Bucket, OSSObject: r.Object.Key, Format: r.Format, DiskImageSize: itoa(r.DiskSizeGiB),
	}}
	req.ImageName, req.Description = r.Name, r.Description
	req.Architecture, req.OSType, req.Platform, req.BootMode = r.Architecture, r.OSType, r.Platform, r.BootMode
	req.LicenseType, req.DetectionStrategy, req.RoleName = r.LicenseType, r.Detection, r.RoleName
	req.ResourceGroupId, req.ClientToken = r.ResourceGroup, r.ClientToken
	req.Features = ecs.ImportImageFeatures{NvmeSupport: r.NVMe, ImdsSupport: r.IMDS}
	if r.DryRun {
		req.DryRun = requests.NewBoolean(true)
	}
	if len(r.Tags) > 0 {
		var tags []ecs.ImportImageTag
		for _, key := range slices.Sorted(maps.Keys(r.Tags)) {
			tags = append(tags, ecs.ImportImageTag{Key: key, Value: r.Tags[key]})
		}
		req.Tag = &tags
	}
	if err := e.do(ctx, r.Region, req, resp); err != nil {
		return importer.ImportStarted{}, err
	}
	if resp.ImageId == "" && resp.TaskId == "" {
		return importer.ImportStarted{}, errors.New("ImportImage: the reply names neither an image nor a task")
	}
	return importer.ImportStarted{ImageID: resp.ImageId, TaskID: resp.TaskId, RequestID: resp.RequestId}, nil
}

// CopyImage implements [importer.ECS].
func (e *ECS) CopyImage(ctx context.Context, r importer.CopyRequest) (string, error) {
	req, resp := ecs.CreateCopyImageRequest(), ecs.CreateCopyImageResponse()
	req.ImageId, req.DestinationRegionId = r.ImageID, r.ToRegion
	req.DestinationImageName, req.DestinationDescription = r.Name, r.Description
	req.KMSKeyId, req.ResourceGroupId = r.KMSKeyID, r.ResourceGroup
	if r.Encrypted {
		req.Encrypted = requests.NewBoolean(true)
	}
	if r.ClientToken != "" {
		req.QueryParams["ClientToken"] = r.ClientToken // newer than the SDK
	}
	if len(r.Tags) > 0 {
		var tags []ecs.CopyImageTag
		for _, key := range slices.Sorted(maps.Keys(r.Tags)) {
			tags = append(tags, ecs.CopyImageTag{Key: key, Value: r.Tags[key]})
		}
		req.Tag = &tags
	}
	if err := e.do(ctx, r.Region, req, resp); err != nil {
		return "", err
	}
	if resp.ImageId == "" {
		return "", errors.New("CopyImage: the reply names no image")
	}
	return resp.ImageId, nil
}

// Images implements [importer.ECS]. The images are the account's own.
func (e *ECS) Images(ctx context.Context, q importer.ImageQuery) ([]importer.Image, error) {
	var out []importer.Image
	region := q.Region
	if region == "" {
		region = e.c.region
	}
	seen := map[string]bool{}
	err := pages(func(page int) (int, error) {
		req, resp := ecs.CreateDescribeImagesRequest(), ecs.CreateDescribeImagesResponse()
		req.ImageOwnerAlias, req.Status = "self", allStatuses
		req.ImageId, req.ImageName, req.ImageFamily = q.ImageID, q.Name, q.Family
		req.PageNumber, req.PageSize = requests.NewInteger(page), requests.NewInteger(ecsPage)
		if err := e.do(ctx, region, req, resp); err != nil {
			return 0, err
		}
		for _, i := range resp.Images.Image {
			// A page shifts when an image is made or deleted meanwhile.
			if !seen[i.ImageId] {
				seen[i.ImageId] = true
				out = append(out, image(i, region))
			}
		}
		return len(resp.Images.Image), nil
	})
	return out, err
}

func image(i ecs.Image, region string) importer.Image {
	out := importer.Image{
		ID: i.ImageId, Name: i.ImageName, Description: i.Description, Region: region,
		Status: i.Status, Progress: i.Progress, BootMode: i.BootMode, Architecture: i.Architecture,
		Platform: i.Platform, Family: i.ImageFamily, SizeGiB: i.Size, Created: parseTime(i.CreationTime),
		Tags: map[string]string{}, Check: importer.ImageCheck{Status: i.DetectionOptions.Status},
	}
	for _, d := range i.DiskDeviceMappings.DiskDeviceMapping {
		if d.SnapshotId != "" {
			out.Snapshots = append(out.Snapshots, d.SnapshotId)
		}
		if d.ImportOSSObject != "" {
			out.Sources = append(out.Sources, importer.Object{Bucket: d.ImportOSSBucket, Key: d.ImportOSSObject})
		}
	}
	for _, t := range i.Tags.Tag {
		// DescribeImages writes TagKey, newer operations Key.
		out.Tags[cmp.Or(t.TagKey, t.Key)] = cmp.Or(t.TagValue, t.Value)
	}
	for _, item := range i.DetectionOptions.Items.Item {
		out.Check.Items = append(out.Check.Items, importer.CheckItem(item))
	}
	return out
}
