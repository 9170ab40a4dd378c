package lab

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/coloctl/coloctl/colo"
)

// pause waits. It is for the length of what is done to a lab, not for something to happen.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// between draws a duration.
func (r *Run) between(least, most time.Duration) time.Duration {
	return least + time.Duration(r.Rand.Int64N(int64(most-least)))
}

// undisturbed does something that no client may notice and that changes nobody's role. At its end the VM must be protected, as it was.
func undisturbed(what string, do func(ctx context.Context, r *Run) error) Step {
	return Step{Name: what, Limit: 5 * time.Minute, Do: func(ctx context.Context, r *Run) error {
		r.Tell.Say("%s", what)
		l := loss{at: time.Now(), planned: true}
		r.mark(true, "%s", what)
		if err := do(ctx, r); err != nil {
			return err
		}
		if err := r.Clients.AwaitAnswers(ctx, time.Now()); err != nil {
			return err
		}
		l.until = time.Now()
		r.losses = append(r.losses, l)
		http, _ := r.Clients.HTTP.Blackout(l.at, l.until)
		r.Tell.Say("the VM is protected as before; clients waited at most: HTTP %d ms", http.Milliseconds())
		return r.sameRoles(l.at)
	}}
}

// sameRoles fails if a copy has changed its role since a time.
func (r *Run) sameRoles(since time.Time) error {
	for _, e := range r.Lab.Journal.Since(since) {
		if e.Kind == "state" && e.State != colo.Protected && e.State != colo.Secondary {
			return fmt.Errorf("%s became %s: %s", e.Node, e.State, e.Text)
		}
	}
	return nil
}

// protectedStill waits until both daemons agree that the VM is protected.
func (r *Run) protectedStill(ctx context.Context) error {
	_, _, err := r.awaitProtected(ctx, time.Time{})
	return err
}

// heal is the end of an outage of a network or an arbiter.
func heal(what string, do func(ctx context.Context, r *Run) error) Step {
	return Step{Name: what, Do: func(ctx context.Context, r *Run) error {
		r.Tell.Say("%s", what)
		r.mark(false, "%s", what)
		r.healed = time.Now()
		return do(ctx, r)
	}}
}

// served waits until clients are served again after an event, by whatever boot of the guest.
func (r *Run) served(ctx context.Context, l loss, who string) error {
	if err := r.Clients.HTTP.Await(ctx, time.Now()); err != nil {
		return fmt.Errorf("no HTTP answer: %w", err)
	}
	l.until = time.Now()
	r.losses = append(r.losses, l)
	http, _ := r.Clients.HTTP.Blackout(l.at, l.until)
	r.Tell.Say("%s serves clients again, who waited %.1f s", who, http.Seconds())
	return nil
}

// silent waits until a node's copy is dead or held, and returns how long after a time it was heard last.
func (r *Run) silent(ctx context.Context, node string, since time.Time) (time.Duration, error) {
	err := poll(ctx, func() (bool, error) {
		s, err := r.Lab.Node(node).Status(ctx)
		if err != nil {
			return false, err
		}
		if s.State == colo.Arbitrating || s.State == colo.Outdated && s.PID == 0 {
			return true, nil
		}
		return false, fmt.Errorf("%s is %s (%s)", node, s.State, s.Why)
	})
	if err != nil {
		return 0, err
	}
	frames, err := r.Lab.sniffers[node].Frames()
	if err != nil || len(frames) == 0 {
		return 0, err
	}
	return max(0, time.Duration(frames[len(frames)-1]-since.UnixNano())), nil
}

var errHeld = errors.New("a copy went on without the arbiter's word")
