package sim

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/coloctl/coloctl/blockrepl"
	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/state"
)

const ms = time.Millisecond

// simCopy is a QEMU as one run of the daemon sees it.
type simCopy struct {
	e      *env
	p      *proc
	events chan colo.CopyEvent
	closed bool
	ending bool   // replication is being ended by us: what is lost now is no news
	count0 uint64 // checkpoints before this daemon looked
	since  time.Time
}

func newCopy(e *env, p *proc) *simCopy {
	c := &simCopy{e: e, p: p, events: make(chan colo.CopyEvent, 64), count0: p.cpCount, since: time.Now()}
	p.copies = append(p.copies, c)
	return c
}

// tell hands an event to the daemon, which hears it when it runs.
func (c *simCopy) tell(kind colo.EventKind, text string) {
	if kind == colo.ColoStarted {
		c.count0 = 0
	}
	e := colo.CopyEvent{Kind: kind, Text: text, Time: time.Now()}
	if kind == colo.DiskFailed {
		e.Disk = "vda"
	}
	c.e.w.in(c.e.w.between(c.e.h.actor(opEvent), 100*time.Microsecond, 3*ms), func() { c.deliver(e) })
}

func (c *simCopy) deliver(e colo.CopyEvent) {
	switch {
	case c.closed || c.e.gone:
		return
	case c.e.h.thaw != nil:
		c.e.h.unheard = append(c.e.h.unheard, func() { c.deliver(e) })
		return
	case e.Kind == colo.ChannelLost && c.ending:
		return
	}
	select {
	case c.events <- e:
	default:
		c.e.w.broken(RuleLive, "%s: nobody reads the events of %v", c.e.h.name, c.p)
	}
	if e.Kind == colo.Exited {
		c.closed = true
		close(c.events)
	}
}

func (c *simCopy) Events() <-chan colo.CopyEvent { return c.events }
func (c *simCopy) PID() int                      { return c.p.id }

func (c *simCopy) Instance() state.Instance {
	return state.Instance{PID: c.p.id, StartTicks: 1, BootID: fmt.Sprint(c.p.boot), Dir: "/run", QMP: "/run/qmp", Rescue: "/run/rescue"}
}

func (c *simCopy) Disconnect() {
	w := c.e.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if !c.closed {
		c.closed = true
		close(c.events)
	}
}

func (c *simCopy) Stats() colo.CheckpointStats {
	c.e.w.mu.Lock()
	defer c.e.w.mu.Unlock()
	s := colo.CheckpointStats{Count: c.p.cpCount - min(c.count0, c.p.cpCount), Running: c.p.cpBegin}
	if c.p.cpLast.After(c.since) {
		s.Last, s.Began = c.p.cpLast, c.p.cpLastBegan
	}
	return s
}

func (c *simCopy) Alive(ctx context.Context) error {
	return c.e.doOn(ctx, opAlive, c.p, 100*time.Microsecond, ms, func() error {
		if c.p.off && c.p.mode == "secondary" && c.e.w.endsOff {
			return errEnded // in a moment
		}
		return nil
	})
}

func (c *simCopy) Join(ctx context.Context) error { return c.tap(ctx, opJoin, true) }
func (c *simCopy) Cut(ctx context.Context) error  { return c.tap(ctx, opCut, false) }

func (c *simCopy) tap(ctx context.Context, k opKind, joined bool) error {
	return c.e.do(ctx, k, 500*time.Microsecond, 3*ms, func() error {
		c.e.h.joined = joined
		c.e.w.say(c.e.h.name, "tap %s", map[bool]string{true: "joined", false: "cut"}[joined])
		c.e.w.lan.look()
		return nil
	})
}

// Guard, Lease and Unguard happen at once: a daemon that is stopped does nothing, and one that is stopped while the kernel works finds it done.
func (c *simCopy) Guard(context.Context) error {
	if c.e.w.noGate {
		return errors.ErrUnsupported
	}
	return c.gate(func(h *Host) { h.gated = true })
}

func (c *simCopy) Unguard(context.Context) error { return c.gate(func(h *Host) { h.gated = false }) }

func (c *simCopy) Lease(_ context.Context, d time.Duration) error {
	return c.gate(func(h *Host) { h.leased = time.Now().Add(d) })
}

