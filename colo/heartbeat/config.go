package heartbeat

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// KeySize is the length of a key in bytes.
const KeySize = 32

// Defaults of Config: a silent host is noticed within half a second.
const (
	DefaultInterval = 100 * time.Millisecond
	DefaultTimeout  = 400 * time.Millisecond
)

// ErrConfig is returned by New for a configuration that can't work.
var ErrConfig = errors.New("heartbeat configuration")

// Path is one way to the peer.
type Path struct {
	// Name must be the same on both nodes: it is part of every datagram, so that one path's can't be mistaken for another's.
	Name string
	// Local is the address to listen on and to send from. It should belong to this path alone.
	Local netip.AddrPort
	// Remote is the peer's Local of this path.
	Remote netip.AddrPort
	// Interface binds the default socket to a network interface. Without it Linux sends through any other one that leads there when the link is down, and
	// the path looks alive. Ignored if Config.ListenPacket is set.
	Interface string
}

// Config of a Monitor.
type Config struct {
	Node string // this node's name
	Peer string // the other one's
	// Key is shared by the two nodes.
	Key   []byte
	Paths []Path
	// Interval between two datagrams at rest. Default: DefaultInterval.
	Interval time.Duration
	// Beat makes the datagrams at rest leave at whole intervals after this moment, together with what else the process does then. Default: an interval after the last.
	Beat time.Time
	// OnConfirmed, if set, is called when the peer has told that it heard a newer datagram than before ([Status].Confirmed). What it does delays the next heartbeat.
	OnConfirmed func()
	// Timeout after which a silent path is down. At least three intervals. Both nodes should have the same. Default: DefaultTimeout.
	Timeout time.Duration
	// Incarnation must never be used twice. Default: a random number.
	Incarnation uint64
	// ListenPacket opens a path's socket, for instance in a network namespace. Default: a UDP socket.
	// It is called again, with the path's Local, when a socket can't be opened yet or broke.
	ListenPacket func(ctx context.Context, local netip.AddrPort) (net.PacketConn, error)
}

// hasteFactor is how many times as often datagrams go while a path loses some.
const hasteFactor = 8

// hasteIntervals is for how many intervals the haste lasts after the last loss.
const hasteIntervals = 100

func (c Config) withDefaults() (Config, error) {
	bad := func(format string, a ...any) (Config, error) {
		return Config{}, fmt.Errorf("%w: %s", ErrConfig, fmt.Sprintf(format, a...))
	}
	if c.Interval == 0 {
		c.Interval = DefaultInterval
	}
	if c.Timeout == 0 {
		c.Timeout = DefaultTimeout
	}
	for _, n := range []string{c.Node, c.Peer} {
		if n == "" || len(n) > maxName {
			return bad("node name %q must have 1 to %d bytes", n, maxName)
		}
	}
	switch {
	case c.Node == c.Peer:
		return bad("node and peer are both %q", c.Node)
	case len(c.Key) != KeySize:
		return bad("key has %d bytes instead of %d", len(c.Key), KeySize)
	case c.Interval < time.Millisecond:
		return bad("interval %v is below 1 ms", c.Interval)
	case c.Timeout < 3*c.Interval:
		return bad("timeout %v is below three intervals of %v", c.Timeout, c.Interval)
	case len(c.Paths) == 0:
		return bad("no path to %s", c.Peer)
	}
	names, locals := map[string]bool{}, map[netip.AddrPort]string{}
	for _, p := range c.Paths {
		if p.Name == "" || len(p.Name) > maxName || names[p.Name] {
			return bad("path name %q is empty, too long or used twice", p.Name)
		}
		if !p.Local.IsValid() || !p.Remote.IsValid() || p.Remote.Port() == 0 {
			return bad("path %s: addresses %v and %v are incomplete", p.Name, p.Local, p.Remote)
		}
		if p.Local.Port() != 0 && locals[p.Local] != "" {
			return bad("paths %s and %s both listen on %v", locals[p.Local], p.Name, p.Local)
		}
		names[p.Name], locals[p.Local] = true, p.Name
	}
	if c.Incarnation == 0 {
		var b [8]byte
		_, _ = rand.Read(b[:]) // never fails
		c.Incarnation = binary.BigEndian.Uint64(b[:]) | 1
	}
	return c, nil
}
