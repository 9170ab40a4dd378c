package witness

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coloctl/coloctl/colo/api/pki"
	"github.com/coloctl/coloctl/colo/arbiter"
)

// ClientOptions of NewClient.
type ClientOptions struct {
	Name        string // in the witness's certificate
	Address     string // host:port
	Credentials *pki.Credentials
	Host        string        // Default: HostID
	Attempt     time.Duration // for one attempt. Default: 1 s.
	Timeout     time.Duration // for a call, if its context doesn't end earlier. Default: 5 s.
	// Dial makes the connection below TLS. Default: plain TCP.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Client asks one witness. It is an [arbiter.Arbiter] for the node of its credentials.
type Client struct {
	opt  ClientOptions
	node string
	http *http.Client

	mu  sync.Mutex
	run string // of the witness that answered last
}

var _ arbiter.Arbiter = (*Client)(nil)

// NewClient returns a client. Nothing is sent before the first call. Close releases its connections.
func NewClient(o ClientOptions) (*Client, error) {
	if o.Credentials == nil || o.Address == "" {
		return nil, errors.New("witness client without credentials or address")
	}
	id := pki.Identity{Role: pki.Witness, Name: o.Name}
	if err := id.Validate(); err != nil {
		return nil, err
	}
	if o.Host == "" {
		var err error
		if o.Host, err = HostID(); err != nil {
			return nil, err
		}
	}
	if o.Attempt <= 0 {
		o.Attempt = time.Second
	}
	if o.Timeout <= 0 {
		o.Timeout = 5 * time.Second
	}
	tr := &http.Transport{
		DialTLSContext:      o.Credentials.Dialer(id, o.Dial),
		MaxIdleConnsPerHost: 4, IdleConnTimeout: time.Minute, MaxResponseHeaderBytes: 16 << 10,
		DisableCompression: true,
	}
	return &Client{opt: o, node: o.Credentials.Identity().Name, http: &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}, nil
}

// Close closes idle connections. Calls under way go on.
func (c *Client) Close() error {
	c.http.CloseIdleConnections()
	return nil
}

// Get implements arbiter.Arbiter.
func (c *Client) Get(ctx context.Context, vm string) (arbiter.Record, error) {
	ans, err := c.repeat(ctx, vm, request{Op: opGet})
	if err != nil {
		return arbiter.Record{}, err
	}
	if ans.Record == nil {
		return arbiter.Record{}, fmt.Errorf("%w: %s", arbiter.ErrNoRecord, vm)
	}
	return *ans.Record, nil
}

// Advance implements arbiter.Arbiter.
func (c *Client) Advance(ctx context.Context, next arbiter.Record) (arbiter.Record, error) {
	if err := c.check(next); err != nil {
		return arbiter.Record{}, err
	}
	ans, err := c.repeat(ctx, next.VM, request{Op: opAdvance, Next: &next})
	if err != nil {
		return arbiter.Record{}, err
	}
	if ans.Record == nil {
		return arbiter.Record{}, c.unreachable(errors.New("an answer without a record"))
	}
	return *ans.Record, nil
}

// Forget implements arbiter.Arbiter.
func (c *Client) Forget(ctx context.Context, vm string, generation uint64) error {
	_, err := c.repeat(ctx, vm, request{Op: opForget, Generation: generation})
	return err
}

// Drop removes everything that the witness holds about a VM, also what only concerns a pair. It is for admins, who know why.
func (c *Client) Drop(ctx context.Context, vm string, generation uint64) error {
	_, err := c.repeat(ctx, vm, request{Op: opDrop, Generation: generation})
	return err
}

// Health asks the witness for its state.
func (c *Client) Health(ctx context.Context) (h Health, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.opt.Attempt)
	defer cancel()
	_, err = c.exchange(ctx, http.MethodGet, "/v1/health", "", nil, &h)
	return h, err
}

// Records lists what the witness holds.
func (c *Client) Records(ctx context.Context) (out []arbiter.Record, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.opt.Timeout)
	defer cancel()
	_, err = c.exchange(ctx, http.MethodGet, "/v1/records", "", nil, &out)
	return out, err
}

func (c *Client) check(next arbiter.Record) error {
	if err := next.Validate(); err != nil {
		return err
	}
	if next.By != c.node {
		return fmt.Errorf("%w: claim by %q sent by node %q", arbiter.ErrInvalid, next.By, c.node)
	}
	return nil
}

