package ansible

import (
	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/internal/both"
)

// imagine is how the VM will stand once an action is done, for --check: what comes after the first step can't be asked for as a dry run, because the nodes judge
// it from where they are.
func imagine(t *Task, v *view, a action) *view {
	out := *v
	out.halves = make([]both.Half, len(v.halves))
	for i, h := range v.halves {
		if h.Has() {
			s := *h.Status
			h.Status = &s
		}
		out.halves[i] = h
	}
	switch a {
	case actCreate:
		s := &colo.Status{VM: t.VM, Node: v.target.Name, State: colo.Stopped, Peer: v.peer}
		out.halves = []both.Half{{Node: v.target.Name, Status: s, Target: v.target}}
		out.spec, _ = colo.MarshalSpec(t.Want) // was marshalled before
	case actEdit:
		out.spec, _ = colo.MarshalSpec(t.Want)
	case actDelete:
		var rest []both.Half
		for _, h := range out.halves {
			if h.Target != nil && !h.Has() { // what is known by hearsay was known through the others
				rest = append(rest, h)
			}
		}
		out.halves = rest
	case actStart:
		out.become(v.target.Name, colo.Solo, "")
	case actStop:
		if p := out.primary(); p != nil {
			out.become(p.Node, colo.Stopped, colo.Outdated)
		}
	case actProtect:
		out.become(out.primary().Node, colo.Protected, colo.Secondary)
	case actUnprotect:
		out.become(out.primary().Node, colo.Solo, colo.Outdated)
		out.primary().Status.Want = colo.WantRunning
	case actSwitchover:
		dest := t.Primary
		if dest == "" {
			dest = v.peer
		}
		out.become(dest, colo.Solo, colo.Outdated)
	case actFailover:
		out.become(t.Primary, colo.Solo, "")
	case actNone:
	}
	return &out
}

// become puts the half on a node into one state and the other into another; an empty one stays as it is.
func (v *view) become(node string, s, other colo.State) {
	set := func(h *both.Half, s colo.State) {
		if s == "" || !h.Has() {
			return
		}
		good := s == colo.Protected || s == colo.Secondary
		h.Status.State, h.Status.Verdict, h.Status.PeerAlive = s, colo.Verdict{Protected: good, Reason: string(s)}, true
	}
	for i := range v.halves {
		if v.halves[i].Node == node {
			set(&v.halves[i], s)
		} else {
			set(&v.halves[i], other)
		}
	}
}
