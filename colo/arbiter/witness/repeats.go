package witness

import "sync"

// repeats makes sure that a call which is sent several times is carried out once, and that what was sent earlier isn't carried out after what was
// sent later. It remembers the last few thousand calls, in memory: a client that had to repeat itself over a restart, which it
// sees by [headerRun], takes the answer as none.
type repeats struct {
	mu    sync.Mutex
	calls map[string]*repeated
	ring  [4096]string
	next  int
}

type repeated struct {
	attempt int
	done    *answer // of an attempt that changed something
}

// begin says whether an attempt may be carried out, and the answer if one was already.
func (r *repeats) begin(call string, attempt int) (done *answer, ok bool) {
	if call == "" {
		return nil, true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.calls == nil {
		r.calls = map[string]*repeated{}
	}
	c := r.calls[call]
	if c == nil {
		delete(r.calls, r.ring[r.next])
		r.ring[r.next] = call
		r.next = (r.next + 1) % len(r.ring)
		c = &repeated{}
		r.calls[call] = c
	} else if attempt <= c.attempt {
		return nil, false
	}
	c.attempt = attempt
	return c.done, true
}

// end notes what a call changed.
func (r *repeats) end(call string, ans answer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c := r.calls[call]; c != nil {
		c.done = &ans
	}
}
