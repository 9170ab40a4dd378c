// Package both looks at a VM from both of its nodes: who is asked, what each answers, which of them a request is for, and whether the answers together mean
// that the VM is protected.
//
// A [Site] is the daemons that somebody reaches: one on this host, which knows its peer's half by hearsay, or both with certificates. Nothing is kept
// between two calls; all methods may be called concurrently.
package both

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

// Site is the nodes that are asked.
type Site struct {
	Context string // what the caller calls them, for messages
	Nodes   []*Target
}

// Target is one node's daemon.
type Target struct {
	Name string // empty when the daemon behind a socket could not be asked who it is
	*api.Client
}

// Local makes the site of the one daemon behind a unix socket, after asking who it is. An error of that is returned with the site, whose node has no name then.
func Local(ctx context.Context, name, socket string) (*Site, error) {
	client, err := api.NewClient(api.ClientOptions{Socket: socket})
	if err != nil {
		return nil, err
	}
	t := &Target{Client: client}
	n, err := client.Node(ctx)
	t.Name = n.Info.Name
	return &Site{name, []*Target{t}}, err
}

// Endpoint is where one node's daemon is.
type Endpoint struct {
	Node      string
	Addresses []string // host:port, in order of preference
}

// Remote makes the site of daemons that are reached with certificates. Nobody is asked anything yet.
func Remote(name string, nodes []Endpoint, files pki.Files) (*Site, error) {
	creds, err := pki.Load(files)
	if err != nil {
		return nil, err
	}
	s := &Site{Context: name}
	for _, n := range nodes {
		client, err := api.NewClient(api.ClientOptions{Node: n.Node, Addresses: n.Addresses, Credentials: creds})
		if err != nil {
			s.Close()
			return nil, err
		}
		s.Nodes = append(s.Nodes, &Target{n.Node, client})
	}
	return s, nil
}

// Close ends idle connections.
func (s *Site) Close() {
	for _, t := range s.Nodes {
		t.Close()
	}
}

func (t *Target) String() string {
	if t.Name == "" {
		return "this host"
	}
	return t.Name
}

// Each asks all nodes at once and returns the errors by their place.
func (s *Site) Each(do func(i int, t *Target) error) []error {
	errs := make([]error, len(s.Nodes))
	var wg sync.WaitGroup
	for i, t := range s.Nodes {
		wg.Go(func() { errs[i] = do(i, t) })
	}
	wg.Wait()
	return errs
}

// AllFailed is the nodes' errors if there is no answer at all.
func (s *Site) AllFailed(errs []error) error {
	if slices.Contains(errs, nil) {
		return nil
	}
	if len(errs) == 1 {
		return errs[0]
	}
	out := make([]error, len(errs))
	for i, err := range errs {
		if out[i] = err; !strings.HasPrefix(err.Error(), s.Nodes[i].String()+": ") { // of one that did not answer, its client has said so
			out[i] = fmt.Errorf("%s: %w", s.Nodes[i], err)
		}
	}
	return errors.Join(out...)
}

// Half is one node's half of a VM.
type Half struct {
	Node   string       `json:"node"`
	Status *colo.Status `json:"status,omitempty"`
	Error  string       `json:"error,omitempty"` // why there is no status

	Target *Target `json:"-"` // nil: known through its peer only
	Err    error   `json:"-"` // what Error says
}

// Has says whether the node knows the VM.
func (h *Half) Has() bool { return h.Status != nil }

// Look asks all nodes, and through a single one its peer, how a VM stands. The error is set if nobody knows it.
func (s *Site) Look(ctx context.Context, vm string) ([]Half, error) {
	out := make([]Half, len(s.Nodes))
	lone := len(s.Nodes) == 1
	var peer *Half
	errs := s.Each(func(i int, t *Target) error {
		out[i] = Half{Node: t.String(), Target: t}
		st, err := t.Status(ctx, vm, lone)
		if err != nil {
			out[i].Err, out[i].Error = err, err.Error()
			return err
		}
		out[i].Node, out[i].Status = st.Node, &st.Status
		switch {
		case st.Other != nil:
			peer = &Half{Node: st.Other.Node, Status: st.Other}
		case st.OtherError != "" && st.Peer != "":
			peer = &Half{Node: st.Peer, Error: st.OtherError}
		}
		return nil
	})
	if peer != nil {
		out = append(out, *peer)
	}
	return out, s.AllFailed(errs)
}

// RunsAsPrimary says whether a guest that speaks to the world runs in a state, or is about to.
func RunsAsPrimary(s colo.State) bool {
	switch s {
	case colo.Starting, colo.Solo, colo.Syncing, colo.Attaching, colo.Protected, colo.Detaching, colo.SwitchingOver, colo.Stopping, colo.FailingOver:
		return true
	}
	return false
}

// ElsewhereError is returned for a command on a VM whose primary runs on a node that the context doesn't reach.
type ElsewhereError struct{ VM, Node, Context string }

func (e *ElsewhereError) Error() string {
	return fmt.Sprintf("%s runs on %s, which the context %s does not reach: give the command there, or add a context with both nodes (coloctl context add)",
		e.VM, e.Node, e.Context)
}

// AmbiguousError is returned when more than one node could be meant.
type AmbiguousError struct{ VM, What string }

func (e *AmbiguousError) Error() string {
	return fmt.Sprintf("%s: %s: name one with --node", e.VM, e.What)
}

// Route finds the node that a command on a VM is for: the one where the primary runs, or, when none does, the one whose copy is the newest.
// The halves are returned besides, for questions to the operator.
func (s *Site) Route(ctx context.Context, vm string) (*Target, []Half, error) {
	halves, err := s.Look(ctx, vm)
	if err != nil {
		return nil, halves, err
	}
	t, err := s.Choose(vm, halves)
	return t, halves, err
}

func (s *Site) Choose(vm string, halves []Half) (*Target, error) {
	var known, primaries, waiting []*Half
	for i := range halves {
		h := &halves[i]
		if !h.Has() {
			continue
		}
		known = append(known, h)
		switch {
		case RunsAsPrimary(h.Status.State):
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
	case len(pick) > 1 && len(s.Nodes) > 1:
		return nil, &AmbiguousError{vm, "both " + pick[0].Node + " and " + pick[1].Node + " are " + string(pick[0].Status.State)}
	case len(pick) > 1: // only one of them can be meant
		return s.Nodes[0], nil
	case len(pick) == 0:
		slices.SortStableFunc(known, NewerFirst)
		if pick = known[:1]; pick[0].Target == nil { // it runs nowhere, so the node that is reached may be asked: it knows best why it refuses
			return s.Nodes[0], nil
		}
	}
	if pick[0].Target == nil {
		return nil, &ElsewhereError{vm, pick[0].Node, s.Context}
	}
	return pick[0].Target, nil
}

// NewerFirst orders halves of a VM that runs nowhere: by generation, then the last primary.
func NewerFirst(a, b *Half) int {
	switch ga, gb := a.Status.Generation, b.Status.Generation; {
	case ga > gb:
		return -1
	case ga < gb:
		return 1
	}
	rank := func(h *Half) int {
		switch {
		case h.Status.Role == state.RolePrimary:
			return 0
		case h.Target == nil:
			return 2
		}
		return 1
	}
	return rank(a) - rank(b)
}

// Silent names the nodes that did not answer, for messages about what the others say.
func Silent(halves []Half) []string {
	var out []string
	for _, h := range halves {
		if h.Err != nil && !errors.Is(h.Err, colo.ErrNoVM) {
			out = append(out, h.Node)
		}
	}
	return out
}
