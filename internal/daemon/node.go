package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/api"
	"github.com/coloctl/coloctl/colo/api/pki"
	"github.com/coloctl/coloctl/colo/arbiter"
	"github.com/coloctl/coloctl/colo/config"
	"github.com/coloctl/coloctl/colo/heartbeat"
	"github.com/coloctl/coloctl/internal/netns"
	"github.com/coloctl/coloctl/netcompare"
	"github.com/coloctl/coloctl/state"
)

// node is a running daemon.
type node struct {
	p     Program
	file  string
	cfg   *config.Config // only its reloadable fields change
	log   *slog.Logger
	level *slog.LevelVar
	creds *pki.Credentials
	node  *colo.Node
	api   *api.Server
	peers []*api.Peer // as configured
	greet []*greeter  // one for each
	look  *looker     // nil without an arbiter
	gate  error       // why there is none in the kernel
	fatal chan error  // of a part that must not end
	wg    sync.WaitGroup
}

// closing collects what has to be undone, in reverse.
type closing []func() error

func (c *closing) add(f func() error) { *c = append(*c, f) }

func (c closing) run() error {
	var errs []error
	for _, f := range slices.Backward(c) {
		errs = append(errs, f())
	}
	return errors.Join(errs...)
}

// stopTimeout is how long requests may take when the daemon ends.
const stopTimeout = 5 * time.Second

// runNode runs the daemon until ctx ends.
func (p Program) runNode(ctx context.Context, file string, hup <-chan os.Signal) (err error) {
	cfg, err := config.Load(file)
	if err != nil {
		return err
	}
	d := &node{p: p, file: file, cfg: cfg, level: &slog.LevelVar{}, fatal: make(chan error, 1)}
	d.log = newLogger(p.Stderr, cfg.Log, d.level)
	var end closing
	// What waits for the parts to end must be able to tell them to.
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer func() {
		err = errors.Join(err, end.run())
		stop()
		d.log.Info("ended", "node", cfg.Node)
	}()
	if err := d.open(work, stop, &end); err != nil {
		return err
	}
	notify := newNotifier(d.log)
	end.add(func() error { notify.stopping(); return nil })
	d.wg.Go(func() { notify.watchdog(work, d.healthy) })
	if err := d.arm(work, &end); err != nil {
		return err
	}
	notify.ready(fmt.Sprintf("%s runs %d VMs' state machines", cfg.Node, len(d.node.VMs())))
	d.log.Info("ready", "node", cfg.Node, "version", p.Version, "pid", os.Getpid())
	for {
		select {
		case <-ctx.Done():
			d.log.Info("ending: QEMUs run on", "node", cfg.Node)
			return nil
		case err := <-d.fatal:
			return err
		case <-hup:
			notify.reloading()
			d.reload()
			notify.ready("")
		}
	}
}

