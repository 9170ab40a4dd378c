package sim

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/coloctl/coloctl/colo"
)

// Actors that draw random numbers. Each host has its own set, one for each kind of operation.
const (
	actorWorld = iota
	actorClients
	actorSession
	actorFaults
	actorHosts = 16
)

type opKind int

const (
	opStore opKind = iota
	opLaunch
	opAttach
	opJoin
	opCut
	opKill
	opQMP
	opSync
	opMemory
	opSwitch
	opColo
	opRelease
	opPromote
	opCommit
	opAlive
	opClear
	opPeer
	opArbiter
	opBeat // on the first link
	opBeat2
	opServe
	opEvent
	opKinds
)

var opNames = [opKinds]string{"store", "launch", "attach", "join the LAN", "cut the tap", "kill", "QMP", "disk copy", "memory copy", "disk switch", "COLO start",
	"release", "promotion", "commit", "liveness", "clear", "peer call", "arbiter call", "heartbeat", "heartbeat", "serving", "event"}

func (h *Host) actor(k opKind) int { return actorHosts + h.i*int(opKinds) + int(k) }

// blocks is the size of a guest's disk, each block holding the number of the last write to it.
const blocks = 8

// image is the contents of a disk.
type image [blocks]uint32

// Host is one machine: what survives a loss of power is its disks (image, records).
type Host struct {
	w    *World
	i    int
	name string

	up, frozen bool
	unplugged  bool      // stays off until the arbiter knows that it was given up
	froze      time.Time // when it last did, or went on
	boot       int
	env        *env          // of the running daemon
	stopped    int           // times the daemon was stopped by a signal
	thaw       chan struct{} // closed when the daemon goes on; nil while it does
	awake      time.Time     // since when the daemon has been able to look after its QEMU
	closed     chan struct{} // of the daemon before: closed when its goroutines have ended
	wanted     bool          // whether the daemon is to run

	unheard []func() // events that wait in the socket of a daemon that is stopped

	proc     *proc     // the QEMU that runs here, or nil
	joined   bool      // the tap is in the bridge
	gated    bool      // what COLO doesn't hold needs a lease
	leased   time.Time // the lease's end
	image    image
	made     bool           // the image exists
	lacks    bool           // and lacks what the guest wrote after the half was gone, which nobody could note
	loose    map[int]uint32 // what was written to the image and is not durable, by block: what was there before
	slowDisk bool           // of the state folder
	fullDisk bool
	disk     *records

	ios   int // operations of the engine so far
	traps []trap
}

// trap is something that happens at the host's next operation but so many.
type trap struct {
	at   int
	fire chan struct{}
}

// env is what one run of the daemon acts through. When the daemon is killed nothing of that run has an effect any more.
type env struct {
	w    *World
	h    *Host
	boot int
	dead chan struct{}
	gone bool
	node *colo.Node
	ctx  context.Context
	stop context.CancelFunc
	eps  []*packets
}

func newHost(w *World, i int) *Host {
	h := &Host{w: w, i: i, name: []string{"n1", "n2"}[i], up: true, closed: make(chan struct{})}
	close(h.closed)
	h.disk = &records{h: h}
	w.boots++
	h.boot = w.boots
	return h
}

func (h *Host) other() *Host { return h.w.hosts[1-h.i] }

func (h *Host) addr(link int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(link), 0, byte(h.i + 1)})
}

func (w *World) hostAt(addr netip.Addr) (*Host, int) {
	b := addr.As4()
	return w.hosts[b[3]-1], int(b[1])
}

// attentive says whether a daemon has had the time to look after its QEMU.
func (h *Host) attentive() bool {
	return h.env != nil && h.thaw == nil && time.Since(h.awake) > time.Second &&
		slices.ContainsFunc(h.proc.copies, func(c *simCopy) bool { return c.e == h.env && time.Since(c.since) > time.Second })
}

// pass waits while the daemon is stopped.
func (e *env) pass() error {
	for {
		e.w.mu.Lock()
		gone, thaw := e.gone, e.h.thaw
		e.w.mu.Unlock()
		switch {
		case gone:
			return errGone
		case thaw == nil:
			return nil
		}
		select {
		case <-thaw:
		case <-e.dead:
			return errGone
		}
	}
}

// begin counts an operation and lets the traps go off that wait for it.
func (e *env) begin() error {
	e.w.mu.Lock()
	e.h.ios++
	for i := 0; i < len(e.h.traps); i++ {
		if t := e.h.traps[i]; t.at <= e.h.ios {
			e.h.traps = slices.Delete(e.h.traps, i, i+1)
			i--
			close(t.fire)
		}
	}
	e.w.mu.Unlock()
	return e.pass()
}

// do carries out one operation: effect happens after a while, also when nobody waits for it any more.
func (e *env) do(ctx context.Context, k opKind, lo, hi time.Duration, effect func() error) error {
	return e.doOn(ctx, k, nil, lo, hi, effect)
}

