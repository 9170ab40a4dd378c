package netcompare

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/coloctl/coloctl/internal/netns"
)

// newHost is a host in a network namespace of its own, which ends with the test.
func newHost(t *testing.T) Host {
	t.Helper()
	ns, err := netns.Create()
	if errors.Is(err, unix.EPERM) && os.Getenv("CI") != "true" {
		t.Skip("network namespaces need root (or an own user namespace): ", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return Host{Netns: ns.Path()}
}

// in runs fn with netlink inside the host.
func (h Host) in(t *testing.T, fn func(*netlink.Handle) error) {
	t.Helper()
	if err := h.netlink(t.Context(), "test", "", fn); err != nil {
		t.Fatal(err)
	}
}

func (h Host) link(t *testing.T, name string) netlink.Link {
	t.Helper()
	var link netlink.Link
	h.in(t, func(nl *netlink.Handle) (err error) { link, err = byName(nl, name); return err })
	return link
}

func (h Host) addBridge(t *testing.T, name string, mtu int) {
	t.Helper()
	h.in(t, func(nl *netlink.Handle) error {
		br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name, MTU: mtu}}
		if err := nl.LinkAdd(br); err != nil {
			return err
		}
		return nl.LinkSetUp(br)
	})
}

// connect makes a cable between two hosts.
func connect(t *testing.T, a Host, aName string, b Host, bName string) {
	t.Helper()
	a.in(t, func(nl *netlink.Handle) error {
		fd, err := unix.Open(b.Netns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: aName}, PeerName: bName, PeerNamespace: netlink.NsFd(fd)}
		return nl.LinkAdd(veth)
	})
	// Only the addresses that the test gives: those that the kernel makes appear when they like.
	a.ip(t, "link", "set", "dev", aName, "addrgenmode", "none", "up")
	b.ip(t, "link", "set", "dev", bName, "addrgenmode", "none", "up")
}

func (h Host) addr(t *testing.T, link, addr string) {
	t.Helper()
	h.in(t, func(nl *netlink.Handle) error {
		l, err := nl.LinkByName(link)
		if err != nil {
			return err
		}
		a, err := netlink.ParseAddr(addr)
		if err != nil {
			return err
		}
		a.Flags = unix.IFA_F_NODAD
		return nl.AddrAdd(l, a)
	})
}

// ip runs iproute2 inside the host: the tests' second opinion.
func (h Host) ip(t *testing.T, args ...string) string {
	t.Helper()
	var out strings.Builder
	cmd := exec.Command("ip", args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	err := netns.Start(h.Netns, cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		t.Fatalf("ip %s: %v\n%s", strings.Join(args, " "), err, out.String())
	}
	return out.String()
}

func TestHostErrors(t *testing.T) {
	h := Host{Netns: "/run/netns/there-is-none"}
	err := h.Cut(t.Context(), NIC{Name: "net0", Tap: "tap0"})
	var he *HostError
	if !errors.As(err, &he) || he.Op != "cut" || he.Link != "tap0" || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %#v: %v", err, err)
	}
	if !errors.Is(&HostError{Err: unix.EPERM}, ErrNotPermitted) || errors.Is(&HostError{Err: unix.ENODEV}, ErrNotPermitted) {
		t.Error("ErrNotPermitted is not EPERM")
	}
}

// attach opens a tap as QEMU does.
func (h Host) attach(t *testing.T, f *os.File, tap string) {
	t.Helper()
	req, err := unix.NewIfreq(tap)
	if err != nil {
		t.Fatal(err)
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := netns.Do(h.Netns, func() error { return unix.IoctlIfreq(int(f.Fd()), unix.TUNSETIFF, req) }); err != nil {
		t.Fatal(err)
	}
}
