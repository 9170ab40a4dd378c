package qmp

import (
	"net"
	"syscall"
	"time"
)

// sendLocked sends a request without waiting. Normally the socket takes the
// whole line at once; whatever it doesn't take is left to the writer, which
// waits for the socket. sendq can't be full: at most one in-band and maxOOB
// out-of-band requests are unanswered, and it has room for so many.
func (c *Client) sendLocked(r *request) {
	c.waiting[r.id] = r
	line := r.line
	if c.direct != nil && c.unwritten == 0 {
		if line = line[c.direct.write(line):]; len(line) == 0 {
			return
		}
	}
	c.unwritten++
	c.sendq <- line
}

// writeLoop is the writer.
func (c *Client) writeLoop() {
	for {
		select {
		case line := <-c.sendq:
			if err := c.write(line); err != nil {
				c.end(err)
				return
			}
			c.mu.Lock()
			c.unwritten--
			c.mu.Unlock()
		case <-c.done:
			return
		}
	}
}

func (c *Client) write(line []byte) error {
	if err := c.conn.SetWriteDeadline(time.Now().Add(c.opts.WriteTimeout)); err != nil {
		return err
	}
	if _, err := c.conn.Write(line); err != nil {
		return err
	}
	if c.direct == nil {
		return nil
	}
	// A deadline that has passed would make direct writes fail.
	return c.conn.SetWriteDeadline(time.Time{})
}

// directWriter writes to a socket from the goroutine of the caller, which saves
// waking another one for each command, but never waits.
type directWriter struct {
	raw  syscall.RawConn
	try  func(fd uintptr) bool // is d.attempt, made once
	line []byte
	n    int
}

func newDirectWriter(conn net.Conn) *directWriter {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil
	}
	d := &directWriter{raw: raw}
	d.try = d.attempt
	return d
}

// write returns how much of line was written. Errors are left for the writer to
// find.
func (d *directWriter) write(line []byte) int {
	d.line, d.n = line, 0
	_ = d.raw.Write(d.try)
	d.line = nil
	return d.n
}

// attempt writes once; the socket is non-blocking. It returns true so that the
// runtime doesn't wait until more can be written.
func (d *directWriter) attempt(fd uintptr) bool {
	if n, err := syscall.Write(int(fd), d.line); err == nil {
		d.n = n
	}
	return true
}
