package both

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/state"
)

// at makes a half as a node would answer; a protected or secondary copy has a good verdict.
func at(node string, s colo.State) Half {
	st := &colo.Status{VM: "web", Node: node, State: s, Peer: map[string]string{"a": "b", "b": "a"}[node], PeerAlive: true, Verdict: colo.Verdict{Reason: string(s)}}
	if s == colo.Protected || s == colo.Secondary {
		st.Verdict = colo.Verdict{Protected: true}
	}
	return Half{Node: node, Status: st, Target: &Target{Name: node}}
}

func but(h Half, change func(*colo.Status)) Half {
	change(h.Status)
	return h
}

func mute(node string, err error) Half {
	return Half{Node: node, Err: err, Error: err.Error(), Target: &Target{Name: node}}
}

var errSilent = errors.New("timeout")

func TestJudge(t *testing.T) {
	bad := func(reason string) func(*colo.Status) {
		return func(s *colo.Status) { s.Verdict = colo.Verdict{Reason: reason} }
	}
	tests := []struct {
		name   string
		halves []Half
		want   string // why not; empty: protected
	}{
		{"both say so", []Half{at("a", colo.Protected), at("b", colo.Secondary)}, ""},
		{"in the other order", []Half{at("a", colo.Secondary), at("b", colo.Protected)}, ""},
		{"the secondary's daemon is out of reach", []Half{at("a", colo.Protected), mute("b", errSilent)}, ""},
		{"the primary's daemon is out of reach", []Half{mute("a", errSilent), at("b", colo.Secondary)}, ""},
		{"alone", []Half{at("a", colo.Protected)}, ""},
		{"the primary says no", []Half{but(at("a", colo.Protected), bad("the peer's node is silent")), at("b", colo.Secondary)}, "the peer's node is silent"},
		{"the secondary says no", []Half{at("a", colo.Protected), but(at("b", colo.Secondary), bad("no checkpoint for 3s"))}, "b says: no checkpoint for 3s"},
		{"the secondary has just died", []Half{at("a", colo.Protected), at("b", colo.Outdated)}, "b is outdated"},
		{"the secondary arbitrates", []Half{at("a", colo.Protected), at("b", colo.Arbitrating)}, "b says: arbitrating"},
		{"the primary has just died", []Half{at("a", colo.Outdated), at("b", colo.Secondary)}, "a is outdated"},
		{"the primary has never heard of it", []Half{mute("a", fmt.Errorf("x: %w", colo.ErrNoVM)), at("b", colo.Secondary)}, "a, which should run it, does not know it"},
		{"the secondary alone says no", []Half{mute("a", errSilent), but(at("b", colo.Secondary), bad("the peer's node is silent"))}, "the peer's node is silent"},
		{"a third has what it had before it was replaced", []Half{at("a", colo.Protected), at("b", colo.Secondary), at("c", colo.Outdated)}, ""},
		{"the third alone answers", []Half{at("a", colo.Protected), mute("b", errSilent), at("c", colo.Outdated)}, ""},
		{"the third runs it", []Half{at("a", colo.Protected), at("b", colo.Secondary), at("c", colo.Solo)}, "a and c both run it"},
		{"two primaries", []Half{at("a", colo.Protected), at("b", colo.Solo)}, "a and b both run it"},
		{"alone, peer gone", []Half{but(at("a", colo.Solo), func(s *colo.Status) { s.PeerAlive = false }), mute("b", errSilent)}, "solo on a: no heartbeat of b"},
		{"syncing", []Half{but(at("a", colo.Syncing), func(s *colo.Status) {
			s.Plan = &colo.PlanStatus{Kind: "protect", Step: "copy the disks"}
			s.Progress = &colo.Progress{What: "copying the disks", Done: 43, Total: 100, ETA: 12400 * time.Millisecond}
		}), at("b", colo.Standby)}, "syncing on a: copying the disks, 43 %, 12s left"},
		{"a step without progress", []Half{but(at("a", colo.Attaching), func(s *colo.Status) {
			s.Plan = &colo.PlanStatus{Kind: "protect", Step: "copy the memory"}
		})}, "attaching on a: copy the memory"},
		{"given up", []Half{but(at("a", colo.Solo), func(s *colo.Status) { s.GivenUp, s.Outlook = "given up after 5 failures", "wait: x" })},
			"solo on a: given up after 5 failures"},
		{"waits", []Half{but(at("a", colo.Stopped), func(s *colo.Status) { s.Outlook = "hold: the arbiter does not answer" })},
			"stopped on a: hold: the arbiter does not answer"},
		{"arbitrating on both", []Half{at("a", colo.Arbitrating), at("b", colo.Arbitrating)}, "arbitrating on b"},
		{"the newer of two that are down", []Half{but(at("a", colo.Outdated), func(s *colo.Status) { s.Generation = 3 }),
			but(at("b", colo.Stopped), func(s *colo.Status) { s.Generation = 4 })}, "stopped on b"},
		{"the last primary of two that are down", []Half{at("a", colo.Stopped), but(at("b", colo.Stopped), func(s *colo.Status) { s.Role = state.RolePrimary })},
			"stopped on b"},
		{"failed", []Half{but(at("a", colo.Failed), func(s *colo.Status) { s.LastError = "disk full" })}, "failed on a: disk full"},
		{"nobody answers", []Half{mute("a", errSilent), mute("b", errSilent)}, "no node answers"},
		{"nothing", nil, "no node answers"},
	}
	for _, tt := range tests {
		got := Judge(tt.halves)
		if got.Protected != (tt.want == "") || got.Reason != tt.want {
			t.Errorf("%s: %+v, want %q", tt.name, got, tt.want)
		}
	}
}

