package witness

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/coloctl/coloctl/colo/api/pki"
	"github.com/coloctl/coloctl/colo/arbiter"
)

// TestPairRuns uses real servers and real time: the deciding witness is stopped, both nodes notice, and then one claims.
func TestPairRuns(t *testing.T) {
	sites := [2]*site{newSite(t), newSite(t)}
	ctx, stop := context.WithCancel(t.Context())
	pairs, ended := map[string]*Pair{}, make(chan error, 2)
	for _, n := range []string{"a", "b"} {
		var c [2]*Client
		for i, s := range sites {
			c[i] = s.client(pki.Node, n, nil)
		}
		p, err := NewPair(c[0], c[1], filepath.Join(t.TempDir(), "ledger"), PairOptions{HoldDown: 300 * time.Millisecond, Interval: 50 * time.Millisecond, Log: quiet})
		if err != nil {
			t.Fatal(err)
		}
		pairs[n] = p
	}
	won := func(node string, next arbiter.Record) {
		t.Helper()
		for {
			got, err := pairs[node].Advance(ctx, next)
			if err == nil {
				if arbiter.Judge(next, got) != arbiter.Won {
					t.Fatalf("%s asked for %v and got %v", node, next, got)
				}
				return
			}
			if ctx.Err() != nil {
				t.Fatal(err)
			}
		}
	}
	won("a", rec(1, "a", "a", "b"))
	for _, p := range pairs {
		go func() { ended <- p.Run(ctx) }()
	}
	seat := func() int {
		pg, known, err := pairs["a"].ledger.load("vm")
		if err != nil || !known {
			t.Fatal(known, err)
		}
		i, _ := pairs["a"].place(pg.Seat.Seat)
		return i
	}
	for known := false; !known; time.Sleep(10 * time.Millisecond) { // until b's loop has heard of its membership
		var err error
		if _, known, err = pairs["b"].ledger.load("vm"); err != nil {
			t.Fatal(err)
		}
	}
	first := seat()
	sites[first].stop()
	for seat() == first {
		time.Sleep(10 * time.Millisecond) // the loops need real time
		if ctx.Err() != nil {
			t.Fatal(ctx.Err())
		}
	}
	won("b", rec(2, "b", "b"))
	sites[first].start()
	if got, err := pairs["a"].Advance(ctx, rec(2, "a", "a")); err != nil || arbiter.Judge(rec(2, "a", "a"), got) != arbiter.Lost {
		t.Errorf("a: %v, %v", got, err)
	}
	stop()
	for _, p := range pairs {
		if err := <-ended; err != nil {
			t.Error(err)
		}
		_ = p.Close()
	}
}
