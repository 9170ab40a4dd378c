package colo_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/coloctl/coloctl/colo"
)

// TestProofOfAReturnedHost: without an arbiter a copy waits while the other node is away. When that is back it says that its copy is dead, and the waiting one goes on, with all that the guest has in memory.
func TestProofOfAReturnedHost(t *testing.T) {
	t.Parallel()
	for _, lost := range []string{"n1", "n2"} {
		t.Run(lost, func(t *testing.T) {
			t.Parallel()
			p := newAlone(t)
			p.protect(colo.ProtectionSpec{})
			left := map[string]string{"n1": "n2", "n2": "n1"}[lost]
			p.off(lost)
			p.await(left, "a refusal", func(st colo.Status) bool {
				return st.State == colo.Arbitrating && strings.Contains(st.LastError, "the peer's death is not proven")
			})
			p.again(lost)
			p.await(left, "the VM", atRest(colo.Solo, left))
			if err := p.nodes[lost].Start(t.Context(), "web"); !errors.Is(err, colo.ErrNotCurrent) {
				t.Errorf("%s starts what %s runs: %v", lost, left, err)
			}
			must(t, p.nodes[left].Protect(t.Context(), "web", colo.ProtectOptions{}))
		})
	}
}

// TestCountedOutUnheard: without an arbiter n1 has counted n2 out and gone on, which n2 could not be told. It hears that when it asks, and does not wait for a person.
func TestCountedOutUnheard(t *testing.T) {
	t.Parallel()
	p := newAlone(t)
	p.protect(colo.ProtectionSpec{})
	p.wire.SetUp(false)
	must(t, p.nodes["n1"].Unprotect(t.Context(), "web"))
	p.launchers["n2"].Copy("web").LoseChannel()
	p.await("n2", "a refusal", func(st colo.Status) bool { return st.State == colo.Arbitrating && st.LastError != "" })
	p.wire.SetUp(true)
	p.await("n2", "its end", atRest(colo.Outdated, "n1"))
	must(t, p.nodes["n1"].Protect(t.Context(), "web", colo.ProtectOptions{}))
}
