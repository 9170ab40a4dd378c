package colo

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/coloctl/coloctl/colo/arbiter"
	"github.com/coloctl/coloctl/state"
)

// Errors of RestoreRecord.
var (
	// ErrHasRecord is returned when the arbiter has a record: there is nothing to restore.
	ErrHasRecord = errors.New("the arbiter has a record of this VM")
	// ErrOtherArbiter is returned when the two nodes ask different arbiters: each could let its own copy go on.
	ErrOtherArbiter = errors.New("the nodes don't ask the same arbiter")
)

// RestoreRecord gives an arbiter that has lost what it knew, or one that has taken another's place, the record of a VM that runs here, or that is down and of which this node's
// record says that its disks alone count and have everything. It is refused unless this node's copy is certainly current, and with it the peer's when the VM is protected; and unless both nodes then find the same in the arbiter before and
// after, because two nodes that ask two arbiters would both be told to go on. It may be repeated when it was interrupted.
//
// Nobody can win a claim while the arbiter knows less than the nodes. From the first moment on its record names those that are current, so whoever claims
// meanwhile does so rightly, and the restoration ends.
func (n *Node) RestoreRecord(ctx context.Context, vm string) error {
	m, err := n.machine(vm)
	if err != nil {
		return err
	}
	want, held, err := m.restorable(ctx)
	if err != nil {
		return err
	}
	a := n.cfg.Arbiter
	for g := held.Generation + 1; g <= want.Generation; g++ {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		next := want
		next.Generation = g
		actx, cancel := context.WithTimeout(context.WithoutCancel(ctx), arbiterTimeout)
		got, err := a.Advance(actx, next)
		cancel()
		switch {
		case err != nil:
			return err
		case got.Generation > want.Generation, !slices.Equal(got.Normal().Members, want.Members):
			return fmt.Errorf("%s: a claim has come meanwhile: %s", vm, got)
		}
		g = got.Generation
	}
	if err := m.sameArbiter(ctx, want); err != nil {
		return errors.Join(err, a.Forget(context.WithoutCancel(ctx), want.VM, want.Generation))
	}
	n.Remark(vm, "record", "the arbiter was given this VM's record again: "+want.String())
	m.emit(Event{Kind: "record", State: m.State(), Text: "the arbiter was given this VM's record again"})
	return nil
}

// CheckRestoreRecord tells why RestoreRecord would be refused now, and gives the arbiter nothing.
func (n *Node) CheckRestoreRecord(ctx context.Context, vm string) error {
	m, err := n.machine(vm)
	if err == nil {
		_, _, err = m.restorable(ctx)
	}
	return err
}

// restorable is the record that the arbiter is to be given, and the one that it holds; an error where it must not be given that.
func (m *machine) restorable(ctx context.Context) (want, held arbiter.Record, err error) {
	if m.n.cfg.Arbiter == nil {
		return want, held, ErrNoArbiter
	}
	rec, spec := m.info()
	want = arbiter.Record{VM: rec.ID, Generation: rec.Generation, Members: rec.Members, By: m.n.cfg.Name}.Normal()
	m.mu.Lock()
	s, busy := m.state, m.plan != nil
	m.mu.Unlock()
	down := s == Stopped || s == Outdated
	alone := aloneIn(rec, m.n.cfg.Name)
	whole := rec.Generation > 0 && len(incomplete(rec, spec)) == 0 && len(offline(rec)) == 0
	current := s == Solo && alone || s == Protected && want.Has(m.n.cfg.Name) || down && alone && whole && rec.Role == state.RolePrimary && m.noCopy()
	if busy || !current {
		return want, held, &UnexpectedEventError{VM: m.name, State: s, Event: "restore-record"}
	}
	if down {
		if err = m.noneNewer(ctx, rec.Generation); err != nil {
			return want, held, err
		}
	}
	held, err = m.behindBoth(ctx, want)
	return want, held, err
}

