package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/coloctl/coloctl/colo/api/pki"
	"github.com/coloctl/coloctl/internal/both"
)

// site is the nodes of a context that are asked.
type site struct{ *both.Site }

type (
	target = both.Target
	half   = both.Half
)

// openSite makes the clients of a context, or the one of a single node. Only a socket's daemon is asked anything: who it is.
func openSite(ctx context.Context, c *nodesContext, only string) (*site, error) {
	if c.Socket != "" {
		s, err := both.Local(ctx, c.Name, c.Socket)
		switch {
		case s == nil || err != nil && only != "":
			return nil, err
		case only != "" && only != s.Nodes[0].Name:
			s.Close()
			return nil, usagef("--node %s: the context %s reaches %s only; for others: coloctl context add", only, c.Name, s.Nodes[0].Name)
		}
		return &site{s}, nil
	}
	var all []both.Endpoint
	var names []string
	for _, n := range c.Nodes {
		names = append(names, n.Name)
		all = append(all, both.Endpoint{Node: n.Name, Addresses: n.Addresses})
	}
	if only != "" {
		all = slices.DeleteFunc(all, func(e both.Endpoint) bool { return e.Node != only })
		if len(all) == 0 {
			return nil, usagef("--node %s: the context %s has: %s", only, c.Name, strings.Join(names, ", "))
		}
	}
	s, err := both.Remote(c.Name, all, pki.Files{Identity: c.Identity, Trust: c.Trust})
	if err != nil {
		return nil, fmt.Errorf("context %s: %w", c.Name, err)
	}
	return &site{s}, nil
}
