package ansible

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coloctl/coloctl/colo/config"
	"github.com/coloctl/coloctl/internal/guest/service"
	"github.com/coloctl/coloctl/internal/lab"
	"github.com/coloctl/coloctl/internal/qemutest"
	"github.com/coloctl/coloctl/state"
)

const controlVariable = "COLO_VM_TEST_CONTROL" // the control machine's folder, for a test inside the lab

// TestRollingPatch patches both hosts of a lab, real QEMU and daemons, each with a loss of its power as its reboot, while a client writes: nothing is lost. A
// check before changes nothing, and neither does a second run.
func TestRollingPatch(t *testing.T) {
	if lab.Inside() {
		rollingPatch(t)
		return
	}
	needAnsible(t)
	qemutest.Find(t)
	a := newAnsible(t)
	must(t, os.Setenv(lab.DaemonVariable, filepath.Join(a.bin, "colod")))
	assets, err := lab.PrepareAssets(t.Context(), io.Discard)
	must(t, err)
	must(t, assets.FindDaemon(t.Context(), lab.Options{Arbiter: config.ArbiterWitness}, nil))
	env, err := assets.Env()
	must(t, err)
	folder, err := lab.MakeFolder("")
	must(t, err)
	defer folder.Remove()
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	must(t, err)
	defer out.Close()
	limit := 9 * time.Minute
	if end, ok := t.Deadline(); ok {
		limit = time.Until(end) - 10*time.Second
	}
	err = lab.Start(t.Context(), folder, lab.StartOptions{Args: []string{"-test.v", "-test.timeout=" + limit.String(), "-test.run=^" + t.Name() + "$"},
		Env: []string{env, controlVariable + "=" + a.dir + ":" + a.bin}, Stdout: out, Stderr: out})
	text, readErr := os.ReadFile(out.Name())
	must(t, readErr)
	t.Logf("%s", text)
	if errors.Is(err, lab.ErrPrecondition) && os.Getenv("CI") != "true" {
		t.Skip(err)
	}
	must(t, err)
}

