package lab

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/api"
)

// maxEvents bounds the journal. Progress events, the only frequent kind, are not kept.
const maxEvents = 1 << 16

// Journal holds what both nodes have said, in the order in which it was heard. It is safe for concurrent use.
type Journal struct {
	mu      sync.Mutex
	events  []colo.Event
	changed chan struct{} // closed and replaced at each event
	tell    func(colo.Event)
	shifts  map[string]time.Duration // of the nodes' clocks
}

// NewJournal makes a journal that hands each event on to tell, if that isn't nil.
func NewJournal(tell func(colo.Event)) *Journal {
	return &Journal{changed: make(chan struct{}), tell: tell, shifts: map[string]time.Duration{}}
}

// follow takes the events of one run of a node's daemon until ctx ends.
func (j *Journal) follow(ctx context.Context, c *api.Client) {
	// How it ends is no news: the daemon has ended, which is noticed elsewhere.
	_ = c.Events(ctx, api.EventQuery{After: "0"}, func(e api.StreamEvent) error {
		if e.Gap == nil {
			j.add(e.Event.Event)
		}
		return nil
	}, nil)
}

func (j *Journal) add(e colo.Event) {
	if j.tell != nil {
		j.tell(e)
	}
	if e.Kind == "progress" {
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	e.Time = e.Time.Add(-j.shifts[e.Node])
	if len(j.events) < maxEvents {
		j.events = append(j.events, e)
	}
	close(j.changed)
	j.changed = make(chan struct{})
}

// shift says by how much a node's clock is wrong from now on: the journal's times are the machine's.
func (j *Journal) shift(node string, d time.Duration) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.shifts[node] = d
}

// Since returns the events at or after a time, the earliest first.
func (j *Journal) Since(t time.Time) []colo.Event {
	j.mu.Lock()
	defer j.mu.Unlock()
	var out []colo.Event
	for _, e := range j.events {
		if !e.Time.Before(t) {
			out = append(out, e)
		}
	}
	slices.SortStableFunc(out, func(a, b colo.Event) int { return a.Time.Compare(b.Time) })
	return out
}

// Await returns the first event at or after a time that ok accepts, as soon as it is there.
func (j *Journal) Await(ctx context.Context, since time.Time, ok func(colo.Event) bool) (colo.Event, error) {
	for {
		j.mu.Lock()
		changed := j.changed
		j.mu.Unlock()
		for _, e := range j.Since(since) {
			if ok(e) {
				return e, nil
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return colo.Event{}, context.Cause(ctx)
		}
	}
}
