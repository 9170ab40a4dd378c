package heartbeat_test

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/coloctl/coloctl/colo/heartbeat"
)

// freeAddr returns a free UDP address of the loopback. Somebody else may take it before it is used; then the path says so and the test fails.
func freeAddr(t *testing.T) netip.AddrPort {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}

func await(t *testing.T, s *heartbeat.Subscription, kind heartbeat.Kind) heartbeat.Event {
	t.Helper()
	limit := time.After(20 * time.Second)
	for {
		select {
		case e, ok := <-s.C():
			if !ok {
				t.Fatalf("ended before %q", kind)
			}
			if e.Kind == kind {
				return e
			}
		case <-limit:
			t.Fatalf("no %q in 20 s", kind)
		}
	}
}

// Real sockets, on the loopback interface by name, and real time.
func TestUDP(t *testing.T) {
	addrs := map[string]netip.AddrPort{"a": freeAddr(t), "b": freeAddr(t)}
	type running struct {
		m      *heartbeat.Monitor
		events *heartbeat.Subscription
		cancel context.CancelFunc
		done   chan error
	}
	start := func(name string) running {
		m, err := heartbeat.New(heartbeat.Config{Node: name, Peer: other(name), Key: key, Paths: []heartbeat.Path{
			{Name: "link0", Local: addrs[name], Remote: addrs[other(name)], Interface: "lo"},
		}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		r := running{m, m.Subscribe(100), cancel, make(chan error, 1)}
		go func() { r.done <- m.Run(ctx) }()
		return r
	}
	a, b := start("a"), start("b")
	await(t, a.events, heartbeat.PathUp)
	await(t, b.events, heartbeat.PathUp)
	b.cancel()
	if err := <-b.done; err != nil {
		t.Error(err)
	}
	lost := await(t, a.events, heartbeat.PeerLost)
	silent := lost.Time.Sub(lost.Status.LastHeard)
	t.Logf("peer lost %v after the last datagram, round trip was %v", silent, lost.Status.Paths[0].RTT)
	// Only the lower bound is ours to keep on a busy machine; the upper one is tested on virtual time. A stall in between makes it longer.
	if silent < timeout || (lost.Status.Stalls == 0 && silent > timeout+2*interval) {
		t.Errorf("peer lost %v after the last datagram", silent)
	}
	before := b.m.Incarnation()
	b = start("b")
	await(t, a.events, heartbeat.PeerRestarted)
	if got := a.m.Status().Incarnation; got != b.m.Incarnation() || got == before {
		t.Errorf("incarnation %d", got)
	}
	for _, r := range []running{a, b} {
		r.cancel()
		<-r.done
	}
}

func TestInterfaceThatIsNotThere(t *testing.T) {
	m, err := heartbeat.New(heartbeat.Config{Node: "a", Peer: "b", Key: key, Paths: []heartbeat.Path{
		{Name: "link0", Local: freeAddr(t), Remote: freeAddr(t), Interface: "no-such-link"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	events, done := m.Subscribe(10), make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	if e := await(t, events, heartbeat.PeerLost); e.Status.Paths[0].Err == nil {
		t.Errorf("no error: %+v", e.Status.Paths[0])
	}
	cancel()
	<-done
}
