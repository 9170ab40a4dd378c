package netcompare

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coloctl/coloctl/qmp"
)

var (
	twoNICs = []NIC{
		{Name: "net0", MAC: "52:54:00:12:34:56", Tap: "web-a", Bridge: "br0"},
		{Name: "net1", MAC: "52:54:00:12:34:57", Tap: "web-b", Bridge: "br1", Model: "e1000"},
	}
	standby = Endpoint{
		Host:     "10.90.0.2",
		Ports:    map[string]PortPair{"net0": {9003, 9004}, "net1": {9005, 9006}},
		MPTCP:    true,
		TLSCreds: "tls0",
	}
)

var opts = Options{SocketDir: "/run/colo/web"}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestLifeGolden(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		f, c := newFake(t)
		empty := f.state()
		done := 0
		check := func(name string) {
			t.Helper()
			golden(t, name, f.since(t, done))
			done = len(f.Calls())
		}
		// A VM that begins as a standby goes through every role.
		must(t, Listen(ctx, c, twoNICs, standby))
		check("listen")
		must(t, Promote(ctx, c, twoNICs))
		check("promote")
		must(t, Announce(ctx, c, twoNICs))
		check("announce")
		promoted := f.state()
		must(t, Connect(ctx, c, twoNICs, standby, opts))
		check("connect-after-promote")
		must(t, Enable(ctx, c, twoNICs))
		check("enable")
		must(t, Disable(ctx, c, twoNICs))
		check("disable")
		must(t, Disconnect(ctx, c, twoNICs))
		check("disconnect")
		if got := f.state(); !slices.Equal(got, promoted) {
			t.Errorf("left over: %v, want %v", got, promoted)
		}
		for _, n := range twoNICs {
			must(t, c.ObjectDel(ctx, n.rewriter()))
		}
		done = len(f.Calls())
		if got := f.state(); !slices.Equal(got, empty) {
			t.Errorf("left over: %v, want %v", got, empty)
		}
		// A VM that was never a secondary; own parameters, plain TCP.
		ep := standby
		ep.MPTCP, ep.TLSCreds = false, ""
		o := opts
		o.CompareTimeout, o.ExpiredScanCycle, o.MaxQueueSize = 10*time.Millisecond, 5*time.Millisecond, 4096
		must(t, Connect(ctx, c, twoNICs[:1], ep, o))
		check("connect")
	})
}

// Each function may be called again after any outcome.
func TestIdempotent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		f, c := newFake(t)
		empty := f.state()
		for range 2 {
			must(t, Disable(ctx, c, twoNICs))
			must(t, Disconnect(ctx, c, twoNICs))
			must(t, Promote(ctx, c, twoNICs))
		}
		for range 3 {
			must(t, Connect(ctx, c, twoNICs, standby, opts))
			connected := f.state()
			if err := Connect(ctx, c, twoNICs, standby, opts); err == nil {
				t.Error("connected twice")
			}
			if got := f.state(); !slices.Equal(got, connected) {
				t.Errorf("the second Connect's undoing hit the first: %v", got)
			}
			for range 2 {
				must(t, Enable(ctx, c, twoNICs))
			}
			for range 2 {
				must(t, Disconnect(ctx, c, twoNICs))
			}
			if got := f.state(); !slices.Equal(got, empty) {
				t.Errorf("left over: %v", got)
			}
		}
	})
}

// Whatever step fails, nothing is left.
func TestUndo(t *testing.T) {
	for name, build := range map[string]func(context.Context, *qmp.Client) error{
		"listen":  func(ctx context.Context, c *qmp.Client) error { return Listen(ctx, c, twoNICs, standby) },
		"connect": func(ctx context.Context, c *qmp.Client) error { return Connect(ctx, c, twoNICs, standby, opts) },
	} {
		parts := standbyParts(twoNICs, standby)
		if name == "connect" {
			streams, rest := primaryParts(twoNICs, standby, opts, nil)
			parts = append(streams, rest...)
		}
		for _, p := range parts {
			t.Run(name+"/"+p.id, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					f, c := newFake(t)
					empty := f.state()
					f.failOn(p.id)
					err := build(t.Context(), c)
					var qe *qmp.Error
					if !errors.As(err, &qe) || !strings.Contains(err.Error(), p.id) {
						t.Errorf("error %v does not name %s", err, p.id)
					}
					if got := f.state(); !slices.Equal(got, empty) {
						t.Errorf("left over: %v", got)
					}
				})
			})
		}
	}
}

// The caller's deadline ends while QEMU is still at it: the late outcome is undone as well.
func TestUndoOfWhatComesLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, c := newFake(t)
		empty := f.state()
		f.Hang("chardev-add")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		done := make(chan error, 1)
		go func() { done <- Connect(ctx, c, twoNICs, standby, opts) }()
		time.Sleep(2 * time.Second) // synctest: the deadline has passed
		f.Release("chardev-add")
		if err := <-done; !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, qmp.ErrTimeout) {
			t.Errorf("got %v", err)
		}
		if got := f.state(); !slices.Equal(got, empty) {
			t.Errorf("left over: %v", got)
		}
	})
}

