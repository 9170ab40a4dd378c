package colo

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/coloctl/coloctl/colo/arbiter"
	"github.com/coloctl/coloctl/state"
)

// resume finds out, at the node's start, what became of the VM while nobody looked: QEMU outlives the node's daemon, and what QEMU says counts
// more than what the store remembers.
func (m *machine) resume(ctx context.Context) {
	rec, spec := m.info()
	if rec.Instance == nil {
		m.rest(ctx, rec)
		return
	}
	c, view, err := m.n.launcher.Attach(ctx, spec, *rec.Instance)
	switch {
	case m.unreadable() != nil && (c != nil || err != nil):
		if c != nil {
			c.Disconnect()
		}
		m.standIn(Failed, rec.Reason)
		m.log.Error("a QEMU of a VM whose spec can't be read runs, and is left alone", "pid", rec.Instance.PID)
		m.reattach(ctx, rec)
	case err == nil:
		m.found(ctx, sighting{rec, c, view})
	case aloneIn(rec, m.n.cfg.Name): // it is not killed: it may be the only current copy
		why := unanswered + err.Error()
		m.standIn(Failed, why)
		m.log.Error("it is asked again", "why", why)
		m.emit(Event{Kind: "state", State: Failed, Text: why, Fields: map[string]any{"from": rec.Phase, "generation": rec.Generation}})
		m.reattach(ctx, rec)
	default: // like one that hangs: the other copy is as good, and this one may still speak
		m.mu.Lock()
		m.marks = marks{yield: true}
		m.mu.Unlock()
		m.setState(Outdated, unanswered+err.Error())
		m.start(ctx, planFence, message{})
	}
}

const unanswered = "a QEMU of this VM runs here that does not answer: "

// sighting is what was found of a QEMU that an earlier run of the node has launched, and what the node remembered of the VM before.
type sighting struct {
	rec  state.VM
	copy Copy // nil: it has ended
	view View
}

// found goes on with a copy that has outlived the daemon, or with what one that has not left behind.
func (m *machine) found(ctx context.Context, s sighting) {
	if s.copy != nil {
		m.adopt(s.copy)
		m.takeUp(ctx, s.copy, s.view, s.rec)
		return
	}
	_, spec := m.info()
	if err := m.n.launcher.Clear(ctx, spec); err != nil {
		m.log.Warn("what a copy that has ended left behind was not removed", "err", err)
	}
	m.update(func(v *state.VM) { v.Instance, v.Base, v.Resync = nil, nil, nil })
	m.rest(ctx, s.rec)
}

// rest is the state of a VM of which no QEMU runs.
func (m *machine) rest(ctx context.Context, rec state.VM) {
	m.settle(ctx)
	defer m.cede(ctx)
	if s, why := ended(rec); s != State(rec.Phase) || why != rec.Reason {
		m.setState(s, why)
	} else {
		m.standIn(s, why)
	}
}

// standIn is setState for one that is not stored: what was is to be remembered.
func (m *machine) standIn(s State, why string) {
	m.mu.Lock()
	m.state, m.why = s, why
	m.wake()
	m.mu.Unlock()
}

// How long is waited before a QEMU is asked again that did not answer: twice as long each time.
const (
	reattachFirst = time.Second
	reattachLast  = 30 * time.Second
)

// evFound says that such a QEMU has answered, or ended. Like evPing it never reaches the table.
const evFound EventKind = "found"

// reattach asks a lone QEMU that did not answer at the node's start again and again, until it does, has ended, or was ended by a person. One of a VM whose spec can't be read is
// left alone until it has ended.
func (m *machine) reattach(ctx context.Context, rec state.VM) {
	m.n.wg.Go(func() {
		for wait := reattachFirst; ; wait = min(2*wait, reattachLast) {
			unread := m.unreadable()
			if unread == nil {
				m.setOutlook(fmt.Sprintf("asking it again in %s", wait))
			} else {
				m.setOutlook("its QEMU is left alone; a version that reads the spec takes it up, coloctl vm stop --force ends it")
			}
			select {
			case <-time.After(wait):
			case <-m.quit:
				return
			case <-ctx.Done():
				return
			}
			now, spec := m.info()
			if now.Instance == nil || now.Instance.PID != rec.Instance.PID || m.State() != Failed {
				return
			}
			c, view, err := m.n.launcher.Attach(ctx, spec, *rec.Instance)
			if err != nil {
				m.log.Warn("a QEMU that runs here does not answer yet", "err", err)
				continue
			}
			if unread != nil && c != nil {
				c.Disconnect()
				continue
			}
			m.post(message{kind: evFound, args: sighting{rec, c, view}})
			return
		}
	})
}

// takeFound is the loop's part of it. A person may have decided otherwise meanwhile.
func (m *machine) takeFound(ctx context.Context, s sighting) {
	if m.State() == Failed && m.job == nil && m.current() == nil {
		m.log.Info("a QEMU that did not answer was found again", "runs", s.copy != nil)
		m.found(ctx, s)
		return
	}
	if s.copy != nil {
		s.copy.Disconnect()
	}
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
	m.doubled.Store(view.Mode == "primary")
	for _, disk := range view.Gone { // the daemon may have ended right after it let go of it
		if !rec.Disks[disk].Behind {
			m.noteDisk(message{disk: disk, text: "a write to this node's half of disk " + disk + " failed before the node was restarted"})
		}
	}
	goOn := func(s State, plan PlanKind, why string) {
		m.mu.Lock()
		m.marks = marks{secondary: rec.Role == state.RoleSecondary, yield: s == Outdated, since: time.Now()}
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
		m.confirm() // an earlier run of the node may have ended before the peer had heard
		if len(view.Gone) > 0 {
			m.post(message{kind: DiskFailed, text: "its half of " + strings.Join(view.Gone, ", ") + " is out of service", copy: c})
		}
		m.guard(ctx)
		if view.PeerBad != "" {
			m.post(message{kind: ChannelLost, text: "writing to the peer's disk failed on " + view.PeerBad + " before the node was restarted", copy: c})
		}
		m.n.wg.Go(func() { m.checkReplication(ctx, c) })
	case view.Mode == "secondary":
		goOn(Secondary, "", "the node was restarted")
		m.n.wg.Go(func() { m.awaitCheckpoint(ctx, c) })
		m.n.wg.Go(func() { m.recallWin(ctx, c) })
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

// recallWin asks the arbiter whether an earlier run of this node has won for the secondary that it found, and ended before it had noted so. The primary would take itself for
// protected, and neither copy could go on after the loss of this one. A claim of that run may still be on its way at first: the second answer counts.
func (m *machine) recallWin(ctx context.Context, c Copy) {
	if m.n.cfg.Arbiter == nil {
		return
	}
	for answers := 0; m.State() == Secondary && m.current() == c; {
		held, err := m.held(ctx)
		rec, _ := m.info()
		if err == nil && held.Generation > rec.Generation && wonBy(held, m.n.cfg.Name) {
			m.post(message{kind: ChannelLost, text: fmt.Sprintf("the arbiter's generation %d belongs to this copy alone: an earlier run of this node has won, and was not heard", held.Generation), copy: c})
			return
		}
		if err == nil || errors.Is(err, arbiter.ErrNoRecord) {
			if answers++; answers == 2 {
				return
			}
		}
		select {
		case <-time.After(arbiterTimeout):
		case <-m.quit:
			return
		case <-ctx.Done():
			return
		}
	}
}
