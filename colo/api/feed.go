package api

import (
	"sync"

	"github.com/coloctl/coloctl/colo"
)

// NumberedEvent is an event of a node with its place in the order of this run of the daemon.
type NumberedEvent struct {
	Seq uint64 `json:"seq"` // from 1, without gaps
	colo.Event
}

// feedSize is how many events are kept for readers that come back.
const feedSize = 4096

// feed keeps the last events in order. Readers keep their own place in it, so a slow one costs nothing and loses only what has been overwritten.
type feed struct {
	mu      sync.Mutex
	ring    []NumberedEvent
	last    uint64
	changed chan struct{} // closed and replaced at each event
	closed  bool
}

func newFeed() *feed { return &feed{changed: make(chan struct{})} }

func (f *feed) add(e colo.Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last++
	n := NumberedEvent{f.last, e}
	if len(f.ring) < feedSize {
		f.ring = append(f.ring, n)
	} else {
		f.ring[(f.last-1)%feedSize] = n
	}
	close(f.changed)
	f.changed = make(chan struct{})
}

// close ends all readers after what is there.
func (f *feed) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	close(f.changed)
	f.changed = make(chan struct{})
}

// newest is the number of the last event.
func (f *feed) newest() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.last
}

// after returns the events after seq that are still there, how many are not, and a channel that is closed when there are more. A seq of the future counts as
// the newest. open is false when none will come any more.
func (f *feed) after(seq uint64) (events []NumberedEvent, missed uint64, changed <-chan struct{}, open bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if oldest := f.last - uint64(len(f.ring)); seq < oldest {
		missed, seq = oldest-seq, oldest
	}
	for s := seq + 1; s <= f.last; s++ {
		events = append(events, f.ring[(s-1)%feedSize])
	}
	return events, missed, f.changed, !f.closed
}
