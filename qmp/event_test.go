package qmp_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coloctl/coloctl/internal/qmptest"
	"github.com/coloctl/coloctl/qmp"
)

func TestEventsReachAllSubscribers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := qmptest.New(t)
		c := f.Client(t.Context())
		all := c.Subscribe(qmp.SubscribeOptions{})
		again := c.Subscribe(qmp.SubscribeOptions{})
		only := c.Subscribe(qmp.SubscribeOptions{Match: qmp.Named("COLO_EXIT")})
		f.Emit("STOP", nil)
		f.Emit("COLO_EXIT", map[string]string{"mode": "primary", "reason": "error"})
		synctest.Wait()
		c.Close()

		if a, b := names(all), names(again); !slices.Equal(a, []string{"STOP", "COLO_EXIT"}) || !slices.Equal(a, b) {
			t.Errorf("got %v and %v", a, b)
		}
		e := <-only.C()
		var data struct{ Mode, Reason string }
		if err := e.Decode(&data); err != nil || e.Name != "COLO_EXIT" || data.Mode != "primary" {
			t.Errorf("got %v, %v, %v", e, data, err)
		}
		if e.Time.Unix() != time.Now().Unix() || e.Received.IsZero() {
			t.Errorf("times %v, %v", e.Time, e.Received)
		}
	})
}

func names(s *qmp.Subscription) []string {
	var l []string
	for e := range s.C() {
		l = append(l, e.Name)
	}
	return l
}

// Events may come before the greeting, and on the same line buffer as the reply
// to the handshake.
func TestEventsDuringHandshake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		event := func(name string) string {
			return `{"timestamp":{"seconds":-1,"microseconds":-1},"event":"` + name + `"}` + "\n"
		}
		conn := peer(t, func(r *bufio.Reader, w net.Conn) {
			fmt.Fprint(w, event("RESUME"), greeting)
			fmt.Fprint(w, event("STOP"), `{"return":{},"id":`, readID(r), "}\n", event("COLO_EXIT"))
			r.ReadByte()
		})
		c, err := qmp.NewClient(t.Context(), conn, &qmp.Options{Events: &qmp.SubscribeOptions{}})
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		c.Close()
		for _, want := range []string{"RESUME", "STOP", "COLO_EXIT"} {
			e, err := c.Events().Next(t.Context())
			if err != nil || e.Name != want || !e.Time.IsZero() || e.Decode(new(int)) == nil {
				t.Errorf("got %+v, %v, want %s", e, err, want)
			}
		}
	})
}

// A subscriber that doesn't read loses events and is told, but it holds up
// nobody, and what is important still has room.
func TestSlowSubscriber(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := qmptest.New(t)
		c := f.Client(t.Context())
		slow := c.Subscribe(qmp.SubscribeOptions{Buffer: 4})
		for range 10 {
			f.Emit("RTC_CHANGE", nil)
		}
		f.Emit("COLO_EXIT", nil)
		f.Emit("RTC_CHANGE", nil)
		f.Emit("BLOCK_JOB_COMPLETED", nil)
		if _, err := c.QueryStatus(t.Context()); err != nil {
			t.Fatalf("the reader is blocked: %v", err)
		}
		if n := slow.Dropped(); n != 7 {
			t.Errorf("%d dropped", n)
		}
		select {
		case <-slow.Lost():
		default:
			t.Error("the loss wasn't signalled")
		}
		c.Close()
		var got []string
		for e := range slow.C() {
			got = append(got, fmt.Sprint(e.Name, " ", e.Lost))
		}
		want := []string{"RTC_CHANGE 0", "RTC_CHANGE 0", "RTC_CHANGE 0", "RTC_CHANGE 0", "COLO_EXIT 6", "BLOCK_JOB_COMPLETED 1"}
		if !slices.Equal(got, want) {
			t.Errorf("got %q", got)
		}
	})
}

// Even important events don't block the reader when there is no room at all.
func TestFloodOfImportantEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := qmptest.New(t)
		c := f.Client(t.Context())
		slow := c.Subscribe(qmp.SubscribeOptions{Buffer: 1})
		for range 50 {
			f.Emit("STOP", nil)
		}
		synctest.Wait()
		kept := uint64(len(slow.C()))
		if kept < 17 || slow.Dropped()+kept != 50 {
			t.Errorf("kept %d, dropped %d", kept, slow.Dropped())
		}
	})
}

func TestSubscriptionEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := qmptest.New(t)
		c := f.Client(t.Context())
		sub := c.Subscribe(qmp.SubscribeOptions{})
		sub.Close()
		sub.Close()
		f.Emit("STOP", nil)
		synctest.Wait()
		if _, err := sub.Next(t.Context()); !errors.Is(err, qmp.ErrClosed) {
			t.Errorf("got %v", err)
		}
		f.Kill()
		<-c.Done()
		if _, ok := <-c.Subscribe(qmp.SubscribeOptions{}).C(); ok {
			t.Error("a subscription of an ended connection must be closed")
		}
	})
}

func TestWaitForEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := qmptest.New(t)
		c := f.Client(t.Context())
		sub := c.Subscribe(qmp.SubscribeOptions{})
		f.Emit("STOP", nil)
		f.Emit("RESUME", nil)
		if e, err := sub.Wait(t.Context(), qmp.Named("RESUME")); err != nil || e.Name != "RESUME" {
			t.Errorf("got %v, %v", e, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := sub.Wait(ctx, qmp.Named("RESUME")); !errors.Is(err, qmp.ErrTimeout) {
			t.Errorf("got %v", err)
		}
	})
}

// Follow repairs its view by a query when it lost events.
func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := qmptest.New(t)
		c := f.Client(t.Context())
		queries, stop := 0, errors.New("stop")
		err := c.Follow(t.Context(), qmp.SubscribeOptions{Buffer: 2},
			func(ctx context.Context) error {
				if queries++; queries == 1 {
					for range 30 {
						f.Emit("RTC_CHANGE", nil)
					}
					synctest.Wait()
				}
				_, err := c.MachineStatus(ctx)
				return err
			},
			func(qmp.Event) error {
				if queries == 2 {
					return stop
				}
				return nil
			})
		if queries != 2 || !errors.Is(err, stop) {
			t.Errorf("%d queries, %v", queries, err)
		}
	})
}
