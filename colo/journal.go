package colo

import (
	"context"
	"time"

	"github.com/coloctl/coloctl/state"
)

// PlanStatus is the running plan as people see it.
type PlanStatus struct {
	Kind  PlanKind  `json:"kind"`
	Step  string    `json:"step"`
	Index int       `json:"index"` // of the step, from 0
	Steps int       `json:"steps"`
	Begun time.Time `json:"begun"`
}

// urgent plans don't wait for the disk: somebody waits for the guest.
func (k PlanKind) urgent() bool {
	switch k {
	case planClaim, planSurvive, planPromote, planFence:
		return true
	}
	return false
}

// journal writes a plan's intent and the outcome of its steps. The intent's id is known to the ledger's goroutine only.
type journal struct {
	m     *machine
	plan  *Plan
	id    uint64
	begun time.Time
}

func (m *machine) execute(ctx context.Context, j *job) error {
	jr := &journal{m: m, plan: j.plan, begun: time.Now()}
	if err := jr.begin(ctx); err != nil {
		return &StepError{Plan: j.plan.Kind, Step: "journal", Err: err}
	}
	err := j.plan.run(ctx, jr)
	jr.end(ctx, err)
	return err
}

func (jr *journal) begin(ctx context.Context) error {
	steps := make([]state.Step, len(jr.plan.Steps))
	for i, s := range jr.plan.Steps {
		steps[i].Name = s.Name
	}
	rec, _ := jr.m.info()
	write := func(tx RecordsTx) error {
		open, err := tx.OpenIntents()
		if err != nil {
			return err
		}
		for _, in := range open { // of a time before a crash: what it left is what is found now
			if in.VM == jr.m.name {
				if err := tx.End(in.ID, state.OutcomeAbandoned); err != nil {
					return err
				}
			}
		}
		jr.id, err = tx.Begin(state.Intent{VM: jr.m.name, Plan: string(jr.plan.Kind), Generation: rec.Generation, Steps: steps})
		return err
	}
	if jr.plan.Kind.urgent() {
		jr.m.n.ledger.write(write)
		return nil
	}
	return jr.m.n.ledger.writeNow(ctx, write)
}

func (jr *journal) stepStarted(i int) {
	s := &PlanStatus{Kind: jr.plan.Kind, Step: jr.plan.Steps[i].Name, Index: i, Steps: len(jr.plan.Steps), Begun: jr.begun}
	jr.m.setPlan(s)
	jr.m.log.Debug("step", "plan", s.Kind, "step", s.Step)
	jr.m.emit(Event{Kind: "step", State: jr.m.State(), Text: s.Step, Fields: map[string]any{"plan": s.Kind, "index": i, "steps": s.Steps}})
}

func (jr *journal) stepEnded(i int, took time.Duration, err error) {
	jr.m.log.Debug("step ended", "plan", jr.plan.Kind, "step", jr.plan.Steps[i].Name, "took", took, "err", err)
	jr.m.n.ledger.write(func(tx RecordsTx) error { return tx.StepDone(jr.id, i, err) })
}

func (jr *journal) end(ctx context.Context, err error) {
	if jr.m.n.ctx.Err() != nil {
		return // the node is closing: the intent stays open, as after a crash
	}
	out := state.OutcomeDone
	if err != nil {
		out = state.OutcomeUndone
		if jr.plan.Kind.urgent() {
			out = state.OutcomeFailed
		}
	}
	jr.m.n.ledger.write(func(tx RecordsTx) error { return tx.End(jr.id, out) })
}
