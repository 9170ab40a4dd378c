package netcompare

import (
	"context"
	"fmt"

	"github.com/coloctl/coloctl/qmp"
)

// Listen prepares a standby: for each NIC it listens for the primary's two streams and adds the redirectors and the
// rewriter. The standby's taps must not be joined. On an error nothing is left.
func Listen(ctx context.Context, c *qmp.Client, nics []NIC, ep Endpoint) error {
	if err := ep.check(nics); err != nil {
		return err
	}
	if err := build(ctx, c, standbyParts(nics, ep)); err != nil {
		return fmt.Errorf("listen for the primary's packets: %w", err)
	}
	return nil
}

func standbyParts(nics []NIC, ep Endpoint) []part {
	var parts []part
	for _, n := range nics {
		ports := ep.Ports[n.Name]
		parts = append(parts,
			ep.stream(n.mirrorStream(), ports.Mirror, true),
			ep.stream(n.compareStream(), ports.Compare, true),
			n.filter("filter-redirector", n.mirrorIn(), map[string]any{"queue": "tx", "indev": n.mirrorStream()}),
			n.filter("filter-redirector", n.compareTo(), map[string]any{"queue": "rx", "outdev": n.compareStream()}),
			n.filter("filter-rewriter", n.rewriter(), map[string]any{"queue": "all"}),
		)
	}
	return parts
}

// Promote makes a secondary whose primary is lost speak for itself: redirectors and streams go, the rewriters stay.
// To be called after x-colo-lost-heartbeat; the caller joins the taps. It is idempotent and goes on past errors.
func Promote(ctx context.Context, c *qmp.Client, nics []NIC) error {
	var parts []part
	for _, p := range standbyParts(nics, Endpoint{}) {
		if p.kind != "filter-rewriter" {
			parts = append(parts, p)
		}
	}
	if err := remove(ctx, c, parts); err != nil {
		return fmt.Errorf("promote the network: %w", err)
	}
	return nil
}

// Announce makes QEMU tell the switches, by a few RARP packets over two seconds, that the guest's addresses are here now.
// It returns when the first was sent. Not for a primary whose filters are on: these packets have no virtio-net header, and
// the filters of a virtio NIC would take their beginning for one.
func Announce(ctx context.Context, c *qmp.Client, nics []NIC) error {
	if len(nics) == 0 {
		return nil
	}
	a := qmp.AnnounceSelf{Initial: 50, Max: 550, Rounds: 5, Step: 100}
	for _, n := range nics {
		a.Interfaces = append(a.Interfaces, n.Name)
	}
	return c.AnnounceSelf(ctx, a)
}
