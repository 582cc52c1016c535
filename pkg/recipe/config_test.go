package recipe

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"remaster/internal/oracle"
	"remaster/pkg/disk"
)

const (
	v2runc = `plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc`
	v3runc = `plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc`
)

// dockers is the shape of the file that Docker's packages bring.
const dockers = "#   A licence text\n\ndisabled_plugins = [\"cri\"]\n\n#root = \"/var/lib/containerd\"\n#[grpc]\n#  address = \"/run/containerd/containerd.sock\"\n"

var configCases = []struct {
	name     string
	in, want string
	major    int
	notes    int
	warns    int
}{
	{"true already", "version = 2\n[" + v2runc + ".options]\nSystemdCgroup=true # yes\n", "version = 2\n[" + v2runc + ".options]\nSystemdCgroup=true # yes\n", 2, 0, 0},
	{"false in its section", "version = 2\n[" + v2runc + ".options]\n  SystemdCgroup = false # no\n  BinaryName = ''\n", "version = 2\n[" + v2runc + ".options]\n  SystemdCgroup = true # no\n  BinaryName = ''\n", 2, 0, 0},
	{"a string in its place", "version = 2\n[" + v2runc + ".options]\nSystemdCgroup = \"false\"\n", "version = 2\n[" + v2runc + ".options]\nSystemdCgroup = true\n", 2, 0, 0},
	{"section without the key", "version = 2\n\t[" + v2runc + ".options]\n\t\tBinaryName = \"runc\" # x\n\n[debug]\n  level = \"info\"\n",
		"version = 2\n\t[" + v2runc + ".options]\n\t\tBinaryName = \"runc\" # x\n\t\tSystemdCgroup = true\n\n[debug]\n  level = \"info\"\n", 2, 0, 0},
	{"empty section at the end, no newline", "version = 2\n  [" + v2runc + ".options]", "version = 2\n  [" + v2runc + ".options]\n    SystemdCgroup = true\n", 2, 0, 0},
	{"runtime without options", "version = 3\n\n  [" + v3runc + "]\n    runtime_type = 'io.containerd.runc.v2'\n\n  [ttrpc]\n",
		"version = 3\n\n  [" + v3runc + "]\n    runtime_type = 'io.containerd.runc.v2'\n\n    [" + v3runc + ".options]\n      SystemdCgroup = true\n\n  [ttrpc]\n", 0, 0, 0},
	{"nothing of it, version 3", "version = 3\n", "version = 3\n\n[" + v3runc + ".options]\n  SystemdCgroup = true\n", 0, 0, 0},
	{"version 4 keeps runtimes where 3 has them", "version = 4\n", "version = 4\n\n[" + v3runc + ".options]\n  SystemdCgroup = true\n", 0, 0, 0},
	{"nothing of it, version 2", "version = 2", "version = 2\n\n[" + v2runc + "]\n  runtime_type = \"io.containerd.runc.v2\"\n\n  [" + v2runc + ".options]\n    SystemdCgroup = true\n", 0, 0, 0},
	{"header above with its own quotes", "version = 2\n[plugins]\n  [plugins . 'io.containerd.grpc.v1.cri']\n    sandbox_image = \"p\"\n",
		"version = 2\n[plugins]\n  [plugins . 'io.containerd.grpc.v1.cri']\n    sandbox_image = \"p\"\n\n    [plugins . 'io.containerd.grpc.v1.cri'.containerd.runtimes.runc]\n      runtime_type = \"io.containerd.runc.v2\"\n\n      [plugins . 'io.containerd.grpc.v1.cri'.containerd.runtimes.runc.options]\n        SystemdCgroup = true\n", 0, 0, 0},
	{"inline table", "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\nruntimes = { runc = {runtime_type=\"io.containerd.runc.v2\"}, kata = {} }\n",
		"version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\nruntimes = { runc = { options.SystemdCgroup = true, runtime_type=\"io.containerd.runc.v2\"}, kata = {} }\n", 0, 0, 0},
	{"inline options, false", "version = 2\n[" + v2runc + "]\noptions = { BinaryName = \"r\", SystemdCgroup = false }\n", "version = 2\n[" + v2runc + "]\noptions = { BinaryName = \"r\", SystemdCgroup = true }\n", 2, 0, 0},
	{"inline options, empty", "version = 2\n[" + v2runc + "]\noptions = {}\n", "version = 2\n[" + v2runc + "]\noptions = { SystemdCgroup = true }\n", 2, 0, 0},
	{"inline options, other", "version = 2\n[" + v2runc + "]\noptions = { BinaryName = \"r\" }\n", "version = 2\n[" + v2runc + "]\noptions = { SystemdCgroup = true, BinaryName = \"r\" }\n", 2, 0, 0},
	{"dotted keys", "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\n  containerd.runtimes.runc.options.BinaryName = \"r\"\n  sandbox_image = \"p\"\n",
		"version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\n  containerd.runtimes.runc.options.BinaryName = \"r\"\n  containerd.runtimes.runc.options.SystemdCgroup = true\n  sandbox_image = \"p\"\n", 2, 0, 0},
	{"dotted key at the root", "version = 3\nplugins.'io.containerd.cri.v1.runtime'.enable_selinux = false\n", "version = 3\nplugins.'io.containerd.cri.v1.runtime'.enable_selinux = false\nplugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options.SystemdCgroup = true\n", 0, 0, 0},
	{"dotted key in an inline table", "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes]\nrunc = { options.Root = \"/r\" }\n",
		"version = 3\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes]\nrunc = { options.Root = \"/r\", options.SystemdCgroup = true }\n", 0, 0, 0},
	{"windows line ends", "version = 2\r\n[" + v2runc + ".options]\r\nBinaryName = \"\"\r\n", "version = 2\r\n[" + v2runc + ".options]\r\nBinaryName = \"\"\r\nSystemdCgroup = true\r\n", 2, 0, 0},
	{"Docker's file", dockers, strings.Replace(dockers, `["cri"]`, "[]", 1) + "\n[plugins.cri.containerd.runtimes.runc]\n  runtime_type = \"io.containerd.runc.v2\"\n\n  [plugins.cri.containerd.runtimes.runc.options]\n    SystemdCgroup = true\n", 0, 1, 0},
	{"version 1", "[plugins.cri.containerd.runtimes.runc.options]\nSystemdCgroup = false\n", "[plugins.cri.containerd.runtimes.runc]\n  runtime_type = \"io.containerd.runc.v2\"\n\n[plugins.cri.containerd.runtimes.runc.options]\nSystemdCgroup = true\n", 1, 1, 0},
	{"full names without a version", "# mine\n[" + v2runc + ".options]\n  SystemdCgroup = false\n", "version = 2\n# mine\n[" + v2runc + ".options]\n  SystemdCgroup = true\n", 2, 1, 0},
	{"full names with version 1", "version = 1\n[" + v2runc + ".options]\n  SystemdCgroup = false\n", "version = 2\n[" + v2runc + ".options]\n  SystemdCgroup = true\n", 2, 1, 0},
	{"full names without a version, done, containerd unknown", "[" + v2runc + ".options]\n  SystemdCgroup = true\n", "[" + v2runc + ".options]\n  SystemdCgroup = true\n", 0, 0, 2},
	{"full names without a version, done, containerd 2", "[" + v2runc + ".options]\n  SystemdCgroup = true\n", "[" + v2runc + ".options]\n  SystemdCgroup = true\n", 2, 0, 0},
	{"full names without a version, done, containerd 1", "[" + v2runc + ".options]\n  SystemdCgroup = true\n", "version = 2\n[" + v2runc + "]\n  runtime_type = \"io.containerd.runc.v2\"\n\n[" + v2runc + ".options]\n  SystemdCgroup = true\n", 1, 2, 0},
	{"the first runtime's switch", "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\nsystemd_cgroup = true\n[" + v2runc + ".options]\nSystemdCgroup = true\n",
		"version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\nsystemd_cgroup = false\n[" + v2runc + ".options]\nSystemdCgroup = true\n", 2, 1, 0},
	{"another default runtime", "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\ndefault_runtime_name = \"nvidia\"\n[" + v2runc + ".options]\nSystemdCgroup = true\n",
		"version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\ndefault_runtime_name = \"nvidia\"\n[" + v2runc + ".options]\nSystemdCgroup = true\n", 2, 0, 1},
	{"options without a type, containerd unknown", "version = 2\n\n  # mine\n  [plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc.options]\n    SystemdCgroup = false\n",
		"version = 2\n\n  # mine\n  [plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc]\n    runtime_type = \"io.containerd.runc.v2\"\n\n  [plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc.options]\n    SystemdCgroup = true\n", 0, 1, 0},
	{"options without a type, done, containerd unknown", "version = 2\n[" + v2runc + ".options]\nSystemdCgroup=true\n", "version = 2\n[" + v2runc + ".options]\nSystemdCgroup=true\n", 0, 0, 1},
	{"dotted options without a type", "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\n  containerd.runtimes.runc.options.BinaryName = \"r\"\n",
		"version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\n  containerd.runtimes.runc.options.BinaryName = \"r\"\n  containerd.runtimes.runc.options.SystemdCgroup = true\n  containerd.runtimes.runc.runtime_type = \"io.containerd.runc.v2\"\n", 1, 1, 0},
	{"an old shim", "version = 2\n[" + v2runc + "]\nruntime_type = \"io.containerd.runc.v1\"\noptions.SystemdCgroup = true\n", "version = 2\n[" + v2runc + "]\nruntime_type = \"io.containerd.runc.v1\"\noptions.SystemdCgroup = true\n", 0, 0, 1},
	{"version 3 with the runtimes of 2", "version = 3\n[" + v2runc + ".options]\nSystemdCgroup = false\n", "version = 3\n[" + v2runc + ".options]\nSystemdCgroup = false\n\n[" + v3runc + ".options]\n  SystemdCgroup = true\n", 0, 0, 1},
}

