package lab

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/arbiter"
	"github.com/coloctl/coloctl/internal/guest"
	"github.com/coloctl/coloctl/internal/guest/service"
	"github.com/coloctl/coloctl/internal/netns"
)

// VM is the name of the lab's one VM.
const VM = "vm"

var guestMAC = net.HardwareAddr{0x52, 0x54, 0x00, 0x77, 0x00, 0x10}

// Options say what a lab is made of.
type Options struct {
	Assets *Assets
	Links  int   // replication links; 1 when 0
	Memory int64 // of the guest, bytes; 256 MiB when 0
	Disk   int64 // of the guest, bytes; 64 MiB when 0
	// Dir is the lab's folder, which must not exist; [Root] is the place for it.
	Dir string
	// Log takes what the nodes log; nil is nowhere.
	Log io.Writer
	// Tell is called with every event of the nodes, from several goroutines.
	Tell func(colo.Event)
}

// Lab is two nodes, wired together, with one VM. Its methods are for one goroutine; what runs beside it uses its networks only.
type Lab struct {
	Topology *Topology
	Journal  *Journal
	Grants   *Grants
	Arbiter  *arbiter.Memory

	opts     Options
	log      *slog.Logger
	key      []byte
	nodes    map[string]*Node
	wire     *colo.Wire
	sniffers map[string]*Sniffer
	wg       sync.WaitGroup
}

// New makes the networks, starts both nodes and joins them. Nothing runs on them yet. The caller must Close the lab.
func New(ctx context.Context, o Options) (*Lab, error) {
	if o.Links == 0 {
		o.Links = 1
	}
	if o.Memory == 0 {
		o.Memory = 256 << 20
	}
	if o.Disk == 0 {
		o.Disk = 64 << 20
	}
	if o.Log == nil {
		o.Log = io.Discard
	}
	l := &Lab{
		Journal: NewJournal(o.Tell), Grants: &Grants{}, Arbiter: arbiter.NewMemory(),
		opts: o, log: slog.New(slog.NewTextHandler(o.Log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		key: make([]byte, 32), nodes: map[string]*Node{}, sniffers: map[string]*Sniffer{},
	}
	_, _ = rand.Read(l.key) // never fails
	if err := l.build(ctx); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func (l *Lab) build(ctx context.Context) (err error) {
	if l.Topology, err = NewTopology(l.opts.Links); err != nil {
		return err
	}
	for _, name := range NodeNames {
		if l.sniffers[name], err = l.Topology.Sniff(name, guestMAC); err != nil {
			delete(l.sniffers, name)
			return err
		}
		n := &Node{Name: name, lab: l}
		l.nodes[name] = n
		for _, dir := range []string{n.runDir(), n.storageDir()} {
			if err := os.MkdirAll(dir, 0o700); err != nil {
				return err
			}
		}
		if err := n.start(ctx); err != nil {
			return err
		}
	}
	l.wire, err = colo.NewWire(l.nodes["n1"].Engine, l.nodes["n2"].Engine)
	return err
}

// Spec is the lab's VM.
func (l *Lab) Spec() *colo.Spec {
	return &colo.Spec{
		Name: VM, Memory: colo.Size(l.opts.Memory), VCPUs: 1, CPU: "qemu64",
		Boot: colo.Boot{
			Kernel: l.opts.Assets.Kernel, Initrd: l.opts.Assets.Initrd,
			Append: guest.CommandLine(guest.Network{Addresses: []string{netip.PrefixFrom(GuestAddr, 24).String()}}),
		},
		Disks: []colo.DiskSpec{{Name: "vda", File: "vda.raw", Format: "raw", Size: colo.Size(l.opts.Disk)}},
		NICs:  []colo.NICSpec{{Name: "net0", Bridge: NodeBridge, MAC: guestMAC.String()}},
	}
}

// Boot makes the VM on a node, starts it there and returns when its services answer.
func (l *Lab) Boot(ctx context.Context, node string) error {
	n := l.nodes[node]
	if err := guest.FormatDisk(ctx, filepath.Join(n.storageDir(), "vda.raw"), l.opts.Disk); err != nil {
		return err
	}
	if err := n.Engine.Create(ctx, l.Spec()); err != nil {
		return err
	}
	if err := n.Engine.Start(ctx, VM); err != nil {
		return err
	}
	return l.awaitGuest(ctx)
}

// awaitGuest polls: a guest that boots can't tell anybody.
func (l *Lab) awaitGuest(ctx context.Context) error {
	client := newHTTPClient(l.Dial, time.Second)
	defer client.CloseIdleConnections()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		_, err := fetchID(ctx, client, "http://"+guestAddr(service.PortHTTP)+"/id")
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("the guest doesn't answer: %w: %w", context.Cause(ctx), err)
		}
	}
}

func guestAddr(port int) string { return net.JoinHostPort(GuestAddr.String(), strconv.Itoa(port)) }

// Dial opens a connection as the client.
func (l *Lab) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	return netns.Dial(ctx, l.Topology.Client.Netns(), network, addr)
}

