package lab

import (
	"errors"

	"github.com/vishvananda/netlink"
)

// mgmtPortOf names the fabric's end of a host's cable to the management network.
func mgmtPortOf(host string) string { return mgmtPort + "-" + host }

// addManagement makes the network on which the nodes' daemons and the witness speak. It is a bridge in the fabric, so that a host can be cut
// off without a sign.
func (t *Topology) addManagement() (err error) {
	if t.Witness, err = newHost(witnessName); err != nil {
		return err
	}
	if err := t.fabric.addBridge(mgmtBridge); err != nil {
		return err
	}
	hosts := []*Host{t.Witness}
	for _, name := range t.Names {
		hosts = append(hosts, t.Nodes[name])
	}
	for _, h := range hosts {
		if err := pair(t.fabric, mgmtPortOf(h.Name), h, mgmtPort); err != nil {
			return err
		}
		if err := errors.Join(t.fabric.enslave(mgmtPortOf(h.Name), mgmtBridge), h.setAddr(mgmtPort, mgmtAddr(h.Name))); err != nil {
			return err
		}
	}
	return nil
}

// CutManagement silently cuts a host off the management network.
func (t *Topology) CutManagement(host string) error { return t.fabric.release(mgmtPortOf(host)) }

// RestoreManagement undoes [Topology.CutManagement] and [Topology.PartManagement] for a host.
func (t *Topology) RestoreManagement(host string) error {
	return errors.Join(t.fabric.enslave(mgmtPortOf(host), mgmtBridge), t.isolate(host, false))
}

// PartManagement silently parts the nodes from each other on the management network; each still reaches the witness.
func (t *Topology) PartManagement() error {
	return errors.Join(t.isolate(NodeNames[0], true), t.isolate(NodeNames[1], true))
}

func (t *Topology) isolate(host string, on bool) error {
	return t.fabric.do(mgmtPortOf(host), func(l netlink.Link) error { return t.fabric.nl.LinkSetIsolated(l, on) })
}
