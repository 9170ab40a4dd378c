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

// What the kernel is told about links belongs to the host, not to a VM: a quickack route to each of the peer's addresses, limits of MPTCP on both
// sides, and on the side that listens the addresses of the links that work. It is there as long as a copy uses it. Each such copy has a file in its
// folder, so that neither the end of another VM's replication nor a daemon that is started again takes anything away from those that run on.

const (
	linksFile   = "links.json" // in a VM's folder
	mptcpLimits = "mptcp.json" // in the run folder: the limits as they were
)

// linkUse is what a copy's replication needs of the links.
type linkUse struct {
	Peers   []netip.Addr `json:"peers"`             // addresses of the peer that it sends to
	MPTCP   bool         `json:"mptcp,omitempty"`   // its connections use all links at once
	Listens bool         `json:"listens,omitempty"` // it is the side that listens
}

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
	l.links.Lock()
	defer l.links.Unlock()
	l.up = up
	users, err := l.linkUsers()
	if err != nil {
		return err
	}
	var errs []error
	for _, u := range users { // the kernel has dropped the routes of an interface that went down
		if err := l.quickAck(ctx, u); !errors.Is(err, netcompare.ErrNoRoute) { // nor is there one to a link that is still down
			errs = append(errs, err)
		}
	}
	if slices.ContainsFunc(users, func(u linkUse) bool { return u.MPTCP }) {
		for _, link := range l.cfg.Links {
			if !slices.Contains(up, link.Address) {
				errs = append(errs, l.host.AbandonPaths(ctx, link.Address))
			}
		}
	}
	return errors.Join(append(errs, l.announce(ctx, users))...)
}

// useLinks notes what a copy uses, and sees that it is there. Without it everything works, only slower or over one link.
func (l *qemuLauncher) useLinks(ctx context.Context, vm string, u linkUse) error {
	l.links.Lock()
	defer l.links.Unlock()
	text, err := json.Marshal(u)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(l.dir(vm), linksFile), text, 0o600); err != nil {
		return err
	}
	users, err := l.linkUsers()
	if err != nil {
		return err
	}
	return errors.Join(l.quickAck(ctx, u), l.setMPTCP(ctx, users))
}

// dropLinks takes back what no other copy uses. It does nothing for a copy that uses none.
func (l *qemuLauncher) dropLinks(ctx context.Context, vm string) error {
	l.links.Lock()
	defer l.links.Unlock()
	file := filepath.Join(l.dir(vm), linksFile)
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	own, err := readLinkUse(file)
	if err := errors.Join(err, os.Remove(file)); err != nil {
		return err
	}
	users, err := l.linkUsers()
	if err != nil {
		return err
	}
	var errs []error
	for _, peer := range own.Peers {
		if !slices.ContainsFunc(users, func(u linkUse) bool { return slices.Contains(u.Peers, peer) }) {
			errs = append(errs, l.host.ClearQuickAck(ctx, peer))
		}
	}
	return errors.Join(append(errs, l.setMPTCP(ctx, users))...)
}

func (l *qemuLauncher) linkUsers() ([]linkUse, error) {
	files, err := filepath.Glob(filepath.Join(l.cfg.RunDir, "*", linksFile))
	if err != nil {
		return nil, err
	}
	users := make([]linkUse, len(files))
	for i, f := range files {
		if users[i], err = readLinkUse(f); err != nil {
			return nil, err
		}
	}
	return users, nil
}

func readLinkUse(file string) (u linkUse, err error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return u, err
	}
	if len(text) == 0 { // the daemon was killed while it wrote it, before it did anything else
		return u, nil
	}
	return u, json.Unmarshal(text, &u)
}

// quickAck keeps the checkpoint's small messages to the peer from waiting for delayed ACKs, which is 40 ms of each.
func (l *qemuLauncher) quickAck(ctx context.Context, u linkUse) error {
	var errs []error
	for _, peer := range u.Peers {
		errs = append(errs, l.host.QuickAck(ctx, peer))
	}
	return errors.Join(errs...)
}

func (l *qemuLauncher) setMPTCP(ctx context.Context, users []linkUse) error {
	if l.noMPTCP != nil {
		return nil
	}
	if err := l.setLimits(ctx, slices.ContainsFunc(users, func(u linkUse) bool { return u.MPTCP })); err != nil {
		return err
	}
	return l.announce(ctx, users)
}

