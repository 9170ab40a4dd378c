package heartbeat_test

import (
	"context"
	"fmt"
	"net/netip"
	"sync"

	"github.com/coloctl/coloctl/colo/heartbeat"
	"github.com/coloctl/coloctl/colo/heartbeat/heartbeattest"
)

// Two nodes with one link; real ones leave ListenPacket away.
func Example() {
	network := heartbeattest.New(1)
	east, west := netip.MustParseAddrPort("10.0.0.1:7000"), netip.MustParseAddrPort("10.0.0.2:7000")
	monitor := func(node, peer string, local, remote netip.AddrPort) *heartbeat.Monitor {
		m, err := heartbeat.New(heartbeat.Config{
			Node: node, Peer: peer, Key: make([]byte, heartbeat.KeySize), ListenPacket: network.ListenPacket,
			Paths: []heartbeat.Path{{Name: "link0", Local: local, Remote: remote}},
		})
		if err != nil {
			panic(err)
		}
		return m
	}
	a, b := monitor("east", "west", east, west), monitor("west", "east", west, east)
	events := a.Subscribe(16)

	var running sync.WaitGroup
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	ctxB, powerOff := context.WithCancel(ctx)
	defer powerOff()
	running.Go(func() { _ = a.Run(ctx) })
	running.Go(func() { _ = b.Run(ctxB) })

	for e := range events.C() {
		fmt.Println(e)
		switch e.Kind {
		case heartbeat.PathUp:
			powerOff()
		case heartbeat.PeerLost:
			stop()
		}
	}
	running.Wait()
	// Output:
	// peer alive: west
	// path up: link0
	// path down: link0
	// peer lost: west
}
