package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/coloctl/coloctl/colo"
)

// greeter asks the peer's daemon from time to time who it is, so that a mistake in either configuration is said before the day it matters.
type greeter struct {
	peer  colo.Peer
	self  string
	want  colo.NodeInfo // as configured
	here  colo.NodeInfo
	log   *slog.Logger
	mu    sync.Mutex
	ok    bool
	text  string
	asked bool
}

// How often the peer is asked.
const (
	greetSoon  = time.Second // when it does not answer, then ever more seldom
	greetLater = 30 * time.Second
	greetLimit = 5 * time.Second
)

func newGreeter(p colo.Peer, self string, want, here colo.NodeInfo, log *slog.Logger) *greeter {
	return &greeter{peer: p, self: self, want: want, here: here, log: log.With("node", self, "peer", want.Name), text: "not asked yet"}
}

// last is what came of asking last.
func (g *greeter) last() (ok bool, text string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.ok, g.text
}

func (g *greeter) run(ctx context.Context) {
	soon := greetSoon
	for {
		wait := greetLater
		if err := g.ask(ctx); errors.Is(err, colo.ErrPeerUnreachable) {
			wait, soon = soon, min(2*soon, greetLater)
		} else {
			soon = greetSoon
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
	}
}

func (g *greeter) ask(ctx context.Context) error {
	actx, cancel := context.WithTimeout(ctx, greetLimit)
	defer cancel()
	info, err := g.peer.Hello(actx)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	ok, text := err == nil, "answers"
	if err != nil {
		text = err.Error()
	} else if diff := differences(g.want, g.here, info); len(diff) > 0 {
		ok, text = false, strings.Join(diff, "; ")
	}
	g.mu.Lock()
	changed := !g.asked || ok != g.ok || text != g.text
	g.ok, g.text, g.asked = ok, text, true
	g.mu.Unlock()
	switch {
	case !changed:
	case ok:
		g.log.Info("the peer's daemon answers", "qemu", info.QEMU)
	case err != nil:
		g.log.Warn("the peer's daemon can't be used", "err", err)
	default:
		g.log.Error("the peer is not what this node's configuration says: VMs can't be protected, or a link is not used", "why", text)
	}
	return err
}

// differences compares what the peer says with what is configured here, and with this node.
func differences(want, here, got colo.NodeInfo) []string {
	var out []string
	say := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	if got.Name != want.Name {
		say("it is called %s", got.Name)
	}
	if got.Port != want.Port {
		say("its heartbeats come from port %d, configured is %d", got.Port, want.Port)
	}
	has := map[string]string{}
	for _, l := range got.Links {
		has[l.Name] = l.Address.String()
	}
	for _, l := range want.Links {
		switch a, ok := has[l.Name]; {
		case !ok:
			say("it has no link %s", l.Name)
		case a != l.Address.String():
			say("its address on %s is %s, configured is %s", l.Name, a, l.Address)
		}
	}
	if got.QEMU != here.QEMU {
		say("it runs QEMU %s, this node %s", got.QEMU, here.QEMU)
	}
	if got.HeartbeatInterval != 0 && here.HeartbeatInterval != 0 && (got.HeartbeatInterval != here.HeartbeatInterval || got.HeartbeatTimeout != here.HeartbeatTimeout) {
		say("its heartbeats come every %s and their timeout is %s, this node's every %s and %s", got.HeartbeatInterval, got.HeartbeatTimeout, here.HeartbeatInterval, here.HeartbeatTimeout)
	}
	if got.Accel != here.Accel {
		say("its accelerator is %s, this node's %s", got.Accel, here.Accel)
	}
	return out
}
