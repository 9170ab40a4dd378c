package colo_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/coloctl/coloctl/colo"
)

// TestShareOfMirrored: what a node may send is shared by the disks that are mirrored. A read-only one takes nothing of it.
func TestShareOfMirrored(t *testing.T) {
	t.Parallel()
	p := newBare(t)
	p.powerOff()
	p.resync = colo.ResyncLimits{Parallel: 1, Rate: 8 << 20}
	p.restart()
	must(t, os.WriteFile(filepath.Join(p.dir, "cd.iso"), make([]byte, 2048), 0o600))
	ctx, n1 := t.Context(), p.nodes["n1"]
	must(t, n1.Create(ctx, &colo.Spec{Name: "web", Memory: 64 << 20, Disks: []colo.DiskSpec{
		{Name: "vda", File: "vda.raw", Size: 1 << 20}, {Name: "cd", File: "cd.iso", Media: "cdrom", ReadOnly: true},
	}}))
	must(t, n1.Start(ctx, "web"))
	release := p.launchers["n1"].HoldSync()
	defer release()
	done := make(chan error, 1)
	go func() { done <- n1.Protect(ctx, "web", colo.ProtectOptions{}) }()
	st := p.await("n1", "the resync", func(st colo.Status) bool { return st.State == colo.Syncing && st.Progress != nil })
	if st.Progress.Limit != 8<<20 {
		t.Errorf("the only mirrored disk may be sent at %d bytes a second", st.Progress.Limit)
	}
	release()
	must(t, <-done)
}
