package colo

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/coloctl/coloctl/qmp"
	"github.com/coloctl/coloctl/state"
)

// build makes the plan that a row names.
func (m *machine) build(kind PlanKind, msg message) (*Plan, error) {
	switch kind {
	case planStart:
		o, _ := msg.args.(StartOptions)
		return m.startPlan(o), nil
	case planStop:
		o, _ := msg.args.(StopOptions) // a guest that switched itself off comes without
		return m.stopPlan(o), nil
	case planProtect:
		o, _ := msg.args.(ProtectOptions)
		return m.protectPlan(o), nil
	case planDetach:
		return m.detachPlan(), nil
	case planSwitchover:
		return m.switchoverPlan(), nil
	case planPrepare:
		return m.preparePlan(msg.args.(*prepareArgs)), nil
	case planClaim:
		return m.claimPlan(), nil
	case planSurvive, planPromote:
		return m.survivePlan(kind), nil
	case planFence:
		return m.fencePlan(), nil
	case planEdit:
		return m.editPlan(msg.args.(*editArgs)), nil
	case planDelete:
		o, _ := msg.args.(DeleteOptions)
		return m.deletePlan(o), nil
	}
	return nil, fmt.Errorf("unknown plan %q", kind)
}

// startPlan boots the VM alone.
func (m *machine) startPlan(o StartOptions) *Plan {
	var c Copy
	rec, spec := m.info()
	claim := Step{Name: "claim the VM", Do: m.claimStart}
	if o.AcceptDataLoss {
		claim = Step{Name: "overrule what speaks against this copy", Do: m.overrule}
	}
	return &Plan{Kind: planStart, Steps: []Step{
		{Name: "check images, bridges and QEMU", Do: func(ctx context.Context) error {
			if m.current() != nil {
				return errors.New("a QEMU of this VM is still there: stop it first")
			}
			if err := m.noBackup(); err != nil {
				return err
			}
			return m.n.launcher.Check(ctx, spec)
		}},
		{Name: "see that no other copy runs", Do: func(ctx context.Context) error { return m.nobodyRuns(ctx, o.AcceptDataLoss) }},
		claim,
		{
			Name: "launch QEMU",
			Do: func(ctx context.Context) (err error) {
				c, err = m.launch(ctx, LaunchRequest{Spec: spec, ID: rec.ID})
				return err
			},
			Undo: m.discard,
		},
		{Name: "join the LAN", Do: func(ctx context.Context) error { return m.speak(ctx, c) }},
		{Name: "run the guest", Do: func(ctx context.Context) error {
			if err := c.Cont(ctx); err != nil {
				return err
			}
			now, _ := m.info()
			m.update(both(both(setDisks(spec, true, now.Generation), setWritten(spec, true)), func(v *state.VM) { v.Role = state.RolePrimary }))
			return nil
		}},
	}}
}

// notShutDown is the error of a guest that was asked to shut down and didn't. That QEMU told of no such event in time says nothing more.
func notShutDown(err error, within time.Duration) error {
	var w *qmp.WaitError
	silent := errors.As(err, &w) && w.Command != "" // QEMU itself does not answer
	if errors.Is(err, context.DeadlineExceeded) && !silent {
		return fmt.Errorf("the guest did not shut down within %s: stop it by force, or shut it down from inside", within)
	}
	return fmt.Errorf("the guest did not shut down within %s (stop it by force, or shut it down from inside): %w", within, err)
}

// commitTimeout is how long a stop waits for a promoted copy's overlays.
const commitTimeout = time.Minute

// stopPlan ends a lone copy.
func (m *machine) stopPlan(o StopOptions) *Plan {
	var steps []Step
	if rec, spec := m.info(); len(incomplete(rec, spec)) > 0 && m.current() != nil {
		steps = append(steps, Step{Name: "commit the overlays", Do: func(ctx context.Context) error {
			ctx, cancel := context.WithTimeout(ctx, commitTimeout)
			defer cancel()
			if err := m.current().Commit(ctx); err != nil {
				return fmt.Errorf("what this copy wrote since it was promoted is not in its disks yet, and would be lost: %w", err)
			}
			m.update(setDisks(spec, true, rec.Generation))
			return nil
		}})
	}
	if !o.Force {
		steps = append(steps, Step{Name: "shut the guest down", Do: func(ctx context.Context) error {
			c := m.current()
			if c == nil {
				return nil
			}
			setDefault(&o.Timeout, time.Minute)
			ctx, cancel := context.WithTimeout(ctx, o.Timeout)
			defer cancel()
			if err := c.Powerdown(ctx); err != nil {
				return notShutDown(err, o.Timeout)
			}
			return nil
		}})
	}
	return &Plan{Kind: planStop, Steps: append(steps, Step{Name: "end QEMU", Do: func(ctx context.Context) error {
		m.update(func(v *state.VM) { v.Want = WantStopped }) // also when it was the guest who wanted it
		m.reset()                                            // what recovery has given up is not wanted any more
		return m.discard(ctx)
	}})}
}

