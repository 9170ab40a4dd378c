package colo

import "time"

// beat ticks at whole periods after an origin. What a node does again and again has the same one, because a process at rest pays more for each time it wakes than
// for what it does then. C has to be followed by Next.
type beat struct {
	*time.Timer
	origin time.Time
	period time.Duration
}

func newBeat(origin time.Time, period time.Duration) *beat {
	b := &beat{origin: origin, period: period}
	b.Timer = time.NewTimer(b.left())
	return b
}

// Next begins to wait for the next tick. One that has gone by is left out.
func (b *beat) Next() { b.Reset(b.left()) }

func (b *beat) left() time.Duration {
	left := -time.Since(b.origin) % b.period
	if left <= 0 {
		left += b.period
	}
	return left
}
