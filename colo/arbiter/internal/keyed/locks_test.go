package witness

import (
	"context"
	"sync"
	"testing"
)

// TestLocks: calls about one VM are kept apart, those about another are not, and nothing is left of a lock that nobody holds or waits for.
func TestLocks(t *testing.T) {
	p := &Pair{locks: map[string]*lock{}}
	unlock, err := p.lock(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	waits := make(chan error, 1)
	go func() { _, err := p.lock(ctx, "web"); waits <- err }()
	other, err := p.lock(t.Context(), "db")
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
			unlock, err := p.lock(t.Context(), "web")
			if err != nil {
				t.Error(err)
				return
			}
			n++ // the race detector sees two at once
			unlock()
		})
	}
	wg.Wait()
	if n != 100 || len(p.locks) != 0 {
		t.Errorf("%d calls, %d locks are left", n, len(p.locks))
	}
}
