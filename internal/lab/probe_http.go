package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/coloctl/coloctl/internal/guest/service"
)

// What bounds the load of an [HTTPProbe]. A request that hangs costs a guest nothing while it is gone, but everything at once when it is
// back, and a guest that is only busy must not be buried: connections that time out and are opened anew would keep it busy for ever.
const (
	httpTimeout  = 15 * time.Second
	httpInFlight = 128
	// So many may be under way while answers come.
	httpWhileAnswering = 4
	// Without an answer for so long the guest counts as gone: then each new request may be the first one that is answered again.
	httpSilence = 50 * time.Millisecond
	// From so many on, during a long silence, they are sent further apart.
	httpMany     = 48
	httpFarApart = 50 * time.Millisecond
)

func newHTTPClient(dial DialFunc, timeout time.Duration) *http.Client {
	return &http.Client{Timeout: timeout, Transport: &http.Transport{
		DialContext: dial, MaxIdleConnsPerHost: httpInFlight, MaxIdleConns: httpInFlight, DisableCompression: true,
	}}
}

// HTTPProbe asks for /id every 5 ms. While the guest is silent it goes on to send without waiting for the answers to earlier requests.
type HTTPProbe struct {
	Track
	apart  time.Duration // between two of its questions, unless less than usual
	url    string
	client *http.Client

	mu       sync.Mutex
	bootIDs  map[string]bool
	inFlight int
	sent     time.Time // when the last request was
	answered time.Time // when the last answer came
}

// NewHTTPProbe makes a probe of the guest at host:port.
func NewHTTPProbe(dial DialFunc, addr string) *HTTPProbe {
	return &HTTPProbe{Track: Track{Name: "http"}, url: "http://" + addr + "/id", client: newHTTPClient(dial, httpTimeout), bootIDs: map[string]bool{}}
}

// Run probes until ctx ends and waits for the requests under way.
func (p *HTTPProbe) Run(ctx context.Context) {
	defer p.client.CloseIdleConnections()
	var wg sync.WaitGroup
	defer wg.Wait()
	every(ctx, max(p.apart, probeInterval), func() {
		if !p.mayProbe(time.Now()) {
			return
		}
		wg.Go(func() { p.ask(ctx) })
	})
}

// mayProbe tells whether another request is to be sent now, and counts it.
func (p *HTTPProbe) mayProbe(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	silent := now.Sub(p.answered) >= httpSilence
	switch {
	case p.inFlight >= httpInFlight,
		!silent && p.inFlight >= httpWhileAnswering,
		p.inFlight >= httpMany && now.Sub(p.sent) < httpFarApart:
		return false
	}
	p.inFlight++
	p.sent = now
	return true
}

func (p *HTTPProbe) ask(ctx context.Context) {
	sent := time.Now()
	id, err := fetchID(ctx, p.client, p.url)
	now := time.Now()
	p.mu.Lock()
	p.inFlight--
	if err == nil {
		p.answered = now
		p.bootIDs[id.BootID] = true
	}
	p.mu.Unlock()
	if ctx.Err() == nil { // else it was cut off by us: that says nothing about the guest
		p.add(sent, now, err == nil)
	}
}

// BootIDs returns how many different boots of the guest have answered.
func (p *HTTPProbe) BootIDs() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.bootIDs)
}

func fetchID(ctx context.Context, client *http.Client, url string) (service.Identity, error) {
	var id service.Identity
	body, err := get(ctx, client, url)
	if err == nil {
		err = json.Unmarshal(body, &id)
	}
	return id, err
}

// get returns the body of a page of at most 64 MB.
func get(ctx context.Context, client *http.Client, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %.200s", url, resp.Status, body)
	}
	return body, err
}
