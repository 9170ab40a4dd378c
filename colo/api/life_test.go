package api

import (
	"context"
	"errors"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coloctl/coloctl/blockrepl"
	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/api/pki"
	"github.com/coloctl/coloctl/state"
)

// TestLife takes a VM through its life on two nodes that know each other only through their servers.
func TestLife(t *testing.T) {
	s := newSite(t)
	ctx := t.Context()
	c, peer := s.admin("n1"), s.admin("n2")
	s.create(c)
	op := done(t, c)(c.Start(ctx, "web", Request{Reason: "monday"}))
	if op.State != Done || op.By != "alice (admin)" || op.Reason != "monday" || len(op.Steps) < 3 || op.Steps[0].Plan != "start" || op.Steps[len(op.Steps)-1].Ended.IsZero() {
		t.Errorf("start: %+v", op)
	}
	op = done(t, c)(c.Protect(ctx, "web", ResyncRequest{}))
	if last := op.Steps[len(op.Steps)-1]; last.Index != last.Of-1 || last.Error != "" {
		t.Errorf("protect ended with step %+v", last)
	}
	both, err := c.Status(ctx, "web", true)
	must(t, err)
	if both.State != colo.Protected || both.Other == nil || both.Other.State != colo.Secondary || both.Other.Node != "n2" {
		t.Errorf("both halves: %+v, other %+v %s", both.Status, both.Other, both.OtherError)
	}
	if v := both.Verdict; !v.Protected {
		t.Errorf("verdict: %+v", v)
	}
	if _, err := c.Resync(ctx, "web", ResyncRequest{Mode: blockrepl.Full}); !errors.As(err, new(*colo.UnexpectedEventError)) {
		t.Errorf("resync of a protected VM: %v", err)
	}
	done(t, c)(c.Switchover(ctx, "web", Request{}))
	st, err := peer.Status(ctx, "web", false)
	must(t, err)
	if st.State != colo.Solo {
		t.Errorf("after the switchover n2 is %s", st.State)
	}
	done(t, peer)(peer.Resync(ctx, "web", ResyncRequest{Mode: blockrepl.Full, Request: Request{Reason: "by hand"}}))
	done(t, peer)(peer.Unprotect(ctx, "web", Request{}))
	done(t, peer)(peer.Stop(ctx, "web", StopRequest{Timeout: 5}))
	h, err := c.History(ctx, "web", state.Query{})
	must(t, err)
	var lines []string
	for _, e := range h {
		lines = append(lines, e.Kind+": "+e.Text)
	}
	if all := strings.Join(lines, "\n"); !strings.Contains(all, "request: start asked for by alice (admin): monday") || !strings.Contains(all, "state: protected") {
		t.Errorf("history of n1:\n%s", all)
	}
	if h, err = c.History(ctx, "", state.Query{After: h[1].Seq, Limit: 2, Since: time.Now().Add(-time.Hour)}); err != nil || len(h) != 2 {
		t.Errorf("part of the history: %v, %v", h, err)
	}
	must(t, peer.Delete(ctx, "web", DeleteRequest{Images: true, Reason: "of no use"}))
	if vms, err := peer.VMs(ctx); err != nil || len(vms) != 0 {
		t.Errorf("after the delete: %v, %v", vms, err)
	}
	reason := func() bool { // written behind the answer
		h, err := peer.History(ctx, "web", state.Query{})
		must(t, err)
		return slices.ContainsFunc(h, func(e state.Entry) bool { return strings.HasSuffix(e.Text, ": of no use") })
	}
	for until := time.Now().Add(5 * time.Second); !reason(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(until) {
			t.Fatal("the reason of the delete is not in the history")
		}
	}
	ops, err := peer.Operations(ctx, "web")
	if err != nil || len(ops) != 3 || ops[0].Kind != "resync" || ops[2].Kind != "stop" {
		t.Errorf("operations: %+v, %v", ops, err)
	}
}

