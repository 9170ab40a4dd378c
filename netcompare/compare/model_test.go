package compare

import (
	"encoding/binary"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"
)

var (
	modelSeed = flag.Uint64("model.seed", 1, "first seed of TestModel")
	modelRuns = flag.Int("model.n", 40, "how many seeds TestModel plays")
)

// end is one copy's end of a TCP connection. A checkpoint copies it.
type end struct {
	open, established   bool
	iss, irs            uint32
	in, out             []byte
	finIn, closed       bool
	sent                int // of out, FIN included
	acked               int
	needAck, needSynAck bool
}

func (t *end) rcvNxt() uint32 {
	n := t.irs + 1 + uint32(len(t.in))
	if t.finIn {
		n++
	}
	return n
}

// guest is one copy of a machine.
type guest struct {
	tcp map[int]end
	udp map[string]bool // what it has said since the checkpoint, or its model had before
}

func (g *guest) clone() guest {
	c := guest{tcp: map[int]end{}, udp: maps.Clone(g.udp)}
	for k, t := range g.tcp {
		t.in, t.out = append([]byte(nil), t.in...), append([]byte(nil), t.out...)
		c.tcp[k] = t
	}
	return c
}

// rewrite is what QEMU's filter-rewriter knows of a connection.
type rewrite struct {
	synReceived bool
	offset      uint32
}

// peer is the client's end.
type peer struct {
	key         int
	addr        netip.AddrPort
	v6          bool
	life        int // how often it was begun
	syn         bool
	established bool
	iss, irs    uint32
	in, out     []byte
	finIn       bool
	sent, una   int
	want        int             // bytes that it will be sent
	lives       map[uint32]life // by iss
}

// life is what a copy says on one connection.
type life struct{ salt, want int }

func (p *peer) begin(r *rand.Rand, most int) {
	p.want, p.out = r.IntN(most), random(r, most)
	p.lives[p.iss] = life{p.key*5 + p.life, p.want}
}

func (p *peer) finished() bool { return p.finIn && p.una == len(p.out)+1 && len(p.in) == p.want }

type world struct {
	t       *testing.T
	r       *rand.Rand
	e       *Engine
	pool    *Pool
	now     int64
	pri     guest
	sec     guest
	rew     map[int]rewrite
	peers   []*peer
	mirror  []seg // to the secondary
	said    []seg // from the secondary
	wire    []seg // to the client, over a network that loses and reorders
	asked   int   // steps until the checkpoint that was asked for; 0 is none
	whys    map[Reason]int
	alone   bool // the primary is gone
	differ  float64
	loss    float64
	udp     int
	log     []string
	failed  bool
	spoiled int
}

var guest4, guest6 = netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")

func (w *world) logf(format string, args ...any) {
	if *modelRuns > 1 {
		return // play the seed alone to see what happens
	}
	w.log = append(w.log, fmt.Sprintf("%8.3f ", float64(w.now)/1e6)+fmt.Sprintf(format, args...))
}

func (w *world) fail(format string, args ...any) {
	if !w.failed {
		w.failed = true
		if n := len(w.log); n > 60 {
			w.log = w.log[n-60:]
		}
		for _, l := range w.log {
			w.t.Log(l)
		}
		w.t.Errorf(format, args...)
	}
}

func (w *world) chance(p float64) bool { return w.r.Float64() < p }

// Release is the engine's output: the released packet is parsed again, as the client would.
func (w *world) Release(_ uint8, frame []byte, _ *Chunk) {
	var p packet
	p.parse(0, frame[4:])
	s := seg{proto: p.key.proto, seq: p.seq, ack: p.ack, flags: p.flags, body: append([]byte(nil), p.body...)}
	s.dst = netip.AddrPortFrom(netip.Addr{}, p.key.dport)
	if p.key.proto == protoUDP && !w.sec.udp[string(p.body)] {
		w.fail("a datagram left that the secondary has not said: %x (primary %v, mode %v)", p.body, w.pri.udp[string(p.body)], w.e.mode)
	}
	w.logf("released port %d flags %02x seq %d ack %d len %d", p.key.dport, p.flags, p.seq, p.ack, len(p.body))
	if !w.chance(w.loss) {
		w.wire = append(w.wire, s)
	}
}

func (w *world) Checkpoint(why Reason) {
	w.whys[why]++
	w.logf("asked: %v", why)
	if w.asked == 0 {
		w.asked = 1 + w.r.IntN(5)
	}
}