func TestConfigKeepsEveryOtherByte(t *testing.T) {
	for _, c := range configCases {
		t.Run(c.name, func(t *testing.T) {
			got, err := editConfig([]byte(c.in), c.major)
			if err != nil {
				t.Fatal(err)
			}
			if string(got.t.src) != c.want {
				t.Errorf("got\n%s\nwant\n%s", got.t.src, c.want)
			}
			if len(got.notes) != c.notes || len(got.warns) != c.warns {
				t.Errorf("notes %q, warnings %q", got.notes, got.warns)
			}
			again, err := editConfig(got.t.src, c.major)
			if err != nil || !bytes.Equal(again.t.src, got.t.src) {
				t.Errorf("a second edit: %v\n%s", err, again.t.src)
			}
		})
	}
}

// TestContainerdReadsItThatWay has a real containerd 1 print what it makes of the files.
func TestContainerdReadsItThatWay(t *testing.T) {
	if v := oracle.Run(t, "containerd", "--version"); !strings.Contains(v, " 1.") {
		oracle.Missing(t, strings.TrimSpace(v)+" is not a containerd 1")
	}
	read := 0
	for _, c := range configCases {
		got, err := editConfig([]byte(c.in), 1)
		if err != nil {
			t.Fatal(err)
		}
		if got.version > 2 {
			continue
		}
		file := filepath.Join(t.TempDir(), "config.toml")
		if err := os.WriteFile(file, got.t.src, 0o644); err != nil {
			t.Fatal(err)
		}
		dump, err := parseToml([]byte(oracle.Run(t, "containerd", "--config", file, "config", "dump")))
		if err != nil {
			t.Fatal(err)
		}
		plugin := got.plugin
		if dump.get("version") == int64(2) {
			plugin = criLong
		}
		runc := []string{"plugins", plugin, "containerd", "runtimes", "runc"}
		on, shim := dump.get(append(runc, "options", "SystemdCgroup")...), dump.get(append(runc, "runtime_type")...)
		if on != true || shim != runcShim && !strings.Contains(c.in, "runtime_type") {
			t.Errorf("%s: SystemdCgroup = %v, runtime_type = %v\n%s", c.name, on, shim, got.t.src)
		}
		read++
	}
	if read < 20 {
		t.Errorf("only %d files were read", read)
	}
}

