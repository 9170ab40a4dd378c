package netcompare

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/coloctl/coloctl/internal/netns"
)

// Tap is one of our taps as found on a host.
type Tap struct {
	Name, VM, NIC string
	Bridge        string // "" when it is in none
}

// mark is written as the interface's alias ("ip link" shows it). Nothing without it is ever deleted.
func mark(vm, nic string) string { return "colo:" + vm + ":" + nic }

func parseMark(alias string) (vm, nic string, ok bool) {
	rest, ok := strings.CutPrefix(alias, "colo:")
	i := strings.LastIndexByte(rest, ':')
	if !ok || i <= 0 || i == len(rest)-1 {
		return "", "", false
	}
	return rest[:i], rest[i+1:], true
}

// EnsureTap makes n's tap unless it is there: persistent, so that it outlives QEMU and QEMU can open it by name, down and
// in no bridge. One that is there is left as it is, for a VM may be using it; if it isn't this VM's the error matches
// ErrForeign.
func (h Host) EnsureTap(ctx context.Context, vm string, n NIC) error {
	if err := Check([]NIC{n}); err != nil {
		return err
	}
	if vm == "" {
		return fmt.Errorf("%w %q: no VM to make a tap for", ErrNIC, n.Name)
	}
	return h.netlink(ctx, "make tap", n.Tap, func(nl *netlink.Handle) error {
		switch ours, err := find(nl, vm, n); {
		case err != nil:
			return err
		case ours != nil:
			return nil
		}
		return netns.Do(h.Netns, func() error { return h.makeTap(nl, vm, n) })
	})
}

// makeTap must run inside the namespace: /dev/net/tun makes interfaces where the caller is.
func (h Host) makeTap(nl *netlink.Handle, vm string, n NIC) (err error) {
	tap := &netlink.Tuntap{
		LinkAttrs: netlink.LinkAttrs{Name: n.Tap},
		Mode:      netlink.TUNTAP_MODE_TAP,
		Flags:     netlink.TUNTAP_NO_PI,
		Queues:    1, // keeps the file open for us; without the multi-queue flag it is still the one queue QEMU wants
		// The mark comes before persistence: if we die in between, the tap goes with us instead of staying unmarked.
		NonPersist: true,
		Owner:      h.TapUser,
		Group:      h.TapGroup,
	}
	if n.vnetHdr() {
		tap.Flags |= netlink.TUNTAP_VNET_HDR
	}
	if err := nl.LinkAdd(tap); err != nil {
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("%w (is the tun module loaded?)", err)
		}
		return err
	}
	defer func() {
		for _, f := range tap.Fds {
			err = errors.Join(err, f.Close())
		}
	}()
	if err := nl.LinkSetAlias(tap, mark(vm, n.Name)); err != nil {
		return fmt.Errorf("mark: %w", err)
	}
	mac, err := net.ParseMAC(n.MAC)
	if err != nil {
		return err
	}
	// A bridge without an address of its own takes the lowest of its ports', so a tap that comes and goes would change the
	// address of the host. fe:… loses against every real card.
	if mac[0] == 0xfe {
		mac[1] ^= 0xff
	}
	mac[0] = 0xfe
	if err := nl.LinkSetHardwareAddr(tap, mac); err != nil {
		return fmt.Errorf("hardware address: %w", err)
	}
	// The host must not speak IPv6 on the guest's wire. A kernel without IPv6 refuses, and has nothing to say anyway.
	const none = 1 // IN6_ADDR_GEN_MODE_NONE
	if err := nl.LinkSetIP6AddrGenMode(tap, none); err != nil && !errors.Is(err, unix.EAFNOSUPPORT) && !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("no IPv6 address: %w", err)
	}
	conn, err := tap.Fds[0].SyscallConn()
	if err != nil {
		return err
	}
	var ioctl error
	if err := conn.Control(func(fd uintptr) { ioctl = unix.IoctlSetInt(int(fd), unix.TUNSETPERSIST, 1) }); err != nil {
		return err
	}
	return ioctl
}

// DeleteTap deletes n's tap if it is there and was made by EnsureTap for this VM and NIC; otherwise the error matches
// ErrForeign. A tap that isn't there is no error.
func (h Host) DeleteTap(ctx context.Context, vm string, n NIC) error {
	return h.netlink(ctx, "delete tap", n.Tap, func(nl *netlink.Handle) error {
		tap, err := find(nl, vm, n)
		if err != nil || tap == nil {
			return err
		}
		err = nl.LinkDel(tap)
		if errors.Is(err, unix.ENODEV) {
			return nil
		}
		return err
	})
}

// Taps lists the taps on this host that EnsureTap made, for any VM: what a crash has left can be found.
func (h Host) Taps(ctx context.Context) ([]Tap, error) {
	var taps []Tap
	err := h.netlink(ctx, "list", "taps", func(nl *netlink.Handle) error {
		links, err := nl.LinkList()
		for i := 0; errors.Is(err, netlink.ErrDumpInterrupted) && i < 10; i++ {
			links, err = nl.LinkList()
		}
		if err != nil {
			return err
		}
		names := map[int]string{}
		for _, l := range links {
			names[l.Attrs().Index] = l.Attrs().Name
		}
		for _, l := range links {
			a := l.Attrs()
			if vm, nic, ok := parseMark(a.Alias); ok && isTap(l) {
				taps = append(taps, Tap{Name: a.Name, VM: vm, NIC: nic, Bridge: names[a.MasterIndex]})
			}
		}
		return nil
	})
	return taps, err
}

// find returns nil when there is no such interface, and ErrForeign when it isn't this VM's.
func find(nl *netlink.Handle, vm string, n NIC) (netlink.Link, error) {
	l, err := byName(nl, n.Tap)
	if err != nil || l == nil {
		return nil, err
	}
	if alias := l.Attrs().Alias; !isTap(l) || alias != mark(vm, n.Name) {
		return nil, fmt.Errorf("%w: it is a %s with the alias %q, not a tap with %q", ErrForeign, l.Type(), alias, mark(vm, n.Name))
	}
	return l, nil
}

func isTap(l netlink.Link) bool {
	t, ok := l.(*netlink.Tuntap)
	return ok && t.Mode == netlink.TUNTAP_MODE_TAP
}
