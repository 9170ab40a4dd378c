package heartbeat_test

import (
	"bytes"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coloctl/coloctl/colo/heartbeat"
	"github.com/coloctl/coloctl/colo/heartbeat/heartbeattest"
)

func TestWrongKeyIsCountedAndIgnored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := heartbeattest.New(1)
		a := newSide(t, n, "a", 1, nil)
		newSide(t, n, "b", 1, func(c *heartbeat.Config) { c.Key = bytes.Repeat([]byte{8}, heartbeat.KeySize) })
		time.Sleep(10 * time.Second)
		a.wants("peer lost")
		n.Inject(addr(0, "b"), addr(0, "a"), []byte("hello"))
		n.Inject(addr(0, "b"), addr(0, "a"), make([]byte, 60000))
		n.Inject(addr(0, "b"), addr(0, "a"), nil)
		synctest.Wait()
		p := a.m.Status().Paths[0]
		if p.WrongKey < 90 || p.Malformed != 3 || p.Received != 0 {
			t.Errorf("%+v", p.Counters)
		}
	})
}

// recorded keeps all datagrams by where they went.
type recorded map[netip.AddrPort][][]byte

func record(n *heartbeattest.Network) recorded {
	r := recorded{}
	n.Watch(func(_, to netip.AddrPort, b []byte) { r[to] = append(r[to], b) })
	return r
}

// Whatever was recorded, on either path and from either side, doesn't bring a dead peer to life, nor hold off its loss.
func TestReplay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := heartbeattest.New(1)
		tape := record(n)
		a, b := newSide(t, n, "a", 2, nil), newSide(t, n, "b", 2, nil)
		time.Sleep(5 * time.Second)
		b.stop()
		b.start()
		time.Sleep(5 * time.Second)
		a.told()
		b.stop()
		n.Watch(nil)
		died := time.Now()
		replay := func(seconds int) {
			for range seconds * 10 {
				for from, list := range tape {
					for _, d := range list[len(list)-20:] {
						n.Inject(from, addr(0, "a"), d)
						n.Inject(from, addr(1, "a"), d)
					}
					for _, d := range list[:20] {
						n.Inject(from, addr(0, "a"), d)
					}
				}
				time.Sleep(100 * time.Millisecond)
			}
		}
		replay(3)
		got := a.wants("path down link0, path down link1, peer lost")
		if took := got[len(got)-1].Time.Sub(died); took > timeout+interval {
			t.Errorf("noticed after %v only", took)
		}
		p := a.m.Status().Paths[0]
		if p.Replayed == 0 || p.Foreign == 0 {
			t.Errorf("%+v", p.Counters)
		}

		// A new run of a knows none of these numbers, and must still not believe them.
		a.stop()
		a.start()
		replay(3)
		a.wants("peer lost")
		if p := a.m.Status().Paths[0]; p.Unconfirmed == 0 || p.Received != 0 {
			t.Errorf("%+v", p.Counters)
		}
		// Nor do they keep the true peer out.
		b.start()
		replay(1)
		a.wants("peer alive, path up link0, path up link1")
		a.wantsState(heartbeat.Alive)
	})
}

// What comes in on one path says nothing about another one, even if somebody carries it over.
func TestPathsAreNotMixedUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, _ := pair(t, 2)
		n.SetBoth(host(0, "a"), host(0, "b"), heartbeattest.Quality{Cut: true})
		carry := make(chan []byte, 1000)
		n.Watch(func(from, to netip.AddrPort, b []byte) {
			if from == addr(1, "b") {
				carry <- b
			}
		})
		done := make(chan struct{})
		go func() {
			defer close(done)
			for b := range carry {
				n.Inject(addr(0, "b"), addr(0, "a"), b)
			}
		}()
		time.Sleep(3 * time.Second)
		a.wants("path down link0")
		if p := a.m.Status().Path("link0"); p.Foreign == 0 {
			t.Errorf("%+v", p)
		}
		n.Watch(nil)
		close(carry)
		<-done
	})
}

func TestDatagramsOfOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := heartbeattest.New(1)
		tape := record(n)
		// c has the key, and believes that its peer a lives at a's address.
		c := newSide(t, n, "b", 1, func(c *heartbeat.Config) { c.Node = "c" })
		a := newSide(t, n, "a", 1, nil)
		time.Sleep(time.Second)
		a.wants("peer lost")
		if p := a.m.Status().Paths[0]; p.Foreign == 0 || p.Received != 0 {
			t.Errorf("%+v", p.Counters)
		}
		c.stop()
		for to, list := range tape {
			for _, d := range list {
				if sender, path, err := heartbeat.OpenDatagram(key, d); err != nil || path != "link0" || (sender == "a") != (to == addr(0, "b")) {
					t.Errorf("to %v: sender %s, path %s, %v", to, sender, path, err)
				}
			}
		}
	})
}
