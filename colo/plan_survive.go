package colo

import (
	"context"
	"errors"
	"time"

	"github.com/coloctl/coloctl/state"
)

// noteTimeout is how long a failover waits for this node's own disk. Silence would be worse than what the note protects from.
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
			{Name: "note that the disks alone are incomplete", Do: func(ctx context.Context) error {
				select {
				case err := <-noted:
					if err != nil { // silence would be worse than what the note protects from
						m.log.Error("a crash of this host in the next moments may go unnoticed: the state folder can't be written", "err", err)
					}
					return nil
				case <-time.After(noteTimeout):
					m.log.Error("the state folder's disk is slow: a crash of this host in the next moments may go unnoticed")
					return nil
				case <-ctx.Done():
					return context.Cause(ctx)
				}
			}},
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