// Green needs a primary and a secondary in COLO, as far as they answer, and nobody who says otherwise.
func TestJudgeIsNeverTooGood(t *testing.T) {
	var all []colo.State
	seen := map[colo.State]bool{}
	for _, tr := range colo.Transitions() {
		if !seen[tr.From] {
			seen[tr.From] = true
			all = append(all, tr.From)
		}
	}
	if len(all) < 12 {
		t.Fatalf("the table has %d states only", len(all))
	}
	for _, a := range all {
		for _, b := range all {
			good := a == colo.Protected && b == colo.Secondary || a == colo.Secondary && b == colo.Protected ||
				// Two secondaries: the primary became one of them this moment, or a switchover is seen from before and after.
				a == colo.Secondary && b == colo.Secondary
			if got := Judge([]Half{at("a", a), at("b", b)}); got.Protected && !good {
				t.Errorf("%s and %s: protected", a, b)
			}
		}
	}
}

func TestRoute(t *testing.T) {
	two := &Site{Context: "pair", Nodes: []*Target{{Name: "a"}, {Name: "b"}}}
	one := &Site{Context: "here", Nodes: []*Target{{Name: "a"}}}
	hearsay := func(h Half) Half { h.Target = nil; return h }
	older := func(h Half) Half { return but(h, func(s *colo.Status) { s.Generation = 1 }) }
	newer := func(h Half) Half { return but(h, func(s *colo.Status) { s.Generation = 2 }) }
	tests := []struct {
		name   string
		s      *Site
		halves []Half
		want   string
	}{
		{"primary", two, []Half{at("a", colo.Secondary), at("b", colo.Protected)}, "b"},
		{"alone", two, []Half{at("a", colo.Outdated), at("b", colo.Solo)}, "b"},
		{"waits for the arbiter", two, []Half{mute("a", errSilent), at("b", colo.Arbitrating)}, "b"},
		{"both wait", two, []Half{at("a", colo.Arbitrating), at("b", colo.Arbitrating)}, "web: both a and b are arbitrating: name one with --node"},
		{"both wait, one is reached", one, []Half{at("a", colo.Arbitrating), hearsay(at("b", colo.Arbitrating))}, "a"},
		{"down: the newer one", two, []Half{older(at("a", colo.Stopped)), newer(at("b", colo.Stopped))}, "b"},
		{"down: the last primary", two, []Half{at("a", colo.Stopped), but(at("b", colo.Stopped), func(s *colo.Status) { s.Role = state.RolePrimary })}, "b"},
		{"only one knows it", two, []Half{mute("a", colo.ErrNoVM), at("b", colo.Stopped)}, "b"},
		{"runs where nobody reaches", one, []Half{at("a", colo.Secondary), hearsay(at("b", colo.Protected))},
			"web runs on b, which the context here does not reach: give the command there, or add a context with both nodes (coloctl context add)"},
		{"down: the newer one is not reached", one, []Half{older(at("a", colo.Outdated)), hearsay(newer(at("b", colo.Stopped)))}, "a"},
		{"equal: the one that is reached", one, []Half{at("a", colo.Stopped), hearsay(at("b", colo.Stopped))}, "a"},
	}
	for _, tt := range tests {
		got, err := tt.s.Choose("web", tt.halves)
		text := ""
		if err != nil {
			text = err.Error()
		} else {
			text = got.Name
		}
		if text != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, text, tt.want)
		}
		if err != nil && !errors.As(err, new(*ElsewhereError)) && !errors.As(err, new(*AmbiguousError)) {
			t.Errorf("%s: %T", tt.name, err)
		}
	}
}
