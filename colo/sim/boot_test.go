package sim

import (
	"testing"
	"time"
)

// TestBootedOnce: the primary's host loses power and is back at once, or in a while, and its node acts by itself. The secondary goes on with the guest as it is: it is never
// booted again.
func TestBootedOnce(t *testing.T) {
	for seed := range uint64(60) {
		s := Schedule{Seed: seed + 1, Links: 1, Recovery: true, Tail: time.Second, Last: int(seed % 3), Steps: []Step{
			{What: PowerOff, After: time.Duration(seed) * 3 * time.Millisecond, Lasts: time.Millisecond + time.Duration(seed%20)*60*time.Millisecond}}}
		if r := Run(t, s, false); r.Violation != nil || r.Tally.Restarts > 0 {
			printStory(t, s)
			t.Fatalf("seed %d: %v, %+v", s.Seed, r.Violation, r.Tally)
		}
	}
}
