package lab

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// daemonKills is how often daemons are killed: in turn that of n1, that of n2, and both.
const daemonKills = 6

var killDaemons = undisturbed("the nodes' daemons are killed, one after the other and both at once", func(ctx context.Context, r *Run) error {
	for i := range daemonKills {
		victims := [][]string{{"n1"}, {"n2"}, NodeNames}[i%3]
		if err := pause(ctx, r.between(0, time.Second)); err != nil {
			return err
		}
		r.Tell.Say("kill -9 for colod of %v", victims)
		for _, v := range victims {
			if err := r.Lab.Node(v).KillDaemon(); err != nil {
				return err
			}
		}
		// A service manager starts it again, by our unit after a second.
		if err := pause(ctx, r.between(100*time.Millisecond, 2*time.Second)); err != nil {
			return err
		}
		if r.Rand.IntN(2) == 0 {
			victims = slices.Clone(victims)
			slices.Reverse(victims)
		}
		for _, v := range victims {
			if err := r.Lab.Node(v).StartDaemon(ctx); err != nil {
				return err
			}
		}
		if err := r.protectedStill(ctx); err != nil {
			return fmt.Errorf("after kill %d: %w", i+1, err)
		}
	}
	return nil
})

// freezeTime is much longer than everything that the peer waits for.
const freezeTime = 4 * time.Second

// freezeDaemons freezes one node's daemon, then the other's, while all is well otherwise.
var freezeDaemons = undisturbed("the nodes' daemons freeze for 4 s, one after the other", func(ctx context.Context, r *Run) error {
	for _, name := range NodeNames {
		n := r.Lab.Node(name)
		if err := n.FreezeDaemon(); err != nil {
			return err
		}
		err := pause(ctx, freezeTime)
		if thaw := n.ThawDaemon(); err == nil {
			err = thaw
		}
		if err == nil {
			err = r.protectedStill(ctx)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
})

// freezeAndCut is the loss of the link while a node's daemon is frozen.
func freezeAndCut(_ context.Context, r *Run, n *Node) error {
	if err := n.FreezeDaemon(); err != nil {
		return err
	}
	return r.Lab.CutLinks(CutSilent)
}

// thaw lets the frozen daemon find out that it has lost. That it let nothing out is what the rule of one voice says.
var thaw = Step{Name: "the daemon wakes up", Do: func(ctx context.Context, r *Run) error {
	if err := pause(ctx, freezeTime/2); err != nil {
		return err
	}
	r.Tell.Say("%s: the daemon wakes up", r.lost)
	r.mark(false, "%s's daemon wakes up", r.lost)
	if err := r.Lab.Node(r.lost).ThawDaemon(); err != nil {
		return err
	}
	_, err := r.silent(ctx, r.lost, time.Now())
	return err
}}
