package heartbeat

import (
	"net"
	"slices"
	"time"
)

// path is the state of one path. Pure: it neither reads a clock nor a socket.
type path struct {
	cfg  Path
	dst  net.Addr
	conn net.PacketConn // nil while there is none
	err  error          // why there is none

	number   uint64     // of our last datagram
	sent     [64]sentAt // when the last ones went, for the round trip
	lastSend time.Time

	incarnation uint64 // of the peer on this path, 0 before the first valid datagram
	last        uint64 // its highest number
	lastHeard   time.Time
	waitingFrom time.Time // start of the Monitor, or the end of our last stall

	loss      time.Time // when we last missed a datagram
	asked     time.Time // when the peer last asked for haste
	answer    *datagram // an unconfirmed one, to be answered at once
	answerAt  time.Time
	confirmed time.Time // when we sent the newest one that the peer says it has heard
	receiving bool
	sending   bool
	rtt       time.Duration
	rtts      [rttSamples]time.Duration // the last ones
	rttCount  int
	n         Counters
}

// rttSamples are two seconds of heartbeats, ten a second.
const rttSamples = 20

type sentAt struct {
	number uint64
	time   time.Time
}

// silentFrom is when the present silence began, as far as we may hold it against the path.
func (p *path) silentFrom() time.Time {
	if p.waitingFrom.After(p.lastHeard) {
		return p.waitingFrom
	}
	return p.lastHeard
}

// hasty says whether we miss datagrams: lately, or just now. A path that was given up has no haste.
func (m *Monitor) hasty(p *path, now time.Time) bool {
	if m.noHaste {
		return false
	}
	silent := now.Sub(p.silentFrom())
	if silent >= m.cfg.Timeout {
		return false
	}
	return silent >= m.overdue() || (!p.loss.IsZero() && now.Sub(p.loss) < hasteIntervals*m.cfg.Interval)
}

// overdue is the silence after which a datagram is missing, with half an interval for the network's unevenness.
func (m *Monitor) overdue() time.Duration { return m.cfg.Interval + m.cfg.Interval/2 }

// nextSend is when the path's next datagram is due.
func (m *Monitor) nextSend(p *path, now time.Time) time.Time {
	if p.answer != nil {
		return p.lastSend.Add(m.cfg.Interval / hasteFactor)
	}
	if m.hasty(p, now) || (!p.asked.IsZero() && now.Sub(p.asked) < m.cfg.Timeout && !m.noHaste) {
		return p.lastSend.Add(m.cfg.Interval / hasteFactor)
	}
	next := p.lastSend.Add(m.cfg.Interval)
	if m.cfg.Beat.IsZero() || p.lastSend.Before(m.cfg.Beat) {
		return next
	}
	return next.Add(-p.lastSend.Sub(m.cfg.Beat) % m.cfg.Interval) // sooner rather than later
}

// compose makes the path's next datagram.
func (m *Monitor) compose(p *path, now time.Time) datagram {
	p.number++
	p.lastSend = now
	p.sent[p.number%uint64(len(p.sent))] = sentAt{p.number, now}
	d := datagram{
		haste: m.hasty(p, now), incarnation: m.cfg.Incarnation, number: p.number,
		sender: m.cfg.Node, target: m.cfg.Peer, path: p.cfg.Name,
	}
	switch {
	case p.answer != nil:
		d.echoInc, d.echoNumber, d.echoAge = p.answer.incarnation, p.answer.number, now.Sub(p.answerAt)
		p.answer = nil
	case p.incarnation != 0:
		d.echoInc, d.echoNumber, d.echoAge = p.incarnation, p.last, now.Sub(p.lastHeard)
	}
	return d
}

// take decides on a datagram that came with a right key at a time.
func (m *Monitor) take(p *path, d *datagram, at time.Time) {
	switch {
	case d.sender != m.cfg.Peer || d.target != m.cfg.Node || d.path != p.cfg.Name:
		p.n.Foreign++
		return
	case m.retired[d.incarnation], d.incarnation == p.incarnation && d.number <= p.last:
		p.n.Replayed++
		return
	case d.echoInc != m.cfg.Incarnation:
		// Either the peer has just begun and hasn't heard us on this path, or this was recorded before we began. Only an answer to exactly
		// this datagram helps the first without believing the second.
		p.n.Unconfirmed++
		if d.incarnation != p.incarnation {
			p.answer, p.answerAt = d, at
		}
		return
	}
	p.n.Received++
	if d.incarnation != m.incarnation {
		if m.incarnation != 0 {
			m.retire(m.incarnation)
			m.note(Event{Kind: PeerRestarted})
		}
		m.incarnation = d.incarnation
	}
	if d.incarnation != p.incarnation {
		p.incarnation = d.incarnation
		p.lastSend = at.Add(-m.cfg.Interval) // answer at once: the peer waits to be confirmed
	} else if gap := d.number - p.last - 1; gap > 0 {
		p.n.Missing += gap
		p.loss = at
	}
	p.last = d.number
	if at.After(p.lastHeard) {
		p.lastHeard = at
	}
	if d.haste {
		p.asked = at
	}
	if s := p.sent[d.echoNumber%uint64(len(p.sent))]; s.number == d.echoNumber && s.number != 0 {
		if rtt := at.Sub(s.time) - d.echoAge; rtt > 0 {
			p.rtt = rtt
			p.rtts[p.rttCount%len(p.rtts)] = rtt
			p.rttCount++
		}
		if s.time.After(p.confirmed) {
			p.confirmed = s.time
		}
	}
	p.receiving = true
	p.sending = d.echoAge <= m.cfg.Timeout
}

// maxRetired bounds the memory for incarnations that must not come back.
const maxRetired = 4096

func (m *Monitor) retire(incarnation uint64) {
	m.retired[incarnation] = true
	m.retiredOrder = append(m.retiredOrder, incarnation)
	if len(m.retiredOrder) > maxRetired {
		delete(m.retired, m.retiredOrder[0])
		m.retiredOrder = m.retiredOrder[1:]
	}
}

// rttMin is what the way takes: the least of the last round trips. Waiting for a CPU or behind other packets makes some of them longer.
func (p *path) rttMin() time.Duration {
	if p.rttCount == 0 {
		return 0
	}
	return slices.Min(p.rtts[:min(p.rttCount, len(p.rtts))])
}

func (p *path) status() PathStatus {
	return PathStatus{
		Name: p.cfg.Name, Up: p.receiving && p.sending, Receiving: p.receiving, Sending: p.sending,
		LastHeard: p.lastHeard, RTT: p.rtt, RTTMin: p.rttMin(), Err: p.err, Counters: p.n,
	}
}
