package daemon

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/api"
	"github.com/coloctl/coloctl/colo/api/pki"
	"github.com/coloctl/coloctl/colo/config"
	"github.com/coloctl/coloctl/internal/colotest"
)

func TestMain(m *testing.M) {
	if os.Getenv("COLOD_TEST") != "" { // a child that is a real daemon, but for QEMU
		w := colotest.NewWorld()
		p := Program{Name: "colod", Version: "test", Launcher: func(*config.Config) colo.Launcher { return colotest.NewLauncher(w) }}
		os.Exit(p.Main(os.Args[1:]))
	}
	goleak.VerifyTestMain(m)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// site is the files of two nodes and a witness.
type site struct {
	t     testing.TB
	dir   string
	net   byte
	world *colotest.World
	ports map[string]string // of the daemons, by name
	// launcher makes a node's launcher; a new one in world when nil.
	launcher func(*config.Config) colo.Launcher
}

func newSite(t testing.TB) *site {
	dir, err := os.MkdirTemp("", "cd") // short: it holds unix sockets
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	s := &site{t: t, dir: dir, net: byte(os.Getpid()%250 + 1), world: colotest.NewWorld(), ports: map[string]string{}}
	ca := s.path("ca")
	must(t, pki.InitCA(ca, pki.AuthorityOptions{}))
	for _, id := range []pki.Identity{{Role: pki.Node, Name: "n1"}, {Role: pki.Node, Name: "n2"}, {Role: pki.Witness, Name: "w1"}, {Role: pki.Admin, Name: "alice"}} {
		must(t, os.MkdirAll(s.path(id.Name, "disks"), 0o700))
		_, err := pki.Issue(ca, pki.IssueOptions{Identity: id, Out: s.path(id.Name)})
		must(t, err)
		s.ports[id.Name] = freePort(t)
	}
	must(t, config.WriteKey(s.path("n1", "hb.key")))
	key, err := os.ReadFile(s.path("n1", "hb.key"))
	must(t, err)
	must(t, os.WriteFile(s.path("n2", "hb.key"), key, 0o600))
	s.write("w1", fmt.Sprintf("name: w1\nstate: witness.db\nlisten: [\"127.0.0.1:%s\"]\nhost-id: third\ntls: {identity: w1.pem, trust: ca.crt}\nlog: {format: json}\n", s.ports["w1"]))
	for i, name := range []string{"n1", "n2"} {
		s.write(name, s.config(name, i))
	}
	return s
}

func (s *site) config(name string, i int) string {
	other := []string{"n2", "n1"}[i]
	return fmt.Sprintf(`node: %[1]s
state-dir: .
run-dir: run
host-id: host-%[1]s
links: [{name: link0, address: 127.20.%[2]d.%[3]d}]
peers:
  - name: %[4]s
    api: ["127.0.0.1:%[5]s"]
    links: [{name: link0, address: 127.20.%[2]d.%[6]d}]
heartbeat: {key-file: hb.key, port: 17789, interval: 200ms, timeout: 5s}
recovery: {hold-down: 1s}
arbiter: {kind: witness, witnesses: [{name: w1, address: "127.0.0.1:%[7]s"}]}
api: {listen: ["127.0.0.1:%[8]s"]}
tls: {identity: %[1]s.pem, trust: ca.crt}
log: {level: info, format: json}
`, name, s.net, i+1, other, s.ports[other], 2-i, s.ports["w1"], s.ports[name])
}

func (s *site) path(elem ...string) string {
	return filepath.Join(append([]string{s.dir}, elem...)...)
}

func (s *site) file(name string) string { return s.path(name, "config.yaml") }

func (s *site) write(name, text string) {
	s.t.Helper()
	must(s.t, os.WriteFile(s.file(name), []byte(text), 0o600))
}

// change replaces a part of a node's file.
func (s *site) change(name, old, text string) {
	s.t.Helper()
	data, err := os.ReadFile(s.file(name))
	must(s.t, err)
	out := strings.Replace(string(data), old, text, 1)
	if out == string(data) {
		s.t.Fatalf("%q is not in the file", old)
	}
	s.write(name, out)
}

func freePort(t testing.TB) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

// output is a log that can be waited for.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
	ch  chan struct{}
}

func newOutput() *output { return &output{ch: make(chan struct{})} }

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	close(o.ch)
	o.ch = make(chan struct{})
	return o.buf.Write(p)
}

func (o *output) text() (string, chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String(), o.ch
}

// await waits until the log has said something.
func (o *output) await(t testing.TB, want string) string {
	t.Helper()
	end := time.After(30 * time.Second)
	for {
		text, changed := o.text()
		if strings.Contains(text, want) {
			return text
		}
		select {
		case <-changed:
		case <-end:
			t.Fatalf("%q was not logged:\n%s", want, text)
		}
	}
}

// inside is a daemon in this process.
type inside struct {
	log  *output
	hup  chan os.Signal
	stop func() error
}

func (s *site) run(name string) *inside {
	d := &inside{log: newOutput(), hup: make(chan os.Signal, 1)}
	p := Program{Name: "colod", Version: "test", Stdout: io.Discard, Stderr: d.log, Launcher: s.launcher}
	if p.Launcher == nil {
		p.Launcher = func(*config.Config) colo.Launcher { return colotest.NewLauncher(s.world) }
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		if name == "w1" {
			done <- p.runWitness(ctx, s.file(name), d.hup)
			return
		}
		done <- p.runNode(ctx, s.file(name), d.hup)
	}()
	d.stop = sync.OnceValue(func() error { cancel(); return <-done })
	s.t.Cleanup(func() {
		if err := d.stop(); err != nil {
			s.t.Errorf("%s: %v", name, err)
		}
	})
	d.log.await(s.t, `"msg":"ready"`)
	return d
}

