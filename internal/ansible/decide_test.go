package ansible

import (
	"strings"
	"testing"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/internal/both"
)

var nodeA, nodeB = &both.Target{Name: "a"}, &both.Target{Name: "b"}

// half is one as a node would answer; a protected or secondary copy has a good verdict.
func half(n *both.Target, s colo.State, change ...func(*colo.Status)) both.Half {
	st := &colo.Status{VM: "web", Node: n.Name, State: s, Peer: map[string]string{"a": "b", "b": "a"}[n.Name], PeerAlive: true, Want: colo.WantProtected,
		Verdict: colo.Verdict{Protected: s == colo.Protected || s == colo.Secondary, Reason: string(s)}}
	for _, c := range change {
		c(st)
	}
	return both.Half{Node: n.Name, Status: st, Target: n}
}

func pair(a, b both.Half) *view {
	v := &view{vm: "web", halves: []both.Half{a, b}, spec: []byte("x")}
	v.target, v.astray = (&both.Site{Context: "task", Nodes: []*both.Target{nodeA, nodeB}}).Choose("web", v.halves)
	return v
}

// lone is what the daemon of a sees: b's half by hearsay.
func lone(a, b both.Half) *view {
	b.Target = nil
	v := &view{vm: "web", halves: []both.Half{a, b}, spec: []byte("x"), peer: "b"}
	v.target, v.astray = (&both.Site{Context: "task", Nodes: []*both.Target{nodeA}}).Choose("web", v.halves)
	return v
}