// discard cuts, kills and cleans up the copy, if there is one. What it does afterwards is no event any more.
func (m *machine) discard(ctx context.Context) error {
	c := m.current()
	_, spec := m.info()
	if c != nil {
		silenced := m.endsNow()
		var cutErr error
		kill := func(ctx context.Context) error {
			if cutErr = c.Cut(ctx); cutErr == nil {
				silenced()
			}
			return c.Kill(ctx)
		}
		if err := m.untilEnded(ctx, kill); err != nil {
			m.endsNot()
			return errors.Join(err, cutErr)
		}
		silenced()
		m.setCopy(nil)
		if cutErr != nil { // the kill has silenced it as well
			m.log.Warn("the tap of a dead copy was not cut", "err", cutErr)
		}
	}
	if rec, _ := m.info(); c == nil && rec.Instance != nil { // one that could not be taken over
		if err := m.untilEnded(ctx, func(ctx context.Context) error { return m.n.launcher.End(ctx, spec, *rec.Instance) }); err != nil {
			return err
		}
	}
	m.update(func(v *state.VM) { v.Instance, v.Resync = nil, nil })
	return m.n.launcher.Clear(ctx, spec)
}

// untilEnded kills a QEMU, again and again where it doesn't end: the kernel keeps one for as long as a disk of its doesn't answer. It counts as one that runs meanwhile,
// and that is said.
func (m *machine) untilEnded(ctx context.Context, kill func(context.Context) error) error {
	for begun, told := time.Now(), false; ; told = true {
		kctx, cancel := context.WithTimeout(ctx, min(killPatience*m.n.cfg.HangTimeout, killLimit/2))
		err := kill(kctx)
		late := kctx.Err() != nil
		cancel()
		if err == nil || !late || ctx.Err() != nil {
			if told {
				m.setStuck("")
			}
			return err
		}
		m.log.Error("a QEMU was killed and does not end", "since", time.Since(begun).Round(time.Second), "err", err)
		m.setStuck("its QEMU was killed and does not end, perhaps because a disk of this host does not answer; it is tried again: " + err.Error())
	}
}

// killPatience is how many times as long as QEMU may take to answer it may take to end, before that is said.
const killPatience = 5

// setStuck notes, and tells once, that a QEMU doesn't end; an empty why takes it back.
func (m *machine) setStuck(why string) {
	m.mu.Lock()
	news := m.stuck == "" && why != ""
	m.stuck = why
	m.wake()
	s := m.state
	m.mu.Unlock()
	if news {
		m.emit(Event{Kind: "step", State: s, Text: why})
	}
}

func (m *machine) report(rec state.VM) Report {
	return Report{VM: m.name, From: m.n.cfg.Name, Generation: rec.Generation}
}

// fencePlan makes sure that this copy never speaks again, and tells the peer so when it could be waiting for that.
func (m *machine) fencePlan() *Plan {
	steps := []Step{{Name: "end this copy", Do: m.discard}, {Name: "note that it has no role", Do: func(context.Context) error {
		m.update(func(v *state.VM) { v.Role = state.RoleNone })
		return nil
	}}}
	if k := m.marked(); k.yield && !k.asked { // once the arbiter was asked its answer counts, whenever it is learnt
		steps = append(steps, Step{Name: "tell the peer", Do: m.yield})
	}
	return &Plan{Kind: planFence, Steps: steps}
}

// yield gives the peer the proof that this copy is dead. From the moment it may have arrived this copy must not be started again from its own
// disks, so that is stored first, and taken back only when the peer has no copy that could go on.
func (m *machine) yield(ctx context.Context) error {
	p, info, err := m.partner()
	if err != nil {
		return nil //nolint:nilerr // nobody to tell
	}
	was, _ := m.info()
	if len(was.Members) < 2 {
		return nil
	}
	members := func(names []string) func(v *state.VM) {
		return func(v *state.VM) {
			if v.Generation == was.Generation { // the peer may have counted this copy out meanwhile
				v.Members = names
			}
		}
	}
	if err := m.updateNow(ctx, members([]string{info.Name})); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	err = p.ReportDead(ctx, m.report(was))
	if err == nil || isUnreachable(err) {
		return err
	}
	m.update(members(was.Members))
	return err
}
