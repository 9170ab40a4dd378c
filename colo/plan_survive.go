package colo

import (
	"context"
	"errors"
	"time"

	"github.com/coloctl/coloctl/state"
)

// survivePlan turns the copy that may go on into a lone one and lets it speak.
func (m *machine) survivePlan(kind PlanKind) *Plan {
	c := m.current()
	rec, spec := m.info()
	if c == nil {
		return &Plan{Kind: kind, Steps: []Step{{Name: "check", Do: func(context.Context) error { return errors.New("no copy runs here any more") }}}}
	}
	var steps []Step
	if m.marked().forced { // a person's word takes a generation like any other, so that the other copy is not current when it comes back
		steps = append(steps, Step{Name: "note that this copy alone is current", Do: func(ctx context.Context) error {
			if m.marked().overrule {
				return m.overrule(ctx)
			}
			rec, _ := m.info()
			if aloneIn(rec, m.n.cfg.Name) {
				return nil
			}
			vouched := rec.Generation + 1
			return m.updateNow(ctx, both(setRecord(vouched, []string{m.n.cfg.Name}), func(v *state.VM) { v.Vouched = vouched }))
		}})
	}
	if m.marked().secondary {
		var noted <-chan error
		steps = append(steps, []Step{
			{Name: "promote the secondary", Do: func(ctx context.Context) error {
				m.update(setDisks(spec, false, 0)) // from here until they are committed the overlays hold data that the disks lack
				noted = m.noting(spec)             // meanwhile
				return c.Promote(ctx)
			}},
			{Name: "note that the disks alone are incomplete", Do: func(ctx context.Context) error { return m.noteIncomplete(ctx, spec, noted) }},
			{Name: "see that the primary is silent", Do: func(ctx context.Context) error {
				if kind == planPromote {
					return nil // it has handed over, and is dead
				}
				return m.hush(ctx)
			}},
			{Name: "join the LAN", Do: func(ctx context.Context) error { return m.speak(ctx, c) }},
			{Name: "announce the guest", Do: func(ctx context.Context) error {
				if err := c.Announce(ctx); err != nil { // switches learn it from the guest's first packet as well
					m.log.Warn("the guest was not announced", "err", err)
				}
				return nil
			}},
			{Name: "commit the overlays", Do: func(ctx context.Context) error { return c.Commit(ctx) }},
		}...)
	} else {
		steps = append(steps,
			Step{Name: "take replication down", Do: func(ctx context.Context) error { return m.release(ctx, c) }},
			Step{Name: "join the LAN", Do: func(ctx context.Context) error { return m.speak(ctx, c) }},
		)
	}
	steps = append(steps, Step{Name: "note the new role", Do: func(context.Context) error {
		m.update(both(both(setDisks(spec, true, rec.Generation), setWritten(spec, true)), func(v *state.VM) { v.Role = state.RolePrimary }))
		return nil
	}})
	return &Plan{Kind: kind, Steps: steps}
}

// noteIncomplete returns when it can't be forgotten any more, also not by a loss of power, that the disks here lack what this copy is about to write. A slow disk of the
// state folder is waited for. Where that can't be written the arbiter is told instead, see [hidden]. Without one the copy goes on all the same: silence would be worse then
// than what the note protects from. A person's word ends the wait. noted tells of the first attempt.
func (m *machine) noteIncomplete(ctx context.Context, spec *Spec, noted <-chan error) error {
	look := time.NewTicker(m.n.cfg.HeartbeatInterval)
	defer look.Stop()
	defer m.setOutlook("")
	said := time.Now().Add(time.Second)
	for {
		var failed error
		for waits := true; waits; {
			select {
			case failed = <-noted:
				waits = false
			case <-look.C:
				if m.vouched() {
					m.log.Error("a crash of this host in the next moments may go unnoticed: the state folder's disk is slow")
					return nil
				}
				if !said.IsZero() && time.Now().After(said) {
					said = time.Time{}
					m.log.Error("silent until the state folder takes the note that the disks here alone are incomplete: its disk is slow")
					m.setOutlook("silent until the state folder, whose disk is slow, has taken the note of it")
				}
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		if failed == nil {
			return nil
		}
		if m.n.cfg.Arbiter == nil || m.vouched() {
			m.log.Error("a crash of this host in the next moments may go unnoticed: the state folder can't be written", "err", failed)
			return nil
		}
		err := m.advanceAnew(ctx)
		if err == nil || errors.Is(err, errLost) {
			return err
		}
		m.log.Error("neither the state folder nor the arbiter takes the note that the disks here alone are incomplete: silent until one does", "err", errors.Join(failed, err))
		m.setOutlook("silent until the state folder or the arbiter has taken the note of it: " + failed.Error())
		if err := sleepUntil(ctx, time.Now().Add(time.Second)); err != nil {
			return err
		}
		noted = m.noting(spec)
	}
}

// noting writes the note, and tells what came of it.
func (m *machine) noting(spec *Spec) <-chan error {
	noted := make(chan error, 1)
	m.n.wg.Go(func() { noted <- m.updateNow(m.n.ctx, setDisks(spec, false, 0)) })
	return noted
}

// vouched says whether the copy here goes on by a person's word.
func (m *machine) vouched() bool {
	rec, _ := m.info()
	k := m.marked()
	return k.forced || k.unnoted || rec.Vouched != 0
}
