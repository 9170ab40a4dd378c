package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/arbiter"
	"github.com/coloctl/coloctl/internal/guest"
	"github.com/coloctl/coloctl/internal/guest/service"
	"github.com/coloctl/coloctl/internal/lab"
	"github.com/coloctl/coloctl/internal/netns"
	"github.com/coloctl/coloctl/netcompare"
	"github.com/coloctl/coloctl/netcompare/comparer"
	"github.com/coloctl/coloctl/state"
)

const (
	vm       = "bench"
	guestMAC = "52:54:00:12:34:56"
	diskSize = 64 << 20
)

// machine is the guest that is measured.
type machine struct {
	memory int64 // bytes
	filled bool  // its memory is full of data
	second int64 // size of a second disk; 0 is none
}

func (m machine) String() string {
	return colo.Size(m.memory).String()
}

// bed is the networks of two hosts and a client, and a guest's images. One VM runs on it at a time.
type bed struct {
	dir    string
	assets *lab.Assets
	top    *lab.Topology
	// comparer is the command that starts one.
	comparer []string
	say      func(format string, args ...any)
}

func newBed(dir string, assets *lab.Assets, say func(string, ...any)) (*bed, error) {
	top, err := lab.NewTopology(1)
	if err != nil {
		return nil, err
	}
	command, err := comparer.Self()
	if err != nil {
		return nil, errors.Join(err, top.Close())
	}
	return &bed{dir: dir, assets: assets, top: top, comparer: command, say: say}, nil
}

func (b *bed) Close() error { return b.top.Close() }

// linkOf returns a node's address on the replication link.
func (b *bed) linkOf(node string) netip.Addr { return b.top.Links[0].Addrs[node].Addr() }

func (b *bed) host(node string) netcompare.Host {
	return netcompare.Host{Netns: b.top.Nodes[node].Netns()}
}

// dial opens connections as the client.
func (b *bed) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	return netns.Dial(ctx, b.top.Client.Netns(), network, addr)
}

func guestAddr(port int) string { return net.JoinHostPort(lab.GuestAddr.String(), strconv.Itoa(port)) }

// folder makes an empty folder for a node, with the guest's disk in it.
func (b *bed) folder(ctx context.Context, node string, disk bool) (string, error) {
	dir := filepath.Join(b.dir, node)
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(filepath.Join(dir, "run"), 0o700)); err != nil {
		return "", err
	}
	if !disk {
		return dir, nil
	}
	return dir, guest.FormatDisk(ctx, filepath.Join(dir, "vda.raw"), diskSize)
}

// initrd returns the image of a guest, which it makes if it has to.
func (b *bed) initrd(m machine) (string, error) {
	if !m.filled {
		return b.assets.Initrd, nil
	}
	path := filepath.Join(b.dir, fmt.Sprintf("initrd-%d", m.memory))
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	return path, fillImage(b.assets.Initrd, path, int64(fillShare*float64(m.memory)))
}

func (b *bed) spec(m machine) (*colo.Spec, error) {
	initrd, err := b.initrd(m)
	s := &colo.Spec{
		Name: vm, Memory: colo.Size(m.memory), CPU: "qemu64",
		Boot: colo.Boot{
			Kernel: b.assets.Kernel, Initrd: initrd,
			Append: guest.CommandLine(guest.Network{Addresses: []string{netip.PrefixFrom(lab.GuestAddr, 24).String()}}),
		},
		Disks: []colo.DiskSpec{{Name: "vda", File: "vda.raw", Size: diskSize}},
		NICs:  []colo.NICSpec{{Name: "net0", Bridge: lab.NodeBridge, MAC: guestMAC}},
	}
	if m.second > 0 {
		s.Disks = append(s.Disks, colo.DiskSpec{Name: "vdb", File: "vdb.raw", Size: colo.Size(m.second)})
	}
	return s, err
}

// awaitGuest polls: a guest that boots can't tell anybody.
func (b *bed) awaitGuest(ctx context.Context) error {
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{DialContext: b.dial, DisableKeepAlives: true}}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := fetch(ctx, client, "/id", io.Discard)
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

// pair is two nodes of the engine with a VM that runs on the first.
type pair struct {
	bed    *bed
	dirs   [2]string
	nodes  [2]*colo.Node
	stores [2]*state.Store
	watch  *stopwatch // of the VM's guest on the first node
}

