package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/api"
	"github.com/coloctl/coloctl/colo/api/pki"
	"github.com/coloctl/coloctl/state"
)

// site is the nodes of a context that are asked.
type site struct {
	context string
	nodes   []*target
}

// target is one node's daemon.
type target struct {
	name string // empty when the daemon behind a socket could not be asked who it is
	*api.Client
}

// openSite makes the clients of a context, or the one of a single node. Only a socket's daemon is asked anything: who it is.
func openSite(ctx context.Context, c *nodesContext, only string) (*site, error) {
	s := &site{context: c.Name}
	if c.Socket != "" {
		client, err := api.NewClient(api.ClientOptions{Socket: c.Socket})
		if err != nil {
			return nil, err
		}
		t := &target{Client: client}
		s.nodes = append(s.nodes, t)
		n, err := client.Node(ctx)
		switch {
		case err == nil:
			t.name = n.Info.Name
		case only != "":
			client.Close()
			return nil, err
		}
		if only != "" && only != t.name {
			client.Close()
			return nil, usagef("--node %s: the context %s reaches %s only; for others: coloctl context add", only, c.Name, t.name)
		}
		return s, nil
	}
	creds, err := pki.Load(pki.Files{Identity: c.Identity, Trust: c.Trust})
	if err != nil {
		return nil, fmt.Errorf("context %s: %w", c.Name, err)
	}
	var names []string
	for _, n := range c.Nodes {
		names = append(names, n.Name)
		if only != "" && n.Name != only {
			continue
		}
		client, err := api.NewClient(api.ClientOptions{Node: n.Name, Addresses: n.Addresses, Credentials: creds})
		if err != nil {
			s.close()
			return nil, fmt.Errorf("context %s: %w", c.Name, err)
		}
		s.nodes = append(s.nodes, &target{n.Name, client})
	}
	if len(s.nodes) == 0 {
		return nil, usagef("--node %s: the context %s has: %s", only, c.Name, strings.Join(names, ", "))
	}
	return s, nil
}

func (s *site) close() {
	for _, t := range s.nodes {
		t.Close()
	}
}

func (t *target) String() string {
	if t.name == "" {
		return "this host"
	}
	return t.name
}

// each asks all nodes at once and returns the errors by their place.
func (s *site) each(do func(i int, t *target) error) []error {
	errs := make([]error, len(s.nodes))
	var wg sync.WaitGroup
	for i, t := range s.nodes {
		wg.Go(func() { errs[i] = do(i, t) })
	}
	wg.Wait()
	return errs
}

// allFailed is the nodes' errors if there is no answer at all.
func (s *site) allFailed(errs []error) error {
	if slices.Contains(errs, nil) {
		return nil
	}
	if len(errs) == 1 {
		return errs[0]
	}
	out := make([]error, len(errs))
	for i, err := range errs {
		out[i] = fmt.Errorf("%s: %w", s.nodes[i], err)
	}
	return errors.Join(out...)
}

// half is one node's half of a VM.
type half struct {
	Node   string       `json:"node"`
	Status *colo.Status `json:"status,omitempty"`
	Error  string       `json:"error,omitempty"` // why there is no status

	target *target // nil: known through its peer only
	err    error
}

// has says whether the node knows the VM.
func (h *half) has() bool { return h.Status != nil }

// look asks all nodes, and through a single one its peer, how a VM stands. The error is set if nobody knows it.
func (s *site) look(ctx context.Context, vm string) ([]half, error) {
	out := make([]half, len(s.nodes))
	both := len(s.nodes) == 1
	var peer *half
	errs := s.each(func(i int, t *target) error {
		out[i] = half{Node: t.String(), target: t}
		st, err := t.Status(ctx, vm, both)
		if err != nil {
			out[i].err, out[i].Error = err, err.Error()
			return err
		}
		out[i].Node, out[i].Status = st.Node, &st.Status
		switch {
		case st.Other != nil:
			peer = &half{Node: st.Other.Node, Status: st.Other}
		case st.OtherError != "" && st.Peer != "":
			peer = &half{Node: st.Peer, Error: st.OtherError}
		}
		return nil
	})
	if peer != nil {
		out = append(out, *peer)
	}
	return out, s.allFailed(errs)
}

// runsAsPrimary says whether a guest that speaks to the world runs in a state, or is about to.
func runsAsPrimary(s colo.State) bool {
	switch s {
	case colo.Starting, colo.Solo, colo.Syncing, colo.Attaching, colo.Protected, colo.Detaching, colo.SwitchingOver, colo.Stopping, colo.FailingOver:
		return true
	}
	return false
}

// elsewhereError is returned for a command on a VM whose primary runs on a node that the context doesn't reach.
type elsewhereError struct{ vm, node, context string }

func (e *elsewhereError) Error() string {
	return fmt.Sprintf("%s runs on %s, which the context %s does not reach: give the command there, or add a context with both nodes (coloctl context add)",
		e.vm, e.node, e.context)
}

// ambiguousError is returned when more than one node could be meant.
type ambiguousError struct{ vm, what string }

func (e *ambiguousError) Error() string {
	return fmt.Sprintf("%s: %s: name one with --node", e.vm, e.what)
}

// route finds the node that a command on a VM is for: the one where the primary runs, or, when none does, the one whose copy is the newest.
// The halves are returned besides, for questions to the operator.
func (s *site) route(ctx context.Context, vm string) (*target, []half, error) {
	halves, err := s.look(ctx, vm)
	if err != nil {
		return nil, halves, err
	}
	t, err := s.choose(vm, halves)
	return t, halves, err
}

func (s *site) choose(vm string, halves []half) (*target, error) {
	var known, primaries, waiting []*half
	for i := range halves {
		h := &halves[i]
		if !h.has() {
			continue
		}
		known = append(known, h)
		switch {
		case runsAsPrimary(h.Status.State):
			primaries = append(primaries, h)
		case h.Status.State == colo.Arbitrating:
			waiting = append(waiting, h)
		}
	}
	pick := primaries
	if len(pick) == 0 {
		pick = waiting
	}
	switch {
	case len(pick) > 1 && len(s.nodes) > 1:
		return nil, &ambiguousError{vm, "both " + pick[0].Node + " and " + pick[1].Node + " are " + string(pick[0].Status.State)}
	case len(pick) > 1: // only one of them can be meant
		return s.nodes[0], nil
	case len(pick) == 0:
		slices.SortStableFunc(known, newerFirst)
		pick = known[:1]
	}
	if pick[0].target == nil {
		return nil, &elsewhereError{vm, pick[0].Node, s.context}
	}
	return pick[0].target, nil
}

// newerFirst orders halves of a VM that runs nowhere: by generation, then the last primary.
func newerFirst(a, b *half) int {
	switch ga, gb := a.Status.Generation, b.Status.Generation; {
	case ga > gb:
		return -1
	case ga < gb:
		return 1
	}
	rank := func(h *half) int {
		switch {
		case h.Status.Role == state.RolePrimary:
			return 0
		case h.target == nil:
			return 2
		}
		return 1
	}
	return rank(a) - rank(b)
}

// silent names the nodes that did not answer, for messages about what the others say.
func silent(halves []half) []string {
	var out []string
	for _, h := range halves {
		if h.err != nil && !errors.Is(h.err, colo.ErrNoVM) {
			out = append(out, h.Node)
		}
	}
	return out
}
