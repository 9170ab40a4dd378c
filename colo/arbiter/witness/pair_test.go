package witness

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/coloctl/coloctl/colo/arbiter"
	"github.com/coloctl/coloctl/colo/arbiter/arbitertest"
)

// memory is a witness without network and disk, whose faults are set for each node.
type memory struct {
	mu       sync.Mutex
	id       string
	entries  map[string]entry
	faults   map[string]arbiter.Fault // by node; Silent isn't used
	late     []func()                 // requests that are still on their way
	instance string
	tamper   tamper
}

func newMemory(id string) *memory {
	return &memory{id: id, instance: id, entries: map[string]entry{}, faults: map[string]arbiter.Fault{}}
}

func (m *memory) set(node string, f arbiter.Fault) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.faults[node] = f
}

// deliver lets a request arrive whose sender has stopped waiting.
func (m *memory) deliver(r *rand.Rand) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.late) > 0 {
		i := r.IntN(len(m.late))
		m.late[i]()
		m.late = append(m.late[:i], m.late[i+1:]...)
	}
}

type line struct {
	m    *memory
	node string
}

func (l line) name() string { return l.m.id }

func (l line) once(ctx context.Context, vm string, req request) (answer, error) {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	switch {
	case ctx.Err() != nil:
		return answer{}, unreachable(ctx.Err())
	case l.m.faults[l.node] == arbiter.Unreachable:
		return answer{}, unreachable(errors.New("no way"))
	case l.m.faults[l.node] == arbiter.Silent:
		if req.Op != opForget { // ids aren't used again, so a forget that comes late does no harm outside of this test
			l.m.late = append(l.m.late, func() { _, _ = l.m.do(vm, req, l.node) })
		}
		return answer{}, unreachable(errors.New("on its way for a long time"))
	}
	ans, err := l.m.do(vm, req, l.node)
	if l.m.faults[l.node] == arbiter.ReplyLost {
		return answer{}, unreachable(errors.New("reply lost"))
	}
	return ans, err
}

func (l line) mine(context.Context) (out membership, err error) {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	if l.m.faults[l.node] != arbiter.Reachable {
		return out, unreachable(errors.New("no way"))
	}
	out.Instance = l.m.instance
	for vm, e := range l.m.entries {
		if e.concerns(l.node) {
			out.VMs = append(out.VMs, vm)
		}
	}
	return out, nil
}

func (m *memory) do(vm string, req request, node string) (answer, error) {
	req = clone(req)
	after := func(*answer) {}
	if m.tamper != nil {
		instead, then := m.tamper(m, vm, &req, node)
		if instead != nil {
			return *instead, nil
		}
		if then != nil {
			after = then
		}
	}
	e := clone(m.entries[vm])
	ans, changed, err := e.apply(req, node, m.instance)
	if changed && err == nil {
		m.entries[vm] = e
	}
	if err == nil {
		after(&ans)
	}
	return clone(ans), err
}

// clone copies by way of JSON, as the network and the disk do.
func clone[T any](v T) (out T) {
	raw, err := json.Marshal(v)
	if err == nil {
		err = json.Unmarshal(raw, &out)
	}
	if err != nil {
		panic(err)
	}
	return out
}

// twins are two witnesses and the pairs of their nodes.
type twins struct {
	t       testing.TB
	w       [2]*memory
	dir     string
	mu      sync.Mutex
	pairs   map[string]*Pair
	process map[string]*sync.RWMutex // read-held while something of the node\'s process runs
}

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

func newTwins(t testing.TB, nodes ...string) *twins {
	t.Helper()
	x := &twins{t: t, w: [2]*memory{newMemory("w1"), newMemory("w2")}, dir: t.TempDir(), pairs: map[string]*Pair{}, process: map[string]*sync.RWMutex{}}
	for _, n := range nodes {
		x.process[n] = &sync.RWMutex{}
		x.pairs[n] = x.open(n)
	}
	t.Cleanup(func() {
		for _, p := range x.pairs {
			_ = p.Close()
		}
	})
	return x
}

