package daemon

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coloctl/coloctl/colo/api"
)

// process is a daemon of its own.
type process struct {
	t    *testing.T
	cmd  *exec.Cmd
	log  *output
	done chan error
}

func (s *site) spawn(t *testing.T, env []string, args ...string) *process {
	p := &process{t: t, log: newOutput(), done: make(chan error, 1)}
	p.cmd = exec.Command("/proc/self/exe", args...)
	p.cmd.Env = append(append(os.Environ(), "COLOD_TEST=1"), env...)
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	must(t, p.cmd.Start())
	go func() { p.done <- p.cmd.Wait() }()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill() // it may have ended
		<-p.done
	})
	return p
}

// end waits for the process's end and returns its exit code; -1 when it was killed.
func (p *process) end() int {
	p.t.Helper()
	select {
	case err := <-p.done:
		p.done <- err
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			return exit.ExitCode()
		}
		return 0
	case <-time.After(30 * time.Second):
		text, _ := p.log.text()
		p.t.Fatalf("it does not end:\n%s", text)
		return 0
	}
}

// manager is what the service manager is to a daemon.
type manager struct {
	t    *testing.T
	conn *net.UnixConn
	env  []string
}

func (s *site) manager(t *testing.T) *manager {
	path := s.path("notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	must(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return &manager{t, conn, []string{"NOTIFY_SOCKET=" + path, "WATCHDOG_USEC=600000"}}
}

// await waits for a message of the daemon's.
func (m *manager) await(want string) string {
	m.t.Helper()
	buf := make([]byte, 4096)
	_ = m.conn.SetReadDeadline(time.Now().Add(30 * time.Second))
	for {
		n, err := m.conn.Read(buf)
		if err != nil {
			m.t.Fatalf("%s was not said: %v", want, err)
		}
		if strings.Contains(string(buf[:n]), want) {
			return string(buf[:n])
		}
	}
}

// TestProcess takes a real process through its life as a service manager does.
func TestProcess(t *testing.T) {
	s := newSite(t)
	m := s.manager(t)
	p := s.spawn(t, m.env, "run", "--config", s.file("n1"))
	m.await("READY=1")
	m.await("WATCHDOG=1")
	m.await("WATCHDOG=1")
	c, err := api.NewClient(api.ClientOptions{Socket: s.path("n1", "run", "api.sock")})
	must(t, err)
	defer c.Close()
	_, err = c.Create(t.Context(), api.SpecText{YAML: []byte(webYAML)})
	must(t, err)

	second := s.spawn(t, nil, "--config", s.file("n1"))
	if code := second.end(); code != 1 {
		t.Errorf("a second daemon ended with %d", code)
	}
	second.log.await(t, "state file in use by process")

	// Reload: the level changes, what can't change is named, nonsense changes nothing.
	s.change("n1", "level: info", "level: debug")
	s.change("n1", "interval: 200ms", "interval: 300ms")
	must(t, p.cmd.Process.Signal(syscall.SIGHUP))
	if text := m.await("RELOADING=1"); !strings.Contains(text, "MONOTONIC_USEC=") {
		t.Errorf("reloading without its time: %q", text)
	}
	m.await("READY=1")
	p.log.await(t, `"fields":["heartbeat"]`)
	if _, err := c.Node(t.Context()); err != nil {
		t.Error(err)
	}
	p.log.await(t, `"route":"GET /v1/node"`) // logged at debug only
	s.change("n1", "level: debug", "level: loud")
	must(t, p.cmd.Process.Signal(syscall.SIGHUP))
	m.await("RELOADING=1")
	m.await("READY=1")
	p.log.await(t, "nothing was changed")
	s.change("n1", "level: loud", "level: debug")

	// Killed, it leaves a socket and a locked file behind; the next one takes them over and knows the VM.
	must(t, p.cmd.Process.Kill())
	p.end()
	p = s.spawn(t, m.env, "--config="+s.file("n1"))
	m.await("READY=1")
	vms, err := c.VMs(t.Context())
	if err != nil || len(vms) != 1 || vms[0].VM != "web" {
		t.Errorf("after the kill: %+v, %v", vms, err)
	}
	must(t, p.cmd.Process.Signal(syscall.SIGTERM))
	m.await("STOPPING=1")
	if code := p.end(); code != 0 {
		text, _ := p.log.text()
		t.Errorf("SIGTERM ended it with %d:\n%s", code, text)
	}
	if _, err := os.Stat(s.path("n1", "run", "api.sock")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its socket is still there: %v", err)
	}
}

// TestRefusals: what is wrong is said, and the exit code tells the service manager whether to try again.
func TestRefusals(t *testing.T) {
	s := newSite(t)
	for _, x := range []struct {
		name   string
		change func()
		args   []string
		code   int
		want   string
	}{
		{"version", nil, []string{"version"}, 0, "colod test"},
		{"version as a flag", nil, []string{"--version"}, 0, "colod test"},
		{"help", nil, []string{"--help"}, 0, "usage: colod"},
		{"no such command", nil, []string{"start"}, 2, `unknown command "start"`},
		{"no such flag", nil, []string{"run", "--conf", "x"}, 2, "usage: colod"},
		{"an operand", nil, []string{"run", s.file("n1")}, 2, "unexpected"},
		{"no file", nil, []string{"run", "--config", s.path("none.yaml")}, 1, "no such file"},
		{"bad field", func() { s.change("n1", "arbiter: {kind: witness", "arbiter: {kind: oracle") }, nil, 2, `config.yaml:12:17: arbiter.kind: "oracle"`},
		{"own name as the peer's", func() { s.change("n1", "name: n2", "name: n1") }, nil, 2, "this node's own name"},
		{"etcd in this program", func() {
			s.change("n1", "{kind: witness, witnesses: [{name: w1, address: \"127.0.0.1:"+s.ports["w1"]+"\"}]}", "{kind: etcd, etcd: {endpoints: [x]}}")
		}, nil, 1, "use colod-etcd"},
		{"another node's certificate", func() { s.change("n1", "identity: n1.pem", "identity: ../n2/n2.pem") }, nil, 1, "is the certificate of node n2, and this is node n1"},
		{"no certificate", func() { s.change("n1", "identity: n1.pem", "identity: none.pem") }, nil, 1, "none.pem"},
		{"no key", func() { s.change("n1", "hb.key", "none.key") }, nil, 1, "heartbeat key: "},
		{"no storage", func() { s.change("n1", "state-dir: .", "state-dir: .\nstorage-dir: none") }, nil, 1, "mount it or make it"},
		{"witness", func() { s.write("w1", "name: w1\nlisten: [here]\ntls: {}\n") }, []string{"witness", "--config", s.file("w1")}, 2, "config.yaml:2:10: listen[0]"},
	} {
		s.write("n1", s.config("n1", 0))
		if x.change != nil {
			x.change()
		}
		if x.args == nil {
			x.args = []string{"--config", s.file("n1")}
		}
		p := s.spawn(t, nil, x.args...)
		code := p.end()
		if text, _ := p.log.text(); code != x.code || !strings.Contains(text, x.want) {
			t.Errorf("%s: exit code %d:\n%s", x.name, code, text)
		}
	}
	// A state file of another node.
	s.write("n1", s.config("n1", 0))
	p := s.spawn(t, nil, "--config", s.file("n1"))
	p.log.await(t, `"msg":"ready"`)
	must(t, p.cmd.Process.Signal(syscall.SIGTERM))
	p.end()
	must(t, os.Rename(s.path("n1", "state.db"), s.path("n2", "state.db")))
	p = s.spawn(t, nil, "--config", s.file("n2"))
	if code := p.end(); code != 1 {
		t.Errorf("another node's state: exit code %d", code)
	}
	p.log.await(t, "state file belongs to another node")
}

func TestCheck(t *testing.T) {
	s := newSite(t)
	p := s.spawn(t, nil, "check", "--config", s.file("n1"))
	if code := p.end(); code != 1 {
		t.Errorf("exit code %d", code)
	}
	p.log.await(t, "ok    certificate: ")
	p.log.await(t, "FAIL  witness w1: 127.0.0.1 is this host's: there it would die with the node")
	s.change("n1", "127.20.", "192.0.")
	s.change("n1", "arbiter:", "bridges: [nobridge0]\narbiter:")
	p = s.spawn(t, nil, "check", "--config", s.file("n1"))
	p.end()
	text := p.log.await(t, "FAIL  link link0: no interface has the address 192.0.")
	if !strings.Contains(text, "FAIL  bridge nobridge0") || !strings.Contains(text, "→ make the bridge") {
		t.Error(text)
	}
	p = s.spawn(t, nil, "witness", "check", "--config", s.file("w1"))
	if code := p.end(); code != 0 {
		text, _ := p.log.text()
		t.Errorf("the witness's check: exit code %d\n%s", code, text)
	}
}
