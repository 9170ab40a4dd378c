package netcompare

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coloctl/coloctl/internal/netns"
)

// The listener must never see a probe, and must still see everybody else.
func TestProbeIsNotSeen(t *testing.T) {
	a, b := linked(t)
	for _, addr := range []string{"10.90.0.2:0", "[fd90::2]:0"} {
		l, err := netns.Listen(t.Context(), b.Netns, "tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		addr = l.Addr().String()
		for range 20 {
			if err := a.Probe(t.Context(), addr); err != nil {
				t.Fatal(err)
			}
		}
		l.(*net.TCPListener).SetDeadline(time.Now().Add(300 * time.Millisecond)) // longer than an ACK is delayed
		if c, err := l.Accept(); err == nil {
			t.Errorf("%s: a probe was accepted, from %v", addr, c.RemoteAddr())
			c.Close()
		}
		l.(*net.TCPListener).SetDeadline(time.Now().Add(10 * time.Second))
		conn, err := a.Dial(t.Context(), "tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		c, err := l.Accept()
		if err != nil {
			t.Fatalf("%s: a connection after the probes: %v", addr, err)
		}
		if c.RemoteAddr().String() != conn.LocalAddr().String() {
			t.Errorf("%s: accepted %v, want %v", addr, c.RemoteAddr(), conn.LocalAddr())
		}
		c.Close()
		conn.Close()
	}
}

func TestProbeWithQuickAckRoute(t *testing.T) {
	a, b := linked(t)
	l, err := netns.Listen(t.Context(), b.Netns, "tcp", "10.90.0.2:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a.ip(t, "route", "change", "10.90.0.0/24", "dev", "link", "quickack", "1")
	for range 20 {
		if err := a.Probe(t.Context(), l.Addr().String()); err != nil {
			t.Fatal(err)
		}
	}
	l.(*net.TCPListener).SetDeadline(time.Now().Add(300 * time.Millisecond))
	if c, err := l.Accept(); err == nil {
		t.Errorf("a probe was accepted, from %v", c.RemoteAddr())
		c.Close()
	}
}

func TestProbeFails(t *testing.T) {
	a, b := linked(t)
	if err := a.Probe(t.Context(), "10.90.0.2:9"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("closed port: %v", err)
	}
	b.ip(t, "link", "set", "dev", "link", "down")
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	start := time.Now()
	if err := a.Probe(ctx, "10.90.0.2:9"); err == nil {
		t.Error("a dead link was not noticed")
	}
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("it took %v", took)
	}
}

// ackSent is what tells when the trick has failed.
func TestAckSent(t *testing.T) {
	a, b := linked(t)
	l, err := netns.Listen(t.Context(), b.Netns, "tcp", "10.90.0.2:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := a.Dial(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if sent, err := ackSent(conn.(*net.TCPConn)); err != nil || !sent {
		t.Errorf("an ordinary connection: %v, %v", sent, err)
	}
}
