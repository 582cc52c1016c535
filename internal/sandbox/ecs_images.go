package sandbox

import (
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// imageStates are what DescribeImages may be asked for.
var imageStates = []string{imageCreating, imageWaiting, imageAvailable, imageUnAvailable, imageFailed, imageDeprecated}

// publicImage is one of the images that everybody sees who does not ask for their own.
func publicImage(region string) *image {
	return &image{id: "aliyun_3_x64_20G_alibase_20260720.vhd", name: "aliyun_3_x64_20G_alibase_20260720.vhd",
		region: region, owner: "system", status: imageAvailable, progress: 100, arch: "x86_64", platform: "Aliyun", osType: "linux",
		bootMode: "BIOS", nvme: "supported", imds: "v1", public: true, created: time.Date(2026, 7, 20, 0, 0, 0, 0, time.UTC),
		disks: []imageDisk{{device: "/dev/xvda", format: "VHD", gib: 20}}}
}

// describeImages lists images: available ones only unless others are asked for, and by a
// part of their name.
func (e *ecs) describeImages(q *rpcRequest) (reply, *rpcError) {
	ids, err := q.commaList("ImageId", 100)
	if err != nil {
		return nil, err
	}
	states, err := q.commaList("Status", len(imageStates))
	if err != nil {
		return nil, err
	}
	for _, s := range states {
		if !slices.Contains(imageStates, s) {
			return nil, rpcRefusal(http.StatusBadRequest, "InvalidStatus.NotFound", "The specified Status %q does not exist.", s)
		}
	}
	if states == nil {
		states = []string{imageAvailable}
	}
	tags, err := q.tags()
	if err != nil {
		return nil, err
	}
	is := func(name, value string) bool { return q.params[name] == "" || q.params[name] == value }
	part := strings.ToLower(strings.ReplaceAll(q.params["ImageName"], "*", ""))
	var found []*image
	for _, img := range slices.Backward(e.images) { // newest first
		if img.region == q.params["RegionId"] && wanted(ids, img.id) && slices.Contains(states, img.status) &&
			strings.Contains(strings.ToLower(img.name), part) && is("ImageFamily", img.family) && is("ImageOwnerAlias", img.owner) &&
			is("Architecture", img.arch) && is("OSType", img.osType) && is("ResourceGroupId", img.group) && hasTags(img.tagsAt(q.now), tags) {
			found = append(found, img)
		}
	}
	p, err := q.page(len(found))
	if err != nil {
		return nil, err
	}
	list := []reply{}
	for _, img := range found[p.from:p.to] {
		list = append(list, e.describe(img, q.now))
	}
	r := p.head(q, len(found))
	r["Images"] = reply{"Image": list}
	return r, nil
}

func hasTags(have, want map[string]string) bool {
	for k, v := range want {
		if got, ok := have[k]; !ok || v != "" && got != v {
			return false
		}
	}
	return true
}

// checked reports whether the image check is finished.
func (img *image) checked(now time.Time) bool {
	return !img.checkFrom.IsZero() && !now.Before(img.checkTo)
}

// tagsAt returns the tags of an image, with those that the image check adds.
func (img *image) tagsAt(now time.Time) map[string]string {
	if !img.checked(now) {
		return img.tags
	}
	out := maps.Clone(img.tags)
	if out == nil {
		out = map[string]string{}
	}
	out["acs:ecs:image:osVersion"] = "Alibaba Cloud Linux 3"
	out["acs:ecs:image:kernelVersion"] = "5.10.134"
	return out
}

func tagList(tags map[string]string) reply {
	list := []reply{}
	for _, k := range slices.Sorted(maps.Keys(tags)) {
		list = append(list, reply{"TagKey": k, "TagValue": tags[k]})
	}
	return reply{"Tag": list}
}

func (e *ecs) describe(img *image, now time.Time) reply {
	disks, size := []reply{}, 0
	for i, d := range img.disks {
		kind := "data"
		if i == 0 {
			kind, size = "system", d.gib
		}
		r := reply{"Device": d.device, "Size": strconv.Itoa(d.gib), "Format": d.format, "Type": kind,
			"ImportOSSBucket": d.bucket, "ImportOSSObject": d.key, "Progress": percentText(img.progress), "RemainTime": 0, "SnapshotId": ""}
		if d.snapshot != nil {
			r["SnapshotId"] = d.snapshot.id
		}
		disks = append(disks, r)
	}
	r := reply{
		"ImageId": img.id, "ImageName": img.name, "Description": img.description, "ImageFamily": img.family,
		"ImageOwnerAlias": img.owner, "IsPublic": img.public, "IsCopied": img.copied, "IsSelfShared": strconv.FormatBool(len(img.shared) > 0),
		"Status": img.status, "Progress": percentText(img.progress), "CreationTime": apiTime(img.created), "Size": size,
		"Architecture": img.arch, "Platform": img.platform, "OSType": img.osType, "BootMode": img.bootMode,
		"ResourceGroupId": img.group, "Usage": "none", "IsSupportCloudinit": true, "IsSupportIoOptimized": true,
		"Features": reply{"NvmeSupport": img.nvme, "ImdsSupport": img.imds}, "Tags": tagList(img.tagsAt(now)),
		"DiskDeviceMappings": reply{"DiskDeviceMapping": disks},
	}
	if img.checkFrom.IsZero() {
		return r
	}
	check, items := "Processing", []reply{}
	if img.checked(now) {
		check = "Finished"
		for _, i := range e.cfg.CheckItems {
			items = append(items, reply{"Name": i.Name, "Value": i.Value, "RiskLevel": i.RiskLevel, "RiskCode": i.RiskCode})
		}
	}
	r["DetectionOptions"] = reply{"Status": check, "Items": reply{"Item": items}}
	return r
}

// usable returns the image of a request if it can be used.
func (e *ecs) usable(q *rpcRequest) (*image, *rpcError) {
	if err := q.need("ImageId"); err != nil {
		return nil, err
	}
	img, err := e.image(q, q.params["ImageId"])
	if err != nil {
		return nil, err
	}
	if img.status != imageAvailable && img.status != imageDeprecated {
		return nil, badStatus(img)
	}
	return img, nil
}

func badStatus(img *image) *rpcError {
	return rpcRefusal(http.StatusForbidden, "IncorrectImageStatus", "The current status %s of the image does not support this operation.", img.status)
}

func (e *ecs) modifyImageAttribute(q *rpcRequest) (reply, *rpcError) {
	img, err := e.usable(q)
	if err != nil {
		return nil, err
	}
	to := *img // changed as a whole or not at all
	name, description, family := q.params["ImageName"], q.params["Description"], q.params["ImageFamily"]
	if err := checkNames(name, description); err != nil {
		return nil, err
	}
	if family != "" && !validName(family) {
		return nil, rpcRefusal(http.StatusBadRequest, "InvalidImageFamily.Malformed", "The specified ImageFamily is wrongly formed.")
	}
	if name != "" && name != img.name {
		for _, other := range e.images {
			if other.region == img.region && other.owner == "self" && other.name == name {
				return nil, rpcRefusal(http.StatusBadRequest, "InvalidImageName.Duplicated", "The specified Image name has already bean used.")
			}
		}
	}
	for _, f := range []struct {
		choice
		to *string
	}{
		{choice{"BootMode", "InvalidParameter.Malformed", []string{img.bootMode, "BIOS", "UEFI", "UEFI-Preferred"}}, &to.bootMode},
		{choice{"Status", "InvalidStatus.NotFound", []string{img.status, imageAvailable, imageDeprecated}}, &to.status},
		{choice{"Features.NvmeSupport", "InvalidParameter.Malformed", []string{img.nvme, "supported", "unsupported"}}, &to.nvme},
		{choice{"Features.ImdsSupport", "InvalidParameter.Malformed", []string{img.imds, "v2"}}, &to.imds}, // v2 is for good
		{choice{name: "ImageName", values: []string{img.name, name}}, &to.name},
		{choice{name: "Description", values: []string{img.description, description}}, &to.description},
		{choice{name: "ImageFamily", values: []string{img.family, family}}, &to.family},
	} {
		if *f.to, err = q.choose(f.choice); err != nil {
			return nil, err
		}
	}
	*img = to
	return reply{}, nil
}

// deleteImage deletes an image and leaves its snapshots, which cost money until they are
// deleted too. It ignores an image that is not there.
func (e *ecs) deleteImage(q *rpcRequest) (reply, *rpcError) {
	if err := q.need("ImageId"); err != nil {
		return nil, err
	}
	if _, err := q.bool("Force"); err != nil {
		return nil, err
	}
	img, err := e.image(q, q.params["ImageId"])
	switch {
	case err != nil && err.status == http.StatusNotFound:
		return reply{}, nil
	case err != nil:
		return nil, err
	case img.imp != nil:
		return nil, rpcRefusal(http.StatusForbidden, "ImageIsImporting", "The specified image is importing.")
	case img.copy != nil || e.copying(img):
		return nil, rpcRefusal(http.StatusForbidden, "OperationDenied.ImageCopying", "The specified image is copying.")
	}
	e.drop(img)
	return reply{}, nil
}

// copying reports whether img is just being copied to another one.
func (e *ecs) copying(img *image) bool {
	return slices.ContainsFunc(e.images, func(i *image) bool { return i.copy != nil && i.copy.src == img })
}

func (e *ecs) copyImage(q *rpcRequest) (reply, *rpcError) {
	if err := q.need("ImageId", "DestinationRegionId"); err != nil {
		return nil, err
	}
	if err := e.checkRegion(q, "DestinationRegionId"); err != nil {
		return nil, err
	}
	src, err := e.image(q, q.params["ImageId"])
	if err != nil {
		return nil, err
	}
	if src.status != imageAvailable {
		return nil, badStatus(src)
	}
	name, description := q.params["DestinationImageName"], q.params["DestinationDescription"]
	if err := checkNames(name, description); err != nil {
		return nil, err
	}
	encrypted, err := q.bool("Encrypted")
	if err != nil {
		return nil, err
	}
	to := q.params["DestinationRegionId"]
	if to == src.region && !encrypted {
		return nil, rpcRefusal(http.StatusBadRequest, "InvalidParameter", "An image can be copied within a region only to encrypt it.")
	}
	if err := e.room(to, name); err != nil {
		return nil, err
	}
	dry, err := q.bool("DryRun")
	if err != nil {
		return nil, err
	}
	img := *src
	if img.tags, err = q.tags(); err != nil {
		return nil, err
	}
	if dry {
		return nil, dryRun()
	}
	img.region, img.name, img.description, img.family = to, name, description, ""
	img.group, img.created, img.copied = q.params["ResourceGroupId"], q.now, true
	img.shared, img.public, img.checkFrom, img.checkTo = nil, false, time.Time{}, time.Time{}
	img.status, img.progress = imageWaiting, 0
	img.disks = slices.Clone(src.disks)
	for i := range img.disks { // where it was imported from is told of the original only
		img.disks[i].bucket, img.disks[i].key = "", ""
	}
	img.copy = &copyJob{src: src, queued: q.now, d: e.cfg.Durations.withDefaults(e.cfg.Speed), fault: e.takeFault(name, WhileCopying)}
	e.addImage(&img)
	e.step(q.now)
	return reply{"ImageId": img.id}, nil
}

// cancelCopyImage stops a copy and removes what it made.
func (e *ecs) cancelCopyImage(q *rpcRequest) (reply, *rpcError) {
	if err := q.need("ImageId"); err != nil {
		return nil, err
	}
	img, err := e.image(q, q.params["ImageId"])
	switch {
	case err != nil:
		return nil, err
	case !img.copied:
		return nil, rpcRefusal(http.StatusBadRequest, "ImageCreatedNotFromCopy", "The specified image is not the target image of a copy action.")
	case img.copy == nil:
		return nil, rpcRefusal(http.StatusBadRequest, "IncorrectImageStatus", "The image is copied finished.")
	}
	if !img.copy.begun.IsZero() {
		e.freed[img.copy.src.region] = q.now
	}
	e.dropSnapshots(img)
	e.drop(img)
	return reply{}, nil
}

// shareAtOnce is the number of accounts in one request.
const shareAtOnce = 10

func (e *ecs) modifyImageSharePermission(q *rpcRequest) (reply, *rpcError) {
	img, err := e.usable(q)
	if err != nil {
		return nil, err
	}
	add, remove := q.list("AddAccount"), q.list("RemoveAccount")
	if len(add) > shareAtOnce || len(remove) > shareAtOnce {
		return nil, rpcRefusal(http.StatusBadRequest, "InvalidParameter", "More than %d accounts are specified.", shareAtOnce)
	}
	for _, a := range slices.Concat(add, remove) {
		if len(a) < 8 || strings.Trim(a, "0123456789") != "" {
			return nil, rpcRefusal(http.StatusNotFound, "InvalidAccount.NotFound", "The specified account %q does not exist.", a)
		}
	}
	if q.params["IsPublic"] != "" {
		if img.public, err = q.bool("IsPublic"); err != nil {
			return nil, err
		}
	}
	shared := append(slices.Clone(img.shared), add...)
	shared = slices.DeleteFunc(shared, func(a string) bool { return slices.Contains(remove, a) })
	slices.Sort(shared)
	img.shared = slices.Compact(shared)
	return reply{}, nil
}

func (e *ecs) describeImageSharePermission(q *rpcRequest) (reply, *rpcError) {
	if err := q.need("ImageId"); err != nil {
		return nil, err
	}
	img, err := e.image(q, q.params["ImageId"])
	if err != nil {
		return nil, err
	}
	p, err := q.page(len(img.shared))
	if err != nil {
		return nil, err
	}
	list := []reply{}
	for _, a := range img.shared[p.from:p.to] {
		list = append(list, reply{"AliyunId": a})
	}
	r := p.head(q, len(img.shared))
	r["ImageId"], r["ShareGroups"], r["Accounts"] = img.id, reply{"ShareGroup": []reply{}}, reply{"Account": list}
	return r, nil
}
