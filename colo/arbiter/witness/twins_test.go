package witness

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/coloctl/coloctl/colo/arbiter"
)

// memory is a witness without network and disk, whose faults are set for each node.
type memory struct {
	mu       sync.Mutex
	id       string
	entries  map[string]entry
	faults   map[string]arbiter.Fault // by node; Silent isn't used
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
	}
	ans, err := l.m.do(vm, req.copy(), l.node)
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
	return l.m.mine(l.node), nil
}

func (m *memory) mine(node string) membership {
	out := membership{Instance: m.instance}
	for vm, e := range m.entries {
		if e.concerns(node) {
			out.VMs = append(out.VMs, vm)
		}
	}
	return out
}

func (m *memory) do(vm string, req request, node string) (answer, error) {
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
	e := m.entries[vm].copy()
	ans, changed, err := e.apply(req, node, m.instance)
	if changed && err == nil {
		m.entries[vm] = e
	}
	if err == nil {
		after(&ans)
	}
	return ans, err
}

// copy shares only what nobody changes: records, sights and what promises list.
func (e entry) copy() entry {
	e.Promises = maps.Clone(e.Promises)
	return e
}

// copy as the network does.
func (r request) copy() request {
	r.Pending = slices.Clone(r.Pending)
	if r.Sight != nil {
		s := *r.Sight
		r.Sight = &s
	}
	return r
}

// twins are two witnesses and the pairs of their nodes.
type twins struct {
	t     testing.TB
	w     [2]*memory
	dir   string
	mu    sync.Mutex
	pairs map[string]*Pair
}

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

func newTwins(t testing.TB, nodes ...string) *twins {
	t.Helper()
	x := &twins{t: t, w: [2]*memory{newMemory("w1"), newMemory("w2")}, dir: t.TempDir(), pairs: map[string]*Pair{}}
	for _, n := range nodes {
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
	l, err := openLedger(filepath.Join(x.dir, node))
	if err != nil {
		x.t.Fatal(err)
	}
	l.db.NoSync = true
	return newPair(a, b, node, l, PairOptions{Log: quiet})
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
