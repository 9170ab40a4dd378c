package colo

import (
	"context"
	"errors"
	"time"
)

// A QEMU that the node has started itself stays when its guest switches itself off (-no-shutdown), and the engine ends it in its own order: the peer's copy
// is counted out, the overlays are committed, and only then is it killed. A Starter may not leave it that time: libvirt ends a domain as soon as its guest
// is off. QEMU closes its disks properly then, so nothing is lost, but the engine would take the end for a crash and let the other copy go on.
//
// So such a copy goes on without a process, off: it is as well as one that stands in "shutdown", answers what such a one would, and tells its
// end only to who kills it. A secondary that is off can't be promoted.

// errOff is what a copy answers whose guest has switched itself off, and whose QEMU has been ended since, when it is asked for more than to be taken down.
var errOff = errors.New("the guest has switched itself off, and its QEMU was ended")

// offWait bounds the wait for what a QEMU that has ended has said last.
const offWait = time.Second

// drain lets all be read that an ended QEMU has said.
func (c *qemuCopy) drain() {
	t := time.NewTimer(offWait)
	defer t.Stop()
	select {
	case <-c.main.Done():
	case <-t.C:
	case <-c.quit:
	}
}

// goneOff says whether the process has ended because its guest had switched itself off.
func (c *qemuCopy) goneOff() bool {
	if !c.off.Load() {
		return false
	}
	select {
	case <-c.proc.done:
		return true
	default:
		return false
	}
}

// unlessOff turns an error that comes from a QEMU which is ending for its guest's sake into none. It waits for that end.
func (c *qemuCopy) unlessOff(ctx context.Context, err error) error {
	if err == nil || !c.l.endsWithGuest() {
		return err
	}
	t := time.NewTimer(offWait)
	defer t.Stop()
	select {
	case <-c.proc.done:
	case <-t.C:
	case <-ctx.Done():
	}
	c.drain()
	if c.goneOff() {
		return nil
	}
	return err
}

func (l *qemuLauncher) endsWithGuest() bool {
	return l.cfg.Starter != nil && l.cfg.Starter.EndsWithGuest()
}
