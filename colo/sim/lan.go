package sim

import "time"

// clients is how many programs use the guest, each with its own blocks.
const clients = 2

// work is one request: write a number into a block, or remember it in memory.
type work struct {
	op      uint32
	client  int
	block   int
	ram     bool
	differs bool  // the two guests will answer differently
	twin    *proc // the secondary that has answered too, in which era of its session
	era     int
}

// lan is where the guest is heard, and the clients who hear it.
type lan struct {
	w       *World
	epochs  int
	voice   *proc // who has spoken last
	acked   image // the last write to each block that a client has seen confirmed
	ram     [clients]uint32
	epoch   int  // of ram
	gone    bool // what only overlays held is lost
	clients [clients]client
	answers int
	pairs   map[[2]int]bool // of copies that were both on the LAN, as told
}

type client struct {
	w     *World
	i     int
	next  uint32
	now   *work
	last  time.Duration // when it was last answered
	ended bool
}

// begin starts the clients.
func (l *lan) begin() {
	l.pairs = map[[2]int]bool{}
	for i := range l.clients {
		c := &l.clients[i]
		c.w, c.i = l.w, i
		c.ask()
	}
}

func (l *lan) end() {
	for i := range l.clients {
		l.clients[i].ended = true
	}
}

func (c *client) ask() {
	c.next++
	d := c.w.draw(actorClients)
	k := &work{op: c.next, client: c.i, block: int(d%(blocks/clients))*clients + c.i, ram: d>>8%4 == 0, differs: d>>16%6 == 0}
	c.now = k
	c.w.in(c.w.between(actorClients, 20*time.Millisecond, 250*time.Millisecond), func() { c.send(k) })
}

// send repeats itself until the request is answered, as TCP does.
func (c *client) send(k *work) {
	if c.now != k || c.ended {
		return
	}
	for _, h := range c.w.hosts {
		if p := h.proc; p != nil && h.joined && p.works() {
			p.input(k)
		}
	}
	c.w.in(c.w.between(actorClients, 200*time.Millisecond, 300*time.Millisecond), func() { c.send(k) })
}

// output is an answer leaving a copy.
func (l *lan) output(p *proc, k *work) {
	w := l.w
	if !p.h.joined || !p.alive {
		return
	}
	if p.retired {
		w.broken(RuleOneVoice, "%v on %s answers after another copy has spoken", p, p.h.name)
	}
	l.check(p)
	l.speaks(p)
	l.answers++
	if k.ram {
		if l.epoch != p.epoch {
			l.epoch, l.ram = p.epoch, [clients]uint32{}
		}
		l.ram[k.client] = max(l.ram[k.client], k.op)
	} else {
		l.acked[k.block] = max(l.acked[k.block], k.op)
	}
	c := &l.clients[k.client]
	if c.now == k {
		c.last = w.now()
		c.ask()
	}
}

func (l *lan) speaks(p *proc) {
	if l.voice == p {
		return
	}
	if l.voice != nil {
		l.voice.retired = true
	}
	l.voice = p
	l.w.say("lan", "%v on %s is heard now", p, p.h.name)
}

// check compares a copy that speaks with what clients have seen.
func (l *lan) check(p *proc) {
	for b, op := range l.acked {
		if o := p.h.other().proc; p.poor && p.view[b] < op && (o == nil || o.standby) {
			l.acked[b] = p.view[b]
			l.w.tally.Unattended++
			l.w.say("lan", "write %d to block %d is lost: the half failed unattended, and then both copies were lost", op, b)
			continue
		}
		if p.mem[b] < op || p.view[b] < op {
			l.w.broken(RuleNoOldData, "%v on %s lacks write %d to block %d, which a client has seen confirmed: it has %d on disk and knows of %d",
				p, p.h.name, op, b, p.view[b], p.mem[b])
		}
	}
	if l.epoch == p.epoch {
		for i, op := range l.ram {
			if p.ram[i] < op {
				l.w.broken(RuleNoOldData, "%v on %s does not remember request %d of client %d, which was answered", p, p.h.name, op, i)
			}
		}
	}
}

// onAir says whether something of the guest could reach the LAN now: if only ARP, which a primary's gate stops when its lease has ended.
func (p *proc) onAir() bool {
	return p != nil && p.works() && p.h.joined && (!p.h.gated || p.alone() || time.Now().Before(p.h.leased))
}

// alone says whether nothing holds the guest's answers back.
func (p *proc) alone() bool {
	return p.mode != "secondary" && (p.sess == nil || p.sess.p != p || !p.sess.held())
}

// look checks the rule of one voice on what could be said now: a copy that is on the LAN says something there, if only ARP.
func (l *lan) look() {
	w := l.w
	a, b := w.hosts[0].proc, w.hosts[1].proc
	for _, p := range []*proc{a, b} {
		if p.onAir() && p.alone() && l.voice != p {
			if p.retired {
				w.broken(RuleOneVoice, "%v on %s is on the LAN again after another copy has spoken", p, p.h.name)
			}
			l.check(p)
			l.speaks(p)
		}
	}
	if !a.onAir() || !b.onAir() || l.pairs[[2]int{a.id, b.id}] {
		return
	}
	for _, p := range []*proc{a, b} {
		if !p.alone() && !p.h.attentive() {
			// Nobody is there to cut its tap, and its gate hasn't closed.
			if time.Since(p.h.froze) > time.Second {
				break
			}
			// The whole host stood still, the gate's clock too. COLO holds what matters; the rest needs a watchdog.
			l.pairs[[2]int{a.id, b.id}] = true
			w.tally.Unattended++
			w.say("lan", "%v on %s is still on the LAN, unattended", p, p.h.name)
			return
		}
	}
	w.broken(RuleOneVoice, "%v on %s and %v on %s are both on the LAN", a, a.h.name, b, b.h.name)
}
