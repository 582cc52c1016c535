package oracle

import (
	"testing"
)

func TestDiffNamesWhatDiffers(t *testing.T) {
	before := Tree{"/a": {Size: 1, SHA256: "x"}, "/b": {}, "/same": {UID: 3}}
	after := Tree{"/a": {Size: 2, SHA256: "y"}, "/c": {}, "/same": {UID: 3}}
	got := Diff(before, after)
	if len(got) != 3 {
		t.Fatalf("%d differences, not 3: %v", len(got), got)
	}
	if got[0].Path != "/a" || len(got[0].Fields) != 2 || got[0].Fields[0] != "Size" || got[0].Fields[1] != "SHA256" {
		t.Errorf("/a: %v", got[0])
	}
	if got[1].Path != "/b" || got[1].After != nil {
		t.Errorf("/b: %v", got[1])
	}
	if got[2].Path != "/c" || got[2].Before != nil {
		t.Errorf("/c: %v", got[2])
	}
}

func TestUnannounced(t *testing.T) {
	folder := Node{Mode: 1 << 31, Links: 2}
	grown := Node{Mode: 1 << 31, Links: 3}
	for _, c := range []struct {
		name          string
		before, after Tree
		announced     map[string]string
		want          []string // paths
	}{
		{"content, announced", Tree{"/a": {SHA256: "x"}}, Tree{"/a": {SHA256: "y", Size: 4}}, map[string]string{"/a": "modify"}, nil},
		{"content, not announced", Tree{"/a": {SHA256: "x"}}, Tree{"/a": {SHA256: "y"}}, nil, []string{"/a"}},
		{"mode under modify", Tree{"/a": {Mode: 0o600}}, Tree{"/a": {Mode: 0o644}}, map[string]string{"/a": "modify"}, []string{"/a"}},
		{"mode under attr", Tree{"/a": {Mode: 0o600}}, Tree{"/a": {Mode: 0o644}}, map[string]string{"/a": "attr"}, nil},
		{"a file in a folder", Tree{"/d": folder}, Tree{"/d": grown, "/d/a": {}}, map[string]string{"/d/a": "create"}, nil},
		{"the folder alone", Tree{"/d": folder}, Tree{"/d": grown}, nil, []string{"/d"}},
		{"gone, announced as new", Tree{"/d/a": {}}, Tree{}, map[string]string{"/d/a": "create"}, []string{"/d/a"}},
		{"announced and not done", Tree{"/a": {}}, Tree{"/a": {}}, map[string]string{"/a": "modify"}, []string{"/a"}},
		{"a second name of a changed file", Tree{"/a": {Inode: 7, Links: 2, SHA256: "x"}, "/b": {Inode: 7, Links: 2, SHA256: "x"}},
			Tree{"/a": {Inode: 7, Links: 2, SHA256: "y"}, "/b": {Inode: 7, Links: 2, SHA256: "y"}}, map[string]string{"/a": "modify"}, nil},
		{"a file written anew", Tree{"/a": {Inode: 7, SHA256: "x"}}, Tree{"/a": {Inode: 8, SHA256: "y"}}, map[string]string{"/a": "modify"}, []string{"/a"}},
	} {
		got := Unannounced(c.before, c.after, c.announced)
		if len(got) != len(c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
			continue
		}
		for i, d := range got {
			if d.Path != c.want[i] {
				t.Errorf("%s: %v, want %v", c.name, got, c.want)
			}
		}
	}
}
