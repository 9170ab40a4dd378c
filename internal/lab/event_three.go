package lab

import (
	"context"
	"fmt"
	"time"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/api"
)

// Three nodes and one VM: n2 is lost for good as it seems, n3 takes its place, then n1 is lost, and n2 returns.

const (
	threeApart   = 50 * time.Millisecond
	threeReplace = 3 * time.Second // after which another candidate takes a lost node's place
)

var bootThree = Step{Name: "start the VM", Limit: manyLimit, Do: func(ctx context.Context, r *Run) error {
	all, err := r.Lab.AddGuests(1, func(_ int, s *colo.Spec) {
		s.Nodes, s.Preferred = r.Lab.Topology.Names, NodeNames[0]
		s.Protection.ReplaceAfter = colo.Duration(threeReplace)
	})
	if err != nil {
		return err
	}
	g := all[0]
	r.Tell.Say("n1 starts the VM, alone; its candidates are %v", g.Spec.Nodes)
	if err := r.Lab.StartGuest(ctx, g, NodeNames[0]); err != nil {
		return err
	}
	if err := r.Lab.AwaitGuestOf(ctx, g); err != nil {
		return err
	}
	if err := r.addClients(ctx, g, threeApart, 2); err != nil {
		return err
	}
	begun := time.Now()
	n := r.Lab.Node(NodeNames[0])
	op, err := n.Client.Protect(ctx, g.Name, api.ResyncRequest{})
	if err := await(ctx, n, op, err); err != nil {
		return err
	}
	r.Result.ProtectMS = ms(time.Since(begun))
	return r.guests[0].clients.OpenIdle(ctx, 2)
}}

// protectedBy waits until two given nodes have the VM.
func protectedBy(primary, secondary string) Step {
	what := fmt.Sprintf("be protected by %s and %s", primary, secondary)
	return Step{Name: what, Limit: manyLimit, Do: func(ctx context.Context, r *Run) error {
		g := r.guests[0]
		err := poll(ctx, func() (bool, error) {
			c := r.copiesOf(ctx, g.Name)
			return c.proven && c.primary == primary && c.secondary == secondary, fmt.Errorf("it is not:%s", c.said)
		})
		if err != nil {
			return err
		}
		s, err := r.Lab.Node(primary).StatusOf(ctx, g.Name)
		if err != nil {
			return err
		}
		r.Result.ReprotectMS = ms(time.Since(r.healed))
		if s.Resync != nil {
			r.Result.ResyncBytes, r.Result.ResyncMode, r.Result.ResyncMS = ptr(s.Resync.Copied), ptr(string(s.Resync.Mode)), ms(s.Resync.Took)
			r.Result.DiskBytes = ptr(int64(g.Spec.Disks[0].Size))
		}
		r.Tell.Say("protected by %s and %s, after %.1f s%s", primary, secondary, time.Since(r.healed).Seconds(), describeResync(s.Status))
		return nil
	}}
}

func losePower(node string) Step {
	return Step{Name: node + " loses power", Limit: manyLimit, Do: func(ctx context.Context, r *Run) error {
		return r.loseHost(ctx, node)
	}}
}

// returned is a node whose copy was replaced while it was away: it may not run what it has.
var returned = Step{Name: "n2 returns", Limit: manyLimit, Do: func(ctx context.Context, r *Run) error {
	r.healed = time.Now()
	r.Tell.Say("n2: the power returns")
	return r.Lab.Node("n2").PowerOn(ctx)
}}

func threeNodes(Params) []Step {
	return []Step{bootThree, protectedBy("n1", "n2"), settleMany, losePower("n2"), protectedBy("n1", "n3"), settleMany,
		losePower("n1"), returned, protectedBy("n3", "n2"), settleMany, finishMany, halvesMany}
}