func (x *twins) open(node string) *Pair {
	a, b := service(line{x.w[0], node}), service(line{x.w[1], node})
	if node > "a" {
		a, b = b, a // the order must not matter
	}
	p, err := newPair(a, b, node, filepath.Join(x.dir, node), PairOptions{Log: quiet})
	if err != nil {
		x.t.Fatal(err)
	}
	p.ledger.db.NoSync = true
	return p
}

func (x *twins) pair(node string) *Pair {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.pairs[node]
}

// dead reports the state of the witnesses to a node's tend as if they had been silent for the hold-down.
func (x *twins) dead(p *Pair) func(int) (alive, dead bool) {
	return func(i int) (bool, bool) {
		l, ok := p.svc[i].(line)
		if !ok {
			return false, true
		}
		l.m.mu.Lock()
		defer l.m.mu.Unlock()
		down := l.m.faults[l.node] != arbiter.Reachable
		return !down, down
	}
}

func (x *twins) tend(node, vm string) {
	x.process[node].RLock()
	defer x.process[node].RUnlock()
	p := x.pair(node)
	if err := p.acquaint(context.Background()); err != nil && !errors.Is(err, arbiter.ErrUnreachable) {
		x.t.Errorf("%s: %v", node, err)
	}
	if err := p.tend(context.Background(), vm, x.dead(p)); err != nil && !errors.Is(err, arbiter.ErrUnreachable) {
		x.t.Errorf("%s tends %s: %v", node, vm, err)
	}
}

func (x *twins) both(node string, f arbiter.Fault) {
	x.w[0].set(node, f)
	x.w[1].set(node, f)
}

// witnessDown makes a witness unreachable for all.
func (x *twins) witnessDown(i int, f arbiter.Fault) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for n := range x.pairs {
		x.w[i].set(n, f)
	}
}

func rec(g uint64, by string, members ...string) arbiter.Record {
	return arbiter.Record{VM: "vm", Generation: g, Members: members, By: by}
}

// restarting is a node whose process may be killed between calls: only its ledger stays.
type restarting struct {
	x    *twins
	node string
}

func (r restarting) Get(ctx context.Context, vm string) (arbiter.Record, error) {
	r.x.process[r.node].RLock()
	defer r.x.process[r.node].RUnlock()
	return r.x.pair(r.node).Get(ctx, vm)
}

func (r restarting) Advance(ctx context.Context, next arbiter.Record) (arbiter.Record, error) {
	r.x.process[r.node].RLock()
	defer r.x.process[r.node].RUnlock()
	return r.x.pair(r.node).Advance(ctx, next)
}

func (r restarting) Forget(ctx context.Context, vm string, g uint64) error {
	r.x.process[r.node].RLock()
	defer r.x.process[r.node].RUnlock()
	return r.x.pair(r.node).Forget(ctx, vm, g)
}

func TestPairConformance(t *testing.T) {
	x := newTwins(t, "a", "b")
	arbitertest.Conformance(t, func(n string) arbiter.Arbiter { return restarting{x, n} }, "vm")
}

func (x *twins) won(node string, next arbiter.Record) {
	x.t.Helper()
	got, err := x.pair(node).Advance(context.Background(), next)
	if err != nil || arbiter.Judge(next, got) != arbiter.Won {
		x.t.Fatalf("%s asks for %v: %v, %v", node, next, got, err)
	}
}

func (x *twins) holds(node string, next arbiter.Record) {
	x.t.Helper()
	if got, err := x.pair(node).Advance(context.Background(), next); !errors.Is(err, arbiter.ErrUnreachable) {
		x.t.Fatalf("%s asks for %v: %v, %v; it should have no answer", node, next, got, err)
	}
}

