package colo_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/arbiter"
	"github.com/coloctl/coloctl/state"
)

// loseRecord makes the arbiter forget a VM.
func (p *bare) loseRecord(id string) {
	p.t.Helper()
	a := p.mem.View("n1")
	rec, err := a.Get(p.t.Context(), id)
	must(p.t, err)
	must(p.t, a.Forget(p.t.Context(), id, rec.Generation))
}

// TestRestoreRecord: an arbiter that has lost its memory gets a running VM's record again, and decides from then on.
func TestRestoreRecord(t *testing.T) {
	p := newBare(t)
	ctx := t.Context()
	p.protect(colo.ProtectionSpec{})
	vm, err := p.stores["n1"].Get("web")
	must(t, err)
	lose := func() { t.Helper(); p.loseRecord(vm.ID) }
	restore := func(node string, want error) {
		t.Helper()
		if err := p.nodes[node].RestoreRecord(ctx, "web"); !errors.Is(err, want) {
			t.Errorf("restore on %s: %v, want %v", node, err, want)
		}
	}
	restore("n1", colo.ErrHasRecord)
	before, err := p.mem.View("n1").Get(ctx, vm.ID)
	must(t, err)
	lose()
	if err := p.nodes["n1"].Unprotect(ctx, "web"); !errors.Is(err, arbiter.ErrNoRecord) {
		t.Errorf("unprotect without a record: %v", err)
	}
	p.await("n1", "the end of that", atRest(colo.Protected, "n1", "n2"))
	if err := p.nodes["n2"].RestoreRecord(ctx, "web"); !errors.As(err, new(*colo.UnexpectedEventError)) {
		t.Errorf("restore by the secondary: %v", err)
	}
	p.mem.SetReachable("n2", false)
	restore("n1", arbiter.ErrUnreachable)
	p.mem.SetReachable("n2", true)
	restore("n1", nil)
	after, err := p.mem.View("n1").Get(ctx, vm.ID)
	must(t, err)
	if after.Generation != before.Generation || len(after.Members) != 2 {
		t.Errorf("the record was %s, is %s", before, after)
	}
	must(t, p.nodes["n1"].Unprotect(ctx, "web"))

	lose()
	restore("n1", nil) // it runs alone
	must(t, p.nodes["n1"].Protect(ctx, "web", colo.ProtectOptions{}))
}

// TestRestoreRecordInOne: two nodes that ask two arbiters would both be told to go on, so neither gets a record.
func TestRestoreRecordInOne(t *testing.T) {
	p := newBare(t)
	ctx := t.Context()
	p.protect(colo.ProtectionSpec{})
	vm, err := p.stores["n1"].Get("web")
	must(t, err)
	first := p.mem.View("n1")
	rec, err := first.Get(ctx, vm.ID)
	must(t, err)
	memory := arbiter.NewMemory()
	second, other := memory.View("n1"), memory.View("n2")
	for g := uint64(1); g <= rec.Generation; g++ {
		_, err := second.Advance(ctx, arbiter.Record{VM: vm.ID, Generation: g, Members: rec.Members, By: "n1"})
		must(t, err)
	}
	p.views["n2"].Store(&other)
	for _, a := range []arbiter.Arbiter{first, second} {
		must(t, a.Forget(ctx, vm.ID, rec.Generation))
	}
	if err := p.nodes["n1"].RestoreRecord(ctx, "web"); !errors.Is(err, colo.ErrOtherArbiter) {
		t.Errorf("restore with two arbiters: %v", err)
	}
	for _, a := range []arbiter.Arbiter{first, second} {
		if rec, err := a.Get(ctx, vm.ID); !errors.Is(err, arbiter.ErrNoRecord) {
			t.Errorf("a record is left: %s, %v", rec, err)
		}
	}
}

