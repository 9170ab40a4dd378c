package qmp

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
)

// request is a command on its way. It is in Client.queue until it is its turn,
// then in Client.waiting until its reply comes, also if nobody waits any more.
type request struct {
	id      uint64
	command string
	line    []byte
	oob     bool
	reply   chan reply // capacity 1, gets exactly one
}

type reply struct {
	ret json.RawMessage
	err error
}

// Execute runs a command in band and waits for its reply. args is marshalled to
// the command's arguments and may be nil; the reply is unmarshalled into out
// unless that is nil.
//
// It returns *Error if QEMU refused, *WaitError if ctx ended first, *EndError if
// the connection ended, ErrBusy if too many commands wait already.
func (c *Client) Execute(ctx context.Context, command string, args, out any) error {
	return c.do(ctx, false, command, args, out)
}

// ExecuteOOB runs a command out of band: QEMU answers even if an in-band
// command hangs or its main loop is stuck. Few commands allow it, yank and
// query-yank among them.
func (c *Client) ExecuteOOB(ctx context.Context, command string, args, out any) error {
	if !c.oob {
		return &UnsupportedError{Feature: "QMP capability oob", MinQEMU: "3.0", QEMU: c.greeting.Version.String()}
	}
	return c.do(ctx, true, command, args, out)
}

func (c *Client) do(ctx context.Context, oob bool, command string, args, out any) error {
	ret, err := c.roundTrip(ctx, oob, command, args)
	if err != nil || out == nil {
		return err
	}
	if raw, ok := out.(*json.RawMessage); ok {
		*raw = ret
		return nil
	}
	if err := json.Unmarshal(ret, out); err != nil {
		return fmt.Errorf("qmp: %s: decode reply: %w", command, err)
	}
	return nil
}

func (c *Client) roundTrip(ctx context.Context, oob bool, command string, args any) (json.RawMessage, error) {
	if err := ctx.Err(); err != nil {
		return nil, &WaitError{Command: command, Cause: err}
	}
	r := &request{id: c.newID(), command: command, oob: oob, reply: make(chan reply, 1)}
	var err error
	if r.line, err = encodeCommand(oob, command, r.id, args); err != nil {
		return nil, err
	}
	if err := c.submit(r); err != nil {
		return nil, err
	}
	select {
	case rep := <-r.reply:
		return rep.ret, rep.err
	case <-ctx.Done():
	}
	sent := c.abandon(r)
	select {
	case rep := <-r.reply: // it came at the same moment
		return rep.ret, rep.err
	default:
		return nil, &WaitError{Command: command, Sent: sent, Cause: ctx.Err()}
	}
}

// newID counts up. The first id of a connection, that of the handshake, is
// random instead: QEMU may send the reply to a command of the connection before
// on this one, but only before it answers the handshake, because it runs in-band
// commands one after the other.
func (c *Client) newID() uint64 {
	id := c.lastID.Add(1) - 1
	if id == 0 {
		var b [8]byte
		_, _ = rand.Read(b[:]) // it never fails
		id = binary.NativeEndian.Uint64(b[:])>>2 | 1<<61
	}
	return id
}

// submit sends r if it may be sent now, queues it, or refuses it.
func (c *Client) submit(r *request) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.err != nil:
		return &EndError{Name: c.opts.Name, Command: r.command, Cause: c.err.Cause}
	case r.oob && c.oobCount >= maxOOB, !r.oob && len(c.queue) >= c.opts.MaxQueue:
		return fmt.Errorf("%w: %s", ErrBusy, r.command)
	case r.oob:
		c.oobCount++
		c.sendLocked(r)
	case c.inflight != nil:
		c.queue = append(c.queue, r)
	default:
		c.inflight = r
		c.sendLocked(r)
	}
	return nil
}

// abandon takes a request out of the queue if it is still there. One that was
// sent stays where it is, so that its reply frees the slot.
func (c *Client) abandon(r *request) (sent bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.Index(c.queue, r)
	if i < 0 {
		return true
	}
	c.queue = slices.Delete(c.queue, i, i+1)
	return false
}

// answer pairs a reply with its request and lets the next command go.
func (c *Client) answer(m *message) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return nil
	}
	r, err := c.findLocked(m)
	if r == nil || err != nil {
		return err
	}
	delete(c.waiting, r.id)
	switch {
	case r.oob:
		c.oobCount--
	case len(c.queue) > 0:
		c.inflight = c.queue[0]
		c.queue = slices.Delete(c.queue, 0, 1)
		c.sendLocked(c.inflight)
	default:
		c.inflight = nil
	}
	if m.Error != nil {
		r.reply <- reply{err: &Error{Class: m.Error.Class, Desc: m.Error.Desc, Command: r.command}}
	} else {
		r.reply <- reply{ret: m.Return}
	}
	return nil
}

// findLocked returns nil for a reply to a command that isn't ours, such as one
// of the previous connection.
func (c *Client) findLocked(m *message) (*request, error) {
	if m.ID != nil {
		id, err := strconv.ParseUint(string(m.ID), 10, 64)
		if err != nil {
			return nil, nil
		}
		return c.waiting[id], nil
	}
	// QEMU leaves the id out when it could not parse what it got. That can't
	// be a command that is still to be written.
	switch {
	case len(c.waiting) == 0 || len(c.sendq) > 0:
		return nil, nil
	case len(c.waiting) == 1:
		for _, r := range c.waiting {
			return r, nil
		}
	}
	return nil, &ProtocolError{Reason: "a reply without id, while several commands wait"}
}
