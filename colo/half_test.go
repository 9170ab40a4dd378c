package colo_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coloctl/coloctl/blockrepl"
	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/arbiter"
	"github.com/coloctl/coloctl/internal/colotest"
	"github.com/coloctl/coloctl/state"
)

// bare is two nodes without QEMU and the wire between them.
type bare struct {
	t         *testing.T
	dir       string
	net       byte
	mem       *arbiter.Memory
	launchers map[string]*colotest.Launcher
	nodes     map[string]*colo.Node
	stores    map[string]*state.Store
	views     map[string]*view
	wire      *colo.Wire
	recovery  *colo.Recovery
	limits    map[string]colo.Limits
	listen    func() func(context.Context, netip.AddrPort) (net.PacketConn, error)
	resync    colo.ResyncLimits
	timeouts  map[string]time.Duration               // of the heartbeats; 1s when 0
	kernel    func(*colotest.Launcher) colo.Launcher // of hosts with two links
	qemuImg   []string
	patience  time.Duration                          // HangTimeout; the default when 0
	alone     bool                                   // there is no arbiter
	peers     func(to string, p colo.Peer) colo.Peer // what stands between the nodes instead of the wire
}

// view is the arbiter that a node asks. Another can take its place while the node runs.
type view struct {
	atomic.Pointer[arbiter.Arbiter]
}

func (v *view) Get(ctx context.Context, vm string) (arbiter.Record, error) {
	return (*v.Load()).Get(ctx, vm)
}

func (v *view) Advance(ctx context.Context, next arbiter.Record) (arbiter.Record, error) {
	return (*v.Load()).Advance(ctx, next)
}

func (v *view) Forget(ctx context.Context, vm string, generation uint64) error {
	return (*v.Load()).Forget(ctx, vm, generation)
}

var bares atomic.Int32

func newBare(t *testing.T) *bare {
	t.Helper()
	w := colotest.NewWorld()
	p := &bare{t: t, dir: t.TempDir(), net: byte(os.Getpid()%200 + int(bares.Add(1)%50)), mem: arbiter.NewMemory(), nodes: map[string]*colo.Node{}, stores: map[string]*state.Store{}, views: map[string]*view{},
		launchers: map[string]*colotest.Launcher{"n1": colotest.NewLauncher(w), "n2": colotest.NewLauncher(w)}}
	p.restart()
	return p
}

// newAlone is newBare without an arbiter.
func newAlone(t *testing.T) *bare {
	t.Helper()
	p := newBare(t)
	p.powerOff()
	p.alone = true
	p.restart()
	return p
}

// off ends a node and its copy, as a loss of power does.
func (p *bare) off(name string) {
	p.t.Helper()
	must(p.t, p.nodes[name].Close())
	if c := p.launchers[name].Copy("web"); c != nil {
		c.Crash()
	}
}

// powerOff ends both nodes and their copies.
func (p *bare) powerOff() {
	p.t.Helper()
	for name := range p.nodes {
		p.off(name)
		must(p.t, p.stores[name].Close())
	}
}

// restart begins both nodes anew.
func (p *bare) restart() {
	p.t.Helper()
	p.open("n1")
	p.open("n2")
	if p.peers != nil {
		for _, name := range []string{"n1", "n2"} {
			to := p.nodes[map[string]string{"n1": "n2", "n2": "n1"}[name]]
			must(p.t, p.nodes[name].Connect(p.peers(to.Info().Name, to.AsPeer()), to.Info()))
		}
		return
	}
	var err error
	p.wire, err = colo.NewWire(p.nodes["n1"], p.nodes["n2"])
	must(p.t, err)
}

