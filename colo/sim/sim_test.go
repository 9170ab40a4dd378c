package sim

import (
	"flag"
	"runtime/debug"
	"testing"
	"time"
)

var (
	seeds = flag.Uint64("sim.n", 300, "schedules")
	first = flag.Uint64("sim.seed", 1, "first seed")
	tell  = flag.Bool("sim.story", false, "print the story of the first seed")
)

func TestSchedules(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(800))
	begun := time.Now()
	var virtual time.Duration
	var tally Tally
	bad := 0
	for seed := *first; seed < *first+*seeds; seed++ {
		s := Generate(seed)
		r := Run(t, s, *tell)
		virtual += r.Took
		tally.Failovers += r.Tally.Failovers
		tally.Refused += r.Tally.Refused
		tally.Failed += r.Tally.Failed
		tally.Unattended += r.Tally.Unattended
		tally.Restarts += r.Tally.Restarts
		if *tell {
			t.Log(Tell(s, r))
		}
		if r.Violation != nil {
			bad++
			t.Errorf("seed %d: %v", seed, r.Violation)
		}
	}
	took := time.Since(begun)
	t.Logf("%d schedules in %s, %.0f/s, %s of virtual time each, %d bad, %+v", *seeds, took, float64(*seeds)/took.Seconds(), virtual/time.Duration(*seeds), bad, tally)
}
