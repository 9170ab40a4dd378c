// Package qmptest is a QEMU to test against that exists only in memory: it
// speaks QMP on net.Pipe, answers what the test tells it to, and behaves like
// QEMU where that matters to a client:
//
//   - in-band commands of all connections run one after the other;
//   - with eight of them waiting on a connection it stops reading that
//     connection, so that out-of-band commands aren't seen either;
//   - out-of-band commands are answered at once.
//
// It uses no real time and no sockets, so it works inside a
// testing/synctest bubble. Everything ends with the test.
package qmptest

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"slices"
	"sync"
	"testing"

	"github.com/coloctl/coloctl/qmp"
)

// Handler answers one command. An error that is a *qmp.Error keeps its class;
// others become a GenericError. A nil result is answered as {}.
type Handler func(args json.RawMessage) (any, error)

// Call is a command that was received.
type Call struct {
	Command string
	Args    json.RawMessage // nil if there were none
	OOB     bool
}

// String returns the command and its arguments as they were sent.
func (c Call) String() string {
	s := c.Command
	if c.OOB {
		s = "oob " + s
	}
	if c.Args != nil {
		s += " " + string(c.Args)
	}
	return s
}

// Fake is a QEMU. Its methods may be called concurrently, also by handlers.
type Fake struct {
	t    testing.TB
	jobs chan job
	stop chan struct{}
	wg   sync.WaitGroup

	mu       sync.Mutex
	version  string
	handlers map[string]Handler
	hung     map[string]chan struct{}
	calls    []Call
	conns    map[*conn]struct{}
	stopped  bool
}

// New starts a Fake that ends with the test. Commands without a handler are
// answered with {}, or with [] where a typed client expects a list.
func New(t testing.TB) *Fake {
	t.Helper()
	f := &Fake{
		t:        t,
		jobs:     make(chan job),
		stop:     make(chan struct{}),
		version:  defaultVersion,
		handlers: map[string]Handler{},
		hung:     map[string]chan struct{}{},
		conns:    map[*conn]struct{}{},
	}
	f.wg.Go(f.mainLoop)
	t.Cleanup(func() {
		f.Kill()
		f.wg.Wait()
	})
	return f
}

const defaultVersion = `{"qemu":{"major":11,"minor":1,"micro":3},"package":"fake"}`

// lists are the commands whose reply is an array.
var lists = []string{
	"query-block-exports", "query-block-jobs", "query-chardev", "query-jobs",
	"query-migrate-capabilities", "query-named-block-nodes", "query-qmp-schema",
	"query-yank", "qom-list",
}

// Client connects to the fake. The client is closed at the end of the test.
func (f *Fake) Client(ctx context.Context) *qmp.Client {
	f.t.Helper()
	c, err := qmp.Dial(ctx, "fake", &qmp.Options{Name: "fake", Dial: f.Dial})
	if err != nil {
		f.t.Fatalf("connect to the fake: %v", err)
	}
	f.t.Cleanup(func() { _ = c.Close() })
	return c
}

// Dial opens a connection; use it as qmp.Options.Dial. The path is ignored.
func (f *Fake) Dial(context.Context, string) (net.Conn, error) {
	client, server := net.Pipe()
	c := &conn{fake: f, conn: server, out: make(chan []byte, 1024), gone: make(chan struct{}), room: make(chan struct{}, inbandLimit)}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stopped {
		_ = server.Close()
		_ = client.Close()
		return nil, errors.New("qmptest: this QEMU is dead")
	}
	f.conns[c] = struct{}{}
	f.wg.Go(c.read)
	f.wg.Go(c.write)
	c.send(json.RawMessage(`{"QMP":{"version":` + f.version + `,"capabilities":["oob"]}}`))
	return client, nil
}

// Handle sets the handler for a command; nil restores the default.
func (f *Fake) Handle(command string, h Handler) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if h == nil {
		delete(f.handlers, command)
		return
	}
	f.handlers[command] = h
}

// Reply makes a command always answer v.
func (f *Fake) Reply(command string, v any) {
	f.Handle(command, func(json.RawMessage) (any, error) { return v, nil })
}

// Fail makes a command always fail with a GenericError.
func (f *Fake) Fail(command, desc string) {
	f.Handle(command, func(json.RawMessage) (any, error) { return nil, errors.New(desc) })
}

// Hang makes a command, when it comes, wait for Release before its handler
// runs. In band it so blocks all commands behind it.
func (f *Fake) Hang(command string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.hung[command] == nil {
		f.hung[command] = make(chan struct{})
	}
}

// Release ends the effect of Hang.
func (f *Fake) Release(command string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if ch := f.hung[command]; ch != nil {
		close(ch)
		delete(f.hung, command)
	}
}

// Emit sends an event on all connections. data may be nil.
func (f *Fake) Emit(event string, data any) {
	ev := struct {
		Timestamp map[string]int64 `json:"timestamp"`
		Event     string           `json:"event"`
		Data      any              `json:"data,omitempty"`
	}{timestamp(), event, data}
	line, err := json.Marshal(ev)
	if err != nil {
		f.t.Errorf("qmptest: event %s: %v", event, err)
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for c := range f.conns {
		c.send(line)
	}
}

// Calls returns what was received so far, without the handshakes.
func (f *Fake) Calls() []Call {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}

// Kill ends the fake as kill -9 ends QEMU: all connections break. It may be
// called repeatedly.
func (f *Fake) Kill() {
	f.mu.Lock()
	if !f.stopped {
		f.stopped = true
		close(f.stop)
		for c := range f.conns {
			_ = c.conn.Close()
		}
	}
	f.mu.Unlock()
}

// answer runs the handler for one command.
func (f *Fake) answer(command string, args json.RawMessage) (any, error) {
	f.mu.Lock()
	hang := f.hung[command]
	f.mu.Unlock()
	if hang != nil {
		select {
		case <-hang:
		case <-f.stop:
		}
	}
	f.mu.Lock()
	h := f.handlers[command]
	f.mu.Unlock()
	switch {
	case h != nil:
		return h(args)
	case slices.Contains(lists, command):
		return []any{}, nil
	case command == "query-status":
		return qmp.Status{Running: true, Status: "running"}, nil
	case command == "query-version":
		f.mu.Lock()
		defer f.mu.Unlock()
		return json.RawMessage(f.version), nil
	}
	return nil, nil
}
