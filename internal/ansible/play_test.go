package ansible

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// needAnsible skips a test where Ansible is not installed, and fails it in CI.
func needAnsible(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("short")
	}
	if _, err := exec.LookPath("ansible-playbook"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("ansible-core is not installed: it is in what .ci/run installs")
		}
		t.Skip("ansible-core is not installed")
	}
}

// builtIn is the folder that programs has made; the end of the tests removes it.
var builtIn string

// programs builds coloctl, colod and colo_vm once, and returns their folder.
var programs = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "cvbin")
	if err != nil {
		return "", err
	}
	builtIn = dir
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", dir+"/", "./cmd/coloctl", "./cmd/colod", "./cmd/colo_vm")
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return dir, fmt.Errorf("%w: %s", err, out)
	}
	return dir, nil
})

// ansible is a control machine with the collection.
type ansible struct {
	t   testing.TB
	dir string
	bin string
	env []string
}

func newAnsible(t testing.TB) *ansible {
	bin, err := programs()
	must(t, err)
	a := &ansible{t: t, dir: t.TempDir(), bin: bin}
	a.environment()
	a.write("ansible.cfg", "[defaults]\n")
	src := filepath.Join(a.dir, "ansible_collections", "coloctl", "coloctl")
	must(t, copyTree("../../examples/ansible", src))
	module, err := os.ReadFile(filepath.Join(bin, "colo_vm"))
	must(t, err)
	must(t, os.WriteFile(filepath.Join(src, "plugins", "modules", "colo_vm"), module, 0o755))
	return a
}

// pack replaces the collection by what is built from it and installed.
func (a *ansible) pack() {
	a.t.Helper()
	src := filepath.Join(a.dir, "src")
	must(a.t, os.Rename(filepath.Join(a.dir, "ansible_collections"), src))
	a.run("ansible-galaxy", "collection", "build", "--output-path", a.dir, filepath.Join(src, "coloctl", "coloctl"))
	a.run("ansible-galaxy", "collection", "install", "--offline", "-p", a.dir, filepath.Join(a.dir, "coloctl-coloctl-0.1.0.tar.gz"))
}

func (a *ansible) environment() {
	a.env = append(os.Environ(), "HOME="+a.dir, "ANSIBLE_HOME="+a.dir+"/.ansible", "ANSIBLE_COLLECTIONS_PATH="+a.dir, "ANSIBLE_NOCOLOR=1", "ANSIBLE_PIPELINING=1", "ANSIBLE_DEPRECATION_WARNINGS=0",
		"ANSIBLE_LOCALHOST_WARNING=0", "ANSIBLE_RETRY_FILES_ENABLED=0", "ANSIBLE_CONFIG="+a.dir+"/ansible.cfg", "PATH="+a.bin+string(os.PathListSeparator)+os.Getenv("PATH"))
}

// copyTree copies files; links become what they lead to.
func copyTree(from, to string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.MkdirAll(filepath.Join(to, rel), 0o755)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, rel), data, 0o644)
	})
}

// try runs one of Ansible's programs.
func (a *ansible) try(argv ...string) (string, error) {
	a.t.Helper()
	begun := time.Now()
	cmd := exec.CommandContext(a.t.Context(), argv[0], argv[1:]...)
	cmd.Dir, cmd.Env = a.dir, a.env
	out, err := cmd.CombinedOutput()
	a.t.Logf("%.1f s: %s", time.Since(begun).Seconds(), strings.Join(argv, " "))
	return string(out), err
}

func (a *ansible) run(argv ...string) string {
	a.t.Helper()
	out, err := a.try(argv...)
	if err != nil {
		a.t.Fatalf("%v: %v\n%s", argv, err, out)
	}
	return out
}

var recap = regexp.MustCompile(`(?m)^(\S+) +: ok=(\d+) +changed=(\d+) +unreachable=(\d+) +failed=(\d+)`)

// play runs a playbook and returns its output, and how many tasks have changed something on all hosts together.
func (a *ansible) play(args ...string) (out string, changed int) {
	a.t.Helper()
	out = a.run(append([]string{"ansible-playbook", "-i", "hosts.yml"}, args...)...)
	found := recap.FindAllStringSubmatch(out, -1)
	if len(found) == 0 {
		a.t.Fatalf("no recap:\n%s", out)
	}
	for _, f := range found {
		var n int
		_, _ = fmt.Sscan(f[3], &n)
		changed += n
	}
	return out, changed
}

