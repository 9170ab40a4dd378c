package colo_test

import (
	"slices"
	"testing"
	"time"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/internal/lab"
	"github.com/coloctl/coloctl/internal/pairtest"
	"github.com/coloctl/coloctl/netcompare"
)

// TestLinks: a protected VM outlives the loss of each link in turn, and of the first again, as one that is never unprotected. Nothing is left of what the
// kernel was told for it.
func TestLinks(t *testing.T) {
	p := pairtest.New(t, pairtest.Options{Links: 2})
	ctx := t.Context()
	n1 := p.Nodes["n1"]
	if !n1.Info().MPTCP {
		t.Skip("this kernel has no MPTCP")
	}
	host := map[string]netcompare.Host{}
	for name, n := range p.Top.Nodes {
		host[name] = netcompare.Host{Netns: n.Netns()}
	}
	before, err := host["n1"].Limits(ctx)
	must(t, err)
	must(t, n1.Start(ctx, "web"))
	must(t, n1.Protect(ctx, "web", colo.ProtectOptions{}))
	first, err := n1.Status(ctx, "web")
	must(t, err)
	count := first.Checkpoints.Count
	over := func(links ...string) {
		t.Helper()
		for name, n := range p.Nodes { // what the kernel and QEMU say, on both sides
			for end := time.Now().Add(20 * time.Second); ; time.Sleep(100 * time.Millisecond) {
				s, err := n.Status(ctx, "web")
				must(t, err)
				r := s.Replication
				if r != nil && r.Encrypted && r.MPTCP && r.Connections >= 4 && slices.Equal(r.Links, links) {
					break
				}
				if time.Now().After(end) {
					t.Fatalf("%s: %s, replication %+v, expected over %v", name, s.State, r, links)
				}
			}
		}
	}
	over("link0", "link1")
	for _, lost := range []int{0, 1, 0} {
		must(t, p.Top.Links[lost].Cut(lab.CutSilent))
		time.Sleep(4 * time.Second) // longer than a checkpoint may take
		over([]string{"link1", "link0"}[lost])
		must(t, p.Top.Links[lost].Restore())
		over("link0", "link1")
		s, err := n1.Status(ctx, "web")
		must(t, err)
		if s.State != colo.Protected || s.Generation != first.Generation || s.Checkpoints.Count <= count {
			t.Fatalf("link %d was lost: %s (%s), generation %d instead of %d, %d checkpoints after %d", lost, s.State, s.Why, s.Generation, first.Generation, s.Checkpoints.Count, count)
		}
		t.Logf("link %d: %d checkpoints, the longest pause %s", lost, s.Checkpoints.Count-count, s.Checkpoints.PauseP99)
		count = s.Checkpoints.Count
	}
	must(t, n1.Unprotect(ctx, "web"))
	for name, h := range host {
		l, err := h.Limits(ctx)
		must(t, err)
		if left, err := h.Announced(ctx); err != nil || len(left) > 0 || l != before {
			t.Errorf("%s: left behind: %v, limits %+v instead of %+v (%v)", name, left, l, before, err)
		}
	}
	must(t, n1.Stop(ctx, "web", colo.StopOptions{Force: true}))
}
