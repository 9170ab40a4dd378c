package colo

import (
	"context"
	"fmt"
	"sync/atomic"

	"github.com/coloctl/coloctl/colo/arbiter"
)

// Wire joins two nodes of one process. It carries the calls of [Peer] directly and can be cut, so that a lab or a test gets partitions
// without sockets.
type Wire struct {
	down atomic.Bool
	ends [2]atomic.Pointer[Node]
}

// NewWire connects a and b to each other.
func NewWire(a, b *Node) (*Wire, error) {
	w := &Wire{}
	w.ends[0].Store(a)
	w.ends[1].Store(b)
	if err := a.Connect(&wired{w, 1}, b.Info()); err != nil {
		return nil, err
	}
	return w, b.Connect(&wired{w, 0}, a.Info())
}

// SetUp cuts the wire or mends it. Calls under way when it is cut are not undone.
func (w *Wire) SetUp(up bool) { w.down.Store(!up) }

// Replace puts a node in the place of the closed one of the same name, as a daemon takes the place of the one before it.
func (w *Wire) Replace(n *Node) error {
	for i := range w.ends {
		if w.ends[i].Load().cfg.Name == n.cfg.Name {
			w.ends[i].Store(n)
			return n.Connect(&wired{w, 1 - i}, w.ends[1-i].Load().Info())
		}
	}
	return fmt.Errorf("%s is not an end of this wire", n.cfg.Name)
}

// wired is the far node as seen through the wire. A call fails before it is made when the wire is down, and its answer is lost when the
// wire has gone down meanwhile.
type wired struct {
	w   *Wire
	end int
}

func (p *wired) node() *Node { return p.w.ends[p.end].Load() }

func (p *wired) check() error {
	if p.w.down.Load() {
		return fmt.Errorf("%s: %w", p.node().cfg.Name, ErrPeerUnreachable)
	}
	return nil
}

func through[T any](p *wired, call func() (T, error)) (T, error) {
	var zero T
	if err := p.check(); err != nil {
		return zero, err
	}
	v, err := call()
	if cut := p.check(); cut != nil {
		return zero, cut
	}
	return v, err
}

func (p *wired) do(call func() error) error {
	_, err := through(p, func() (struct{}, error) { return struct{}{}, call() })
	return err
}

func (p *wired) Hello(ctx context.Context) (NodeInfo, error) {
	return through(p, func() (NodeInfo, error) { return p.node().Info(), p.node().alive(ctx) })
}

func (p *wired) Prepare(ctx context.Context, r PrepareRequest) (PrepareReply, error) {
	return through(p, func() (PrepareReply, error) { return p.node().servePrepare(ctx, r) })
}

func (p *wired) Sums(ctx context.Context, r SumsRequest) (SumsReply, error) {
	return through(p, func() (SumsReply, error) { return p.node().serveSums(ctx, r) })
}

func (p *wired) Checkpoint(ctx context.Context, r CheckpointRequest) error {
	return p.do(func() error { return p.node().Checkpoint(ctx, r.VM) })
}

func (p *wired) Inquire(ctx context.Context, vm string) (PeerVM, error) {
	return through(p, func() (PeerVM, error) { return p.node().serveInquire(ctx, vm) })
}

func (p *wired) Held(ctx context.Context, id string) (arbiter.Record, error) {
	return through(p, func() (arbiter.Record, error) { return p.node().serveHeld(ctx, id) })
}

func (p *wired) Drop(ctx context.Context, r DropRequest) error {
	return p.do(func() error { return p.node().serveDrop(ctx, r) })
}

func (p *wired) Confirm(ctx context.Context, rec arbiter.Record) error {
	return p.do(func() error { return p.node().serveConfirm(ctx, rec) })
}

func (p *wired) TakeOver(ctx context.Context, rec arbiter.Record) error {
	return p.do(func() error { return p.node().serveTakeOver(ctx, rec) })
}

func (p *wired) ReportDead(ctx context.Context, r Report) error {
	return p.do(func() error { return p.node().serveReportDead(ctx, r) })
}

func (p *wired) ReportChannelLost(ctx context.Context, r Report) error {
	return p.do(func() error { return p.node().serveReportChannelLost(ctx, r) })
}
