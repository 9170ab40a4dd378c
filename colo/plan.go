package colo

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// PlanKind names a plan.
type PlanKind string

const (
	planStart      PlanKind = "start"
	planStop       PlanKind = "stop"
	planProtect    PlanKind = "protect"
	planDetach     PlanKind = "detach"
	planSwitchover PlanKind = "switchover"
	planPrepare    PlanKind = "prepare-standby"
	planClaim      PlanKind = "claim"
	planSurvive    PlanKind = "survive"
	planPromote    PlanKind = "promote"
	planFence      PlanKind = "self-fence"
	planEdit       PlanKind = "edit"
	planDelete     PlanKind = "delete"
)

// Step is one named part of a plan.
type Step struct {
	Name string
	Do   func(ctx context.Context) error
	Undo func(ctx context.Context) error // nil when there is nothing to take back; must be safe after a Do that failed half-way
}

// Plan is an ordered list of steps. When one fails, the undo of it and of those before it run in reverse.
type Plan struct {
	Kind  PlanKind
	Steps []Step
	// NoReturn is the index of the first step after which nothing is undone any more; 0 means every step can be.
	NoReturn int
	// End is called when the plan has ended, however; nil when there is nothing to do then.
	End func()
}

// StepError says which step of a plan failed, and what its undo could not take back.
type StepError struct {
	Plan PlanKind
	Step string
	Err  error
	Undo error // nil when everything was undone
}

func (e *StepError) Error() string {
	if e.Undo != nil {
		return fmt.Sprintf("%s: %s: %v (and taking it back: %v)", e.Plan, e.Step, e.Err, e.Undo)
	}
	return fmt.Sprintf("%s: %s: %v", e.Plan, e.Step, e.Err)
}

func (e *StepError) Unwrap() []error { return []error{e.Err, e.Undo} }

// undoTimeout bounds the undo of one step: it runs when the plan's own context may be over.
const undoTimeout = 30 * time.Second

// planObserver is told what a plan does, before and after each step.
type planObserver interface {
	stepStarted(i int)
	stepEnded(i int, took time.Duration, err error)
}

// run does the steps in order. The undo is not cancelled by ctx.
func (p *Plan) run(ctx context.Context, o planObserver) error {
	if p.End != nil {
		defer p.End()
	}
	for i, s := range p.Steps {
		err := context.Cause(ctx)
		begun := err == nil
		if begun {
			o.stepStarted(i)
			start := time.Now()
			err = s.Do(ctx)
			o.stepEnded(i, time.Since(start), err)
		}
		if err == nil {
			continue
		}
		if cause := context.Cause(ctx); cause != nil && errors.Is(err, ctx.Err()) {
			err = cause
		}
		se := &StepError{Plan: p.Kind, Step: s.Name, Err: err}
		last := i // of those to undo
		if !begun {
			last--
		}
		// A node that is closing leaves things as they are, like one that has crashed.
		if (p.NoReturn == 0 || last < p.NoReturn) && !errors.Is(context.Cause(ctx), ErrClosed) {
			se.Undo = p.undo(context.WithoutCancel(ctx), last)
		}
		return se
	}
	return nil
}

func (p *Plan) undo(ctx context.Context, last int) error {
	var errs []error
	for i := last; i >= 0; i-- {
		if u := p.Steps[i].Undo; u != nil {
			uctx, cancel := context.WithTimeout(ctx, undoTimeout)
			if err := u(uctx); err != nil {
				errs = append(errs, fmt.Errorf("undo of %q: %w", p.Steps[i].Name, err))
			}
			cancel()
		}
	}
	return errors.Join(errs...)
}
