package sim

import (
	"context"
	"time"

	"github.com/coloctl/coloctl/colo"
)

// apply does a step.
func (r *run) apply(s Step) {
	w := r.w
	h := w.hosts[s.Host]
	switch s.What {
	case Start, Stop, StopForce, Protect, Unprotect, Switchover, Edit, Delete:
		r.operate(h, s)
		return
	case Force:
		if r.giveUp(h) {
			r.operate(h, s)
		}
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.say(">", "%s: %s", h.name, s.What)
	last := func(begin, end func()) {
		begin()
		w.mendIn(s.Lasts, func() {
			w.say("<", "%s: no longer: %s", h.name, s.What)
			end()
		})
	}
	switch s.What {
	case KillQEMU:
		if h.proc != nil {
			h.proc.die()
		}
	case StopQEMU:
		if p := h.proc; p != nil && !p.frozen {
			last(p.freeze, p.thaw)
		}
	case KillDaemon:
		if h.env != nil {
			last(h.endDaemon, h.startDaemon)
		}
	case StopDaemon:
		last(h.stop, h.cont)
	case PowerOff:
		last(h.powerOff, h.powerOn)
	case PowerOffBoth:
		last(func() { h.powerOff(); h.other().powerOff() }, func() { h.powerOn(); w.in(s.After, h.other().powerOn) })
	case Freeze:
		if !h.frozen {
			last(h.freeze, h.unfreeze)
		}
	case CutLink:
		l := s.Arg % len(w.links)
		last(func() { w.cutLink(l, 1, h, true) }, func() { w.cutLink(l, -1, h, true) })
	case CutOneWay:
		l := s.Arg % len(w.links)
		last(func() { w.cutLink(l, 1, h, false) }, func() { w.cutLink(l, -1, h, false) })
	case CutAll:
		last(func() { w.cutLinks(1) }, func() { w.cutLinks(-1) })
	case CutArbiter:
		last(func() { w.cutArbiter(h, 1) }, func() { w.cutArbiter(h, -1) })
	case CutArbiters:
		last(func() { w.cutArbiter(h, 1); w.cutArbiter(h.other(), 1) }, func() { w.cutArbiter(h, -1); w.cutArbiter(h.other(), -1) })
	case MuteArbiter:
		last(func() { w.witness.mute[h.i]++ }, func() { w.witness.mute[h.i]-- })
	case Isolate:
		last(func() { w.cutLinks(1); w.cutArbiter(h, 1) }, func() { w.cutLinks(-1); w.cutArbiter(h, -1) })
	case Lossy:
		l := &w.links[s.Arg%len(w.links)]
		last(func() { l.loss = 20 }, func() { l.loss = 0 })
	case Slow:
		last(func() { w.slow = 8 }, func() { w.slow = 1 })
	case SlowDisk:
		last(func() { h.slowDisk = true }, func() { h.slowDisk = false })
	case FullDisk:
		last(func() { h.fullDisk, w.storeFailed = true, true }, func() { h.fullDisk = false })
	case Twice:
		last(func() { w.dup = 50 }, func() { w.dup = 0 })
	case FailOnce:
		w.fails[s.op()]++
	case LoseConfirms:
		last(func() { w.deaf++ }, func() { w.deaf-- })
	case DarkStart:
		w.cutArbiter(h, 1)
		w.cutArbiter(h.other(), 1)
		w.mendIn(2*s.Lasts+time.Second, func() { w.cutArbiter(h, -1); w.cutArbiter(h.other(), -1) })
		last(func() { h.powerOff(); h.other().powerOff() }, func() { h.powerOn(); w.in(s.After, h.other().powerOn) })
	case DiskFails:
		if p := h.proc; p != nil && p.alive && p.dropHalf() == nil {
			w.say(h.name, "QEMU %d goes on through the peer's disk", p.id)
			p.tell(colo.DiskFailed, "a write failed")
		}
	case GuestOff, GuestOffEnds:
		w.endsOff = w.endsOff || s.What == GuestOffEnds
		if p := w.lan.voice; p != nil {
			p.poweroff()
		}
	}
	w.poke()
}

func (w *World) cutLink(l, n int, from *Host, both bool) {
	w.links[l].cut[from.i] += n
	if both {
		w.links[l].cut[1-from.i] += n
	}
	w.networkChanged(n)
}

func (w *World) cutLinks(n int) {
	for l := range w.links {
		w.links[l].cut[0] += n
		w.links[l].cut[1] += n
	}
	w.networkChanged(n)
}

func (w *World) cutArbiter(h *Host, n int) {
	w.witness.cut[h.i] += n
	w.networkChanged(n)
}

func (w *World) networkChanged(n int) {
	if n < 0 {
		w.retry()
	}
	w.poke()
}

// node returns the daemon that runs on a host and can be spoken to, or nil.
func (h *Host) node() *colo.Node {
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	if h.env == nil || h.thaw != nil {
		return nil
	}
	return h.env.node
}

// operate lets an operator ask for something, who waits for a while in the background.
func (r *run) operate(h *Host, s Step) {
	k := s.What
	n := h.node()
	if n == nil {
		return
	}
	r.w.tell("?", "operator at %s: %s", h.name, k)
	if k == Delete {
		r.w.mu.Lock()
		r.w.deleted = true
		r.w.mu.Unlock()
	}
	r.asked.Go(func() {
		ctx, cancel := context.WithTimeout(r.ctx, 8*time.Second)
		defer cancel()
		err := request(ctx, n, s)
		if h.node() != n {
			err = errGone // what it said last depends on chance
		}
		r.w.tell("?", "operator at %s: %s: %v", h.name, k, err)
	})
}

func request(ctx context.Context, n *colo.Node, s Step) error {
	switch s.What {
	case Start:
		return n.Start(ctx, vm)
	case Stop:
		return n.Stop(ctx, vm, colo.StopOptions{Timeout: 2 * time.Second})
	case StopForce:
		return n.Stop(ctx, vm, colo.StopOptions{Force: true})
	case Protect:
		return n.Protect(ctx, vm, colo.ProtectOptions{})
	case Unprotect:
		return n.Unprotect(ctx, vm)
	case Switchover:
		return n.Switchover(ctx, vm)
	case Edit:
		to := spec()
		to.Protection.CheckpointDelay = colo.Duration(time.Duration(100+s.Arg%400) * time.Millisecond)
		return n.Edit(ctx, vm, to, "")
	case Delete:
		return n.Delete(ctx, vm, colo.DeleteOptions{Images: s.Arg%2 == 0})
	case Force:
		return n.Force(ctx, vm)
	}
	panic("no request: " + s.What)
}

// giveUp is what an operator does who is going to vouch that the other copy is dead: the other host is powered off, for good until the arbiter
// knows. It is not done where this copy is not the newest, which nobody may vouch for.
func (r *run) giveUp(h *Host) bool {
	w := r.w
	w.mu.Lock()
	defer w.mu.Unlock()
	p := h.proc
	if p == nil || p.standby || p.retired || w.forced != nil && w.forced != h {
		return false
	}
	for b, op := range w.lan.acked {
		if p.mem[b] < op || p.view[b] < op {
			return false
		}
	}
	if p.epoch == w.lan.epoch {
		for i, op := range w.lan.ram {
			if p.ram[i] < op {
				return false
			}
		}
	}
	w.say(">", "%s: power off, until the arbiter knows", h.other().name)
	w.forced = h
	h.other().unplugged = true
	h.other().powerOff()
	return true
}

// plugIn powers on what an operator has given up, once the arbiter knows who goes on.
func (r *run) plugIn() {
	w := r.w
	w.mu.Lock()
	h := w.forced
	w.mu.Unlock()
	if h == nil {
		return
	}
	r.until(10*time.Second, func() bool {
		if w.noArbiter {
			return h.disk.alone(h.name)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		rec := w.witness.record
		return rec == nil || len(rec.Members) == 1 && rec.Members[0] == h.name
	})
	w.mu.Lock()
	defer w.mu.Unlock()
	w.forced = nil
	w.say("<", "%s: powered on again", h.other().name)
	h.other().unplugged = false
	h.other().powerOn()
}
