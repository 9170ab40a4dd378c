package sim

import (
	"slices"
	"time"

	"github.com/coloctl/coloctl/blockrepl"
	"github.com/coloctl/coloctl/colo"
)

// stage is how far a primary has come with a standby.
type stage int

const (
	syncing stage = iota
	mirrored
	connected
	copied // the guest is stopped
	switched
	inColo
)

// session is the replication between two QEMUs: disk, memory and network streams over the first link.
type session struct {
	w     *World
	p, s  *proc
	stage stage
	mode  blockrepl.Mode
	full  bool
	dirty [blocks]bool // written here and not yet there

	left    [2]bool // this end has let go, or died
	noticed [2]bool // this end knows that the other one has
	stepDue bool

	executed []*work // answered by the primary, not yet let out
	blocked  []*work // the primary waits for the other disk
	inputs   []*work // not yet seen by the secondary

	ckpt      int // number of the last checkpoint
	checking  bool
	committed bool
	waits     bool // for packets to pass again
	era       int  // counts the times at which both guests were made equal
}

func newSession(p, s *proc, full bool) *session {
	x := &session{w: p.w, p: p, s: s, full: full}
	p.sess, s.sess = x, x
	p.w.sessions = append(p.w.sessions, x)
	return x
}

func (x *session) ends() [2]*proc { return [2]*proc{x.p, x.s} }

// wire says whether packets pass between the hosts.
func (x *session) wire() bool {
	return x.w.links[0].whole() && x.p.h.up && x.s.h.up
}

// flow says whether replication makes progress now.
func (x *session) flow() bool {
	return x.wire() && x.p.alive && x.s.alive && !x.p.stands() && !x.s.stands() && x.left == [2]bool{} && x.noticed == [2]bool{}
}

// leave is one end letting go. The other one hears of it when packets pass.
func (x *session) leave(p *proc) {
	for i, e := range x.ends() {
		if e == p {
			x.left[i] = true
		}
	}
	p.sess = nil
	x.w.poke()
}

// poke lets the session look at the world again, soon: what was lost on the way is sent again by TCP.
func (x *session) poke() {
	if x.stepDue {
		return
	}
	x.stepDue = true
	hi := 10 * time.Millisecond
	if x.w.chance(actorSession, 20) {
		hi = 200 * time.Millisecond
	}
	x.w.in(x.w.between(actorSession, time.Millisecond, hi), func() { x.stepDue = false; x.step() })
}

func (x *session) step() {
	for i, e := range x.ends() {
		o := x.ends()[1-i]
		if (x.left[1-i] || !o.alive) && !x.noticed[i] && !x.left[i] && e.alive && !e.stands() && x.wire() {
			x.noticed[i] = true
			x.notice(e)
		}
	}
	over := true
	for i, e := range x.ends() {
		over = over && (x.left[i] || x.noticed[i] || !e.alive)
	}
	if over {
		x.w.sessions = slices.DeleteFunc(x.w.sessions, func(o *session) bool { return o == x })
		return
	}
	if !x.flow() {
		return
	}
	for _, k := range take(&x.blocked) {
		x.execute(k)
	}
	for _, k := range take(&x.inputs) {
		x.twin(k)
	}
	if x.waits {
		x.waits = false
		x.advance(x.ckpt)
	}
}

func take[T any](list *[]T) []T {
	out := *list
	*list = nil
	return out
}

// notice is an end finding out that the other one is gone: its connections are closed.
func (x *session) notice(e *proc) {
	if x.stage == inColo {
		x.w.say(e.h.name, "QEMU %d leaves COLO by an error", e.id)
		e.tell(colo.ChannelLost, "QEMU has left COLO by an error")
	}
	if e == x.p {
		for _, k := range take(&x.blocked) { // the other disk's child fails: what is here is enough
			x.execute(k)
		}
	}
	x.w.poke()
}

// held says whether the primary's answers wait for the comparison.
func (x *session) held() bool { return x.stage == inColo && !x.left[0] }

// input sends a request to both guests.
func (x *session) input(k *work) {
	w := x.w
	w.in(w.between(actorSession, 500*time.Microsecond, 2*time.Millisecond), func() { x.p.serve(k) })
	w.in(w.between(actorSession, 600*time.Microsecond, 4*time.Millisecond), func() { x.twin(k) })
}

// execute is the primary's guest doing what was asked. The answer waits.
func (x *session) execute(k *work) {
	p := x.p
	if p.sess != x {
		p.serve(k)
		return
	}
	if !p.works() {
		return
	}
	if !x.flow() && !x.noticed[0] && !k.ram {
		x.blocked = append(x.blocked, k)
		return
	}
	if p.diskless(k) {
		return
	}
	p.apply(k)
	x.executed = append(x.executed, k)
	x.compare(k)
	x.w.in(25*time.Millisecond+x.w.between(actorSession, 0, time.Millisecond), func() {
		if slices.Contains(x.executed, k) {
			x.checkpoint()
		}
	})
}

// wrote carries a write of the primary to the other disk.
func (x *session) wrote(b int) {
	switch {
	case x.stage == inColo && x.flow():
		x.s.h.image[b] = x.p.view[b]
	case x.stage >= mirrored:
		x.dirty[b] = true
	}
}

// twin is the secondary's guest doing the same.
func (x *session) twin(k *work) {
	if x.stage != inColo || x.left[1] || !x.s.alive {
		return
	}
	if !x.flow() || x.s.paused {
		x.inputs = append(x.inputs, k)
		return
	}
	x.s.apply(k)
	k.twin, k.era = x.s, x.era
	if !k.differs {
		x.compare(k)
	} else {
		x.checkpoint()
	}
}

