package sandbox

import (
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// importRole is the role by which ECS reads OSS unless a request names another.
const importRole = "AliyunECSImageImportDefaultRole"

// Limits of the size of a disk in GiB, as documented in 2026.
const (
	minDiskGiB = 1
	maxDiskGiB = 2048
)

// maxDisks is the number of disks of an image; what comes after is ignored.
const maxDisks = 17

// platforms are the legal values of Platform; the API reference, ImportImage.
var platforms = []string{
	"Aliyun", "Anolis", "CentOS", "CentOS Stream", "Ubuntu", "CoreOS", "Fedora CoreOS", "Fedora", "SUSE", "OpenSUSE",
	"Debian", "RedHat", "Rocky Linux", "AlmaLinux", "Kylin", "UOS", "FreeBSD", "Gentoo", "Customized Linux", "Others Linux", //nolint:misspell // the service's spelling
	"Windows Server 2003", "Windows Server 2008", "Windows Server 2012", "Windows Server 2016", "Windows Server 2019",
	"Windows Server 2022", "Other Windows",
}

// choice is a parameter that has one of some values.
type choice struct {
	name, code string
	values     []string // the first is the default; "" is none
}

var importChoices = []choice{
	{"Architecture", "InvalidArchitecture.Malformed", []string{"x86_64", "i386", "arm64"}},
	{"OSType", "InvalidOSType.Malformed", []string{"linux", "windows"}},
	{"Platform", "InvalidPlatform.Malformed", append([]string{"Others Linux"}, platforms...)},
	{"BootMode", "InvalidParameter.Malformed", []string{"BIOS", "UEFI"}},
	{"LicenseType", "InvalidLicenseType.NotSupported", []string{"Auto", "Aliyun", "BYOL"}},
	{"DetectionStrategy", "InvalidParameter.Malformed", []string{"", "Standard"}},
	{"Features.NvmeSupport", "InvalidParameter.Malformed", []string{"unsupported", "supported"}},
	{"Features.ImdsSupport", "InvalidParameter.Malformed", []string{"v1", "v2"}},
}

// choose returns the value of a parameter, or its default.
func (q *rpcRequest) choose(c choice) (string, *rpcError) {
	v := q.params[c.name]
	if v == "" {
		return c.values[0], nil
	}
	if !slices.Contains(c.values, v) {
		return "", rpcRefusal(http.StatusBadRequest, c.code, "The specified %s %q is not valid.", c.name, v)
	}
	return v, nil
}

// importImage begins an import. What is wrong with the request is told in the order
// malformed, forbidden, not found, in the way, so that a dry run finds it all.
func (e *ecs) importImage(q *rpcRequest) (reply, *rpcError) {
	img, err := e.newImport(q)
	if err != nil {
		return nil, err
	}
	dry, err := q.bool("DryRun")
	if err != nil {
		return nil, err
	}
	role := q.params["RoleName"]
	switch {
	case e.cfg.MissingRole != "":
		return nil, rpcRefusal(http.StatusForbidden, e.cfg.MissingRole,
			"ECS service have no right to access your OSS, please attach a role of ECS service to your ECS.")
	case role != "" && role != importRole:
		return nil, rpcRefusal(http.StatusForbidden, NoRoleAccount, "The specified RoleName %q does not exist.", role)
	}
	for i := range img.disks {
		if err := e.readDisk(q, img, i); err != nil {
			return nil, err
		}
	}
	if err := e.room(img.region, q.params["ImageName"]); err != nil {
		return nil, err
	}
	if e.importing(img) {
		return nil, rpcRefusal(http.StatusForbidden, "ImageIsImporting", "The specified image is importing.")
	}
	if dry {
		return nil, dryRun()
	}
	e.addImage(img)
	t := &task{id: e.newID("t"), region: img.region, image: img.id, status: taskWaiting, created: q.now}
	e.tasks = append(e.tasks, t)
	img.imp = &importJob{task: t, from: q.now, d: e.cfg.Durations.withDefaults(e.cfg.Speed),
		fault: e.takeFault(img.name, WhileImporting, AfterImporting), check: q.params["DetectionStrategy"] != ""}
	return reply{"ImageId": img.id, "TaskId": t.id, "RegionId": img.region}, nil
}

func dryRun() *rpcError {
	return rpcRefusal(http.StatusBadRequest, "DryRunOperation", "Request validation has been passed with DryRun flag set.")
}

// newImport makes the image of a request's parameters alone.
func (e *ecs) newImport(q *rpcRequest) (*image, *rpcError) {
	img := &image{region: q.params["RegionId"], name: q.params["ImageName"], description: q.params["Description"],
		group: q.params["ResourceGroupId"], status: imageCreating, created: q.now}
	if err := checkNames(img.name, img.description); err != nil {
		return nil, err
	}
	var detection, license string
	to := []*string{&img.arch, &img.osType, &img.platform, &img.bootMode, &license, &detection, &img.nvme, &img.imds}
	for i, c := range importChoices {
		v, err := q.choose(c)
		if err != nil {
			return nil, err
		}
		*to[i] = v
	}
	if img.arch == "arm64" && img.bootMode != "UEFI" {
		return nil, rpcRefusal(http.StatusBadRequest, "InvalidParameter.Malformed", "An image of architecture arm64 boots by UEFI only.")
	}
	if windows := strings.Contains(img.platform, "Windows"); windows != (img.osType == "windows") {
		return nil, rpcRefusal(http.StatusBadRequest, "InvalidPlatform.Malformed", "The specified Platform is not of the specified OSType.")
	}
	var err *rpcError
	if img.tags, err = q.tags(); err != nil {
		return nil, err
	}
	img.disks, err = q.disks()
	return img, err
}

// checkNames checks the name and the description of an image; "" is none.
func checkNames(name, description string) *rpcError {
	if name != "" && !validName(name) {
		return rpcRefusal(http.StatusBadRequest, "InvalidImageName.Malformed", "The specified Image name is wrongly formed.")
	}
	if !validDescription(description) {
		return rpcRefusal(http.StatusBadRequest, "InvalidDescription.Malformed", "The specified description is wrongly formed.")
	}
	return nil
}

// disks reads DiskDeviceMapping.N.
func (q *rpcRequest) disks() ([]imageDisk, *rpcError) {
	var out []imageDisk
	for n := 1; n <= maxDisks; n++ {
		prefix := "DiskDeviceMapping." + strconv.Itoa(n) + "."
		get := func(name string) string { return q.params[prefix+name] }
		if !slices.ContainsFunc(slices.Collect(maps.Keys(q.params)), func(k string) bool { return strings.HasPrefix(k, prefix) }) {
			break
		}
		if err := q.need(prefix+"OSSBucket", prefix+"OSSObject"); err != nil {
			return nil, err
		}
		d := imageDisk{bucket: get("OSSBucket"), key: get("OSSObject"), device: "/dev/xvd" + string(rune('a'+n-1))}
		if !validKey(d.key) {
			return nil, rpcRefusal(http.StatusBadRequest, "InvalidOSSObject.Malformed", "The specified OSS object is wrongly formed.")
		}
		if f := get("Format"); f != "" && !slices.Contains([]string{"RAW", "VHD", "QCOW2"}, strings.ToUpper(f)) {
			return nil, rpcRefusal(http.StatusBadRequest, "InvalidImageFormat.Malformed", "The specified Image Format %q is wrongly formed.", f)
		}
		if s := get("DiskImageSize"); s != "" {
			v, err := strconv.Atoi(s)
			if err != nil || v < minDiskGiB || v > maxDiskGiB {
				return nil, badSize(n-1, s+" is out of range")
			}
			d.gib = v
		}
		out = append(out, d)
	}
	if len(out) == 0 {
		return nil, rpcRefusal(http.StatusForbidden, "MissingParameter.DiskDeviceMapping",
			"The input parameter \"DiskDeviceMapping\" that is mandatory for processing this request is not supplied.")
	}
	return out, nil
}

func badSize(disk int, why string) *rpcError {
	code := "InvalidImageSize"
	if disk > 0 {
		code = "InvalidDataDiskSize"
	}
	return rpcRefusal(http.StatusBadRequest, code, "The specified DiskImageSize is invalid: %s.", why)
}

// readDisk finds out what is in the object of a disk: the format that is detected wins
// over the one in the request.
func (e *ecs) readDisk(q *rpcRequest, img *image, i int) *rpcError {
	d := &img.disks[i]
	if err := e.findObject(d.bucket, d.key, q.params["RegionId"]); err != nil {
		return err
	}
	e.oss.mu.Lock()
	o, err := e.oss.newest(d.bucket, d.key)
	e.oss.mu.Unlock()
	if err == nil {
		d.info, err = inspectDisk(contentReader{o.content}, o.size)
	}
	if err != nil {
		return rpcRefusal(http.StatusInternalServerError, "InternalError", "The object can not be read: %v.", err)
	}
	if e.cfg.AnyContent {
		d.info.problem = ""
	}
	if !o.readable(e.opt.Clock()) {
		d.info.problem = "the object is of storage class " + o.class + " and not restored"
	}
	d.etag, d.format = o.etag, d.info.format
	need := int((d.info.virtual + 1<<30 - 1) >> 30)
	switch {
	case d.gib == 0:
		d.gib = max(need, minDiskGiB)
	case d.gib < need:
		return badSize(i, strconv.Itoa(d.gib)+" GiB is less than the virtual size of the image, "+strconv.Itoa(need)+" GiB")
	}
	return nil
}

// importing reports whether an object of img is just being imported.
func (e *ecs) importing(img *image) bool {
	for _, other := range e.images {
		if other.imp == nil {
			continue
		}
		for _, a := range other.disks {
			for _, b := range img.disks {
				if a.bucket == b.bucket && a.key == b.key {
					return true
				}
			}
		}
	}
	return false
}
