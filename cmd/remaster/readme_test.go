package main

import (
	"bytes"
	"context"
	"os"
	"regexp"
	"strings"
	"testing"
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
