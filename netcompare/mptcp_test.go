package netcompare

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/coloctl/coloctl/internal/netns"
)

const firstPort, lastPort = 9090, 9099

// paths are two hosts with two links, and a connection from n1 to n2 that began on the first. Its far end answers all it gets.
type paths struct {
	t    *testing.T
	host map[string]Host
	conn net.Conn
}

func newPaths(t *testing.T) *paths {
	n1, n2 := newHost(t), newHost(t)
	for _, link := range []string{"0", "1"} {
		connect(t, n1, "link"+link, n2, "link"+link)
		n1.addr(t, "link"+link, "10.9"+link+".0.1/24")
		n2.addr(t, "link"+link, "10.9"+link+".0.2/24")
	}
	p := &paths{t: t, host: map[string]Host{"n1": n1, "n2": n2}}
	if err := n1.CheckMPTCP(t.Context()); errors.Is(err, ErrNoMPTCP) {
		t.Skip(err)
	}
	for _, h := range p.host {
		must(t, h.SetLimits(t.Context(), MaxMPTCPLimits))
	}
	must(t, n2.AnnounceAddrs(t.Context(), []netip.Addr{p.addr(0), p.addr(1)}, firstPort, lastPort))
	var l net.Listener
	must(t, netns.Do(p.host["n2"].Netns, func() (err error) {
		var lc net.ListenConfig
		lc.SetMultipathTCP(true)
		l, err = lc.Listen(t.Context(), "tcp", netip.AddrPortFrom(p.addr(0), 9000).String())
		return err
	}))
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		_, _ = io.Copy(c, c)
	}()
	var d net.Dialer
	d.SetMultipathTCP(true)
	var err error
	p.conn, err = netns.DialWith(t.Context(), p.host["n1"].Netns, &d, "tcp", l.Addr().String())
	must(t, err)
	if is, err := p.conn.(*net.TCPConn).MultipathTCP(); err != nil || !is {
		t.Fatalf("the connection has no MPTCP: %v", err)
	}
	t.Cleanup(func() { _ = p.conn.Close(); _ = l.Close(); <-done })
	p.exchange(0)
	return p
}

func (p *paths) addr(link int) netip.Addr { return netip.AddrFrom4([4]byte{10, 90 + byte(link), 0, 2}) }

// link makes one deliver frames or lose them without a sign: to an Ethernet address that nobody has.
func (p *paths) link(i int, works bool) {
	p.t.Helper()
	for host, far := range map[string]string{"n1": "2", "n2": "1"} {
		dev := "link" + strconv.Itoa(i)
		neigh := "10.9" + strconv.Itoa(i) + ".0." + far
		if works {
			p.host[host].ip(p.t, "neigh", "del", neigh, "dev", dev)
		} else {
			p.host[host].ip(p.t, "neigh", "replace", neigh, "lladdr", "02:00:00:00:00:99", "dev", dev, "nud", "permanent")
		}
	}
}

// exchange sends much and something small, and gets it back.
func (p *paths) exchange(within time.Duration) {
	p.t.Helper()
	begun := time.Now()
	must(p.t, p.conn.SetDeadline(begun.Add(20*time.Second)))
	buf := make([]byte, 1<<20)
	sent := make(chan error, 1)
	go func() { _, err := p.conn.Write(buf); sent <- err }()
	_, err := io.ReadFull(p.conn, make([]byte, len(buf)))
	must(p.t, errors.Join(err, <-sent))
	if took := time.Since(begun); within > 0 && took > within {
		p.t.Errorf("an exchange took %v", took)
	}
}

// announce is what the daemon does when its heartbeats tell it of a link.
func (p *paths) announce(links ...int) {
	p.t.Helper()
	var addrs []netip.Addr
	for _, i := range links {
		addrs = append(addrs, p.addr(i))
	}
	must(p.t, p.host["n2"].AnnounceAddrs(p.t.Context(), addrs, firstPort, lastPort))
	got, err := p.host["n2"].Announced(p.t.Context())
	must(p.t, err)
	slices.SortFunc(got, netip.Addr.Compare)
	if !slices.Equal(got, addrs) {
		p.t.Fatalf("announced are %v instead of %v", got, addrs)
	}
}

