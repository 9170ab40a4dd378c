package colo

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/coloctl/coloctl/colo/arbiter"
)

// Errors of RestoreRecord.
var (
	// ErrHasRecord is returned when the arbiter has a record: there is nothing to restore.
	ErrHasRecord = errors.New("the arbiter has a record of this VM")
	// ErrOtherArbiter is returned when the two nodes ask different arbiters: each could let its own copy go on.
	ErrOtherArbiter = errors.New("the nodes don't ask the same arbiter")
)

// RestoreRecord gives an arbiter that has lost its memory, or one that has taken another's place, the record of a VM that runs here. It is refused unless
// this node's copy is certainly current, and with it the peer's when the VM is protected; and unless both nodes find the arbiter empty before and the same
// record in it afterwards, because two nodes that ask two arbiters would both be told to go on.
//
// Nobody can win a claim while there is no record. From the first moment on it names those that are current, so whoever claims meanwhile does so rightly, and the
// restoration ends.
func (n *Node) RestoreRecord(ctx context.Context, vm string) error {
	m, err := n.machine(vm)
	if err != nil {
		return err
	}
	a := n.cfg.Arbiter
	if a == nil {
		return ErrNoArbiter
	}
	rec, _ := m.info()
	want := arbiter.Record{VM: rec.ID, Generation: rec.Generation, Members: rec.Members, By: n.cfg.Name}.Normal()
	m.mu.Lock()
	plan := m.plan
	m.mu.Unlock()
	switch s := m.State(); {
	case plan != nil:
		return &UnexpectedEventError{VM: vm, State: s, Event: "restore-record"}
	case s == Solo && aloneIn(rec, n.cfg.Name), s == Protected && want.Has(n.cfg.Name):
	default:
		return &UnexpectedEventError{VM: vm, State: s, Event: "restore-record"}
	}
	if err := m.emptyArbiters(ctx, want); err != nil {
		return err
	}
	for g := uint64(1); g <= want.Generation; g++ {
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
		return err
	}
	n.Remark(vm, "record", "the arbiter had no record of this VM and was given it again: "+want.String())
	m.emit(Event{Kind: "record", State: m.State(), Text: "the arbiter had no record of this VM and was given it again"})
	return nil
}

// emptyArbiters makes sure that neither node's arbiter has a record, and that the peer's copy is what this node takes it for.
func (m *machine) emptyArbiters(ctx context.Context, want arbiter.Record) error {
	actx, cancel := context.WithTimeout(ctx, arbiterTimeout)
	defer cancel()
	if err := noRecord(m.n.cfg.Arbiter.Get(actx, want.VM)); err != nil {
		return err
	}
	if len(want.Members) < 2 {
		return nil // only this node may claim
	}
	p, info, err := m.n.partner()
	if err != nil {
		return err
	}
	there, err := p.Inquire(actx, m.name)
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", info.Name, err)
	case there.State != Secondary || there.Generation != want.Generation:
		return fmt.Errorf("the copy on %s is %s at generation %d, not the secondary at %d", info.Name, there.State, there.Generation, want.Generation)
	}
	if err := noRecord(p.Held(actx, want.VM)); err != nil {
		return fmt.Errorf("as %s sees it: %w", info.Name, err)
	}
	return nil
}

func noRecord(got arbiter.Record, err error) error {
	switch {
	case err == nil:
		return fmt.Errorf("%w: %s", ErrHasRecord, got)
	case errors.Is(err, arbiter.ErrNoRecord):
		return nil
	}
	return err
}

// sameArbiter makes sure that the peer finds what this node has stored. If not, that is taken back.
func (m *machine) sameArbiter(ctx context.Context, want arbiter.Record) error {
	if len(want.Members) < 2 {
		return nil
	}
	p, info, err := m.n.partner()
	if err != nil {
		return err
	}
	actx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*arbiterTimeout)
	defer cancel()
	got, err := p.Held(actx, want.VM)
	if err == nil && got.Generation >= want.Generation {
		return nil // the same, or what has followed it
	}
	if err == nil || errors.Is(err, arbiter.ErrNoRecord) {
		err = fmt.Errorf("%w: %s does not find there what this node has stored", ErrOtherArbiter, info.Name)
	}
	return errors.Join(err, m.n.cfg.Arbiter.Forget(actx, want.VM, want.Generation))
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
