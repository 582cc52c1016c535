package alibaba

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"remaster/internal/hint"
	"remaster/pkg/importer"
)

// Status is how a check came out.
type Status string

// The results of a check.
const (
	OK      Status = "ok"
	Warning Status = "warning" // it may work
	Failed  Status = "failed"  // a publish would fail
	Skipped Status = "skipped" // it could not be checked
)

// Finding is the result of one check.
type Finding struct {
	ID     string `json:"id"`
	Status Status `json:"status"`
	Detail string `json:"detail"`
	Remedy string `json:"remedy,omitempty"` // what to do about it
}

// Probe says what is meant to be published, so that it can be checked whether it could be.
type Probe struct {
	Region string // of the import; "" for the configured one
	Bucket string // "" skips what is about OSS
	Prefix string // of the keys; the probe key lies under it
	Role   string // of the import; "" for the default one
}

// The limits of a clock that is off: the services refuse requests that are 15 minutes
// old or early.
const (
	skewFailed  = 14 * time.Minute
	skewWarning = 2 * time.Minute
)

// probeName is the key, under the prefix, that the checks use. No object of that name is
// ever made.
const probeName = ".remaster-doctor"

// doctor is one examination.
type doctor struct {
	c     *Clients
	p     Probe
	found []Finding
}

func (d *doctor) add(id string, s Status, remedy, format string, a ...any) {
	d.found = append(d.found, Finding{id, s, d.c.Redact(fmt.Sprintf(format, a...)), remedy})
}

func (d *doctor) fail(id string, err error, remedies map[string]string) {
	remedy := strings.Join(hint.Of(err), "; ")
	if e, ok := errors.AsType[*importer.ServiceError](err); ok && remedy == "" {
		remedy = remedyOf(e.Code, remedies)
	}
	d.add(id, Failed, remedy, "%v", err)
}

// Doctor checks what a publish needs, in the order in which it would need it. It leaves
// nothing behind; a check that another one stands in the way of is skipped. The findings
// are complete when ctx ends, too.
func (c *Clients) Doctor(ctx context.Context, p Probe) []Finding {
	if p.Region == "" {
		p.Region = c.region
	}
	d := &doctor{c: c, p: p}
	if !d.credentials(ctx) {
		return d.found
	}
	d.endpoints()
	d.account(ctx)
	writable := d.bucket(ctx)
	if writable {
		d.write(ctx)
	}
	d.imports(ctx)
	d.images(ctx)
	d.clock()
	return d.found
}

func (d *doctor) credentials(ctx context.Context) bool {
	sources := []*source{d.c.oss}
	if d.c.ecs != d.c.oss {
		sources = append(sources, d.c.ecs)
	}
	for _, s := range sources {
		k, err := s.get(ctx)
		if err != nil {
			d.fail("credentials", err, nil)
			return false
		}
		until := ""
		if !k.expires.IsZero() {
			until = ", good until " + k.expires.UTC().Format(time.RFC3339)
		}
		d.add("credentials", OK, "", "%s: access key %s%s", s.name, k.id, until)
	}
	return true
}

func (d *doctor) endpoints() {
	region := d.p.Region
	if !validRegion(region) {
		d.add("region", Failed, "say --region, or set ALIBABA_CLOUD_REGION_ID", "no region is configured")
		return
	}
	d.add("region", OK, "", "%s", region)
	for _, e := range []endpoint{d.c.ossEndpoint(region, false), d.c.ecsEndpoint(region)} {
		if e.scheme == "http" && !loopback(e.host) {
			d.add("endpoint", Warning, "use https://, with --ca-file for a private authority", "%s is not encrypted", e)
			continue
		}
		d.add("endpoint", OK, "", "%s", e)
	}
}

// account proves the keys with a call that every account may make.
func (d *doctor) account(ctx context.Context) {
	regions, err := d.c.ECS().Regions(ctx)
	switch {
	case err != nil:
		d.fail("ecs", err, nil)
	case d.p.Region != "" && !slices.Contains(regions, d.p.Region):
		d.add("ecs", Failed, "choose another region", "ECS has no region %s", d.p.Region)
	default:
		d.add("ecs", OK, "", "%d regions", len(regions))
	}
}

func (d *doctor) bucket(ctx context.Context) bool {
	if d.p.Bucket == "" {
		d.add("bucket", Skipped, "name a bucket", "no bucket to look at")
		return false
	}
	s, err := d.c.Store(d.p.Region)
	if err != nil {
		d.add("bucket", Skipped, "", "%v", err)
		return false
	}
	info, err := s.BucketInfo(ctx, d.p.Bucket)
	if err != nil {
		d.fail("bucket", err, map[string]string{
			"NoSuchBucket": "make the bucket, or check its name",
			"AccessDenied": "give the account the rights that remaster policy prints, oss:GetBucketInfo among them",
		})
		return true // the rights of writing may be there all the same
	}
	if info.Region != d.p.Region {
		d.add("bucket", Failed, "use a bucket in "+d.p.Region+", or import in "+info.Region+" and copy the image",
			"%s is in %s, and the import is in %s", d.p.Bucket, info.Region, d.p.Region)
		return false
	}
	detail := fmt.Sprintf("%s in %s, %s", d.p.Bucket, info.Region, info.StorageClass)
	switch {
	case strings.Contains(info.StorageClass, "Archive"):
		d.add("bucket", Warning, "use a bucket of the class Standard or IA", "%s: objects of it must be restored before they are imported", detail)
	case info.Encryption == "KMS":
		d.add("bucket", Warning, "let the import role decrypt with the key, or upload with --sse AES256",
			"%s, encrypted by KMS: the import role needs the right to decrypt", detail)
	default:
		d.add("bucket", OK, "", "%s", detail)
	}
	return true
}

