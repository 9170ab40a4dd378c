package colo

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coloctl/coloctl/colo/arbiter"
	"github.com/coloctl/coloctl/state"
)

// machine owns one VM on one node. Its goroutine (run) is the only one that changes its state; a second one runs the steps of at most one
// plan. What both need is guarded by mu.
type machine struct {
	n    *Node
	name string
	log  *slog.Logger
	in   chan message
	quit chan struct{} // closed when the VM is deleted

	// The loop's own.
	job       *job
	following *message // what asked for the plan that starts when the running one has ended
	nextPlan  PlanKind
	waiting   []message   // requests that came while the end of a copy was the plan to follow: nothing takes its place
	resumed   atomic.Bool // what runs here is known
	settling  atomic.Bool // the arbiter is being told what was decided without it
	ceding    atomic.Bool // the VM is being handed to the peer, whose disks are newer
	doubled   atomic.Bool // the peer's halves of the disks have everything since the last resync: it has ended, and what the guest writes goes to both
	rechecks  atomic.Bool // a look at a silent peer is due
	attempts  []int64     // of the peer to prepare a standby here, the last one last
	missed    []message   // facts that the running plan was told of: it may end as if nothing had happened

	verifying sync.Mutex  // one Verify at a time
	relieving atomic.Bool // a checkpoint that empties the overlays is being asked for
	backup    atomic.Bool // one is being made

	mu      sync.Mutex
	changed chan struct{} // closed and replaced at each change, for Wait
	state   State
	why     string
	since   time.Time
	spec    *Spec
	unread  error // why the stored spec can't be read: spec has nothing but the name then
	copy    Copy
	asking  chan struct{} // holds something while the arbiter is asked for this VM, or what is asked is being noted
	silent  chan struct{} // copy is being killed: until it has ended it counts as one that runs, but its end is no event. Closed when its tap is cut or it has ended; nil when none ends
	exited  bool          // the last copy of this run of the node's has ended
	rec     state.VM      // what the store holds
	sync    *SyncResult
	prog    *Progress
	plan    *PlanStatus
	lastErr string
	failed  PlanKind // that lastErr is of
	marks   marks
	// guestOff says that the guest has switched itself off since it was started.
	guestOff bool
	// silencing is closed at the end of the last silence; nil before the first.
	silencing chan struct{}
	givenUp   string // why recovery has stopped; empty while it hasn't
	resets    int    // how often a person made it begin anew
	outlook   string // what is about to be done here, or waited for
	stuck     string // why a copy that was killed is still there
	cold      coldPhase
	tried     bool   // to protect it again, and that has failed
	choice    string // of the node by which it is to be protected, by a person whose request is under way
	guarded   bool   // the copy is behind its gate
	tune      resyncTuning

	leasing sync.Mutex // one lease at a time, and none after the gate is away
	// Since when this node knows without a gap that the peer hears it, and until when. Guarded by leasing.
	heardSince, heardUntil time.Time
	queue                  []*change
}

func newMachine(n *Node, spec *Spec, rec *state.VM) *machine {
	m := &machine{
		n: n, name: spec.Name, spec: spec, rec: rec.Clone(), log: n.cfg.Log.With("node", n.cfg.Name, "vm", spec.Name),
		in: make(chan message, 64), asking: make(chan struct{}, 1), quit: make(chan struct{}), changed: make(chan struct{}), since: time.Now(),
	}
	m.state, m.why = Stopped, "the node has just started"
	return m
}

func (m *machine) run(ctx context.Context) {
	m.resume(ctx)
	m.resumed.Store(true)
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.quit:
			return
		case msg := <-m.in:
			switch msg.kind {
			case evPing:
				msg.answer(nil)
			case evFound:
				m.takeFound(ctx, msg.args.(sighting))
			case evOverlays:
				m.relieve(msg)
			default:
				m.handle(ctx, msg)
			}
		}
	}
}

// end stops the machine of a VM that was deleted.
func (m *machine) end() { close(m.quit) }

// known is an error while a node that has just started is finding out what runs on it: until then it can vouch for nothing.
func (m *machine) known() error {
	if m.resumed.Load() {
		return nil
	}
	return fmt.Errorf("%s: %w: %s has just started and does not know yet what runs on it", m.name, ErrPeerUnreachable, m.n.cfg.Name)
}

