package colo

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/coloctl/coloctl/blockrepl"
	"github.com/coloctl/coloctl/netcompare"
	"github.com/coloctl/coloctl/qmp"
)

const (
	// stallTimeout is how long the copying of memory may make no progress.
	stallTimeout = 15 * time.Second
	// QEMU stops the guest when it believes that what is left can be sent within a time: at first a short one, which is doubled each time that
	// the copying has lasted for patience more.
	firstDowntime = 30 * time.Millisecond
	lastDowntime  = 2 * time.Second
	patience      = 3 * time.Second
	// enterTimeout bounds the time from the stop of the guest until it runs in COLO.
	enterTimeout = 30 * time.Second
	// releaseTimeout bounds what is done after the yank, when nothing can wait for the peer any more.
	releaseTimeout = 20 * time.Second
)

func (c *qemuCopy) BitmapCovers(ctx context.Context) (int64, bool, error) {
	return blockrepl.HasBitmap(ctx, c.main, c.disks)
}

func (c *qemuCopy) SyncDisks(ctx context.Context, r SyncRequest) error {
	c.ending.Store(false)
	c.useLinks(ctx, r.To, false)
	if err := c.credentials(ctx, r.To.Key, "client"); err != nil {
		return err
	}
	c.mode = r.Mode
	m := blockrepl.NewMirror(c.main, c.disks, r.To.disks(), blockrepl.Options{
		Mode: r.Mode, Speed: r.Speed, OnProgress: r.Progress, ProbeDial: c.l.host.Dial, Rescue: c.rescue,
		Scan: &blockrepl.Scan{Peer: r.Sums, Socket: filepath.Join(c.dir, scanSocket), From: r.From, Save: r.Save},
	})
	if r.Paused {
		if err := m.Tune(ctx, r.Speed, true); err != nil {
			return err
		}
	}
	c.mirror.Store(m)
	return m.Sync(ctx)
}

func (c *qemuCopy) TuneSync(ctx context.Context, speed int64, paused bool) error {
	if m := c.mirror.Load(); m != nil && !c.inColo.Load() {
		return m.Tune(ctx, speed, paused)
	}
	return nil
}

func (c *qemuCopy) Connect(ctx context.Context, to Endpoint) error {
	if err := netcompare.Connect(ctx, c.main, c.nics, to.net(), c.compareOptions()); err != nil {
		return err
	}
	return c.startComparer(ctx) // what is left after an error is Release's
}

// CopyMemory starts the migration that becomes COLO and waits until QEMU has stopped the guest for the switch.
func (c *qemuCopy) CopyMemory(ctx context.Context, to Endpoint) error {
	if err := qmp.SetColoCapabilities(ctx, c.main); err != nil {
		return err
	}
	p := c.protection.Load()
	params := map[string]any{"x-checkpoint-delay": time.Duration(p.CheckpointDelay).Milliseconds(), "max-bandwidth": int64(p.MaxBandwidth), "downtime-limit": firstDowntime.Milliseconds(), "tls-creds": to.creds()}
	if p.MaxBandwidth == 0 {
		params["max-bandwidth"] = int64(10e9)
	}
	if err := c.main.MigrateSetParameters(ctx, params); err != nil {
		return err
	}
	sub := c.main.Subscribe(qmp.SubscribeOptions{Match: qmp.Named("MIGRATION")})
	defer sub.Close()
	addr := to.inet(to.Migration)
	if err := c.main.Migrate(ctx, qmp.Channel{Inet: &addr}); err != nil {
		return err
	}
	var last int64
	moved, downtime := time.Now(), firstDowntime
	for {
		wctx, cancel := context.WithTimeout(ctx, patience)
		err := c.awaitMigration(wctx, sub, "pre-switchover")
		cancel()
		if err == nil || ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
		m, err := c.main.QueryMigrate(ctx)
		if err != nil {
			return err
		}
		if m.RAM.Transferred != last {
			last, moved = m.RAM.Transferred, time.Now()
		}
		// A guest that writes faster than that can be sent has to stand still for longer.
		if downtime < lastDowntime {
			downtime *= 2
			if err := c.main.MigrateSetParameters(ctx, map[string]any{"downtime-limit": downtime.Milliseconds()}); err != nil {
				return err
			}
		}
		if time.Since(moved) > stallTimeout {
			return fmt.Errorf("copying memory stands still at %d of %d bytes, %d to go, for %s", m.RAM.Transferred, m.RAM.Total, m.RAM.Remaining, stallTimeout)
		}
	}
}

