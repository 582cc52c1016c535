package grub

import (
	"slices"
	"strings"
	"testing"
)

func TestBLSReadings(t *testing.T) {
	for _, c := range []struct {
		name, text string
		rhel, spec []string // options that count; nil where the entry is not shown
	}{
		{"plain", "linux /k\noptions a b\n", []string{"a b"}, []string{"a b"}},
		{"two lines", "linux /k\noptions a\noptions b\n", []string{"a"}, []string{"a", "b"}},
		{"crlf", "linux /k\r\noptions a b\r\n", []string{"a b"}, []string{"a b"}},
		{"no newline", "linux /k\noptions a", []string{"a"}, []string{"a"}},
		{"indented", "  linux /k\n\toptions  \ta\n", []string{"a"}, []string{"a"}},
		{"tab and no space", "linux\t/k\noptions\ta\n", []string{"a"}, []string{"a"}},
		{"tab and a space", "linux\t/k\noptions\ta b\n", []string{}, []string{"a b"}},
		{"comment", "# x\nlinux /k\n  # options z\noptions a\n", []string{"a"}, []string{"a"}},
		{"blank line ends it", "linux /k\n\noptions a\n", []string{}, []string{"a"}},
		{"a key alone ends it", "linux /k\narchitecture\noptions a\n", []string{}, []string{"a"}},
		{"blank first line", "\nlinux /k\noptions a\n", nil, []string{"a"}},
		{"none", "linux /k\n", []string{}, []string{}},
		{"no kernel", "title x\noptions a\n", nil, nil},
		{"other keys", "linux /k\nxoptions a\noptionsx b\n", []string{}, []string{}},
		{"empty file", "", nil, nil},
	} {
		b := ParseBLS([]byte(c.text))
		if string(b.Bytes()) != c.text {
			t.Errorf("%s: prints as %q", c.name, b.Bytes())
		}
		for r, want := range map[Reading][]string{ReadingRHEL: c.rhel, ReadingSpec: c.spec} {
			if b.Bootable(r) != (want != nil) {
				t.Errorf("%s: %s: bootable is %v", c.name, r, b.Bootable(r))
			}
			if want == nil {
				continue
			}
			got := []string{}
			for _, f := range b.options(r) {
				got = append(got, f.text)
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s: %s: options %q, want %q", c.name, r, got, want)
			}
		}
	}
}

func TestBLSOptionsEdits(t *testing.T) {
	for _, c := range []struct{ name, in, base, want string }{
		{"second line loses contradictions", "linux /k\noptions a\noptions cgroup_no_v1=x b\n", "", "linux /k\noptions a " + testV2 + "\noptions b\n"},
		{"a second line that says nothing else goes", "linux /k\noptions a\noptions cgroup_no_v1=x\ninitrd /i\n", "", "linux /k\noptions a " + testV2 + "\ninitrd /i\n"},
		{"moved to the first line", "linux /k\noptions a\noptions " + testV2 + "\n", "", "linux /k\noptions a " + testV2 + "\n"},
		{"tab becomes a space", "linux /k\noptions\ta\n", "", "linux /k\noptions a " + testV2 + "\n"},
		{"an empty line goes", "linux /k\noptions \ninitrd /i\n", "", "linux /k\ninitrd /i\noptions " + testV2 + "\n"},
		{"a base", "linux /k\n", "$x", "linux /k\noptions $x " + testV2 + "\n"},
		{"none, crlf", "linux /k\r\n", "", "linux /k\r\noptions " + testV2 + "\r\n"},
		{"none, no newline", "linux /k", "", "linux /k\noptions " + testV2},
		{"before the line that ends it", "linux /k\n\n# x\n", "", "linux /k\noptions " + testV2 + "\n\n# x\n"},
		{"spaces stay", "linux /k\noptions   a  b \n", "", "linux /k\noptions   a  b " + testV2 + " \n"},
	} {
		b := ParseBLS([]byte(c.in))
		b.applyOptions(CgroupV2(), c.base, false)
		if got := string(b.Bytes()); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
		if b.applyOptions(CgroupV2(), c.base, false) {
			t.Errorf("%s: a second time: %q", c.name, b.Bytes())
		}
	}
}

// The order that RHEL's GRUB shows entries in: rescue entries last, by version.
func TestEntryOrder(t *testing.T) {
	ids := []string{"m-5.10.134-16.3.al8.x86_64", "m-5.10.134-16.al8.x86_64", "m-5.10.134-15.al8.x86_64", "m-5.10.84-10.4.al8.x86_64", "m-4.19.91-27.el8", "m-0-rescue"}
	for i := range ids {
		for j := range ids {
			if got := compareIDs(ids[i], ids[j]); (got > 0) != (i < j) || (got == 0) != (i == j) {
				t.Errorf("%s and %s: %d", ids[i], ids[j], got)
			}
		}
	}
	for _, c := range []struct {
		a, b string
		want int
	}{{"1.0", "1.0", 0}, {"1.0~rc1", "1.0", -1}, {"1.10", "1.9", 1}, {"1a", "1", 1}, {"a", "1", -1}, {"01", "1", 0}, {"1.0.0", "1.0", 1}, {"", "1", -1}, {"é", "", 0}} {
		if got := compareVersions(c.a, c.b); (got > 0) != (c.want > 0) || (got < 0) != (c.want < 0) {
			t.Errorf("%q and %q: %d, want %d", c.a, c.b, got, c.want)
		}
	}
}

func FuzzBLS(f *testing.F) {
	for _, s := range []string{"", testEntry("1", "$kernelopts"), "title\tx\r\nlinux\t/k\r\n\r\noptions\ta b", "linux /k\noptions \noptions a\noptions cgroup_no_v1=x", "linux /k\noptions x=\"", "\noptions\nlinux /k", "0 0\r", "linux /k\noptions  "} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		b := ParseBLS(data)
		if string(b.Bytes()) != string(data) {
			t.Fatalf("%q prints as %q", data, b.Bytes())
		}
		title := b.Value("title", ReadingSpec)
		b.applyOptions(CgroupV2(), "", false)
		text := string(b.Bytes())
		for _, r := range []Reading{ReadingRHEL, ReadingSpec} {
			if !b.Bootable(r) {
				continue
			}
			var got []string
			for _, o := range b.options(r) {
				got = append(got, o.text)
			}
			c := ParseCmdline(strings.Join(got, " "))
			if v := c.Values(keyUnified); !strings.Contains(c.String(), `"`) && (len(v) != 1 || v[0].Value != "1") {
				t.Fatalf("%q: %q boots %s with %q", data, text, r, c)
			}
		}
		if b.applyOptions(CgroupV2(), "", false) {
			t.Fatalf("%q: a second edit of %q gives %q", data, text, b.Bytes())
		}
		if b.Value("title", ReadingSpec) != title {
			t.Fatalf("%q: the title changes: %q", data, text)
		}
	})
}
