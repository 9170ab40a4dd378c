package lab

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/coloctl/coloctl/blockrepl"
	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/api"
)

// most bounds what a resync sent, as a multiple of what there was to send.
const most = 1.3

// rewriteAway is what the guest rewrites while the peer is away, and in which pieces: a bit of a bitmap stands for 64 KiB.
const (
	rewriteShare = 100 // one part in so many of the disk
	rewritePiece = 1 << 20
)

var rewriteWhileAway = Step{Name: "the guest writes while the peer is away", Do: func(ctx context.Context, r *Run) error {
	share := r.Lab.opts.Data / rewriteShare
	if err := r.rewrite(ctx, share, rewritePiece); err != nil {
		return err
	}
	r.Tell.Say("the guest has rewritten %s of its second disk, 1 %% of it", size(share))
	return nil
}}

// mirrorAll copies the disks again, all of them, to compare with.
var mirrorAll = Step{Name: "mirror all for comparison", Limit: 10 * time.Minute, Do: func(ctx context.Context, r *Run) error {
	name, err := r.Lab.Primary(ctx)
	if err != nil {
		return err
	}
	n := r.Lab.Node(name)
	op, err := n.Client.Unprotect(ctx, VM, api.Request{})
	if err := await(ctx, n, op, err); err != nil {
		return err
	}
	op, err = n.Client.Protect(ctx, VM, api.ResyncRequest{Mode: blockrepl.Full})
	if err := await(ctx, n, op, err); err != nil {
		return err
	}
	s, err := n.Status(ctx)
	if err != nil {
		return err
	}
	if s.Resync == nil || s.Resync.Mode != blockrepl.Full {
		return fmt.Errorf("asked for a full resync, got %+v", s.Resync)
	}
	r.Result.FullBytes, r.Result.FullMS = ptr(s.Resync.Copied), ms(s.Resync.Took)
	r.Tell.Say("the same in full: %s sent in %.1f s, %.1f times as long", size(s.Resync.Copied), s.Resync.Took.Seconds(), *r.Result.FullMS / *r.Result.ResyncMS)
	return nil
}}

// resynced checks how the last resync was done.
func resynced(mode blockrepl.Mode) Check {
	return func(r *Result) error {
		if r.ResyncMode == nil || *r.ResyncMode != string(mode) {
			return fmt.Errorf("the resync was %s, not %s", cell(r.ResyncMode), mode)
		}
		return nil
	}
}

// sentAtMost bounds what the last resync sent.
func sentAtMost(what string, of func(*Result) *int64, share float64) Check {
	return func(r *Result) error {
		limit := of(r)
		if limit == nil || r.ResyncBytes == nil {
			return fmt.Errorf("%s: not measured", what)
		}
		if sent := float64(*r.ResyncBytes); sent > share*float64(*limit) {
			return fmt.Errorf("the resync sent %d bytes, %.4f of %s (%d), more than %.4f", *r.ResyncBytes, sent/float64(*limit), what, *limit, share)
		}
		return nil
	}
}

// loadPiece is one write of the load under which a primary is lost.
const loadPiece = 256 << 10

// crashLoad is how long a load lasts before the loss, and how long after.
const crashLoad = 2 * time.Second

var beginLoad = Step{Name: "the guest writes much", Do: func(ctx context.Context, r *Run) error {
	r.load = r.startLoad(ctx, loadPiece)
	return pause(ctx, crashLoad)
}}

// endLoad also finds out what the resync that follows will have to send: the lost half doesn't change any more.
var endLoad = Step{Name: "what differs", Do: func(ctx context.Context, r *Run) error {
	if err := pause(ctx, crashLoad); err != nil {
		return err
	}
	written := r.load.end()
	var differ int64
	for _, d := range r.Lab.Spec().Disks {
		n, err := differing(r.Lab.Node("n1").path("disks", d.File), r.Lab.Node("n2").path("disks", d.File), int(blockrepl.HashBlock))
		if err != nil {
			return err
		}
		differ += n
	}
	r.Result.DifferBytes = &differ
	r.Tell.Say("the guest has written %s; %s of the halves differ now", size(written), size(differ))
	return nil
}}

// interruptions is how often a resync is interrupted in one run.
const interruptions = 4

