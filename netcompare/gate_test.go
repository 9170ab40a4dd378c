package netcompare

import (
	"bytes"
	"encoding/binary"
	"errors"

	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coloctl/coloctl/internal/netns"
)

// frame is one of the guest's, with a mark that tells it from the others.
func frame(kind []byte, mark string) []byte {
	b := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 0x54, 0, 0x12, 0x34, 0x56}, kind...)
	b = append(b, mark...)
	return append(b, make([]byte, 50-len(mark))...)
}

// Kinds of frames: type and header, followed by 50 bytes. A kernel that filters on bridges drops what is malformed.
var (
	arp    = []byte{0x08, 0x06}
	ipv4   = append([]byte{0x08, 0x00}, ipv4Header()...)
	ipv6   = []byte{0x86, 0xdd, 0x60, 7: 50, 8: 59, 9: 64, 10: 0xfe, 11: 0x80, 25: 1, 26: 0xff, 27: 0x02, 41: 1}
	tagged = append([]byte{0x81, 0x00, 0x00, 0x05}, ipv4...) // IPv4 in a VLAN
)

func ipv4Header() []byte {
	b := []byte{0x45, 0, 0, 70, 0, 0, 0, 0, 64, 253, 0, 0, 10, 77, 0, 10, 10, 77, 0, 255}
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	binary.BigEndian.PutUint16(b[10:], ^uint16(sum+sum>>16))
	return b
}

// guestWire is a guest's side of its tap and what arrives on the LAN.
type guestWire struct {
	t     *testing.T
	guest *os.File
	lan   *os.File
}

func newGuestWire(t *testing.T, h Host, n NIC) *guestWire {
	t.Helper()
	ctx := t.Context()
	lan := plug(t, h, n.Bridge)
	if err := errors.Join(h.EnsureTap(ctx, "web", n), h.Join(ctx, n)); err != nil {
		t.Fatal(err)
	}
	w := &guestWire{t: t, lan: lan.conn}
	if err := netns.Do(h.Netns, func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		ifr, err := unix.NewIfreq(n.Tap)
		if err != nil {
			return err
		}
		ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
			return err
		}
		w.guest = os.NewFile(uintptr(fd), n.Tap)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.guest.Close() })
	buf := make([]byte, 2048)
	for end := time.Now().Add(20 * time.Second); ; { // the bridge forwards when it has seen its ports' carriers
		if _, err := w.guest.Write(frame(ipv4, "warm")); err != nil {
			t.Fatal(err)
		}
		_ = w.lan.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		if n, err := w.lan.Read(buf); err == nil && bytes.Contains(buf[:n], []byte("warm")) {
			return w
		}
		if time.Now().After(end) {
			t.Fatal("the bridge does not forward")
		}
	}
}

// passes sends a frame, then one of IPv4, which passes any gate: when only that one arrives the first was stopped.
func (w *guestWire) passes(kind []byte) bool {
	w.t.Helper()
	mark := time.Now().Format("15:04:05.000000000")
	for _, f := range [][]byte{frame(kind, "A"+mark), frame(ipv4, "B"+mark)} {
		if _, err := w.guest.Write(f); err != nil {
			w.t.Fatal(err)
		}
	}
	first := false
	buf := make([]byte, 2048)
	for {
		_ = w.lan.SetReadDeadline(time.Now().Add(5 * time.Second))
		n, err := w.lan.Read(buf)
		if err != nil {
			w.t.Fatalf("not even IPv4 has arrived: %v", err)
		}
		switch {
		case bytes.Contains(buf[:n], []byte("A"+mark)):
			first = true
		case bytes.Contains(buf[:n], []byte("B"+mark)):
			return first
		}
	}
}

// A gate lets through what colo-compare holds, and the rest only for as long as a lease lasts.
func TestGate(t *testing.T) {
	h, ctx := newHost(t), t.Context()
	n := testNIC
	n.Model = "e1000" // without a header before each frame
	w := newGuestWire(t, h, n)
	rest := map[string][]byte{"ARP": arp, "IPv6": ipv6, "IPv4 in a VLAN": tagged}
	all := func(want bool, when string) {
		t.Helper()
		for name, kind := range rest {
			if got := w.passes(kind); got != want {
				t.Errorf("%s: %s passes: %v", when, name, got)
			}
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var l Leases
	t.Cleanup(func() { _ = l.Close() })
	must(h.CheckGate(ctx))
	all(true, "without a gate")
	must(h.Guard(ctx, n))
	all(false, "before the first lease")
	must(l.Lease(ctx, h, []NIC{n}, time.Minute))
	all(true, "leased")
	must(h.Guard(ctx, n))
	all(true, "guarded again")
	must(l.Lease(ctx, h, []NIC{n}, 0))
	all(false, "when the lease was taken back")
	must(l.Lease(ctx, h, []NIC{n}, time.Minute))
	must(l.Lease(ctx, h, []NIC{n}, 300*time.Millisecond)) // a shorter one counts
	began := time.Now()
	all(true, "leased again")
	for w.passes(arp) {
		if time.Since(began) > 5*time.Second {
			t.Fatal("the lease does not end")
		}
		time.Sleep(10 * time.Millisecond)
	}
	if took := time.Since(began); took < 250*time.Millisecond {
		t.Errorf("a lease of 300 ms ended after %s", took)
	}
	all(false, "after the lease's end")
	must(l.Lease(ctx, h, []NIC{n}, time.Minute)) // of an element that has ended but may not be gone
	all(true, "leased once more")
	must(h.Unguard(ctx, n))
	must(h.Unguard(ctx, n))
	all(true, "without a gate again")
}

// A lease belongs to one tap, and a gate goes with it.
func TestGatesAreApart(t *testing.T) {
	h, ctx := newHost(t), t.Context()
	a, b := testNIC, testNIC
	a.Model, b.Model, b.Tap, b.Name = "e1000", "e1000", "web-tap1", "net1"
	w := newGuestWire(t, h, a)
	var l Leases
	t.Cleanup(func() { _ = l.Close() })
	for _, err := range []error{h.EnsureTap(ctx, "web", b), h.Guard(ctx, a), h.Guard(ctx, b), l.Lease(ctx, h, []NIC{b}, time.Minute)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if w.passes(arp) {
		t.Error("another tap's lease lets this one speak")
	}
	for range 2 { // a tap of the same name starts without the old one's gate
		if err := errors.Join(h.DeleteTap(ctx, "web", b), h.EnsureTap(ctx, "web", b), h.Guard(ctx, b), h.DeleteTap(ctx, "web", b)); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.Unguard(ctx, b); err != nil {
		t.Errorf("the gate of a tap that is gone: %v", err)
	}
}
