package blockrepl

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"

	"github.com/coloctl/coloctl/qmp"
)

// OpenLocal opens the contents of a primary's own halves, also while COLO runs:
// nothing is written. Those that can only be read through QEMU it exports, read
// only, on the unix socket. Call close at the end, whatever has become of QEMU.
func OpenLocal(ctx context.Context, c *qmp.Client, disks []Disk, socket string) (contents map[string]*Content, closeAll func(context.Context) error, err error) {
	contents = map[string]*Content{}
	closeAll = func(ctx context.Context) error {
		for _, content := range contents {
			_ = content.Close()
		}
		return closeScan(ctx, c, disks)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, closeAll(context.WithoutCancel(ctx)))
		}
	}()
	served := false
	for _, d := range disks {
		if d.Format == Raw {
			if contents[d.Name], err = openFile(d); err != nil {
				delete(contents, d.Name)
				return nil, nil, err
			}
			continue
		}
		if !served {
			if err = serveUnix(ctx, c, disks, socket); err != nil {
				return nil, nil, err
			}
			served = true
		}
		if err = c.BlockExportAdd(ctx, qmp.BlockExport{Type: "nbd", ID: d.readExport(), NodeName: d.parent(), Name: d.parent()}); err != nil {
			return nil, nil, err
		}
		n, nerr := dialNBD(ctx, new(net.Dialer).DialContext, "unix", socket, d.parent())
		if nerr != nil {
			return nil, nil, nerr
		}
		content, nerr := newContent(d, n)
		if nerr != nil {
			return nil, nil, nerr
		}
		contents[d.Name] = content
	}
	return contents, closeAll, nil
}

// serveUnix starts this QEMU's NBD server on a unix socket. What a daemon that
// was killed has left is removed.
func serveUnix(ctx context.Context, c *qmp.Client, disks []Disk, socket string) error {
	if err := closeScan(ctx, c, disks); err != nil {
		return err
	}
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	addr := map[string]any{"type": "unix", "data": map[string]string{"path": socket}}
	start := func() error { return c.Execute(ctx, "nbd-server-start", map[string]any{"addr": addr}, nil) }
	err := start()
	if !refused(err) {
		return err
	}
	if serr := stopIdleServer(ctx, c); serr != nil { // one whose daemon was killed right after it had started it
		return errors.Join(err, serr)
	}
	return start()
}

// stopIdleServer stops this QEMU's NBD server if there is one that serves nothing.
func stopIdleServer(ctx context.Context, c *qmp.Client) error {
	exports, err := c.QueryBlockExports(ctx)
	if err != nil || len(exports) > 0 {
		return err
	}
	if err := c.NBDServerStop(ctx); !refused(err) {
		return err
	}
	return nil
}

// Range is a part of a disk, in bytes.
type Range struct{ Offset, Length int64 }

// MarkDirty puts ranges on a protected disk's record, as if the guest had
// written there, so that the next resync by bitmap copies them.
func MarkDirty(ctx context.Context, c *qmp.Client, d Disk, ranges []Range, socket string) (err error) {
	g, err := readGraph(ctx, c)
	if err != nil {
		return err
	}
	if g.withoutBitmap([]Disk{d}) != "" {
		return fmt.Errorf("%w: disk %s", ErrNoBitmap, d.Name)
	}
	disks := []Disk{d}
	if err := serveUnix(ctx, c, disks, socket); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeScan(context.WithoutCancel(ctx), c, disks)) }()
	if err := addScratch(ctx, c, d); err != nil {
		return err
	}
	n, err := dialNBD(ctx, new(net.Dialer).DialContext, "unix", socket, d.scratch())
	if err != nil {
		return err
	}
	defer n.Close()
	for _, r := range ranges {
		if err := n.zero(ctx, r.Offset, r.Length); err != nil {
			return err
		}
	}
	return transaction(ctx, c, disks, scratchActions)
}

// addScratch makes the scratch disk of a disk, with its bitmap and export.
func addScratch(ctx context.Context, c *qmp.Client, d Disk) error {
	node := map[string]any{"driver": "null-co", "node-name": d.scratch(), "size": d.Size, "read-zeroes": true}
	if err := c.BlockdevAdd(ctx, node); err != nil {
		return err
	}
	if err := c.BlockDirtyBitmapAdd(ctx, qmp.BlockDirtyBitmapAdd{Node: d.scratch(), Name: scratchBitmap, Granularity: granularity}); err != nil {
		return err
	}
	return c.BlockExportAdd(ctx, qmp.BlockExport{Type: "nbd", ID: d.scratchExport(), NodeName: d.scratch(), Name: d.scratch(), Writable: true})
}