// victims are what a resync is interrupted by.
var victims = []struct {
	what string
	hit  func(ctx context.Context, r *Run, source, target *Node) error
}{
	{"the standby's QEMU", func(ctx context.Context, _ *Run, _, target *Node) error { return target.KillQEMU(ctx) }},
	{"the QEMU that runs the VM", func(ctx context.Context, _ *Run, source, _ *Node) error { return source.KillQEMU(ctx) }},
	{"the source's daemon", func(ctx context.Context, r *Run, source, _ *Node) error { return r.restart(ctx, source) }},
	{"the target's daemon", func(ctx context.Context, r *Run, _, target *Node) error { return r.restart(ctx, target) }},
	{"all of the target's host", func(ctx context.Context, r *Run, _, target *Node) error {
		if err := target.PowerOff(ctx); err != nil {
			return err
		}
		if err := pause(ctx, r.between(0, time.Second)); err != nil {
			return err
		}
		return target.PowerOn(ctx)
	}},
	{"both daemons", func(ctx context.Context, r *Run, source, target *Node) error {
		return errors.Join(source.KillDaemon(), target.KillDaemon(), source.StartDaemon(ctx), target.StartDaemon(ctx))
	}},
}

// restart kills a node's daemon and starts it again.
func (r *Run) restart(ctx context.Context, n *Node) error {
	if err := n.KillDaemon(); err != nil {
		return err
	}
	if err := pause(ctx, r.between(0, 500*time.Millisecond)); err != nil {
		return err
	}
	return n.StartDaemon(ctx)
}

// interruptedResync loses the secondary, and then something in the middle of each resync that the daemons begin.
func interruptedResync(Params) []Step {
	steps := []Step{boot, clients, protect, moreClients, settle, lose(secondary, "the secondary's QEMU is killed", kill)}
	for range interruptions {
		steps = append(steps, interrupt)
	}
	return append(steps, reprotected, settle, finish, halves)
}

// interruptWrites is what the guest writes before each interruption, so that also a resync by bitmap takes its time.
const interruptWrites = 16 << 20

var interrupt = Step{Name: "interrupt a resync", Limit: 5 * time.Minute, Do: func(ctx context.Context, r *Run) error {
	source, err := r.running(ctx)
	if err != nil {
		return err
	}
	target := r.Lab.Node(Other(source.Name))
	begun := time.Now()
	if s, err := source.Status(ctx); err != nil || s.State == colo.Protected { // the interruption before came too late
		if err := errors.Join(err, target.KillQEMU(ctx)); err != nil {
			return err
		}
	}
	if err := r.rewrite(ctx, interruptWrites, rewritePiece); err != nil {
		return err
	}
	// It may have begun while the guest wrote, and be over already.
	if _, err := r.Lab.Journal.Await(ctx, begun, func(e colo.Event) bool {
		return e.Node == source.Name && e.Kind == "state" && (e.State == colo.Syncing || e.State == colo.Protected)
	}); err != nil {
		return fmt.Errorf("no resync begins: %w", err)
	}
	if err := pause(ctx, r.between(0, 3*time.Second)); err != nil {
		return err
	}
	if err := r.neverFalse(ctx, source, target); err != nil {
		return err
	}
	v := victims[r.Rand.IntN(len(victims))]
	r.Tell.Say("killed: %s; %s is the source", v.what, source.Name)
	r.mark(true, "killed: %s", v.what)
	r.healed = time.Now()
	if err := v.hit(ctx, r, source, target); err != nil {
		return fmt.Errorf("%s: %w", v.what, err)
	}
	return r.neverFalse(ctx, source, target)
}}

// running waits until one node runs the VM and its guest answers. The node may just have lost the copy that it had.
func (r *Run) running(ctx context.Context) (*Node, error) {
	var name string
	if err := poll(ctx, func() (ok bool, err error) {
		name, err = r.Lab.Primary(ctx)
		return err == nil, err
	}); err != nil {
		return nil, err
	}
	return r.Lab.Node(name), r.Clients.HTTP.Await(ctx, time.Now())
}

// neverFalse fails if the target takes its disks for equal in the generation in which the source doesn't say that the VM is protected, before and
// after. That it has not yet heard of that generation is no claim: it can't start before it has asked the arbiter for the next.
func (r *Run) neverFalse(ctx context.Context, source, target *Node) error {
	alone := func() uint64 {
		s, err := source.Status(ctx)
		if err != nil || !slices.Contains([]colo.State{colo.Solo, colo.Syncing}, s.State) || !slices.Equal(s.Members, []string{source.Name}) {
			return 0
		}
		return s.Generation
	}
	generation := alone()
	there, err := target.Status(ctx)
	if generation == 0 || err != nil || there.Generation < generation || alone() != generation { // it may be down, or things have changed meanwhile
		return nil //nolint:nilerr // who says nothing says nothing false
	}
	for _, d := range there.Disks {
		if d.InSync {
			return fmt.Errorf("%s takes its half of %s for current while %s is making it so", target.Name, d.Name, source.Name)
		}
	}
	return nil
}
