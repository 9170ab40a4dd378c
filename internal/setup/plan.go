package setup

import (
	"context"
	"fmt"
)

// Step is one thing to do.
type Step struct {
	What string
	// Done says that nothing is left to do. A step whose ground is made by an earlier one is not done.
	Done func() bool
	Do   func(ctx context.Context) error
}

// Plan is a list of steps, in order.
type Plan []Step

// State is a step and whether it was done when asked.
type State struct {
	What string `json:"what"`
	Done bool   `json:"done"`
}

// States look at all steps and change nothing.
func (p Plan) States() []State {
	var out []State
	for _, s := range p {
		out = append(out, State{s.What, s.Done != nil && s.Done()})
	}
	return out
}

// Run does what is not done, in order, and tells each before it does it. It stops at the first error; a second run goes on there.
func (p Plan) Run(ctx context.Context, tell func(what string)) error {
	for _, s := range p {
		if s.Done != nil && s.Done() {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		tell(s.What)
		if err := s.Do(ctx); err != nil {
			return fmt.Errorf("%s: %w", s.What, err)
		}
	}
	return nil
}