// Node returns a node by name.
func (l *Lab) Node(name string) *Node { return l.nodes[name] }

// Other returns the other node's name.
func Other(name string) string {
	if name == NodeNames[0] {
		return NodeNames[1]
	}
	return NodeNames[0]
}

// Primary returns the name of the node that runs the VM and is not a secondary.
func (l *Lab) Primary(ctx context.Context) (string, error) {
	var states []string
	for _, name := range NodeNames {
		s, err := l.nodes[name].Status(ctx)
		if err != nil {
			states = append(states, fmt.Sprintf("%s: %v", name, err))
			continue
		}
		switch s.State {
		case colo.Solo, colo.Syncing, colo.Attaching, colo.Protected, colo.Detaching, colo.SwitchingOver:
			return name, nil
		}
		states = append(states, fmt.Sprintf("%s: %s (%s)", name, s.State, s.Why))
	}
	return "", fmt.Errorf("no node runs the VM: %v", states)
}

// Protect makes the VM redundant.
func (l *Lab) Protect(ctx context.Context) error {
	name, err := l.Primary(ctx)
	if err != nil {
		return err
	}
	return l.nodes[name].Engine.Protect(ctx, VM, colo.ProtectOptions{})
}

// CutLinks cuts every replication link, and with them what the nodes' engines say to each other.
func (l *Lab) CutLinks(how Cut) error {
	l.wire.SetUp(false)
	var err error
	for _, link := range l.Topology.Links {
		err = errors.Join(err, link.Cut(how))
	}
	return err
}

// RestoreLinks undoes CutLinks.
func (l *Lab) RestoreLinks() error {
	var err error
	for _, link := range l.Topology.Links {
		err = errors.Join(err, link.Restore())
	}
	l.wire.SetUp(true)
	return err
}

// OutputsFromBoth applies the rule of [OutputsFromBoth] to all that was heard so far.
func (l *Lab) OutputsFromBoth() (int, error) {
	a, err := l.sniffers["n1"].Frames()
	b, errB := l.sniffers["n2"].Frames()
	if err = errors.Join(err, errB); err != nil {
		return 0, err
	}
	return OutputsFromBoth("n1", "n2", a, b, l.Grants.List()), nil
}

// Close ends the nodes, their QEMUs and the networks.
func (l *Lab) Close() error {
	var err error
	for _, n := range l.nodes {
		err = errors.Join(err, n.end())
	}
	l.wg.Wait()
	for _, s := range l.sniffers {
		err = errors.Join(err, s.Close())
	}
	if l.Topology != nil {
		err = errors.Join(err, l.Topology.Close())
	}
	return err
}

// watched is an arbiter that writes down what it granted.
type watched struct {
	arbiter.Arbiter
	grants *Grants
}

// Advance implements arbiter.Arbiter.
func (w watched) Advance(ctx context.Context, next arbiter.Record) (arbiter.Record, error) {
	got, err := w.Arbiter.Advance(ctx, next)
	if err == nil {
		w.grants.Add(got.Generation, got.Members)
	}
	return got, err
}
