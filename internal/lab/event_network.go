package lab

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// partition parts the nodes on all networks that they share but the LAN. Each still reaches the arbiter.
func partition(_ context.Context, r *Run, _ *Node) error {
	return errors.Join(r.Lab.CutLinks(CutSilent), r.Lab.Topology.PartManagement())
}

// isolate cuts a node off the links and the management network, and with it off the arbiter. Its LAN stays.
func isolate(_ context.Context, r *Run, n *Node) error {
	return errors.Join(r.Lab.CutLinks(CutSilent), r.Lab.Topology.CutManagement(n.Name))
}

// loserSilent finds out which copy did not go on and measures when it was heard last.
var loserSilent = Step{Name: "the other copy is silent", Do: func(ctx context.Context, r *Run) error {
	winner, err := r.Lab.Primary(ctx)
	if err != nil {
		return err
	}
	last := r.losses[len(r.losses)-1]
	d, err := r.silent(ctx, Other(winner), last.at)
	if err != nil {
		return err
	}
	r.Result.SilentMS = ms(d)
	r.Tell.Say("%s: the last frame of its copy came %d ms after it was cut off", Other(winner), d.Milliseconds())
	return nil
}}

var healNetworks = heal("the networks are whole again", func(_ context.Context, r *Run) error {
	err := r.Lab.RestoreLinks()
	for _, name := range NodeNames {
		err = errors.Join(err, r.Lab.Topology.RestoreManagement(name))
	}
	return err
})

// silentLimit is how long after the loss a copy that is cut off may still be heard: the heartbeat's timeout and as much again for a busy machine.
const silentLimit = 1000

// fallsSilent is the check of the figure.
func fallsSilent(res *Result) error {
	switch {
	case res.SilentMS == nil:
		return errors.New("when the isolated copy fell silent was not measured")
	case *res.SilentMS > silentLimit:
		return fmt.Errorf("the copy that was cut off spoke for %.0f ms", *res.SilentMS)
	}
	return nil
}

// flap cuts the link and restores it again and again, with and without a sign, for a while.
func flap(d time.Duration) Step {
	return Step{Name: "the link flaps", Limit: d + 2*stepLimit, Do: func(ctx context.Context, r *Run) error {
		r.Tell.Say("the link goes up and down, for %v", d)
		r.mark(true, "the link flaps")
		l := loss{at: time.Now(), planned: true}
		n := 0
		for ; time.Since(l.at) < d; n++ {
			how := []Cut{CutSilent, CutCarrier}[r.Rand.IntN(2)]
			if err := r.Lab.CutLinks(how); err != nil {
				return err
			}
			if err := pause(ctx, r.between(50*time.Millisecond, 2*time.Second)); err != nil {
				return err
			}
			if err := r.Lab.RestoreLinks(); err != nil {
				return err
			}
			if err := pause(ctx, r.between(50*time.Millisecond, 3*time.Second)); err != nil {
				return err
			}
		}
		r.healed = time.Now()
		r.mark(false, "the link is whole again")
		r.Tell.Say("the link was lost %d times and is whole again", n)
		if err := r.Clients.AwaitAnswers(ctx, time.Now()); err != nil {
			return err
		}
		l.until = time.Now()
		r.losses = append(r.losses, l)
		return nil
	}}
}

// slow makes the link slow and lossy for a while. Whether the VM stays protected meanwhile is not said; it must serve, and be protected again.
func slow(d time.Duration) Step {
	return Step{Name: "the link is slow", Limit: d + 2*stepLimit, Do: func(ctx context.Context, r *Run) error {
		r.Tell.Say("the link takes %v there and back and loses 5 %% of all frames, for %v", 2*slowDelay, d)
		r.mark(true, "the link is slow")
		l := loss{at: time.Now(), planned: true}
		var all []*Slowness
		end := func() (err error) {
			for _, s := range all {
				err = errors.Join(err, s.Close())
			}
			return errors.Join(err, r.Lab.RestoreLinks())
		}
		for _, link := range r.Lab.Topology.Links {
			s, err := link.Slow(slowDelay, slowLoss, r.Rand.Uint64())
			if err != nil {
				return errors.Join(err, end())
			}
			all = append(all, s)
		}
		err := pause(ctx, d)
		if e := end(); err == nil {
			err = e
		}
		if err != nil {
			return err
		}
		var passed, lost uint64
		for _, s := range all {
			passed, lost = passed+s.Passed.Load(), lost+s.Lost.Load()
		}
		r.healed = time.Now()
		r.mark(false, "the link is quick again")
		r.Tell.Say("the link is quick again; it has carried %d frames and lost %d", passed, lost)
		if err := r.Clients.AwaitAnswers(ctx, time.Now()); err != nil {
			return err
		}
		l.until = time.Now()
		r.losses = append(r.losses, l)
		return nil
	}}
}

const (
	slowDelay = 100 * time.Millisecond // each way
	slowLoss  = 0.05
)
