package sim

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/arbiter"
)

// link is a network between the hosts. The first one carries replication, the last one also what the daemons say to each other.
type link struct {
	cut  [2]int // faults that cut it, by the sender
	loss int    // percent of datagrams
}

func (l *link) whole() bool { return l.cut == [2]int{} }

// parcel is something on its way that waits for a network or a daemon to go on. TCP sends it again, up to a time.
type parcel struct {
	send  func()
	until time.Time // zero is for ever
}

// retry sends what has waited.
func (w *World) retry() {
	for _, p := range take(&w.parked) {
		if p.until.IsZero() || time.Now().Before(p.until) {
			w.in(w.between(actorWorld, 100*time.Microsecond, 100*ms), p.send)
		}
	}
}

// park keeps something until the world has changed. Half of it is lost instead.
func (w *World) park(a int, send func()) {
	if w.chance(a, 50) {
		w.parked = append(w.parked, &parcel{send, time.Now().Add(10 * time.Second)})
	}
}

// remote is the other node as a daemon's client reaches it.
type remote struct {
	e  *env
	to *Host
}

// callTimeout is what the client of the nodes' API waits for an answer.
const callTimeout = 10 * time.Second

func (h *Host) info() colo.NodeInfo {
	info := colo.NodeInfo{Name: h.name, QEMU: "", Accel: "", Port: heartbeatPort}
	for i := range h.w.links {
		info.Links = append(info.Links, colo.Link{Name: fmt.Sprint("link", i), Address: h.addr(i)})
	}
	return info
}

// open says whether the daemons' connections pass.
func (r *remote) open() bool {
	w := r.e.w
	return w.links[len(w.links)-1].whole() && r.e.h.up && r.to.up && r.e.h.boot == r.e.boot
}

type answer struct {
	v   any
	err error
}

