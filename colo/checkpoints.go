package colo

import (
	"slices"
	"sync"
	"time"
)

// CheckpointStats tells how the checkpoints of a copy went since COLO was started. Durations are how long the guest stood still.
type CheckpointStats struct {
	Count    uint64        `json:"count"`
	PauseP50 time.Duration `json:"pause_p50"` // of the last 1024; 0 when there was none
	PauseP99 time.Duration `json:"pause_p99"`
	Enter    time.Duration `json:"enter"`            // how long the guest stood still when COLO was started; 0 on a secondary
	Last     time.Time     `json:"last,omitzero"`    // end of the last one
	Delay    time.Duration `json:"delay"`            // longest time between two at present, where the controller has changed it; 0 is the spec's
	Patience int           `json:"patience"`         // by how much the controller has multiplied compare-timeout and the rest between asked checkpoints; 0 is not at all
	Running  time.Time     `json:"running,omitzero"` // start of the one that is going on; zero if none is
	Began    time.Time     `json:"-"`                // start of the last one that has ended, never later than it was; zero if that is not known
}

// checkpoints collects pauses. It is written by the one goroutine that reads QEMU's events and allocates nothing after its first use.
type checkpoints struct {
	mu     sync.Mutex
	count  uint64
	pauses [1024]time.Duration
	n      int // filled part of pauses
	begin  time.Time
	said   time.Time // when QEMU said so
	last   time.Time
	began  time.Time     // start of the last one that has ended
	halted time.Time     // when the guest was stopped before COLO
	enter  time.Duration // until it ran in it
	sum    time.Duration // of all pauses
	delay  time.Duration // that the controller has set
	factor int           // likewise
	sealed time.Time     // a stop after it is none of a checkpoint, and a resumption no end of one; zero: any is
}

// halt notes a stop outside of COLO: it may be the one for COLO's start.
func (c *checkpoints) halt(at time.Time) {
	c.mu.Lock()
	c.halted = at
	c.mu.Unlock()
}

// stopped is when it was read that the guest stands still, and when QEMU said so: a daemon that stood still itself reads it late.
func (c *checkpoints) stopped(at, said time.Time) {
	c.mu.Lock()
	if c.sealed.IsZero() || !at.After(c.sealed) {
		c.begin, c.said = at, said
	}
	c.mu.Unlock()
}

// seal says that no checkpoint of this secondary can begin or end after a moment, as the connections to the peer are cut: leaving COLO stops and resumes the
// guest too. One that goes on has not ended for the primary either: a secondary's QEMU resumes its guest before it tells the primary that it has loaded
// the state (migration/colo.c, colo_incoming_process_checkpoint), so one that was told has resumed, and said so, before the cut.
func (c *checkpoints) seal(at time.Time) {
	c.mu.Lock()
	c.sealed = at
	c.mu.Unlock()
}

func (c *checkpoints) resumed(at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.sealed.IsZero() && at.After(c.sealed) {
		c.begin = time.Time{}
		return
	}
	if !c.begin.IsZero() {
		c.pauses[c.count%uint64(len(c.pauses))] = at.Sub(c.begin)
		c.count++
		c.sum += at.Sub(c.begin)
		c.n = min(c.n+1, len(c.pauses))
		c.began, c.begin, c.last = c.said, time.Time{}, at
	} else if !c.halted.IsZero() {
		c.enter, c.halted = at.Sub(c.halted), time.Time{}
	}
}

func (c *checkpoints) reset() {
	c.mu.Lock()
	c.count, c.n, c.begin, c.began, c.last, c.enter = 0, 0, time.Time{}, time.Time{}, time.Time{}, 0
	c.sealed = time.Time{}
	c.sum, c.delay = 0, 0
	c.mu.Unlock()
}

// total is how long the guest has stood still in all checkpoints.
func (c *checkpoints) total() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sum
}

// adapted notes what the controller has set.
func (c *checkpoints) adapted(d time.Duration, patience int) {
	c.mu.Lock()
	c.delay, c.factor = d, patience
	c.mu.Unlock()
}

// running is when the checkpoint that goes on began; zero if none does.
func (c *checkpoints) running() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.begin
}

func (c *checkpoints) stats() CheckpointStats {
	c.mu.Lock()
	s := CheckpointStats{Count: c.count, Last: c.last, Running: c.begin, Delay: c.delay, Patience: c.factor, Began: c.began, Enter: c.enter}
	sorted := slices.Clone(c.pauses[:c.n])
	c.mu.Unlock()
	if len(sorted) > 0 {
		slices.Sort(sorted)
		s.PauseP50 = sorted[len(sorted)/2]
		s.PauseP99 = sorted[min(len(sorted)-1, len(sorted)*99/100)]
	}
	return s
}
