package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/api"
	"github.com/coloctl/coloctl/colo/config"
	"github.com/coloctl/coloctl/colo/heartbeat"
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
	// Arbiter is witness (default) or etcd.
	Arbiter string
	// Launcher is who starts QEMU: colod (default) or libvirt, whose libvirtd must be installed.
	Launcher string
	// Comparer of the VM's packets: stream (default) or builtin, see colo.ProtectionSpec.
	Comparer string
	Nodes    int   // 2 when 0, or 3
	Links    int   // replication links; 1 when 0
	VCPUs    int   // of the guest; 1 when 0
	Memory   int64 // of the guest, bytes; 256 MiB when 0
	Disk     int64 // of the guest, bytes; 64 MiB when 0
	// Data is the size of a second disk without a file system; none when 0. So much of it is Filled at first.
	Data, Filled int64
	// SyncSpeed limits a resync, in bytes a second for each disk; no limit when 0.
	SyncSpeed int64
	// HoldDown is how long a node that has returned must be well before a VM is protected by it again; the daemons' default when 0.
	HoldDown time.Duration
	// Dir is the lab's folder, which must not exist or be empty; [Root] is the place for it.
	Dir string
	// IPv6 gives the client and the guest addresses of it too, see GuestAddr6.
	IPv6 bool
	// Attempts is how many failures to protect a VM the daemons take before a person is needed; their default when 0.
	Attempts int
	// SmallState gives the nodes state folders of a few megabytes, which can be filled.
	SmallState bool
	// Say, if not nil, is told what is being made.
	Say func(format string, args ...any)
	// Tell is called with every event of the nodes, from several goroutines.
	Tell func(colo.Event)
}

// Lab is two nodes with their daemons, an arbiter and one VM. Its methods are for one goroutine; what runs beside it uses its networks only.
type Lab struct {
	Topology *Topology
	Journal  *Journal
	Grants   *Grants
	Voter    *Voter

	opts     Options
	nodes    map[string]*Node
	sniffers map[string]*Sniffer
	guests   []*Guest // besides the one VM
	wg       sync.WaitGroup

	mu    sync.Mutex
	wrong []error // what has gone wrong beside the steps
}

// New makes the networks and starts the arbiter and both nodes' daemons. It returns when they hear each other. There is no VM yet. The caller
// must Close the lab.
func New(ctx context.Context, o Options) (*Lab, error) {
	if o.Nodes == 0 {
		o.Nodes = len(NodeNames)
	}
	if o.Links == 0 {
		o.Links = 1
	}
	if o.VCPUs == 0 {
		o.VCPUs = 1
	}
	if o.Memory == 0 {
		o.Memory = 256 << 20
	}
	if o.Disk == 0 {
		o.Disk = 64 << 20
	}
	if o.Say == nil {
		o.Say = func(string, ...any) {}
	}
	if o.Arbiter == "" {
		o.Arbiter = config.ArbiterWitness
	}
	l := &Lab{Journal: NewJournal(o.Tell), Grants: &Grants{}, opts: o, nodes: map[string]*Node{}, sniffers: map[string]*Sniffer{}}
	l.Voter = &Voter{lab: l}
	if err := l.build(ctx); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// path returns a path in the lab's folder.
func (l *Lab) path(elem ...string) string {
	return filepath.Join(append([]string{l.opts.Dir}, elem...)...)
}

func (l *Lab) build(ctx context.Context) (err error) {
	names := allNames[:l.opts.Nodes]
	l.opts.Say("networks of the nodes %v, the client and the arbiter's host", names)
	if l.Topology, err = NewTopologyOf(l.opts.Nodes, l.opts.Links); err != nil {
		return err
	}
	if l.opts.IPv6 {
		if err := l.Topology.addIPv6(); err != nil {
			return err
		}
	}
	for _, name := range names {
		if l.sniffers[name], err = l.Topology.Sniff(name, guestMAC); err != nil {
			delete(l.sniffers, name)
			return err
		}
	}
	l.opts.Say("certificates and configurations in %s", FolderOutside())
	if err := l.writeSite(); err != nil {
		return err
	}
	l.opts.Say("the arbiter's daemon (%s) and a colod on each node", l.opts.Arbiter)
	if err := l.Voter.Start(ctx); err != nil {
		return err
	}
	for _, name := range names {
		if l.nodes[name], err = newNode(l, name); err != nil {
			delete(l.nodes, name)
			return err
		}
		if err := l.nodes[name].StartDaemon(ctx); err != nil {
			return err
		}
	}
	return l.awaitPair(ctx)
}

// awaitPair returns when all daemons hear each other.
func (l *Lab) awaitPair(ctx context.Context) error {
	for _, name := range l.Topology.Names {
		err := poll(ctx, func() (bool, error) {
			s, err := l.nodes[name].Client.Node(ctx)
			for _, p := range s.Peers { // of more than one
				if p.State != heartbeat.Alive {
					return false, nil
				}
			}
			return err == nil && s.Peer != nil && s.Peer.State == heartbeat.Alive, err
		})
		if err != nil {
			return fmt.Errorf("%s doesn't hear the other node: %w", name, err)
		}
	}
	return nil
}

// poll looks again and again until ok says so. An error of ok is only what is said when ctx ends.
func poll(ctx context.Context, ok func() (bool, error)) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	var err error
	for {
		done, e := ok()
		if done {
			return nil
		}
		if ctx.Err() == nil || err == nil { // what ended with ctx says nothing
			err = e
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			if err != nil {
				return fmt.Errorf("%w: %w", context.Cause(ctx), err)
			}
			return context.Cause(ctx)
		}
	}
}

