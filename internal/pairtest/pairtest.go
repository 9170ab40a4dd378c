// Package pairtest gives tests two nodes of the engine with real QEMU, in the networks of a lab, and a VM whose guest boots. Everything ends with the test.
//
// The test's binary is the VM's comparer, so its TestMain has to begin with comparer.Main.
//
// A [Pair] is for the test's goroutine. Its methods end the test when something goes wrong.
package pairtest

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/arbiter"
	"github.com/coloctl/coloctl/internal/guest"
	"github.com/coloctl/coloctl/internal/lab"
	"github.com/coloctl/coloctl/internal/netns"
	"github.com/coloctl/coloctl/internal/qemutest"
	"github.com/coloctl/coloctl/netcompare/comparer"
	"github.com/coloctl/coloctl/state"
)

// VM is the name of the pair's VM.
const VM = "web"

const diskSize = 64 << 20

// Options of New. The zero value is good.
type Options struct {
	Links int            // replication links; one when 0
	Dir   string         // of the nodes; one of its own when empty. Its path must be short: it holds unix sockets
	Tools qemutest.Tools // those of the environment when zero
	// Initrd is the guest's; made when empty.
	Initrd string
	// Modules are of the guest's kernel, besides those that every guest needs.
	Modules []string
	// Disks are besides vda. Read-only images have to be in DIR/n1.
	Disks []colo.DiskSpec
	// Spec, if set, changes the VM before it is made.
	Spec func(s *colo.Spec)
	// Configure, if set, changes a node's configuration before the node is opened, each time.
	Configure func(c *colo.NodeConfig)
}

// Pair is n1 and n2.
type Pair struct {
	Top   *lab.Topology
	Dir   string
	Nodes map[string]*colo.Node
	Store map[string]*state.Store
	Wire  *colo.Wire
	HTTP  *http.Client // of the guest's client

	t     *testing.T
	o     Options
	votes *arbiter.Memory
}

// Initrd makes the guest's image.
func Initrd(t testing.TB, modules string, more ...string) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	must(t, err)
	cache = filepath.Join(cache, "coloctl")
	program, err := guest.Init(t.Context(), cache)
	must(t, err)
	image, err := guest.Image(t.Context(), guest.ImageOptions{InitBinary: program, ModulesDir: modules, CacheDir: cache, Modules: more})
	must(t, err)
	return image
}

// New opens both nodes, connects them and makes the VM on n1. Nothing runs yet.
func New(t *testing.T, o Options) *Pair {
	t.Helper()
	if o.Tools == (qemutest.Tools{}) {
		o.Tools = qemutest.Find(t)
	}
	p := &Pair{t: t, o: o, Dir: o.Dir, votes: arbiter.NewMemory(), Nodes: map[string]*colo.Node{}, Store: map[string]*state.Store{}}
	var err error
	if p.Dir == "" {
		p.Dir, err = os.MkdirTemp("/tmp", "colo")
		must(t, err)
		t.Cleanup(func() { _ = os.RemoveAll(p.Dir) })
	}
	p.Top, err = lab.NewTopology(max(o.Links, 1))
	must(t, err)
	t.Cleanup(func() { _ = p.Top.Close() })
	initrd := o.Initrd
	if initrd == "" {
		initrd = Initrd(t, o.Tools.Modules, o.Modules...)
	}
	for _, name := range lab.NodeNames {
		must(t, os.MkdirAll(filepath.Join(p.Dir, name), 0o755)) // p.Dir says who may enter
		p.Open(name)
	}
	p.Wire, err = colo.NewWire(p.Nodes["n1"], p.Nodes["n2"])
	must(t, err)
	must(t, guest.FormatDisk(t.Context(), filepath.Join(p.Dir, "n1", "web.raw"), diskSize))
	spec := &colo.Spec{
		Name: VM, Memory: 256 << 20, CPU: "qemu64",
		Boot:  colo.Boot{Kernel: o.Tools.Kernel, Initrd: initrd, Append: guest.CommandLine(guest.Network{Addresses: []string{lab.GuestAddr.String() + "/24"}})},
		Disks: append([]colo.DiskSpec{{Name: "vda", File: "web.raw", Size: diskSize}}, o.Disks...),
		NICs:  []colo.NICSpec{{Name: "net0", Bridge: lab.NodeBridge, MAC: "52:54:00:12:34:56"}},
	}
	if o.Spec != nil {
		o.Spec(spec)
	}
	must(t, p.Nodes["n1"].Create(t.Context(), spec))
	p.HTTP = &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return netns.Dial(ctx, p.Top.Client.Netns(), network, addr)
		}}}
	return p
}

