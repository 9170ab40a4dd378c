package colo

import (
	"slices"
	"testing"
	"time"

	"github.com/coloctl/coloctl/colo/arbiter"
	"github.com/coloctl/coloctl/state"
	"pgregory.net/rapid"
)

func TestColdStart(t *testing.T) {
	both, mine, theirs := []string{"n1", "n2"}, []string{"n1"}, []string{"n2"}
	base := coldFacts{me: "n1", peer: "n2", disks: true, order: 10 * time.Second, rec: state.VM{Generation: 4, Members: both, Role: state.RolePrimary}}
	held := func(gen uint64, members []string) func(*coldFacts) {
		return func(f *coldFacts) { f.answer, f.held = arbiterHolds, arbiter.Record{Generation: gen, Members: members} }
	}
	heldBy := func(gen uint64, members []string, by string) func(*coldFacts) {
		return func(f *coldFacts) {
			f.answer, f.held = arbiterHolds, arbiter.Record{Generation: gen, Members: members, By: by}
		}
	}
	answer := func(a coldAnswer) func(*coldFacts) { return func(f *coldFacts) { f.answer = a } }
	own := func(gen uint64, members []string, r state.Role) func(*coldFacts) {
		return func(f *coldFacts) { f.rec = state.VM{Generation: gen, Members: members, Role: r} }
	}
	there := func(s State, gen uint64, members []string) func(*coldFacts) {
		return func(f *coldFacts) {
			f.heard, f.peerHas = true, true
			f.there = PeerVM{State: s, Generation: gen, Members: members, Running: s == Solo || s == Protected || s == Standby || s == Secondary}
		}
	}
	unwanted := func(f *coldFacts) { f.there.Want = WantStopped }
	broken := func(f *coldFacts) { f.disks = false }
	after := func(d time.Duration) func(*coldFacts) { return func(f *coldFacts) { f.waited = d } }
	for _, c := range []struct {
		name string
		with []func(*coldFacts)
		want coldAction
	}{
		{"its owner has stopped it", []func(*coldFacts){held(4, both), there(Stopped, 4, both), unwanted}, coldRest},
		{"its owner has stopped an older one", []func(*coldFacts){held(4, both), there(Stopped, 3, both), unwanted}, coldStart},
		{"new", []func(*coldFacts){own(0, nil, ""), answer(emptyArbiter)}, coldStart},
		{"both died, arbiter, primary", []func(*coldFacts){held(4, both)}, coldStart},
		{"both died, arbiter, secondary waits", []func(*coldFacts){held(4, both), own(4, both, state.RoleSecondary)}, coldWait},
		{"both died, arbiter, secondary alone", []func(*coldFacts){held(4, both), own(4, both, state.RoleSecondary), after(11 * time.Second)}, coldStart},
		{"peer is about to go on", []func(*coldFacts){held(4, both), there(Secondary, 4, both)}, coldWait},
		{"peer has a standby", []func(*coldFacts){held(4, both), there(Standby, 4, both)}, coldStart},
		{"peer went on", []func(*coldFacts){held(5, theirs)}, coldWait},
		{"peer runs it", []func(*coldFacts){held(5, theirs), there(Solo, 5, theirs)}, coldWait},
		{"own record is stale", []func(*coldFacts){answer(silentArbiter), own(5, theirs, "")}, coldWait},
		{"own record is stale, the peer has handed it over", []func(*coldFacts){held(6, mine), own(5, theirs, "")}, coldStart},
		{"own record is stale, the arbiter's is older", []func(*coldFacts){held(4, mine), own(5, theirs, "")}, coldWait},
		{"handed over, incomplete", []func(*coldFacts){held(6, mine), own(5, theirs, ""), broken}, coldHold},
		{"alone", []func(*coldFacts){own(5, mine, state.RolePrimary), held(5, mine)}, coldStart},
		{"alone, arbiter silent", []func(*coldFacts){own(5, mine, state.RolePrimary), answer(silentArbiter)}, coldStart},
		{"alone, but has not gone on, arbiter silent", []func(*coldFacts){own(5, mine, state.RoleSecondary), answer(silentArbiter)}, coldHold},
		{"won, not noted", []func(*coldFacts){own(4, both, state.RoleSecondary), heldBy(5, mine, "n1")}, coldStart},
		{"went on, not noted", []func(*coldFacts){own(4, both, state.RoleSecondary), heldBy(6, mine, "n1")}, coldHold},
		{"went on, not noted, role forgotten", []func(*coldFacts){own(4, theirs, ""), heldBy(6, mine, "n1")}, coldHold},
		{"went on, only the win noted", []func(*coldFacts){own(5, mine, state.RoleSecondary), heldBy(6, mine, "n1")}, coldHold},
		{"was handed over, not noted", []func(*coldFacts){own(4, both, state.RoleSecondary), heldBy(6, mine, "n2")}, coldStart},
		{"alone, incomplete", []func(*coldFacts){own(5, mine, state.RolePrimary), held(5, mine), broken}, coldHold},
		{"arbiter lost its memory, alone", []func(*coldFacts){own(5, mine, state.RolePrimary), answer(emptyArbiter)}, coldHold},
		{"arbiter lost its memory", []func(*coldFacts){answer(emptyArbiter)}, coldHold},
		{"no arbiter, peer silent", []func(*coldFacts){answer(noArbiter)}, coldHold},
		{"arbiter silent, peer silent", []func(*coldFacts){answer(silentArbiter)}, coldHold},
		{"arbiter silent, peer agrees", []func(*coldFacts){answer(silentArbiter), there(Stopped, 4, both)}, coldAgree},
		{"no arbiter, peer was primary", []func(*coldFacts){answer(noArbiter), there(Stopped, 4, both), own(4, both, state.RoleSecondary)}, coldWait},
		{"no arbiter, peer is newer", []func(*coldFacts){answer(noArbiter), there(Stopped, 5, theirs)}, coldWait},
		{"no arbiter, peer forgot the VM", []func(*coldFacts){answer(noArbiter), func(f *coldFacts) { f.heard = true }}, coldHold},
	} {
		f := base
		for _, w := range c.with {
			w(&f)
		}
		if got, why := decideCold(f); got != c.want || why == "" {
			t.Errorf("%s: %s (%s), want %s", c.name, got, why, c.want)
		}
	}
}

