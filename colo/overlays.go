package colo

import (
	"context"
	"fmt"
	"time"

	"github.com/coloctl/coloctl/blockrepl"
)

// The overlays of a secondary grow with what is written between two checkpoints, and a checkpoint empties them. Where they have a limit the secondary
// looks at them, and asks the primary for a checkpoint when they have reached it. If they are as large after it, the secondary is given up: the
// guest goes on alone on the primary, which is better than a file system that fills up under other VMs' overlays.

// OverlayStatus is a secondary's overlays.
type OverlayStatus struct {
	Size Size   `json:"size"`           // that they take
	Max  Size   `json:"max,omitempty"`  // that they may; 0 is no limit
	Most Size   `json:"most,omitempty"` // that they took at the most since COLO began
	Full int    `json:"full,omitempty"` // how often that forced a checkpoint
	Dir  string `json:"dir,omitempty"`  // where they are
}

// evOverlays says that they have reached their limit. It is not in the table: it changes nothing by itself.
const evOverlays EventKind = "overlays"

const (
	overlayLook = 200 * time.Millisecond
	// relieveTimeout bounds the wait for a checkpoint that was asked for. One that doesn't come is found by others.
	relieveTimeout = 5 * time.Second
)

// boundOverlays looks at the overlays of a secondary. It ends with the connection to QEMU.
func (c *qemuCopy) boundOverlays() {
	tick := newBeat(c.l.cfg.Beat, overlayLook)
	defer tick.Stop()
	var told time.Time
	for c.ticks(tick) {
		if !c.second.Load() || !c.inColo.Load() {
			c.overlay.Store(nil)
			continue
		}
		o, err := c.lookOverlays()
		if err != nil {
			c.log.Warn("overlays", "err", err)
			continue
		}
		if o.Max > 0 && o.Size >= o.Max && time.Since(told) > overlayLook*2 {
			told = time.Now()
			c.tell(evOverlays, fmt.Sprintf("the overlays take %s, and may take %s", o.Size, o.Max))
		}
	}
}

// lookOverlays measures them now.
func (c *qemuCopy) lookOverlays() (OverlayStatus, error) {
	dir := c.l.overlays(c.spec)
	size, err := blockrepl.OverlaySize(dir, c.disks)
	if err != nil {
		return OverlayStatus{}, err
	}
	o := OverlayStatus{Size: Size(size), Max: c.spec.Overlays.MaxSize, Most: Size(size), Dir: dir}
	if last := c.overlay.Load(); last != nil {
		o.Most, o.Full = max(o.Most, last.Most), last.Full
		if o.Max > 0 && o.Size >= o.Max && last.Size < o.Max {
			o.Full++
		}
	}
	c.overlay.Store(&o)
	return o, nil
}

// overlayStatus is what was seen last; nil on a copy that has none.
func (c *qemuCopy) overlayStatus() *OverlayStatus { return c.overlay.Load() }

// relieve asks the primary for a checkpoint, and gives the secondary up when that doesn't help.
func (m *machine) relieve(msg message) {
	c, ok := msg.copy.(interface {
		lookOverlays() (OverlayStatus, error)
	})
	if !ok || !m.isCopy(msg.copy) || m.State() != Secondary || !m.relieving.CompareAndSwap(false, true) {
		return
	}
	m.emit(Event{Kind: "overlays", State: Secondary, Text: joinText(msg.text, "a checkpoint empties them")})
	m.n.wg.Go(func() {
		defer m.relieving.Store(false)
		ctx, cancel := context.WithTimeout(m.n.ctx, relieveTimeout)
		defer cancel()
		peer, _, err := m.partner()
		if err == nil {
			err = peer.Checkpoint(ctx, CheckpointRequest{VM: m.name, From: m.n.cfg.Name})
		}
		if err != nil { // without a primary there is something worse, which others see
			m.log.Warn("the checkpoint that would empty the overlays", "err", err)
			return
		}
		if o, err := c.lookOverlays(); err == nil && o.Size >= o.Max {
			m.post(message{kind: DiskFailed, text: fmt.Sprintf("the overlays take %s after a checkpoint, and may take %s (overlays.max-size)", o.Size, o.Max), copy: msg.copy})
		}
	})
}
