package lab

import (
	"errors"
	"fmt"
	"net/netip"
)

// A Cut is how a replication link is lost.
type Cut string

const (
	// CutCarrier takes the carrier away: both nodes' kernels see it at once.
	CutCarrier Cut = "carrier"
	// CutSilent drops every packet on the way: nobody is told.
	CutSilent Cut = "silent"
)

// Link is one replication network between the nodes. In each node it is an interface of the link's name.
type Link struct {
	Name string
	// Addrs are the nodes' addresses on it, by node.
	Addrs map[string]netip.Prefix

	fabric *Host
}

// addLink lays replication link i, through a bridge in the fabric: a plain cable could only be lost with its carrier.
func (t *Topology) addLink(i int) (*Link, error) {
	l := &Link{Name: fmt.Sprintf("link%d", i), Addrs: map[string]netip.Prefix{}, fabric: t.fabric}
	if err := t.fabric.addBridge(l.Name); err != nil {
		return nil, err
	}
	for n, name := range t.Names {
		node := t.Nodes[name]
		l.Addrs[name] = linkAddr(i, n)
		if err := pair(t.fabric, l.port(name), node, l.Name); err != nil {
			return nil, err
		}
		if err := errors.Join(t.fabric.enslave(l.port(name), l.Name), node.setAddr(l.Name, l.Addrs[name])); err != nil {
			return nil, err
		}
	}
	return l, nil
}

// port names the fabric's end of a node's cable.
func (l *Link) port(node string) string { return l.Name + "-" + node }

// Cut loses the link. Losing it again in another way is allowed.
func (l *Link) Cut(how Cut) error {
	var err error
	for node := range l.Addrs {
		switch how {
		case CutCarrier:
			err = errors.Join(err, l.fabric.setUp(l.port(node), false))
		case CutSilent:
			err = errors.Join(err, l.fabric.release(l.port(node)))
		default:
			return fmt.Errorf("link %s: unknown way to lose it: %q", l.Name, how)
		}
	}
	return err
}

// Restore undoes every Cut. It does nothing on a link that is whole. The kernel may take a second to believe in a carrier that came back.
func (l *Link) Restore() error {
	var err error
	for node := range l.Addrs {
		err = errors.Join(err, l.fabric.enslave(l.port(node), l.Name), l.fabric.setUp(l.port(node), true))
	}
	return err
}