func (a *ansible) write(name, text string) {
	a.t.Helper()
	must(a.t, os.WriteFile(filepath.Join(a.dir, name), []byte(text), 0o600))
}

// patchTasks stand in for a distribution's: the host's software is a file with a version.
func (a *ansible) patchTasks(reboot string) {
	a.write("needed.yml", `- name: Which version is here?
  ansible.builtin.command: {argv: [cat, "{{ host_dir }}/version"]}
  changed_when: false
  check_mode: false
  register: here
- ansible.builtin.set_fact: {coloctl_patch_needed: "{{ here.stdout != new_version }}"}
`)
	a.write("patch.yml", `- name: Patch
  ansible.builtin.copy: {content: "{{ new_version }}", dest: "{{ host_dir }}/version", mode: "0600"}
`+reboot)
}

// TestPlaybooks goes from nothing to a patched pair by the collection's playbooks, with real daemons that have no QEMU.
func TestPlaybooks(t *testing.T) {
	needAnsible(t)
	s, a := newSite(t), newAnsible(t)
	s.etc = "etc"
	a.pack()
	ports := map[string]string{"n1": freePort(t), "n2": freePort(t), "w1": freePort(t)}
	var hosts bytes.Buffer
	fmt.Fprintf(&hosts, "all:\n  vars:\n    ansible_connection: local\n    ansible_python_interpreter: /usr/bin/python3\n    coloctl_service: false\n    coloctl_check: false\n"+
		"    coloctl_group: ''\n    coloctl_accel: tcg\n    coloctl_bridges: []\n    coloctl_pki_dir: %[1]s/ca\n    coloctl_prefix: %[2]s\n    coloctl_command: %[2]s/coloctl\n"+
		"    host_dir: '%[1]s/{{ inventory_hostname }}'\n    coloctl_etc: '{{ host_dir }}/etc'\n    coloctl_state_dir: '{{ host_dir }}/state'\n    coloctl_run_dir: '{{ host_dir }}/run'\n"+
		"    coloctl_environment: {COLOCTL_CONTEXTS: '{{ host_dir }}/contexts.yaml'}\n    coloctl_owner: '{{ lookup(\"pipe\", \"id -un\") }}'\n"+
		"    coloctl_socket: '{{ host_dir }}/run/api.sock'\n    new_version: '2'\n    coloctl_patch_needed_tasks: %[3]s/needed.yml\n    coloctl_patch_tasks: %[3]s/patch.yml\n"+
		"    coloctl_vms:\n      - {name: web, state: protected, timeout: 60, spec: {memory: 256MiB, disks: [{name: vda, file: web.raw, size: 64MiB}]}}\n"+
		"      - {name: db, state: protected, timeout: 60, spec: {memory: 256MiB, disks: [{name: vda, file: db.raw, size: 64MiB}]}}\n  children:\n    coloctl_nodes:\n      hosts:\n",
		s.dir, a.bin, a.dir)
	for i, n := range []string{"n1", "n2"} {
		fmt.Fprintf(&hosts, "        %s:\n          coloctl_port: %s\n          coloctl_links: [{name: link0, address: %s}]\n          coloctl_addresses: [127.0.0.1]\n"+
			"          coloctl_config: {host-id: host-%[1]s, heartbeat: {port: 17791, interval: 200ms, timeout: 5s}, recovery: {hold-down: 1s}}\n", n, ports[n], s.link(i+1))
		must(t, os.MkdirAll(s.path(n), 0o700))
		must(t, os.WriteFile(s.path(n, "version"), []byte("1"), 0o600))
		must(t, os.WriteFile(s.path(n, "contexts.yaml"), []byte("current: here\ncontexts: [{name: here, socket: "+s.socket(n)+"}]\n"), 0o600))
	}
	fmt.Fprintf(&hosts, "    coloctl_witnesses:\n      hosts:\n        w1: {coloctl_witness_address: 127.0.0.1, coloctl_witness_port: %s, coloctl_witness_config: {host-id: third}}\n", ports["w1"])
	a.write("hosts.yml", hosts.String())
	a.patchTasks("")
	a.write("setup.yml", "- hosts: coloctl_witnesses:coloctl_nodes\n  gather_facts: false\n  roles: [coloctl.coloctl.keys]\n"+
		"- hosts: coloctl_witnesses\n  gather_facts: false\n  roles: [coloctl.coloctl.witness]\n- hosts: coloctl_nodes\n  gather_facts: false\n  roles: [coloctl.coloctl.node]\n")

	// Keys, witness and nodes.
	a.play("setup.yml", "--check")
	if entries, err := filepath.Glob(s.path("*", "*")); err != nil || len(entries) != 4 {
		t.Errorf("--check made: %v, %v", entries, err)
	}
	out, changed := a.play("setup.yml", "--diff", "-vvv")
	if changed == 0 {
		t.Error("nothing was set up")
	}
	for _, f := range []string{"ca/ca.pem", "ca/heartbeat.key", "n1/etc/n1.pem", "n2/etc/n2.pem", "n1/etc/heartbeat.key", "w1/etc/w1.pem"} {
		data, err := os.ReadFile(s.path(f))
		must(t, err)
		for line := range strings.Lines(string(data)) {
			if line = strings.TrimSpace(line); len(line) >= 32 && strings.Contains(out, line) {
				t.Errorf("a line of %s is in Ansible's output", f)
			}
		}
		if st, err := os.Stat(s.path(f)); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", f, st.Mode(), err)
		}
	}
	if out, changed = a.play("setup.yml"); changed != 0 {
		t.Errorf("the second setup changed %d:\n%s", changed, out)
	}
	s.start()

	// VMs.
	out, changed = a.play("coloctl.coloctl.vms", "--check", "--diff")
	if changed == 0 || !strings.Contains(out, "+state: protected") || len(s.history()) != 0 {
		t.Errorf("--check: changed %d, history %v:\n%s", changed, s.history(), out)
	}
	if out, changed = a.play("coloctl.coloctl.vms", "--diff"); changed == 0 || !strings.Contains(out, "+  memory: 256MiB") {
		t.Errorf("changed %d:\n%s", changed, out)
	}
	if out, changed = a.play("coloctl.coloctl.vms"); changed != 0 {
		t.Errorf("the second run changed %d:\n%s", changed, out)
	}

	// Wrong arguments.
	was := s.history()
	for args, want := range map[string]string{
		"name=web stat=started":     "stat: unknown parameter: expected one of name, state, spec",
		"name=web state=failover":   "expected present or absent or started",
		"name=web state=absent":     "web is protected on n1, and is not removed while it runs",
		"name=web state=started x=": "x: unknown parameter",
	} {
		out, err := a.try("ansible", "-i", "hosts.yml", "n1", "-m", "coloctl.coloctl.colo_vm", "-a", args+" socket="+s.socket("n1"))
		if err == nil || !strings.Contains(out, "FAILED!") || !strings.Contains(out, want) {
			t.Errorf("%s: %v\n%s", args, err, out)
		}
	}
	if now := s.history(); !slices.Equal(was, now) {
		t.Errorf("before:\n%s\nafter wrong arguments:\n%s", strings.Join(was, "\n"), strings.Join(now, "\n"))
	}
	if out := a.run("ansible-doc", "-t", "module", "coloctl.coloctl.colo_vm"); !strings.Contains(out, "switched-over") || !strings.Contains(out, "EXAMPLES:") {
		t.Errorf("ansible-doc:\n%s", out)
	}

	// Patches of a pair with two VMs. TestRollingPatch is about more.
	out, changed = a.play("coloctl.coloctl.rolling_patch")
	versions := ""
	for _, n := range []string{"n1", "n2"} {
		data, err := os.ReadFile(s.path(n, "version"))
		must(t, err)
		versions += string(data)
	}
	if changed == 0 || versions != "22" {
		t.Errorf("changed %d, versions %s:\n%s", changed, versions, out)
	}
	for _, vm := range []string{"web", "db"} {
		r := s.task(m{"name": vm, "state": "present"})
		if !r.Protected {
			t.Errorf("%s at the end: %+v", vm, r)
		}
	}
}
