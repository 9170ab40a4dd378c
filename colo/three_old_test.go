package colo_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coloctl/coloctl/colo"
)

// web makes a VM with three candidates that n1 runs and n2 protects.
func (f *three) web(after time.Duration) {
	f.t.Helper()
	spec := ranked("web", 0, "")
	spec.Nodes, spec.Protection.ReplaceAfter = []string{"n1", "n2", "n3"}, colo.Duration(after)
	must(f.t, f.nodes["n1"].Create(f.t.Context(), spec))
	must(f.t, f.nodes["n1"].Start(f.t.Context(), "web"))
	f.in("n1", "n2")
}

// TestThreeNodesOld: what a replaced node has is not started there, by nobody: not by itself while the arbiter is silent, and not by a person who accepts the loss as long as
// another node that it can ask runs the VM, though the one that it knows as the VM's other node is gone. News from it are no proof of anything.
func TestThreeNodesOld(t *testing.T) {
	t.Parallel()
	f := newThree(t)
	ctx := t.Context()
	f.web(time.Second)
	f.lose("n2")
	f.in("n1", "n3")
	f.mem.SetReachable("n2", false)
	f.lose("n1")
	f.await("n3", "going on", func(s colo.Status) bool { return s.State == colo.Solo })
	f.back("n2") // its record names n1 and itself, n1 is gone, and the arbiter does not answer: only n3 knows
	n2, n3 := f.nodes["n2"], f.nodes["n3"]
	for !n2.PeerAlive() {
		time.Sleep(10 * time.Millisecond)
	}
	f.await("n2", "knowing that n3 runs it", func(s colo.Status) bool { return strings.Contains(s.Outlook, "n3") })
	for _, o := range []colo.StartOptions{{}, {AcceptDataLoss: true}} {
		if err := n2.StartWith(ctx, "web", o); !errors.Is(err, colo.ErrNotCurrent) {
			t.Errorf("n2 starts with %+v: %v", o, err)
		}
	}
	for _, o := range []colo.ForceOptions{{}, {AcceptDataLoss: true}} {
		if err := n2.ForceWith(ctx, "web", o); !errors.Is(err, colo.ErrNotCurrent) {
			t.Errorf("n2 is forced with %+v: %v", o, err)
		}
	}
	if f.launchers["n2"].Copy("web") != nil {
		t.Error("a copy runs on n2")
	}
	f.mem.SetReachable("n2", true)
	f.in("n3", "n2")

	f.back("n1")
	s, err := n3.Status(ctx, "web")
	must(t, err)
	for _, tell := range []func(context.Context, colo.Report) error{n2.AsPeer().ReportDead, n3.AsPeer().ReportDead, n2.AsPeer().ReportChannelLost, n3.AsPeer().ReportChannelLost} {
		if err := tell(ctx, colo.Report{VM: "web", From: "n1", Generation: s.Generation}); !errors.Is(err, colo.ErrNothingToGoOn) {
			t.Errorf("n1, which has no part in it, is heard: %v", err)
		}
	}
	f.in("n3", "n2")
}

// TestThreeNodesRefused: a candidate that can't take a lost node's place does not keep that from coming back, and a person's choice is not taken for another one.
func TestThreeNodesRefused(t *testing.T) {
	t.Parallel()
	f := newThree(t)
	ctx := t.Context()
	f.web(time.Second)
	f.launchers["n3"].Refuse(fmt.Errorf("n3: %w", colo.ErrNoRoom))
	f.lose("n2")
	f.await("n1", "being refused by n3", func(s colo.Status) bool { return strings.Contains(s.LastError+s.Outlook, "n3:") && s.Peer == "n2" })
	f.back("n2")
	f.in("n1", "n2")
	n1 := f.nodes["n1"]
	if err := n1.Protect(ctx, "web", colo.ProtectOptions{Node: "n3"}); err == nil {
		t.Error("it is protected by n2, and by n3 if one believes it")
	}
	must(t, n1.Protect(ctx, "web", colo.ProtectOptions{Node: "n2"}))
	if err := n1.Protect(ctx, "web", colo.ProtectOptions{Node: "n4"}); !errors.Is(err, colo.ErrNoPeer) {
		t.Errorf("by a node that there is not: %v", err)
	}
	must(t, n1.Unprotect(ctx, "web"))
	edited, tag, err := n1.Spec("web")
	must(t, err)
	edited.Nodes = []string{"n2", "n3"}
	edited.Protection.ReplaceAfter = 0
	if err := n1.Edit(ctx, "web", edited, tag); !errors.Is(err, colo.ErrNotCandidate) {
		t.Errorf("n1 keeps a VM that it is no candidate of: %v", err)
	}
	f.launchers["n3"].Refuse(nil)
	edited.Nodes = []string{"n1", "n3"}
	must(t, n1.Edit(ctx, "web", edited, tag))
	must(t, n1.Protect(ctx, "web", colo.ProtectOptions{})) // n2 was its last other node, and is a candidate no more
	f.in("n1", "n3")
}

