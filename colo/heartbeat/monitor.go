package heartbeat

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"
)

// ErrRunning is returned by Run if it was called before: a Monitor, and its incarnation, serves once.
var ErrRunning = errors.New("heartbeat monitor was run already")

// Monitor exchanges heartbeats with one peer. See the package's documentation.
type Monitor struct {
	cfg     Config
	codec   *codec // of the loop, for sealing
	noHaste bool   // for the test that shows what the haste is for

	mu           sync.Mutex // guards all below; never held while a socket is used
	paths        []*path
	began, ended bool
	state        PeerState
	since        time.Time
	up           []bool // as last told, by path
	incarnation  uint64 // of the peer
	retired      map[uint64]bool
	retiredOrder []uint64
	stalls       uint64
	notes        []Event // since the last publish
	subs         map[*Subscription]struct{}
}

// New checks the configuration ([ErrConfig]); nothing is opened before Run.
func New(cfg Config) (*Monitor, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	m := &Monitor{
		cfg: cfg, codec: newCodec(cfg.Key), state: Unknown, since: time.Now(),
		up: make([]bool, len(cfg.Paths)), retired: map[uint64]bool{}, subs: map[*Subscription]struct{}{},
	}
	for _, p := range cfg.Paths {
		m.paths = append(m.paths, &path{cfg: p, dst: net.UDPAddrFromAddrPort(p.Remote)})
	}
	return m, nil
}

// Incarnation returns this side's.
func (m *Monitor) Incarnation() uint64 { return m.cfg.Incarnation }

// Status returns what is known now.
func (m *Monitor) Status() Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.status()
}

func (m *Monitor) status() Status {
	s := Status{Peer: m.cfg.Peer, State: m.state, Since: m.since, Incarnation: m.incarnation, Stalls: m.stalls, Confirmed: m.confirmed()}
	for _, p := range m.paths {
		s.Paths = append(s.Paths, p.status())
		if p.lastHeard.After(s.LastHeard) {
			s.LastHeard = p.lastHeard
		}
	}
	return s
}

// confirmed is when the newest datagram went that the peer says it has heard, on any path.
func (m *Monitor) confirmed() time.Time {
	var last time.Time
	for _, p := range m.paths {
		if p.confirmed.After(last) {
			last = p.confirmed
		}
	}
	return last
}

// Subscribe delivers all events from now on. Ask for the Status after it, not before, so that nothing falls between. buffer is how many events
// may wait for the reader, at least 1.
func (m *Monitor) Subscribe(buffer int) *Subscription {
	s := &Subscription{m: m, c: make(chan Event, max(1, buffer))}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ended {
		s.close()
		return s
	}
	m.subs[s] = struct{}{}
	return s
}

// arrival is what a path's reader tells the loop.
type arrival struct {
	path *path
	at   time.Time
	d    datagram
	err  error          // of opening the datagram, or of the socket if sock
	sock bool           // the path's socket changed:
	conn net.PacketConn // the new one, or nil and err
}

// Run exchanges heartbeats until ctx ends, then closes the sockets and all subscriptions and returns nil. A path whose socket can't be opened or breaks is tried again
// for as long as Run runs; Status tells why. The second call returns [ErrRunning].
func (m *Monitor) Run(ctx context.Context) error {
	m.mu.Lock()
	if m.began {
		m.mu.Unlock()
		return ErrRunning
	}
	m.began = true
	now := time.Now()
	m.since = now
	for _, p := range m.paths {
		p.waitingFrom = now
	}
	m.mu.Unlock()

	ctx, cancel := context.WithCancel(ctx)
	var readers sync.WaitGroup
	in := make(chan arrival, 64)
	for _, p := range m.paths {
		readers.Go(func() { m.read(ctx, p, in) })
	}
	m.loop(ctx, in)
	cancel()
	readers.Wait()

	m.mu.Lock()
	defer m.mu.Unlock()
	m.ended = true
	for s := range m.subs {
		s.close()
	}
	clear(m.subs)
	return nil
}

