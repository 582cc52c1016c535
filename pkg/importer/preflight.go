package importer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"remaster/internal/hint"
)

// Problem is something that will, or may, go wrong with an import.
type Problem struct {
	// Check names what was looked at: name, description, tags, object, region,
	// format, size, boot-mode, architecture, options, after, exists, bucket, role,
	// quota, import.
	Check string `json:"check"`
	// Fatal says that the import can't succeed; else it is a warning.
	Fatal   bool   `json:"fatal"`
	Message string `json:"message"`
	Remedy  string `json:"remedy,omitempty"`
	Err     error  `json:"-"`
}

func problem(check string, fatal bool, err error) Problem {
	return Problem{Check: check, Fatal: fatal, Message: err.Error(), Remedy: strings.Join(hint.Of(err), "; "), Err: err}
}

// fatal joins the errors of the problems that are fatal.
func fatal(problems []Problem) error {
	var errs []error
	for _, p := range problems {
		if p.Fatal {
			errs = append(errs, p.Err)
		}
	}
	return errors.Join(errs...)
}

// platforms are the values that the API documents for Linux.
var platforms = []string{
	"Aliyun", "Anolis", "CentOS", "CentOS Stream", "Ubuntu", "CoreOS", "Fedora CoreOS", "Fedora", "SUSE", "OpenSUSE", "Debian",
	"RedHat", "Rocky Linux", "AlmaLinux", "Kylin", "UOS", "FreeBSD", "Gentoo",
	"Customized Linux", "Others Linux", //nolint:misspell // the service's own spelling
}

// Check looks at the spec alone, without any network.
func (s ImageSpec) Check() []Problem {
	r := s.Request()
	var out []Problem
	add := func(check string, fatal bool, err error) {
		if err != nil {
			out = append(out, problem(check, fatal, err))
		}
	}
	oneOf := func(check, what, value string, allowed ...string) {
		if !slices.Contains(allowed, value) {
			add(check, true, fmt.Errorf("%s %q is none of %s", what, value, strings.Join(slices.DeleteFunc(allowed, func(s string) bool { return s == "" }), ", ")))
		}
	}
	if r.Region == "" {
		add("region", true, errors.New("no region is given"))
	}
	if r.Object.Bucket == "" || r.Object.Key == "" {
		add("object", true, errors.New("no object is given"))
	}
	add("name", true, CheckName(r.Name))
	add("description", true, CheckDescription(r.Description))
	tags := maps.Clone(r.Tags)
	tags[tagSource] = "" // which a copy has as well
	add("tags", true, CheckTags(tags))
	oneOf("format", "the format", r.Format, "QCOW2", "VHD", "RAW")
	oneOf("options", "the OS type", r.OSType, "linux", "windows")
	oneOf("options", "the detection strategy", r.Detection, "", "Standard")
	oneOf("options", "NVMe support", r.NVMe, "", "supported", "unsupported")
	oneOf("options", "IMDS support", r.IMDS, "", "v1", "v2")
	if r.OSType == "linux" && !slices.Contains(platforms, r.Platform) {
		add("options", false, hint.With(fmt.Errorf("platform %q is none that is documented", r.Platform), "Alibaba Cloud Linux is Aliyun"))
	}
	add("size", true, s.checkSize(r))
	if r.DiskSizeGiB > 0 && r.DiskSizeGiB < 20 {
		add("size", false, fmt.Errorf("a system disk of %d GiB is less than the 20 GiB that Alibaba Cloud recommends", r.DiskSizeGiB))
	}
	oneOf("architecture", "the architecture", r.Architecture, "i386", ArchX86, ArchARM)
	if a := s.Facts.Architecture; a != "" && a != r.Architecture {
		add("architecture", true, fmt.Errorf("the architecture is to be %s, but the image's programs are for %s", r.Architecture, a))
	}
	oneOf("boot-mode", "the boot mode", r.BootMode, BootBIOS, BootUEFI)
	add("boot-mode", true, s.checkBoot(r))
	return out
}

