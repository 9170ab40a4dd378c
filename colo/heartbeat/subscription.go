package heartbeat

import "sync"

// Subscription delivers the events of a Monitor.
type Subscription struct {
	m       *Monitor
	mu      sync.Mutex
	c       chan Event
	dropped uint64
	closed  bool
}

// C returns the channel of events. It is closed by Close and at the end of Run.
func (s *Subscription) C() <-chan Event { return s.c }

// Dropped returns how many events the reader was too slow for. The oldest go first.
func (s *Subscription) Dropped() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dropped
}

// Close ends the subscription. A second call does nothing.
func (s *Subscription) Close() {
	s.m.mu.Lock()
	delete(s.m.subs, s)
	s.m.mu.Unlock()
	s.close()
}

func (s *Subscription) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.closed = true
		close(s.c)
	}
}

// deliver never blocks.
func (s *Subscription) deliver(e Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	for {
		select {
		case s.c <- e:
			return
		default:
		}
		select {
		case <-s.c:
			s.dropped++
		default: // the reader was faster
		}
	}
}
