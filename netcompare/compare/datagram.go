package compare

import (
	"bytes"
	"encoding/binary"
	"hash/maphash"
)

// datagramPrimary lets a datagram go that the secondary has said as well.
func (e *Engine) datagramPrimary(now int64, f *flow, n *node) {
	if e.mode == live {
		for s := f.said.first; s != nil; s = s.next {
			if same(&s.p, &n.p) {
				e.forget(f, s)
				e.release(n, false)
				return
			}
		}
	}
	if f.held.bytes+len(n.frame) > e.cfg.FlowBytes {
		e.stats.Dropped++
		e.put(n)
		e.ask(now, Memory)
		return
	}
	e.hold(f, n, &e.data)
}

// datagramSecondary compares a datagram with those that wait. One that is like none of them is a difference: had the
// secondary only said it earlier or later than the primary, it would be like one, or none would wait.
func (e *Engine) datagramSecondary(now int64, f *flow, p *packet, fr Frame) {
	for n := f.held.first; n != nil; n = n.next {
		if same(&n.p, p) {
			e.unhold(f, n)
			e.release(n, true)
			return
		}
	}
	if f.repeats > 0 && e.repeated(f, p) {
		return
	}
	if f.held.n > 0 {
		e.ask(now, Differ)
		return
	}
	if f.said.n >= e.cfg.Datagrams || f.said.bytes+len(fr.All) > e.cfg.FlowBytes {
		e.forget(f, f.said.first) // the primary has most likely not said it at all
	}
	if e.full(now) {
		return
	}
	n := e.node(now, fr)
	n.p = *p
	e.keep(f, n, f.said.last)
}

// repeated says whether p left before the checkpoint. It counts once.
func (e *Engine) repeated(f *flow, p *packet) bool {
	h := e.hash(p)
	for i, r := range f.repeat {
		if r == h {
			f.repeat[i] = 0
			return true
		}
	}
	return false
}

func same(a, b *packet) bool { return a.aux == b.aux && bytes.Equal(a.body, b.body) }

// hash is never 0.
func (e *Engine) hash(p *packet) uint64 {
	var h maphash.Hash
	h.SetSeed(e.seed)
	var aux [4]byte
	binary.LittleEndian.PutUint32(aux[:], p.aux)
	_, _ = h.Write(aux[:])
	_, _ = h.Write(p.body)
	return h.Sum64() | 1
}
