package importer_test

import (
	"context"
	"strings"
	"testing"

	"remaster/pkg/importer"
)

func TestCheckName(t *testing.T) {
	for name, ok := range map[string]bool{
		"node": true, "n1": true, "节点-2026": true, "a.b:c_d-e": true, strings.Repeat("a", 128): true,
		"": false, "n": false, "1n": false, "-n": false, ".n": false, "a b": false, "a/b": false, "aliyun-node": false, "Aliyun": false,
		"acs:node": false, "http://x": false, strings.Repeat("a", 129): false, "a\xff": false, "é1": false,
	} {
		if err := importer.CheckName(name); (err == nil) != ok {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestCheckTags(t *testing.T) {
	many := map[string]string{}
	for i := range 21 {
		many[string(rune('a'+i))] = ""
	}
	for _, x := range []struct {
		tags map[string]string
		ok   bool
	}{
		{nil, true}, {map[string]string{"a": ""}, true}, {map[string]string{"": "a"}, false}, {map[string]string{"acs:x": "a"}, false},
		{map[string]string{"aliyunx": "a"}, false}, {map[string]string{"a": "http://x"}, false}, {map[string]string{"a": strings.Repeat("v", 129)}, false},
		{map[string]string{strings.Repeat("v", 129): ""}, false}, {many, false},
	} {
		if err := importer.CheckTags(x.tags); (err == nil) != x.ok {
			t.Errorf("%v: %v", x.tags, err)
		}
	}
}

func TestSpecProblems(t *testing.T) {
	for _, x := range []struct {
		check  string // "" for none
		change func(*importer.ImageSpec)
	}{
		{"", func(*importer.ImageSpec) {}},
		{"name", func(s *importer.ImageSpec) { s.Name = "1" }},
		{"description", func(s *importer.ImageSpec) { s.Description = "http://x" }},
		{"tags", func(s *importer.ImageSpec) { s.Tags = map[string]string{"acs:a": ""} }},
		{"region", func(s *importer.ImageSpec) { s.Region = "" }},
		{"object", func(s *importer.ImageSpec) { s.Object.Key = "" }},
		{"format", func(s *importer.ImageSpec) { s.Format = "VMDK" }},
		{"size", func(s *importer.ImageSpec) { s.DiskSizeGiB = 19 }},
		{"size", func(s *importer.ImageSpec) { s.DiskSizeGiB = 2049 }},
		{"size", func(s *importer.ImageSpec) { s.DiskSizeGiB = -1 }},
		{"size", func(s *importer.ImageSpec) { s.Facts.VirtualSize = 2048<<30 + 1 }},
		{"boot-mode", func(s *importer.ImageSpec) { s.BootMode = "UEFI"; s.Facts.BootModes = []string{"BIOS"} }},
		{"boot-mode", func(s *importer.ImageSpec) { s.BootMode = "UEFI-Preferred" }},
		{"boot-mode", func(s *importer.ImageSpec) { s.BootMode = "BIOS"; s.Architecture = "arm64"; s.Facts.Architecture = "" }},
		{"architecture", func(s *importer.ImageSpec) { s.Architecture = "arm64" }},
		{"options", func(s *importer.ImageSpec) { s.Detection = "Thorough" }},
		{"options", func(s *importer.ImageSpec) { s.NVMe = "yes" }},
		{"options", func(s *importer.ImageSpec) { s.IMDS = "v3" }},
	} {
		s := nodeSpec()
		x.change(&s)
		var got []string
		for _, p := range s.Check() {
			if p.Fatal {
				got = append(got, p.Check)
			}
		}
		if x.check == "" && len(got) > 0 || x.check != "" && (len(got) == 0 || got[0] != x.check) {
			t.Errorf("%s: %v", x.check, s.Check())
		}
	}
}

func TestDefaultsFollowTheImage(t *testing.T) {
	s := nodeSpec()
	s.Facts = importer.ImageFacts{Format: "vhd-fixed", VirtualSize: 20<<30 + 1, Architecture: "arm64", BootModes: []string{"UEFI"}, Platform: "Anolis"}
	r := s.Request()
	if r.Format != "VHD" || r.DiskSizeGiB != 21 || r.Architecture != "arm64" || r.BootMode != "UEFI" || r.Platform != "Anolis" {
		t.Errorf("%+v", r)
	}
	r = importer.ImageSpec{}.Request()
	if r.Format != "QCOW2" || r.DiskSizeGiB != 0 || r.Architecture != "x86_64" || r.BootMode != "BIOS" || r.Platform != "Aliyun" || r.OSType != "linux" {
		t.Errorf("%+v", r)
	}
	if s := nodeSpec(); len(s.Check()) > 0 {
		t.Errorf("%v", s.Check())
	}
}

func TestIdentityFollowsContentAndParametersOnly(t *testing.T) {
	base := nodeSpec()
	same, other := nodeSpec(), nodeSpec()
	same.Description, same.Tags, same.Name = "text", map[string]string{"a": "b"}, "node2"
	if same.Identity() != base.Identity() {
		t.Error("a description changes the identity")
	}
	other.Content = "crc64:0123456789abcdee:5"
	if other.Identity() == base.Identity() {
		t.Error("other content has the same identity")
	}
}

func TestPreflight(t *testing.T) {
	for _, x := range []struct {
		check, text string // "" for none
		change      func(*cloud, *importer.ImageSpec, *importer.Options)
	}{
		{"", "", func(*cloud, *importer.ImageSpec, *importer.Options) {}},
		{"", "", func(c *cloud, _ *importer.ImageSpec, _ *importer.Options) { delete(c.objects, "b/k.qcow2") }},
		{"role", "AliyunECSImageImportRolePolicy", func(c *cloud, _ *importer.ImageSpec, _ *importer.Options) { c.noRole = "NoSetRoletoECSServiceAcount" }},
		{"role", "my-role", func(c *cloud, s *importer.ImageSpec, _ *importer.Options) {
			c.noRole, s.RoleName = "NoSetRoletoECSServiceAccount", "my-role"
		}},
		{"quota", "quota", func(c *cloud, _ *importer.ImageSpec, _ *importer.Options) { c.noRole = "QuotaExceed.Image" }},
		{"bucket", "cn-beijing", func(c *cloud, _ *importer.ImageSpec, _ *importer.Options) { c.bucketRegion = "cn-beijing" }},
		{"exists", "another image named", func(c *cloud, _ *importer.ImageSpec, _ *importer.Options) { c.add("cn-hangzhou", "node", nil) }},
		{"", "", func(c *cloud, _ *importer.ImageSpec, _ *importer.Options) { c.add("cn-hangzhou", "my-node", nil) }},
		{"", "", func(c *cloud, _ *importer.ImageSpec, o *importer.Options) {
			c.add("cn-hangzhou", "node", nil)
			o.OnExist = importer.OnExistReplace
		}},
		{"exists", "in cn-beijing", func(c *cloud, _ *importer.ImageSpec, _ *importer.Options) { c.add("cn-beijing", "node", nil) }},
		{"", "", func(c *cloud, s *importer.ImageSpec, _ *importer.Options) { // it is under way
			c.blind = true
			if _, err := importer.Import(context.Background(), c, *s, c.options()); err != nil {
				panic(err)
			}
			c.asked = nil
		}},
		{"name", "", func(_ *cloud, s *importer.ImageSpec, _ *importer.Options) { s.Name = "aliyun" }},
	} {
		c := newCloud()
		s, o := nodeSpec(), c.options()
		x.change(c, &s, &o)
		images := len(c.images)
		got := importer.Preflight(context.Background(), c, c, s, importer.After{Copies: []importer.Copy{{Region: "cn-beijing"}}}, o)
		switch {
		case x.check == "" && len(got) > 0, x.check != "" && (len(got) == 0 || got[0].Check != x.check || !got[0].Fatal):
			t.Errorf("%s: %+v", x.check, got)
		case x.check != "" && !strings.Contains(got[0].Message+got[0].Remedy, x.text):
			t.Errorf("%s: %+v has no %q", x.check, got[0], x.text)
		}
		if len(c.images) != images {
			t.Errorf("%s: preflight made an image", x.check)
		}
		for _, r := range c.asked {
			if !r.DryRun || r.ClientToken != "" {
				t.Errorf("%s: preflight asked for %+v", x.check, r)
			}
		}
	}
}
