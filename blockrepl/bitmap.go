package blockrepl

import (
	"context"
	"errors"
	"fmt"

	"github.com/coloctl/coloctl/qmp"
)

// Bitmaps on parent-D. They live in QEMU's memory and end with it.
const (
	// syncBitmap records what the guest writes. It exists from the first
	// attach on.
	syncBitmap = "colo-sync"

	// heldBitmap keeps what was sent to the peer and may not be durable there.
	heldBitmap = "colo-held"

	// passBitmap is what one pass of a resync copies.
	passBitmap = "colo-pass"

	// granularity in bytes: a bit of 64 KiB costs 2 MiB of memory a TiB.
	// All three have the same, so that merging adds nothing.
	granularity = 64 << 10
)

// action is an element of QEMU's transaction: all or none, and no write of the
// guest in between.
type action struct {
	Type string `json:"type"`
	Data any    `json:"data"`
}

func clearAction(d Disk, bitmap string) action {
	return action{"block-dirty-bitmap-clear", struct {
		Node string `json:"node"`
		Name string `json:"name"`
	}{d.parent(), bitmap}}
}

func mergeAction(d Disk, from, into string) action {
	return action{"block-dirty-bitmap-merge", struct {
		Node    string   `json:"node"`
		Target  string   `json:"target"`
		Bitmaps []string `json:"bitmaps"`
	}{d.parent(), into, []string{from}}}
}

// rotateActions move what was recorded to Held.
func rotateActions(d Disk) []action {
	return []action{mergeAction(d, syncBitmap, heldBitmap), clearAction(d, syncBitmap)}
}

// passActions move what was recorded to Held and make it the next pass.
func passActions(d Disk) []action {
	return append([]action{clearAction(d, passBitmap), mergeAction(d, syncBitmap, passBitmap)}, rotateActions(d)...)
}

// recoverActions forget that anything was sent.
func recoverActions(d Disk) []action {
	return []action{mergeAction(d, heldBitmap, syncBitmap), clearAction(d, heldBitmap)}
}

func transaction(ctx context.Context, c *qmp.Client, disks []Disk, of func(Disk) []action) error {
	var l []action
	for _, d := range disks {
		l = append(l, of(d)...)
	}
	if len(l) == 0 {
		return nil
	}
	return c.Execute(ctx, "transaction", map[string]any{"actions": l}, nil)
}

// HasBitmap tells whether every disk has a bitmap, so that it can be resynced
// to the copy that it was replicated to before, and how many bytes that would
// copy at most. It can't tell which copy that was: that is the caller's
// knowledge.
func HasBitmap(ctx context.Context, c *qmp.Client, disks []Disk) (dirty int64, ok bool, err error) {
	g, err := readGraph(ctx, c)
	if err != nil {
		return 0, false, err
	}
	if g.withoutBitmap(disks) != "" {
		return 0, false, nil
	}
	return g.dirty(disks, syncBitmap, heldBitmap), true, nil
}

func (g graph) withoutBitmap(disks []Disk) string {
	for _, d := range disks {
		if b, ok := g.bitmap(d.parent(), syncBitmap); !ok || !b.Recording || b.Inconsistent {
			return d.Name
		}
	}
	return ""
}

func (g graph) dirty(disks []Disk, bitmaps ...string) int64 {
	var n int64
	for _, d := range disks {
		for _, name := range bitmaps {
			b, _ := g.bitmap(d.parent(), name)
			n += b.Count
		}
	}
	return n
}

// Rotate begins to forget what the guest wrote so far. It is for a VM under
// COLO, now and then, so that a resync after a long time copies only what was
// written lately. Call Confirm after the next whole checkpoint, one whose STOP
// came after Rotate had returned and whose RESUME has come: a checkpoint drains
// and flushes all disks, the peer's included. If the peer is lost before that,
// Detach brings the bits back.
func Rotate(ctx context.Context, c *qmp.Client, disks []Disk) error {
	g, err := readGraph(ctx, c)
	if err != nil {
		return err
	}
	if name := g.withoutBitmap(disks); name != "" {
		return fmt.Errorf("%w: disk %s", ErrNoBitmap, name)
	}
	if err := addDisabled(ctx, c, g, disks, heldBitmap); err != nil {
		return err
	}
	return transaction(ctx, c, disks, rotateActions)
}

// Confirm forgets what Rotate, or the sync before, has put aside. If there was
// a QUORUM_REPORT_BAD for a peer's disk since, it must not be called.
func Confirm(ctx context.Context, c *qmp.Client, disks []Disk) error {
	g, err := readGraph(ctx, c)
	if err != nil {
		return err
	}
	return transaction(ctx, c, withBitmap(g, disks, heldBitmap), func(d Disk) []action {
		return []action{clearAction(d, heldBitmap)}
	})
}

func withBitmap(g graph, disks []Disk, bitmap string) []Disk {
	var l []Disk
	for _, d := range disks {
		if _, ok := g.bitmap(d.parent(), bitmap); ok {
			l = append(l, d)
		}
	}
	return l
}

func addDisabled(ctx context.Context, c *qmp.Client, g graph, disks []Disk, bitmap string) error {
	for _, d := range disks {
		if _, ok := g.bitmap(d.parent(), bitmap); ok {
			continue
		}
		err := c.BlockDirtyBitmapAdd(ctx, qmp.BlockDirtyBitmapAdd{
			Node: d.parent(), Name: bitmap, Granularity: granularity, Disabled: true,
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// recoverHeld brings the bits of Held back. It may be repeated: bits that are
// set too much only cost time.
func recoverHeld(ctx context.Context, c *qmp.Client, disks []Disk) error {
	g, err := readGraph(ctx, c)
	if err != nil {
		return err
	}
	both := withBitmap(g, withBitmap(g, disks, heldBitmap), syncBitmap)
	if err := transaction(ctx, c, both, recoverActions); err != nil {
		return err
	}
	return removeBitmaps(ctx, c, g, disks, heldBitmap, passBitmap)
}

func removeBitmaps(ctx context.Context, c *qmp.Client, g graph, disks []Disk, bitmaps ...string) error {
	var errs []error
	for _, name := range bitmaps {
		for _, d := range withBitmap(g, disks, name) {
			errs = append(errs, c.BlockDirtyBitmapRemove(ctx, d.parent(), name))
		}
	}
	return errors.Join(errs...)
}

// forgetBitmaps removes all. A full sync begins with zeroing the peer's disk,
// so from then on no bitmap describes what the peer lacks.
func forgetBitmaps(ctx context.Context, c *qmp.Client, disks []Disk) error {
	g, err := readGraph(ctx, c)
	if err != nil {
		return err
	}
	return removeBitmaps(ctx, c, g, disks, syncBitmap, heldBitmap, passBitmap)
}

// startBitmaps begins to record. The guest must be stopped and the disks equal.
func startBitmaps(ctx context.Context, c *qmp.Client, disks []Disk) error {
	for _, d := range disks {
		err := c.BlockDirtyBitmapAdd(ctx, qmp.BlockDirtyBitmapAdd{Node: d.parent(), Name: syncBitmap, Granularity: granularity})
		if err != nil {
			return err
		}
	}
	return nil
}
