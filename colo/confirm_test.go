package colo_test

import (
	"context"
	"sync/atomic"
	"testing"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/arbiter"
)

// unconfirmed is a peer that does not hear that its copy counts.
type unconfirmed struct {
	colo.Peer
	deaf *atomic.Bool
}

func (u unconfirmed) Confirm(ctx context.Context, rec arbiter.Record) error {
	if u.deaf.Load() {
		return colo.ErrPeerUnreachable
	}
	return u.Peer.Confirm(ctx, rec)
}

// newDeaf is two protected nodes of which n2 has not heard that its copy counts.
func newDeaf(t *testing.T, alone bool) (*bare, *atomic.Bool) {
	t.Helper()
	p, deaf := newBare(t), &atomic.Bool{}
	deaf.Store(true)
	p.powerOff()
	p.alone, p.peers = alone, func(_ string, to colo.Peer) colo.Peer { return unconfirmed{to, deaf} }
	p.restart()
	p.protect(colo.ProtectionSpec{})
	return p, deaf
}

// TestConfirmLost: without an arbiter the primary ends whose peer was not told that its copy counts. The proof of the end is of a generation in which both
// counted, so the secondary goes on.
func TestConfirmLost(t *testing.T) {
	t.Parallel()
	p, _ := newDeaf(t, true)
	p.await("n2", "the secondary", atRest(colo.Secondary, "n1"))
	p.launchers["n1"].Copy("web").Crash()
	p.await("n2", "the VM", atRest(colo.Solo, "n2"))
	p.await("n1", "its end", atRest(colo.Outdated, "n2"))
}

// TestConfirmRepeated: the VM is not protected until its peer knows, who is told again.
func TestConfirmRepeated(t *testing.T) {
	t.Parallel()
	p, deaf := newDeaf(t, false)
	st, err := p.nodes["n1"].Status(t.Context(), "web")
	must(t, err)
	if st.Verdict.Protected {
		t.Error("protected, and the peer doesn't know")
	}
	deaf.Store(false)
	if d := p.await("n2", "the news", atRest(colo.Secondary, "n1", "n2")).Disks[0]; !d.InSync {
		t.Errorf("n2's half: %+v", d)
	}
}
