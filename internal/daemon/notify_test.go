package daemon

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestWatchdogIsFedOnlyByHealth: a check that fails or hangs keeps it hungry; one that comes back feeds it again.
func TestWatchdogIsFedOnlyByHealth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var fed atomic.Int64
		n := &notifier{log: slog.New(slog.DiscardHandler), send: func(string) { fed.Add(1) }}
		var sick, hanging atomic.Bool
		hang := make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			n.watch(ctx, time.Second, func() error {
				if hanging.Load() {
					<-hang
				}
				if sick.Load() {
					return errors.New("sick")
				}
				return nil
			})
		}()
		pass := func(d time.Duration) int64 {
			before := fed.Load()
			time.Sleep(d)
			synctest.Wait()
			return fed.Load() - before
		}
		if got := pass(10*time.Second + time.Millisecond); got != 10 {
			t.Errorf("fed %d times in 10 s", got)
		}
		sick.Store(true)
		if got := pass(5 * time.Second); got != 0 {
			t.Errorf("fed %d times while sick", got)
		}
		sick.Store(false)
		hanging.Store(true)
		if got := pass(20 * time.Second); got != 0 {
			t.Errorf("fed %d times while a check hangs", got)
		}
		hanging.Store(false)
		close(hang)
		if got := pass(5 * time.Second); got < 5 {
			t.Errorf("fed %d times after that", got)
		}
		cancel()
		<-done
	})
}