// announce tells whoever connects to this host which links work.
func (l *qemuLauncher) announce(ctx context.Context, users []linkUse) error {
	if l.noMPTCP != nil {
		return nil
	}
	var up []netip.Addr
	if slices.ContainsFunc(users, func(u linkUse) bool { return u.MPTCP && u.Listens }) {
		if up = l.up; len(up) == 0 { // not known yet
			for _, link := range l.cfg.Links {
				up = append(up, link.Address)
			}
		}
	}
	return l.host.AnnounceAddrs(ctx, up, l.cfg.Ports.First, l.cfg.Ports.Last)
}

// setLimits raises the host's limits, and puts them back unless somebody else has changed them meanwhile.
func (l *qemuLauncher) setLimits(ctx context.Context, used bool) error {
	file := filepath.Join(l.cfg.RunDir, mptcpLimits)
	text, err := os.ReadFile(file)
	raised := err == nil
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if !raised && !used {
		return nil
	}
	now, err := l.host.Limits(ctx)
	if err != nil {
		return err
	}
	if used {
		if !raised {
			if text, err = json.Marshal(now); err != nil {
				return err
			}
			if err := os.WriteFile(file, text, 0o600); err != nil {
				return err
			}
		}
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

// replicates is what a copy can tell of its connections to the peer.
type replicates interface {
	Replication(ctx context.Context) (*Replication, error)
}

// replication is nil for a copy that has no replication or can't tell of it.
func (m *machine) replication(ctx context.Context, s State) *Replication {
	cur := m.current()
	c, ok := cur.(replicates)
	if !ok || s != Protected && s != Secondary {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, verdictTimeout)
	defer cancel()
	r, err := c.Replication(ctx)
	if err != nil {
		if m.isCopy(cur) && m.State() == s { // it has not just ended
			m.log.Warn("how the VM is replicated can't be told", "err", err)
		}
		return nil
	}
	if p := m.with(); p != nil { // a path on which nothing is to be sent doesn't notice that its link is lost
		down := p.beat.Status().Down()
		r.Links = slices.DeleteFunc(r.Links, func(l string) bool { return slices.Contains(down, l) })
	}
	return r
}

func (c *qemuCopy) Replication(ctx context.Context) (*Replication, error) {
	conns, err := c.l.host.Connections(ctx, c.proc.pid)
	if err != nil {
		return nil, err
	}
	crypt := c.encrypted.Load()
	if crypt == nil { // it does not change while COLO runs
		var params struct {
			Creds string `json:"tls-creds"`
		}
		if err := c.main.QueryMigrateParameters(ctx, &params); err != nil {
			return nil, err
		}
		crypt = new(params.Creds == credsID)
		c.encrypted.Store(crypt)
	}
	listens, err := c.l.host.Listeners(ctx, c.proc.pid)
	if err != nil {
		return nil, err
	}
	r := &Replication{Encrypted: *crypt, MPTCP: true, Links: []string{}, Listens: []string{}}
	for _, a := range listens {
		r.Listens = append(r.Listens, a.String())
	}
	carries := map[string]int{}
	for _, conn := range conns {
		var used []string
		for _, link := range c.l.cfg.Links {
			if slices.Contains(conn.Local, link.Address) {
				used = append(used, link.Name)
				carries[link.Name]++
			}
		}
		if len(used) > 0 { // the guest's user-mode network has others
			r.Connections++
			r.MPTCP = r.MPTCP && conn.MPTCP
		}
	}
	r.MPTCP = r.MPTCP && r.Connections > 0
	for _, link := range c.l.cfg.Links {
		if n := carries[link.Name]; n > 0 && n == r.Connections {
			r.Links = append(r.Links, link.Name)
		}
	}
	return r, nil
}

// useLinks makes what goes to the peer quick, and use all links when the standby says so.
func (c *qemuCopy) useLinks(ctx context.Context, e Endpoint, standby bool) {
	u := linkUse{MPTCP: e.MPTCP, Listens: standby}
	for _, p := range append([]Path{{e.Host, e.Primary}}, e.More...) {
		host := p.Host
		if standby {
			host = p.Primary
		}
		addr, err := netip.ParseAddr(host)
		if err != nil {
			c.log.Warn("a link's address", "err", err)
			continue
		}
		u.Peers = append(u.Peers, addr.Unmap())
	}
	if err := c.l.useLinks(ctx, c.spec.Name, u); err != nil {
		c.log.Warn("replication is slower than it could be, or uses one link only", "err", err)
	}
}

// dropLinks undoes useLinks.
func (c *qemuCopy) dropLinks(ctx context.Context) {
	if err := c.l.dropLinks(ctx, c.spec.Name); err != nil {
		c.log.Warn("what the links' replication needed was not removed", "err", err)
	}
}
