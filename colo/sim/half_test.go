package sim

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// TestHalfFailsThenMore: the primary's half of the disk fails, from the end of its protection's beginning on, and shortly after that its QEMU ends, its peer is lost, or the
// VM is unprotected. The VM goes on, or can be started, where everything is. Only where the other copy is lost before it was told that it counts a person has to say that its disk
// is good.
func TestHalfFailsThenMore(t *testing.T) {
	for i, more := range []Step{{What: KillQEMU}, {What: Unprotect}, {What: KillQEMU, Host: 1}, {What: CutAll, Lasts: time.Second}, {What: KillDaemon, Lasts: time.Second}} {
		for seed := range uint64(60) {
			more.IO, more.After = int(seed%4), time.Duration(seed%8)*3*time.Millisecond // before an operation, or after a time
			s := Schedule{Seed: seed + 1, Links: 1, Unsettled: true, Tail: time.Second, Last: int(seed % 3), Steps: []Step{
				{What: DiskFails, After: 600*time.Millisecond + time.Duration(seed)*3*time.Millisecond}, more}}
			if i == 1 { // the operator is first
				slices.Reverse(s.Steps)
				s.Steps[0].After, s.Steps[1].After = 900*time.Millisecond, time.Duration(seed)*time.Millisecond
			}
			r := Run(t, s, true)
			stuck := slices.ContainsFunc(r.Story, func(l Line) bool { return strings.HasPrefix(l.Text, "nobody may start") })
			if r.Violation != nil || stuck && more.Host == 0 || r.Tally.Failed > 0 {
				printStory(t, s)
				t.Fatalf("seed %d, then %v: %v, %+v", s.Seed, more, r.Violation, r.Tally)
			}
		}
	}
}
