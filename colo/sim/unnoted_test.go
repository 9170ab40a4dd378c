package sim

import (
	"testing"
	"time"
)

// TestUnnotedWin plays the loss of a primary whose secondary goes on while its state folder's disk is slow, and loses power then: what the state file says when it is back
// is from before, and the disks lack what was served meanwhile. Only the arbiter knows.
func TestUnnotedWin(t *testing.T) {
	for seed := range uint64(100) {
		s := Schedule{Seed: seed + 1, Links: 1, Steps: []Step{
			{What: SlowDisk, Host: 1, Lasts: 5500 * time.Millisecond},
			{What: StopQEMU, Host: 0, Lasts: 5300 * time.Millisecond},
			{What: KillQEMU, Host: 0, After: 700 * time.Millisecond},
			{What: PowerOff, Host: 1, After: 600*time.Millisecond + time.Duration(seed)*10*time.Millisecond, Lasts: 30 * time.Millisecond},
		}}
		if r := Run(t, s, false); r.Violation != nil {
			printStory(t, s)
		}
	}
}
