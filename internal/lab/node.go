package lab

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"syscall"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/state"
)

// ErrPowerOff is returned for a node whose power is off.
var ErrPowerOff = errors.New("the node's power is off")

// Node is one host of the lab. Engine is nil while its power is off.
type Node struct {
	Name   string
	Engine *colo.Node

	lab   *Lab
	store *state.Store
	stop  context.CancelFunc // of the journal's subscription
}

func (n *Node) path(elem string) string { return filepath.Join(n.lab.opts.Dir, n.Name, elem) }
func (n *Node) runDir() string          { return n.path("run") }
func (n *Node) storageDir() string      { return n.path("disks") }

// start makes the node's engine from what its folders hold.
func (n *Node) start(ctx context.Context) (err error) {
	l := n.lab
	ports := colo.PortRange{First: 9000, Last: 9099}
	n.store, err = state.Open(n.path("state.db"), &state.Options{Node: n.Name, Ports: state.PortRange(ports)})
	if err != nil {
		return err
	}
	cfg := colo.NodeConfig{
		Name: n.Name, RunDir: n.runDir(), StorageDir: n.storageDir(), Ports: ports, Netns: l.Topology.Nodes[n.Name].Netns(),
		QEMU: l.opts.Assets.QEMU, QEMUImg: l.opts.Assets.QEMUImg, Accel: l.opts.Assets.Accel, Store: n.store,
		Arbiter: watched{l.Arbiter.View(n.Name), l.Grants}, HeartbeatKey: l.key, Log: l.log.With("node", n.Name),
	}
	for _, link := range l.Topology.Links {
		cfg.Links = append(cfg.Links, colo.Link{Name: link.Name, Address: link.Addrs[n.Name].Addr()})
	}
	n.Engine, err = colo.NewNode(ctx, cfg)
	if err != nil {
		return errors.Join(err, n.store.Close())
	}
	watch, stop := context.WithCancel(context.WithoutCancel(ctx))
	n.stop = stop
	events := n.Engine.Watch(watch)
	l.wg.Go(func() { l.Journal.follow(events) })
	return nil
}

// Status asks the node.
func (n *Node) Status(ctx context.Context) (colo.Status, error) {
	if n.Engine == nil {
		return colo.Status{}, fmt.Errorf("%s: %w", n.Name, ErrPowerOff)
	}
	return n.Engine.Status(ctx, VM)
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

// PowerOff does what the loss of the host's power does: its cables go dark, its QEMU and its engine end without a word. What it wrote to
// its folders stays.
func (n *Node) PowerOff(ctx context.Context) error {
	if n.Engine == nil {
		return nil
	}
	status, err := n.Status(ctx)
	if err != nil {
		return err
	}
	// Dark first: nothing that ends may still send anything.
	n.lab.wire.SetUp(false)
	err = n.lab.Topology.SetPower(n.Name, false)
	if status.PID != 0 {
		err = errors.Join(err, syscall.Kill(status.PID, syscall.SIGKILL))
	}
	return errors.Join(err, n.close())
}

// PowerOn is the return of the power: the engine starts from what its folders hold and meets its peer again.
func (n *Node) PowerOn(ctx context.Context) error {
	if n.Engine != nil {
		return nil
	}
	if err := n.lab.Topology.SetPower(n.Name, true); err != nil {
		return err
	}
	if err := n.start(ctx); err != nil {
		return err
	}
	if err := n.lab.wire.Replace(n.Engine); err != nil {
		return err
	}
	n.lab.wire.SetUp(true)
	return nil
}

// close ends the engine, not its QEMU.
func (n *Node) close() error {
	if n.Engine == nil {
		return nil
	}
	err := n.Engine.Close()
	n.stop()
	err = errors.Join(err, n.store.Close())
	n.Engine, n.store = nil, nil
	return err
}

// end ends the engine and its QEMU.
func (n *Node) end() error {
	if n.Engine == nil {
		return nil
	}
	ctx := context.Background()
	status, err := n.Status(ctx)
	if err == nil && status.PID != 0 {
		_ = syscall.Kill(status.PID, syscall.SIGKILL) // it may just have ended
	}
	return n.close()
}