// TestFailover loses the primary: the secondary goes on through the arbiter, told by the peer's report over the wire.
func TestFailover(t *testing.T) {
	s := newSite(t)
	ctx := t.Context()
	c, peer := s.admin("n1"), s.admin("n2")
	s.create(c)
	done(t, c)(c.Start(ctx, "web", Request{}))
	done(t, c)(c.Protect(ctx, "web", ResyncRequest{}))
	s.hosts["n1"].launcher.Copy("web").Crash()
	wctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if st, err := s.hosts["n2"].node.Wait(wctx, "web", func(st colo.Status) bool { return st.State == colo.Solo }); err != nil {
		t.Fatalf("n2 did not go on: %+v %v", st, err)
	}
	if !s.hosts["n2"].launcher.Copy("web").Joined() {
		t.Error("the survivor is silent")
	}
	if _, err := peer.Failover(ctx, "web", FailoverRequest{Force: true, Confirm: "web"}); err != nil {
		t.Error("accepted to be refused by the engine:", err)
	}
	ops, err := peer.Operations(ctx, "")
	must(t, err)
	_, err = peer.Wait(ctx, ops[0].ID, nil)
	var refused *colo.UnexpectedEventError
	if !errors.As(err, &refused) || refused.State != colo.Solo || refused.VM != "web" {
		t.Errorf("a failover of a VM that is well: %v", err)
	}
}

func TestProgressAndCancel(t *testing.T) {
	s := newSite(t)
	ctx := t.Context()
	c := s.admin("n1")
	s.create(c)
	done(t, c)(c.Start(ctx, "web", Request{}))
	release := s.hosts["n1"].launcher.HoldSync()
	defer release()
	op, err := c.Protect(ctx, "web", ResyncRequest{})
	must(t, err)
	if op.State != Running || !op.Cancellable {
		t.Errorf("begun: %+v", op)
	}
	wctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	var half *colo.Progress
	op, err = c.Wait(wctx, op.ID, func(o Operation) {
		if p := o.Progress; p != nil && half == nil && p.Done == 50<<20 {
			half = p
			_, err := c.Cancel(ctx, o.ID)
			must(t, err)
		}
	})
	if half == nil || half.Total != 100<<20 || half.Rate <= 0 || half.ETA <= 0 {
		t.Errorf("progress at the half: %+v", half)
	}
	if op.State != Cancelled || err == nil {
		t.Fatalf("cancelled: %+v, %v", op, err)
	}
	if st, err := c.Status(ctx, "web", false); err != nil || st.State != colo.Solo {
		t.Errorf("after the cancelling: %s, %v", st.State, err)
	}
	for id, want := range map[string]error{op.ID: ErrNotCancellable, "x-1": ErrNoOperation, strings.Split(op.ID, "-")[0] + "-99": ErrNoOperation} {
		if _, err := c.Cancel(ctx, id); !errors.Is(err, want) {
			t.Errorf("cancel of %s: %v", id, err)
		}
	}
	if _, err := c.Operation(ctx, "cafe-1", 0); err == nil || !strings.Contains(err.Error(), "restarted") {
		t.Errorf("an operation of another run: %v", err)
	}
}

// TestKeyMakesOneOperation sends a request twice, as a client does that has lost the answer.
func TestKeyMakesOneOperation(t *testing.T) {
	s := newSite(t)
	c := s.admin("n1")
	s.create(c)
	k := &call{method: "POST", path: []string{"v1", "vms", "web", "start"}, header: map[string][]string{"Idempotency-Key": {"k1"}}}
	var a, b, other Operation
	_, err := c.do(t.Context(), k, &a)
	must(t, err)
	_, err = c.do(t.Context(), k, &b)
	must(t, err)
	if a.ID != b.ID {
		t.Errorf("two operations: %s, %s", a.ID, b.ID)
	}
	_, err = s.as(pki.Operator, "bob", "n1").do(t.Context(), k, &other)
	must(t, err)
	if other.ID == a.ID {
		t.Error("somebody else's key was taken for this one's")
	}
}

