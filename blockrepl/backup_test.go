package blockrepl

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

// backupTo makes the images of a backup.
func (h *host) backupTo(ctx context.Context, id, since string) BackupOptions {
	h.t.Helper()
	o := BackupOptions{ID: id, Since: since, Targets: map[string]string{}}
	for _, d := range h.disks {
		base := ""
		if since != "" {
			base = filepath.Join(h.dir, since+"."+d.Name)
		}
		o.Targets[d.Name] = filepath.Join(h.dir, id+"."+d.Name)
		must(h.t, images(h.t).CreateBackup(ctx, o.Targets[d.Name], d.Size, base))
	}
	return o
}

// sameImages fails if a backup and reference images differ, for a guest.
func sameImages(ctx context.Context, t *testing.T, what string, o BackupOptions, references map[string]string) {
	t.Helper()
	for disk, path := range o.Targets {
		if out, err := images(t).run(ctx, "compare", "-f", QCOW2, "-F", Raw, path, references[disk]); err != nil {
			t.Errorf("%s: disk %s is not as it was at that moment: %s %v", what, disk, out, err)
		}
	}
}

// copies are what the disks hold now.
func (h *host) copies(ctx context.Context, name string) map[string]string {
	h.t.Helper()
	out := map[string]string{}
	for i, d := range h.disks {
		h.io(ctx, i, "flush")
		out[d.Name] = filepath.Join(h.dir, name+"."+d.Name+".raw")
		if text, err := images(h.t).run(ctx, "convert", "-U", "-f", d.Format, "-O", Raw, d.Path, out[d.Name]); err != nil {
			h.t.Fatalf("%s: %v", text, err)
		}
	}
	return out
}

// TestBackup: a backup under COLO is the disks as they were when it began, whatever is written meanwhile; the next one copies what was written since;
// one that is interrupted or refused leaves nothing, and the record of the one before.
func TestBackup(t *testing.T) {
	ctx := testContext(t)
	a, b := newHost(t, "a", Raw, QCOW2), newHost(t, "b", Raw, QCOW2)
	a.startPrimary(ctx)
	for i := range a.disks {
		a.io(ctx, i, "write -P 0x11 0 8M")
		a.io(ctx, i, "write -P 0x12 40M 8M")
	}
	b.startStandby(ctx)
	a.protect(ctx, b, Options{Mode: Full})

	before := a.copies(ctx, "before")
	full := a.backupTo(ctx, "one", "")
	full.Speed = 24 * mib
	begun := make(chan struct{})
	full.OnProgress = func(int64, int64) {
		if begun != nil {
			close(begun)
			begun = nil
		}
	}
	started, done := begun, make(chan error, 1)
	go func() { done <- Backup(ctx, a.c, a.disks, full) }()
	<-started
	for i := range a.disks { // over what is copied already, what isn't yet, and where nothing was
		a.io(ctx, i, "write -P 0x21 1M 128k")
		a.io(ctx, i, "write -P 0x22 46M 128k")
		a.io(ctx, i, "write -P 0x23 60M 128k")
	}
	a.checkpoint(ctx)
	must(t, <-done)
	sameImages(ctx, t, "full", full, before)
	clean := func(when string) {
		t.Helper()
		g, err := readGraph(ctx, a.c)
		must(t, err)
		jobs, err := a.c.QueryJobs(ctx)
		must(t, err)
		for node := range g {
			if strings.HasPrefix(node, "bk") {
				t.Errorf("%s: node %s is left", when, node)
			}
		}
		for _, d := range a.disks {
			if names := fmt.Sprint(g[d.colo()].DirtyBitmaps); len(g[d.colo()].DirtyBitmaps) != 1 || len(jobs) > 0 {
				t.Errorf("%s: bitmaps %s, jobs %v", when, names, jobs)
			}
		}
	}
	clean("after a full backup")

	cctx, cancel := context.WithCancel(ctx)
	broken := a.backupTo(ctx, "broken", "one")
	broken.Speed, broken.OnProgress = 64<<10, func(int64, int64) { cancel() }
	if err := Backup(cctx, a.c, a.disks, broken); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
	clean("after an interruption")
	if err := Backup(ctx, a.c, a.disks, BackupOptions{ID: "x", Since: "nobody", Targets: full.Targets}); !errors.Is(err, ErrNoBitmap) {
		t.Errorf("since a backup that was never made: %v", err)
	}

	a.io(ctx, 1, "write -P 0x31 30M 64k")
	var sent int64
	next := a.backupTo(ctx, "two", "one")
	next.OnProgress = func(done, _ int64) { sent = done }
	now := a.copies(ctx, "now")
	must(t, Backup(ctx, a.c, a.disks, next))
	sameImages(ctx, t, "incremental", next, now)
	if want := int64((2*3*128 + 64) << 10); sent != want {
		t.Errorf("%d bytes were copied, %d were written since", sent, want)
	}
	clean("after an incremental backup")

	// The peer took no part in it, and COLO never ended.
	st, err := a.c.QueryColoStatus(ctx)
	if err != nil || st.Mode != "primary" {
		t.Errorf("COLO: %+v %v", st, err)
	}
	a.checkpoint(ctx)
	a.sameDisks(ctx, b)

	// With the peer lost in the middle.
	alone := a.backupTo(ctx, "three", "")
	alone.Speed = 32 * mib
	again := make(chan struct{})
	alone.OnProgress = func(int64, int64) {
		if again != nil {
			close(again)
			again = nil
		}
	}
	started = again
	now = a.copies(ctx, "last")
	go func() { done <- Backup(ctx, a.c, a.disks, alone) }()
	<-started
	b.kill()
	a.lostPeer(ctx)
	a.io(ctx, 0, "write -P 0x41 50M 64k")
	must(t, <-done)
	sameImages(ctx, t, "with the peer lost meanwhile", alone, now)
}