// Spec is the lab's VM. It is protected when that is asked for, and from then on by the daemons themselves.
func (l *Lab) Spec() *colo.Spec {
	s := &colo.Spec{
		Name: VM, Memory: colo.Size(l.opts.Memory), VCPUs: l.opts.VCPUs, CPU: "qemu64",
		Boot: colo.Boot{
			Kernel: l.opts.Assets.Kernel, Initrd: l.opts.Assets.Initrd,
			Append: guest.CommandLine(guest.Network{Addresses: []string{l.guestAddresses()}}),
		},
		Disks:      []colo.DiskSpec{{Name: "vda", File: "vda.raw", Format: "raw", Size: colo.Size(l.opts.Disk)}},
		NICs:       []colo.NICSpec{{Name: "net0", Bridge: NodeBridge, MAC: guestMAC.String()}},
		Protection: colo.ProtectionSpec{Level: colo.LevelNone, Comparer: l.opts.Comparer, SyncSpeed: colo.Size(l.opts.SyncSpeed)},
	}
	if l.opts.Data > 0 {
		s.Disks = append(s.Disks, colo.DiskSpec{Name: dataDisk, File: dataFile, Format: "raw", Size: colo.Size(l.opts.Data)})
	}
	return s
}

// Boot makes the VM on a node, starts it there and returns when its services answer.
func (l *Lab) Boot(ctx context.Context, node string) error {
	n := l.nodes[node]
	if err := guest.FormatDisk(ctx, n.path("disks", "vda.raw"), l.opts.Disk); err != nil {
		return err
	}
	if l.opts.Data > 0 {
		if err := makeData(n.path("disks", dataFile), l.opts.Data, l.opts.Filled); err != nil {
			return err
		}
	}
	text, err := colo.MarshalSpec(l.Spec())
	if err != nil {
		return err
	}
	if _, err := n.Client.Create(ctx, api.SpecText{YAML: text, File: VM + ".yaml", Reason: "the lab's guest"}); err != nil {
		return err
	}
	op, err := n.Client.Start(ctx, VM, api.Request{})
	if err := await(ctx, n, op, err); err != nil {
		return err
	}
	return l.awaitGuest(ctx)
}

// await waits for the end of an operation that has just been asked for.
func await(ctx context.Context, n *Node, op api.Operation, err error) error {
	if err == nil {
		_, err = n.Client.Wait(ctx, op.ID, nil)
	}
	return err
}

