package sim

import (
	"testing"
	"time"
)

// TestGateOfReturnedDaemon plays what opens a gate wrongly when heartbeats alone may: the primary's QEMU stands still and its daemon dies, the secondary goes on, and then
// both come back and are heard by the new primary. The old one must say nothing, not even ARP.
func TestGateOfReturnedDaemon(t *testing.T) {
	for seed := range uint64(60) {
		s := Schedule{Seed: seed + 1, Links: 1, Steps: []Step{
			{What: StopQEMU, Host: 0, After: 300 * time.Millisecond, Lasts: 1200 * time.Millisecond},
			{What: KillDaemon, Host: 0, After: 100 * time.Millisecond, Lasts: 1100*time.Millisecond + time.Duration(seed)*time.Millisecond/4},
			{What: Slow, After: time.Second, Lasts: 200 * time.Millisecond},
		}}
		if r := Run(t, s, false); r.Violation != nil {
			printStory(t, s)
		}
	}
}
