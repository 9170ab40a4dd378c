package compare

import (
	"fmt"
	"hash/maphash"
	"time"
)

// Reason is why a checkpoint is asked for.
type Reason uint8

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

func (r Reason) String() string {
	if int(r) < len(reasonNames) {
		return reasonNames[r]
	}
	return fmt.Sprintf("reason %d", uint8(r))
}

// Config is how an engine compares. The zero value of each field is its default.
type Config struct {
	// Timeout is how long data of the primary waits for the secondary's; 20 ms.
	Timeout time.Duration
	// AckTimeout is the same for packets without data. The two copies' delayed acknowledgements are up to 40 ms apart, and
	// a checkpoint in the middle of a handshake costs another one, so it is longer; 60 ms.
	AckTimeout time.Duration
	// Rest is how long the guest runs at least between a checkpoint and the next one that the engine asks for, as a multiple
	// of the last pause; 0.5. Negative is none.
	Rest float64
	// Retry is when a checkpoint that doesn't begin is asked for again; 1 s.
	Retry time.Duration
	// FlowBytes bounds what one flow of one copy may keep waiting, TotalBytes all that wait; 8 and 64 MiB.
	FlowBytes, TotalBytes int
	// Flows bounds the number of flows that are remembered; 65536.
	Flows int
	// Datagrams bounds the secondary's datagrams of a flow that wait for the primary's; 64.
	Datagrams int
	// Rules let flows pass or not; the first that fits decides, and without one a flow is compared.
	Rules []Rule
}

func (c Config) withDefaults() Config {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	num := func(n *int, v int) {
		if *n == 0 {
			*n = v
		}
	}
	def(&c.Timeout, 20*time.Millisecond)
	def(&c.AckTimeout, max(60*time.Millisecond, c.Timeout))
	def(&c.Retry, time.Second)
	num(&c.FlowBytes, 8<<20)
	num(&c.TotalBytes, 64<<20)
	num(&c.Flows, 65536)
	num(&c.Datagrams, 64)
	if c.Rest == 0 {
		c.Rest = 0.5
	}
	return c
}

// Output is what an engine does to the world. Its methods must not call the engine.
type Output interface {
	// Release lets a frame go to its NIC's tap. The output must Keep the chunk for as long as it needs the frame.
	Release(nic uint8, frame []byte, c *Chunk)
	// Checkpoint asks for one.
	Checkpoint(why Reason)
}

// Frame is a packet as QEMU's redirectors frame it.
type Frame struct {
	NIC   uint8
	All   []byte // with the lengths before it
	Head  int    // where in All the Ethernet header begins
	Chunk *Chunk // that All lies in
}

// Stats counts what an engine has done since it was made.
type Stats struct {
	Primary     uint64            `json:"primary"`   // packets that came
	Secondary   uint64            `json:"secondary"` // packets that came
	Released    uint64            `json:"released"`  // the primary's packets that left
	Waited      uint64            `json:"waited"`    // of them, those that had to wait
	Covered     uint64            `json:"covered"`   // of those, the ones that a checkpoint let go
	Dropped     uint64            `json:"dropped"`   // the primary's packets that a bound or an end has dropped
	Checkpoints uint64            `json:"checkpoints"`
	Asked       map[string]uint64 `json:"asked"` // checkpoints that were asked for, by reason
	Late        map[string]uint64 `json:"late"`  // packets that asked for one because they were late, by kind
	Flows       int               `json:"flows"`
	Waiting     int               `json:"waiting"` // packets
	Mode        string            `json:"mode"`
}

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

// sort is an index of sorts.
func (e *Engine) sort(n *node) int {
	f := e.t.by[n.p.key]
	switch {
	case n.p.kind != kindTCP || f == nil:
		return 0
	case n.p.flags&flagSYN != 0:
		return 1
	case n.p.flags&flagRST != 0:
		return 7
	case n.p.end() == n.p.seq:
		return 2
	case f.rel.ok && after(n.p.seq, f.rel.v):
		return 4
	case f.rel.ok && !after(n.p.end(), f.rel.v):
		return 5
	case len(n.p.body) == 0:
		return 6
	}
	return 3
}

// flow finds or begins the flow of p.
func (e *Engine) flow(p *packet) *flow {
	k := p.key
	if p.kind == kindFree {
		k = key{nic: k.nic, proto: protoBroken, fragment: true}
	}
	f := e.t.by[k]
	if f == nil {
		if len(e.t.by) >= e.cfg.Flows {
			e.evict()
		}
		f = &flow{key: k, kind: p.kind}
		f.pass = p.kind != kindFree && passes(e.cfg.Rules, &k)
		e.t.by[k] = f
	}
	e.t.use(f)
	e.t.mark(f)
	return f
}

// evict forgets the flow that was silent for longest and has nothing waiting. One that comes back is unknown: its packets
// wait for the secondary's like those of a new one.
func (e *Engine) evict() {
	for f := e.t.oldest; f != nil; f = f.new {
		if f.held.n > 0 {
			continue
		}
		e.clear(f)
		if f.touched { // it is still in that list, where it does no harm
			f.pmax.ok, f.pack.ok = false, false
		}
		e.t.unlink(f)
		delete(e.t.by, f.key)
		return
	}
}

// clear drops all that waits in f.
func (e *Engine) clear(f *flow) {
	for n := f.held.first; n != nil; n = f.held.first {
		e.unhold(f, n)
		e.stats.Dropped++
		e.put(n)
	}
	for n := f.said.first; n != nil; n = f.said.first {
		e.forget(f, n)
	}
}

// full says that nothing more may wait.
func (e *Engine) full(now int64) bool {
	if e.bytes < e.cfg.TotalBytes && e.pool.Used() < e.cfg.TotalBytes+e.cfg.TotalBytes/2 {
		return false
	}
	e.ask(now, Memory)
	return true
}

func (e *Engine) node(now int64, fr Frame) *node {
	n := e.spare
	if n != nil {
		e.spare, n.next = n.next, nil
	} else {
		n = new(node)
	}
	n.frame, n.chunk, n.at = fr.All, fr.Chunk, now
	fr.Chunk.Keep()
	return n
}

func (e *Engine) put(n *node) {
	n.chunk.Drop()
	*n = node{next: e.spare}
	e.spare = n
}

func (e *Engine) count(n *node, d int) {
	e.waiting += d
	e.bytes += d * len(n.frame)
}

// hold lets a packet of the primary wait.
func (e *Engine) hold(f *flow, n *node, c *clock) {
	f.held.insert(n, f.held.last)
	c.add(n)
	e.count(n, 1)
}

func (e *Engine) unhold(f *flow, n *node) {
	f.held.remove(n)
	n.unclock()
	e.count(n, -1)
}

// keep remembers what the secondary has said.
func (e *Engine) keep(f *flow, n, after *node) {
	f.said.insert(n, after)
	e.count(n, 1)
}

func (e *Engine) forget(f *flow, n *node) {
	f.said.remove(n)
	e.count(n, -1)
	e.put(n)
}

func (e *Engine) release(n *node, waited bool) {
	e.stats.Released++
	if waited {
		e.stats.Waited++
	}
	e.out.Release(n.p.key.nic, n.frame, n.chunk)
	e.put(n)
}
