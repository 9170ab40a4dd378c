package colo

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/coloctl/coloctl/blockrepl"
	"github.com/coloctl/coloctl/netcompare"
	"github.com/coloctl/coloctl/qmp"
)

func (e Endpoint) inet(port int) qmp.InetAddr {
	return qmp.InetAddr{Host: e.Host, Port: port, MPTCP: e.MPTCP}
}

func (e Endpoint) disks() blockrepl.Address {
	return blockrepl.Address{Host: e.Host, Port: e.NBD, MPTCP: e.MPTCP, TLSCreds: e.creds()}
}

func (e Endpoint) net() netcompare.Endpoint {
	out := netcompare.Endpoint{Host: e.Host, Ports: map[string]netcompare.PortPair{}, MPTCP: e.MPTCP, TLSCreds: e.creds()}
	for nic, p := range e.NICs {
		out.Ports[nic] = netcompare.PortPair{Mirror: p.Mirror, Compare: p.Compare}
	}
	return out
}

func (c *qemuCopy) Listen(ctx context.Context, at Endpoint) error {
	c.useLinks(ctx, at, true)
	if err := c.credentials(ctx, at.Key, "server"); err != nil {
		return err
	}
	if err := netcompare.Listen(ctx, c.main, c.nics, at.net()); err != nil {
		return err
	}
	if err := qmp.SetColoCapabilities(ctx, c.main); err != nil {
		return err
	}
	if err := blockrepl.Export(ctx, c.main, c.disks, at.disks()); err != nil {
		return err
	}
	c.exported.Store(&at)
	if err := c.main.MigrateSetParameters(ctx, map[string]any{"tls-creds": at.creds()}); err != nil {
		return err
	}
	addr := at.inet(at.Migration)
	return c.main.MigrateIncoming(ctx, qmp.Channel{Inet: &addr})
}

// Sums opens the image for each call: a resync that ends leaves nothing behind, and a call takes long enough for that not to matter. What is exported with
// encryption is not read through the export: nothing writes to the image meanwhile, so that what its file holds counts.
func (c *qemuCopy) Sums(ctx context.Context, p blockrepl.Part) ([]byte, error) {
	at := c.exported.Load()
	i := slices.IndexFunc(c.disks, func(d blockrepl.Disk) bool { return d.Name == p.Disk })
	if i < 0 || at == nil {
		return nil, fmt.Errorf("no disk %q is exported here", p.Disk)
	}
	if at.Key != nil && c.disks[i].Format != blockrepl.Raw {
		return c.l.images.Sums(ctx, c.disks[i], p, c.dir)
	}
	content, err := blockrepl.OpenContent(ctx, c.disks[i], at.disks(), c.l.host.Dial)
	if err != nil {
		return nil, err
	}
	defer content.Close()
	return content.Sums(ctx, p)
}

// Promote ends COLO. Nothing in it waits for the peer: the streams to it are cut first.
func (c *qemuCopy) Promote(ctx context.Context) error {
	c.ending.Store(true)
	if err := c.yank(ctx); err != nil {
		c.log.Warn("yank", "err", err)
	} else if _, err := c.main.QueryStatus(ctx); err == nil { // what QEMU said before has been received now
		c.cp.seal(time.Now())
	}
	if err := blockrepl.Promote(ctx, c.main, c.disks); err != nil {
		return err
	}
	if err := c.leaveColo(ctx); err != nil {
		return err
	}
	if err := netcompare.Promote(ctx, c.main, c.nics); err != nil {
		return err
	}
	c.inColo.Store(false)
	c.second.Store(false)
	if err := c.endCredentials(ctx); err != nil {
		c.log.Warn("replication key", "err", err)
	}
	c.dropLinks(ctx)
	return c.ensureRunning(ctx)
}

func (c *qemuCopy) Announce(ctx context.Context) error {
	return netcompare.Announce(ctx, c.main, c.nics)
}

func (c *qemuCopy) Commit(ctx context.Context) error {
	if err := blockrepl.WaitCommitted(ctx, c.main, c.disks); err != nil {
		return err
	}
	return blockrepl.ReleaseOverlays(ctx, c.main, c.disks)
}
