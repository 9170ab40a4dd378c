package qmp

import (
	"bytes"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"
)

// A socket that takes only a part of a line gets the rest from the writer, in
// order, and callers never wait for it.
func TestWritesKeepOrder(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	peer, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	c := &Client{
		conn: conn, opts: (*Options)(nil).withDefaults(), direct: newDirectWriter(conn),
		sendq: make(chan []byte, 1+maxOOB), done: make(chan struct{}), waiting: map[uint64]*request{},
	}
	c.loops.Go(c.writeLoop)
	defer c.Close()

	var want []byte
	start := time.Now()
	for i := range 1 + maxOOB {
		line := append(bytes.Repeat([]byte{byte('a' + i)}, 200<<10), '\n')
		want = append(want, line...)
		c.mu.Lock()
		c.sendLocked(&request{id: uint64(i), line: line, reply: make(chan reply, 1)})
		c.mu.Unlock()
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("the callers waited %v", d)
	}
	got := make([]byte, len(want))
	if _, err := io.ReadFull(peer, got); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%v; the bytes are right: %v", err, bytes.Equal(got, want))
	}
}

// A direct write must work after an earlier deadline of the writer passed.
func TestWriteAfterDeadline(t *testing.T) {
	c := &Client{opts: Options{WriteTimeout: time.Millisecond}}
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if c.conn, err = net.Dial("unix", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	defer c.conn.Close()
	c.direct = newDirectWriter(c.conn)
	if err := c.write([]byte("a\n")); err != nil {
		t.Fatal(err)
	}
	<-time.After(5 * time.Millisecond)
	if n := c.direct.write([]byte("b\n")); n != 2 {
		t.Errorf("wrote %d bytes", n)
	}
}
