package blockrepl

import (
	"context"
	"errors"
	"io"
	"net"
	"strconv"
	"sync/atomic"
	"testing"
	"time"
)

// relay stands between a primary and a standby's export and counts what goes
// to the standby.
type relay struct {
	port int
	sent atomic.Int64
}

func newRelay(t *testing.T, to Address) *relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	r := &relay{port: l.Addr().(*net.TCPAddr).Port}
	done := make(chan struct{})
	t.Cleanup(func() { l.Close(); <-done })
	go func() {
		defer close(done)
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", net.JoinHostPort(to.Host, strconv.Itoa(to.Port)))
			if err != nil {
				in.Close()
				continue
			}
			go func() { io.Copy(in, out); in.Close(); out.Close() }()
			go func() { io.Copy(count{out, &r.sent}, in); in.Close(); out.Close() }()
		}
	}()
	return r
}

type count struct {
	io.Writer
	n *atomic.Int64
}

func (c count) Write(p []byte) (int, error) {
	c.n.Add(int64(len(p)))
	return c.Writer.Write(p)
}

// TestZeroesDontTravel: a full sync of a disk with 4 MiB of data, 20 MiB of
// written zeroes and holes sends the data and little more, also onto a disk
// that was full of something else.
func TestZeroesDontTravel(t *testing.T) {
	ctx := testContext(t)
	a, b := newHost(t, "a", Raw), newHost(t, "b", Raw)
	old := *b
	old.startPrimary(ctx)
	old.io(ctx, 0, "write -P 0x77 0 64M")
	must(t, old.c.Quit(ctx))
	<-old.exited
	a.startPrimary(ctx)
	a.io(ctx, 0, "write -P 0x11 10M 4M")
	a.io(ctx, 0, "write -P 0 20M 20M")
	b.startStandby(ctx)
	r := newRelay(t, b.to)
	m := NewMirror(a.c, a.disks, Address{Host: "127.0.0.1", Port: r.port}, Options{Mode: Full})
	must(t, m.Sync(ctx))
	if n := r.sent.Load(); n < 4*mib || n > 5*mib {
		t.Errorf("%d bytes were sent for 4 MiB of data", n)
	}
	a.sameDisks(ctx, b)
	i, err := images(t).Inspect(ctx, b.disks[0])
	must(t, err)
	if i.Allocated > 6*mib {
		t.Errorf("the standby's image takes %d bytes for 4 MiB of data", i.Allocated)
	}
	must(t, m.Abort(ctx))
	leftovers(t, a)
}

// TestFrozenUnderCOLO: the peer stops to answer, its sockets stay open. The
// primary goes on after the yank, and later is protected again by bitmap.
func TestFrozenUnderCOLO(t *testing.T) {
	ctx := testContext(t)
	a, b := newHost(t, "a", Raw, QCOW2), newHost(t, "b", Raw, QCOW2)
	a.startPrimary(ctx)
	b.startStandby(ctx)
	a.protect(ctx, b, Options{})
	b.freeze()
	start := time.Now()
	a.lostPeer(ctx)
	t.Logf("failover of the disks took %v", time.Since(start))
	if d := time.Since(start); d > 2*time.Second {
		t.Errorf("failover took %v", d)
	}
	leftovers(t, a)
	a.io(ctx, 0, "write -P 0x51 1M 64k")
	b.kill()
	b.startStandby(ctx)
	a.protect(ctx, b, Options{Mode: Bitmap})
	a.sameDisks(ctx, b)
}

// TestFrozenPrimary: the primary stops to answer. The secondary's promotion
// doesn't wait for it.
func TestFrozenPrimary(t *testing.T) {
	ctx := testContext(t)
	a, b := newHost(t, "a", Raw), newHost(t, "b", Raw)
	a.startPrimary(ctx)
	b.startStandby(ctx)
	a.protect(ctx, b, Options{})
	a.io(ctx, 0, "write -P 0x61 1M 64k")
	a.checkpoint(ctx)
	a.freeze()
	start := time.Now()
	b.promote(ctx)
	t.Logf("promotion of the disks took %v", time.Since(start))
	b.io(ctx, 0, "read -P 0x61 1M 64k")
}

