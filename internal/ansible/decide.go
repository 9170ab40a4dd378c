package ansible

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/internal/both"
)

// view is how a VM stands, as far as its nodes tell.
type view struct {
	vm     string
	halves []both.Half
	target *both.Target // where requests go
	astray error        // why there is no target though somebody knows the VM
	spec   []byte       // the stored one; nil when the VM isn't there
	tag    string       // of spec
	peer   string       // of the only daemon that is asked; empty when both are
}

// known says whether any node that was asked has the VM.
func (v *view) known() bool {
	return slices.ContainsFunc(v.halves, func(h both.Half) bool { return h.Has() })
}

// primary is the half that speaks to the world or is about to; nil if none is known.
func (v *view) primary() *both.Half {
	return v.find(func(s *colo.Status) bool { return both.RunsAsPrimary(s.State) })
}

func (v *view) find(ok func(*colo.Status) bool) *both.Half {
	for i := range v.halves {
		if h := &v.halves[i]; h.Has() && ok(h.Status) {
			return h
		}
	}
	return nil
}

func (v *view) on(node string) *both.Half {
	return v.find(func(s *colo.Status) bool { return s.Node == node })
}

// unheard are the nodes that were asked and did not say whether they have the VM.
func (v *view) unheard() error {
	for _, h := range v.halves {
		if h.Target != nil && h.Err != nil && !errors.Is(h.Err, colo.ErrNoVM) {
			return fmt.Errorf("%s: %w", h.Node, h.Err)
		}
	}
	return nil
}

// step is what to do next: exactly one of the fields is set.
type step struct {
	done bool
	act  action
	wait string // for what
	fail error
}

// action is a request to the nodes.
type action string

const (
	actNone       action = ""
	actCreate     action = "create"
	actEdit       action = "edit"
	actDelete     action = "delete"
	actStart      action = "start"
	actStop       action = "stop"
	actProtect    action = "protect"
	actUnprotect  action = "unprotect"
	actSwitchover action = "switchover"
	actFailover   action = "failover"
)

var reached = step{done: true}

func waitFor(format string, args ...any) step { return step{wait: fmt.Sprintf(format, args...)} }

func refuse(format string, args ...any) step { return step{fail: fmt.Errorf(format, args...)} }

// decide finds the next step to a task's goal from what was seen. It has no side effects.
func decide(t *Task, v *view) step {
	if v.known() && t.State != Absent && t.Want != nil {
		if s := decideSpec(t, v); !s.done {
			return s
		}
	}
	switch {
	case t.State == Absent:
		return decideAbsent(t, v)
	case !v.known() && t.Want != nil:
		if err := v.unheard(); err != nil {
			return step{fail: fmt.Errorf("whether the VM exists is not known: %w", err)}
		}
		return step{act: actCreate}
	case !v.known() && t.State == Stopped:
		return reached // what isn't there doesn't run
	case !v.known():
		return step{fail: fmt.Errorf("%s: %w; to make it, give spec or spec_file", t.VM, colo.ErrNoVM)}
	case t.State == Present:
		return reached
	case t.State == FailedOver:
		return decideFailedOver(t, v)
	}
	p := v.primary()
	if p == nil {
		return decideNowhere(t, v)
	}
	s := decideRunning(t, v, p)
	if s.act != actNone && v.astray != nil {
		return step{fail: v.astray}
	}
	return s
}

// decideSpec compares the stored spec with the one that is wanted.
func decideSpec(t *Task, v *view) step {
	want, err := colo.MarshalSpec(t.Want)
	switch {
	case err != nil:
		return step{fail: err}
	case v.spec == nil: // nobody who is reached has it
		return step{fail: v.astray}
	case bytes.Equal(want, v.spec):
		return reached
	case v.astray != nil:
		return step{fail: fmt.Errorf("the spec stored here differs, and %w", v.astray)}
	}
	p := v.primary()
	if p == nil {
		return step{act: actEdit}
	}
	now, err := colo.ParseSpec(v.spec, "stored spec")
	if err != nil {
		return step{fail: err}
	}
	switch {
	case p.Status.State != colo.Solo:
		return refuse("%s: its spec differs, and can't be changed while it is %s on %s: bring it to state unprotected, or stopped, first", t.VM, p.Status.State, p.Node)
	case !now.SameMachine(t.Want):
		return refuse("%s: its spec differs in more than its protection, which is %w: bring it to state stopped first", t.VM, colo.ErrNotWhileRunning)
	}
	return step{act: actEdit}
}

func decideAbsent(t *Task, v *view) step {
	if err := v.unheard(); err != nil {
		return step{fail: fmt.Errorf("whether the VM exists is not known everywhere: %w", err)}
	}
	reachedHalf := false
	for _, h := range v.halves {
		if !h.Has() {
			continue
		}
		switch s := h.Status.State; s {
		case colo.Stopped, colo.Outdated, colo.Failed:
		default:
			return refuse("%s is %s on %s, and is not removed while it runs: bring it to state stopped first", t.VM, s, h.Node)
		}
		reachedHalf = reachedHalf || h.Target != nil
	}
	if !reachedHalf {
		return reached
	}
	return step{act: actDelete}
}

