package etcd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// etcdPath finds the server. Debian's package is etcd-server.
func etcdPath(t *testing.T) string {
	t.Helper()
	name := "etcd"
	if p := os.Getenv("COLOCTL_ETCD"); p != "" {
		name = p
	}
	path, err := exec.LookPath(name)
	if err == nil {
		return path
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("no etcd server here, and CI must have one (package etcd-server): %v", err)
	}
	t.Skipf("no etcd server here (package etcd-server, or COLOCTL_ETCD): %v", err)
	return ""
}

type member struct {
	t          *testing.T
	name       string
	args       []string
	clientURL  string
	clientAddr string
	peerURL    string
	cmd        *exec.Cmd
	logPath    string
}

func freePort(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	return ln.Addr().String()
}

// startCluster starts n members on loopback, which end with the test.
func startCluster(t *testing.T, n int, scheme string, extra ...string) []*member {
	t.Helper()
	path := etcdPath(t)
	var out []*member
	var initial []string
	for i := range n {
		client, peer := freePort(t), freePort(t)
		m := &member{t: t, name: fmt.Sprintf("m%d", i), clientURL: scheme + "://" + client, clientAddr: client, peerURL: "http://" + peer}
		initial = append(initial, m.name+"="+m.peerURL)
		out = append(out, m)
	}
	for _, m := range out {
		dir := t.TempDir()
		m.logPath = filepath.Join(dir, "log")
		m.args = append([]string{path, "--name", m.name, "--data-dir", filepath.Join(dir, "data"),
			"--listen-client-urls", m.clientURL, "--advertise-client-urls", m.clientURL,
			"--listen-peer-urls", m.peerURL, "--initial-advertise-peer-urls", m.peerURL,
			"--initial-cluster", strings.Join(initial, ","), "--initial-cluster-token", dir, "--initial-cluster-state", "new",
			// Generous, for machines that are busy with other tests.
			"--heartbeat-interval", "200", "--election-timeout", "2000", "--logger", "zap"}, extra...)
		for i, a := range m.args {
			if a == "--initial-cluster-token" {
				m.args[i+1] = t.Name()
			}
		}
		m.start()
		t.Cleanup(m.kill)
	}
	return out
}

func (m *member) start() {
	m.t.Helper()
	log, err := os.OpenFile(m.logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		m.t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	m.cmd = exec.Command(m.args[0], m.args[1:]...)
	m.cmd.Stdout, m.cmd.Stderr = log, log
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // no server outlives a test that crashed
	if err := m.cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
}

func (m *member) kill() {
	if m.cmd == nil {
		return
	}
	_ = m.cmd.Process.Kill()
	_ = m.cmd.Wait()
	m.cmd = nil
	if m.t.Failed() {
		raw, _ := os.ReadFile(m.logPath)
		m.t.Logf("%s: %s", m.name, raw[max(0, len(raw)-2000):])
	}
}

func (m *member) signal(s os.Signal) {
	m.t.Helper()
	if err := m.cmd.Process.Signal(s); err != nil {
		m.t.Fatal(err)
	}
}

func urls(members []*member) (out []string) {
	for _, m := range members {
		out = append(out, m.clientURL)
	}
	return out
}

// ready waits until the cluster answers.
func ready(t *testing.T, a *Arbiter) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	for {
		if _, err := a.Get(ctx, "ready?"); err != nil && !isUnreachable(err) {
			return
		} else if ctx.Err() != nil {
			t.Fatal(errors.Join(err, ctx.Err()))
		}
	}
}

// client is etcd's own, for what an operator does.
func client(t *testing.T, c clientv3.Config) *clientv3.Client {
	t.Helper()
	c.Logger = zap.NewNop()
	c.DialTimeout = 20 * time.Second
	cl, err := clientv3.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cl.Close() })
	return cl
}
