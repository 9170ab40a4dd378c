package colo

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coloctl/coloctl/colo/arbiter"
	"github.com/coloctl/coloctl/colo/heartbeat"
	"github.com/coloctl/coloctl/internal/netns"
	"github.com/coloctl/coloctl/state"
)

// Link is this node's end of one replication network.
type Link struct {
	Name    string     `json:"name"`
	Address netip.Addr `json:"address"`
}

// PortRange is the range of TCP ports from which VMs get theirs, both ends included.
type PortRange struct{ First, Last int }

// NodeConfig says what a node has and whom it asks. The zero value of a field without a comment about its default is an error.
type NodeConfig struct {
	Name       string
	RunDir     string // sockets, logs, overlays: may be lost at a reboot
	StorageDir string // disk images with relative paths
	Links      []Link
	Ports      PortRange
	Netns      string   // network namespace of the node's QEMUs, taps and sockets; empty is the caller's
	QEMU       []string // argv prefix
	QEMUImg    []string // argv prefix
	Accel      string   // kvm or tcg
	Store      *state.Store
	Records    Records // kept in Store when nil

	Arbiter           arbiter.Arbiter // nil: only proof or a person promotes a secondary
	HeartbeatKey      []byte          // 32 bytes, the same on both nodes
	HeartbeatPort     int             // UDP; 7788 when 0
	HeartbeatInterval time.Duration   // 100ms when 0
	HeartbeatTimeout  time.Duration   // 400ms when 0
	VerifyEvery       time.Duration   // how often the halves of a protected VM are compared; never when 0
	VerifySpeed       int64           // bytes a second that are read for it of each half; no limit when 0
	OverlayDir        string          // of standbys and secondaries, with a folder for each VM; in RunDir when empty
	BitmapRotation    time.Duration   // how often the record of writes is shortened to what may not be durable on the peer; 30s when 0, never when negative
	HangTimeout       time.Duration   // how long a QEMU may not answer, or a checkpoint last; 2s when 0
	Log               *slog.Logger    // slog.Default when nil
	Launcher          Launcher        // QEMU when nil
	Starter           Starter         // of QEMU; the node itself when nil
	User              *User           // whom QEMUs run as that the node starts itself; nil is the node's own user
	Limits            Limits          // of what VMs may have here together
	Resync            ResyncLimits    // of VMs that become protected at the same time
	Beat              time.Time       // what the node does again and again is done at whole intervals after it; now when zero. It has to come from time.Now
	MaxLinkRTT        time.Duration   // no VM is protected over links whose round trips take longer; 0 is no limit
	Plain             bool            // replication is not encrypted: the links are nobody else's. The same on both nodes
	// Comparer is how the comparer of streams is started (colod compare): its program and arguments, to which a folder is added.
	// Without it VMs can only have QEMU's own.
	Comparer []string
	// Recovery makes the node act by itself; nil leaves everything but failover to its user.
	Recovery *Recovery
	// ListenPacket opens a heartbeat's socket; in the node's network namespace when nil.
	ListenPacket func(ctx context.Context, local netip.AddrPort) (net.PacketConn, error)
}

// ConfigError says which field of a NodeConfig is wrong.
type ConfigError struct{ Field, Msg string }

func (e *ConfigError) Error() string { return "node configuration: " + e.Field + ": " + e.Msg }

func (c *NodeConfig) setDefaults() {
	setDefault(&c.HeartbeatPort, 7788)
	setDefault(&c.HeartbeatInterval, 100*time.Millisecond)
	setDefault(&c.HeartbeatTimeout, 400*time.Millisecond)
	setDefault(&c.HangTimeout, 2*time.Second)
	setDefault(&c.BitmapRotation, defaultBitmapRotation)
	setDefault(&c.Beat, time.Now())
	if c.Log == nil {
		c.Log = slog.Default()
	}
}

