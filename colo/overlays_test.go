package colo_test

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/internal/lab"
	"github.com/coloctl/coloctl/internal/pairtest"
)

// TestOverlayLimit: overlays that reach their limit force a checkpoint, which empties them, and the VM stays protected. They lie in the VM's own folder.
func TestOverlayLimit(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a guest")
	}
	dir := t.TempDir()
	const limit = 2 << 20
	p := pairtest.New(t, pairtest.Options{Disks: []colo.DiskSpec{{Name: "vdb", File: "data.raw", Size: 64 << 20}}, Spec: func(s *colo.Spec) {
		s.Overlays = colo.OverlaySpec{Dir: dir, MaxSize: limit}
		// No checkpoint but for the overlays: the answer to the write waits for its twin.
		s.Protection.CheckpointDelay, s.Protection.CompareTimeout = colo.Duration(5*time.Minute), colo.Duration(2*time.Minute)
	}})
	must(t, p.Nodes["n1"].Start(t.Context(), pairtest.VM))
	p.Boot()
	p.Protect("n1")
	if there, err := filepath.Glob(filepath.Join(dir, pairtest.VM, "*.qcow2")); err != nil || len(there) != 4 {
		t.Errorf("overlays in the VM's folder: %v, %v", there, err)
	}
	resp, err := p.HTTP.Post("http://"+lab.GuestAddr.String()+"/raw?size=33554432&seed=3", "", nil)
	must(t, err)
	must(t, resp.Body.Close())
	if resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status)
	}
	relieved := func(s colo.Status) bool { return s.Overlays != nil && s.Overlays.Full > 0 && s.Overlays.Size < limit }
	s := p.Status("n2")
	for end := time.Now().Add(20 * time.Second); !relieved(s) && time.Now().Before(end); s = p.Status("n2") {
		time.Sleep(50 * time.Millisecond) // nobody tells of sizes
	}
	if !relieved(s) {
		t.Fatalf("no checkpoint for the overlays: %+v", s.Overlays)
	}
	if s.State != colo.Secondary || s.Overlays.Most < limit || s.Overlays.Dir != filepath.Join(dir, pairtest.VM) {
		t.Errorf("n2: %s, %+v", s.State, s.Overlays)
	}
	if s := p.Status("n1"); s.State != colo.Protected {
		t.Errorf("n1 is %s: %s", s.State, s.Why)
	}
	p.Get("/id")
}

// TestOverlaysTooLarge: a secondary whose overlays are too large also when they are empty is given up, with the reason, and the guest goes on alone.
func TestOverlaysTooLarge(t *testing.T) {
	s := startSmall(t, 1)
	ctx := t.Context()
	disks := make([]colo.DiskSpec, 4)
	for i := range disks {
		disks[i] = colo.DiskSpec{Name: "vd" + string(rune('a'+i)), File: string(rune('a'+i)) + ".raw", Size: 8 << 20}
	}
	n1 := s.nodes["n1"]
	must(t, n1.Create(ctx, &colo.Spec{Name: "web", Memory: 32 << 20, Disks: disks, Overlays: colo.OverlaySpec{MaxSize: 1 << 20},
		Protection: colo.ProtectionSpec{CheckpointDelay: colo.Duration(time.Minute)}}))
	must(t, n1.Start(ctx, "web"))
	err := n1.Protect(ctx, "web", colo.ProtectOptions{}) // may be over before it has ended
	s.await("n1", "going on alone", func(st colo.Status) bool { return st.State == colo.Solo && len(st.Members) == 1 })
	s.await("n2", "being given up", func(st colo.Status) bool { return st.State == colo.Outdated && st.PID == 0 })
	st := s.status("n2")
	if !strings.Contains(st.Why, "overlays.max-size") {
		t.Errorf("n2 is outdated because: %s (protect: %v)", st.Why, err)
	}
	if _, err := os.Stat(filepath.Join(s.dir, "n2", "run", "web", "overlays", "vda.active.qcow2")); err == nil {
		t.Error("the overlays are still there")
	}
}
