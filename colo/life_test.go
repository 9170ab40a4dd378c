package colo_test

import (
	"testing"
	"time"

	"github.com/coloctl/coloctl/blockrepl"
	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/internal/pairtest"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestLife takes a VM through a whole life: start, protect, loss of the secondary, bitmap resync, loss of the primary, roles exchanged on
// request and back. The guest must not notice: same boot, no write lost.
func TestLife(t *testing.T) {
	p := pairtest.New(t, pairtest.Options{Spec: func(s *colo.Spec) { s.VCPUs = 2 }})
	ctx := t.Context()
	n1, n2 := p.Nodes["n1"], p.Nodes["n2"]
	must(t, n1.Start(ctx, pairtest.VM))
	write := p.Boot()
	write()
	protect := func(node string, want blockrepl.Mode) colo.Status {
		t.Helper()
		s := p.Protect(node)
		if s.Resync.Mode != want || s.Resync.Why == "" {
			t.Errorf("a resync by %s (%s) instead of %s", s.Resync.Mode, s.Resync.Why, want)
		}
		write()
		return s
	}
	protect("n1", blockrepl.Full)
	t.Log("kill the secondary")
	// What both sides have flushed is not sent again. The guest's file system writes now and then by itself, so more than one try may be needed.
	for try := 0; ; try++ {
		time.Sleep(3 * time.Second) // for a few rotations of the bitmaps
		p.Kill("n2")
		p.AwaitState("n1", colo.Solo)
		s := protect("n1", blockrepl.Bitmap)
		if s.Resync.Copied == 0 {
			break
		}
		if try == 9 {
			t.Errorf("%d bytes were sent again that were durable on the peer", s.Resync.Copied)
			break
		}
	}
	write()
	must(t, n1.Unprotect(ctx, pairtest.VM))
	write()
	protect("n1", blockrepl.Bitmap)
	t.Log("kill the primary")
	p.Kill("n1")
	p.AwaitState("n2", colo.Solo)
	write()
	protect("n2", blockrepl.Checksum)
	t.Log("switch over")
	must(t, n2.Switchover(ctx, pairtest.VM))
	p.AwaitState("n1", colo.Solo)
	write()
	protect("n1", blockrepl.Checksum)
	must(t, n1.Unprotect(ctx, pairtest.VM))
	write()
	protect("n1", blockrepl.Bitmap)
	must(t, n1.Stop(ctx, pairtest.VM, colo.StopOptions{}))
}
