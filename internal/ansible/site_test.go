package ansible

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/api"
	"github.com/coloctl/coloctl/colo/api/pki"
	"github.com/coloctl/coloctl/colo/config"
	"github.com/coloctl/coloctl/internal/colotest"
	"github.com/coloctl/coloctl/internal/daemon"
	"github.com/coloctl/coloctl/internal/lab"
	"github.com/coloctl/coloctl/state"
)

// Variables that make this program something else than its tests.
const (
	siteVariable   = "COLO_VM_TEST_SITE"   // real daemons, but for QEMU: a witness and the nodes whose files are named
	moduleVariable = "COLO_VM_TEST_MODULE" // the module
)

func TestMain(m *testing.M) {
	lab.Main()
	switch {
	case os.Getenv(siteVariable) != "":
		os.Exit(runDaemons(strings.Split(os.Getenv(siteVariable), ":")))
	case os.Getenv(moduleVariable) != "":
		os.Exit(Main(os.Args[1:], "test", os.Stdout, os.Stderr))
	}
	code := m.Run()
	if builtIn != "" {
		_ = os.RemoveAll(builtIn)
	}
	os.Exit(code)
}

// runDaemons runs a witness and nodes in one process: copies without QEMU meet in memory.
func runDaemons(files []string) int {
	w := colotest.NewWorld()
	codes := make([]int, len(files))
	var wg sync.WaitGroup
	for i, f := range files {
		p := daemon.Program{Name: "colod", Version: "test", Launcher: func(*config.Config) colo.Launcher { return colotest.NewLauncher(w) }}
		verb := "run"
		if strings.HasSuffix(f, "witness.yaml") {
			verb = "witness"
		}
		ready := make(chan struct{})
		once := sync.OnceFunc(func() { close(ready) })
		p.Stderr = writer(func(line []byte) (int, error) {
			if bytes.Contains(line, []byte("msg=ready")) {
				once()
			}
			return os.Stderr.Write(line)
		})
		wg.Go(func() {
			defer once()
			if codes[i] = p.Main([]string{verb, "--config", f}); codes[i] != 0 {
				_ = syscall.Kill(os.Getpid(), syscall.SIGTERM) // the others
			}
		})
		<-ready // the witness first: nodes that miss it look for it again after a while only
	}
	wg.Wait()
	for _, c := range codes {
		if c != 0 {
			return c
		}
	}
	return 0
}

