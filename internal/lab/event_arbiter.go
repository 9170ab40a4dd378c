package lab

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/api"
)

// loseArbiter: the guest and its copies go on as if nothing had happened, and the verdict says what is missing.
var loseArbiter = undisturbed("the arbiter is lost for some seconds", func(ctx context.Context, r *Run) error {
	name, err := r.Lab.Primary(ctx)
	if err != nil {
		return err
	}
	if err := r.Lab.Voter.Kill(); err != nil {
		return err
	}
	if err := r.unprotectedVerdict(ctx, name, "arbiter"); err != nil {
		return err
	}
	if err := pause(ctx, 3*time.Second); err != nil {
		return err
	}
	if err := r.Lab.Voter.Start(ctx); err != nil {
		return err
	}
	return r.protectedStill(ctx)
})

// forgetArbiter: an arbiter without memory decides nothing, the verdict says so, and a person has the record made again.
var forgetArbiter = undisturbed("the arbiter loses its memory", func(ctx context.Context, r *Run) error {
	name, err := r.Lab.Primary(ctx)
	if err != nil {
		return err
	}
	if err := r.Lab.Voter.Forget(); err != nil {
		return err
	}
	if err := r.Lab.Voter.Start(ctx); err != nil {
		return err
	}
	n := r.Lab.Node(name)
	if err := r.unprotectedVerdict(ctx, name, "no record"); err != nil {
		return err
	}
	r.Tell.Say("%s: coloctl vm restore-record %s", name, VM)
	op, err := n.Client.RestoreRecord(ctx, VM, api.Request{Reason: "the arbiter was lost"})
	if err := await(ctx, n, op, err); err != nil {
		return err
	}
	return r.protectedStill(ctx)
})

// unprotectedVerdict waits until a node says that it is not protected, and why.
func (r *Run) unprotectedVerdict(ctx context.Context, name, why string) error {
	return poll(ctx, func() (bool, error) {
		s, err := r.Lab.Node(name).Status(ctx)
		if err != nil {
			return false, err
		}
		v := s.Verdict
		if !v.Protected && strings.Contains(v.Reason, why) {
			r.Tell.Say("%s says that it is not protected: %s", name, v.Reason)
			return true, nil
		}
		return false, fmt.Errorf("the verdict of %s without an arbiter: protected %v, %s", name, v.Protected, v.Reason)
	})
}

// arbiterThenLink loses the arbiter and then the links: nobody may go on until the arbiter is back, and then one does.
var arbiterThenLink = Step{Name: "the arbiter and then the link are lost", Do: func(ctx context.Context, r *Run) error {
	before, err := r.Lab.Primary(ctx)
	if err != nil {
		return err
	}
	r.Tell.Say("the arbiter is lost")
	r.mark(true, "the arbiter is lost")
	if err := r.Lab.Voter.Kill(); err != nil {
		return err
	}
	if err := pause(ctx, time.Second); err != nil {
		return err
	}
	r.Tell.Say("the replication link is cut")
	l := loss{at: time.Now()}
	r.mark(true, "the link is cut")
	if err := r.Lab.CutLinks(CutSilent); err != nil {
		return err
	}
	for _, name := range NodeNames {
		_, err := r.Lab.Journal.Await(ctx, l.at, func(e colo.Event) bool { return e.Node == name && e.Kind == "state" && e.State == colo.Arbitrating })
		if err != nil {
			return fmt.Errorf("%s doesn't hold its copy: %w", name, err)
		}
	}
	if err := pause(ctx, 3*time.Second); err != nil {
		return err
	}
	for _, e := range r.Lab.Journal.Since(l.at) {
		if e.Kind == "state" && e.State != colo.Arbitrating {
			return fmt.Errorf("%w: %s became %s (%s)", errHeld, e.Node, e.State, e.Text)
		}
	}
	r.Tell.Say("both copies are held; the arbiter returns")
	r.mark(false, "the arbiter is back")
	if err := r.Lab.Voter.Start(ctx); err != nil {
		return err
	}
	return r.survive(ctx, l, before)
}}
