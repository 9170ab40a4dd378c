package lab

import (
	"context"
	"slices"
	"time"

	"github.com/coloctl/coloctl/colo/api"
)

// Scenarios are all that `coloctl lab run` knows, in the order in which it lists them.
var Scenarios = []Scenario{
	{Name: "kill-primary-qemu", Summary: "the primary's QEMU crashes", Steps: once(lose(primary, "the primary's QEMU is killed", kill))},
	{Name: "kill-secondary-qemu", Summary: "the secondary's QEMU crashes", Steps: once(lose(secondary, "the secondary's QEMU is killed", kill))},
	{Name: "freeze-primary", Summary: "the primary's QEMU hangs", Steps: once(lose(primary, "the primary's QEMU freezes", freeze))},
	{Name: "freeze-secondary", Summary: "the secondary's QEMU hangs", Steps: once(lose(secondary, "the secondary's QEMU freezes", freeze))},
	{
		Name: "cut-link", Summary: "the replication link is lost without a sign, both hosts live on",
		Steps: once(lose(secondary, "the replication link is cut", cutLink), restoreLink),
	},
	{
		Name: "power-off-primary", Summary: "the primary's host loses power, and returns",
		Steps: once(lose(primary, "the primary's host loses power", powerOff), powerOn),
	},
	{
		Name: "power-off-secondary", Summary: "the secondary's host loses power, and returns",
		Steps: once(lose(secondary, "the secondary's host loses power", powerOff), powerOn),
	},
	{Name: "switchover", Summary: "the roles are exchanged on request", Steps: once(switchover)},
	{
		Name: "ping-pong", Summary: "one VM loses its primary, then its secondary, and so on: -n losses", Cycles: true,
		Steps: pingPong,
	},
	{Name: "story", Summary: "the demonstration", Told: true, Disk: 256 << 20, Steps: story},
}

// once is the shape of a scenario with one event: normal operation, the event, and protected again.
func once(event ...Step) func(int) []Step {
	return func(int) []Step {
		return slices.Concat([]Step{boot, clients, protect, moreClients, settle}, event, []Step{reprotected, settle, finish})
	}
}

// pingPong loses the copies of one VM in turn: the primary in odd cycles, the secondary in even ones. The way alternates too.
func pingPong(n int) []Step {
	steps := []Step{boot, clients, protect, moreClients, settle}
	events := [][]Step{
		{lose(primary, "the primary's QEMU is killed", kill)},
		{lose(secondary, "the secondary's QEMU is killed", kill)},
		{lose(primary, "the primary's host loses power", powerOff), powerOn},
		{lose(secondary, "the secondary's host loses power", powerOff), powerOn},
	}
	for i := range n {
		steps = slices.Concat(steps, events[i%len(events)], []Step{reprotected, settle})
	}
	return append(steps, finish)
}

func kill(ctx context.Context, _ *Run, n *Node) error   { return n.KillQEMU(ctx) }
func freeze(ctx context.Context, _ *Run, n *Node) error { return n.FreezeQEMU(ctx) }

func powerOff(ctx context.Context, _ *Run, n *Node) error { return n.PowerOff(ctx) }

var powerOn = Step{Name: "the power returns", Do: func(ctx context.Context, r *Run) error {
	r.Tell.Say("%s: the power returns", r.lost)
	r.mark(false, "%s is back", r.lost)
	r.healed = time.Now()
	return r.Lab.Node(r.lost).PowerOn(ctx)
}}

func cutLink(_ context.Context, r *Run, _ *Node) error { return r.Lab.CutLinks(CutSilent) }

var restoreLink = Step{Name: "restore the link", Do: func(_ context.Context, r *Run) error {
	r.Tell.Say("the link is whole again")
	r.mark(false, "the link is whole again")
	r.healed = time.Now()
	return r.Lab.RestoreLinks()
}}

// switchover is planned: nobody has to detect anything.
var switchover = Step{Name: "exchange the roles", Do: func(ctx context.Context, r *Run) error {
	name, err := r.Lab.Primary(ctx)
	if err != nil {
		return err
	}
	r.Tell.Say("switchover from %s to %s", name, Other(name))
	l := loss{at: time.Now(), planned: true}
	r.mark(true, "switchover from %s to %s", name, Other(name))
	n := r.Lab.Node(name)
	op, err := n.Client.Switchover(ctx, VM, api.Request{})
	if err := await(ctx, n, op, err); err != nil {
		return err
	}
	r.healed = l.at
	return r.survive(ctx, l, name)
}}
