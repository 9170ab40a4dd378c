package colo

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/coloctl/coloctl/internal/netns"
	"github.com/coloctl/coloctl/netcompare"
)

// TestLinksAreShared: what the kernel is told for one VM stays as long as another needs it, also when the daemon is started again between.
func TestLinksAreShared(t *testing.T) {
	ns, err := netns.Create()
	if os.IsPermission(err) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(netns.Do(ns.Path(), func() error {
		link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "link0"}, PeerName: "far0"}
		if err := netlink.LinkAdd(link); err != nil {
			return err
		}
		addr, err := netlink.ParseAddr("10.9.0.1/24")
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return err
		}
		return netlink.LinkSetUp(link)
	}))
	own, peer, third := netip.MustParseAddr("10.9.0.1"), netip.MustParseAddr("10.9.0.2"), netip.MustParseAddr("10.9.0.3")
	dir, ctx := t.TempDir(), t.Context()
	launcher := func() *qemuLauncher {
		l := &qemuLauncher{cfg: NodeConfig{RunDir: dir, Links: []Link{{"link0", own}}, Ports: PortRange{9000, 9099}}, host: netcompare.Host{Netns: ns.Path()}}
		l.noMPTCP = l.host.CheckMPTCP(ctx)
		return l
	}
	l := launcher()
	var before netcompare.MPTCPLimits
	if l.noMPTCP == nil {
		before, err = l.host.Limits(ctx)
		must(err)
	}
	check := func(what string, raised, announced bool, routes ...netip.Addr) {
		t.Helper()
		have, err := l.host.QuickAcks(ctx)
		must(err)
		slices.SortFunc(have, netip.Addr.Compare)
		if !slices.Equal(have, routes) {
			t.Errorf("%s: quickack routes to %v, expected %v", what, have, routes)
		}
		if l.noMPTCP != nil {
			return
		}
		limits, err := l.host.Limits(ctx)
		must(err)
		addrs, err := l.host.Announced(ctx)
		must(err)
		if want := map[bool]netcompare.MPTCPLimits{true: netcompare.MaxMPTCPLimits, false: before}[raised]; limits != want || len(addrs) > 0 != announced {
			t.Errorf("%s: limits %+v, announced %v", what, limits, addrs)
		}
	}
	for _, vm := range []string{"a", "b", "c"} {
		must(os.Mkdir(filepath.Join(dir, vm), 0o700))
	}
	must(l.useLinks(ctx, "a", linkUse{Peers: []netip.Addr{peer}, MPTCP: l.noMPTCP == nil}))
	check("one primary", true, false, peer)
	must(l.useLinks(ctx, "b", linkUse{Peers: []netip.Addr{peer, third}, MPTCP: l.noMPTCP == nil, Listens: true}))
	check("and a secondary", true, true, peer, third)
	l = launcher()
	must(l.dropLinks(ctx, "b"))
	check("the secondary has ended", true, false, peer)
	must(l.dropLinks(ctx, "c"))
	check("one that never used any has ended", true, false, peer)
	must(l.dropLinks(ctx, "a"))
	check("the last has ended", false, false)
}
