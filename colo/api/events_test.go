package api

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/api/pki"
)

func TestFeed(t *testing.T) {
	f := newFeed()
	if events, missed, _, open := f.after(0); len(events) != 0 || missed != 0 || !open {
		t.Errorf("empty: %v %d %v", events, missed, open)
	}
	const n = feedSize + 100
	_, _, changed, _ := f.after(0)
	for i := range n {
		f.add(colo.Event{Text: fmt.Sprint(i + 1)})
	}
	select {
	case <-changed:
	default:
		t.Error("a waiting reader was not woken")
	}
	for _, from := range []uint64{0, 50, 100, 101, n - 1, n, n + 7} {
		events, missed, _, _ := f.after(from)
		if want := max(0, 100-int64(from)); missed != uint64(want) {
			t.Errorf("after %d: %d missed, want %d", from, missed, want)
		}
		next := from + missed + 1
		for _, e := range events {
			if e.Seq != next || e.Text != fmt.Sprint(next) {
				t.Fatalf("after %d: %d %q instead of %d", from, e.Seq, e.Text, next)
			}
			next++
		}
		if from <= n && next != n+1 {
			t.Errorf("after %d: ended before %d", from, next)
		}
	}
	f.close()
	if _, _, _, open := f.after(n); open {
		t.Error("still open")
	}
}

// TestEventsOnce reads what is there, and is not kept waiting for more.
func TestEventsOnce(t *testing.T) {
	s := newSite(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for i := range 3 {
		s.hosts["n1"].server.feed.add(colo.Event{Kind: "test", Text: fmt.Sprint(i)})
	}
	c := s.as(pki.Viewer, "eve", "n1")
	var got []string
	take := func(e StreamEvent) error { got = append(got, e.Event.Text); return nil }
	must(t, c.Events(ctx, EventQuery{Kinds: []string{"test"}, After: "0", Once: true}, take, nil))
	if fmt.Sprint(got) != "[0 1 2]" {
		t.Errorf("got %v", got)
	}
	cut, err := NewClient(ClientOptions{Node: "n1", Addresses: []string{s.hosts["n1"].addr}, Credentials: s.credentials(pki.Viewer, "bob"),
		Dial: func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("cut") }})
	must(t, err)
	defer cut.Close()
	if err := cut.Events(ctx, EventQuery{After: "0", Once: true}, take, nil); !errors.Is(err, ErrUnreachable) {
		t.Errorf("with no way there: %v", err)
	}
}

// breaker is a way to a server on which connections can be broken.
type breaker struct {
	mu    sync.Mutex
	conns []net.Conn
}

func (b *breaker) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	c, err := dialTCP(ctx, network, addr)
	b.mu.Lock()
	defer b.mu.Unlock()
	if err == nil {
		b.conns = append(b.conns, c)
	}
	return c, err
}

func (b *breaker) cut() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range b.conns {
		_ = c.Close()
	}
	b.conns = nil
}

// TestStreamGoesOn breaks a reader's connection again and again while events come: it sees each exactly once, in order.
func TestStreamGoesOn(t *testing.T) {
	s := newSite(t)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	h := s.hosts["n1"]
	b := &breaker{}
	c, err := NewClient(ClientOptions{Node: "n1", Addresses: []string{h.addr}, Credentials: s.credentials(pki.Viewer, "eve"), Dial: b.dial})
	must(t, err)
	defer c.Close()
	const n = 400
	errEnough := errors.New("enough")
	var got []uint64
	breaks := 0
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		for i := range n {
			h.server.feed.add(colo.Event{Kind: "test", Text: fmt.Sprint(i)})
			if i%100 == 50 {
				b.cut()
			}
			time.Sleep(time.Millisecond) // a stream, not one block
		}
	})
	err = c.Events(ctx, EventQuery{Kinds: []string{"test"}, After: "0"}, func(e StreamEvent) error {
		if e.Gap != nil {
			return fmt.Errorf("gap %+v", e.Gap)
		}
		if want := fmt.Sprint(len(got)); e.Event.Text != want {
			return fmt.Errorf("event %s instead of %s", e.Event.Text, want)
		}
		if got = append(got, e.Event.Seq); len(got) == n {
			return errEnough
		}
		if len(got) == 10 {
			b.cut() // at least once while something is being read
		}
		return nil
	}, func(error) { breaks++ })
	if !errors.Is(err, errEnough) {
		t.Fatalf("%v after %d events", err, len(got))
	}
	if breaks == 0 {
		t.Error("no break: the test tests nothing")
	}
}

// TestGaps: a reader that was away for too long, or since before a restart, is told so.
func TestGaps(t *testing.T) {
	s := newSite(t)
	h := s.hosts["n1"]
	c := s.admin("n1")
	for i := range feedSize + 10 {
		h.server.feed.add(colo.Event{Kind: "test", VM: "web", Text: fmt.Sprint(i)})
	}
	errEnough := errors.New("enough")
	first := func(after string) (e StreamEvent) {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		err := c.Events(ctx, EventQuery{VM: "web", After: after}, func(got StreamEvent) error { e = got; return errEnough }, nil)
		if !errors.Is(err, errEnough) {
			t.Errorf("after %s: %v", after, err)
		}
		return e
	}
	if e := first("0"); e.Gap == nil || e.Gap.Missed < 10 || e.Gap.Run != h.server.run {
		t.Errorf("from the beginning: %+v", e)
	}
	if e := first("deadbeef-7"); e.Gap == nil || e.Gap.Was != "deadbeef" {
		t.Errorf("from before a restart: %+v", e)
	}
	before := h.server.feed.newest() // the node itself may have spoken last
	h.server.feed.add(colo.Event{Kind: "test", VM: "web", Text: "the last"})
	if e := first(eventID(h.server.run, before)); e.Gap != nil || e.Event.Text != "the last" {
		t.Errorf("the last one: %+v", e)
	}
	if err := c.Events(t.Context(), EventQuery{After: "nonsense"}, func(StreamEvent) error { return nil }, nil); !errors.Is(err, ErrBadRequest) || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("nonsense: %v", err)
	}
}
