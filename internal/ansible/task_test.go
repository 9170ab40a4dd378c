package ansible

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/coloctl/coloctl/colo/api"
)

func parse(t *testing.T, params m) (*Task, error) {
	t.Helper()
	data, err := json.Marshal(params)
	must(t, err)
	return ParseTask(data)
}

func TestParseTask(t *testing.T) {
	task, err := parse(t, m{"name": "web", "state": "stopped", "grace": "90", "timeout": "5m", "wait": "no", "force": "False", "spec": nil,
		"_ansible_check_mode": true, "_ansible_diff": "yes", "_ansible_no_log": false, "_ansible_verbosity": 3, "_ansible_shell_executable": "/bin/sh"})
	if err != nil || task.State != Stopped || task.Grace != 90*time.Second || task.Timeout != 5*time.Minute || task.Wait || task.Force ||
		!task.Check || !task.Diff || task.NoLog || task.Socket != DefaultSocket {
		t.Errorf("%+v, %v", task, err)
	}
	task, err = parse(t, m{"spec": webSpec})
	if err != nil || task.State != Present || task.VM != "web" || task.Want == nil || !task.Wait || task.Timeout != defaultTimeout {
		t.Errorf("%+v, %v", task, err)
	}
}

func TestWrongParameters(t *testing.T) {
	secret := "-----BEGIN PRIVATE KEY-----\nTOPSECRET\n"
	file := filepath.Join(t.TempDir(), "web.yaml")
	must(t, os.WriteFile(file, []byte("name: web\nmemory: 256MiB\ndisks: [{name: vda, file: web.raw, size: 64Mib}]\n"), 0o600))
	tests := []struct {
		name   string
		params m
		want   []string
	}{
		{"unknown", m{"name": "web", "stat": "started"}, []string{"stat: unknown parameter", "expected one of name, state"}},
		{"several at once", m{"name": "web", "stat": "started", "timeout": "soon"}, []string{"stat: ", "timeout: \"soon\": expected seconds"}},
		{"unknown state", m{"name": "web", "state": "failover"}, []string{`state: "failover": expected present or absent`}},
		{"an empty state", m{"name": "web", "state": ""}, []string{`state: ""`}},
		{"no name", m{"state": "started"}, []string{"name: missing"}},
		{"another's spec", m{"name": "db", "spec": webSpec}, []string{`name: "db", but the spec is of "web"`}},
		{"a parameter of another state", m{"name": "web", "state": "started", "delete_images": true}, []string{"delete_images: is for state absent, not for started"}},
		{"spec twice", m{"spec": webSpec, "spec_file": file}, []string{"spec_file: "}},
		{"a spec's error has its place", m{"spec": "name: web\nmemory: 256MiB\ndisk: []\n"}, []string{"wrong parameters: spec:3:1: disk: unknown field"}},
		{"in a file too", m{"spec_file": file}, []string{file + ":3:", `"64Mib" is not a size`}},
		{"but in a dictionary it has none", m{"spec": m{"name": "web", "memory": 1, "disks": []m{}}}, []string{"spec: disks: missing", "spec: memory: 1: expected"}},
		{"a spec that is a list", m{"spec": []m{}}, []string{"spec: expected a dictionary"}},
		{"no such file", m{"spec_file": "/nowhere/web.yaml"}, []string{"spec_file: open /nowhere/web.yaml", "on the host where the module runs"}},
		{"socket and nodes", m{"name": "web", "socket": "/s", "nodes": []m{{"name": "n1", "addresses": "h:1"}}, "identity": "/i", "trust": "/t"}, []string{"socket or nodes, not both"}},
		{"nodes without certificates", m{"name": "web", "nodes": []m{{"name": "n1", "addresses": "h:1"}}}, []string{"needs identity and trust"}},
		{"certificates for a socket", m{"name": "web", "identity": "/i", "trust": "/t"}, []string{"a socket needs none"}},
		{"nodes without addresses", m{"name": "web", "nodes": []m{{"name": "n1", "address": "h:1"}}, "identity": "/i", "trust": "/t"}, []string{"nodes[0].address: unknown"}},
		{"failover without a word", m{"name": "web", "state": "failed-over"}, []string{"confirm: ", "vouches that the other copy is dead"}},
		{"failover with a wrong word", m{"name": "web", "state": "failed-over", "confirm": "yes"}, []string{`confirm: "yes": expected the VM's name, "web"`}},
		{"a truth value", m{"name": "web", "state": "stopped", "force": "perhaps"}, []string{`force: "perhaps": expected true or false`}},
		{"a time", m{"name": "web", "timeout": -1}, []string{"timeout: "}},
		{"a resync", m{"name": "web", "state": "protected", "resync": "all"}, []string{`resync: "all": expected bitmap or`}},
		{"a key instead of its path", m{"name": "web", "identity": secret, "trust": "/t", "nodes": []m{{"name": "n1", "addresses": "h:1"}}}, []string{"identity: expected the path of a file"}},
		{"check mode that nobody understands", m{"name": "web", "state": "started", "_ansible_check_mode": "maybe"}, []string{"_ansible_check_mode", "nothing is done"}},
	}
	for _, x := range tests {
		data, err := json.Marshal(x.params)
		must(t, err)
		r := Run(t.Context(), data)
		if !r.Failed || r.Changed || r.RC != api.ExitUsage || !strings.HasPrefix(r.Msg, "wrong parameters: ") || !strings.Contains(r.Msg, "next: see: ansible-doc") {
			t.Errorf("%s: %+v", x.name, r)
		}
		for _, w := range x.want {
			if !strings.Contains(r.Msg, w) {
				t.Errorf("%s: %q is not in %q", x.name, w, r.Msg)
			}
		}
		if strings.Contains(r.Msg, "TOPSECRET") || strings.Contains(r.Msg, "\n") {
			t.Errorf("%s: %s", x.name, r.Msg)
		}
	}
}

