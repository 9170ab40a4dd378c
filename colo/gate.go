package colo

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/coloctl/coloctl/netcompare"
)

// Gated is a [Copy] whose host can silence it without anybody's doing. COLO holds a primary's answers when its peer is gone, but not what it doesn't compare (ARP,
// IPv6): a guarded copy says that only while a lease lasts. All three may be called at any moment.
type Gated interface {
	// Guard puts the copy behind its gate. The lease stays as it is; the first one has to be given.
	Guard(ctx context.Context) error
	// Lease begins one that ends by itself after d; 0 ends the one there is.
	Lease(ctx context.Context, d time.Duration) error
	// Unguard takes the gate away. It is no error when there is none.
	Unguard(ctx context.Context) error
}

// Sure is a [Copy] whose comparer lets out what both copies have said only while it is sure that the peer's is a secondary: within checkpointTerm of the beginning of
// the last checkpoint, which it sees itself, and until a moment that it is told.
type Sure interface {
	// Sure may be called at any moment. However late it is carried out, the moment stays.
	Sure(until time.Time) error
}

func (c *qemuCopy) Guard(ctx context.Context) error {
	return c.eachNIC(func(n netcompare.NIC) error { return c.l.host.Guard(ctx, n) })
}

func (c *qemuCopy) Lease(ctx context.Context, d time.Duration) error {
	return c.leases.Lease(ctx, c.l.host, c.nics, d)
}

func (c *qemuCopy) Unguard(ctx context.Context) error {
	return c.eachNIC(func(n netcompare.NIC) error { return c.l.host.Unguard(ctx, n) })
}

// The gate's rule, seen from both nodes. Times are intervals of one clock each; clocks are never compared.
//
// A primary's lease ends a term after the last moment of which it knows that its peer was a secondary and had not gone on. Two things tell of such a moment: the peer has
// heard a heartbeat of this node's, then the moment is when that was sent; a checkpoint has ended, then it is when that began. A secondary that has won, and can't be sure
// that the primary is silent, speaks only when the same terms have passed since it last heard a heartbeat, and since its last checkpoint ended. Each of these comes after
// the moment that the primary counts from, so the lease has ended by then.
//
// A peer that hears heartbeats may have gone on before, while this node's daemon was stopped or not there. So heartbeats count only where a checkpoint has begun, and ended,
// since this node knows without a gap that the peer hears it; the peer was a secondary then, and has had no reason to go on by silence since.

// checkpointTerm is how long the beginning of a checkpoint that has ended proves that both copies are in COLO: the next one is due.
func (m *machine) checkpointTerm() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.spec.Protection.term(&m.n.cfg)
}

// term is bounded, because a secondary that has won waits for it: with checkpoints that are farther apart than heartbeats may be, only those prolong the lease.
func (p *ProtectionSpec) term(c *NodeConfig) time.Duration {
	return min(time.Duration(p.CheckpointDelay), c.HeartbeatTimeout) + c.HeartbeatInterval
}

// leaseEnd is until when this primary may say what COLO doesn't hold. The caller holds leasing.
func (m *machine) leaseEnd(c Copy) time.Time {
	var heard, end time.Time
	if at := m.confirmed(); !at.IsZero() {
		heard = at.Add(m.n.cfg.HeartbeatTimeout)
	}
	if now := time.Now(); !now.Before(m.heardUntil) {
		m.heardSince = now
	}
	m.heardUntil = heard
	if at := c.Stats().Began; !at.IsZero() {
		end = at.Add(m.checkpointTerm())
		if at.After(m.heardSince) && heard.After(end) {
			end = heard
		}
	}
	return end
}

// leaseOver is when the lease of a primary that can't be asked has ended, as far as this secondary knows: both the heartbeats' and the checkpoints' part of it.
func (m *machine) leaseOver(c Copy) (heard, checkpoint time.Time) {
	heard, checkpoint = m.lastHeard(), c.Stats().Last
	for _, at := range []*time.Time{&heard, &checkpoint} {
		if at.Before(m.n.began) { // also when it was not seen at all: an earlier run of this node's may have
			*at = m.n.began
		}
	}
	return heard.Add(m.n.cfg.HeartbeatTimeout), checkpoint.Add(m.checkpointTerm())
}