// TestThreeNodesStorm: nodes, copies and the way to the arbiter are lost and come back in any order.
//
//  1. At no time do two copies speak.
//  2. Who speaks is named by the arbiter's record, before and after.
//  3. When all is well again the VM is protected by two of the three. Only a copy that ended while it was promoted waits for a person: nobody else has what it wrote.
func TestThreeNodesStorm(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 1))
	f := newThree(t)
	t.Logf("seed %d", seed)
	f.web(time.Second)
	rec, err := f.stores["n1"].Get("web")
	must(t, err)
	names := []string{"n1", "n2", "n3"}
	speaks := func() (out []string) {
		for _, name := range names {
			if c := f.launchers[name].Copy("web"); c != nil && c.Joined() {
				out = append(out, name)
			}
		}
		return out
	}
	watched := func(d time.Duration) {
		t.Helper()
		for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
			before := speaks()
			held, err := f.mem.View("n1").Get(t.Context(), rec.ID)
			if after := speaks(); len(before) != 1 || !slices.Equal(before, after) {
				if len(before) > 1 && slices.Equal(before, after) {
					t.Fatalf("%v speak", after)
				}
				continue
			}
			if err == nil && !held.Has(before[0]) {
				t.Fatalf("%s speaks, and the arbiter counts %v", before[0], held.Members)
			}
		}
	}
	down, deaf := map[string]bool{}, map[string]bool{}
	for range 14 {
		name := names[rng.IntN(3)]
		switch what := rng.IntN(5); {
		case down[name]:
			f.back(name)
			delete(down, name)
			t.Logf("%s is back", name)
		case what <= 1:
			f.lose(name)
			down[name] = true
			t.Logf("%s is lost", name)
		case what == 2:
			if c := f.launchers[name].Copy("web"); c != nil {
				t.Logf("the copy on %s crashes", name)
				c.Crash()
			}
		case name != "n1": // whose view is looked at
			deaf[name] = !deaf[name]
			f.mem.SetReachable(name, !deaf[name])
			t.Logf("the arbiter is in reach of %s: %v", name, !deaf[name])
		}
		watched(time.Duration(rng.IntN(1500)) * time.Millisecond)
	}
	for _, name := range names {
		f.mem.SetReachable(name, true)
		if down[name] {
			f.back(name)
		}
	}
	t.Log("all is well")
	for end := time.Now().Add(40 * time.Second); ; watched(100 * time.Millisecond) {
		var what []string
		two := map[colo.State]bool{}
		person := false
		for _, name := range names {
			s, err := f.nodes[name].Status(t.Context(), "web")
			two[s.State] = two[s.State] || err == nil
			person = person || s.State == colo.Failed && slices.Equal(s.Members, []string{name})
			what = append(what, fmt.Sprintf("%s: %s generation %d of %v; %s; %s; %s", name, s.State, s.Generation, s.Members, s.Outlook, s.LastError, s.GivenUp))
		}
		if two[colo.Protected] && two[colo.Secondary] {
			return
		}
		if all := strings.Join(what, "\n"); person || strings.Contains(all, "hold: a disk here is incomplete") {
			t.Log(all)
			return
		}
		if time.Now().After(end) {
			t.Fatalf("it is not protected again:\n%s", strings.Join(what, "\n"))
		}
	}
}
