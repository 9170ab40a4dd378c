package colo

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/coloctl/coloctl/colo/arbiter"
	"github.com/coloctl/coloctl/state"
)

// StopOptions tunes Stop.
type StopOptions struct {
	Force   bool          // end QEMU at once instead of asking the guest
	Timeout time.Duration // for the guest to shut down; 1m when 0
}

// Create makes a VM on this node: its record, and those of its disk images that are missing. It is not started.
func (n *Node) Create(ctx context.Context, s *Spec) error {
	release, err := n.place(ctx, s)
	if err != nil {
		return err
	}
	defer release()
	if _, err := n.launcher.CreateImages(ctx, s); err != nil {
		return err
	}
	_, err = n.create(s, "", arbiter.Record{})
	return err
}

// CheckCreate tells why Create would be refused now, and makes nothing.
func (n *Node) CheckCreate(ctx context.Context, s *Spec) error {
	release, err := n.place(ctx, s)
	if err != nil {
		return err
	}
	release()
	return nil
}

// place reserves the name of a new VM that this node can have. Images that are missing are no reason against it: they are made.
func (n *Node) place(ctx context.Context, s *Spec) (release func(), err error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	if err := n.candidate(s); err != nil {
		return nil, err
	}
	if release, err = n.reserve(s.Name); err != nil {
		return nil, err
	}
	if err = errors.Join(n.admit(s, false), n.imagesFree(s)); err == nil {
		err = forNew(n.launcher.Check(ctx, s))
	}
	if err != nil {
		release()
		return nil, err
	}
	return release, nil
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

// create stores a new VM whose name is reserved. One that the peer runs already belongs to the peer.
func (n *Node) create(s *Spec, id string, held arbiter.Record) (*machine, error) {
	text, err := MarshalSpec(s)
	if err != nil {
		return nil, err
	}
	if err := n.cfg.Records.Create(state.VM{Name: s.Name, ID: id, Spec: text, Phase: string(Stopped), Generation: held.Generation, Members: held.Members}); err != nil {
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
	return n.add(s, &rec, nil), nil
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
//
// When ctx ends before, the start is taken back, if it was this call that has begun it.
func (n *Node) Start(ctx context.Context, vm string) error {
	return n.StartWith(ctx, vm, StartOptions{})
}

// StartOptions tunes StartWith.
type StartOptions struct {
	// AcceptDataLoss boots the copy here though it may be old or is known to be incomplete: whatever clients have seen since then is lost. A copy that
	// runs on the peer still forbids it. The caller vouches that none does where the peer can't be asked.
	AcceptDataLoss bool
}

// StartWith is Start with options.
func (n *Node) StartWith(ctx context.Context, vm string, o StartOptions) error {
	m, err := n.machine(vm)
	if err != nil {
		return err
	}
	if err := m.admitted(); err != nil {
		return err
	}
	if o.AcceptDataLoss {
		n.Remark(vm, "data-loss", "start of a copy that may be old or incomplete: the loss is accepted")
	}
	var began atomic.Bool
	if err := m.requestBegan(ctx, ReqStart, o, &began); err != nil {
		if ctx.Err() != nil && began.Load() {
			err = errors.Join(err, m.takeBack(ctx, ReqStop, StopOptions{Force: true}))
		}
		return err
	}
	w := WantProtected
	if _, spec := m.info(); spec.Protection.Level == LevelNone {
		w = WantRunning
	}
	return m.want(ctx, w)
}

// admitted refuses a VM that is down and that this node has no room for.
func (m *machine) admitted() error {
	if m.current() != nil {
		return nil
	}
	_, spec := m.info()
	return m.n.admit(spec, false)
}

// Protect makes a VM that runs here redundant and returns when it is protected. The guest goes on running meanwhile. When ctx ends the attempt
// is taken back, unless it was under way before this call, which then has only waited for it.
func (n *Node) Protect(ctx context.Context, vm string, o ProtectOptions) error {
	m, err := n.machine(vm)
	if err != nil {
		return err
	}
	if err := m.joinable(m.State(), o); err != nil {
		return err
	}
	if err := m.choose(o.Node); err != nil {
		return err
	}
	var began atomic.Bool
	err = m.wanting(ctx, WantProtected, ReqProtect, func() error { return m.requestBegan(ctx, ReqProtect, o, &began) })
	if cerr := m.chosen(o.Node); err == nil { // it may have been under way with another one
		err = cerr
	}
	if ctx.Err() != nil && began.Load() { // it may have become protected in this moment: that is taken back too
		_ = m.takeBack(ctx, ReqUnprotect, nil)
	}
	return err
}

// joinable refuses a mode for a protection that is under way: its own is chosen.
func (m *machine) joinable(s State, o ProtectOptions) error {
	if o.Mode != "" && (s == Syncing || s == Attaching) {
		return &UnexpectedEventError{VM: m.name, State: s, Event: ReqProtect}
	}
	return nil
}

// takeBack undoes what a caller has begun who has given up.
func (m *machine) takeBack(ctx context.Context, kind EventKind, args any) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	return m.request(ctx, kind, args)
}

// Unprotect lets a protected VM run alone here. A protection that is being set up is given up.
func (n *Node) Unprotect(ctx context.Context, vm string) error {
	m, err := n.machine(vm)
	if err != nil {
		return err
	}
	return m.wanting(ctx, WantRunning, ReqUnprotect, func() error { return m.request(ctx, ReqUnprotect, nil) })
}

// Switchover gives the role of the primary to the peer. The VM is unprotected afterwards, running on the peer.
func (n *Node) Switchover(ctx context.Context, vm string) error {
	return n.ask(ctx, vm, ReqSwitchover, nil)
}

// ErrNotProtected is returned by Checkpoint for a VM whose primary in COLO is not here.
var ErrNotProtected = errors.New("not protected by this node")

// Checkpoint makes both copies of a VM equal now, and returns when they are: all that the guest has done before the call is
// on both nodes then. The primary must be here.
func (n *Node) Checkpoint(ctx context.Context, vm string) error {
	m, err := n.machine(vm)
	if err != nil {
		return err
	}
	c, err := m.inColo()
	if err != nil {
		return err
	}
	if err := c.Checkpoint(ctx); err != nil {
		return fmt.Errorf("%s: %w", vm, err)
	}
	return nil
}

// inColo is the primary that runs here in COLO.
func (m *machine) inColo() (Copy, error) {
	c := m.current()
	if s := m.State(); s != Protected || c == nil {
		return nil, fmt.Errorf("%s: %w: it is %s here", m.name, ErrNotProtected, s)
	}
	return c, nil
}

// Force lets a copy that waits for the arbiter's word go on without it. The caller vouches that the other copy is dead, and did not go on
// alone before: if it is not, two copies of the VM speak from now on.
func (n *Node) Force(ctx context.Context, vm string) error {
	return n.ForceWith(ctx, vm, ForceOptions{})
}

// ForceOptions tunes ForceWith.
type ForceOptions struct {
	AcceptDataLoss bool // also when the arbiter has let another copy go on
}

// ForceWith is Force with options.
func (n *Node) ForceWith(ctx context.Context, vm string, o ForceOptions) error {
	m, err := n.machine(vm)
	if err != nil {
		return err
	}
	if err := m.forcible(ctx, o); err != nil {
		return err
	}
	if o.AcceptDataLoss {
		n.Remark(vm, "data-loss", "failover against the arbiter's word: the loss of what the other copy wrote is accepted")
	}
	return n.ask(ctx, vm, ReqForce, o)
}

// forcible refuses to take a person's word against what others know.
func (m *machine) forcible(ctx context.Context, o ForceOptions) error {
	if err := m.runsOnAnother(ctx); err != nil { // it has taken the other one's place: nobody can vouch that it is dead
		return err
	}
	if o.AcceptDataLoss {
		return nil
	}
	return m.n.nobodyElse(ctx, m.name)
}

// nobodyElse is an error when the arbiter says that it has let another copy go on: then nobody can vouch that it did not.
func (n *Node) nobodyElse(ctx context.Context, vm string) error {
	m, err := n.machine(vm)
	if err != nil || n.cfg.Arbiter == nil {
		return err
	}
	held, err := m.held(ctx)
	if err != nil || held.Has(n.cfg.Name) {
		return ctx.Err() // it is for the person to know
	}
	return fmt.Errorf("%s on %s: %w: the arbiter has let %v go on in generation %d; what clients have seen since would be lost, which only --accept-data-loss allows",
		vm, n.cfg.Name, ErrNotCurrent, held.Members, held.Generation)
}

// Stop shuts a VM down that runs here. A protected one is unprotected first. A copy that waits for the arbiter's word is ended by force only, as a loss of power
// would. One that is down stays so: a node with [Recovery] doesn't start it by itself any more.
func (n *Node) Stop(ctx context.Context, vm string, o StopOptions) error {
	m, err := n.machine(vm)
	if err != nil {
		return err
	}
	if err := m.ping(ctx); err != nil { // a node that has just started knows only then what runs on it
		return err
	}
	s := m.State()
	if err := m.stopRefused(s, o); err != nil {
		return err
	}
	switch s {
	case Protected, Syncing, Attaching:
		if err := m.request(ctx, ReqUnprotect, nil); err != nil {
			return err
		}
	case Arbitrating, Stopped, Outdated, Starting: // it is down, or to be ended, and is not to be started by itself
		if err := m.want(ctx, WantStopped); err != nil {
			return err
		}
	}
	return m.request(ctx, ReqStop, o)
}

// stopRefused says why a copy in a state is not stopped but by force.
func (m *machine) stopRefused(s State, o StopOptions) error {
	if o.Force {
		return nil
	}
	switch s {
	case Arbitrating: // its guest can't be asked: nobody hears it
		return fmt.Errorf("%w: it is not decided yet who goes on, and only --force ends this copy", &UnexpectedEventError{VM: m.name, State: s, Event: ReqStop})
	case Failed:
		if rec, _ := m.info(); m.current() == nil && rec.Instance != nil { // it is asked again and again, see reattach
			return fmt.Errorf("%w: its QEMU, process %d, does not answer, so its guest can't be asked, and only --force ends it",
				&UnexpectedEventError{VM: m.name, State: s, Event: ReqStop}, rec.Instance.PID)
		}
	}
	return nil
}

// DeleteOptions tunes Delete.
type DeleteOptions struct {
	Images bool // delete the disk images too
}

// Delete forgets a VM that doesn't run. Its images stay unless asked otherwise.
func (n *Node) Delete(ctx context.Context, vm string, o DeleteOptions) error {
	return n.ask(ctx, vm, ReqDelete, o)
}

// deletePlan forgets the VM. Nothing else is begun before it has ended. One that was interrupted is asked for again.
func (m *machine) deletePlan(o DeleteOptions) *Plan {
	return &Plan{Kind: planDelete, NoReturn: 1, Steps: []Step{
		{Name: "let the arbiter forget it", Do: func(ctx context.Context) error {
			if err := m.noBackup(); err != nil {
				return err
			}
			if m.current() != nil { // its end has failed
				return errors.New("a QEMU of this VM is still there: stop it first")
			}
			rec, _ := m.info()
			if m.n.cfg.Arbiter == nil || !aloneIn(rec, m.n.cfg.Name) { // an outdated half must not take the other's record along
				return nil
			}
			ctx, cancel := context.WithTimeout(ctx, arbiterTimeout)
			defer cancel()
			return m.n.cfg.Arbiter.Forget(ctx, rec.ID, rec.Generation)
		}},
		{Name: "remove its files", Do: func(ctx context.Context) error {
			_, spec := m.info()
			return m.n.launcher.Remove(ctx, spec, o.Images)
		}},
		{Name: "remove its record", Do: func(context.Context) error { return m.n.cfg.Records.Delete(m.name) }},
	}}
}

// gone ends the machine of a VM that was deleted. It is called by the machine's own goroutine.
func (m *machine) gone() {
	m.n.mu.Lock()
	delete(m.n.machines, m.name)
	m.n.mu.Unlock()
	if m.following != nil {
		m.following.answer(fmt.Errorf("%s: %w (%s)", m.name, ErrNoVM, m.n.cfg.Name))
		m.following = nil
	}
	m.end()
}