// write begins an upload and drops it: the rights are the same, and no object is made.
func (d *doctor) write(ctx context.Context) {
	s, err := d.c.Store(d.p.Region)
	if err != nil {
		d.add("write", Skipped, "", "%v", err)
		return
	}
	o := importer.Object{Bucket: d.p.Bucket, Key: d.p.Prefix + probeName}
	remedies := map[string]string{"AccessDenied": "give the account the rights that remaster policy prints"}
	u, err := s.CreateUpload(ctx, o, importer.PutOptions{})
	if err != nil {
		d.fail("write", err, remedies)
		return
	}
	// What was begun is ended even when the caller has had enough.
	end, stop := context.WithTimeout(context.WithoutCancel(ctx), requestTimeout)
	defer stop()
	if err := s.Abort(end, u); err != nil {
		d.fail("write", fmt.Errorf("upload %s of %s was begun and can't be dropped: %w", u.ID, o, err), remedies)
		return
	}
	d.add("write", OK, "", "%s can be uploaded to", importer.Object{Bucket: o.Bucket, Key: d.p.Prefix})
}

// imports asks for an import that is not to be done. Its object does not exist, which
// the service may find out before or after it looks for the role.
func (d *doctor) imports(ctx context.Context) {
	if d.p.Bucket == "" || !validRegion(d.p.Region) {
		d.add("import", Skipped, "", "no bucket and region to import from")
		return
	}
	_, err := d.c.ECS().ImportImage(ctx, importer.ImportRequest{
		Region: d.p.Region, Object: importer.Object{Bucket: d.p.Bucket, Key: d.p.Prefix + probeName}, Format: "QCOW2",
		Name: "remaster-doctor", Architecture: "x86_64", OSType: "linux", Platform: "Aliyun", RoleName: d.p.Role, DryRun: true,
	})
	e, ok := errors.AsType[*importer.ServiceError](err)
	switch {
	case err == nil:
		d.add("import", Warning, "look for an image remaster-doctor, and delete it", "the dry run was not taken for one")
	case !ok:
		d.fail("import", err, nil)
	case e.Code == "DryRunOperation":
		d.add("import", OK, "", "the import role is there")
	case strings.HasPrefix(e.Code, "InvalidOSSObject"):
		d.add("import", OK, "", "allowed; the service stopped at the object that is not there, so that the role may not have been looked at")
	case roleMissing(e.Code):
		d.add("import", Failed, importer.RoleRecipe(d.p.Role), "%v", err)
	default:
		d.fail("import", err, map[string]string{
			"QuotaExceed":               "delete images that are not needed any more, or have the quota raised in the Quota Center", //nolint:misspell // its name
			"InvalidOSSBucket":          "use a bucket of this account in the region of the import",
			"InvalidRegion.NotSupport":  "import in another region and copy the image",
			"UserNotInTheWhiteList":     "ask Alibaba Cloud to let the account import images",
			"Forbidden":                 "give the account the rights that remaster policy prints",
			"InvalidOperation.CloudBox": "make the import role of CloudBox",
		})
	}
}

// roleMissing reports whether a code says that ECS may not read the object. Both
// spellings of the word Account are in use.
func roleMissing(code string) bool {
	return code == "NoSetRoletoECSServiceAcount" || code == "NoSetRoletoECSServiceAccount"
}

// images counts. The API does not tell how many there may be: the dry run does, when
// there are too many.
func (d *doctor) images(ctx context.Context) {
	if !validRegion(d.p.Region) {
		return
	}
	list, err := d.c.ECS().Images(ctx, importer.ImageQuery{Region: d.p.Region})
	if err != nil {
		d.fail("images", err, nil)
		return
	}
	d.add("images", OK, "", "%d images of the account in %s; the service does not tell the quota", len(list), d.p.Region)
}

// clock compares with the replies that the other checks got.
func (d *doctor) clock() {
	skew, ok := d.c.wire.clockSkew()
	const remedy = "set this machine's clock, by NTP"
	switch off := skew.Abs(); {
	case !ok:
		d.add("clock", Skipped, "", "no reply to compare with")
	case off >= skewFailed:
		d.add("clock", Failed, remedy, "off by %v: the services refuse more than 15m", off.Round(time.Second))
	case off >= skewWarning:
		d.add("clock", Warning, remedy, "off by %v", off.Round(time.Second))
	default:
		d.add("clock", OK, "", "off by %v", off.Round(time.Second))
	}
}

// remedyOf finds the remedy of a code by the longest prefix, in the check's own list
// before what holds everywhere.
func remedyOf(code string, own map[string]string) string {
	best, remedy := "", ""
	for _, list := range []map[string]string{own, commonRemedies} {
		for prefix, r := range list {
			if strings.HasPrefix(code, prefix) && len(prefix) > len(best) {
				best, remedy = prefix, r
			}
		}
	}
	return remedy
}

var commonRemedies = map[string]string{
	"InvalidAccessKeyId":    "check the access key's id, and that it is of this cloud",
	"SignatureDoesNotMatch": "check the access key's secret",
	"IncompleteSignature":   "check the access key's secret",
	"InvalidSecurityToken":  "get a new security token",
	"SecurityTokenExpired":  "get a new security token",
	"RequestTimeTooSkewed":  "set this machine's clock, by NTP",
	"InvalidTimeStamp":      "set this machine's clock, by NTP",
	"IllegalTimestamp":      "set this machine's clock, by NTP",
	"Forbidden":             "give the account the rights that remaster policy prints",
	"NoPermission":          "give the account the rights that remaster policy prints",
	"AccessDenied":          "give the account the rights that remaster policy prints",
	"Throttling":            "try again later",
	"ServiceUnavailable":    "try again later",
}
