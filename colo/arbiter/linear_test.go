package arbiter_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/coloctl/coloctl/colo/arbiter"
	"github.com/coloctl/coloctl/colo/arbiter/arbitertest"
)

func TestMemoryConformance(t *testing.T) {
	arbitertest.Conformance(t, arbiter.NewMemory().View, "vm")
}

func TestMemoryIsLinearizable(t *testing.T) {
	nodes := []string{"a", "b", "c"}
	for seed := range uint64(30) {
		mem := arbiter.NewMemory()
		run := arbitertest.Run{View: mem.View, Nodes: nodes, Seed: seed, Calls: 30, CallTimeout: 5 * time.Millisecond, Between: func(r *rand.Rand) {
			// Mostly mended again: each lost answer doubles what the checker has to consider.
			f := arbiter.Reachable
			if r.IntN(8) == 0 {
				f = arbiter.Fault(r.IntN(4))
			}
			mem.SetFault(nodes[r.IntN(len(nodes))], f)
		}}
		if seed%3 == 0 {
			run.Between = nil
		}
		if err := run.Check(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// racy is an arbiter that reads and writes in two steps, the mistake that the check must find.
type racy struct {
	mu   *sync.Mutex
	recs map[string]arbiter.Record
}

func (r racy) Get(_ context.Context, vm string) (arbiter.Record, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	rec, ok := r.recs[vm]
	if !ok {
		return rec, arbiter.ErrNoRecord
	}
	return rec, nil
}

func (r racy) Advance(ctx context.Context, next arbiter.Record) (arbiter.Record, error) {
	cur := &arbiter.Record{}
	var err error
	if *cur, err = r.Get(ctx, next.VM); err != nil {
		cur = nil
	}
	runtime.Gosched()
	stored, _, err := arbiter.Decide(cur, next)
	if err != nil {
		return stored, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.recs[next.VM] = stored
	return stored, nil
}

func (r racy) Forget(_ context.Context, vm string, generation uint64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if cur, ok := r.recs[vm]; ok && cur.Generation != generation {
		return arbiter.ErrConflict
	}
	delete(r.recs, vm)
	return nil
}

func TestCheckFindsARace(t *testing.T) {
	for seed := range uint64(200) {
		r := racy{mu: &sync.Mutex{}, recs: map[string]arbiter.Record{}}
		err := arbitertest.Run{View: func(string) arbiter.Arbiter { return r }, Seed: seed}.Check(t.Context())
		if errors.Is(err, arbitertest.ErrNotLinearizable) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Error("an arbiter without compare-and-set passed 200 times")
}
