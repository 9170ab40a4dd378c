package qmp_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coloctl/coloctl/internal/qmptest"
	"github.com/coloctl/coloctl/qmp"
)

// The reply frees the slot, not the context: while a command hangs, no other
// is sent, however many callers came and went, and so yank gets through. A
// client that sends all of them is shown by TestFakeStopsReading to be dead.
func TestHungCommandLeavesOOBAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := qmptest.New(t)
		f.Hang("stop")
		f.Handle("yank", func(json.RawMessage) (any, error) {
			f.Release("stop")
			return nil, nil
		})
		c := f.Client(t.Context())
		stopped := make(chan error, 1)
		go func() { stopped <- c.Stop(context.Background()) }()
		synctest.Wait()

		for range 20 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			_, err := c.QueryStatus(ctx)
			cancel()
			var wait *qmp.WaitError
			if !errors.As(err, &wait) || !errors.Is(err, qmp.ErrTimeout) || wait.Sent {
				t.Fatalf("query-status while stop hangs: %v", err)
			}
		}
		if err := c.Yank(t.Context(), qmp.YankInstance{Type: "migration"}); err != nil {
			t.Fatal(err)
		}
		if err := <-stopped; err != nil {
			t.Error(err)
		}
		if got, want := fmt.Sprint(f.Calls()), `[stop oob yank {"instances":[{"type":"migration"}]}]`; got != want {
			t.Errorf("QEMU got %s, want %s", got, want)
		}
		if _, err := c.QueryStatus(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// An abandoned command that was sent keeps the slot until its reply, which
// nobody else gets.
func TestLateReply(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := qmptest.New(t)
		f.Hang("query-version")
		f.Reply("query-version", map[string]any{"package": "late"})
		c := f.Client(t.Context())
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := c.QueryVersion(ctx)
		var wait *qmp.WaitError
		if !errors.As(err, &wait) || !wait.Sent {
			t.Fatalf("got %v", err)
		}
		time.AfterFunc(time.Minute, func() { f.Release("query-version") })
		start := time.Now()
		if s, err := c.QueryStatus(t.Context()); err != nil || s.Status != "running" {
			t.Errorf("got %+v, %v", s, err)
		}
		if d := time.Since(start); d != time.Minute {
			t.Errorf("answered after %v, want when the slot became free", d)
		}
	})
}

func TestBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := qmptest.New(t)
		f.Hang("stop")
		c, err := qmp.Dial(t.Context(), "", &qmp.Options{Dial: f.Dial, MaxQueue: 2})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		var wg sync.WaitGroup
		for range 3 { // one in flight, two queued
			wg.Go(func() {
				if err := c.Stop(context.Background()); err != nil {
					t.Error(err)
				}
			})
			synctest.Wait()
		}
		if err := c.Stop(t.Context()); !errors.Is(err, qmp.ErrBusy) {
			t.Errorf("got %v", err)
		}
		f.Release("stop")
		wg.Wait()
		if err := c.Stop(t.Context()); err != nil {
			t.Errorf("after the queue got empty: %v", err)
		}
		if n := len(f.Calls()); n != 4 {
			t.Errorf("%d commands arrived", n)
		}
	})
}

func TestBusyOOB(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := qmptest.New(t)
		f.Hang("query-yank") // as by a frozen QEMU
		c := f.Client(t.Context())
		var busy, late int
		for range 12 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			switch _, err := c.QueryYank(ctx); {
			case errors.Is(err, qmp.ErrBusy):
				busy++
			case errors.Is(err, qmp.ErrTimeout):
				late++
			default:
				t.Errorf("got %v", err)
			}
			cancel()
		}
		if late != 8 || busy != 4 {
			t.Errorf("%d timed out, %d busy", late, busy)
		}
		f.Release("query-yank")
		synctest.Wait()
		if _, err := c.QueryYank(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func TestCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := qmptest.New(t)
		c := f.Client(t.Context())
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		err := c.Stop(ctx)
		if !errors.Is(err, context.Canceled) || errors.Is(err, qmp.ErrTimeout) {
			t.Errorf("got %v", err)
		}
		if len(f.Calls()) != 0 {
			t.Error("it was sent")
		}
	})
}

// Many callers at once get each their own reply.
func TestConcurrentCallers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := qmptest.New(t)
		echo := func(args json.RawMessage) (any, error) { return args, nil }
		f.Handle("x-echo", echo)
		c, err := qmp.Dial(t.Context(), "", &qmp.Options{Dial: f.Dial, MaxQueue: 100})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		var wg sync.WaitGroup
		for i := range 50 {
			wg.Go(func() {
				for j := range 20 {
					var got map[string]int
					want := i*1000 + j
					run := c.Execute
					if i%10 == 0 { // at most 5 at a time
						run = c.ExecuteOOB
					}
					if err := run(t.Context(), "x-echo", map[string]int{"v": want}, &got); err != nil || got["v"] != want {
						t.Errorf("got %v, %v, want %d", got, err, want)
					}
				}
			})
		}
		wg.Wait()
	})
}
