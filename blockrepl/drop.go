package blockrepl

import (
	"context"
	"errors"
	"fmt"

	"github.com/coloctl/coloctl/qmp"
)

// ErrOnlyHalf is returned by DropLocal if the guest has no other half of the
// disk to go on with.
var ErrOnlyHalf = errors.New("blockrepl: the peer's half of the disk is not there")

// DropLocal takes this side's half of a disk out of service while COLO runs: the
// guest goes on through the peer's. It is for a half whose writes fail: reads ask
// it first, so one that fails only sometimes would answer them with old data. A
// half that was dropped can't come back to this QEMU. A second call does nothing.
func DropLocal(ctx context.Context, c *qmp.Client, d Disk) error {
	g, err := readGraph(ctx, c)
	if err != nil {
		return err
	}
	if g.edge(d.colo(), d.nbd()) == "" {
		return fmt.Errorf("%w: disk %s", ErrOnlyHalf, d.Name)
	}
	for _, node := range LocalNodes(d) {
		if child := g.edge(d.colo(), node); child != "" {
			return c.BlockdevChange(ctx, d.colo(), child, "")
		}
	}
	return nil
}

// LocalGone names the disks whose half on this side was dropped. A job that copies the half has a filter above it, which doesn't count.
func LocalGone(ctx context.Context, c *qmp.Client, disks []Disk) ([]string, error) {
	g, err := readGraph(ctx, c)
	if err != nil {
		return nil, err
	}
	var gone []string
	for _, d := range disks {
		here := false
		for _, node := range LocalNodes(d) {
			here = here || g.reaches(d.colo(), node)
		}
		if g.has(d.colo()) && !here {
			gone = append(gone, d.Name)
		}
	}
	return gone, nil
}

// LocalNodes names the nodes that QUORUM_REPORT_BAD blames when this side's half
// of a disk fails: one on a former secondary, the other on any other primary.
func LocalNodes(d Disk) []string { return []string{d.parent(), d.childs()} }
