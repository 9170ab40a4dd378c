package blockrepl

import (
	"errors"
	"testing"

	"github.com/coloctl/coloctl/qmp"
)

// TestLife leads two disks, a raw and a qcow2 one, through everything that
// happens to a VM: protected for the first time, standby lost, protected again,
// primary lost, and the same with the roles exchanged. After each step:
//
//   - both sides have the same bytes;
//   - a resync by bitmap copied what was written and nothing else;
//   - nothing of ours is left in QEMU after Detach and Promote;
//   - repeating Detach, Promote and Unexport changes nothing.
func TestLife(t *testing.T) {
	ctx := testContext(t)
	a, b := newHost(t, "a", Raw, QCOW2), newHost(t, "b", QCOW2, Raw)
	a.startPrimary(ctx)
	for i := range a.disks {
		a.io(ctx, i, "write -P 0x11 0 8M")
		a.io(ctx, i, "write -P 0x12 40M 1M")
	}
	if _, ok, err := HasBitmap(ctx, a.c, a.disks); ok || err != nil {
		t.Fatalf("bitmap before the first protection: %v %v", ok, err)
	}

	b.startStandby(ctx)
	if done, err := Committed(ctx, b.c, b.disks); done || err != nil {
		t.Fatalf("standby committed: %v %v", done, err)
	}
	if n := a.protect(ctx, b, Options{Mode: Full}); n < 2*64*mib {
		t.Errorf("full sync covered %d bytes of two disks", n)
	}
	if done, err := Committed(ctx, b.c, b.disks); done || err != nil {
		t.Fatalf("secondary committed: %v %v", done, err)
	}
	a.io(ctx, 0, "write -P 0x21 1M 64k")
	a.io(ctx, 1, "write -P 0x22 50M 128k")
	a.sameDisks(ctx, b)

	// What was written before the last confirmed checkpoint isn't copied again.
	must(t, Rotate(ctx, a.c, a.disks))
	a.checkpoint(ctx)
	must(t, Confirm(ctx, a.c, a.disks))
	a.io(ctx, 0, "write -P 0x23 2M 64k")

	// What was rotated and never confirmed is.
	must(t, Rotate(ctx, a.c, a.disks))
	b.kill()
	a.lostPeer(ctx)
	must(t, Detach(ctx, a.c, a.disks))
	leftovers(t, a)
	a.io(ctx, 1, "write -P 0x24 3M 192k")
	if n, ok, err := HasBitmap(ctx, a.c, a.disks); n != 256<<10 || !ok || err != nil {
		t.Fatalf("bitmap has %d bytes, %v %v; want 256 KiB", n, ok, err)
	}

	b.startStandby(ctx)
	if n := a.protect(ctx, b, Options{Mode: Bitmap}); n != 256<<10 {
		t.Errorf("resync by bitmap copied %d bytes, want 256 KiB", n)
	}
	a.sameDisks(ctx, b)

	// The roles change. The secondary's own writes are its guest's; they reach
	// its image by the commit.
	a.io(ctx, 0, "write -P 0x31 60M 64k")
	a.checkpoint(ctx)
	a.kill()
	b.io(ctx, 0, "write -P 0x32 5M 16M")
	b.io(ctx, 1, "write -P 0x33 5M 16M")
	b.promote(ctx)
	must(t, Promote(ctx, b.c, b.disks))
	must(t, ReleaseOverlays(ctx, b.c, b.disks))
	must(t, ReleaseOverlays(ctx, b.c, b.disks))
	must(t, images(t).RemoveOverlays(b.dir, b.disks))
	b.io(ctx, 0, "read -P 0x32 5M 16M")
	b.io(ctx, 0, "read -P 0x31 60M 64k")
	b.io(ctx, 1, "read -P 0x24 3M 192k")

	a.startStandby(ctx)
	b.protect(ctx, a, Options{Mode: Full})
	b.io(ctx, 0, "write -P 0x41 0 64k")
	b.sameDisks(ctx, a)
	for range 2 { // a former secondary resyncs by bitmap any number of times
		a.kill()
		b.lostPeer(ctx)
		leftovers(t, b)
		b.io(ctx, 0, "write -P 0x42 7M 64k")
		a.startStandby(ctx)
		if n := b.protect(ctx, a, Options{Mode: Bitmap}); n < 64<<10 || n > 256<<10 {
			t.Errorf("resync by bitmap copied %d bytes, want about 64 KiB", n)
		}
		b.sameDisks(ctx, a)
	}

	// And back: the former secondary is lost.
	b.checkpoint(ctx)
	b.kill()
	a.promote(ctx)
	a.io(ctx, 0, "read -P 0x42 7M 64k")
	b.startStandby(ctx)
	a.protect(ctx, b, Options{Mode: Full})
	a.sameDisks(ctx, b)
}

// leftovers fails if QEMU still has a job, a peer's node or a helping bitmap.
func leftovers(t *testing.T, h *host) {
	t.Helper()
	ctx := testContext(t)
	jobs, err := h.c.QueryJobs(ctx)
	must(t, err)
	if len(jobs) > 0 {
		t.Errorf("jobs are left: %+v", jobs)
	}
	g, err := readGraph(ctx, h.c)
	must(t, err)
	for _, n := range YankNodes(h.disks) {
		if g.has(n) {
			t.Errorf("node %s is left", n)
		}
	}
	for _, d := range h.disks {
		for _, name := range []string{heldBitmap, passBitmap} {
			if _, ok := g.bitmap(d.parent(), name); ok {
				t.Errorf("bitmap %s of %s is left", name, d.Name)
			}
		}
	}
}

// TestExportTwice: what an earlier Export left doesn't stand in the way of the
// next one, and a wildcard address is refused.
func TestExportTwice(t *testing.T) {
	ctx := testContext(t)
	h := newHost(t, "h", Raw, Raw)
	h.startStandby(ctx)
	must(t, Export(ctx, h.c, h.disks, h.to))
	if err := Export(ctx, h.c, h.disks, Address{Host: "0.0.0.0", Port: h.to.Port}); !errors.Is(err, ErrBadAddress) {
		t.Errorf("wildcard: %v", err)
	}
	taken := Address{Host: "127.0.0.1", Port: h.mig}
	if err := Export(ctx, h.c, h.disks, taken); err == nil {
		t.Error("no error for a port that is taken")
	}
	for range 2 {
		must(t, Unexport(ctx, h.c, h.disks))
	}
	exports, err := h.c.QueryBlockExports(ctx)
	if err != nil || len(exports) > 0 {
		t.Errorf("exports are left: %v %v", exports, err)
	}
	var refusal *qmp.Error
	if err := h.c.NBDServerStop(ctx); !errors.As(err, &refusal) {
		t.Errorf("an NBD server is left: %v", err)
	}
}
