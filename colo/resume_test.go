package colo_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/state"
)

// again makes a node anew, as a daemon that comes after another.
func (p *bare) again(name string) {
	p.t.Helper()
	must(p.t, p.nodes[name].Close())
	must(p.t, p.stores[name].Close())
	p.open(name)
	must(p.t, p.wire.Replace(p.nodes[name]))
}

// TestLoneCopyAnswersLate: a lone QEMU doesn't answer when the node starts. It is not killed, the status says that it is asked again, and when it answers the VM goes on as
// if nothing had happened; also after one more restart in between.
func TestLoneCopyAnswersLate(t *testing.T) {
	t.Parallel()
	p := newBare(t)
	p.protect(colo.ProtectionSpec{})
	must(t, p.nodes["n1"].Unprotect(t.Context(), "web"))
	p.launchers["n1"].Mute(errors.New("no answer"))
	silent := func(st colo.Status) bool {
		return st.State == colo.Failed && strings.Contains(st.Why, "does not answer") && strings.Contains(st.Outlook, "asking it again in")
	}
	for range 2 {
		p.again("n1")
		p.await("n1", "the silence to be noticed", silent)
	}
	var refused *colo.UnexpectedEventError
	if err := p.nodes["n1"].Stop(t.Context(), "web", colo.StopOptions{}); !errors.As(err, &refused) || !strings.Contains(err.Error(), "--force") {
		t.Errorf("a guest that can't be asked was stopped: %v", err)
	}
	c := p.launchers["n1"].Copy("web")
	if c == nil {
		t.Fatal("the only current copy was ended")
	}
	p.launchers["n1"].Mute(nil)
	p.await("n1", "the VM", func(st colo.Status) bool { return st.State == colo.Solo && st.Plan == nil && st.Outlook == "" })
	if p.launchers["n1"].Copy("web") != c {
		t.Error("it is another copy")
	}
	must(t, p.nodes["n1"].Protect(t.Context(), "web", colo.ProtectOptions{}))
}

// TestLoneCopyEndsUnheard: such a QEMU ends. The VM is stopped then, and can be started again.
func TestLoneCopyEndsUnheard(t *testing.T) {
	t.Parallel()
	p := newBare(t)
	p.protect(colo.ProtectionSpec{})
	must(t, p.nodes["n1"].Unprotect(t.Context(), "web"))
	p.launchers["n1"].Mute(errors.New("no answer"))
	p.again("n1")
	p.await("n1", "the silence to be noticed", func(st colo.Status) bool { return st.State == colo.Failed })
	p.launchers["n1"].Copy("web").Crash()
	p.launchers["n1"].Mute(nil)
	p.await("n1", "its end", func(st colo.Status) bool { return st.State == colo.Stopped })
	must(t, p.nodes["n1"].Start(t.Context(), "web"))
}

// TestSpecUnread: the stored spec of a VM that runs can't be read, as by an older version. Its QEMU is left alone, nobody is told that none runs, no second one is started, and a version
// that can read the spec takes it up.
func TestSpecUnread(t *testing.T) {
	t.Parallel()
	p := newBare(t)
	p.protect(colo.ProtectionSpec{})
	must(t, p.nodes["n1"].Unprotect(t.Context(), "web"))
	c := p.launchers["n1"].Copy("web")
	swap := func(text []byte) (was []byte) {
		must(t, p.nodes["n1"].Close())
		must(t, p.stores["n1"].Update("web", func(v *state.VM) error { was, v.Spec = v.Spec, text; return nil }))
		must(t, p.stores["n1"].Close())
		p.open("n1")
		must(t, p.wire.Replace(p.nodes["n1"]))
		return was
	}
	text := swap([]byte("name: web\nof-a-later-version: true\n"))
	ctx, n1 := t.Context(), p.nodes["n1"]
	p.await("n1", "the news", func(st colo.Status) bool {
		return st.State == colo.Failed && strings.Contains(st.Why, "of-a-later-version") && st.Outlook != ""
	})
	for what, err := range map[string]error{
		"start": n1.Start(ctx, "web"), "force": n1.Force(ctx, "web"), "delete": n1.Delete(ctx, "web", colo.DeleteOptions{}), "stop": n1.Stop(ctx, "web", colo.StopOptions{}),
	} {
		if !errors.As(err, new(*colo.UnexpectedEventError)) {
			t.Errorf("%s of a VM whose spec can't be read: %v", what, err)
		}
	}
	if there, err := n1.AsPeer().Inquire(ctx, "web"); err != nil || !there.Running {
		t.Errorf("the peer hears: %+v %v", there, err)
	}
	if err := n1.AsPeer().ReportChannelLost(ctx, colo.Report{VM: "web", From: "n2", Generation: 99}); !errors.Is(err, colo.ErrPeerUnreachable) {
		t.Errorf("the peer is answered: %v", err)
	}
	if p.launchers["n1"].Copy("web") != c {
		t.Fatal("the only current copy was ended, or another one started")
	}
	swap(text)
	p.await("n1", "the VM", func(st colo.Status) bool { return st.State == colo.Solo && st.Plan == nil && st.PID != 0 })
	if p.launchers["n1"].Copy("web") != c {
		t.Error("it is another copy")
	}
}

// TestSpecUnreadStopped: its QEMU ends by a person's force only. Another one is started when the VM has a spec again.
func TestSpecUnreadStopped(t *testing.T) {
	t.Parallel()
	p := newBare(t)
	p.protect(colo.ProtectionSpec{})
	must(t, p.nodes["n1"].Unprotect(t.Context(), "web"))
	spec, _, err := p.nodes["n1"].Spec("web")
	must(t, err)
	must(t, p.nodes["n1"].Close())
	must(t, p.stores["n1"].Update("web", func(v *state.VM) error { v.Spec = []byte("{}"); return nil }))
	must(t, p.stores["n1"].Close())
	p.open("n1")
	must(t, p.wire.Replace(p.nodes["n1"]))
	ctx, n1 := t.Context(), p.nodes["n1"]
	must(t, n1.Stop(ctx, "web", colo.StopOptions{Force: true}))
	if st := p.await("n1", "its end", func(st colo.Status) bool { return st.State == colo.Stopped }); st.Want != colo.WantStopped {
		t.Errorf("it is wanted %s", st.Want)
	}
	if err := n1.Start(ctx, "web"); !errors.As(err, new(*colo.UnexpectedEventError)) {
		t.Errorf("started without a spec: %v", err)
	}
	must(t, n1.Edit(ctx, "web", spec, ""))
	must(t, n1.Start(ctx, "web"))
}
