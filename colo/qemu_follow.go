package colo

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/coloctl/coloctl/blockrepl"
	"github.com/coloctl/coloctl/qmp"
)

// follow turns QEMU's events into the engine's.
func (c *qemuCopy) follow(sub *qmp.Subscription) {
	var began time.Time // COLO, by QEMU's clock
	for {
		select {
		case ev, ok := <-sub.C():
			if !ok {
				return
			}
			c.turn(ev, &began)
		case do := <-c.heed:
			for read := true; read; {
				select {
				case ev, ok := <-sub.C():
					if read = ok; ok {
						c.turn(ev, &began)
					}
				default:
					read = false
				}
			}
			do()
		}
	}
}

// upToNow does something after all that QEMU has said before its last reply was taken note of, and before anything that it says later is.
func (c *qemuCopy) upToNow(do func()) {
	done := make(chan struct{})
	select {
	case c.heed <- func() { do(); close(done) }:
		<-done
	case <-c.main.Done(): // nothing will be said any more
		do()
	}
}

// turn turns one of them. began is when COLO has, by QEMU's clock.
func (c *qemuCopy) turn(ev qmp.Event, began *time.Time) {
	switch ev.Name {
	case "STOP":
		if c.inColo.Load() {
			c.cp.stopped(ev.Received, ev.Received.Add(-max(0, time.Since(ev.Time))))
		} else {
			c.cp.halt(ev.Received)
		}
	case "RESUME":
		if c.inColo.Load() {
			c.cp.resumed(ev.Received)
		}
	case "MIGRATION":
		var d struct{ Status string }
		if err := ev.Decode(&d); err != nil {
			return
		}
		switch {
		case d.Status == "colo" && !c.inColo.Load():
			c.cp.reset()
			c.encrypted.Store(nil)
			c.inColo.Store(true)
			c.torn.Store(false)
			c.entered = ev.Received
			if err := c.removeKey(); err != nil { // all that had to connect has
				c.log.Warn("the replication's key was not removed", "err", err)
			}
			*began = ev.Time
			c.tell(ColoStarted, "COLO has begun")
		case d.Status == "failed" && c.inColo.Load():
			c.lost("QEMU's migration failed")
		}
	case "COLO_EXIT":
		var d struct{ Mode, Reason string }
		if err := ev.Decode(&d); err == nil && d.Reason == "error" {
			c.lost("QEMU has left COLO by an error")
		}
	case "QUORUM_REPORT_BAD":
		var d struct {
			NodeName string `json:"node-name"`
			Type     string
		}
		// QEMU holds repeated ones back for up to a second, so one may be about a peer that was lost before. Its clock counts only then: it may be set.
		if !c.inColo.Load() || ev.Time.Before(*began) && ev.Received.Before(c.entered.Add(heldBack)) {
			return
		}
		if err := ev.Decode(&d); err != nil || d.Type == "read" {
			return
		}
		if slices.Contains(blockrepl.YankNodes(c.disks), d.NodeName) {
			c.proven.Store(false)
			c.torn.Store(true)
			c.lost("writing to the peer's disk failed on " + d.NodeName)
		} else {
			c.localFailed(d.NodeName)
		}
	case "BLOCK_IO_ERROR":
		var d struct {
			Device    string
			NodeName  string `json:"node-name"`
			Action    string
			NoSpace   bool `json:"nospace"`
			Reason    string
			Operation string
		}
		if err := ev.Decode(&d); err == nil && d.Action == "stop" && !c.ending.Load() {
			why := d.Reason
			if d.NoSpace {
				why = "its file system is full"
			}
			c.tell(DiskFailed, fmt.Sprintf("the guest stands still: a %s on %s failed: %s", d.Operation, d.NodeName, why))
		}
	case "SHUTDOWN":
		if c.noteEnd(ev) == guestShutdown {
			c.tell(GuestShutdown, "the guest has switched itself off")
		}
	case "GUEST_PANICKED":
		c.log.Error("the guest panicked")
	}
}

// localFailed takes the half out of the guest's way, at once and without waiting for anybody: reads ask it first. Where replication is being taken
// down it is too late for that, and Release finds out.
func (c *qemuCopy) localFailed(node string) {
	i := slices.IndexFunc(c.disks, func(d blockrepl.Disk) bool { return slices.Contains(blockrepl.LocalNodes(d), node) })
	switch {
	case i < 0 && c.ending.Load():
		return
	case i < 0:
		c.tell(DiskFailed, "writing to this node's own disk failed on "+node)
		return
	}
	d := c.disks[i]
	failed := CopyEvent{Kind: DiskFailed, Disk: d.Name, Text: "a write to this node's half of disk " + d.Name + " failed", Time: time.Now()}
	if c.second.Load() { // it has no other half to go on with
		c.send(failed)
		return
	}
	c.halves.lose(d.Name)
	if c.ending.Load() {
		return
	}
	c.wg.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), c.l.cfg.HangTimeout)
		defer cancel()
		if err := blockrepl.DropLocal(ctx, c.main, d); err != nil {
			c.log.Error("a disk that fails could not be taken out of the guest's way", "disk", d.Name, "err", err)
		}
		c.send(failed)
	})
}

func (c *qemuCopy) DropDisk(ctx context.Context, disk string) error {
	i := slices.IndexFunc(c.disks, func(d blockrepl.Disk) bool { return d.Name == disk })
	if i < 0 {
		return fmt.Errorf("no disk %q here", disk)
	}
	if err := blockrepl.DropLocal(ctx, c.main, c.disks[i]); err != nil {
		return err
	}
	c.halves.lose(disk)
	return nil
}

// halves are those of this node's that a copy has let go of, or has to: they lack what the guest has written since.
type halves struct {
	mu   sync.Mutex
	gone []string
}

func (h *halves) lose(disks ...string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, d := range disks {
		if !slices.Contains(h.gone, d) {
			h.gone = append(h.gone, d)
		}
	}
}

// whole is nil or a *HalfGoneError.
func (h *halves) whole() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.gone) == 0 {
		return nil
	}
	return &HalfGoneError{Disks: slices.Clone(h.gone)}
}
