package sim

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"testing"
	"time"
)

var (
	count   = flag.Int("sim.n", 0, "schedules to play; 0 is as many as fit into -sim.for")
	length  = flag.Duration("sim.for", 12*time.Second, "time to play schedules")
	first   = flag.Uint64("sim.seed", 0, "first seed; 0 is one that follows from the clock, or 1 in short tests")
	without = flag.String("sim.without", "", "a kind of step that is left out of all schedules")
	tell    = flag.Bool("sim.story", false, "print the story of the first seed, in this process")
	shards  = flag.Int("sim.shards", runtime.NumCPU(), "processes")
)

// A shard is a process that plays every so many-th seed with one thread: that makes the order in which goroutines run at one instant the same
// each time, and a bubble that deadlocks ends only its own process.
const shardEnv = "COLOCTL_SIM_SHARD"

type shard struct {
	First   uint64
	Step    uint64
	N       int // 0: until the end
	For     time.Duration
	Only    []Kind   // what the schedules consist of; nil is everything
	Bare    bool     // on hosts without a gate
	Mixed   bool     // with the later faults in some, see mixed
	Seeds   []uint64 `json:",omitempty"` // only these
	Without Kind     `json:",omitempty"` // is left out
}

// schedule is the one of a number.
func (s *shard) schedule(i int) Schedule {
	seed := s.First + uint64(i)*s.Step
	if s.Seeds != nil {
		seed = s.Seeds[i]
	}
	if s.Mixed {
		seed = mixed(seed)
	}
	return s.of(seed)
}

// of is the schedule of a seed.
func (s *shard) of(seed uint64) Schedule {
	c := generate(seed, s.Only)
	c.NoGate = s.Bare
	c.Steps = slices.DeleteFunc(c.Steps, func(st Step) bool { return st.What == s.Without })
	return c
}

// part is the share of one of so many processes.
func (s shard) part(i, of int) shard {
	if s.Seeds != nil {
		var mine []uint64
		for j := i; j < len(s.Seeds); j += of {
			mine = append(mine, s.Seeds[j])
		}
		s.Seeds, s.N = mine, len(mine)
		return s
	}
	s.First, s.Step = s.First+uint64(i), uint64(of)
	if s.N > 0 {
		s.N = (s.N + of - 1 - i) / of
	}
	return s
}

// report is a line of what a shard prints.
type report struct {
	Begun     uint64     `json:",omitempty"` // seed that is being played
	Seed      uint64     `json:",omitempty"` // of a violation
	Violation *Violation `json:",omitempty"`
	Played    int        `json:",omitempty"` // at the end
	Tally     Tally
}

func TestMain(m *testing.M) {
	if os.Getenv(shardEnv) != "" {
		runtime.GOMAXPROCS(1)
		debug.SetGCPercent(1000)
	}
	os.Exit(m.Run())
}

// TestShard is the shard's side of play.
func TestShard(t *testing.T) {
	text := os.Getenv(shardEnv)
	if text == "" {
		t.Skip("only in processes that other tests start")
	}
	var s shard
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		t.Fatal(err)
	}
	pipe := os.NewFile(3, "reports")
	out := bufio.NewWriter(pipe)
	enc := json.NewEncoder(out)
	say := func(r report) {
		if err := enc.Encode(r); err != nil {
			t.Fatal(err)
		}
		if err := out.Flush(); err != nil {
			os.Exit(0) // nobody listens any more: enough was found
		}
	}
	begun := time.Now()
	var total Tally
	played := 0
	for s.N == 0 || played < s.N {
		if s.For > 0 && time.Since(begun) > s.For {
			break
		}
		c := s.schedule(played)
		if played%64 == 0 {
			say(report{Begun: c.Seed})
		}
		r := Run(t, c, false)
		total.Add(r.Tally)
		if r.Violation != nil {
			say(report{Seed: c.Seed, Violation: r.Violation})
		}
		played++
	}
	say(report{Played: played, Tally: total})
}

// found is what shards have reported.
type found struct {
	mu     sync.Mutex
	bad    map[uint64]*Violation
	played int
	tally  Tally
	died   []string
}

// play plays schedules in several processes, with the given binary or this one. It ends early when enough is true.
func play(t *testing.T, binary string, all shard, enough func(*found) bool) *found {
	t.Helper()
	if binary == "" {
		binary = os.Args[0]
	}
	f := &found{bad: map[uint64]*Violation{}}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if d := all.For; d > 0 { // a simulator that hangs is killed; each shard ends by itself long before
		ctx, cancel = context.WithTimeout(ctx, d+30*time.Second)
		defer cancel()
	}
	var wg sync.WaitGroup
	for i := range *shards {
		s := all.part(i, *shards)
		if all.N+len(all.Seeds) > 0 && s.N == 0 {
			continue
		}
		text, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		var words bytes.Buffer
		cmd := exec.CommandContext(ctx, binary, "-test.run=^TestShard$", "-test.timeout=0")
		cmd.Env = append(os.Environ(), shardEnv+"="+string(text), "GOMAXPROCS=1")
		cmd.ExtraFiles, cmd.Stdout, cmd.Stderr = []*os.File{w}, &words, &words
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		_ = w.Close()
		wg.Go(func() {
			defer r.Close()
			f.listen(r, func() bool {
				if enough == nil || !enough(f) {
					return false
				}
				cancel()
				return true
			})
			if err := cmd.Wait(); err != nil && !errors.Is(ctx.Err(), context.Canceled) {
				f.mu.Lock()
				f.died = append(f.died, fmt.Sprintf("shard %s: %v\n%s", text, err, words.String()))
				f.mu.Unlock()
			}
		})
	}
	wg.Wait()
	return f
}

func (f *found) listen(r *os.File, enough func() bool) {
	for dec := json.NewDecoder(r); ; {
		var rep report
		if err := dec.Decode(&rep); err != nil {
			return
		}
		f.mu.Lock()
		if rep.Violation != nil {
			f.bad[rep.Seed] = rep.Violation
		}
		f.played += rep.Played
		f.tally.Add(rep.Tally)
		stop := enough()
		f.mu.Unlock()
		if stop {
			return
		}
	}
}