// open opens everything in order and notes how to close it.
func (d *node) open(ctx context.Context, stop context.CancelFunc, end *closing) (err error) {
	c := d.cfg
	end.add(func() error { stop(); d.wg.Wait(); return nil })
	if d.creds, err = c.Credentials(); err != nil {
		return err
	}
	if err := d.creds.Err(); err != nil {
		d.log.Error("certificate: the peer and the witness will refuse this node", "node", c.Node, "err", err)
	} else if w := config.ExpiryWarning(d.creds); w != "" {
		d.log.Warn(w, "node", c.Node)
	}
	key, err := config.ReadKey(c.Heartbeat.KeyFile)
	if err != nil {
		return fmt.Errorf("heartbeat key: %w", err)
	}
	if err := folders(c); err != nil {
		return err
	}
	store, err := state.Open(c.StateFile(), &state.Options{Node: c.Node})
	if err != nil {
		return err
	}
	end.add(store.Close)
	for _, p := range c.Peers {
		peer, err := api.NewPeer(api.ClientOptions{Node: p.Name, Addresses: p.API, Credentials: d.creds})
		if err != nil {
			return err
		}
		d.peers = append(d.peers, peer)
	}
	var only *api.Peer // whom an arbiter may ask that two nodes keep between them
	if len(d.peers) == 1 {
		only = d.peers[0]
	}
	arb, err := d.p.openArbiter(ctx, Env{Config: c, Credentials: d.creds, Peer: only, Consent: d.consent, Log: d.log})
	if err != nil {
		return fmt.Errorf("arbiter: %w", err)
	}
	if arb.Close != nil {
		end.add(arb.Close)
	}
	if arb.Run != nil {
		actx, astop := context.WithCancel(ctx)
		done := make(chan struct{})
		go func() {
			defer close(done)
			if err := arb.Run(actx); err != nil && actx.Err() == nil {
				d.fail(fmt.Errorf("arbiter: %w", err))
			}
		}()
		end.add(func() error { astop(); <-done; return nil })
	}
	nc := c.NodeConfig()
	memory, err := totalMemory()
	if err != nil {
		d.log.Warn("how much memory this host has is not known: VMs are refused for want of it only with limits in the node's file", "node", c.Node, "err", err)
	}
	nc.Limits = c.LimitsOf(memory, runtime.NumCPU())
	if len(c.Peers) > 1 {
		nc.ListenPacket = heartbeat.Share(func(ctx context.Context, local netip.AddrPort) (net.PacketConn, error) {
			return netns.ListenPacket(ctx, c.Netns, "udp", local.String())
		})
	}
	nc.Store, nc.HeartbeatKey, nc.Log = store, key, d.log
	if exe, err := os.Executable(); err == nil {
		nc.Comparer = []string{exe, "compare"}
	} else {
		d.log.Warn("no comparer of streams: this program can't find itself", "err", err)
	}
	if arb.Arbiter != nil {
		nc.Arbiter = arb.Arbiter
		d.look = newLooker(arb, c.Node, d.log)
	} else {
		d.log.Warn("no arbiter is configured: after a loss only proof or a person lets a secondary go on", "node", c.Node)
	}
	if d.gate = (netcompare.Host{Netns: c.Netns}).CheckGate(ctx); d.gate != nil {
		d.log.Warn("no gate in the kernel: while this daemon stands still a primary's ARP and IPv6 are not held", "node", c.Node, "err", d.gate)
	}
	if d.p.Launcher != nil {
		nc.Launcher = d.p.Launcher(c)
	}
	if d.node, err = colo.NewNode(ctx, nc); err != nil {
		return err
	}
	end.add(func() error {
		err := d.node.Close()
		if d.api != nil {
			d.api.Wait() // its operations end with the node
		}
		return err
	})
	if err := d.connect(); err != nil {
		return err
	}
	if err := d.serve(ctx, arb); err != nil {
		return err
	}
	end.add(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
		defer cancel()
		if err := d.api.Close(ctx); err != nil {
			d.log.Warn("requests were cut short", "node", c.Node, "err", err)
		}
		return nil
	})
	for _, g := range d.greet {
		d.wg.Go(func() { g.run(ctx) })
	}
	if d.look != nil {
		lctx, lstop := context.WithCancel(ctx)
		done := make(chan struct{})
		go func() { defer close(done); d.look.run(lctx) }()
		end.add(func() error { lstop(); <-done; return nil }) // before the arbiter is closed
	}
	return nil
}

// totalMemory is the host's, in bytes.
func totalMemory() (int64, error) {
	var si unix.Sysinfo_t
	if err := unix.Sysinfo(&si); err != nil {
		return 0, os.NewSyscallError("sysinfo", err)
	}
	return int64(si.Totalram) * int64(si.Unit), nil
}

// fail ends the daemon with the first of the errors it gets.
func (d *node) fail(err error) {
	select {
	case d.fatal <- err:
	default:
	}
}

// folders makes the run folder, which is lost at a reboot. The others must be there: one that is missing is more often one that is not mounted.
func folders(c *config.Config) error {
	if err := os.MkdirAll(c.RunDir, 0o755); err != nil {
		return err
	}
	if st, err := os.Stat(c.StorageDir); err != nil || !st.IsDir() {
		return fmt.Errorf("storage folder %s is not there: mount it or make it, owned by the daemon's user, mode 0700", c.StorageDir)
	}
	return nil
}

// consent answers the peer that wants to go on without this node's copy.
func (d *node) consent(ctx context.Context, next arbiter.Record) error {
	if d.node == nil { // not yet; the peer asks again
		return fmt.Errorf("%s has just started", d.cfg.Node)
	}
	return d.node.Consent(ctx, next)
}

// connect makes the peers this node's partners. They need not be there.
func (d *node) connect() error {
	for i, p := range d.peers {
		info := d.cfg.Peers[i].Info()
		d.greet = append(d.greet, newGreeter(p, d.cfg.Node, info, d.node.Info(), d.log))
		if err := d.node.Connect(p, info); err != nil {
			return err
		}
	}
	return nil
}

// peerStatus asks the peer that a VM has at the moment how it stands there.
func (d *node) peerStatus(ctx context.Context, vm string) (colo.Status, error) {
	name := d.node.PeerOf(vm)
	for i, p := range d.peers {
		if d.cfg.Peers[i].Name == name {
			return p.PeerStatus(ctx, vm)
		}
	}
	return d.peers[0].PeerStatus(ctx, vm)
}

// healthLimit is how long the engine may take to show that it works.
const healthLimit = 5 * time.Second

// healthy is what both watchdogs stand for: every VM's state machine takes events, leases are looked after, and the store can be read.
func (d *node) healthy() error {
	ctx, cancel := context.WithTimeout(context.Background(), healthLimit)
	defer cancel()
	if err := d.node.Alive(ctx); err != nil {
		return err
	}
	_, err := d.node.History(state.Query{Node: true, Limit: 1})
	return err
}
