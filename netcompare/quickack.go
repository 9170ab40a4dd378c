package netcompare

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// RouteProtocol marks the routes that QuickAck adds ("ip route show proto 67"). The number is in none of the registries
// that iproute2, FRR, BIRD or systemd use.
const RouteProtocol = 67

var (
	// ErrNoRoute is returned by QuickAck when the peer's address can't be reached or is this host's own.
	ErrNoRoute = errors.New("no route to the peer")
	// ErrForeignRoute is returned by QuickAck when the administrator has a route to exactly this address. It is left
	// alone; "quickack 1" can be added to it by hand.
	ErrForeignRoute = errors.New("the administrator's own host route is in the way")
)

// QuickAck makes TCP acknowledge the peer's segments at once. COLO's small messages otherwise wait for delayed ACKs, which
// is 40 ms of every checkpoint. It has to be done on both nodes, for every address of a link.
//
// TCP takes this from the route. Ours is a copy of the one that leads to the peer now (interface, gateway, source address,
// MTU and other metrics), for this one address only, with "quickack 1" and RouteProtocol. No other route is touched, and
// an administrator's route to the same address that has quickack is good as it is.
//
// The kernel drops our route with its interface or source address, and it keeps pointing where it does when the route it
// was copied from changes: call QuickAck again after such a change. It replaces its own route and is otherwise idempotent.
// Undo with ClearQuickAck.
func (h Host) QuickAck(ctx context.Context, peer netip.Addr) error {
	peer = peer.Unmap()
	return h.netlink(ctx, "quickack route to", peer.String(), func(nl *netlink.Handle) error {
		if err := clearQuickAck(nl, peer); err != nil {
			return err
		}
		base, hop, err := lookUp(nl, peer)
		if err != nil {
			return err
		}
		if base.QuickACK != 0 && isHost(base.Dst, peer) {
			return nil // the administrator's own
		}
		add := *base
		add.Dst = hostNet(peer)
		add.Protocol, add.QuickACK = RouteProtocol, 1
		add.LinkIndex, add.Gw, add.Via, add.MultiPath = hop.LinkIndex, hop.Gw, hop.Via, nil
		if hop.Src != nil {
			add.Src = hop.Src
		}
		add.Flags &= unix.RTNH_F_ONLINK // the others are states
		add.Priority = 0
		add.Scope = netlink.SCOPE_UNIVERSE
		if peer.Is4() && add.Gw == nil && add.Via == nil {
			add.Scope = netlink.SCOPE_LINK
		}
		if err := nl.RouteAdd(&add); errors.Is(err, unix.EEXIST) {
			return ErrForeignRoute
		} else if err != nil {
			return err
		}
		// A rule or a better metric may still lead elsewhere; then ours is of no use.
		now, _, err := lookUp(nl, peer)
		if err == nil && now.QuickACK == 0 {
			err = fmt.Errorf("%w: %s is preferred", ErrForeignRoute, now)
		}
		if err != nil {
			return errors.Join(err, clearQuickAck(nl, peer))
		}
		return nil
	})
}

// ClearQuickAck removes the route that QuickAck added for peer, if there is one: also one that an earlier process made.
func (h Host) ClearQuickAck(ctx context.Context, peer netip.Addr) error {
	peer = peer.Unmap()
	return h.netlink(ctx, "remove quickack route to", peer.String(), func(nl *netlink.Handle) error {
		return clearQuickAck(nl, peer)
	})
}

// QuickAcks lists the addresses that QuickAck has routes for, in the order of the kernel.
func (h Host) QuickAcks(ctx context.Context) ([]netip.Addr, error) {
	var peers []netip.Addr
	err := h.netlink(ctx, "list", "quickack routes", func(nl *netlink.Handle) error {
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			routes, err := ours(nl, family)
			if err != nil {
				return err
			}
			for _, r := range routes {
				if a, ok := netip.AddrFromSlice(r.Dst.IP); ok {
					peers = append(peers, a.Unmap())
				}
			}
		}
		return nil
	})
	return peers, err
}

func clearQuickAck(nl *netlink.Handle, peer netip.Addr) error {
	oif, err := zone(nl, peer)
	if err != nil {
		return err
	}
	routes, err := ours(nl, family(peer))
	if err != nil {
		return err
	}
	for _, r := range routes {
		if !isHost(r.Dst, peer) || oif != 0 && r.LinkIndex != oif {
			continue
		}
		if err := nl.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	return nil
}

// ours are our routes in all tables.
func ours(nl *netlink.Handle, family int) ([]netlink.Route, error) {
	filter := &netlink.Route{Protocol: RouteProtocol, Table: unix.RT_TABLE_UNSPEC}
	mask := netlink.RT_FILTER_PROTOCOL | netlink.RT_FILTER_TABLE
	routes, err := nl.RouteListFiltered(family, filter, mask)
	for i := 0; errors.Is(err, netlink.ErrDumpInterrupted) && i < 10; i++ {
		routes, err = nl.RouteListFiltered(family, filter, mask)
	}
	return routes, err
}

// lookUp returns the routing table's entry for peer, and the next hop that is taken of it.
func lookUp(nl *netlink.Handle, peer netip.Addr) (entry, hop *netlink.Route, err error) {
	oif, err := zone(nl, peer)
	if err != nil {
		return nil, nil, err
	}
	get := func(fib bool) (*netlink.Route, error) {
		routes, err := nl.RouteGetWithOptions(peer.AsSlice(), &netlink.RouteGetOptions{OifIndex: oif, FIBMatch: fib})
		switch {
		case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH), err == nil && len(routes) == 0:
			return nil, ErrNoRoute
		case err != nil:
			return nil, err
		case routes[0].Type != unix.RTN_UNICAST:
			return nil, fmt.Errorf("%w: the address is this host's own, or not of one host", ErrNoRoute)
		}
		return &routes[0], nil
	}
	if hop, err = get(false); err != nil {
		return nil, nil, err
	}
	if entry, err = get(true); err != nil {
		return nil, nil, err
	}
	return entry, hop, nil
}

// zone is the interface of a link-local address; 0 if peer has none.
func zone(nl *netlink.Handle, peer netip.Addr) (int, error) {
	if peer.Zone() == "" {
		return 0, nil
	}
	l, err := byName(nl, peer.Zone())
	if err == nil && l == nil {
		err = fmt.Errorf("%w: no interface %s", ErrNoRoute, peer.Zone())
	}
	if err != nil {
		return 0, err
	}
	return l.Attrs().Index, nil
}

func family(a netip.Addr) int {
	if a.Is4() {
		return netlink.FAMILY_V4
	}
	return netlink.FAMILY_V6
}

func hostNet(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}

func isHost(n *net.IPNet, a netip.Addr) bool {
	if n == nil {
		return false
	}
	ones, bits := n.Mask.Size()
	return ones == bits && n.IP.Equal(a.AsSlice())
}
