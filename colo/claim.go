package colo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/coloctl/coloctl/colo/arbiter"
)

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