// TestLostDuringSync: the standby is lost in the middle of a sync, in either
// mode and in either way. No write of the guest fails, the sync ends with the
// right error, and after Abort the next one succeeds by the right mode.
func TestLostDuringSync(t *testing.T) {
	for _, mode := range []Mode{Full, Bitmap} {
		for _, frozen := range []bool{false, true} {
			name, want, stall := string(mode)+"-killed", ErrJobFailed, time.Minute
			if frozen {
				name, want, stall = string(mode)+"-frozen", ErrStalled, 300*time.Millisecond
			}
			t.Run(name, func(t *testing.T) {
				ctx := testContext(t)
				a, b := newHost(t, "a", Raw, QCOW2), newHost(t, "b", Raw, QCOW2)
				a.startPrimary(ctx)
				if mode == Bitmap {
					b.startStandby(ctx)
					a.protect(ctx, b, Options{})
					b.kill()
					a.lostPeer(ctx)
				}
				a.io(ctx, 0, "write -P 0x71 0 48M")
				a.io(ctx, 1, "write -P 0x72 0 48M")
				b.startStandby(ctx)

				half := make(chan struct{})
				var told atomic.Bool
				m := NewMirror(a.c, a.disks, b.to, Options{
					Mode: mode, Speed: 32 * mib, StallAfter: stall, Poll: 50 * time.Millisecond, Rescue: a.r,
					OnProgress: func(p Progress) {
						if p.Done > 2*mib && told.CompareAndSwap(false, true) {
							close(half)
						}
					},
				})
				ended := make(chan error, 1)
				go func() { ended <- m.Sync(ctx) }()
				<-half
				if frozen {
					b.freeze()
				} else {
					b.kill()
				}
				if mode == Full { // by bitmap a frozen peer may hold the write until Abort
					a.io(ctx, 0, "write -P 0x73 30M 64k")
				}
				if err := <-ended; !errors.Is(err, want) {
					t.Fatalf("sync ended with %v", err)
				} else {
					t.Log(err)
				}
				for range 2 {
					must(t, m.Abort(ctx))
				}
				leftovers(t, a)
				a.io(ctx, 0, "write -P 0x73 30M 64k")
				n, ok, err := HasBitmap(ctx, a.c, a.disks)
				if err != nil || ok != (mode == Bitmap) || ok && n < 96*mib {
					t.Errorf("bitmap after Abort: %d bytes, %v, %v", n, ok, err)
				}
				b.kill()
				b.startStandby(ctx)
				a.protect(ctx, b, Options{Mode: mode})
				a.sameDisks(ctx, b)
			})
		}
	}
}

// TestGuestWriteSurvivesLoss: a write of the guest that a resync by bitmap
// holds, because it must copy the old data first and the peer is frozen, is
// freed by Abort and succeeds.
func TestGuestWriteSurvivesLoss(t *testing.T) {
	ctx := testContext(t)
	a, b := newHost(t, "a", Raw), newHost(t, "b", Raw)
	a.startPrimary(ctx)
	b.startStandby(ctx)
	a.protect(ctx, b, Options{})
	b.kill()
	a.lostPeer(ctx)
	a.io(ctx, 0, "write -P 0x71 0 48M")
	b.startStandby(ctx)
	started := make(chan struct{})
	var told atomic.Bool
	m := NewMirror(a.c, a.disks, b.to, Options{
		Mode: Bitmap, Speed: mib, Rescue: a.r,
		OnProgress: func(p Progress) {
			if p.Done > 0 && told.CompareAndSwap(false, true) {
				close(started)
			}
		},
	})
	syncCtx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- m.Sync(syncCtx) }()
	<-started
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Fatalf("sync ended with %v", err)
	}
	b.freeze()
	wrote := make(chan struct{})
	go func() {
		defer close(wrote)
		a.io(ctx, 0, "write -P 0x79 40M 64k") // QEMU's main loop hangs in it
	}()
	select {
	case <-wrote:
		t.Fatal("the write was not held: this test doesn't test anything")
	case <-time.After(300 * time.Millisecond):
	}
	must(t, m.Abort(ctx))
	<-wrote
	a.io(ctx, 0, "read -P 0x79 40M 64k")
	leftovers(t, a)
}

