package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// Passthrough is somebody else's connection to a QEMU that lets us speak too, such as libvirt's.
type Passthrough interface {
	// Command hands QEMU a command, as QMP's JSON without an id, and returns the reply as it came: {"return": …} or {"error": …}. An error
	// that matches ErrPassthroughRefused says that the command didn't get to QEMU; every other one ends the Degraded.
	Command(ctx context.Context, command []byte) ([]byte, error)
	// Events is closed when no more can come. What happens without a reader is up to the implementation.
	Events() <-chan PassthroughEvent
	// Close ends it, and with it a Command that waits.
	Close() error
}

// PassthroughEvent is an event as a Passthrough has it.
type PassthroughEvent struct {
	Name string
	Data []byte // JSON, or empty
	Time time.Time
}

// ErrPassthroughRefused is matched by errors of a Passthrough that did not hand a command on.
var ErrPassthroughRefused = errors.New("not handed on to QEMU")

// ClassPassthrough is the class of an *Error that doesn't come from QEMU but from who stands in between.
const ClassPassthrough = "Passthrough"

// Degraded is a client of a monitor that belongs to somebody else. It is good for looking, and for nothing that protects:
//
//   - nothing can be executed out of band, so no yank frees a QEMU that waits for a dead peer;
//   - a command waits behind those of the monitor's owner, who may have a deadline of his own for it, and who may be confused by what it does;
//   - events come as the owner passes them on: later than a reply that QEMU sent after them, and without those he drops;
//   - its end says that the way to QEMU has ended, and nothing of QEMU.
//
// It is a type of its own so that a function which takes a *Client for COLO doesn't get one of these by accident.
type Degraded struct {
	*Client
	ended <-chan struct{} // closed when the passthrough has been let go of
}

// Close ends the client and the passthrough.
func (d Degraded) Close() error {
	err := d.Client.Close()
	<-d.ended
	return err
}

// ExecuteOOB always fails.
func (d Degraded) ExecuteOOB(context.Context, string, any, any) error { return errDegraded }

var errDegraded error = &UnsupportedError{Feature: "out-of-band execution through somebody else's monitor"}

// NewPassthrough makes a client of p, which belongs to it from here on, also when it fails. No command waits for longer than timeout: then the
// way to QEMU counts as broken, and the client ends.
func NewPassthrough(ctx context.Context, p Passthrough, timeout time.Duration, o *Options) (Degraded, error) {
	here, there := net.Pipe()
	b := &bridge{p: p, conn: there, timeout: timeout}
	b.ctx, b.stop = context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		b.run(ctx)
	}()
	c, err := NewClient(ctx, bridgeEnd{here, b}, o)
	if err != nil {
		<-ended
		return Degraded{}, err
	}
	return Degraded{c, ended}, nil
}

// bridgeEnd is the client's end. Who reads or writes learns why the bridge has ended.
type bridgeEnd struct {
	net.Conn
	b *bridge
}

func (e bridgeEnd) Read(p []byte) (int, error) {
	n, err := e.Conn.Read(p)
	return n, e.why(err)
}

func (e bridgeEnd) Write(p []byte) (int, error) {
	n, err := e.Conn.Write(p)
	return n, e.why(err)
}

func (e bridgeEnd) why(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrClosedPipe) {
		if cause := e.b.cause(); cause != nil {
			return cause
		}
	}
	return err
}

// bridge speaks QMP, as a QEMU does, to a client of ours, and hands on what that says. It ends with the client.
type bridge struct {
	p       Passthrough
	conn    net.Conn // the client's other end
	timeout time.Duration
	ctx     context.Context //nolint:containedctx // of the commands, ends with the bridge
	stop    context.CancelFunc

	writing sync.Mutex // one line at a time

	mu  sync.Mutex
	err error
}

func (b *bridge) cause() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}

// end lets go of both sides.
func (b *bridge) end(err error) {
	b.mu.Lock()
	if b.err == nil {
		b.err = err
	}
	b.mu.Unlock()
	b.stop()
	_ = b.p.Close()
	_ = b.conn.Close()
}

func (b *bridge) run(ctx context.Context) {
	if err := b.greet(ctx); err != nil {
		b.end(err)
		return
	}
	var events sync.WaitGroup
	events.Go(b.events)
	b.end(b.commands())
	events.Wait()
}

func (b *bridge) write(v any) error {
	line, err := json.Marshal(v)
	if err != nil {
		return err
	}
	b.writing.Lock()
	defer b.writing.Unlock()
	_, err = b.conn.Write(append(line, '\n'))
	return err
}

// greet asks QEMU for its version, which a greeting tells.
func (b *bridge) greet(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, b.timeout)
	defer cancel()
	text, err := b.p.Command(ctx, []byte(`{"execute":"query-version"}`))
	if err != nil {
		return err
	}
	m, err := parseMessage(text)
	if err != nil {
		return err
	}
	if m.Error != nil {
		return &Error{Class: m.Error.Class, Desc: m.Error.Desc, Command: "query-version"}
	}
	return b.write(map[string]any{"QMP": map[string]any{"version": m.Return, "capabilities": []string{}}})
}

func (b *bridge) commands() error {
	in := bufio.NewReader(b.conn)
	for {
		line, err := in.ReadBytes('\n')
		if err != nil {
			return err
		}
		var cmd struct {
			Execute   string          `json:"execute"`
			ID        json.RawMessage `json:"id"`
			Arguments json.RawMessage `json:"arguments,omitempty"`
		}
		if err := json.Unmarshal(line, &cmd); err != nil {
			return err
		}
		answer := map[string]json.RawMessage{"id": cmd.ID}
		if cmd.Execute == "qmp_capabilities" { // the owner has done it
			answer["return"] = json.RawMessage("{}")
		} else if err := b.hand(cmd.Execute, cmd.Arguments, answer); err != nil {
			return err
		}
		if err := b.write(answer); err != nil {
			return err
		}
	}
}

// hand passes one command on. What stands in between may put an id of its own into the reply.
func (b *bridge) hand(command string, args json.RawMessage, answer map[string]json.RawMessage) error {
	bare, err := json.Marshal(struct {
		Execute   string          `json:"execute"`
		Arguments json.RawMessage `json:"arguments,omitempty"`
	}{command, args})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(b.ctx, b.timeout)
	defer cancel()
	text, err := b.p.Command(ctx, bare)
	if errors.Is(err, ErrPassthroughRefused) {
		answer["error"], err = json.Marshal(wireError{Class: ClassPassthrough, Desc: err.Error()})
		return err
	}
	if err != nil {
		return err
	}
	m, err := parseMessage(text)
	switch {
	case err != nil:
		return err
	case m.Error != nil:
		answer["error"], err = json.Marshal(m.Error)
	case m.Return != nil:
		answer["return"] = m.Return
	default:
		err = &ProtocolError{Reason: "the reply is none", Line: beginning(text)}
	}
	return err
}

func (b *bridge) events() {
	type stamp struct {
		Seconds      int64 `json:"seconds"`
		Microseconds int64 `json:"microseconds"`
	}
	for {
		select {
		case e, ok := <-b.p.Events():
			if !ok {
				b.end(errors.New("qmp: the passthrough has ended"))
				return
			}
			line := map[string]any{"event": e.Name, "timestamp": stamp{e.Time.Unix(), int64(e.Time.Nanosecond()) / 1000}}
			if len(e.Data) > 0 && json.Valid(e.Data) {
				line["data"] = json.RawMessage(e.Data)
			}
			if err := b.write(line); err != nil {
				return
			}
		case <-b.ctx.Done():
			return
		}
	}
}
