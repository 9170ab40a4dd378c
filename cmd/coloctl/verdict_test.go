package main

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/state"
)

// at makes a half as a node would answer; a protected or secondary copy has a good verdict.
func at(node string, s colo.State) half {
	st := &colo.Status{VM: "web", Node: node, State: s, Peer: map[string]string{"a": "b", "b": "a"}[node], PeerAlive: true, Verdict: colo.Verdict{Reason: string(s)}}
	if s == colo.Protected || s == colo.Secondary {
		st.Verdict = colo.Verdict{Protected: true}
	}
	return half{Node: node, Status: st, target: &target{name: node}}
}

func but(h half, change func(*colo.Status)) half {
	change(h.Status)
	return h
}

func mute(node string, err error) half {
	return half{Node: node, err: err, Error: err.Error(), target: &target{name: node}}
}

var errSilent = errors.New("timeout")

func TestJudge(t *testing.T) {
	bad := func(reason string) func(*colo.Status) {
		return func(s *colo.Status) { s.Verdict = colo.Verdict{Reason: reason} }
	}
	tests := []struct {
		name   string
		halves []half
		want   string // why not; empty: protected
	}{
		{"both say so", []half{at("a", colo.Protected), at("b", colo.Secondary)}, ""},
		{"in the other order", []half{at("a", colo.Secondary), at("b", colo.Protected)}, ""},
		{"the secondary's daemon is out of reach", []half{at("a", colo.Protected), mute("b", errSilent)}, ""},
		{"the primary's daemon is out of reach", []half{mute("a", errSilent), at("b", colo.Secondary)}, ""},
		{"alone", []half{at("a", colo.Protected)}, ""},
		{"the primary says no", []half{but(at("a", colo.Protected), bad("the peer's node is silent")), at("b", colo.Secondary)}, "the peer's node is silent"},
		{"the secondary says no", []half{at("a", colo.Protected), but(at("b", colo.Secondary), bad("no checkpoint for 3s"))}, "b says: no checkpoint for 3s"},
		{"the secondary has just died", []half{at("a", colo.Protected), at("b", colo.Outdated)}, "b is outdated"},
		{"the secondary arbitrates", []half{at("a", colo.Protected), at("b", colo.Arbitrating)}, "b says: arbitrating"},
		{"the primary has just died", []half{at("a", colo.Outdated), at("b", colo.Secondary)}, "a is outdated"},
		{"the primary has never heard of it", []half{mute("a", fmt.Errorf("x: %w", colo.ErrNoVM)), at("b", colo.Secondary)}, "a, which should run it, does not know it"},
		{"the secondary alone says no", []half{mute("a", errSilent), but(at("b", colo.Secondary), bad("the peer's node is silent"))}, "the peer's node is silent"},
		{"two primaries", []half{at("a", colo.Protected), at("b", colo.Solo)}, "a and b both run it"},
		{"alone, peer gone", []half{but(at("a", colo.Solo), func(s *colo.Status) { s.PeerAlive = false }), mute("b", errSilent)}, "solo on a: no heartbeat of b"},
		{"syncing", []half{but(at("a", colo.Syncing), func(s *colo.Status) {
			s.Plan = &colo.PlanStatus{Kind: "protect", Step: "copy the disks"}
			s.Progress = &colo.Progress{What: "copying the disks", Done: 43, Total: 100, ETA: 12400 * time.Millisecond}
		}), at("b", colo.Standby)}, "syncing on a: copying the disks, 43 %, 12s left"},
		{"a step without progress", []half{but(at("a", colo.Attaching), func(s *colo.Status) {
			s.Plan = &colo.PlanStatus{Kind: "protect", Step: "copy the memory"}
		})}, "attaching on a: copy the memory"},
		{"given up", []half{but(at("a", colo.Solo), func(s *colo.Status) { s.GivenUp, s.Outlook = "given up after 5 failures", "wait: x" })},
			"solo on a: given up after 5 failures"},
		{"waits", []half{but(at("a", colo.Stopped), func(s *colo.Status) { s.Outlook = "hold: the arbiter does not answer" })},
			"stopped on a: hold: the arbiter does not answer"},
		{"arbitrating on both", []half{at("a", colo.Arbitrating), at("b", colo.Arbitrating)}, "arbitrating on b"},
		{"the newer of two that are down", []half{but(at("a", colo.Outdated), func(s *colo.Status) { s.Generation = 3 }),
			but(at("b", colo.Stopped), func(s *colo.Status) { s.Generation = 4 })}, "stopped on b"},
		{"the last primary of two that are down", []half{at("a", colo.Stopped), but(at("b", colo.Stopped), func(s *colo.Status) { s.Role = state.RolePrimary })},
			"stopped on b"},
		{"failed", []half{but(at("a", colo.Failed), func(s *colo.Status) { s.LastError = "disk full" })}, "failed on a: disk full"},
		{"nobody answers", []half{mute("a", errSilent), mute("b", errSilent)}, "no node answers"},
		{"nothing", nil, "no node answers"},
	}
	for _, tt := range tests {
		got := judge(tt.halves)
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
			if got := judge([]half{at("a", a), at("b", b)}); got.Protected && !good {
				t.Errorf("%s and %s: protected", a, b)
			}
		}
	}
}

func TestRoute(t *testing.T) {
	two := &site{context: "pair", nodes: []*target{{name: "a"}, {name: "b"}}}
	one := &site{context: "here", nodes: []*target{{name: "a"}}}
	hearsay := func(h half) half { h.target = nil; return h }
	older := func(h half) half { return but(h, func(s *colo.Status) { s.Generation = 1 }) }
	newer := func(h half) half { return but(h, func(s *colo.Status) { s.Generation = 2 }) }
	tests := []struct {
		name   string
		s      *site
		halves []half
		want   string
	}{
		{"primary", two, []half{at("a", colo.Secondary), at("b", colo.Protected)}, "b"},
		{"alone", two, []half{at("a", colo.Outdated), at("b", colo.Solo)}, "b"},
		{"waits for the arbiter", two, []half{mute("a", errSilent), at("b", colo.Arbitrating)}, "b"},
		{"both wait", two, []half{at("a", colo.Arbitrating), at("b", colo.Arbitrating)}, "web: both a and b are arbitrating: name one with --node"},
		{"both wait, one is reached", one, []half{at("a", colo.Arbitrating), hearsay(at("b", colo.Arbitrating))}, "a"},
		{"down: the newer one", two, []half{older(at("a", colo.Stopped)), newer(at("b", colo.Stopped))}, "b"},
		{"down: the last primary", two, []half{at("a", colo.Stopped), but(at("b", colo.Stopped), func(s *colo.Status) { s.Role = state.RolePrimary })}, "b"},
		{"only one knows it", two, []half{mute("a", colo.ErrNoVM), at("b", colo.Stopped)}, "b"},
		{"runs where nobody reaches", one, []half{at("a", colo.Secondary), hearsay(at("b", colo.Protected))},
			"web runs on b, which the context here does not reach: give the command there, or add a context with both nodes (coloctl context add)"},
		{"equal: the one that is reached", one, []half{at("a", colo.Stopped), hearsay(at("b", colo.Stopped))}, "a"},
	}
	for _, tt := range tests {
		got, err := tt.s.choose("web", tt.halves)
		text := ""
		if err != nil {
			text = err.Error()
		} else {
			text = got.name
		}
		if text != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, text, tt.want)
		}
		if err != nil && exitCode(err) != exitRefused {
			t.Errorf("%s: exit code %d", tt.name, exitCode(err))
		}
	}
}
