package colo

import (
	"testing"
	"time"
)

// TestAwakeness: what a loop waits for is late only when the loop itself was there all the time.
func TestAwakeness(t *testing.T) {
	at := func(s float64) time.Time { return time.Unix(0, int64(s*1e9)) }
	a := awakeness{every: time.Second, last: at(0)}
	for _, x := range []struct{ now, from, want float64 }{
		{0.5, 0, 0.5}, {1.5, 0, 1.5}, {2.5, 0, 2.5}, // a loop that runs counts everything
		{6.5, 2, 0}, {7.0, 2, 0.5}, {7.5, 7.25, 0.25}, {8.5, 2, 2}, // after a stall it begins anew
	} {
		a.note(at(x.now))
		if got := a.since(at(x.from)).Seconds(); got != x.want {
			t.Errorf("at %v, since %v: %v, want %v", x.now, x.from, got, x.want)
		}
	}
}
