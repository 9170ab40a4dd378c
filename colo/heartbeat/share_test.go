package heartbeat_test

import (
	"context"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coloctl/coloctl/colo/heartbeat"
)

// TestShare: one node has two peers on one address; both are heard, and the end of one is not taken for the other's.
func TestShare(t *testing.T) {
	t.Parallel()
	var opened atomic.Int32
	at := func(last byte) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 77, 3, last}), 17801)
	}
	listen := func(ctx context.Context, local netip.AddrPort) (net.PacketConn, error) {
		opened.Add(1)
		return new(net.ListenConfig).ListenPacket(ctx, "udp", local.String())
	}
	start := func(ctx context.Context, node, peer string, from, to byte, open func(context.Context, netip.AddrPort) (net.PacketConn, error)) (*heartbeat.Monitor, chan error) {
		m, err := heartbeat.New(heartbeat.Config{Node: node, Peer: peer, Key: make([]byte, 32), Interval: 200 * time.Millisecond, Timeout: 2 * time.Second, ListenPacket: open,
			Paths: []heartbeat.Path{{Name: "link0", Local: at(from), Remote: at(to)}}})
		if err != nil {
			t.Fatal(err)
		}
		end := make(chan error, 1)
		go func() { end <- m.Run(ctx) }()
		return m, end
	}
	ctx, cancel := context.WithCancel(t.Context())
	other, stop := context.WithCancel(t.Context())
	defer stop()
	share := heartbeat.Share(listen)
	one, e1 := start(ctx, "n1", "n2", 1, 2, share)
	two, e2 := start(ctx, "n1", "n3", 1, 3, share)
	_, e3 := start(ctx, "n2", "n1", 2, 1, listen)
	_, e4 := start(other, "n3", "n1", 3, 1, listen)
	await := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s: %+v, %+v", what, one.Status(), two.Status())
			}
		}
	}
	alive := func(m *heartbeat.Monitor) bool { return m.Status().State == heartbeat.Alive }
	await("both are heard", func() bool { return alive(one) && alive(two) })
	stop()
	<-e4
	await("n3 is lost", func() bool { return two.Status().State == heartbeat.Lost })
	if !alive(one) {
		t.Error("n2 was lost with n3")
	}
	if n := opened.Load(); n != 3 {
		t.Errorf("%d sockets were opened for three nodes", n)
	}
	cancel()
	for _, e := range []chan error{e1, e2, e3} {
		<-e
	}
	conn, err := listen(t.Context(), at(1)) // the shared one is closed
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
}