// awaitMigration waits for a state of the migration. Any end of it is an error with QEMU's own words.
func (c *qemuCopy) awaitMigration(ctx context.Context, sub *qmp.Subscription, want string) error {
	for {
		ev, err := sub.Next(ctx)
		if err != nil {
			return fmt.Errorf("waiting for the migration to become %q: %w", want, err)
		}
		if ev.Name != "MIGRATION" {
			continue
		}
		var d struct{ Status string }
		if err := ev.Decode(&d); err != nil {
			return err
		}
		switch d.Status {
		case want:
			return nil
		case "failed", "cancelled", "completed", "postcopy-paused":
			m, _ := c.main.QueryMigrate(ctx)
			return fmt.Errorf("the migration is %s before it became %q: %s", d.Status, want, m.ErrorDesc)
		}
	}
}

func (c *qemuCopy) SwitchDisks(ctx context.Context) (SyncResult, error) {
	ctx, cancel := context.WithTimeout(ctx, enterTimeout)
	defer cancel()
	m := c.mirror.Load()
	if err := m.Switch(ctx); err != nil {
		return SyncResult{}, err
	}
	st := m.Stats()
	return SyncResult{Mode: c.mode, Copied: m.Copied(), Compared: st.Compared, Differed: st.Differed, Last: st.Last, LastTook: st.LastTook}, nil
}

func (c *qemuCopy) Local(ctx context.Context) (blockrepl.Sums, func(context.Context) error, error) {
	contents, closeAll, err := blockrepl.OpenLocal(ctx, c.main, c.disks, filepath.Join(c.dir, scanSocket))
	if err != nil {
		return nil, nil, err
	}
	return func(ctx context.Context, p blockrepl.Part) ([]byte, error) {
		content := contents[p.Disk]
		if content == nil {
			return nil, fmt.Errorf("no disk %q here", p.Disk)
		}
		return content.Sums(ctx, p)
	}, closeAll, nil
}

func (c *qemuCopy) Backup(ctx context.Context, o blockrepl.BackupOptions) error {
	if o.Server != nil {
		return c.backupTo(ctx, o)
	}
	disks := slices.DeleteFunc(slices.Clone(c.disks), func(d blockrepl.Disk) bool { return o.Targets[d.Name] == "" })
	return blockrepl.Backup(ctx, c.main, disks, o)
}

func (c *qemuCopy) Mark(ctx context.Context, disk string, ranges []blockrepl.Range) error {
	i := slices.IndexFunc(c.disks, func(d blockrepl.Disk) bool { return d.Name == disk })
	if i < 0 {
		return fmt.Errorf("no disk %q here", disk)
	}
	c.bitmaps.Lock()
	defer c.bitmaps.Unlock()
	c.proven.Store(false) // what both sides flush from here on must stay on record
	return blockrepl.MarkDirty(ctx, c.main, c.disks[i], ranges, filepath.Join(c.dir, scanSocket))
}

func (c *qemuCopy) StartColo(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, enterTimeout)
	defer cancel()
	sub := c.main.Subscribe(qmp.SubscribeOptions{Match: qmp.Named("MIGRATION", "RESUME")})
	defer sub.Close()
	if err := netcompare.Enable(ctx, c.main, c.nics); err != nil {
		return err
	}
	if err := c.main.MigrateContinue(ctx, "pre-switchover"); err != nil {
		return err
	}
	if err := c.awaitMigration(ctx, sub, "colo"); err != nil {
		return err
	}
	// A checkpoint that is asked for between this state and the guest's resumption aborts QEMU 11.1: its COLO thread has not yet made what
	// it would be woken by.
	if _, err := sub.Wait(ctx, func(ev *qmp.Event) bool { return ev.Name == "RESUME" }); err != nil {
		return fmt.Errorf("waiting for the guest to run in COLO: %w", err)
	}
	return nil
}

// ProveColo forces a checkpoint and waits for its end, which the secondary takes part in.
func (c *qemuCopy) ProveColo(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, enterTimeout)
	defer cancel()
	if err := c.Checkpoint(ctx); err != nil {
		return err
	}
	st, err := c.main.QueryColoStatus(ctx)
	if err != nil {
		return err
	}
	if st.Mode != "primary" {
		return fmt.Errorf("QEMU says its COLO mode is %q, not primary", st.Mode)
	}
	// All that was sent is durable on the peer since that checkpoint.
	if err := blockrepl.Confirm(ctx, c.main, c.disks); err != nil {
		return err
	}
	c.proven.Store(true)
	return nil
}

// Checkpoint forces one: setting the delay, to any value, makes QEMU begin at once. One that is already under way does not count, so the
// next is waited for.
func (c *qemuCopy) Checkpoint(ctx context.Context) error {
	sub := c.main.Subscribe(qmp.SubscribeOptions{Match: qmp.Named("STOP", "RESUME", "COLO_EXIT")})
	defer sub.Close()
	delay := c.delay().Milliseconds()
	if err := c.main.MigrateSetParameters(ctx, map[string]any{"x-checkpoint-delay": delay}); err != nil {
		return err
	}
	stopped := false
	for {
		ev, err := sub.Next(ctx)
		if err != nil {
			return fmt.Errorf("waiting for a checkpoint: %w", err)
		}
		switch ev.Name {
		case "STOP":
			stopped = true
		case "RESUME":
			if stopped {
				return nil
			}
		default:
			return errors.New("QEMU has left COLO")
		}
	}
}