// TestSeatMoves tells the story that a pair is for.
func TestSeatMoves(t *testing.T) {
	for first := range 2 {
		t.Run(fmt.Sprintf("w%d lost", first+1), func(t *testing.T) {
			x := newTwins(t, "a", "b")
			x.won("a", rec(1, "a", "a"))
			x.won("a", rec(2, "a", "a", "b"))
			x.tend("b", "vm") // so that it knows of its membership
			// One witness is lost. While both nodes live they move the seat if it was there.
			x.witnessDown(first, arbiter.Unreachable)
			for range 2 {
				x.tend("a", "vm")
				x.tend("b", "vm")
			}
			// Now b's host is lost too.
			x.both("b", arbiter.Unreachable)
			x.won("a", rec(3, "a", "a"))
			// The lost witness comes back with what it knew, and b comes back and asks it first.
			x.witnessDown(first, arbiter.Reachable)
			x.both("b", arbiter.Reachable)
			if got, err := x.pair("b").Advance(t.Context(), rec(3, "b", "b")); err != nil || arbiter.Judge(rec(3, "b", "b"), got) != arbiter.Lost {
				t.Fatalf("b asks late: %v, %v", got, err)
			}
			// And now the other one is lost: the seat moves back, by a's word alone.
			x.witnessDown(1-first, arbiter.Unreachable)
			x.tend("a", "vm")
			x.won("a", rec(4, "a", "a", "b"))
			seats, err := x.pair("a").Seats()
			if err != nil || len(seats) != 1 || seats[0].Witness != x.w[first].id {
				t.Errorf("%+v, %v", seats, err)
			}
		})
	}
}

// TestPairHolds lists what a pair can't do: nobody may win there.
func TestPairHolds(t *testing.T) {
	start := func(t *testing.T) *twins {
		x := newTwins(t, "a", "b")
		x.won("a", rec(1, "a", "a"))
		x.won("a", rec(2, "a", "a", "b"))
		x.tend("b", "vm")
		return x
	}
	t.Run("seat and peer lost at once", func(t *testing.T) {
		x := start(t)
		x.witnessDown(0, arbiter.Unreachable)
		x.both("b", arbiter.Unreachable)
		for range 3 {
			x.tend("a", "vm")
			x.holds("a", rec(3, "a", "a"))
		}
		// The promise is withdrawn by itself when the seat is back.
		x.witnessDown(0, arbiter.Reachable)
		x.won("a", rec(3, "a", "a"))
	})
	t.Run("each node reaches another witness", func(t *testing.T) {
		x := start(t)
		x.w[0].set("b", arbiter.Unreachable)
		x.w[1].set("a", arbiter.Unreachable)
		x.tend("a", "vm")
		x.tend("b", "vm") // b has given up w1 and waits for a
		x.holds("b", rec(3, "b", "b"))
		x.won("a", rec(3, "a", "a"))
		x.tend("b", "vm")
		x.holds("b", rec(3, "b", "b"))
	})
	t.Run("a new VM", func(t *testing.T) {
		x := newTwins(t, "a")
		x.witnessDown(1, arbiter.Unreachable)
		x.holds("a", rec(1, "a", "a"))
	})
	t.Run("the seat lost its file", func(t *testing.T) {
		x := start(t)
		x.w[0].entries, x.w[0].instance = map[string]entry{}, "w1 again"
		x.holds("a", rec(3, "a", "a"))
		// With both nodes alive the other one takes over.
		for range 2 {
			x.tend("a", "vm")
			x.tend("b", "vm")
		}
		x.won("b", rec(3, "b", "b"))
	})
	t.Run("the seat was restored from a backup", func(t *testing.T) {
		x := start(t)
		old := clone(x.w[0].entries)
		x.won("a", rec(3, "a", "a"))
		x.w[0].entries = old
		if _, err := x.pair("a").Advance(t.Context(), rec(4, "a", "a")); !errors.Is(err, arbiter.ErrNoRecord) {
			t.Errorf("a: %v", err)
		}
	})
	t.Run("a node lost its ledger after a promise", func(t *testing.T) {
		x := start(t)
		x.w[0].set("a", arbiter.Unreachable)
		x.tend("a", "vm")
		_ = x.pairs["a"].Close()
		x.dir = t.TempDir()
		x.pairs["a"] = x.open("a")
		x.w[0].set("a", arbiter.Reachable)
		x.w[1].set("a", arbiter.Unreachable)
		x.holds("a", rec(3, "a", "a"))
		x.w[1].set("a", arbiter.Reachable)
		x.won("a", rec(3, "a", "a")) // after withdrawing it
		if e := x.w[1].entries["vm"]; e.Promises["a"].Given {
			t.Errorf("the promise stands: %+v", e)
		}
	})
}

