package remaster_test

import (
	"context"
	"strings"
	"testing"

	"remaster/internal/oracle"
	"remaster/internal/testimage"
	"remaster/pkg/disk"
	"remaster/pkg/recipe"
	"remaster/pkg/remaster"
	"remaster/pkg/rootfs"
)

// read returns the text of a file of a guest.
func read(t *testing.T, tree rootfs.Tree, path string) string {
	t.Helper()
	b, err := rootfs.ReadFile(tree, path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// The journal of the layout turns the timeout of /etc/default/grub from 5 to 8.
func TestDirtyJournalIsReplayedUnderTheEdit(t *testing.T) {
	base := testimage.Build(t, "dirty-journal")
	before := oracle.SHA256(t, base)
	im := open(t, base)
	g, err := im.OpenGuest()
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if s := read(t, g, "/etc/default/grub"); !strings.Contains(s, "TIMEOUT=8") {
		t.Errorf("read without the journal: %s", s)
	}
	for _, in := range []testimage.Format{testimage.Raw, testimage.Qcow2Zlib, testimage.VHD} {
		p := plan(t, testimage.Convert(t, base, in), recipe.Recipe{})
		if len(p.Notes) == 0 || !strings.Contains(p.Notes[0], "partition 3 (ext4) was not unmounted: 1 transaction of its journal replayed") {
			t.Errorf("notes %q", p.Notes)
		}
		doc, err := p.Document()
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range doc.Changes {
			if c.Path == "/etc/default/grub" && strings.Contains(c.Diff, "TIMEOUT=5") {
				t.Errorf("the plan shows what was there before the replay: %s", c.Diff)
			}
		}
		out := build(t, p, remaster.Raw, "node.raw")
		oracle.CheckImage(t, out)
		g, err := open(t, out).OpenGuest()
		if err != nil {
			t.Fatal(err)
		}
		s := read(t, g, "/etc/default/grub")
		if !strings.Contains(s, "TIMEOUT=8") || !strings.Contains(s, testimage.V2Args) || len(g.Recovered()) > 0 {
			t.Errorf("%s: %q %s", in, g.Recovered(), s)
		}
	}
	if oracle.SHA256(t, base) != before {
		t.Error("the base was changed")
	}
}

// What is not edited stays as it is, its journal included.
func TestDirtyJournalOfAnImageWithNothingToDoStays(t *testing.T) {
	root := build(t, plan(t, testimage.Build(t, "whole-disk"), recipe.Recipe{}), remaster.Raw, "done.raw")
	// The block of a program that nothing runs here gets any bytes.
	block := strings.TrimSpace(oracle.Run(t, "debugfs", "-R", "bmap /usr/bin/curl 0", root))
	testimage.DebugFS(t, root, "jo", "jw -b "+block+" "+root, "jc")
	p := plan(t, root, recipe.Recipe{})
	if len(p.Changes) > 0 || len(p.Notes) == 0 || !strings.Contains(p.Notes[0], "1 transaction") {
		t.Errorf("%d changes, notes %q", len(p.Changes), p.Notes)
	}
	oracle.SameDisk(t, "raw", root, "raw", build(t, p, "", "copy.raw"))
}

func TestJournalThatCannotBeReplayedIsRefused(t *testing.T) {
	base := testimage.Build(t, "dirty-journal")
	o := disk.NewOverlay(open(t, base).Disk, disk.OverlayOptions{})
	defer o.Close()
	// The journal's own superblock is the first that has its magic and type.
	b := make([]byte, o.Size())
	if err := disk.ReadFull(o, b, 0); err != nil {
		t.Fatal(err)
	}
	at := strings.Index(string(b), "\xc0\x3b\x39\x98\x00\x00\x00\x04")
	if _, err := o.WriteAt([]byte{0, 0, 0, 5}, int64(at)+0x20); err != nil {
		t.Fatal(err)
	}
	im, err := remaster.Open(o, "")
	if err != nil {
		t.Fatal(err)
	}
	_, err = remaster.MakePlan(context.Background(), im, recipe.Recipe{}, remaster.Options{})
	if !remaster.Refused(err) || !strings.Contains(err.Error(), "recorded error 5") {
		t.Error(err)
	}
}