func (p *bare) open(name string) {
	p.t.Helper()
	st, err := state.Open(filepath.Join(p.dir, name+".db"), &state.Options{Node: name})
	must(p.t, err)
	out := io.Discard
	if os.Getenv("COLO_DEBUG") != "" {
		out = p.t.Output()
	}
	p.views[name] = &view{}
	arb := p.mem.View(name)
	p.views[name].Store(&arb)
	timeout := p.timeouts[name]
	if timeout == 0 {
		timeout = time.Second
	}
	var asks arbiter.Arbiter
	if !p.alone {
		asks = p.views[name]
	}
	var launcher colo.Launcher = p.launchers[name]
	links := []colo.Link{{Name: "link0", Address: netip.AddrFrom4([4]byte{127, 30, p.net, name[1] - '0'})}}
	if p.kernel != nil {
		launcher, links = p.kernel(p.launchers[name]), append(links, colo.Link{Name: "link1", Address: netip.AddrFrom4([4]byte{127, 31, p.net, name[1] - '0'})})
	}
	var listen func(context.Context, netip.AddrPort) (net.PacketConn, error)
	if p.listen != nil {
		listen = p.listen()
	}
	n, err := colo.NewNode(p.t.Context(), colo.NodeConfig{
		ListenPacket: listen,
		Name:         name, RunDir: p.dir, StorageDir: p.dir, Links: links,
		Ports: colo.PortRange{First: 9000, Last: 9100}, Store: st, Arbiter: asks, HeartbeatKey: make([]byte, 32), HeartbeatPort: 17790,
		HeartbeatTimeout: timeout, Launcher: launcher, QEMUImg: p.qemuImg, HangTimeout: p.patience, Recovery: p.recovery, Limits: p.limits[name], Resync: p.resync, Log: slog.New(slog.NewTextHandler(out, nil)),
	})
	must(p.t, err)
	p.nodes[name], p.stores[name] = n, st
	p.t.Cleanup(func() { _ = n.Close(); _ = st.Close() })
}

// protect makes a VM on n1 and protects it.
func (p *bare) protect(prot colo.ProtectionSpec) {
	p.t.Helper()
	ctx := p.t.Context()
	must(p.t, p.nodes["n1"].Create(ctx, &colo.Spec{Name: "web", Memory: 64 << 20, Disks: []colo.DiskSpec{{Name: "vda", File: "vda.raw", Size: 1 << 20}}, Protection: prot}))
	must(p.t, p.nodes["n1"].Start(ctx, "web"))
	must(p.t, p.nodes["n1"].Protect(ctx, "web", colo.ProtectOptions{}))
}

// TestTimeoutsDiffer: the gate's rule counts with the other node's figures.
func TestTimeoutsDiffer(t *testing.T) {
	t.Parallel()
	p := newBare(t)
	p.powerOff()
	p.timeouts = map[string]time.Duration{"n2": 3 * time.Second}
	p.restart()
	ctx, n1 := t.Context(), p.nodes["n1"]
	must(t, n1.Create(ctx, &colo.Spec{Name: "web", Memory: 64 << 20, Disks: []colo.DiskSpec{{Name: "vda", File: "vda.raw", Size: 1 << 20}}}))
	must(t, n1.Start(ctx, "web"))
	if err := n1.Protect(ctx, "web", colo.ProtectOptions{}); !errors.As(err, new(*colo.PeerMismatchError)) {
		t.Errorf("protected with different timeouts: %v", err)
	}
}

func (p *bare) await(name, what string, ok func(colo.Status) bool) colo.Status {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), 20*time.Second)
	defer cancel()
	st, err := p.nodes[name].Wait(ctx, "web", ok)
	if err != nil {
		p.t.Fatalf("%s: waiting for %s: %v; it is %s: %s; %s", name, what, err, st.State, st.Why, st.LastError)
	}
	return st
}

func atRest(s colo.State, members ...string) func(colo.Status) bool {
	return func(st colo.Status) bool { return st.State == s && st.Plan == nil && slices.Equal(st.Members, members) }
}

