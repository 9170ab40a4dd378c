package both

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/coloctl/coloctl/colo"
)

// Placed is a VM as a balance of the nodes sees it.
type Placed struct {
	VM        string
	Preferred string // node of its spec; empty: any
	Primary   string // node it runs on; empty: none that is known
	Secondary string // node that could take it over now; empty unless it is protected
	Reason    string // why not
}

// PlaceOf tells where a VM is, of what its nodes say.
func PlaceOf(vm, preferred string, halves []Half) Placed {
	p := Placed{VM: vm, Preferred: preferred}
	v := Judge(halves)
	p.Reason = v.Reason
	for _, h := range halves {
		switch {
		case !h.Has():
		case RunsAsPrimary(h.Status.State):
			p.Primary = h.Node
		case h.Status.State == colo.Secondary && v.Protected:
			p.Secondary = h.Node
		}
	}
	return p
}

// Move is what a balance would do with one VM. Without To it stays, for the reason why.
type Move struct {
	VM   string `json:"vm"`
	From string `json:"from,omitempty"`
	To   string `json:"to,omitempty"`
	Why  string `json:"why"`
}

// Balance says which VMs to switch over so that each runs on the node that it prefers, and those that prefer none are spread by their number. Only a protected VM is moved, and only to its
// secondary: nothing else can be done without a loss. VMs that are on the right node already stay.
func Balance(vms []Placed) []Move {
	vms = slices.Clone(vms)
	slices.SortFunc(vms, func(a, b Placed) int { return cmp.Compare(a.VM, b.VM) })
	moves, count := make([]Move, len(vms)), map[string]int{}
	for _, p := range vms { // a node without a primary counts as well
		for _, n := range []string{p.Primary, p.Secondary, p.Preferred} {
			if n != "" {
				count[n] += 0
			}
		}
	}
	var free []int
	for i, p := range vms {
		moves[i] = Move{VM: p.VM, From: p.Primary}
		m := &moves[i]
		switch {
		case p.Primary == "":
			m.Why = "it does not run"
			continue
		case p.Preferred == p.Primary:
			m.Why = "it runs on the node that it prefers"
		case p.Preferred != "" && p.Preferred == p.Secondary:
			m.To, m.Why = p.Secondary, "it prefers "+p.Secondary
			count[m.To]++
			continue
		case p.Secondary == "":
			m.Why = "it can't be moved: it is not protected: " + p.Reason
		case p.Preferred != "":
			m.Why = fmt.Sprintf("it prefers %s, and its other copy is on %s", p.Preferred, p.Secondary)
		default:
			free = append(free, i)
		}
		count[p.Primary]++
	}
	for again := true; again; {
		again = false
		for _, i := range free {
			p, m := vms[i], &moves[i]
			if m.To == "" && count[p.Primary]-count[p.Secondary] > 1 {
				m.To, m.Why = p.Secondary, fmt.Sprintf("%d VMs run on %s, %d on %s", count[p.Primary], p.Primary, count[p.Secondary], p.Secondary)
				count[p.Primary]--
				count[p.Secondary]++
				again = true
			}
		}
	}
	for _, i := range free {
		if moves[i].To == "" {
			moves[i].Why = fmt.Sprintf("%d VMs run on %s, %d on %s", count[vms[i].Primary], vms[i].Primary, count[vms[i].Secondary], vms[i].Secondary)
		}
	}
	return moves
}