// TestColdStartIsSafe checks over all kinds of facts that a start is never decided when
//  1. this node's own record or the arbiter's names others only, and the newer one is not the arbiter's word that this node alone counts;
//  2. a disk here is incomplete;
//  3. both copies are current and neither the arbiter nor the peer could be asked.
func TestColdStartIsSafe(t *testing.T) {
	sets := [][]string{{"n1"}, {"n2"}, {"n1", "n2"}}
	rapid.Check(t, func(t *rapid.T) {
		f := coldFacts{
			me: "n1", peer: "n2", order: 10 * time.Second, disks: rapid.Bool().Draw(t, "disks"), heard: rapid.Bool().Draw(t, "heard"),
			answer: rapid.SampledFrom([]coldAnswer{noArbiter, silentArbiter, emptyArbiter, arbiterHolds}).Draw(t, "answer"),
			waited: time.Duration(rapid.IntRange(0, 20).Draw(t, "waited")) * time.Second,
			rec: state.VM{
				Generation: rapid.Uint64Range(1, 4).Draw(t, "gen"), Members: rapid.SampledFrom(sets).Draw(t, "members"),
				Role: rapid.SampledFrom([]state.Role{"", state.RolePrimary, state.RoleSecondary}).Draw(t, "role"),
			},
			held: arbiter.Record{Generation: rapid.Uint64Range(1, 4).Draw(t, "heldgen"), Members: rapid.SampledFrom(sets).Draw(t, "held"), By: rapid.SampledFrom([]string{"n1", "n2"}).Draw(t, "by")},
		}
		f.there = PeerVM{
			State: rapid.SampledFrom(allStates).Draw(t, "there"), Generation: rapid.Uint64Range(0, 4).Draw(t, "theirs"),
			Members: rapid.SampledFrom(sets).Draw(t, "theirset"), Running: rapid.Bool().Draw(t, "running"),
		}
		f.peerHas = f.heard && rapid.Bool().Draw(t, "knows")
		action, why := decideCold(f)
		if action != coldStart && action != coldAgree {
			return
		}
		trusted := f.answer == arbiterHolds && f.held.Generation > f.rec.Generation && slices.Equal(f.held.Members, []string{"n1"})
		switch {
		case !slices.Contains(f.rec.Members, "n1") && !trusted, f.answer == arbiterHolds && !f.held.Has("n1"):
			t.Fatalf("%s although others are current: %s", action, why)
		case f.answer == arbiterHolds && hidden(f.rec, f.held, "n1"):
			t.Fatalf("%s although this copy may have gone on without a note: %s", action, why)
		case !f.disks:
			t.Fatalf("%s with an incomplete disk: %s", action, why)
		case len(f.rec.Members) == 2 && f.answer != arbiterHolds && !f.peerHas:
			t.Fatalf("%s although nobody could be asked: %s", action, why)
		}
	})
}

// TestRunsThere: who waits for a VM that runs on the peer says what its owner wants, not what the peer would do if it were asked.
func TestRunsThere(t *testing.T) {
	f := coldFacts{me: "n1", peer: "n2", heard: true, peerHas: true, there: PeerVM{State: Solo, Running: true, Generation: 2, Members: []string{"n2"}}}
	for want, text := range map[string]string{
		WantProtected: "it runs on n2, which takes this node back as its standby",
		"":            "it runs on n2, which takes this node back as its standby", // of a version that doesn't say
		WantRunning:   "it runs on n2 alone, as its owner wants, until it is protected again",
	} {
		f.there.Want = want
		if a, why := decideCold(f); a != coldWait || why != text {
			t.Errorf("%q: %s: %s", want, a, why)
		}
	}
}