func (w *world) peer(port uint16) *peer { return w.peers[port-1000] }

func (w *world) toEngine(primary bool, s seg) {
	f := s.put(w.pool)
	if primary {
		w.e.Primary(w.now, f)
	} else {
		w.e.Secondary(w.now, f)
	}
	f.Chunk.Drop()
}

// says sends a segment of a copy on its way out.
func (w *world) says(primary bool, p *peer, s seg) {
	s.proto, s.src, s.dst = protoTCP, netip.AddrPortFrom(guest4, 80), p.addr
	if p.v6 {
		s.src = netip.AddrPortFrom(guest6, 80)
	}
	if primary {
		w.logf("primary %d: flags %02x seq %d ack %d len %d", p.key, s.flags, s.seq, s.ack, len(s.body))
		w.toEngine(true, s)
		return
	}
	if !p.v6 {
		rw := w.rew[p.key]
		switch {
		case rw.synReceived && s.flags&(flagSYN|flagACK) == flagSYN|flagACK:
			rw.offset = s.seq
			w.rew[p.key] = rw
		case s.flags&(flagSYN|flagACK) == flagACK:
			s.seq -= rw.offset
		}
	}
	w.logf("secondary %d: flags %02x seq %d ack %d len %d", p.key, s.flags, s.seq, s.ack, len(s.body))
	if w.alone {
		if !w.chance(w.loss) {
			w.wire = append(w.wire, s)
		}
		return
	}
	w.said = append(w.said, s)
}

// hear gives a client's segment to a copy.
func (w *world) hear(primary bool, p *peer, s seg) {
	g := &w.pri
	if !primary {
		g = &w.sec
		if !p.v6 {
			rw := w.rew[p.key]
			switch s.flags & (flagSYN | flagACK) {
			case flagSYN:
				rw.synReceived = true
			case flagACK:
				if rw.synReceived {
					rw.offset -= s.ack - 1
					rw.synReceived = false
				}
				s.ack += rw.offset
			}
			w.rew[p.key] = rw
		}
	}
	t := g.tcp[p.key]
	defer func() { g.tcp[p.key] = t }()
	if s.flags&flagSYN != 0 {
		if !t.open || t.finIn && t.closed && t.irs != s.seq || !t.established && t.irs != s.seq {
			t = end{open: true, iss: w.r.Uint32(), irs: s.seq}
		}
		if t.irs == s.seq {
			t.needSynAck = true
		}
		return
	}
	if !t.open {
		return
	}
	got := int(int32(s.ack - t.iss - 1))
	if got < 0 || got > t.sent {
		if !t.established {
			w.says(primary, p, seg{flags: flagRST, seq: s.ack})
		} else {
			t.needAck = true
		}
		return
	}
	t.established = true
	t.acked = max(t.acked, got)
	pos := int(int32(s.seq - t.irs - 1))
	if pos < 0 || pos > len(t.in) {
		t.needAck = true
		return
	}
	if len(s.body) > 0 || s.flags&flagFIN != 0 {
		t.needAck = true
	}
	if n := pos + len(s.body); n > len(t.in) {
		t.in = append(t.in, s.body[len(t.in)-pos:]...)
	}
	if s.flags&flagFIN != 0 && pos+len(s.body) == len(t.in) {
		t.finIn = true
	}
}

// content is what a copy writes at a place of a connection, unless it differs.
func content(l life, i int) byte { return byte(l.salt*7 + i*13 + i>>8) }

