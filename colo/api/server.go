package api

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/arbiter/fence"
)

// ServerOptions say what a server serves. Node is needed.
type ServerOptions struct {
	Node    *colo.Node
	Version string
	Arbiter string // what kind is configured, for people; empty is none
	// IsPeer says whether a node may make the calls of colo.Peer. None may when nil.
	IsPeer func(node string) bool
	// PeerStatus asks the peer how a VM stands there. When nil that can't be asked through this server.
	PeerStatus func(ctx context.Context, vm string) (colo.Status, error)
	// Exchange answers the peer's half of an arbiter that two nodes keep between them; nil if there is no such arbiter.
	Exchange func(ctx context.Context, from string, m fence.Message) (fence.Reply, error)
	Health   func() []HealthItem // what the program around the node adds to its health; may be nil
	Log      *slog.Logger        // slog.Default when nil
}

// Limits of a server. They are the same for everybody: what they protect is the daemon.
const (
	maxBody     = 1 << 20
	maxHeader   = 16 << 10
	maxRequests = 128 // at a time, without those between nodes and streams
	maxStreams  = 64  // of events
	maxWait     = 2 * time.Minute
	bodyTimeout = 20 * time.Second
	// callTimeout ends the waiting of requests that are answered with a result at once.
	callTimeout = 90 * time.Second
)

// Server serves a node. It is made by [NewServer].
type Server struct {
	opts     ServerOptions
	log      *slog.Logger
	speaks   speaks
	apart    apart
	refusals refusals
	run      string // names this run of the daemon
	begun    time.Time
	mux      *http.ServeMux
	feed     *feed
	ops      *operations
	busy     chan struct{}
	streams  chan struct{}

	ctx     context.Context // ends what waits
	stop    context.CancelFunc
	flushes chan chan struct{}
	pumped  chan struct{} // closed when the node's events have ended

	mu      sync.Mutex
	servers []*http.Server
	closed  bool
	wg      sync.WaitGroup
}

// NewServer makes a server. It follows the node's events from now on, until the node is closed.
func NewServer(o ServerOptions) (*Server, error) {
	if o.Node == nil {
		return nil, errors.New("api server without a node")
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.IsPeer == nil {
		o.IsPeer = func(string) bool { return false }
	}
	var id [4]byte
	_, _ = rand.Read(id[:]) // never fails
	s := &Server{
		opts: o, speaks: ours, run: hex.EncodeToString(id[:]), begun: time.Now(), feed: newFeed(), mux: http.NewServeMux(),
		log:  o.Log.With("node", o.Node.Info().Name),
		busy: make(chan struct{}, maxRequests), streams: make(chan struct{}, maxStreams),
		flushes: make(chan chan struct{}), pumped: make(chan struct{}),
	}
	s.ops = newOperations(s.run, o.Node.Info().Name)
	s.ops.flush = s.flush
	s.ctx, s.stop = context.WithCancel(context.Background())
	for _, rt := range routes {
		s.mux.Handle(rt.method+" "+rt.path, s.handler(&rt))
	}
	events := o.Node.Watch(context.Background()) //nolint:contextcheck // it ends with the node
	go s.pump(events)
	return s, nil
}

// pump takes the node's events in, until there will be no more.
func (s *Server) pump(events <-chan colo.Event) {
	defer close(s.pumped)
	defer s.feed.close()
	for {
		select {
		case e, ok := <-events:
			if !ok {
				return
			}
			s.take(e)
		case done := <-s.flushes:
			for more := true; more; {
				select {
				case e, ok := <-events:
					if more = ok; ok {
						s.take(e)
					}
				default:
					more = false
				}
			}
			close(done)
		}
	}
}

func (s *Server) take(e colo.Event) {
	s.ops.observe(e)
	s.feed.add(e)
}

// flush returns when all events that the node has sent so far have been taken in.
func (s *Server) flush() {
	done := make(chan struct{})
	select {
	case s.flushes <- done:
		<-done
	case <-s.pumped:
	}
}

// Serve answers on l until [Server.Close]. On a unix socket the kernel says who calls.
func (s *Server) Serve(l net.Listener) error { return s.serve(l, nil) }

// ServeTLS answers on l with TLS until [Server.Close]. Whatever cfg (best [pki.Credentials.Server]) says, clients need TLS 1.3 and a verified certificate.
func (s *Server) ServeTLS(l net.Listener, cfg *tls.Config) error {
	return s.serve(l, demand(cfg))
}

// demand returns cfg, and every configuration that it changes to, with what a server must insist on.
func demand(cfg *tls.Config) *tls.Config {
	out := cfg.Clone()
	out.MinVersion, out.ClientAuth, out.NextProtos = tls.VersionTLS13, tls.RequireAndVerifyClientCert, []string{"http/1.1"}
	if per := cfg.GetConfigForClient; per != nil {
		out.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			c, err := per(h)
			if c == nil || err != nil {
				return nil, err
			}
			c = demand(c)
			c.GetConfigForClient = nil
			return c, nil
		}
	}
	return out
}

func (s *Server) serve(l net.Listener, cfg *tls.Config) error {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	h := &http.Server{
		Handler: s, Protocols: &protocols, TLSConfig: cfg, ConnContext: connCaller, MaxHeaderBytes: maxHeader,
		ReadHeaderTimeout: 5 * time.Second, IdleTimeout: 2 * time.Minute,
		ErrorLog: slog.NewLogLogger(s.log.With("listener", l.Addr().String()).Handler(), slog.LevelWarn),
	}
	silent := &silentConns{open: map[net.Conn]struct{}{}}
	h.ConnState = silent.note
	h.RegisterOnShutdown(silent.close)
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		_ = l.Close()
		return nil // as for one that is closed a moment later
	}
	s.servers = append(s.servers, h)
	s.wg.Add(1)
	s.mu.Unlock()
	defer s.wg.Done()
	var err error
	if cfg != nil {
		err = h.ServeTLS(l, "", "")
	} else {
		err = h.Serve(l)
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// silentConns are connections that have asked for nothing yet. A server that shuts down would wait five seconds for their first word.
type silentConns struct {
	mu    sync.Mutex
	open  map[net.Conn]struct{}
	ended bool // whoever comes now is sent away
}

func (c *silentConns) note(conn net.Conn, state http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case state != http.StateNew:
		delete(c.open, conn)
	case c.ended:
		_ = conn.Close()
	default:
		c.open[conn] = struct{}{}
	}
}

func (c *silentConns) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	for conn := range c.open {
		_ = conn.Close()
	}
}

// Close ends streams and waiting, lets requests finish until ctx ends, and then ends them. Operations go on: close the node, then call [Server.Wait].
// A second call does nothing.
func (s *Server) Close(ctx context.Context) error {
	s.stop()
	s.mu.Lock()
	servers := s.servers
	s.servers, s.closed = nil, true
	s.mu.Unlock()
	var errs []error
	for _, h := range servers {
		if err := h.Shutdown(ctx); err != nil {
			errs = append(errs, err, h.Close())
		}
	}
	s.wg.Wait()
	return errors.Join(errs...)
}

// Wait returns when the operations have ended and the last event has been taken in, which is so soon after the node was closed.
func (s *Server) Wait() {
	s.ops.wait()
	<-s.pumped
}