// A stream that doesn't come up (a TLS handshake that fails, say) is no connection.
func TestConnectWaitsForStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, c := newFake(t)
		empty := f.state()
		slow := 3
		up := func(id string) string {
			if id == "cs-net1" && slow != 0 {
				slow--
				return "disconnected:tcp:10.90.0.2:9006"
			}
			return "tcp:somewhere"
		}
		f.on("query-chardev", func(map[string]any) (any, error) {
			l := []qmp.Chardev{}
			for id := range f.chardevs {
				l = append(l, qmp.Chardev{Label: id, Filename: up(id)})
			}
			return l, nil
		})
		must(t, Connect(t.Context(), c, twoNICs, standby, opts))
		must(t, Disconnect(t.Context(), c, twoNICs))
		slow = -1 // never
		begin := time.Now()
		var se *StreamError
		if err := Connect(t.Context(), c, twoNICs, standby, opts); !errors.As(err, &se) || se.Chardev != "cs-net1" {
			t.Errorf("got %v", err)
		}
		if took := time.Since(begin); took < DefaultConnectTimeout || took > 2*DefaultConnectTimeout {
			t.Errorf("it took %v", took)
		}
		if got := f.state(); !slices.Equal(got, empty) {
			t.Errorf("left over: %v", got)
		}
	})
}

func TestEnableRefusesDeadStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, c := newFake(t)
		must(t, Connect(t.Context(), c, twoNICs, standby, opts))
		f.mu.Lock()
		f.chardevs["cs-net1"] = "disconnected:tcp:10.90.0.2:9006"
		f.mu.Unlock()
		n := len(f.Calls())
		var se *StreamError
		if err := Enable(t.Context(), c, twoNICs); !errors.As(err, &se) || se.NIC != "net1" || se.Chardev != "cs-net1" || !errors.Is(err, ErrStream) {
			t.Errorf("got %v", err)
		}
		if got := f.since(t, n); got != "" {
			t.Errorf("QEMU was changed:\n%s", got)
		}
	})
}

func TestEnableUndoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, c := newFake(t)
		must(t, Connect(t.Context(), c, twoNICs, standby, opts))
		f.on("qom-set", func(a map[string]any) (any, error) {
			id := strings.TrimPrefix(a["path"].(string), "/objects/")
			if id == "redout-net1" && a["value"] == "on" {
				return nil, errors.New("made to fail")
			}
			f.objects[id]["status"] = a["value"]
			return nil, nil
		})
		if err := Enable(t.Context(), c, twoNICs); err == nil || !strings.Contains(err.Error(), "redout-net1") {
			t.Errorf("got %v", err)
		}
		for _, id := range []string{"mirror-net0", "redout-net0", "mirror-net1", "redout-net1"} {
			if s := f.objects[id]["status"]; s != "off" {
				t.Errorf("%s is %v", id, s)
			}
		}
	})
}

// One part that QEMU won't let go of doesn't keep the rest.
func TestDisconnectGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, c := newFake(t)
		must(t, Connect(t.Context(), c, twoNICs, standby, opts))
		f.on("object-del", func(a map[string]any) (any, error) {
			id := a["id"].(string)
			if id == "redin-net0" {
				return nil, errors.New("made to fail")
			}
			delete(f.objects, id)
			return nil, nil
		})
		err := Disconnect(t.Context(), c, twoNICs)
		if err == nil || !strings.Contains(err.Error(), "redin-net0") || !strings.Contains(err.Error(), "co-net0") {
			t.Errorf("got %v", err)
		}
		want := []string{"chardev co-net0", "chardev serial0", "object redin-net0"}
		if got := f.state(); !slices.Equal(got, want) {
			t.Errorf("left %v, want %v", got, want)
		}
	})
}

func TestEndpointCheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, c := newFake(t)
		with := func(change func(*Endpoint)) Endpoint {
			ep := standby
			ep.Ports = map[string]PortPair{"net0": {9003, 9004}, "net1": {9005, 9006}}
			change(&ep)
			return ep
		}
		for want, ep := range map[string]Endpoint{
			"is not an IP address":    with(func(e *Endpoint) { e.Host = "host-b" }),
			"0.0.0.0 is every":        with(func(e *Endpoint) { e.Host = "0.0.0.0" }),
			":: is every":             with(func(e *Endpoint) { e.Host = "::" }),
			"no ports for NIC net1":   with(func(e *Endpoint) { delete(e.Ports, "net1") }),
			"port 9004 is used twice": with(func(e *Endpoint) { e.Ports["net1"] = PortPair{9004, 9005} }),
			"0 is not a port":         with(func(e *Endpoint) { e.Ports["net1"] = PortPair{0, 9005} }),
		} {
			for _, err := range []error{Listen(t.Context(), c, twoNICs, ep), Connect(t.Context(), c, twoNICs, ep, opts)} {
				if !errors.Is(err, ErrEndpoint) || !strings.Contains(err.Error(), want) {
					t.Errorf("got %v, want %q", err, want)
				}
			}
		}
		for want, o := range map[string]Options{
			"is not an absolute path": {SocketDir: "sockets"},
			"less than a millisecond": {SocketDir: "/run", CompareTimeout: time.Microsecond},
			"max queue size":          {SocketDir: "/run", MaxQueueSize: -1},
			"longer than 107":         {SocketDir: "/" + strings.Repeat("x", 107)},
		} {
			if err := Connect(t.Context(), c, twoNICs, standby, o); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v, want %q", err, want)
			}
		}
		if got := f.since(t, 0); got != "" {
			t.Errorf("QEMU was changed:\n%s", got)
		}
	})
}