// abandon is what both daemons do besides when a link is lost.
func (p *paths) abandon(link int) {
	p.t.Helper()
	must(p.t, p.host["n2"].AbandonPaths(p.t.Context(), p.addr(link)))
	must(p.t, p.host["n1"].AbandonPaths(p.t.Context(), netip.AddrFrom4([4]byte{10, 90 + byte(link), 0, 1})))
}

// TestAbandon: the only path of a connection is never taken from it; of two, the lost one is.
func TestAbandon(t *testing.T) {
	p := newPaths(t)
	local := func() (out []netip.Addr) {
		all, err := p.host["n1"].Connections(t.Context(), os.Getpid())
		must(t, err)
		if len(all) == 1 {
			out = all[0].Local
		}
		return out
	}
	for end := time.Now().Add(5 * time.Second); len(local()) < 2 && time.Now().Before(end); {
		time.Sleep(20 * time.Millisecond) // the kernel doesn't say when it has opened a path
	}
	p.announce(1)
	p.abandon(0)
	if got := local(); !slices.Equal(got, []netip.Addr{netip.MustParseAddr("10.91.0.1")}) {
		t.Errorf("paths begin at %v after the first was abandoned", got)
	}
	p.exchange(10 * time.Second)
	p.abandon(1)
	p.exchange(10 * time.Second)
}

// TestPaths: a connection outlives the loss of either link, one after the other and again and again, as long as one of them works.
func TestPaths(t *testing.T) {
	p := newPaths(t)
	for _, lost := range []int{0, 1, 0, 1} {
		p.link(lost, false)
		p.exchange(0) // the kernel finds out by itself
		p.announce(1 - lost)
		p.abandon(lost)
		p.exchange(10 * time.Second)
		p.link(lost, true)
		p.announce(0, 1)
		p.exchange(10 * time.Second)
	}
}

// TestConnections: the kernel tells over which links a connection goes.
func TestConnections(t *testing.T) {
	p := newPaths(t)
	near := func(links ...int) (out []netip.Addr) {
		for _, i := range links {
			out = append(out, netip.AddrFrom4([4]byte{10, 90 + byte(i), 0, 1}))
		}
		return out
	}
	await := func(want []netip.Addr) {
		t.Helper()
		for end := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) { // the kernel doesn't say when it has opened a path
			all, err := p.host["n1"].Connections(t.Context(), os.Getpid())
			must(t, err)
			if len(all) == 1 {
				slices.SortFunc(all[0].Local, netip.Addr.Compare)
				if all[0].MPTCP && slices.Equal(all[0].Local, want) {
					return
				}
			}
			if time.Now().After(end) {
				t.Fatalf("connections %+v, expected one over %v", all, want)
			}
		}
	}
	await(near(0, 1))
	listens, err := p.host["n2"].Listeners(t.Context(), os.Getpid())
	if want := []netip.AddrPort{netip.AddrPortFrom(p.addr(0), 9000)}; err != nil || !slices.Equal(listens, want) {
		t.Errorf("listens on %v (%v), expected %v", listens, err, want)
	}
	p.announce(0)
	await(near(0))
	p.announce(0, 1)
	await(near(0, 1))
}

// TestAnnounce: what others have made stays, and what we have made goes.
func TestAnnounce(t *testing.T) {
	p := newPaths(t)
	h := p.host["n2"]
	ctx := context.Background()
	before, err := h.Limits(ctx)
	must(t, err)
	must(t, h.SetLimits(ctx, MPTCPLimits{Subflows: 3, Addresses: 1}))
	if l, err := h.Limits(ctx); err != nil || l != (MPTCPLimits{Subflows: 3, Addresses: 1}) || before != MaxMPTCPLimits {
		t.Errorf("limits %+v, before %+v: %v", l, before, err)
	}
	p.announce()
	p.announce(1)
	p.announce(1)
	err = Host{Netns: h.Netns + "-none"}.SetLimits(ctx, before)
	if err == nil || !strings.Contains(err.Error(), "MPTCP") {
		t.Errorf("limits of nowhere: %v", err)
	}
}
