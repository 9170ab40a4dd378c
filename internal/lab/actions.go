package lab

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/api"
)

// settleAfter is how long normal operation is watched before a loss, beside a random part of a checkpoint's interval, so that losses
// hit checkpoints at every point.
const settleAfter = baseline + 500*time.Millisecond

// boot starts the VM on the first node, alone.
var boot = Step{Name: "start the VM", Do: func(ctx context.Context, r *Run) error {
	r.Tell.Say("n1 starts the VM, alone")
	begun := time.Now()
	if err := r.Lab.Boot(ctx, NodeNames[0]); err != nil {
		return err
	}
	r.Tell.Say("the guest's services answer, after %.1f s", time.Since(begun).Seconds())
	return nil
}}

// clients starts to use the guest. Half of the idle connections are older than the protection, half are younger.
var clients = Step{Name: "start the clients", Do: func(ctx context.Context, r *Run) (err error) {
	if r.Clients, err = StartClients(ctx, r.Lab.Dial, r.writer()); err != nil {
		return err
	}
	r.Tell.Say("clients begin: HTTP, writes, TCP, UDP and a download")
	return r.Clients.OpenIdle(ctx, 2)
}}

// writer is what the ids of a run's writes begin with.
func (r *Run) writer() string { return fmt.Sprintf("%s-%d", r.Scenario.Name, r.Result.Seed) }

var moreClients = Step{Name: "open more connections", Do: func(ctx context.Context, r *Run) error { return r.Clients.OpenIdle(ctx, 2) }}

// protect makes the VM redundant for the first time. From then on the daemons see to it by themselves.
var protect = Step{Name: "protect the VM", Do: func(ctx context.Context, r *Run) error {
	name, err := r.Lab.Primary(ctx)
	if err != nil {
		return err
	}
	r.Tell.Say("%s protects the VM by %s, the guest runs on", name, Other(name))
	begun := time.Now()
	if err := r.Lab.Protect(ctx); err != nil {
		return err
	}
	took := time.Since(begun)
	status, err := r.judged(ctx, name)
	if err != nil {
		return err
	}
	r.Tell.Say("protected after %.1f s%s", took.Seconds(), describeResync(status.Status))
	r.Result.ProtectMS = ms(took)
	r.Result.ProtectPauseMS = protectPause(r.Lab.Journal.Since(begun))
	r.mark(false, "protected")
	return nil
}}

// reprotected waits until the daemons have made the VM redundant again, by themselves.
var reprotected = Step{Name: "be protected again", Do: func(ctx context.Context, r *Run) error {
	name, status, err := r.awaitProtected(ctx, r.healed)
	if err != nil {
		return err
	}
	took := time.Since(r.healed)
	if e, err := r.Lab.Journal.Await(ctx, r.healed, func(e colo.Event) bool { return e.Node == name && e.Kind == "state" && e.State == colo.Protected }); err == nil {
		took = e.Time.Sub(r.healed)
	}
	r.Result.ReprotectMS = ms(took)
	if status.Resync != nil {
		r.Result.ResyncBytes, r.Result.ResyncMode, r.Result.ResyncMS = ptr(status.Resync.Copied), ptr(string(status.Resync.Mode)), ms(status.Resync.Took)
		var disks int64
		for _, d := range status.Disks {
			disks += int64(d.Size)
		}
		r.Result.DiskBytes = ptr(disks)
	}
	r.Tell.Say("%s has protected it again by itself, after %.1f s%s", name, took.Seconds(), describeResync(status))
	r.mark(false, "protected again")
	return nil
}}

// awaitProtected waits until a node has become the primary of a protected VM since a time, says that it is protected now, and the other node
// says that it is the secondary.
func (r *Run) awaitProtected(ctx context.Context, since time.Time) (name string, status colo.Status, err error) {
	err = poll(ctx, func() (bool, error) {
		var found []string
		var primary, secondary bool
		for _, n := range NodeNames {
			s, err := r.Lab.Node(n).Status(ctx)
			switch {
			case err != nil:
				found = append(found, fmt.Sprintf("%s: %v", n, err))
				continue
			case s.GivenUp != "":
				return false, fmt.Errorf("%s has given up: %s", n, s.GivenUp)
			}
			found = append(found, fmt.Sprintf("%s: %s (%s) %s%s", n, s.State, s.Why, s.Outlook, s.LastError))
			switch {
			case s.State == colo.Protected && s.Verdict.Protected && !s.Since.Before(since):
				primary, name, status = true, n, s.Status
			case s.State == colo.Secondary:
				secondary = true
			}
		}
		return primary && secondary, fmt.Errorf("it is not protected: %s", strings.Join(found, "; "))
	})
	return name, status, err
}

// protectPause is how long the guest stood still while it was protected: from the end of the memory copy, which stops it, to the proof of
// COLO, which begins when it runs again.
func protectPause(events []colo.Event) *float64 {
	var stopped time.Time
	for _, e := range events {
		switch {
		case e.Kind != "step":
		case e.Text == "switch the disks":
			stopped = e.Time
		case e.Text == "prove COLO" && !stopped.IsZero():
			return ms(e.Time.Sub(stopped))
		}
	}
	return nil
}

