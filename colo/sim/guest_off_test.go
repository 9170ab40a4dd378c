package sim

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// TestGuestOffEnds: the guest switches itself off while it is protected, and both QEMUs end at once, as libvirt has it. The VM is off then, on both nodes:
// nobody is promoted, nobody needs a person, and it can be started again. The primary's host may go down in the same moment.
func TestGuestOffEnds(t *testing.T) {
	for seed := range uint64(40) {
		s := Schedule{Seed: seed + 1, Links: 1, Tail: 300 * time.Millisecond, Steps: []Step{{What: GuestOffEnds, After: 700*time.Millisecond + time.Duration(seed)*7*time.Millisecond}}}
		r := Run(t, s, true)
		stopped := slices.ContainsFunc(r.Story, func(l Line) bool {
			return strings.HasPrefix(l.Text, "at rest: n1 is stopped") && strings.Contains(l.Text, "n2 is outdated")
		})
		if !stopped || r.Violation != nil || r.Tally.Failed > 0 || r.Tally.Restarts != 1 || r.Tally.Failovers > 1 { // one is the last test's
			printStory(t, s)
			t.Fatalf("seed %d: %v, %+v", s.Seed, r.Violation, r.Tally)
		}
		s.Steps = append(s.Steps, Step{What: []Kind{PowerOff, KillDaemon, CutAll, CutArbiter, CutArbiters}[seed%5], Host: int(seed / 5 % 2),
			After: time.Duration(seed) * time.Millisecond, Lasts: time.Second})
		if r := Run(t, s, false); r.Violation != nil || r.Tally.Failed > 0 {
			printStory(t, s)
			t.Fatalf("seed %d: %v, %+v", s.Seed, r.Violation, r.Tally)
		}
	}
}
