package lab

import (
	"context"
	"errors"
	"sync"
	"time"
)

// both does something to both nodes at once.
func (r *Run) both(do func(n *Node) error) error {
	errs := make([]error, len(NodeNames))
	var wg sync.WaitGroup
	for i, name := range NodeNames {
		wg.Go(func() { errs[i] = do(r.Lab.Node(name)) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// powerOffBoth is the loss of everything at once, for a second.
var powerOffBoth = Step{Name: "both hosts lose power", Do: func(ctx context.Context, r *Run) error {
	r.Tell.Say("both hosts lose power")
	r.mark(true, "both hosts lose power")
	r.outage = loss{at: time.Now(), planned: true}
	if err := r.both(func(n *Node) error { return n.PowerOff(ctx) }); err != nil {
		return err
	}
	return pause(ctx, time.Second)
}}

var powerOnBoth = heal("the power returns, on both hosts", func(ctx context.Context, r *Run) error {
	if err := r.both(func(n *Node) error { return n.PowerOn(ctx) }); err != nil {
		return err
	}
	return r.served(ctx, r.outage, "one of them")
})

// powerOnOne lets one of them return, either one.
var powerOnOne = Step{Name: "the power returns, on one host", Do: func(ctx context.Context, r *Run) error {
	one := NodeNames[r.Rand.IntN(2)]
	r.lost = Other(one)
	r.Tell.Say("%s: the power returns; %s stays dark", one, r.lost)
	r.mark(false, "%s is back", one)
	if err := r.Lab.Node(one).PowerOn(ctx); err != nil {
		return err
	}
	return r.served(ctx, r.outage, one)
}}
