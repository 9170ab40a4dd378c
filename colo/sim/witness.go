package sim

import (
	"context"
	"fmt"
	"time"

	"github.com/coloctl/coloctl/colo/arbiter"
)

// witness is the arbiter's machine.
type witness struct {
	record *arbiter.Record
	cut    [2]int // faults between it and each host
	mute   [2]int // faults that lose its answers to each host
}

// ask is the arbiter as a daemon's client reaches it.
type ask struct{ e *env }

func (a ask) request(ctx context.Context, what string, do func(*witness) (arbiter.Record, error)) (arbiter.Record, error) {
	unreachable := func(err error) (arbiter.Record, error) {
		return arbiter.Record{}, fmt.Errorf("%w: %w", arbiter.ErrUnreachable, err)
	}
	if err := a.e.begin(); err != nil {
		return unreachable(err)
	}
	if ctx.Err() != nil {
		return unreachable(ctx.Err())
	}
	w, h := a.e.w, a.e.h
	actor := h.actor(opArbiter)
	type result struct {
		rec arbiter.Record
		err error
	}
	done := make(chan result, 1)
	reply := func(r result) {
		select {
		case done <- r:
		default: // it has an answer, or has given up
		}
	}
	open := func() bool { return w.witness.cut[h.i] == 0 && h.up && h.boot == a.e.boot }
	var send func()
	send = func() {
		if !open() {
			w.park(actor, send)
			if w.chance(actor, 50) {
				reply(result{err: fmt.Errorf("%w: no route to host", arbiter.ErrUnreachable)})
			}
			return
		}
		rec, err := do(&w.witness)
		if w.story {
			answer := rec.String()
			if err != nil {
				answer = err.Error()
			}
			w.say("arbiter", "%s: %s -> %s", h.name, what, answer)
		}
		if w.witness.mute[h.i] > 0 && w.chance(actor, 70) {
			return
		}
		w.in(w.between(actor, 200*time.Microsecond, 3*ms), func() {
			if open() {
				reply(result{rec, err})
			}
		})
	}
	w.mu.Lock()
	hi := 3 * ms
	if w.chance(actor, 8) { // its disk is busy
		hi = 200 * ms
	}
	w.in(w.between(actor, 200*time.Microsecond, hi), send)
	w.mu.Unlock()
	select {
	case r := <-done:
		if err := a.e.pass(); err != nil {
			return unreachable(err)
		}
		return r.rec, r.err
	case <-ctx.Done():
		return unreachable(ctx.Err())
	case <-a.e.dead:
		return unreachable(errGone)
	}
}

func (a ask) Get(ctx context.Context, vm string) (arbiter.Record, error) {
	return a.request(ctx, "get", func(s *witness) (arbiter.Record, error) {
		if s.record == nil {
			return arbiter.Record{}, fmt.Errorf("%w: %s", arbiter.ErrNoRecord, vm)
		}
		return s.record.Normal(), nil
	})
}

func (a ask) Advance(ctx context.Context, next arbiter.Record) (arbiter.Record, error) {
	next = next.Normal()
	return a.request(ctx, next.String(), func(s *witness) (arbiter.Record, error) {
		stored, changed, err := arbiter.Decide(s.record, next)
		if err != nil {
			return arbiter.Record{}, err
		}
		if changed {
			s.record = &stored
		}
		return stored.Normal(), nil
	})
}

func (a ask) Forget(ctx context.Context, _ string, generation uint64) error {
	_, err := a.request(ctx, "forget", func(s *witness) (arbiter.Record, error) {
		if s.record != nil && s.record.Generation != generation {
			return arbiter.Record{}, arbiter.ErrConflict
		}
		s.record = nil
		return arbiter.Record{}, nil
	})
	return err
}
