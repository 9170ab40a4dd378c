package daemon

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/coloctl/coloctl/colo/arbiter"
)

// looker looks at the arbiter from time to time, so that one that is broken is noticed before the day it matters.
type looker struct {
	arb Arbiter
	log *slog.Logger

	mu    sync.Mutex
	asked bool
	err   error
}

// How often, and for how long, an arbiter is looked at.
const (
	lookEvery = 30 * time.Second
	lookLimit = 10 * time.Second
)

func newLooker(a Arbiter, node string, log *slog.Logger) *looker {
	if a.Look == nil {
		a.Look = func(ctx context.Context) error {
			_, err := a.Get(ctx, "look")
			if errors.Is(err, arbiter.ErrNoRecord) {
				return nil
			}
			return err
		}
	}
	if a.Every == 0 {
		a.Every = lookEvery
	}
	return &looker{arb: a, log: log.With("node", node, "arbiter", a.Name)}
}

// last is what came of looking last. An arbiter that was not looked at yet is not known to answer.
func (l *looker) last() (ok bool, text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case !l.asked:
		return false, l.arb.Name + ": not known yet, this daemon has just started"
	case l.err != nil:
		return false, l.arb.Name + ": " + l.err.Error()
	}
	return true, l.arb.Name + " answers"
}

func (l *looker) run(ctx context.Context) {
	tick := time.NewTicker(l.arb.Every)
	defer tick.Stop()
	for {
		l.look(ctx)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (l *looker) look(ctx context.Context) {
	lctx, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	err := l.arb.Look(lctx)
	if ctx.Err() != nil {
		return
	}
	l.mu.Lock()
	changed := !l.asked || (err == nil) != (l.err == nil) || (err != nil && err.Error() != l.err.Error())
	l.asked, l.err = true, err
	l.mu.Unlock()
	switch {
	case !changed:
	case err != nil:
		l.log.Warn("the arbiter can't decide: no VM counts as protected", "err", err)
	default:
		l.log.Info("the arbiter answers")
	}
}
