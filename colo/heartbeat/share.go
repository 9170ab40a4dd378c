package heartbeat

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Share lets the monitors of several peers use the same local addresses: it returns a ListenPacket for [Config] that opens each address once, with open, and hands what comes there to all
// who listen. Monitors tell their own peer's datagrams from others by what is in them, which the key protects.
//
// A socket is closed with the last who listens. When it breaks, all who listen are told.
func Share(open func(ctx context.Context, local netip.AddrPort) (net.PacketConn, error)) func(ctx context.Context, local netip.AddrPort) (net.PacketConn, error) {
	s := &sharing{open: open, sockets: map[netip.AddrPort]*shared{}}
	return s.listen
}

type sharing struct {
	open func(ctx context.Context, local netip.AddrPort) (net.PacketConn, error)

	mu      sync.Mutex
	sockets map[netip.AddrPort]*shared
}

// shared is one socket. Its goroutine ends when the socket is closed, by the last of its ears or by an error.
type shared struct {
	net.PacketConn
	of    *sharing
	local netip.AddrPort
	ears  map[*ear]struct{} // guarded by of.mu
	done  chan struct{}     // closed when its goroutine has ended
}

// earSize is how many datagrams one who listens may be behind. Those that come then are lost, as any may be.
const earSize = 64

// ear is one who listens.
type ear struct {
	*shared
	in     chan datagramFrom
	closed chan struct{}
	err    error // why, set before closed is
}

type datagramFrom struct {
	b    []byte
	from net.Addr
}

func (s *sharing) listen(ctx context.Context, local netip.AddrPort) (net.PacketConn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sock := s.sockets[local]
	if sock == nil {
		conn, err := s.open(ctx, local)
		if err != nil {
			return nil, err
		}
		sock = &shared{PacketConn: conn, of: s, local: local, ears: map[*ear]struct{}{}, done: make(chan struct{})}
		s.sockets[local] = sock
		go sock.read()
	}
	e := &ear{shared: sock, in: make(chan datagramFrom, earSize), closed: make(chan struct{})}
	sock.ears[e] = struct{}{}
	return e, nil
}

func (s *shared) read() {
	defer close(s.done)
	b := make([]byte, maxDatagram+1)
	for {
		n, from, err := s.ReadFrom(b)
		s.of.mu.Lock()
		if err != nil {
			for e := range s.ears {
				s.drop(e, err)
			}
			s.of.mu.Unlock()
			return
		}
		for e := range s.ears {
			select {
			case e.in <- datagramFrom{append([]byte(nil), b[:n]...), from}:
			default:
			}
		}
		s.of.mu.Unlock()
	}
}

// drop takes one who listens away, and closes the socket with the last one. The caller holds the lock.
func (s *shared) drop(e *ear, why error) {
	if _, is := s.ears[e]; !is {
		return
	}
	e.err = why
	close(e.closed)
	delete(s.ears, e)
	if len(s.ears) == 0 {
		_ = s.Close()
		if s.of.sockets[s.local] == s {
			delete(s.of.sockets, s.local)
		}
	}
}

func (e *ear) ReadFrom(b []byte) (int, net.Addr, error) {
	select {
	case d := <-e.in:
		return copy(b, d.b), d.from, nil
	case <-e.closed:
		return 0, nil, e.err
	}
}

func (e *ear) Close() error {
	e.of.mu.Lock()
	e.drop(e, net.ErrClosed)
	last := len(e.ears) == 0
	e.of.mu.Unlock()
	if last {
		<-e.done
	}
	return nil
}

// Deadlines would be those of all who listen: there are none.
func (e *ear) SetDeadline(time.Time) error      { return errNoDeadlines }
func (e *ear) SetReadDeadline(time.Time) error  { return errNoDeadlines }
func (e *ear) SetWriteDeadline(time.Time) error { return errNoDeadlines }

var errNoDeadlines = errors.New("a shared socket has no deadlines")