// only checks that a half that a copy has let go of doesn't come back but by a resync: what n1 wrote last is on n2.
func (p *bare) only() {
	p.t.Helper()
	ctx := p.t.Context()
	n1, n2 := p.nodes["n1"], p.nodes["n2"]
	if d := p.await("n1", "its end", atRest(colo.Outdated, "n2")).Disks[0]; d.Offline == "" || d.InSync {
		p.t.Errorf("n1's half: %+v", d)
	}
	if p.launchers["n1"].Copy("web") != nil {
		p.t.Error("a copy without a disk runs on n1")
	}
	if err := n1.Start(ctx, "web"); !errors.Is(err, colo.ErrNotCurrent) {
		p.t.Errorf("n1 starts from a half that lacks writes: %v", err)
	}
	if st, _ := n2.Status(ctx, "web"); st.State != colo.Solo {
		must(p.t, n2.Start(ctx, "web"))
	}
	if err := n2.Protect(ctx, "web", colo.ProtectOptions{}); err == nil || !strings.Contains(err.Error(), "out of service") {
		p.t.Errorf("protected by a half that is out of service: %v", err)
	}
	must(p.t, n1.SetDisk(ctx, "web", "vda", true, ""))
	if err := n1.Start(ctx, "web"); !errors.Is(err, colo.ErrNotCurrent) {
		p.t.Errorf("n1 starts from a half that was not resynced: %v", err)
	}
	must(p.t, n2.Protect(ctx, "web", colo.ProtectOptions{}))
	if d := p.await("n1", "protection", func(st colo.Status) bool { return st.State == colo.Secondary }).Disks[0]; d.Offline != "" {
		p.t.Errorf("n1's half after a resync: %+v", d)
	}
}

// TestHalfGoneWhileDetaching: the primary's half fails after the peer was counted out. The lone copy would have no disk, so the peer becomes the only one
// that counts, and is started with all that was written.
func TestHalfGoneWhileDetaching(t *testing.T) {
	t.Parallel()
	p := newBare(t)
	p.protect(colo.ProtectionSpec{})
	must(t, p.launchers["n1"].Copy("web").DropDisk(t.Context(), "vda")) // and nobody has heard of it yet
	if err := p.nodes["n1"].Unprotect(t.Context(), "web"); !errors.As(err, new(*colo.HalfGoneError)) {
		t.Errorf("unprotected: %v", err)
	}
	p.await("n2", "the VM", atRest(colo.Stopped, "n2"))
	p.only()
}

// spied is an arbiter that shows what is asked of it before it answers.
type spied struct {
	arbiter.Arbiter
	asked func(next arbiter.Record)
}

func (s spied) Advance(ctx context.Context, next arbiter.Record) (arbiter.Record, error) {
	s.asked(next)
	return s.Arbiter.Advance(ctx, next)
}

// TestHalfGoneIsOffered: that the peer may be the only one that counts is durable before the arbiter is asked for it: its answer may be lost, and the power after it.
func TestHalfGoneIsOffered(t *testing.T) {
	t.Parallel()
	p := newBare(t)
	p.protect(colo.ProtectionSpec{})
	var offered atomic.Pointer[string]
	var arb arbiter.Arbiter = spied{p.mem.View("n1"), func(next arbiter.Record) {
		if slices.Equal(next.Members, []string{"n2"}) {
			vm, err := p.stores["n1"].Get("web")
			if err != nil {
				t.Error(err)
			}
			offered.Store(&vm.Offered)
		}
	}}
	p.views["n1"].Store(&arb)
	must(t, p.launchers["n1"].Copy("web").DropDisk(t.Context(), "vda"))
	if err := p.nodes["n1"].Unprotect(t.Context(), "web"); !errors.As(err, new(*colo.HalfGoneError)) {
		t.Errorf("unprotected: %v", err)
	}
	p.await("n1", "its end", atRest(colo.Outdated, "n2"))
	if o := offered.Load(); o == nil || *o != "n2" {
		t.Errorf("the arbiter was asked before it was stored: %v", o)
	}
}