// handle takes one event through the table.
func (m *machine) handle(ctx context.Context, msg message) {
	if err := msg.over(); err != nil {
		msg.answer(err)
		return
	}
	if msg.copy != nil {
		if !m.isCopy(msg.copy) {
			return // of a copy that was given up
		}
		if msg.kind == Exited {
			m.setCopy(nil)
		}
	}
	if msg.kind == DiskFailed {
		m.noteDisk(msg)
	}
	if msg.kind == GuestShutdown {
		m.noteOff()
	}
	if msg.job != nil {
		if m.endJob(ctx, &msg) {
			return
		}
	}
	if err := m.late(msg.args); err != nil {
		msg.answer(err)
		return
	}
	from := m.State()
	if msg.reply != nil && m.job != nil && m.job.plan.Kind == planDelete { // nothing is begun any more, nor stored
		msg.answer(fmt.Errorf("it is being deleted: %w", &UnexpectedEventError{VM: m.name, State: from, Event: msg.kind}))
		return
	}
	if msg.reply != nil && m.following != nil && m.nextPlan == planFence {
		m.waiting = append(m.waiting, msg)
		return
	}
	if err := m.refused(msg.kind, msg.args); err != nil {
		msg.answer(err)
		return
	}
	t, ok := next(from, msg.kind, m.holds)
	if !ok {
		err := &UnexpectedEventError{VM: m.name, State: from, Event: msg.kind}
		if msg.reply == nil {
			m.log.Error("unexpected event", "state", from, "event", msg.kind, "text", msg.text)
		}
		msg.answer(err)
		m.finish(&msg, err)
		return
	}
	m.heed(msg.args)
	m.take(ctx, t, msg)
	m.finish(&msg, msg.err)
	if msg.kind == PeerLost && (t.To == Protected || t.To == Secondary) {
		m.recheck(ctx)
	}
	if (t.To == Solo || t.To == Protected) && t.From != t.To && m.guestIsOff() {
		m.handle(ctx, message{kind: GuestShutdown, text: "the guest has switched itself off"})
	}
	m.recall(ctx, t, msg)
	if m.job == nil {
		m.cede(ctx)
	}
}

// recall keeps what a plan is told while it runs, and takes it up again when the VM is protected after all.
func (m *machine) recall(ctx context.Context, t Transition, msg message) {
	switch {
	case t.To == t.From && t.Plan == "" && m.job != nil:
		switch msg.kind {
		case ChannelLost, PeerDead, PeerLost, Hung, ReqUnprotect, DiskFailed:
			m.missed = append(m.missed, message{kind: msg.kind, text: msg.text, disk: msg.disk, gen: msg.gen, copy: msg.copy})
		}
	case (t.To == Protected || t.To == Secondary) && t.From != t.To:
		missed := m.missed
		m.missed = nil
		for _, again := range missed {
			if m.State() == t.To { // the first that counts is enough
				m.handle(ctx, again)
			}
		}
	case t.To != t.From && t.To != Attaching:
		m.missed = nil
	}
}

// take does what a row says.
func (m *machine) take(ctx context.Context, t Transition, msg message) {
	why := t.Why
	if msg.text != "" {
		why = joinText(msg.text, t.Why)
	} else if msg.err != nil {
		why = joinText(msg.err.Error(), t.Why)
	}
	m.note(t, msg.gen)
	if o, ok := msg.args.(ForceOptions); ok {
		m.mu.Lock()
		m.marks.overrule = o.AcceptDataLoss
		m.mu.Unlock()
	}
	if t.To != t.From { // a claim that is repeated is no news
		m.setState(t.To, why)
	}
	if t.To != t.From && (t.To == Solo || t.To == Stopped || t.To == Failed) {
		m.settle(ctx)
	}
	switch {
	case t.Plan != "" && m.job != nil:
		msg.begins()
		if t.Plan == planClaim {
			m.silence(ctx) // the running plan may wait for the arbiter's answer for long
		}
		if k := m.job.plan.Kind; k != planFence && k != planDelete { // a copy that must end is ended before anything else begins
			m.job.cancel(&interruptedError{joinText(string(t.Event), msg.text)})
		}
		if m.following != nil {
			m.following.answer(&interruptedError{string(t.Event)})
		}
		m.following, m.nextPlan = &msg, t.Plan
	case t.Plan != "":
		msg.begins()
		m.start(ctx, t.Plan, msg)
	case t.Cancel && m.job != nil:
		m.job.cancel(&interruptedError{joinText(string(t.Event), msg.text)})
		if msg.reply != nil { // answered when the plan is undone, which is what was asked for
			done := m.job.wait()
			m.n.wg.Go(func() {
				select {
				case <-done:
					msg.answer(nil)
				case <-ctx.Done():
				}
			})
		}
	case msg.kind == ReqProtect && m.job != nil && m.job.plan.Kind == planProtect: // answered when that has ended
		m.job.waiters = append(m.job.waiters, msg.reply)
	case msg.kind == ReqForce && m.job != nil && msg.reply != nil: // of a copy that goes on already
		m.job.waiters = append(m.job.waiters, msg.reply)
	default:
		msg.answer(nil)
	}
}