func (c *simCopy) gate(change func(*Host)) error {
	w := c.e.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if c.e.gone || c.e.h.thaw != nil {
		return errGone
	}
	change(c.e.h)
	w.lan.look()
	return nil
}

func (c *simCopy) Cont(ctx context.Context) error {
	return c.e.doOn(ctx, opQMP, c.p, 200*time.Microsecond, 2*ms, func() error {
		if c.p.standby {
			return errors.New("a standby can't be started")
		}
		c.p.running = true
		c.e.w.lan.look()
		return nil
	})
}

func (c *simCopy) Pause(ctx context.Context) error {
	return c.e.doOn(ctx, opQMP, c.p, 200*time.Microsecond, 2*ms, func() error { c.p.running = false; return nil })
}

func (c *simCopy) Powerdown(ctx context.Context) error {
	err := c.e.doOn(ctx, opQMP, c.p, 50*ms, 300*ms, func() error { c.p.poweroff(); return nil })
	if err != nil {
		return err
	}
	return c.e.w.await(ctx, c.e, func() (bool, error) {
		if !c.p.alive && !c.p.off {
			return false, errEnded
		}
		return c.p.off, nil
	})
}

func (c *simCopy) Kill(ctx context.Context) error {
	return c.e.do(ctx, opKill, ms, 5*ms, func() error {
		c.ending = true
		c.p.die()
		return nil
	})
}

func (c *simCopy) Listen(ctx context.Context, at colo.Endpoint) error {
	return c.e.doOn(ctx, opQMP, c.p, ms, 5*ms, func() error { c.p.listening, c.p.key = true, at.Key; return nil })
}

func (c *simCopy) Promote(ctx context.Context) error {
	return c.e.doOn(ctx, opPromote, c.p, 3*ms, 12*ms, func() error {
		c.ending = true
		p := c.p
		switch {
		case p.mode == "none" && !p.standby: // asked again
			return nil
		case p.mode != "secondary":
			return fmt.Errorf("not in COLO but %q", p.mode)
		}
		c.e.w.say(p.h.name, "QEMU %d is promoted", p.id)
		c.e.w.tally.Failovers++
		p.sess.promote()
		return nil
	})
}

func (c *simCopy) Announce(ctx context.Context) error {
	return c.e.doOn(ctx, opQMP, c.p, 200*time.Microsecond, ms, func() error { c.e.w.lan.look(); return nil })
}

func (c *simCopy) Commit(ctx context.Context) error {
	return c.e.doOn(ctx, opCommit, c.p, 30*ms, 300*ms, func() error {
		if c.p.overlay {
			c.p.h.image, c.p.overlay = c.p.view, false
			c.e.w.say(c.p.h.name, "QEMU %d has committed its overlays", c.p.id)
		}
		return nil
	})
}

func (c *simCopy) BitmapCovers(ctx context.Context) (dirty int64, ok bool, err error) {
	err = c.e.doOn(ctx, opQMP, c.p, 200*time.Microsecond, ms, func() error { ok = c.p.bitmap != nil; return nil })
	return 0, ok, err
}

// standbyAt finds the QEMU that listens at an endpoint.
func (c *simCopy) standbyAt(to colo.Endpoint) (*proc, error) {
	h, _ := c.e.w.hostAt(netip.MustParseAddr(to.Host))
	if s := h.proc; s != nil && s.listening && h.up {
		if !bytes.Equal(s.key, to.Key) { // of a standby that was dropped since
			return nil, errors.New("handshake failed")
		}
		return s, nil
	}
	return nil, errors.New("connection refused")
}

// flow waits until replication makes progress; it fails when one of its ends is gone.
func (c *simCopy) flow(ctx context.Context, need stage) (x *session, err error) {
	ctx, cancel := context.WithTimeout(ctx, stallTimeout)
	defer cancel()
	err = c.e.w.await(ctx, c.e, func() (bool, error) {
		switch x = c.p.sess; {
		case !c.p.alive:
			return false, errEnded
		case x == nil || x.p != c.p || x.left != [2]bool{} || x.noticed[0]:
			return false, errors.New("the connection to the standby is closed")
		case x.stage < need:
			return false, fmt.Errorf("at stage %d instead of %d", x.stage, need)
		}
		return x.flow(), nil
	})
	return x, err
}

