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
	case Start, Stop, StopForce, Protect, Unprotect, Switchover:
		r.operate(h, s.What)
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
	case Twice:
		last(func() { w.dup = 50 }, func() { w.dup = 0 })
	case FailOnce:
		w.fails[s.op()]++
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
func (r *run) operate(h *Host, k Kind) {
	n := h.node()
	if n == nil {
		return
	}
	r.w.tell("?", "operator at %s: %s", h.name, k)
	r.asked.Go(func() {
		ctx, cancel := context.WithTimeout(r.ctx, 8*time.Second)
		defer cancel()
		err := request(ctx, n, k)
		if h.node() != n {
			err = errGone // what it said last depends on chance
		}
		r.w.tell("?", "operator at %s: %s: %v", h.name, k, err)
	})
}

func request(ctx context.Context, n *colo.Node, k Kind) error {
	switch k {
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
	}
	panic("no request: " + k)
}
