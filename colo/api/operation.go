package api

import (
	"time"

	"github.com/coloctl/coloctl/colo"
)

// OperationState is how far an operation is.
type OperationState string

// States of an operation.
const (
	Running   OperationState = "running"
	Done      OperationState = "done"
	Failed    OperationState = "failed"
	Cancelled OperationState = "cancelled" // taken back on request
)

// Operation is a request that takes long.
type Operation struct {
	ID          string         `json:"id"`
	VM          string         `json:"vm"`
	Kind        string         `json:"kind"` // start, stop, protect, unprotect, switchover, failover, restore-record, resync or checkpoint
	State       OperationState `json:"state"`
	By          string         `json:"by"`
	Reason      string         `json:"reason,omitempty"`
	Begun       time.Time      `json:"begun"`
	Ended       time.Time      `json:"ended,omitzero"`
	Steps       []OpStep       `json:"steps"`
	Progress    *colo.Progress `json:"progress,omitempty"` // of what takes long right now
	Cancellable bool           `json:"cancellable"`
	Error       *ErrorBody     `json:"error,omitempty"`
}

// OpStep is one step of a plan that the operation led to.
type OpStep struct {
	Plan  string    `json:"plan"`
	Name  string    `json:"name"`
	Index int       `json:"index"` // in its plan, from 0
	Of    int       `json:"of"`    // steps of the plan
	Begun time.Time `json:"begun"`
	Ended time.Time `json:"ended,omitzero"`
	Error string    `json:"error,omitempty"`
}

// Err is the operation's error, nil if it has none.
func (o *Operation) Err() error {
	if o.Error == nil {
		return nil
	}
	return &Error{Body: *o.Error}
}

// clone returns a copy that later steps don't change.
func (o *Operation) clone() Operation {
	out := *o
	out.Steps = append([]OpStep{}, o.Steps...)
	if o.Progress != nil {
		p := *o.Progress
		out.Progress = &p
	}
	return out
}

// observe takes an event of the operation's VM into its report, if it is of a plan that the operation leads to.
func (o *Operation) observe(e colo.Event) {
	switch e.Kind {
	case "step":
		plan, ok := e.Fields["plan"].(colo.PlanKind)
		if !ok || !leadsTo(o.Kind, string(plan)) {
			return
		}
		o.endStep(e.Time, "")
		index, _ := e.Fields["index"].(int)
		of, _ := e.Fields["steps"].(int)
		o.Steps = append(o.Steps, OpStep{Plan: string(plan), Name: e.Text, Index: index, Of: of, Begun: e.Time})
		o.Progress = nil
	case "progress":
		if !leadsTo(o.Kind, "protect") {
			return
		}
		p := colo.Progress{What: e.Text}
		p.Done, _ = e.Fields["done"].(int64)
		p.Total, _ = e.Fields["total"].(int64)
		p.Rate, _ = e.Fields["rate"].(int64)
		if p.Rate > 0 {
			p.ETA = time.Duration(float64(p.Total-p.Done) / float64(p.Rate) * float64(time.Second))
		}
		o.Progress = &p
	}
}

func (o *Operation) endStep(at time.Time, err string) {
	if n := len(o.Steps); n > 0 && o.Steps[n-1].Ended.IsZero() {
		o.Steps[n-1].Ended, o.Steps[n-1].Error = at, err
	}
}

// leadsTo says whether a plan may be run for an operation. A VM does one thing at a time, but one request may cut another short.
func leadsTo(kind, plan string) bool {
	switch kind {
	case "stop":
		return plan == "stop" || plan == "detach"
	case "unprotect":
		return plan == "detach"
	case "failover":
		return plan == "survive"
	case "resync":
		return plan == "protect"
	}
	return plan == kind
}
