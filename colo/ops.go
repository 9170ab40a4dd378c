package colo

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/coloctl/coloctl/state"
)

// StopOptions tunes Stop.
type StopOptions struct {
	Force   bool          // end QEMU at once instead of asking the guest
	Timeout time.Duration // for the guest to shut down; 1m when 0
}

// Create makes a VM on this node: its record, and those of its disk images that are missing. It is not started.
func (n *Node) Create(ctx context.Context, s *Spec) error {
	if err := s.Validate(); err != nil {
		return err
	}
	release, err := n.reserve(s.Name)
	if err != nil {
		return err
	}
	defer release()
	if err := n.launcher.Check(ctx, s); err != nil && !errors.Is(err, ErrImageMissing) {
		return err
	}
	if _, err := n.launcher.CreateImages(ctx, s); err != nil {
		return err
	}
	_, err = n.create(s, "")
	return err
}

// reserve keeps a name for a VM that is being made. Nothing that touches a disk is done with mu held: failovers need it.
func (n *Node) reserve(name string) (release func(), err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return nil, ErrClosed
	}
	if _, making := n.making[name]; making || n.machines[name] != nil {
		return nil, fmt.Errorf("%s: %w (%s)", name, ErrVMExists, n.cfg.Name)
	}
	n.making[name] = struct{}{}
	return func() {
		n.mu.Lock()
		delete(n.making, name)
		n.mu.Unlock()
	}, nil
}

// create stores a new VM whose name is reserved.
func (n *Node) create(s *Spec, id string) (*machine, error) {
	text, err := MarshalSpec(s)
	if err != nil {
		return nil, err
	}
	if err := n.cfg.Records.Create(state.VM{Name: s.Name, ID: id, Spec: text, Phase: string(Stopped)}); err != nil {
		return nil, err
	}
	rec, err := n.cfg.Records.Get(s.Name)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return nil, ErrClosed
	}
	return n.add(s, &rec), nil
}

func (n *Node) ask(ctx context.Context, vm string, kind EventKind, args any) error {
	m, err := n.machine(vm)
	if err != nil {
		return err
	}
	return m.request(ctx, kind, args)
}

// Start boots a VM here, alone. It is refused when this node's copy is not current. A node with [Recovery] protects it then, unless the VM's
// spec wants none.
func (n *Node) Start(ctx context.Context, vm string) error {
	m, err := n.machine(vm)
	if err != nil {
		return err
	}
	if err := m.request(ctx, ReqStart, nil); err != nil {
		return err
	}
	w := WantProtected
	if _, spec := m.info(); spec.Protection.Level == LevelNone {
		w = WantRunning
	}
	return m.want(ctx, w)
}

// Protect makes a VM that runs here redundant and returns when it is protected. The guest goes on running meanwhile. When ctx ends the attempt
// is taken back.
func (n *Node) Protect(ctx context.Context, vm string, o ProtectOptions) error {
	m, err := n.machine(vm)
	if err != nil {
		return err
	}
	if err := m.want(ctx, WantProtected); err != nil {
		return err
	}
	was := m.State()
	err = m.request(ctx, ReqProtect, o)
	if ctx.Err() != nil && was == Solo {
		uctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		_ = m.request(uctx, ReqUnprotect, nil) // it may have become protected in this moment: that is taken back too
	}
	return err
}

// Unprotect lets a protected VM run alone here. A protection that is being set up is given up.
func (n *Node) Unprotect(ctx context.Context, vm string) error {
	m, err := n.machine(vm)
	if err != nil {
		return err
	}
	if err := m.want(ctx, WantRunning); err != nil { // first: it must not be protected again meanwhile
		return err
	}
	return m.request(ctx, ReqUnprotect, nil)
}

// Switchover gives the role of the primary to the peer. The VM is unprotected afterwards, running on the peer.
func (n *Node) Switchover(ctx context.Context, vm string) error {
	return n.ask(ctx, vm, ReqSwitchover, nil)
}

// Force lets a copy that waits for the arbiter's word go on without it. The caller vouches that the other copy is dead: if it is not, two
// copies of the VM speak from now on.
func (n *Node) Force(ctx context.Context, vm string) error { return n.ask(ctx, vm, ReqForce, nil) }

// Stop shuts a VM down that runs here. A protected one is unprotected first.
func (n *Node) Stop(ctx context.Context, vm string, o StopOptions) error {
	m, err := n.machine(vm)
	if err != nil {
		return err
	}
	switch m.State() {
	case Protected, Syncing, Attaching:
		if err := m.request(ctx, ReqUnprotect, nil); err != nil {
			return err
		}
	}
	return m.request(ctx, ReqStop, o)
}

// DeleteOptions tunes Delete.
type DeleteOptions struct {
	Images bool // delete the disk images too
}

// Delete forgets a VM that doesn't run. Its images stay unless asked otherwise.
func (n *Node) Delete(ctx context.Context, vm string, o DeleteOptions) error {
	m, err := n.machine(vm)
	if err != nil {
		return err
	}
	switch s := m.State(); s {
	case Stopped, Outdated, Failed:
	default:
		return &UnexpectedEventError{VM: vm, State: s, Event: "delete"}
	}
	rec, spec := m.info()
	if n.cfg.Arbiter != nil && aloneIn(rec, n.cfg.Name) { // an outdated half must not take the other's record along
		if err := n.cfg.Arbiter.Forget(ctx, rec.ID, rec.Generation); err != nil {
			return err
		}
	}
	if err := n.launcher.Remove(ctx, spec, o.Images); err != nil {
		return err
	}
	if err := n.cfg.Records.Delete(vm); err != nil {
		return err
	}
	n.mu.Lock()
	delete(n.machines, vm)
	n.mu.Unlock()
	m.end()
	return nil
}
