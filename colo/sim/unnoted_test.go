package sim

import (
	"testing"
	"time"
)

// TestUnnotedWin plays the loss of a primary whose secondary goes on while its state folder is slow, or full, and loses its power, its QEMU or its daemon then: what the state
// file says is from before, and the disks lack what was served meanwhile. Where the folder is full only the arbiter knows.
func TestUnnotedWin(t *testing.T) {
	spoke := 0
	for _, folder := range []Kind{SlowDisk, FullDisk} {
		for _, then := range [][]Step{
			{{What: PowerOff, Host: 1, Lasts: 30 * time.Millisecond}},
			{{What: KillQEMU, Host: 1}},
			{{What: KillDaemon, Host: 1, Lasts: 500 * time.Millisecond}, {What: KillQEMU, Host: 1, After: 100 * time.Millisecond}},
			{{What: KillDaemon, Host: 1, Lasts: 200 * time.Millisecond}, {What: CutArbiters, Lasts: 2 * time.Second}, {What: KillQEMU, Host: 1, After: 210 * time.Millisecond}},
			{{What: PowerOff, Host: 0, Lasts: 700 * time.Millisecond}, {What: PowerOff, Host: 1, Lasts: 500 * time.Millisecond}, {What: CutArbiters, Lasts: 3 * time.Second}},
			{{What: PowerOff, Host: 1, Lasts: 30 * time.Millisecond}, {What: MuteArbiter, Host: 1, Lasts: 2 * time.Second}, {What: Start, Host: 1, After: 100 * time.Millisecond}},
		} {
			for seed := range uint64(60) {
				s := Schedule{Seed: seed + 1, Links: 1, Steps: []Step{
					{What: folder, Host: 1, Lasts: 2500 * time.Millisecond},
					{What: StopQEMU, Host: 0, Lasts: 5300 * time.Millisecond},
					{What: KillQEMU, Host: 0, After: 350 * time.Millisecond},
				}}
				then := append([]Step(nil), then...)
				then[0].After += time.Duration(seed) * 35 * time.Millisecond
				s.Steps = append(s.Steps, then...)
				r := Run(t, s, false)
				if r.Violation != nil {
					printStory(t, s)
				}
				spoke += r.Tally.Failovers
			}
		}
	}
	if spoke == 0 {
		t.Error("no secondary went on")
	}
}
