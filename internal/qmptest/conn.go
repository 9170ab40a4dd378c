package qmptest

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"net"
	"time"

	"github.com/coloctl/coloctl/qmp"
)

// inbandLimit is QEMU's QMP_REQ_QUEUE_LEN_MAX: with so many commands waiting on
// a connection it isn't read any longer.
const inbandLimit = 8

// conn is one QMP connection of the fake.
type conn struct {
	fake *Fake
	conn net.Conn
	out  chan []byte
	gone chan struct{} // closed when read ends
	room chan struct{} // one element per in-band command that waits or runs
}

type command struct {
	Execute string          `json:"execute"`
	OOB     string          `json:"exec-oob"`
	ID      json.RawMessage `json:"id"`
	Args    json.RawMessage `json:"arguments"`
}

type job struct {
	from *conn
	cmd  command
}

// read takes commands from the connection until it ends.
func (c *conn) read() {
	defer func() {
		close(c.gone)
		_ = c.conn.Close()
		c.fake.mu.Lock()
		delete(c.fake.conns, c)
		c.fake.mu.Unlock()
	}()
	pending := make(chan job, inbandLimit)
	defer close(pending)
	c.fake.wg.Go(func() {
		for j := range pending {
			select {
			case c.fake.jobs <- j:
			case <-c.fake.stop:
			}
		}
	})
	r := bufio.NewReader(c.conn)
	for {
		line, err := r.ReadBytes('\n')
		if err != nil {
			return
		}
		var cmd command
		if err := json.Unmarshal(line, &cmd); err != nil {
			c.send(json.RawMessage(`{"error":{"class":"GenericError","desc":"JSON parse error"}}`))
			continue
		}
		name := cmd.Execute + cmd.OOB
		if name != "qmp_capabilities" {
			c.fake.mu.Lock()
			c.fake.calls = append(c.fake.calls, Call{Command: name, Args: cmd.Args, OOB: cmd.OOB != ""})
			c.fake.mu.Unlock()
		}
		if cmd.OOB != "" {
			c.reply(cmd)
			continue
		}
		select {
		case c.room <- struct{}{}:
		case <-c.fake.stop:
			return
		}
		pending <- job{from: c, cmd: cmd} // has room, because c.room had
	}
}

// mainLoop runs the in-band commands of all connections, one at a time.
func (f *Fake) mainLoop() {
	for {
		select {
		case j := <-f.jobs:
			j.from.reply(j.cmd)
			<-j.from.room
		case <-f.stop:
			return
		}
	}
}

func (c *conn) reply(cmd command) {
	v, err := c.fake.answer(cmd.Execute+cmd.OOB, cmd.Args)
	r := struct {
		Return any             `json:"return,omitempty"`
		Error  any             `json:"error,omitempty"`
		ID     json.RawMessage `json:"id,omitempty"`
	}{ID: cmd.ID, Return: v}
	switch {
	case err != nil:
		class, desc := qmp.ClassGeneric, err.Error()
		if qe := (*qmp.Error)(nil); errors.As(err, &qe) {
			class, desc = qe.Class, qe.Desc
		}
		r.Return, r.Error = nil, map[string]string{"class": class, "desc": desc}
	case v == nil:
		r.Return = struct{}{}
	}
	line, err := json.Marshal(r)
	if err != nil {
		c.fake.t.Errorf("qmptest: reply to %s: %v", cmd.Execute+cmd.OOB, err)
		return
	}
	c.send(line)
}

// send queues a line. A client that reads nothing for so long that the queue is
// full is a bug of the client.
func (c *conn) send(line []byte) {
	select {
	case c.out <- append(line, '\n'):
	default:
		c.fake.t.Errorf("qmptest: the client doesn't read; lost %s", line)
	}
}

func (c *conn) write() {
	for {
		select {
		case line := <-c.out:
			if _, err := c.conn.Write(line); err != nil {
				if !errors.Is(err, io.ErrClosedPipe) {
					c.fake.t.Errorf("qmptest: write: %v", err)
				}
				return
			}
		case <-c.gone:
			return
		}
	}
}

func timestamp() map[string]int64 {
	now := time.Now()
	return map[string]int64{"seconds": now.Unix(), "microseconds": int64(now.Nanosecond() / 1000)}
}
