package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/coloctl/coloctl/internal/lab"
)

const (
	// checkpointDelay makes checkpoints come often enough to count many of them in a minute.
	checkpointDelay = 100 * time.Millisecond
	// settleCheckpoints are not counted after a change of routes: connections look their route up again when they next send.
	settleCheckpoints = 3
)

// checkpoints measures the pause at a checkpoint of an idle guest, with the quickack routes that the engine makes and without. Both are
// measured in turns on the same connections of the same guest: TCP obeys a change of route at once.
func (b *bed) checkpoints(ctx context.Context, o scale) (g Group, err error) {
	m := machine{memory: 256 << 20}
	g = Group{Name: "checkpoint pause, idle guest of " + m.String(), Left: "quickack", Right: "without",
		Note: fmt.Sprintf("%d checkpoints each, in turns of %d", o.switches*o.checkpoints, o.checkpoints)}
	p, err := b.startPair(ctx, m)
	if err != nil {
		return g, err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	if err := p.protect(ctx); err != nil {
		return g, err
	}
	if err := p.watch.client.MigrateSetParameters(ctx, map[string]any{"x-checkpoint-delay": checkpointDelay.Milliseconds()}); err != nil {
		return g, err
	}
	routes := map[string][]netip.Addr{}
	made := 0
	for _, node := range lab.NodeNames {
		if routes[node], err = b.host(node).QuickAcks(ctx); err != nil {
			return g, err
		}
		made += len(routes[node])
	}
	if made == 0 {
		return g, errors.New("the engine has made no quickack routes: there is nothing to compare")
	}
	var with, without []float64
	for turn := range 2 * o.switches {
		on := turn%2 == 0
		for node, peers := range routes {
			for _, peer := range peers {
				set := b.host(node).ClearQuickAck
				if on {
					set = b.host(node).QuickAck
				}
				if err := set(ctx, peer); err != nil {
					return g, err
				}
			}
		}
		pauses, err := p.watch.await(ctx, time.Now(), settleCheckpoints+o.checkpoints)
		if err != nil {
			return g, err
		}
		into := &without
		if on {
			into = &with
		}
		*into = append(*into, lengths(pauses[settleCheckpoints:])...)
	}
	b.say("checkpoints: median %.1f ms with quickack, %.1f ms without", *quantile(0.5, with), *quantile(0.5, without))
	g.Rows = rows("", "ms", with, without, 0.1, 0.5, 0.9, 0.99, 1)
	return g, p.unprotect(ctx)
}
