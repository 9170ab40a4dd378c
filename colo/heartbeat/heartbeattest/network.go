// Package heartbeattest is a datagram network in memory, to test what stands on heartbeats without sockets and, under testing/synctest, on
// virtual time. It loses, delays, cuts, records and replays, and can freeze a host.
//
// A host is a netip.Addr. Between two hosts there is a link in each direction with its own [Quality]; the zero value delivers everything
// at once. All methods may be called concurrently; the order of datagrams on a link is kept as long as their delay is the same.
package heartbeattest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"
)

// Quality of a link in one direction.
type Quality struct {
	Cut    bool
	Drop   float64       // probability, each datagram on its own
	Delay  time.Duration // of each datagram
	Jitter time.Duration // up to so much more
}

// queue is how many datagrams wait for a reader before further ones are lost, like a socket's buffer.
const queue = 256

// Network connects hosts.
type Network struct {
	mu     sync.Mutex
	rand   *rand.Rand
	conns  map[netip.AddrPort]*conn
	links  map[[2]netip.Addr]Quality
	frozen map[netip.Addr]chan struct{} // closed when thawed
	watch  func(from, to netip.AddrPort, b []byte)
}

// New returns a network whose losses and delays follow from seed.
func New(seed uint64) *Network {
	return &Network{
		rand: rand.New(rand.NewPCG(seed, 1)), conns: map[netip.AddrPort]*conn{},
		links: map[[2]netip.Addr]Quality{}, frozen: map[netip.Addr]chan struct{}{},
	}
}

// ListenPacket opens a socket; it has the signature that heartbeat.Config wants.
func (n *Network) ListenPacket(_ context.Context, local netip.AddrPort) (net.PacketConn, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.conns[local] != nil {
		return nil, fmt.Errorf("listen %v: %w", local, syscall.EADDRINUSE)
	}
	c := &conn{n: n, local: local, in: make(chan packet, queue), done: make(chan struct{})}
	n.conns[local] = c
	return c, nil
}

// Set sets the quality from one host to another.
func (n *Network) Set(from, to netip.Addr, q Quality) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.links[[2]netip.Addr{from, to}] = q
}

// SetBoth sets the quality in both directions.
func (n *Network) SetBoth(a, b netip.Addr, q Quality) {
	n.Set(a, b, q)
	n.Set(b, a, q)
}

// Watch calls f for each datagram that is sent, before its fate is decided. f must not call the network.
func (n *Network) Watch(f func(from, to netip.AddrPort, b []byte)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.watch = f
}

// Inject puts a datagram into to's queue as if from had sent it, whatever the link.
func (n *Network) Inject(from, to netip.AddrPort, b []byte) { n.deliver(from, to, b) }

// Freeze stops the host: its reads and writes block, without regard to deadlines, until Thaw. What is sent to it waits in its queue.
func (n *Network) Freeze(host netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.frozen[host] == nil {
		n.frozen[host] = make(chan struct{})
	}
}

// Thaw lets a frozen host go on.
func (n *Network) Thaw(host netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if c := n.frozen[host]; c != nil {
		close(c)
		delete(n.frozen, host)
	}
}

func (n *Network) send(from, to netip.AddrPort, b []byte) {
	b = append([]byte(nil), b...)
	n.mu.Lock()
	if n.watch != nil {
		n.watch(from, to, b)
	}
	q := n.links[[2]netip.Addr{from.Addr(), to.Addr()}]
	lost := q.Cut || n.rand.Float64() < q.Drop
	delay := q.Delay
	if q.Jitter > 0 {
		delay += time.Duration(n.rand.Int64N(int64(q.Jitter)))
	}
	n.mu.Unlock()
	switch {
	case lost:
	case delay > 0:
		time.AfterFunc(delay, func() { n.deliver(from, to, b) })
	default:
		n.deliver(from, to, b)
	}
}

func (n *Network) deliver(from, to netip.AddrPort, b []byte) {
	n.mu.Lock()
	c := n.conns[to]
	n.mu.Unlock()
	if c == nil {
		return
	}
	select {
	case c.in <- packet{from: from, b: b}:
	default:
	}
}

func (n *Network) wait(host netip.Addr, done <-chan struct{}) {
	for {
		n.mu.Lock()
		frozen := n.frozen[host]
		n.mu.Unlock()
		if frozen == nil {
			return
		}
		select {
		case <-frozen:
		case <-done:
			return
		}
	}
}

type packet struct {
	from netip.AddrPort
	b    []byte
}

type conn struct {
	n     *Network
	local netip.AddrPort
	in    chan packet
	once  sync.Once
	done  chan struct{}
}

var errDeadline = errors.New("read deadlines aren't supported")

func (c *conn) ReadFrom(b []byte) (int, net.Addr, error) {
	select {
	case <-c.done:
		return 0, nil, net.ErrClosed
	case p := <-c.in:
		c.n.wait(c.local.Addr(), c.done)
		return copy(b, p.b), net.UDPAddrFromAddrPort(p.from), nil
	}
}

func (c *conn) WriteTo(b []byte, addr net.Addr) (int, error) {
	c.n.wait(c.local.Addr(), c.done)
	select {
	case <-c.done:
		return 0, net.ErrClosed
	default:
	}
	to, ok := addr.(*net.UDPAddr)
	if !ok {
		return 0, fmt.Errorf("write to %v: %w", addr, syscall.EAFNOSUPPORT)
	}
	c.n.send(c.local, to.AddrPort(), b)
	return len(b), nil
}

func (c *conn) Close() error {
	c.once.Do(func() {
		close(c.done)
		c.n.mu.Lock()
		defer c.n.mu.Unlock()
		delete(c.n.conns, c.local)
	})
	return nil
}

func (c *conn) LocalAddr() net.Addr { return net.UDPAddrFromAddrPort(c.local) }

// SetDeadline isn't supported, as reads have none.
func (c *conn) SetDeadline(time.Time) error { return errDeadline }

func (c *conn) SetReadDeadline(time.Time) error { return errDeadline }

// SetWriteDeadline has nothing to do: writes end at once, unless the host is frozen, and then nothing in it keeps a deadline.
func (c *conn) SetWriteDeadline(time.Time) error { return nil }