func TestDisabledPluginsKeepsTheOthers(t *testing.T) {
	for in, want := range map[string]string{
		`["cri"]`:                        `[]`,
		`[ "cri" ]`:                      `[  ]`,
		`["cri", "aufs"]`:                `["aufs"]`,
		`["aufs", "cri"]`:                `["aufs"]`,
		`["aufs", "cri",]`:               `["aufs", ]`,
		`["aufs","cri","zfs"]`:           `["aufs","zfs"]`,
		`['cri', "cri", """cri"""]`:      `[]`,
		"[\n \"cri\", # a, b\n \"zfs\"]": "[\n # a, b\n \"zfs\"]",
		"[\"zfs\" # one, two\n , 'cri']": "[\"zfs\" # one, two\n ]",
		"[\"cri\" # one, two\n , 'zfs']": "[ # one, two\n  'zfs']",
		`["zfs"]`:                        `["zfs"]`,
		`[]`:                             `[]`,
		`["cri", "zfs", "cri", "aufs"]`:  `["zfs", "aufs"]`,
	} {
		src := "disabled_plugins = %s\n[plugins.cri.containerd.runtimes.runc.options]\nSystemdCgroup = true\n"
		got, err := editConfig(fmt.Appendf(nil, src, in), 0)
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		if want := fmt.Sprintf(src, want); string(got.t.src) != want {
			t.Errorf("%s: got\n%s\nwant\n%s", in, got.t.src, want)
		}
	}
}

