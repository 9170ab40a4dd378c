package lab

import (
	"slices"
	"sort"
	"sync"
	"time"
)

// voiceWindow is how near two frames of one node must be for a frame of the other in between to be a second voice.
const voiceWindow = time.Second

// A Grant is the arbiter's word on who may go on, and when the lab saw it given.
type Grant struct {
	At         int64 // wall clock, ns
	Generation uint64
	Members    []string
}

// Grants records grants. It is safe for concurrent use.
type Grants struct {
	mu   sync.Mutex
	list []Grant
}

// Add records that the members of a generation were granted just now. A generation is recorded once, at the first time it is seen.
func (g *Grants) Add(generation uint64, members []string) { g.AddAt(time.Now(), generation, members) }

// AddAt is Add for one that was granted at a given time.
func (g *Grants) AddAt(at time.Time, generation uint64, members []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if n := len(g.list); n > 0 && g.list[n-1].Generation >= generation {
		return
	}
	g.list = append(g.list, Grant{At: at.UnixNano(), Generation: generation, Members: slices.Clone(members)})
}

// List returns the grants so far, the oldest first.
func (g *Grants) List() []Grant {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.list)
}

// OutputsFromBoth counts the frames that break the rule "one voice". A frame that the LAN got from a node at time t breaks it if
//
//   - the node had no right to speak: the last grant at or before t doesn't name it (there is no grace: who is not sure of its right must
//     be silent before the other can get it), or
//   - both had the right, as the two nodes of a protected VM have, and the frame lies inside the other's speech: the LAN got a frame from
//     the other in the second before t and another in the second after.
//
// So one node falling silent and the other beginning, however soon, is not counted, since no frame then lies between two of the other's.
// Frames and grants are timed by one clock. Without any grant both have the right.
func OutputsFromBoth(a, b string, framesA, framesB []int64, grants []Grant) int {
	return breaches(a, b, framesA, framesB, grants) + breaches(b, a, framesB, framesA, grants)
}

func breaches(node, other string, frames, others []int64, grants []Grant) int {
	n := 0
	for _, t := range frames {
		if !maySpeak(node, t, grants) || maySpeak(other, t, grants) && inside(t, others) {
			n++
		}
	}
	return n
}

func maySpeak(node string, t int64, grants []Grant) bool {
	i := sort.Search(len(grants), func(i int) bool { return grants[i].At > t })
	return i == 0 || slices.Contains(grants[i-1].Members, node)
}

// inside tells whether t lies between two of the times, both within the window.
func inside(t int64, times []int64) bool {
	w := int64(voiceWindow)
	after := sort.Search(len(times), func(i int) bool { return times[i] > t })
	before := sort.Search(len(times), func(i int) bool { return times[i] >= t }) - 1
	return before >= 0 && after < len(times) && t-times[before] <= w && times[after]-t <= w
}
