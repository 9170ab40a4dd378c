package colo

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
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
	others := slices.DeleteFunc(slices.Clone(m.rec.Members), func(name string) bool { return name == m.n.cfg.Name })
	then := append([]string{m.rec.Offered, m.rec.Peer}, m.spec.Nodes...)
	m.mu.Unlock()
	if len(others) > 0 { // one that is in nobody's file any more is not replaced by another: what that says is nothing about the copy that counts
		return firstOf(all, others)
	}
	if p := firstOf(all, then); p != nil {
		return p
	}
	return all[0]
}

// firstOf finds the first of some names that is a peer's; nil if there is none.
func firstOf(all []*partnership, names []string) *partnership {
	for _, name := range names {
		if p := partnerOf(all, name); p != nil {
			return p
		}
	}
	return nil
}

// others are the peers that this VM has not at the moment. Their copies don't count, but only they know whether they run.
func (m *machine) others() []*partnership {
	own := m.with()
	return slices.DeleteFunc(m.n.partnerships(), func(p *partnership) bool { return p == own })
}

// elsewhere is what a peer says of the VM.
type elsewhere struct {
	info NodeInfo
	vm   PeerVM
	err  error
}

// runs says whether a copy is there that speaks, or may be about to.
func (e *elsewhere) runs() bool { return e.err == nil && e.vm.runs() }

// inquireAll asks peers at the same time how the VM stands there, for no longer than their silence would take to be noticed.
func (m *machine) inquireAll(ctx context.Context, peers []*partnership) []elsewhere {
	ctx, cancel := context.WithTimeout(ctx, m.n.cfg.HeartbeatTimeout)
	defer cancel()
	out := make([]elsewhere, len(peers))
	var wg sync.WaitGroup
	for i, p := range peers {
		wg.Go(func() {
			vm, err := p.peer.Inquire(ctx, m.name)
			out[i] = elsewhere{p.info, vm, err}
		})
	}
	wg.Wait()
	return out
}

// runsOnAnother is an error when a peer that this VM has not at the moment runs it: by the arbiter's word that this node has not heard, or by a person's.
func (m *machine) runsOnAnother(ctx context.Context) error {
	for _, e := range m.inquireAll(ctx, m.others()) {
		if e.runs() {
			return fmt.Errorf("%w: %s runs it (%s)", ErrNotCurrent, e.info.Name, e.vm.State)
		}
	}
	return nil
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
	rec, spec := m.info()
	last := m.with()
	p := last
	switch {
	case name != "":
		p = partnerOf(all, name)
	case p != nil && !spec.mayHave(p.info.Name): // its spec has been changed
		p = firstOf(all, spec.Nodes)
	}
	switch {
	case len(all) == 0:
		return nil, ErrNoPeer
	case p == nil && name == "":
		return nil, fmt.Errorf("%s: %w among %v", m.name, ErrNoPeer, spec.Nodes)
	case p == nil && name == m.n.cfg.Name:
		return nil, fmt.Errorf("%s: %w: it runs on %s itself, and is protected by another node: %s", m.name, ErrNotCandidate, name, peerNames(all))
	case p == nil:
		return nil, fmt.Errorf("%s: %w of the name %s; it has: %s", m.name, ErrNoPeer, name, peerNames(all))
	case !spec.mayHave(p.info.Name):
		return nil, fmt.Errorf("%s: %w: its spec names %v, not %s", m.name, ErrNotCandidate, spec.Nodes, p.info.Name)
	case p != last && behind(rec): // what clients have seen last is there only
		return nil, fmt.Errorf("%s: a half of a disk here lacks what %s has: %w", m.name, rec.Peer, ErrDiskOffline)
	}
	return p, nil
}

func peerNames(all []*partnership) string {
	var names []string
	for _, p := range all {
		names = append(names, p.info.Name)
	}
	return strings.Join(names, ", ")
}

// choose notes by which node a person wants the VM to be protected, for as long as that is under way: recovery, which sees that it is to be protected, must not take another one.
// No name is no choice. One that is or is being protected by another node is refused.
func (m *machine) choose(node string) error {
	if node == "" {
		return nil
	}
	if _, err := m.standbyBy(node); err != nil {
		return err
	}
	m.mu.Lock()
	m.choice = node
	s := m.state
	m.mu.Unlock()
	if s == Syncing || s == Attaching || s == Protected {
		return m.chosen(node)
	}
	return nil
}

// chosen ends the choice, and tells whether it has been heeded.
func (m *machine) chosen(node string) error {
	if node == "" {
		return nil
	}
	m.mu.Lock()
	m.choice = ""
	m.mu.Unlock()
	return m.byAnother(node)
}

// byAnother is an error when the VM's other node is not the one that was chosen.
func (m *machine) byAnother(node string) error {
	if p := m.with(); p == nil || p.info.Name != node {
		return fmt.Errorf("%w: the other node is %s, not %s: unprotect it first", &UnexpectedEventError{VM: m.name, State: m.State(), Event: ReqProtect}, m.n.PeerOf(m.name), node)
	}
	return nil
}

// standing is what a node knows of its peers while it looks after one VM.
type standing struct {
	well    map[string]time.Time // since when each has been
	refused map[string]time.Time // when each has last failed to become the VM's other node
}

// look notes which peers are well.
func (w *standing) look(all []*partnership, now time.Time) {
	for _, p := range all {
		switch alive, name := p.alive(), p.info.Name; {
		case !alive:
			delete(w.well, name)
		case w.well[name].IsZero():
			w.well[name] = now
		}
	}
}

// wellPeer says by which peer the VM should be protected now, by itself: by its last one when that has been well for the hold-down; when that has been away for the spec's replace-after,
// or is no candidate any more, by another candidate that is well: the one that has not failed for the longest, of those that have not failed the first. Empty: by none yet, and why is for
// people; it is empty too when there is nothing to add to the VM's state.
func (m *machine) wellPeer(w *standing, now time.Time, holdDown time.Duration) (name, why string) {
	all := m.n.partnerships()
	_, spec := m.info()
	last := m.with()
	m.mu.Lock()
	choice := m.choice
	m.mu.Unlock()
	switch {
	case last == nil:
		return "", ""
	case choice != "":
		return choice, ""
	}
	fit := func(p *partnership) bool {
		since := w.well[p.info.Name]
		return !since.IsZero() && now.Sub(since) >= holdDown
	}
	if spec.mayHave(last.info.Name) {
		switch {
		case fit(last):
			return last.info.Name, ""
		case len(all) < 2 || len(spec.Nodes) < 3 || !w.well[last.info.Name].IsZero():
			return "", ""
		}
		after := time.Duration(spec.Protection.ReplaceAfter)
		away := now.Sub(last.beat.Status().Since)
		if s := now.Sub(m.inState()); s < away { // a VM that has just come here is in the same place
			away = s
		}
		if away < after {
			return "", fmt.Sprintf("wait: %s is away; another candidate takes its place in %s", last.info.Name, (after - away).Round(time.Second))
		}
	}
	for _, candidate := range spec.Nodes {
		if p := partnerOf(all, candidate); p != nil && p != last && fit(p) && (name == "" || w.refused[candidate].Before(w.refused[name])) {
			name = candidate
		}
	}
	if name == "" {
		why = fmt.Sprintf("wait: %s is away or is none of %v, and no other of these is well", last.info.Name, spec.Nodes)
	}
	return name, why
}
