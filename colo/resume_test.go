package colo_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/coloctl/coloctl/colo"
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
