package sim

import (
	"errors"
	"fmt"
	"time"

	"github.com/coloctl/coloctl/colo"
)

var (
	errEnded    = errors.New("QEMU has ended")
	errInjected = errors.New("input/output error")
)

// proc is a QEMU process with its guest. What the guest knows is, for each block of its disk, the number of the last write it has done; ram
// is the same for what the guest keeps in memory only.
type proc struct {
	w    *World
	id   int
	h    *Host
	boot int

	alive, frozen bool
	running, off  bool // the guest runs; it has switched itself off
	paused        bool // it stands still for a checkpoint
	standby       bool // waits for a primary
	listening     bool
	key           colo.Key // of its listening sockets
	mode          string   // of COLO: none, primary, secondary; it stays after COLO was left by an error
	overlay       bool     // the disk's image lacks what the overlays hold
	retired       bool     // another copy has spoken since
	mem, view     image
	ram           [clients]uint32
	epoch         int           // counts the boots of the guest: what was in memory only ends with it
	bitmap        *[blocks]bool // what was written since the other side's disks were equal
	halfGone      bool          // its host's disk was taken from it: the guest goes on through the peer's
	goneSince     time.Time     // since when
	unseen        bool          // nobody was there to note it
	poor          bool          // booted from a half of which nobody could note that it lacks something
	held          [blocks]bool  // what was sent to the other side and is not known to be durable there
	sess          *session

	copies  []*simCopy // of the daemons that look after it
	later   []func()   // commands that wait in the socket of a frozen QEMU
	waiting []*work    // requests that wait for the end of a checkpoint
	cpCount uint64
	cpLast  time.Time
	// cpLastBegan is when the last one began that has ended.
	cpLastBegan time.Time
	cpBegin     time.Time // of the one that goes on; zero if none
}

func (h *Host) newProc(standby bool) *proc {
	h.w.procs++
	p := &proc{w: h.w, id: h.w.procs, h: h, boot: h.boot, alive: true, standby: standby, mode: "none"}
	h.proc = p
	if !standby {
		p.view, p.mem = h.image, h.image
		p.poor = h.lacks && !h.disk.behind()
		h.w.lan.epochs++
		p.epoch = h.w.lan.epochs
	}
	h.w.say(h.name, "QEMU %d begins%s", p.id, map[bool]string{true: " as a standby"}[standby])
	return p
}

func (p *proc) String() string { return fmt.Sprintf("QEMU %d", p.id) }

// stands says whether nothing of the process goes on at the moment.
func (p *proc) stands() bool { return p.frozen || p.h.frozen }

// works says whether the guest can do something now.
func (p *proc) works() bool { return p.alive && !p.stands() && p.running && !p.off && !p.paused }

// die ends the process.
func (p *proc) die() {
	if !p.alive {
		return
	}
	p.unseen = p.unseen || p.h.up && p.unnoticed()
	p.h.lacks = p.h.lacks || p.unseen
	p.alive = false
	p.h.proc = nil
	p.w.lan.gone = p.w.lan.gone || p.overlay
	p.w.say(p.h.name, "QEMU %d ends", p.id)
	for _, f := range p.later {
		f() // each finds that it has ended
	}
	p.later = nil
	for _, c := range p.copies {
		c.tell(colo.Exited, "QEMU ended")
	}
	p.w.poke()
}

// unnoticed says whether no daemon has had the time to put on record that the half is gone.
func (p *proc) unnoticed() bool {
	return p.halfGone && (p.h.env == nil || !p.h.attentive() || p.h.slowDisk || time.Since(p.goneSince) < time.Second)
}

func (p *proc) freeze() {
	p.frozen = true
	p.w.say(p.h.name, "QEMU %d is stopped by a signal", p.id)
	p.w.in(p.w.between(p.h.actor(opEvent), 200*time.Millisecond, 400*time.Millisecond), func() {
		if p.alive && p.frozen {
			for _, c := range p.copies {
				c.tell(colo.Hung, "QEMU was stopped")
			}
		}
	})
	p.w.poke()
}

func (p *proc) thaw() {
	p.frozen = false
	if p.alive {
		p.w.say(p.h.name, "QEMU %d goes on", p.id)
	}
	p.catchUp()
	p.w.poke()
}

// catchUp does what was asked of a process that stood still.
func (p *proc) catchUp() {
	later := p.later
	p.later = nil
	for _, f := range later {
		f()
	}
}

func (p *proc) tell(kind colo.EventKind, text string) {
	for _, c := range p.copies {
		c.tell(kind, text)
	}
}

// apply is what the guest does with a request: it writes and flushes.
func (p *proc) apply(k *work) {
	if k.ram {
		p.ram[k.client] = max(p.ram[k.client], k.op)
		return
	}
	p.mem[k.block] = max(p.mem[k.block], k.op)
	p.write(k.block, k.op)
}

func (p *proc) write(b int, op uint32) {
	p.view[b] = max(p.view[b], op)
	if p.mode == "secondary" {
		return // into its overlay
	}
	if p.halfGone {
		if s := p.sess; s != nil && s.p == p {
			s.wrote(b)
		}
		return
	}
	if p.bitmap != nil {
		p.bitmap[b] = true
	}
	if !p.overlay {
		p.h.image[b] = p.view[b]
	}
	if s := p.sess; s != nil && s.p == p {
		s.wrote(b)
	}
}

// input gives the guest a request from the LAN.
func (p *proc) input(k *work) {
	if s := p.sess; s != nil && s.stage == inColo && s.p == p {
		s.input(k)
		return
	}
	p.w.in(p.w.between(actorClients, 500*time.Microsecond, 2*time.Millisecond), func() { p.serve(k) })
}

// serve answers a request alone.
func (p *proc) serve(k *work) {
	switch {
	case p.alive && p.running && p.paused:
		p.waiting = append(p.waiting, k)
	case p.sess != nil && p.sess.stage == inColo && p.sess.p == p && p.works():
		p.sess.execute(k)
	case p.works() && p.mode != "secondary" && !p.diskless(k):
		p.apply(k)
		p.w.lan.output(p, k)
	}
}

// resume lets the guest go on after a checkpoint, or after COLO.
func (p *proc) resume() {
	p.paused = false
	waiting := p.waiting
	p.waiting = nil
	for _, k := range waiting {
		p.serve(k)
	}
}

// poweroff is the guest switching itself off; the twin of a primary's guest does the same.
func (p *proc) poweroff() {
	if !p.alive || !p.running || p.stands() || p.off {
		return
	}
	p.off = true
	p.w.say(p.h.name, "the guest switches itself off")
	p.tell(colo.GuestShutdown, "the guest has switched itself off")
	p.w.lan.look()
	if x := p.sess; x != nil && x.p == p && x.stage == inColo && x.flow() {
		x.s.poweroff()
	}
	if p.w.endsOff {
		p.w.in(p.w.between(p.h.actor(opEvent), 0, 20*time.Millisecond), func() {
			if p.off {
				p.die()
			}
		})
	}
}
