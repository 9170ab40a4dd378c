package colo

import (
	"errors"
	"net/netip"
	"syscall"

	"github.com/coloctl/coloctl/internal/netns"
)

// This file finds where a standby listens: ports, and paths between the nodes.

// endpoint allocates the VM's ports and says where its standby listens: on the first link that works, and with MPTCP on the others too.
func (n *Node) endpoint(s *Spec, peer string, mptcp bool) (Endpoint, error) {
	uses := []string{"migration", "nbd"}
	for _, nic := range s.NICs {
		uses = append(uses, "mirror-"+nic.Name, "compare-"+nic.Name)
	}
	ports, err := n.ports(s.Name, uses)
	if err != nil {
		return Endpoint{}, err
	}
	e := Endpoint{Host: n.cfg.Links[0].Address.String(), Migration: ports["migration"], NBD: ports["nbd"], NICs: map[string]NICPorts{}}
	if paths := n.peerPaths(peer); len(paths) > 0 {
		e.Host, e.Primary = paths[0].Host, paths[0].Primary
		if mptcp && len(paths) > 1 && n.multipath() == nil {
			e.MPTCP, e.More = true, paths[1:]
		}
	}
	if !n.cfg.Plain {
		e.Key = newKey()
	}
	for _, nic := range s.NICs {
		e.NICs[nic.Name] = NICPorts{Mirror: ports["mirror-"+nic.Name], Compare: ports["compare-"+nic.Name]}
	}
	return e, nil
}

// peerPaths are the links to the peer, those that work first.
func (n *Node) peerPaths(name string) []Path {
	all := n.partnerships()
	p := partnerOf(all, name)
	if p == nil && len(all) == 1 {
		p = all[0]
	}
	if p == nil {
		return nil
	}
	st := p.beat.Status()
	var up, down []Path
	for _, own := range n.cfg.Links {
		for _, far := range p.info.Links {
			if own.Name != far.Name {
				continue
			}
			path := Path{Host: own.Address.String(), Primary: far.Address.String()}
			if st.Path(own.Name).Up {
				up = append(up, path)
			} else {
				down = append(down, path)
			}
		}
	}
	return append(up, down...)
}

// ports returns the VM's ports. One that another program has taken meanwhile is given up for a free one; the VM's own QEMU must not run.
func (n *Node) ports(vm string, uses []string) (map[string]int, error) {
	free := func(port int) bool {
		for _, link := range n.cfg.Links { // which will be used is known at the attach
			l, err := netns.Listen(n.ctx, n.cfg.Netns, "tcp", netip.AddrPortFrom(link.Address, uint16(port)).String())
			if err == nil {
				_ = l.Close()
			}
			if errors.Is(err, syscall.EADDRINUSE) {
				return false
			}
		}
		return true
	}
	ports, err := n.cfg.Records.Ports(vm, uses, free)
	if err != nil {
		return nil, err
	}
	for use, port := range ports {
		if !free(port) {
			n.cfg.Log.Warn("another program has taken a port of the VM", "vm", vm, "use", use, "port", port)
			if err := n.cfg.Records.ReleasePorts(vm, use); err != nil {
				return nil, err
			}
		}
	}
	return n.cfg.Records.Ports(vm, uses, free)
}
