package colo

import (
	"testing"
	"time"
)

// TestCheckpointsSealed: what stops and resumes the guest when COLO is left doesn't count as a checkpoint, nor does the end of one that the cut has interrupted:
// the primary was never told of it. One that had ended before the cut counts.
func TestCheckpointsSealed(t *testing.T) {
	at := func(s int) time.Time { return time.Unix(int64(s), 0) }
	var c checkpoints
	c.stopped(at(1), at(1))
	c.resumed(at(2))
	c.stopped(at(3), at(3))
	c.seal(at(4))
	if s := c.stats(); !s.Running.Equal(at(3)) {
		t.Errorf("one that is interrupted: %+v", s)
	}
	c.resumed(at(5))
	if s := c.stats(); s.Count != 1 || !s.Last.Equal(at(2)) || !s.Began.Equal(at(1)) || !s.Running.IsZero() {
		t.Errorf("one that was interrupted: %+v", s)
	}
	c.stopped(at(6), at(6))
	c.resumed(at(7))
	if s := c.stats(); s.Count != 1 || !s.Last.Equal(at(2)) || !s.Running.IsZero() {
		t.Errorf("the end of COLO: %+v", s)
	}
	c.reset()
	c.stopped(at(8), at(8))
	c.resumed(at(9))
	if s := c.stats(); s.Count != 1 || !s.Last.Equal(at(9)) {
		t.Errorf("the next time: %+v", s)
	}
}
