package main

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"remaster": func() { os.Exit(run(context.Background(), os.Args[1:], os.Stdout, os.Stderr)) },
	})
}

// TestStories runs the txtar stories of testdata/script. Each begins in an empty folder;
// $DEMO is the demo image.
func TestStories(t *testing.T) {
	demo, err := filepath.Abs("../../testdata/demo/alinux3-demo.qcow2")
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			env.Setenv("DEMO", demo)
			env.Setenv("TMPDIR", env.WorkDir)
			return nil
		},
		RequireExplicitExec: true,
	})
}
