package colo_test

import (
	"errors"
	"testing"
	"time"

	"github.com/coloctl/coloctl/colo"
)

// TestStopOfWhatIsDown: a VM that is down but wanted is stopped by its owner. Neither node starts it by itself any more, also after both were off.
func TestStopOfWhatIsDown(t *testing.T) {
	t.Parallel()
	p := newBare(t)
	p.protect(colo.ProtectionSpec{})
	p.powerOff()
	p.restart()
	down := func(st colo.Status) bool {
		return (st.State == colo.Stopped || st.State == colo.Outdated) && st.Plan == nil
	}
	p.await("n1", "its end", down)
	if st := p.await("n2", "its end", down); st.Want != colo.WantProtected {
		t.Errorf("n2's owner wants it %q", st.Want)
	}
	must(t, p.nodes["n1"].Stop(t.Context(), "web", colo.StopOptions{}))
	p.recovery = &colo.Recovery{HoldDown: 100 * time.Millisecond, PrimaryFirst: 100 * time.Millisecond}
	p.powerOff()
	p.restart()
	for _, name := range []string{"n1", "n2"} {
		p.await(name, "its owner's wish", func(st colo.Status) bool { return st.Want == colo.WantStopped && down(st) })
	}
	time.Sleep(2 * time.Second) // nothing is to happen
	for _, name := range []string{"n1", "n2"} {
		p.await(name, "nothing", down)
		if p.launchers[name].Copy("web") != nil {
			t.Errorf("%s has started it by itself", name)
		}
	}
}

// TestRefusedIsNotWanted: what a node refuses to do changes nothing in what it remembers of the owner's wishes.
func TestRefusedIsNotWanted(t *testing.T) {
	t.Parallel()
	p := newBare(t)
	p.protect(colo.ProtectionSpec{})
	n2 := p.nodes["n2"]
	for name, err := range map[string]error{"unprotect": n2.Unprotect(t.Context(), "web"), "protect": n2.Protect(t.Context(), "web", colo.ProtectOptions{})} {
		if !errors.As(err, new(*colo.UnexpectedEventError)) {
			t.Errorf("%s of a secondary: %v", name, err)
		}
	}
	p.await("n2", "its owner's wish", func(st colo.Status) bool { return st.Want == colo.WantProtected })
	must(t, p.nodes["n1"].Unprotect(t.Context(), "web"))
	p.await("n1", "its owner's wish", func(st colo.Status) bool { return st.Want == colo.WantRunning })
}

// TestSecondaryIsNotOutrun: a node whose primary has ended doesn't start it again while the other copy lives and has not noticed yet.
func TestSecondaryIsNotOutrun(t *testing.T) {
	t.Parallel()
	p := newBare(t)
	p.recovery = &colo.Recovery{HoldDown: 100 * time.Millisecond, PrimaryFirst: 100 * time.Millisecond}
	p.powerOff()
	p.restart()
	p.protect(colo.ProtectionSpec{})
	c := p.launchers["n2"].Copy("web")
	p.launchers["n1"].Copy("web").Crash()
	p.await("n2", "the VM", func(st colo.Status) bool { return st.State == colo.Protected })
	if p.launchers["n2"].Copy("web") != c {
		t.Error("the guest was booted again")
	}
}
