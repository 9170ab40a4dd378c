package netcompare

import (
	"context"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Join lets the VM speak and hear on the LAN: n's tap gets the bridge's MTU, becomes its port and goes up. It is done when
// it returns, if the bridge has no spanning tree; with spanning tree the bridge itself forwards only after twice its
// forward delay (30 s by default), which no failover should wait for. Joining again does no harm.
func (h Host) Join(ctx context.Context, n NIC) error {
	return h.netlink(ctx, "join", n.Tap, func(nl *netlink.Handle) error {
		tap, err := byName(nl, n.Tap)
		switch {
		case err != nil:
			return err
		case tap == nil:
			return ErrNoTap
		}
		if _, nic, ok := parseMark(tap.Attrs().Alias); !ok || !isTap(tap) || nic != n.Name {
			return fmt.Errorf("%w: it is a %s with the alias %q", ErrForeign, tap.Type(), tap.Attrs().Alias)
		}
		bridge, err := findBridge(nl, n.Bridge)
		if err != nil {
			return err
		}
		// Before it is a port: a bridge without an MTU of its own takes the least of its ports'.
		if mtu := bridge.Attrs().MTU; tap.Attrs().MTU != mtu {
			if err := nl.LinkSetMTU(tap, mtu); err != nil {
				return fmt.Errorf("MTU %d: %w", mtu, err)
			}
		}
		if tap.Attrs().MasterIndex != bridge.Attrs().Index {
			if err := nl.LinkSetMaster(tap, bridge); err != nil {
				return fmt.Errorf("bridge %s: %w", n.Bridge, err)
			}
		}
		// Last: a tap that is up and in no bridge would be heard by the host's own network stack.
		return nl.LinkSetUp(tap)
	})
}

// CheckBridge tells why no NIC could join this bridge: an error that matches ErrNoBridge.
func (h Host) CheckBridge(ctx context.Context, bridge string) error {
	return h.netlink(ctx, "look at", bridge, func(nl *netlink.Handle) error {
		_, err := findBridge(nl, bridge)
		return err
	})
}

func findBridge(nl *netlink.Handle, name string) (netlink.Link, error) {
	bridge, err := byName(nl, name)
	switch {
	case err != nil:
		return nil, fmt.Errorf("bridge %s: %w", name, err)
	case bridge == nil:
		return nil, fmt.Errorf("%w: %q", ErrNoBridge, name)
	case bridge.Type() != "bridge":
		return nil, fmt.Errorf("%w: %s is a %s", ErrNoBridge, name, bridge.Type())
	}
	return bridge, nil
}

// Cut takes the VM off the LAN: n's tap goes down and leaves its bridge, whatever that is. Down, because the host's own
// network stack would hear the guest on a tap that is up and in no bridge. QEMU keeps the tap open and doesn't notice.
// Cutting again, or a tap that isn't there, is no error.
func (h Host) Cut(ctx context.Context, n NIC) error {
	return h.netlink(ctx, "cut", n.Tap, func(nl *netlink.Handle) error {
		tap, err := byName(nl, n.Tap)
		if err != nil || tap == nil {
			return err
		}
		down := nl.LinkSetDown(tap)
		out := nl.LinkSetNoMaster(tap)
		if errors.Is(down, unix.ENODEV) && errors.Is(out, unix.ENODEV) {
			return nil // deleted meanwhile
		}
		return errors.Join(down, out)
	})
}

// Joined tells whether n's tap is up and in its bridge. False without an error also when either isn't there.
func (h Host) Joined(ctx context.Context, n NIC) (bool, error) {
	var joined bool
	err := h.netlink(ctx, "look at", n.Tap, func(nl *netlink.Handle) error {
		tap, err := byName(nl, n.Tap)
		if err != nil || tap == nil {
			return err
		}
		bridge, err := byName(nl, n.Bridge)
		if err != nil || bridge == nil {
			return err
		}
		a := tap.Attrs()
		joined = a.MasterIndex == bridge.Attrs().Index && a.RawFlags&unix.IFF_UP != 0
		return nil
	})
	return joined, err
}