// silence cuts the tap without waiting for a plan. The claim that follows waits for it, does it again, and minds its outcome.
func (m *machine) silence(ctx context.Context) {
	c := m.current()
	if c == nil {
		return
	}
	done := make(chan struct{})
	m.mu.Lock()
	m.silencing = done
	m.mu.Unlock()
	m.n.wg.Go(func() {
		defer close(done)
		if err := c.Cut(ctx); err != nil {
			m.log.Warn("the tap was not cut at once", "err", err)
		}
	})
}

// silenced waits for the end of silence, so that it can't cut a tap that was joined after it.
func (m *machine) silenced(ctx context.Context) {
	m.mu.Lock()
	done := m.silencing
	m.mu.Unlock()
	if done == nil {
		return
	}
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// holds evaluates a guard.
func (m *machine) holds(guard string) bool {
	switch guard {
	case guardSilent:
		return m.silentIn() <= 0
	case guardWhole:
		rec, spec := m.info()
		return aloneIn(rec, m.n.cfg.Name) && len(incomplete(rec, spec)) == 0
	case guardNoQEMU:
		rec, _ := m.info()
		return m.current() == nil && rec.Instance == nil
	case guardCounted:
		rec, _ := m.info()
		return len(rec.Members) > 1
	case guardSecondary:
		return m.marked().secondary
	case guardFinal:
		return m.final()
	case guardHalfGone:
		rec, _ := m.info()
		return behind(rec)
	case guardStays:
		_, spec := m.info()
		return spec.Protection.OnDiskError == StayOnDiskError
	}
	panic("unknown guard " + guard)
}

// silentIn is how long it takes until the lack of checkpoints means that the replication channel is gone: one is due after every delay.
func (m *machine) silentIn() time.Duration {
	m.mu.Lock()
	c, delay, since := m.copy, time.Duration(m.spec.Protection.CheckpointDelay), m.since
	m.mu.Unlock()
	if c == nil {
		return 0
	}
	last := c.Stats().Last
	if last.IsZero() { // none was seen yet: a daemon that has just started has to wait for one
		last = since
	}
	// What QEMU has said while this node was stalled is not read yet: it is in the place of a daemon that has just started.
	if woke := m.n.woke.Load(); woke != nil && woke.After(last) {
		last = *woke
	}
	return delay + m.n.cfg.HeartbeatInterval - time.Since(last)
}

// recheck looks again at a silent peer whose checkpoints still counted.
func (m *machine) recheck(ctx context.Context) {
	if !m.rechecks.CompareAndSwap(false, true) {
		return
	}
	m.n.wg.Go(func() {
		t := time.NewTimer(max(m.silentIn(), m.n.cfg.HeartbeatInterval))
		defer t.Stop()
		select {
		case <-t.C:
			m.rechecks.Store(false) // what follows may ask for the next look
			if !m.with().linked() {
				m.post(message{kind: PeerLost, text: "no heartbeat on any link"})
			}
		case <-ctx.Done():
		}
	})
}

// launch starts a copy and returns when the node would find it again after a crash. Until then it is paused and silent, so that one which
// nobody remembers can be ended without harm.
func (m *machine) launch(ctx context.Context, r LaunchRequest) (Copy, error) {
	m.guestRuns()
	c, err := m.n.launcher.Launch(ctx, r)
	if err != nil {
		return nil, err
	}
	m.adopt(c)
	i := c.Instance()
	return c, m.updateNow(ctx, func(v *state.VM) { v.Instance = &i })
}

// adopt makes c the machine's copy and forwards what it does.
func (m *machine) adopt(c Copy) {
	m.setCopy(c)
	m.n.wg.Go(func() {
		defer c.Disconnect()
		for {
			select {
			case e, ok := <-c.Events():
				if !ok {
					return
				}
				m.log.Info("copy", "event", e.Kind, "text", e.Text)
				m.post(message{kind: e.Kind, text: e.Text, disk: e.Disk, copy: c})
			case <-m.n.ctx.Done():
				return
			}
		}
	})
}

func joinText(a, b string) string {
	switch {
	case a == "":
		return b
	case b == "":
		return a
	}
	return fmt.Sprintf("%s: %s", a, b)
}

// record is the machine's place at the arbiter.
func (m *machine) record() arbiter.Record {
	m.mu.Lock()
	defer m.mu.Unlock()
	return arbiter.Record{VM: m.rec.ID, Generation: m.rec.Generation, Members: m.rec.Members}
}
