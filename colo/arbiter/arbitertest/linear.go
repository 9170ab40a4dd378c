// Package arbitertest holds what every arbiter must pass, whatever it is made of: [Conformance], the rule case by case, and [Run], a
// check that concurrent claims with lost answers still look like one claim after another (linearizability).
package arbitertest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/coloctl/coloctl/colo/arbiter"
)

// Run lets clients of several nodes work on the same VMs at once and checks the history of their calls.
type Run struct {
	// View returns the arbiter as a node sees it. Required.
	View func(node string) arbiter.Arbiter
	// Nodes that claim. Default: a, b and c.
	Nodes []string
	// Clients for each node, and Calls of each client. Default: 2 and 40.
	Clients, Calls int
	// VMs they work on. Default: 2.
	VMs int
	// Gets and Forgets among 12 calls. Default: 3 and 1.
	Gets, Forgets int
	// Unknown is how many lost answers the checker gets to explain: each multiplies its work, so after them clients only read, a few times. Default: 8.
	Unknown int
	// VM is the prefix of the VMs' names, to be different in each run against a real service. Default: vm.
	VM string
	// Seed of what the clients do; their interleaving stays the machine's.
	Seed uint64
	// CallTimeout of one call. Default: 1 s.
	CallTimeout time.Duration
	// Between is called by the clients now and then, with numbers from their seed, to break and mend things. May be nil.
	Between func(r *rand.Rand)
	// Turn is called by each client before each of its calls, with the client's number, and may block: so a test can decide in which order the
	// clients go on. May be nil.
	Turn func(client int)
}

// ErrNotLinearizable is returned by Check when no order of the calls explains their answers.
var ErrNotLinearizable = errors.New("no order of the calls explains their answers")

type call struct {
	kind       string // get, advance, forget
	vm         string
	next       arbiter.Record
	generation uint64
}

type answer struct {
	record  arbiter.Record
	err     error
	unknown bool // it may have been carried out, or not, or may still be
}

// Check runs the clients and returns nil if all is well, [ErrNotLinearizable], or the error of a call that is none of the arbiter's.
func (r Run) Check(ctx context.Context) error {
	history, err := r.play(ctx)
	if err != nil {
		return err
	}
	switch porcupine.CheckOperationsTimeout(model, history, 30*time.Second) {
	case porcupine.Ok:
		return nil
	case porcupine.Illegal:
		return fmt.Errorf("%w: seed %d, %d calls:\n%s", ErrNotLinearizable, r.Seed, len(history), tell(history))
	default:
		return fmt.Errorf("seed %d: the checker didn't come to an end with %d calls", r.Seed, len(history))
	}
}

// Play runs the clients and leaves it to the caller to find out whether all is well. Any number of answers may be lost.
func (r Run) Play(ctx context.Context) error {
	r.Unknown = math.MaxInt32
	_, err := r.play(ctx)
	return err
}

func (r Run) play(ctx context.Context) ([]porcupine.Operation, error) {
	if len(r.Nodes) == 0 {
		r.Nodes = []string{"a", "b", "c"}
	}
	if r.Clients == 0 {
		r.Clients = 2
	}
	if r.Calls == 0 {
		r.Calls = 40
	}
	if r.Gets == 0 {
		r.Gets = 3
	}
	if r.Forgets == 0 {
		r.Forgets = 1
	}
	if r.Unknown == 0 {
		r.Unknown = 8
	}
	if r.VMs == 0 {
		r.VMs = 2
	}
	if r.VM == "" {
		r.VM = "vm"
	}
	if r.CallTimeout == 0 {
		r.CallTimeout = time.Second
	}
	var (
		mu      sync.Mutex
		history []porcupine.Operation
		clock   atomic.Int64 // ticks order calls and returns better than any clock could
		unknown atomic.Int32
		strange error
		clients sync.WaitGroup
	)
	for i := range len(r.Nodes) * r.Clients {
		node := r.Nodes[i%len(r.Nodes)]
		c := &client{run: r, node: node, arb: r.View(node), rand: rand.New(rand.NewPCG(r.Seed, uint64(i))), known: map[string]arbiter.Record{}}
		clients.Go(func() {
			for left := r.Calls; left > 0; left-- {
				if r.Turn != nil {
					r.Turn(i)
				}
				in := c.choose()
				if int(unknown.Load()) >= r.Unknown {
					in, left = call{kind: "get", vm: in.vm}, min(left, 4)
				}
				began := clock.Add(1)
				out := c.do(ctx, in)
				ended := clock.Add(1)
				if out.unknown {
					ended = math.MaxInt64
				}
				if out.unknown {
					if in.kind == "get" {
						continue // it says nothing and changed nothing
					}
					unknown.Add(1)
				}
				mu.Lock()
				history = append(history, porcupine.Operation{ClientId: i, Input: in, Call: began, Output: out, Return: ended})
				if out.err != nil && !isAnswer(out.err) && !out.unknown {
					strange = fmt.Errorf("%s of %s by %s: %w", in.kind, in.vm, node, out.err)
				}
				mu.Unlock()
				if r.Between != nil && c.rand.IntN(4) == 0 {
					r.Between(c.rand)
				}
			}
		})
	}
	clients.Wait()
	if strange != nil {
		return nil, strange
	}
	// A client whose answer was lost goes on as if it were a new one: for the checker one client has one call at a time.
	for i := range history {
		history[i].ClientId = i
	}
	return history, nil
}