// repeat asks until an answer comes or the time is over.
func (c *Client) repeat(ctx context.Context, vm string, req request) (ans answer, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.opt.Timeout)
	defer cancel()
	call, known, sent := rand.Text(), c.lastRun(), false
	for n, wait := 1, 50*time.Millisecond; ; n, wait = n+1, min(2*wait, 500*time.Millisecond) {
		var at trace
		ans, at, err = c.attempt(ctx, vm, req, call, n)
		if errors.Is(err, arbiter.ErrUnreachable) {
			sent = sent || at.sent
		} else if sent && req.Op != opGet && at.run != known {
			// The witness that may have carried out an earlier attempt has forgotten about it, so this answer isn't of the whole call.
			return answer{}, c.unreachable(errors.New("it was restarted while the call was repeated"))
		}
		if !errors.Is(err, arbiter.ErrUnreachable) || permanent(err) {
			return ans, err
		}
		again := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			again.Stop()
			return answer{}, fmt.Errorf("%w (%w)", err, context.Cause(ctx))
		case <-again.C:
		}
	}
}

// permanent: asking again in a moment won't help.
func permanent(err error) bool {
	var verify *tls.CertificateVerificationError
	var alert tls.AlertError
	return errors.As(err, &verify) || errors.As(err, &alert) || errors.Is(err, pki.ErrIdentity)
}

// once implements service for Pair, which does its own repeating.
func (c *Client) once(ctx context.Context, vm string, req request) (answer, error) {
	ans, _, err := c.attempt(ctx, vm, req, rand.Text(), 1)
	return ans, err
}

func (c *Client) mine(ctx context.Context) (out membership, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.opt.Attempt)
	defer cancel()
	_, err = c.exchange(ctx, http.MethodGet, "/v1/mine", "", nil, &out)
	return out, err
}

func (c *Client) name() string { return c.opt.Name }

func (c *Client) lastRun() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.run
}

// trace says what became of an attempt.
type trace struct {
	sent bool   // the witness may have got it
	run  string // of the witness that answered
}

func (c *Client) attempt(ctx context.Context, vm string, req request, call string, n int) (ans answer, at trace, err error) {
	if vm == "" {
		return answer{}, at, fmt.Errorf("%w: no VM named", arbiter.ErrInvalid)
	}
	if err := context.Cause(ctx); err != nil {
		return answer{}, at, c.unreachable(err)
	}
	ctx, cancel := context.WithTimeout(ctx, c.opt.Attempt)
	defer cancel()
	raw, err := json.Marshal(req)
	if err != nil {
		return answer{}, at, err
	}
	var connected atomic.Bool // the transport's goroutine may still be dialling when the request is given up
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { connected.Store(true) }})
	at.run, err = c.exchange(ctx, http.MethodPost, "/v1/records/"+url.PathEscape(vm), fmt.Sprintf("%s %d", call, n), raw, &ans)
	at.sent = connected.Load()
	if err != nil {
		return answer{}, at, err
	}
	if r := ans.Record; ans.Instance == "" || r != nil && (r.VM != vm || r.Validate() != nil) {
		return answer{}, at, c.unreachable(fmt.Errorf("the answer makes no sense: %+v", ans))
	}
	return ans, at, nil
}

// exchange sends one request. What comes back is an answer, an error of a witness, or ErrUnreachable.
func (c *Client) exchange(ctx context.Context, method, path, call string, body []byte, out any) (run string, err error) {
	r, err := http.NewRequestWithContext(ctx, method, "https://"+c.opt.Address+path, bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	r.Header.Set(headerHost, c.opt.Host)
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set(headerCall, call)
	}
	resp, err := c.http.Do(r)
	if err != nil {
		c.http.CloseIdleConnections() // one of them may lead to a host that is gone
		return "", c.unreachable(err)
	}
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return "", c.unreachable(err)
	}
	run = resp.Header.Get(headerRun)
	if run == "" || resp.Header.Get(headerWitness) == "" {
		return "", c.unreachable(fmt.Errorf("HTTP status %d from something that is no witness", resp.StatusCode))
	}
	c.mu.Lock()
	c.run = run
	c.mu.Unlock()
	if resp.StatusCode == http.StatusOK {
		if err := json.Unmarshal(raw, out); err != nil {
			return run, c.unreachable(err)
		}
		return run, nil
	}
	var f failure
	if err := json.Unmarshal(raw, &f); err != nil {
		return run, c.unreachable(fmt.Errorf("HTTP status %d: %w", resp.StatusCode, err))
	}
	for _, k := range codes {
		if k.code == f.Code {
			return run, &Refusal{Witness: c.opt.Name, Message: f.Message, Err: k.err}
		}
	}
	return run, c.unreachable(fmt.Errorf("HTTP status %d: %s", resp.StatusCode, f.Message))
}

func (c *Client) unreachable(err error) error {
	return fmt.Errorf("%w: witness %s at %s: %w", arbiter.ErrUnreachable, c.opt.Name, c.opt.Address, err)
}

// Refusal is a witness's "no". It unwraps to one of the errors of this package or of package arbiter.
type Refusal struct {
	Witness string
	Message string
	Err     error
}

func (e *Refusal) Error() string { return fmt.Sprintf("witness %s: %s", e.Witness, e.Message) }

// Unwrap returns Err.
func (e *Refusal) Unwrap() error { return e.Err }
