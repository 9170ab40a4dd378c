package setup

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/api"
	"github.com/coloctl/coloctl/colo/api/pki"
)

// Clients speak to both nodes as the admin.
type Clients []*api.Client

// Connect makes the clients; the nodes need not be there.
func (k Keys) Connect(s *Site) (Clients, error) {
	creds, err := pki.Load(pki.Files{Identity: k.Identity(Admin), Trust: k.Trust()})
	if err != nil {
		return nil, err
	}
	var out Clients
	for _, n := range s.Nodes {
		c, err := api.NewClient(api.ClientOptions{Node: n.Name, Addresses: s.Addresses(n), Credentials: creds})
		if err != nil {
			out.Close()
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}

// Close ends the clients.
func (c Clients) Close() {
	for _, x := range c {
		x.Close()
	}
}

// Unready says what keeps the site from being whole, a line each: nodes that don't answer, and what the others find wrong.
func (c Clients) Unready(ctx context.Context, s *Site) []string {
	var out []string
	for i, x := range c {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		h, err := x.Health(ctx)
		cancel()
		if err != nil {
			out = append(out, s.Nodes[i].Name+": "+err.Error())
			continue
		}
		for _, item := range h.Items {
			if !item.OK && (item.Name != "arbiter" || s.Witness != nil) {
				out = append(out, fmt.Sprintf("%s: %s: %s", s.Nodes[i].Name, item.Name, item.Text))
			}
		}
	}
	return out
}

// Await waits until nothing keeps the site from being whole, or ctx ends; then it returns what does.
func (c Clients) Await(ctx context.Context, s *Site) ([]string, error) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		left := c.Unready(ctx, s)
		if len(left) == 0 {
			return nil, nil
		}
		select {
		case <-ctx.Done():
			return left, ctx.Err()
		case <-tick.C:
		}
	}
}

// where finds the node on which the VM runs, and how it is there; nil if none knows it.
func (c Clients) where(ctx context.Context, vm string) (*api.Client, colo.Status) {
	var at *api.Client
	var is colo.Status
	for _, x := range c {
		st, err := x.Status(ctx, vm, false)
		if err != nil {
			continue
		}
		switch st.State {
		case colo.Stopped, colo.Outdated, colo.Standby, colo.Secondary:
			if at != nil {
				continue
			}
		}
		at, is = x, st.Status
	}
	return at, is
}

// become waits until a VM is in a state, or has left the way to it.
func (c Clients) become(ctx context.Context, vm string, want colo.State) error {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		at, st := c.where(ctx, vm)
		switch {
		case at == nil:
			return errors.New("no node knows it any more")
		case st.State == want:
			return nil
		case st.State != colo.Syncing && st.State != colo.Attaching:
			return fmt.Errorf("%s is %s: %s", vm, st.State, st.Verdict.Reason)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// VM makes, starts and protects the first VM, as far as that isn't done.
func (c Clients) VM(ctx context.Context, spec *colo.Spec, text api.SpecText, tell func(api.Operation)) Plan {
	is := func(states ...colo.State) func() bool {
		return func() bool {
			at, st := c.where(ctx, spec.Name)
			for _, s := range states {
				if at != nil && st.State == s {
					return true
				}
			}
			return at != nil && len(states) == 0
		}
	}
	running := []colo.State{colo.Starting, colo.Solo, colo.Syncing, colo.Attaching, colo.Protected, colo.Arbitrating, colo.FailingOver}
	follow := func(ctx context.Context, begin func(*api.Client) (api.Operation, error)) error {
		at, _ := c.where(ctx, spec.Name)
		if at == nil {
			return errors.New("no node knows it any more")
		}
		op, err := begin(at)
		if err == nil {
			_, err = at.Wait(ctx, op.ID, tell)
		}
		return err
	}
	return Plan{
		{"create the VM " + spec.Name, is(), func(ctx context.Context) error { _, err := c[0].Create(ctx, text); return err }},
		{"start it", is(running...), func(ctx context.Context) error {
			return follow(ctx, func(x *api.Client) (api.Operation, error) {
				return x.Start(ctx, spec.Name, api.Request{Reason: "coloctl setup"})
			})
		}},
		{"protect it", is(colo.Protected), func(ctx context.Context) error {
			if is(colo.Syncing, colo.Attaching)() { // the node does it by itself
				return c.become(ctx, spec.Name, colo.Protected)
			}
			return follow(ctx, func(x *api.Client) (api.Operation, error) {
				return x.Protect(ctx, spec.Name, api.ResyncRequest{Request: api.Request{Reason: "coloctl setup"}})
			})
		}},
	}
}