func (c *NodeConfig) check() error {
	c.setDefaults()
	if c.HeartbeatInterval < 0 {
		return &ConfigError{"HeartbeatInterval", "expected more than 0"}
	}
	if c.Recovery != nil {
		r := *c.Recovery
		r.setDefaults()
		c.Recovery = &r
	}
	if c.ListenPacket == nil {
		path := c.Netns
		c.ListenPacket = func(ctx context.Context, local netip.AddrPort) (net.PacketConn, error) {
			return netns.ListenPacket(ctx, path, "udp", local.String())
		}
	}
	if c.Records == nil && c.Store != nil {
		c.Records = storeRecords{c.Store, state.PortRange(c.Ports)}
	}
	switch {
	case !vmName.MatchString(c.Name):
		return &ConfigError{"Name", fmt.Sprintf("%q: expected a letter, then at most 30 lower-case letters, digits or dashes", c.Name)}
	case c.RunDir == "" || c.StorageDir == "":
		return &ConfigError{"RunDir, StorageDir", "missing"}
	case c.Records == nil:
		return &ConfigError{"Store", "missing"}
	case len(c.Links) == 0:
		return &ConfigError{"Links", "missing: a node needs at least one replication link"}
	case c.Ports.First < 1024 || c.Ports.Last > 65535 || c.Ports.Last-c.Ports.First < 8:
		return &ConfigError{"Ports", fmt.Sprintf("%d-%d: expected at least 8 ports between 1024 and 65535", c.Ports.First, c.Ports.Last)}
	case len(c.HeartbeatKey) != 32:
		return &ConfigError{"HeartbeatKey", fmt.Sprintf("%d bytes: expected 32", len(c.HeartbeatKey))}
	case c.Launcher == nil && (len(c.QEMU) == 0 || len(c.QEMUImg) == 0):
		return &ConfigError{"QEMU, QEMUImg", "missing"}
	case c.Starter != nil && len(c.QEMU) > 1:
		return &ConfigError{"QEMU", fmt.Sprintf("%s starts QEMU by one program's path: it can't pass %q before the arguments", c.Starter.Name(), c.QEMU[1:])}
	case c.Launcher == nil && c.Accel != "kvm" && c.Accel != "tcg":
		return &ConfigError{"Accel", fmt.Sprintf("%q: expected kvm or tcg", c.Accel)}
	}
	return nil
}

// Node is one host's part of the system. It is made by [NewNode].
type Node struct {
	cfg       NodeConfig
	launcher  Launcher
	qemu      string // version
	events    *bus
	ledger    *ledger
	media     mediaCache
	ctx       context.Context
	stop      context.CancelCauseFunc
	wg        sync.WaitGroup
	woke      atomic.Pointer[time.Time] // when this node last found that it had been stalled; nil: never
	began     time.Time
	queue     *queue
	loaded    chan struct{} // closed when all VMs that the store remembers are there
	confirmed chan struct{} // a peer has told that it heard a newer heartbeat: leases can be made longer
	// leasedAfter is how long after began the leases of all VMs were last looked after, in nanoseconds.
	leasedAfter atomic.Int64

	mu       sync.Mutex
	machines map[string]*machine
	making   map[string]struct{} // names of VMs that are being made
	peers    []*partnership
	linking  sync.Mutex // one of linksUp at a time
	closed   bool
}

// Errors of a node's methods.
var (
	// ErrNoVM is returned for a VM that this node doesn't know.
	ErrNoVM = errors.New("no such VM on this node")
	// ErrVMExists is returned by Create for a name that is taken.
	ErrVMExists = errors.New("a VM of this name exists on this node")
	// ErrClosed is returned after Close.
	ErrClosed = errors.New("node is closed")
	// ErrNotCurrent is returned when a copy may not run because another one is, or may be, newer.
	ErrNotCurrent = errors.New("this node's copy is not current")
	// ErrNoArbiter is returned when a decision needs an arbiter and none is configured.
	ErrNoArbiter = errors.New("no arbiter is configured")
)

// NewNode makes a node from its configuration and the VMs that its store remembers. It starts nothing by itself, but takes over QEMUs of
// its VMs that still run.
func NewNode(ctx context.Context, cfg NodeConfig) (*Node, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	vms, err := cfg.Records.List()
	if err != nil {
		return nil, err
	}
	n := &Node{cfg: cfg, launcher: cfg.Launcher, events: newBus(), machines: map[string]*machine{}, making: map[string]struct{}{}, began: time.Now(), queue: &queue{limits: cfg.Resync}, loaded: make(chan struct{}), confirmed: make(chan struct{}, 1)}
	if n.launcher == nil {
		l, err := newLauncher(ctx, cfg)
		if err == nil {
			err = l.unfit
		}
		if err == nil {
			err = l.strangers(vms)
		}
		if err != nil {
			return nil, err
		}
		n.launcher, n.qemu = l, l.version
	}
	n.ctx, n.stop = context.WithCancelCause(context.WithoutCancel(ctx))
	n.ledger = newLedger(cfg.Records, cfg.Log)
	n.wg.Go(n.leases)
	for _, rec := range vms {
		spec, unread := ParseSpec(rec.Spec, "stored spec of "+rec.Name)
		if unread != nil { // the other VMs must not go without failover for it
			cfg.Log.Error("stored spec", "node", cfg.Name, "vm", rec.Name, "err", unread)
			spec = &Spec{Name: rec.Name}
			rec.Phase, rec.Reason = string(Failed), unread.Error()
		}
		n.mu.Lock()
		n.add(spec, &rec, unread)
		n.mu.Unlock()
	}
	close(n.loaded)
	return n, nil
}

