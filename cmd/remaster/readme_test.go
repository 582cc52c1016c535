package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"remaster/internal/oracle"
)

// example is a command of README.md and what it says that the command prints.
type example struct {
	command string
	want    []string
}

// examples returns the commands of the ```console blocks: a line that begins with
// "$ " is a command, the lines behind it are its output. A line "..." stands for any
// number of lines.
func examples(t *testing.T) []example {
	t.Helper()
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	var out []example
	in := false
	for line := range strings.Lines(string(readme)) {
		line = strings.TrimRight(line, "\n")
		switch {
		case line == "```console":
			in = true
		case strings.HasPrefix(line, "```"):
			in = false
		case in && strings.HasPrefix(line, "$ "):
			out = append(out, example{command: line[2:]})
		case in && len(out) > 0:
			e := &out[len(out)-1]
			e.want = append(e.want, line)
		}
	}
	return out
}

// unstable is what differs from one run to the next.
var unstable = regexp.MustCompile(`in \d+\.\d s`)

// TestReadmeExamples runs every example of README.md, in their order, in one folder that
// holds the demo image under the names that they use.
func TestReadmeExamples(t *testing.T) {
	demo, err := os.ReadFile("../../testdata/demo/alinux3-demo.qcow2")
	if err != nil {
		t.Fatal(err)
	}
	all := examples(t)
	if len(all) < 5 {
		t.Fatalf("README.md has %d examples", len(all))
	}
	t.Chdir(t.TempDir())
	if err := os.WriteFile("alinux3.qcow2", demo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		argv := strings.Fields(e.command)
		if argv[0] != "remaster" {
			t.Fatalf("README.md: %q is not run by this test", e.command)
		}
		var out bytes.Buffer
		run(context.Background(), argv[1:], &out, &out)
		got := strings.Split(strings.TrimRight(unstable.ReplaceAllString(out.String(), "in 0.1 s"), "\n"), "\n")
		if !matches(got, e.want) {
			t.Errorf("README.md: %s prints\n%s\nnot\n%s", e.command, strings.Join(got, "\n"), strings.Join(e.want, "\n"))
		}
	}
}

// TestReadmeScripts runs the ```sh blocks of README.md as a user would, on the demo image.
func TestReadmeScripts(t *testing.T) {
	bash := oracle.Need(t, "bash")
	demo := demoImage(t)
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllSubmatch(readme, -1)
	if len(blocks) == 0 {
		t.Fatal("README.md has no scripts")
	}
	for _, block := range blocks {
		dir := t.TempDir()
		if err := os.Symlink(demo, filepath.Join(dir, "alinux3.qcow2")); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		// What the block leaves in the background ends with it.
		cmd := exec.CommandContext(ctx, bash, "-euo", "pipefail", "-c", "trap 'kill $(jobs -p)' EXIT\n"+string(block[1]))
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "HOME="+dir, "XDG_CACHE_HOME="+dir)
		cmd.WaitDelay = 10 * time.Second
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("README.md: %v\n%s\n%s", err, block[1], out)
		}
	}
}

// matches compares lines with a pattern in which "..." is any number of lines.
func matches(got, want []string) bool {
	switch {
	case len(want) == 0:
		return len(got) == 0 || len(got) == 1 && got[0] == ""
	case want[0] == "...":
		for i := range len(got) + 1 {
			if matches(got[i:], want[1:]) {
				return true
			}
		}
		return false
	}
	return len(got) > 0 && strings.TrimRight(got[0], " ") == strings.TrimRight(want[0], " ") && matches(got[1:], want[1:])
}
