package witness

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
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
