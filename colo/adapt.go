package colo

import (
	"context"
	"time"
)

// The controller of the time between checkpoints. A shorter one makes each checkpoint shorter, because less memory was
// written, and less is lost of what waits for one; but each costs something of its own. So while the guest stands still
// for little of its time the delay is shortened, and while it does for much it is lengthened, up to what the spec says:
// the detection of losses relies on that.
const (
	adaptEvery    = 2 * time.Second
	adaptLow      = 0.02 // share of time that the guest stands still: below it the delay is shortened
	adaptHigh     = 0.08 // above it the delay is lengthened; the gap between the two keeps it from going to and fro
	adaptShortest = 50 * time.Millisecond
)

// adapt says what the delay should be after a time in which the guest stood still for such a share.
func adapt(delay, longest time.Duration, share float64) time.Duration {
	switch {
	case share < adaptLow:
		delay = delay * 3 / 4
	case share > adaptHigh:
		delay = delay * 3 / 2
	}
	return min(longest, max(delay, min(adaptShortest, longest)))
}

// adaptDelay follows the checkpoints of a primary and sets their delay. It ends with the connection to QEMU.
func (c *qemuCopy) adaptDelay() {
	tick := time.NewTicker(adaptEvery)
	defer tick.Stop()
	var paused time.Duration // in all, at the last look
	for {
		select {
		case <-c.proc.done:
			return
		case <-c.quit:
			return
		case <-tick.C:
		}
		p := c.protection.Load()
		total := c.cp.total()
		share := float64(total-paused) / float64(adaptEvery)
		began := total < paused
		paused = total
		if !p.Adaptive || !c.proven.Load() || !c.inColo.Load() || began {
			continue
		}
		now := c.delay()
		next := adapt(now, time.Duration(p.CheckpointDelay), share)
		if next == now {
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), adaptEvery)
		c.cp.delayed(next)
		if err := c.setDelay(ctx, next); err != nil && c.inColo.Load() {
			c.log.Warn("time between checkpoints", "err", err)
		}
		cancel()
	}
}

// delay is the longest time between two checkpoints at present.
func (c *qemuCopy) delay() time.Duration {
	if d := c.cp.stats().Delay; d > 0 {
		return d
	}
	return time.Duration(c.protection.Load().CheckpointDelay)
}

// setDelay changes it, which makes QEMU begin a checkpoint. The comparer of streams repeats it to ask for one.
func (c *qemuCopy) setDelay(ctx context.Context, d time.Duration) error {
	if k := c.keeper.Load(); k != nil {
		client := k.Client()
		defer client.Close()
		if st, err := client.Status(ctx); err == nil {
			st.Settings.Delay = d
			if _, err := client.Set(ctx, st.Settings); err != nil {
				return err
			}
		}
	}
	return c.main.MigrateSetParameters(ctx, map[string]any{"x-checkpoint-delay": d.Milliseconds()})
}