func (m *Monitor) loop(ctx context.Context, in <-chan arrival) {
	due := time.Now()
	var confirmed time.Time
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case a := <-in:
			if ctx.Err() != nil {
				return
			}
			m.arrived(a)
		case <-timer.C:
		}
		if ctx.Err() != nil { // nothing is told while it ends
			return
		}
		// What has come in counts before any deadline does.
		for more := true; more; {
			select {
			case a := <-in:
				m.arrived(a)
			default:
				more = false
			}
		}
		now := time.Now()
		m.mu.Lock()
		if late := now.Sub(due); late > m.cfg.Interval {
			m.stalled(late, now)
		}
		m.expire(now)
		m.publish(now)
		out := m.outgoing(now)
		// The loop runs at least once an interval, so that it notices when it didn't. Measured from before the
		// sending: a write that blocks is a stall as well.
		due = m.due(now)
		heard := m.confirmed()
		m.mu.Unlock()
		m.send(out)
		if heard.After(confirmed) {
			confirmed = heard
			if m.cfg.OnConfirmed != nil {
				m.cfg.OnConfirmed()
			}
		}
		timer.Reset(time.Until(due))
	}
}

func (m *Monitor) arrived(a arrival) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := a.path
	switch {
	case a.sock:
		if a.err != nil && (p.err == nil || p.err.Error() != a.err.Error()) {
			m.note(Event{Kind: PathBroken, Path: p.cfg.Name, Err: a.err})
		}
		p.conn, p.err = a.conn, a.err
		p.lastSend = time.Time{} // through a new socket at once
	case errors.Is(a.err, errWrongKey):
		p.n.WrongKey++
	case a.err != nil:
		p.n.Malformed++
	default:
		m.take(p, &a.d, a.at)
	}
}

// stalled starts all waiting anew: silence while we weren't listening proves nothing.
func (m *Monitor) stalled(late time.Duration, now time.Time) {
	m.stalls++
	for _, p := range m.paths {
		p.waitingFrom = now
	}
	m.note(Event{Kind: Stalled, Late: late})
}

// expire gives up paths, and the peer, that were silent for too long.
func (m *Monitor) expire(now time.Time) {
	receiving, waiting := false, false
	for _, p := range m.paths {
		over := now.Sub(p.silentFrom()) >= m.cfg.Timeout
		if over {
			p.receiving, p.sending = false, false
		}
		receiving = receiving || p.receiving
		waiting = waiting || !over
	}
	if receiving && m.state != Alive {
		m.state, m.since = Alive, now
		m.note(Event{Kind: PeerAlive})
	}
	for i, p := range m.paths {
		if up := p.receiving && p.sending; up != m.up[i] {
			m.up[i] = up
			kind := PathDown
			if up {
				kind = PathUp
			}
			m.note(Event{Kind: kind, Path: p.cfg.Name})
		}
	}
	if !waiting && m.state != Lost {
		m.state, m.since = Lost, now
		m.note(Event{Kind: PeerLost})
	}
}

func (m *Monitor) note(e Event) { m.notes = append(m.notes, e) }

// publish delivers what was noted. All of it carries the same status, that after the last change: of paths that go down together with
// the peer already the first event says that the peer is lost.
func (m *Monitor) publish(now time.Time) {
	if len(m.notes) == 0 {
		return
	}
	for _, e := range m.notes {
		e.Time = now
		for s := range m.subs {
			e.Status = m.status()
			s.deliver(e)
		}
	}
	m.notes = m.notes[:0]
}

type outgoing struct {
	path *path
	conn net.PacketConn
	b    []byte
}

// outgoing seals what is due.
func (m *Monitor) outgoing(now time.Time) []outgoing {
	var out []outgoing
	for _, p := range m.paths {
		if m.nextSend(p, now).After(now) {
			continue
		}
		if p.conn == nil {
			p.lastSend = now
			continue
		}
		d := m.compose(p, now)
		out = append(out, outgoing{p, p.conn, m.codec.seal(make([]byte, 0, maxDatagram), &d)})
	}
	return out
}

func (m *Monitor) send(out []outgoing) {
	for _, o := range out {
		// A socket's full buffer must not hold up the other paths.
		_ = o.conn.SetWriteDeadline(time.Now().Add(m.cfg.Interval / 4))
		_, err := o.conn.WriteTo(o.b, o.path.dst)
		m.mu.Lock()
		if err != nil {
			o.path.n.SendErrors++
		} else {
			o.path.n.Sent++
		}
		m.mu.Unlock()
	}
}

// due is when the loop must run again.
func (m *Monitor) due(now time.Time) time.Time {
	due := now.Add(m.cfg.Interval)
	sooner := func(t time.Time) {
		if t.After(now) && t.Before(due) {
			due = t
		}
	}
	for _, p := range m.paths {
		sooner(m.nextSend(p, now))
		sooner(p.silentFrom().Add(m.overdue()))
		sooner(p.silentFrom().Add(m.cfg.Timeout))
	}
	return due
}
