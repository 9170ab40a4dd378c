package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/coloctl/coloctl/internal/netns"
)

func init() {
	workers["topology"] = workTopology
}

func TestTopology(t *testing.T) {
	if out := inLab(t, "topology"); out != "" {
		t.Error(out)
	}
}

// echoOn answers datagrams on addr of h until the returned function is called.
func echoOn(h *Host, addr netip.Addr, port int) (func(), error) {
	pc, err := netns.ListenPacket(context.Background(), h.Netns(), "udp4", netip.AddrPortFrom(addr, uint16(port)).String())
	if err != nil {
		return nil, err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 64)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = pc.WriteTo(buf[:n], from)
		}
	}()
	return func() { pc.Close(); <-done }, nil
}

// ask sends one datagram to an echo and tells whether it came back.
func ask(h *Host, addr netip.Addr, port int) (bool, error) {
	c, err := netns.Dial(context.Background(), h.Netns(), "udp4", netip.AddrPortFrom(addr, uint16(port)).String())
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) || strings.Contains(err.Error(), "unreachable") {
			return false, nil
		}
		return false, err
	}
	defer c.Close()
	if _, err := c.Write([]byte("x")); err != nil {
		return false, nil
	}
	_ = c.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
	_, err = c.Read(make([]byte, 8))
	var netErr net.Error
	if errors.As(err, &netErr) && netErr.Timeout() {
		return false, nil
	}
	return err == nil, nil
}

func carrier(h *Host, name string) (bool, error) {
	var up bool
	err := h.do(name, func(l netlink.Link) error {
		up = l.Attrs().OperState == netlink.OperUp
		return nil
	})
	return up, err
}

func workTopology() error {
	top, err := NewTopology(2)
	if err != nil {
		return err
	}
	defer top.Close()
	n1, n2 := top.Nodes["n1"], top.Nodes["n2"]
	var stops []func()
	for i, l := range top.Links {
		stop, err := echoOn(n2, l.Addrs["n2"].Addr(), 100+i)
		if err != nil {
			return err
		}
		stops = append(stops, stop)
	}
	defer func() {
		for _, s := range stops {
			s()
		}
	}()
	check := func(when string, link int, passes, wantCarrier bool) error {
		l := top.Links[link]
		var got bool
		// The kernel may take a second to believe in a carrier that came back.
		for end := time.Now().Add(3 * time.Second); ; {
			var err error
			if got, err = ask(n1, l.Addrs["n2"].Addr(), 100+link); err != nil {
				return fmt.Errorf("%s: %w", when, err)
			}
			if got || !passes || time.Now().After(end) {
				break
			}
		}
		up, err := carrier(n1, l.Name)
		if err != nil {
			return err
		}
		if got != passes || up != wantCarrier {
			return fmt.Errorf("%s: %s passes=%v carrier=%v, want %v, %v", when, l.Name, got, up, passes, wantCarrier)
		}
		return nil
	}
	steps := []struct {
		name string
		do   func() error
		link [2][2]bool // of each link: passes, carrier
	}{
		{"new", func() error { return nil }, [2][2]bool{{true, true}, {true, true}}},
		{"link0 silent", func() error { return top.Links[0].Cut(CutSilent) }, [2][2]bool{{false, true}, {true, true}}},
		{"restored", func() error { return top.Links[0].Restore() }, [2][2]bool{{true, true}, {true, true}}},
		{"link1 carrier", func() error { return top.Links[1].Cut(CutCarrier) }, [2][2]bool{{true, true}, {false, false}}},
		{"restored", func() error { return top.Links[1].Restore() }, [2][2]bool{{true, true}, {true, true}}},
		{"n2 without power", func() error { return top.SetPower("n2", false) }, [2][2]bool{{false, true}, {false, true}}},
		{"n2 with power", func() error { return top.SetPower("n2", true) }, [2][2]bool{{true, true}, {true, true}}},
	}
	for _, s := range steps {
		if err := s.do(); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		for i, want := range s.link {
			if err := check(s.name, i, want[0], want[1]); err != nil {
				return err
			}
		}
	}
	return nil
}
