package colo

import (
	"context"
	"sync"
	"time"
)

// Event is something worth telling a person or a program that follows a node.
type Event struct {
	Time   time.Time      `json:"time"`
	Node   string         `json:"node"`
	VM     string         `json:"vm,omitempty"`
	Kind   string         `json:"kind"` // state, step, progress, peer, copy
	State  State          `json:"state,omitempty"`
	Text   string         `json:"text"`
	Fields map[string]any `json:"fields,omitempty"`
	// Missed is how many events this reader has lost right before this one because it was too slow.
	Missed uint64 `json:"missed,omitempty"`
}

// bus hands events to any number of readers. A slow reader loses events and is told how many; the sender never waits.
type bus struct {
	mu     sync.Mutex
	subs   map[*subscriber]struct{}
	closed bool
}

type subscriber struct {
	ch     chan Event
	missed uint64
}

const eventBuffer = 1024

func newBus() *bus { return &bus{subs: map[*subscriber]struct{}{}} }

func (b *bus) send(e Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for s := range b.subs {
		e.Missed = s.missed
		select {
		case s.ch <- e:
			s.missed = 0
		default:
			s.missed++
		}
	}
}

func (b *bus) subscribe(ctx context.Context) <-chan Event {
	s := &subscriber{ch: make(chan Event, eventBuffer)}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		close(s.ch)
		return s.ch
	}
	b.subs[s] = struct{}{}
	context.AfterFunc(ctx, func() { b.remove(s) })
	return s.ch
}

func (b *bus) remove(s *subscriber) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.subs[s]; ok {
		delete(b.subs, s)
		close(s.ch)
	}
}

func (b *bus) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	for s := range b.subs {
		delete(b.subs, s)
		close(s.ch)
	}
}

// Watch returns the node's events from now on. The channel is closed when ctx ends or the node is closed. A reader that falls more than
// 1024 events behind loses some, see [Event.Missed]; [Node.Status] tells what is.
func (n *Node) Watch(ctx context.Context) <-chan Event { return n.events.subscribe(ctx) }
