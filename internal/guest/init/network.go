package main

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// network is what the kernel's command line says of the guest's network.
type network struct {
	addresses map[int]string // by the number of the interface
	gateway   string
}

// parseCommandLine picks our words out of the kernel's command line.
func parseCommandLine(line string) network {
	n := network{addresses: map[int]string{}}
	for _, word := range strings.Fields(line) {
		key, value, _ := strings.Cut(word, "=")
		switch index, isIP := strings.CutPrefix(key, "colo.ip"); {
		case key == "colo.gw":
			n.gateway = value
		case isIP && index == "":
			n.addresses[0] = value
		case isIP:
			if i, err := strconv.Atoi(index); err == nil {
				n.addresses[i] = value
			}
		}
	}
	return n
}

func setUpNetwork(n network) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	for i, text := range n.addresses {
		if err := setAddress(fmt.Sprintf("eth%d", i), text); err != nil {
			return fmt.Errorf("eth%d %s: %w", i, text, err)
		}
	}
	if n.gateway == "" {
		return nil
	}
	gw := net.ParseIP(n.gateway)
	if gw == nil {
		return fmt.Errorf("colo.gw=%s is not an address", n.gateway)
	}
	if err := netlink.RouteAdd(&netlink.Route{Gw: gw}); err != nil {
		return fmt.Errorf("route through %s: %w", n.gateway, err)
	}
	return nil
}

// setAddress gives an interface its addresses, which have commas between them.
func setAddress(name, text string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return err
	}
	for _, one := range strings.Split(text, ",") {
		prefix, err := netip.ParsePrefix(one)
		if err != nil {
			return err
		}
		a := &netlink.Addr{IPNet: &net.IPNet{IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen())}}
		if prefix.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD // nobody else has it, and the services begin at once
		}
		if err := netlink.AddrAdd(link, a); err != nil {
			return err
		}
	}
	return nil
}
