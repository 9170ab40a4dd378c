package netcompare

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/coloctl/coloctl/internal/netns"
)

// ErrNoMPTCP is returned when this kernel has no MPTCP, or when it is switched off (net.mptcp.enabled).
var ErrNoMPTCP = errors.New("no MPTCP in this kernel, or net.mptcp.enabled is 0")

// A connection with MPTCP begins on one link. The side that listened tells the other its addresses on the other links: the
// kernel's "endpoints" with the flag signal. The side that connected opens a path to each, as far as its "limits" allow. What
// a path has not delivered is sent again on the others when its address is taken back, or when the kernel finds out that it
// delivers nothing.
//
// QEMU listens on one address only, so the kernel itself listens for further paths, on one port of each link. It takes
// nothing there but paths of connections whose keys their two ends have exchanged.

// firstEndpoint is the lowest number of the endpoints that are ours ("ip mptcp endpoint"): the kernel numbers those that others
// make from 1.
const firstEndpoint = 220

// MPTCPLimits are how many paths more a connection may have, and how many of them may go to addresses that the peer has told
// ("ip mptcp limits").
type MPTCPLimits struct {
	Subflows  uint32 `json:"subflows"`
	Addresses uint32 `json:"addresses"`
}

// MaxMPTCPLimits are the kernel's.
var MaxMPTCPLimits = MPTCPLimits{8, 8}

// Numbers of linux/mptcp_pm.h.
const (
	mptcpFamily  = "mptcp_pm"
	mptcpVersion = 1

	mptcpAdd       = 1
	mptcpDel       = 2
	mptcpGet       = 3
	mptcpSetLimits = 5
	mptcpGetLimits = 6

	mptcpAddr      = 1
	mptcpAddresses = 2
	mptcpSubflows  = 3

	mptcpAddrFamily = 1
	mptcpAddrID     = 2
	mptcpAddr4      = 3
	mptcpAddr6      = 4
	mptcpAddrPort   = 5
	mptcpAddrFlags  = 6

	mptcpSignal = 1
)

// CheckMPTCP finds out whether connections in this namespace can have MPTCP.
func (h Host) CheckMPTCP(ctx context.Context) error {
	return h.mptcp(ctx, "look for", func(uint16) error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_MPTCP)
		if err != nil {
			return ErrNoMPTCP
		}
		return unix.Close(fd)
	})
}

// AnnounceAddrs makes these addresses, and no other of ours, known to whoever connects to this host with MPTCP: those of the links
// that work. It counts for connections that are open too: their paths over an address that is taken back end at once. It
// is idempotent, and leaves the administrator's own endpoints alone.
//
// The kernel takes the paths on a TCP port of each address, the highest from first to last that is free. An address that comes
// back gets another one: what is left of the paths that were there has the old one for a while.
func (h Host) AnnounceAddrs(ctx context.Context, addrs []netip.Addr, first, last int) error {
	return h.mptcp(ctx, "announce addresses by", func(family uint16) error {
		have, err := endpoints(family)
		if err != nil {
			return err
		}
		used := map[uint8]bool{}
		var there []netip.Addr
		for _, e := range have {
			if e.id < firstEndpoint {
				continue
			}
			if slices.Contains(addrs, e.addr) {
				there = append(there, e.addr)
				used[e.id] = true
				continue
			}
			if err := e.del(family); err != nil {
				return err
			}
		}
		id := uint8(firstEndpoint)
		for _, a := range addrs {
			if a = a.Unmap(); slices.Contains(there, a) {
				continue
			}
			for used[id] {
				id++
			}
			used[id] = true
			var err error = unix.EADDRINUSE
			for port := last; port >= first && errors.Is(err, unix.EADDRINUSE); port-- {
				err = (endpoint{id, a, uint16(port)}).add(family) //nolint:gosec // a port
			}
			if err != nil {
				return fmt.Errorf("endpoint %s, ports %d to %d: %w", a, first, last, err)
			}
		}
		return nil
	})
}

// Announced lists the addresses that AnnounceAddrs has announced, also by an earlier process.
func (h Host) Announced(ctx context.Context) (addrs []netip.Addr, err error) {
	err = h.mptcp(ctx, "list endpoints of", func(family uint16) error {
		have, err := endpoints(family)
		for _, e := range have {
			if e.id >= firstEndpoint {
				addrs = append(addrs, e.addr)
			}
		}
		return err
	})
	return addrs, err
}

