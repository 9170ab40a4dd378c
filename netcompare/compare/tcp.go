package compare

import "bytes"

// farAhead is how far from the primary's a position of the secondary may be. Beyond it the secondary's numbers are not
// adapted, and mean nothing.
const farAhead = 1 << 26

func (e *Engine) tcpPrimary(now int64, f *flow, n *node) {
	p := &n.p
	if p.flags&flagSYN != 0 && !f.psyn.same(p) {
		e.begin(f, p)
	}
	if f.held.bytes+len(n.frame) > e.cfg.FlowBytes {
		e.stats.Dropped++
		e.put(n)
		e.ask(now, Memory)
		return
	}
	if p.flags&flagRST == 0 { // a reset may be at any position
		f.pmax.raise(p.end())
		if p.flags&flagACK != 0 {
			f.pack.raise(p.ack)
		}
	}
	if e.mode == live && f.held.n == 0 {
		switch v, why := e.judge(f, n); v {
		case leave:
			e.release(n, false)
			return
		case differs:
			e.ask(now, why)
		}
	}
	c := &e.data
	if len(p.body) == 0 && p.flags&(flagFIN|flagRST) == 0 {
		c = &e.acks
	}
	e.hold(f, n, c)
}

// same says whether p is that SYN, or a repetition of it.
func (s *syn) same(p *packet) bool {
	answer := p.flags&flagACK != 0
	return s.ok && s.seq == p.seq && s.answer == answer && (!answer || s.ack == p.ack)
}

// begin forgets what an earlier connection with these addresses and ports has left.
func (e *Engine) begin(f *flow, p *packet) {
	s := f.ssyn
	held, said := f.held, f.said
	*f = flow{key: f.key, kind: f.kind, touched: f.touched, touch: f.touch, older: f.older, new: f.new, held: held, said: said}
	e.clear(f)
	f.psyn = synOf(p)
	f.rel = number{p.seq, true}
	if s.ok && s.answer == f.psyn.answer && (!s.answer || s.ack == f.psyn.ack) {
		f.ssyn = s // the secondary was faster
		e.meet(f)
	}
}

// meet notes that the secondary has begun the same connection.
func (e *Engine) meet(f *flow) {
	if f.ssyn.answer {
		f.sack.raise(f.ssyn.ack)
	}
}

// met says that what the secondary says belongs to the same connection as what the primary says.
func (f *flow) met() bool {
	return !f.psyn.ok || f.rel.ok && after(f.rel.v, f.psyn.seq) || f.ssyn.ok && f.ssyn.answer == f.psyn.answer && f.ssyn.ack == f.psyn.ack
}

func (e *Engine) tcpSecondary(now int64, f *flow, p *packet, fr Frame) {
	if p.flags&flagSYN != 0 {
		f.ssyn = synOf(p)
		if f.psyn.ok && f.psyn.answer == f.ssyn.answer && f.psyn.ack == f.ssyn.ack {
			e.meet(f)
		}
		e.advance(now, f)
		return
	}
	if !f.met() {
		return
	}
	if p.flags&flagACK != 0 && (!f.sack.ok || p.ack-f.sack.v < 1<<30) {
		f.sack.raise(p.ack)
	}
	switch {
	case p.flags&flagRST != 0:
		f.srst = true
		if f.cut {
			e.ask(now, Reset)
		}
	case len(p.body) > 0:
		if !e.say(now, f, p, fr) {
			return
		}
		fallthrough
	default:
		if p.flags&flagFIN != 0 && e.near(f, p.end()) {
			f.sfin = number{p.end() - 1, true}
		}
	}
	e.advance(now, f)
}

func (e *Engine) near(f *flow, pos uint32) bool {
	d := int32(pos - f.rel.v) //nolint:gosec // that is how it is meant
	return !f.rel.ok || d > -farAhead && d < farAhead
}

// say keeps the bytes of the secondary that are new. It says whether there were any, or could have been.
func (e *Engine) say(now int64, f *flow, p *packet, fr Frame) bool {
	from, to := p.seq, p.seq+uint32(len(p.body)) //nolint:gosec // less than 70 kB
	if !e.near(f, to) {
		return false
	}
	if f.rel.ok {
		if !after(to, f.rel.v) {
			return true
		}
		if after(f.rel.v, from) {
			from = f.rel.v
		}
	}
	// Mostly it goes to the end. What is there already is not replaced.
	prev := f.said.last
	for prev != nil && after(prev.p.seq, from) {
		prev = prev.prev
	}
	if prev != nil {
		if end := prev.p.end(); after(end, from) {
			from = end
		}
	}
	for next := first(f, prev); after(to, from); {
		upto := to
		if next != nil && after(to, next.p.seq) {
			upto = next.p.seq
		}
		if after(upto, from) {
			if f.said.bytes+len(fr.All) > e.cfg.FlowBytes || e.full(now) {
				e.ask(now, Memory)
				return true
			}
			n := e.node(now, fr)
			n.p = packet{body: p.body[from-p.seq : upto-p.seq], seq: from}
			e.keep(f, n, prev)
			prev = n
		}
		if next == nil {
			return true
		}
		from, prev, next = next.p.end(), next, next.next
	}
	return true
}

