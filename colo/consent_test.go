package colo_test

import (
	"errors"
	"testing"
	"time"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/arbiter"
)

// TestConsent: a node agrees to be left out only while its copy is silent and can't begin to speak.
func TestConsent(t *testing.T) {
	p := newBare(t)
	ctx := t.Context()
	p.protect(colo.ProtectionSpec{})
	vm, err := p.stores["n1"].Get("web")
	must(t, err)
	without := func(node, vm, why string, agrees bool) {
		t.Helper()
		other := map[string]string{"n1": "n2", "n2": "n1"}[node]
		rec := arbiter.Record{VM: vm, Generation: 9, Members: []string{other}}
		if err := p.nodes[node].Consent(ctx, rec); (err == nil) != agrees {
			t.Errorf("%s, %s: %v", node, why, err)
		}
		rec.Members = []string{node, other}
		if err := p.nodes[node].Consent(ctx, rec); err != nil {
			t.Errorf("%s, %s, to be one of both: %v", node, why, err)
		}
	}
	without("n1", "another VM's id", "which it does not know", true)
	without("n1", vm.ID, "the primary, protected", false)
	without("n2", vm.ID, "the secondary", true)
	must(t, p.nodes["n1"].Unprotect(ctx, "web"))
	without("n1", vm.ID, "runs alone", false)
	without("n2", vm.ID, "outdated", true)
	must(t, p.nodes["n1"].Stop(ctx, "web", colo.StopOptions{}))
	without("n1", vm.ID, "stopped", true)
	must(t, p.nodes["n1"].Start(ctx, "web"))
	p.launchers["n1"].Copy("web").Crash()
	p.await("n1", "its end", func(st colo.Status) bool { return st.State == colo.Stopped })
	without("n1", vm.ID, "crashed", true)
}

// TestConsentOfWhatEnds: a hung primary is outdated as soon as it is to be ended. Until it has ended its node doesn't agree to be left out, nor does it say that no
// copy runs there.
func TestConsentOfWhatEnds(t *testing.T) {
	t.Parallel()
	p := newBare(t)
	ctx := t.Context()
	p.protect(colo.ProtectionSpec{})
	vm, err := p.stores["n1"].Get("web")
	must(t, err)
	c := p.launchers["n1"].Copy("web")
	_, release := c.Stick()
	defer release()
	c.Hang()
	p.await("n1", "its end", func(st colo.Status) bool { return st.State == colo.Outdated && st.Plan != nil })
	for range 20 {
		if err := p.nodes["n1"].Consent(ctx, arbiter.Record{VM: vm.ID, Generation: 9, Members: []string{"n2"}}); err == nil {
			t.Fatal("agrees while its copy lives")
		}
		there, err := p.nodes["n1"].AsPeer().Inquire(ctx, "web")
		must(t, err)
		if !there.Running {
			t.Fatal("says that no copy runs")
		}
		time.Sleep(5 * time.Millisecond)
	}
	release()
	p.await("n1", "its end", func(st colo.Status) bool { return st.Plan == nil && st.PID == 0 })
	if err := p.nodes["n1"].Consent(ctx, arbiter.Record{VM: vm.ID, Generation: 9, Members: []string{"n2"}}); err != nil {
		t.Error(err)
	}
	p.await("n2", "the VM", atRest(colo.Solo, "n2"))
}

// TestSwitchoverEndsSlowly: the news of what a switchover does itself come back from the peer while the old primary, silent already, is still being ended. They change nothing.
func TestSwitchoverEndsSlowly(t *testing.T) {
	t.Parallel()
	p := newBare(t)
	ctx := t.Context()
	p.protect(colo.ProtectionSpec{})
	c := p.launchers["n1"].Copy("web")
	tried, release := c.Stick()
	defer release()
	done := make(chan error, 1)
	go func() { done <- p.nodes["n1"].Switchover(ctx, "web") }()
	<-tried
	st, err := p.nodes["n1"].Status(ctx, "web")
	must(t, err)
	if err := p.nodes["n1"].AsPeer().ReportChannelLost(ctx, colo.Report{VM: "web", From: "n2", Generation: st.Generation}); !errors.Is(err, colo.ErrNothingToGoOn) {
		t.Errorf("the peer is answered: %v", err)
	}
	release()
	if err := <-done; err != nil {
		t.Errorf("the switchover: %v", err)
	}
	p.await("n2", "the VM", atRest(colo.Solo, "n2"))
}
