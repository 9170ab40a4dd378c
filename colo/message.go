package colo

import (
	"context"
	"sync/atomic"
)

// message is an event on its way to the state machine.
type message struct {
	kind  EventKind
	text  string
	disk  string       // that is out of service now
	gen   uint64       // of a peer's report, in which it counted both copies
	copy  Copy         // the copy it is about, when it comes from one
	job   *job         // the plan that has ended
	err   error        // how
	args  any          // of a request
	reply chan<- error // of a request; buffered
	ctx   context.Context
	began *atomic.Bool // set when the request has begun something
}

// over says whether nobody waits for a request any more that nothing was done about yet.
func (msg *message) over() error {
	if msg.ctx == nil {
		return nil
	}
	return msg.ctx.Err()
}

func (msg *message) answer(err error) {
	if msg.reply != nil {
		msg.reply <- err
	}
}

// post hands a fact to the state machine.
func (m *machine) post(msg message) {
	select {
	case m.in <- msg:
	case <-m.quit:
	case <-m.n.ctx.Done():
	}
}

// request asks the state machine for something and waits until the plan it leads to has ended.
func (m *machine) request(ctx context.Context, kind EventKind, args any) error {
	return m.requestBegan(ctx, kind, args, new(atomic.Bool))
}

// requestBegan is request that also tells whether a plan was begun for it, which goes on when the caller leaves. A request that the state machine comes
// to only after ctx has ended is not carried out.
func (m *machine) requestBegan(ctx context.Context, kind EventKind, args any, began *atomic.Bool) error {
	reply := make(chan error, 1)
	select {
	case m.in <- message{kind: kind, args: args, reply: reply, ctx: ctx, began: began}:
	case <-ctx.Done():
		return ctx.Err()
	case <-m.quit:
		return ErrNoVM
	case <-m.n.ctx.Done():
		return ErrClosed
	}
	select {
	case err := <-reply:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-m.quit:
		return ErrNoVM
	case <-m.n.ctx.Done():
		return ErrClosed
	}
}

func (msg *message) begins() {
	if msg.began != nil {
		msg.began.Store(true)
	}
}