// stallTimeout is how long a copy may make no progress.
const stallTimeout = 15 * time.Second

// step is doOn for one that needs the standby, before and after.
func (c *simCopy) step(ctx context.Context, k opKind, need stage, lo, hi time.Duration, effect func(x *session) error) error {
	if _, err := c.flow(ctx, need); err != nil {
		return err
	}
	if err := c.e.doOn(ctx, k, c.p, lo, hi, func() error { return nil }); err != nil {
		return err
	}
	x, err := c.flow(ctx, need)
	if err != nil {
		return err
	}
	c.e.w.mu.Lock()
	defer c.e.w.mu.Unlock()
	if !x.flow() || c.e.gone {
		return errors.New("the connection to the standby was lost")
	}
	return effect(x)
}

func (c *simCopy) SyncDisks(ctx context.Context, r colo.SyncRequest) error {
	var x *session
	err := c.e.doOn(ctx, opQMP, c.p, ms, 3*ms, func() error {
		c.ending = false
		if c.p.sess != nil {
			return errors.New("replication is there already")
		}
		s, err := c.standbyAt(r.To)
		if err != nil {
			return err
		}
		switch {
		case r.Mode == blockrepl.Full:
			c.p.bitmap = nil
		case r.Mode == blockrepl.Checksum && len(r.From) == 0:
			c.p.bitmap = &[blocks]bool{}
		case c.p.bitmap == nil:
			return errors.New("no bitmap")
		}
		x = newSession(c.p, s, r.Mode == blockrepl.Full)
		x.mode = r.Mode
		if r.Mode != blockrepl.Checksum {
			x.copyDisks(3) // half-way
		}
		return nil
	})
	if err != nil {
		return err
	}
	if r.Mode == blockrepl.Checksum {
		if err := c.compare(ctx, r); err != nil {
			return err
		}
		if err := c.step(ctx, opSync, syncing, ms, 30*ms, func(x *session) error { x.copyDisks(3); return nil }); err != nil {
			return err
		}
	}
	return c.step(ctx, opSync, syncing, 30*ms, 300*ms, func(x *session) error {
		x.copyDisks(1)
		x.stage = mirrored
		r.Progress(blockrepl.Progress{Disk: "vda", Done: blocks, Total: blocks})
		return nil
	})
}