// startPair boots a VM on the first of two new nodes. The caller must Close the pair.
func (b *bed) startPair(ctx context.Context, m machine) (p *pair, err error) {
	p = &pair{bed: b}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Close())
		}
	}()
	votes := arbiter.NewMemory()
	for i, name := range lab.NodeNames {
		if err := p.startNode(ctx, i, name, votes.View(name)); err != nil {
			return p, err
		}
	}
	if _, err := colo.NewWire(p.nodes[0], p.nodes[1]); err != nil {
		return p, err
	}
	spec, err := b.spec(m)
	if err != nil {
		return p, err
	}
	if err := p.nodes[0].Create(ctx, spec); err != nil {
		return p, err
	}
	if err := p.nodes[0].Start(ctx, vm); err != nil {
		return p, err
	}
	monitor, err := dialMonitor(ctx, p.dirs[0])
	if err != nil {
		return p, err
	}
	p.watch = newStopwatch(monitor)
	return p, b.awaitGuest(ctx)
}

func (p *pair) startNode(ctx context.Context, i int, name string, votes arbiter.Arbiter) (err error) {
	b := p.bed
	if p.dirs[i], err = b.folder(ctx, name, i == 0); err != nil {
		return err
	}
	if p.stores[i], err = state.Open(filepath.Join(p.dirs[i], "state.db"), &state.Options{Node: name}); err != nil {
		return err
	}
	p.nodes[i], err = colo.NewNode(ctx, colo.NodeConfig{
		Name: name, RunDir: filepath.Join(p.dirs[i], "run"), StorageDir: p.dirs[i], Store: p.stores[i],
		Links: []colo.Link{{Name: b.top.Links[0].Name, Address: b.linkOf(name)}}, Ports: colo.PortRange{First: 9000, Last: 9099},
		Netns: b.top.Nodes[name].Netns(), Accel: b.assets.Accel,
		QEMU: append(append([]string{}, b.assets.QEMU...), monitorArgs(p.dirs[i])...), QEMUImg: b.assets.QEMUImg,
		Comparer: b.comparer,
		Arbiter:  votes, HeartbeatKey: make([]byte, 32), Log: slog.New(slog.DiscardHandler),
	})
	return err
}

// compareWith changes the comparer of the VM, which runs alone.
func (p *pair) compareWith(ctx context.Context, comparer string) error {
	s, tag, err := p.nodes[0].Spec(vm)
	if err != nil {
		return err
	}
	s.Protection.Comparer = comparer
	return p.nodes[0].Edit(ctx, vm, s, tag)
}

// protect makes the VM redundant, the disks by a full copy as at the first time.
func (p *pair) protect(ctx context.Context) error {
	if err := p.nodes[0].Protect(ctx, vm, colo.ProtectOptions{}); err != nil {
		return err
	}
	s, err := p.nodes[0].Status(ctx, vm)
	if err == nil && !s.Verdict.Protected {
		err = fmt.Errorf("not protected: %s", s.Verdict.Reason)
	}
	return err
}

func (p *pair) unprotect(ctx context.Context) error { return p.nodes[0].Unprotect(ctx, vm) }

// Close ends the VM and the nodes.
func (p *pair) Close() error {
	var errs []error
	for i, n := range p.nodes {
		if n != nil {
			if s, err := n.Status(context.Background(), vm); err == nil && s.PID != 0 {
				_ = syscall.Kill(s.PID, syscall.SIGKILL) // it may just have ended
			}
		}
		if n != nil {
			errs = append(errs, n.Close())
		}
		if p.stores[i] != nil {
			errs = append(errs, p.stores[i].Close())
		}
	}
	if p.watch != nil {
		<-p.watch.done
	}
	// Taps, their gates and overlays of killed QEMUs are left for whoever starts the VM again.
	for _, name := range lab.NodeNames {
		h := p.bed.host(name)
		errs = append(errs, h.DeleteTap(context.Background(), vm, nic()), h.Unguard(context.Background(), nic()))
	}
	return errors.Join(errs...)
}

func nic() netcompare.NIC {
	return netcompare.NIC{Name: "net0", MAC: guestMAC, Bridge: lab.NodeBridge, Tap: netcompare.TapName(vm, "net0")}
}

// fetch reads a page of the guest.
func fetch(ctx context.Context, client *http.Client, path string, to io.Writer) error {
	return ask(ctx, client, http.MethodGet, path, to)
}

func ask(ctx context.Context, client *http.Client, method, path string, to io.Writer) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://"+guestAddr(service.PortHTTP)+path, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(to, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", path, resp.Status)
	}
	return nil
}
