package compare

// node is a packet that waits: one of the primary's to be released, or one of the secondary's to be compared with.
type node struct {
	next, prev   *node // of its flow
	tnext, tprev *node // of its clock
	clock        *clock
	chunk        *Chunk
	frame        []byte // as it came, with its framing
	p            packet
	at           int64 // when it came
}

// clock is the packets of one patience, the oldest first.
type clock struct {
	first, last *node
	patience    int64
}

func (c *clock) add(n *node) {
	n.clock, n.tprev, n.tnext = c, c.last, nil
	if c.last != nil {
		c.last.tnext = n
	} else {
		c.first = n
	}
	c.last = n
}

func (n *node) unclock() {
	c := n.clock
	if c == nil {
		return
	}
	if n.tprev != nil {
		n.tprev.tnext = n.tnext
	} else {
		c.first = n.tnext
	}
	if n.tnext != nil {
		n.tnext.tprev = n.tprev
	} else {
		c.last = n.tprev
	}
	n.clock, n.tnext, n.tprev = nil, nil, nil
}

// list is the packets of one copy that wait in a flow.
type list struct {
	first, last *node
	n           int
	bytes       int
}

// insert puts n behind after; nil is the beginning.
func (l *list) insert(n, after *node) {
	n.prev = after
	if after != nil {
		n.next, after.next = after.next, n
	} else {
		n.next, l.first = l.first, n
	}
	if n.next != nil {
		n.next.prev = n
	} else {
		l.last = n
	}
	l.n++
	l.bytes += len(n.frame)
}

func (l *list) remove(n *node) {
	if n.prev != nil {
		n.prev.next = n.next
	} else {
		l.first = n.next
	}
	if n.next != nil {
		n.next.prev = n.prev
	} else {
		l.last = n.prev
	}
	n.next, n.prev = nil, nil
	l.n--
	l.bytes -= len(n.frame)
}

// syn is how one copy has begun a TCP connection.
type syn struct {
	ok, answer bool // answer: it is a SYN+ACK
	seq, ack   uint32
	opts       [40]byte
	nopts      int
}

func synOf(p *packet) syn {
	s := syn{ok: true, answer: p.flags&flagACK != 0, seq: p.seq}
	if s.answer {
		s.ack = p.ack
	}
	s.nopts = copy(s.opts[:], p.opts)
	return s
}

// number is a TCP position that may not be known yet.
type number struct {
	v  uint32
	ok bool
}

// raise takes v if it is further than what is known.
func (n *number) raise(v uint32) {
	if !n.ok || after(v, n.v) {
		n.v, n.ok = v, true
	}
}

// after compares positions of TCP, which go round.
func after(a, b uint32) bool { return int32(a-b) > 0 } //nolint:gosec // that is how it is meant

// flow is what one pair of addresses and ports says from the guest to the other.
type flow struct {
	key        key
	kind       int
	pass       bool // a rule lets it through
	touched    bool // since the last checkpoint
	touch      *flow
	older, new *flow // by use

	held list // the primary's packets that wait, as they came
	said list // the secondary's: by position (TCP), as they came (datagrams)

	// TCP, in the primary's and the client's numbers.
	psyn, ssyn syn
	rel        number // all before it may leave
	pmax       number // end of what the primary has sent
	pack       number // what the primary has acknowledged
	sack       number // what the secondary has acknowledged
	sfin       number // where the secondary's FIN is
	srst       bool   // the secondary has reset it
	cut        bool   // a checkpoint came between SYN+ACK and the client's answer, which spoils filter-rewriter's offset

	// Datagrams that left because of a checkpoint: the secondary may repeat them, because what they answer was under way to it.
	repeat  [8]uint64
	repeats int
}

// flows by key, with the order of their use.
type flows struct {
	by             map[key]*flow
	oldest, newest *flow
	touched        *flow // list by touch
}

func (t *flows) use(f *flow) {
	if t.newest == f {
		return
	}
	t.unlink(f)
	f.older = t.newest
	if t.newest != nil {
		t.newest.new = f
	} else {
		t.oldest = f
	}
	t.newest = f
}

func (t *flows) unlink(f *flow) {
	if f.older != nil {
		f.older.new = f.new
	} else if t.oldest == f {
		t.oldest = f.new
	}
	if f.new != nil {
		f.new.older = f.older
	} else if t.newest == f {
		t.newest = f.older
	}
	f.older, f.new = nil, nil
}

func (t *flows) mark(f *flow) {
	if !f.touched {
		f.touched, f.touch, t.touched = true, t.touched, f
	}
}