// compare puts on record which blocks differ, a few at a time. Offsets are numbers of blocks.
func (c *simCopy) compare(ctx context.Context, r colo.SyncRequest) error {
	const few = 2
	for b := int(r.From["vda"]); b < blocks; b += few {
		theirs, err := r.Sums(ctx, blockrepl.Part{Disk: "vda", Offset: int64(b), Length: few})
		if err != nil {
			return err
		}
		err = c.step(ctx, opSync, syncing, ms, 20*ms, func(x *session) error {
			for i := range few {
				if binary.BigEndian.Uint32(theirs[4*i:]) != c.p.view[b+i] {
					c.p.bitmap[b+i] = true
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		r.Save("vda", int64(b+few))
		r.Progress(blockrepl.Progress{Disk: "vda", Phase: blockrepl.Comparing, Done: int64(b + few), Total: blocks})
	}
	return nil
}

func (c *simCopy) DropDisk(ctx context.Context, _ string) error {
	return c.e.doOn(ctx, opQMP, c.p, ms, 3*ms, func() error { return c.p.dropHalf() })
}

// dropHalf takes the host's disk from a primary in COLO.
func (p *proc) dropHalf() error {
	if !p.otherHalf() || p.sess.stage != inColo || p.overlay {
		return blockrepl.ErrOnlyHalf
	}
	p.halfGone, p.goneSince = true, time.Now()
	return nil
}

// otherHalf says whether a write can reach the peer's disk, as far as a primary knows.
func (p *proc) otherHalf() bool {
	x := p.sess
	return x != nil && x.p == p && x.s.alive && x.left == [2]bool{} && !x.noticed[0]
}

// diskless says whether a request fails because no half is left.
func (p *proc) diskless(k *work) bool { return p.halfGone && !k.ram && !p.otherHalf() }

func (c *simCopy) Local(context.Context) (blockrepl.Sums, func(context.Context) error, error) {
	return nil, nil, errors.New("not simulated")
}

func (c *simCopy) Mark(context.Context, string, []blockrepl.Range) error {
	return errors.New("not simulated")
}

func (c *simCopy) Backup(context.Context, blockrepl.BackupOptions) error { return nil }
func (c *simCopy) TuneSync(context.Context, int64, bool) error           { return nil }

// Sums are the contents themselves.
func (c *simCopy) Sums(ctx context.Context, part blockrepl.Part) (out []byte, err error) {
	err = c.e.doOn(ctx, opQMP, c.p, 200*time.Microsecond, 5*ms, func() error {
		if !c.p.standby {
			return errors.New("not a standby")
		}
		for _, v := range c.p.h.image[part.Offset : part.Offset+part.Length] {
			out = binary.BigEndian.AppendUint32(out, v)
		}
		return nil
	})
	return out, err
}

// copyDisks copies one in so many of the blocks that are to be copied.
func (x *session) copyDisks(oneIn int) {
	for b := range blocks {
		if b%oneIn != 0 || !x.full && !x.p.bitmap[b] {
			continue
		}
		x.send(b)
	}
}

// send copies a block. That it is durable there is another matter.
func (x *session) send(b int) {
	h := x.s.h
	if h.loose == nil {
		h.loose = map[int]uint32{}
	}
	if _, ok := h.loose[b]; !ok {
		h.loose[b] = h.image[b]
	}
	h.image[b] = x.p.view[b]
	if !x.full {
		x.p.bitmap[b], x.p.held[b] = false, true
	}
}

func (c *simCopy) Connect(ctx context.Context, _ colo.Endpoint) error {
	return c.step(ctx, opQMP, mirrored, ms, 5*ms, func(x *session) error { x.stage = connected; return nil })
}

func (c *simCopy) CopyMemory(ctx context.Context, _ colo.Endpoint) error {
	return c.step(ctx, opMemory, connected, 50*ms, 200*ms, func(x *session) error {
		x.stage = copied
		x.p.paused = true
		return nil
	})
}

func (c *simCopy) SwitchDisks(ctx context.Context) (colo.SyncResult, error) {
	res := colo.SyncResult{}
	return res, c.step(ctx, opSwitch, copied, 2*ms, 10*ms, func(x *session) error {
		res.Mode = x.mode
		for b := range blocks {
			if x.dirty[b] && x.full || !x.full && x.p.bitmap[b] {
				x.send(b)
				x.dirty[b] = false
			}
		}
		if x.full {
			x.p.bitmap = &[blocks]bool{}
		}
		x.stage = switched
		return nil
	})
}

func (c *simCopy) StartColo(ctx context.Context) error {
	return c.step(ctx, opColo, switched, 5*ms, 20*ms, func(x *session) error { x.begin(); return nil })
}

func (c *simCopy) ProveColo(ctx context.Context) error { return c.Checkpoint(ctx) }

func (c *simCopy) Checkpoint(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	var want uint64
	err := c.e.doOn(ctx, opQMP, c.p, 200*time.Microsecond, ms, func() error {
		x := c.p.sess
		if x == nil || x.stage != inColo || x.p != c.p {
			return errors.New("not in COLO")
		}
		want = c.p.cpCount + 1
		if x.checking {
			want++
		}
		x.checkpoint()
		return nil
	})
	if err != nil {
		return err
	}
	return c.e.w.await(ctx, c.e, func() (bool, error) {
		switch x := c.p.sess; {
		case !c.p.alive:
			return false, errEnded
		case x == nil || x.noticed[0]:
			return false, errors.New("QEMU has left COLO")
		}
		return c.p.cpCount >= want, nil
	})
}

func (c *simCopy) Release(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	return c.e.doOn(ctx, opRelease, c.p, 3*ms, 15*ms, func() error {
		if c.p.halfGone {
			return &colo.HalfGoneError{Disks: []string{"vda"}}
		}
		c.ending = true
		if x := c.p.sess; x != nil && x.p == c.p {
			x.release()
		}
		if !c.p.standby {
			c.p.running = true // also one that was never started: who releases a copy wants its guest to run
		}
		c.p.resume()
		c.e.w.lan.look()
		return nil
	})
}