// noneNewer makes sure that no peer runs the VM, or knows of a generation in which the copy here does not count: a person's word may have made one that this node
// has not heard of.
func (m *machine) noneNewer(ctx context.Context, generation uint64) error {
	for _, e := range m.inquireAll(ctx, m.n.partnerships()) {
		switch {
		case e.runs():
			return fmt.Errorf("%w: %s runs it (%s)", ErrNotCurrent, e.info.Name, e.vm.State)
		case e.err != nil && !errors.Is(e.err, ErrNoVM):
			return fmt.Errorf("%s can't be asked whether it has a newer one: %w", e.info.Name, e.err)
		case e.err == nil && e.vm.Generation > generation && !slices.Contains(e.vm.Members, m.n.cfg.Name):
			return fmt.Errorf("%w: %s is at generation %d of %v, this node at %d", ErrNotCurrent, e.info.Name, e.vm.Generation, e.vm.Members, generation)
		}
	}
	return nil
}

// behindBoth makes sure that the arbiter knows less than this node, as both nodes see it, and that the peer's copy is what this node takes it for. It returns
// what the arbiter holds; of generation 0 if that is nothing.
func (m *machine) behindBoth(ctx context.Context, want arbiter.Record) (arbiter.Record, error) {
	actx, cancel := context.WithTimeout(ctx, 2*arbiterTimeout)
	defer cancel()
	held, err := m.n.cfg.Arbiter.Get(actx, want.VM)
	switch {
	case errors.Is(err, arbiter.ErrNoRecord):
		held = arbiter.Record{}
	case err != nil:
		return held, err
	case held.Generation >= want.Generation:
		return held, fmt.Errorf("%w: %s", ErrHasRecord, held)
	case !held.Has(m.n.cfg.Name): // it may be changed by members only
		return held, fmt.Errorf("%w, of other members: %s", ErrHasRecord, held)
	}
	if len(want.Members) < 2 {
		return held, nil // only this node may claim
	}
	p, info, err := m.partner()
	if err != nil {
		return held, err
	}
	there, err := p.Inquire(actx, m.name)
	switch {
	case err != nil:
		return held, fmt.Errorf("%s: %w", info.Name, err)
	case there.State != Secondary || there.Generation != want.Generation:
		return held, fmt.Errorf("the copy on %s is %s at generation %d, not the secondary at %d", info.Name, there.State, there.Generation, want.Generation)
	}
	seen, err := p.Held(actx, want.VM)
	switch {
	case errors.Is(err, arbiter.ErrNoRecord) && held.Generation == 0:
		return held, nil
	case errors.Is(err, arbiter.ErrNoRecord), err == nil && !seen.Equal(held):
		return held, fmt.Errorf("%w: %s finds there what this node does not", ErrOtherArbiter, info.Name)
	}
	return held, err
}

// sameArbiter makes sure that the peer finds a record that this node has found or stored, or one that has followed it.
func (m *machine) sameArbiter(ctx context.Context, rec arbiter.Record) error {
	if len(rec.Members) < 2 {
		return nil
	}
	actx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*arbiterTimeout)
	defer cancel()
	return m.arbiterThere(actx, m.with(), rec)
}

// arbiterThere says why the peer could not decide by the arbiter as this node would, where held was found there just now.
func (m *machine) arbiterThere(ctx context.Context, p *partnership, held arbiter.Record) error {
	if p == nil {
		return ErrNoPeer
	}
	got, err := p.peer.Held(ctx, held.VM)
	switch {
	case errors.Is(err, arbiter.ErrNoRecord), err == nil && got.Generation < held.Generation:
		return fmt.Errorf("%w: %s does not find there what this node does", ErrOtherArbiter, p.info.Name)
	case err != nil:
		return fmt.Errorf("as %s sees it: %w", p.info.Name, err)
	}
	return nil
}

// serveHeld says what the arbiter, as this node knows it, holds of a VM.
func (n *Node) serveHeld(ctx context.Context, id string) (arbiter.Record, error) {
	if err := n.alive(ctx); err != nil {
		return arbiter.Record{}, err
	}
	if n.cfg.Arbiter == nil {
		return arbiter.Record{}, fmt.Errorf("%w: %s has none configured", ErrOtherArbiter, n.cfg.Name)
	}
	ctx, cancel := context.WithTimeout(ctx, arbiterTimeout)
	defer cancel()
	return n.cfg.Arbiter.Get(ctx, id)
}
