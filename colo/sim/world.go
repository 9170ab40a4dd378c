package sim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

// World is everything outside of the engine: time's queue of events, both hosts, the networks between them and the clients. Its goroutine
// carries out the events, each at an instant of its own; mu guards all state. Nothing may sleep while it is held, nor while a lock of the
// engine is: virtual time stands still then.
type World struct {
	mu      sync.Mutex
	seed    uint64
	start   time.Time
	queue   queue
	seq     uint64
	inLoop  bool
	kick    chan struct{}
	quit    chan struct{}
	wg      sync.WaitGroup // goroutines of the world
	changed chan struct{}  // closed and replaced when something that others wait for has changed
	counts  [256]uint64    // draws made, by actor

	hosts     [2]*Host
	links     []link
	witness   witness
	lan       lan
	sessions  []*session // whose ends have not both noticed their end
	parked    []*parcel
	mends     []*mend
	serving   sync.WaitGroup
	noGate    bool           // as in the schedule
	noArbiter bool           // as in the schedule
	deaf      int            // faults that lose a Confirm or its answer
	slow      time.Duration  // factor of all latencies; 1 is normal
	dup       int            // percent of peer calls that are carried out twice
	endsOff   bool           // a QEMU ends as soon as its guest has switched itself off
	fails     map[opKind]int // operations that are to fail, how many times

	recovery    bool  // the nodes act by themselves
	deleted     bool  // an operator has asked for it: nobody need run the VM any more
	forced      *Host // an operator has powered the other host off, and vouched for that here
	storeFailed bool  // a write was made to fail: those that build on it fail too
	over        bool  // nothing that happens now counts
	story       bool
	lines       []Line
	violation   *Violation
	tally       Tally
	procs       int
	boots       int
}

// Line is one thing that happened.
type Line struct {
	At   time.Duration
	Who  string
	Text string
}

// Tally counts what is worth knowing over many schedules.
type Tally struct {
	Failovers, Refused, Failed, Unattended, Restarts int
	Notes                                            map[string]int `json:",omitempty"`
}

// Add adds what was counted elsewhere.
func (t *Tally) Add(o Tally) {
	t.Failovers += o.Failovers
	t.Refused += o.Refused
	t.Failed += o.Failed
	t.Unattended += o.Unattended
	t.Restarts += o.Restarts
	for text, n := range o.Notes {
		t.note(text, n)
	}
}

func (t *Tally) note(text string, n int) {
	if t.Notes == nil {
		t.Notes = map[string]int{}
	}
	t.Notes[text] += n
}

func (w *World) note(text string) {
	if noting {
		w.tally.note(text, 1)
	}
}

var noting = os.Getenv("COLOCTL_SIM_NOTES") != ""

// Violation is a broken promise.
type Violation struct {
	Rule string // one of the rules of the package comment
	Text string
	At   time.Duration
}

func (v *Violation) Error() string { return fmt.Sprintf("%s: %s", v.Rule, v.Text) }

type event struct {
	at  time.Duration // since the start
	seq uint64
	do  func()
}

func (e *event) before(o *event) bool { return e.at < o.at || e.at == o.at && e.seq < o.seq }

// queue is a heap: container/heap would allocate for every event.
type queue []event

func (q *queue) push(e event) {
	*q = append(*q, e)
	h := *q
	for i := len(h) - 1; i > 0; {
		up := (i - 1) / 2
		if !h[i].before(&h[up]) {
			return
		}
		h[i], h[up] = h[up], h[i]
		i = up
	}
}

func (q *queue) pop() event {
	h := *q
	first, n := h[0], len(h)-1
	h[0], h[n] = h[n], event{}
	h = h[:n]
	*q = h
	for i := 0; ; {
		c := 2*i + 1
		if c >= n {
			return first
		}
		if c+1 < n && h[c+1].before(&h[c]) {
			c++
		}
		if !h[c].before(&h[i]) {
			return first
		}
		h[i], h[c] = h[c], h[i]
		i = c
	}
}

