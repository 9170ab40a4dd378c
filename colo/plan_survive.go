package colo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/coloctl/coloctl/colo/arbiter"
	"github.com/coloctl/coloctl/state"
)

// noteTimeout is how long a failover waits for this node's own disk. Silence would be worse than what the note protects from.
const noteTimeout = time.Second

// arbiterTimeout bounds one question to the arbiter.
const arbiterTimeout = 3 * time.Second

// claimPlan silences this copy and asks who may go on.
func (m *machine) claimPlan() *Plan {
	k := m.marked()
	steps := []Step{{Name: "cut the tap", Do: func(ctx context.Context) error {
		m.silenced(ctx)
		if c := m.current(); c != nil {
			if err := c.Cut(ctx); err != nil {
				return err
			}
		}
		m.noteCut(true)
		return nil
	}}}
	if k.claims > 0 {
		steps = append(steps, Step{Name: "wait before asking again", Do: func(ctx context.Context) error {
			return m.pause(ctx, min(time.Duration(k.claims)*100*time.Millisecond, time.Second))
		}})
	}
	if k.heartbeat && !k.asked {
		steps = append(steps, Step{Name: "see whether checkpoints go on", Do: m.replicationLives})
	}
	if k.secondary && !k.proof { // each time: while the arbiter was out of reach a silent primary may have come back, with its tap joined
		steps = append(steps, Step{Name: "let the primary speak first", Do: m.deferToPrimary})
	}
	return &Plan{Kind: planClaim, Steps: append(steps,
		Step{Name: "see that this copy lives", Do: func(ctx context.Context) error {
			if m.final() {
				return nil // its disks count, whatever becomes of it
			}
			if err := m.replicationLives(ctx); err != nil {
				return err
			}
			return m.copyLives(ctx)
		}},
		Step{Name: "ask the arbiter", Do: func(ctx context.Context) error {
			// A node that was stalled since it deferred knows nothing of the primary any more.
			for k.secondary && time.Since(m.marked().deferred) > m.n.cfg.HeartbeatInterval && !m.marked().proof {
				if err := m.deferToPrimary(ctx); err != nil {
					return err
				}
			}
			if err := m.claim(ctx); err != nil {
				return err
			}
			if m.final() {
				m.tellOff(ctx)
			}
			return nil
		}},
	)}
}

// replicationLives ends an arbitration that silence alone has begun when a checkpoint has ended since: then both copies are well, and only
// the nodes' daemons could not hear each other. It counts only until the arbiter was asked, because of what it may have answered. Without an arbiter
// there is no such answer, and nobody else who could decide: then it counts whatever the arbitration was begun by.
func (m *machine) replicationLives(ctx context.Context) error {
	lives := func() bool {
		c, k := m.current(), m.marked()
		begun := k.heartbeat || m.n.cfg.Arbiter == nil && !k.proof && !k.forced && (k.secondary || len(m.record().Members) > 1)
		if t, ok := c.(Torn); ok && t.Torn() {
			return false // the checkpoints go on, but the peer's half of a disk lacks something
		}
		return c != nil && begun && !k.asked && c.Stats().Last.After(k.since)
	}
	if !lives() {
		return nil
	}
	if c := m.current(); c != nil && !m.marked().secondary {
		if !m.peerIsSecondary(ctx) {
			return nil // it may be going on this very moment
		}
		m.noteCut(false)
		if err := c.Join(ctx); err != nil {
			return err
		}
		if !lives() { // the loss became certain meanwhile
			if err := c.Cut(ctx); err != nil {
				return err
			}
			m.noteCut(true)
			return nil
		}
	}
	return errRevived
}

// peerIsSecondary asks the peer whether it has no thought of going on.
func (m *machine) peerIsSecondary(ctx context.Context) bool {
	there, err := m.inquire(ctx)
	return err == nil && there.State == Secondary
}

// inquire asks the peer how the VM stands there, for no longer than its silence would take to be noticed.
func (m *machine) inquire(ctx context.Context) (PeerVM, error) {
	p, _, err := m.partner()
	if err != nil {
		return PeerVM{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, m.n.cfg.HeartbeatTimeout)
	defer cancel()
	return p.Inquire(ctx, m.name)
}

// copyLives keeps a node from winning for a copy that is dead: the peer may notice the loss of this copy before this node does.
func (m *machine) copyLives(ctx context.Context) error {
	c := m.current()
	if c == nil {
		return errCopyDead
	}
	if rec, _ := m.info(); len(offline(rec)) > 0 { // what it wrote lately is on the peer's disks only
		return fmt.Errorf("%w: its half of %s is out of service", errCopyDead, strings.Join(offline(rec), ", "))
	}
	actx, cancel := context.WithTimeout(ctx, m.n.cfg.HangTimeout)
	defer cancel()
	if err := c.Alive(actx); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("%w: %w", errCopyDead, err)
	}
	return nil
}