func (n *Node) add(spec *Spec, rec *state.VM, unread error) *machine {
	m := newMachine(n, spec, rec)
	m.unread = unread
	n.machines[spec.Name] = m
	n.wg.Go(func() { m.run(n.ctx) })
	if r := n.cfg.Recovery; r != nil {
		n.wg.Go(func() { m.keep(n.ctx, *r) })
	}
	if every := n.cfg.VerifyEvery; every > 0 {
		n.wg.Go(func() { m.verifyNowAndThen(n.ctx, every) })
	}
	return m
}

// Info describes this node to a peer.
func (n *Node) Info() NodeInfo {
	return NodeInfo{Name: n.cfg.Name, Links: slices.Clone(n.cfg.Links), QEMU: n.qemu, Accel: n.cfg.Accel, Starter: n.cfg.startedBy(), Plain: n.cfg.Plain, MPTCP: n.multipath() == nil, Port: n.cfg.HeartbeatPort,
		HeartbeatInterval: n.cfg.HeartbeatInterval, HeartbeatTimeout: n.cfg.HeartbeatTimeout}
}

// mayConnect refuses a peer. The caller holds mu.
func (n *Node) mayConnect(name string) error {
	switch {
	case n.closed:
		return ErrClosed
	case partnerOf(n.peers, name) != nil:
		return fmt.Errorf("%s is this node's peer already", name)
	case len(n.peers) > 0 && n.cfg.Arbiter == nil:
		return fmt.Errorf("a second peer, %s: %w: who of more than two nodes may go on can't be told by proof", name, ErrNoArbiter)
	}
	return nil
}

// Connect makes peer a partner of this node: heartbeats go to it over all links that both have from now on, and VMs are protected by it. A node with an arbiter may
// have several, if its ListenPacket lets their heartbeats share this node's addresses (see heartbeat.Share); each VM has one of them at a time.
func (n *Node) Connect(peer Peer, info NodeInfo) error {
	if info.Name == n.cfg.Name {
		return fmt.Errorf("peer has this node's own name, %q", info.Name)
	}
	paths, err := n.paths(info)
	if err != nil {
		return err
	}
	mon, err := heartbeat.New(heartbeat.Config{
		Node: n.cfg.Name, Peer: info.Name, Key: n.cfg.HeartbeatKey, Paths: paths, Interval: n.cfg.HeartbeatInterval, Timeout: n.cfg.HeartbeatTimeout, Beat: n.cfg.Beat,
		ListenPacket: n.cfg.ListenPacket, OnConfirmed: n.onConfirmed,
	})
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.mayConnect(info.Name); err != nil {
		return err
	}
	p := &partnership{peer, info, mon}
	n.peers = append(n.peers, p)
	n.wg.Go(func() { n.watchPeer(p) })
	return nil
}

// paths pairs the links of both nodes by name.
func (n *Node) paths(info NodeInfo) ([]heartbeat.Path, error) {
	var paths []heartbeat.Path
	for _, l := range n.cfg.Links {
		for _, r := range info.Links {
			if l.Name == r.Name {
				paths = append(paths, heartbeat.Path{Name: l.Name, Local: netip.AddrPortFrom(l.Address, uint16(n.cfg.HeartbeatPort)),
					Remote: netip.AddrPortFrom(r.Address, uint16(info.Port))})
			}
		}
	}
	if len(paths) == 0 {
		return nil, fmt.Errorf("%s and %s have no link of the same name", n.cfg.Name, info.Name)
	}
	return paths, nil
}

// Close stops the node's work and changes nothing else: its QEMUs run on, their output held as COLO holds it. It is what the end of the
// daemon looks like. A second call does nothing.
func (n *Node) Close() error {
	n.mu.Lock()
	again := n.closed
	n.closed = true
	n.mu.Unlock()
	if again {
		return nil
	}
	n.stop(ErrClosed)
	n.wg.Wait()
	n.ledger.close()
	n.events.close()
	return nil
}

func (n *Node) alive(ctx context.Context) error {
	if n.ctx.Err() != nil {
		return fmt.Errorf("%s: %w", n.cfg.Name, ErrPeerUnreachable)
	}
	return ctx.Err()
}

func (n *Node) machine(vm string) (*machine, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if m := n.machines[vm]; m != nil {
		return m, nil
	}
	return nil, fmt.Errorf("%s: %w (%s)", vm, ErrNoVM, n.cfg.Name)
}

// PeerAlive says whether heartbeats of any peer arrive on at least one link.
func (n *Node) PeerAlive() bool {
	return slices.ContainsFunc(n.partnerships(), (*partnership).alive)
}

// VMs lists the names of the VMs this node knows.
func (n *Node) VMs() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	names := make([]string, 0, len(n.machines))
	for name := range n.machines {
		names = append(names, name)
	}
	slices.SortFunc(names, strings.Compare)
	return names
}