type writer func([]byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// site is two nodes and a witness on this machine.
type site struct {
	t   testing.TB
	dir string
	etc string // of each host, below its folder
	net byte
	cmd *exec.Cmd
	log bytes.Buffer
}

func newSite(t testing.TB) *site {
	dir, err := os.MkdirTemp("", "cv") // short: it holds unix sockets
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return &site{t: t, dir: dir, net: byte(os.Getpid()%250 + 1)}
}

func (s *site) path(elem ...string) string { return filepath.Join(append([]string{s.dir}, elem...)...) }

func (s *site) socket(node string) string { return s.path(node, "run", "api.sock") }

func (s *site) link(i int) string { return fmt.Sprintf("127.21.%d.%d", s.net, i) }

func freePort(t testing.TB) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

// configure writes what the roles of the collection would.
func (s *site) configure() {
	t := s.t
	ca := s.path("ca")
	must(t, pki.InitCA(ca, pki.AuthorityOptions{}))
	for _, id := range []pki.Identity{{Role: pki.Node, Name: "n1"}, {Role: pki.Node, Name: "n2"}, {Role: pki.Witness, Name: "w1"}, {Role: pki.Admin, Name: "alice"}} {
		must(t, os.MkdirAll(s.path(id.Name, "disks"), 0o700))
		_, err := pki.Issue(ca, pki.IssueOptions{Identity: id, Out: s.path(id.Name)})
		must(t, err)
	}
	must(t, config.WriteKey(s.path("n1", "hb.key")))
	key, err := os.ReadFile(s.path("n1", "hb.key"))
	must(t, err)
	must(t, os.WriteFile(s.path("n2", "hb.key"), key, 0o600))
	witness, ports := freePort(t), map[string]string{"n1": freePort(t), "n2": freePort(t)}
	must(t, os.WriteFile(s.path("w1", "witness.yaml"), fmt.Appendf(nil,
		"name: w1\nstate: witness.db\nlisten: [\"127.0.0.1:%s\"]\nhost-id: third\ntls: {identity: w1.pem, trust: ca.crt}\n", witness), 0o600))
	for i, name := range []string{"n1", "n2"} {
		other := []string{"n2", "n1"}[i]
		must(t, os.WriteFile(s.path(name, "colod.yaml"), fmt.Appendf(nil, `node: %[1]s
state-dir: .
run-dir: run
host-id: host-%[1]s
links: [{name: link0, address: %[2]s}]
peers:
  - name: %[3]s
    api: ["127.0.0.1:%[4]s"]
    links: [{name: link0, address: %[5]s}]
heartbeat: {key-file: hb.key, port: 17790, interval: 200ms, timeout: 5s}
recovery: {hold-down: 1s}
arbiter: {kind: witness, witnesses: [{name: w1, address: "127.0.0.1:%[6]s"}]}
api: {listen: ["127.0.0.1:%[7]s"]}
tls: {identity: %[1]s.pem, trust: ca.crt}
`, name, s.link(i+1), other, ports[other], s.link(2-i), witness, ports[name]), 0o600))
		must(t, os.WriteFile(s.path(name, "address"), []byte("127.0.0.1:"+ports[name]), 0o600))
	}
}

// start starts the daemons and waits until the nodes hear each other; with one node's name only that one's, and the witness.
func (s *site) start(only ...string) {
	t := s.t
	nodes := []string{"n1", "n2"}
	if len(only) > 0 {
		nodes = only
	}
	files := []string{s.path("w1", s.etc, "witness.yaml")}
	for _, n := range nodes {
		files = append(files, s.path(n, s.etc, "colod.yaml"))
	}
	s.cmd = exec.Command("/proc/self/exe")
	s.cmd.Env = append(os.Environ(), siteVariable+"="+strings.Join(files, ":"))
	s.cmd.Stdout, s.cmd.Stderr = &s.log, &s.log
	must(t, s.cmd.Start())
	t.Cleanup(func() {
		_ = s.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		if err := s.cmd.Wait(); err != nil || t.Failed() {
			t.Logf("the daemons: %v\n%s", err, s.log.String())
		}
	})
	for _, n := range nodes {
		s.await(n+" hears its peer and the witness", func() bool {
			h, err := s.client(n).Health(t.Context())
			return err == nil && (h.OK || len(only) > 0)
		})
	}
}

func (s *site) await(what string, ok func() bool) {
	s.t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			s.t.Fatalf("not within 30s: %s\n%s", what, s.log.String())
		}
	}
}

func (s *site) client(node string) *api.Client {
	c, err := api.NewClient(api.ClientOptions{Socket: s.socket(node)})
	must(s.t, err)
	s.t.Cleanup(c.Close)
	return c
}

// history is what both nodes remember of having been asked for and gone through.
func (s *site) history() []string {
	s.t.Helper()
	var out []string
	for _, n := range []string{"n1", "n2"} {
		all, err := s.client(n).History(context.Background(), "", state.Query{})
		must(s.t, err)
		for _, e := range all {
			if e.VM != "" {
				out = append(out, fmt.Sprintf("%s %s %s: %s", n, e.VM, e.Kind, e.Text))
			}
		}
	}
	return out
}

// task runs the module with parameters, which may be Ansible's own.
func (s *site) task(params map[string]any) *Reply {
	s.t.Helper()
	if _, ok := params["socket"]; !ok && params["nodes"] == nil {
		params["socket"] = s.socket("n1")
	}
	data, err := json.Marshal(params)
	must(s.t, err)
	return Run(s.t.Context(), data)
}

const webSpec = "name: web\nmemory: 256MiB\ndisks: [{name: vda, file: web.raw, size: 64MiB}]\n"