// tell lists the calls in the order in which they were made, each with the ticks of its beginning and its end.
func tell(history []porcupine.Operation) string {
	slices.SortFunc(history, func(a, b porcupine.Operation) int { return cmp.Compare(a.Call, b.Call) })
	var b strings.Builder
	for _, op := range history {
		in, out := op.Input.(call), op.Output.(answer)
		ended := fmt.Sprint(op.Return)
		if out.unknown {
			ended = "?"
		}
		fmt.Fprintf(&b, "%d-%s %s %s %v %d: %v %v\n", op.Call, ended, in.kind, in.vm, in.next, in.generation, out.record, out.err)
	}
	return b.String()
}

func isAnswer(err error) bool {
	return errors.Is(err, arbiter.ErrNoRecord) || errors.Is(err, arbiter.ErrConflict)
}

type client struct {
	run   Run
	node  string
	arb   arbiter.Arbiter
	rand  *rand.Rand
	known map[string]arbiter.Record
	last  call
}

func (c *client) choose() call {
	if c.last.kind == "advance" && c.rand.IntN(4) == 0 {
		return c.last // asking again
	}
	vm := fmt.Sprintf("%s%d", c.run.VM, c.rand.IntN(c.run.VMs))
	k := c.known[vm]
	switch n := c.rand.IntN(12); {
	case n < c.run.Forgets:
		return call{kind: "forget", vm: vm, generation: k.Generation}
	case n < c.run.Forgets+c.run.Gets:
		return call{kind: "get", vm: vm}
	}
	members := []string{c.node}
	for _, other := range c.run.Nodes {
		if other != c.node && c.rand.IntN(2) == 0 {
			members = append(members, other)
		}
	}
	return call{kind: "advance", vm: vm, next: arbiter.Record{VM: vm, Generation: k.Generation + 1, Members: members, By: c.node}}
}

func (c *client) do(ctx context.Context, in call) (out answer) {
	ctx, cancel := context.WithTimeout(ctx, c.run.CallTimeout)
	defer cancel()
	c.last = in
	switch in.kind {
	case "get":
		out.record, out.err = c.arb.Get(ctx, in.vm)
	case "advance":
		out.record, out.err = c.arb.Advance(ctx, in.next)
	case "forget":
		out.err = c.arb.Forget(ctx, in.vm, in.generation)
	}
	switch {
	case errors.Is(out.err, arbiter.ErrUnreachable):
		out.unknown = true
	case errors.Is(out.err, arbiter.ErrNoRecord), out.err == nil && in.kind == "forget":
		delete(c.known, in.vm)
	case out.err == nil:
		c.known[in.vm] = out.record
	}
	return out
}

// model is the arbiter as one thing that does one call after another. Its state is *arbiter.Record, nil for none.
var model = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		byVM := map[string][]porcupine.Operation{}
		for _, op := range history {
			vm := op.Input.(call).vm
			byVM[vm] = append(byVM[vm], op)
		}
		var out [][]porcupine.Operation
		for _, ops := range byVM {
			out = append(out, ops)
		}
		return out
	},
	Init: func() any { return (*arbiter.Record)(nil) },
	Step: func(state, input, output any) (bool, any) {
		cur, in, out := state.(*arbiter.Record), input.(call), output.(answer)
		next, want := step(cur, in)
		return out.unknown || want.matches(out), next
	},
	Equal: func(a, b any) bool {
		x, y := a.(*arbiter.Record), b.(*arbiter.Record)
		return x == y || x != nil && y != nil && x.Equal(*y)
	},
}

// step says what follows from a call. It is written down independently of arbiter.Decide, which it checks.
func step(cur *arbiter.Record, in call) (*arbiter.Record, answer) {
	switch in.kind {
	case "forget":
		if cur != nil && cur.Generation != in.generation {
			return cur, answer{err: arbiter.ErrConflict}
		}
		return nil, answer{}
	case "advance":
		first := cur == nil && in.next.Generation == 1
		follows := cur != nil && cur.Generation+1 == in.next.Generation && cur.Has(in.next.By)
		if first || follows {
			return &in.next, answer{record: in.next}
		}
	}
	if cur == nil {
		return nil, answer{err: arbiter.ErrNoRecord}
	}
	return cur, answer{record: *cur}
}

func (a answer) matches(got answer) bool {
	if a.err != nil || got.err != nil {
		return a.err != nil && errors.Is(got.err, a.err)
	}
	return a.record.Equal(got.record)
}
