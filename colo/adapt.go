package colo

import (
	"context"
	"time"
)

// The controller of the time between checkpoints. A shorter one makes each checkpoint shorter, because less memory was
// written, and less is lost of what waits for one; but each costs something of its own. So while the guest stands still
// for little of its time the delay is shortened, and while it does for much it is lengthened, up to what the spec says:
// the detection of losses relies on that.
//
// What the delay can't help is a secondary that is always late, because its host is busy: then the comparer of streams asks
// for one checkpoint after the other, and the guest stands still for most of its time. Patience lets it wait for longer
// before it asks, and lets the guest run for longer in between.
const (
	adaptEvery    = 2 * time.Second
	adaptLow      = 0.02 // share of time that the guest stands still: below it the delay is shortened
	adaptHigh     = 0.08 // above it the delay is lengthened; the gap between the two keeps it from going to and fro
	adaptShortest = 50 * time.Millisecond

	patientFrom  = 0.4  // above it the comparer becomes more patient
	patientUntil = 0.15 // below it less. Twice the patience costs at most half of the share, so it doesn't go to and fro
	mostPatient  = 8
)

// morePatient says by how much the spec's times are to be multiplied after a time in which the guest stood still for such a share.
func morePatient(now int, share float64) int {
	switch {
	case share > patientFrom:
		now *= 2
	case share < patientUntil:
		now /= 2
	}
	return min(mostPatient, max(1, now))
}

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
	tick := newBeat(c.l.cfg.Beat, adaptEvery)
	defer tick.Stop()
	var paused time.Duration // in all, at the last look
	patient := 1
	for c.ticks(tick) {
		p := c.protection.Load()
		total := c.cp.total()
		share := float64(total-paused) / float64(adaptEvery)
		began := total < paused
		paused = total
		if began {
			patient = 1 // a new comparer begins with the spec's times
		}
		if !p.Adaptive || !c.proven.Load() || !c.inColo.Load() || began {
			continue
		}
		now := c.delay()
		next, factor := adapt(now, time.Duration(p.CheckpointDelay), share), morePatient(patient, share)
		if next == now && factor == patient {
			continue
		}
		patient = factor
		ctx, cancel := context.WithTimeout(context.Background(), adaptEvery)
		c.cp.adapted(next, factor)
		if err := c.setPace(ctx, next, factor); err != nil && c.inColo.Load() {
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

// setPace changes it, which makes QEMU begin a checkpoint. The comparer of streams repeats it to ask for one.
func (c *qemuCopy) setPace(ctx context.Context, d time.Duration, patience int) error {
	if k := c.keeper.Load(); k != nil {
		client := k.Client()
		defer client.Close()
		if st, err := client.Status(ctx); err == nil {
			spec := c.protection.Load().settings()
			st.Settings.Delay, st.Settings.Timeout, st.Settings.Rest = d, spec.Timeout*time.Duration(patience), spec.Rest*float64(patience)
			if _, err := client.Set(ctx, st.Settings); err != nil {
				return err
			}
		}
	}
	return c.main.MigrateSetParameters(ctx, map[string]any{"x-checkpoint-delay": d.Milliseconds()})
}