// act lets a copy do something on a connection.
func (w *world) act(primary bool) {
	p := w.peers[w.r.IntN(len(w.peers))]
	g := &w.pri
	if !primary {
		g = &w.sec
	}
	t := g.tcp[p.key]
	if !t.open {
		return
	}
	if t.needSynAck {
		t.needSynAck = false
		g.tcp[p.key] = t
		w.says(primary, p, seg{flags: flagSYN | flagACK, seq: t.iss, ack: t.irs + 1, opts: []byte{2, 4, 5, 180}})
		return
	}
	if !t.established {
		return
	}
	l := p.lives[t.irs]
	if n := min(l.want-len(t.out), w.r.IntN(40)); n > 0 && w.chance(0.5) {
		for range n {
			b := content(l, len(t.out))
			if w.chance(w.differ) {
				b = byte(w.r.Uint32())
			}
			t.out = append(t.out, b)
		}
	}
	if len(t.out) == l.want && t.finIn {
		t.closed = true
	}
	all := len(t.out)
	if t.closed {
		all++
	}
	defer func() { g.tcp[p.key] = t }()
	switch from := t.sent; {
	case t.acked < all && (w.chance(0.15) || from < all):
		if t.acked < t.sent && (from == all || w.chance(0.2)) { // again
			if from = t.acked; w.chance(0.2) {
				from += w.r.IntN(t.sent - t.acked)
			}
		}
		if from >= all {
			return
		}
		to := min(len(t.out), from+1+w.r.IntN(60))
		s := seg{flags: flagACK, seq: t.iss + 1 + uint32(from), ack: t.rcvNxt()}
		if from < to {
			s.body = append([]byte(nil), t.out[from:to]...)
		}
		upto := max(from, to)
		if t.closed && upto == len(t.out) && w.chance(0.7) {
			s.flags |= flagFIN
			upto++
		}
		if upto == from {
			return
		}
		t.sent, t.needAck = max(t.sent, upto), false
		w.says(primary, p, s)
	case t.needAck && w.chance(0.5), w.chance(0.02):
		t.needAck = false
		w.says(primary, p, seg{flags: flagACK, seq: t.iss + 1 + uint32(t.sent), ack: t.rcvNxt()})
	}
}

// client lets the client do something.
func (w *world) client() {
	p := w.peers[w.r.IntN(len(w.peers))]
	s := seg{proto: protoTCP, src: p.addr}
	switch {
	case p.finished():
		if p.life < 2 && w.chance(0.1) { // the same ports again
			*p = peer{key: p.key, addr: p.addr, v6: p.v6, life: p.life + 1, iss: p.iss + 100000 + uint32(w.r.IntN(1<<20)), lives: p.lives}
			p.begin(w.r, 300)
		} else if w.chance(0.2) { // a lost answer to the guest's FIN
			s.flags, s.seq, s.ack = flagACK, p.iss+1+uint32(p.sent), p.irs+2+uint32(len(p.in))
			w.fromClient(p, s)
		}
	case !p.established:
		if !p.syn || w.chance(0.1) {
			p.syn = true
			s.flags, s.seq = flagSYN, p.iss
			w.fromClient(p, s)
		}
	default:
		all := len(p.out) + 1
		from := p.sent
		if w.chance(0.3) {
			from = p.una
		}
		s.flags, s.seq, s.ack = flagACK, p.iss+1+uint32(from), p.irs+1+uint32(len(p.in))
		if p.finIn {
			s.ack++
		}
		if from < all {
			to := min(len(p.out), from+w.r.IntN(50))
			if from < to {
				s.body = p.out[from:to]
			}
			upto := max(from, to)
			if upto == len(p.out) && w.chance(0.3) {
				s.flags |= flagFIN
				upto++
			}
			p.sent = max(p.sent, upto)
		}
		w.fromClient(p, s)
	}
}

