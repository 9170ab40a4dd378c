package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/coloctl/coloctl/colo/api"
	"github.com/coloctl/coloctl/internal/libvirtd"
)

// ErrPowerOff is returned for a node whose power is off.
var ErrPowerOff = errors.New("the node's power is off")

// Node is one host of the lab, on which a colod runs. Its methods are for one goroutine, except Status.
type Node struct {
	Name string
	// Client speaks to the daemon, by its socket.
	Client *api.Client

	lab    *Lab
	daemon *process         // nil while it doesn't run
	virt   *libvirtd.Daemon // nil unless libvirt starts the node's QEMUs
	off    bool             // its power is
	lost   int              // how often that was so
}

func newNode(l *Lab, name string) (*Node, error) {
	c, err := api.NewClient(api.ClientOptions{Socket: l.path(name, "run", "api.sock")})
	return &Node{Name: name, Client: c, lab: l}, err
}

func (n *Node) path(elem ...string) string {
	return filepath.Join(append([]string{n.lab.opts.Dir, n.Name}, elem...)...)
}

// StartDaemon starts the daemon with what its folders hold, and returns when it is ready. It does nothing if it runs.
func (n *Node) StartDaemon(ctx context.Context) error {
	if n.off {
		return fmt.Errorf("%s: %w", n.Name, ErrPowerOff)
	}
	if n.daemon != nil {
		return nil
	}
	l := n.lab
	if err := n.startLibvirt(ctx); err != nil {
		return err
	}
	log, err := os.OpenFile(n.path("colod.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	env, err := n.clockEnv()
	if err != nil {
		return err
	}
	p, err := program{
		name: "colod of " + n.Name, host: l.Topology.Nodes[n.Name], dir: n.path(), log: log,
		argv: []string{l.opts.Assets.Daemon, "run", "--config", n.path("colod.yaml")}, env: env,
	}.start(ctx, l.note)
	if err != nil {
		return err
	}
	n.daemon = p
	life, stop := context.WithCancel(context.WithoutCancel(ctx))
	l.wg.Go(func() { l.Journal.follow(life, n.Client) })
	l.wg.Go(func() {
		<-p.done
		stop()
	})
	return nil
}

// KillDaemon ends the daemon as kill -9 does. Its QEMUs go on.
func (n *Node) KillDaemon() error {
	if n.daemon == nil {
		return nil
	}
	err := n.daemon.kill()
	n.daemon = nil
	n.Client.Close()
	return err
}

// DaemonPID is the daemon's process; 0 if none runs.
func (n *Node) DaemonPID() int {
	if n.daemon == nil {
		return 0
	}
	return n.daemon.cmd.Process.Pid
}

// StateFile is the daemon's store.
func (n *Node) StateFile() string { return n.path("state", "state.db") }

// FreezeDaemon stops the daemon without ending it, as a machine that is out of memory does. Its QEMUs go on.
func (n *Node) FreezeDaemon() error { return n.signalDaemon(syscall.SIGSTOP) }

// ThawDaemon lets a frozen daemon go on.
func (n *Node) ThawDaemon() error { return n.signalDaemon(syscall.SIGCONT) }

func (n *Node) signalDaemon(s syscall.Signal) error {
	if n.daemon == nil {
		return fmt.Errorf("%s: no daemon runs", n.Name)
	}
	return n.daemon.signal(s)
}

// statusTimeout is how long a daemon may take to answer; it may be asking the arbiter for a second itself.
const statusTimeout = 3 * time.Second

// Status asks the node's daemon.
func (n *Node) Status(ctx context.Context) (api.BothStatus, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, statusTimeout, fmt.Errorf("no answer within %v", statusTimeout))
	defer cancel()
	return n.Client.Status(ctx, VM, false)
}

// signal sends a signal to the node's QEMU.
func (n *Node) signal(ctx context.Context, s syscall.Signal) error {
	status, err := n.Status(ctx)
	if err != nil {
		return err
	}
	if status.PID == 0 {
		return fmt.Errorf("%s: no QEMU runs here (%s)", n.Name, status.State)
	}
	return syscall.Kill(status.PID, s)
}

// KillQEMU ends the node's QEMU as a crash does.
func (n *Node) KillQEMU(ctx context.Context) error { return n.signal(ctx, syscall.SIGKILL) }

// FreezeQEMU stops the node's QEMU without ending it.
func (n *Node) FreezeQEMU(ctx context.Context) error { return n.signal(ctx, syscall.SIGSTOP) }

// PowerOff does what the loss of the host's power does: its cables go dark, everything that runs on it ends without a word, and its network and
// run folder are forgotten. Its disks keep what was written to them, also what a real machine would have had only in its memory.
func (n *Node) PowerOff(ctx context.Context) error {
	if n.off {
		return nil
	}
	n.off = true
	if n.daemon != nil {
		n.daemon.wanted.Store(true)
	}
	// Dark first: nothing that ends may still send anything.
	top := n.lab.Topology
	err := errors.Join(top.SetPower(n.Name, false), top.Nodes[n.Name].killAll(ctx), n.KillDaemon(), top.forgetNetwork(n.Name))
	if n.virt != nil {
		err = errors.Join(err, n.virt.Lose())
	}
	n.lost++
	return errors.Join(err, os.Rename(n.path("run"), n.path(fmt.Sprintf("run-lost-%d", n.lost))), os.Mkdir(n.path("run"), 0o700))
}

// PowerOn is the return of the power: the daemon starts from what its folders hold.
func (n *Node) PowerOn(ctx context.Context) error {
	if !n.off {
		return nil
	}
	if err := n.lab.Topology.SetPower(n.Name, true); err != nil {
		return err
	}
	n.off = false
	return n.StartDaemon(ctx)
}

// end ends everything on the node.
func (n *Node) end(ctx context.Context) error {
	if n.daemon != nil {
		n.daemon.wanted.Store(true)
	}
	err := errors.Join(n.lab.Topology.Nodes[n.Name].killAll(ctx), n.KillDaemon())
	if n.virt != nil {
		err = errors.Join(err, n.virt.Close())
	}
	return err
}