func (s ImageSpec) checkSize(r ImportRequest) error {
	need := ceilGiB(s.Facts.VirtualSize)
	switch {
	case r.DiskSizeGiB < 0 || r.DiskSizeGiB > maxDiskGiB, need > maxDiskGiB:
		return fmt.Errorf("a system disk of %d GiB is not within %d to %d GiB", max(int64(r.DiskSizeGiB), need), minDiskGiB, maxDiskGiB)
	case r.DiskSizeGiB > 0 && int64(r.DiskSizeGiB) < need:
		return hint.With(fmt.Errorf("a system disk of %d GiB is smaller than the image's %d bytes", r.DiskSizeGiB, s.Facts.VirtualSize),
			fmt.Sprintf("give at least %d GiB, or none", need))
	}
	return nil
}

func (s ImageSpec) checkBoot(r ImportRequest) error {
	switch {
	case r.Architecture == ArchARM && r.BootMode != BootUEFI:
		return fmt.Errorf("an image for %s boots with %s only, not %s", ArchARM, BootUEFI, r.BootMode)
	case len(s.Facts.BootModes) > 0 && !slices.Contains(s.Facts.BootModes, r.BootMode):
		return fmt.Errorf("the boot mode is to be %s, but the image can boot with %s only", r.BootMode, strings.Join(s.Facts.BootModes, ", "))
	}
	return nil
}

// Preflight looks for what would make an import fail, before anything is uploaded: at
// the spec, the bucket's region, other images of the name here and where copies go, and,
// by a dry run of the import, at the role, the quota and the rights. The object need not
// be there yet. Without a store the bucket is not looked at. It returns what it found,
// most important first; a look that fails is a problem, too.
func Preflight(ctx context.Context, store Store, ecs ECS, s ImageSpec, a After, o Options) []Problem {
	out := s.Check()
	if err := a.check(); err != nil {
		out = append(out, problem("after", true, err))
	}
	if err := fatal(out); err != nil {
		return sorted(out)
	}
	r := s.Request()
	if store != nil {
		b, err := store.BucketInfo(ctx, r.Object.Bucket)
		switch {
		case err != nil:
			out = append(out, problem("bucket", true, explain(fmt.Errorf("look at bucket %s: %w", r.Object.Bucket, err), "")))
		case b.Region != "" && b.Region != r.Region:
			err := fmt.Errorf("bucket %s is in %s, and the import in %s", r.Object.Bucket, b.Region, r.Region)
			out = append(out, problem("bucket", true, hint.With(err,
				fmt.Sprintf("use a bucket in %s, or import in %s and copy the image from there", r.Region, b.Region))))
		}
	}
	p := (&job{ecs: ecs, o: o}).placeOf(s)
	found, err := p.find(ctx, nil)
	if err != nil {
		out = append(out, problem("exists", true, explain(err, "")))
	} else if found.image == nil && found.asked == nil {
		r.Name = found.name
		out = append(out, dryRun(ctx, ecs, r)...)
	}
	for _, c := range a.Copies {
		p := &place{job: p.job, region: c.Region, name: c.name(Result{Name: r.Name}), identity: p.identity, kin: copyKin(p.identity)}
		if _, err := p.find(ctx, nil); err != nil && c.Region != r.Region {
			out = append(out, problem("exists", true, explain(err, "")))
		}
	}
	return sorted(out)
}

// sorted puts what is fatal first.
func sorted(problems []Problem) []Problem {
	slices.SortStableFunc(problems, func(a, b Problem) int {
		switch {
		case a.Fatal == b.Fatal:
			return 0
		case a.Fatal:
			return -1
		}
		return 1
	})
	return problems
}

// dryRun asks for the import without having it done. It carries no client token, which
// would be used up.
func dryRun(ctx context.Context, ecs ECS, r ImportRequest) []Problem {
	r.ClientToken, r.DryRun = "", true
	_, err := ecs.ImportImage(ctx, r)
	check := "import"
	switch {
	case err == nil, isCode(err, codeDryRun):
		return nil
	case isCode(err, "InvalidOSSObject.NotFound"):
		return nil // it will be uploaded
	case isCode(err, codeImporting):
		return nil // the import attaches to what is under way
	case isCode(err, codesNoRole...):
		check = "role"
	case isCode(err, codesQuota...):
		check = "quota"
	case isCode(err, "InvalidOSSBucket*"):
		check = "bucket"
	}
	return []Problem{problem(check, true, explain(fmt.Errorf("dry run of the import: %w", err), r.RoleName))}
}