// Release ends replication in whatever state it is. The connections to the peer are cut out of band first, or a frozen peer would hang QEMU's
// main loop in the steps that follow.
func (c *qemuCopy) Release(ctx context.Context) error {
	if c.goneOff() {
		c.dropLinks(ctx)
		return nil
	}
	return c.unlessOff(ctx, c.release(ctx))
}

func (c *qemuCopy) release(ctx context.Context) error {
	if err := c.halves.whole(); err != nil {
		return err
	}
	c.ending.Store(true)
	ctx, cancel := context.WithTimeout(ctx, releaseTimeout)
	defer cancel()
	if err := c.yank(ctx); err != nil {
		return fmt.Errorf("yank: %w", err)
	}
	// A guest that can go on must not stay silent for a remnant that could not be removed.
	tidy := func(what string, err error) {
		if err != nil {
			c.log.Warn("release", "step", what, "err", err)
		}
	}
	var errs []error
	if c.inColo.Load() {
		errs = append(errs, c.leaveColo(ctx))
	} else {
		tidy("cancel the migration", c.main.MigrateCancel(ctx))
	}
	c.proven.Store(false)
	c.bitmaps.Lock() // a rotation that was under way has ended: its commands were freed by the yank
	defer c.bitmaps.Unlock()
	if m := c.mirror.Load(); m != nil {
		tidy("abort the resync", m.Abort(ctx))
	}
	tidy("detach the peer's disks", blockrepl.Detach(ctx, c.main, c.disks))
	// Detach has drained the disks: whichever write this node's half has failed and the peer's has not is known now.
	gone, err := blockrepl.LocalGone(ctx, c.main, c.disks)
	if err != nil {
		return err
	}
	c.halves.lose(gone...)
	c.upToNow(func() {
		if err = c.halves.whole(); err == nil {
			c.inColo.Store(false)
		}
	})
	if err != nil {
		return err
	}
	tidy("end the comparer", c.stopComparer(ctx))
	errs = append(errs, netcompare.Disconnect(ctx, c.main, c.nics)) // it holds the guest's output
	c.mirror.Store(nil)
	tidy("replication key", c.endCredentials(ctx))
	errs = append(errs, c.ensureRunning(ctx))
	c.dropLinks(ctx)
	return errors.Join(errs...)
}

// leaveColo makes QEMU go on alone. A QEMU that has left COLO already says so, which is as good.
func (c *qemuCopy) leaveColo(ctx context.Context) error {
	err := c.main.ColoLostHeartbeat(ctx)
	if err == nil {
		return nil
	}
	if st, qerr := c.main.QueryColoStatus(ctx); qerr == nil && st.Mode == "none" {
		return nil
	}
	return err
}

// yank cuts what leads to the peer, out of band. What exists is asked first: QEMU refuses the whole list for one unknown name.
func (c *qemuCopy) yank(ctx context.Context) error {
	nodes, chardevs := blockrepl.YankNodes(c.disks), netcompare.YankChardevs(c.nics)
	for range 3 { // an instance may vanish between the question and the yank
		have, err := c.rescue.QueryYank(ctx)
		if err != nil {
			return err
		}
		want := slices.DeleteFunc(have, func(y qmp.YankInstance) bool {
			switch y.Type {
			case "migration":
				return false
			case "block-node":
				return !slices.Contains(nodes, y.NodeName)
			case "chardev":
				return !slices.Contains(chardevs, y.ID)
			}
			return true
		})
		if len(want) == 0 {
			return nil
		}
		if err = c.rescue.Yank(ctx, want...); err == nil || !qmp.IsClass(err, qmp.ClassDeviceNotFound) {
			return err
		}
	}
	return errors.New("connections come and go faster than they can be listed")
}

// ensureRunning waits until the guest runs again after COLO or a cancelled migration, and starts it where QEMU leaves that to us. A guest
// that has switched itself off stays so.
func (c *qemuCopy) ensureRunning(ctx context.Context) error {
	sub := c.main.Subscribe(qmp.SubscribeOptions{Match: qmp.Named("RESUME", "STOP", "MIGRATION")})
	defer sub.Close()
	for {
		st, err := c.main.QueryStatus(ctx)
		if err != nil || st.Running {
			return err
		}
		switch st.Status {
		case "shutdown", "guest-panicked":
			return nil
		case "paused", "postmigrate", "prelaunch", "inmigrate":
			return c.main.Cont(ctx)
		}
		wctx, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		_, err = sub.Next(wctx)
		cancel()
		if ctx.Err() != nil {
			return fmt.Errorf("the guest stays %s: %w", st.Status, context.Cause(ctx))
		}
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
	}
}
