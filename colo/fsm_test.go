package colo

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

var update = flag.Bool("update", false, "rewrite golden files")

var (
	allStates = []State{Stopped, Starting, Solo, Syncing, Attaching, Protected, Detaching, SwitchingOver, Standby, Secondary, Arbitrating,
		FailingOver, Stopping, Outdated, Failed}
	// facts come without being asked for, at any moment: a state that doesn't list one would lose it.
	facts = []EventKind{ChannelLost, PeerLost, PeerDead, Exited, Hung, GuestShutdown, DiskFailed}
)

// TestTable checks the state machine as a whole:
//  1. every state is reachable from stopped, and stopped from every state;
//  2. a row that can never be taken, because an earlier one always is, is a mistake;
//  3. every fact has a row in every state in which a QEMU may run here;
//  4. whoever ends a plan finds a row for each way in which it can end;
//  5. no state but those of a copy that has the arbiter's word leads to failing-over.
func TestTable(t *testing.T) {
	reach := func(from State) map[State]bool {
		seen, todo := map[State]bool{from: true}, []State{from}
		for len(todo) > 0 {
			s := todo[0]
			todo = todo[1:]
			for _, r := range table {
				if r.From == s && !seen[r.To] {
					seen[r.To] = true
					todo = append(todo, r.To)
				}
			}
		}
		return seen
	}
	fromStopped := reach(Stopped)
	for _, s := range allStates {
		if !fromStopped[s] {
			t.Errorf("%s can't be reached", s)
		}
		if !reach(s)[Stopped] {
			t.Errorf("%s leads never back to stopped", s)
		}
	}
	type key struct {
		s State
		e EventKind
	}
	certain := map[key]bool{}
	for _, r := range table {
		k := key{r.From, r.Event}
		if certain[k] {
			t.Errorf("row %s + %s [%s] comes after one that is always taken", r.From, r.Event, r.Guard)
		}
		certain[k] = certain[k] || r.Guard == ""
		if !slices.Contains(allStates, r.To) {
			t.Errorf("row %s + %s leads to the unknown state %q", r.From, r.Event, r.To)
		}
	}
	withQEMU := []State{Starting, Solo, Syncing, Attaching, Protected, Detaching, SwitchingOver, Standby, Secondary, Arbitrating, FailingOver, Stopping}
	for _, s := range withQEMU {
		for _, e := range facts {
			if !certain[key{s, e}] {
				t.Errorf("%s: %s is not listed for certain", s, e)
			}
		}
	}
	ends := map[PlanKind][]EventKind{
		planStart: {Done, PlanError, Lost, Undecided}, planStop: {Done, PlanError}, planProtect: {Done, PlanError, Lost, Undecided},
		planDetach: {Done, PlanError, Lost, Undecided}, planSwitchover: {Done, PlanError, Lost, Undecided}, planPrepare: {Done, PlanError},
		planClaim: {Done, PlanError, Lost, Undecided, CopyDead, Revived}, planSurvive: {Done, PlanError}, planPromote: {Done, PlanError}, planFence: {Done, PlanError}, planEdit: {Done, PlanError},
	}
	for _, r := range table {
		for _, e := range ends[r.Plan] {
			if r.Plan == planProtect && (e == Done || e == Lost || e == Undecided) {
				continue // it goes through attaching, which is checked below
			}
			if !certain[key{r.To, e}] {
				t.Errorf("%s ends with %s in state %s, which has no row for it", r.Plan, e, r.To)
			}
		}
		if r.To == FailingOver && r.From != FailingOver && r.From != Arbitrating && r.Event != ReqTakeOver && r.Event != ReqForce {
			t.Errorf("%s + %s goes on without the arbiter's word", r.From, r.Event)
		}
	}
	for _, e := range ends[planProtect] {
		if !certain[key{Attaching, e}] {
			t.Errorf("attaching has no row for the end %s", e)
		}
	}
}

func TestUnexpectedEvent(t *testing.T) {
	if _, ok := next(Solo, ReqTakeOver, nil); !ok {
		t.Error("solo must accept a late take-over")
	}
	if r, ok := next(Protected, ReqPrepare, nil); ok {
		t.Errorf("a node that runs the VM accepted to become its standby: %+v", r)
	}
	if r, ok := next(Outdated, ReqForce, nil); ok {
		t.Errorf("an outdated copy was forced: %+v", r)
	}
}

// TestGuardChooses checks that the daemon's silence alone loses nobody while checkpoints arrive.
func TestGuardChooses(t *testing.T) {
	for _, s := range []State{Protected, Secondary} {
		silent, _ := next(s, PeerLost, func(string) bool { return true })
		alive, _ := next(s, PeerLost, func(string) bool { return false })
		if silent.To != Arbitrating || silent.Plan != planClaim || alive.To != s || alive.Plan != "" {
			t.Errorf("%s: %+v and %+v", s, silent, alive)
		}
	}
}

func TestDotIsGolden(t *testing.T) {
	var b bytes.Buffer
	if err := WriteDot(&b); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join("..", "docs", "fsm.dot")
	if *update {
		if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b.Bytes(), want) {
		t.Errorf("%s is not the table's graph: run go test ./colo -run TestDot -update", file)
	}
}
