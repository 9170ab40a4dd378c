package blockrepl

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
)

// scribble writes at random places of all disks until stop is closed.
func (h *host) scribble(ctx context.Context, rnd *rand.Rand, stop <-chan struct{}, wg *sync.WaitGroup) {
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-ctx.Done():
				return
			default:
				h.scribbleOnce(ctx, rnd)
			}
		}
	})
}

func (h *host) scribbleOnce(ctx context.Context, rnd *rand.Rand) {
	length := 512 * (1 + rnd.Int64N(256))
	offset := 512 * rnd.Int64N((64*mib-length)/512)
	h.io(ctx, rnd.IntN(len(h.disks)), fmt.Sprintf("write -P %d %d %d", rnd.IntN(256), offset, length))
}

// TestWritesAtAnyTime: a guest that writes all the time, before, during and
// after each sync, during COLO, between Rotate and Confirm and when the standby
// dies, loses no write: both sides are equal once protected, whichever way and
// however often.
func TestWritesAtAnyTime(t *testing.T) {
	ctx := testContext(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	a, b := newHost(t, "a", Raw, QCOW2), newHost(t, "b", QCOW2, Raw)
	a.startPrimary(ctx)
	for round := range 4 {
		mode := Bitmap
		if round == 0 {
			mode = Full
		}
		b.startStandby(ctx)
		m := NewMirror(a.c, a.disks, b.to, Options{Mode: mode, Speed: 32 * mib, Rescue: a.r})
		var wg sync.WaitGroup
		stop := make(chan struct{})
		a.scribble(ctx, rnd, stop, &wg)
		err := m.Sync(ctx)
		close(stop)
		wg.Wait()
		must(t, err)
		for range 20 { // after the sync, before the guest is stopped
			a.scribbleOnce(ctx, rnd)
		}
		a.startCOLO(ctx, b, m)
		for range 20 {
			a.scribbleOnce(ctx, rnd)
		}
		must(t, Rotate(ctx, a.c, a.disks))
		for range 20 {
			a.scribbleOnce(ctx, rnd)
		}
		a.checkpoint(ctx)
		if rnd.IntN(2) == 0 {
			must(t, Confirm(ctx, a.c, a.disks))
		}
		a.sameDisks(ctx, b)
		t.Logf("round %d by %s copied %d bytes", round, mode, m.Copied())

		stop = make(chan struct{})
		a.scribble(ctx, rnd, stop, &wg)
		b.kill()
		close(stop)
		wg.Wait()
		a.lostPeer(ctx)
		leftovers(t, a)
	}
}
