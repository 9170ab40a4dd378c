package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/vishvananda/netlink"
	vns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/coloctl/coloctl/internal/netns"
)

// The names and addresses that every lab has.
const (
	NodeBridge = "br0"  // on each node, where the taps go
	lanPort    = "lan0" // each node's port to the LAN, in NodeBridge
	lanBridge  = "lan"  // the LAN itself, in the client's namespace

	clientName  = "client"
	witnessName = "witness"

	mgmtPort   = "mgmt0" // of each node and the witness, to the management network
	mgmtBridge = "mgmt"  // the management network itself, in the fabric
)

// NodeNames are the nodes of every lab. Some have a third one.
var NodeNames = allNames[:2:2]

var allNames = []string{"n1", "n2", "n3"}

var (
	clientAddr = netip.MustParsePrefix("10.77.0.1/24")
	// GuestAddr is the address that the guest gives itself.
	GuestAddr = netip.MustParseAddr("10.77.0.10")

	clientAddr6 = netip.MustParsePrefix("fd77::1/64")
	// GuestAddr6 is the guest's address in scenarios about IPv6.
	GuestAddr6 = netip.MustParseAddr("fd77::10")
)

// linkAddr returns the address of node number n (from 0) on replication link i.
func linkAddr(i, n int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 90, byte(i), byte(n + 1)}), 24)
}

// mgmtAddr returns the address of a host on the management network.
func mgmtAddr(host string) netip.Prefix {
	last := byte(slices.Index(allNames, host) + 1)
	if host == witnessName {
		last = 100
	}
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 91, 0, last}), 24)
}

// A Host is a network namespace with its own name.
type Host struct {
	Name string
	ns   *netns.Namespace
	nl   *netlink.Handle
}

// Netns names the host's network namespace for internal/netns.
func (h *Host) Netns() string { return h.ns.Path() }

func newHost(name string) (*Host, error) {
	ns, err := netns.Create()
	if err != nil {
		return nil, namespaceError("make the network of "+name, err)
	}
	h := &Host{Name: name, ns: ns}
	err = netns.Do(ns.Path(), func() error {
		// IPv6 would only add packets of the lab's own to what is watched. The guest's passes all the same.
		for _, which := range []string{"all", "default"} {
			err := os.WriteFile(filepath.Join("/proc/sys/net/ipv6/conf", which, "disable_ipv6"), []byte("1"), 0)
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
		return nil
	})
	if err == nil {
		h.nl, err = handleAt(ns.Path())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("network of %s: %w", name, err), ns.Close())
	}
	return h, nil
}

func handleAt(path string) (*netlink.Handle, error) {
	ns, err := vns.GetFromPath(path)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	return netlink.NewHandleAt(ns)
}

func (h *Host) close() error {
	h.nl.Close()
	return h.ns.Close()
}

// do runs fn on the named interface of h.
func (h *Host) do(name string, fn func(netlink.Link) error) error {
	link, err := h.nl.LinkByName(name)
	if err == nil {
		err = fn(link)
	}
	if err != nil {
		return fmt.Errorf("%s: interface %s: %w", h.Name, name, err)
	}
	return nil
}

// Topology is the lab's networks. Its methods may be called concurrently, except Close.
type Topology struct {
	Names   []string // of the nodes
	Nodes   map[string]*Host
	Client  *Host
	Witness *Host
	Links   []*Link

	fabric *Host // holds the middle of every replication link and of the management network
}

// NewTopology makes the networks of two nodes.
func NewTopology(links int) (*Topology, error) { return NewTopologyOf(len(NodeNames), links) }

