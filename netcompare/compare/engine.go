package compare

import (
	"hash/maphash"
)

// Reasons.
const (
	Differ  Reason = iota // the copies say different things
	Reset                 // one copy has reset a connection that the other goes on with
	Number                // both begin a connection with numbers of their own
	Late                  // the secondary didn't say in time what the primary said
	Memory                // a bound was reached
	Asked                 // from outside
	reasons = iota
)

var reasonNames = [reasons]string{"differ", "reset", "number", "late", "memory", "asked"}

const (
	blind = iota // since the start: nothing is known
	live
	halted // between stop and resumption
	held   // for good
)

var modeNames = [...]string{"blind", "live", "halted", "held"}

// Engine compares the packets of one VM. See the package's comment.
type Engine struct {
	cfg  Config
	out  Output
	pool *Pool
	t    flows
	mode int
	was  int // mode before the halt

	data, acks clock
	limbo      list // the primary's packets that came during a halt
	spare      *node
	waiting    int
	bytes      int // of all frames that wait

	asked   bool
	askedAt int64
	wanted  bool // to be asked for when the guest has run long enough
	why     Reason
	stopped int64
	resumed int64
	pause   int64

	seed  maphash.Seed
	scrap packet
	stats Stats
	whys  [reasons]uint64
	lates [len(sorts)]uint64
}

// New makes an engine that is blind.
func New(cfg Config, out Output, pool *Pool) *Engine {
	e := &Engine{cfg: cfg.withDefaults(), out: out, pool: pool, seed: maphash.MakeSeed()}
	e.t.by = make(map[key]*flow)
	e.setPatience()
	return e
}

func (e *Engine) setPatience() {
	e.data.patience, e.acks.patience = int64(e.cfg.Timeout), int64(e.cfg.AckTimeout)
}

// Tune changes times and rules of a running engine. Rules count for flows that begin later.
func (e *Engine) Tune(cfg Config) {
	e.cfg = cfg.withDefaults()
	e.setPatience()
}

// Stats returns the counters.
func (e *Engine) Stats() Stats {
	s := e.stats
	s.Asked = make(map[string]uint64, reasons)
	for i, n := range e.whys {
		s.Asked[reasonNames[i]] = n
	}
	s.Late = make(map[string]uint64, len(sorts))
	for i, n := range e.lates {
		s.Late[sorts[i]] = n
	}
	s.Flows, s.Waiting, s.Mode = len(e.t.by), e.waiting, modeNames[e.mode]
	return s
}

// Live says whether packets are compared, or will be when the checkpoint that goes on has ended.
func (e *Engine) Live() bool { return e.mode == live || e.mode == halted && e.was == live }

// Primary takes a packet of the primary.
func (e *Engine) Primary(now int64, fr Frame) {
	e.stats.Primary++
	if e.mode == held || e.full(now) {
		e.stats.Dropped++
		return
	}
	n := e.node(now, fr)
	n.p.parse(fr.NIC, fr.All[fr.Head:])
	if e.mode == halted {
		e.limbo.insert(n, e.limbo.last)
		e.count(n, 1)
		return
	}
	e.primary(now, n)
}

func (e *Engine) primary(now int64, n *node) {
	f := e.flow(&n.p)
	switch {
	case f.pass && e.mode == live, f.kind == kindFree && e.mode == live:
		e.release(n, false)
	case f.kind == kindTCP:
		e.tcpPrimary(now, f, n)
	default:
		e.datagramPrimary(now, f, n)
	}
}

// Secondary takes a packet of the secondary.
func (e *Engine) Secondary(now int64, fr Frame) {
	e.stats.Secondary++
	if e.mode != live {
		return // it comes from a past that is about to be replaced
	}
	p := &e.scrap
	p.parse(fr.NIC, fr.All[fr.Head:])
	if p.kind == kindFree {
		return
	}
	f := e.flow(p)
	switch {
	case f.pass:
	case f.kind == kindTCP:
		e.tcpSecondary(now, f, p, fr)
	default:
		e.datagramSecondary(now, f, p, fr)
	}
}

// Stopped says that the primary's guest stands still, and that all it has sent was given to Primary before.
func (e *Engine) Stopped(now int64) {
	if e.mode == live || e.mode == blind {
		e.was, e.mode = e.mode, halted
		e.stopped = now
	}
}