// doOn is do for an operation that a QEMU must carry out: a frozen one does it when it thaws, a dead one never.
func (e *env) doOn(ctx context.Context, k opKind, p *proc, lo, hi time.Duration, effect func() error) error {
	if err := e.begin(); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	done := make(chan error, 1)
	var act func()
	act = func() {
		switch {
		case p != nil && !p.alive, e.h.boot != e.boot:
			done <- errEnded
		case e.gone && (p == nil || e.w.chance(e.h.actor(k), 50)): // killed before it asked
			done <- errGone
		case p != nil && p.stands():
			p.later = append(p.later, act)
		case e.w.fails[k] > 0:
			e.w.fails[k]--
			e.w.storeFailed = e.w.storeFailed || k == opStore
			e.w.say(e.h.name, "%s fails", opNames[k])
			done <- errInjected
		default:
			done <- effect()
		}
	}
	e.w.mu.Lock()
	e.w.in(e.w.between(e.h.actor(k), lo, hi), act)
	e.w.mu.Unlock()
	select {
	case err := <-done:
		if gone := e.pass(); gone != nil {
			return gone
		}
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-e.dead:
		return errGone
	}
}

// startDaemon runs a daemon on the host as soon as the one before has ended.
func (h *Host) startDaemon() {
	h.wanted = true
	if h.env != nil || !h.up {
		return
	}
	w := h.w
	e := &env{w: w, h: h, boot: h.boot, dead: make(chan struct{})}
	e.ctx, e.stop = context.WithCancel(context.Background())
	before := h.closed
	h.closed = make(chan struct{})
	h.env, h.awake = e, time.Now()
	w.say(h.name, "the daemon starts")
	closed := h.closed
	w.wg.Go(func() {
		defer close(closed)
		<-before
		n, err := colo.NewNode(e.ctx, e.config())
		if err == nil {
			if w.story { // before anything can wait: what the node says first belongs to the story
				events := n.Watch(context.Background())
				w.wg.Go(func() { w.follow(h, events) })
			}
			err = n.Connect(&remote{e, h.other()}, h.other().info())
		}
		w.mu.Lock()
		if err != nil {
			w.broken("start", "%s: %v", h.name, err)
			w.mu.Unlock()
			return
		}
		e.node = n
		w.poke()
		w.mu.Unlock()
		<-e.dead
		_ = n.Close()
	})
}

// follow puts the engine's own words into the story.
func (w *World) follow(h *Host, events <-chan colo.Event) {
	for ev := range events {
		if ev.Kind == "progress" {
			continue
		}
		text := ev.Text
		if ev.Kind == "state" {
			text = string(ev.State) + ": " + text
		}
		w.tell(h.name, "  %s %s", ev.Kind, text)
	}
}

// endDaemon kills the daemon. The caller holds mu.
func (h *Host) endDaemon() {
	h.wanted = false
	e := h.env
	if e == nil {
		return
	}
	h.env, e.gone = nil, true
	for _, p := range e.eps {
		p.shut()
	}
	close(e.dead)
	e.stop()
	h.w.poke()
}

// stop stops the daemon as a signal does, cont lets it go on.
func (h *Host) stop() {
	if h.stopped++; h.stopped == 1 {
		h.thaw = make(chan struct{})
	}
}

func (h *Host) cont() {
	if h.stopped--; h.stopped == 0 {
		close(h.thaw)
		h.thaw, h.awake = nil, time.Now()
		for _, deliver := range take(&h.unheard) {
			deliver()
		}
		h.w.retry()
		h.w.poke()
	}
}

// powerOff ends everything on the host at once.
func (h *Host) powerOff() {
	if !h.up {
		return
	}
	if h.proc != nil {
		h.proc.unseen = h.proc.unnoticed()
	}
	h.endDaemon()
	h.up = false
	if h.proc != nil {
		h.proc.die()
	}
	for b := range blocks { // not in the map's order, which is another one each time
		if old, ok := h.loose[b]; ok && h.w.chance(h.actor(opStore), 50) {
			h.image[b] = old
		}
	}
	h.loose = nil
	h.joined = false
	h.w.poke()
}

func (h *Host) powerOn() {
	if h.up || h.unplugged {
		return
	}
	h.up = true
	h.w.boots++
	h.boot = h.w.boots
	h.startDaemon()
	h.w.retry()
	h.w.poke()
}

// freeze stops the whole host for a while, as a hypervisor or a dying disk does.
func (h *Host) freeze() {
	h.frozen = true
	h.stop()
	h.froze = time.Now()
	h.w.poke()
}

func (h *Host) unfreeze() {
	h.frozen = false
	h.leased = h.leased.Add(time.Since(h.froze)) // its clock stood still as well
	h.froze = time.Now()
	if h.proc != nil {
		h.proc.catchUp()
	}
	h.cont()
}