// NewTopologyOf makes the networks: two or three nodes, n1, n2 and n3, each with the bridge br0 whose port lan0 leads to the client's LAN, so many
// replication links between them, and a management network of the nodes and the witness. All of them are up.
func NewTopologyOf(nodes, links int) (*Topology, error) {
	t := &Topology{Nodes: map[string]*Host{}, Names: allNames[:nodes:nodes]}
	if err := t.build(links); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

func (t *Topology) build(links int) (err error) {
	if t.fabric, err = newHost("fabric"); err != nil {
		return err
	}
	if t.Client, err = newHost(clientName); err != nil {
		return err
	}
	if err := t.Client.addBridge(lanBridge); err != nil {
		return err
	}
	if err := t.Client.setAddr(lanBridge, clientAddr); err != nil {
		return err
	}
	for _, name := range t.Names {
		node, err := newHost(name)
		if err != nil {
			return err
		}
		t.Nodes[name] = node
		if err := node.addBridge(NodeBridge); err != nil {
			return err
		}
		if err := pair(t.Client, lanOf(name), node, lanPort); err != nil {
			return err
		}
		if err := errors.Join(t.Client.enslave(lanOf(name), lanBridge), node.enslave(lanPort, NodeBridge)); err != nil {
			return err
		}
	}
	if err := t.addManagement(); err != nil {
		return err
	}
	for i := range links {
		link, err := t.addLink(i)
		if err != nil {
			return err
		}
		t.Links = append(t.Links, link)
	}
	return nil
}

// lanOf names the client's end of a node's LAN cable.
func lanOf(node string) string { return "lan-" + node }

// pair joins two hosts by a virtual cable and brings both ends up.
func pair(a *Host, nameA string, b *Host, nameB string) error {
	nsB, err := vns.GetFromPath(b.Netns())
	if err != nil {
		return err
	}
	defer nsB.Close()
	cable := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: nameB, PeerNamespace: netlink.NsFd(nsB)}
	cable.Name = nameA
	if err := a.nl.LinkAdd(cable); err != nil {
		return fmt.Errorf("cable from %s of %s to %s of %s: %w", nameA, a.Name, nameB, b.Name, err)
	}
	return errors.Join(a.do(nameA, a.nl.LinkSetUp), b.do(nameB, b.nl.LinkSetUp))
}

// addBridge makes a bridge that forwards at once: without spanning tree and without waiting to learn who listens to which multicast.
func (h *Host) addBridge(name string) error {
	snooping := false
	bridge := &netlink.Bridge{LinkAttrs: netlink.NewLinkAttrs(), MulticastSnooping: &snooping}
	bridge.Name = name
	if err := h.nl.LinkAdd(bridge); err != nil {
		return fmt.Errorf("%s: bridge %s: %w", h.Name, name, err)
	}
	return h.do(name, h.nl.LinkSetUp)
}

func (h *Host) enslave(port, bridge string) error {
	return h.do(bridge, func(b netlink.Link) error {
		return h.do(port, func(p netlink.Link) error { return h.nl.LinkSetMaster(p, b) })
	})
}

func (h *Host) release(port string) error { return h.do(port, h.nl.LinkSetNoMaster) }

func (h *Host) setUp(name string, up bool) error {
	if up {
		return h.do(name, h.nl.LinkSetUp)
	}
	return h.do(name, h.nl.LinkSetDown)
}

func (h *Host) setAddr(name string, p netip.Prefix) error {
	addr, err := netlink.ParseAddr(p.String())
	if err != nil {
		return err
	}
	return h.do(name, func(l netlink.Link) error { return h.nl.AddrAdd(l, addr) })
}

// addIPv6 gives the client an address of IPv6, at once: nobody else can have it.
func (t *Topology) addIPv6() error {
	err := netns.Do(t.Client.Netns(), func() error {
		return os.WriteFile(filepath.Join("/proc/sys/net/ipv6/conf", lanBridge, "disable_ipv6"), []byte("0"), 0)
	})
	if err != nil {
		return fmt.Errorf("IPv6 for the client: %w", err)
	}
	return t.Client.do(lanBridge, func(l netlink.Link) error {
		addr, err := netlink.ParseAddr(clientAddr6.String())
		if err != nil {
			return err
		}
		addr.Flags = unix.IFA_F_NODAD
		return t.Client.nl.AddrAdd(l, addr)
	})
}

// SetLAN plugs a node's LAN cable in or out.
func (t *Topology) SetLAN(node string, up bool) error { return t.Client.setUp(lanOf(node), up) }

// SetPower does to a node's cables what the loss or the return of its power does: all of them lose or get their carrier.
func (t *Topology) SetPower(node string, on bool) error {
	err := errors.Join(t.SetLAN(node, on), t.fabric.setUp(mgmtPortOf(node), on))
	for _, l := range t.Links {
		err = errors.Join(err, t.fabric.setUp(l.port(node), on))
	}
	return err
}

// Close removes the networks.
func (t *Topology) Close() error {
	var err error
	for _, h := range t.Nodes {
		err = errors.Join(err, h.close())
	}
	for _, h := range []*Host{t.Client, t.Witness, t.fabric} {
		if h != nil {
			err = errors.Join(err, h.close())
		}
	}
	return err
}