func rollingPatch(t *testing.T) {
	dir, bin, _ := strings.Cut(os.Getenv(controlVariable), ":")
	a := &ansible{t: t, dir: dir, bin: bin}
	a.environment()
	ctx := t.Context()
	assets, err := lab.InheritedAssets()
	must(t, err)
	l, err := lab.New(ctx, lab.Options{Assets: assets, HoldDown: time.Second, Dir: lab.Root})
	must(t, err)
	defer func() { must(t, l.Close()) }()
	must(t, l.Boot(ctx, "n1"))
	data, err := json.Marshal(m{"name": lab.VM, "state": Protected, "socket": lab.Path("n1", "run", "api.sock"), "timeout": "5m"})
	must(t, err)
	if r := Run(ctx, data); r.Failed || !r.Protected {
		t.Fatalf("%+v", r)
	}

	var rebooted []string
	control := filepath.Join(dir, "reboot.sock")
	must(t, serveReboots(t, control, func(node string) error {
		n := l.Node(node)
		if n == nil {
			return fmt.Errorf("no node %q", node)
		}
		rebooted = append(rebooted, node)
		return errors.Join(n.PowerOff(ctx), n.PowerOn(ctx))
	}))
	for _, n := range lab.NodeNames {
		must(t, os.MkdirAll(filepath.Join(dir, n), 0o700))
		must(t, os.WriteFile(filepath.Join(dir, n, "version"), []byte("1"), 0o600))
	}
	a.write("hosts.yml", fmt.Sprintf(`all:
  vars:
    ansible_connection: local
    ansible_python_interpreter: /usr/bin/python3
    coloctl_prefix: %[1]s
    coloctl_socket: %[3]s/{{ inventory_hostname }}/run/api.sock
    coloctl_environment: {COLOCTL_CONTEXTS: %[3]s/%[4]s, COLOCTL_CONTEXT: "{{ inventory_hostname }}"}
    coloctl_patch_needed_tasks: %[2]s/needed.yml
    coloctl_patch_tasks: %[2]s/patch.yml
    coloctl_vms: [{name: vm, state: protected}]
    host_dir: "%[2]s/{{ inventory_hostname }}"
    new_version: "2"
  children: {coloctl_nodes: {hosts: {n1: , n2: }}}
`, bin, dir, lab.Root, lab.ContextsName))
	a.patchTasks(fmt.Sprintf(`- name: Boot anew
  ansible.builtin.uri: {url: "http://lab/{{ inventory_hostname }}", unix_socket: %s, method: POST, timeout: 60}
  changed_when: true
`, control))

	writes := lab.NewCounterProbe(l.Dial, net.JoinHostPort(lab.GuestAddr.String(), fmt.Sprint(service.PortHTTP)), "patch")
	wctx, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { writes.Run(wctx) })
	defer func() { stop(); wg.Wait() }()

	was := labHistory(t, l)
	for !slices.ContainsFunc(was, func(e string) bool { return strings.HasPrefix(e, "n1 state: protected") }) { // it is written behind the events
		select {
		case <-ctx.Done():
			t.Fatal("the history lacks what the VM is", was)
		case <-time.After(20 * time.Millisecond):
		}
		was = labHistory(t, l)
	}
	out, changed := a.play("coloctl.coloctl.rolling_patch", "--check", "--diff")
	if changed == 0 {
		t.Errorf("--check would change nothing:\n%s", out)
	}
	if now := labHistory(t, l); !slices.Equal(was, now) || len(rebooted) > 0 {
		t.Errorf("before:\n%s\nafter --check:\n%s", strings.Join(was, "\n"), strings.Join(now, "\n"))
	}
	before := writes.Acked()
	out, changed = a.play("coloctl.coloctl.rolling_patch")
	t.Logf("%s", out)
	if changed == 0 || !slices.Equal(rebooted, []string{"n1", "n2"}) {
		t.Errorf("changed %d, booted anew %v", changed, rebooted)
	}
	during := writes.Acked() - before
	if out, changed = a.play("coloctl.coloctl.rolling_patch"); changed != 0 || len(rebooted) != 2 {
		t.Errorf("the second run changed %d:\n%s", changed, out)
	}
	for _, n := range lab.NodeNames {
		s, err := l.Node(n).Status(ctx)
		if err != nil || !s.Verdict.Protected {
			t.Errorf("at the end %s is %s: %+v, %v", n, s.State, s.Verdict, err)
		}
	}
	stop()
	wg.Wait()
	tally, err := writes.Verify(ctx)
	voices, verr := l.BrokenVoices()
	t.Logf("writes: %d acknowledged, %d of them while the hosts were patched, %d lost, %d twice; frames that broke the rule of one voice: %d",
		tally.Acked, during, tally.Lost, tally.Duplicated, len(voices))
	if err != nil || during == 0 || tally.Lost != 0 || tally.Duplicated != 0 {
		t.Errorf("writes: %+v, %d while the hosts were patched, %v", tally, during, err)
	}
	if verr != nil || len(voices) > 0 {
		t.Errorf("one voice: %v, %v", voices, verr)
	}
	must(t, l.Err())
}

// labHistory is all that both daemons remember of the VM.
func labHistory(t *testing.T, l *lab.Lab) []string {
	t.Helper()
	var out []string
	for _, n := range lab.NodeNames {
		all, err := l.Node(n).Client.History(t.Context(), lab.VM, state.Query{})
		must(t, err)
		for _, e := range all {
			out = append(out, fmt.Sprintf("%s %s: %s", n, e.Kind, e.Text))
		}
	}
	return out
}

// serveReboots is the power button of the hosts.
func serveReboots(t *testing.T, path string, reboot func(node string) error) error {
	ln, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	s := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := reboot(strings.Trim(r.URL.Path, "/")); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})}
	done := make(chan error, 1)
	go func() { done <- s.Serve(ln) }()
	t.Cleanup(func() { _ = s.Close(); <-done })
	return nil
}