func decideFailedOver(t *Task, v *view) step {
	here := v.on(t.Primary)
	if here == nil {
		return refuse("%s: %s does not say how it stands there", t.VM, t.Primary)
	}
	switch s := here.Status.State; {
	case s == colo.FailingOver:
		return waitFor("%s is failing over on %s", t.VM, here.Node)
	case both.RunsAsPrimary(s):
		return reached
	case here.Target == nil:
		return step{fail: &both.ElsewhereError{VM: t.VM, Node: here.Node, Context: "task"}}
	}
	return step{act: actFailover}
}

// decideNowhere is for a VM that no node says it runs as primary.
func decideNowhere(t *Task, v *view) step {
	if h := v.find(func(s *colo.Status) bool { return s.State == colo.Arbitrating }); h != nil {
		return waitFor("%s waits on %s to learn who may go on: %s", t.VM, h.Node, h.Status.Why)
	}
	if h := v.find(func(s *colo.Status) bool { return s.State == colo.Secondary || s.State == colo.Standby }); h != nil {
		if h.Status.Verdict.Protected && (t.State == Started || t.State == Protected) {
			return reached // by the heartbeats and checkpoints of a primary whose daemon is out of reach
		}
		return waitFor("%s is %s on %s, and the node where it runs does not answer", t.VM, h.Status.State, h.Node)
	}
	failed := v.find(func(s *colo.Status) bool { return s.State == colo.Failed && s.PID != 0 })
	if t.State == Stopped && failed == nil {
		return reached
	}
	if t.State == Unprotected || t.State == SwitchedOver {
		return refuse("%s does not run (%s): bring it to state started first", t.VM, both.Judge(v.halves).Reason)
	}
	if v.astray != nil {
		return step{fail: v.astray}
	}
	if t.State == Stopped {
		return step{act: actStop}
	}
	return step{act: actStart}
}

// decideRunning is for a VM whose primary is known.
func decideRunning(t *Task, v *view, p *both.Half) step {
	s := p.Status
	busy := waitFor("%s is %s on %s", t.VM, s.State, p.Node)
	if s.State == colo.Starting && t.State == Stopped {
		return step{act: actStop}
	}
	switch s.State {
	case colo.Starting, colo.FailingOver, colo.Stopping:
		return busy
	}
	switch t.State {
	case Started:
		return reached
	case Stopped:
		if s.State == colo.Detaching || s.State == colo.SwitchingOver {
			return busy
		}
		return step{act: actStop}
	case Protected:
		verdict := both.Judge(v.halves)
		switch {
		case verdict.Protected:
			return reached
		case s.State == colo.Solo && s.Peer == "" && v.peerOf(p) == "":
			return step{fail: fmt.Errorf("%s: %w on %s", t.VM, colo.ErrNoPeer, p.Node)}
		case s.State == colo.Solo && !s.PeerAlive:
			return waitFor("%s runs alone on %s, and no heartbeat comes from its peer", t.VM, p.Node)
		case s.State == colo.Solo:
			return step{act: actProtect}
		}
		return waitFor("%s is not protected: %s", t.VM, verdict.Reason)
	case Unprotected:
		switch {
		case s.State == colo.Detaching || s.State == colo.SwitchingOver:
			return busy
		case s.State == colo.Solo && s.Want != colo.WantProtected:
			return reached
		}
		return step{act: actUnprotect}
	case SwitchedOver:
		return decideSwitchover(t, v, p)
	}
	return refuse("state %s is not known", t.State) // the parameters were checked
}

func decideSwitchover(t *Task, v *view, p *both.Half) step {
	dest := t.Primary
	if dest == "" {
		dest = v.peer
	}
	s := p.Status
	switch {
	case dest == "":
		return step{fail: fmt.Errorf("%s: %w: there is nobody to switch over to", t.VM, colo.ErrNoPeer)}
	case p.Node == dest && s.State != colo.SwitchingOver:
		return reached
	case s.Peer != "" && s.Peer != dest && p.Node != dest:
		return refuse("primary: %s runs on %s, whose peer is %s, not %s", t.VM, p.Node, s.Peer, dest)
	case s.State == colo.Protected:
		return step{act: actSwitchover}
	case s.State == colo.Solo && (s.Want != colo.WantProtected || s.GivenUp != "" || !s.PeerAlive):
		return refuse("%s runs alone on %s (%s), so its role can't be handed over: bring it to state protected first",
			t.VM, p.Node, strings.TrimPrefix(both.Judge(v.halves).Reason, string(colo.Solo)+" on "+p.Node+": "))
	}
	return waitFor("%s is not protected yet: %s", t.VM, both.Judge(v.halves).Reason)
}

// peerOf is the peer of the node where a half is.
func (v *view) peerOf(h *both.Half) string {
	if v.peer != "" && h.Target != nil {
		return v.peer
	}
	for _, o := range v.halves {
		if o.Node != h.Node {
			return o.Node
		}
	}
	return ""
}
