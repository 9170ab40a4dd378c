package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/coloctl/coloctl/colo"
)

// load is what a client feels of a guest.
type load struct {
	fresh, kept, writes []float64 // ms a request: on a new connection, on a kept one, written to disk by the guest
	download            []float64 // MB/s
	checkpoints         int       // while the requests were made
	requests            int
}

// requests compares what a client feels of a guest alone and protected, in turns on the same guest.
func (b *bed) requests(ctx context.Context, o scale) (gs []Group, err error) {
	m := machine{memory: 256 << 20}
	p, err := b.startPair(ctx, m)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	var alone, protected, stream load
	for turn := range o.turns {
		if err := alone.measure(ctx, b, p, o, fmt.Sprintf("a%d", turn)); err != nil {
			return nil, fmt.Errorf("requests to a guest alone: %w", err)
		}
		for _, with := range []struct {
			comparer string
			into     *load
		}{{colo.ComparerBuiltin, &protected}, {colo.ComparerStream, &stream}} {
			if err := p.compareWith(ctx, with.comparer); err != nil {
				return nil, err
			}
			if err := p.protect(ctx); err != nil {
				return nil, err
			}
			if err := with.into.measure(ctx, b, p, o, fmt.Sprintf("%s%d", with.comparer[:1], turn)); err != nil {
				return nil, fmt.Errorf("requests to a protected guest (comparer %s): %w", with.comparer, err)
			}
			if err := p.unprotect(ctx); err != nil {
				return nil, err
			}
		}
		b.say("requests: median %.1f ms alone, %.1f ms protected, %.1f ms with the comparer of streams", *quantile(0.5, alone.fresh), *quantile(0.5, protected.fresh),
			*quantile(0.5, stream.fresh))
	}
	group := func(name string, a, p []float64) Group {
		return Group{Name: name, Left: "alone", Right: "protected", Note: fmt.Sprintf("%d each", len(a)), Rows: rows("", "ms", a, p, 0.5, 0.9, 0.99, 1)}
	}
	for _, with := range []struct {
		suffix string
		l      *load
	}{{"", &protected}, {", stream", &stream}} {
		first := len(gs)
		gs = append(gs,
			group("HTTP request, new connection each"+with.suffix, alone.fresh, with.l.fresh),
			group("HTTP request on a kept connection"+with.suffix, alone.kept, with.l.kept),
			group("HTTP request with a write to disk"+with.suffix, alone.writes, with.l.writes),
			Group{Name: fmt.Sprintf("HTTP download of %d MB%s", o.download/1e6, with.suffix), Left: "alone", Right: "protected", Note: fmt.Sprintf("medians of %d each", len(alone.download)),
				Rows: rows("throughput,", "MB/s", alone.download, with.l.download, 0.5)})
		share := float64(with.l.checkpoints) / float64(with.l.requests)
		gs[first].Rows = append(gs[first].Rows, row("checkpoints a request, all kinds", "", nil, &share))
	}
	return gs, nil
}

func (l *load) measure(ctx context.Context, b *bed, p *pair, o scale, id string) error {
	begun := time.Now()
	fresh := &http.Transport{DialContext: b.dial, DisableKeepAlives: true}
	kept := &http.Transport{DialContext: b.dial}
	defer kept.CloseIdleConnections()
	for _, kind := range []struct {
		via  *http.Transport
		path func(i int) string
		into *[]float64
	}{
		{fresh, func(int) string { return "/id" }, &l.fresh},
		{kept, func(int) string { return "/id" }, &l.kept},
		{kept, func(i int) string { return fmt.Sprintf("/counter?id=%s-%d", id, i) }, &l.writes},
	} {
		client := &http.Client{Transport: kind.via, Timeout: 20 * time.Second}
		for i := range o.requests {
			sent := time.Now()
			if err := fetch(ctx, client, kind.path(i), io.Discard); err != nil {
				return err
			}
			*kind.into = append(*kind.into, millis(time.Since(sent)))
		}
		l.requests += o.requests
	}
	l.checkpoints += len(p.watch.since(begun))
	for range o.downloads {
		client := &http.Client{Transport: kept, Timeout: 2 * time.Minute}
		sent := time.Now()
		if err := fetch(ctx, client, fmt.Sprintf("/blob?size=%d", o.download), io.Discard); err != nil {
			return err
		}
		l.download = append(l.download, float64(o.download)/1e6/time.Since(sent).Seconds())
	}
	return nil
}
