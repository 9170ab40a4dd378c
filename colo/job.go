package colo

import (
	"context"
	"errors"
)

// job is a running plan.
type job struct {
	plan    *Plan
	cancel  context.CancelCauseFunc
	waiters []chan<- error
}

// interruptedError is the cause with which a running plan is cancelled.
type interruptedError struct{ text string }

func (e *interruptedError) Error() string { return "interrupted: " + e.text }

// finish answers those who waited for the plan whose end msg is.
func (m *machine) finish(msg *message, err error) {
	if msg.job != nil {
		for _, w := range msg.job.waiters {
			w <- err
		}
	}
}

// endJob notes the end of a plan. It reports true when another plan was waiting for that: the end is then no event any more.
func (m *machine) endJob(ctx context.Context, msg *message) bool {
	if msg.job != m.job {
		return true
	}
	m.job = nil
	m.setPlan(nil)
	if msg.err != nil {
		m.setLastErr(msg.job.plan.Kind, msg.err)
	} else {
		m.mended(msg.job.plan.Kind)
	}
	if msg.job.plan.Kind == planDelete && msg.err == nil {
		m.finish(msg, nil)
		m.gone()
		return true
	}
	if m.following == nil {
		return false
	}
	m.finish(msg, msg.err)
	follow, plan := *m.following, m.nextPlan
	m.following = nil
	m.start(ctx, plan, follow)
	waiting := m.waiting
	m.waiting = nil
	for _, msg := range waiting {
		m.handle(ctx, msg)
	}
	return true
}

func (j *job) wait() <-chan error {
	c := make(chan error, 1)
	j.waiters = append(j.waiters, c)
	return c
}

// start runs a plan in its own goroutine, which posts the plan's end.
func (m *machine) start(ctx context.Context, kind PlanKind, msg message) {
	plan, err := m.build(kind, msg)
	if err != nil {
		plan = &Plan{Kind: kind, Steps: []Step{{Name: "check", Do: func(context.Context) error { return err }}}}
	}
	pctx, cancel := context.WithCancelCause(ctx)
	j := &job{plan: plan, cancel: cancel}
	if msg.reply != nil {
		j.waiters = append(j.waiters, msg.reply)
	}
	m.job = j
	m.n.wg.Go(func() {
		defer cancel(nil)
		err := m.execute(pctx, j)
		end := message{kind: outcome(err), job: j, err: err}
		m.post(end)
	})
}

// Outcomes of plans that are more than a failure.
var (
	errLost      = errors.New("another copy goes on")
	errUndecided = errors.New("nobody could say which copy may go on")
	errBehind    = errors.New("the arbiter has lost what it knew of this VM, or is another one")
	errRevived   = errors.New("checkpoints go on: the peer's copy is well")
	errCopyDead  = errors.New("the copy here is dead itself")
)

func outcome(err error) EventKind {
	switch {
	case err == nil:
		return Done
	case errors.Is(err, errLost):
		return Lost
	case errors.Is(err, errUndecided):
		return Undecided
	case undoFailed(err):
		return UndoFailed
	case errors.Is(err, errRevived):
		return Revived
	case errors.Is(err, errCopyDead):
		return CopyDead
	default:
		return PlanError
	}
}

// undoFailed says whether a plan that touches replication has left something of it behind.
func undoFailed(err error) bool {
	var se *StepError
	return errors.As(err, &se) && se.Undo != nil && (se.Plan == planProtect || se.Plan == planSwitchover)
}
