package colo

import (
	"context"
	"errors"
	"time"

	"github.com/coloctl/coloctl/blockrepl"
	"github.com/coloctl/coloctl/qmp"
)

// defaultBitmapRotation is how often the record of writes is shortened. It costs two commands that touch no disk, and a resync after a loss
// copies what was written since the last time but one.
const defaultBitmapRotation = 30 * time.Second

// keepBitmapsShort takes off the record, now and then while COLO runs, what both sides have flushed. It counts only for a COLO that this daemon
// has proven: one that finds a copy in COLO does not know which writes to the peer's disk failed while nobody listened, so it lets the record
// grow. It ends with the connection to QEMU.
func (c *qemuCopy) keepBitmapsShort() {
	every := c.l.cfg.BitmapRotation
	if every < 0 {
		return
	}
	tick := newBeat(c.l.cfg.Beat, every)
	defer tick.Stop()
	for c.ticks(tick) {
		if !c.proven.Load() {
			continue
		}
		if err := c.rotateBitmaps(context.Background()); err != nil {
			c.proven.Store(false)
			select {
			case <-c.main.Done():
				return
			default:
			}
			if !errors.Is(err, errRotationOver) && c.inColo.Load() && !c.ending.Load() {
				c.log.Warn("the record of writes is not shortened any more", "err", err)
			}
		}
	}
}

var errRotationOver = errors.New("COLO has ended, or a write to the peer's disk failed")

// rotateBitmaps puts aside what is on record, waits for a whole checkpoint, which flushes the disks of both sides, and forgets it then.
func (c *qemuCopy) rotateBitmaps(ctx context.Context) error {
	sub := c.main.Subscribe(qmp.SubscribeOptions{Match: qmp.Named("STOP", "RESUME", "COLO_EXIT", "QUORUM_REPORT_BAD")})
	defer sub.Close()
	if err := c.withBitmaps(func() error { return blockrepl.Rotate(ctx, c.main, c.disks) }); err != nil {
		return err
	}
	for { // a STOP from before the rotation can be of a checkpoint that had flushed already
		select {
		case ev, ok := <-sub.C():
			if !ok || c.endsRotation(ev) {
				return errRotationOver
			}
			continue
		default:
		}
		break
	}
	for stopped := false; ; {
		ev, err := sub.Next(ctx)
		switch {
		case err != nil:
			return err
		case c.endsRotation(ev):
			return errRotationOver
		case ev.Name == "STOP":
			stopped = true
		case ev.Name == "RESUME" && stopped:
			return c.withBitmaps(func() error { return blockrepl.Confirm(ctx, c.main, c.disks) })
		}
	}
}

// endsRotation says whether what was sent may be missing on the peer's side. QEMU tells of the first write that failed at once.
func (c *qemuCopy) endsRotation(ev qmp.Event) bool {
	if ev.Name != "QUORUM_REPORT_BAD" {
		return ev.Name == "COLO_EXIT"
	}
	var d struct{ Type string }
	return ev.Decode(&d) != nil || d.Type != "read"
}

// withBitmaps keeps rotations and the end of replication apart, which brings back what was put aside.
func (c *qemuCopy) withBitmaps(do func() error) error {
	c.bitmaps.Lock()
	defer c.bitmaps.Unlock()
	if c.ending.Load() || !c.inColo.Load() || !c.proven.Load() {
		return errRotationOver
	}
	return do()
}
