package qmp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	goqemu "github.com/digitalocean/go-qemu/qmp"
)

// Defaults of Options.
const (
	DefaultMaxLine          = 16 << 20
	DefaultMaxQueue         = 32
	DefaultHandshakeTimeout = 10 * time.Second
	DefaultWriteTimeout     = 10 * time.Second
)

// maxOOB bounds the out-of-band commands without a reply. QEMU answers them at
// once, so that many without an answer mean that it is frozen.
const maxOOB = 8

// Options of a connection. The zero value, or nil, is good for most uses.
type Options struct {
	// Name is used in errors, such as a VM's name.
	Name string

	// MaxLine is the longest line accepted from QEMU, in bytes.
	MaxLine int

	// MaxQueue is how many in-band commands may wait for their turn, besides
	// the one that QEMU works on.
	MaxQueue int

	// HandshakeTimeout bounds greeting and capability negotiation, besides
	// the context. A QEMU that already serves another client on this socket
	// lets the second one wait for ever.
	HandshakeTimeout time.Duration

	// WriteTimeout bounds the writing of one command to the socket. When it
	// passes the connection is ended, because a line was cut in two.
	WriteTimeout time.Duration

	// Dial replaces the dialling of a unix socket.
	Dial func(ctx context.Context, path string) (net.Conn, error)

	// Events, if set, makes a subscription before the handshake, so that it
	// misses nothing, not even events that come before the greeting. See
	// Client.Events.
	Events *SubscribeOptions
}

func (o *Options) withDefaults() Options {
	var v Options
	if o != nil {
		v = *o
	}
	if v.MaxLine <= 0 {
		v.MaxLine = DefaultMaxLine
	}
	if v.MaxQueue <= 0 {
		v.MaxQueue = DefaultMaxQueue
	}
	if v.HandshakeTimeout <= 0 {
		v.HandshakeTimeout = DefaultHandshakeTimeout
	}
	if v.WriteTimeout <= 0 {
		v.WriteTimeout = DefaultWriteTimeout
	}
	if v.Dial == nil {
		v.Dial = func(ctx context.Context, path string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}
	}
	return v
}

// Version is QEMU's version as it tells it.
type Version = goqemu.Version

// Greeting is what QEMU says first.
type Greeting struct {
	Version      Version
	Capabilities []string // of the protocol, such as "oob"
}

// Client is a connection to one QMP socket. All methods may be called
// concurrently.
type Client struct {
	conn     net.Conn
	opts     Options
	greeting Greeting
	oob      bool // negotiated
	early    *Subscription

	greeted chan Greeting // capacity 1, filled by the reader
	sendq   chan []byte   // never full: what may be in it is bounded
	done    chan struct{}
	loops   sync.WaitGroup
	lastID  atomic.Uint64

	mu        sync.Mutex
	waiting   map[uint64]*request // sent or about to be, by id
	inflight  *request            // the in-band one of waiting
	queue     []*request          // in band, not sent
	oobCount  int                 // out of band ones of waiting
	unwritten int                 // lines in sendq or in the writer's hands
	direct    *directWriter       // nil if conn isn't a socket
	err       *EndError           // set once, before done is closed

	subsMu sync.Mutex
	subs   map[*Subscription]struct{}
}

// Dial connects to the QMP socket at path and does the handshake.
func Dial(ctx context.Context, path string, o *Options) (*Client, error) {
	opts := o.withDefaults()
	conn, err := opts.Dial(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("qmp: connect to %s: %w", path, err)
	}
	return newClient(ctx, conn, opts)
}

// NewClient does the handshake on a connection that is already open. The
// connection belongs to the client from here on, also when NewClient fails.
func NewClient(ctx context.Context, conn net.Conn, o *Options) (*Client, error) {
	return newClient(ctx, conn, o.withDefaults())
}

func newClient(ctx context.Context, conn net.Conn, opts Options) (*Client, error) {
	c := &Client{
		conn:    conn,
		opts:    opts,
		greeted: make(chan Greeting, 1),
		sendq:   make(chan []byte, 1+maxOOB),
		done:    make(chan struct{}),
		waiting: map[uint64]*request{},
		subs:    map[*Subscription]struct{}{},
	}
	c.direct = newDirectWriter(conn)
	if opts.Events != nil {
		c.early = c.Subscribe(*opts.Events)
	}
	c.loops.Go(c.readLoop)
	c.loops.Go(c.writeLoop)
	if err := c.handshake(ctx); err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

func (c *Client) handshake(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.opts.HandshakeTimeout)
	defer cancel()
	select {
	case c.greeting = <-c.greeted:
	case <-c.done:
		return c.endError("greeting")
	case <-ctx.Done():
		return fmt.Errorf("%w (is another client connected to this socket?)",
			&WaitError{Command: "greeting", Sent: true, Cause: ctx.Err()})
	}
	var args any
	if slices.Contains(c.greeting.Capabilities, "oob") {
		args = map[string][]string{"enable": {"oob"}}
	}
	if err := c.Execute(ctx, "qmp_capabilities", args, nil); err != nil {
		return err
	}
	c.oob = args != nil
	return nil
}

// Greeting returns what QEMU said at the beginning of the connection.
func (c *Client) Greeting() Greeting { return c.greeting }

// Name returns Options.Name.
func (c *Client) Name() string { return c.opts.Name }

// OOB tells whether commands can be executed out of band.
func (c *Client) OOB() bool { return c.oob }

// Done is closed when the connection has ended. All events that came before
// the end have been handed to the subscriptions by then.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err returns nil while the connection lives, then why it ended: an *EndError.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		return nil // not a nil *EndError
	}
	return c.err
}

// Close ends the connection and waits until the client's goroutines are gone.
// Callers that wait for a reply get an *EndError. It may be called repeatedly.
// QEMU itself lives on.
func (c *Client) Close() error {
	c.end(net.ErrClosed)
	c.loops.Wait()
	return nil
}

// end makes the first cause the one that is reported, and is the only place
// where a connection ends.
func (c *Client) end(cause error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err = &EndError{Name: c.opts.Name, Cause: cause}
	for _, r := range c.waiting {
		r.reply <- reply{err: &EndError{Name: c.opts.Name, Command: r.command, Cause: cause}}
	}
	for _, r := range c.queue {
		r.reply <- reply{err: &EndError{Name: c.opts.Name, Command: r.command, Cause: cause}}
	}
	c.waiting, c.queue, c.inflight = nil, nil, nil
	c.mu.Unlock()

	c.closeSubscriptions()
	close(c.done)
	_ = c.conn.Close()
}

func (c *Client) endError(command string) error {
	var e *EndError
	if errors.As(c.Err(), &e) {
		return &EndError{Name: e.Name, Command: command, Cause: e.Cause}
	}
	return nil
}

func (c *Client) readLoop() {
	lines := newLineReader(c.conn, c.opts.MaxLine)
	for {
		line, err := lines.next()
		if err != nil {
			c.end(err)
			return
		}
		m, err := parseMessage(line)
		if err == nil {
			err = c.dispatch(m)
		}
		if err != nil {
			c.end(err)
			return
		}
	}
}

func (c *Client) dispatch(m *message) error {
	switch {
	case m.Event != "":
		c.publish(&Event{Name: m.Event, Data: m.Data, Time: m.Timestamp.time(), Received: time.Now()})
		return nil
	case m.Greeting != nil:
		select {
		case c.greeted <- Greeting{Version: m.Greeting.Version, Capabilities: m.Greeting.Capabilities}:
			return nil
		default:
			return &ProtocolError{Reason: "second greeting"}
		}
	default:
		return c.answer(m)
	}
}
