package lab

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/coloctl/coloctl/internal/guest/service"
)

const (
	// counterTimeout is how long a write may take before it is sent again.
	counterTimeout = 5 * time.Second
	// counterPause is between an answer and the next write: each costs the guest a flush of its disk.
	counterPause = 10 * time.Millisecond
)

// CounterProbe writes the guest's counter, one request after the other. A request without an answer is sent again under its
// id until it is answered.
type CounterProbe struct {
	Track
	apart  time.Duration // between two of its questions, unless less than usual
	base   string
	prefix string
	client *http.Client

	mu    sync.Mutex
	acked []service.Count
}

// NewCounterProbe makes a writer whose request ids begin with prefix.
func NewCounterProbe(dial DialFunc, addr, prefix string) *CounterProbe {
	return &CounterProbe{Track: Track{Name: "writes"}, base: "http://" + addr, prefix: prefix, client: newHTTPClient(dial, counterTimeout)}
}

// Run writes until ctx ends.
func (p *CounterProbe) Run(ctx context.Context) {
	defer p.client.CloseIdleConnections()
	n := 0
	every(ctx, max(p.apart, counterPause), func() {
		n++
		for id := fmt.Sprintf("%s-%d", p.prefix, n); ctx.Err() == nil && !p.write(ctx, id); {
		}
	})
}

// write tells whether the guest has acknowledged the request.
func (p *CounterProbe) write(ctx context.Context, id string) bool {
	sent := time.Now()
	var count service.Count
	body, err := get(ctx, p.client, p.base+"/counter?id="+url.QueryEscape(id))
	if err == nil {
		err = json.Unmarshal(body, &count)
	}
	if err == nil && count.ID != id {
		err = fmt.Errorf("asked for %s, got %s", id, count.ID)
	}
	if err != nil && ctx.Err() != nil {
		return false
	}
	p.add(sent, time.Now(), err == nil)
	if err != nil {
		// Not at once: a guest that refuses connections would be asked thousands of times a second.
		select {
		case <-ctx.Done():
		case <-time.After(counterPause):
		}
		return false
	}
	p.mu.Lock()
	p.acked = append(p.acked, count)
	p.mu.Unlock()
	return true
}

// Acked returns how many writes were acknowledged.
func (p *CounterProbe) Acked() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.acked)
}

// Tally compares what was acknowledged with the guest's log.
type Tally struct {
	Acked      int
	Lost       int // acknowledged under a number, and not in the log under it
	Duplicated int // more than one line of the log for one id
}

// Verify reads the guest's log and compares. Run must have ended.
func (p *CounterProbe) Verify(ctx context.Context) (Tally, error) {
	client := newHTTPClient(p.client.Transport.(*http.Transport).DialContext, 0)
	defer client.CloseIdleConnections()
	body, err := get(ctx, client, p.base+"/log")
	if err != nil {
		return Tally{}, fmt.Errorf("read the guest's log: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return tally(p.acked, body)
}

func tally(acked []service.Count, log []byte) (Tally, error) {
	t := Tally{Acked: len(acked)}
	lines := map[string][]int64{}
	s := bufio.NewScanner(bytes.NewReader(log))
	for s.Scan() {
		var c service.Count
		if _, err := fmt.Sscanf(s.Text(), "%d %s", &c.N, &c.ID); err != nil {
			return t, fmt.Errorf("the guest's log: %q: %w", s.Text(), err)
		}
		if len(lines[c.ID]) > 0 {
			t.Duplicated++
		}
		lines[c.ID] = append(lines[c.ID], c.N)
	}
	for _, c := range acked {
		found := false
		for _, n := range lines[c.ID] {
			found = found || n == c.N
		}
		if !found {
			t.Lost++
		}
	}
	return t, s.Err()
}
