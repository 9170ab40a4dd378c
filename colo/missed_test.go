package colo_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/internal/pairtest"
	"github.com/coloctl/coloctl/qmp"
)

// TestMissedFailure: the primary's own half of a disk fails while no daemon runs on its node. The guest notices nothing, and the daemon that comes back
// finds it, takes the half out of service, and the VM is switched over to the node with the good one.
func TestMissedFailure(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a guest")
	}
	p := pairtest.New(t, pairtest.Options{})
	ctx := t.Context()
	must(t, p.Nodes["n1"].Start(ctx, pairtest.VM))
	write := p.Boot()
	write()
	p.Protect("n1")
	write()
	must(t, p.Nodes["n1"].Close())
	must(t, p.Store["n1"].Close())
	failWrites(t, filepath.Join(p.Dir, "n1", "run", pairtest.VM, "monitor"), "vda")
	write() // goes to n2's half only
	write()
	p.Open("n1")
	must(t, p.Wire.Replace(p.Nodes["n1"]))
	p.AwaitState("n2", colo.Solo)
	write()
	d := p.Await("n1", "its end", func(s colo.Status) bool { return s.State == colo.Outdated && s.PID == 0 }).Disks[0]
	if d.InSync || !strings.Contains(d.Offline, "failed before the node was restarted") {
		t.Errorf("n1's half: %+v", d)
	}
}

// failWrites lets each write to an image of a running QEMU fail, and each flush.
func failWrites(t *testing.T, monitor, disk string) {
	t.Helper()
	c, err := qmp.Dial(t.Context(), monitor, nil)
	must(t, err)
	defer c.Close()
	var rules []any
	for _, what := range []string{"write", "write-zeroes", "flush"} {
		rules = append(rules, map[string]any{"event": "none", "iotype": what, "errno": 5})
	}
	must(t, c.BlockdevAdd(t.Context(), map[string]any{"driver": "blkdebug", "node-name": "bad-" + disk, "image": "pfile-" + disk, "discard": "unmap", "inject-error": rules}))
	must(t, c.Execute(t.Context(), "blockdev-reopen", map[string]any{"options": []any{map[string]any{
		"driver": "raw", "node-name": "parent-" + disk, "file": "bad-" + disk, "discard": "unmap",
	}}}, nil))
}
