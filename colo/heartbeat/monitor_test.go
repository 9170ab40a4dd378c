package heartbeat_test

import (
	"context"
	"errors"
	"flag"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coloctl/coloctl/colo/heartbeat"
	"github.com/coloctl/coloctl/colo/heartbeat/heartbeattest"
)

func TestFindsPeerWithinARoundTrip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := heartbeattest.New(1)
		n.SetBoth(host(0, "a"), host(0, "b"), heartbeattest.Quality{Delay: 10 * time.Millisecond})
		a := newSide(t, n, "a", 1, nil)
		b := newSide(t, n, "b", 1, nil)
		time.Sleep(45 * time.Millisecond)
		a.wants("peer alive, path up link0")
		b.wants("peer alive, path up link0")
		time.Sleep(time.Second)
		if rtt := a.m.Status().Paths[0].RTT; rtt < 20*time.Millisecond || rtt > 21*time.Millisecond {
			t.Errorf("round trip %v, want 20 ms", rtt)
		}
		if got, want := a.m.Status().Incarnation, b.m.Incarnation(); got != want {
			t.Errorf("a has b's incarnation as %d, want %d", got, want)
		}
	})
}

// The moment to make a lease longer: it is told once for each heartbeat that the peer has heard, also when both nodes send theirs at the same moments, and then what was
// confirmed is no older than an interval and the way there and back.
func TestConfirmationsAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const delay = 2 * time.Millisecond
		n := heartbeattest.New(1)
		for i := range 2 {
			n.SetBoth(host(i, "a"), host(i, "b"), heartbeattest.Quality{Delay: delay})
		}
		beat := time.Now()
		var (
			m      atomic.Pointer[heartbeat.Monitor]
			mu     sync.Mutex
			told   int
			oldest time.Duration
		)
		a := newSide(t, n, "a", 2, func(c *heartbeat.Config) {
			c.Beat = beat
			c.OnConfirmed = func() {
				mu.Lock()
				defer mu.Unlock()
				if m := m.Load(); m != nil {
					told, oldest = told+1, max(oldest, time.Since(m.Status().Confirmed))
				}
			}
		})
		newSide(t, n, "b", 2, func(c *heartbeat.Config) { c.Beat = beat })
		// after is what was told within a time that begins now.
		after := func(d time.Duration) (int, time.Duration) {
			mu.Lock()
			told, oldest = 0, 0
			mu.Unlock()
			time.Sleep(d)
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			return told, oldest
		}
		m.Store(a.m)
		time.Sleep(2*interval + interval/2)
		synctest.Wait()
		if told, oldest := after(100 * interval); told != 100 || oldest > interval+2*delay {
			t.Errorf("told %d times in 100 intervals, of what was at most %v old", told, oldest)
		}
		cutAll(n, 2, true)
		time.Sleep(10 * delay)
		synctest.Wait()
		if told, _ := after(10 * interval); told != 0 {
			t.Errorf("told %d times while nothing came", told)
		}
	})
}

// A host that dies is noticed within timeout + interval, whatever the moment, and not before timeout - interval.
func TestSilentHostIsNoticedInTime(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	for range 50 {
		synctest.Test(t, func(t *testing.T) {
			n, a, _ := pair(t, 2)
			time.Sleep(time.Duration(r.Int64N(int64(3 * time.Second))))
			died := time.Now()
			cutAll(n, 2, true)
			time.Sleep(timeout + interval)
			got := a.wants("path down link0, path down link1, peer lost")
			if len(got) == 0 {
				return
			}
			if took := got[len(got)-1].Time.Sub(died); took < timeout-interval || took > timeout+interval {
				t.Errorf("noticed after %v", took)
			}
			for i, e := range got {
				// Paths that go down together with the peer already tell of both.
				if e.Time.Equal(got[len(got)-1].Time) && e.Status.State != heartbeat.Lost {
					t.Errorf("event %d, %v: carries the state %s", i, e, e.Status.State)
				}
			}
			time.Sleep(10 * time.Second)
			a.wants("")
			cutAll(n, 2, false)
			time.Sleep(2 * interval)
			if got := a.wants("peer alive, path up link0, path up link1"); len(got) > 0 && got[0].Kind != heartbeat.PeerAlive {
				t.Errorf("the first event is %v", got[0])
			}
		})
	}
}

func TestPeerNeverHeardIsLostAfterTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newSide(t, heartbeattest.New(1), "a", 2, nil)
		time.Sleep(timeout - time.Millisecond)
		a.wants("")
		a.wantsState(heartbeat.Unknown)
		time.Sleep(2 * time.Millisecond)
		got := a.wants("peer lost")
		if !got[0].Status.LastHeard.IsZero() {
			t.Errorf("last heard %v of a peer that never was", got[0].Status.LastHeard)
		}
	})
}

func TestOneLostDatagramIsNoEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b := pair(t, 1)
		for range 20 {
			n.SetBoth(host(0, "a"), host(0, "b"), heartbeattest.Quality{Cut: true})
			time.Sleep(interval) // exactly one in each direction, or its hasty successors
			n.SetBoth(host(0, "a"), host(0, "b"), heartbeattest.Quality{})
			time.Sleep(3 * time.Second)
		}
		a.wants("")
		b.wants("")
		if a.m.Status().Paths[0].Missing == 0 {
			t.Error("nothing was lost in this test")
		}
	})
}

var lossTime = flag.Duration("loss-time", 2*time.Minute, "virtual time of the tests with lost datagrams")

// lossRun counts how often a says "peer lost" on one path that loses datagrams, there on the way to a and back on the way from it.
func lossRun(t *testing.T, there, back heartbeattest.Quality, haste bool, long time.Duration) (lost int, c heartbeat.Counters) {
	synctest.Test(t, func(t *testing.T) {
		n := heartbeattest.New(42)
		n.Set(host(0, "b"), host(0, "a"), there)
		n.Set(host(0, "a"), host(0, "b"), back)
		sides := map[string]*side{}
		for _, name := range []string{"a", "b"} {
			s := &side{t: t, net: n, name: name}
			m, err := heartbeat.New(heartbeat.Config{
				Node: name, Peer: other(name), Key: key, ListenPacket: n.ListenPacket,
				Paths: []heartbeat.Path{{Name: "link0", Local: addr(0, name), Remote: addr(0, other(name))}},
			})
			if err != nil {
				t.Fatal(err)
			}
			if !haste {
				heartbeat.WithoutHaste(m)
			}
			s.run(m)
			t.Cleanup(s.stop)
			sides[name] = s
		}
		// Finding each other isn't what is counted here.
		time.Sleep(5 * time.Second)
		if haste {
			sides["a"].wantsState(heartbeat.Alive)
		}
		sides["a"].told()
		time.Sleep(long)
		for _, e := range sides["a"].told() {
			if e.Kind == heartbeat.PeerLost {
				lost++
			}
		}
		c = sides["a"].m.Status().Paths[0].Counters
	})
	return lost, c
}

func TestLossNeverLooksLikeDeath(t *testing.T) {
	far := 200 * time.Millisecond
	for name, q := range map[string]struct{ there, back heartbeattest.Quality }{
		"20 % lost":             {heartbeattest.Quality{Drop: 0.2}, heartbeattest.Quality{Drop: 0.2}},
		"20 % lost in one way":  {heartbeattest.Quality{Drop: 0.2}, heartbeattest.Quality{}},
		"20 % lost, far away":   {heartbeattest.Quality{Drop: 0.2, Delay: far}, heartbeattest.Quality{Drop: 0.2, Delay: far}},
		"5 % lost, far, uneven": {heartbeattest.Quality{Drop: 0.05, Delay: far, Jitter: far / 10}, heartbeattest.Quality{Drop: 0.05, Delay: far, Jitter: far / 10}},
		"1 in 100 lost":         {heartbeattest.Quality{Drop: 0.01}, heartbeattest.Quality{Drop: 0.01}}, // haste begins and ends
	} {
		t.Run(name, func(t *testing.T) {
			lost, c := lossRun(t, q.there, q.back, true, *lossTime)
			if lost != 0 {
				t.Errorf("peer lost %d times", lost)
			}
			if c.Missing == 0 {
				t.Errorf("no datagram was missing: %+v", c)
			}
			t.Logf("%+v", c)
		})
	}
	// The same without haste does lose the peer; otherwise this test proves nothing.
	if lost, _ := lossRun(t, heartbeattest.Quality{Drop: 0.2}, heartbeattest.Quality{}, false, 5**lossTime); lost == 0 {
		t.Error("without haste 20 % loss did no harm")
	}
}

func TestCutPathIsNoLostPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b := pair(t, 3)
		n.SetBoth(host(1, "a"), host(1, "b"), heartbeattest.Quality{Cut: true})
		time.Sleep(timeout + interval)
		a.wants("path down link1")
		b.wants("path down link1")
		if down := a.m.Status().Down(); len(down) != 1 || down[0] != "link1" {
			t.Errorf("down: %v", down)
		}
		time.Sleep(time.Minute)
		a.wants("")
		n.SetBoth(host(1, "a"), host(1, "b"), heartbeattest.Quality{})
		time.Sleep(2 * interval)
		a.wants("path up link1")
		b.wants("path up link1")
	})
}

// A path that works in one direction only is down on both sides, as no connection lives on it.
func TestOneWayPath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b := pair(t, 2)
		n.Set(host(0, "a"), host(0, "b"), heartbeattest.Quality{Cut: true})
		time.Sleep(timeout + 2*interval)
		a.wants("path down link0")
		b.wants("path down link0")
		if p := a.m.Status().Path("link0"); !p.Receiving || p.Sending {
			t.Errorf("a: %+v", p)
		}
		if p := b.m.Status().Path("link0"); p.Receiving || p.Sending {
			t.Errorf("b: %+v", p)
		}
		a.wantsState(heartbeat.Alive)
	})
}