// first is what follows prev.
func first(f *flow, prev *node) *node {
	if prev == nil {
		return f.said.first
	}
	return prev.next
}

// advance releases what may leave, in the order in which it came.
func (e *Engine) advance(now int64, f *flow) {
	for n := f.held.first; n != nil && e.mode == live; n = f.held.first {
		switch v, why := e.judge(f, n); v {
		case wait:
			return
		case differs:
			e.ask(now, why)
			return
		}
		e.unhold(f, n)
		e.release(n, true)
	}
}

type verdict uint8

const (
	wait verdict = iota
	leave
	differs
)

// judge decides on the primary's next packet of a flow. It takes what the secondary has said as far as it is equal.
func (e *Engine) judge(f *flow, n *node) (verdict, Reason) {
	p := &n.p
	if p.flags&flagRST != 0 {
		if f.srst {
			return leave, 0
		}
		return wait, 0
	}
	if v, why := e.judgeBytes(f, p); v != leave {
		return v, why
	}
	if p.flags&flagACK != 0 && (!f.sack.ok || after(p.ack, f.sack.v)) {
		if f.srst {
			return differs, Reset
		}
		return wait, 0
	}
	return leave, 0
}

func (e *Engine) judgeBytes(f *flow, p *packet) (verdict, Reason) {
	end := p.end()
	if end == p.seq || f.rel.ok && !after(end, f.rel.v) {
		return leave, 0
	}
	if p.flags&flagSYN != 0 {
		return e.judgeSYN(f, p)
	}
	if f.srst {
		return differs, Reset
	}
	if !f.rel.ok {
		f.rel = number{p.seq, true}
	}
	if after(p.seq, f.rel.v) {
		return wait, 0 // what is before it was lost on the way to us
	}
	bytesEnd := p.seq + uint32(len(p.body)) //nolint:gosec // less than 70 kB
	if f.sfin.ok && after(bytesEnd, f.sfin.v) && !after(f.rel.v, f.sfin.v) {
		return differs, Differ // the primary goes on where the secondary has ended
	}
	for after(bytesEnd, f.rel.v) {
		s := f.said.first
		for s != nil && !after(s.p.end(), f.rel.v) {
			e.forget(f, s)
			s = f.said.first
		}
		if s == nil || after(s.p.seq, f.rel.v) {
			return wait, 0
		}
		mine, theirs := p.body[f.rel.v-p.seq:], s.p.body[f.rel.v-s.p.seq:]
		k := min(len(mine), len(theirs))
		if !bytes.Equal(mine[:k], theirs[:k]) {
			return differs, Differ
		}
		f.rel.v += uint32(k) //nolint:gosec // less than 70 kB
		if k == len(theirs) {
			e.forget(f, s)
		}
	}
	if p.flags&flagFIN == 0 || after(f.rel.v, bytesEnd) {
		return leave, 0
	}
	switch {
	case f.sfin.ok && f.sfin.v == bytesEnd:
		f.rel.v = end
		return leave, 0
	case f.sfin.ok, f.said.first != nil:
		return differs, Differ // the secondary goes on where the primary has ended
	}
	return wait, 0
}

func (e *Engine) judgeSYN(f *flow, p *packet) (verdict, Reason) {
	theirs := f.ssyn.ok && f.ssyn.answer == f.psyn.answer && f.ssyn.ack == f.psyn.ack
	rewritten := f.psyn.answer && !f.key.v6 && f.key.vlan == 0
	switch {
	case theirs && (rewritten || f.ssyn.seq == f.psyn.seq):
		if !sameOptions(f.psyn.opts[:f.psyn.nopts], f.ssyn.opts[:f.ssyn.nopts]) {
			return differs, Differ
		}
		if len(p.body) > 0 { // data before the handshake's end
			return wait, 0
		}
		f.rel = number{p.seq + 1, true}
		return leave, 0
	case rewritten:
		return wait, 0
	}
	return differs, Number
}
