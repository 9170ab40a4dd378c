package keyed

import (
	"context"
	"sync"
	"testing"
)

// TestLocks: calls of one name are kept apart, those of another are not, and nothing is left of a lock that nobody holds or waits for.
func TestLocks(t *testing.T) {
	var p Locks
	unlock, err := p.Lock(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	waits := make(chan error, 1)
	go func() { _, err := p.Lock(ctx, "web"); waits <- err }()
	other, err := p.Lock(t.Context(), "db")
	if err != nil {
		t.Fatal(err)
	}
	other()
	cancel()
	if err := <-waits; err == nil {
		t.Error("locked twice")
	}
	unlock()
	var wg sync.WaitGroup
	n := 0
	for range 100 {
		wg.Go(func() {
			unlock, err := p.Lock(t.Context(), "web")
			if err != nil {
				t.Error(err)
				return
			}
			n++ // the race detector sees two at once
			unlock()
		})
	}
	wg.Wait()
	if n != 100 || p.Len() != 0 {
		t.Errorf("%d calls, %d locks are left", n, p.Len())
	}
}
