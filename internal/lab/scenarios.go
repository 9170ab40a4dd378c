package lab

import (
	"context"
	"slices"
	"time"

	"github.com/coloctl/coloctl/blockrepl"
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
	{
		Name: "power-off-both", Summary: "both hosts lose power, and return", Boots: 2,
		Steps: once(powerOffBoth, powerOnBoth),
	},
	{
		Name: "power-off-both-one-returns", Summary: "both hosts lose power, one returns and serves, then the other", Boots: 2,
		Steps: once(powerOffBoth, powerOnOne, powerOn),
	},
	{Name: "kill-colod", Summary: "the nodes' daemons are killed, again and again", Steps: quietly(killDaemons)},
	{
		Name: "freeze-colod", Summary: "the nodes' daemons freeze, then one freezes and the link is lost",
		Steps: once(freezeDaemons, lose(primary, "the primary's daemon freezes and the link is cut", freezeAndCut), thaw, restoreLink, reprotected, settle,
			lose(secondary, "the secondary's daemon freezes and the link is cut", freezeAndCut), thaw, restoreLink),
	},
	{
		Name: "partition", Summary: "the nodes lose each other on all networks, LAN and arbiter stay", Checks: []Check{fallsSilent},
		Steps: once(lose(secondary, "the nodes are parted", partition), loserSilent, healNetworks),
	},
	{
		Name: "isolate-primary", Summary: "the primary's host loses the links and the arbiter, its LAN stays", Checks: []Check{fallsSilent},
		Steps: once(lose(primary, "the primary's host is cut off all but the LAN", isolate), loserSilent, healNetworks),
	},
	{Name: "lose-arbiter", Summary: "the arbiter is away for some seconds", Steps: quietly(loseArbiter)},
	{
		Name: "arbiter-and-link", Summary: "the arbiter is lost, then the link: both copies are held until it returns",
		Steps: once(arbiterThenLink, restoreLink),
	},
	{
		Name: "slow-link", Summary: "the link takes 200 ms there and back and loses 5 %, for a while (--for)",
		Steps: func(p Params) []Step { return once(slow(p.or(20 * time.Second)))(p) },
	},
	{
		Name: "clock-jump", Summary: "the wall clocks of the nodes' daemons jump, then the primary's QEMU crashes", Clock: true,
		Steps: once(jumpClocks, lose(primary, "the primary's QEMU is killed", kill)),
	},
	{
		Name: "full-disk", Summary: "the nodes' state folders are full, then the primary's QEMU crashes", SmallState: true,
		Steps: once(fillStates, lose(primary, "the primary's QEMU is killed", kill), freeStates),
	},
	{Name: "guest-reboot", Summary: "the guest restarts itself", Boots: 2, Steps: quietly(guestReboot)},
	{Name: "guest-shutdown", Summary: "the guest switches itself off, and a person starts it again", Boots: 2, Steps: quietly(guestShutdown, startAgain)},
	{
		Name: "flap", Summary: "the link goes up and down for a minute (--for)",
		Steps: func(p Params) []Step { return once(flap(p.or(time.Minute)))(p) },
	},
	{Name: "restart-libvirtd", Summary: "libvirt starts the QEMUs, and is restarted under protection", Libvirt: true, Steps: quietly(restartLibvirt)},
	{
		Name: "disk-error-primary", Summary: "writes to the primary's own disk fail",
		Steps: once(lose(primary, "writes to the disk of the primary's host fail", failDisk), takeBack),
	},
	{
		Name: "disk-error-secondary", Summary: "writes to the secondary's disk fail",
		Steps: once(lose(secondary, "writes to the disk of the secondary's host fail", failDisk), stayOut, takeBack),
	},
	{
		Name: "slow-disk", Summary: "the secondary's disk is slow for a while (--for), then the primary's",
		Steps: func(p Params) []Step { return quietly(slowDisks(p.or(10 * time.Second)))(p) },
	},
	{
		Name: "resync-interrupted", Summary: "processes are killed at random moments of resyncs", Boots: AnyBoots,
		Data: 64 << 20, Filled: 64 << 20, SyncSpeed: 16 << 20, Steps: interruptedResync,
	},
	{
		Name: "dirty-1pct", Summary: "1 % of a disk of 4 GiB is rewritten while the peer is away", Data: 4 << 30, Filled: 384 << 20,
		Checks: []Check{resynced(blockrepl.Bitmap), sentAtMost("the disks", func(r *Result) *int64 { return r.DiskBytes }, most/rewriteShare)},
		Steps:  quietly(lose(secondary, "the secondary's host loses power", powerOff), rewriteWhileAway, powerOn, reprotected, mirrorAll),
	},
	{
		Name: "crash-resync", Summary: "the primary's host loses power under write load", Data: 512 << 20, Filled: 256 << 20,
		Checks: []Check{resynced(blockrepl.Checksum), sentAtMost("what differed", func(r *Result) *int64 { return r.DifferBytes }, most)},
		Steps:  once(beginLoad, lose(primary, "the primary's host loses power", powerOff), endLoad, powerOn),
	},
	{
		Name: "verify-corruption", Summary: "a byte of the secondary's half changes, is found and repaired",
		Data: 64 << 20, Filled: 64 << 20, Steps: quietly(corruption),
	},
	{Name: "lose-one-link", Summary: "one of two links is lost and returns", Links: 2, Steps: quietly(loseOneLink)},
	{
		Name: "links-alternate", Summary: "the links are lost in turn, for a minute (--for)", Links: 2,
		Steps: func(p Params) []Step { return quietly(alternateLinks(p.or(time.Minute)))(p) },
	},
	{
		Name: "link-degraded", Summary: "one of two links takes 200 ms there and back and loses 5 %, for a while (--for)", Links: 2,
		Steps: func(p Params) []Step { return quietly(degradeLink(p.or(20 * time.Second)))(p) },
	},
	{Name: "stranger", Summary: "a host on the LAN and on the links tries to get in, without a key", Links: 2, Checks: []Check{keptOut}, Steps: quietly(strange)},
	{Name: "key-rotation", Summary: "the authority and all certificates are replaced", Steps: quietly(rotateKeys)},
	{
		Name: "eight-vms", Summary: "one host of eight VMs loses power, and returns", Disk: manyDisk, Memory: manyMemory, Boots: AnyBoots, Checks: []Check{allBoots},
		Steps: manyVMs,
	},
	{
		Name: "three-nodes", Summary: "n2 is lost and replaced by n3, then n1 is lost, then n2 returns", Disk: 64 << 20, Nodes: 3, Boots: AnyBoots, Checks: []Check{allBoots},
		Steps: threeNodes,
	},
	{Name: "backup-while-protected", Summary: "a backup is made while clients write, and one of what has changed; both are restored", Steps: quietly(backups)},
	{
		Name: "arbiter-forgets", Summary: "the arbiter's data is lost and a person has the record made again; then the primary's QEMU crashes",
		Steps: once(forgetArbiter, lose(primary, "the primary's QEMU is killed", kill)),
	},
	{
		Name: "kill-campaign", Summary: "one of both QEMUs is killed at a random moment under mixed traffic, IPv6 too, -n times in one life of the guest",
		Cycles: true, IPv6: true, Attempts: 1000, Checks: []Check{allTalksSurvived}, Steps: killCampaign,
	},
	{
		Name: "kill-comparer", Summary: "the comparer's process is killed at random moments under mixed traffic, -n times, then the primary's QEMU",
		Cycles: true, IPv6: true, Checks: []Check{allTalksSurvived}, Steps: killComparers,
	},
	{Name: "latency", Summary: "what a client feels of a guest alone, protected, protected with QEMU's comparer, and by the plain recipe", Steps: compareWays(latencyWays)},
	{Name: "distance", Summary: "what a client feels of a guest that is protected over links with round trips of 0, 1, 5 and 10 ms", Steps: compareWays(distanceWays)},
}

func (p Params) or(d time.Duration) time.Duration {
	if p.For > 0 {
		return p.For
	}
	return d
}

// once is the shape of a scenario with one event: normal operation, the event, and protected again.
func once(event ...Step) func(Params) []Step { return quietly(append(event, reprotected)...) }

// quietly is the shape of a scenario whose event ends with the VM protected.
func quietly(event ...Step) func(Params) []Step {
	return func(Params) []Step {
		return slices.Concat([]Step{boot, clients, protect, moreClients, settle}, event, []Step{settle, finish, halves})
	}
}

// pingPong loses the copies of one VM in turn: the primary in odd cycles, the secondary in even ones. The way alternates too.
func pingPong(p Params) []Step {
	steps := []Step{boot, clients, protect, moreClients, settle}
	events := [][]Step{
		{lose(primary, "the primary's QEMU is killed", kill)},
		{lose(secondary, "the secondary's QEMU is killed", kill)},
		{lose(primary, "the primary's host loses power", powerOff), powerOn},
		{lose(secondary, "the secondary's host loses power", powerOff), powerOn},
	}
	for i := range p.N {
		steps = slices.Concat(steps, events[i%len(events)], []Step{reprotected, settle})
	}
	return append(steps, finish, halves)
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
