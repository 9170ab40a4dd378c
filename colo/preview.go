package colo

import (
	"context"
	"errors"
	"fmt"

	"github.com/coloctl/coloctl/colo/arbiter"
)

// Preview is what a request would lead to, from the same table and plans that carry it out.
type Preview struct {
	VM    string    `json:"vm"`
	Node  string    `json:"node"`
	Event EventKind `json:"event"`
	From  State     `json:"from"`
	To    State     `json:"to"` // entered at once; a plan's end may lead on
	Plan  PlanKind  `json:"plan,omitempty"`
	Steps []string  `json:"steps"` // of the plan, in order; empty when nothing would be done
	Why   string    `json:"why,omitempty"`
}

// Preview tells what a request to start, stop, protect, unprotect, switch over or force would do now, without doing it. Like the request itself it returns an
// [*UnexpectedEventError] when that is refused in the VM's present state. What the steps find out when they run can't be foreseen.
func (n *Node) Preview(vm string, ev EventKind) (Preview, error) {
	m, err := n.machine(vm)
	if err != nil {
		return Preview{}, err
	}
	from := m.State()
	switch ev {
	case ReqStart, ReqStop, ReqProtect, ReqUnprotect, ReqSwitchover, ReqForce:
	default:
		return m.nothing(from, ev), &UnexpectedEventError{VM: vm, State: from, Event: ev}
	}
	if err := m.refused(ev, StopOptions{Force: true}); err != nil { // whether it is by force nobody has said
		return m.nothing(from, ev), err
	}
	p, _, err := m.foresee(from, message{kind: ev})
	return p, err
}

func (m *machine) nothing(from State, ev EventKind) Preview {
	return Preview{VM: m.name, Node: m.n.cfg.Name, Event: ev, From: from, Steps: []string{}}
}

// foresee tells what a request would lead to in a state, and in which state it would leave the VM if all goes well.
func (m *machine) foresee(from State, msg message) (p Preview, then State, err error) {
	p = m.nothing(from, msg.kind)
	t, ok := next(from, msg.kind, m.holds)
	if !ok {
		return p, from, &UnexpectedEventError{VM: m.name, State: from, Event: msg.kind}
	}
	p.To, p.Plan, p.Why, then = t.To, t.Plan, t.Why, t.To
	end := Done
	switch {
	case t.Plan != "":
		plan, err := m.build(t.Plan, msg)
		if err != nil {
			return p, then, err
		}
		for _, s := range plan.Steps {
			p.Steps = append(p.Steps, s.Name)
		}
	case t.Cancel:
		end = PlanError // that is how what is taken back ends
		p.Steps = append(p.Steps, "take back what is under way")
	default:
		return p, then, nil
	}
	if after, ok := next(t.To, end, m.holds); ok {
		then = after.To
	}
	return p, then, nil
}

// PreviewStop tells what [Node.Stop] would do now, and why it would be refused. A protected VM is unprotected first.
func (n *Node) PreviewStop(vm string, o StopOptions) ([]Preview, error) {
	m, err := n.machine(vm)
	if err != nil {
		return nil, err
	}
	s := m.State()
	if err := errors.Join(m.stopRefused(s, o), m.refused(ReqStop, o)); err != nil {
		return nil, err
	}
	var out []Preview
	if s == Protected || s == Syncing || s == Attaching {
		var p Preview
		if p, s, err = m.foresee(s, message{kind: ReqUnprotect}); err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	p, _, err := m.foresee(s, message{kind: ReqStop, args: o})
	if err != nil {
		return nil, err
	}
	return append(out, p), nil
}

// CheckProtect tells why Protect would be refused now, or would end with a look at the peer, and changes nothing. What the peer finds out when it prepares
// its standby can't be foreseen.
func (n *Node) CheckProtect(ctx context.Context, vm string, o ProtectOptions) error {
	m, err := n.machine(vm)
	if err != nil {
		return err
	}
	s := m.State()
	if err := m.joinable(s, o); err != nil {
		return err
	}
	if o.Node != "" {
		if _, err := m.standbyBy(o.Node); err != nil {
			return err
		}
		if s == Syncing || s == Attaching || s == Protected {
			return m.byAnother(o.Node)
		}
	}
	if t, ok := next(s, ReqProtect, m.holds); !ok || t.Plan == "" { // the table says why it is refused, or there is nothing to do
		return nil
	}
	_, _, err = m.checkPeer(ctx, o.Node)
	return err
}

// CheckSwitchover tells why Switchover would be refused now, or would end with a look at the peer, and changes nothing.
func (n *Node) CheckSwitchover(ctx context.Context, vm string) error {
	m, err := n.machine(vm)
	if err != nil {
		return err
	}
	if m.State() != Protected { // the table says why it is refused
		return nil
	}
	_, _, err = m.checkSecondary(ctx)
	return err
}

// checkSecondary asks the peer whether its copy could go on now.
func (m *machine) checkSecondary(ctx context.Context) (peer Peer, info NodeInfo, err error) {
	if peer, info, err = m.partner(); err != nil {
		return nil, info, err
	}
	vm, err := peer.Inquire(ctx, m.name)
	if err != nil {
		return nil, info, err
	}
	if vm.State != Secondary || !vm.Running {
		return nil, info, fmt.Errorf("the copy on %s is %s, not a running secondary", info.Name, vm.State)
	}
	if rec, _ := m.info(); vm.Lacks && !behind(rec) {
		return nil, info, fmt.Errorf("the copy on %s: %w", info.Name, ErrDiskOffline)
	}
	return peer, info, m.arbiterAnswers(ctx)
}

// CheckStart tells why Start would be refused by this host now where the state machine would allow it. Whether this copy is current is found out by the start itself.
func (n *Node) CheckStart(ctx context.Context, vm string) error {
	m, err := n.machine(vm)
	if err != nil || m.current() != nil {
		return err
	}
	if err := errors.Join(m.admitted(), m.noBackup()); err != nil {
		return err
	}
	_, spec := m.info()
	return n.launcher.Check(ctx, spec)
}

// CheckCheckpoint tells why Checkpoint would be refused now, and makes none.
func (n *Node) CheckCheckpoint(vm string) error {
	m, err := n.machine(vm)
	if err == nil {
		_, err = m.inColo()
	}
	return err
}

// CheckForce tells why ForceWith would be refused now where the state machine would allow it, and changes nothing.
func (n *Node) CheckForce(ctx context.Context, vm string, o ForceOptions) error {
	m, err := n.machine(vm)
	if err != nil {
		return err
	}
	return m.forcible(ctx, o)
}

// CheckDelete tells why Delete would be refused now, and forgets nothing.
func (n *Node) CheckDelete(ctx context.Context, vm string) error {
	m, err := n.machine(vm)
	if err != nil {
		return err
	}
	s := m.State()
	if err := m.refused(ReqDelete, nil); err != nil {
		return err
	}
	if _, ok := next(s, ReqDelete, m.holds); !ok {
		return &UnexpectedEventError{VM: vm, State: s, Event: ReqDelete}
	}
	if rec, _ := m.info(); aloneIn(rec, n.cfg.Name) {
		if err := m.arbiterAnswers(ctx); err != nil && !errors.Is(err, arbiter.ErrNoRecord) {
			return err
		}
	}
	return m.noBackup()
}
