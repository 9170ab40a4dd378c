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

// settle tells the arbiter what this node has decided without it, on a proof or on a person's word, as soon as it answers: until then the other
// node's copy would be let go on by it. It ends when the arbiter knows, or when this node is not the only current one any more.
func (m *machine) settle(ctx context.Context) {
	if rec, _ := m.info(); m.n.cfg.Arbiter == nil || !aloneIn(rec, m.n.cfg.Name) || !m.settling.CompareAndSwap(false, true) {
		return
	}
	m.n.wg.Go(func() {
		defer m.settling.Store(false)
		for {
			rec, _ := m.info()
			if !aloneIn(rec, m.n.cfg.Name) || m.settled(ctx) {
				return
			}
			select {
			case <-time.After(time.Second):
			case <-m.quit:
				return
			case <-ctx.Done():
				return
			}
		}
	})
}

// settled tries once.
func (m *machine) settled(ctx context.Context) bool {
	done, err := m.ask(ctx)
	if err != nil {
		return false
	}
	defer done()
	rec, _ := m.info()
	if !aloneIn(rec, m.n.cfg.Name) { // a plan has asked meanwhile
		return true
	}
	cur, err := m.held(ctx)
	if err == nil && cur.Generation >= rec.Generation && slices.Equal(cur.Normal().Members, []string{m.n.cfg.Name}) {
		if rec.Vouched != 0 {
			m.update(func(v *state.VM) { v.Vouched = 0 })
		}
		return true
	}
	void := err == nil && !cur.Has(m.n.cfg.Name) && cur.Generation <= rec.Vouched // it had let the other copy go on, which did not
	if rec.Vouched != 0 && (void || errors.Is(err, arbiter.ErrNoRecord)) && !m.runsThere(ctx) {
		return m.insist(ctx, cur) == nil
	}
	if now, _ := m.info(); err == nil && aloneIn(now, m.n.cfg.Name) {
		_, err = m.advanceHeld(ctx, now.Members)
	}
	if errors.Is(err, errLost) {
		m.log.Error("the arbiter lets another copy go on than the one that is current here", "err", err)
		m.emit(Event{Kind: "conflict", State: m.State(), Text: err.Error()})
		return true
	}
	return err == nil || errors.Is(err, arbiter.ErrNoRecord)
}

// runsThere says whether a peer says that it runs the VM: of several any, as the arbiter may have let another one go on than the last.
func (m *machine) runsThere(ctx context.Context) bool {
	return slices.ContainsFunc(m.inquireAll(ctx, m.n.partnerships()), func(e elsewhere) bool { return e.runs() })
}

// insist makes a person's word count that the arbiter has not heard: the other copy was dead, and had not gone on alone. What it was allowed before is
// void, so this node's generation becomes one above that. held is the arbiter's record; its zero value is none.
func (m *machine) insist(ctx context.Context, held arbiter.Record) error {
	rec, _ := m.info()
	if held.Generation > 0 {
		text := fmt.Sprintf("by a person's word the copy on %s goes on: the arbiter's generation %d of %v is void", m.n.cfg.Name, held.Generation, held.Members)
		m.log.Warn(text)
		m.emit(Event{Kind: "conflict", State: m.State(), Text: text})
	}
	vouched := rec.Vouched
	generation := max(rec.Generation, held.Generation+1)
	if err := m.updateNow(ctx, both(setRecord(generation, []string{m.n.cfg.Name}), func(v *state.VM) { v.Vouched = vouched })); err != nil {
		return err
	}
	return m.beginAnew(ctx, held)
}

// beginAnew makes this node the only one that counts at an arbiter that doesn't count it, whose record is held: that may be changed by members only.
func (m *machine) beginAnew(ctx context.Context, held arbiter.Record) error {
	rec, _ := m.info()
	me, a := m.n.cfg.Name, m.n.cfg.Arbiter
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), arbiterTimeout)
	defer cancel()
	if held.Generation > 0 {
		if err := a.Forget(ctx, rec.ID, held.Generation); err != nil {
			return fmt.Errorf("the arbiter's generation %d belongs to %v and was not withdrawn: %w", held.Generation, held.Members, err)
		}
	}
	if _, err := a.Advance(ctx, arbiter.Record{VM: rec.ID, Generation: 1, Members: []string{me}, By: me}); err != nil {
		return err
	}
	_, err := m.advanceHeld(ctx, []string{me}) // up to this node's generation
	return err
}

// asTheyAre makes a node's disks the only current ones, and takes those that are out of service back.
func asTheyAre(spec *Spec, node string, generation uint64) func(*state.VM) {
	return func(v *state.VM) {
		for _, d := range spec.mirrored() {
			setOffline(d.Name, "")(v)
		}
		setRecord(generation, []string{node})(v)
		setDisks(spec, true, generation)(v)
	}
}

// overrule makes the copy here the only current one on a person's word, whatever this node's records and the arbiter's say. Its disks count as
// complete from then on: as they are.
func (m *machine) overrule(ctx context.Context) error {
	rec, spec := m.info()
	me, generation := m.n.cfg.Name, rec.Generation+1
	a := m.n.cfg.Arbiter
	if a == nil {
		return m.updateNow(ctx, asTheyAre(spec, me, generation))
	}
	done, err := m.ask(ctx)
	if err != nil {
		return err
	}
	defer done()
	rec, _ = m.info()
	generation = rec.Generation + 1
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), arbiterTimeout)
	defer cancel()
	cur, err := a.Get(ctx, rec.ID)
	switch {
	case errors.Is(err, arbiter.ErrUnreachable), errors.Is(err, arbiter.ErrNoRecord):
	case err != nil:
		return err
	default:
		generation = max(generation, cur.Generation+1)
	}
	if uerr := m.updateNow(ctx, asTheyAre(spec, me, generation)); uerr != nil {
		return uerr
	}
	switch {
	case errors.Is(err, arbiter.ErrUnreachable):
		return nil // it is told later, if it still counts this node
	case err == nil && cur.Has(me):
		_, err := m.advanceHeld(ctx, []string{me})
		return err
	}
	return m.beginAnew(ctx, cur)
}
