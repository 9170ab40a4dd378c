package compare

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
