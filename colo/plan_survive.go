package colo

import (
	"context"
	"errors"
	"time"

	"github.com/coloctl/coloctl/state"
)

// noteTimeout is how long a failover waits for this node's own disk before it tells the arbiter instead.
const noteTimeout = time.Second

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
		noted := make(chan error, 1)
		steps = append(steps, []Step{
			{Name: "promote the secondary", Do: func(ctx context.Context) error {
				// From here until they are committed the overlays hold data that the disks lack.
				m.n.wg.Go(func() { noted <- m.updateNow(m.n.ctx, setDisks(spec, false, 0)) })
				return c.Promote(ctx)
			}},
			{Name: "note that the disks alone are incomplete", Do: func(ctx context.Context) error { return m.noteIncomplete(ctx, noted) }},
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

// noteIncomplete returns when it can't be forgotten any more, also not by a loss of power, that the disks here lack what this copy is about to write: noted tells of the
// write to the state folder. While that takes too long, or fails, the arbiter is told, see [hidden]; one of the two has to be. Where there is no arbiter, or a person has
// spoken, a state folder that can't be written doesn't keep the copy silent: that would be worse than what the note protects from.
func (m *machine) noteIncomplete(ctx context.Context, noted <-chan error) error {
	limit := time.NewTimer(noteTimeout)
	defer limit.Stop()
	forced := m.marked().forced
	var failed error
	for {
		select {
		case err := <-noted:
			if err == nil {
				return nil
			}
			failed, noted = err, nil // it is tried again, but nobody tells
		case <-limit.C:
			if failed != nil && m.n.ledger.lacks() == nil {
				return nil // tried again, and written
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		switch {
		case m.n.cfg.Arbiter != nil && !forced:
			err := m.advanceAnew(ctx)
			if err == nil || errors.Is(err, errLost) {
				return err
			}
			m.log.Error("neither the state folder nor the arbiter takes the note that the disks here alone are incomplete: silent until one does", "err", errors.Join(failed, err))
			limit.Reset(m.n.cfg.HeartbeatInterval)
		case failed != nil:
			m.log.Error("a crash of this host in the next moments may go unnoticed: the state folder can't be written", "err", failed)
			return nil
		case forced:
			m.log.Error("a crash of this host in the next moments may go unnoticed: the state folder's disk is slow")
			return nil
		default:
			m.log.Error("silent until the state folder takes the note that the disks here alone are incomplete: its disk is slow")
		}
	}
}