// TestAbortAnywhere: after each step of an attach, and in the middle, Abort
// leaves a VM that runs alone and can be protected.
func TestAbortAnywhere(t *testing.T) {
	ctx := testContext(t)
	a, b := newHost(t, "a", Raw, QCOW2), newHost(t, "b", QCOW2, Raw)
	a.startPrimary(ctx)
	a.io(ctx, 0, "write -P 0x11 0 8M")
	m := NewMirror(a.c, a.disks, b.to, Options{Rescue: a.r, ProbeTimeout: time.Second})
	must(t, m.Abort(ctx)) // nothing was done yet

	if err := m.Sync(ctx); !errors.Is(err, ErrUnreachable) {
		t.Fatalf("sync without a standby: %v", err)
	}
	must(t, m.Abort(ctx))
	if err := NewMirror(a.c, a.disks, b.to, Options{Mode: Bitmap}).Sync(ctx); !errors.Is(err, ErrNoBitmap) {
		t.Fatalf("sync by bitmap: %v", err)
	}

	b.startStandby(ctx)
	if err := m.Switch(ctx); !errors.Is(err, ErrNotSynced) {
		t.Fatalf("switch before sync: %v", err)
	}
	must(t, m.Sync(ctx))
	if err := m.Switch(ctx); !errors.Is(err, ErrGuestRuns) {
		t.Fatalf("switch of a running guest: %v", err)
	}
	must(t, m.Abort(ctx))
	leftovers(t, a)

	started, ended := make(chan struct{}), make(chan error, 1)
	var told atomic.Bool
	slow := NewMirror(a.c, a.disks, b.to, Options{Speed: 64 << 10, Rescue: a.r, OnProgress: func(p Progress) {
		if told.CompareAndSwap(false, true) {
			close(started)
		}
	}})
	go func() { ended <- slow.Sync(ctx) }()
	<-started
	if err := slow.Sync(ctx); !errors.Is(err, ErrOverlap) {
		t.Errorf("second sync: %v", err)
	}
	must(t, slow.SetSpeed(ctx, 128<<10))
	must(t, slow.Abort(ctx)) // while the sync waits
	if err := <-ended; !errors.Is(err, ErrAborted) {
		t.Errorf("sync that was aborted: %v", err)
	}
	leftovers(t, a)

	must(t, m.Sync(ctx)) // stopped after the sync, with a peer that freezes then
	b.freeze()
	must(t, m.Abort(ctx))
	leftovers(t, a)
	if err := m.Sync(ctx); !errors.Is(err, ErrUnreachable) {
		t.Fatalf("sync to a frozen standby: %v", err)
	}
	b.thaw()

	must(t, m.Sync(ctx))
	a.toSwitchover(ctx, b)
	must(t, m.Switch(ctx))
	if err := m.Sync(ctx); !errors.Is(err, ErrAttached) {
		t.Fatalf("sync of attached disks: %v", err)
	}
	must(t, m.Abort(ctx))
	must(t, m.Abort(ctx))
	must(t, a.c.MigrateCancel(ctx))
	leftovers(t, a)
	a.awaitMigration(ctx, "cancelled")
	a.io(ctx, 1, "write -P 0x22 9M 64k")

	// The disks were equal at Switch, so the bitmap that it started is good.
	b.kill()
	b.startStandby(ctx)
	if n := a.protect(ctx, b, Options{Mode: Bitmap}); n != 64<<10 {
		t.Errorf("resync after an abort copied %d bytes, want 64 KiB", n)
	}
	a.sameDisks(ctx, b)
}

// TestFreezeAfterProbe: a peer that freezes after the probe and before the
// connection makes Sync fail within OpenTimeout instead of hanging QEMU.
func TestFreezeAfterProbe(t *testing.T) {
	ctx := testContext(t)
	a, b := newHost(t, "a", Raw), newHost(t, "b", Raw)
	a.startPrimary(ctx)
	b.startStandby(ctx)
	m := NewMirror(a.c, a.disks, b.to, Options{
		OpenTimeout: time.Second, Rescue: a.r,
		ProbeDial: func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return freezeAfter{conn, b}, nil
		},
	})
	start := time.Now()
	if err := m.Sync(ctx); err == nil {
		t.Fatal("sync to a frozen standby succeeded")
	}
	if d := time.Since(start); d > 3*time.Second {
		t.Errorf("it took %v", d)
	}
	must(t, m.Abort(ctx))
	leftovers(t, a)
}

type freezeAfter struct {
	net.Conn
	h *host
}

func (f freezeAfter) Close() error {
	f.h.freeze()
	return f.Conn.Close()
}