func newWorld(seed uint64, links int, story bool) *World {
	w := &World{
		seed: seed, start: time.Now(), kick: make(chan struct{}, 1), quit: make(chan struct{}), changed: make(chan struct{}),
		links: make([]link, links), slow: 1, story: story, fails: map[opKind]int{},
	}
	for i := range w.hosts {
		w.hosts[i] = newHost(w, i)
	}
	w.lan.w = w
	w.wg.Go(w.run)
	return w
}

func (w *World) run() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		w.mu.Lock()
		w.inLoop = true
		now := w.now()
		for len(w.queue) > 0 && w.queue[0].at <= now {
			w.queue.pop().do()
		}
		w.inLoop = false
		next := time.Hour
		if len(w.queue) > 0 {
			next = w.queue[0].at - now
		}
		w.mu.Unlock()
		timer.Reset(next)
		select {
		case <-timer.C:
		case <-w.kick:
		case <-w.quit:
			return
		}
	}
}

// in does something after d. The caller holds mu, and so will do.
func (w *World) in(d time.Duration, do func()) {
	w.seq++
	w.queue.push(event{w.now() + d, w.seq, do})
	if !w.inLoop && w.queue[0].seq == w.seq {
		select {
		case w.kick <- struct{}{}:
		default:
		}
	}
}

// draw returns a random number that depends on the seed, on who asks and on how many times it has asked, but not on what others do.
func (w *World) draw(actor int) uint64 {
	w.counts[actor]++
	x := w.seed + uint64(actor)*0x9e3779b97f4a7c15 + w.counts[actor]*0xd1342543de82ef95
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}

// chance is true in so many of a hundred cases.
func (w *World) chance(actor, percent int) bool { return int(w.draw(actor)%100) < percent }

// between draws a time. Nanoseconds make it an instant of its own.
func (w *World) between(actor int, lo, hi time.Duration) time.Duration {
	return (lo + time.Duration(w.draw(actor)%uint64(hi-lo))) * w.slow
}

// poke wakes all who wait for a change. The caller holds mu.
func (w *World) poke() {
	close(w.changed)
	w.changed = make(chan struct{})
	for _, s := range w.sessions {
		s.poke()
	}
	w.lan.look()
}

// await waits until ok is true or returns an error.
func (w *World) await(ctx context.Context, e *env, ok func() (bool, error)) error {
	for {
		w.mu.Lock()
		done, err := ok()
		changed := w.changed
		w.mu.Unlock()
		if done || err != nil {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-e.dead:
			return errGone
		}
	}
}

func (w *World) now() time.Duration { return time.Since(w.start) }

// say adds a line to the story.
func (w *World) say(who, format string, args ...any) {
	if w.story && !w.over {
		w.lines = append(w.lines, Line{w.now(), who, fmt.Sprintf(format, args...)})
	}
}

// tell is say for those who don't hold mu.
func (w *World) tell(who, format string, args ...any) {
	if w.story {
		w.mu.Lock()
		w.say(who, format, args...)
		w.mu.Unlock()
	}
}

// broken notes the first broken promise.
func (w *World) broken(rule, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	w.say("!", "%s: %s", rule, text)
	if w.violation == nil && !w.over {
		w.violation = &Violation{rule, text, w.now()}
	}
}

// errGone is what a daemon that was killed gets from everything.
var errGone = errors.New("the daemon was killed")

// mend takes back a fault.
type mend struct {
	do   func()
	done bool
}

// mendIn takes a fault back after d, or when all faults are mended. The caller holds mu.
func (w *World) mendIn(d time.Duration, do func()) {
	m := &mend{do: do}
	w.mends = append(w.mends, m)
	w.in(d, m.now)
}

func (m *mend) now() {
	if !m.done {
		m.done = true
		m.do()
	}
}

// mendAll takes back every fault that still lasts.
func (w *World) mendAll() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, m := range w.mends {
		m.now()
	}
	w.slow, w.dup = 1, 0
	clear(w.fails)
	w.poke()
}