// Limits returns the limits in force.
func (h Host) Limits(ctx context.Context) (l MPTCPLimits, err error) {
	err = h.mptcp(ctx, "read limits of", func(family uint16) error {
		msgs, err := ask(family, mptcpGetLimits, 0)
		if err != nil || len(msgs) == 0 {
			return err
		}
		attrs, err := nl.ParseRouteAttr(msgs[0][nl.SizeofGenlmsg:])
		for _, a := range attrs {
			switch {
			case len(a.Value) < 4:
			case a.Attr.Type == mptcpAddresses:
				l.Addresses = nl.NativeEndian().Uint32(a.Value)
			case a.Attr.Type == mptcpSubflows:
				l.Subflows = nl.NativeEndian().Uint32(a.Value)
			}
		}
		return err
	})
	return l, err
}

// SetLimits changes them. It counts for connections that are open too.
func (h Host) SetLimits(ctx context.Context, l MPTCPLimits) error {
	return h.mptcp(ctx, "set limits of", func(family uint16) error {
		_, err := ask(family, mptcpSetLimits, unix.NLM_F_ACK, nl.NewRtAttr(mptcpAddresses, nl.Uint32Attr(l.Addresses)), nl.NewRtAttr(mptcpSubflows, nl.Uint32Attr(l.Subflows)))
		return err
	})
}

// mptcp calls fn with the number of the kernel's family, on a thread inside the namespace.
func (h Host) mptcp(ctx context.Context, op string, fn func(family uint16) error) error {
	err := ctx.Err()
	if err == nil {
		err = netns.Do(h.Netns, func() error {
			f, err := netlink.GenlFamilyGet(mptcpFamily)
			if errors.Is(err, unix.ENOENT) {
				return ErrNoMPTCP
			}
			if err != nil {
				return err
			}
			return fn(f.ID)
		})
	}
	if err != nil {
		return &HostError{Op: op, Link: "MPTCP", Netns: h.Netns, Err: err}
	}
	return nil
}

func ask(family uint16, command uint8, flags int, attrs ...nl.NetlinkRequestData) ([][]byte, error) {
	req := nl.NewNetlinkRequest(int(family), flags)
	req.AddData(&nl.Genlmsg{Command: command, Version: mptcpVersion})
	for _, a := range attrs {
		req.AddData(a)
	}
	return req.Execute(unix.NETLINK_GENERIC, 0)
}

type endpoint struct {
	id   uint8
	addr netip.Addr
	port uint16
}

func endpoints(family uint16) ([]endpoint, error) {
	msgs, err := ask(family, mptcpGet, unix.NLM_F_DUMP)
	for i := 0; errors.Is(err, netlink.ErrDumpInterrupted) && i < 10; i++ {
		msgs, err = ask(family, mptcpGet, unix.NLM_F_DUMP)
	}
	if err != nil {
		return nil, err
	}
	var out []endpoint
	for _, m := range msgs {
		attrs, err := nl.ParseRouteAttr(m[nl.SizeofGenlmsg:])
		if err != nil {
			return nil, err
		}
		for _, a := range attrs {
			if a.Attr.Type&^unix.NLA_F_NESTED != mptcpAddr {
				continue
			}
			e, err := parseEndpoint(a.Value)
			if err != nil {
				return nil, err
			}
			out = append(out, e)
		}
	}
	return out, nil
}

func parseEndpoint(b []byte) (e endpoint, err error) {
	attrs, err := nl.ParseRouteAttr(b)
	for _, a := range attrs {
		switch a.Attr.Type {
		case mptcpAddrID:
			e.id = a.Value[0]
		case mptcpAddrPort:
			e.port = nl.NativeEndian().Uint16(a.Value)
		case mptcpAddr4, mptcpAddr6:
			e.addr, _ = netip.AddrFromSlice(a.Value)
		}
	}
	return e, err
}

func (e endpoint) attr() *nl.RtAttr {
	out := nl.NewRtAttr(mptcpAddr|unix.NLA_F_NESTED, nil)
	family, kind := uint16(unix.AF_INET), mptcpAddr4
	if e.addr.Is6() {
		family, kind = unix.AF_INET6, mptcpAddr6
	}
	out.AddRtAttr(mptcpAddrFamily, binary.NativeEndian.AppendUint16(nil, family))
	out.AddRtAttr(mptcpAddrID, []byte{e.id})
	out.AddRtAttr(kind, net.IP(e.addr.AsSlice()))
	out.AddRtAttr(mptcpAddrPort, binary.NativeEndian.AppendUint16(nil, e.port))
	out.AddRtAttr(mptcpAddrFlags, nl.Uint32Attr(mptcpSignal))
	return out
}

func (e endpoint) add(family uint16) error {
	_, err := ask(family, mptcpAdd, unix.NLM_F_ACK, e.attr())
	return err
}

func (e endpoint) del(family uint16) error {
	_, err := ask(family, mptcpDel, unix.NLM_F_ACK, e.attr())
	return err
}