// TestHalfGoneUntold is the same with a peer that can't be told: it learns from the arbiter that it alone counts.
func TestHalfGoneUntold(t *testing.T) {
	t.Parallel()
	p := newBare(t)
	p.protect(colo.ProtectionSpec{})
	must(t, p.launchers["n1"].Copy("web").DropDisk(t.Context(), "vda"))
	p.wire.SetUp(false)
	if err := p.nodes["n1"].Unprotect(t.Context(), "web"); !errors.As(err, new(*colo.HalfGoneError)) {
		t.Errorf("unprotected: %v", err)
	}
	p.await("n1", "its end", atRest(colo.Outdated, "n2"))
	p.await("n2", "a decision", func(st colo.Status) bool {
		return (st.State == colo.Outdated || st.State == colo.Solo) && st.Plan == nil
	})
	p.wire.SetUp(true)
	p.only()
}

// TestHalfGoneAndPeerLost: the owner wants the VM to stay on the node without its half, and the other copy dies. Nothing goes on without a disk; the node of the
// dead copy starts it again.
func TestHalfGoneAndPeerLost(t *testing.T) {
	t.Parallel()
	p := newBare(t)
	p.protect(colo.ProtectionSpec{OnDiskError: colo.StayOnDiskError})
	ctx, n1 := t.Context(), p.nodes["n1"]
	must(t, n1.SetDisk(ctx, "web", "vda", false, "it clicks"))
	p.await("n1", "the note", func(st colo.Status) bool { return st.State == colo.Protected && st.Disks[0].Offline == "it clicks" })
	if err := n1.SetDisk(ctx, "web", "vda", true, ""); !errors.As(err, new(*colo.UnexpectedEventError)) {
		t.Errorf("a half came back that the running copy has let go of: %v", err)
	}
	p.launchers["n2"].Copy("web").Crash()
	p.await("n2", "its end", func(st colo.Status) bool { return st.PID == 0 && st.Plan == nil })
	p.only()
}

// TestHalfStays: where the peer's half is gone already this node's can't be taken out of service, and keeps counting.
func TestHalfStays(t *testing.T) {
	t.Parallel()
	p := newBare(t)
	p.protect(colo.ProtectionSpec{})
	ctx, n1 := t.Context(), p.nodes["n1"]
	must(t, n1.Unprotect(ctx, "web"))
	if err := n1.SetDisk(ctx, "web", "vda", false, ""); !errors.As(err, new(*colo.UnexpectedEventError)) {
		t.Errorf("the only half: %v", err)
	}
	if err := p.launchers["n1"].Copy("web").DropDisk(ctx, "vda"); !errors.Is(err, blockrepl.ErrOnlyHalf) {
		t.Errorf("%v", err)
	}
	if d := p.await("n1", "nothing", atRest(colo.Solo, "n1")).Disks[0]; d.Offline != "" || !d.InSync {
		t.Errorf("the only half: %+v", d)
	}
}

// TestBothHalvesOffline: a person takes the half of one node out of service and right after it, while the VM is being handed over, that of the other. The second is
// refused, so that a copy goes on.
func TestBothHalvesOffline(t *testing.T) {
	t.Parallel()
	for _, policy := range []string{"", colo.StayOnDiskError} {
		p := newBare(t)
		p.protect(colo.ProtectionSpec{OnDiskError: policy})
		ctx, n1, n2 := t.Context(), p.nodes["n1"], p.nodes["n2"]
		must(t, n1.SetDisk(ctx, "web", "vda", false, "it clicks"))
		if err := n2.SetDisk(ctx, "web", "vda", false, "it clicks too"); err == nil {
			t.Errorf("%q: both halves are out of service", policy)
		}
		if policy == colo.StayOnDiskError {
			p.await("n1", "nothing", atRest(colo.Protected, "n1", "n2"))
			p.await("n2", "nothing", atRest(colo.Secondary, "n1", "n2"))
			continue
		}
		p.await("n1", "its end", atRest(colo.Outdated, "n2"))
		if d := p.await("n2", "the VM", atRest(colo.Solo, "n2")).Disks[0]; d.Offline != "" || !d.InSync {
			t.Errorf("n2's half: %+v", d)
		}
	}
}
