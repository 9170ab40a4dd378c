package machine

import (
	"fmt"

	"github.com/vishvananda/netlink"
)

// End is an end of a cable: the name of the interface there.
type End struct {
	Machine   *Machine
	Interface string
}

// Cable joins two machines by a pair of interfaces. Both are down and have no address: what to do with them is said in the machines.
func Cable(a, b End) error {
	veth := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: b.Interface, PeerNamespace: netlink.NsPid(b.Machine.init)}
	veth.Name, veth.Namespace = a.Interface, netlink.NsPid(a.Machine.init)
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("cable from %s of %s to %s of %s: %w", a.Interface, a.Machine.Name, b.Interface, b.Machine.Name, err)
	}
	return nil
}
