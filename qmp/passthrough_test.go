package qmp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// fakePassthrough answers as libvirt does: replies carry its own ids, QEMU's errors come as replies.
type fakePassthrough struct {
	events chan PassthroughEvent
	closed chan struct{}
	once   sync.Once
}

func newFakePassthrough() *fakePassthrough {
	return &fakePassthrough{events: make(chan PassthroughEvent), closed: make(chan struct{})}
}

func (f *fakePassthrough) Events() <-chan PassthroughEvent { return f.events }

func (f *fakePassthrough) Close() error {
	f.once.Do(func() { close(f.closed) })
	return nil
}

func (f *fakePassthrough) Command(ctx context.Context, command []byte) ([]byte, error) {
	var cmd map[string]json.RawMessage
	if err := json.Unmarshal(command, &cmd); err != nil {
		return nil, err
	}
	if cmd["id"] != nil {
		return nil, errors.New("an id was handed on")
	}
	switch string(cmd["execute"]) {
	case `"query-version"`:
		return []byte(`{"return":{"qemu":{"major":11,"minor":1,"micro":3},"package":""},"id":"libvirt-1"}`), nil
	case `"query-status"`:
		return []byte(`{"return":{"running":true,"status":"running"},"id":"libvirt-2"}`), nil
	case `"device_del"`:
		return []byte(`{"id":"libvirt-3","error":{"class":"DeviceNotFound","desc":"Device 'x' not found"}}`), nil
	case `"refused"`:
		return nil, fmt.Errorf("%w: domain is not running", ErrPassthroughRefused)
	case `"empty"`:
		return []byte(`{}`), nil
	}
	select { // a QEMU that was stopped
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-f.closed:
		return nil, errors.New("closed")
	}
}

func TestPassthrough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakePassthrough()
		c, err := NewPassthrough(t.Context(), f, 10*time.Second, nil)
		if err != nil {
			t.Fatal(err)
		}
		if v := c.Greeting().Version.QEMU; v.Major != 11 || c.OOB() {
			t.Errorf("greeting %+v, oob %v", v, c.OOB())
		}
		if st, err := c.QueryStatus(t.Context()); err != nil || !st.Running {
			t.Errorf("query-status: %+v, %v", st, err)
		}
		if err := c.Execute(t.Context(), "device_del", map[string]string{"id": "x"}, nil); !IsClass(err, ClassDeviceNotFound) {
			t.Errorf("QEMU's refusal inside a reply came as %v", err)
		}
		if err := c.Execute(t.Context(), "refused", nil, nil); !IsClass(err, ClassPassthrough) {
			t.Errorf("the passthrough's refusal came as %v", err)
		}
		if err := c.ExecuteOOB(t.Context(), "query-yank", nil, nil); !errors.Is(err, ErrNotSupported) {
			t.Errorf("out of band: %v", err)
		}
		if _, err := c.QueryYank(t.Context()); !errors.Is(err, ErrNotSupported) {
			t.Errorf("query-yank: %v", err)
		}
		sub := c.Subscribe(SubscribeOptions{})
		f.events <- PassthroughEvent{Name: "STOP", Time: time.Unix(5, 6000)}
		f.events <- PassthroughEvent{Name: "SHUTDOWN", Data: []byte(`{"guest":true,"reason":"guest-shutdown"}`)}
		for _, want := range []string{"STOP", "SHUTDOWN"} {
			if ev, err := sub.Next(t.Context()); err != nil || ev.Name != want {
				t.Fatalf("event %+v, %v; want %s", ev, err, want)
			}
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		select {
		case <-f.closed:
		default:
			t.Error("the passthrough was not closed")
		}
	})
}

// TestPassthroughEnds goes through the ways in which it breaks. Who waits is told, and nothing is left running (synctest would say so).
func TestPassthroughEnds(t *testing.T) {
	for name, c := range map[string]struct {
		command string
		end     func(*fakePassthrough)
		want    string
	}{
		"no answer in time":   {command: "hang", want: "context deadline exceeded"},
		"not a reply":         {command: "empty", want: "neither greeting, reply nor event"},
		"the events end":      {command: "hang", end: func(f *fakePassthrough) { close(f.events) }, want: "the passthrough has ended"},
		"closed on its owner": {command: "hang", end: func(f *fakePassthrough) { f.Close() }, want: "closed"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFakePassthrough()
				m, err := NewPassthrough(t.Context(), f, 10*time.Second, nil)
				if err != nil {
					t.Fatal(err)
				}
				defer m.Close()
				if c.end != nil {
					go func() {
						time.Sleep(time.Second)
						c.end(f)
					}()
				}
				err = m.Execute(t.Context(), c.command, nil, nil)
				var end *EndError
				if !errors.As(err, &end) || !strings.Contains(end.Cause.Error(), c.want) {
					t.Errorf("got %v, want the end because of %q", err, c.want)
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		f := newFakePassthrough()
		f.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		hang := hanging{f}
		if _, err := NewPassthrough(ctx, hang, 10*time.Second, nil); err == nil {
			t.Error("a QEMU that doesn't tell its version was accepted")
		}
	})
}

type hanging struct{ *fakePassthrough }

func (hanging) Command(ctx context.Context, _ []byte) ([]byte, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}
