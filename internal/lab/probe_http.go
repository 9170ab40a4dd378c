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

const (
	// With a timeout of a second and a request each 5 ms, 256 in flight never keep a new one from being sent.
	httpTimeout  = time.Second
	httpInFlight = 256
)

func newHTTPClient(dial DialFunc, timeout time.Duration) *http.Client {
	return &http.Client{Timeout: timeout, Transport: &http.Transport{
		DialContext: dial, MaxIdleConnsPerHost: httpInFlight, MaxIdleConns: httpInFlight, DisableCompression: true,
	}}
}

// HTTPProbe asks for /id every 5 ms without waiting for the answers to earlier requests.
type HTTPProbe struct {
	Track
	url    string
	client *http.Client

	mu      sync.Mutex
	bootIDs map[string]bool
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
	slots := make(chan struct{}, httpInFlight)
	every(ctx, probeInterval, func() {
		select {
		case slots <- struct{}{}:
		default:
			return
		}
		wg.Go(func() {
			defer func() { <-slots }()
			sent := time.Now()
			id, err := fetchID(ctx, p.client, p.url)
			if ctx.Err() != nil {
				return // cut off by us: says nothing about the guest
			}
			p.add(sent, time.Now(), err == nil)
			if err == nil {
				p.mu.Lock()
				p.bootIDs[id.BootID] = true
				p.mu.Unlock()
			}
		})
	})
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