// compare lets an answer out that both have given.
func (x *session) compare(k *work) {
	if k.twin != x.s || k.era != x.era || k.differs { // what the secondary said before a checkpoint is thrown away
		return
	}
	x.w.in(x.w.between(actorSession, 200*time.Microsecond, time.Millisecond), func() {
		i := slices.Index(x.executed, k)
		if i < 0 || k.twin != x.s || k.era != x.era || x.left[0] || x.noticed[0] || !x.wire() || !x.p.alive || x.p.stands() {
			return
		}
		x.executed = slices.Delete(x.executed, i, i+1)
		x.w.lan.output(x.p, k)
	})
}

// begin is COLO's start: both guests are equal.
func (x *session) begin() {
	x.stage = inColo
	x.p.mode, x.s.mode = "primary", "secondary"
	x.p.cpCount, x.s.cpCount, x.p.cpLast, x.s.cpLast = 0, 0, time.Time{}, time.Time{}
	x.s.standby, x.s.running, x.s.h.lacks = false, true, false
	x.copyState()
	x.p.resume()
	x.p.tell(colo.ColoStarted, "COLO has begun")
	x.s.tell(colo.ColoStarted, "COLO has begun")
	x.w.poke()
	x.again(x.ckpt)
}

func (x *session) copyState() {
	s, p := x.s, x.p
	x.era++
	if s.h.image != p.view {
		x.w.broken(RuleNoLostWrite, "the disks differ: %v on %s and %v on %s", p.view, p.h.name, s.h.image, s.h.name)
	}
	s.mem, s.ram, s.view, s.epoch = p.mem, p.ram, s.h.image, p.epoch
	if p.off {
		s.poweroff()
	}
}

// again makes the next checkpoint due.
func (x *session) again(n int) {
	x.w.in(checkpointDelay+x.w.between(actorSession, 0, time.Millisecond), func() {
		switch {
		case x.ckpt != n:
		case x.p.alive && x.p.stands(): // its timer fires when it goes on
			x.p.later = append(x.p.later, func() { x.again(n) })
		default:
			x.checkpoint()
		}
	})
}

const checkpointDelay = 300 * time.Millisecond

// checkpoint begins one.
func (x *session) checkpoint() {
	p := x.p
	if x.stage != inColo || x.checking || x.left[0] || x.noticed[0] || !p.alive || p.stands() {
		return
	}
	x.ckpt++
	n := x.ckpt
	x.checking, x.committed, x.waits = true, false, false
	p.paused, p.cpBegin = true, time.Now()
	if x.flow() {
		x.s.paused, x.s.cpBegin = true, time.Now()
		x.stuck(x.s, n)
	}
	x.stuck(p, n)
	x.w.in(x.w.between(actorSession, 6*time.Millisecond, 15*time.Millisecond), func() { x.advance(n) })
}

// stuck tells of a checkpoint that does not end.
func (x *session) stuck(e *proc, n int) {
	x.w.in(hangTimeout+x.w.between(actorSession, 0, 200*time.Millisecond), func() {
		if x.ckpt == n && !e.cpBegin.IsZero() && e.alive && !e.stands() && e.sess == x {
			e.tell(colo.ChannelLost, "a checkpoint has not ended")
		}
	})
}

const hangTimeout = 2 * time.Second

// advance brings the checkpoint forward: first the secondary has all of it, then the primary knows that and lets go what it held.
func (x *session) advance(n int) {
	if !x.checking || x.ckpt != n {
		return
	}
	if !x.flow() {
		x.waits = true // step tries again
		return
	}
	if !x.committed {
		x.committed = true
		x.copyState()
		x.s.h.loose, x.p.held = nil, [blocks]bool{} // both disks are flushed
		x.s.paused, x.s.cpBegin, x.s.cpLast = false, time.Time{}, time.Now()
		x.s.cpCount++
		x.w.in(x.w.between(actorSession, 500*time.Microsecond, 2*time.Millisecond), func() { x.advance(n) })
		return
	}
	x.checking = false
	x.p.cpBegin, x.p.cpLast, x.p.cpLastBegan = time.Time{}, time.Now(), x.p.cpBegin
	x.p.cpCount++
	for _, k := range take(&x.executed) {
		x.w.lan.output(x.p, k)
	}
	x.p.resume()
	x.w.poke()
	x.again(n)
}

// release is the primary letting go: what it held goes out, and its guest runs on alone.
func (x *session) release() {
	p := x.p
	wasColo := x.stage == inColo
	x.leave(p)
	x.checking, p.cpBegin = false, time.Time{}
	p.mode = "none"
	for b := range blocks {
		if p.bitmap != nil && p.held[b] {
			p.bitmap[b] = true
		}
	}
	p.held = [blocks]bool{}
	if wasColo {
		for _, k := range take(&x.executed) {
			x.w.lan.output(p, k)
		}
	}
	p.resume()
	for _, k := range take(&x.blocked) {
		p.serve(k)
	}
	x.w.lan.look()
}

// promote is the secondary letting go: its guest runs on with its own view of the disk.
func (x *session) promote() {
	s := x.s
	x.leave(s)
	s.mode, s.overlay, s.bitmap, s.cpBegin = "none", true, nil, time.Time{}
	s.resume()
	x.w.lan.look()
}
