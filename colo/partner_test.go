package colo

import (
	"errors"
	"log/slog"
	"testing"

	"github.com/coloctl/coloctl/state"
)

// TestWith: a VM's peer is the other one whose copy counts, then the one that may count, then the last one, then the first that its spec names. Where one counts that this node does not know
// there is none: what another says is nothing about that copy.
func TestWith(t *testing.T) {
	t.Parallel()
	peers := []*partnership{{info: NodeInfo{Name: "n2"}}, {info: NodeInfo{Name: "n3"}}, {info: NodeInfo{Name: "n4"}}}
	for name, c := range map[string]struct {
		rec   state.VM
		nodes []string
		peers []*partnership
		want  string
	}{
		"a member":                      {state.VM{Members: []string{"n1", "n3"}, Offered: "n2", Peer: "n4"}, nil, peers, "n3"},
		"one that may be a member":      {state.VM{Members: []string{"n1"}, Offered: "n2", Peer: "n4"}, nil, peers, "n2"},
		"the last one":                  {state.VM{Members: []string{"n1"}, Peer: "n4"}, []string{"n1", "n3"}, peers, "n4"},
		"the last one is gone":          {state.VM{Members: []string{"n1"}, Peer: "n9"}, []string{"n1", "n4", "n3"}, peers, "n4"},
		"a new VM":                      {state.VM{}, []string{"n1", "n3"}, peers, "n3"},
		"a new VM for any":              {state.VM{}, nil, peers, "n2"},
		"a member that is not known":    {state.VM{Members: []string{"n1", "n9"}, Peer: "n2"}, nil, peers, ""},
		"others count":                  {state.VM{Members: []string{"n3", "n4"}, Peer: "n2"}, nil, peers, "n3"},
		"a pair has one, whatever else": {state.VM{Members: []string{"n1", "n9"}}, []string{"n1", "n9"}, peers[:1], "n2"},
		"none":                          {state.VM{Members: []string{"n1", "n2"}}, nil, nil, ""},
	} {
		n := &Node{cfg: NodeConfig{Name: "n1", Log: slog.New(slog.DiscardHandler)}, peers: c.peers}
		m := newMachine(n, &Spec{Name: "web", Nodes: c.nodes}, &c.rec)
		got := ""
		if p := m.with(); p != nil {
			got = p.info.Name
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

// TestStandbyBy: only a candidate protects a VM, and none but its last other node while that has what is lacking here.
func TestStandbyBy(t *testing.T) {
	t.Parallel()
	peers := []*partnership{{info: NodeInfo{Name: "n2"}}, {info: NodeInfo{Name: "n3"}}}
	lacks := map[string]state.Disk{"vda": {Offline: "broken", Behind: true}}
	for name, c := range map[string]struct {
		rec  state.VM
		ask  string
		want string
		err  error
	}{
		"the last one":                {state.VM{Members: []string{"n1"}, Peer: "n3"}, "", "n3", nil},
		"another":                     {state.VM{Members: []string{"n1"}, Peer: "n3"}, "n2", "", ErrNotCandidate},
		"there is none":               {state.VM{Members: []string{"n1"}, Peer: "n3"}, "n5", "", ErrNoPeer},
		"the last is none any more":   {state.VM{Members: []string{"n1"}, Peer: "n2"}, "", "n3", nil},
		"the last has the newer half": {state.VM{Members: []string{"n1"}, Peer: "n2", Disks: lacks}, "n3", "", ErrDiskOffline},
	} {
		n := &Node{cfg: NodeConfig{Name: "n1", Log: slog.New(slog.DiscardHandler)}, peers: peers}
		m := newMachine(n, &Spec{Name: "web", Nodes: []string{"n1", "n3"}, Disks: []DiskSpec{{Name: "vda"}}}, &c.rec)
		p, err := m.standbyBy(c.ask)
		got := ""
		if p != nil {
			got = p.info.Name
		}
		if got != c.want || !errors.Is(err, c.err) {
			t.Errorf("%s: %q, %v; want %q, %v", name, got, err, c.want, c.err)
		}
	}
}

// TestConnectNeedsAnArbiter: who of three may go on can't be told by proof.
func TestConnectNeedsAnArbiter(t *testing.T) {
	t.Parallel()
	n := &Node{cfg: NodeConfig{Name: "n1", Log: slog.New(slog.DiscardHandler)}, peers: []*partnership{{info: NodeInfo{Name: "n2"}}}}
	if err := n.mayConnect("n3"); !errors.Is(err, ErrNoArbiter) {
		t.Errorf("a second peer: %v", err)
	}
	if err := n.mayConnect("n2"); err == nil {
		t.Error("the same peer twice")
	}
}
