package ansible

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/api"
	"github.com/coloctl/coloctl/internal/both"
)

// Reply is what the module prints.
type Reply struct {
	Changed    bool              `json:"changed"` // under --check: something would be
	Failed     bool              `json:"failed,omitempty"`
	Msg        string            `json:"msg,omitempty"`
	RC         int               `json:"rc,omitempty"` // as coloctl's exit code, if it failed
	VM         string            `json:"vm,omitempty"`
	Exists     bool              `json:"exists"`
	Primary    string            `json:"primary"` // the node where it runs; empty if it runs nowhere, as far as is known
	At         string            `json:"at"`      // the node that tasks for it are for: where it runs, or else whose copy is the newest
	Protected  bool              `json:"protected"`
	Reason     string            `json:"reason,omitempty"` // why it is not protected
	States     map[string]string `json:"states,omitempty"` // by node
	Operations []OperationReport `json:"operations,omitempty"`
	Plan       []PlanReport      `json:"plan,omitempty"` // under --check: what would be done
	Diff       *Diff             `json:"diff,omitempty"`
	Warnings   []string          `json:"warnings,omitempty"`
	Invocation *Invocation       `json:"invocation,omitempty"`
}

// OperationReport is something that was done, or is going on.
type OperationReport struct {
	Kind    string       `json:"kind"`
	Node    string       `json:"node"`
	ID      string       `json:"id,omitempty"` // of those that take long
	State   string       `json:"state"`
	Seconds float64      `json:"seconds"`
	Steps   []StepReport `json:"steps,omitempty"`
}

// StepReport is one step of an operation.
type StepReport struct {
	Name    string  `json:"name"`
	Seconds float64 `json:"seconds"`
	Error   string  `json:"error,omitempty"`
}

// PlanReport is something that would be done.
type PlanReport struct {
	Kind  string   `json:"kind"`
	Node  string   `json:"node"`
	Steps []string `json:"steps"`
}

// Diff is rendered by Ansible under --diff.
type Diff struct {
	Before       string `json:"before"`
	After        string `json:"after"`
	BeforeHeader string `json:"before_header"`
	AfterHeader  string `json:"after_header"`
}

// Invocation repeats the parameters under -vvv.
type Invocation struct {
	Args map[string]json.RawMessage `json:"module_args"`
}

// invocation is the task's own parameters.
func invocation(data []byte) *Invocation {
	var in map[string]json.RawMessage
	if json.Unmarshal(data, &in) != nil {
		return nil
	}
	for name := range in {
		if strings.HasPrefix(name, "_ansible_") {
			delete(in, name)
		}
	}
	return &Invocation{in}
}

func reportOperation(op api.Operation, node string, now time.Time) OperationReport {
	r := OperationReport{Kind: op.Kind, Node: node, ID: op.ID, State: string(op.State), Seconds: seconds(op.Begun, op.Ended, now)}
	for _, s := range op.Steps {
		r.Steps = append(r.Steps, StepReport{s.Name, seconds(s.Begun, s.Ended, now), s.Error})
	}
	return r
}

func seconds(from, to, now time.Time) float64 {
	if to.IsZero() {
		to = now
	}
	return to.Sub(from).Round(time.Millisecond).Seconds()
}

// progress says how far an operation is, in a few words.
func progress(op api.Operation) string {
	var words []string
	if n := len(op.Steps); n > 0 {
		s := op.Steps[n-1]
		words = append(words, fmt.Sprintf("step %d of %d, %s", s.Index+1, s.Of, s.Name))
	}
	if p := op.Progress; p != nil && p.Total > 0 {
		words = append(words, fmt.Sprintf("%s %d %% of %s", p.What, 100*p.Done/p.Total, colo.Size(p.Total)))
		if p.ETA > 0 {
			words = append(words, p.ETA.Round(time.Second).String()+" left")
		}
	}
	return strings.Join(words, ", ")
}

// fill tells how the VM stands.
func (r *Reply) fill(v *view) {
	r.Exists, r.Primary, r.Protected, r.Reason, r.States = v.known(), "", false, "", map[string]string{}
	for _, h := range v.halves {
		if h.Has() {
			r.States[h.Node] = string(h.Status.State)
		}
	}
	if p := v.primary(); p != nil {
		r.Primary = p.Node
	}
	var elsewhere *both.ElsewhereError
	switch {
	case errors.As(v.astray, &elsewhere):
		r.At = elsewhere.Node
	case v.target != nil:
		r.At = v.target.Name
	}
	if r.Exists {
		verdict := both.Judge(v.halves)
		r.Protected, r.Reason = verdict.Protected, verdict.Reason
	}
}

// picture is a VM as a difference shows it: what a task can change, and nothing that changes by itself.
type picture struct {
	state   string
	primary string
	spec    []byte
}

func draw(v *view) picture {
	if !v.known() {
		return picture{state: string(Absent)}
	}
	p := picture{state: string(Stopped), spec: v.spec}
	if h := v.primary(); h != nil {
		p.primary = h.Node
		switch {
		case both.Judge(v.halves).Protected:
			p.state = "protected"
		case h.Status.State == colo.Solo:
			p.state = "running alone"
		default:
			p.state = string(h.Status.State)
		}
	} else if h := v.find(func(s *colo.Status) bool { return s.State != colo.Stopped && s.State != colo.Outdated }); h != nil {
		p.state = string(h.Status.State)
	}
	return p
}

func (p picture) String() string {
	var b bytes.Buffer
	fmt.Fprintf(&b, "state: %s\n", p.state)
	if p.primary != "" {
		fmt.Fprintf(&b, "primary: %s\n", p.primary)
	}
	if len(p.spec) > 0 {
		b.WriteString("spec:\n")
		for line := range strings.Lines(string(p.spec)) {
			b.WriteString("  " + line)
		}
	}
	return b.String()
}

func newDiff(vm string, before, after picture) *Diff {
	return &Diff{Before: before.String(), After: after.String(), BeforeHeader: vm + " before", AfterHeader: vm + " after"}
}