// Open opens a node, also one that was closed.
func (p *Pair) Open(name string) {
	p.t.Helper()
	dir := filepath.Join(p.Dir, name)
	st, err := state.Open(filepath.Join(dir, "state.db"), &state.Options{Node: name})
	must(p.t, err)
	p.t.Cleanup(func() { _ = st.Close() })
	level := slog.LevelInfo
	if os.Getenv("COLO_DEBUG") != "" {
		level = slog.LevelDebug
	}
	var links []colo.Link
	for _, l := range p.Top.Links {
		links = append(links, colo.Link{Name: l.Name, Address: l.Addrs[name].Addr()})
	}
	command, err := comparer.Self()
	must(p.t, err)
	c := colo.NodeConfig{
		Name: name, RunDir: filepath.Join(dir, "run"), StorageDir: dir, Links: links,
		Ports: colo.PortRange{First: 9000, Last: 9100}, Netns: p.Top.Nodes[name].Netns(),
		QEMU: []string{p.o.Tools.QEMU}, QEMUImg: []string{p.o.Tools.Img}, Accel: "tcg",
		Store: st, Arbiter: p.votes.View(name), HeartbeatKey: make([]byte, 32), Comparer: command, BitmapRotation: 500 * time.Millisecond,
		Log: slog.New(slog.NewTextHandler(p.t.Output(), &slog.HandlerOptions{Level: level})),
	}
	if p.o.Configure != nil {
		p.o.Configure(&c)
	}
	n, err := colo.NewNode(p.t.Context(), c)
	must(p.t, err)
	p.t.Cleanup(func() {
		if s, err := n.Status(context.Background(), VM); err == nil && s.PID != 0 {
			kill(s.PID)
		}
		_ = n.Close()
	})
	p.Nodes[name], p.Store[name] = n, st
}

// Status returns what a node says of the VM.
func (p *Pair) Status(node string) colo.Status {
	p.t.Helper()
	s, err := p.Nodes[node].Status(p.t.Context(), VM)
	must(p.t, err)
	return s
}

// Await waits until a node says something of the VM.
func (p *Pair) Await(node, what string, ok func(colo.Status) bool) colo.Status {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), 30*time.Second)
	defer cancel()
	s, err := p.Nodes[node].Wait(ctx, VM, ok)
	if err != nil {
		p.t.Fatalf("%s: waiting for %s: %v; it is %s: %s", node, what, err, s.State, s.Why)
	}
	return s
}

// AwaitState waits until the VM is in a state on a node.
func (p *Pair) AwaitState(node string, want colo.State) {
	p.t.Helper()
	p.Await(node, string(want), func(s colo.Status) bool { return s.State == want })
}

// Protect makes the VM, which runs on node, redundant.
func (p *Pair) Protect(node string) colo.Status {
	p.t.Helper()
	begun := time.Now()
	must(p.t, p.Nodes[node].Protect(p.t.Context(), VM, colo.ProtectOptions{}))
	s := p.Status(node)
	if !s.Verdict.Protected {
		p.t.Fatalf("not protected: %s", s.Verdict.Reason)
	}
	p.t.Logf("protected in %s: resync %+v, checkpoints %+v", time.Since(begun), *s.Resync, s.Checkpoints)
	return s
}

// Kill ends the QEMU of a node.
func (p *Pair) Kill(node string) {
	p.t.Helper()
	kill(p.Status(node).PID)
}

func kill(pid int) {
	if pr, err := os.FindProcess(pid); err == nil {
		_ = pr.Kill() // it may just have ended
	}
}

func (p *Pair) ask(path string) (*http.Response, error) {
	r, err := http.NewRequestWithContext(p.t.Context(), http.MethodGet, "http://"+lab.GuestAddr.String()+path, http.NoBody)
	if err != nil {
		return nil, err
	}
	return p.HTTP.Do(r)
}

// Get asks the guest's web server.
func (p *Pair) Get(path string) string {
	p.t.Helper()
	resp, err := p.ask(path)
	must(p.t, err)
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		p.t.Fatalf("%s: %s", path, resp.Status)
	}
	text, err := io.ReadAll(resp.Body)
	must(p.t, err)
	return strings.TrimSpace(string(text))
}

// Boot waits for the guest. It returns what writes to the guest's disk once more, and makes sure that nothing was lost before and that the guest is the one
// that has booted here.
func (p *Pair) Boot() (write func()) {
	p.t.Helper()
	up := false
	for range 200 { // a guest that boots can't tell anybody
		resp, err := p.ask("/id")
		if up = err == nil; up {
			_ = resp.Body.Close()
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if !up {
		p.t.Fatal("the guest did not answer")
	}
	boot, count := p.bootID(), 0
	return func() {
		p.t.Helper()
		count++
		if got, want := p.Get(fmt.Sprintf("/counter?id=w%d", count)), fmt.Sprintf(`{"n":%d,"id":"w%d"}`, count, count); got != want {
			p.t.Fatalf("write %d: %s, want %s", count, got, want)
		}
		if now := p.bootID(); now != boot {
			p.t.Fatalf("the guest has booted again: %s, then %s", boot, now)
		}
	}
}

func (p *Pair) bootID() string {
	p.t.Helper()
	var id struct {
		BootID string `json:"boot_id"`
	}
	if text := p.Get("/id"); json.Unmarshal([]byte(text), &id) != nil || id.BootID == "" {
		p.t.Fatalf("/id: %q", text)
	}
	return id.BootID
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
