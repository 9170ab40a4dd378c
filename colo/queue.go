package colo

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
)

// ResyncLimits bound what a node's VMs that become protected do at the same time. Zero values are no limit.
type ResyncLimits struct {
	Parallel int  // so many at a time; the others wait for their turn, the highest priority first
	Rate     Size // bytes a second that all of them together send to the peers' disks
}

// queue lets a limited number of VMs become protected at a time. The one that waits with the highest priority is next, of equal ones the one that has waited longest. All methods may be
// called concurrently.
type queue struct {
	limits ResyncLimits

	mu      sync.Mutex
	running []*turn
	waiting []*turn // in their order
}

// turn is one VM's place in the queue.
type turn struct {
	vm       string
	priority int
	ready    chan struct{}     // closed when it may go on
	moved    func(place int)   // its place among those that wait has changed, from 1; called with mu held
	share    func(speed int64) // what it may send, bytes a second, has changed; 0 is no limit; called with mu held
	shared   int64
}

// enter waits for a turn. The caller must leave when the error is nil.
func (q *queue) enter(ctx context.Context, t *turn) error {
	t.ready = make(chan struct{})
	q.mu.Lock()
	at, _ := slices.BinarySearchFunc(q.waiting, t, func(a, b *turn) int {
		if a.priority >= b.priority { // those of the same priority stay before it
			return -1
		}
		return 1
	})
	q.waiting = slices.Insert(q.waiting, at, t)
	q.advance()
	q.mu.Unlock()
	select {
	case <-t.ready:
		return nil
	case <-ctx.Done():
		q.leave(t)
		return context.Cause(ctx)
	}
}

// leave ends a turn, or the waiting for it. A second call does nothing.
func (q *queue) leave(t *turn) {
	q.mu.Lock()
	defer q.mu.Unlock()
	is := func(o *turn) bool { return o == t }
	q.running, q.waiting = slices.DeleteFunc(q.running, is), slices.DeleteFunc(q.waiting, is)
	q.advance()
}

// advance lets those go on for whom there is room, and tells everybody what has changed. The caller holds mu.
func (q *queue) advance() {
	for len(q.waiting) > 0 && (q.limits.Parallel == 0 || len(q.running) < q.limits.Parallel) {
		t := q.waiting[0]
		q.waiting, q.running = q.waiting[1:], append(q.running, t)
		close(t.ready)
	}
	for i, t := range q.waiting {
		t.moved(i + 1)
	}
	if q.limits.Rate == 0 || len(q.running) == 0 {
		return
	}
	share := max(int64(q.limits.Rate)/int64(len(q.running)), 1)
	for _, t := range q.running {
		if t.shared != share {
			t.shared = share
			t.share(share)
		}
	}
}

// names lists those whose turn it is.
func (q *queue) names() string {
	var out []string
	for _, t := range q.running {
		out = append(out, t.vm)
	}
	return strings.Join(out, ", ")
}

// takeTurn waits until the VM may be made redundant, and says so in its status meanwhile.
func (m *machine) takeTurn(ctx context.Context) (leave func(), err error) {
	_, spec := m.info()
	q := m.n.queue
	t := &turn{vm: m.name, priority: spec.Priority}
	waited := false
	t.moved = func(place int) {
		waited = true
		m.setOutlook(fmt.Sprintf("wait: place %d in the queue for a resync, after %s (priority %d)", place, q.names(), spec.Priority))
	}
	t.share = func(speed int64) {
		m.mu.Lock()
		m.tune.share = speed / int64(max(len(spec.mirrored()), 1))
		c := m.copy
		m.mu.Unlock()
		if speed, paused := m.tuning(spec); c != nil && m.State() == Syncing {
			m.n.wg.Go(func() {
				if err := c.TuneSync(m.n.ctx, speed, paused); err != nil {
					m.log.Debug("the resync's rate was not changed", "err", err)
				}
			})
		}
	}
	if err := q.enter(ctx, t); err != nil {
		m.setOutlook("")
		return nil, err
	}
	if waited {
		m.setOutlook("")
	}
	return func() { q.leave(t) }, nil
}