// confirmed is when the newest heartbeat was sent that the VM's peer has heard.
func (m *machine) confirmed() time.Time {
	p := m.with()
	if p == nil {
		return time.Time{}
	}
	return p.beat.Status().Confirmed
}

// lastHeard is when the last heartbeat of the VM's peer came.
func (m *machine) lastHeard() time.Time {
	p := m.with()
	if p == nil {
		return time.Time{}
	}
	return p.beat.Status().LastHeard
}

// guard puts the copy behind its gate before the peer's can be counted in. A host without gates goes on without.
func (m *machine) guard(ctx context.Context) {
	g, ok := m.current().(Gated)
	if !ok {
		return
	}
	err := g.Guard(ctx)
	m.setGate(err)
	if err == nil {
		m.renew(ctx)
	}
}

func (m *machine) setGate(err error) {
	if err != nil { // the node's health says so as well
		m.log.Warn("no gate in the kernel: while this daemon stands still the guest's ARP and IPv6 are not held", "err", err)
	}
	m.mu.Lock()
	m.guarded = err == nil
	m.mu.Unlock()
}

// speak lets a lone copy say everything.
func (m *machine) speak(ctx context.Context, c Copy) error {
	if err := m.unguard(ctx, c); err != nil {
		return err
	}
	return c.Join(ctx)
}

func (m *machine) unguard(ctx context.Context, c Copy) error {
	m.mu.Lock()
	m.guarded = false
	m.mu.Unlock()
	g, ok := c.(Gated)
	if !ok {
		return nil
	}
	m.leasing.Lock() // a lease that is being given ends first
	defer m.leasing.Unlock()
	return g.Unguard(ctx)
}

// renew gives a primary its next lease: the gate in the kernel and the comparer.
func (m *machine) renew(ctx context.Context) {
	m.leasing.Lock()
	defer m.leasing.Unlock()
	m.mu.Lock()
	c, s, guarded := m.copy, m.state, m.guarded
	m.mu.Unlock()
	if c == nil || s != Protected && s != Attaching && s != Detaching && s != SwitchingOver {
		return
	}
	end := m.leaseEnd(c)
	d := time.Until(end)
	if d <= 0 {
		return
	}
	if c, ok := c.(Sure); ok {
		if err := c.Sure(end); err != nil {
			m.log.Warn("the comparer's lease was not renewed", "err", err)
		}
	}
	g, ok := c.(Gated)
	if !ok || !guarded {
		return
	}
	err := g.Lease(ctx, d)
	if late := time.Now().After(end); err == nil && late { // this process stood still in between
		err = g.Lease(ctx, 0)
	}
	if err != nil && ctx.Err() == nil && !errors.Is(err, netcompare.ErrNoGate) && !errors.Is(err, net.ErrClosed) {
		m.log.Warn("the gate's lease was not renewed", "err", err)
	}
}

// onConfirmed lets the leases be renewed.
func (n *Node) onConfirmed() {
	select {
	case n.confirmed <- struct{}{}:
	default:
	}
}

// leases renews the leases of all VMs for as long as the node works: when a heartbeat has been confirmed, which is what makes them longer, and a little more than an interval
// after the last time otherwise. More often than twice an interval is of no use.
func (n *Node) leases() {
	interval := n.cfg.HeartbeatInterval
	wait := time.NewTimer(0)
	defer wait.Stop()
	var last time.Time
	for {
		select {
		case <-n.confirmed:
			if left := interval/2 - time.Since(last); left > 0 { // of another peer, or again
				wait.Reset(left)
				continue
			}
		case <-wait.C:
		case <-n.ctx.Done():
			return
		}
		last = time.Now()
		wait.Reset(interval + interval/4)
		for _, m := range n.all() {
			m.renew(n.ctx)
		}
		n.leasedAfter.Store(int64(time.Since(n.began)))
	}
}