// Continued says that the guest runs again without a checkpoint: somebody had stopped it.
func (e *Engine) Continued(now int64) {
	if e.mode == halted {
		e.mode = e.was
		e.drainLimbo(now)
	}
}

// Resumed says that the guest runs again, and that the secondary has become equal to what the primary was at Stopped.
func (e *Engine) Resumed(now int64) {
	if e.mode != halted {
		return
	}
	e.mode, e.asked, e.wanted = live, false, false
	e.pause, e.resumed = now-e.stopped, now
	e.stats.Checkpoints++
	for f := e.t.touched; f != nil; {
		next := f.touch
		f.touched, f.touch = false, nil
		e.rebase(f)
		f = next
	}
	e.t.touched = nil
	e.drainLimbo(now)
}

func (e *Engine) drainLimbo(now int64) {
	for n := e.limbo.first; n != nil; n = e.limbo.first {
		e.limbo.remove(n)
		e.count(n, -1)
		n.at = now
		e.primary(now, n)
	}
}

// rebase makes f what it is after a checkpoint: whatever the primary had sent may leave.
func (e *Engine) rebase(f *flow) {
	for n := f.held.first; n != nil; n = f.held.first {
		if f.kind == kindDatagram {
			f.repeat[f.repeats%len(f.repeat)] = e.hash(&n.p)
			f.repeats++
		}
		e.stats.Covered++
		e.unhold(f, n)
		e.release(n, true)
	}
	for n := f.said.first; n != nil; n = f.said.first {
		e.forget(f, n)
	}
	if f.pmax.ok {
		f.rel = f.pmax
	}
	f.sack, f.sfin.ok, f.srst, f.ssyn.ok = f.pack, false, false, false
	f.cut = f.psyn.answer && f.pmax.v == f.psyn.seq+1
}

// Hold ends all releasing: COLO is over, and who may speak is decided elsewhere.
func (e *Engine) Hold() {
	e.mode = held
	for f := e.t.oldest; f != nil; f = f.new {
		e.clear(f)
	}
	for n := e.limbo.first; n != nil; n = e.limbo.first {
		e.limbo.remove(n)
		e.count(n, -1)
		e.stats.Dropped++
		e.put(n)
	}
}

// Ask asks for a checkpoint from outside.
func (e *Engine) Ask(now int64) { e.ask(now, Asked) }

// ask wants a checkpoint, at once or when the guest has run for a while.
func (e *Engine) ask(now int64, why Reason) {
	if e.mode != live || e.asked {
		return
	}
	if !e.wanted {
		e.wanted, e.why = true, why
		e.whys[why]++
	}
	if rest := int64(e.cfg.Rest * float64(e.pause)); now-e.resumed < rest {
		return // Tick asks
	}
	e.wanted, e.asked, e.askedAt = false, true, now
	e.out.Checkpoint(e.why)
}

// Tick looks at what has waited too long, and says when it wants to be called again at the latest; 0 is never.
func (e *Engine) Tick(now int64) int64 {
	if e.mode != live {
		return 0
	}
	var next int64
	at := func(t int64) {
		if next == 0 || t < next {
			next = t
		}
	}
	if e.asked {
		if now-e.askedAt < int64(e.cfg.Retry) {
			at(e.askedAt + int64(e.cfg.Retry))
		} else {
			e.askedAt = now
			e.out.Checkpoint(e.why)
			at(now + int64(e.cfg.Retry))
		}
		return next
	}
	for _, c := range [...]*clock{&e.data, &e.acks} {
		if c.first == nil {
			continue
		}
		if due := c.first.at + c.patience; due > now {
			at(due)
		} else {
			if !e.wanted && !e.asked {
				e.lates[e.sort(c.first)]++
			}
			e.ask(now, Late)
		}
	}
	if e.wanted {
		e.ask(now, e.why)
		if e.wanted {
			at(e.resumed + int64(e.cfg.Rest*float64(e.pause)))
		}
	}
	if e.asked {
		return now + int64(e.cfg.Retry)
	}
	return next
}

// sorts of packets that wait, by what they wait for.
var sorts = [...]string{"datagram", "syn", "ack", "data", "gap", "data-ack", "fin", "reset"}
