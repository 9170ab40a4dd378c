package colo_test

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/internal/colotest"
)

// slowKernel is a host whose kernel does not come to an end with what it is told of the links.
type slowKernel struct{ *colotest.Launcher }

func (slowKernel) Multipath() error { return nil }

func (slowKernel) LinksUp(ctx context.Context, _ []netip.Addr) error {
	<-ctx.Done()
	return ctx.Err()
}

// TestLossIsNotHeldUp: the loss of the peer is told while the kernel still works on the links.
func TestLossIsNotHeldUp(t *testing.T) {
	t.Parallel()
	p := newBare(t)
	p.powerOff()
	p.kernel = func(l *colotest.Launcher) colo.Launcher { return slowKernel{l} }
	p.restart()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	events := p.nodes["n2"].Watch(ctx)
	for !p.nodes["n2"].PeerAlive() && ctx.Err() == nil {
		time.Sleep(10 * time.Millisecond)
	}
	must(t, p.nodes["n1"].Close())
	for {
		select {
		case e := <-events:
			if e.Kind == "peer" && strings.Contains(e.Text, "lost") {
				return
			}
		case <-ctx.Done():
			t.Fatal("the loss of n1 was not told")
		}
	}
}
