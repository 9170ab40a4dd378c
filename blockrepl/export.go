package blockrepl

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/coloctl/coloctl/qmp"
)

// ErrBadAddress is returned by Export for an address that isn't one of a link.
var ErrBadAddress = errors.New("blockrepl: not the address of a link")

// Export serves the standby's disks to the primary. What an earlier Export left
// is removed first, so a second call is safe, but it drops a primary that is
// connected. After an error nothing is served.
func Export(ctx context.Context, c *qmp.Client, disks []Disk, a Address) error {
	// Who reaches the port can write the disks: never listen everywhere.
	if ip, err := netip.ParseAddr(a.Host); err != nil || ip.IsUnspecified() || a.Port <= 0 {
		return fmt.Errorf("%w: %q port %d", ErrBadAddress, a.Host, a.Port)
	}
	if err := Unexport(ctx, c, disks); err != nil {
		return err
	}
	if err := c.NBDServerStart(ctx, qmp.NBDServer{Addr: a.inet(), TLSCreds: a.TLSCreds}); err != nil {
		return err
	}
	for _, d := range disks {
		if err := c.BlockExportAdd(ctx, exportOf(d)); err != nil {
			return errors.Join(err, Unexport(ctx, c, disks))
		}
	}
	return nil
}

func exportOf(d Disk) qmp.BlockExport {
	return qmp.BlockExport{Type: "nbd", ID: d.export(), NodeName: d.parent(), Name: d.Name, Writable: true}
}

// Unexport stops serving. It may be called at any time and repeatedly, and
// doesn't wait for a primary that is frozen.
func Unexport(ctx context.Context, c *qmp.Client, disks []Disk) error {
	mine := make(map[string]bool, len(disks))
	for _, d := range disks {
		mine[d.export()] = true
	}
	exports, err := c.QueryBlockExports(ctx)
	if err != nil {
		return err
	}
	for _, e := range exports {
		if !mine[e.ID] || e.ShuttingDown {
			continue
		}
		// A refusal means that it went by itself; the check below decides.
		if err := c.BlockExportDel(ctx, e.ID, "hard"); err != nil && !refused(err) {
			return err
		}
	}
	// The only refusal is that no server runs. Success comes when all exports
	// are gone, so there is no event to wait for.
	if err := c.NBDServerStop(ctx); err != nil && !refused(err) {
		return err
	}
	if exports, err = c.QueryBlockExports(ctx); err != nil {
		return err
	}
	for _, e := range exports {
		if mine[e.ID] {
			return fmt.Errorf("blockrepl: export %s could not be removed", e.ID)
		}
	}
	return nil
}

func refused(err error) bool {
	var e *qmp.Error
	return errors.As(err, &e)
}
