package importer

import (
	"errors"
	"fmt"
	"strings"

	"remaster/internal/hint"
)

// RoleRecipe says how to make the RAM role that lets ECS read the object.
func RoleRecipe(role string) string {
	if role == "" {
		role = defaultRole
	}
	return fmt.Sprintf("create the RAM role %s, once for the account: let the service ecs.aliyuncs.com assume it (sts:AssumeRole), "+
		"and attach the system policy AliyunECSImageImportRolePolicy (oss:GetObject, oss:GetBucketLocation, oss:GetBucketInfo); "+
		"remaster policy prints both as JSON", role)
}

// Code returns the service's code of an error, or "".
func Code(err error) string {
	if e, ok := errors.AsType[*ServiceError](err); ok {
		return e.Code
	}
	return ""
}

// isCode reports whether err has one of the codes, or one that begins with a code that
// ends in a star.
func isCode(err error, codes ...string) bool {
	c := Code(err)
	for _, want := range codes {
		if p, ok := strings.CutSuffix(want, "*"); c != "" && (c == want || ok && strings.HasPrefix(c, p)) {
			return true
		}
	}
	return false
}

// Codes that decide what is done. Both spellings of the role's are in use.
var (
	codesNoRole    = []string{"NoSetRoletoECSServiceAcount", "NoSetRoletoECSServiceAccount", "InvalidOperation.CloudBoxImageImportRoleRequired"}
	codesQuota     = []string{"QuotaExceed.Image", "QuotaExceed*"}
	codesNotFound  = []string{"NoSuchKey", "InvalidOSSObject.NotFound", "InvalidImageId.NotFound", "InvalidSnapshotId.NotFound"}
	codesBusy      = []string{"OperationDenied", "OperationDenied.ImageCopying", "ImageIsCopying*", "IncorrectImageStatus*", "SnapshotCreatedImage*"}
	codeDuplicated = "InvalidImageName.Duplicated"
	codeImporting  = "ImageIsImporting"
	codeDryRun     = "DryRunOperation"
)

// remedies are by code, or by the prefix of codes that ends in a star.
var remedies = []struct{ code, remedy string }{
	{"InvalidOSSBucket.NotMatched", "use a bucket in the region of the import, or import in the bucket's region and copy the image from there"},
	{"InvalidOSSBucket.NotFound", "check the bucket's name and whose account it is"},
	{"InvalidOSSObject*", "upload the image first, and check the object's key"},
	{"InvalidImageSize*", "give a disk size in GiB that is at least the image's virtual size"},
	{"InvalidRegionId.NotFound", "check the region's id: cn-hangzhou is one"},
	{"InvalidRegion.NotSupport", "import in another region and copy the image from there"},
	{"QuotaExceed*", "delete images that are not needed any more, or have the quota raised"},
	{"UserNotInTheWhiteList", "ask Alibaba Cloud to let the account import images"},
	{codeDuplicated, "choose another name, or what is to become of the image that has it"},
	{"Forbidden*", "give the account the rights that remaster policy prints"},
	{"InvalidAccessKeyId*", "check the access key"},
	{"SignatureDoesNotMatch", "check the access key's secret and the clock"},
	{"Throttling*", "run it again later: what was done is found again"},
	{"ServiceUnavailable", "run it again later: what was done is found again"},
	{"InternalError", "run it again later: what was done is found again"},
}

// explain adds the remedy to an error of the service. The role is the one that an
// import names.
func explain(err error, role string) error {
	if isCode(err, codesNoRole...) {
		return hint.With(err, RoleRecipe(role))
	}
	for _, r := range remedies {
		if isCode(err, r.code) {
			return hint.With(err, r.remedy)
		}
	}
	return err
}
