package lab

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/api"
)

// Eight VMs on one pair of nodes: each node runs half of them and has the other copy of the rest.

const (
	manyGuests  = 8
	manyMemory  = 96 << 20
	manyDisk    = 32 << 20
	manyApart   = 500 * time.Millisecond // between two questions of a client
	manyLimit   = 10 * time.Minute
	manyDelay   = 2 * time.Second // between checkpoints: sixteen QEMUs share this machine
	manyAtATime = 2               // become protected: the daemons' default
)

// guestRun is one of several VMs in a run.
type guestRun struct {
	*Guest
	clients *Clients

	before   string // node of the primary before the loss
	failover *float64
}

// eachGuest does something for every VM at once.
func (r *Run) eachGuest(do func(g *guestRun) error) error {
	errs := make([]error, len(r.guests))
	var wg sync.WaitGroup
	for i, g := range r.guests {
		wg.Go(func() {
			if err := do(g); err != nil {
				errs[i] = fmt.Errorf("%s: %w", g.Name, err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// bootMany starts the VMs, those with odd numbers on n1, the others on n2. Their order is not that of their priorities.
var bootMany = Step{Name: "start the VMs", Limit: manyLimit, Do: func(ctx context.Context, r *Run) error {
	begun := time.Now()
	all, err := r.Lab.AddGuests(manyGuests, func(i int, s *colo.Spec) {
		s.Priority = i * 37 % 80
		s.Preferred = NodeNames[i%2]
		s.Protection.CheckpointDelay = colo.Duration(manyDelay)
	})
	if err != nil {
		return err
	}
	r.Tell.Say("%d VMs of %s are started, on both nodes in turn", manyGuests, size(int64(all[0].Spec.Memory)))
	for i, g := range all {
		if err := r.Lab.StartGuest(ctx, g, NodeNames[i%2]); err != nil {
			return fmt.Errorf("%s: %w", g.Name, err)
		}
	}
	for _, g := range all {
		if err := r.Lab.AwaitGuestOf(ctx, g); err != nil {
			return fmt.Errorf("%s: %w", g.Name, err)
		}
	}
	r.Tell.Say("all services answer, after %.1f s", time.Since(begun).Seconds())
	for _, g := range all {
		if err := r.addClients(ctx, g, manyApart, 1); err != nil {
			return err
		}
	}
	r.Result.VMs = ptr(len(all))
	return nil
}}

// addClients starts the clients of a VM that answers: one of each kind, and some connections that are idle.
func (r *Run) addClients(ctx context.Context, g *Guest, apart time.Duration, idle int) error {
	c, err := StartLightClients(ctx, r.Lab.Dial, g, fmt.Sprintf("%s-%d", g.Name, r.Result.Seed), apart)
	if err != nil {
		return err
	}
	r.guests = append(r.guests, &guestRun{Guest: g, clients: c})
	return c.OpenIdle(ctx, idle)
}

// manyProtected waits until both nodes agree that all VMs are protected, by themselves.
func (r *Run) manyProtected(ctx context.Context) error {
	proven := map[string]bool{}
	return poll(ctx, func() (bool, error) {
		var not []string
		for _, g := range r.guests {
			if proven[g.Name] { // on a busy machine one of many is always late with a checkpoint; a loss would be seen later
				continue
			}
			c := r.copiesOf(ctx, g.Name)
			if proven[g.Name] = c.both() && c.proven; !proven[g.Name] {
				not = append(not, g.Name+":"+c.said)
			}
		}
		return len(not) == 0, fmt.Errorf("not protected: %s", strings.Join(not, "; "))
	})
}

// copies is where a VM runs, as the nodes say.
type copies struct {
	primary, secondary string // nodes; without one: empty
	pid                int    // of the primary's QEMU
	proven             bool   // the primary's node says that a loss would do no harm now
	said               string // by each node
}

func (r *Run) copiesOf(ctx context.Context, vm string) copies {
	var c copies
	for _, n := range r.Lab.Topology.Names {
		s, err := r.Lab.Node(n).StatusOf(ctx, vm)
		if err != nil { // it doesn't know the VM, or is off
			c.said += fmt.Sprintf(" %s: %v", n, err)
			continue
		}
		switch s.State {
		case colo.Protected:
			c.primary, c.pid, c.proven = n, s.PID, s.Verdict.Protected
		case colo.Secondary:
			c.secondary = n
		}
		c.said += fmt.Sprintf(" %s: %s %s%s%s", n, s.State, s.Outlook, s.LastError, s.GivenUp)
	}
	return c
}

// both tells whether the VM has a primary and a secondary.
func (c copies) both() bool { return c.primary != "" && c.secondary != "" }

var protectMany = Step{Name: "be protected, all of them", Limit: manyLimit, Do: func(ctx context.Context, r *Run) error {
	begun := time.Now()
	err := r.eachGuest(func(g *guestRun) error {
		node := r.Lab.Node(g.Spec.Preferred)
		op, err := node.Client.Protect(ctx, g.Name, api.ResyncRequest{})
		return await(ctx, node, op, err)
	})
	if err == nil {
		err = r.manyProtected(ctx)
	}
	if err != nil {
		return err
	}
	r.Result.ProtectMS = ms(time.Since(begun))
	for _, n := range NodeNames {
		s, err := r.Lab.Node(n).Client.Node(ctx)
		if err != nil {
			return err
		}
		if want := colo.Size(manyGuests * 2 * manyMemory); s.Capacity == nil || s.Capacity.Reserved.Memory != want {
			return fmt.Errorf("%s has reserved %+v, not %s", n, s.Capacity, want)
		}
	}
	r.Tell.Say("all are protected, after %.1f s", time.Since(begun).Seconds())
	return r.eachGuest(func(g *guestRun) error { return g.clients.OpenIdle(ctx, 1) })
}}

// loseManyHost is the loss of n1: half of the VMs lose their primary, the others their secondary.
var loseManyHost = Step{Name: "a host of all VMs loses power", Limit: manyLimit, Do: func(ctx context.Context, r *Run) error {
	return r.loseHost(ctx, NodeNames[0])
}}

// loseHost is the loss of a node that has a copy of every VM. It returns when all have gone on and serve their clients.
func (r *Run) loseHost(ctx context.Context, host string) error {
	for _, g := range r.guests {
		c := r.copiesOf(ctx, g.Name)
		if !c.both() {
			return fmt.Errorf("%s is not protected any more:%s", g.Name, c.said)
		}
		g.before = c.primary
	}
	r.lost = host
	r.Tell.Say("%s: the host loses power", r.lost)
	r.healed = time.Now()
	l := loss{at: time.Now()}
	if err := r.Lab.Node(r.lost).PowerOff(ctx); err != nil {
		return err
	}
	err := r.eachGuest(func(g *guestRun) error {
		e, err := r.Lab.Journal.Await(ctx, l.at, func(e colo.Event) bool { return e.VM == g.Name && e.Kind == "state" && e.State == colo.Solo })
		if err != nil {
			return fmt.Errorf("nobody goes on: %w", err)
		}
		at := e.Time
		for _, o := range r.Lab.Journal.Since(l.at) {
			if o.VM == g.Name && o.Node == e.Node && o.Kind == "step" && o.Text == "announce the guest" {
				at = o.Time
				break
			}
		}
		g.failover = ms(at.Sub(l.at))
		return g.clients.AwaitAnswers(ctx, e.Time)
	})
	if err != nil {
		return err
	}
	for _, e := range r.Lab.Journal.Since(l.at) {
		if e.Kind == "state" {
			l.detect = ms(e.Time.Sub(l.at))
			break
		}
	}
	l.until = time.Now()
	worst := 0.0
	for _, g := range r.guests {
		worst = max(worst, *g.failover)
	}
	l.failover = &worst
	r.losses = append(r.losses, l)
	r.Tell.Say("all go on without it, the last one after %.0f ms", worst)
	return nil
}

var manyAgain = Step{Name: "be protected again, all of them", Limit: manyLimit, Do: func(ctx context.Context, r *Run) error {
	if err := r.manyProtected(ctx); err != nil {
		return err
	}
	r.Result.ReprotectMS = ms(time.Since(r.healed))
	var order []string
	for _, e := range r.Lab.Journal.Since(r.healed) {
		if e.Kind == "step" && e.Text == "prepare the standby" && !slices.Contains(order, e.VM) {
			order = append(order, e.VM)
		}
	}
	r.Tell.Say("%s has protected all of them again by itself, after %.1f s, in this order: %s", Other(r.lost), time.Since(r.healed).Seconds(), strings.Join(order, " "))
	want := slices.Clone(r.guests)
	slices.SortFunc(want, func(a, b *guestRun) int { return b.Spec.Priority - a.Spec.Priority })
	for rank, g := range want {
		if at := slices.Index(order, g.Name); math.Abs(float64(at-rank)) >= manyAtATime {
			return fmt.Errorf("%s has priority %d, which is place %d, and was number %d of %v", g.Name, g.Spec.Priority, rank+1, at+1, order)
		}
	}
	for _, g := range r.guests {
		for _, n := range NodeNames {
			s, err := r.Lab.Node(n).StatusOf(ctx, g.Name)
			if err != nil {
				return err
			}
			if s.Resync == nil || s.State != colo.Protected {
				continue
			}
			r.Result.ResyncBytes = ptr(deref(r.Result.ResyncBytes) + s.Resync.Copied)
			r.Result.DiskBytes = ptr(deref(r.Result.DiskBytes) + int64(g.Spec.Disks[0].Size))
		}
	}
	return nil
}}

func deref(n *int64) int64 {
	if n == nil {
		return 0
	}
	return *n
}

// settleMany is settle without a look at the first VM, which such runs don't have.
var settleMany = Step{Name: settle.Name, Do: func(ctx context.Context, _ *Run) error { return pause(ctx, settleAfter) }}

// finishMany ends the clients, and compares what was acknowledged with what the guests have.
var finishMany = Step{Name: "compare writes", Limit: manyLimit, Do: func(ctx context.Context, r *Run) error {
	tallies := make([]Tally, len(r.guests))
	err := r.eachGuest(func(g *guestRun) (err error) {
		g.clients.Stop()
		tallies[slices.Index(r.guests, g)], err = g.clients.Writes.Verify(ctx)
		return err
	})
	if err != nil {
		return err
	}
	var sum Tally
	for _, t := range tallies {
		sum.Acked, sum.Lost, sum.Duplicated = sum.Acked+t.Acked, sum.Lost+t.Lost, sum.Duplicated+t.Duplicated
	}
	r.Result.WritesLost, r.Result.WritesDuplicated = ptr(sum.Lost), ptr(sum.Duplicated)
	r.Tell.Say("%d writes acknowledged, %d lost, %d twice", sum.Acked, sum.Lost, sum.Duplicated)
	return nil
}}

// halvesMany compares both halves of every VM's disk, with the daemons dead and the primary stopped.
var halvesMany = Step{Name: "compare the halves", Limit: manyLimit, Do: func(ctx context.Context, r *Run) error {
	places := make([]copies, len(r.guests))
	for i, g := range r.guests {
		places[i] = r.copiesOf(ctx, g.Name)
		if !places[i].both() {
			return fmt.Errorf("%s is not protected:%s", g.Name, places[i].said)
		}
	}
	for _, n := range r.Lab.Topology.Names {
		if err := r.Lab.Node(n).KillDaemon(); err != nil {
			return err
		}
	}
	var sum int64
	for i, p := range places {
		differ, err := r.Lab.compareHalves(ctx, p.pid, r.guests[i].Spec, p.primary, p.secondary)
		if err != nil {
			return err
		}
		sum += differ
	}
	r.Result.HalvesDiffer = &sum
	if sum > 0 {
		return fmt.Errorf("the VMs are protected, and %d bytes of their halves differ", sum)
	}
	r.Tell.Say("both halves of all are equal, byte by byte")
	return nil
}}

// measureGuests fills in sums over all VMs, and the worst of what clients felt.
func (r *Run) measureGuests() {
	res := r.Result
	var acked, total, survived, boots int
	same := true
	for _, l := range r.losses {
		for _, f := range []struct {
			into **float64
			of   *float64
		}{{&res.DetectMS, l.detect}, {&res.FailoverMS, l.failover}} {
			if f.of != nil && (*f.into == nil || **f.into < *f.of) {
				*f.into = f.of
			}
		}
	}
	worst := func(into **float64, of func(c *Clients, l loss) *float64) {
		for _, g := range r.guests {
			for _, l := range r.losses {
				if v := of(g.clients, l); v != nil && (*into == nil || *v > **into) {
					*into = v
				}
			}
		}
	}
	worst(&res.BlackoutHTTPMS, func(c *Clients, l loss) *float64 { return measured(c.HTTP.Blackout(l.at, l.until)) })
	worst(&res.BlackoutTCPMS, func(c *Clients, l loss) *float64 { return measured(c.TCP.Blackout(l.at, l.until)) })
	worst(&res.HTTPP50MS, func(c *Clients, l loss) *float64 { return measured(c.HTTP.Latency(0.5, l.at.Add(-baseline), l.at)) })
	worst(&res.TCPP50MS, func(c *Clients, l loss) *float64 { return measured(c.TCP.Latency(0.5, l.at.Add(-baseline), l.at)) })
	for _, g := range r.guests {
		acked += g.clients.Writes.Acked()
		n, broken := g.clients.Connections()
		total, survived = total+n, survived+n-len(broken)
		b := g.clients.HTTP.BootIDs()
		boots, same = boots+b, same && b == 1
	}
	res.WritesAcked, res.TCPTotal, res.TCPSurvived, res.Boots, res.BootIDSame = &acked, &total, &survived, &boots, &same
}

// allBoots is the check that each of several VMs has booted once.
func allBoots(r *Result) error {
	if r.BootIDSame == nil || !*r.BootIDSame {
		return errors.New("a guest was booted again, or never answered")
	}
	return nil
}

// manyVMs is the whole scenario.
func manyVMs(Params) []Step {
	return []Step{bootMany, protectMany, settleMany, loseManyHost, powerOn, manyAgain, settleMany, finishMany, halvesMany}
}
