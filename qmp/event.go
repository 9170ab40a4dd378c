package qmp

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// Event is something that QEMU tells unasked. Names are QEMU's.
type Event struct {
	Name string
	Data json.RawMessage // nil for events without data

	// Time is QEMU's timestamp, by the wall clock of its host; zero if QEMU
	// could not tell.
	Time time.Time

	// Received is when the client read it; it has a monotonic reading.
	Received time.Time

	// Lost is how many events this subscription lost directly before this
	// one because it didn't keep up. If it isn't 0 the receiver must query
	// the state that it follows.
	Lost uint64
}

// Decode unmarshals the event's data.
func (e *Event) Decode(v any) error {
	if len(e.Data) == 0 {
		return fmt.Errorf("qmp: event %s has no data", e.Name)
	}
	if err := json.Unmarshal(e.Data, v); err != nil {
		return fmt.Errorf("qmp: event %s: %w", e.Name, err)
	}
	return nil
}

// Important tells whether an event of this name changes what somebody has to
// do. A subscription keeps room for these when it is full of others.
func Important(name string) bool {
	switch name {
	case "COLO_EXIT", "SHUTDOWN", "STOP", "RESUME", "RESET", "SUSPEND", "WAKEUP", "POWERDOWN",
		"MIGRATION", "QUORUM_FAILURE", "QUORUM_REPORT_BAD", "GUEST_PANICKED", "WATCHDOG",
		"BLOCK_IO_ERROR", "BLOCK_IMAGE_CORRUPTED", "BLOCK_EXPORT_DELETED", "MEMORY_FAILURE":
		return true
	}
	return strings.HasPrefix(name, "BLOCK_JOB_")
}

// SubscribeOptions of a subscription.
type SubscribeOptions struct {
	// Buffer is how many events are kept for a slow reader; 256 if 0.
	Buffer int

	// Match, if set, chooses the events. It is called by the goroutine that
	// reads the socket: it must be quick and must not use the client.
	Match func(*Event) bool
}

const defaultBuffer = 256

// Named returns a Match for events with one of these names.
func Named(names ...string) func(*Event) bool {
	return func(e *Event) bool {
		for _, n := range names {
			if e.Name == n {
				return true
			}
		}
		return false
	}
}

// Subscription receives a client's events from the moment it was made until it
// or the connection is closed.
type Subscription struct {
	client  *Client
	match   func(*Event) bool
	room    int // for events that aren't important
	c       chan Event
	lost    chan struct{}
	dropped uint64 // in all, guarded by client.subsMu as all below
	unsaid  uint64 // not yet told by an event's Lost
	closed  bool
}

// Subscribe starts to collect events.
func (c *Client) Subscribe(o SubscribeOptions) *Subscription {
	if o.Buffer <= 0 {
		o.Buffer = defaultBuffer
	}
	s := &Subscription{
		client: c,
		match:  o.Match,
		room:   o.Buffer,
		c:      make(chan Event, o.Buffer+max(o.Buffer/2, 16)),
		lost:   make(chan struct{}, 1),
	}
	c.subsMu.Lock()
	defer c.subsMu.Unlock()
	if c.subs == nil { // ended
		s.closed = true
		close(s.c)
		return s
	}
	c.subs[s] = struct{}{}
	return s
}

// Events returns the subscription that Options.Events asked for, or nil.
func (c *Client) Events() *Subscription { return c.early }

// publish hands an event to all subscriptions and waits for none.
func (c *Client) publish(e *Event) {
	c.subsMu.Lock()
	defer c.subsMu.Unlock()
	for s := range c.subs {
		if s.match == nil || s.match(e) {
			s.put(*e)
		}
	}
}

// put is called with subsMu held, so len(s.c) can only shrink meanwhile.
func (s *Subscription) put(e Event) {
	limit := s.room
	if Important(e.Name) {
		limit = cap(s.c)
	}
	if len(s.c) >= limit {
		s.dropped++
		s.unsaid++
		select {
		case s.lost <- struct{}{}:
		default:
		}
		return
	}
	e.Lost, s.unsaid = s.unsaid, 0
	s.c <- e
}

func (c *Client) closeSubscriptions() {
	c.subsMu.Lock()
	defer c.subsMu.Unlock()
	for s := range c.subs {
		s.closed = true
		close(s.c)
	}
	c.subs = nil
}

// C is closed when the subscription or the connection is, after the events
// that are still in it.
func (s *Subscription) C() <-chan Event { return s.c }

// Lost receives a value soon after events were lost, also if no later event
// comes that could tell it. The receiver must query the state that it follows.
func (s *Subscription) Lost() <-chan struct{} { return s.lost }

// Dropped returns how many events were lost in all.
func (s *Subscription) Dropped() uint64 {
	s.client.subsMu.Lock()
	defer s.client.subsMu.Unlock()
	return s.dropped
}

// Close ends the subscription. It may be called repeatedly.
func (s *Subscription) Close() {
	c := s.client
	c.subsMu.Lock()
	defer c.subsMu.Unlock()
	if s.closed {
		return
	}
	s.closed = true
	delete(c.subs, s)
	close(s.c)
}

// Next waits for the next event. It returns an *EndError when the connection
// has ended and all events are read, ErrClosed when the subscription was closed.
func (s *Subscription) Next(ctx context.Context) (Event, error) {
	select {
	case e, ok := <-s.c:
		if ok {
			return e, nil
		}
		if err := s.client.Err(); err != nil {
			return Event{}, err
		}
		return Event{}, ErrClosed
	case <-ctx.Done():
		return Event{}, &WaitError{Cause: ctx.Err()}
	}
}

// Wait reads events until one matches. The event that it returns has in Lost
// what was lost since Wait was called.
func (s *Subscription) Wait(ctx context.Context, match func(*Event) bool) (Event, error) {
	var lost uint64
	for {
		e, err := s.Next(ctx)
		if err != nil {
			return Event{}, err
		}
		lost += e.Lost
		if match(&e) {
			e.Lost = lost
			return e, nil
		}
	}
}
