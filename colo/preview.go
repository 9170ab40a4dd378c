package colo

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
	p := Preview{VM: vm, Node: n.cfg.Name, Event: ev, From: from, Steps: []string{}}
	refused := &UnexpectedEventError{VM: vm, State: from, Event: ev}
	switch ev {
	case ReqStart, ReqStop, ReqProtect, ReqUnprotect, ReqSwitchover, ReqForce:
	default:
		return p, refused
	}
	if err := m.refused(ev, StopOptions{Force: true}); err != nil { // whether it is by force nobody has said
		return p, err
	}
	t, ok := next(from, ev, m.holds)
	if !ok {
		return p, refused
	}
	p.To, p.Plan, p.Why = t.To, t.Plan, t.Why
	if t.Plan == "" {
		return p, nil
	}
	plan, err := m.build(t.Plan, message{kind: ev})
	if err != nil {
		return p, err
	}
	for _, s := range plan.Steps {
		p.Steps = append(p.Steps, s.Name)
	}
	return p, nil
}
