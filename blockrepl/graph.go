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
	for _, n := range nodes {
		g[n.NodeName] = n
	}
	return g, nil
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

func (g graph) bitmap(node, name string) (qmp.DirtyBitmap, bool) {
	for _, b := range g[node].DirtyBitmaps {
		if b.Name == name {
			return b, true
		}
	}
	return qmp.DirtyBitmap{}, false
}