// TestTwoArbiters: the peer was restarted with another arbiter, which knows the VM from before. It must not bring that up to date and take its word for it: the first one would let
// this node go on just as well.
func TestTwoArbiters(t *testing.T) {
	p := newBare(t)
	ctx := t.Context()
	p.protect(colo.ProtectionSpec{})
	vm, err := p.stores["n1"].Get("web")
	must(t, err)
	memory := arbiter.NewMemory()
	other := memory.View("n2")
	_, err = memory.View("n1").Advance(ctx, arbiter.Record{VM: vm.ID, Generation: 1, Members: []string{"n1", "n2"}, By: "n1"})
	must(t, err)
	p.views["n2"].Store(&other)
	for { // a slow machine may miss a heartbeat first, which is another reason
		s, err := p.nodes["n1"].Status(ctx, "web")
		must(t, err)
		if s.Verdict.Protected {
			t.Fatalf("the verdict with two arbiters: %+v", s.Verdict)
		}
		if strings.Contains(s.Verdict.Reason, "n2 does not find there") {
			break
		}
	}
	if err := p.nodes["n1"].RestoreRecord(ctx, "web"); !errors.Is(err, colo.ErrHasRecord) {
		t.Errorf("restore with two arbiters: %v", err)
	}
	p.launchers["n1"].Copy("web").Crash()
	p.await("n2", "a refusal", func(s colo.Status) bool { return strings.Contains(s.Why+s.LastError, "is another one") })
	if rec, err := other.Get(ctx, vm.ID); err != nil || rec.Generation != 1 {
		t.Errorf("the other arbiter was changed: %s, %v", rec, err)
	}

	must(t, p.nodes["n1"].Close()) // a person decides
	must(t, p.nodes["n2"].Force(ctx, "web"))
	p.await("n2", "the VM", func(s colo.Status) bool { return s.State == colo.Solo })
}

// TestRestoreRecordOfAStopped: a VM that is down gets its record again where this node's copy is alone and whole by its own record, and can be started then.
func TestRestoreRecordOfAStopped(t *testing.T) {
	t.Parallel()
	p := newBare(t)
	ctx, n1, n2 := t.Context(), p.nodes["n1"], p.nodes["n2"]
	p.protect(colo.ProtectionSpec{})
	vm, err := p.stores["n1"].Get("web")
	must(t, err)
	lose := func() { t.Helper(); p.loseRecord(vm.ID) }
	refused := func(n *colo.Node, why string) {
		t.Helper()
		if err := n.RestoreRecord(ctx, "web"); !errors.As(err, new(*colo.UnexpectedEventError)) {
			t.Errorf("restored on %s, %s: %v", n.Info().Name, why, err)
		}
	}
	must(t, n1.Stop(ctx, "web", colo.StopOptions{Force: true}))
	p.await("n1", "its end", atRest(colo.Stopped, "n1"))
	p.await("n2", "the news", atRest(colo.Outdated, "n1"))
	lose()
	if err := n1.Start(ctx, "web"); !errors.Is(err, arbiter.ErrNoRecord) {
		t.Errorf("started without a record: %v", err)
	}
	refused(n2, "which does not count")
	lacks := func(lacks bool) {
		t.Helper()
		must(t, n1.Close())
		must(t, p.stores["n1"].Update("web", func(v *state.VM) error {
			d := v.Disks["vda"]
			d.InSync = !lacks
			v.Disks["vda"] = d
			return nil
		}))
		p.again("n1")
		n1 = p.nodes["n1"]
	}
	lacks(true)
	refused(n1, "whose disk is incomplete")
	lacks(false)
	must(t, n1.RestoreRecord(ctx, "web"))
	if after, err := p.mem.View("n1").Get(ctx, vm.ID); err != nil || len(after.Members) != 1 || !after.Has("n1") {
		t.Errorf("the record is %s, %v", after, err)
	}
	must(t, n1.Start(ctx, "web"))
	must(t, n1.Protect(ctx, "web", colo.ProtectOptions{}))

	p.powerOff() // both copies are current: neither is alone
	p.restart()
	p.await("n1", "its end", atRest(colo.Stopped, "n1", "n2"))
	lose()
	for _, n := range p.nodes {
		refused(n, "and the other copy may have gone on")
	}
}
