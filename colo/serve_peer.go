package colo

import (
	"context"

	"github.com/coloctl/coloctl/colo/arbiter"
)

// AsPeer returns n as its partner sees it, for whoever carries the calls: the server of an API, or a test. The carrier vouches for who calls.
func (n *Node) AsPeer() Peer { return served{n} }

type served struct{ n *Node }

func (s served) Hello(ctx context.Context) (NodeInfo, error) { return s.n.Info(), s.n.alive(ctx) }

func (s served) Prepare(ctx context.Context, r PrepareRequest) (PrepareReply, error) {
	return s.n.servePrepare(ctx, r)
}

func (s served) Drop(ctx context.Context, r DropRequest) error { return s.n.serveDrop(ctx, r) }

func (s served) Confirm(ctx context.Context, rec arbiter.Record) error {
	return s.n.serveConfirm(ctx, rec)
}

func (s served) TakeOver(ctx context.Context, rec arbiter.Record) error {
	return s.n.serveTakeOver(ctx, rec)
}

func (s served) ReportDead(ctx context.Context, r Report) error { return s.n.serveReportDead(ctx, r) }

func (s served) ReportChannelLost(ctx context.Context, r Report) error {
	return s.n.serveReportChannelLost(ctx, r)
}

func (s served) Sums(ctx context.Context, r SumsRequest) (SumsReply, error) {
	return s.n.serveSums(ctx, r)
}

func (s served) Checkpoint(ctx context.Context, r CheckpointRequest) error {
	return s.n.Checkpoint(ctx, r.VM)
}

func (s served) Inquire(ctx context.Context, vm string) (PeerVM, error) {
	return s.n.serveInquire(ctx, vm)
}

func (s served) Held(ctx context.Context, id string) (arbiter.Record, error) {
	return s.n.serveHeld(ctx, id)
}
