package lab

import (
	"cmp"
	"fmt"
	"slices"
	"sort"
	"sync"
	"time"

	"github.com/coloctl/coloctl/colo/arbiter"
)

// voiceWindow is how near two frames of one node must be for a frame of the other in between to be a second voice.
const voiceWindow = time.Second

// A Grant is the arbiter's word on who may go on, and when the lab saw it given.
type Grant struct {
	At         int64 // wall clock, ns
	Generation uint64
	Members    []string
}

// Grants records grants, for each VM by its id at the arbiter. It is safe for concurrent use.
type Grants struct {
	mu   sync.Mutex
	vms  []string // in the order in which they were heard of
	list map[string][]Grant
}

// Add records what was granted at a time. A VM's generation is recorded once, at the first time it is seen.
func (g *Grants) Add(at time.Time, rec arbiter.Record) {
	g.mu.Lock()
	defer g.mu.Unlock()
	old, known := g.list[rec.VM]
	if !known {
		g.vms = append(g.vms, rec.VM)
		if g.list == nil {
			g.list = map[string][]Grant{}
		}
	}
	if n := len(old); n > 0 && old[n-1].Generation >= rec.Generation {
		return
	}
	g.list[rec.VM] = append(old, Grant{At: at.UnixNano(), Generation: rec.Generation, Members: slices.Clone(rec.Members)})
}

// VMs are the ids of all VMs, in the order in which they were heard of.
func (g *Grants) VMs() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.vms)
}

// Of returns a VM's grants so far, the oldest first.
func (g *Grants) Of(vm string) []Grant {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.list[vm])
}

// List returns the grants of the VM that was heard of first, which is the only one of most labs.
func (g *Grants) List() []Grant {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.vms) == 0 {
		return nil
	}
	return slices.Clone(g.list[g.vms[0]])
}

// A Breach is a frame that breaks the rule "one voice".
type Breach struct {
	Node string
	At   int64 // wall clock, ns
}

// Breaches returns the frames that break the rule, the oldest first. A frame that the LAN got from a node at time t breaks it if
//
//   - the node had no right to speak: the last grant at or before t doesn't name it (there is no grace: who is not sure of its right must
//     be silent before the other can get it), or
//   - it had the right together with another, as the two nodes of a protected VM have, and the frame lies inside the other's speech: the LAN
//     got a frame from the other in the second before t and another in the second after.
//
// So one node falling silent and the other beginning, however soon, is not counted, since no frame then lies between two of the other's.
// Frames and grants are timed by one clock. Without any grant all have the right.
func Breaches(frames map[string][]int64, grants []Grant) []Breach {
	var out []Breach
	for node, times := range frames {
		for _, t := range times {
			breach := !maySpeak(node, t, grants)
			for other, others := range frames {
				breach = breach || other != node && maySpeak(other, t, grants) && inside(t, others)
			}
			if breach {
				out = append(out, Breach{node, t})
			}
		}
	}
	slices.SortFunc(out, func(a, b Breach) int { return cmp.Compare(a.At, b.At) })
	return out
}

// describe says when a frame of some kind broke the rule, and what the arbiter had said.
func (b Breach) describe(kind uint16, grants []Grant) string {
	at := func(ns int64) string { return time.Unix(0, ns).UTC().Format("15:04:05.000000") }
	text := fmt.Sprintf("%s: a frame of type %#04x from %s", at(b.At), kind, b.Node)
	if i := lastGrant(b.At, grants); i >= 0 {
		text += fmt.Sprintf("; generation %d of %v since %s", grants[i].Generation, grants[i].Members, at(grants[i].At))
	}
	return text
}

func maySpeak(node string, t int64, grants []Grant) bool {
	i := lastGrant(t, grants)
	return i < 0 || slices.Contains(grants[i].Members, node)
}

// lastGrant is the place of the last grant at or before t; -1 when there is none.
func lastGrant(t int64, grants []Grant) int {
	return sort.Search(len(grants), func(i int) bool { return grants[i].At > t }) - 1
}

// inside tells whether t lies between two of the times, both within the window.
func inside(t int64, times []int64) bool {
	w := int64(voiceWindow)
	after := sort.Search(len(times), func(i int) bool { return times[i] > t })
	before := sort.Search(len(times), func(i int) bool { return times[i] >= t }) - 1
	return before >= 0 && after < len(times) && t-times[before] <= w && times[after]-t <= w
}
