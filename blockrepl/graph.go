package blockrepl

import (
	"context"

	"github.com/coloctl/coloctl/qmp"
)

// graph is QEMU's block graph at one moment. All that must be idempotent looks
// at it first and then does what is left to do: QEMU's errors for "not there"
// are only told apart by their wording.
type graph map[string]qmp.BlockNode

func readGraph(ctx context.Context, c *qmp.Client) (graph, error) {
	nodes, err := c.QueryNamedBlockNodes(ctx)
	if err != nil {
		return nil, err
	}
	g := make(graph, len(nodes))
	edges := false
	for _, n := range nodes {
		g[n.NodeName] = n
		edges = edges || len(n.Children) > 0
	}
	if edges || len(nodes) == 0 {
		return g, nil
	}
	return g, g.readEdges(ctx, c)
}

// readEdges is for a QEMU whose query-named-block-nodes doesn't tell them.
func (g graph) readEdges(ctx context.Context, c *qmp.Client) error {
	var d struct {
		Nodes []struct {
			ID   uint64 `json:"id"`
			Type string `json:"type"`
			Name string `json:"name"`
		} `json:"nodes"`
		Edges []struct {
			Parent uint64 `json:"parent"`
			Child  uint64 `json:"child"`
			Name   string `json:"name"`
		} `json:"edges"`
	}
	if err := c.Execute(ctx, "x-debug-query-block-graph", nil, &d); err != nil {
		return err
	}
	names := map[uint64]string{}
	for _, n := range d.Nodes {
		if n.Type == "block-driver" {
			names[n.ID] = n.Name
		}
	}
	for _, e := range d.Edges {
		if n, ok := g[names[e.Parent]]; ok {
			n.Children = append(n.Children, qmp.BlockChild{Child: e.Name, NodeName: names[e.Child]})
			g[n.NodeName] = n
		}
	}
	return nil
}

func (g graph) has(node string) bool {
	_, ok := g[node]
	return ok
}

// child returns the node at this edge, or "".
func (g graph) child(node, edge string) string {
	for _, ch := range g[node].Children {
		if ch.Child == edge {
			return ch.NodeName
		}
	}
	return ""
}

// edge returns the name under which parent has child, or "". The name of a
// quorum's second child is "children.1" on a new QEMU, but was counted up by
// each attach on older ones.
func (g graph) edge(parent, child string) string {
	for _, ch := range g[parent].Children {
		if ch.NodeName == child {
			return ch.Child
		}
	}
	return ""
}

// reaches says whether a node is below another one, however many filters lie between.
func (g graph) reaches(from, node string) bool {
	for _, ch := range g[from].Children {
		if ch.NodeName == node || g.reaches(ch.NodeName, node) {
			return true
		}
	}
	return false
}

func (g graph) bitmap(node, name string) (qmp.DirtyBitmap, bool) {
	for _, b := range g[node].DirtyBitmaps {
		if b.Name == name {
			return b, true
		}
	}
	return qmp.DirtyBitmap{}, false
}
