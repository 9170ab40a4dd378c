package colo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/coloctl/coloctl/colo/arbiter"
	"github.com/coloctl/coloctl/state"
)

// arbiterTimeout bounds one question to the arbiter.
const arbiterTimeout = 3 * time.Second

// advance makes members the current copies of the VM: at the arbiter, if there is one, and then here. It returns errLost when this copy
// is not current, [arbiter.ErrUnreachable] when that can't be found out. Its question is not taken back when ctx ends: it could be answered
// after everybody has stopped listening.
func (m *machine) advance(ctx context.Context, members []string) (arbiter.Record, error) {
	done, err := m.ask(ctx)
	if err != nil {
		return arbiter.Record{}, err
	}
	defer done()
	return m.advanceHeld(ctx, members)
}

// ask waits until no other question to the arbiter about this VM is under way, and keeps others waiting until done. What is asked without a plan (settle, cede)
// would otherwise be noted after what a plan has asked since. Nothing of that kind is under way while the VM is protected or arbitrated, so a claim doesn't wait here.
func (m *machine) ask(ctx context.Context) (done func(), err error) {
	select {
	case m.asking <- struct{}{}:
		return func() { <-m.asking }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// advanceHeld is advance by a caller of ask.
func (m *machine) advanceHeld(ctx context.Context, members []string) (arbiter.Record, error) {
	if err := context.Cause(ctx); err != nil {
		return arbiter.Record{}, err
	}
	rec, spec := m.info()
	me := m.n.cfg.Name
	next := arbiter.Record{VM: rec.ID, Generation: rec.Generation + 1, Members: members, By: me}.Normal()
	a := m.n.cfg.Arbiter
	if a == nil { // this node's record is the only one: what the peer is told must not be forgotten here
		return next, m.updateNow(context.WithoutCancel(ctx), setRecord(next.Generation, next.Members))
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), arbiterTimeout)
	defer cancel()
	cur, err := a.Get(ctx, rec.ID)
	note := func(r arbiter.Record) { m.update(setRecord(r.Generation, r.Members)) }
	if err == nil && hidden(rec, cur, me) { // in one: a record that is as new as the sign would hide it
		note = func(r arbiter.Record) { m.update(both(setRecord(r.Generation, r.Members), setDisks(spec, false, 0))) }
	}
	switch {
	case errors.Is(err, arbiter.ErrNoRecord) && rec.Generation == 0:
		next.Generation = 1
	case err != nil:
		return arbiter.Record{}, err
	case !cur.Has(me):
		note(cur)
		return cur, fmt.Errorf("%w: generation %d belongs to %v", errLost, cur.Generation, cur.Members)
	case cur.Generation < rec.Generation && !slices.Equal(rec.Members, []string{me}):
		// The other current copy could be told the same by the arbiter that knows.
		return cur, fmt.Errorf("%w: it is at generation %d, this node at %d", errBehind, cur.Generation, rec.Generation)
	case cur.Generation < rec.Generation:
		// What this node decided on a proof while the arbiter was away.
		if _, err := a.Advance(ctx, arbiter.Record{VM: rec.ID, Generation: cur.Generation + 1, Members: rec.Members, By: me}.Normal()); err != nil {
			return arbiter.Record{}, err
		}
		return m.advanceHeld(ctx, members)
	case slices.Equal(cur.Normal().Members, next.Members) && (rec.Offered == "" || slices.Contains(members, rec.Offered)):
		note(cur)
		return cur, nil // the set is what is asked for already
	default: // also for the same set, when a question of before that would have changed it may still be on its way: it is too late from here on
		next.Generation = cur.Generation + 1
	}
	m.mu.Lock()
	m.marks.asked = true
	m.mu.Unlock()
	got, err := a.Advance(ctx, next)
	if err != nil {
		return arbiter.Record{}, err
	}
	note(got)
	if got.Generation >= next.Generation && slices.Equal(got.Normal().Members, next.Members) {
		return got, nil // the set is what was asked for, by whomever
	}
	switch arbiter.Judge(next, got) {
	case arbiter.Won:
		return got, nil
	case arbiter.Lost:
		return got, fmt.Errorf("%w: generation %d belongs to %v", errLost, got.Generation, got.Members)
	}
	return got, fmt.Errorf("the arbiter answered %s to %s", got, next)
}

// advanceAnew takes one more generation for this copy alone: a sign that it is about to go on although the state folder hasn't taken the note of it. See [hidden].
func (m *machine) advanceAnew(ctx context.Context) error {
	done, err := m.ask(ctx)
	if err != nil {
		return err
	}
	defer done()
	me := []string{m.n.cfg.Name}
	if _, err := m.advanceHeld(ctx, me); err != nil { // up to what this node knows
		return err
	}
	rec, spec := m.info()
	next := arbiter.Record{VM: rec.ID, Generation: rec.Generation + 1, Members: me, By: me[0]}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), arbiterTimeout)
	defer cancel()
	got, err := m.n.cfg.Arbiter.Advance(ctx, next)
	if err != nil {
		return err
	}
	m.update(both(setRecord(got.Generation, got.Members), setDisks(spec, false, 0)))
	if !slices.Equal(got.Normal().Members, me) {
		return fmt.Errorf("%w: generation %d belongs to %v", errLost, got.Generation, got.Members)
	}
	return nil
}

// hidden says whether a copy that was a secondary here may have gone on without a note of it in rec: the arbiter, which holds held, was told so by one more generation
// than winning takes. The disks here may then lack what was in that copy's overlays.
func hidden(rec state.VM, held arbiter.Record, me string) bool {
	won := rec.Generation
	if !aloneIn(rec, me) {
		won++
	}
	return rec.Role != state.RolePrimary && wonBy(held, me) && held.Generation > won
}

// wonBy says whether what the arbiter holds is a win of this node's own.
func wonBy(held arbiter.Record, me string) bool {
	return held.By == me && slices.Equal(held.Normal().Members, []string{me})
}

// arbiterAnswers finds out, before something is begun that needs it, whether the arbiter can be asked.
func (m *machine) arbiterAnswers(ctx context.Context) error {
	if m.n.cfg.Arbiter == nil {
		return nil
	}
	_, err := m.held(ctx)
	return err
}

// held is what the arbiter, which there must be, holds of the VM.
func (m *machine) held(ctx context.Context) (arbiter.Record, error) {
	ctx, cancel := context.WithTimeout(ctx, arbiterTimeout)
	defer cancel()
	rec, _ := m.info()
	return m.n.cfg.Arbiter.Get(ctx, rec.ID)
}

// arbiterAnswersBoth is arbiterAnswers that also refuses a peer which asks another arbiter: each would let its own copy go on.
func (m *machine) arbiterAnswersBoth(ctx context.Context, by *partnership) error {
	if m.n.cfg.Arbiter == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 2*arbiterTimeout)
	defer cancel()
	held, err := m.held(ctx)
	if err != nil {
		return err
	}
	if err := m.arbiterThere(ctx, by, held); errors.Is(err, ErrOtherArbiter) {
		return err
	} else if err != nil {
		m.log.Warn("the peer can't say what the arbiter holds", "err", err)
	}
	return nil
}
