package colo_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/internal/pairtest"
)

// TestForgottenStandby: a QEMU that was launched right before its daemon was killed, so that no record knows it, is ended by what clears up after it: it has the overlays open,
// and holds on to them until somebody ends it.
func TestForgottenStandby(t *testing.T) {
	if testing.Short() {
		t.Skip("starts QEMU")
	}
	p, cfg := pairAnd(t, "n2")
	ctx := t.Context()
	spec, _, err := p.Nodes["n1"].Spec(pairtest.VM)
	must(t, err)
	before, err := colo.NewLauncher(ctx, cfg)
	must(t, err)
	_, err = before.CreateImages(ctx, spec)
	must(t, err)
	c, err := before.Launch(ctx, colo.LaunchRequest{Spec: spec, ID: "forgotten", Standby: true})
	must(t, err)
	pid, forgotten := c.Instance().PID, c
	t.Cleanup(func() { must(t, forgotten.Kill(context.Background())) })
	c.Disconnect()

	after, err := colo.NewLauncher(ctx, cfg)
	must(t, err)
	must(t, after.Clear(ctx, spec))
	if text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err == nil && len(text) > 0 {
		t.Errorf("process %d goes on", pid)
	} else if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ESRCH) {
		t.Error(err)
	}
	c, err = after.Launch(ctx, colo.LaunchRequest{Spec: spec, ID: "next", Standby: true})
	must(t, err)
	must(t, c.Kill(ctx))
	must(t, after.Clear(ctx, spec))
}
