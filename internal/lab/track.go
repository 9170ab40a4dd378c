package lab

import (
	"context"
	"net"
	"slices"
	"sort"
	"sync"
	"time"
)

// probeInterval is how far apart a probe's requests are.
const probeInterval = 5 * time.Millisecond

// maxPoints bounds what a track remembers: more than an hour at probeInterval.
const maxPoints = 1 << 20

// DialFunc opens connections as the client of the lab.
type DialFunc func(ctx context.Context, network, addr string) (net.Conn, error)

// A Point is one request of a probe.
type Point struct {
	Sent, Done int64 // wall clock, ns
	OK         bool
}

// A Track is what one client felt, request by request. It is safe for concurrent use.
type Track struct {
	Name string

	mu     sync.Mutex
	points []Point
}

func (t *Track) add(sent, done time.Time, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.points) < maxPoints {
		t.points = append(t.points, Point{Sent: sent.UnixNano(), Done: done.UnixNano(), OK: ok})
	}
}

// Points returns what was recorded so far, in the order of the answers.
func (t *Track) Points() []Point {
	t.mu.Lock()
	points := slices.Clone(t.points)
	t.mu.Unlock()
	sort.SliceStable(points, func(i, j int) bool { return points[i].Done < points[j].Done })
	return points
}

// Blackout returns the longest time without a good answer around a moment: among all pairs of neighbouring good answers of which the second
// came after from and the first before to, the longest distance. A client that has no answer yet is black until to. It isn't measured if
// no good answer came before from.
func (t *Track) Blackout(from, to time.Time) (time.Duration, bool) {
	var answers []int64
	for _, p := range t.Points() {
		if p.OK {
			answers = append(answers, p.Done)
		}
	}
	return longestGap(answers, from.UnixNano(), to.UnixNano())
}

func longestGap(answers []int64, from, to int64) (time.Duration, bool) {
	first := sort.Search(len(answers), func(i int) bool { return answers[i] > from }) - 1
	if first < 0 || to <= from {
		return 0, false
	}
	var longest int64
	for i := first; i < len(answers) && answers[i] < to; i++ {
		next := to
		if i+1 < len(answers) {
			next = answers[i+1]
		}
		longest = max(longest, next-answers[i])
	}
	return time.Duration(longest), true
}

// Latency returns a quantile (0 to 1) of the latency of the good answers to what was sent from from until to.
func (t *Track) Latency(q float64, from, to time.Time) (time.Duration, bool) {
	var all []int64
	for _, p := range t.Points() {
		if p.OK && p.Sent >= from.UnixNano() && p.Sent < to.UnixNano() {
			all = append(all, p.Done-p.Sent)
		}
	}
	if len(all) == 0 {
		return 0, false
	}
	slices.Sort(all)
	return time.Duration(all[min(len(all)-1, int(q*float64(len(all))))]), true
}

// Await returns when a good answer came to something that was sent after since.
func (t *Track) Await(ctx context.Context, since time.Time) error {
	tick := time.NewTicker(probeInterval)
	defer tick.Stop()
	for seen := 0; ; {
		t.mu.Lock()
		fresh := t.points[seen:]
		seen = len(t.points)
		t.mu.Unlock()
		for _, p := range fresh {
			if p.OK && p.Sent >= since.UnixNano() {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// every calls fn now and then at each interval until ctx ends. A call that lasts longer delays the next.
func every(ctx context.Context, interval time.Duration, fn func()) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for ctx.Err() == nil {
		fn()
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}