// pause waits, but not longer than until the peer's death is proven.
func (m *machine) pause(ctx context.Context, d time.Duration) error {
	end := time.NewTimer(d)
	defer end.Stop()
	for {
		m.mu.Lock()
		proof, changed := m.marks.proof, m.changed
		m.mu.Unlock()
		if proof {
			return nil
		}
		select {
		case <-changed:
		case <-end.C:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// deferToPrimary gives a primary that lives the time to cut its tap and to claim first: it has lost the peer in the same moment, and it goes on
// without a change of roles. What it must wait for a primary that is silent is the spread of the two nodes' detection; one that can be told is told,
// also when it comes back while this node waits.
func (m *machine) deferToPrimary(ctx context.Context) error {
	for told := false; ; {
		grace := m.n.cfg.HeartbeatInterval + 20*time.Millisecond
		if p, _, err := m.partner(); err == nil && !told && m.peerAlive() {
			told = true
			rctx, cancel := context.WithTimeout(ctx, grace)
			rec, _ := m.info()
			err := p.ReportChannelLost(rctx, m.report(rec))
			cancel()
			if errors.Is(err, ErrNothingToGoOn) {
				m.deferred()
				return nil // no copy runs there
			}
			if errors.Is(err, ErrGuestOff) {
				return m.giveWay(err)
			}
			if err == nil {
				grace += m.n.cfg.HeartbeatInterval // it is arbitrating now
			}
		}
		if err := m.pause(ctx, grace); err != nil {
			return err
		}
		if told || m.marked().proof || !m.peerAlive() {
			m.deferred()
			return nil
		}
	}
}

// claim asks the arbiter for the right to go on alone. It returns nil when this copy has it, errLost when another one has, errUndecided otherwise.
func (m *machine) claim(ctx context.Context) error {
	me, k := m.n.cfg.Name, m.marked()
	if rec, _ := m.info(); aloneIn(rec, me) {
		return nil // nobody else could have been given the right
	}
	if k.forced || m.n.cfg.Arbiter == nil {
		rec, _ := m.info()
		switch {
		case slices.Equal(rec.Members, []string{me}): // handed over, or never protected: a peer that was about to be counted in was not told so
			if m.n.cfg.Arbiter == nil {
				m.update(setRecord(rec.Generation, rec.Members))
			}
		case k.secondary && k.proven > rec.Generation: // the peer has counted this copy in after it was prepared, and this node has not heard so
			m.update(setRecord(k.proven+1, []string{me}))
		case len(rec.Members) > 0 && !slices.Contains(rec.Members, me):
			if k.secondary && m.n.cfg.Arbiter == nil && !k.forced && !m.goesOnThere(ctx) {
				return m.proven(ctx)
			}
			return errLost
		case k.forced || k.proof:
			m.update(setRecord(rec.Generation+1, []string{me}))
		case m.final():
			return m.wayGiven(ctx, rec.Generation+1)
		default:
			return m.proven(ctx)
		}
		return nil
	}
	_, err := m.advance(ctx, []string{me})
	if errors.Is(err, errLost) && k.secondary && m.handsOver(ctx) {
		return fmt.Errorf("%w: the other copy may go on, and its node is about to hand over, as its half of a disk is gone", errUndecided)
	}
	if err == nil || errors.Is(err, errLost) {
		return err
	}
	if rec, _ := m.info(); k.proof && errors.Is(err, arbiter.ErrUnreachable) && slices.Contains(rec.Members, me) {
		// The peer has given way for good, so its word is as good as the arbiter's, who is told later.
		m.update(setRecord(rec.Generation+1, []string{me}))
		return nil
	}
	return fmt.Errorf("%w: %w", errUndecided, err)
}

// handsOver says whether the peer, which alone may go on, has nothing to go on with and will say so to the arbiter: see cede.
func (m *machine) handsOver(ctx context.Context) bool {
	there, err := m.inquire(ctx)
	return err == nil && there.Lacks && there.Want != WantStopped && (there.State == Outdated || there.State == Failed)
}

// noteCut notes whether the copy is silent for as long as it is not decided who goes on.
func (m *machine) noteCut(cut bool) {
	m.mu.Lock()
	m.marks.cut = cut
	m.wake()
	m.mu.Unlock()
}

// deferred notes that the primary has just had its chance.
func (m *machine) deferred() {
	m.mu.Lock()
	m.marks.deferred = time.Now()
	m.mu.Unlock()
}

// hush sees to it that a primary that has lost is silent before this copy speaks. One whose daemon lives is told, as it may not know yet. One that can't be told gets the
// time in which its gate closes by itself: see leaseEnd.
func (m *machine) hush(ctx context.Context) error {
	p, c := m.with(), m.current()
	rec, _ := m.info()
	several := len(m.n.partnerships()) > 1
	if k := m.marked(); p == nil && !several || c == nil || k.proof || k.forced {
		return nil // there is nobody to tell
	}
	if stranger := several && (p == nil || p.info.Name != rec.Peer); !stranger && p.alive() { // of a primary that is in this node's file no more nothing is heard
		rctx, cancel := context.WithTimeout(ctx, m.n.cfg.HeartbeatInterval)
		err := p.peer.ReportChannelLost(rctx, m.report(rec))
		cancel()
		switch {
		case err == nil:
			return m.pause(ctx, m.n.cfg.HeartbeatInterval/4)
		case errors.Is(err, ErrNothingToGoOn), errors.Is(err, ErrGuestOff):
			return nil
		}
	}
	// While heartbeats still come the daemon there lives, and sees its QEMU leave COLO: this copy has just cut the connections. So their end isn't waited for much longer.
	for last := time.Now().Add(2 * m.n.cfg.HeartbeatTimeout); !m.marked().proof; {
		heard, checkpoint := m.leaseOver(c)
		if heard.After(last) {
			heard = last
		}
		wait := max(time.Until(heard), time.Until(checkpoint))
		if wait <= 0 {
			return nil
		}
		if err := m.pause(ctx, wait); err != nil {
			return err
		}
	}
	return nil
}

// nobodyRuns keeps a node from starting a copy of its own while the other current one runs: the arbiter would let it, as both are current. A peer
// that can't be asked gets the time to notice the loss of this node's copy and to cut its tap.
func (m *machine) nobodyRuns(ctx context.Context, lossy bool) error {
	if err := m.runsOnAnother(ctx); err != nil {
		return err
	}
	rec, spec := m.info()
	p, info, err := m.partner()
	if err != nil || aloneIn(rec, m.n.cfg.Name) {
		return nil //nolint:nilerr // there is no other copy
	}
	ictx, cancel := context.WithTimeout(ctx, m.n.cfg.HeartbeatTimeout)
	defer cancel()
	there, err := p.Inquire(ictx, m.name)
	switch {
	case err == nil && there.runs(): // a secondary is about to go on, with all that the guest has in memory
		return fmt.Errorf("%w: %s runs it (%s)", ErrNotCurrent, info.Name, there.State)
	case err == nil && !lossy && there.Generation >= rec.Generation && !slices.Contains(there.Members, m.n.cfg.Name):
		// By a person's word without the arbiter, who can't say so yet.
		return fmt.Errorf("%w: it is at generation %d here, %s was the last to run it, at %d: %w", ErrNotCurrent, rec.Generation, info.Name, there.Generation, errLost)
	case err == nil || !isUnreachable(err):
		return nil
	}
	t := time.NewTimer(m.n.cfg.HeartbeatTimeout + time.Duration(spec.Protection.CheckpointDelay) + 3*m.n.cfg.HeartbeatInterval)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// claimStart is the claim of a copy that is to boot. Unlike a running one it also refuses when this node knows itself to be stale.
func (m *machine) claimStart(ctx context.Context) error {
	me := m.n.cfg.Name
	rec, spec := m.info()
	if rec.Generation == 0 && m.n.cfg.Arbiter == nil {
		m.update(setRecord(1, []string{me}))
		return nil
	}
	if rec.Generation > 0 && !slices.Contains(rec.Members, me) && !m.entrusted(ctx) {
		return fmt.Errorf("%w: at generation %d the current copy is on %v: %w", ErrNotCurrent, rec.Generation, rec.Members, errLost)
	}
	if len(offline(rec)) > 0 {
		return fmt.Errorf("%w: %w: %w", ErrNotCurrent, m.offlineError(rec), errLost)
	}
	if names := incomplete(rec, spec); len(names) > 0 {
		return fmt.Errorf("%w: incomplete disks here: %s: %w", ErrNotCurrent, strings.Join(names, ", "), errLost)
	}
	if m.n.cfg.Arbiter == nil {
		if slices.Equal(rec.Members, []string{me}) {
			return nil
		}
		return fmt.Errorf("%w: at generation %d the copy on another node of %v may have gone on: %w", ErrNotCurrent, rec.Generation, rec.Members, ErrNoArbiter)
	}
	_, err := m.advance(ctx, []string{me})
	switch {
	case errors.Is(err, errLost):
		return fmt.Errorf("%w: %w", ErrNotCurrent, err)
	case errors.Is(err, arbiter.ErrUnreachable) && aloneIn(rec, me):
		return nil // nobody else could have advanced it
	}
	return err
}

// entrusted says whether the arbiter names this node alone in a generation that this node has not heard of yet. Only a node that counts gives that
// away, and only while this one's half has everything: by a switchover, or see cede.
func (m *machine) entrusted(ctx context.Context) bool {
	rec, _ := m.info()
	if m.n.cfg.Arbiter == nil {
		return false
	}
	held, err := m.held(ctx)
	return err == nil && held.Generation > rec.Generation && slices.Equal(held.Members, []string{m.n.cfg.Name})
}

// advance makes members the current copies of the VM: at the arbiter, if there is one, and then here. It returns errLost when this copy
// is not current, [arbiter.ErrUnreachable] when that can't be found out. Its question is not taken back when ctx ends: it could be answered
// after everybody has stopped listening.
func (m *machine) advance(ctx context.Context, members []string) (arbiter.Record, error) {
	done, err := m.ask(ctx)
	if err != nil {
		return arbiter.Record{}, err
	}
	defer done()
	return m.advanceHeld(ctx, members)
}

// ask waits until no other question to the arbiter about this VM is under way, and keeps others waiting until done. What is asked without a plan (settle, cede)
// would otherwise be noted after what a plan has asked since. Nothing of that kind is under way while the VM is protected, so a claim doesn't wait here.
func (m *machine) ask(ctx context.Context) (done func(), err error) {
	select {
	case m.asking <- struct{}{}:
		return func() { <-m.asking }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// advanceHeld is advance by a caller of ask.
func (m *machine) advanceHeld(ctx context.Context, members []string) (arbiter.Record, error) {
	if err := context.Cause(ctx); err != nil {
		return arbiter.Record{}, err
	}
	rec, _ := m.info()
	me := m.n.cfg.Name
	next := arbiter.Record{VM: rec.ID, Generation: rec.Generation + 1, Members: members, By: me}.Normal()
	a := m.n.cfg.Arbiter
	if a == nil { // this node's record is the only one: what the peer is told must not be forgotten here
		return next, m.updateNow(context.WithoutCancel(ctx), setRecord(next.Generation, next.Members))
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), arbiterTimeout)
	defer cancel()
	cur, err := a.Get(ctx, rec.ID)
	switch {
	case errors.Is(err, arbiter.ErrNoRecord) && rec.Generation == 0:
		next.Generation = 1
	case err != nil:
		return arbiter.Record{}, err
	case !cur.Has(me):
		m.update(setRecord(cur.Generation, cur.Members))
		return cur, fmt.Errorf("%w: generation %d belongs to %v", errLost, cur.Generation, cur.Members)
	case cur.Generation < rec.Generation && !slices.Equal(rec.Members, []string{me}):
		// The other current copy could be told the same by the arbiter that knows.
		return cur, fmt.Errorf("%w: it is at generation %d, this node at %d", errBehind, cur.Generation, rec.Generation)
	case cur.Generation < rec.Generation:
		// What this node decided on a proof while the arbiter was away.
		if _, err := a.Advance(ctx, arbiter.Record{VM: rec.ID, Generation: cur.Generation + 1, Members: rec.Members, By: me}.Normal()); err != nil {
			return arbiter.Record{}, err
		}
		return m.advanceHeld(ctx, members)
	case slices.Equal(cur.Normal().Members, next.Members) && (rec.Offered == "" || slices.Contains(members, rec.Offered)):
		m.update(setRecord(cur.Generation, cur.Members))
		return cur, nil // the set is what is asked for already
	default: // also for the same set, when a question of before that would have changed it may still be on its way: it is too late from here on
		next.Generation = cur.Generation + 1
	}
	m.mu.Lock()
	m.marks.asked = true
	m.mu.Unlock()
	got, err := a.Advance(ctx, next)
	if err != nil {
		return arbiter.Record{}, err
	}
	m.update(setRecord(got.Generation, got.Members))
	if got.Generation >= next.Generation && slices.Equal(got.Normal().Members, next.Members) {
		return got, nil // the set is what was asked for, by whomever
	}
	switch arbiter.Judge(next, got) {
	case arbiter.Won:
		return got, nil
	case arbiter.Lost:
		return got, fmt.Errorf("%w: generation %d belongs to %v", errLost, got.Generation, got.Members)
	}
	return got, fmt.Errorf("the arbiter answered %s to %s", got, next)
}

// arbiterAnswers finds out, before something is begun that needs it, whether the arbiter can be asked.
func (m *machine) arbiterAnswers(ctx context.Context) error {
	if m.n.cfg.Arbiter == nil {
		return nil
	}
	_, err := m.held(ctx)
	return err
}

// held is what the arbiter, which there must be, holds of the VM.
func (m *machine) held(ctx context.Context) (arbiter.Record, error) {
	ctx, cancel := context.WithTimeout(ctx, arbiterTimeout)
	defer cancel()
	rec, _ := m.info()
	return m.n.cfg.Arbiter.Get(ctx, rec.ID)
}

// arbiterAnswersBoth is arbiterAnswers that also refuses a peer which asks another arbiter: each would let its own copy go on.
func (m *machine) arbiterAnswersBoth(ctx context.Context, by *partnership) error {
	if m.n.cfg.Arbiter == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 2*arbiterTimeout)
	defer cancel()
	held, err := m.held(ctx)
	if err != nil {
		return err
	}
	if err := m.arbiterThere(ctx, by, held); errors.Is(err, ErrOtherArbiter) {
		return err
	} else if err != nil {
		m.log.Warn("the peer can't say what the arbiter holds", "err", err)
	}
	return nil
}

// survivePlan turns the copy that may go on into a lone one and lets it speak.
func (m *machine) survivePlan(kind PlanKind) *Plan {
	c := m.current()
	rec, spec := m.info()
	if c == nil {
		return &Plan{Kind: kind, Steps: []Step{{Name: "check", Do: func(context.Context) error { return errors.New("no copy runs here any more") }}}}
	}
	var steps []Step
	if m.marked().forced { // a person's word takes a generation like any other, so that the other copy is not current when it comes back
		steps = append(steps, Step{Name: "note that this copy alone is current", Do: func(ctx context.Context) error {
			if m.marked().overrule {
				return m.overrule(ctx)
			}
			rec, _ := m.info()
			if aloneIn(rec, m.n.cfg.Name) {
				return nil
			}
			vouched := rec.Generation + 1
			return m.updateNow(ctx, both(setRecord(vouched, []string{m.n.cfg.Name}), func(v *state.VM) { v.Vouched = vouched }))
		}})
	}
	if m.marked().secondary {
		noted := make(chan error, 1)
		steps = append(steps, []Step{
			{Name: "promote the secondary", Do: func(ctx context.Context) error {
				// From here until they are committed the overlays hold data that the disks lack.
				m.n.wg.Go(func() { noted <- m.updateNow(m.n.ctx, setDisks(spec, false, 0)) })
				return c.Promote(ctx)
			}},
			{Name: "note that the disks alone are incomplete", Do: func(ctx context.Context) error {
				select {
				case err := <-noted:
					if err != nil { // silence would be worse than what the note protects from
						m.log.Error("a crash of this host in the next moments may go unnoticed: the state folder can't be written", "err", err)
					}
					return nil
				case <-time.After(noteTimeout):
					m.log.Error("the state folder's disk is slow: a crash of this host in the next moments may go unnoticed")
					return nil
				case <-ctx.Done():
					return context.Cause(ctx)
				}
			}},
			{Name: "see that the primary is silent", Do: func(ctx context.Context) error {
				if kind == planPromote {
					return nil // it has handed over, and is dead
				}
				return m.hush(ctx)
			}},
			{Name: "join the LAN", Do: func(ctx context.Context) error { return m.speak(ctx, c) }},
			{Name: "announce the guest", Do: func(ctx context.Context) error {
				if err := c.Announce(ctx); err != nil { // switches learn it from the guest's first packet as well
					m.log.Warn("the guest was not announced", "err", err)
				}
				return nil
			}},
			{Name: "commit the overlays", Do: func(ctx context.Context) error { return c.Commit(ctx) }},
		}...)
	} else {
		steps = append(steps,
			Step{Name: "take replication down", Do: func(ctx context.Context) error { return m.release(ctx, c) }},
			Step{Name: "join the LAN", Do: func(ctx context.Context) error { return m.speak(ctx, c) }},
		)
	}
	steps = append(steps, Step{Name: "note the new role", Do: func(context.Context) error {
		m.update(both(both(setDisks(spec, true, rec.Generation), setWritten(spec, true)), func(v *state.VM) { v.Role = state.RolePrimary }))
		return nil
	}})
	return &Plan{Kind: kind, Steps: steps}
}
