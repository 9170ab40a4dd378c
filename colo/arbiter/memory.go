package arbiter

import (
	"context"
	"fmt"
	"sync"
)

// Memory is an arbiter inside one process, for the lab and for tests. It forgets everything at the end of the process, so it is
// no protection for machines that somebody needs.
//
// Each node speaks to it through its own [Memory.View], whose reachability can be changed at any time.
type Memory struct {
	mu      sync.Mutex
	records map[string]Record
	faults  map[string]Fault
	changed chan struct{} // closed and replaced whenever a fault changes: wakes requests that hang
}

// Fault is what happens to the requests of one node.
type Fault int

const (
	// Reachable: requests are answered.
	Reachable Fault = iota
	// Unreachable: requests are refused at once and have no effect.
	Unreachable
	// ReplyLost: requests are carried out, but the caller gets ErrUnreachable. The case that claimers forget.
	ReplyLost
	// Silent: nothing comes back until the caller's context ends or the fault changes; no effect before that.
	Silent
)

// NewMemory returns an arbiter without records, reachable for every node.
func NewMemory() *Memory {
	return &Memory{records: map[string]Record{}, faults: map[string]Fault{}, changed: make(chan struct{})}
}

// SetReachable connects or disconnects a node.
func (m *Memory) SetReachable(node string, reachable bool) {
	if reachable {
		m.SetFault(node, Reachable)
		return
	}
	m.SetFault(node, Unreachable)
}

// SetFault sets what happens to a node's requests from now on, including those that hang in [Silent].
func (m *Memory) SetFault(node string, f Fault) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.faults[node] = f
	close(m.changed)
	m.changed = make(chan struct{})
}

// View returns the arbiter as node sees it. It accepts claims by this node only, as a real one does, which knows its callers by
// certificate.
func (m *Memory) View(node string) Arbiter { return view{m: m, node: node} }

type view struct {
	m    *Memory
	node string
}

func (v view) Get(ctx context.Context, vm string) (got Record, err error) {
	err = v.request(ctx, func() error {
		r, ok := v.m.records[vm]
		if !ok {
			return fmt.Errorf("%w: %s", ErrNoRecord, vm)
		}
		got = r.Normal()
		return nil
	})
	return got, err
}

func (v view) Advance(ctx context.Context, next Record) (got Record, err error) {
	if next.By != v.node {
		return Record{}, fmt.Errorf("%w: claim by %q sent by node %q", ErrInvalid, next.By, v.node)
	}
	err = v.request(ctx, func() error {
		var current *Record
		if r, ok := v.m.records[next.VM]; ok {
			current = &r
		}
		stored, changed, err := Decide(current, next)
		if err != nil {
			return err
		}
		if changed {
			v.m.records[next.VM] = stored
		}
		got = stored.Normal()
		return nil
	})
	if err != nil {
		return Record{}, err
	}
	return got, nil
}

func (v view) Forget(ctx context.Context, vm string, generation uint64) error {
	return v.request(ctx, func() error {
		r, ok := v.m.records[vm]
		if !ok {
			return nil
		}
		if r.Generation != generation {
			return fmt.Errorf("%w: %s is at %d, not %d", ErrConflict, vm, r.Generation, generation)
		}
		delete(v.m.records, vm)
		return nil
	})
}

// request runs do under the lock if the node's fault lets it through.
func (v view) request(ctx context.Context, do func() error) error {
	for {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("%w from %s: %w", ErrUnreachable, v.node, err)
		}
		v.m.mu.Lock()
		fault, changed := v.m.faults[v.node], v.m.changed
		switch fault {
		case Reachable:
			defer v.m.mu.Unlock()
			return do()
		case ReplyLost:
			defer v.m.mu.Unlock()
			_ = do() // the answer, good or bad, is what gets lost
			return fmt.Errorf("%w from %s: reply lost", ErrUnreachable, v.node)
		case Silent:
			v.m.mu.Unlock()
			select {
			case <-ctx.Done():
			case <-changed:
			}
		default:
			v.m.mu.Unlock()
			return fmt.Errorf("%w from %s", ErrUnreachable, v.node)
		}
	}
}