func describeResync(s colo.Status) string {
	if s.Resync == nil {
		return ""
	}
	var disks int64
	for _, d := range s.Disks {
		disks += int64(d.Size)
	}
	return fmt.Sprintf("; resync: %s, %s sent of %s", s.Resync.Mode, size(s.Resync.Copied), size(disks))
}

// settle watches normal operation for a while.
var settle = Step{Name: "watch normal operation", Do: func(ctx context.Context, r *Run) error {
	wait := settleAfter + time.Duration(r.Rand.Int64N(int64(500*time.Millisecond)))
	select {
	case <-time.After(wait):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return r.noteCheckpoints(ctx)
}}

// judgement is how long a node whose VM is in COLO may take to say that it is protected: what it asks for that answers late where a disk is busy.
const judgement = 15 * time.Second

// judged returns a node's status; if the VM is in COLO there, the first one that says that it is protected.
func (r *Run) judged(ctx context.Context, node string) (s api.BothStatus, err error) {
	ctx, cancel := context.WithTimeout(ctx, judgement)
	defer cancel()
	err = poll(ctx, func() (bool, error) {
		if s, err = r.Lab.Node(node).Status(ctx); err != nil {
			return false, err
		}
		return s.State != colo.Protected || s.Verdict.Protected, fmt.Errorf("%s says that it is not protected: %s", node, s.Verdict.Reason)
	})
	return s, err
}

// noteCheckpoints is called at the end of a time of protection.
func (r *Run) noteCheckpoints(ctx context.Context) error {
	name, err := r.Lab.Primary(ctx)
	if err != nil {
		return err
	}
	status, err := r.judged(ctx, name)
	if err != nil {
		return err
	}
	if status.Checkpoints.Count > 0 {
		r.checkpoints = append(r.checkpoints, status.Checkpoints)
	}
	return nil
}

// A side is a node by what it is at that moment.
type side func(ctx context.Context, r *Run) (string, error)

func primary(ctx context.Context, r *Run) (string, error) { return r.Lab.Primary(ctx) }

func secondary(ctx context.Context, r *Run) (string, error) {
	name, err := r.Lab.Primary(ctx)
	return Other(name), err
}

// lose does something to a side and measures how the VM goes on.
func lose(which side, what string, do func(ctx context.Context, r *Run, n *Node) error) Step {
	return Step{Name: what, Do: func(ctx context.Context, r *Run) error {
		name, err := which(ctx, r)
		if err != nil {
			return err
		}
		before, err := r.Lab.Primary(ctx)
		if err != nil {
			return err
		}
		r.lost = name
		r.healed = time.Now()
		r.Tell.Say("%s: "+what, name)
		l := loss{at: time.Now()}
		r.mark(true, "%s: %s", name, what)
		if err := do(ctx, r, r.Lab.Node(name)); err != nil {
			return err
		}
		return r.survive(ctx, l, before)
	}}
}

// survive waits until one node runs the VM alone and the clients are served, and completes the loss.
func (r *Run) survive(ctx context.Context, l loss, before string) error {
	// Of both nodes one goes on; it is known only afterwards which.
	goneOn, err := r.Lab.Journal.Await(ctx, l.at, func(e colo.Event) bool { return e.VM == VM && e.Kind == "state" && e.State == colo.Solo })
	if err != nil {
		return fmt.Errorf("nobody goes on: %w", err)
	}
	voice := goneOn.Time
	for _, e := range r.Lab.Journal.Since(l.at) {
		if l.detect == nil && !l.planned && e.Kind == "state" {
			l.detect = ms(e.Time.Sub(l.at))
		}
		// A promoted secondary has its voice back when it begins to tell so, long before its overlays are committed.
		if e.Node == goneOn.Node && e.Kind == "step" && e.Text == "announce the guest" {
			voice = e.Time
			break
		}
	}
	l.failover = ms(voice.Sub(l.at))
	if err := r.Clients.AwaitAnswers(ctx, goneOn.Time); err != nil {
		return err
	}
	select { // what comes late belongs to the loss too
	case <-time.After(time.Second):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	l.until = time.Now()
	r.losses = append(r.losses, l)
	http, _ := r.Clients.HTTP.Blackout(l.at, l.until)
	tcp, _ := r.Clients.TCP.Blackout(l.at, l.until)
	role := "goes on"
	if goneOn.Node != before {
		role = "takes over"
	}
	r.Tell.Say("%s %s after %.0f ms; clients waited: HTTP %d ms, TCP %d ms", goneOn.Node, role, *l.failover, http.Milliseconds(), tcp.Milliseconds())
	return nil
}

// finish ends the clients, and compares what was acknowledged with what the guest has.
var finish = Step{Name: "compare writes", Do: func(ctx context.Context, r *Run) error {
	r.Clients.Stop()
	tally, err := r.Clients.Writes.Verify(ctx)
	if err != nil {
		return err
	}
	r.Result.WritesLost, r.Result.WritesDuplicated = ptr(tally.Lost), ptr(tally.Duplicated)
	r.Tell.Say("%d writes acknowledged, %d lost, %d twice", tally.Acked, tally.Lost, tally.Duplicated)
	return nil
}}
