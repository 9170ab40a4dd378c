package qmptest_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/coloctl/coloctl/internal/qmptest"
	"github.com/coloctl/coloctl/qmp"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// As QEMU does, the fake stops reading a connection on which eight in-band
// commands wait behind a hung one, and with it out-of-band commands.
func TestFakeStopsReading(t *testing.T) {
	for waiting, want := range map[int]bool{7: true, 8: false} {
		t.Run(fmt.Sprint(waiting), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := qmptest.New(t)
				f.Hang("stop")
				conn, err := f.Dial(t.Context(), "")
				if err != nil {
					t.Fatal(err)
				}
				r := bufio.NewReader(conn)
				r.ReadString('\n')
				answered := make(chan struct{}, 1)
				done := make(chan struct{})
				go func() {
					defer close(done)
					for {
						line, err := r.ReadString('\n')
						if err != nil {
							return
						}
						if strings.Contains(line, `"id":"oob"`) {
							answered <- struct{}{}
						}
					}
				}()
				go func() {
					fmt.Fprintln(conn, `{"execute":"stop"}`)
					for range waiting {
						fmt.Fprintln(conn, `{"execute":"query-status"}`)
					}
					fmt.Fprintln(conn, `{"exec-oob":"query-yank","id":"oob"}`)
				}()
				got := false
				select {
				case <-answered:
					got = true
				case <-time.After(time.Minute):
				}
				if got != want {
					t.Errorf("out-of-band answered: %v", got)
				}
				conn.Close()
				<-done
			})
		})
	}
}

// In-band commands of several connections run one after the other.
func TestOneMainLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := qmptest.New(t)
		a, b := f.Client(t.Context()), f.Client(t.Context())
		f.Hang("stop")
		done := make(chan error, 1)
		go func() { done <- a.Stop(context.Background()) }()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := b.QueryStatus(ctx); err == nil {
			t.Error("answered while the main loop hangs")
		}
		if _, err := b.QueryYank(t.Context()); err != nil {
			t.Errorf("out of band: %v", err)
		}
		f.Release("stop")
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestHandlers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := qmptest.New(t)
		c := f.Client(t.Context())
		f.Handle("x", func(args json.RawMessage) (any, error) {
			f.Emit("STOP", nil)
			return nil, &qmp.Error{Class: qmp.ClassDeviceNotFound, Desc: string(args)}
		})
		sub := c.Subscribe(qmp.SubscribeOptions{})
		err := c.Execute(t.Context(), "x", map[string]int{"a": 1}, nil)
		if !qmp.IsClass(err, qmp.ClassDeviceNotFound) || !strings.Contains(err.Error(), `{"a":1}`) {
			t.Errorf("got %v", err)
		}
		if e, err := sub.Next(t.Context()); err != nil || e.Name != "STOP" {
			t.Errorf("got %v, %v", e, err)
		}
		f.Handle("x", nil)
		if err := c.Execute(t.Context(), "x", nil, nil); err != nil {
			t.Error(err)
		}
		if got := fmt.Sprint(f.Calls()); got != `[x {"a":1} x]` {
			t.Errorf("calls %s", got)
		}
		f.Kill()
		if _, err := f.Dial(t.Context(), ""); err == nil {
			t.Error("a dead QEMU was dialled")
		}
		<-c.Done()
	})
}

// A client that goes away in the middle leaves nothing behind.
func TestClientGoesAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := qmptest.New(t)
		f.Hang("stop")
		conn, err := f.Dial(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		go io.Copy(io.Discard, conn)
		fmt.Fprintln(conn, `{"execute":"stop"}`)
		conn.Close()
		synctest.Wait()
		f.Release("stop")
		if _, err := f.Client(t.Context()).QueryStatus(t.Context()); err != nil {
			t.Error(err)
		}
	})
}