// awaitGuest polls: a guest that boots can't tell anybody.
func (l *Lab) awaitGuest(ctx context.Context) error {
	return l.awaitHTTP(ctx, guestAddr(service.PortHTTP), time.Second)
}

func (l *Lab) awaitHTTP(ctx context.Context, addr string, patience time.Duration) error {
	client := newHTTPClient(l.Dial, patience)
	defer client.CloseIdleConnections()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		_, err := fetchID(ctx, client, "http://"+addr+"/id")
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

// guestAddresses are what the guest gives its interface.
func (l *Lab) guestAddresses() string {
	addr := netip.PrefixFrom(GuestAddr, 24).String()
	if l.opts.IPv6 {
		addr += "," + netip.PrefixFrom(GuestAddr6, 64).String()
	}
	return addr
}

func guestAddr6(port int) string { return net.JoinHostPort(GuestAddr6.String(), strconv.Itoa(port)) }

func guestAddr(port int) string { return addrOf(GuestAddr, port) }

func addrOf(a netip.Addr, port int) string { return net.JoinHostPort(a.String(), strconv.Itoa(port)) }

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

// Protect asks for the VM to be made redundant, and waits for it. From then on the daemons see to it.
func (l *Lab) Protect(ctx context.Context) error {
	name, err := l.Primary(ctx)
	if err != nil {
		return err
	}
	n := l.nodes[name]
	op, err := n.Client.Protect(ctx, VM, api.ResyncRequest{})
	return await(ctx, n, op, err)
}

// CutLinks cuts every replication link. The nodes' daemons still reach each other on the management network.
func (l *Lab) CutLinks(how Cut) error {
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
	return err
}

// BrokenVoices applies the rule of [Breaches] to all that was heard so far, and describes each frame that breaks it.
func (l *Lab) BrokenVoices() ([]string, error) {
	if len(l.guests) == 0 {
		return brokenVoices(l.sniffers, l.Grants.List())
	}
	var all []string
	for _, g := range l.guests {
		some, err := brokenVoices(g.sniffers, l.Grants.Of(g.id))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", g.Name, err)
		}
		for _, s := range some {
			all = append(all, g.Name+": "+s)
		}
	}
	return all, nil
}

func brokenVoices(sniffers map[string]*Sniffer, grants []Grant) ([]string, error) {
	frames := map[string][]int64{}
	for name, s := range sniffers {
		f, err := s.Frames()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		frames[name] = f
	}
	var out []string
	for _, b := range Breaches(frames, grants) {
		out = append(out, b.describe(sniffers[b.Node].Kind(b.At), grants))
	}
	return out, nil
}

// note is told of a daemon that has ended by itself.
func (l *Lab) note(p *process) {
	l.fail(fmt.Errorf("%s has ended by itself: %w", p.Name, exitError(p.err)))
}

func (l *Lab) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wrong = append(l.wrong, err)
}

// Err is what has gone wrong beside the steps of a scenario: a daemon that has ended by itself.
func (l *Lab) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return errors.Join(l.wrong...)
}

// closeTimeout is how long processes that were killed may take to end.
const closeTimeout = 20 * time.Second

// Close ends the daemons, their QEMUs and the networks.
func (l *Lab) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	var err error
	for _, n := range l.nodes {
		err = errors.Join(err, n.end(ctx))
	}
	err = errors.Join(err, l.Voter.Kill())
	l.wg.Wait()
	if l.opts.SmallState {
		for _, name := range NodeNames {
			if e := unix.Unmount(l.path(name, "state"), unix.MNT_DETACH); e != nil && !errors.Is(e, unix.EINVAL) {
				err = errors.Join(err, e)
			}
		}
	}
	for _, s := range l.sniffers {
		err = errors.Join(err, s.Close())
	}
	for _, g := range l.guests {
		for _, s := range g.sniffers {
			err = errors.Join(err, s.Close())
		}
	}
	if l.Topology != nil {
		err = errors.Join(err, l.Topology.Close())
	}
	return err
}
