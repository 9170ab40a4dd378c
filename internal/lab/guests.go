package lab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/api"
	"github.com/coloctl/coloctl/internal/guest"
	"github.com/coloctl/coloctl/internal/guest/service"
)

// A Guest is one of several VMs of a lab. The lab's own one is not among them.
type Guest struct {
	Name string
	Addr netip.Addr
	MAC  net.HardwareAddr
	Spec *colo.Spec

	sniffers map[string]*Sniffer // by node
	id       string              // of the VM at the arbiter
}

// addr is host:port of one of its services.
func (g *Guest) addr(port int) string { return addrOf(g.Addr, port) }

// AddGuests makes n VMs with so much memory each, which differ in name, address and priority only; change may change their specs. They don't run yet.
func (l *Lab) AddGuests(n int, change func(i int, s *colo.Spec)) ([]*Guest, error) {
	var out []*Guest
	for i := range n {
		g := &Guest{Name: fmt.Sprintf("vm%d", i+1), Addr: netip.AddrFrom4([4]byte{10, 77, 0, byte(20 + i)}), sniffers: map[string]*Sniffer{}}
		g.MAC = net.HardwareAddr{0x52, 0x54, 0x00, 0x77, 0x00, byte(0x20 + i)}
		g.Spec = l.Spec()
		g.Spec.Name = g.Name
		g.Spec.Boot.Append = guest.CommandLine(guest.Network{Addresses: []string{netip.PrefixFrom(g.Addr, 24).String()}})
		g.Spec.Disks[0].File = g.Name + ".raw"
		g.Spec.NICs[0].MAC = g.MAC.String()
		change(i, g.Spec)
		for _, name := range l.Topology.Names {
			s, err := l.Topology.Sniff(name, g.MAC)
			if err != nil {
				return nil, err
			}
			g.sniffers[name] = s
		}
		l.guests = append(l.guests, g)
		out = append(out, g)
	}
	return out, nil
}

// StartGuest makes a VM on a node and starts it there. It does not wait for its services.
func (l *Lab) StartGuest(ctx context.Context, g *Guest, node string) error {
	n := l.nodes[node]
	if err := guest.FormatDisk(ctx, n.path("disks", g.Spec.Disks[0].File), int64(g.Spec.Disks[0].Size)); err != nil {
		return err
	}
	text, err := colo.MarshalSpec(g.Spec)
	if err != nil {
		return err
	}
	if _, err := n.Client.Create(ctx, api.SpecText{YAML: text, File: g.Name + ".yaml", Reason: "one of the lab's guests"}); err != nil {
		return err
	}
	op, err := n.Client.Start(ctx, g.Name, api.Request{})
	if err := await(ctx, n, op, err); err != nil {
		return err
	}
	// The arbiter knows VMs by their ids. This one has just been claimed, so its id is the one that was not heard before; the lab may be a moment behind.
	return poll(ctx, func() (bool, error) {
		for _, id := range l.Grants.VMs() {
			known := false
			for _, o := range l.guests {
				known = known || o.id == id
			}
			if !known {
				g.id = id
				return true, nil
			}
		}
		return false, fmt.Errorf("the arbiter has not heard of %s", g.Name)
	})
}

// AwaitGuestOf waits until a VM's services answer.
func (l *Lab) AwaitGuestOf(ctx context.Context, g *Guest) error {
	return l.awaitHTTP(ctx, g.addr(service.PortHTTP), guestStatus)
}

// guestStatus is how long a daemon may take to answer where many VMs keep the machine busy.
const guestStatus = 15 * time.Second

// StatusOf asks a node how a VM stands there.
func (n *Node) StatusOf(ctx context.Context, vm string) (api.BothStatus, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, guestStatus, fmt.Errorf("no answer within %v", guestStatus))
	defer cancel()
	return n.Client.Status(ctx, vm, false)
}