// call carries a call over. What was sent may arrive much later, or twice; the answer may get lost.
func call[T any](r *remote, ctx context.Context, name string, fn func(context.Context, colo.Peer) (T, error)) (T, error) {
	var zero T
	unreachable := func(err error) (T, error) {
		return zero, fmt.Errorf("%s: %s: %w: %w", r.to.name, name, colo.ErrPeerUnreachable, err)
	}
	if err := r.e.begin(); err != nil {
		return unreachable(err)
	}
	if ctx.Err() != nil {
		return unreachable(ctx.Err())
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	w, a := r.e.w, r.e.h.actor(opPeer)
	done := make(chan answer, 1)
	reply := func(v any, err error) {
		select {
		case done <- answer{v, err}:
		default:
		}
	}
	// A caller that gives up closes its connection, which ends the context there.
	var send func()
	send = func() {
		switch to := r.to.env; {
		case !r.open():
			w.park(a, send)
			if w.chance(a, 50) {
				reply(nil, errors.New("no route to host"))
			}
		case to == nil || to.node == nil:
			reply(nil, errors.New("connection refused"))
		case r.to.thaw != nil:
			w.parked = append(w.parked, &parcel{send, time.Now().Add(10 * time.Second)})
		default:
			r.serve(ctx, name, to, func(sctx context.Context, p colo.Peer) (any, error) { return fn(sctx, p) }, reply)
		}
	}
	w.mu.Lock()
	w.say(r.e.h.name, "  asks %s: %s", r.to.name, name)
	w.in(w.between(a, 200*time.Microsecond, 2*ms), send)
	if w.dup > 0 && w.chance(a, w.dup) {
		w.in(w.between(a, 10*ms, 3*time.Second), send)
	}
	w.mu.Unlock()
	select {
	case got := <-done:
		if err := r.e.pass(); err != nil {
			return unreachable(err)
		}
		if got.err != nil {
			w.tell(r.e.h.name, "  %s of %s: %v", name, r.to.name, got.err)
		}
		if got.v == nil {
			return unreachable(got.err)
		}
		return got.v.(T), got.err
	case <-ctx.Done():
		return unreachable(ctx.Err())
	case <-r.e.dead:
		return unreachable(errGone)
	}
}

// serve runs a call on the other node in a goroutine of its own, as a server does.
func (r *remote) serve(caller context.Context, name string, to *env, fn func(context.Context, colo.Peer) (any, error), reply func(any, error)) {
	w := r.e.w
	node := to.node
	w.serving.Go(func() {
		sctx, cancel := context.WithCancel(to.ctx)
		defer cancel()
		if w.chanceLocked(to.h.actor(opServe), 70) { // or its end is not heard of in time
			defer context.AfterFunc(caller, cancel)()
		}
		v, err := fn(sctx, node.AsPeer())
		w.mu.Lock()
		defer w.mu.Unlock()
		if to.gone {
			v, err = nil, errors.New("connection reset")
		}
		w.in(w.between(to.h.actor(opServe), 200*time.Microsecond, 2*ms), func() {
			if r.open() {
				reply(v, err)
			}
		})
	})
}

func (w *World) chanceLocked(actor, percent int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.chance(actor, percent)
}

type none = struct{}

func (r *remote) do(ctx context.Context, name string, fn func(context.Context, colo.Peer) error) error {
	_, err := call(r, ctx, name, func(ctx context.Context, p colo.Peer) (none, error) { return none{}, fn(ctx, p) })
	return err
}

func (r *remote) Hello(ctx context.Context) (colo.NodeInfo, error) {
	return call(r, ctx, "hello", func(ctx context.Context, p colo.Peer) (colo.NodeInfo, error) { return p.Hello(ctx) })
}

func (r *remote) Prepare(ctx context.Context, q colo.PrepareRequest) (colo.PrepareReply, error) {
	return call(r, ctx, "prepare", func(ctx context.Context, p colo.Peer) (colo.PrepareReply, error) {
		s := *q.Spec
		q := q
		q.Spec = &s
		return p.Prepare(ctx, q)
	})
}

func (r *remote) Sums(ctx context.Context, q colo.SumsRequest) (colo.SumsReply, error) {
	return call(r, ctx, "sums", func(ctx context.Context, p colo.Peer) (colo.SumsReply, error) { return p.Sums(ctx, q) })
}

func (r *remote) Checkpoint(ctx context.Context, q colo.CheckpointRequest) error {
	return r.do(ctx, "checkpoint", func(ctx context.Context, p colo.Peer) error { return p.Checkpoint(ctx, q) })
}

func (r *remote) Inquire(ctx context.Context, vm string) (colo.PeerVM, error) {
	return call(r, ctx, "inquire", func(ctx context.Context, p colo.Peer) (colo.PeerVM, error) { return p.Inquire(ctx, vm) })
}

func (r *remote) Held(ctx context.Context, id string) (arbiter.Record, error) {
	return call(r, ctx, "held", func(ctx context.Context, p colo.Peer) (arbiter.Record, error) { return p.Held(ctx, id) })
}

func (r *remote) Drop(ctx context.Context, q colo.DropRequest) error {
	q.Record = q.Normal()
	return r.do(ctx, "drop "+q.String(), func(ctx context.Context, p colo.Peer) error { return p.Drop(ctx, q) })
}

func (r *remote) Confirm(ctx context.Context, rec arbiter.Record) error {
	w, a := r.e.w, r.e.h.actor(opPeer)
	w.mu.Lock()
	lost := w.deaf > 0 && w.chance(a, 80)
	heard := lost && w.chance(a, 30)
	w.mu.Unlock()
	var err error
	if !lost || heard {
		err = r.do(ctx, "confirm "+rec.String(), func(ctx context.Context, p colo.Peer) error { return p.Confirm(ctx, rec.Normal()) })
	}
	if lost {
		w.tell(r.e.h.name, "  confirm %s gets lost, or its answer", rec)
		err = fmt.Errorf("%s: confirm: %w", r.to.name, colo.ErrPeerUnreachable)
	}
	return err
}

func (r *remote) TakeOver(ctx context.Context, rec arbiter.Record) error {
	return r.do(ctx, "take over "+rec.String(), func(ctx context.Context, p colo.Peer) error { return p.TakeOver(ctx, rec.Normal()) })
}

func (r *remote) ReportDead(ctx context.Context, q colo.Report) error {
	return r.do(ctx, "my copy is dead", func(ctx context.Context, p colo.Peer) error { return p.ReportDead(ctx, q) })
}

func (r *remote) ReportChannelLost(ctx context.Context, q colo.Report) error {
	return r.do(ctx, "the channel is lost", func(ctx context.Context, p colo.Peer) error { return p.ReportChannelLost(ctx, q) })
}
