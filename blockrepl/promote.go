package blockrepl

import (
	"context"
	"fmt"
	"time"

	"github.com/coloctl/coloctl/qmp"
)

// Promote makes a promoted secondary's disks its own: nobody serves or writes
// them from outside any more. It comes before x-colo-lost-heartbeat, as in QEMU's
// own recipe: that ends the copying of what is overwritten, and what a dead primary
// has sent and QEMU hasn't read yet has to stay out of the image. It may be repeated.
//
// The guest runs on at once. Until Committed says true the overlays hold what
// the guest wrote, also what it flushed.
func Promote(ctx context.Context, c *qmp.Client, disks []Disk) error {
	return Unexport(ctx, c, disks)
}

// commitState is how far a disk's overlays are on their way into the image.
type commitState int

const (
	committed   commitState = iota // the image is the disk
	replicating                    // a standby, or a secondary in COLO
	committing
	commitFailed
)

// commitStateOf reads the shape of the graph, because the commit is an internal
// job that QEMU neither lists nor reports (seen on 11.1, block/replication.c):
//
//	standby       childs-D ─file→ active-D
//	in COLO       childs-D ─file→ active-D, ─"secondary disk"→ copy-before-write → parent-D
//	committing    childs-D ─file→ mirror_top → active-D, ─"secondary disk"→ parent-D
//	failed        childs-D ─file→ active-D, ─"secondary disk"→ parent-D
//	committed     childs-D ─file→ parent-D
func commitStateOf(g graph, d Disk) commitState {
	if !g.has(d.childs()) {
		return committed
	}
	switch g.child(d.childs(), "file") {
	case d.parent():
		return committed
	case d.active():
		if g.child(d.childs(), "secondary disk") == d.parent() {
			return commitFailed
		}
		return replicating
	default:
		return committing
	}
}

// Committed tells whether the images alone are the guest's disks: true on a QEMU
// that was started as a primary, false on a standby and a secondary, and on a
// promoted one true once QEMU has committed the overlays. ErrCommitFailed means
// that it gave up, for example because the image's file system is full.
func Committed(ctx context.Context, c *qmp.Client, disks []Disk) (bool, error) {
	g, err := readGraph(ctx, c)
	if err != nil {
		return false, err
	}
	all := true
	for _, d := range disks {
		switch commitStateOf(g, d) {
		case committed:
		case commitFailed:
			return false, fmt.Errorf("%w: disk %s: %s still needs its overlays", ErrCommitFailed, d.Name, d.Path)
		default:
			all = false
		}
	}
	return all, nil
}

// commitPoll is how often WaitCommitted looks. QEMU has no event for it.
const commitPoll = 100 * time.Millisecond

// WaitCommitted waits until Committed is true. It doesn't end by itself on a
// secondary that isn't promoted.
func WaitCommitted(ctx context.Context, c *qmp.Client, disks []Disk) error {
	tick := time.NewTicker(commitPoll)
	defer tick.Stop()
	for {
		done, err := Committed(ctx, c, disks)
		if done || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-c.Done():
			return c.Err()
		case <-ctx.Done():
			return fmt.Errorf("blockrepl: wait for the commit of the overlays: %w", context.Cause(ctx))
		}
	}
}

// ReleaseOverlays closes the overlays of a promoted secondary, so that their
// files can be removed. It does nothing for disks that aren't committed, and
// may be repeated.
func ReleaseOverlays(ctx context.Context, c *qmp.Client, disks []Disk) error {
	g, err := readGraph(ctx, c)
	if err != nil {
		return err
	}
	for _, d := range disks {
		if !g.has(d.childs()) || commitStateOf(g, d) != committed {
			continue
		}
		for _, node := range []string{d.active(), d.hidden()} {
			if !g.has(node) {
				continue
			}
			if err := c.BlockdevDel(ctx, node); err != nil {
				return err
			}
		}
	}
	return nil
}
