package heartbeat_test

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coloctl/coloctl/colo/heartbeat"
	"github.com/coloctl/coloctl/colo/heartbeat/heartbeattest"
)

const (
	interval = heartbeat.DefaultInterval
	timeout  = heartbeat.DefaultTimeout
)

var key = bytes.Repeat([]byte{7}, heartbeat.KeySize)

// side is one node of a pair: a's addresses are 10.PATH.0.1, b's 10.PATH.0.2.
type side struct {
	t      *testing.T
	net    *heartbeattest.Network
	name   string
	paths  int
	change func(*heartbeat.Config)
	m      *heartbeat.Monitor
	events *heartbeat.Subscription
	cancel context.CancelFunc
	done   chan error
}

func host(path int, name string) netip.Addr {
	last := byte(1)
	if name == "b" {
		last = 2
	}
	return netip.AddrFrom4([4]byte{10, byte(path), 0, last})
}

func addr(path int, name string) netip.AddrPort { return netip.AddrPortFrom(host(path, name), 7000) }

func other(name string) string {
	if name == "a" {
		return "b"
	}
	return "a"
}

func newSide(t *testing.T, n *heartbeattest.Network, name string, paths int, change func(*heartbeat.Config)) *side {
	s := &side{t: t, net: n, name: name, paths: paths, change: change}
	s.start()
	t.Cleanup(s.stop)
	return s
}

// start starts the side's daemon, again after stop: a new incarnation.
func (s *side) start() {
	s.t.Helper()
	cfg := heartbeat.Config{Node: s.name, Peer: other(s.name), Key: key, ListenPacket: s.net.ListenPacket}
	for i := range s.paths {
		cfg.Paths = append(cfg.Paths, heartbeat.Path{Name: fmt.Sprintf("link%d", i), Local: addr(i, s.name), Remote: addr(i, other(s.name))})
	}
	if s.change != nil {
		s.change(&cfg)
	}
	m, err := heartbeat.New(cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	s.run(m)
}

func (s *side) run(m *heartbeat.Monitor) {
	var ctx context.Context
	ctx, s.cancel = context.WithCancel(context.Background())
	s.m, s.events, s.done = m, m.Subscribe(10000), make(chan error, 1)
	go func(done chan error) { done <- m.Run(ctx) }(s.done)
}

// stop ends the daemon and waits for all of it.
func (s *side) stop() {
	if s.cancel == nil {
		return
	}
	s.cancel()
	s.cancel = nil
	if err := <-s.done; err != nil {
		s.t.Errorf("%s: Run: %v", s.name, err)
	}
}

// told returns the events since the last call.
func (s *side) told() []heartbeat.Event {
	synctest.Wait()
	var out []heartbeat.Event
	for {
		select {
		case e, ok := <-s.events.C():
			if !ok {
				return out
			}
			out = append(out, e)
		default:
			return out
		}
	}
}

func kinds(events []heartbeat.Event) string {
	s := ""
	for _, e := range events {
		if s != "" {
			s += ", "
		}
		s += string(e.Kind)
		if e.Path != "" {
			s += " " + e.Path
		}
	}
	return s
}

func sorted(list string) string {
	words := strings.Split(list, ", ")
	slices.Sort(words)
	return strings.Join(words, ", ")
}

// wants fails unless exactly these events came since the last look. Their order depends on the moment: paths aren't in step.
func (s *side) wants(want string) []heartbeat.Event {
	s.t.Helper()
	got := s.told()
	if sorted(kinds(got)) != sorted(want) {
		s.t.Errorf("%s was told %q, want %q\nstatus: %+v", s.name, kinds(got), want, s.m.Status())
	}
	return got
}

func (s *side) wantsState(want heartbeat.PeerState) {
	s.t.Helper()
	synctest.Wait()
	if st := s.m.Status(); st.State != want {
		s.t.Errorf("%s sees the peer %s, want %s: %+v", s.name, st.State, want, st)
	}
}

// cut cuts or heals all paths.
func cutAll(n *heartbeattest.Network, paths int, cut bool) {
	for i := range paths {
		n.SetBoth(host(i, "a"), host(i, "b"), heartbeattest.Quality{Cut: cut})
	}
}

// pair starts two connected sides and lets them find each other.
func pair(t *testing.T, paths int) (*heartbeattest.Network, *side, *side) {
	t.Helper()
	n := heartbeattest.New(1)
	a, b := newSide(t, n, "a", paths, nil), newSide(t, n, "b", paths, nil)
	time.Sleep(time.Second)
	a.wantsState(heartbeat.Alive)
	b.wantsState(heartbeat.Alive)
	a.told()
	b.told()
	return n, a, b
}
