package qmp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	goqemu "github.com/digitalocean/go-qemu/qmp"
)

// monitor makes a Client usable by code that was written for go-qemu.
type monitor struct {
	c       *Client
	timeout time.Duration
	events  sync.WaitGroup
}

// AsMonitor returns a view of the client that satisfies go-qemu's Monitor, for
// its generated commands and its Domain. As that interface knows no contexts,
// each Run is bounded by timeout. Connect does nothing, since the client is
// connected; Disconnect closes the client and waits for the goroutines that
// Events started.
func AsMonitor(c *Client, timeout time.Duration) goqemu.Monitor {
	return &monitor{c: c, timeout: timeout}
}

// Connect returns an error only if the connection has ended.
func (m *monitor) Connect() error { return m.c.Err() }

// Disconnect closes the client.
func (m *monitor) Disconnect() error {
	err := m.c.Close()
	m.events.Wait()
	return err
}

// Run executes a command given as JSON and returns the reply with its envelope,
// {"return": …}. The caller's own id is ignored. The returned bytes belong to
// the caller.
func (m *monitor) Run(command []byte) ([]byte, error) {
	var cmd struct {
		Execute string          `json:"execute"`
		OOB     string          `json:"exec-oob"`
		Args    json.RawMessage `json:"arguments"`
	}
	if err := json.Unmarshal(command, &cmd); err != nil {
		return nil, fmt.Errorf("qmp: decode command: %w", err)
	}
	if (cmd.Execute == "") == (cmd.OOB == "") {
		return nil, errors.New("qmp: a command needs either execute or exec-oob")
	}
	ctx, cancel := context.WithTimeout(context.Background(), m.timeout)
	defer cancel()
	var args any
	if cmd.Args != nil {
		args = cmd.Args
	}
	var ret json.RawMessage
	var err error
	if cmd.OOB != "" {
		err = m.c.ExecuteOOB(ctx, cmd.OOB, args, &ret)
	} else {
		err = m.c.Execute(ctx, cmd.Execute, args, &ret)
	}
	if err != nil {
		return nil, err
	}
	out := make([]byte, 0, len(ret)+12)
	out = append(out, `{"return":`...)
	out = append(out, ret...)
	return append(out, '}'), nil
}

// Events returns a channel of its own for each call. It is closed when ctx or
// the connection ends. A reader that doesn't keep up loses events; go-qemu's
// interface can't tell it.
func (m *monitor) Events(ctx context.Context) (<-chan goqemu.Event, error) {
	if err := m.c.Err(); err != nil {
		return nil, err
	}
	sub := m.c.Subscribe(SubscribeOptions{})
	out := make(chan goqemu.Event, defaultBuffer)
	m.events.Go(func() {
		defer close(out)
		defer sub.Close()
		for {
			e, err := sub.Next(ctx)
			if err != nil {
				return
			}
			select {
			case out <- e.goQEMU():
				continue
			default:
			}
			// The reader is slow. It must not hold up Disconnect.
			select {
			case out <- e.goQEMU():
			case <-ctx.Done():
				return
			case <-m.c.Done():
				return
			}
		}
	})
	return out, nil
}

func (e *Event) goQEMU() goqemu.Event {
	g := goqemu.Event{Event: e.Name}
	if len(bytes.TrimSpace(e.Data)) > 0 {
		// The data was part of a valid message, so this can only fail if it
		// isn't an object, which QMP excludes.
		_ = json.Unmarshal(e.Data, &g.Data)
	}
	if !e.Time.IsZero() {
		g.Timestamp.Seconds = e.Time.Unix()
		g.Timestamp.Microseconds = int64(e.Time.Nanosecond() / 1000)
	}
	return g
}
