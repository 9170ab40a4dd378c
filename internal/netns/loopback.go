package netns

import (
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// loopbackUp acts on the calling thread's namespace.
func loopbackUp() error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err != nil {
		return err
	}
	return h.LinkSetUp(lo)
}