// With no_log nothing of what the task was given is in the reply.
func TestNoLog(t *testing.T) {
	for _, p := range []m{
		{"name": "web", "state": "TOPSECRET"},
		{"spec": m{"name": "web", "memory": "TOPSECRET"}},
		{"spec": "name: web\nTOPSECRET: x\n"},
		{"spec": "name: web\nmemory: 256MiB\nboot: {kernel: /k, append: TOPSECRET}\ndisks: [{name: vda, file: a, size: 64MiB}]\n", "socket": "/nowhere"},
	} {
		p["_ansible_no_log"], p["_ansible_diff"] = true, true
		data, err := json.Marshal(p)
		must(t, err)
		out, err := json.Marshal(Run(t.Context(), data))
		must(t, err)
		if strings.Contains(string(out), "TOPSECRET") || strings.Contains(string(out), "invocation") || !strings.Contains(string(out), `"failed":true`) {
			t.Errorf("%v: %s", p, out)
		}
	}
}

// TestMain's protocol: one object, an exit code, and never the parameters' content in an error about them.
func TestProtocol(t *testing.T) {
	dir := t.TempDir()
	file := func(text string) string {
		f := filepath.Join(dir, "args")
		must(t, os.WriteFile(f, []byte(text), 0o600))
		return f
	}
	tests := []struct {
		name string
		args []string
		code int
		want string
	}{
		{"no file", nil, 2, ""},
		{"a flag", []string{"--help"}, 2, ""},
		{"version", []string{"--version"}, 0, "colo_vm test"},
		{"a missing file", []string{filepath.Join(dir, "none")}, 1, `"failed":true`},
		{"not JSON", []string{file("name=web TOPSECRET")}, 1, "no JSON object"},
	}
	for _, x := range tests {
		var out, errs bytes.Buffer
		if code := Main(x.args, "test", &out, &errs); code != x.code || !strings.Contains(out.String(), x.want) || strings.Contains(out.String(), "TOPSECRET") {
			t.Errorf("%s: %d, %s%s", x.name, code, out.String(), errs.String())
		}
		if x.code == 1 && !json.Valid(out.Bytes()) {
			t.Errorf("%s: not JSON: %s", x.name, out.String())
		}
	}
}

// The documentation that ansible-doc shows has the parameters that there are, and no others.
func TestDocumentation(t *testing.T) {
	doc := readDocumentation(t)
	var names []string
	for _, p := range params {
		names = append(names, p.name)
		o, ok := doc.Documentation.Options[p.name]
		if !ok || o.Type == "" || o.Description == nil {
			t.Errorf("%s: %+v", p.name, o)
		}
	}
	for name := range doc.Documentation.Options {
		if !slices.Contains(names, name) {
			t.Errorf("%s is documented, and is no parameter", name)
		}
	}
	var choices []string
	for _, s := range states {
		choices = append(choices, string(s))
	}
	if got := doc.Documentation.Options["state"].Choices; !slices.Equal(got, choices) {
		t.Errorf("states: %v, documented %v", choices, got)
	}
	data, err := json.Marshal(&Reply{Plan: []PlanReport{{}}, Operations: []OperationReport{{}}, Msg: "x", RC: 1, VM: "x", Reason: "x", States: map[string]string{"a": "b"}})
	must(t, err)
	var fields map[string]any
	must(t, json.Unmarshal(data, &fields))
	for f := range fields {
		if f != "changed" && doc.Return[f] == nil {
			t.Errorf("the reply's %s is not documented", f)
		}
	}
	for f := range doc.Return {
		if _, ok := fields[f]; !ok {
			t.Errorf("%s is documented, and is not in a reply", f)
		}
	}
}

// documentation is the file beside the module.
type documentation struct {
	Documentation struct {
		Options map[string]struct {
			Type        string   `yaml:"type"`
			Description any      `yaml:"description"`
			Choices     []string `yaml:"choices"`
		} `yaml:"options"`
	} `yaml:"DOCUMENTATION"`
	Return map[string]any `yaml:"RETURN"`
}

func readDocumentation(t *testing.T) documentation {
	t.Helper()
	data, err := os.ReadFile("../../examples/ansible/plugins/modules/colo_vm.yml")
	must(t, err)
	var doc documentation
	must(t, yaml.Unmarshal(data, &doc))
	return doc
}
