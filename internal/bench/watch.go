package main

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/coloctl/coloctl/qmp"
)

// monitorArgs give a QEMU a QMP socket of our own, beside those of the engine.
func monitorArgs(dir string) []string {
	return []string{"-qmp", "unix:" + filepath.Join(dir, "bench") + ",server=on,wait=off"}
}

// dialMonitor connects to it as soon as QEMU listens.
func dialMonitor(ctx context.Context, dir string) (*qmp.Client, error) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		c, err := qmp.Dial(ctx, filepath.Join(dir, "bench"), &qmp.Options{Name: "bench"})
		if err == nil {
			return c, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("QEMU does not answer: %w", err)
		}
	}
}

// pause is a time in which the guest stood still, by QEMU's clock.
type pause struct{ from, to time.Time }

func (p pause) length() time.Duration { return p.to.Sub(p.from) }

// stopwatch collects the guest's pauses from QEMU's STOP and RESUME events. It ends with the connection.
type stopwatch struct {
	client  *qmp.Client
	mu      sync.Mutex
	stopped time.Time
	pauses  []pause
	changed chan struct{} // closed and replaced at each new pause
	err     error
	done    chan struct{}
}

func newStopwatch(c *qmp.Client) *stopwatch {
	w := &stopwatch{client: c, changed: make(chan struct{}), done: make(chan struct{})}
	sub := c.Subscribe(qmp.SubscribeOptions{Buffer: 1 << 14, Match: qmp.Named("STOP", "RESUME")})
	go func() {
		defer close(w.done)
		for e := range sub.C() {
			w.add(e)
		}
		w.mu.Lock()
		if w.err == nil {
			w.err = c.Err()
		}
		w.mu.Unlock()
	}()
	return w
}

func (w *stopwatch) add(e qmp.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case e.Lost > 0:
		w.err = fmt.Errorf("%d events were lost", e.Lost)
	case e.Name == "STOP":
		w.stopped = e.Time
	case !w.stopped.IsZero():
		w.pauses = append(w.pauses, pause{w.stopped, e.Time})
		w.stopped = time.Time{}
		close(w.changed)
		w.changed = make(chan struct{})
	}
}

// since returns the pauses that began after t.
func (w *stopwatch) since(t time.Time) []pause {
	w.mu.Lock()
	defer w.mu.Unlock()
	i, _ := slices.BinarySearchFunc(w.pauses, t, func(p pause, t time.Time) int { return p.from.Compare(t) })
	return slices.Clone(w.pauses[i:])
}

// await returns the first n pauses that began after t, when they have ended.
func (w *stopwatch) await(ctx context.Context, t time.Time, n int) ([]pause, error) {
	for {
		w.mu.Lock()
		changed, err := w.changed, w.err
		w.mu.Unlock()
		p := w.since(t)
		if err == nil && len(p) >= n {
			return p[:n], nil
		}
		if err == nil {
			select {
			case <-changed:
				continue
			case <-w.done:
				continue // with an error
			case <-ctx.Done():
				err = context.Cause(ctx)
			}
		}
		return nil, fmt.Errorf("%d of %d pauses of the guest: %w", len(p), n, err)
	}
}

func lengths(pauses []pause) []float64 {
	out := make([]float64, len(pauses))
	for i, p := range pauses {
		out[i] = millis(p.length())
	}
	return out
}
