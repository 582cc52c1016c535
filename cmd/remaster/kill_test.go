package main

import (
	"bytes"
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"remaster/internal/sandbox"
)

var kills = flag.Int("kills", 12, "how often TestPublishKilledAtAnyMoment kills the program")

// A program that is killed, as by a machine that loses power, leaves the journal behind;
// the next run goes on, and in the end there is one object, one image and nothing else.
func TestPublishKilledAtAnyMoment(t *testing.T) {
	s := rehearse(t)
	base := demoImage(t)
	content, err := os.ReadFile(base)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.OSS.CreateObject("images", "base.qcow2", bytes.NewReader(content)); err != nil {
		t.Fatal(err)
	}
	want := local(t, base)
	rng := rand.New(rand.NewPCG(2026, 11))
	for i := range *kills {
		from := []string{base, "oss://images/base.qcow2"}[i%2]
		args := []string{"publish", "--json", "--poll", "20ms", from, "--bucket", "images", "--name", fmt.Sprintf("node-%d", i),
			"--key-prefix", fmt.Sprintf("k%d", i), "--part-size", "102400", "--workers", "2", "--copy-to", "cn-beijing"}
		cmd := exec.Command("remaster", args...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(rng.IntN(700)) * time.Millisecond)
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed, or done before
		noSecretBelow(t, os.Getenv("XDG_CACHE_HOME"))
		doc := publishJSON(t, args[4:]...)
		if !bytes.Equal(object(t, s, doc), want) {
			t.Errorf("run %d: the object is not the local build", i)
		}
	}
	if left := s.OSS.Uploads("images"); len(left) > 0 {
		t.Errorf("uploads are left: %v", left)
	}
	images := map[string]int{}
	for _, im := range s.Images() {
		images[im.Name+" in "+im.Region+" "+im.Status]++
	}
	for i := range *kills {
		for _, region := range []string{sandbox.DefaultRegion, "cn-beijing"} {
			if n := images[fmt.Sprintf("node-%d in %s Available", i, region)]; n != 1 {
				t.Errorf("%d images node-%d in %s", n, i, region)
			}
		}
	}
	if n := len(s.Images()); n != 2**kills {
		t.Errorf("%d images after %d runs: %v", n, *kills, images)
	}
	for _, x := range s.Snapshots() {
		if x.Image == "" {
			t.Errorf("snapshot %v is left", x)
		}
	}
}

// noSecretBelow checks that no file in a folder, a journal above all, holds the secret.
func noSecretBelow(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		text, err := os.ReadFile(path)
		if bytes.Contains(text, []byte(testSecret)) {
			t.Errorf("%s holds the secret", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