func TestConfigRefusals(t *testing.T) {
	for name, in := range map[string]string{
		"not TOML":              "version = \n",
		"a key twice":           "version = 2\nversion = 2\n",
		"version is a text":     "version = \"2\"\n",
		"version 5":             "version = 5\n",
		"array of tables":       "version = 2\n[[plugins]]\na = 1\n",
		"plugins is a number":   "version = 2\nplugins = 3\n",
		"options is a list":     "version = 2\n[" + v2runc + "]\noptions = [1]\n",
		"the switch is a table": "version = 2\n[" + v2runc + ".options.SystemdCgroup]\na = 1\n",
		"disabled is a text":    "version = 2\ndisabled_plugins = \"cri\"\n",
		"disabled has numbers":  "version = 2\ndisabled_plugins = [1, \"cri\"]\n",
		"disabled is a table":   "version = 2\n[disabled_plugins]\na = 1\n",
		"short and full names":  "[plugins.cri]\na = 1\n[plugins.\"io.containerd.grpc.v1.cri\"]\na = 1\n",
		"too deep, inline":      "x = " + strings.Repeat("{a = ", maxDepth) + "1" + strings.Repeat("}", maxDepth) + "\n",
		"too deep, dotted":      "x" + strings.Repeat(".a", maxDepth) + " = 1\n",
		"too deep, header":      "[x" + strings.Repeat(".a", maxDepth-1) + "]\nb = 1\n",
		"too long":              "#" + strings.Repeat("x", maxToml) + "\n",
	} {
		if got, err := editConfig([]byte(in), 0); err == nil || !errors.Is(err, disk.ErrCorrupt) && !errors.Is(err, disk.ErrUnsupported) {
			t.Errorf("%s: %v %v", name, got, err)
		}
	}
}

func TestNewConfigNeedsNoEdit(t *testing.T) {
	for major := range 4 {
		b := newConfig(major)
		c, err := editConfig(b, major)
		if err != nil || !bytes.Equal(c.t.src, b) || len(c.notes)+len(c.warns) > 0 {
			t.Errorf("%d: %v %+v", major, err, c)
		}
	}
}

func FuzzContainerdConfig(f *testing.F) {
	for _, c := range configCases {
		f.Add([]byte(c.in))
	}
	f.Add([]byte(dockers))
	f.Add([]byte("a={b=[{c=1},{d.e=nan}]}\nplugins={}\nversion=2"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := editConfig(data, len(data)%3)
		if err != nil {
			return
		}
		out, err := parseToml(c.t.src)
		if err != nil {
			t.Fatalf("%v\n%q", err, c.t.src)
		}
		if out.get(c.path("runtimes", "runc", "options", "SystemdCgroup")...) != true {
			t.Fatalf("not set in %q", c.t.src)
		}
		// What was there is there still, but for what is edited.
		before, err := parseToml(data)
		if err != nil {
			t.Fatal(err)
		}
		edited := []string{"plugins", "version", "disabled_plugins"}
		for _, m := range []map[string]any{before.values, out.values} {
			maps.DeleteFunc(m, func(k string, _ any) bool { return slices.Contains(edited, k) })
		}
		if !sameValue(before.values, out.values) {
			t.Fatalf("%q\n%q", data, c.t.src)
		}
	})
}
