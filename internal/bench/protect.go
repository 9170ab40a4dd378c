package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/coloctl/coloctl/internal/guest/service"
	"github.com/coloctl/coloctl/internal/lab"
)

// attach is what protecting a guest cost it.
type attach struct {
	pauses    []float64 // ms, from QEMU's STOP to its RESUME
	blackouts []float64 // ms, the longest time without an answer to a client's datagrams
}

// attachLimit is far more than a boot and an attach take on a slow machine: it turns a hang into an error.
const attachLimit = 5 * time.Minute

// afterwards is how long a client is still watched, with the first checkpoints in it.
const afterwards = time.Second

// measure protects once, by do, while a client sends a datagram each 5 ms. do returns how long the guest was stopped.
func (a *attach) measure(ctx context.Context, b *bed, do func() (pause, error)) error {
	probe, err := lab.NewUDPProbe(ctx, b.dial, guestAddr(service.PortEcho))
	if err != nil {
		return err
	}
	pctx, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		probe.Run(pctx)
	}()
	defer func() {
		stop()
		<-done
	}()
	if err := probe.Await(ctx, time.Now()); err != nil {
		return fmt.Errorf("the guest doesn't answer datagrams: %w", err)
	}
	begun := time.Now()
	p, err := do()
	if err != nil {
		return err
	}
	resumed := time.Now()
	if err := probe.Await(ctx, resumed); err != nil {
		return fmt.Errorf("the guest doesn't answer after it was protected: %w", err)
	}
	select {
	case <-time.After(time.Until(resumed.Add(afterwards))):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	a.pauses = append(a.pauses, millis(p.length()))
	if d, ok := probe.Blackout(begun, resumed.Add(afterwards)); ok {
		a.blackouts = append(a.blackouts, millis(d))
	}
	return nil
}

// ours protects a guest by the engine. Each time is the first for a new VM.
func (b *bed) ours(ctx context.Context, m machine) (a attach, err error) {
	ctx, cancel := context.WithTimeout(ctx, attachLimit)
	defer cancel()
	p, err := b.startPair(ctx, m)
	if err != nil {
		return a, err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	err = a.measure(ctx, b, func() (pause, error) {
		begun := time.Now()
		if err := p.protect(ctx); err != nil {
			return pause{}, err
		}
		// The first is the switch, those that follow are checkpoints.
		pauses, err := p.watch.await(ctx, begun, 1)
		if err != nil {
			return pause{}, err
		}
		return pauses[0], nil
	})
	return a, err
}

func (b *bed) byRecipe(ctx context.Context, m machine, how by) (a attach, err error) {
	ctx, cancel := context.WithTimeout(ctx, attachLimit)
	defer cancel()
	r, err := b.startRecipe(ctx, m)
	if err != nil {
		return a, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	err = a.measure(ctx, b, func() (pause, error) { return r.protect(ctx, how) })
	return a, err
}

func (a *attach) add(o attach) {
	a.pauses = append(a.pauses, o.pauses...)
	a.blackouts = append(a.blackouts, o.blackouts...)
}

// protection compares how long a guest stands still when it is protected, in turns of ours, the recipe, and the recipe with tuning.
func (b *bed) protection(ctx context.Context, o scale) ([]Group, error) {
	hows := []by{{name: "recipe"}, {name: "tuned recipe", tuned: true}}
	var groups []Group
	for _, m := range o.guests {
		var mine attach
		theirs := make([]attach, len(hows))
		for range o.attaches {
			a, err := b.ours(ctx, m)
			if err != nil {
				return nil, fmt.Errorf("protect a guest of %s: %w", m, err)
			}
			mine.add(a)
			b.say("protect %s: stopped for %.0f ms", m, a.pauses[0])
			for i, how := range hows {
				a, err := b.byRecipe(ctx, m, how)
				if err != nil {
					return nil, fmt.Errorf("protect a guest of %s by the %s: %w", m, how.name, err)
				}
				theirs[i].add(a)
				b.say("protect %s by the %s: stopped for %.0f ms", m, how.name, a.pauses[0])
			}
		}
		for i, how := range hows {
			g := Group{Name: "protecting a running guest of " + m.String(), Left: "ours", Right: how.name,
				Note: fmt.Sprintf("medians of %d each; memory filled with data: %v", o.attaches, m.filled)}
			g.Rows = append(g.Rows, row("guest stopped", "ms", quantile(0.5, mine.pauses), quantile(0.5, theirs[i].pauses)),
				row("client without answer", "ms", quantile(0.5, mine.blackouts), quantile(0.5, theirs[i].blackouts)))
			groups = append(groups, g)
		}
	}
	return groups, nil
}
