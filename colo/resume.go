package colo

import (
	"context"
	"strings"
	"time"

	"github.com/coloctl/coloctl/state"
)

// resume finds out, at the node's start, what became of the VM while nobody looked: QEMU outlives the node's daemon, and what QEMU says counts
// more than what the store remembers.
func (m *machine) resume(ctx context.Context) {
	rec, spec := m.info()
	if rec.Instance != nil {
		c, view, err := m.n.launcher.Attach(ctx, spec, *rec.Instance)
		switch {
		case err != nil:
			if !aloneIn(rec, m.n.cfg.Name) { // like one that hangs: the other copy is as good, and this one may still speak
				m.mu.Lock()
				m.marks = marks{yield: true}
				m.mu.Unlock()
				m.setState(Outdated, "a QEMU of this VM runs here that does not answer: "+err.Error())
				m.start(ctx, planFence, message{})
				return
			}
			// It is not killed: it may be the only current copy.
			m.setState(Failed, "a QEMU of this VM runs here that does not answer: "+err.Error())
			return
		case c != nil:
			m.adopt(c)
			m.takeUp(ctx, c, view, rec)
			return
		}
		if err := m.n.launcher.Clear(ctx, spec); err != nil {
			m.log.Warn("what a copy that has ended left behind was not removed", "err", err)
		}
		m.update(func(v *state.VM) { v.Instance, v.Base, v.Resync = nil, nil, nil })
	}
	m.settle(ctx)
	s, why := ended(rec)
	if s != State(rec.Phase) || why != rec.Reason {
		m.setState(s, why)
		return
	}
	m.mu.Lock()
	m.state, m.why = s, why
	m.wake()
	m.mu.Unlock()
}

// ended gives the state of a VM that the node remembers in some phase and of which no QEMU runs any more.
func ended(rec state.VM) (State, string) {
	switch s := State(rec.Phase); s {
	case Stopped, Outdated, Failed:
		return s, rec.Reason
	case Standby:
		return Outdated, "its standby ended while the node was down"
	case FailingOver:
		return Failed, "the surviving copy ended before it was a whole one"
	default:
		return Stopped, "its QEMU ended while the node was down"
	}
}

// takeUp goes on with a copy that has outlived the daemon.
func (m *machine) takeUp(ctx context.Context, c Copy, view View, rec state.VM) {
	alone := aloneIn(rec, m.n.cfg.Name)
	phase := State(rec.Phase)
	for _, disk := range view.Gone { // the daemon may have ended right after it let go of it
		if rec.Disks[disk].Offline == "" {
			m.noteDisk(message{disk: disk, text: "a write to this node's half of disk " + disk + " failed before the node was restarted"})
		}
	}
	goOn := func(s State, plan PlanKind, why string) {
		m.mu.Lock()
		m.marks = marks{secondary: rec.Role == state.RoleSecondary, yield: s == Outdated}
		m.mu.Unlock()
		m.setState(s, why)
		if plan != "" {
			m.start(ctx, plan, message{})
		}
		m.settle(ctx)
		if view.Off { // nobody has heard it say so
			m.post(message{kind: GuestShutdown, text: "the guest has switched itself off", copy: c})
		}
	}
	switch {
	case rec.Role == state.RoleSecondary && (view.Incoming || phase == Standby):
		goOn(Outdated, planFence, "the primary will ask for a new standby")
	case phase == Failed:
		goOn(Failed, "", rec.Reason)
	case phase == Outdated:
		goOn(Outdated, planFence, "the node was restarted while it ended this copy")
	case phase == FailingOver:
		goOn(FailingOver, planSurvive, "the node was restarted while it went on alone")
	case phase == Arbitrating, phase == Detaching, phase == SwitchingOver, phase == Attaching:
		goOn(Arbitrating, planClaim, "the node was restarted in the middle of a decision")
	case view.Mode == "none" && alone && rec.Role == state.RolePrimary:
		goOn(FailingOver, planSurvive, "the node was restarted") // takes down what an attempt to protect has left
	case view.Mode == "primary" && len(rec.Members) > 1 && !view.Cut:
		goOn(Protected, "", "the node was restarted")
		if len(view.Gone) > 0 {
			m.post(message{kind: DiskFailed, text: "its half of " + strings.Join(view.Gone, ", ") + " is out of service", copy: c})
		}
		m.guard(ctx)
		m.n.wg.Go(func() { m.checkReplication(ctx, c) })
	case view.Mode == "secondary":
		goOn(Secondary, "", "the node was restarted")
		m.n.wg.Go(func() { m.awaitCheckpoint(ctx, c) })
	default:
		goOn(Arbitrating, planClaim, "the node was restarted and can't tell whether this copy may go on")
	}
}

// checkReplication finds out whether the secondary was lost while the daemon was down: then nobody has seen QEMU's event.
func (m *machine) checkReplication(ctx context.Context, c Copy) {
	ctx, cancel := context.WithTimeout(ctx, 2*m.n.cfg.HangTimeout)
	defer cancel()
	if err := c.Checkpoint(ctx); err != nil && m.n.ctx.Err() == nil {
		m.post(message{kind: ChannelLost, text: "no checkpoint after the node's restart: " + err.Error(), copy: c})
	}
}

// awaitCheckpoint is the same for a secondary, which can't force one.
func (m *machine) awaitCheckpoint(ctx context.Context, c Copy) {
	m.mu.Lock()
	delay := time.Duration(m.spec.Protection.CheckpointDelay)
	m.mu.Unlock()
	t := time.NewTimer(delay + 2*m.n.cfg.HangTimeout)
	defer t.Stop()
	select {
	case <-t.C:
		if c.Stats().Count == 0 {
			m.post(message{kind: ChannelLost, text: "no checkpoint since the node's restart", copy: c})
		}
	case <-ctx.Done():
	}
}
