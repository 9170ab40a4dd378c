package sim

import (
	"flag"
	"fmt"
	"reflect"
	"runtime"
	"slices"
	"testing"
	"time"
)

// TestSchedules plays random schedules. A seed that breaks a promise is printed as a story that is as short as can be.
//
// Play a seed again with -run TestSchedules -sim.seed N -sim.story; many with -sim.n 100000 or -sim.for 10m.
// Some seeds are given a highest bit first, see mixed: the seeds that other tests name are played as they are.
func TestSchedules(t *testing.T) {
	begin, n, d := *first, *count, *length
	if begin == 0 {
		begin = uint64(time.Now().Unix()) << 20
		if testing.Short() {
			begin = 1
		}
	}
	all := shard{First: begin, Without: Kind(*without), Mixed: true}
	if *tell {
		oneThread(t)
		printStory(t, all.of(begin))
		return
	}
	if n > 0 && !limited() {
		d = 0
	} else if testing.Short() {
		d = min(d, 3*time.Second)
	}
	began := time.Now()
	all.N, all.For = n, d
	f := play(t, "", all, func(f *found) bool { return len(f.bad) > 20 })
	took := time.Since(began)
	t.Logf("%d schedules from seed %d in %s, %.0f a second; %+v", f.played, begin, took.Round(time.Millisecond), float64(f.played)/took.Seconds(), f.tally)
	if n > 0 && f.played < n && len(f.bad) == 0 {
		t.Logf("%d of %d schedules were not played: the time was over", n-f.played, n)
	}
	for _, text := range f.died {
		t.Error(text)
	}
	var bad []uint64
	for seed := range f.bad {
		bad = append(bad, seed)
	}
	slices.Sort(bad)
	oneThread(t)
	for i, seed := range bad {
		t.Errorf("seed %d: %v", seed, f.bad[seed])
		if i < 3 {
			printStory(t, Shrink(t, all.of(seed), f.bad[seed].Rule))
		}
	}
	if f.played == 0 && len(bad) == 0 {
		t.Error("nothing was played")
	}
}

// limited says whether a time was given: then -sim.n may not be reached.
func limited() (given bool) {
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "sim.for" })
	return given
}

// oneThread makes this process like a shard.
func oneThread(t *testing.T) {
	before := runtime.GOMAXPROCS(1)
	t.Cleanup(func() { runtime.GOMAXPROCS(before) })
}

func printStory(t *testing.T, s Schedule) {
	t.Helper()
	r := Run(t, s, true)
	t.Log("\n" + Tell(s, r))
	if r.Violation != nil {
		t.Errorf("seed %d: %v", s.Seed, r.Violation)
	}
}

// TestSameStory checks that a seed has one story. What happens at one and the same instant in two goroutines may go either way, which is rare: of these seeds in one of
// some hundred runs.
func TestSameStory(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector schedules at random; make test runs this without it as well")
	}
	oneThread(t)
	n := 40
	if testing.Short() {
		n = 10
	}
	stories := func(seed uint64) []Line {
		r := Run(t, Generate(seed), true)
		return sorted(r.Story)
	}
	differ := 0
	for seed := uint64(1); seed <= uint64(n); seed++ {
		a, b := stories(seed), stories(seed)
		if reflect.DeepEqual(a, b) {
			continue
		}
		i := 0
		for i < min(len(a), len(b)) && a[i] == b[i] {
			i++
		}
		if differ++; differ == 1 {
			t.Logf("seed %d has two stories", seed)
			continue
		}
		t.Errorf("seed %d has two stories, as one before it; from line %d of %d and %d:\n%v\n%v", seed, i, len(a), len(b), at(a, i), at(b, i))
	}
}

func at(lines []Line, i int) string {
	if i < len(lines) {
		return fmt.Sprint(lines[i])
	}
	return "the end"
}
