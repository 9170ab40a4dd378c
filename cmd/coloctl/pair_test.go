package main

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/api"
	"github.com/coloctl/coloctl/colo/api/pki"
	"github.com/coloctl/coloctl/colo/arbiter"
	"github.com/coloctl/coloctl/internal/colotest"
	"github.com/coloctl/coloctl/state"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// pair is two nodes without QEMU with their servers, and an authority.
type pair struct {
	t       testing.TB
	dir     string
	mem     *arbiter.Memory
	world   *colotest.World
	hosts   map[string]*pairHost
	release func() // the disks that a script holds
}

type pairHost struct {
	node     *colo.Node
	launcher *colotest.Launcher
	server   *api.Server
	addr     string
	socket   string
	stop     func()
}

var pairs atomic.Int32

// newPair starts both; their files and sockets are below dir, which is short.
func newPair(t testing.TB) *pair {
	dir, err := os.MkdirTemp("", "pair")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	p := &pair{t: t, dir: dir, mem: arbiter.NewMemory(), world: colotest.NewWorld(), hosts: map[string]*pairHost{}}
	must(t, pki.InitCA(p.ca(), pki.AuthorityOptions{}))
	third := byte(100 + (os.Getpid()+7*int(pairs.Add(1)))%150)
	for i, name := range []string{"n1", "n2"} {
		p.start(name, netip.AddrFrom4([4]byte{127, 20, third, byte(i + 1)}))
	}
	for name, other := range map[string]string{"n1": "n2", "n2": "n1"} {
		must(t, p.hosts[name].node.Connect(p.peer(name, other), p.hosts[other].node.Info()))
	}
	p.wellConnected()
	return p
}

func (p *pair) ca() string { return filepath.Join(p.dir, "ca") }

func (p *pair) start(name string, link netip.Addr) {
	t := p.t
	h := &pairHost{launcher: colotest.NewLauncher(p.world), socket: filepath.Join(p.dir, name+".sock")}
	store, err := state.Open(filepath.Join(p.dir, name+".db"), &state.Options{Node: name})
	must(t, err)
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	h.node, err = colo.NewNode(t.Context(), colo.NodeConfig{
		Name: name, RunDir: p.dir, StorageDir: p.dir, Links: []colo.Link{{Name: "link0", Address: link}},
		Ports: colo.PortRange{First: 9000, Last: 9100}, Store: store, Arbiter: p.mem.View(name), HeartbeatKey: make([]byte, 32), HeartbeatPort: 17788,
		// The machine of the tests is busy: a false loss is not what they are about.
		HeartbeatInterval: 200 * time.Millisecond, HeartbeatTimeout: 5 * time.Second, Log: log, Launcher: h.launcher,
	})
	must(t, err)
	h.server, err = api.NewServer(api.ServerOptions{
		Node: h.node, Version: "1.0", Arbiter: "memory", Log: log,
		IsPeer: func(n string) bool { return n != name && strings.HasPrefix(n, "n") },
		PeerStatus: func(ctx context.Context, vm string) (colo.Status, error) {
			return p.peer(name, map[string]string{"n1": "n2", "n2": "n1"}[name]).PeerStatus(ctx, vm)
		},
	})
	must(t, err)
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	h.addr = tcp.Addr().String()
	local, err := api.ListenUnix(t.Context(), h.socket, -1)
	must(t, err)
	done := make(chan error, 2)
	go func() { done <- h.server.ServeTLS(tcp, p.credentials(pki.Node, name).Server()) }()
	go func() { done <- h.server.Serve(local) }()
	stopped := false
	h.stop = func() {
		if stopped {
			return
		}
		stopped = true
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = h.server.Close(ctx) // readers of events may be cut
		<-done
		<-done
		_ = h.node.Close()
		h.server.Wait()
		_ = store.Close()
	}
	p.hosts[name] = h
	t.Cleanup(h.stop)
}

func (p *pair) identity(role pki.Role, name string) pki.Files {
	out, err := os.MkdirTemp(p.dir, "id")
	must(p.t, err)
	path, err := pki.Issue(p.ca(), pki.IssueOptions{Identity: pki.Identity{Role: role, Name: name}, Out: out})
	must(p.t, err)
	return pki.Files{Identity: path, Trust: filepath.Join(out, pki.TrustFile)}
}

func (p *pair) credentials(role pki.Role, name string) *pki.Credentials {
	c, err := pki.Load(p.identity(role, name))
	must(p.t, err)
	return c
}

func (p *pair) peer(from, to string) *api.Peer {
	c, err := api.NewPeer(api.ClientOptions{Node: to, Addresses: []string{p.hosts[to].addr}, Credentials: p.credentials(pki.Node, from)})
	must(p.t, err)
	return c
}

// wellConnected waits for the first heartbeats.
func (p *pair) wellConnected() {
	ctx, cancel := context.WithTimeout(p.t.Context(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !p.hosts["n1"].node.PeerAlive() || !p.hosts["n2"].node.PeerAlive() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			p.t.Fatal("the nodes don't hear each other")
		}
	}
}

// contexts writes a file with the contexts pair (of both nodes, as an admin), viewer, and n1 and n2 (their sockets).
func (p *pair) contexts(configHome string) {
	nodes := []contextNode{{"n1", []string{p.hosts["n1"].addr}}, {"n2", []string{p.hosts["n2"].addr}}}
	admin, viewer := p.identity(pki.Admin, "alice"), p.identity(pki.Viewer, "eve")
	f := contextFile{Current: "pair", Contexts: []nodesContext{
		{Name: "pair", Nodes: nodes, Identity: admin.Identity, Trust: admin.Trust},
		{Name: "viewer", Nodes: nodes, Identity: viewer.Identity, Trust: viewer.Trust},
		{Name: "n1", Socket: p.hosts["n1"].socket}, {Name: "n2", Socket: p.hosts["n2"].socket},
	}}
	data, err := yaml.Marshal(f)
	must(p.t, err)
	must(p.t, os.MkdirAll(filepath.Join(configHome, "coloctl"), 0o700))
	must(p.t, os.WriteFile(filepath.Join(configHome, "coloctl", "contexts.yaml"), data, 0o600))
}