func TestDryRun(t *testing.T) {
	s := newSite(t)
	ctx := t.Context()
	c := s.admin("n1")
	s.create(c)
	p, err := c.DryRun(ctx, "web", "start", Request{})
	must(t, err)
	if len(p.Previews) != 1 || p.Previews[0].To != colo.Starting || len(p.Previews[0].Steps) < 3 {
		t.Errorf("%+v", p)
	}
	if _, err := c.DryRun(ctx, "web", "protect", ResyncRequest{}); !errors.As(err, new(*colo.UnexpectedEventError)) {
		t.Errorf("dry run of what is not possible: %v", err)
	}
	var e *Error
	if _, err := c.DryRun(ctx, "web", "switchover", Request{}); !errors.As(err, &e) || e.Body.Exit != ExitNotRunning {
		t.Errorf("exit code for a VM that doesn't run: %+v", err)
	}
	if st, err := c.Status(ctx, "web", false); err != nil || st.State != colo.Stopped {
		t.Errorf("after dry runs: %s, %v", st.State, err)
	}
	if ops, err := c.Operations(ctx, ""); err != nil || len(ops) != 0 {
		t.Errorf("operations of dry runs: %v, %v", ops, err)
	}
}

func TestSpec(t *testing.T) {
	s := newSite(t)
	ctx := t.Context()
	c := s.admin("n1")
	s.create(c)
	if _, err := c.Create(ctx, SpecText{YAML: []byte(webYAML)}); !errors.Is(err, colo.ErrVMExists) {
		t.Errorf("created twice: %v", err)
	}
	text, tag, err := c.Spec(ctx, "web")
	must(t, err)
	more := strings.Replace(string(text), "256MiB", "512MiB", 1)
	vm, err := c.SetSpec(ctx, "web", SpecText{YAML: []byte(more)}, tag)
	must(t, err)
	if vm.Spec.Memory != 512<<20 || vm.Tag == tag {
		t.Errorf("changed: %+v, tag %s", vm.Spec, vm.Tag)
	}
	if _, err := c.SetSpec(ctx, "web", SpecText{YAML: text}, tag); !errors.Is(err, colo.ErrSpecChanged) {
		t.Errorf("over somebody else's change: %v", err)
	}
	done(t, c)(c.Start(ctx, "web", Request{}))
	slower := regexp.MustCompile(`checkpoint-delay: \w+`).ReplaceAllString(more, "checkpoint-delay: 900ms")
	if slower == more {
		t.Fatalf("no checkpoint-delay in\n%s", more)
	}
	if vm, err = c.SetSpec(ctx, "web", SpecText{YAML: []byte(slower)}, ""); err != nil || vm.Spec.Protection.CheckpointDelay != colo.Duration(900*time.Millisecond) {
		t.Errorf("protection changed while it runs alone: %+v, %v", vm.Spec, err)
	}
	op := strings.Replace(slower, "512MiB", "1GiB", 1)
	if _, err := c.SetSpec(ctx, "web", SpecText{YAML: []byte(op)}, ""); !errors.Is(err, colo.ErrNotWhileRunning) {
		t.Errorf("memory changed while it runs: %v", err)
	}
	done(t, c)(c.Protect(ctx, "web", ResyncRequest{}))
	if _, err := c.SetSpec(ctx, "web", SpecText{YAML: []byte(slower)}, ""); !errors.As(err, new(*colo.UnexpectedEventError)) {
		t.Errorf("changed while it is protected: %v", err)
	}
	bad := strings.Replace(slower, "size: 64MiB", "size: 64Mi", 1)
	if bad == slower {
		t.Fatalf("no size in\n%s", slower)
	}
	_, err = c.SetSpec(ctx, "web", SpecText{YAML: []byte(bad), File: "web.yaml"}, "")
	var inv *colo.InvalidSpecError
	if !errors.As(err, &inv) || inv.Line == 0 || inv.File != "web.yaml" || !strings.Contains(inv.Field, "size") {
		t.Errorf("nonsense while it is protected: %v (%+v)", err, inv)
	}
	if _, err := c.SetSpec(ctx, "web", SpecText{YAML: []byte(strings.Replace(webYAML, "name: web", "name: www", 1))}, ""); !errors.As(err, &inv) || inv.Field != "$.name" {
		t.Errorf("renamed: %v", err)
	}
	if _, err := c.SetSpec(ctx, "nope", SpecText{YAML: text}, ""); !errors.Is(err, colo.ErrNoVM) {
		t.Errorf("of no VM: %v", err)
	}
}
