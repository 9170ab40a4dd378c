package sim

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coloctl/coloctl/colo"
)

var moments = flag.Int("sim.moments", 0, "at how many moments the verdict is asked for; 300 with -short, else 3000")

// moment is one at which a node is asked whether the VM is protected, and what had happened shortly before.
type moment struct {
	seed  uint64
	fault Step // of the world; none if it has no kind
	ask   int  // the node that is asked
	qemu  bool // only its QEMU is killed then, not the whole host
	after time.Duration
}

// faults that a node may not have noticed yet when it is asked.
var faults = []Kind{"", KillQEMU, StopQEMU, KillDaemon, StopDaemon, PowerOff, Freeze, CutLink, CutOneWay, CutAll, CutArbiter, CutArbiters, MuteArbiter, Isolate, SlowDisk, GuestOff}

func momentOf(seed uint64) moment {
	r := rand.New(rand.NewPCG(seed, 0x52))
	m := moment{seed: seed, ask: r.IntN(2), qemu: r.IntN(2) == 0}
	m.fault = Step{What: faults[r.IntN(len(faults))], Host: r.IntN(2), Lasts: []time.Duration{300 * time.Millisecond, 3 * time.Second}[r.IntN(2)]}
	m.after = time.Duration(r.Int64N(int64([]time.Duration{5 * time.Millisecond, 500 * time.Millisecond, 4 * time.Second}[r.IntN(3)])))
	return m
}

func (m moment) String() string {
	what := "its host loses power"
	if m.qemu {
		what = "its QEMU is killed"
	}
	return fmt.Sprintf("seed %d: %v; %s later n%d is asked and %s", m.seed, m.fault, m.after, m.ask+1, what)
}

// play returns whether the verdict was green, and what is wrong.
func (m moment) play(t *testing.T, story bool) (green bool, lines []Line, err error) {
	synctest.Test(t, func(*testing.T) {
		r := &run{w: newWorld(m.seed, 1, story), sch: Schedule{Seed: m.seed, Links: 1}}
		r.ctx, r.stop = context.WithCancel(context.Background())
		green, err = r.moment(m)
		r.end()
		if v := r.w.violation; err == nil && v != nil {
			err = v
		}
		lines = r.w.lines
	})
	return green, lines, err
}

func (r *run) moment(m moment) (green bool, err error) {
	w := r.w
	w.mu.Lock()
	w.hosts[0].startDaemon()
	w.in(w.between(actorFaults, 0, 150*time.Millisecond), w.hosts[1].startDaemon)
	w.mu.Unlock()
	if !r.until(5*time.Second, func() bool { return w.hosts[0].node() != nil && w.hosts[1].node() != nil }) {
		return false, fmt.Errorf("the daemons did not start")
	}
	n1 := w.hosts[0].node()
	if err := n1.Create(r.ctx, spec()); err != nil {
		return false, err
	}
	if err := n1.Start(r.ctx, vm); err != nil {
		return false, err
	}
	w.mu.Lock()
	w.lan.begin()
	w.mu.Unlock()
	if err := n1.Protect(r.ctx, vm, colo.ProtectOptions{}); err != nil {
		return false, err
	}
	time.Sleep(w.between(actorFaults, 0, time.Second))
	if m.fault.What != "" {
		r.apply(m.fault)
	}
	time.Sleep(m.after)
	h := w.hosts[m.ask]
	n := h.node()
	if n == nil {
		return false, nil // nobody answers
	}
	ctx, cancel := context.WithTimeout(r.ctx, 5*time.Second)
	defer cancel()
	s, err := n.Status(ctx, vm)
	if err != nil || !s.Verdict.Protected {
		w.tell("?", "n%d: %v %v", m.ask+1, s.Verdict, err)
		return false, nil
	}
	w.mu.Lock()
	off := w.lan.voice != nil && w.lan.voice.off // its guest has switched itself off: there is nothing to save
	w.say("?", "n%d: protected", m.ask+1)
	switch {
	case h.frozen || h.env == nil: // it has answered and can't be killed any more, or is dead
	case m.qemu && h.proc != nil:
		h.proc.die()
	default:
		h.powerOff()
	}
	before := w.lan.answers
	w.mu.Unlock()
	alive := r.until(20*time.Second, func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.lan.answers > before+3
	})
	if !alive && !off && !w.broke() {
		return true, fmt.Errorf("n%d said that the VM was protected, and it did not survive", m.ask+1)
	}
	return true, nil
}

// TestVerdictIsHonest asks a node at thousands of moments, most of them shortly after something has gone wrong, whether the VM is protected, and kills that node or its
// QEMU at that instant: if the answer was yes the VM must go on.
func TestVerdictIsHonest(t *testing.T) {
	oneThread(t)
	n := *moments
	if n == 0 {
		n = 3000
		if testing.Short() || raceDetector {
			n = 300
		}
	}
	greens, bad := 0, 0
	for seed := range uint64(n) {
		m := momentOf(seed + 1)
		green, _, err := m.play(t, false)
		if green {
			greens++
		}
		if err == nil {
			continue
		}
		if bad++; bad <= 5 {
			_, lines, again := m.play(t, true)
			t.Errorf("%v: %v (again: %v)", m, err, again)
			for _, l := range sorted(lines) {
				t.Log(l)
			}
		}
	}
	t.Logf("%d moments, %d answers of protected, %d of them wrong", n, greens, bad)
	if greens < n/5 {
		t.Errorf("only %d of %d answers were protected: that proves little", greens, n)
	}
	if bad > 0 {
		t.Errorf("%d wrong answers", bad)
	}
}
