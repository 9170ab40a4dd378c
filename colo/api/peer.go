package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/arbiter"
	"github.com/coloctl/coloctl/colo/arbiter/fence"
)

// Peer makes the calls of [colo.Peer] to another node's daemon. Each call has a connection of its own: one that was open when a link failed would
// swallow the call that matters most.
type Peer struct {
	*Client
	speaks speaks
}

var (
	_ colo.Peer  = (*Peer)(nil)
	_ fence.Peer = (*Peer)(nil)
)

// NewPeer makes the way to a peer. It connects when it is used; the peer need not be there.
func NewPeer(o ClientOptions) (*Peer, error) {
	c, err := NewClient(o)
	if err != nil {
		return nil, err
	}
	c.tr.DisableKeepAlives = true
	return &Peer{c, ours}, nil
}

// Times after which calls without a deadline of their own are given up. Those of plans on the peer wait for QEMUs and images.
const (
	peerAsk  = 5 * time.Second
	peerPlan = 2 * time.Minute
)

// peerCall is do for a node: what is not the engine's own word is an ErrPeerUnreachable.
func (p *Peer) peerCall(ctx context.Context, limit time.Duration, k *call, in, out any) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, limit, fmt.Errorf("no answer within %s: %w", limit, context.DeadlineExceeded))
		defer cancel()
	}
	var err error
	if in != nil {
		if k.body, err = jsonBody(in); err != nil {
			return err
		}
	}
	if err = p.say(ctx, k, out); err == nil {
		return nil
	}
	if errors.Is(err, colo.ErrPeerProtocol) {
		return fmt.Errorf("%w: %s: %w", colo.ErrPeerUnreachable, p.where, err)
	}
	var said *Error
	if errors.As(err, &said) && said.Body.Engine && !errors.Is(err, colo.ErrClosed) {
		return fmt.Errorf("%s: %w", p.where, err)
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%w: %w", colo.ErrPeerUnreachable, err)
	}
	// Without %w: that the peer found this node's request forbidden or too large must not look like this node's own answer to somebody.
	return fmt.Errorf("%w: %v", colo.ErrPeerUnreachable, err) //nolint:errorlint // see above
}

// say is do with the versions of both sides.
func (p *Peer) say(ctx context.Context, k *call, out any) error {
	k.header = http.Header{protocolHeader: {p.speaks.String()}}
	var answer []byte // empty where nothing is to be said
	header, err := p.do(ctx, k, &answer)
	var said *Error
	if errors.As(err, &said) { // a refusal may mean something else there
		header = said.header
	}
	if header != nil && len(k.path) > 1 && k.path[1] == "peer" {
		if err := p.speaks.understands(header); err != nil {
			return err
		}
	}
	if err != nil || out == nil {
		return err
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return fmt.Errorf("%s: %w: %w: %w", p.where, ErrUnreachable, errGarbled, err)
	}
	return nil
}

func peerPath(elem ...string) []string { return append([]string{"v1", "peer"}, elem...) }

func (p *Peer) post(ctx context.Context, limit time.Duration, name string, in, out any) error {
	return p.peerCall(ctx, limit, &call{method: http.MethodPost, path: peerPath(name)}, in, out)
}

// Hello implements [colo.Peer].
func (p *Peer) Hello(ctx context.Context) (out colo.NodeInfo, err error) {
	err = p.peerCall(ctx, peerAsk, &call{method: http.MethodGet, path: peerPath("hello")}, nil, &out)
	return out, err
}

// Prepare implements [colo.Peer].
func (p *Peer) Prepare(ctx context.Context, r colo.PrepareRequest) (out colo.PrepareReply, err error) {
	err = p.post(ctx, peerPlan, "prepare", r, &out)
	return out, err
}

// Drop implements [colo.Peer].
func (p *Peer) Drop(ctx context.Context, r colo.DropRequest) error {
	return p.post(ctx, peerPlan, "drop", r, nil)
}

// Confirm implements [colo.Peer].
func (p *Peer) Confirm(ctx context.Context, rec arbiter.Record) error {
	return p.post(ctx, peerAsk, "confirm", rec, nil)
}

// TakeOver implements [colo.Peer].
func (p *Peer) TakeOver(ctx context.Context, rec arbiter.Record) error {
	return p.post(ctx, peerPlan, "take-over", rec, nil)
}

// ReportDead implements [colo.Peer].
func (p *Peer) ReportDead(ctx context.Context, r colo.Report) error {
	return p.post(ctx, peerAsk, "report-dead", r, nil)
}

// ReportChannelLost implements [colo.Peer].
func (p *Peer) ReportChannelLost(ctx context.Context, r colo.Report) error {
	return p.post(ctx, peerAsk, "report-channel-lost", r, nil)
}

// Sums implements [colo.Peer].
func (p *Peer) Sums(ctx context.Context, r colo.SumsRequest) (out colo.SumsReply, err error) {
	err = p.post(ctx, peerPlan, "sums", r, &out)
	return out, err
}

// Checkpoint implements [colo.Peer].
func (p *Peer) Checkpoint(ctx context.Context, r colo.CheckpointRequest) error {
	return p.post(ctx, peerAsk, "checkpoint", r, nil)
}

// Inquire implements [colo.Peer].
func (p *Peer) Inquire(ctx context.Context, vm string) (out colo.PeerVM, err error) {
	err = p.peerCall(ctx, peerAsk, &call{method: http.MethodGet, path: peerPath("vms", vm)}, nil, &out)
	return out, err
}

// Held implements [colo.Peer].
func (p *Peer) Held(ctx context.Context, id string) (out arbiter.Record, err error) {
	err = p.peerCall(ctx, peerAsk, &call{method: http.MethodGet, path: peerPath("records", id)}, nil, &out)
	return out, err
}

// PeerStatus asks how a VM stands on the peer, for people.
func (p *Peer) PeerStatus(ctx context.Context, vm string) (colo.Status, error) {
	var out BothStatus
	err := p.peerCall(ctx, peerAsk, &call{method: http.MethodGet, path: []string{"v1", "vms", vm, "status"}, query: url.Values{}}, nil, &out)
	return out.Status, err
}

// Exchange implements [fence.Peer]. Whoever answers with the peer's certificate is alive, whatever the answer is.
func (p *Peer) Exchange(ctx context.Context, m fence.Message) (out fence.Reply, err error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, peerAsk)
		defer cancel()
	}
	k := &call{method: http.MethodPost, path: peerPath("arbiter")}
	if k.body, err = jsonBody(m); err != nil {
		return out, err
	}
	err = p.say(ctx, k, &out)
	if errors.As(err, new(*Error)) || errors.Is(err, errGarbled) {
		err = fmt.Errorf("%w: %w", fence.ErrAnswered, err)
	}
	return out, err
}
