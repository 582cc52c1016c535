package importer

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Values of the ECS API that decisions are made on (2014-05-26, ImportImage).
const (
	ArchX86  = "x86_64"
	ArchARM  = "arm64"
	BootBIOS = "BIOS"
	BootUEFI = "UEFI"

	defaultPlatform = "Aliyun" // the value for Alibaba Cloud Linux
	defaultRole     = "AliyunECSImageImportDefaultRole"
)

// Sizes of a system disk in GiB. The API takes 1 to 2048; its older documents begin at
// 5, so that nothing smaller is asked for unless the user does.
const (
	minDiskGiB   = 1
	maxDiskGiB   = 2048
	leastDiskGiB = 5
	gib          = 1 << 30
)

// TagContent is the tag by which an image shows what it was made of; see
// [ImageSpec.Identity]. It makes a rerun find what an earlier run has done.
const TagContent = "remaster:content"

// ImageFacts are what the image itself tells. Zero values are what is not known.
type ImageFacts struct {
	Format       string   `json:"format"`       // qcow2, vhd, raw
	VirtualSize  int64    `json:"virtualSize"`  // bytes of the guest's disk
	Architecture string   `json:"architecture"` // x86_64, arm64
	BootModes    []string `json:"bootModes"`    // BIOS, UEFI: all that it can boot with
	Platform     string   `json:"platform"`     // in ECS's words: Aliyun, Rocky Linux
}

// ImageSpec is the image that is wanted. What is empty in the request is filled from
// Facts and from what fits Alibaba Cloud Linux 3.
type ImageSpec struct {
	// ImportRequest is what to ask for. ClientToken and DryRun are set here.
	ImportRequest
	Facts ImageFacts
	// Content tells the image's bytes from others: as [Content] does of an object, or
	// by what it is built from. It has to be the same text in all calls and runs. With
	// "", the object's name tells.
	Content string
}

// Content returns a text that is different for objects with different bytes.
func Content(o ObjectInfo) string {
	if o.HasCRC64 {
		return fmt.Sprintf("crc64:%016x:%d", o.CRC64, o.Size)
	}
	return "etag:" + o.ETag
}

// Request returns the request with its defaults, without a client token.
func (s ImageSpec) Request() ImportRequest {
	r := s.ImportRequest
	r.ClientToken, r.DryRun = "", false
	fill := func(v *string, values ...string) {
		for _, x := range values {
			if *v == "" {
				*v = x
			}
		}
	}
	fill(&r.Format, strings.ToUpper(strings.TrimSuffix(s.Facts.Format, "-fixed")), "QCOW2")
	fill(&r.Architecture, s.Facts.Architecture, ArchX86)
	fill(&r.OSType, "linux")
	fill(&r.Platform, s.Facts.Platform, defaultPlatform)
	fill(&r.BootMode, defaultBootMode(r.Architecture, s.Facts.BootModes))
	if r.DiskSizeGiB == 0 && s.Facts.VirtualSize > 0 {
		r.DiskSizeGiB = int(max(leastDiskGiB, ceilGiB(s.Facts.VirtualSize)))
	}
	r.Tags = maps.Clone(r.Tags)
	if r.Tags == nil {
		r.Tags = map[string]string{}
	}
	r.Tags[TagContent] = s.identity(r)
	return r
}

// ceilGiB returns a size in bytes as GiB, rounded up.
func ceilGiB(n int64) int64 {
	q := n / gib
	if n%gib > 0 {
		q++
	}
	return q
}

// defaultBootMode prefers BIOS, as the service does, where the image can boot with it.
func defaultBootMode(arch string, modes []string) string {
	if arch == ArchARM || len(modes) > 0 && !slices.Contains(modes, BootBIOS) {
		return BootUEFI
	}
	return BootBIOS
}

// Identity returns what tells the image from others of the same name: a hash of the
// object's content and of the parameters that an image can't change later. It is the
// value of the tag [TagContent].
func (s ImageSpec) Identity() string { return s.Request().Tags[TagContent] }

func (s ImageSpec) identity(r ImportRequest) string {
	content := s.Content
	if content == "" {
		content = r.Object.String() + "?" + r.Object.VersionID
	}
	return digest(content, r.Format, r.DiskSizeGiB, r.Architecture, r.OSType, r.Platform, r.BootMode, r.LicenseType, r.NVMe, r.IMDS)[:32]
}

// token returns the client token of a request: the same for the same one, and another
// for each of the salts. The service replays its reply to a token that it knows.
func (s ImageSpec) token(r ImportRequest, salts ...string) string {
	r.ClientToken, r.DryRun = "", false
	return digest(s.Content, r, salts)
}

// digest hashes values by their JSON, where maps are sorted, to 64 hexadecimal digits.
func digest(values ...any) string {
	b, err := json.Marshal(values)
	if err != nil {
		panic("importer: digest: " + err.Error()) // only strings, numbers and maps are passed
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
