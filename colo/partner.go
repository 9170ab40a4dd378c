package colo

import (
	"fmt"
	"slices"
	"time"

	"github.com/coloctl/coloctl/colo/heartbeat"
)

// A node may have several peers. Each VM has one of them at a time: the one whose copy counts beside this node's, or else the last one, or else the one that it is about to be protected by.
// Whatever is asked or told about a VM goes to that one, and only its loss is a loss to the VM. Who may go on is decided by the arbiter's record, so a peer that was replaced is no member of
// it any more and can't win; it learns that from the arbiter when it comes back.

// partnership is one peer and the heartbeats to it.
type partnership struct {
	peer Peer
	info NodeInfo
	beat *heartbeat.Monitor
}

func (p *partnership) alive() bool { return p != nil && p.beat.Status().State == heartbeat.Alive }

// linked says whether the peer and this node hear each other.
func (p *partnership) linked() bool {
	if p == nil {
		return false
	}
	st := p.beat.Status()
	return st.State == heartbeat.Alive && len(st.Down()) < len(st.Paths)
}

// all peers, in the order in which they were connected.
func (n *Node) partnerships() []*partnership {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.peers)
}

// partnerOf finds a peer by name; nil if there is none.
func partnerOf(all []*partnership, name string) *partnership {
	for _, p := range all {
		if p.info.Name == name {
			return p
		}
	}
	return nil
}

// with is the VM's peer; nil if this node has none.
func (m *machine) with() *partnership {
	all := m.n.partnerships()
	if len(all) <= 1 {
		if len(all) == 0 {
			return nil
		}
		return all[0]
	}
	m.mu.Lock()
	members, offered, last := m.rec.Members, m.rec.Offered, m.rec.Peer
	m.mu.Unlock()
	for _, name := range members {
		if p := partnerOf(all, name); p != nil && name != m.n.cfg.Name {
			return p
		}
	}
	for _, name := range []string{offered, last} {
		if p := partnerOf(all, name); p != nil {
			return p
		}
	}
	return all[0]
}

// partner returns the VM's peer, or ErrNoPeer.
func (m *machine) partner() (Peer, NodeInfo, error) {
	p := m.with()
	if p == nil {
		return nil, NodeInfo{}, ErrNoPeer
	}
	return p.peer, p.info, nil
}

// peerAlive says whether heartbeats of the VM's peer arrive.
func (m *machine) peerAlive() bool { return m.with().alive() }

// PeerOf names the peer that a VM has at the moment; empty if this node has none or does not know the VM.
func (n *Node) PeerOf(vm string) string {
	m, err := n.machine(vm)
	if err != nil {
		return ""
	}
	if p := m.with(); p != nil {
		return p.info.Name
	}
	return ""
}

// mayHave says whether a node may have a copy of the VM.
func (s *Spec) mayHave(node string) bool { return len(s.Nodes) == 0 || slices.Contains(s.Nodes, node) }

// candidate refuses a VM whose spec does not name this node.
func (n *Node) candidate(s *Spec) error {
	if s.mayHave(n.cfg.Name) {
		return nil
	}
	return fmt.Errorf("%s: %w: its spec names %v, not %s", s.Name, ErrNotCandidate, s.Nodes, n.cfg.Name)
}

// standbyBy finds the peer that is to protect the VM: the one that was asked for, otherwise the VM's present one.
func (m *machine) standbyBy(name string) (*partnership, error) {
	all := m.n.partnerships()
	_, spec := m.info()
	p := m.with()
	if name != "" {
		p = partnerOf(all, name)
	}
	switch {
	case len(all) == 0:
		return nil, ErrNoPeer
	case p == nil:
		return nil, fmt.Errorf("%s: %w of the name %s", m.name, ErrNoPeer, name)
	case !spec.mayHave(p.info.Name):
		return nil, fmt.Errorf("%s: %w: its spec names %v, not %s", m.name, ErrNotCandidate, spec.Nodes, p.info.Name)
	}
	return p, nil
}

// wellPeer says by which peer the VM should be protected now, by itself: by its last one when that has been well for the hold-down; when that has been away for the spec's replace-after,
// by the first of the other candidates that is well. Empty: by none yet, and why is for people.
func (m *machine) wellPeer(well map[string]time.Time, now time.Time, holdDown time.Duration) (name, why string) {
	all := m.n.partnerships()
	last := m.with()
	_, spec := m.info()
	if last == nil {
		return "", ""
	}
	fit := func(p *partnership) bool {
		since := well[p.info.Name]
		return !since.IsZero() && now.Sub(since) >= holdDown && spec.mayHave(p.info.Name)
	}
	if fit(last) {
		return last.info.Name, ""
	}
	if len(all) < 2 || len(spec.Nodes) < 3 || spec.mayHave(last.info.Name) && !well[last.info.Name].IsZero() {
		return "", ""
	}
	if after := time.Duration(spec.Protection.ReplaceAfter); spec.mayHave(last.info.Name) {
		away := now.Sub(last.beat.Status().Since)
		if s := now.Sub(m.inState()); s < away { // a VM that has just come here is in the same place
			away = s
		}
		if away < after {
			return "", fmt.Sprintf("wait: %s is away; another candidate takes its place in %s", last.info.Name, (after - away).Round(time.Second))
		}
	}
	for _, candidate := range spec.Nodes {
		if p := partnerOf(all, candidate); p != nil && fit(p) {
			return candidate, ""
		}
	}
	return "", fmt.Sprintf("wait: %s is away, and no other candidate of %v is well", last.info.Name, spec.Nodes)
}
