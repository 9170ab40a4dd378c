// Package keyed has one lock for each name, for as long as somebody holds it or waits for it: nothing is left of a name that is not in use.
//
// All may be called concurrently. Who waits may give up; who gets a lock next is not said.
package keyed

import (
	"context"
	"sync"
)

// Locks by name. The zero value is ready.
type Locks struct {
	mu   sync.Mutex
	byID map[string]*lock
}

type lock struct {
	held  chan struct{} // holds something while somebody holds it
	users int           // who holds it and who wait; guarded by Locks.mu
}

// Lock returns when the caller holds the lock of a name, or the cause of ctx's end. It is not to be called again by its holder.
func (l *Locks) Lock(ctx context.Context, id string) (unlock func(), err error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	l.mu.Lock()
	k, ok := l.byID[id]
	if !ok {
		k = &lock{held: make(chan struct{}, 1)}
		if l.byID == nil {
			l.byID = map[string]*lock{}
		}
		l.byID[id] = k
	}
	k.users++
	l.mu.Unlock()
	select {
	case k.held <- struct{}{}:
		return func() { <-k.held; l.leave(id, k) }, nil
	case <-ctx.Done():
		l.leave(id, k)
		return nil, context.Cause(ctx)
	}
}

func (l *Locks) leave(id string, k *lock) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if k.users--; k.users == 0 {
		delete(l.byID, id)
	}
}

// Len is how many names are in use.
func (l *Locks) Len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.byID)
}