func random(r *rand.Rand, n int) []byte {
	b := make([]byte, r.IntN(n))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func (w *world) fromClient(p *peer, s seg) {
	if w.chance(w.loss) {
		return
	}
	w.logf("client %d: flags %02x seq %d ack %d len %d", p.key, s.flags, s.seq, s.ack, len(s.body))
	if w.alone {
		w.hear(false, p, s)
		return
	}
	w.hear(true, p, s)
	w.mirror = append(w.mirror, s)
}

// arrive gives the client a packet.
func (w *world) arrive() {
	if len(w.wire) == 0 {
		return
	}
	i := 0
	if w.chance(0.2) {
		i = w.r.IntN(len(w.wire))
	}
	s := w.wire[i]
	w.wire = append(w.wire[:i], w.wire[i+1:]...)
	if s.proto == protoUDP {
		return
	}
	p := w.peer(s.dst.Port())
	switch {
	case s.flags&flagRST != 0:
		return // of an earlier life, or it is caught by what doesn't come
	case s.flags&flagSYN != 0:
		if !p.established && p.syn && s.ack == p.iss+1 {
			p.established, p.irs = true, s.seq
		}
		return
	case !p.established:
		return
	}
	if n := int(int32(s.ack - p.iss - 1)); n >= 0 && n <= p.sent {
		p.una = max(p.una, n)
	}
	pos := int(int32(s.seq - p.irs - 1))
	if pos < 0 || pos > len(p.in) {
		return
	}
	for i, b := range s.body {
		if pos+i < len(p.in) {
			if p.in[pos+i] != b {
				w.fail("connection %d: the client was told %d at %d before, and %d now", p.key, p.in[pos+i], pos+i, b)
			}
		} else {
			p.in = append(p.in, b)
		}
	}
	if s.flags&flagFIN != 0 && pos+len(s.body) == len(p.in) {
		p.finIn = true
	}
}

// check says whether the secondary could go on from what every client knows.
func (w *world) check() {
	for _, p := range w.peers {
		if !p.established {
			continue
		}
		t := w.sec.tcp[p.key]
		if !t.open || t.irs != p.iss {
			if p.finished() {
				continue // ended, and perhaps begun again
			}
			w.fail("connection %d: the client has one, the secondary hasn't", p.key)
			return
		}
		if len(p.in) > min(t.sent, len(t.out)) || string(p.in) != string(t.out[:len(p.in)]) {
			w.fail("connection %d: the client has %d bytes that the secondary has not sent like that (%d)", p.key, len(p.in), t.sent)
			return
		}
		if p.finIn && t.sent <= len(t.out) {
			w.fail("connection %d: the client has a FIN, the secondary has not ended", p.key)
		}
		if have := int(int32(t.rcvNxt() - t.irs - 1)); p.una > have {
			w.fail("connection %d: the client forgets %d bytes, the secondary has %d", p.key, p.una, have)
		}
	}
}

func (w *world) checkpoint() {
	w.asked = 0
	w.logf("checkpoint")
	w.e.Stopped(w.now)
	stale := w.said
	w.said = nil
	w.sec = w.pri.clone()
	for k, rw := range w.rew {
		rw.offset = 0
		w.rew[k] = rw
	}
	for _, s := range stale { // before the primary runs again
		w.toEngine(false, s)
	}
	w.now += int64(w.r.IntN(10)) * 1e6
	if w.chance(0.2) { // what we read before we know that it runs
		for range w.r.IntN(4) {
			w.act(true)
		}
	}
	w.e.Resumed(w.now)
}

func (w *world) step() {
	w.now += int64(w.r.IntN(1500)) * 1000
	switch w.r.IntN(9) {
	case 0, 1:
		if !w.alone {
			w.act(true)
		}
	case 2, 3:
		w.act(false)
	case 4:
		for range 1 + w.r.IntN(4) {
			if len(w.mirror) > 0 {
				s := w.mirror[0]
				w.mirror = w.mirror[1:]
				if s.proto == protoUDP {
					w.answer(false, s)
				} else {
					w.hear(false, w.peer(s.src.Port()), s)
				}
			}
		}
	case 5, 6:
		for range 1 + w.r.IntN(3) {
			w.arrive()
		}
		w.client()
	case 7:
		if !w.alone && w.udp > 0 && w.chance(0.3) {
			w.udp--
			s := seg{proto: protoUDP, body: binary.BigEndian.AppendUint32(nil, uint32(w.udp))}
			w.answer(true, s)
			w.mirror = append(w.mirror, s)
		}
	case 8:
		for range 1 + w.r.IntN(4) {
			if len(w.said) > 0 {
				s := w.said[0]
				w.said = w.said[1:]
				w.toEngine(false, s)
			}
		}
	}
	if w.alone {
		return
	}
	if w.asked > 0 {
		if w.asked--; w.asked == 0 {
			w.checkpoint()
		}
	}
	w.e.Tick(w.now)
	w.check()
}

// answer is a copy's reply to a datagram.
func (w *world) answer(primary bool, s seg) {
	body := append([]byte("answer "), s.body...)
	if w.chance(w.differ) {
		body = append(body, byte(w.r.Uint32()))
	}
	out := seg{proto: protoUDP, src: netip.AddrPortFrom(guest4, 53), dst: netip.AddrPortFrom(netip.MustParseAddr("10.0.0.2"), 999), body: body}
	if primary {
		w.logf("primary says %x", body)
		w.pri.udp[string(body)] = true
		w.toEngine(true, out)
		return
	}
	w.logf("secondary says %x", body)
	w.sec.udp[string(body)] = true
	if !w.alone {
		w.said = append(w.said, out)
	}
}

func newWorld(t *testing.T, seed uint64) *world {
	r := rand.New(rand.NewPCG(seed, 7))
	w := &world{t: t, r: r, pool: new(Pool), rew: map[int]rewrite{}, whys: map[Reason]int{}, now: 1e9}
	w.pri = guest{tcp: map[int]end{}, udp: map[string]bool{}}
	w.sec = guest{tcp: map[int]end{}, udp: map[string]bool{}}
	w.differ = []float64{0, 0, 0.0005, 0.01}[r.IntN(4)]
	w.loss = []float64{0, 0.02, 0.2}[r.IntN(3)]
	w.udp = r.IntN(40)
	w.e = New(Config{}, w, w.pool)
	w.e.Stopped(w.now)
	w.e.Resumed(w.now)
	for i := range 1 + r.IntN(4) {
		p := &peer{key: i, v6: w.chance(0.3), iss: r.Uint32(), lives: map[uint32]life{}}
		p.addr = netip.AddrPortFrom(netip.MustParseAddr("10.0.0.2"), uint16(1000+i))
		if p.v6 {
			p.addr = netip.AddrPortFrom(netip.MustParseAddr("fd00::2"), uint16(1000+i))
		}
		p.begin(r, 1500)
		w.peers = append(w.peers, p)
	}
	return w
}

func (w *world) finished() bool {
	for _, p := range w.peers {
		if !p.finished() {
			return false
		}
	}
	return true
}

const modelSteps = 60000

// TestModel plays two copies of a machine, each with a TCP of its own that segments, repeats and acknowledges as it likes and
// sometimes says something else, QEMU's rewriter, and clients behind a network that loses and reorders. In every state:
//
//   - the secondary has sent every byte, FIN and datagram that a client has seen, in the same place;
//   - the secondary has received every byte that a client was told had arrived.
//
// Nothing waits for longer than its patience and a checkpoint; everything arrives in the end; no memory is left. In half of
// the runs the primary dies at some moment, and every client must finish with the secondary alone.
func TestModel(t *testing.T) {
	whys, ended, spoiled, conns := map[Reason]int{}, 0, 0, 0
	for i := range *modelRuns {
		seed := *modelSeed + uint64(i)
		w := newWorld(t, seed)
		death := modelSteps
		if w.chance(0.5) {
			death = w.r.IntN(1500)
		}
		for n := 0; n < modelSteps && !w.failed && !w.finished(); n++ {
			if n == death {
				w.die()
			}
			w.step()
			if !w.alone {
				w.patience()
			}
		}
		if !w.finished() && !w.failed {
			for _, p := range w.peers {
				t.Logf("%+v", *p)
			}
			w.fail("not all has arrived")
		}
		if !w.alone {
			w.drain()
		}
		for k, n := range w.whys {
			whys[k] += n
		}
		if w.failed {
			t.Fatalf("seed %d (-model.seed %d -model.n 1)", seed, seed)
		}
		if w.alone {
			ended++
			conns += len(w.peers)
			spoiled += w.spoiled
		}
	}
	t.Logf("%d runs, %d with the primary's death, at which %d of %d connections had a spoiled rewriter; checkpoints %v", *modelRuns, ended, spoiled, conns, whys)
}

// die leaves the secondary alone.
func (w *world) die() {
	w.logf("the primary dies")
	w.alone = true
	w.e.Hold()
	w.said, w.mirror = nil, nil
	for _, p := range w.peers {
		t := w.sec.tcp[p.key]
		// A handshake that a checkpoint has cut in two spoils the rewriter until the next checkpoint, which the engine asks for as
		// soon as it sees signs of it. Until then the connection would not survive; nothing that left can change that.
		offset := w.rew[p.key].offset
		if w.rew[p.key].synReceived {
			offset -= p.irs
		}
		if !p.v6 && p.established && !p.finished() && t.open && t.iss-offset != p.irs || !p.established && p.syn {
			if p.established {
				w.spoiled++
			}
			p.finIn, p.una, p.want, p.life, p.established = true, len(p.out)+1, len(p.in), 2, false
			p.syn = true
		}
	}
}

func (w *world) patience() {
	for _, c := range []*clock{&w.e.data, &w.e.acks} {
		if n := c.first; n != nil && w.e.mode == live && w.now-n.at > c.patience+int64(50*time.Millisecond) {
			w.fail("a packet waits for %v: %+v", time.Duration(w.now-n.at), n.p.key)
		}
	}
}

// drain ends it with a checkpoint, after which nothing may be left.
func (w *world) drain() {
	w.checkpoint()
	w.checkpoint() // the first may have had something in limbo
	if s := w.e.Stats(); s.Waiting != 0 || w.e.bytes != 0 || w.pool.Used() != 0 {
		w.fail("left over: %+v, %d bytes, %d in chunks", s, w.e.bytes, w.pool.Used())
	}
}