func (s *site) client(node string) *api.Client {
	creds, err := pki.Load(pki.Files{Identity: s.path("alice", "alice.pem"), Trust: s.path("alice", "ca.crt")})
	must(s.t, err)
	c, err := api.NewClient(api.ClientOptions{Node: node, Addresses: []string{"127.0.0.1:" + s.ports[node]}, Credentials: creds})
	must(s.t, err)
	s.t.Cleanup(c.Close)
	return c
}

const webYAML = `name: web
memory: 256MiB
disks: [{name: vda, file: web.raw, size: 64MiB}]
protection: {level: none}
`

// awaitStatus waits for a state of a VM on a node.
func awaitStatus(t testing.TB, c *api.Client, ok func(colo.Status) bool) colo.Status {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		s, err := c.Status(t.Context(), "web", false)
		if err == nil && ok(s.Status) {
			return s.Status
		}
		if time.Now().After(end) {
			t.Fatalf("still %+v, %v", s.Status, err)
		}
	}
}

// TestTwoDaemons: one node starts while its peer is not there, the peer comes later, and a VM is protected through both daemons and a witness.
func TestTwoDaemons(t *testing.T) {
	s := newSite(t)
	ctx := t.Context()
	s.run("w1")
	n1 := s.run("n1")
	c := s.client("n1")
	_, err := c.Create(ctx, api.SpecText{YAML: []byte(webYAML), File: "web.yaml"})
	must(t, err)
	op, err := c.Start(ctx, "web", api.Request{})
	must(t, err)
	if _, err := c.Wait(ctx, op.ID, nil); err != nil {
		t.Fatal("start without a peer:", err)
	}
	n1.log.await(t, "the peer's daemon can't be used")
	if h, err := c.Health(ctx); err != nil || h.OK {
		t.Errorf("health without a peer: %+v, %v", h, err)
	}
	op, err = c.Protect(ctx, "web", api.ResyncRequest{})
	must(t, err)
	if _, err := c.Wait(ctx, op.ID, nil); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("protect without a peer: %v", err)
	}
	n2 := s.run("n2")
	n1.log.await(t, "the peer's daemon answers")
	n2.log.await(t, "the peer's daemon answers")
	// It was asked for once: the daemon goes on with it by itself when the peer is there.
	awaitStatus(t, c, func(s colo.Status) bool { return s.Verdict.Protected })
	if st, err := c.Status(ctx, "web", true); err != nil || st.Other == nil || st.Other.State != colo.Secondary {
		t.Errorf("the other half: %+v %s, %v", st.Other, st.OtherError, err)
	}
	n, err := c.Node(ctx)
	if err != nil || n.Arbiter != "witness w1" || n.Peer == nil || n.Peer.Info.Name != "n2" || n.Version != "test" {
		t.Errorf("node: %+v, %v", n, err)
	}
	if h, err := c.Health(ctx); err != nil || !h.OK {
		t.Errorf("health: %+v, %v", h, err)
	}
	op, err = c.Switchover(ctx, "web", api.Request{})
	must(t, err)
	if _, err := c.Wait(ctx, op.ID, nil); err != nil {
		t.Fatal("switchover:", err)
	}
	if st := awaitStatus(t, s.client("n2"), func(s colo.Status) bool { return s.State == colo.Solo }); st.Role != "primary" {
		t.Errorf("after the switchover: %+v", st)
	}
	// The name of a peer's daemon that has moved reaches a daemon that runs.
	must(t, n2.stop())
	old := s.ports["n2"]
	s.ports["n2"] = freePort(t)
	s.change("n2", "127.0.0.1:"+old, "127.0.0.1:"+s.ports["n2"])
	s.change("n1", "127.0.0.1:"+old, "127.0.0.1:"+s.ports["n2"])
	s.run("n2")
	n1.hup <- syscall.SIGHUP
	n1.log.await(t, "the peer's daemon is asked elsewhere")
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		st, err := c.Status(ctx, "web", true)
		if err == nil && st.Other != nil {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the peer that moved: %+v, %v", st.OtherError, err)
		}
	}
}

// TestMistakes: two nodes with one name, and a peer that is not what the configuration says, are said clearly by the running daemon.
func TestMistakes(t *testing.T) {
	s := newSite(t)
	s.run("w1")
	// Somebody has copied n1's folder to the second host and changed nothing but the addresses.
	must(t, os.MkdirAll(s.path("n2", "disks"), 0o700))
	for _, f := range []string{"n1.pem", "ca.crt"} {
		data, err := os.ReadFile(s.path("n1", f))
		must(t, err)
		must(t, os.WriteFile(s.path("n2", f), data, 0o600))
	}
	s.write("n2", strings.NewReplacer("node: n2", "node: n1", "name: n1", "name: n2", "n2.pem", "n1.pem").Replace(s.config("n2", 1)))
	n1, twin := s.run("n1"), s.run("n2")
	n1.log.await(t, "n1.node.coloctl.internal, not n2.node.coloctl.internal")
	twin.log.await(t, "the peer's daemon can't be used")
	must(t, twin.stop())
	must(t, os.Remove(s.path("n2", "state.db")))
	s.write("n2", strings.Replace(s.config("n2", 1), fmt.Sprintf("127.20.%d.2}]\npeers", s.net), fmt.Sprintf("127.20.%d.3}]\npeers", s.net), 1))
	s.run("n2")
	n1.log.await(t, fmt.Sprintf("its address on link0 is 127.20.%d.3, configured is 127.20.%d.2", s.net, s.net))
	if h, err := s.client("n1").Health(t.Context()); err != nil || h.OK || !strings.Contains(fmt.Sprint(h.Items), "its address on link0") {
		t.Errorf("health: %+v, %v", h, err)
	}
}
