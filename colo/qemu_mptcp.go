package colo

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/coloctl/coloctl/netcompare"
)

// With MPTCP a replication's connections use all links at once. What the kernel needs for it belongs to the host: limits on both sides, and on
// the side that listens the addresses of the links that work. It is there as long as a copy uses it. Each such copy has a file in its folder,
// so that a daemon that is started again takes nothing away from those that run on.

const (
	mptcpFile    = "mptcp"      // in a VM's folder; holds mptcpListens or mptcpConnects
	mptcpLimits  = "mptcp.json" // in the run folder: the limits as they were
	mptcpListens = "listens\n"  // the standby
	mptcpDials   = "connects\n" // the primary
)

// multipath is what a launcher can do about links. One without it uses the first link that works.
type multipath interface {
	// Multipath says why this host can't use several links at once.
	Multipath() error
	// LinksUp tells which of the node's addresses lead to the peer now.
	LinksUp(ctx context.Context, up []netip.Addr) error
}

var errOneLink = errors.New("the node has one link")

// multipath says why connections to the peer can't use several links at once.
func (n *Node) multipath() error {
	if len(n.cfg.Links) < 2 {
		return errOneLink
	}
	if m, ok := n.launcher.(multipath); ok {
		return m.Multipath()
	}
	return errOneLink
}

func (l *qemuLauncher) Multipath() error { return l.noMPTCP }

func (l *qemuLauncher) LinksUp(ctx context.Context, up []netip.Addr) error {
	l.mptcp.Lock()
	defer l.mptcp.Unlock()
	l.up = up
	_, listens, err := l.mptcpUsers()
	if err != nil || !listens {
		return err
	}
	return l.host.AnnounceAddrs(ctx, up, l.cfg.Ports.First, l.cfg.Ports.Last)
}

// useMPTCP notes that a copy uses all links, and how.
func (l *qemuLauncher) useMPTCP(ctx context.Context, vm, how string) error {
	l.mptcp.Lock()
	defer l.mptcp.Unlock()
	if err := os.WriteFile(filepath.Join(l.dir(vm), mptcpFile), []byte(how), 0o600); err != nil {
		return err
	}
	return l.setMPTCP(ctx)
}

// dropMPTCP does nothing for a copy that doesn't use it.
func (l *qemuLauncher) dropMPTCP(ctx context.Context, vm string) error {
	l.mptcp.Lock()
	defer l.mptcp.Unlock()
	err := os.Remove(filepath.Join(l.dir(vm), mptcpFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return errors.Join(err, l.setMPTCP(ctx))
}

func (l *qemuLauncher) mptcpUsers() (used, listens bool, err error) {
	files, err := filepath.Glob(filepath.Join(l.cfg.RunDir, "*", mptcpFile))
	for _, f := range files {
		text, rerr := os.ReadFile(f)
		if rerr != nil {
			return false, false, rerr
		}
		listens = listens || string(text) == mptcpListens
	}
	return len(files) > 0, listens, err
}

func (l *qemuLauncher) setMPTCP(ctx context.Context) error {
	used, listens, err := l.mptcpUsers()
	if err != nil {
		return err
	}
	if err := l.setLimits(ctx, used); err != nil {
		return err
	}
	if !listens {
		return l.host.AnnounceAddrs(ctx, nil, l.cfg.Ports.First, l.cfg.Ports.Last)
	}
	up := l.up
	if len(up) == 0 { // not known yet
		for _, link := range l.cfg.Links {
			up = append(up, link.Address)
		}
	}
	return l.host.AnnounceAddrs(ctx, up, l.cfg.Ports.First, l.cfg.Ports.Last)
}

// setLimits raises the host's limits, and puts them back unless somebody else has changed them meanwhile.
func (l *qemuLauncher) setLimits(ctx context.Context, used bool) error {
	file := filepath.Join(l.cfg.RunDir, mptcpLimits)
	now, err := l.host.Limits(ctx)
	if err != nil {
		return err
	}
	text, err := os.ReadFile(file)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !used:
		return nil
	case errors.Is(err, fs.ErrNotExist):
		if text, err = json.Marshal(now); err != nil {
			return err
		}
		if err := os.WriteFile(file, text, 0o600); err != nil {
			return err
		}
		return l.host.SetLimits(ctx, netcompare.MaxMPTCPLimits)
	case err != nil:
		return err
	case used:
		return l.host.SetLimits(ctx, netcompare.MaxMPTCPLimits)
	}
	var before netcompare.MPTCPLimits
	if err := json.Unmarshal(text, &before); err == nil && now == netcompare.MaxMPTCPLimits { // a file that was half written is of a time before they were changed
		if err := l.host.SetLimits(ctx, before); err != nil {
			return err
		}
	}
	return os.Remove(file)
}

// paths makes what goes to the peer quick, and use all links when the standby says so.
func (c *qemuCopy) paths(ctx context.Context, e Endpoint, standby bool) {
	peers, how := []string{e.Host}, mptcpDials
	if standby {
		peers, how = []string{e.Primary}, mptcpListens
	}
	for _, p := range e.More {
		peers = append(peers, map[bool]string{true: p.Primary, false: p.Host}[standby])
	}
	c.acked = nil
	for _, p := range slices.Compact(peers) {
		c.quickAck(ctx, p)
	}
	if e.MPTCP {
		if err := c.l.useMPTCP(ctx, c.spec.Name, how); err != nil {
			c.log.Warn("replication uses one link only", "err", err)
		}
	}
}
