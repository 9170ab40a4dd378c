package lab

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/coloctl/coloctl/qmp"
)

// Faults of a node's half of a disk are put between the image's format and its file in the QEMU that runs, by its socket for people: neither
// the daemon nor the other half sees anything but what a bad disk would show. They end with that QEMU.

// qemu calls do with the QEMU that runs on the node.
func (n *Node) qemu(ctx context.Context, do func(c *qmp.Client) error) error {
	c, err := qmp.Dial(ctx, n.path("run", VM, "monitor"), nil)
	if err != nil {
		return fmt.Errorf("%s: %w", n.Name, err)
	}
	return errors.Join(do(c), c.Close())
}

// under puts a block node, made from options, under the image of a disk.
func under(ctx context.Context, c *qmp.Client, disk string, options map[string]any) error {
	nodes, err := c.QueryNamedBlockNodes(ctx)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(nodes, func(b qmp.BlockNode) bool { return b.NodeName == "parent-"+disk && b.Driver == "raw" }) {
		return fmt.Errorf("this QEMU has no raw image for disk %s", disk)
	}
	if err := c.BlockdevAdd(ctx, options); err != nil {
		return err
	}
	return c.Execute(ctx, "blockdev-reopen", map[string]any{"options": []any{map[string]any{
		"driver": "raw", "node-name": "parent-" + disk, "file": options["node-name"], "discard": "unmap",
	}}}, nil)
}

// FailDisk lets every write to the node's half of a disk fail, and every flush.
func (n *Node) FailDisk(ctx context.Context, disk string) error {
	return n.qemu(ctx, func(c *qmp.Client) error {
		fail := func(what string) map[string]any { return map[string]any{"event": "none", "iotype": what, "errno": 5} }
		return under(ctx, c, disk, map[string]any{
			"driver": "blkdebug", "node-name": "bad-" + disk, "image": "pfile-" + disk, "discard": "unmap",
			"inject-error": []any{fail("write"), fail("write-zeroes"), fail("flush")},
		})
	})
}

// SlowDisk lets the node's half of a disk do no more than so many requests a second; HastenDisk undoes it.
func (n *Node) SlowDisk(ctx context.Context, disk string, requests int) error {
	return n.qemu(ctx, func(c *qmp.Client) error {
		group := "slow-" + disk
		err := c.Execute(ctx, "object-add", map[string]any{"qom-type": "throttle-group", "id": group, "limits": map[string]any{"iops-total": requests}}, nil)
		if err == nil {
			err = under(ctx, c, disk, map[string]any{"driver": "throttle", "node-name": "throttled-" + disk, "throttle-group": group, "file": "pfile-" + disk, "discard": "unmap"})
		}
		if err != nil && strings.Contains(err.Error(), "duplicate") { // it was slow before
			err = c.Execute(ctx, "qom-set", map[string]any{"path": "/objects/" + group, "property": "limits", "value": map[string]any{"iops-total": requests}}, nil)
		}
		return err
	})
}

// HastenDisk lets a slow disk be as fast as it was.
func (n *Node) HastenDisk(ctx context.Context, disk string) error {
	return n.qemu(ctx, func(c *qmp.Client) error {
		return c.Execute(ctx, "qom-set", map[string]any{"path": "/objects/slow-" + disk, "property": "limits", "value": map[string]any{"iops-total": 0}}, nil)
	})
}
