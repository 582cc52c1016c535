package alibaba

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
)

// Policy says what an account is to be allowed. What is not asked for is left out.
type Policy struct {
	Bucket string // where images are uploaded
	Prefix string // of their keys: the rights end there
	Base   string // "bucket/key" or "bucket/prefix*" of base images in OSS; "" for none
	Copy   bool   // copies to other regions
	Share  bool   // sharing, families, deprecating: changes of an image's attributes
	Delete bool   // deletion of predecessors with their snapshots
}

// document is a policy of RAM, in the order in which its documents are usually written.
type document struct {
	Version   string      `json:"Version"`
	Statement []statement `json:"Statement"`
}

type statement struct {
	Effect    string              `json:"Effect"`
	Action    []string            `json:"Action"`
	Resource  []string            `json:"Resource,omitempty"`
	Principal map[string][]string `json:"Principal,omitempty"`
}

func (d document) json() []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(d); err != nil {
		panic(err) // strings only
	}
	return b.Bytes()
}

func allow(actions []string, resources ...string) statement {
	return statement{Effect: "Allow", Action: actions, Resource: resources}
}

// arn names a bucket, or objects of it: "bucket/prefix*".
func arn(name string) string { return "acs:oss:*:*:" + name }

// Caller returns the policy of the account that publishes, as JSON.
func (p Policy) Caller() ([]byte, error) {
	if err := p.check(); err != nil {
		return nil, err
	}
	d := document{"1", []statement{
		allow([]string{"oss:GetBucketInfo", "oss:ListObjects", "oss:ListMultipartUploads"}, arn(p.Bucket)),
		allow([]string{"oss:GetObject", "oss:PutObject", "oss:PutObjectTagging", "oss:ListParts", "oss:AbortMultipartUpload", "oss:DeleteObject"},
			arn(p.Bucket+"/"+p.Prefix+"*")),
	}}
	if p.Base != "" {
		bucket, _, _ := strings.Cut(p.Base, "/")
		d.Statement = append(d.Statement,
			allow([]string{"oss:GetBucketInfo"}, arn(bucket)), allow([]string{"oss:GetObject", "oss:GetObjectVersion"}, arn(p.Base)))
	}
	actions := []string{"ecs:DescribeRegions", "ecs:ImportImage", "ecs:DescribeImages", "ecs:DescribeTasks",
		"ecs:DescribeTaskAttribute", "ecs:CancelTask", "ecs:TagResources"}
	if p.Copy {
		actions = append(actions, "ecs:CopyImage", "ecs:CancelCopyImage")
	}
	if p.Share {
		actions = append(actions, "ecs:ModifyImageSharePermission", "ecs:ModifyImageAttribute")
	}
	if p.Delete {
		actions = append(actions, "ecs:DeleteImage", "ecs:DeleteSnapshot")
	}
	d.Statement = append(d.Statement, allow(actions, "*"))
	return d.json(), nil
}

// Role returns what the role of the import is to be allowed, as JSON: to read what was
// uploaded. The system policy AliyunECSImageImportRolePolicy allows it for all buckets.
func (p Policy) Role() ([]byte, error) {
	if err := p.check(); err != nil {
		return nil, err
	}
	return document{"1", []statement{
		allow([]string{"oss:GetBucketLocation", "oss:GetBucketInfo"}, arn(p.Bucket)),
		allow([]string{"oss:GetObject"}, arn(p.Bucket+"/"+p.Prefix+"*")),
	}}.json(), nil
}

// Trust returns the trust policy of the role of the import, as JSON: ECS may assume it.
func (p Policy) Trust() []byte {
	return document{"1", []statement{{
		Effect: "Allow", Action: []string{"sts:AssumeRole"}, Principal: map[string][]string{"Service": {"ecs.aliyuncs.com"}},
	}}}.json()
}

// check refuses names that would mean more than they say.
func (p Policy) check() error {
	if p.Bucket == "" || strings.ContainsAny(p.Bucket, "*?/:") {
		return errors.New("policy: the bucket's name is empty, or none")
	}
	if strings.ContainsAny(p.Prefix, "*?") {
		return errors.New("policy: the prefix has a wildcard in it")
	}
	if p.Base != "" {
		bucket, key, ok := strings.Cut(p.Base, "/")
		if !ok || bucket == "" || key == "" || strings.ContainsAny(bucket, "*?:") {
			return errors.New("policy: the base is not BUCKET/KEY or BUCKET/PREFIX*")
		}
	}
	return nil
}
