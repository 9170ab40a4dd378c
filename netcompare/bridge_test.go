package netcompare

import (
	"errors"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestJoinAndCut(t *testing.T) {
	h, ctx, n := newHost(t), t.Context(), testNIC
	joined := func(want bool) {
		t.Helper()
		if got, err := h.Joined(ctx, n); err != nil || got != want {
			t.Errorf("joined is %v, %v; want %v", got, err, want)
		}
	}
	joined(false)
	if err := h.Cut(ctx, n); err != nil {
		t.Errorf("cut without a tap: %v", err)
	}
	if err := h.Join(ctx, n); !errors.Is(err, ErrNoTap) {
		t.Errorf("join without a tap: %v", err)
	}
	if err := h.EnsureTap(ctx, "web", n); err != nil {
		t.Fatal(err)
	}
	if err := h.Join(ctx, n); !errors.Is(err, ErrNoBridge) {
		t.Errorf("join without a bridge: %v", err)
	}
	h.addBridge(t, n.Bridge, 1450)
	before := h.link(t, n.Bridge).Attrs()
	h.addBridge(t, "br1", 1500)
	joined(false)
	for range 2 {
		if err := h.Join(ctx, n); err != nil {
			t.Fatal(err)
		}
		joined(true)
	}
	tap := h.link(t, n.Tap).Attrs()
	if tap.MTU != 1450 || tap.RawFlags&unix.IFF_UP == 0 {
		t.Errorf("MTU %d, flags %x", tap.MTU, tap.RawFlags)
	}
	if mtu := h.link(t, n.Bridge).Attrs().MTU; mtu != before.MTU {
		t.Errorf("the bridge's MTU went from %d to %d", before.MTU, mtu)
	}
	elsewhere := n
	elsewhere.Bridge = "br1"
	if got, err := h.Joined(ctx, elsewhere); err != nil || got {
		t.Errorf("joined in the wrong bridge: %v, %v", got, err)
	}
	for range 2 {
		if err := h.Cut(ctx, n); err != nil {
			t.Fatal(err)
		}
		joined(false)
		if a := h.link(t, n.Tap).Attrs(); a.MasterIndex != 0 || a.RawFlags&unix.IFF_UP != 0 {
			t.Errorf("after the cut: master %d, flags %x", a.MasterIndex, a.RawFlags)
		}
	}
	for name, want := range map[string]error{n.Bridge: nil, "lo": ErrNoBridge, "br9": ErrNoBridge} {
		if err := h.CheckBridge(ctx, name); !errors.Is(err, want) {
			t.Errorf("check of %s: %v, want %v", name, err, want)
		}
	}
	notABridge := n
	notABridge.Bridge = "lo"
	if err := h.Join(ctx, notABridge); !errors.Is(err, ErrNoBridge) {
		t.Errorf("join into lo: %v", err)
	}
}

// A tap's coming and going must not change the bridge's address, or the host would lose its neighbours for a while.
func TestBridgeKeepsItsAddress(t *testing.T) {
	h, ctx := newHost(t), t.Context()
	h.addBridge(t, "br0", 1500)
	h.ip(t, "link", "add", "uplink", "address", "aa:00:00:00:00:01", "type", "veth", "peer", "name", "uplink-peer")
	h.ip(t, "link", "set", "uplink", "master", "br0", "up")
	before := h.link(t, "br0").Attrs().HardwareAddr.String()
	n := testNIC
	n.MAC = "02:00:00:00:00:01" // lower than the uplink's
	if err := h.EnsureTap(ctx, "web", n); err != nil {
		t.Fatal(err)
	}
	if err := h.Join(ctx, n); err != nil {
		t.Fatal(err)
	}
	if got := h.link(t, "br0").Attrs().HardwareAddr.String(); got != before {
		t.Errorf("the bridge's address went from %s to %s", before, got)
	}
}

// A failover waits for Join and arbitration for Cut.
func TestJoinAndCutAreFast(t *testing.T) {
	h, ctx, n := newHost(t), t.Context(), testNIC
	h.addBridge(t, n.Bridge, 1500)
	if err := h.EnsureTap(ctx, "web", n); err != nil {
		t.Fatal(err)
	}
	// An open tap has a carrier, as with QEMU: then the bridge has something to do.
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h.attach(t, f, n.Tap)
	steps := []struct {
		name string
		fn   func() error
		took []time.Duration
	}{
		{name: "join", fn: func() error { return h.Join(ctx, n) }},
		{name: "cut", fn: func() error { return h.Cut(ctx, n) }},
	}
	for range 21 {
		for i := range steps {
			start := time.Now()
			if err := steps[i].fn(); err != nil {
				t.Fatal(err)
			}
			steps[i].took = append(steps[i].took, time.Since(start))
		}
	}
	for _, s := range steps {
		slices.Sort(s.took)
		t.Logf("%s: median %v, worst %v", s.name, s.took[10], s.took[20])
		if s.took[10] > 20*time.Millisecond { // under 1 ms on an idle machine
			t.Errorf("%s takes %v", s.name, s.took[10])
		}
	}
}