// freeze stops all of a node, as SIGSTOP does.
func freeze(n *heartbeattest.Network, paths int, name string, frozen bool) {
	for i := range paths {
		if frozen {
			n.Freeze(host(i, name))
		} else {
			n.Thaw(host(i, name))
		}
	}
}

func TestOwnStallIsNotThePeersDeath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b := pair(t, 2)
		freeze(n, 2, "a", true)
		time.Sleep(3 * time.Second)
		b.wants("path down link0, path down link1, peer lost")
		freeze(n, 2, "a", false)
		time.Sleep(2 * time.Second)
		for _, e := range a.told() {
			switch e.Kind {
			case heartbeat.PeerLost:
				t.Errorf("a blames b for its own sleep: %v", e)
			case heartbeat.Stalled:
				if e.Late < 2*time.Second || e.Late > 3*time.Second {
					t.Errorf("late by %v, was stopped for 3 s", e.Late)
				}
			}
		}
		if a.m.Status().Stalls == 0 {
			t.Error("a didn't notice its sleep")
		}
		b.wants("peer alive, path up link0, path up link1")
	})
}

// The peer died while this node was stalled: it is found out after waking, one full timeout later.
func TestPeerDiesDuringOwnStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b := pair(t, 1)
		freeze(n, 1, "a", true)
		time.Sleep(time.Second)
		b.stop()
		time.Sleep(time.Second)
		freeze(n, 1, "a", false)
		woke := time.Now()
		time.Sleep(timeout + interval)
		var lost time.Duration
		for _, e := range a.told() {
			if e.Kind == heartbeat.PeerLost {
				lost = e.Time.Sub(woke)
			}
		}
		if lost < timeout || lost > timeout+interval {
			t.Errorf("noticed %v after waking", lost)
		}
	})
}

func TestPeerRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, a, b := pair(t, 2)
		for range 3 {
			before := a.m.Status().Incarnation
			b.stop()
			time.Sleep(200 * time.Millisecond)
			b.start()
			time.Sleep(2 * interval)
			a.wants("peer restarted") // and no path went down over it
			if after := a.m.Status().Incarnation; after == before || after != b.m.Incarnation() {
				t.Errorf("incarnation %d after %d, b's is %d", after, before, b.m.Incarnation())
			}
		}
		a.wantsState(heartbeat.Alive)
	})
}

func TestSocketComesLateAndBreaks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := heartbeattest.New(1)
		var mu sync.Mutex
		refuse, last := true, net.PacketConn(nil)
		listen := func(ctx context.Context, local netip.AddrPort) (net.PacketConn, error) {
			mu.Lock()
			defer mu.Unlock()
			if refuse {
				return nil, errors.New("no such address")
			}
			c, err := n.ListenPacket(ctx, local)
			last = c
			return c, err
		}
		a := newSide(t, n, "a", 1, func(c *heartbeat.Config) { c.ListenPacket = listen })
		newSide(t, n, "b", 1, nil)
		time.Sleep(time.Second / 2)
		a.wants("path broken link0, peer lost")
		if err := a.m.Status().Paths[0].Err; err == nil {
			t.Error("no error for a path without socket")
		}
		mu.Lock()
		refuse = false
		mu.Unlock()
		time.Sleep(time.Second)
		a.wants("peer alive, path up link0")
		if err := a.m.Status().Paths[0].Err; err != nil {
			t.Errorf("error of a path with a socket: %v", err)
		}
		mu.Lock()
		_ = last.Close() // as when its interface is taken away
		mu.Unlock()
		time.Sleep(2 * time.Second)
		a.wants("path broken link0, path down link0, peer lost, peer alive, path up link0")
	})
}

func TestSlowReaderLosesOldestEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, _ := pair(t, 1)
		slow := a.m.Subscribe(1)
		for i := range 4 {
			cutAll(n, 1, i%2 == 0)
			time.Sleep(time.Second)
		}
		synctest.Wait()
		if e := <-slow.C(); e.Kind != heartbeat.PathUp && e.Kind != heartbeat.PeerAlive || e.Status.State != heartbeat.Alive {
			t.Errorf("the last event is %v, state %s", e, e.Status.State)
		}
		if got := slow.Dropped(); got != 7 {
			t.Errorf("%d dropped, want 7", got)
		}
		slow.Close()
		slow.Close()
		if _, ok := <-slow.C(); ok {
			t.Error("channel open after Close")
		}
		a.stop()
		if _, ok := <-a.m.Subscribe(1).C(); ok {
			t.Error("subscription of an ended monitor isn't closed")
		}
		if err := a.m.Run(t.Context()); !errors.Is(err, heartbeat.ErrRunning) {
			t.Errorf("second Run: %v", err)
		}
	})
}
