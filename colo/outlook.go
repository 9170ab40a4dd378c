package colo

import (
	"time"

	"github.com/coloctl/coloctl/colo/heartbeat"
	"github.com/coloctl/coloctl/state"
)

// PeerStatus is what this node knows of its partner.
type PeerStatus struct {
	Info      NodeInfo            `json:"info"`  // as configured; QEMU and Accel may be empty
	State     heartbeat.PeerState `json:"state"` // unknown, alive or lost
	Since     time.Time           `json:"since,omitzero"`
	LastHeard time.Time           `json:"last_heard,omitzero"` // zero if never
	Stalls    uint64              `json:"stalls"`              // how often this node was late itself
	Links     []LinkStatus        `json:"links"`
}

// LinkStatus is one link as the heartbeats see it.
type LinkStatus struct {
	Name      string        `json:"name"`
	Up        bool          `json:"up"` // in both directions
	LastHeard time.Time     `json:"last_heard,omitzero"`
	RTT       time.Duration `json:"rtt"`     // nanoseconds; 0 if none was measured
	RTTMin    time.Duration `json:"rtt_min"` // the least of the last 20
	Far       bool          `json:"far"`     // that is more than NodeConfig.MaxLinkRTT
	Missing   uint64        `json:"missing"` // datagrams lost on the way here
	WrongKey  uint64        `json:"wrong_key"`
	Error     string        `json:"error,omitempty"` // why it has no socket
}

// PeerStatus tells how the first partner stands; false if this node has none.
func (n *Node) PeerStatus() (PeerStatus, bool) {
	all := n.PeerStatuses()
	if len(all) == 0 {
		return PeerStatus{}, false
	}
	return all[0], true
}

// PeerStatuses tells how all partners stand.
func (n *Node) PeerStatuses() []PeerStatus {
	var out []PeerStatus
	for _, p := range n.partnerships() {
		out = append(out, p.status(&n.cfg))
	}
	return out
}

func (p *partnership) status(c *NodeConfig) PeerStatus {
	b := p.beat.Status()
	out := PeerStatus{Info: p.info, State: b.State, Since: b.Since, LastHeard: b.LastHeard, Stalls: b.Stalls, Links: []LinkStatus{}}
	for _, p := range b.Paths { // of the heartbeats
		l := LinkStatus{Name: p.Name, Up: p.Up, LastHeard: p.LastHeard, RTT: p.RTT, RTTMin: p.RTTMin, Far: c.far(p.RTTMin), Missing: p.Missing, WrongKey: p.WrongKey}
		if p.Err != nil {
			l.Error = p.Err.Error()
		}
		out.Links = append(out.Links, l)
	}
	return out
}

// History returns what the node remembers of its VMs' past, oldest first. A node on [Records] that are no store has none.
func (n *Node) History(q state.Query) ([]state.Entry, error) {
	if n.cfg.Store == nil {
		return nil, nil
	}
	return n.cfg.Store.History(q)
}

// Remark adds a line to the history of a VM, or of the node when vm is empty. It does not wait for the disk.
func (n *Node) Remark(vm, kind, text string) {
	n.ledger.write(func(tx RecordsTx) error {
		_, err := tx.Append(state.Entry{VM: vm, Kind: kind, Text: text})
		return err
	})
}
