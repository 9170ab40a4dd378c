package colo_test

import (
	"context"
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

// TestRefusedProtect: what is refused is not done later either, also when the node acts by itself.
func TestRefusedProtect(t *testing.T) {
	t.Parallel()
	p := newBare(t)
	p.powerOff()
	p.recovery = &colo.Recovery{HoldDown: 10 * time.Millisecond}
	p.restart()
	ctx, n1 := t.Context(), p.nodes["n1"]
	must(t, n1.Create(ctx, &colo.Spec{Name: "web", Memory: 64 << 20, Disks: []colo.DiskSpec{{Name: "vda", File: "vda.raw", Size: 1 << 20}}}))
	refused := func(when string) {
		t.Helper()
		if _, err := n1.Preview("web", colo.ReqProtect); !errors.As(err, new(*colo.UnexpectedEventError)) {
			t.Errorf("%s: preview: %v", when, err)
		}
		if err := n1.Protect(ctx, "web", colo.ProtectOptions{}); !errors.As(err, new(*colo.UnexpectedEventError)) {
			t.Errorf("%s: %v", when, err)
		}
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if st, err := n1.Wait(short, "web", func(st colo.Status) bool { return st.State != colo.Stopped }); err == nil {
			t.Errorf("%s: it is %s: %s", when, st.State, st.Why)
		}
	}
	refused("new")
	must(t, n1.Start(ctx, "web"))
	must(t, n1.Stop(ctx, "web", colo.StopOptions{Force: true}))
	p.await("n1", "its end", func(st colo.Status) bool { return st.State == colo.Stopped })
	refused("stopped")
}

// TestStopForgetsGivenUp: what recovery has given up is no news any more once the owner has stopped the VM.
func TestStopForgetsGivenUp(t *testing.T) {
	t.Parallel()
	p := newBare(t)
	p.powerOff()
	p.recovery = &colo.Recovery{HoldDown: 10 * time.Millisecond, Attempts: 1}
	p.restart()
	ctx, n1 := t.Context(), p.nodes["n1"]
	p.launchers["n2"].Refuse(errors.New("no such bridge"))
	must(t, n1.Create(ctx, &colo.Spec{Name: "web", Memory: 64 << 20, Disks: []colo.DiskSpec{{Name: "vda", File: "vda.raw", Size: 1 << 20}}}))
	must(t, n1.Start(ctx, "web"))
	p.await("n1", "being given up", func(st colo.Status) bool { return st.GivenUp != "" && st.State == colo.Solo && st.Plan == nil })
	must(t, n1.Stop(ctx, "web", colo.StopOptions{Force: true}))
	if st := p.await("n1", "its end", func(st colo.Status) bool { return st.State == colo.Stopped }); st.GivenUp != "" {
		t.Errorf("stopped by its owner, and %s", st.GivenUp)
	}
}

// TestLearntFromPeer: a VM that a node has only heard of from its peer is the peer's: it isn't started here from disks that were never equal.
func TestLearntFromPeer(t *testing.T) {
	t.Parallel()
	p := newAlone(t)
	ctx, n1, n2 := t.Context(), p.nodes["n1"], p.nodes["n2"]
	p.launchers["n2"].Refuse(errors.New("no such bridge"))
	must(t, n1.Create(ctx, &colo.Spec{Name: "web", Memory: 64 << 20, Disks: []colo.DiskSpec{{Name: "vda", File: "vda.raw", Size: 1 << 20}}}))
	must(t, n1.Start(ctx, "web"))
	if err := n1.Protect(ctx, "web", colo.ProtectOptions{}); err == nil {
		t.Fatal("protected by a node that can't")
	}
	p.launchers["n2"].Refuse(nil)
	p.wire.SetUp(false)
	if err := n2.Start(ctx, "web"); !errors.Is(err, colo.ErrNotCurrent) {
		t.Errorf("n2 starts it: %v", err)
	}
}
