package witness

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/coloctl/coloctl/colo/arbiter"
	"github.com/coloctl/coloctl/colo/arbiter/arbitertest"
)

// nemesis is what happens to twins between calls.
func (x *twins) nemesis(nodes []string, vm string) func(r *rand.Rand) {
	return func(r *rand.Rand) {
		node := nodes[r.IntN(len(nodes))]
		name := fmt.Sprintf("%s%d", vm, r.IntN(2))
		switch r.IntN(10) {
		case 0:
			x.w[r.IntN(2)].set(node, arbiter.Fault(r.IntN(4)))
		case 1:
			x.witnessDown(r.IntN(2), arbiter.Unreachable)
		case 2, 3:
			x.witnessDown(r.IntN(2), arbiter.Reachable)
		case 4:
			x.w[r.IntN(2)].deliver(r)
		case 5: // a process is killed and started. What it was doing at that moment is what the lost answers stand for.
			x.process[node].Lock()
			defer x.process[node].Unlock()
			x.mu.Lock()
			defer x.mu.Unlock()
			old := x.pairs[node]
			x.pairs[node] = &Pair{opt: old.opt, me: old.me, svc: old.svc, ledger: old.ledger}
		case 6: // one witness is lost for long enough
			i := r.IntN(2)
			x.witnessDown(1-i, arbiter.Reachable)
			x.witnessDown(i, arbiter.Unreachable)
			for range 2 {
				for _, n := range nodes {
					x.tend(n, name)
				}
			}
		default:
			x.tend(node, name)
		}
	}
}

// linear runs one seed and returns what the check says and how many seats have moved.
func (x *twins) linear(ctx context.Context, seed uint64) (moved int, err error) {
	nodes := []string{"a", "b", "c"}
	vm := fmt.Sprintf("seed%d-", seed)
	for i := range x.w {
		x.w[i].mu.Lock()
		x.w[i].late, x.w[i].entries = nil, map[string]entry{}
		x.w[i].mu.Unlock()
		x.witnessDown(i, arbiter.Reachable)
	}
	err = arbitertest.Run{
		View: func(n string) arbiter.Arbiter { return restarting{x, n} }, Nodes: nodes, Seed: seed, Calls: 40, VM: vm,
		Between: x.nemesis(nodes, vm), CallTimeout: 10 * time.Second,
	}.Check(ctx)
	for i := range x.w {
		for _, e := range x.w[i].entries {
			if e.Tenure > 1 {
				moved++
			}
		}
	}
	return moved, err
}

// TestPairIsLinearizable lets nodes claim, forget, lose answers, have requests delivered late, die and come back, and seats move, all at once. What they
// are told must be explained by one arbiter that does one call after another.
func TestPairIsLinearizable(t *testing.T) {
	moved, seeds := 0, uint64(40)
	if s := os.Getenv("COLOCTL_SEEDS"); s != "" {
		var err error
		if seeds, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	x := newTwins(t, "a", "b", "c")
	for seed := range seeds {
		n, err := x.linear(t.Context(), seed)
		if err != nil {
			t.Fatal(err)
		}
		moved += n
	}
	t.Logf("%d VMs whose seat moved", moved)
	if moved < int(seeds)/8 {
		t.Errorf("the seat moved for %d VMs only: the test is none", moved)
	}
}

// tamper changes what passes between a node and a witness, to break one of the rules.
type tamper func(m *memory, vm string, req *request, node string) (instead *answer, after func(*answer))

// TestBrokenRulesAreFound breaks the rules one by one. Each must be noticed, or the rule or the test would be useless.
//
// It is a search among real goroutines, whose luck differs from run to run, so it runs when it is asked for: COLOCTL_SEEDS=300.
func TestBrokenRulesAreFound(t *testing.T) {
	if os.Getenv("COLOCTL_SEEDS") == "" {
		t.Skip("a search: set COLOCTL_SEEDS")
	}
	for what, tamper := range map[string]tamper{
		"nobody asks the other witness for confirmation": func(*memory, string, *request, string) (*answer, func(*answer)) {
			return nil, func(a *answer) { a.Member = true }
		},
		"one promise is enough": func(m *memory, vm string, req *request, node string) (*answer, func(*answer)) {
			if req.Op != opPromise {
				return nil, nil
			}
			return nil, func(a *answer) {
				e := m.entries[vm]
				if e.Seen != nil && e.Seen.Record != nil && e.Seen.Tenure > e.Tenure {
					e = entry{Record: e.Seen.Record, Tenure: e.Seen.Tenure + 1, Version: e.Seen.Version + 1}
					m.entries[vm] = e
					*a = answer{Instance: m.instance, Record: e.Record, Tenure: e.Tenure, Version: e.Version}
				}
			}
		},
		"a promise doesn't say what was seen": func(m *memory, vm string, req *request, _ string) (*answer, func(*answer)) {
			if old := m.entries[vm].Seen; old != nil && (req.Op == opPromise || req.Op == opNote) && old.Tenure == req.Sight.Tenure {
				s := *old
				req.Sight = &s
			}
			return nil, nil
		},
	} {
		t.Run(what, func(t *testing.T) {
			x := newTwins(t, "a", "b", "c")
			x.w[0].tamper, x.w[1].tamper = tamper, tamper
			for seed := range uint64(300) {
				if _, err := x.linear(t.Context(), seed); err != nil {
					t.Logf("seed %d: %v", seed, err)
					return
				}
			}
			t.Error("not noticed")
		})
	}
}