func TestDecide(t *testing.T) {
	dead := func(s *colo.Status) { s.PeerAlive = false }
	alone := func(s *colo.Status) { s.Want = colo.WantRunning }
	doubt := func(s *colo.Status) { s.Verdict = colo.Verdict{Reason: "the arbiter does not answer"} }
	qemu := func(s *colo.Status) { s.PID = 7 }
	silent := both.Half{Node: "b", Error: "no answer"}
	stopped, protected := pair(half(nodeA, colo.Stopped), half(nodeB, colo.Outdated)), pair(half(nodeA, colo.Protected), half(nodeB, colo.Secondary))
	solo := pair(half(nodeA, colo.Solo), half(nodeB, colo.Outdated))
	held := pair(half(nodeA, colo.Arbitrating), half(nodeB, colo.Outdated))
	tests := []struct {
		state State
		v     *view
		want  string // an action, "done", "wait: ..." or "fail: ..."
		task  func(*Task)
	}{
		{Started, stopped, "start", nil},
		{Started, solo, "done", nil},
		{Started, protected, "done", nil},
		{Started, lone(half(nodeA, colo.Secondary), half(nodeB, colo.Protected)), "done", nil},
		{Started, lone(half(nodeA, colo.Stopped), half(nodeB, colo.Stopped)), "start", nil},
		{Started, pair(half(nodeA, colo.Starting), half(nodeB, colo.Outdated)), "wait: web is starting on a", nil},
		{Started, held, "wait: web waits on a", nil},
		{Started, pair(half(nodeA, colo.Failed), half(nodeB, colo.Outdated)), "start", nil},
		{Started, lone(half(nodeA, colo.Secondary), silent), "done", nil}, // it proves that the primary runs
		{Started, lone(half(nodeA, colo.Standby), silent), "wait: web is standby on a", nil},

		{Stopped, stopped, "done", nil},
		{Stopped, solo, "stop", nil},
		{Stopped, protected, "stop", nil},
		{Stopped, lone(half(nodeA, colo.Secondary), half(nodeB, colo.Protected)), "fail: web runs on b", nil},
		{Stopped, lone(half(nodeA, colo.Secondary), silent), "wait: web is secondary on a", nil},
		{Stopped, pair(half(nodeA, colo.Starting), half(nodeB, colo.Outdated)), "stop", nil},
		{Stopped, pair(half(nodeA, colo.SwitchingOver), half(nodeB, colo.Secondary)), "wait: web is switching-over on a", nil},
		{Stopped, pair(half(nodeA, colo.Failed), half(nodeB, colo.Outdated)), "done", nil},
		{Stopped, pair(half(nodeA, colo.Failed, qemu), half(nodeB, colo.Outdated)), "stop", nil},

		{Protected, protected, "done", nil},
		{Protected, pair(half(nodeA, colo.Protected, doubt), half(nodeB, colo.Secondary)), "wait: web is not protected: the arbiter does not answer", nil},
		{Protected, solo, "protect", nil},
		{Protected, pair(half(nodeA, colo.Solo, dead), half(nodeB, colo.Outdated)), "wait: web runs alone on a, and no heartbeat", nil},
		{Protected, pair(half(nodeA, colo.Syncing), half(nodeB, colo.Standby)), "wait: web is not protected", nil},
		{Protected, stopped, "start", nil},
		{Protected, lone(half(nodeA, colo.Outdated), half(nodeB, colo.Solo)), "fail: web runs on b", nil},

		{Unprotected, protected, "unprotect", nil},
		{Unprotected, solo, "unprotect", nil}, // its node would protect it again
		{Unprotected, pair(half(nodeA, colo.Solo, alone), half(nodeB, colo.Outdated)), "done", nil},
		{Unprotected, stopped, "fail: web does not run", nil},

		{SwitchedOver, lone(half(nodeA, colo.Protected), half(nodeB, colo.Secondary)), "switchover", nil},
		{SwitchedOver, lone(half(nodeA, colo.Outdated), half(nodeB, colo.Solo)), "done", nil},
		{SwitchedOver, lone(half(nodeA, colo.Secondary), half(nodeB, colo.Protected)), "done", nil},
		{SwitchedOver, protected, "done", func(t *Task) { t.Primary = "a" }},
		{SwitchedOver, protected, "switchover", func(t *Task) { t.Primary = "b" }},
		{SwitchedOver, pair(half(nodeA, colo.SwitchingOver), half(nodeB, colo.Secondary)), "wait: ", func(t *Task) { t.Primary = "b" }},
		{SwitchedOver, solo, "wait: web is not protected yet", func(t *Task) { t.Primary = "b" }},
		{SwitchedOver, pair(half(nodeA, colo.Solo, alone), half(nodeB, colo.Outdated)), "fail: web runs alone on a", func(t *Task) { t.Primary = "b" }},
		{SwitchedOver, stopped, "fail: web does not run", func(t *Task) { t.Primary = "b" }},
		{SwitchedOver, lone(half(nodeA, colo.Secondary), half(nodeB, colo.Protected)), "fail: web runs on b", func(t *Task) { t.Primary = "a" }},

		{FailedOver, held, "failover", func(t *Task) { t.Primary = "a" }},
		{FailedOver, solo, "done", func(t *Task) { t.Primary = "a" }},
		{FailedOver, pair(half(nodeA, colo.FailingOver), half(nodeB, colo.Outdated)), "wait: ", func(t *Task) { t.Primary = "a" }},
		{FailedOver, protected, "failover", func(t *Task) { t.Primary = "b" }}, // which the node refuses
		{FailedOver, lone(half(nodeA, colo.Outdated), half(nodeB, colo.Arbitrating)), "fail: web runs on b", func(t *Task) { t.Primary = "b" }},

		{Absent, stopped, "delete", nil},
		{Absent, solo, "fail: web is solo on a", nil},
		{Absent, pair(half(nodeA, colo.Stopped), half(nodeB, colo.Secondary)), "fail: web is secondary on b", nil},
		{Absent, pair(half(nodeA, colo.Stopped), both.Half{Node: "b", Target: nodeB, Err: colo.ErrClosed}), "fail: whether", nil},
		{Absent, pair(half(nodeA, colo.Stopped), both.Half{Node: "b", Target: nodeB, Err: colo.ErrNoVM}), "delete", nil},
	}
	for _, x := range tests {
		task := &Task{VM: "web", State: x.state}
		if x.task != nil {
			x.task(task)
		}
		s := decide(task, x.v)
		got := string(s.act)
		switch {
		case s.done:
			got = "done"
		case s.wait != "":
			got = "wait: " + s.wait
		case s.fail != nil:
			got = "fail: " + s.fail.Error()
		}
		if got != x.want && (!strings.Contains(x.want, ": ") || !strings.HasPrefix(got, x.want)) {
			t.Errorf("%s of %v: %q, want %q", x.state, shown(x.v), got, x.want)
		}
	}
}

func shown(v *view) []string {
	var out []string
	for _, h := range v.halves {
		if h.Has() {
			out = append(out, h.Node+" "+string(h.Status.State))
		} else {
			out = append(out, h.Node+" ?")
		}
	}
	return out
}

// From every pair of states each goal is reached, refused or waited for by an action that can bring it nearer: what --check plans comes to an end.
func TestPlansEnd(t *testing.T) {
	var all []colo.State
	seen := map[colo.State]bool{}
	for _, tr := range colo.Transitions() {
		if !seen[tr.From] {
			seen[tr.From] = true
			all = append(all, tr.From)
		}
	}
	for _, a := range all {
		for _, b := range all {
			for _, g := range states {
				task, v := &Task{VM: "web", State: g, Primary: "b", Mode: Mode{Check: true}}, pair(half(nodeA, a), half(nodeB, b))
				for i := 0; ; i++ {
					s := decide(task, v)
					if s.act == actNone {
						break
					}
					if i > 4 {
						t.Errorf("%s from %s and %s: it goes on with %s", g, a, b, s.act)
						break
					}
					v = imagine(task, v, s.act)
				}
			}
		}
	}
}
