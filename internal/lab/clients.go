package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/coloctl/coloctl/internal/guest/service"
)

const (
	// survivalGrace is how long a connection may be silent at the end. TCP's retransmissions after a minute of silence are that far apart.
	survivalGrace = 60 * time.Second
	streamRate    = 256 << 10 // bytes a second
)

// Clients are all that use the guest during a run.
type Clients struct {
	HTTP   *HTTPProbe
	Writes *CounterProbe
	TCP    *EchoProbe
	Stream *StreamProbe
	UDP    *UDPProbe
	Idle   []*EchoProbe

	dial   DialFunc
	echo   string // host:port of the guest's echo service
	wg     sync.WaitGroup
	ctx    context.Context // use the guest
	end    context.CancelFunc
	final  context.Context // wait for its last answers
	giveUp context.CancelCauseFunc
}

var errNoLastAnswer = fmt.Errorf("nothing for %v", survivalGrace)

// newClients are those that every scenario has: they ask and write, when they are run.
func newClients(ctx context.Context, dial DialFunc, guest netip.Addr, prefix string) *Clients {
	http := addrOf(guest, service.PortHTTP)
	c := &Clients{dial: dial, echo: addrOf(guest, service.PortEcho), HTTP: NewHTTPProbe(dial, http), Writes: NewCounterProbe(dial, http, prefix)}
	c.ctx, c.end = context.WithCancel(context.WithoutCancel(ctx))
	c.final, c.giveUp = context.WithCancelCause(context.WithoutCancel(ctx))
	return c
}

// StartClients begins to use the guest. The caller must Stop them.
func StartClients(ctx context.Context, dial DialFunc, prefix string) (*Clients, error) {
	c := newClients(ctx, dial, GuestAddr, prefix)
	c.Stream = NewStreamProbe(dial, guestAddr(service.PortHTTP), streamRate)
	var err error
	if c.UDP, err = NewUDPProbe(ctx, dial, c.echo); err != nil {
		return nil, err
	}
	if c.TCP, err = NewEchoProbe(ctx, dial, "tcp", c.echo, false); err != nil {
		return nil, errors.Join(err, c.UDP.conn.Close())
	}
	c.begin()
	c.wg.Go(func() { c.UDP.Run(c.ctx) })
	c.wg.Go(func() { c.Stream.Run(c.ctx, c.final) })
	return c, nil
}

// StartLightClients is StartClients for one of many guests: requests, writes and lines come that far apart, and there is no download and no UDP.
func StartLightClients(ctx context.Context, dial DialFunc, g *Guest, prefix string, apart time.Duration) (_ *Clients, err error) {
	c := newClients(ctx, dial, g.Addr, prefix)
	if c.TCP, err = NewEchoProbe(ctx, dial, "tcp of "+g.Name, c.echo, false); err != nil {
		return nil, err
	}
	c.HTTP.apart, c.Writes.apart, c.TCP.apart = apart, apart, apart
	c.begin()
	return c, nil
}

func (c *Clients) begin() {
	c.wg.Go(func() { c.HTTP.Run(c.ctx) })
	c.wg.Go(func() { c.Writes.Run(c.ctx) })
	c.wg.Go(func() { c.TCP.Run(c.ctx, c.final) })
}

// OpenIdle opens connections that say nothing until the end.
func (c *Clients) OpenIdle(ctx context.Context, n int) error {
	for range n {
		p, err := NewEchoProbe(ctx, c.dial, fmt.Sprintf("idle%d", len(c.Idle)), c.echo, true)
		if err != nil {
			return err
		}
		c.Idle = append(c.Idle, p)
		c.wg.Go(func() { p.Run(c.ctx, c.final) })
	}
	return nil
}

// Stop ends all clients, gives the long-lived connections time for their last answers and waits for them. A second call does nothing.
func (c *Clients) Stop() {
	c.end()
	t := time.AfterFunc(survivalGrace, func() { c.giveUp(errNoLastAnswer) })
	defer t.Stop()
	c.wg.Wait()
}

// Abort ends all clients at once and waits for them.
func (c *Clients) Abort() {
	c.giveUp(context.Canceled)
	c.end()
	c.wg.Wait()
}

// Connections returns how many long-lived connections there were and why some of them did not survive. Stop must have been called.
func (c *Clients) Connections() (total int, broken []error) {
	var all []interface{ Survived() error }
	if c.TCP != nil {
		all = append(all, c.TCP)
	}
	if c.Stream != nil {
		all = append(all, c.Stream)
	}
	for _, p := range c.Idle {
		all = append(all, p)
	}
	for _, p := range all {
		if err := p.Survived(); err != nil {
			broken = append(broken, err)
		}
	}
	return len(all), broken
}

// Tracks are what a plot shows.
func (c *Clients) Tracks() []*Track {
	tracks := []*Track{&c.HTTP.Track, &c.Writes.Track}
	if c.TCP != nil {
		tracks = append(tracks, &c.TCP.Track, &c.UDP.Track)
	}
	return tracks
}

// AwaitAnswers returns when the web service and the long-lived connection have both answered something that was asked after since.
func (c *Clients) AwaitAnswers(ctx context.Context, since time.Time) error {
	if err := c.HTTP.Await(ctx, since); err != nil {
		return fmt.Errorf("no HTTP answer: %w", err)
	}
	if err := c.TCP.Await(ctx, since); err != nil {
		return fmt.Errorf("no answer on the long-lived connection: %w (%s)", errors.Join(c.TCP.Survived(), err), c.TCP.state())
	}
	return nil
}