func TestOneWitnessBecomesTwo(t *testing.T) {
	x := newTwins(t, "a", "b", "c")
	plain := func(i int, node string, r arbiter.Record) error {
		_, err := line{x.w[i], node}.once(t.Context(), "vm", request{Op: opAdvance, Next: &r})
		return err
	}
	if err := plain(1, "a", rec(1, "a", "a", "b")); err != nil {
		t.Fatal(err)
	}
	if got, err := x.pair("c").Get(t.Context(), "vm"); err != nil || got.Generation != 1 {
		t.Errorf("a stranger reads %v, %v", got, err)
	}
	x.won("b", rec(2, "b", "b"))
	if err := plain(1, "b", rec(3, "b", "b")); !errors.Is(err, ErrPaired) {
		t.Errorf("a node that knows one witness only, at the seat: %v", err)
	}
	if _, err := x.pair("c").Get(t.Context(), "vm"); err != nil { // which tells the other one
		t.Error(err)
	}
	if err := plain(0, "b", rec(1, "b", "b")); !errors.Is(err, ErrPaired) {
		t.Errorf("a node that knows one witness only, at the other one: %v", err)
	}
	y := newTwins(t, "a")
	for i := range y.w {
		r := rec(1, "a", "a")
		if _, err := (line{y.w[i], "a"}).once(t.Context(), "vm", request{Op: opAdvance, Next: &r}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := y.pair("a").Get(t.Context(), "vm"); !errors.Is(err, ErrSplit) {
		t.Errorf("two records: %v", err)
	}
}

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
			x.pairs[node] = &Pair{opt: old.opt, me: old.me, svc: old.svc, ledger: old.ledger, locks: map[string]chan struct{}{}}
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

// TestPendingClaims: a claim whose answer was lost may have let others in. They must be asked before the seat moves.
func TestPendingClaims(t *testing.T) {
	for _, told := range []bool{true, false} {
		x := newTwins(t, "a", "b")
		if !told { // what would happen if promises didn't say what is pending
			x.w[1].tamper = func(_ *memory, _ string, req *request, _ string) (*answer, func(*answer)) {
				req.Pending = nil
				return nil, nil
			}
		}
		x.won("a", rec(1, "a", "a"))
		x.w[0].set("a", arbiter.ReplyLost)
		x.holds("a", rec(2, "a", "a", "b"))
		x.w[0].set("a", arbiter.Unreachable)
		if err := x.pair("b").acquaint(t.Context()); err != nil {
			t.Fatal(err)
		}
		x.tend("a", "vm")
		x.won("b", rec(2+1, "b", "b"))
		got, err := x.pair("a").Advance(t.Context(), rec(2, "a", "a"))
		switch split := err == nil && arbiter.IsWon(rec(2, "a", "a"), got); {
		case told && split:
			t.Errorf("a and b go on: %v, %v", got, err)
		case !told && !split:
			t.Errorf("the rule isn't needed, or this test doesn't show it: %v, %v", got, err)
		}
	}
}

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
		"a withdrawal isn't told": func(m *memory, _ string, req *request, _ string) (*answer, func(*answer)) {
			if req.Op != opWithdraw {
				return nil, nil
			}
			return &answer{Instance: m.instance, Seq: req.Seq}, nil
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
