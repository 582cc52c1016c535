package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// manifests decodes the documents of a file strictly: a field that Kubernetes does not
// know is an error.
func manifests(t *testing.T, file string) (jobs []batchv1.Job, lists []corev1.ConfigMap) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, doc := range bytes.Split(text, []byte("\n---\n")) {
		var kind struct{ Kind string }
		if err := yaml.Unmarshal(doc, &kind); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		var into any
		switch kind.Kind {
		case "Job":
			jobs = append(jobs, batchv1.Job{})
			into = &jobs[len(jobs)-1]
		case "ConfigMap":
			lists = append(lists, corev1.ConfigMap{})
			into = &lists[len(lists)-1]
		case "ServiceAccount":
			into = &corev1.ServiceAccount{}
		default:
			t.Fatalf("%s: kind %q", file, kind.Kind)
		}
		if err := yaml.UnmarshalStrict(doc, into); err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
	return jobs, lists
}

// parses checks that a command line is one of this program.
func parses(t *testing.T, where string, argv []string) {
	t.Helper()
	cmd, rest, err := (&app{}).root().Find(argv)
	if err != nil {
		t.Fatalf("%s: %v", where, err)
	}
	if err := cmd.ParseFlags(rest); err != nil {
		t.Errorf("%s: %v", where, err)
	}
	if err := cmd.ValidateArgs(cmd.Flags().Args()); err != nil {
		t.Errorf("%s: %v", where, err)
	}
}

func TestManifestsAreKubernetes(t *testing.T) {
	files, err := filepath.Glob("../../deploy/*.yaml")
	if err != nil || len(files) < 3 {
		t.Fatalf("%d manifests: %v", len(files), err)
	}
	for _, file := range files {
		jobs, lists := manifests(t, file)
		for _, j := range jobs {
			spec := j.Spec.Template.Spec
			c := spec.Containers[0]
			args := strings.Split(strings.ReplaceAll(strings.Join(c.Args, "\n"), "$(JOB_COMPLETION_INDEX)", "0"), "\n")
			parses(t, file, args)
			if spec.RestartPolicy != corev1.RestartPolicyNever || j.Spec.PodFailurePolicy == nil {
				t.Errorf("%s: a failure that is final would be tried again", file)
			}
			if sc := c.SecurityContext; sc == nil || sc.ReadOnlyRootFilesystem == nil || !*sc.ReadOnlyRootFilesystem || !*spec.SecurityContext.RunAsNonRoot {
				t.Errorf("%s: the pod may do more than it needs to", file)
			}
			if n := j.Spec.Completions; n != nil {
				checkList(t, file, lists, args, int(*n))
			}
		}
	}
}

// checkList checks that each index of an indexed job has a line that publish takes.
func checkList(t *testing.T, file string, lists []corev1.ConfigMap, args []string, completions int) {
	t.Helper()
	list := filepath.Join(t.TempDir(), "images.txt")
	if err := os.WriteFile(list, []byte(lists[0].Data["images.txt"]), 0o600); err != nil {
		t.Fatal(err)
	}
	_, common, _ := strings.Cut(strings.Join(args, " "), " -- ")
	for i := range completions {
		line, err := batchLine(list, i)
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		parses(t, file, append(append([]string{"publish"}, line...), strings.Fields(common)...))
	}
	if _, err := batchLine(list, completions); err == nil {
		t.Errorf("%s: more lines than completions", file)
	}
}
